"""A ranking by what a model's matrices meet: the spectrum of W·Σ^½, where Σ = E[x·xᵀ] is of the inputs that a text brings.

κ(W) says how W spreads inputs that are alike in all directions; a layer's are not. W·Σ^½ has the singular values that Wx shows of
them: κ(W·Σ^½)² is the ratio of the largest to the smallest eigenvalue of E[Wx·(Wx)ᵀ] on the directions that W reaches.

O output features · I input features · N tokens
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kappaspeech.errors import InputError, ScanError
from kappaspeech.model.llm import load_llm
from kappaspeech.model.stored_names import model_names
from kappaspeech.progress import ProgressBar
from kappaspeech.scan.checkpoint import Checkpoint
from kappaspeech.scan.description import describe
from kappaspeech.scan.matrices import MatrixRef, SkippedTensor, list_matrices
from kappaspeech.scan.ranking import KappaRanking, RankedMatrix
from kappaspeech.scan.spectrum import DEFAULT_RTOL, Method, spectrum_stats
from kappaspeech.tensor_files.dtypes import FloatArray

METHOD = "activations"
# Second moments that are gathered in one reading of the text; it is read again for further modules.
_MOST_HELD_BYTES = 2 << 30
# Fewer tokens than these times the width say little of the directions in which inputs are small.
_TOKENS_PER_FEATURE = 2
_NO_INPUTS = "its inputs can't be seen: it is no linear module's weight"


def rank_by_activations(
    checkpoint: Checkpoint,
    windows: Sequence[Sequence[int]],
    *,
    rtol: float = DEFAULT_RTOL,
    method: Method = "auto",
    shows_progress: bool = False,
    most_held_bytes: int = _MOST_HELD_BYTES,
) -> KappaRanking:
    """Rank the weights of a model's linear modules by κ(W·Σ^½), Σ over the tokens of `windows` that reach each; all others are
    listed as skipped, and so are those that too few tokens reach.

    It is a ranking like any other, of the same checkpoint. Raises `CheckpointError`, `InputError` for too little text.
    """
    llm = load_llm(checkpoint.where, dtype=torch.float32).requires_grad_(False)
    matrices, skipped = list_matrices(checkpoint)
    modules = _find_modules(llm, matrices)
    skipped += [SkippedTensor(ref.name, ref.tensor.shape, _NO_INPUTS) for ref in matrices if ref.name not in modules]
    _check_tokens(modules, sum(map(len, windows)))
    ranked = []
    with ProgressBar("scanning", total=len(modules), shown=shows_progress) as bar:
        for part in _divide(modules, most_held_bytes):
            moments = second_moments(llm, list(part.values()), windows)
            for name, module in part.items():
                ref = next(item for item in matrices if item.name == name)
                try:
                    ranked.append(_measure(ref, module, moments.get(module), rtol=rtol, method=method))
                except ScanError as error:
                    skipped.append(SkippedTensor(name, ref.tensor.shape, str(error)))
                bar.advance(1)
    return KappaRanking.of(
        checkpoint.where, checkpoint.digest, method=METHOD, rtol=rtol, matrices=ranked, skipped=skipped,
        gguf_architecture=checkpoint.gguf_architecture,
    )  # fmt: skip


def _find_modules(llm: Any, matrices: Sequence[MatrixRef]) -> dict[str, nn.Linear]:
    """The linear module of each matrix that is one's weight, by the checkpoint's name of it."""
    names = model_names(llm, [ref.tensor.name for ref in matrices])
    linear = {f"{name}.weight": module for name, module in llm.named_modules() if isinstance(module, nn.Linear)}
    return {ref.name: linear[names[ref.name]] for ref in matrices if names.get(ref.name) in linear}


def _check_tokens(modules: Mapping[str, nn.Linear], num_tokens: int) -> None:
    wanted = max((_least_tokens(module) for module in modules.values()), default=0)
    if num_tokens < wanted:
        raise InputError(
            f"The text has {num_tokens:,} tokens; the model's widest input has {wanted // _TOKENS_PER_FEATURE:,} features, and "
            f"{wanted:,} tokens at least are needed to see them. Give more text."
        )


def _least_tokens(module: nn.Linear) -> int:
    return _TOKENS_PER_FEATURE * module.in_features


def _divide(modules: Mapping[str, nn.Linear], most_bytes: int) -> Iterator[dict[str, nn.Linear]]:
    """The modules in parts whose second moments are at most so large, or one at a time."""
    part: dict[str, nn.Linear] = {}
    held = 0
    for name, module in modules.items():
        size = np.dtype(np.float64).itemsize * module.in_features**2
        if part and held + size > most_bytes:
            yield part
            part, held = {}, 0
        part[name] = module
        held += size
    if part:
        yield part


@dataclass(frozen=True)
class Moment:
    """E[x·xᵀ] of a module's inputs, in float64, and the number of tokens that reached it: a router sends an expert a part."""

    mean_II: Tensor
    num_tokens: int


