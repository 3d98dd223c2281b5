"""A selection as other fine-tuning tools read it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from kappaspeech.artefacts import write_text
from kappaspeech.errors import SelectionError
from kappaspeech.expert_names import split_expert
from kappaspeech.selection.tensor_selection import TensorSelection

_WEIGHT = ".weight"
# GGUF's names of families in which transformers has the modules below for each of these parts; others fuse or rename some
_LIKE_LLAMA = {
    "llama",
    "mistral3",
    "qwen2",
    "qwen3",
    "qwen2moe",
    "qwen3moe",
    "gemma",
    "gemma2",
    "gemma3",
    "olmo",
    "olmo2",
    "stablelm",
    "granite",
    "command-r",
    "cohere2",
    "exaone4",
    "smollm3",
    "arcee",
    "minicpm",
    "deepseek",
    "deepseek2",
}
# GGUF's names of their tensors → transformers'
_GGUF_BLOCK = re.compile(r"blk\.(\d+)\.([a-z_]+)\.weight")
_GGUF_MODULES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GGUF_OUTSIDE = {"token_embd.weight": "model.embed_tokens.weight", "output.weight": "lm_head.weight"}


def is_of_gguf(selection: TensorSelection) -> bool:
    """True if the selection's tensors have GGUF's names, which no other tool knows."""
    names = [split_expert(name)[0] for name in selection.names]
    return any(_GGUF_BLOCK.fullmatch(name) or name in _GGUF_OUTSIDE for name in names)


def with_transformers_names(selection: TensorSelection) -> TensorSelection:
    """A selection from a GGUF file by transformers' names, others as they are. Raises `SelectionError` if one has none."""
    if not is_of_gguf(selection):
        return selection
    if selection.gguf_architecture not in _LIKE_LLAMA:
        family = selection.gguf_architecture
        raise SelectionError(
            f"{selection.model} is a GGUF file of the family {family}, whose tensors have other names and shapes in "
            "transformers. Scan the model's safetensors checkpoint."
            if family
            else f"The selection of {selection.model} has GGUF's names and doesn't say of which family. Scan and select again."
        )
    return replace(selection, tensors=tuple(replace(tensor, name=_rename(tensor.name)) for tensor in selection.tensors))


def _rename(name: str) -> str:
    match = _GGUF_BLOCK.fullmatch(name)
    if match is not None and match[2] in _GGUF_MODULES:
        return f"model.layers.{match[1]}.{_GGUF_MODULES[match[2]]}{_WEIGHT}"
    if name in _GGUF_OUTSIDE:
        return _GGUF_OUTSIDE[name]
    raise SelectionError(
        f"{name} is GGUF's name of a tensor that transformers stores otherwise, so PEFT can't use it. Scan the model's "
        "safetensors checkpoint, or select without it (--exclude)."
    )


def names(selection: TensorSelection) -> str:
    """Parameter names, one a line, in the order that chose them. Raises `SelectionError` for one that is more than a line."""
    for name in selection.names:
        if name.splitlines() != [name]:
            raise SelectionError(f"{name!r} can't be exported as a line of its own. Select without it (--exclude).")
    return "".join(f"{name}\n" for name in selection.names)


def peft(selection: TensorSelection) -> str:
    """JSON for `LoraConfig(**…)`: modules by whole name in `target_modules`, fused tensors in `target_parameters`."""
    modules = [name.removesuffix(_WEIGHT) for name in selection.names if name.endswith(_WEIGHT)]
    parameters = [name for name in selection.names if not name.endswith(_WEIGHT)]
    return _to_json({"target_modules": modules, "target_parameters": parameters})


def axolotl(selection: TensorSelection) -> str:
    """YAML of `unfrozen_parameters`, which axolotl reads as regular expressions: anchored, with their dots escaped."""
    import yaml

    patterns = [f"^{re.escape(name)}$" for name in selection.names]
    text: str = yaml.safe_dump({"unfrozen_parameters": patterns}, sort_keys=False, width=1000)
    return text


def kappatune(selection: TensorSelection) -> str:
    """κ by parameter name, kappaTune's `condition_numbers.json`; train as many tensors as it holds."""
    return _to_json({tensor.name: tensor.kappa for tensor in selection.tensors})


# format → (suffix after the selection's stem, function that makes it)
EXPORTS: dict[str, tuple[str, Callable[[TensorSelection], str]]] = {
    "names": (".names.txt", names),
    "peft": (".peft.json", peft),
    "axolotl": (".axolotl.yaml", axolotl),
    "kappatune": (".condition_numbers.json", kappatune),
}


def write_export(selection: TensorSelection, kind: str, beside: Path) -> Path:
    """Write `selection` as `kind` (a key of `EXPORTS`) beside its own file, by transformers' names; return the path."""
    suffix, make = EXPORTS[kind]
    single = [name for name in selection.names if split_expert(name)[1] is not None]
    if single and make is not names:
        raise SelectionError(
            f"{kind} knows whole tensors alone, and the selection names {len(single)} single expert(s) (first: {single[0]}). "
            "Select with --experts together."
        )
    path = beside.with_name(beside.name.removesuffix(".json") + suffix)
    write_text(path, make(with_transformers_names(selection)))
    return path


def _to_json(value: Any) -> str:
    # an infinite κ is written as Python's json reads it back, since these tools use that
    return json.dumps(value, indent=1) + "\n"
