"""The GPUs that ranks here may use, asked without loading torch. As a command it prints how many a training takes."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

from kappaspeech.errors import TrainingError
from kappaspeech.escaping import for_terminal

# Values of CUDA_VISIBLE_DEVICES that hide every GPU; the last is SLURM's.
HIDDEN_GPUS = ("", "-1", "NoDevFiles")
_DRIVER_SECONDS = 60.0
_DEVICES = Path("/dev")


def split_names(visible: str) -> list[str]:
    """The GPUs that CUDA_VISIBLE_DEVICES names, by number or otherwise."""
    return [name.strip() for name in visible.split(",") if name.strip()]


def count_gpus() -> int:
    """NVIDIA GPUs that ranks here may use: this host's, or those that CUDA_VISIBLE_DEVICES names.

    Raises `TrainingError` if their driver hangs.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible in HIDDEN_GPUS:
        return 0
    here = _count_all()
    return len(split_names(visible)) if here and visible else here


def count_for_training() -> int:
    """The same, none if the user wants a training on processors. Raises `TrainingError`."""
    return 0 if os.environ.get("DS_ACCELERATOR") == "cpu" else count_gpus()


def _count_all() -> int:
    if shutil.which("nvidia-smi") is None:
        # a container may have GPUs without their driver's tools
        return len(list(_DEVICES.glob("nvidia[0-9]*")))
    try:
        # its word counts: a job that was given no GPU may see the host's device files
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=_DRIVER_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise TrainingError(
            f"nvidia-smi hasn't answered on {socket.gethostname()} for {_DRIVER_SECONDS:.0f} s: the GPUs' driver hangs. Train on "
            "another host, or on the processors with DS_ACCELERATOR=cpu."
        ) from error
    return sum(line.startswith("GPU") for line in done.stdout.splitlines())


def main() -> int:
    """Print the number; a driver that hangs is an error in a line."""
    try:
        print(for_terminal(str(count_for_training())))
    except TrainingError as fault:
        print(for_terminal(f"error: {fault}"), file=sys.stderr)
        return fault.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
