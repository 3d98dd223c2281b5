"""Packed codes of quantised checkpoints, and tensors that only help to decode others: no ranking takes them for weights.

They are known by their names, as GPTQ, AWQ, bitsandbytes, compressed-tensors, HQQ, MXFP4, NVFP4, FP8, torchao, quanto, AQLM,
VPTQ, QuIP# and EXL2/3 write them. Codes that are plain once scaled (FP8, 8-bit integers) are ranked, with the scales that
`find_scale` finds, bitsandbytes' 4-bit ones by `four_bit`, and GPTQ's and AWQ's by `grouped_codes`, where config.json tells their
format.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from kappaspeech.tensor_files.dtypes import CODES, FLOATS

# a module's tensor that shows its packing → the tensor that must lie beside it, if any, and the scheme
_MARKERS = {
    "qweight": (None, "GPTQ or AWQ"),
    "W_q": (None, "HQQ"),
    "weight_packed": (None, "compressed-tensors"),
    "weight.compressed": ("weight.bitmask", "compressed-tensors"),
    "weight.absmax": (None, "bitsandbytes in 4 bits"),
    "weight_scale_2": ("weight_scale", "NVFP4"),
    "weight._data": (None, "quanto"),
    "weight_qdata": (None, "torchao"),
    "_weight_qdata": (None, "torchao"),
    "codes": ("codebooks", "AQLM"),
    "indices": ("centroids.weight", "VPTQ"),
    "Qidxs": (None, "QuIP#"),
    "q_weight": (None, "EXL2"),
    "trellis": (None, "EXL3"),
    "B": ("s", "Marlin"),
}
# experts that lie together in one module differ in the part before the last of the name
_FUSED_MARKER = re.compile(r"(?P<stem>.+)_blocks")
_HELPER = re.compile(
    r"(^|[._])(scales?|scale_inv|scale_[0-9]|scb|q?zeros?|zero_points?|zp|shifts?|absmax|quant_map|codebooks?|centroids|g_idx|"
    r"bitmask|workspace|weight_format)([._]|$)",
    re.IGNORECASE,
)
_LORA = re.compile(r"(^|\.)lora_(embedding_)?(A|B|magnitude_vector)(\.|$)")
_BIAS = re.compile(r"(^|[._])bias$")
# the scale of the tensor W is W + suffix; that of X.weight is X + suffix
_SCALE_SUFFIXES = ("_scale_inv", "_scale")
_ZERO_POINT_SUFFIX = "_zero_point"
_FORMAT_SUFFIX = ".weight_format"
SCALES_REASON = "the scales of a quantised tensor"
SCALE_DTYPES = {*FLOATS, "float8_e8m0fnu"}


@dataclass(frozen=True)
class Scale:
    """The scales that codes are multiplied with: their tensor's name, a `factor` on the scales, and the name of the tensor that
    is subtracted from the codes before, if there is one. A stored number in `layout` must be zero."""

    name: str
    factor: float = 1.0
    zero_point: str | None = None
    layout: str | None = None


def find_scale(name: str, dtype: str, stored: Mapping[str, str]) -> Scale | None:
    """The scales and zero points of the codes `name`, among tensors `stored` (dtypes by name)."""
    zero_point = name + _ZERO_POINT_SUFFIX
    found = next((name + suffix for suffix in _SCALE_SUFFIXES if name + suffix in stored), None)
    if found is not None:
        return Scale(found, zero_point=zero_point if zero_point in stored else None)
    module = name.removesuffix(".weight")
    if dtype not in CODES or module == name:
        return None
    if dtype == "int8" and module + ".SCB" in stored:
        # bitsandbytes keeps each row's largest magnitude, for which the code is 127
        layout = module + _FORMAT_SUFFIX
        return Scale(module + ".SCB", factor=1 / 127, layout=layout if layout in stored else None)
    return Scale(module + ".scale") if dtype != "int8" and module + ".scale" in stored else None


def find_packed(stored: Mapping[str, str]) -> dict[str, str]:
    """The reason why a tensor of `stored` (dtypes by name), part of a packed weight or no weight at all, isn't ranked; by
    name."""
    modules: dict[str, str] = {}
    for name in stored:
        module = _module(name)
        beside, scheme = _MARKERS.get(name[len(module) + 1 :], (None, ""))
        if scheme and (beside is None or f"{module}.{beside}" in stored):
            modules.setdefault(module, scheme)
    stems = {match["stem"] for name in stored if (match := _FUSED_MARKER.fullmatch(name)) and f"{match['stem']}_scales" in stored}
    coded = {_module(name) for name, dtype in stored.items() if dtype in CODES or dtype not in (*FLOATS, "int64", "bool")}
    reasons = {}
    for name, dtype in stored.items():
        reason = _refuse(name, dtype, modules, stems, coded, stored)
        if reason is not None:
            reasons[name] = reason
    return reasons


def _refuse(
    name: str, dtype: str, modules: Mapping[str, str], stems: set[str], coded: set[str], stored: Mapping[str, str]
) -> str | None:
    module = _module(name)
    # a table may be a module of its own inside the packed one
    module = next((each for each in (module, _module(module)) if each in modules), module)
    if module in modules:
        # NVFP4's second scale lies beside FP8's weights too
        if modules[module] == "NVFP4" and stored.get(f"{module}.weight") in FLOATS:
            return SCALES_REASON if _is_helper(name, module) else None
        kind = "belongs to packed codes" if dtype in FLOATS or _is_helper(name, module) else "packed codes"
        return f"{kind} ({modules[module]}), not weights. Scan the unquantised checkpoint instead"
    stem = name.rpartition("_")[0]
    if stem in stems and name.endswith(("_blocks", "_scales")):
        return "packed codes (MXFP4), not weights. Scan the unquantised checkpoint instead"
    if any(name.endswith(suffix) and name.removesuffix(suffix) in stored for suffix in (*_SCALE_SUFFIXES, _ZERO_POINT_SUFFIX)):
        return SCALES_REASON
    if module in coded and _is_helper(name, module):
        return SCALES_REASON
    if _LORA.search(name):
        return "a factor of LoRA's, which changes another tensor: merge it into its base and scan that"
    return "a bias: no matrix, however many lie together" if _BIAS.search(name) else None


def _is_helper(name: str, module: str) -> bool:
    return _HELPER.search(name.removeprefix(f"{module}.")) is not None


def _module(name: str) -> str:
    """The module that a tensor belongs to: X of X.weight, X.weight_scale, X.weight.absmax and X.weight.quant_state.nf4."""
    before, found, _ = name.rpartition(".weight.")
    if found:
        return before
    return name.rpartition(".")[0]
