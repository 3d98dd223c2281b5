"""The scan as real processes: the same bytes on any number of ranks, and an end within seconds when one of them fails."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.patience import patience

TIMEOUT_SECONDS = 60
WORKER_RANK = re.compile(rb"(?:^|\0)RANK=(\d+)\0")


@pytest.fixture(scope="module")
def small_model(tmp_path_factory) -> Path:
    """Enough matrices for every rank, and one long enough to be cut into pieces."""
    folder = tmp_path_factory.mktemp("small")
    generator = torch.Generator().manual_seed(0)
    content = {f"layers.{i}.up_proj.weight": torch.randn(40 + i, 60, generator=generator).bfloat16() for i in range(7)}
    content["embed_tokens.weight"] = torch.randn(40_000, 300, generator=generator).bfloat16()
    content["layers.0.broken.weight"] = torch.full((5, 6), float("nan"))
    save_file(content, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def slow_model(tmp_path_factory) -> Path:
    """Takes a rank some ten seconds."""
    folder = tmp_path_factory.mktemp("slow")
    weight = torch.randn(2048, 2048, generator=torch.Generator().manual_seed(0)).bfloat16()
    save_file({f"layers.{i:02}.q_proj.weight": weight.roll(i, 0).clone() for i in range(24)}, folder / "model.safetensors")
    return folder


def environment(**variables: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return {**clean, **variables}


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "kappaspeech", "scan", *map(str, words)]


def run(*words: object, cache: Path, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*launcher, *command(*words)],
        env=environment(XDG_CACHE_HOME=str(cache), MASTER_PORT="0"),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )


def journal_lines(cache: Path) -> list[dict]:
    lines = []
    for path in cache.rglob("*.jsonl"):
        lines += [json.loads(line) for line in path.read_bytes().splitlines() if line.startswith(b"{") and line.endswith(b"}")]
    return lines


def start_slow_scan(model: Path, tmp_path: Path, *, num_workers: int = 3) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        command(model, "--workers", num_workers, "--output", tmp_path / "ranking.json"),
        env=environment(XDG_CACHE_HOME=str(tmp_path / "cache")),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + patience(TIMEOUT_SECONDS)
    # by then every rank has begun, also one whose imports were slow
    while len(journal_lines(tmp_path / "cache")) < 2 * num_workers:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return process


def find_rank(parent: int, rank: int) -> int:
    """The process of a rank that `parent` started."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                is_child = int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == parent
                found = WORKER_RANK.search((folder / "environ").read_bytes()) if is_child else None
            except (OSError, IndexError):
                continue
            if found and int(found[1]) == rank:
                return int(folder.name)
    raise AssertionError(f"rank {rank} of {parent} isn't there")


def end(process: subprocess.Popen[str]) -> tuple[int, str, float]:
    began = time.monotonic()
    try:
        output, _ = process.communicate(timeout=patience(30))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, output, time.monotonic() - began


@pytest.mark.slow
def test_ranking_is_byte_identical_on_1_2_3_and_5_ranks_from_a_queue_or_assigned(small_model, tmp_path):
    written = {}
    for words in (["--workers", 1], ["--workers", 2], ["--workers", 3, "--static"], ["--workers", 5]):
        path = tmp_path / f"{len(written)}.json"
        spectra = path.with_suffix(".safetensors")
        done = run(small_model, "--no-journal", "--output", path, "--spectrum", spectra, *words, cache=tmp_path)
        assert done.returncode == 0, done.stderr
        written[tuple(words)] = path.read_bytes(), spectra.read_bytes()
    assert len(set(written.values())) == 1
    ranking = json.loads(path.read_bytes())
    assert [item["name"] for item in ranking["skipped"]] == ["layers.0.broken.weight"]
    assert "NaN" in ranking["skipped"][0]["reason"]
    assert len(ranking["tensors"]) == 8


