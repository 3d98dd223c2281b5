"""The weight files of a model's folder: those that transformers would load, so that all stages mean the same ones."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from kappaspeech.errors import CheckpointError
from kappaspeech.escaping import make_logger
from kappaspeech.outside import describe, explained, read_json_file
from kappaspeech.tensor_files.gguf_file import GgufFile
from kappaspeech.tensor_files.safetensors_file import SafetensorsFile
from kappaspeech.tensor_files.tensor_file import TensorFile
from kappaspeech.tensor_files.torch_file import TorchFile

_MAX_CONFIG_BYTES = 64 << 20
_PIECE = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})")
_ADAPTER = "adapter_config.json"
_log = make_logger(__name__)


def read_config(folder: Path) -> dict[str, Any] | None:
    """The config.json of a model's folder; None if it has none. Raises `CheckpointError`."""
    path = folder / "config.json"
    with explained(f"{path} can't be read as JSON", "Fetch it again.", kind=CheckpointError):
        if not path.exists():
            return None
        config = read_json_file(path, most_bytes=_MAX_CONFIG_BYTES)
    return config if isinstance(config, dict) else None


def open_folder(folder: Path, config: dict[str, Any] | None) -> list[TensorFile]:
    """A model folder's files. Raises `CheckpointError` if there are none, some are missing, or two models lie in it."""
    with explained(f"{folder} can't be read", kind=CheckpointError):
        return _open_folder(folder, config)


def _open_folder(folder: Path, config: dict[str, Any] | None) -> list[TensorFile]:
    if (folder / _ADAPTER).exists():
        raise CheckpointError(
            f"{folder} holds a PEFT adapter ({_ADAPTER}), for which transformers loads another folder as the base. Merge the two "
            "(merge_and_unload, save_pretrained) and give the result, or give the base."
        )
    named = (config or {}).get("transformers_weights")
    if isinstance(named, str):
        (path,) = _resolve(folder / "config.json", [named])
        return _open_index(path) if path.name.endswith(".index.json") else _open_each([path])
    for whole, index in _KINDS:
        if (folder / whole).exists():
            _warn_of_second(folder, whole, index)
            return _open_each([folder / whole])
        if (folder / index).exists():
            return _open_index(folder / index)
    for pattern in _PATTERNS:
        paths = sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))
        if paths:
            _check_one_set(folder, paths)
            # one piece of a GGUF model brings the others
            return open_file(paths[0]) if pattern == "*.gguf" and _sets(paths) else _open_each(paths)
    found = ", ".join(sorted(entry.name for entry in folder.iterdir())[:5]) or "nothing"
    raise CheckpointError(f"{folder} holds no weights that can be read ({found}). Expected: {_EXPECTED}.")


def open_file(path: Path) -> list[TensorFile]:
    """One file, or all pieces of the GGUF model that it is a piece of. Raises `CheckpointError`."""
    opener = OPENERS.get(path.suffix)
    if opener is None:
        raise CheckpointError(f"{path} is of a kind that can't be read. Expected: {_EXPECTED}.")
    first = opener(path)
    count = first.num_pieces if isinstance(first, GgufFile) else 1
    if count <= 1:
        return [first]
    match = _PIECE.fullmatch(path.stem)
    if match is None or int(match["count"]) != count:
        raise CheckpointError(
            f"{path} is one of {count} pieces of a model, but isn't named …-00001-of-{count:05d}.gguf: name it so."
        )
    paths = [path.with_name(f"{match['stem']}-{number:05d}-of-{count:05d}.gguf") for number in range(1, count + 1)]
    return [first if piece == path else opener(piece) for piece in _check_present(path, paths)]


def _open_each(paths: list[Path]) -> list[TensorFile]:
    return [file for path in paths for file in open_file(path)]


