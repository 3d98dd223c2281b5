"""LoRA on chosen tensors of the LLM, by PEFT, under names that say which tensor a pair of factors changes.

E experts · O output features · I input features · R rank
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kappaspeech.errors import SelectionError

_ADAPTER = "default"
_WEIGHT = ".weight"
_FACTORS = ("lora_A", "lora_B")
_NUM_NAMED = 3
# wrappers of one module's several tensors are nested
_WRAPPED = re.compile(r"\.base_layer(?=\.|$)")


@dataclass(frozen=True)
class LoraShape:
    """The shape of W + `scaling`·B·A. `transposed` names fused experts that lie as (E, I, O) and not as (E, O, I)."""

    rank: int
    alpha: float
    dropout: float
    transposed: tuple[str, ...] = ()

    @property
    def scaling(self) -> float:
        return self.alpha / self.rank


def lora_from_record(record: Mapping[str, Any] | None) -> LoraShape | None:
    """The shape that `lora_to_record` wrote."""
    return None if record is None else LoraShape(**{**record, "transposed": tuple(record["transposed"])})


def lora_to_record(lora: LoraShape | None) -> dict[str, Any] | None:
    """The shape as `run.json` records it under "lora"."""
    return None if lora is None else asdict(lora)


def linear_tensors(llm: Any) -> list[str]:
    """Names of the weights of every linear module but the head: those that LoRA adapts without a selection."""
    head = llm.get_output_embeddings()
    return [f"{name}{_WEIGHT}" for name, module in llm.named_modules() if isinstance(module, nn.Linear) and module is not head]


def add_lora(llm: Any, names: list[str], shape: LoraShape, *, seed: int) -> LoraShape:
    """Freeze `llm` and put a trainable pair of factors beside each tensor of `names`; return the shape as it came out.

    B begins at zero, so the model computes what it did; A is a function of `seed`. Raises `SelectionError` for a tensor that
    is neither a linear module's weight nor fused experts.
    """
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora.layer import ParamWrapper

    if not names:
        raise SelectionError(
            f"{type(llm).__name__} has no linear modules of torch's kind for LoRA to adapt. Train a selection's tensors whole: "
            "unfreeze.mode selection."
        )
    parameters = dict(llm.named_parameters(remove_duplicate=False))
    fused = [name for name in names if parameters[name].dim() == 3]
    _check_adaptable(llm, [name for name in names if name not in fused])
    if fused and shape.dropout:
        raise SelectionError(
            f"LoRA on fused experts ({fused[0]}) can't have dropout, because their input passes no linear module. "
            "Set unfreeze.lora.dropout to 0 or leave these tensors out of the selection."
        )
    config = LoraConfig(
        r=shape.rank,
        lora_alpha=shape.alpha,
        lora_dropout=shape.dropout,
        target_modules=[name.removesuffix(_WEIGHT) for name in names if name not in fused],
        target_parameters=fused or None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, llm)
    for name, parameter in llm.named_parameters():
        parameter.requires_grad_(_is_pefts(name))
        if parameter.requires_grad:
            parameter.data = parameter.data.to(llm.dtype)
    transposed = [
        f"{_plain(path)}.{module.parameter_name}"
        for path, module in llm.named_modules()
        if isinstance(module, ParamWrapper) and getattr(module.get_base_layer(), "is_transposed", False)
    ]
    return LoraShape(shape.rank, shape.alpha, shape.dropout, tuple(sorted(transposed)))


def _check_adaptable(llm: Any, names: list[str]) -> None:
    linear = {f"{name}{_WEIGHT}" for name, module in llm.named_modules(remove_duplicate=False) if isinstance(module, nn.Linear)}
    shared = llm.get_input_embeddings().weight
    parameters = dict(llm.named_parameters(remove_duplicate=False))
    others = [name for name in names if name not in linear or parameters[name] is shared]
    if others:
        raise SelectionError(
            f"LoRA adapts linear modules and fused experts; {len(others)} selected tensor(s) are neither (first: "
            f"{', '.join(others[:_NUM_NAMED])}). Select again with --exclude, or train them whole: unfreeze.mode selection."
        )


def has_dropout(llm: Any) -> bool:
    """Return whether LoRA's factors in `llm` read their input through dropout."""
    return any(isinstance(module, nn.Dropout) for name, module in llm.named_modules() if ".lora_dropout." in name)


