"""Memory that control groups leave."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from kappaspeech.host_memory import free_memory_bytes

GB = 1 << 30


def write_group(folder: Path, names: tuple[str, str], limit: str, used: int, stat: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(stat)


@pytest.fixture
def plenty(monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 500 * GB}))


@pytest.mark.usefixtures("plenty")
def test_the_limit_of_a_job_above_its_tasks_group_counts_but_for_its_file_cache(tmp_path):
    (tmp_path / "own").write_text("0::/slurm/job_1/task_0\n")
    names = ("memory.max", "memory.current")
    stat = f"anon {4 * GB}\nactive_file {GB}\ninactive_file {2 * GB}\n"
    write_group(tmp_path / "mount/slurm/job_1/task_0", names, "max", 7 * GB, stat)
    write_group(tmp_path / "mount/slurm/job_1", names, str(16 * GB), 7 * GB, stat)
    write_group(tmp_path / "mount/slurm", names, "max", 90 * GB, stat)
    assert free_memory_bytes(own_groups=tmp_path / "own", mount=tmp_path / "mount") == 12 * GB


@pytest.mark.usefixtures("plenty")
def test_a_container_that_sees_its_own_group_as_the_root_has_its_limit(tmp_path):
    """As under the older hierarchies, one a controller."""
    (tmp_path / "own").write_text("5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n1:name=systemd:/docker/abc\n")
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
    write_group(tmp_path / "mount/memory", names, str(8 * GB), 6 * GB, f"cache 1\ntotal_inactive_file {GB}\n")
    assert free_memory_bytes(own_groups=tmp_path / "own", mount=tmp_path / "mount") == 3 * GB


@pytest.mark.usefixtures("plenty")
@pytest.mark.parametrize("groups", ["", "0::/\n", "0::/nowhere\n"])
def test_without_a_limit_it_is_what_the_host_has(tmp_path, groups):
    (tmp_path / "own").write_text(groups)
    assert free_memory_bytes(own_groups=tmp_path / "own", mount=tmp_path / "mount") == 500 * GB
    assert free_memory_bytes(own_groups=tmp_path / "missing", mount=tmp_path / "mount") == 500 * GB


def test_this_host_has_some():
    assert 0 < free_memory_bytes() <= psutil.virtual_memory().total
