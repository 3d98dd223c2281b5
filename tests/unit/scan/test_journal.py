"""Measured matrices are served again only for the bytes that were measured."""

from __future__ import annotations

import json
import os

import pytest
import torch
from safetensors.torch import save_file

from kappaspeech.scan import partition, worker
from kappaspeech.scan.checkpoint import open_checkpoint
from kappaspeech.scan.stage import scan


def save(path, smallest: float) -> None:
    weight = torch.diag(torch.tensor([3.0, 1.0, smallest]))
    experts = torch.stack([torch.eye(3), weight])
    save_file({"w.weight": weight, "mlp.experts.up_proj": experts}, path)


def kappas(where, journal) -> dict[str, float]:
    return {matrix.name: matrix.stats.kappa for matrix in scan(open_checkpoint(where), journal=journal).matrices}


def test_a_file_of_the_same_size_and_time_with_other_bytes_is_measured_again(tmp_path):
    path, journal = tmp_path / "model.safetensors", tmp_path / "journal"
    save(path, 0.5)
    before = path.stat()
    assert kappas(path, journal)["w.weight"] == pytest.approx(6)
    save(path, 0.25)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    again = kappas(path, journal)
    assert again == pytest.approx({"mlp.experts.up_proj[0]": 1, "mlp.experts.up_proj[1]": 12, "w.weight": 12})


def test_a_copy_and_a_touched_file_are_served_without_measuring(tmp_path, monkeypatch):
    path, journal = tmp_path / "model.safetensors", tmp_path / "journal"
    save(path, 0.5)
    first = kappas(path, journal)
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(path.read_bytes())
    monkeypatch.setattr(worker, "measure_scaled", lambda *_args, **_options: pytest.fail("measured again"))
    assert kappas(copy, journal) == first


def test_work_is_shared_out_by_the_bytes_that_are_known_and_not_by_names(tmp_path, monkeypatch):
    costs = []

    def plan(*arguments, known_costs, **options):
        costs.append(known_costs)
        return partition.plan(*arguments, known_costs=known_costs, **options)

    monkeypatch.setattr(worker, "plan", plan)
    for number, smallest in enumerate((0.5, 0.25)):
        save(tmp_path / f"{number}.safetensors", smallest)
        kappas(tmp_path / f"{number}.safetensors", tmp_path / "journal")
    # of another checkpoint's rows one is of the same bytes: the first expert is the identity in both
    assert costs == [[None] * 3, [partition.FIXED_SECONDS, None, None]]


def test_scales_count_among_the_bytes(tmp_path):
    path, journal = tmp_path / "model.safetensors", tmp_path / "journal"
    found = []
    for last in (1.0, 0.5):
        save_file({"w.weight": torch.eye(3, dtype=torch.int8), "w.weight_scale": torch.tensor([1.0, 1.0, last])}, path)
        found.append(kappas(path, journal)["w.weight"])
    assert found == pytest.approx([1, 2])


@pytest.mark.parametrize(
    "change",
    [
        {"sigma_min": 9.0},
        {"kappa": 1.0},
        {"sigma_max": -3.0},
        {"zero_sigmas": 7},
        {"frobenius": 1e9},
        {"log2_volume": 1e9},
        {"matrix_shape": [3, 4]},
        {"matrix_shape": None},
        {"error_bound": -1.0},
        {"sigma_max": "3"},
        {"name": "other.weight"},
    ],
)
def test_lines_that_no_matrix_could_have_are_measured_again(tmp_path, change):
    path, journal = tmp_path / "model.safetensors", tmp_path / "journal"
    save(path, 0.5)
    first = kappas(path, journal)
    (file,) = journal.glob("*.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines() if line]
    file.write_text("".join(json.dumps({**line, "value": {**line["value"], **change}}) + "\n" for line in lines))
    assert kappas(path, journal) == first


def test_a_journal_of_noise_and_a_pipe_among_its_files_cost_nothing(tmp_path):
    path, journal = tmp_path / "model.safetensors", tmp_path / "journal"
    save(path, 0.5)
    journal.mkdir()
    (journal / "a.jsonl").write_bytes(b'\xff\x00\n{"key": [], "bytes": {}, "value": 3}\n' + b"[" * 100_000 + b"\n")
    os.mkfifo(journal / "b.jsonl")
    assert kappas(path, journal)["w.weight"] == pytest.approx(6)
