"""A word to whoever chooses a run's best checkpoint."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from kappaspeech.escaping import for_terminal

if TYPE_CHECKING:
    from kappaspeech.trained.opening import Step


def warn_of_best(run: Path, step: Step) -> None:
    """Say it if the best checkpoint doesn't keep the run's forgetting budget. For one rank alone. Raises as `open_run`."""
    from kappaspeech.trained.opening import explain_best

    told = explain_best(run, step)
    if told is not None:
        print(for_terminal(f"warning: {told}"), file=sys.stderr)
