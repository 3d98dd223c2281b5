"""The name of one expert of a fused tensor: `tensor[expert]`, in rankings, selections, checkpoints and differences."""

from __future__ import annotations

import re

_ONE = re.compile(r"(.+)\[(\d+)\]")


def expert_name(tensor: str, expert: int) -> str:
    """The name of the matrix of number `expert` in `tensor`."""
    return f"{tensor}[{expert}]"


def split_expert(name: str) -> tuple[str, int | None]:
    """The tensor that a name means, and the number of its expert; None if it means the whole tensor."""
    match = _ONE.fullmatch(name)
    return (match[1], int(match[2])) if match else (name, None)
