"""A run as files that need neither the run nor DeepSpeed: a Hugging Face folder with the adaptor, or the difference alone."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from kappaspeech.artefacts import write_json
from kappaspeech.errors import CheckpointError
from kappaspeech.expert_names import split_expert
from kappaspeech.model.expert_places import ExpertPlace
from kappaspeech.model.experts import put_experts
from kappaspeech.model.llm import load_tokenizer
from kappaspeech.model.lora import factors_of, is_factor, lora_to_record, merge
from kappaspeech.model.prefixes import ADAPTOR_PREFIX, LLM_PREFIX
from kappaspeech.progress import ProgressBar
from kappaspeech.scan.checkpoint import Checkpoint, named_as_model
from kappaspeech.tensor_files.safetensors_writer import SafetensorsWriter
from kappaspeech.tensor_files.weight_files import read_config
from kappaspeech.trained.difference import ADAPTOR_FILE, SPEECH_FILE, TRAINED_FILE, Difference
from kappaspeech.trained.export_folder import write_folder
from kappaspeech.trained.merged_files import list_output, read_base, write_merged
from kappaspeech.trained.opening import Step, open_difference

Shapes = Mapping[str, tuple[int, ...]]
GENERATION_CONFIG_FILE = "generation_config.json"


def export(source: Path, output: Path, *, step: Step = None, base: str | None = None, with_adaptor: bool = True) -> list[Path]:
    """Write the LLM and tokenizer as transformers reads them, and `with_adaptor` `adaptor.safetensors` and `speech.json`.

    `source` is a run, or a difference, which needs its `base`. The LLM goes from the base's files to the new ones tensor by
    tensor: every frozen tensor keeps its bytes, and no more than one tensor is in memory. The folder appears whole or not at all.
    Returns its files. Raises `InputError` if `output` exists, `CheckpointError` for a base that can't be merged.
    """
    difference = open_difference(source, step=step, base=base)
    checkpoint = difference.open_base()
    config = read_config(_folder_of(checkpoint)) or {}
    if "quantization_config" in config:
        raise CheckpointError(
            f"{difference.llm} is quantised ({config['quantization_config'].get('quant_method', 'unknown method')}): trained "
            "weights can't be merged into it. Export the difference alone: --only difference."
        )
    with safe_open(difference.trained, framework="pt") as trained:
        shapes = _shapes_of(trained)
        changed = [split_expert(name.removeprefix(LLM_PREFIX))[0] for name in shapes if name.startswith(LLM_PREFIX)]
        checkpoint = named_as_model(checkpoint, difference.llm, changed)
        of_llm, single = _changed_shapes(checkpoint, shapes), _single_experts(shapes)
        planned = list_output(checkpoint, of_llm, dtype=difference.parts.torch_dtype)
        size = sum(tensor.num_bytes for tensor in planned)

        def read_llm_tensor(name: str) -> Tensor:
            parts = [LLM_PREFIX + part for part in (name, *factors_of(name)) if LLM_PREFIX + part in shapes]
            tensors = {part.removeprefix(LLM_PREFIX): trained.get_tensor(part) for part in parts}
            if experts := single.get(name):
                base_EOI = read_base(checkpoint, name).to(difference.parts.torch_dtype)
                return put_experts(base_EOI, {place: trained.get_tensor(part) for place, part in experts.items()})
            return tensors[name] if name in tensors else merge(name, read_base(checkpoint, name), tensors, difference.lora)

        def write(folder: Path) -> None:
            if with_adaptor:
                _write_adaptor(folder, difference, trained, shapes)
            with ProgressBar("export", total=size, shown=True) as bar:
                write_merged(folder, checkpoint, planned, read_trained=read_llm_tensor, advance=bar.advance)
            _write_config(folder, config, _folder_of(checkpoint), dtype=difference.parts.dtype)
            load_tokenizer(difference.llm).save_pretrained(folder)

        return write_folder(output, write, num_bytes=size)


def export_adaptor(source: Path, output: Path, *, step: Step = None) -> list[Path]:
    """Write the adaptor alone, in float32, and `speech.json`, which has its shape. Returns the files. Raises as `export`."""
    difference = open_difference(source, step=step)
    with safe_open(difference.trained, framework="pt") as trained:
        shapes = _shapes_of(trained)
        return write_folder(output, lambda folder: _write_adaptor(folder, difference, trained, shapes), num_bytes=0)


def export_difference(source: Path, output: Path, *, step: Step = None) -> list[Path]:
    """Write only what a run trained: the LLM's tensors in the training's dtype, the adaptor in float32, and the base's digest.

    `kappaspeech transcribe` and `export` put it together with its base again. Returns the files. Raises as `export`.
    """
    difference = open_difference(source, step=step)
    with safe_open(difference.trained, framework="pt") as trained:
        shapes = _shapes_of(trained)
        llm_dtype = difference.parts.torch_dtype
        dtypes = {name: llm_dtype if name.startswith(LLM_PREFIX) else torch.float32 for name in shapes}

        def write(folder: Path) -> None:
            writer = SafetensorsWriter(folder / TRAINED_FILE, shapes, dtype=dtypes, metadata={"base": difference.base_digest})
            for name in shapes:
                writer.add(name, trained.get_tensor(name))
            writer.close()
            content = {**difference.parts.to_json(), "base": difference.base_json(), "lora": lora_to_record(difference.lora)}
            write_json(folder / SPEECH_FILE, content)

        size = sum(dtypes[name].itemsize * int(torch.Size(shape).numel()) for name, shape in shapes.items())
        return write_folder(output, write, num_bytes=size)


def _shapes_of(trained: Any) -> dict[str, tuple[int, ...]]:
    """The shapes of an open file's tensors."""
    return {name: tuple(trained.get_slice(name).get_shape()) for name in trained.keys()}  # noqa: SIM118 - no mapping


