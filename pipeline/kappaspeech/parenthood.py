"""Helper processes end with the process that started them, however that ends: a kill gives it no chance to end them."""

from __future__ import annotations

import os
import threading
import time

# Tells a program started as a helper whose it is.
PARENT_VARIABLE = "KAPPASPEECH_PARENT"
_POLL_SECONDS = 0.5


def end_with_parent(parent: int) -> None:
    """End this process once process `parent` isn't its parent any more. Returns at once; a thread watches.

    Not by prctl's PR_SET_PDEATHSIG, which takes the end of the thread that started a process for its parent's, and is lost in
    some execs; not by a pipe, whose other end a forked sibling would hold open.
    """
    threading.Thread(target=_watch, args=(parent,), name="parent-watch", daemon=True).start()


def _watch(parent: int) -> None:
    wait_for_the_end_of(parent)
    os._exit(1)


def wait_for_the_end_of(parent: int) -> None:
    """Return once process `parent` isn't this one's parent any more."""
    while os.getppid() == parent:
        time.sleep(_POLL_SECONDS)


def as_helper() -> dict[str, str]:
    """The variable for a program that this process starts, by which `heed_parent` makes it a helper."""
    return {PARENT_VARIABLE: str(os.getpid())}


def heed_parent() -> None:
    """End with the parent if the environment says that this is its helper; what this process starts isn't."""
    parent = os.environ.pop(PARENT_VARIABLE, "")
    if parent.isdigit():
        end_with_parent(int(parent))
