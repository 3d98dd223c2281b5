"""A guard that ends a start whose supervisor is killed: ranks aren't its children, and those on other hosts can't see it at all.

It is a process of its own beside the launcher, and waits for the supervisor's end: `python -m kappaspeech.launching.guard PID
MARK SSH-OPTIONS [HOST ...]`. While all goes well the supervisor ends it.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence

from kappaspeech.launching import leftovers, remote
from kappaspeech.parenthood import wait_for_the_end_of


@contextlib.contextmanager
def guarded(mark: str, *, hosts: Sequence[str], ssh_options: Sequence[str]) -> Iterator[None]:
    """While the context is open, end the processes with `mark` here and on `hosts` if this process ends without closing it."""
    words = [sys.executable, "-m", __name__, str(os.getpid()), mark, shlex.join(ssh_options), *hosts]
    # without the mark it isn't taken for a part of the start; a session of its own, as a closed terminal takes whole ones
    environment = {name: value for name, value in os.environ.items() if name != leftovers.VARIABLE}
    guard = subprocess.Popen(words, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        yield
    finally:
        guard.kill()
        guard.wait()


def main(words: Sequence[str]) -> None:
    """Wait, then end the start; ranks that stay on a host which doesn't answer end with the others they train with."""
    parent, mark, ssh_options, *hosts = words
    wait_for_the_end_of(int(parent))
    # this host first: the launcher is here, and would report ranks that ended before it
    with contextlib.suppress(TimeoutError):
        leftovers.end(mark)
    if hosts:
        remote.end_leftovers(hosts, mark, ssh_options=shlex.split(ssh_options))


if __name__ == "__main__":
    main(sys.argv[1:])