def _open_index(index: Path) -> list[TensorFile]:
    """The files that an index of several names; all of them must be there."""
    remedy = "Fetch it again."
    with explained(f"{index} is no index of a checkpoint", remedy, kind=CheckpointError):
        content = read_json_file(index)
        weight_map = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(name, str) for name in weight_map.values()):
            raise ValueError("it has no weight_map from tensors to the names of files")
    files = _open_each(_resolve(index, sorted(set(weight_map.values()))))
    absent = sorted(set(weight_map).difference(tensor.name for file in files for tensor in file.tensors))
    if absent:
        _log.warning(
            "%s names %d tensor(s) that no file of it holds (first: %s): index and files may be of two versions of the model.",
            index,
            len(absent),
            absent[0],
        )
    return files


def _resolve(index: Path, names: list[str]) -> list[Path]:
    """The files that `index` names, which lie in its folder. A name that leads out of it is never followed."""
    for name in names:
        pure = PurePosixPath(name)
        if not pure.name or pure.is_absolute() or ".." in pure.parts or "\\" in name or "\0" in name:
            raise CheckpointError(
                f"{index} names the file {name!r}; a file's name within its folder is expected. Fetch it again."
            )
    return _check_present(index, [index.parent / name for name in names])


def _check_present(names_them: Path, paths: list[Path]) -> list[Path]:
    missing = []
    for path in paths:
        try:
            path.stat()
        except FileNotFoundError:
            missing.append(path.name)
        except OSError as error:
            raise CheckpointError(
                f"{names_them} names {path.name}, which can't be read: {describe(error)}. Fetch it again."
            ) from error
    if missing:
        raise CheckpointError(
            f"{names_them} names {len(missing)} file(s) that aren't beside it (first: {missing[0]}). Fetch them again."
        )
    return paths


def _check_one_set(folder: Path, paths: list[Path]) -> None:
    """Raise `CheckpointError` if pieces of a model lie beside other files, or aren't all there."""
    sets = _sets(paths)
    others = [path.name for path in paths if _PIECE.fullmatch(path.stem) is None]
    if (sets and (len(sets) > 1 or others)) or ("consolidated.safetensors" in others and len(others) > 1):
        first = [*(f"{stem}-…-of-{count:05d}" for stem, count in sets), *others]
        raise CheckpointError(
            f"{folder} holds more than one set of weights ({', '.join(first[:5])}) and nothing that says which counts. Give one "
            "file, or keep one set in the folder."
        )
    for (stem, count), numbers in sets.items():
        if len(numbers) != count:
            gap = next(number for number in range(1, count + 1) if number not in numbers)
            raise CheckpointError(
                f"{folder} holds {len(numbers)} of {count} pieces of {stem} (piece {gap} is missing). Fetch it again."
            )


def _sets(paths: list[Path]) -> dict[tuple[str, int], set[int]]:
    """The models in pieces, as a stem and the number of pieces that there should be, with the numbers that are there."""
    sets: dict[tuple[str, int], set[int]] = {}
    for path in paths:
        match = _PIECE.fullmatch(path.stem)
        if match:
            sets.setdefault((match["stem"], int(match["count"])), set()).add(int(match["number"]))
    return sets


def _warn_of_second(folder: Path, whole: str, index: str) -> None:
    """Name the weights that count if a whole file and an index of other files lie side by side."""
    try:
        content = read_json_file(folder / index)
        others = {name for name in content["weight_map"].values() if name != whole}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return  # there is no index, or none that can be followed
    if others:
        _log.warning(
            "%s holds %s and, by %s, %d other file(s): %s is used, as transformers does.",
            folder,
            whole,
            index,
            len(others),
            whole,
        )


_EXPECTED = "safetensors or pytorch_model.bin (one file, or several with an index), a .pt of openai-whisper, or a .gguf"
# to add a format, write a class that answers as `TensorFile` does, and an entry here
OPENERS: dict[str, Callable[[Path], TensorFile]] = {
    ".safetensors": SafetensorsFile,
    ".bin": TorchFile,
    ".pt": TorchFile,
    ".pth": TorchFile,
    ".gguf": GgufFile,
}
# transformers' order, then the files that it wouldn't load
_KINDS = (
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
_PATTERNS = ("*.safetensors", "pytorch_model*.bin", "*.gguf")
