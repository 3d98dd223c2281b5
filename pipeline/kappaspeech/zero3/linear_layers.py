"""Linear layers under ZeRO-3, of which a frozen one keeps nothing of its input for the backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def keep_no_frozen_inputs() -> None:
    """Let linear layers whose weight is frozen forget what they read. Call it after `deepspeed.zero.Init`.

    DeepSpeed 0.19 has put a function of its own in the place of `torch.nn.functional.linear`, for torch's would hold on to the
    gathered weight. DeepSpeed's keeps each layer's input (zero/linear.py: `setup_context`), which only the gradient of the weight
    is made of. Of a Llama that is mostly frozen, that is a quarter of the activations. Nothing is replaced if
    `memory_efficient_linear` is false in the JSON: torch's function forgets such inputs itself.
    """
    from deepspeed.runtime.zero.linear import LinearFunctionForZeroStage3, zero3_linear_wrap

    class LinearFunction(LinearFunctionForZeroStage3):  # type: ignore[misc]
        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Tensor | None, ...], output: Tensor) -> None:
            LinearFunctionForZeroStage3.setup_context(ctx, inputs, output)
            if not ctx.needs_input_grad[1]:
                # the last call counts
                ctx.save_for_backward(None, *inputs[1:])

    def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        result: Tensor = LinearFunction.apply(input, weight, bias)
        return result

    if torch.nn.functional.linear is zero3_linear_wrap:
        torch.nn.functional.linear = linear