@pytest.mark.parametrize("backend", ["mpi", "torch"])
def test_mpirun_gives_the_ranking_of_one_process(small_model, tmp_path, backend):
    mpirun = shutil.which("mpirun", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if mpirun is None:
        pytest.skip("no mpirun: the package `openmpi` has one")
    launcher = (mpirun, "--allow-run-as-root", "--oversubscribe", "-n", "3")
    alone = run(small_model, "--no-journal", "--workers", 1, "--output", tmp_path / "1.json", cache=tmp_path)
    several = run(
        small_model, "--no-journal", "--backend", backend, "--output", tmp_path / "3.json", cache=tmp_path, launcher=launcher
    )
    assert (alone.returncode, several.returncode) == (0, 0), several.stderr
    assert (tmp_path / "3.json").read_bytes() == (tmp_path / "1.json").read_bytes()


def test_torchrun_starts_ranks_too(small_model, tmp_path):
    words = [small_model, "--no-journal", "--output", tmp_path / "ranking.json"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m", "kappaspeech", "scan"]
    done = subprocess.run(
        [*torchrun, *map(str, words)], env=environment(), capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(json.loads((tmp_path / "ranking.json").read_text())["tensors"]) == 8


def test_a_second_scan_takes_everything_from_the_journal_to_the_same_bytes(small_model, tmp_path):
    first = run(small_model, "--workers", 1, "--output", tmp_path / "1.json", cache=tmp_path / "cache")
    assert first.returncode == 0, first.stderr
    lines = journal_lines(tmp_path / "cache")
    assert len(lines) == 9
    # a line that a kill tore, and one that makes no sense
    journal = next((tmp_path / "cache").rglob("*.jsonl"))
    journal.write_bytes(journal.read_bytes() + b'\n{"key": "00", "value": {"na\n[]\n')
    second = run(small_model, "--workers", 1, "--output", tmp_path / "2.json", cache=tmp_path / "cache")
    assert second.returncode == 0, second.stderr
    assert (tmp_path / "2.json").read_bytes() == (tmp_path / "1.json").read_bytes()
    assert len(journal_lines(tmp_path / "cache")) == 9


def test_checkpoints_that_share_a_journal_are_ranked_as_each_alone(small_model, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    content = load_file(small_model / "model.safetensors")
    changed = ("embed_tokens.weight", "layers.3.up_proj.weight")
    save_file(
        {name: 2 * value + 0.1 if name in changed else value for name, value in content.items()}, other / "model.safetensors"
    )
    alone = run(other, "--workers", 1, "--no-journal", "--output", tmp_path / "alone.json", cache=tmp_path)
    assert alone.returncode == 0, alone.stderr
    for model in (small_model, other):
        done = run(model, "--workers", 3, "--journal", tmp_path / "j", "--output", tmp_path / "r.json", cache=tmp_path)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "r.json").read_bytes() == (tmp_path / "alone.json").read_bytes()


def test_a_changed_file_is_measured_again(tmp_path):
    def scan(scale: float) -> float:
        model, journal = tmp_path / "model.safetensors", tmp_path / "journal"
        save_file({"w.weight": torch.diag(torch.tensor([3.0, 1.0, scale]))}, model)
        done = run(model, "--workers", 1, "--journal", journal, "--output", tmp_path / "r.json", cache=tmp_path)
        assert done.returncode == 0, done.stderr
        return json.loads((tmp_path / "r.json").read_text())["tensors"][0]["kappa"]

    assert scan(0.5) == pytest.approx(6)
    assert scan(0.25) == pytest.approx(12)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 2])
def test_a_killed_rank_ends_all_within_30_seconds_and_the_next_scan_continues(slow_model, tmp_path, victim):
    process = start_slow_scan(slow_model, tmp_path)
    os.kill(find_rank(process.pid, victim), signal.SIGKILL)
    code, output, seconds = end(process)
    assert (code, seconds < 30) == (1, True), output
    assert f"rank {victim} was ended by signal 9" in output
    if victim != 0:
        assert re.search(rf"rank {victim} on \S+ failed: it ended without a word while measuring layers\.\d\d", output), output
    kept = len(journal_lines(tmp_path / "cache"))
    assert kept >= 3
    done = run(slow_model, "--workers", 2, "--output", tmp_path / "ranking.json", cache=tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    assert len(json.loads((tmp_path / "ranking.json").read_text())["tensors"]) == 24
    assert len(journal_lines(tmp_path / "cache")) == 24


@pytest.mark.slow
def test_a_stopped_rank_ends_all_within_30_seconds(slow_model, tmp_path):
    process = start_slow_scan(slow_model, tmp_path)
    victim = find_rank(process.pid, 1)
    os.kill(victim, signal.SIGSTOP)
    try:
        began = time.monotonic()
        others = [find_rank(process.pid, rank) for rank in (0, 2)]
        while any(Path(f"/proc/{other}/exe").exists() for other in others):
            assert time.monotonic() - began < 30, "the other ranks still run"
            time.sleep(0.1)
    finally:
        os.kill(victim, signal.SIGKILL)
    code, output, _ = end(process)
    assert code == 1
    assert "no sign of life" in output


@pytest.mark.slow
def test_a_read_that_fails_ends_all_with_tensor_and_cause(slow_model, tmp_path):
    model = tmp_path / "model.safetensors"
    shutil.copy(slow_model / "model.safetensors", model)
    process = start_slow_scan(model, tmp_path, num_workers=2)
    os.truncate(model, 100_000_000)
    code, output, seconds = end(process)
    assert (code, seconds < 30) == (1, True), output
    assert re.search(r"layers\.\d\d\.q_proj\.weight in .*model\.safetensors couldn't be measured: .* it was cut", output), output
    assert len(journal_lines(tmp_path / "cache")) >= 2


def test_workers_end_with_the_process_that_started_them(slow_model, tmp_path):
    process = start_slow_scan(slow_model, tmp_path, num_workers=2)
    workers = [find_rank(process.pid, rank) for rank in (0, 1)]
    process.kill()
    began = time.monotonic()
    while any(Path(f"/proc/{worker}/exe").exists() for worker in workers):
        assert time.monotonic() - began < 20, "the workers still run"
        time.sleep(0.1)
    process.communicate()


def test_wrong_input_gives_exit_code_2(small_model, tmp_path):
    missing = run(tmp_path / "nowhere.safetensors", "--workers", 2, cache=tmp_path)
    assert missing.returncode == 2
    assert "nowhere.safetensors" in missing.stderr
    assert "Traceback" not in missing.stderr
    assert run(small_model, "--rtol", "3", cache=tmp_path).returncode == 2
    assert run(small_model, "--journal", "/proc/nowhere", "--workers", 1, cache=tmp_path).returncode == 2


def test_ranking_and_spectra_agree_with_float64_svdvals_name_by_name(small_model, tmp_path):
    spectra = tmp_path / "spectra.safetensors"
    words = ["--no-journal", "--workers", 2, "--output", tmp_path / "ranking.json", "--spectrum", spectra]
    done = run(small_model, *words, cache=tmp_path)
    assert done.returncode == 0, done.stderr
    entries = json.loads((tmp_path / "ranking.json").read_text())["tensors"]
    reference = {}
    for name, tensor in load_file(small_model / "model.safetensors").items():
        if not tensor.isnan().any():
            sigmas = np.linalg.svd(tensor.double().numpy(), compute_uv=False)
            reference[name] = sigmas[0] / sigmas[-1]
            np.testing.assert_allclose(load_file(spectra)[name].numpy(), sigmas, rtol=1e-6)
    assert [entry["name"] for entry in entries] == sorted(reference, key=lambda name: (reference[name], name))
    for entry in entries:
        assert entry["kappa"] == pytest.approx(reference[entry["name"]], rel=max(1e-12, entry["error_bound"]))
