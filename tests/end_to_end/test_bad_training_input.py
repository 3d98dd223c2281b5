"""`kappaspeech train` on input that doesn't fit: exit code 2, one clear message, and nothing written."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from tests.patience import patience


def _other_checkpoint(_home: Path, tmp_path: Path) -> dict[str, Any]:
    return {"model__llm": str(tiny.make_llm(tmp_path / "other", seed=5))}


def _unknown_name(home: Path, tmp_path: Path) -> dict[str, Any]:
    content = json.loads((home / "selection.json").read_text())
    content["tensors"][0]["name"] = "model.layers.7.mlp.up_proj.weight"
    (tmp_path / "selection.json").write_text(json.dumps(content))
    return {"unfreeze__selection": str(tmp_path / "selection.json")}


def _missing_model(_home: Path, tmp_path: Path) -> dict[str, Any]:
    return {"model__llm": str(tmp_path / "nowhere")}


def _missing_encoder(_home: Path, tmp_path: Path) -> dict[str, Any]:
    return {"model__encoder": str(tmp_path / "nowhere.pt")}


def _cut_shard(home: Path, tmp_path: Path) -> dict[str, Any]:
    train = shutil.copytree(home / "shards/train", tmp_path / "train")
    shard = sorted(train.glob("*.tar"))[0]
    shard.write_bytes(shard.read_bytes()[:3000])
    return {"data__train": [{"shards": str(train / "*.tar")}]}


CASES: dict[str, tuple[Callable[[Path, Path], dict[str, Any]], list[str]]] = {
    "a selection of another checkpoint": (_other_checkpoint, ["selection.json", "was made from checkpoint", "select again"]),
    "a name that the model lacks": (_unknown_name, ["model.layers.7.mlp.up_proj.weight", "lacks"]),
    "a missing model": (_missing_model, ["nowhere"]),
    "a missing encoder": (_missing_encoder, ["nowhere.pt", "model.encoder"]),
    "a shard that was cut": (_cut_shard, ["when it was indexed"]),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_refused_before_anything_is_written(home, run_command, tmp_path, case):
    make, parts = CASES[case]
    config = tiny.write_config(tmp_path / "c.yaml", home, tmp_path / "run", **make(home, tmp_path))
    done = run_command("train", config)
    assert done.returncode == 2, done.stderr[-2000:]
    message = next(line for line in done.stderr.splitlines() if line.startswith("error: "))
    for part in parts:
        assert part in message
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_on_two_ranks_the_cause_is_told_once_and_both_end(home, run_command, tmp_path):
    config = tiny.write_config(tmp_path / "c.yaml", home, tmp_path / "run", **_unknown_name(home, tmp_path))
    done = run_command("train", config, ranks=2)
    assert done.returncode != 0
    assert done.stderr.count("error: The selection names 1 tensor") == 1


def test_too_many_bad_samples_stop_the_run_with_the_worst_shard_named(home, run_command, tmp_path):
    train = shutil.copytree(home / "shards/train", tmp_path / "train")
    shard = sorted(train.glob("*.tar"))[0]
    from kappaspeech.speech.shards import read_index

    with shard.open("r+b") as file:
        for sample in read_index(str(shard)).samples:
            # past what is compared with the index when the shard is opened
            file.seek(sample.audio_offset + 512)
            file.write(b"\0" * (sample.audio_bytes - 512))
    changes = {"data__train": [{"shards": str(train / "*.tar")}], "training__num_steps": 50, "data__test": []}
    config = tiny.write_config(tmp_path / "c.yaml", home, tmp_path / "run", **changes)
    done = run_command("train", config, ranks=2)
    assert done.returncode != 0
    assert "more than data.max_bad_fraction 0.01 allows" in done.stderr
    assert f"{shard} (" in done.stderr
    assert json.loads((tmp_path / "run/run.json").read_text())["status"] == "failed"


def test_a_shard_that_vanishes_ends_every_rank_with_its_name(home, run_command, tmp_path):
    train = shutil.copytree(home / "shards/train", tmp_path / "train")
    config = tiny.write_config(
        tmp_path / "c.yaml",
        home,
        tmp_path / "run",
        data__train=[{"shards": str(train / "*.tar")}],
        data__test=[],
        training__num_steps=100_000,
        training__checkpoint_every_steps=0,
    )
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run_command, "train", config, ranks=2)
        steps = tmp_path / "run/steps.jsonl"
        deadline = time.monotonic() + patience(60)
        while not (steps.exists() and steps.read_text()):
            assert time.monotonic() < deadline
            assert not running.done(), running.result().stderr[-2000:]
            time.sleep(0.2)
        for shard in train.glob("*.tar"):
            shard.write_bytes(b"")
        done = running.result()
    assert done.returncode != 0
    assert "more than data.max_bad_fraction" in done.stderr
    assert str(train) in done.stderr
