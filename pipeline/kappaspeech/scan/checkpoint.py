"""The tensors of any checkpoint: listed from headers, read by ranges, identified by a digest. Nothing is instantiated."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from kappaspeech.errors import CheckpointError
from kappaspeech.escaping import encodable
from kappaspeech.outside import describe, explained
from kappaspeech.runs.contents import is_run
from kappaspeech.tensor_files.dtypes import StoredArray
from kappaspeech.tensor_files.tensor_file import StoredTensor, TensorFile
from kappaspeech.tensor_files.weight_files import open_file, open_folder, read_config

__all__ = ["Checkpoint", "TensorFile", "TensorRef", "open_checkpoint", "read_config"]

_SAMPLE_BYTES = 4096
_NUM_SAMPLES = 4
# the number of a model's experts, by its families
_EXPERT_KEYS = ("moe_num_experts", "num_experts", "num_local_experts", "n_routed_experts")


@dataclass(frozen=True)
class TensorRef:
    """A tensor of a checkpoint. `file` is its file's name, `aliases` other names of the same storage."""

    name: str
    file: str
    shape: tuple[int, ...]
    dtype: str
    aliases: tuple[str, ...] = ()


class Checkpoint:
    """The tensors of a checkpoint, by name. `where` is the user's name for it, `gguf_architecture` its family in GGUF,
    `quantization` what its config.json says of how it is quantised, `num_experts` the number that it has of a layer's experts."""

    def __init__(self, where: str, files: Iterable[TensorFile], *, config: dict[str, Any] | None = None) -> None:
        files = list(files)
        self.where = encodable(where)
        self.gguf_architecture = next((found for file in files if (found := getattr(file, "architecture", None))), None)
        quantization = (config or {}).get("quantization_config")
        self.quantization: dict[str, Any] | None = quantization if isinstance(quantization, dict) else None
        self.num_experts = _count_experts(config or {})
        self._renamed: dict[str, str] = {}
        self._stored: dict[str, tuple[TensorFile, StoredTensor]] = {}
        sharing: dict[tuple[Path, int, tuple[int, ...], str], list[str]] = {}
        for file in files:
            for tensor in file.tensors:
                if tensor.name in self._stored:
                    first = self._stored[tensor.name][0].path
                    raise CheckpointError(f"{where} holds {tensor.name} twice: in {first} and in {file.path}.")
                self._stored[tensor.name] = (file, tensor)
                # an empty tensor has the offset of its successor
                key = (file.path, tensor.storage if tensor.num_bytes else -1 - len(self._stored), tensor.shape, tensor.dtype)
                sharing.setdefault(key, []).append(tensor.name)
        if not self._stored:
            raise CheckpointError(f"{where} holds no tensors.")
        # a model lists a tied parameter under the name that it stored first
        names = {group[0]: set(group) for group in sharing.values()}
        self._tie_head(names, config or {})
        self.tensors = tuple(self._make_ref(name, names[name]) for name in sorted(names))

    def _tie_head(self, names: dict[str, set[str]], config: dict[str, Any]) -> None:
        """Tie the output head to the token embedding, stored or not, if the config does."""
        text = config.get("text_config")
        inner = text.get("tie_word_embeddings", False) if isinstance(text, dict) else False
        if not config.get("tie_word_embeddings", inner):
            return
        embeddings = [name for name in names if name.endswith("embed_tokens.weight")]
        if len(embeddings) != 1:
            return
        embedding, head = embeddings[0], "lm_head.weight"
        # transformers drops a stored head that is the same as the embedding, and keeps one that differs
        if head in names and (self.shape_of(head) != self.shape_of(embedding) or self._sample(head) != self._sample(embedding)):
            return
        names.pop(head, None)
        # the embedding's own name stays first: a model's named_parameters yields it first
        names[embedding].add(head)

    def _make_ref(self, name: str, group: set[str]) -> TensorRef:
        file, tensor = self._stored[name]
        return TensorRef(name, file.path.name, tensor.shape, tensor.dtype, tuple(sorted(group - {name})))

    def replaced(self, where: str, trained: Mapping[str, StoredTensor], file: TensorFile) -> Checkpoint:
        """This checkpoint, called `where`, with tensors of `file` in the places of those of the same names, and of all that share
        their storage. Raises `CheckpointError` if one has no place."""
        owners = {name: ref for ref in self.tensors for name in (ref.name, *ref.aliases)}
        for name, tensor in trained.items():
            if name not in owners or owners[name].shape != tensor.shape:
                there = owners[name].shape if name in owners else "absent"
                raise CheckpointError(
                    f"{file.path} holds {name} {tensor.shape}, which doesn't fit {self.where}, where it is {there}. Put the base "
                    "model back that it was trained on."
                )
        after = object.__new__(Checkpoint)
        after.gguf_architecture, after.quantization = self.gguf_architecture, self.quantization
        after.num_experts = self.num_experts
        after.where, after._stored, after._renamed = encodable(where), dict(self._stored), self._renamed
        refs = {ref.name: ref for ref in self.tensors}
        for name, tensor in trained.items():
            ref = owners[name]
            after._stored |= {alias: (file, tensor) for alias in (ref.name, *ref.aliases) if alias in self._stored}
            refs[ref.name] = replace(ref, file=file.path.name, dtype=tensor.dtype)
        after.tensors = tuple(refs[ref.name] for ref in self.tensors)
        return after

    def also_named(self, names: Mapping[str, str]) -> Checkpoint:
        """The same tensors, known by these names too: a model's names for the stored tensors."""
        known = copy(self)
        known._renamed = {own: stored for stored, own in names.items() if stored in self._stored}
        known.tensors = tuple(
            replace(ref, aliases=tuple(sorted({*ref.aliases, *(names[name] for name in group if name in names)} - {ref.name})))
            for ref in self.tensors
            for group in [(ref.name, *ref.aliases)]
        )
        return known

    def read(self, name: str, start: int, stop: int) -> StoredArray:
        """Elements `start` to `stop` of the flattened tensor, as stored. Raises `OSError`."""
        file, tensor = self._find(name)
        return file.read(tensor.name, start, stop)

    def read_bytes(self, name: str, offset: int, size: int) -> bytes:
        """`size` raw bytes of a tensor from `offset` on. Raises `OSError`."""
        file, tensor = self._find(name)
        return file.read_bytes(tensor.name, offset, size)

    @cached_property
    def dtypes(self) -> dict[str, str]:
        """The dtype of every stored tensor, by each of its stored names."""
        return {name: tensor.dtype for name, (_, tensor) in self._stored.items()}

    def num_bytes_of(self, name: str) -> int:
        """The number of bytes of a stored tensor, under any of its names."""
        return self._find(name)[1].num_bytes

    def file_of(self, name: str) -> Path:
        """The file that holds a tensor."""
        return self._find(name)[0].path

    def __contains__(self, name: str) -> bool:
        return name in self._stored

    def shape_of(self, name: str) -> tuple[int, ...]:
        """The shape of a stored tensor, under any of its names."""
        return self._find(name)[1].shape

    def dtype_of(self, name: str) -> str:
        """The dtype of a stored tensor, under any of its names."""
        return self._find(name)[1].dtype

    def _find(self, name: str) -> tuple[TensorFile, StoredTensor]:
        return self._stored[name if name in self._stored else self._renamed.get(name, name)]

    def _sample(self, name: str) -> bytes:
        """Some blocks of a tensor's bytes, spread evenly from its first to its last. Raises `CheckpointError`."""
        file, tensor = self._stored[name]
        last = max(0, tensor.num_bytes - _SAMPLE_BYTES)
        offsets = sorted({last * step // (_NUM_SAMPLES - 1) for step in range(_NUM_SAMPLES)})
        try:
            return b"".join(file.read_bytes(tensor.name, offset, min(_SAMPLE_BYTES, tensor.num_bytes)) for offset in offsets)
        except OSError as error:
            raise CheckpointError(f"{file.path}: {name} can't be read: {describe(error)}.") from error

    @cached_property
    def digest(self) -> str:
        """SHA-256 over each stored tensor's name, shape, dtype and sampled bytes, as 64 hex digits.

        The digest doesn't depend on the division into files. It changes after any training that moves all weights.
        """
        total = hashlib.sha256()
        for name, (_, tensor) in sorted(self._stored.items()):
            total.update(json.dumps([name, tensor.shape, tensor.dtype]).encode())
            total.update(self._sample(name))
        return total.hexdigest()


def _count_experts(config: Mapping[str, Any]) -> int | None:
    """The number of a layer's experts by a config, or by one of its sections; None if it has none."""
    sections = (config, *(section for section in config.values() if isinstance(section, dict)))
    counts = (section.get(key) for section in sections for key in _EXPERT_KEYS)
    return next((count for count in counts if isinstance(count, int) and count > 1), None)


def open_checkpoint(path_or_hub_id: str | Path) -> Checkpoint:
    """Open a folder or file of weights, a run of ours, or a hub id. Raises `CheckpointError` naming the fault.

    Kinds: safetensors and pytorch_model.bin (one file, or an index of several), openai-whisper's .pt, GGUF.
    """
    where = str(path_or_hub_id)
    path = Path(path_or_hub_id)
    with explained(f"{where} can't be opened", kind=CheckpointError):
        is_there, is_folder = path.exists(), path.is_dir()
        is_own = is_folder and is_run(path)
    if is_own:
        return _open_run(path)
    if is_folder:
        config = read_config(path)
        return Checkpoint(where, open_folder(path, config), config=config)
    if is_there:
        return Checkpoint(where, open_file(path), config=read_config(path.parent))
    return _open_hub(where)


def _open_run(folder: Path) -> Checkpoint:
    """A run's last checkpoint as it would be exported: LoRA merged, a moving average if one is kept."""
    # a seventh of a scan's start, and most checkpoints are no runs
    from kappaspeech.runs.result import read_result
    from kappaspeech.scan.run_file import TrainedFile, read_changed

    parts = read_result(folder)
    path = Path(parts.base)
    with explained(f"{folder} was trained from {parts.base}, which can't be opened", kind=CheckpointError):
        is_folder = path.is_dir()
        is_own = is_folder and is_run(path)
    if is_own:
        raise CheckpointError(f"{folder} was trained from {path}, which is a run itself: export that and name the export.")
    if not is_folder and not path.is_file() and path.is_absolute():
        raise CheckpointError(
            f"{folder} was trained from {parts.base}, which is no folder here: run this where it is, or restore it."
        )
    base = open_checkpoint(parts.base)
    if parts.base_digest is not None and base.digest != parts.base_digest:
        raise CheckpointError(
            f"{folder} was trained on checkpoint {parts.base_digest[:12]}…, and {parts.base} is {base.digest[:12]}…: put "
            "back what it was trained on."
        )
    base = named_as_model(base, parts.base, read_changed(parts))
    shapes = {alias: ref.shape for ref in base.tensors for alias in (ref.name, *ref.aliases)}
    file = TrainedFile(parts, base, shapes)
    return base.replaced(str(folder), {tensor.name: tensor for tensor in file.tensors}, file)


def named_as_model(base: Checkpoint, llm: str, changed: Iterable[str]) -> Checkpoint:
    """`base`, its tensors known by the model's names too, if its files have others: training went by the model's.

    `llm` is its folder or hub id, `changed` the names that training used, LoRA's factors among them.
    """
    from kappaspeech.model.lora import factors_of
    from kappaspeech.model.meta_llm import build_meta_llm
    from kappaspeech.model.stored_names import model_names

    stored = {alias for ref in base.tensors for alias in (ref.name, *ref.aliases)}
    if stored.issuperset(changed) or set(changed) <= stored | {factor for name in stored for factor in factors_of(name)}:
        return base
    try:
        return base.also_named(model_names(build_meta_llm(llm), stored))
    except CheckpointError:
        # no config from which a model's names follow: a tensor that doesn't fit is named in the error
        return base


def _open_hub(name: str) -> Checkpoint:
    """A model of the Hugging Face hub, from the local cache if all of it is there, else fetched into it."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns: Sequence[str] = ("*.safetensors", "*.safetensors.index.json", "config.json")
    in_part: CheckpointError | None = None
    try:
        try:
            return _open_snapshot(name, snapshot_download(name, allow_patterns=list(patterns), local_files_only=True))
        except LocalEntryNotFoundError:
            pass
        except CheckpointError as error:
            # a tokenizer or a config was fetched alone, or a download was broken off
            in_part = error
        folder = snapshot_download(name, allow_patterns=list(patterns))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        if in_part is not None:
            raise in_part from error
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"There is no file or folder {name!r}, and it can't be fetched from the hub by that name either: {first} "
            "Give a folder that holds safetensors."
        ) from error
    return _open_snapshot(name, folder)


def _open_snapshot(name: str, folder: str) -> Checkpoint:
    config = read_config(Path(folder))
    return Checkpoint(name, open_folder(Path(folder), config), config=config)
