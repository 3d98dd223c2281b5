"""One rank of a training, which prints what it received through the exchange of processors, call by call, as JSON."""

from __future__ import annotations

import json
import sys
from typing import ClassVar
from unittest.mock import patch

from kappaspeech.commands import main as command
from kappaspeech.ranks.part_exchange import PartExchange
from kappaspeech.zero3 import processor_exchange


class Counting(PartExchange):
    # of the whole process
    received: ClassVar[dict[str, list[int]]] = {"averaged": [], "gathered": []}

    def average_parts(self, tensors):
        parts = super().average_parts(tensors)
        self.received["averaged"].append((self._size - 1) * sum(part.nbytes for part in parts))
        return parts

    def gather_parts(self, parts, wholes):
        super().gather_parts(parts, wholes)
        self.received["gathered"].append(sum(whole.nbytes - part.nbytes for part, whole in zip(parts, wholes, strict=True)))


if __name__ == "__main__":
    with patch.object(processor_exchange, "PartExchange", Counting):
        code = command(["train", *sys.argv[1:]])
    sys.stdout.write(json.dumps(Counting.received) + "\n")
    sys.exit(code)
