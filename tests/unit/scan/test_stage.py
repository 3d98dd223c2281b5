"""The device that each rank of a scan computes on, and ranks that would scan other things."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from kappaspeech.scan.checkpoint import open_checkpoint
from kappaspeech.scan.stage import own_device, scan
from kappaspeech.scan.worker import ScanOptions
from tests.unit.ranks.test_hosts import meet


@pytest.mark.parametrize(("rank", "own"), [(0, "cuda:0"), (1, "cuda:1"), (3, "cuda:1")])
def test_ranks_of_one_machine_take_its_gpus_in_turns(rank, own, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert own_device("cuda", rank) == own


@pytest.mark.parametrize("device", ["cpu", "cuda:1", "meta"])
def test_a_device_that_was_named_in_full_is_every_ranks(device):
    assert own_device(device, 3) == device


@pytest.fixture
def models(tmp_path):
    """Two models of the same names and shapes, by host."""
    for seed, host in enumerate(("h1", "h2")):
        (tmp_path / host).mkdir()
        weight = torch.randn(5, 7, generator=torch.Generator().manual_seed(seed))
        save_file({"layers.0.q_proj.weight": weight}, tmp_path / host / "model.safetensors")
    return tmp_path


def test_hosts_with_other_weights_rank_no_mixture_of_them(models, monkeypatch):
    raised = meet(monkeypatch, ["h1", "h2"], lambda seat, host: scan(open_checkpoint(models / host), cluster=seat))
    assert str(raised["h2"]).startswith("the checkpoint is ")
    assert str(raised["h2"]).endswith("Copy it from one place to all hosts, or share it.")
    assert str(raised["h1"]) == f"rank 1 on h2 failed: {raised['h2']}"


def test_ranks_with_other_options_are_refused_before_they_divide_the_work(models, monkeypatch):
    tolerances = {"h1": 1e-6, "h2": 1e-4}
    checkpoint = open_checkpoint(models / "h1")
    raised = meet(monkeypatch, ["h1", "h2"], lambda seat, host: scan(checkpoint, cluster=seat, rtol=tolerances[host]))
    assert str(raised["h2"]) == "--rtol is 0.0001 on h2, and 1e-06 on h1 (rank 0). Give it to all ranks alike."


def test_what_blas_is_told_counts_among_the_options(monkeypatch):
    monkeypatch.delenv("OPENBLAS_CORETYPE", raising=False)
    ours = ScanOptions().settings()
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    theirs = ScanOptions().settings()
    assert {name: value for name, value in theirs.items() if ours[name] != value} == {"OPENBLAS_CORETYPE": "Haswell"}
    assert ScanOptions(device="cuda:0").settings() == ScanOptions(device="cuda:1").settings()
