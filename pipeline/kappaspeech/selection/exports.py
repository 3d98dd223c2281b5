"""A selection as other fine-tuning tools read it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kappaspeech.artefacts import write_text
from kappaspeech.errors import SelectionError
from kappaspeech.selection.tensor_selection import TensorSelection

_WEIGHT = ".weight"


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
    """YAML of `unfrozen_parameters`, which axolotl takes for regular expressions: anchored, with their dots escaped."""
    import yaml

    patterns = [f"^{re.escape(name)}$" for name in selection.names]
    text: str = yaml.safe_dump({"unfrozen_parameters": patterns}, sort_keys=False, width=1000)
    return text


def kappatune(selection: TensorSelection) -> str:
    """κ by parameter name, kappaTune's `condition_numbers.json`; train as many tensors as it holds."""
    return _to_json({tensor.name: tensor.kappa for tensor in selection.tensors})


# format → (what comes after the selection's stem, how it is made)
EXPORTS: dict[str, tuple[str, Callable[[TensorSelection], str]]] = {
    "names": (".names.txt", names),
    "peft": (".peft.json", peft),
    "axolotl": (".axolotl.yaml", axolotl),
    "kappatune": (".condition_numbers.json", kappatune),
}


def write_export(selection: TensorSelection, kind: str, beside: Path) -> Path:
    """Write `selection` as `kind` (a key of `EXPORTS`) beside its own file; return the path."""
    suffix, make = EXPORTS[kind]
    path = beside.with_name(beside.name.removesuffix(".json") + suffix)
    write_text(path, make(selection))
    return path


def _to_json(value: Any) -> str:
    # an infinite κ is written as Python's json reads it back, for that is what these tools use
    return json.dumps(value, indent=1) + "\n"
