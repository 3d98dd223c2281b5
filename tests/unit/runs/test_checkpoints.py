"""The checkpoints that are kept, the one from which a run continues, and damaged ones."""

from __future__ import annotations

import itertools
import json
import logging
import math
import shutil
import zlib
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import save_file

from kappaspeech.errors import CheckpointError, ConfigError, InputError, RankFailure
from kappaspeech.runs import checkpoints
from kappaspeech.runs.best import best_wer, mark_best, read_best
from kappaspeech.runs.checkpoints import (
    check_fingerprints,
    find_damage,
    find_weights,
    list_checkpoints,
    prepare_resume,
    prune,
    read_trained,
)
from kappaspeech.runs.checksums import Span, read_checksum
from kappaspeech.runs.saved_state import find_fault
from kappaspeech.trained.opening import parse_step
from kappaspeech.training.stopping import StopRequest, refuse_old_stop_file
from tests.rank_threads import RankThreads, together


def make(folder: Path, step: int) -> Path:
    """A checkpoint as `save` leaves it."""
    path = folder / f"step-{step:06d}"
    path.mkdir(parents=True)
    files = {}
    for name in ("trained.safetensors", "optimizer.safetensors"):
        tensor = torch.full((64,), float(step))
        save_file({"weight": tensor}, path / name)
        files[name] = {"num_bytes": (path / name).stat().st_size, "crc32": zlib.crc32(tensor.numpy().data)}
    (path / "state.json").write_text(json.dumps({"schema_version": 1, "step": step, "files": files}))
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_and_the_best_are_kept(tmp_path):
    for step in (2, 4, 6, 8):
        make(tmp_path, step)
    mark_best(tmp_path, step=4, mean_wer=0.25)
    prune(tmp_path, keep=2)
    assert names(tmp_path) == ["best.json", "step-000004", "step-000006", "step-000008"]
    assert read_best(tmp_path) == tmp_path / "step-000004"
    assert best_wer(tmp_path) == 0.25
    shutil.rmtree(tmp_path / "step-000004")
    assert read_best(tmp_path) is None
    assert best_wer(tmp_path) == math.inf


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def garble_header(path: Path) -> None:
    path.write_bytes(b"\xff" * path.stat().st_size)


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        *itertools.product(("trained.safetensors", "optimizer.safetensors"), (cut, flip, garble_header, Path.unlink)),
        *itertools.product(["state.json"], (cut, garble_header, Path.unlink)),
    ],
)
def test_a_damaged_checkpoint_is_set_aside_with_a_warning_and_the_one_before_is_used(tmp_path, caplog, file, damage):
    for step in (2, 4):
        make(tmp_path, step)
    damage(tmp_path / "step-000004" / file)
    with caplog.at_level(logging.WARNING):
        assert prepare_resume(tmp_path) == tmp_path / "step-000002"
    assert names(tmp_path) == ["damaged-step-000004", "step-000002"]
    (message,) = (record.getMessage() for record in caplog.records)
    assert "step-000004 is damaged (" in message
    # a header that can't be read is the library's own word for it
    assert ("header" if damage is garble_header and file != "state.json" else file) in message
    assert "continuing from step-000002" in message


STATE = {
    "fingerprints": {"data": "0"},
    "hint": [3, 4],
    "bad_steps": {"norms": [1.0, 2], "num_in_a_row": 0, "num_skipped": 0},
    "train_seconds": 7.5,
    "num_seen": 12,
    "hours_seen": {"en": 0.5},
    "bad_samples": [{"key": "a", "cause": "b", "shard": "c", "detail": "d"}],
}


def update_state(checkpoint: Path, **changes: object) -> None:
    state = {**json.loads((checkpoint / "state.json").read_text()), **STATE, **changes}
    (checkpoint / "state.json").write_text(
        json.dumps({key: value for key, value in state.items() if value is not ...}, default=str)
    )


