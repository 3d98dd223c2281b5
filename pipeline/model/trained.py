"""A whole model, in one process: the base LLM with what was trained put into it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.errors import CheckpointError
from pipeline.model.adaptor import Adaptor, AdaptorShape
from pipeline.model.llm import load_llm
from pipeline.model.speech_llm import SpeechLLM


def build_adaptor(shape: AdaptorShape, *, seed: int) -> Adaptor:
    """An adaptor whose initial weights are a function of `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Adaptor(shape)


def load_trained_model(llm: str, shape: AdaptorShape, trained: Mapping[str, Tensor], *, dtype: torch.dtype) -> SpeechLLM:
    """The base at `llm` with an adaptor of `shape`, overwritten by `trained` (names as in `SpeechLLM`), in eval mode.

    Raises `CheckpointError` where a trained tensor has no place in the model.
    """
    model = SpeechLLM(build_adaptor(shape, seed=0).to(dtype), load_llm(llm, dtype=dtype))
    apply_trained(model, trained)
    return model.eval().requires_grad_(False)


def apply_trained(model: SpeechLLM, trained: Mapping[str, Tensor]) -> None:
    """Copy `trained` into the parameters of these names, cast to the model's dtype. Raises `CheckpointError`."""
    parameters = dict(model.named_parameters())
    for name, tensor in trained.items():
        if name not in parameters or parameters[name].shape != tensor.shape:
            there = tuple(parameters[name].shape) if name in parameters else "absent"
            raise CheckpointError(
                f"The trained tensor {name} {tuple(tensor.shape)} doesn't fit the model, where it is {there}. "
                "Give the base model and adaptor options that the run was trained with."
            )
        with torch.no_grad():
            # a parameter mapped from a file must not be written through
            parameters[name].data = tensor.to(parameters[name].dtype)
