"""DeepSpeed's compiled ops that this host can have."""

from __future__ import annotations

import os
import sys
from contextlib import redirect_stdout


def find_compatible_ops() -> dict[str, bool]:
    """Each op, and whether its needs are met here by DeepSpeed's own judgement. Nothing is compiled."""
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # its builders print their missing needs to standard output, which may hold a command's result
    with redirect_stdout(sys.stderr):
        from deepspeed.ops import __compatible_ops__

    return {str(name): bool(there) for name, there in __compatible_ops__.items()}