def _changed_shapes(base: Checkpoint, trained: Shapes) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the LLM's tensors that training changed: those trained whole, and those with LoRA factors."""
    of_llm = {name.removeprefix(LLM_PREFIX): shape for name, shape in trained.items() if name.startswith(LLM_PREFIX)}
    stored = {alias: ref.shape for ref in base.tensors for alias in (ref.name, *ref.aliases)}
    changed = {}
    for name, shape in of_llm.items():
        tensor, expert = split_expert(name)
        if expert is not None and (found := stored.get(tensor, ())) and expert < found[0] and found[1:] == shape:
            changed[tensor] = found
        elif not is_factor(name):
            changed[name] = shape
    adapted = {name: shape for name, shape in stored.items() if any(factor in of_llm for factor in factors_of(name))}
    missing = {name for name in of_llm if is_factor(name)} - {factor for name in adapted for factor in factors_of(name)}
    if missing:
        raise CheckpointError(
            f"{base.where} has no tensor that {min(missing)} would change. Give the base model that it was trained on."
        )
    return {**changed, **adapted}


def _single_experts(trained: Shapes) -> dict[str, dict[ExpertPlace, str]]:
    """The names of single experts that trained, by their fused tensors and their places there."""
    found: dict[str, dict[ExpertPlace, str]] = {}
    for name, shape in trained.items():
        tensor, expert = split_expert(name.removeprefix(LLM_PREFIX))
        if expert is not None:
            found.setdefault(tensor, {})[ExpertPlace(tensor, expert, 0, shape[0])] = name
    return found


def _folder_of(checkpoint: Checkpoint) -> Path:
    return checkpoint.file_of(checkpoint.tensors[0].name).parent


def _write_adaptor(folder: Path, difference: Difference, trained: Any, shapes: Shapes) -> None:
    names = {name.removeprefix(ADAPTOR_PREFIX): name for name in shapes if name.startswith(ADAPTOR_PREFIX)}
    writer = SafetensorsWriter(folder / ADAPTOR_FILE, {short: shapes[name] for short, name in names.items()}, dtype=torch.float32)
    for short, name in names.items():
        writer.add(short, trained.get_tensor(name))
    writer.close()
    write_json(folder / SPEECH_FILE, difference.parts.to_json())


def _write_config(folder: Path, config: dict[str, Any], base: Path, *, dtype: str) -> None:
    """The base's config, naming the dtype that the tensors now have, and its settings of generation."""
    key = "torch_dtype" if "torch_dtype" in config and "dtype" not in config else "dtype"
    write_json(folder / "config.json", {**config, key: dtype})
    if (base / GENERATION_CONFIG_FILE).exists():
        shutil.copyfile(base / GENERATION_CONFIG_FILE, folder / GENERATION_CONFIG_FILE)
