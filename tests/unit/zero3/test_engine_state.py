"""A checkpoint of several ranks: whose bytes are whose, and what they make together. tests/parity has the real engine's."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from kappaspeech.errors import RankFailure, TrainingError
from kappaspeech.runs.checkpoints import find_damage
from kappaspeech.runs.new_checkpoint import NewCheckpoint
from kappaspeech.runs.share_writer import ShareWriter
from kappaspeech.zero3 import engine_state
from kappaspeech.zero3.host_copy import HostCopy
from tests.made_engine import SHAPES, MadeEngine
from tests.patience import patience
from tests.rank_threads import RankThreads, together

FILES = ("trained.safetensors", "optimizer.safetensors", "average.safetensors")


def save(folders: list[Path], *, in_background: bool = True, check: Callable[[], None] = lambda: None) -> list[Any]:
    """Step 2 saved by as many ranks as there are folders; how many bytes each was to write, or its error."""
    with RankThreads() as ranks:
        clusters, beside = ranks.connect(len(folders)), ranks.connect(len(folders))

        def work(cluster) -> int:
            shares: list[int] = []

            def choose_copy(num_bytes: int) -> HostCopy | None:
                shares.append(num_bytes)
                return HostCopy() if in_background else None

            new = NewCheckpoint(folders[cluster.rank], 2, {"words": "ä"}, keep=1, check=check)
            engine: Any = MadeEngine(keeps_average=True, rank=cluster.rank)
            writing = engine_state.save(engine, cluster, beside[cluster.rank], new, choose_copy=choose_copy)
            assert writing.wait(patience(20))
            if (failure := writing.failure()) is not None:
                raise failure
            return shares[0]

        return together(clusters, work)


def read(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "step-000002").iterdir()}


def test_files_are_byte_equal_from_one_two_and_four_ranks_in_the_background_and_not(tmp_path):
    total = 4 * 4 * sum(map(math.prod, SHAPES.values()))
    found = []
    for number, (num_ranks, in_background) in enumerate([(1, True), (2, True), (4, True), (1, False), (4, False)]):
        shares = save([tmp_path / str(number)] * num_ranks, in_background=in_background)
        assert sum(shares) == total
        # no further apart than the largest tensor
        assert max(shares) - min(shares) <= (4 * 64 * 64 if num_ranks > 1 else 0)
        found.append(read(tmp_path / str(number)))
        assert find_damage(tmp_path / str(number) / "step-000002") is None
    assert all(files == found[0] for files in found)
    assert found[0].keys() == {*FILES, "state.json"}
    assert json.loads(found[0]["state.json"])["words"] == "ä"


def test_what_is_read_is_what_was_gathered(tmp_path):
    save([tmp_path] * 2)
    checkpoint, tensors = tmp_path / "step-000002", MadeEngine().tensors
    for file, kind in (("trained", "weights"), ("average", "moving_average")):
        loaded = load_file(checkpoint / f"{file}.safetensors")
        assert list(loaded) == list(SHAPES) or loaded.keys() == SHAPES.keys()
        assert all((loaded[name] == tensors[kind][name]).all() for name in SHAPES)
    moments = load_file(checkpoint / "optimizer.safetensors")
    assert all((moments[f"{name}/{kind}"] == tensors[kind][name]).all() for name in SHAPES for kind in ("exp_avg", "exp_avg_sq"))


def test_ranks_that_dont_share_the_file_system_leave_the_writing_to_those_that_do(tmp_path):
    """As on hosts whose disks are their own: rank 2's folder has the same files, of an older start."""
    (tmp_path / "elsewhere/.step-000002.tmp").mkdir(parents=True)
    (tmp_path / "elsewhere/.step-000002.tmp/mark").write_text("another")
    shares = save([tmp_path / "here", tmp_path / "nowhere", tmp_path / "elsewhere", tmp_path / "here"])
    assert shares[1] == shares[2] == 0
    assert min(shares[0], shares[3]) > 0
    save([tmp_path / "alone"])
    assert read(tmp_path / "here") == read(tmp_path / "alone")


@pytest.mark.parametrize("in_background", [True, False])
def test_a_disk_that_fails_one_rank_is_told_to_all_in_one_sentence_and_leaves_no_checkpoint(tmp_path, monkeypatch, in_background):
    real, calls = ShareWriter.write_piece, []

    def fail_once(self, piece):
        calls.append(piece)
        if len(calls) == 5:
            raise OSError(28, "No space left on device")
        return real(self, piece)

    monkeypatch.setattr(ShareWriter, "write_piece", fail_once)
    errors = save([tmp_path] * 3, in_background=in_background)
    (own,) = (error for error in errors if not isinstance(error, RankFailure))
    assert isinstance(own, TrainingError)
    assert str(own).startswith(f"{tmp_path / 'step-000002'} can't be written: [Errno 28] No space left on device. Older ")
    for error in errors:
        assert error is own or f"rank {errors.index(own)} on" in str(error)
        assert "step-000002 can't be written: [Errno 28]" in str(error)
    # and nothing of it takes the room that the next one needs
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_at_the_beginning_keeps_nothing(tmp_path, monkeypatch):
    def refuse(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    (error,) = save([tmp_path])
    assert "step-000002 can't be written: [Errno 28]" in str(error)
    assert list(tmp_path.iterdir()) == []


def test_what_another_start_writes_into_is_left_to_it(tmp_path):
    """Two starts call the folder of a step alike; the one that lost the run's folder touches nothing there."""
    calls = []

    def check() -> None:
        calls.append(1)
        if len(calls) > 1:
            raise TrainingError("taken over")

    (error,) = save([tmp_path], check=check)
    assert str(error) == "taken over"
    assert [path.name for path in tmp_path.iterdir()] == [".step-000002.tmp"]
