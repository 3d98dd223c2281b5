"""A whole model, in one process: the base LLM with its trained tensors put into it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial

import torch
from torch import Tensor

from kappaspeech.errors import CheckpointError
from kappaspeech.model.adaptor import Adaptor, AdaptorShape
from kappaspeech.model.expert_places import ExpertPlace, find_places
from kappaspeech.model.experts import put_experts
from kappaspeech.model.llm import load_llm
from kappaspeech.model.lora import LoraShape, is_factor, merge
from kappaspeech.model.prefixes import ADAPTOR_PREFIX, LLM_PREFIX
from kappaspeech.model.speech_llm import SpeechLLM


def build_adaptor(shape: AdaptorShape, *, seed: int) -> Adaptor:
    """An adaptor whose initial weights are a function of `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Adaptor(shape)


def load_trained_model(
    llm: str,
    shape: AdaptorShape,
    trained: Mapping[str, Tensor],
    *,
    dtype: torch.dtype,
    trained_in: torch.dtype | None = None,
    lora: LoraShape | None = None,
    attention: str = "auto",
) -> SpeechLLM:
    """The base at `llm` with an adaptor of `shape`, changed by `trained` (public names in `SpeechLLM`), in eval mode.

    `trained_in` is what the training computed in, if that isn't `dtype`: base and changes are rounded to it, as an export is.
    Raises `CheckpointError` if a trained tensor has no place in the model.
    """
    base = load_llm(llm, dtype=trained_in or dtype, attention=attention)
    model = SpeechLLM(build_adaptor(shape, seed=0).to(dtype), base if base.dtype == dtype else base.to(dtype))
    before = {name: parameter.data for name, parameter in model.llm.named_parameters()}
    apply_trained(model, trained, lora=lora, trained_in=trained_in)
    changed = [name for name, parameter in model.llm.named_parameters() if parameter.data_ptr() != before[name].data_ptr()]
    # mapped from the base's files, they cost memory once they are read
    model.base_tensors = {name: before[name] for name in changed}
    return model.eval().requires_grad_(False)


def apply_trained(
    model: SpeechLLM, trained: Mapping[str, Tensor], *, lora: LoraShape | None = None, trained_in: torch.dtype | None = None
) -> None:
    """Put `trained` in the place of the parameters of these names, cast to the model's dtype, and merge LoRA's factors. Single
    experts are put into their fused tensors. With `trained_in` all that changes is rounded to it first.

    Raises `CheckpointError`.
    """
    parameters = dict(model.named_parameters())
    of_llm = {name.removeprefix(LLM_PREFIX): tensor for name, tensor in trained.items() if name.startswith(LLM_PREFIX)}
    places = find_places(model.llm, {name: tuple(tensor.shape) for name, tensor in of_llm.items()})
    for name, tensor in trained.items():
        if (is_factor(name) and lora is not None) or name.removeprefix(LLM_PREFIX) in places:
            continue
        if name not in parameters or parameters[name].shape != tensor.shape:
            there = tuple(parameters[name].shape) if name in parameters else "absent"
            raise CheckpointError(
                f"The trained tensor {name} {tuple(tensor.shape)} doesn't fit the model, where it is {there}. "
                "Give the base model and adaptor options that the run was trained with."
            )
    for part in (model.adaptor, model.llm):
        prefix = ADAPTOR_PREFIX if part is model.adaptor else LLM_PREFIX
        of_part = {name.removeprefix(prefix): tensor for name, tensor in trained.items() if name.startswith(prefix)}
        with torch.no_grad():
            for name, parameter in part.named_parameters():
                after = merge(name, parameter, of_part, lora)
                if after is not parameter:
                    # a parameter mapped from a file must not be written through
                    parameter.data = after.to(trained_in or parameter.dtype).to(parameter.dtype)
    experts: dict[str, dict[ExpertPlace, Tensor]] = {}
    for name, place in places.items():
        experts.setdefault(place.parameter, {})[place] = of_llm[name]
    for name, matrices in experts.items():
        parameter = model.llm.get_parameter(name)
        parameter.data = put_experts(parameter.data, matrices)


@contextmanager
def base_weights(model: SpeechLLM) -> Iterator[None]:
    """Put the base's tensors in the places that training changed, while the context is open. Only another device needs a copy."""
    assert model.base_tensors is not None, "an export doesn't know its base"
    parameters = dict(model.llm.named_parameters())
    trained = {name: parameters[name].data for name in model.base_tensors}
    try:
        for name, tensor in model.base_tensors.items():
            parameters[name].data = tensor.to(trained[name].device)
        yield
    finally:
        for name, tensor in trained.items():
            parameters[name].data = tensor


def find_base(model: SpeechLLM) -> Callable[[], AbstractContextManager[None]] | None:
    """`base_weights` of `model`, or None if its base isn't known."""
    return None if model.base_tensors is None else partial(base_weights, model)
