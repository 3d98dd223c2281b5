"""A run beside its own plan, and a folder that explains itself."""

from __future__ import annotations

import json
import math
from pathlib import Path

from safetensors import safe_open


def test_a_run_holds_its_plan_and_what_was_measured(two_ranks):
    record = json.loads((two_ranks / "run.json").read_text())
    assert record["plan"]["assumptions"]["world_size"] == 2
    assert record["plan"]["assumptions"]["batches"]["source"] == "the lengths of 24 clips"
    memory, seconds = record["plan_comparison"]["peak_memory_bytes"], record["plan_comparison"]["step_seconds"]
    steps = [json.loads(line) for line in (two_ranks / "steps.jsonl").read_text().splitlines()]
    assert memory["measured"] == max(step["peak_memory_bytes"] for step in steps)
    # nearly all of a tiny model's process is the libraries
    assert 0.7 < memory["ratio"] < 1.3
    assert seconds["measured"] > 0
    rates = record["plan"]["assumptions"]["rates"]
    # what the ranks measured over their own process group, and not what is assumed of one
    assert rates["bytes_per_second"] != rates["memory_bytes_per_second"]
    assert rates["reduced_bytes_per_second"] > 0
    assert rates["seconds_per_message"] > 0
    parts = record["plan"]["step_seconds"]
    assert all(parts[name] > 0 for name in ("encoder", "forward", "backward", "elementwise", "communication", "optimizer"))
    assert parts["total"] > parts["forward"] + parts["backward"] + parts["communication"]


def test_what_a_plan_gives_to_weights_is_what_the_files_of_model_and_checkpoint_hold(two_ranks, home):
    """The peak of so small a model is the libraries' own; its parts are counted here, in elements of the files."""
    record = json.loads((two_ranks / "run.json").read_text())
    plan = record["plan"]
    parts = {part["name"]: part["num_bytes"] for part in plan["parts"]}
    llm = count_elements(home / "llm/model.safetensors")
    trained = count_elements(next((two_ranks / "checkpoints").glob("step-*4")) / "trained.safetensors")
    selected = {entry["name"] for entry in json.loads((home / "selection.json").read_text())["tensors"]}
    assert {name.removeprefix("llm.") for name in trained if name.startswith("llm.")} == selected
    frozen = sum(count for name, count in llm.items() if name not in selected)
    itemsize = {"float32": 4, "bfloat16": 2}[record["dtype"]]
    assert parts["frozen weights"] == itemsize * frozen // 2
    assert parts["trained weights"] == itemsize * sum(trained.values()) // 2
    # the weights in float32 and Adam's two moments
    assert parts["fp32 master, Adam"] == 3 * 4 * sum(trained.values()) // 2
    assert plan["state_bytes"] < plan["step_bytes"] <= plan["allocated_bytes"] < plan["peak_bytes"]
    assert record["plan_comparison"]["peak_memory_bytes"]["predicted"] == plan["peak_bytes"]


def count_elements(path: Path) -> dict[str, int]:
    with safe_open(path, framework="pt") as file:
        return {name: math.prod(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no dict


def test_a_rank_alone_communicates_nothing(one_rank):
    plan = json.loads((one_rank / "run.json").read_text())["plan"]
    assert plan["step_seconds"]["communication"] == 0
    assert plan["step_seconds"]["optimizer"] > 0


def test_a_run_folder_explains_every_file_in_it(one_rank):
    guide = (one_rank / "run.md").read_text(encoding="utf-8")
    assert "finished: step 4 of 4 on 1 rank(s)" in guide
    unexplained = {path.name for path in one_rank.iterdir() if not path.name.startswith(".")} - {"run.md"}
    assert not {name for name in unexplained if f"`{name}`" not in guide}
    for command in ("train", "evaluate", "export", "transcribe", "compare"):
        assert f"`kappaspeech {command} " in guide


def test_a_run_goes_on_from_its_own_folder(one_rank, run_command):
    done = run_command("train", one_rank / "config.json")
    assert done.returncode == 0, done.stderr
    assert "finished at step 4" in done.stdout
    assert str(one_rank / "run.md") in done.stdout
