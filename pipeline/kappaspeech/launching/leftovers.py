"""Ends the processes that one start of a run left on this host; sent to other hosts as text, so it needs Python and Linux alone.

Call: python leftovers.py MARK. MARK is the value of KAPPASPEECH_LAUNCH that the start's processes carry.
"""

from __future__ import annotations

import os
import signal
import sys
import time

VARIABLE = "KAPPASPEECH_LAUNCH"
_TIMEOUT_SECONDS = 10.0


def find(mark: str) -> list[int]:
    """Processes of this host that were started with `mark`, this one aside."""
    wanted = f"{VARIABLE}={mark}".encode()
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid() and _carries(name, wanted)]


def _carries(pid: str, wanted: bytes) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return wanted in file.read().split(b"\0")
    except OSError:  # it has ended, or is another user's
        return False


def end(mark: str) -> list[int]:
    """Kill them, and return their ids once all are gone. A stopped process dies too. Raises `TimeoutError`."""
    killed = set()
    deadline = time.monotonic() + _TIMEOUT_SECONDS
    while found := find(mark):
        if time.monotonic() > deadline:
            raise TimeoutError(f"processes {found} can't be killed: they are waiting for a disk or a file system")
        for pid in found:
            try:
                if _kill(pid, f"{VARIABLE}={mark}".encode()):
                    killed.add(pid)
            except OSError:
                pass  # it has just ended
        time.sleep(0.1)
    return sorted(killed)


def _kill(pid: int, wanted: bytes) -> bool:
    """Kill a process if it is still the one that was found; return whether it was. Raises `OSError`."""
    try:
        # a descriptor of the process: its number may be another's by now
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        raise
    except (AttributeError, OSError):
        # Linux before 5.3, or a Python that was built for one, as conda's: the number has to do
        if not _carries(str(pid), wanted):
            return False
        os.kill(pid, signal.SIGKILL)
        return True
    try:
        if not _carries(str(pid), wanted):
            return False
        signal.pidfd_send_signal(process, signal.SIGKILL)
        return True
    finally:
        os.close(process)


if __name__ == "__main__":
    print(len(end(sys.argv[1])))
