"""What an error says when the other side of an exchange is gone: libraries have no type for it, only words.

Asked twice, with different stakes. A watch that sees one waits a few seconds for the heartbeats to name the rank, so it takes
whatever may be one. A report that is one is told after all others, so only what can't be a rank's own fault is.
"""

from __future__ import annotations

import re

# Parts of what gloo, NCCL, their store, MPI and this project say when another rank has gone away in a collective.
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
    """Whether an error may tell of another rank's end and not of a fault here."""
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(word in text for word in _MAYBE)


def tells_of_broken_exchange(cause: str) -> bool:
    """Whether a cause, «type: message» of an error that isn't this project's, can only be another rank's end."""
    return _SURELY.search(cause) is not None
