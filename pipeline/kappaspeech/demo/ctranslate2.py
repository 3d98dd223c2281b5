"""CTranslate2's Whisper file, read without its library and mapped onto openai-whisper's names.

The layout (version 6): a header of version, specification and revision; then for each variable its name, shape, type and
bytes; then aliases. All numbers are little-endian, strings are preceded by their length and closed by a zero.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING

from kappaspeech.errors import CheckpointError

if TYPE_CHECKING:
    import torch

_BINARY_VERSION = 6
_SPECIFICATION = "WhisperSpec"
_TYPE_FLOAT16 = 4
_ATTENTION_PARTS = ("query", "key", "value")


def read_variables(content: bytes) -> dict[str, torch.Tensor]:
    """Every float16 variable of a model file as float32, by name. Raises `CheckpointError` on another kind of file."""
    import torch

    reader = _Reader(content)
    try:
        version, specification = reader.number("I"), reader.text()
        if (version, specification) != (_BINARY_VERSION, _SPECIFICATION):
            raise CheckpointError(
                f"A CTranslate2 file of version {version}, {specification!r}; {_BINARY_VERSION}, {_SPECIFICATION!r} is known."
            )
        reader.number("I")  # revision of the specification
        variables = {}
        for _ in range(reader.number("I")):
            name = reader.text()
            shape = [reader.number("I") for _ in range(reader.number("B"))]
            kind, data = reader.number("B"), reader.take(reader.number("I"))
            if kind == _TYPE_FLOAT16:
                flat = torch.frombuffer(bytearray(data), dtype=torch.float16)
                variables[name] = flat.reshape(shape).float()
    except struct.error as error:
        raise CheckpointError(f"The CTranslate2 file ends too early ({len(content)} bytes): {error}.") from error
    return variables


def to_whisper_state(variables: Mapping[str, torch.Tensor], *, num_layers: int) -> dict[str, torch.Tensor]:
    """openai-whisper's state dict: query, key and value unstacked, and the keys' bias (always zero) left out."""
    state = {
        "encoder.conv1.weight": variables["encoder/conv1/weight"],
        "encoder.conv1.bias": variables["encoder/conv1/bias"],
        "encoder.conv2.weight": variables["encoder/conv2/weight"],
        "encoder.conv2.bias": variables["encoder/conv2/bias"],
        "encoder.positional_embedding": variables["encoder/position_encodings/encodings"],
        "encoder.ln_post.weight": variables["encoder/layer_norm/gamma"],
        "encoder.ln_post.bias": variables["encoder/layer_norm/beta"],
        "decoder.token_embedding.weight": variables["decoder/embeddings/weight"],
        "decoder.positional_embedding": variables["decoder/position_encodings/encodings"],
        "decoder.ln.weight": variables["decoder/layer_norm/gamma"],
        "decoder.ln.bias": variables["decoder/layer_norm/beta"],
    }
    for side in ("encoder", "decoder"):
        for layer in range(num_layers):
            source, target = f"{side}/layer_{layer}", f"{side}.blocks.{layer}"
            state |= _attention(variables, f"{source}/self_attention", f"{target}.attn", stacked=(3,))
            if side == "decoder":
                state |= _attention(variables, f"{source}/attention", f"{target}.cross_attn", stacked=(1, 2))
            state |= _norm(variables, f"{source}/ffn/layer_norm", f"{target}.mlp_ln")
            state |= _linear(variables, f"{source}/ffn/linear_0", f"{target}.mlp.0")
            state |= _linear(variables, f"{source}/ffn/linear_1", f"{target}.mlp.2")
    return {name: tensor.contiguous().clone() for name, tensor in state.items()}


def _attention(
    variables: Mapping[str, torch.Tensor], source: str, target: str, *, stacked: tuple[int, ...]
) -> dict[str, torch.Tensor]:
    """Projections lie stacked in `linear_0` … as `stacked` says (3: q, k, v in one; 1, 2: q, then k and v)."""
    state = _norm(variables, f"{source}/layer_norm", f"{target}_ln")
    parts = iter(_ATTENTION_PARTS)
    for index, count in enumerate(stacked):
        weights = variables[f"{source}/linear_{index}/weight"].chunk(count)
        biases = variables[f"{source}/linear_{index}/bias"].chunk(count)
        for weight, bias in zip(weights, biases, strict=True):
            part = next(parts)
            state[f"{target}.{part}.weight"] = weight
            if part != "key":
                state[f"{target}.{part}.bias"] = bias
    return state | _linear(variables, f"{source}/linear_{len(stacked)}", f"{target}.out")


def _linear(variables: Mapping[str, torch.Tensor], source: str, target: str) -> dict[str, torch.Tensor]:
    return {f"{target}.{kind}": variables[f"{source}/{kind}"] for kind in ("weight", "bias")}


def _norm(variables: Mapping[str, torch.Tensor], source: str, target: str) -> dict[str, torch.Tensor]:
    return {f"{target}.weight": variables[f"{source}/gamma"], f"{target}.bias": variables[f"{source}/beta"]}


class _Reader:
    """A cursor over bytes. `struct.error` past the end."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._at = 0

    def number(self, kind: str) -> int:
        value: int = struct.unpack_from(f"<{kind}", self._content, self._at)[0]
        self._at += struct.calcsize(kind)
        return value

    def take(self, count: int) -> bytes:
        if self._at + count > len(self._content):
            raise struct.error(f"{count} bytes wanted at {self._at}")
        self._at += count
        return self._content[self._at - count : self._at]

    def text(self) -> str:
        return self.take(self.number("H")).rstrip(b"\0").decode()
