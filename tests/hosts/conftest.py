"""Two hosts for the session, and runs on them as a user on the first one starts them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from tests.conftest import clean_environment
from tests.hosts.network import Host, Network, why_not
from tests.patience import patience

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    problem = why_not()
    if problem is not None:
        pytest.skip(f"no hosts here: {problem}")
    # what the hosts share, as over a cluster's file system: data and runs, the code, the environment
    folders = [tmp_path_factory.getbasetemp(), REPOSITORY, Path(sys.prefix)]
    apart = [folder for folder in folders if not any(folder != other and folder.is_relative_to(other) for other in folders)]
    shared = [folder for folder in apart if folder.is_relative_to("/tmp")]
    with Network(tmp_path_factory.mktemp("network"), num_hosts=2, shared=shared) as running:
        yield running


@pytest.fixture
def hosts(network: Network) -> Iterator[list[Host]]:
    """Both hosts, up and connected, before the test and after it."""
    yield network.hosts
    for host in network.hosts:
        if not host.is_on:
            host.start()
        host.replug()
        host.speed_up()


class Launch:
    """A `kappaspeech train` that runs on the first host."""

    def __init__(self, host: Host, run_dir: Path, words: list[str], **variables: str) -> None:
        # as the host sees it: it may have something mounted there
        self.run_dir = Path(f"/proc/{host.pid}/root{run_dir}")
        # no pipe: one that waits for a stalled file system, and can't be killed, would keep it open
        self._output = Path(words[0]).with_suffix(".out")
        with self._output.open("w") as file:
            self.process = subprocess.Popen(
                host.command(sys.executable, "-m", "kappaspeech", "train", *words),
                env=clean_environment(OMP_NUM_THREADS="1", DS_ACCELERATOR="cpu", **variables),
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def wait(self, *, timeout: float) -> tuple[int, str]:
        """Its exit code and all it said."""
        code = self.process.wait(timeout=timeout)
        return code, self._output.read_text()

    def end(self) -> None:
        """Let it end its ranks at once, should it still run."""
        for _ in range(2):
            if self.process.poll() is None:
                self.process.terminate()
                time.sleep(0.5)
        try:
            self.process.wait(timeout=patience(60))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def status(self) -> str | None:
        path = self.run_dir / "run.json"
        return str(json.loads(path.read_text())["status"]) if path.exists() else None

    def num_steps(self) -> int:
        path = self.run_dir / "steps.jsonl"
        return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.fixture
def launch(hosts: list[Host], home: Path, tmp_path: Path) -> Iterator[Any]:
    """Start a run on both hosts, a rank each."""
    started: list[Launch] = []

    def start(*words: object, variables: dict[str, str] | None = None, **changes: Any) -> Launch:
        hostfile = tmp_path / "hostfile"
        hostfile.write_text("".join(f"{host.name} slots=1\n" for host in hosts))
        config = tiny.write_config(tmp_path / "run.yaml", home, tmp_path / "run", **{"data__test": [], **changes})
        all_words = [str(config), "--hostfile", str(hostfile), *map(str, words)]
        started.append(Launch(hosts[0], tmp_path / "run", all_words, **(variables or {})))
        return started[-1]

    yield start
    for run in started:
        run.end()