@pytest.mark.parametrize("field", [*STATE, "step", "files"])
@pytest.mark.parametrize("value", [..., None, "x", [1]])
def test_a_state_without_a_field_is_damage(tmp_path, field, value):
    for step in (2, 4):
        update_state(make(tmp_path, step))
    assert find_damage(tmp_path / "step-000004", find_fault=find_fault) is None
    update_state(tmp_path / "step-000004", **{field: value})
    assert "state.json" in (find_damage(tmp_path / "step-000004", find_fault=find_fault) or "")
    assert prepare_resume(tmp_path, find_fault=find_fault) == tmp_path / "step-000002"
    assert names(tmp_path) == ["damaged-step-000004", "step-000002"]


def test_a_state_of_another_step_is_damage(tmp_path):
    make(tmp_path, 2).rename(tmp_path / "step-000003")
    assert find_damage(tmp_path / "step-000003") == "state.json is of step 2"


@pytest.mark.parametrize(
    "content", [b"", b'{"schema_version": 1, "st', b"\xff", b'{"schema_version": 1}', b'{"schema_version": 1, "step": "4"}']
)
def test_a_damaged_best_is_found_again_from_the_evaluations(tmp_path, caplog, content):
    folder = tmp_path / "checkpoints"
    for step in (2, 4, 6):
        make(folder, step)
    rates = {0: 0.1, 2: 0.5, 4: 0.25, 6: 0.75, 8: 0.2}
    lines = [{"step": step, "wer": {"mean_wer": rate}, "text": {}} for step, rate in rates.items()]
    lines.append({"step": 6, "wer": {"mean_wer": None}, "text": {}})
    (tmp_path / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "best.json").write_bytes(content)
    # readers go by the evaluations too, and write nothing
    assert (read_best(folder), best_wer(folder)) == (folder / "step-000004", 0.25)
    assert (folder / "best.json").read_bytes() == content
    with caplog.at_level(logging.WARNING):
        assert prepare_resume(folder) == folder / "step-000006"
    assert json.loads((folder / "best.json").read_text()) == {"schema_version": 1, "step": 4, "mean_wer": 0.25}
    assert (folder / "damaged-best.json").read_bytes() == content
    assert "the best checkpoint is step 4, by the evaluations" in caplog.text


def test_a_run_whose_checkpoints_are_all_damaged_is_refused_by_name_and_left_as_it_is(tmp_path):
    for step in (2, 4):
        cut(make(tmp_path, step) / "trained.safetensors")
    with pytest.raises(CheckpointError, match=r"step-000004: trained.safetensors has .*step-000002: trained.safetensors has"):
        prepare_resume(tmp_path)
    assert names(tmp_path) == ["step-000002", "step-000004"]


def test_what_killed_saves_left_is_removed_and_a_whole_checkpoint_is_not(tmp_path):
    make(tmp_path, 2)
    (tmp_path / ".step-000004.tmp").mkdir()
    (tmp_path / ".step-000004.tmp/trained.safetensors").write_bytes(b"half")
    assert prepare_resume(tmp_path) == tmp_path / "step-000002"
    assert names(tmp_path) == ["step-000002"]
    assert find_damage(tmp_path / "step-000002") is None
    assert prepare_resume(tmp_path / "nowhere") is None


def test_reading_cut_weights_names_the_remedy(tmp_path):
    cut(make(tmp_path, 2) / "trained.safetensors")
    with pytest.raises(CheckpointError, match=r"step-000002/trained\.safetensors can't be read.*--step"):
        read_trained(tmp_path / "step-000002/trained.safetensors")


def test_a_checkpoint_is_worth_its_moving_average_where_it_has_one(tmp_path):
    checkpoint = make(tmp_path, 2)
    assert find_weights(checkpoint) == checkpoint / "trained.safetensors"
    (checkpoint / "average.safetensors").touch()
    assert find_weights(checkpoint) == checkpoint / "average.safetensors"


def test_a_step_is_a_number_or_best():
    assert [parse_step(text) for text in ("12", "best", None)] == [12, "best", None]
    with pytest.raises(InputError, match="'last'"):
        parse_step("last")


