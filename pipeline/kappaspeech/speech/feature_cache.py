"""Encoder states of clips kept on local disk, so that later epochs need neither the audio nor the encoder.

Processes share a folder. An entry appears by one rename, carries its digest, and is found by what made it alone: the encoder
(`namespace`) and the sample as its shard's index knows it. Entries of one shard, language and way of writing texts are a group,
which present runs claim.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kappaspeech.artefacts import digest_json
from kappaspeech.speech.cache_claims import CacheClaims
from kappaspeech.speech.cache_folder import KEPT_SHARE, CacheFolder
from kappaspeech.speech.shards import SampleEntry, ShardStamp

_DIGEST_BYTES = 32
# Half of a name's 64 digits say the group, the others the sample.
_GROUP_DIGITS = 32
_SUFFIX = ".states"
_STAMP = "shard_stamp"
_FOLDER_NAME = "kappaspeech-states"
_PATTERN = rf"[^/]+/[0-9a-f]{{2}}/[0-9a-f]{{64}}\{_SUFFIX}"
# A full cache is looked at again after so long: somebody may have made room.
_LOOK_AGAIN_SECONDS = 60.0


@dataclass(frozen=True)
class FeatureCacheOptions:
    """`namespace` is a digest of the encoder and of all that becomes of audio before it."""

    folder: str
    namespace: str
    limit_bytes: int


@dataclass(frozen=True)
class CachedClip:
    """A clip's states (S, E), float32 or bfloat16's bits as int16, so that processes can hand them on; the number of log-mel
    frames they were made of; its transcript; and the stamp of its shard when both were read, "" if that isn't known."""

    states_SE: NDArray[np.float32] | NDArray[np.int16]
    num_frames: int
    transcript: str
    shard_stamp: str = ""


def to_bits(states_SE: Tensor) -> NDArray[np.float32] | NDArray[np.int16]:
    """States as `CachedClip` holds them."""
    states_SE = states_SE.detach().cpu().contiguous()
    bits: NDArray[Any] = (states_SE.view(torch.int16) if states_SE.dtype == torch.bfloat16 else states_SE).numpy()
    return bits


def from_bits(states_SE: NDArray[Any]) -> Tensor:
    """Turn the bits of `to_bits` back into the tensor."""
    tensor = torch.from_numpy(states_SE)
    return tensor.view(torch.bfloat16) if tensor.dtype == torch.int16 else tensor


def group_name(stamp: ShardStamp, language: str, normalization: str) -> str:
    """The group of the samples of one shard and language whose texts are written in one way."""
    return digest_json([asdict(stamp), language, normalization])[:_GROUP_DIGITS]


def entry_name(entry: SampleEntry, stamp: ShardStamp, normalization: str) -> str:
    """The name of a sample in the cache; other audio, another text or another shard gives another name.

    A text that a list has doesn't count: it is taken from the list, also of a cached clip.
    """
    listing = entry.listing
    known = [entry.seconds, entry.audio_offset, entry.audio_bytes, entry.text_offset, entry.text_bytes, entry.text_is_json]
    part = None if listing is None else [listing.member, listing.begin_seconds, listing.seconds]
    return group_name(stamp, entry.language, normalization) + digest_json([known, part])[:_GROUP_DIGITS]


@dataclass(frozen=True)
class StateSize:
    """The states of a second of audio, by the encoder that makes them, and the longest clip that is encoded."""

    seconds_per_state: float
    bytes_per_state: int
    max_seconds: float

    def count_bytes(self, seconds: Iterable[NDArray[np.float32]]) -> int:
        """The bytes of the states of clips of these lengths, by data set."""
        states = sum(float(np.ceil(np.minimum(part, self.max_seconds) / self.seconds_per_state).sum()) for part in seconds)
        return int(states) * self.bytes_per_state


def explain_small(limit_bytes: int, wanted_bytes: int) -> str | None:
    """A sentence on a limit below what a training's data take; None if it isn't."""
    if wanted_bytes <= limit_bytes:
        return None
    return (
        f"data.feature_cache_gb is {limit_bytes / 2**30:.3g}, and the encoder states of data.train take about "
        f"{wanted_bytes / 2**30:.3g}: at most {limit_bytes / wanted_bytes:.0%} of them are kept, and the others are computed "
        "again in each epoch"
    )


class FeatureCache:
    """A cache that never grows past its limit: when it is full, what no present run asks for goes, the least recently used first.

    What is asked for stays, and nothing more is kept: an epoch comes back to every clip in another order, so to put one clip in
    another's place would only lose both. `asked` are the groups that this process asks for; without them it removes nothing.
    Raises `DataError` if its folder is a user's.
    """

    def __init__(self, options: FeatureCacheOptions, *, asked: Iterable[str] | None = None) -> None:
        self._cache = CacheFolder(options.folder, _FOLDER_NAME, pattern=_PATTERN)
        self._folder = self._cache.path / options.namespace
        self._limit = options.limit_bytes
        self._full_until = 0.0
        self._claims: CacheClaims | None = None
        with contextlib.suppress(OSError):
            self._cache.prepare()
            if asked is not None:
                claims = CacheClaims(self._cache)
                claims.make({f"{options.namespace}/{group}" for group in asked})
                self._claims = claims

    def read(self, name: str) -> CachedClip | None:
        """A clip that was kept; None for one that wasn't, or that is damaged."""
        try:
            with self._path(name).open("rb") as file:
                content = file.read()
                with contextlib.suppress(OSError):
                    self._cache.touch(file.fileno(), os.fstat(file.fileno()))
        except OSError:
            return None
        body = content[_DIGEST_BYTES:]
        if hashlib.sha256(body).digest() != content[:_DIGEST_BYTES]:
            return None
        from safetensors.torch import load

        tensors = load(body)
        # earlier versions noted no stamp
        transcript, stamp = (bytes(tensors[name].tolist()).decode() if name in tensors else "" for name in ("transcript", _STAMP))
        return CachedClip(tensors["states"].numpy(), int(tensors["num_frames"]), transcript, stamp)

    def keep(self, name: str, clip: CachedClip) -> None:
        """Keep a clip if there is room. What can't be written is done without."""
        from safetensors.torch import save

        if time.monotonic() < self._full_until:
            return
        texts = {"transcript": clip.transcript, _STAMP: clip.shard_stamp}
        body = save(
            {
                "states": torch.from_numpy(clip.states_SE),
                "num_frames": torch.tensor(clip.num_frames),
                **{name: torch.tensor(list(text.encode()), dtype=torch.uint8) for name, text in texts.items()},
            }
        )
        with contextlib.suppress(OSError):
            content = hashlib.sha256(body).digest() + body
            if not self._cache.keep(self._path(name), content, limit=self._limit, make_room=self._make_room):
                self._full_until = time.monotonic() + _LOOK_AGAIN_SECONDS

    def _path(self, name: str) -> Path:
        # a folder for all samples of one shard might hold a million
        return self._folder / name[-2:] / f"{name}{_SUFFIX}"

    def _make_room(self, wanted: int) -> int:
        """Remove entries that nobody asks for until all take at most `wanted` bytes and a little less, if they can; how many they
        then take."""
        return self._cache.shrink(min(wanted, self._limit * KEPT_SHARE), over=wanted, may_go=self._find_unasked())

    def _find_unasked(self) -> Callable[[Path], bool]:
        """Tell the entries that no present run asks for; none if that can't be known."""
        try:
            asked = None if self._claims is None else self._claims.read()
        except OSError:
            asked = None
        return lambda path: asked is not None and f"{path.parent.parent.name}/{path.name[:_GROUP_DIGITS]}" not in asked
