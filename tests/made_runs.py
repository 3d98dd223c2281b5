"""Run folders as training leaves them, written in a moment: invented numbers, for what reads runs and needs no training."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kappaspeech.artefacts import digest_json, write_json
from kappaspeech.config.run_config import RunConfig
from kappaspeech.evaluation.choice_items import Item
from kappaspeech.evaluation.choices import Picked, measure_choices
from kappaspeech.evaluation.instruction_checks import Check, Instruction
from kappaspeech.evaluation.instructions import measure_instructions
from kappaspeech.evaluation.wer import Hypothesis, measure
from kappaspeech.runs.folder import Movement, RunFolder
from kappaspeech.selection.tensor_selection import SelectedTensor, TensorSelection
from tests.tiny import WORDS

KINDS = {
    "self_attn.q_proj": (8, 8),
    "self_attn.k_proj": (4, 8),
    "self_attn.v_proj": (4, 8),
    "self_attn.o_proj": (8, 8),
    "mlp.gate_proj": (12, 8),
    "mlp.up_proj": (12, 8),
    "mlp.down_proj": (8, 12),
}
NUM_LAYERS = 10
TENSORS = {f"model.layers.{layer}.{kind}.weight": shape for layer in range(NUM_LAYERS) for kind, shape in KINDS.items()} | {
    "model.embed_tokens.weight": (64, 8)
}
NUM_STEPS = 60


def make_run(
    folder: Path,
    arm: str,
    *,
    seed: int,
    error_rate: float,
    forgetting: float = 0.0,
    selected: Sequence[str] = (),
    num_clips: int = 12,
    num_questions: int = 0,
    num_instructions: int = 0,
    lost: float = 0.0,
) -> Path:
    """A finished run whose words are wrong at `error_rate` at the end, and whose texts' perplexity has grown by `forgetting`.

    Asked `num_questions`, it answers the first of them, a share of `lost`, otherwise than its base; of `num_instructions`, all of
    which the base follows, it doesn't follow as many.
    """
    config = RunConfig.model_validate_json(
        json.dumps(
            {
                "run_dir": str(folder),
                "arm": arm,
                "seed": seed,
                "model": {"llm": "models/a-small-llm", "encoder": "models/whisper-base.pt"},
                "unfreeze": {"selection": f"{arm}.json" if selected else None},
                "data": {"train": [{"shards": "train/*.tar"}], "test": [{"shards": "test/*.tar"}], "text": {"en": "en.txt"}},
                "training": {"num_steps": NUM_STEPS, "evaluate_every_steps": 10},
            }
        )
    )
    rng = random.Random(f"{arm}/{seed}")
    kappas = {name: math.exp(random.Random(name).uniform(1, 12)) for name in TENSORS}
    tensors = tuple(SelectedTensor(name, TENSORS[name], kappas[name]) for name in selected)
    selection = TensorSelection(f"{len(tensors)} tensors", "a-small-llm", "0" * 64, "1" * 64, tensors) if tensors else None
    num_llm = selection.num_parameters if selection else 0
    run = RunFolder(folder)
    run.begin(
        config,
        selection=selection,
        rule=selection.rule if selection else "adaptor only",
        facts={
            "num_trained_parameters": 1_000 + num_llm,
            "num_llm_trained_parameters": num_llm,
            "data_fingerprint": f"{seed:064x}",
            "initial_weights_digest": digest_json(["weights", seed]),
            "checkpoint_digest": "0" * 64,
            "adaptor": {"width": 8},
            "dtype": "bfloat16",
            "deepspeed_config": {},
            "world_size": 1,
        },
    )
    write_json(folder / "frozen.json", _frozen(set(TENSORS) - set(selected)))
    moved = {name: 0.2 * rng.uniform(0.2, 1) / math.log(kappas[name]) for name in selected}
    run.write_drift({name: Movement(distance, kappas[name], 1.1 * kappas[name]) for name, distance in moved.items()})
    _write_steps(folder, seed, rng)
    run.hypotheses.mkdir(exist_ok=True)
    evaluations = []
    for step in range(0, NUM_STEPS + 1, 10):
        done = step / NUM_STEPS
        rate = 1.4 * (1 - done) ** 2 + error_rate * done
        hypotheses = _transcribe(rng, seed=0, rate=rate, num_clips=num_clips)
        lines = (json.dumps(item.to_json(), ensure_ascii=False) + "\n" for item in hypotheses)
        (run.hypotheses / f"step-{step:06d}.jsonl").write_text("".join(lines), encoding="utf-8")
        grown = 1 + forgetting * done
        text = {
            language: {"perplexity": base * grown, "kl_nats": math.log(grown), "num_tokens": 100}
            for language, base in (("de", 90.0), ("en", 70.0))
        }
        record = {"schema_version": 1, "step": step, "train_seconds": 7.0 * step, "wer": measure(hypotheses), "text": text}
        if num_questions:
            record["tasks"] = {"en": _answer(num_questions, changed=round(lost * done * num_questions))}
        if num_instructions:
            record["instructions"] = {"en": _follow(num_instructions, lost=round(lost * done * num_instructions))}
        evaluations.append(record)
    (folder / "evaluations.jsonl").write_text("".join(json.dumps(record) + "\n" for record in evaluations))
    run.end("finished")
    return folder


def _frozen(names: set[str]) -> dict[str, Any]:
    digests = {f"llm.{name}": "3" * 64 for name in sorted(names)} | {"whisper.conv1.weight": "4" * 64}
    return {"schema_version": 1, "changed": [], "before": digests, "after": digests}


def _write_steps(folder: Path, seed: int, rng: random.Random) -> None:
    records = [
        {
            "step": step,
            "loss_nats": 5 * math.exp(-step / 25) + (0.4 + 0.1 * rng.random() if step else 0.5),
            "num_target_tokens": 80 + step % 7,
            "audio_seconds": 30.0,
            "seconds": 7.0,
            "keys_digest": digest_json([seed, step]),
        }
        for step in range(NUM_STEPS)
    ]
    (folder / "steps.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def _answer(count: int, *, changed: int) -> dict[str, Any]:
    """Every fourth question is answered wrong by the base, and whatever is changed is wrong."""
    items = [Item(f"question {number}", ("a", "b", "c", "d"), 0) for number in range(count)]
    base = tuple(int(number % 4 == 0) for number in range(count))
    picked = tuple(2 if number < changed else base[number] for number in range(count))
    return measure_choices(items, Picked(picked, picked), Picked(base, base))


def _follow(count: int, *, lost: int) -> dict[str, Any]:
    """Half of what isn't followed any more is so loosely."""
    items = [Instruction(f"instruction {number}", (Check("one_of", {"texts": ["yes"]}),)) for number in range(count)]
    answers = [("Sure:\nyes" if number % 2 else "no") if number < lost else "yes" for number in range(count)]
    return measure_instructions(items, answers, ["yes"] * count)


def _transcribe(rng: random.Random, *, seed: int, rate: float, num_clips: int) -> list[Hypothesis]:
    """References are a function of `seed`; each word is replaced at `rate`, and above 1 words are added."""
    hypotheses = []
    for language, words in WORDS.items():
        for clip in range(num_clips):
            said = random.Random(f"{seed}/{language}/{clip}").choices(words, k=7)
            written = [rng.choice(words) + "x" if rng.random() < rate else word for word in said]
            written += ["more"] * sum(rng.random() < rate - 1 for _ in said)
            hypotheses.append(Hypothesis(f"{language}/{clip:03d}", language, " ".join(said), " ".join(written)))
    return hypotheses
