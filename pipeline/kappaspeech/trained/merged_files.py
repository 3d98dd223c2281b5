"""The base checkpoint's files with trained tensors in their places, written tensor by tensor.

At most one tensor is in memory: a 70B model is exported on a laptop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kappaspeech.artefacts import write_json
from kappaspeech.errors import CheckpointError
from kappaspeech.scan.checkpoint import Checkpoint
from kappaspeech.tensor_files.safetensors_writer import SafetensorsWriter

INDEX_NAME = "model.safetensors.index.json"
MAX_FILE_BYTES = 5_000_000_000
_BLOCK_BYTES = 16 << 20
_CODES = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu)


@dataclass(frozen=True)
class OutputTensor:
    """A tensor of the merged model: its name, that of the trained tensor that replaces it if one does, and its stored form."""

    name: str
    trained: str | None
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        return self.dtype.itemsize * int(torch.Size(self.shape).numel())


def list_output(base: Checkpoint, trained: Mapping[str, Sequence[int]], *, dtype: torch.dtype) -> list[OutputTensor]:
    """Every stored tensor of the base, those that share storage or are tied with a trained one replaced alike.

    Trained tensors are written in `dtype`, in which the training computed. Frozen ones are written as they are stored if the base
    is stored in that dtype, else cast to it as the training's were. `trained` maps names to shapes. Raises `CheckpointError` if
    one has no place in the base, and for stored codes that need scales to be numbers.
    """
    stored = _main_dtype(base)
    by_name = {alias: ref for ref in base.tensors for alias in (ref.name, *ref.aliases)}
    for name, shape in trained.items():
        if name not in by_name or by_name[name].shape != tuple(shape):
            there = by_name[name].shape if name in by_name else "absent"
            raise CheckpointError(
                f"The trained tensor {name} {tuple(shape)} doesn't fit {base.where}, where it is {there}. Give the base model "
                "that it was trained on."
            )
    replaced = {by_name[name].name: name for name in trained}
    output = []
    for ref in base.tensors:
        own = getattr(torch, ref.dtype, None)
        if not isinstance(own, torch.dtype) or own in _CODES:
            raise CheckpointError(
                f"{base.where} stores {ref.name} as {ref.dtype}: a quantised base can't be merged with trained weights. "
                "Export the difference alone (--only difference), or train on the model's bfloat16 weights."
            )
        cast = ref.name in replaced or (stored != dtype and own.is_floating_point)
        names = [name for name in (ref.name, *ref.aliases) if name in base]
        output += [OutputTensor(name, replaced.get(ref.name), ref.shape, dtype if cast else own) for name in names]
    return output


def _main_dtype(base: Checkpoint) -> torch.dtype | None:
    """The dtype that most of the base's parameters are stored in."""
    sizes: dict[str, int] = {}
    for ref in base.tensors:
        sizes[ref.dtype] = sizes.get(ref.dtype, 0) + int(torch.Size(ref.shape).numel())
    found = getattr(torch, max(sizes, key=lambda name: sizes[name]), None)
    return found if isinstance(found, torch.dtype) else None


def write_merged(
    folder: Path,
    base: Checkpoint,
    output: Sequence[OutputTensor],
    *,
    read_trained: Callable[[str], Tensor],
    max_file_bytes: int = MAX_FILE_BYTES,
    advance: Callable[[float], None] = lambda _bytes: None,
) -> None:
    """Write `output` by `write_tensors`, trained tensors from `read_trained`. Raises `CheckpointError`."""

    def write(writer: SafetensorsWriter, tensor: OutputTensor) -> None:
        if tensor.trained is not None:
            writer.add(tensor.name, read_trained(tensor.trained))
        else:
            writer.add_blocks(tensor.name, _read_base(base, tensor))

    write_tensors(folder, output, write, max_file_bytes=max_file_bytes, advance=advance)


def write_tensors(
    folder: Path,
    output: Sequence[OutputTensor],
    write: Callable[[SafetensorsWriter, OutputTensor], None],
    *,
    max_file_bytes: int = MAX_FILE_BYTES,
    advance: Callable[[float], None] = lambda _bytes: None,
) -> None:
    """Write `output` as model.safetensors, or as several files with an index past `max_file_bytes`; `write` adds one tensor."""
    parts = cut_into_files(output, max_file_bytes)
    total = len(parts)
    names = ["model.safetensors"] if total == 1 else [f"model-{n:05d}-of-{total:05d}.safetensors" for n in range(1, total + 1)]
    for file_name, part in zip(names, parts, strict=True):
        shapes = {tensor.name: tensor.shape for tensor in part}
        dtypes = {tensor.name: tensor.dtype for tensor in part}
        writer = SafetensorsWriter(folder / file_name, shapes, dtype=dtypes, metadata={"format": "pt"})
        try:
            for tensor in part:
                write(writer, tensor)
                advance(tensor.num_bytes)
            writer.close()
        except BaseException:
            writer.abandon()
            raise
    if total > 1:
        index = {tensor.name: file_name for file_name, part in zip(names, parts, strict=True) for tensor in part}
        size = sum(tensor.num_bytes for tensor in output)
        write_json(folder / INDEX_NAME, {"metadata": {"total_size": size}, "weight_map": index})


def cut_into_files(output: Sequence[OutputTensor], max_file_bytes: int) -> list[list[OutputTensor]]:
    """Tensors in their order, cut into runs of at most `max_file_bytes`; a tensor larger than that has a file of its own."""
    files: list[list[OutputTensor]] = [[]]
    used = 0
    for tensor in output:
        if files[-1] and used + tensor.num_bytes > max_file_bytes:
            files.append([])
            used = 0
        files[-1].append(tensor)
        used += tensor.num_bytes
    return files


def _read_base(base: Checkpoint, tensor: OutputTensor) -> Iterator[bytes | memoryview]:
    """A frozen tensor's bytes in blocks: as they are stored, or cast to another dtype."""
    stored: torch.dtype = getattr(torch, base.dtype_of(tensor.name))
    count = int(torch.Size(tensor.shape).numel())
    block = _BLOCK_BYTES // stored.itemsize
    for start in range(0, count, block):
        try:
            values = base.read(tensor.name, start, min(start + block, count))
        except OSError as error:
            raise CheckpointError(f"{base.file_of(tensor.name)}: {tensor.name} can't be read: {error}.") from error
        if stored == tensor.dtype:
            yield values.tobytes()
        else:
            cast = torch.frombuffer(bytearray(values.tobytes()), dtype=stored).to(tensor.dtype)
            yield cast.view(torch.uint8).numpy().data


def read_base(base: Checkpoint, name: str) -> Tensor:
    """A whole tensor of the base, by any of its names, in the dtype it is stored in. Raises `CheckpointError`."""
    ref = next(ref for ref in base.tensors if name in (ref.name, *ref.aliases))
    stored: torch.dtype = getattr(torch, ref.dtype)
    blocks = _read_base(base, OutputTensor(ref.name, None, ref.shape, stored))
    return torch.frombuffer(bytearray(b"".join(blocks)), dtype=stored).reshape(ref.shape)