@torch.no_grad()
def second_moments(llm: Any, modules: Sequence[nn.Module], windows: Sequence[Sequence[int]]) -> dict[nn.Module, Moment]:
    """The moment of each module's inputs over those tokens of `windows` that reach it; of modules that any reaches."""
    sums: dict[nn.Module, Tensor] = {}
    num_tokens: dict[nn.Module, int] = {}
    # neighbours such as queries and keys are given the same tensor
    last: list[tuple[Tensor, Tensor]] = []

    def add(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if not last or last[0][0] is not inputs[0]:
            states_NI = inputs[0].reshape(-1, inputs[0].shape[-1]).double()
            last[:] = [(inputs[0], states_NI.T @ states_NI)]
        sums[module] = sums[module] + last[0][1] if module in sums else last[0][1].clone()
        num_tokens[module] = num_tokens.get(module, 0) + inputs[0].numel() // inputs[0].shape[-1]

    hooks = [module.register_forward_pre_hook(add) for module in modules]
    try:
        for window in windows:
            llm(input_ids=torch.tensor([list(window)]), use_cache=False)
            last.clear()
    finally:
        for hook in hooks:
            hook.remove()
    return {
        module: Moment(total / num_tokens[module], num_tokens[module]) for module, total in sums.items() if num_tokens[module]
    }


def _measure(ref: MatrixRef, module: nn.Linear, moment: Moment | None, *, rtol: float, method: Method) -> RankedMatrix:
    if moment is None:
        raise ScanError("the text brings it no inputs")
    if moment.num_tokens < _least_tokens(module):
        raise ScanError(
            f"only {moment.num_tokens:,} of the text's tokens reach it, and its {module.in_features:,} inputs take "
            f"{_least_tokens(module):,} to be seen"
        )
    stats = spectrum_stats(weigh(module.weight.double().numpy(), moment.mean_II.numpy()), rtol=rtol, method=method)
    # what rounding in storage does to κ(W) isn't what it does to this
    return replace(describe(ref, stats), storage_noise=None)


def weigh(weight_OI: FloatArray, moment_II: FloatArray) -> FloatArray:
    """A matrix (O, I) with the singular values of W·Σ^½: W·L, where Σ = L·Lᵀ is Cholesky's, or Σ^½ if Σ is singular."""
    if not np.isfinite(moment_II).all():
        raise ScanError("the text brings it inputs that aren't finite")
    try:
        root_II = np.linalg.cholesky(moment_II)
    except np.linalg.LinAlgError:
        values_I, vectors_II = np.linalg.eigh(moment_II)
        # below this they are rounding's
        least = float(values_I[-1]) * len(values_I) * math.ulp(1.0)
        root_II = vectors_II * np.sqrt(np.where(values_I > least, values_I, 0.0))
    weighed: FloatArray = weight_OI @ root_II
    return weighed