def adapted_experts(llm: Any) -> dict[str, nn.Parameter]:
    """The tensors of fused experts that LoRA adapts in `llm`, each by the path of the module that has its factors.

    Such a module computes with W + scaling·B·A, which PEFT makes whole for each pass.
    """
    wrappers = [(path, module) for path, module in llm.named_modules() if hasattr(module, "parameter_name")]
    return {path: module.get_base_layer().get_parameter(module.parameter_name) for path, module in wrappers}


def public_names(model: nn.Module) -> dict[str, str]:
    """Each parameter's name in files: the base model's name, and X.lora_A.weight, X.lora_B.weight for factors of X.

    PEFT moves a module to its wrapper's `base_layer`, and names the factors of fused experts after their module alone.
    """
    wrapped = {path: module.parameter_name for path, module in model.named_modules() if hasattr(module, "parameter_name")}
    names = {}
    for name, _ in model.named_parameters():
        public = _plain(name)
        if _is_pefts(name):
            path, factor = name.removesuffix(f".{_ADAPTER}{_WEIGHT}").rsplit(".", 1)
            inner = f".{wrapped[path]}" if path in wrapped else ""
            public = f"{_plain(path)}{inner}.{factor}{_WEIGHT}"
        names[name] = public
    return names


def is_factor(public_name: str) -> bool:
    """Return whether a trained tensor is one of LoRA's factors."""
    return public_name.endswith(tuple(f".{factor}{_WEIGHT}" for factor in _FACTORS))


def is_first_factor(public_name: str) -> bool:
    """Return whether a trained tensor is A of W + scaling·B·A."""
    return public_name.endswith(f".{_FACTORS[0]}{_WEIGHT}")


def factors_of(name: str) -> tuple[str, str]:
    """Names of the factors of the tensor `name`, A and B."""
    stem = name.removesuffix(_WEIGHT)
    return f"{stem}.{_FACTORS[0]}{_WEIGHT}", f"{stem}.{_FACTORS[1]}{_WEIGHT}"


def merge(name: str, base: Tensor, trained: Mapping[str, Tensor], lora: LoraShape | None) -> Tensor:
    """The LLM's tensor `name` after training: `base` itself if nothing trained it, its successor, or base + scaling·B·A.

    `trained` has public names, without any prefix of the LLM's. Sums are float32; the caller rounds a tensor that it keeps, once.
    """
    first, second = (trained.get(factor) for factor in factors_of(name))
    if first is None or second is None:
        return trained.get(name, base)
    assert lora is not None, f"{name} has LoRA's factors and no scaling"
    first, second = first.to(base.device).float(), second.to(base.device).float()
    if base.dim() == 2:
        return torch.addmm(base.float(), second, first, alpha=lora.scaling)
    num_experts = base.shape[0]
    # PEFT's layout: A stacks the experts' R rows; in B the expert is the fastest index of a column
    first_ERI = first.reshape(num_experts, -1, first.shape[-1])
    second_EOR = second.reshape(second.shape[0], -1, num_experts).permute(2, 0, 1)
    change_EOI = torch.bmm(second_EOR, first_ERI)
    change = change_EOI.transpose(1, 2) if name in lora.transposed else change_EOI
    return base.float() + lora.scaling * change


def _is_pefts(name: str) -> bool:
    return name.endswith(tuple(f".{factor}.{_ADAPTER}{_WEIGHT}" for factor in _FACTORS))


def _plain(name: str) -> str:
    return _WRAPPED.sub("", name)
