"""A plan's parts of a rank's memory, held against the bytes of the tensors that a run has before its first step."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from tests import tiny
from tests.ranks.memory_rank import count_held

TEXT = "schalte die rote Lampe ein und öffne die grüne Tür\nopen the kitchen door and turn the lamp off\ndie Küche ist grün\n"
# nothing that is measured needs a base
PLAIN = {"data__text": {}}
PARTS = (
    "moving average",
    "Fisher and its anchor",
    "kept directions",
    "base of trained weights",
    "anchor's states",
    "anchor's head",
)


@pytest.fixture(scope="module")
def count(home, run_command, tmp_path_factory):
    """The bytes that each of two ranks holds, and the plan's parts."""
    root = tmp_path_factory.mktemp("counted")

    def start(name: str, **changes: Any) -> tuple[list[int], dict[str, int]]:
        config = tiny.write_config(root / f"{name}.yaml", home, root / name, **changes)
        done = run_command(config, ranks=2, module="tests.ranks.memory_rank")
        said = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"held"')]
        assert len(said) == 2, done.stderr[-3000:]
        return [line["held"] for line in said], said[0]["parts"]

    return start


@pytest.fixture(scope="module")
def plain(count):
    return count("plain", **PLAIN)


def test_messages_between_ranks_are_not_counted():
    before = count_held()
    message, weights = torch.empty(4_104, dtype=torch.uint8), torch.empty(100)
    assert count_held() - before == weights.nbytes
    # both were there
    assert len(message) > len(weights)


@pytest.mark.parametrize("case", ["base", "anchor", "budget", "ewc", "osf", "classp", "average"])
def test_what_a_run_keeps_beside_its_weights_takes_the_memory_that_the_plan_counts(home, tmp_path, count, plain, case):
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    texts = {"x": str(tmp_path / "text.txt")}
    replay = {"texts": texts, "anchor_weight": 1.0, "max_tokens": 16}
    changes = {
        "base": {},
        # some of the pieces
        "anchor": {**PLAIN, "replay": {**replay, "texts_per_step": 1}, "training__num_steps": 2},
        "budget": {"replay": {**replay, "forgetting_budget_nats": 0.1}},
        "ewc": {**PLAIN, "ewc": {"texts": texts}},
        "osf": {**PLAIN, "unfreeze": {"selection": str(home / "selection.json"), "osf": {"kept_share": 0.5}}},
        # its sums lie where AdamW has its second moments
        "classp": {**PLAIN, "classp": {}},
        "average": {**PLAIN, "training__ema_decay": 0.9},
    }[case]
    before, parts = plain
    assert [parts[name] for name in PARTS] == [0] * len(PARTS)
    held, planned = count(case, **changes)
    counted = sum(planned[name] for name in PARTS)
    assert (counted == 0) == (case == "classp")
    # the rank that holds most is planned; a pass leaves a few numbers behind
    assert max(now - then for now, then in zip(held, before, strict=True)) == pytest.approx(counted, abs=64)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_what_trains_takes_the_memory_that_the_plan_counts(tmp_path, count, dtype):
    """Of float32, too, DeepSpeed keeps a copy to compute with beside its masters."""
    zero = {"stage": 3, "stage3_param_persistence_threshold": 0}
    (tmp_path / "zero3.json").write_text(json.dumps({"bf16": {"enabled": dtype == "bfloat16"}, "zero_optimization": zero}))
    counts = {
        mode: count(f"{mode}-{dtype}", **PLAIN, deepspeed=str(tmp_path / "zero3.json"), unfreeze={"mode": mode})
        for mode in ("adaptor", "all")
    }
    (few, all_few), (many, all_many) = counts["adaptor"], counts["all"]
    names = ("frozen weights", "trained weights", "fp32 master, Adam", "gradients")
    planned = sum(all_many[name] - all_few[name] for name in names)
    for now, then in zip(many, few, strict=True):
        # beside a count of updates for each group of tensors
        assert now - then == pytest.approx(planned, abs=64)
