"""`kappaspeech scan` from its command line: ranks that can't begin, and homes that take nothing."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kappaspeech.commands import main
from kappaspeech.commands.scan import scan
from kappaspeech.errors import CheckpointError, RankFailure
from kappaspeech.ranks.rendezvous import Launch
from kappaspeech.scan.journal import find_cache
from tests.rank_threads import RankThreads, together


@pytest.fixture
def model(tmp_path, monkeypatch) -> Path:
    # they are the whole process's
    monkeypatch.setattr("kappaspeech.blas.pin_threads", lambda *_: None)
    save_file({"w.weight": torch.randn(4, 5)}, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def test_a_rank_that_cannot_open_the_model_keeps_no_other_waiting(model, monkeypatch):
    monkeypatch.setattr("kappaspeech.ranks.rendezvous.find_launch", lambda _: Launch(0, 2, 0, "torch"))
    output = model.parent / "ranking.json"
    with RankThreads() as ranks:
        own = threading.local()
        monkeypatch.setattr("kappaspeech.ranks.start.start_cluster", lambda **_: own.cluster)

        def work(cluster):
            own.cluster = cluster
            return scan(str(model if cluster.rank == 0 else model.with_name("torn.safetensors")), output=output)

        first, second = together(ranks.connect(2), work)
    assert isinstance(first, RankFailure)
    assert isinstance(second, CheckpointError)
    assert not output.exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_user_without_a_home_to_write_to_scans_without_a_journal(model, monkeypatch, capfd, workers):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    output = model.parent / "ranking.json"
    assert main(["scan", str(model), "--output", str(output), "--workers", str(workers)]) == 0
    assert output.exists()
    told = capfd.readouterr().err
    assert told.count("warning: no journal can be kept (/proc/nowhere") == 1, told


def test_a_user_whom_the_host_does_not_know_has_no_cache(monkeypatch):
    def fail():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", fail)
    with pytest.raises(OSError, match="home directory"):
        find_cache()
