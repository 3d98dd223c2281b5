"""The configuration's part on CLASSP, an optimizer that moves few weights, and those less that have moved much."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from kappaspeech.config.section import NotNegative, StrictSection


class ClasspConfig(StrictSection):
    """CLASSP (Ludwig 2024, arXiv:2405.09637) for the LLM's tensors; AdamW, with its β, ε and decay, is left to the adaptor."""

    threshold: NotNegative = Field(
        default=0.0,
        description="A weight moves in a step only if the square of its gradient is larger. The gradient is that of the mean "
        "loss a token, clipped: all squares together are at most clip_norm². 0: every weight moves.",
    )
    # from these limits on ε^(1/p) isn't 0 in float32, where a weight without a gradient would move by 0/0
    power: Annotated[float, Field(ge=1)] = Field(
        default=2.0,
        description="p of the scaling by (ε + Σ |gradient|^p)^(1/p), the sum over the steps in which the weight has moved. 2 is "
        "AdaGrad's.",
    )
    epsilon: Annotated[float, Field(ge=1e-30)] = Field(default=1e-10, description="ε of that scaling.")
