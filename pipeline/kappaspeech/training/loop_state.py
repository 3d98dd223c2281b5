"""The state that a run resumes from, beside its tensors: its totals, its memory of bad steps, and the place in its data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kappaspeech.config.run_config import RunConfig
from kappaspeech.speech.stream import SpeechStream
from kappaspeech.training.anchor_weight import AnchorWeight
from kappaspeech.training.bad_steps import BadSteps
from kappaspeech.training.totals import Totals


class LoopState:
    """The state after the steps so far; all ranks hold the same."""

    def __init__(self, config: RunConfig, stream: SpeechStream) -> None:
        self.totals = Totals(num_samples=stream.num_samples, max_bad_fraction=config.data.max_bad_fraction)
        self.bad_steps = BadSteps(config.training)
        self.anchor_weight = AnchorWeight(config.replay)
        self.hint = (0, 0)

    def to_json(self) -> dict[str, Any]:
        """The state that `restore` reads."""
        parts = {"bad_steps": self.bad_steps.to_json(), "anchor_weight": self.anchor_weight.to_json()}
        return {"hint": list(self.hint), **parts, **self.totals.to_json()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from the state of `to_json`."""
        self.bad_steps.restore(state["bad_steps"])
        if "anchor_weight" in state:
            # versions before this one had none
            self.anchor_weight.restore(state["anchor_weight"])
        self.hint = (state["hint"][0], state["hint"][1])
        self.totals.restore(state)
