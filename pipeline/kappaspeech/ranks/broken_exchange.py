"""Errors that mean that the other side of an exchange is gone: libraries have no type for them, only words.

Two callers ask, with different stakes. A watch that sees such an error waits a few seconds for the heartbeats to name the rank,
so it accepts whatever may be one. A report of such an error is placed after all others, so it accepts only what can't be a rank's
own fault.
"""

from __future__ import annotations

import re

# Parts of the messages of gloo, NCCL, their store, MPI and this project if another rank has gone away in a collective.
_MAYBE = (
    "gloo",
    "nccl",
    "connect",
    "timed out",
    "timeout",
    "process group",
    "store",
    "mpi_",
    "a rank ended",
    "is gone",
)
_SURELY = re.compile(r"gloo|nccl|Dist\w+Error|Connection (closed|reset)|Broken pipe", re.IGNORECASE)


def is_broken_collective(error: BaseException) -> bool:
    """Return whether an error may come from another rank's end and not from a fault here."""
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(word in text for word in _MAYBE)


def tells_of_broken_exchange(cause: str) -> bool:
    """Return whether a cause, "type: message" of an error that isn't this project's, can only be another rank's end."""
    return _SURELY.search(cause) is not None
