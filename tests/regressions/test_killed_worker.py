"""A worker that is killed while it hands over a result once made training wait for ever."""

from __future__ import annotations

import gc
import os
import signal
import struct
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection

from kappaspeech.speech import loader_pool
from kappaspeech.speech.loading import LoadOptions
from kappaspeech.speech.source import ReadOptions
from tests.conftest import clean_environment
from tests.patience import patience


def die_in_the_middle_of_a_message(_refs: object) -> None:
    """As a kill at the worst moment would: half a message lies in the pipe."""
    pipes = [item for item in gc.get_objects() if isinstance(item, Connection) and not item.closed]
    assert pipes
    for pipe in pipes:
        os.write(pipe.fileno(), struct.pack("!i", 1000) + b"half")
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_killed_while_it_hands_over_a_result_is_noticed():
    done = subprocess.run(
        [sys.executable, "-m", "tests.regressions.test_killed_worker"],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=patience(60),
    )
    assert done.stdout == "noticed\n", done.stderr


def main() -> None:
    loader_pool._load_in_worker = die_in_the_middle_of_a_message
    pool = loader_pool.LoaderPool(LoadOptions(80, 30.0), ReadOptions(), num_workers=2)
    ticket = pool.submit(())
    try:
        ticket.future.result()
    except BrokenProcessPool:
        print("noticed")
    pool.close()


if __name__ == "__main__":
    main()
