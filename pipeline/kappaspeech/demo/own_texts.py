"""Texts that an LLM writes itself, one a line, to replay if the user brings no text.

Each begins with a sentence of this project's, so that a small model keeps to the language, and goes on as the model would. A
training that is held to its base on both leaves it as it was.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import torch

from kappaspeech.artefacts import write_text
from kappaspeech.demo.texts import LANGUAGES
from kappaspeech.model.llm import load_llm, load_tokenizer

_TOP_K = 100
_BATCH_SIZE = 60


def read_openings(language: str) -> list[str]:
    """Sentences of a language of the demo, none of them in the texts that forgetting is measured on."""
    path = resources.files("kappaspeech.demo").joinpath("text", f"openings_{language}.txt")
    return path.read_text(encoding="utf-8").splitlines()


@torch.no_grad()
def write_own_texts(llm: str, folder: Path, *, count: int, num_tokens: int, seed: int) -> list[Path]:
    """Let `llm` go on from openings by sampling; write `count` texts to `folder`/en.txt and de.txt each.

    It adds `num_tokens` at most. Return the paths. A function of `seed`, on one machine. Raises `CheckpointError`.
    """
    tokenizer, model = load_tokenizer(llm), load_llm(llm, dtype=torch.float32)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for language in LANGUAGES:
        openings = read_openings(language)
        wanted = [openings[index % len(openings)] for index in range(count)]
        lines = []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for start in range(0, count, _BATCH_SIZE):
                given = tokenizer(wanted[start : start + _BATCH_SIZE], return_tensors="pt", padding=True, padding_side="left")
                inputs = {name: given[name] for name in ("input_ids", "attention_mask")}
                options = {"do_sample": True, "top_k": _TOP_K, "top_p": 1.0, "temperature": 1.0}
                ids = model.generate(**inputs, max_new_tokens=num_tokens, pad_token_id=tokenizer.pad_token_id, **options)
                lines += [" ".join(text.split()) for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]
        paths.append(folder / f"{language}.txt")
        write_text(paths[-1], "".join(f"{line}\n" for line in lines))
    return paths