def test_a_stop_file_is_refused_before_a_start_obeyed_in_a_run_and_removed_then(tmp_path):
    request = StopRequest(tmp_path)
    assert request.reason() is None
    (tmp_path / "STOP").touch()
    with pytest.raises(ConfigError, match="STOP was there before this start"):
        refuse_old_stop_file(tmp_path)
    assert request.reason() == f"the file {tmp_path / 'STOP'}"
    request.clear_file()
    # what was once wished for stays wished for until all ranks have agreed
    assert request.reason() == f"the file {tmp_path / 'STOP'}"
    refuse_old_stop_file(tmp_path)


def test_an_unfinished_checkpoint_is_none(tmp_path):
    for name in ("step-000010", "step-000002", "step-1000000", ".step-000011.tmp", "other"):
        (tmp_path / name).mkdir()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-000002", "step-000010", "step-1000000"]
    assert list_checkpoints(tmp_path / "nowhere") == []


def test_what_has_changed_since_a_checkpoint_is_named(tmp_path):
    saved = {"data": "a" * 64, "selection": "b" * 64}
    check_fingerprints(tmp_path, saved, dict(saved))
    with pytest.raises(CheckpointError, match=r"another data \(data was a{12}, is c{12}\)"):
        check_fingerprints(tmp_path, saved, {**saved, "data": "c" * 64})


def test_a_checkpoint_of_a_version_without_classp_goes_on_without_it_alone(tmp_path):
    """AdamW's second moments would be taken for its sums."""
    saved = {"data": "a" * 64}
    check_fingerprints(tmp_path, saved, {**saved, "CLASSP": "none"})
    with pytest.raises(CheckpointError, match="another CLASSP"):
        check_fingerprints(tmp_path, saved, {**saved, "CLASSP": "c" * 64})


def test_ranks_check_a_checkpoint_in_shares_and_find_what_one_would(tmp_path):
    with RankThreads() as ranks:
        clusters = ranks.connect(3)
        for step in (2, 4, 6):
            make(tmp_path, step)
        read: dict[int, int] = {}

        def resume(cluster) -> Path | None:
            return prepare_resume(tmp_path, cluster=cluster)

        with patch.object(checkpoints, "read_checksum", side_effect=read_checksum) as reading:
            assert together(clusters, resume) == [tmp_path / "step-000006"] * 3
        for path, begin, end in (call.args for call in reading.call_args_list):
            read[path] = read.get(path, 0) + end - begin
            assert end - begin in (85, 86)
        assert list(read.values()) == [256, 256]
        # by the first rank's share, and by the last's
        for step, place in ((6, 100), (4, -5)):
            path = tmp_path / f"step-{step:06d}/trained.safetensors"
            content = bytearray(path.read_bytes())
            content[place] ^= 1
            path.write_bytes(content)
        assert together(clusters, resume) == [tmp_path / "step-000002"] * 3
        assert names(tmp_path) == ["damaged-step-000004", "damaged-step-000006", "step-000002"]


def test_a_rank_that_doesnt_see_what_rank_0_sees_ends_the_start_and_harms_no_checkpoint(tmp_path):
    make(tmp_path / "shared", 2)
    folders = (tmp_path / "shared", tmp_path / "own")
    with RankThreads() as ranks:
        first, second = together(ranks.connect(2), lambda cluster: prepare_resume(folders[cluster.rank], cluster=cluster))
    assert isinstance(second, CheckpointError)
    assert "Every host needs run_dir on a file system that all share." in str(second)
    assert isinstance(first, RankFailure)
    assert "Every host needs run_dir on a file system that all share." in str(first)
    assert names(tmp_path / "shared") == ["step-000002"]


def test_a_disk_that_gives_no_bytes_to_any_rank_is_damage(tmp_path, monkeypatch):
    for step in (2, 4):
        make(tmp_path, step)

    def read(path: Path, begin: int, end: int) -> Span:
        if begin > 100 and "000004" in str(path):
            raise OSError(5, "Input/output error")
        return read_checksum(path, begin, end)

    monkeypatch.setattr(checkpoints, "read_checksum", read)
    with RankThreads() as ranks:
        found = together(ranks.connect(2), lambda cluster: prepare_resume(tmp_path, cluster=cluster))
    assert found == [tmp_path / "step-000002"] * 2
