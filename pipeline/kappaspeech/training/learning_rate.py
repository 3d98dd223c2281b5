"""Learning rate as a pure function of the step."""

from __future__ import annotations

import math

from kappaspeech.config.training_config import OptimizerConfig


def rate_factor(step: int, *, num_steps: int, config: OptimizerConfig, alignment_steps: int = 0) -> float:
    """The factor of both peak rates at 0-based `step`: linear warm-up, then constant or a half cosine.

    The cosine ends at `final_fraction` on the last step. The first `alignment_steps` have a warm-up and a cosine of their own.
    """
    if step < alignment_steps:
        return rate_factor(step, num_steps=alignment_steps, config=config)
    step, num_steps = step - alignment_steps, num_steps - alignment_steps
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    span = max(num_steps - 1 - config.warmup_steps, 1)
    progress = min((step - config.warmup_steps) / span, 1.0)
    return config.final_fraction + (1 - config.final_fraction) * 0.5 * (1 + math.cos(math.pi * progress))
