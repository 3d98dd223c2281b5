"""`kappaspeech scan` from its command line: ranks that can't begin, and homes that take nothing."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kappaspeech import blas
from kappaspeech.commands import main
from kappaspeech.commands.scan import scan
from kappaspeech.errors import CheckpointError, RankFailure
from kappaspeech.ranks import start
from kappaspeech.scan import processes
from kappaspeech.scan.journal import find_cache
from tests.rank_threads import RankThreads, together


@pytest.fixture
def model(tmp_path, monkeypatch) -> Path:
    # a scan sets them for its whole process, and this one is every test's
    for name in blas._THREAD_VARIABLES:
        monkeypatch.setenv(name, "1")
    save_file({"w.weight": torch.randn(4, 5)}, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def test_a_rank_that_cannot_open_the_model_keeps_no_other_waiting(model, monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    output = model.parent / "ranking.json"
    with RankThreads() as ranks:
        own = threading.local()
        monkeypatch.setattr(start, "start_cluster", lambda **_: own.cluster)

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


def test_no_more_processes_are_started_than_memory_is_free_for(model, monkeypatch, capfd):
    monkeypatch.setattr(processes, "count_cores", lambda: 64)
    monkeypatch.setattr(processes, "free_memory_bytes", lambda: 60_000_000)
    assert main(["scan", str(model), "--output", str(model.parent / "ranking.json"), "--no-journal"]) == 0
    assert "1 of 64 possible processes: 0.1 GB of memory are free" in capfd.readouterr().err


def test_a_user_whom_the_host_does_not_know_has_no_cache(monkeypatch):
    def fail():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", fail)
    with pytest.raises(OSError, match="home directory"):
        find_cache()
