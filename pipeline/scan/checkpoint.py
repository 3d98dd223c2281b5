"""Any checkpoint's tensors: listed from headers alone, read one range at a time, known by a digest. Nothing is instantiated."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from pipeline.errors import CheckpointError
from pipeline.scan.dtypes import StoredArray
from pipeline.scan.gguf_file import GgufFile
from pipeline.scan.run_file import TrainedFile, find_run_parts, is_run
from pipeline.scan.safetensors_file import SafetensorsFile, StoredTensor
from pipeline.scan.torch_file import TorchFile

_SAMPLE_BYTES = 4096
_NUM_SAMPLES = 4


class TensorFile(Protocol):
    """One file of a checkpoint."""

    path: Path
    tensors: list[StoredTensor]

    def read(self, name: str, start: int, stop: int) -> StoredArray: ...
    def read_bytes(self, name: str, offset: int, size: int) -> bytes: ...


@dataclass(frozen=True)
class TensorRef:
    """A tensor of a checkpoint. `file` is its file's name, `aliases` other names of the same storage."""

    name: str
    file: str
    shape: tuple[int, ...]
    dtype: str
    aliases: tuple[str, ...] = ()


class Checkpoint:
    """The tensors of a checkpoint, by name. `where` is what the user called it."""

    def __init__(
        self,
        where: str,
        files: Iterable[TensorFile],
        *,
        config: dict[str, Any] | None = None,
        replacing: TensorFile | None = None,
    ) -> None:
        """`replacing` holds newer tensors for some of the names in `files`."""
        self.where = where
        replaced = {tensor.name for tensor in replacing.tensors} if replacing else set()
        self._stored: dict[str, tuple[TensorFile, StoredTensor]] = {}
        sharing: dict[tuple[Path, int, tuple[int, ...]], list[str]] = {}
        for file in [*files, *([replacing] if replacing else [])]:
            for tensor in file.tensors:
                if file is not replacing and tensor.name in replaced:
                    continue
                if tensor.name in self._stored:
                    first = self._stored[tensor.name][0].path
                    raise CheckpointError(f"{where} holds {tensor.name} twice: in {first} and in {file.path}.")
                self._stored[tensor.name] = (file, tensor)
                # an empty tensor has the offset of whatever follows it
                key = (file.path, tensor.storage if tensor.num_bytes else -1 - len(self._stored), tensor.shape)
                sharing.setdefault(key, []).append(tensor.name)
        if not self._stored:
            raise CheckpointError(f"{where} holds no tensors.")
        # a model lists a tied parameter under the name that it stored first
        names = {group[0]: set(group) for group in sharing.values()}
        self._tie_head(names, config or {})
        self.tensors = tuple(self._make_ref(name, names[name]) for name in sorted(names))

    def _tie_head(self, names: dict[str, set[str]], config: dict[str, Any]) -> None:
        """Where the config ties them, the output head is another name of the token embedding, stored or not."""
        if not config.get("tie_word_embeddings", config.get("text_config", {}).get("tie_word_embeddings", False)):
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

    def also_named(self, names: Mapping[str, str]) -> Checkpoint:
        """The same tensors, known by these names too: what a model calls what is stored."""
        known = copy(self)
        known.tensors = tuple(
            replace(ref, aliases=tuple(sorted({*ref.aliases, *(names[name] for name in group if name in names)} - {ref.name})))
            for ref in self.tensors
            for group in [(ref.name, *ref.aliases)]
        )
        return known

    def read(self, name: str, start: int, stop: int) -> StoredArray:
        """Elements `start` to `stop` of the flattened tensor, as stored. Raises `OSError`."""
        return self._stored[name][0].read(name, start, stop)

    def file_of(self, name: str) -> Path:
        """The file that holds a tensor."""
        return self._stored[name][0].path

    def __contains__(self, name: str) -> bool:
        return name in self._stored

    def shape_of(self, name: str) -> tuple[int, ...]:
        """The shape of a stored tensor, under any of its stored names."""
        return self._stored[name][1].shape

    def dtype_of(self, name: str) -> str:
        """The dtype of a stored tensor, under any of its stored names."""
        return self._stored[name][1].dtype

    def _sample(self, name: str) -> bytes:
        """Some blocks of a tensor's bytes, spread evenly from its first to its last. Raises `CheckpointError`."""
        file, tensor = self._stored[name]
        last = max(0, tensor.num_bytes - _SAMPLE_BYTES)
        offsets = sorted({last * step // (_NUM_SAMPLES - 1) for step in range(_NUM_SAMPLES)})
        try:
            return b"".join(file.read_bytes(name, offset, min(_SAMPLE_BYTES, tensor.num_bytes)) for offset in offsets)
        except OSError as error:
            raise CheckpointError(f"{file.path}: {name} can't be read: {error.strerror}.") from error

    @cached_property
    def digest(self) -> str:
        """SHA-256 over each stored tensor's name, shape, dtype and sampled bytes, as 64 hex digits.

        The same however the tensors are cut into files; another one after any training that moves all weights.
        """
        total = hashlib.sha256()
        for name, (_, tensor) in sorted(self._stored.items()):
            total.update(json.dumps([name, tensor.shape, tensor.dtype]).encode())
            total.update(self._sample(name))
        return total.hexdigest()


def open_checkpoint(path_or_hub_id: str | Path) -> Checkpoint:
    """Open a folder or file of weights, a run of ours, or a hub id. Raises `CheckpointError` naming what is wrong.

    Kinds: safetensors and pytorch_model.bin (one file, or an index of several), openai-whisper's .pt, GGUF.
    """
    where = str(path_or_hub_id)
    path = Path(path_or_hub_id)
    if path.is_dir() and is_run(path):
        return _open_run(path)
    if path.is_dir():
        return Checkpoint(where, _open_folder(path), config=read_config(path))
    if path.exists():
        return Checkpoint(where, [_open_file(path)], config=read_config(path.parent))
    return _open_hub(where)


def _open_folder(folder: Path) -> list[TensorFile]:
    for index_name, single_name, pattern in _FOLDER_KINDS:
        if (folder / index_name).exists():
            return [_open_file(path) for path in _read_index(folder / index_name)]
        paths = [folder / single_name] if (folder / single_name).exists() else sorted(folder.glob(pattern))
        if paths:
            return [_open_file(path) for path in paths]
    found = ", ".join(sorted(entry.name for entry in folder.iterdir())[:5]) or "nothing"
    raise CheckpointError(f"{folder} holds no weights that can be read ({found}). Expected: {_EXPECTED}.")


def _read_index(index: Path) -> list[Path]:
    """The files that an index of several names; all of them must be there."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is no index of a checkpoint: {error!r}.") from error
    missing = [name for name in names if not (index.parent / name).exists()]
    if missing:
        raise CheckpointError(
            f"{index} names {len(missing)} file(s) that aren't beside it (first: {missing[0]}). Fetch them again."
        )
    return [index.parent / name for name in names]


def read_config(folder: Path) -> dict[str, Any] | None:
    """The config.json of a model's folder; None where it has none. Raises `CheckpointError`."""
    path = folder / "config.json"
    if not path.exists():
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} can't be read as JSON: {error}.") from error
    return config if isinstance(config, dict) else None


def _open_file(path: Path) -> TensorFile:
    opener = _OPENERS.get(path.suffix)
    if opener is None:
        raise CheckpointError(f"{path} is of a kind that can't be read. Expected: {_EXPECTED}.")
    return opener(path)


def _open_run(folder: Path) -> Checkpoint:
    base, trained = find_run_parts(folder)
    path = Path(base)
    if not path.is_dir():
        raise CheckpointError(f"{folder} was trained from {base}, which is no folder here: run this where it is, or restore it.")
    return Checkpoint(str(folder), _open_folder(path), config=read_config(path), replacing=TrainedFile(trained))


def _open_hub(name: str) -> Checkpoint:
    """A model of the Hugging Face hub, from the local cache first, else fetched into it."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns: Sequence[str] = ("*.safetensors", "*.safetensors.index.json", "config.json")
    try:
        try:
            folder = snapshot_download(name, allow_patterns=list(patterns), local_files_only=True)
        except LocalEntryNotFoundError:
            folder = snapshot_download(name, allow_patterns=list(patterns))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"There is no file or folder {name!r}, and it can't be fetched from the hub by that name either: {first} "
            "Give a folder that holds safetensors."
        ) from error
    return Checkpoint(name, _open_folder(Path(folder)), config=read_config(Path(folder)))


_EXPECTED = "safetensors or pytorch_model.bin (one file, or several with an index), a .pt of openai-whisper, or a .gguf"
_OPENERS: dict[str, Callable[[Path], TensorFile]] = {
    ".safetensors": SafetensorsFile,
    ".bin": TorchFile,
    ".pt": TorchFile,
    ".pth": TorchFile,
    ".gguf": GgufFile,
}
# (index, whole, pieces), the surest first
_FOLDER_KINDS = (
    ("model.safetensors.index.json", "model.safetensors", "*.safetensors"),
    ("pytorch_model.bin.index.json", "pytorch_model.bin", "pytorch_model*.bin"),
)
