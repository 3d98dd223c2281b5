"""Fixtures that many tests share: tiny models with speech, made once a session, and commands run as a user runs them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests import tiny

if TYPE_CHECKING:
    from tests.nursery import Nursery

Completed = subprocess.CompletedProcess[str]
# in this order, so that what takes long doesn't begin last
_LONG_FIRST = ("hosts", "slurm", "end_to_end", "gpu", "parity", "ranks", "regressions", "unit")
# these make networks, users and daemons of a machine: one process alone runs them
_OF_THE_MACHINE = ("hosts", "slurm")
_LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
# writes a line and its end apart, so that another rank's comes between the two
_LEFT_OUT = (*_LAUNCHER_VARIABLES, "PYTHONUNBUFFERED")


# what CUDA_VISIBLE_DEVICES was before the tests, or "all"
_GPUS = "KAPPASPEECH_TESTS_GPUS"


def pytest_configure() -> None:
    # all tests but those of tests/gpu are of processors, also beside GPUs; a second process of the tests finds them hidden
    os.environ.setdefault(_GPUS, os.environ.get("CUDA_VISIBLE_DEVICES", "all"))
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    # a shell's background jobs ignore it, and so would every process that a test interrupts
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def turn(folder: str) -> int:
    """The place of a folder's tests in the order; those of a new folder, or of a file beside the folders, come last."""
    return _LONG_FIRST.index(folder) if folder in _LONG_FIRST else len(_LONG_FIRST)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: turn(item.path.relative_to(Path(__file__).parent).parts[0]))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep a file's tests in one of several processes: for its fixtures, and as some tests end processes by a mark."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path = Path(nodeid.partition("::")[0])
            if path.parts[1] in _OF_THE_MACHINE:
                return "machine"
            return str(path.parent if path.parent.name == "launching" else path)

    return ByFile(config, log)


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with llm/, whisper.pt, shards/{train,test}, text.txt, ranking.json and selection.json."""
    folder = tmp_path_factory.mktemp("home")
    tiny.make_llm(folder / "llm")
    tiny.make_whisper(folder / "whisper.pt")
    for part, count in (("train", 12), ("test", 3)):
        tiny.make_recordings(folder / "speech" / part, num_clips=count, seed=len(part))
        _pack(folder / "speech" / part, folder / "shards" / part)
    (folder / "text.txt").write_text("turn the red lamp on\nopen the green door\n", encoding="utf-8")
    _select(folder)
    return folder


def _pack(source: Path, output: Path) -> None:
    from kappaspeech.speech.layouts import find_recordings
    from kappaspeech.speech.packing import pack

    pack(find_recordings(source), output, shard_size=5, num_processes=1)


def _select(folder: Path) -> None:
    from kappaspeech.ranks.cluster import SingleProcess
    from kappaspeech.scan.checkpoint import open_checkpoint
    from kappaspeech.scan.stage import scan
    from kappaspeech.selection.rules import Count
    from kappaspeech.selection.select import select

    ranking = scan(open_checkpoint(str(folder / "llm")), cluster=SingleProcess())
    ranking.write(folder / "ranking.json")
    select(ranking, Count(4)).write(folder / "selection.json")


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """The process that starts commands for tests whose subject isn't the start itself."""
    from tests.nursery import Nursery

    with Nursery() as opened:
        yield opened


@pytest.fixture(scope="session")
def run_command(nursery: Nursery) -> Callable[..., Completed]:
    """Run `kappaspeech` as a user does; `ranks` > 1 starts it that many times, as torchrun would."""
    return nursery.run


@pytest.fixture(scope="session")
def train(home, run_command, tmp_path_factory):
    """Train a run of this name, and return its folder."""
    root = tmp_path_factory.mktemp("runs")

    def start(name: str, *, ranks: int = 1, **changes: Any) -> Path:
        config = tiny.write_config(root / f"{name}.yaml", home, root / name, **changes)
        done = run_command("train", config, ranks=ranks)
        assert done.returncode == 0, done.stderr[-3000:]
        return root / name

    return start


@pytest.fixture(scope="session")
def one_rank(train):
    return train("one")


@pytest.fixture(scope="session")
def two_ranks(train):
    return train("two", ranks=2)


def clean_environment(**variables: str) -> dict[str, str]:
    """This environment without a launcher's traces, and with streams as they are by default."""
    kept = {name: value for name, value in os.environ.items() if name not in _LEFT_OUT}
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1] / "pipeline"), str(Path(__file__).parents[1])]),
        **variables,
    }


def gpu_environment() -> dict[str, str]:
    """`clean_environment` in which the machine's GPUs can be seen."""
    environment = clean_environment(CUDA_VISIBLE_DEVICES=os.environ[_GPUS])
    if environment["CUDA_VISIBLE_DEVICES"] == "all":
        del environment["CUDA_VISIBLE_DEVICES"]
    return environment


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def on_one_thread():
    """Operations as small as those of tiny models take longer on several."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
