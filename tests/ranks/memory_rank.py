"""One rank of a training that ends before its first step, and prints its tensors' bytes and its plan's parts, as JSON."""

from __future__ import annotations

import gc
import json
import sys
from typing import Any
from unittest.mock import patch

import torch

from kappaspeech.commands import main as command
from kappaspeech.training import run
from kappaspeech.training.loop import Outcome


def count_held() -> int:
    """Bytes of all storages of this process's tensors of floats, but those through which ranks exchange.

    All that a plan names is of floats, and what ranks gather (`TorchCluster.gather`) is of bytes: Gloo's thread ends a collective
    before it lets go of its tensors, and holds them for as long as the system doesn't run it. A rank's message and two ranks'
    answers are 3 · 4,104 bytes, which were counted once.
    """
    gc.collect()
    tensors = [item for item in gc.get_objects() if isinstance(item, torch.Tensor)]
    storages = [item.untyped_storage() for item in tensors if item.is_cpu and item.is_floating_point()]
    found = {storage.data_ptr(): storage.nbytes() for storage in storages if not is_exchanged(storage.data_ptr())}
    return sum(found.values())


def is_exchanged(address: int) -> bool:
    """True for memory that has no name and is shared with other processes."""
    with open("/proc/self/maps", encoding="ascii", errors="replace") as lines:
        shared = [line.split("-")[:2] for line in lines if "memfd:kappaspeech" in line]
    return any(int(begin, 16) <= address < int(rest.split(" ")[0], 16) for begin, rest in shared)


def main() -> None:
    def count(config: Any, _agreed: Any, _loaded: Any, partitioned: Any, _around: Any) -> Outcome:
        # the first pass makes these, be it of a step, an anchor or the Fisher
        partitioned.engine.model.adaptor._sinusoids = None
        parts = {part["name"]: part["num_bytes"] for part in partitioned.plan["parts"]}
        # one write, or another rank's line may come between
        sys.stdout.write(json.dumps({"held": count_held(), "parts": parts}) + "\n")
        return Outcome("resumable", 0, "its memory was counted", config.run_dir)

    with patch.object(run, "_take_steps", count), patch.object(run, "_prove"):
        sys.exit(command(["train", *sys.argv[1:]]))


if __name__ == "__main__":
    main()
