"""The numbers of a run's records by the names that every logger shows them under."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_OF_STEP = (
    "grad_norm",
    "seconds",
    "wait_seconds",
    "padding",
    "llm_padding",
    "audio_seconds_per_second",
    "tokens_per_second",
    "mfu",
)
# MLflow takes the fewest letters, and names of 250 at most
_NO_NAME = re.compile(r"[^\w.-]+")
_MOST_LETTERS = 100
# of runs that replay text
_OF_REPLAY = ("replay_nats", "anchor_nats")


def step_values(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a step's record."""
    loss = "loss_nats" if record["objective"] == "transcript" else "alignment_nats"
    rates = {f"train/learning_rate_{group}": rate for group, rate in record["learning_rates"].items()}
    return {
        f"train/{loss}": record["loss_nats"],
        **{f"train/{name}": record[name] for name in _OF_STEP},
        **{f"train/{name}": record[name] for name in _OF_REPLAY if record[name] is not None},
        **rates,
        "train/peak_memory_gb": record["peak_memory_bytes"] / 1e9,
        **{f"train/hours_{language}": hours for language, hours in record["hours_seen"].items()},
        **_by_dataset("train/hours_of", record["hours_by_dataset"]),
    }


def _by_dataset(kind: str, values: Mapping[str, float]) -> dict[str, float]:
    """Numbers of data sets, whose names may be paths, under names that every logger takes."""
    named: dict[str, float] = {}
    for dataset, value in values.items():
        name = base = f"{kind}_{_NO_NAME.sub('_', dataset).strip('_')[-_MOST_LETTERS:]}"
        count = 1
        while name in named:
            count += 1
            name = f"{base}_{count}"
        named[name] = value
    return named


def evaluation_values(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of an evaluation's record: WER, also by language, perplexity and KL of texts, and accuracy on tasks."""
    languages = record["wer"].get("languages", {})
    found = {"test/mean_wer": record["wer"]["mean_wer"]}
    found |= {f"test/wer_{language}": report["wer"] for language, report in languages.items()}
    for language, text in record["text"].items():
        found |= {f"text/perplexity_{language}": text["perplexity"], f"text/kl_nats_{language}": text.get("kl_nats")}
    for name in ("tasks", "instructions"):
        for language, report in record.get(name, {}).items():
            found |= {f"{name}/accuracy_{language}": report["accuracy"]}
            found |= {f"{name}/changed_{language}": report["base"]["flipped"]} if report["base"] else {}
    return {name: value for name, value in found.items() if value is not None}


def distance_values(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a distance from the base, measured to keep a budget."""
    # earlier versions drew nothing back
    return {f"budget/{name}": record[name] for name in ("kl_nats", "moved_nats", "anchor_weight") if name in record}
