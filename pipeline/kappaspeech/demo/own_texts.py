"""Texts that an LLM writes itself, one a line: what to replay where the user brings no text. They need no data at all.

Being the model's own, they are what it would say, and a training that is held to its base on them leaves it as it was.
"""

from __future__ import annotations

from pathlib import Path

import torch

from kappaspeech.artefacts import write_text
from kappaspeech.model.llm import load_llm, load_tokenizer

OPENINGS = {
    "en": (
        "In the small town", "The next morning", "When the train", "Most people", "The history of", "She had never",
        "Last summer", "To make a good soup", "The government", "After the rain", "For many years", "Scientists have found",
        "My neighbour", "Sometimes it is", "The children", "A good teacher", "At the market", "Before the sun",
        "If you want to", "Yesterday we",
    ),
    "de": (
        "In der kleinen Stadt", "Am nächsten Morgen", "Als der Zug", "Die meisten Menschen", "Die Geschichte der",
        "Sie hatte nie", "Im letzten Sommer", "Für eine gute Suppe", "Die Regierung", "Nach dem Regen", "Seit vielen Jahren",
        "Forscher haben", "Mein Nachbar", "Manchmal ist es", "Die Kinder", "Ein guter Lehrer", "Auf dem Markt",
        "Bevor die Sonne", "Wenn man", "Gestern haben wir",
    ),
}  # fmt: skip
_TOP_P = 0.95
_BATCH_SIZE = 20


@torch.no_grad()
def write_own_texts(llm: str, folder: Path, *, count: int, num_tokens: int, seed: int) -> list[Path]:
    """Let `llm` go on from `OPENINGS` by sampling; write `count` texts of about `num_tokens` to `folder`/en.txt and de.txt each.

    Return the paths. A function of `seed`, on one machine. Raises `CheckpointError`.
    """
    tokenizer, model = load_tokenizer(llm), load_llm(llm, dtype=torch.float32)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for language, openings in OPENINGS.items():
        wanted = [openings[index % len(openings)] for index in range(count)]
        lines = []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for start in range(0, count, _BATCH_SIZE):
                given = tokenizer(wanted[start : start + _BATCH_SIZE], return_tensors="pt", padding=True, padding_side="left")
                inputs = {name: given[name] for name in ("input_ids", "attention_mask")}
                options = {"do_sample": True, "top_k": 0, "top_p": _TOP_P, "temperature": 1.0}
                ids = model.generate(**inputs, max_length=num_tokens, pad_token_id=tokenizer.pad_token_id, **options)
                lines += [" ".join(text.split()) for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]
        paths.append(folder / f"{language}.txt")
        write_text(paths[-1], "".join(f"{line}\n" for line in lines))
    return paths
