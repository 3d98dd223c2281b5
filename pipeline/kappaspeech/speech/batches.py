"""Labels and padding: samples into tensors.

B batch · M mel channels · T frames · L label tokens
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kappaspeech.labels import IGNORED_LABEL
from kappaspeech.speech.feature_cache import CachedClip, from_bits
from kappaspeech.speech.prompt import text_ids
from kappaspeech.speech.samples import BadSampleError

# The fastest speakers take ten words a second; if a tokenizer knows a script by its bytes alone, a word may take ten tokens.
_MOST_TOKENS_PER_SECOND = 100
_MOST_TOKENS = 100


@dataclass(frozen=True)
class CacheTarget:
    """The cache entry of a clip's states, and the transcript and the stamp of the shard that are kept beside them."""

    name: str
    transcript: str
    shard_stamp: str = ""


@dataclass(frozen=True)
class Features:
    """One sample as the model sees it: `audio_input` (M, frames) and the transcript's token ids with EOS at their end.

    `audio_input` is a log-mel, or for an encoder that reads waveforms one of one row, whose frames are samples. Of a clip in the
    feature cache, `cached` takes its place; `to_cache` is one to be put there. `instruction` is its data set's
    own, if that has one.
    """

    key: str
    language: str
    audio_input: NDArray[np.float32]
    label_ids: tuple[int, ...]
    cached: CachedClip | None = None
    to_cache: CacheTarget | None = None
    instruction: str | None = None
    hot_ids: tuple[int, ...] = ()

    @property
    def num_frames(self) -> int:
        return int(self.audio_input.shape[1]) if self.cached is None else self.cached.num_frames


@dataclass(frozen=True)
class SpeechBatch:
    """A micro-batch. Masked samples keep their row, with `weights` 0 and no labels.

    audio_input (B, M, T) float32, zero past `num_frames` (B,) int64; label_ids (B, L) int64, right-padded with −100; weights
    (B,). A row whose `states` (S, E) are there has been encoded before, and its audio_input is zero; `to_cache` says which are to
    be kept.
    """

    audio_input: Tensor
    num_frames: Tensor
    label_ids: Tensor
    weights: Tensor
    keys: tuple[str, ...]
    languages: tuple[str, ...]
    states: tuple[Tensor | None, ...] = ()
    to_cache: tuple[CacheTarget | None, ...] = ()
    instructions: tuple[str | None, ...] = ()
    hot_ids: tuple[tuple[int, ...], ...] = ()

    @property
    def num_target_tokens(self) -> int:
        return int((self.label_ids != IGNORED_LABEL).sum())


def label_ids(tokenizer: Any, transcript: str, *, seconds: float | None = None) -> tuple[int, ...]:
    """The transcript's token ids and EOS, which is a target like any other, also if it serves as padding.

    What looks like a special token in a transcript is text. Raises `BadSampleError` for more tokens than anybody says in so many
    seconds: such a sample would take the memory of hundreds, and is no transcript.
    """
    ids = text_ids(tokenizer, transcript)
    if seconds is not None and len(ids) > (most := int(_MOST_TOKENS + _MOST_TOKENS_PER_SECOND * seconds)):
        raise BadSampleError("too much text", f"{len(ids)} tokens in {seconds:.2f} s; at most {most} are taken")
    return (*ids, tokenizer.eos_token_id)


def collate(features: Sequence[Features | None], *, num_mels: int, keys: Sequence[str]) -> SpeechBatch:
    """Pad features into one batch. `None` is a masked sample: a row of two silent frames, without labels or weight."""
    rows = [item.audio_input if item is not None else np.zeros((num_mels, 2), dtype=np.float32) for item in features]
    labels = [item.label_ids if item is not None else () for item in features]
    frames = [item.num_frames if item is not None else row.shape[1] for item, row in zip(features, rows, strict=True)]
    audio_input = torch.zeros(len(rows), num_mels, max(frames))
    label_tensor = torch.full((len(rows), max(1, *(len(ids) for ids in labels))), IGNORED_LABEL)
    for index, (row, ids) in enumerate(zip(rows, labels, strict=True)):
        audio_input[index, :, : row.shape[1]] = torch.from_numpy(row)
        label_tensor[index, : len(ids)] = torch.tensor(ids, dtype=torch.long)
    return SpeechBatch(
        audio_input=audio_input,
        num_frames=torch.tensor(frames),
        label_ids=label_tensor,
        weights=torch.tensor([0.0 if item is None else 1.0 for item in features]),
        keys=tuple(keys),
        languages=tuple("" if item is None else item.language for item in features),
        states=tuple(None if item is None or item.cached is None else from_bits(item.cached.states_SE) for item in features),
        to_cache=tuple(None if item is None else item.to_cache for item in features),
        instructions=tuple(None if item is None else item.instruction for item in features),
        hot_ids=tuple(() if item is None else item.hot_ids for item in features),
    )


def empty_batch(num_mels: int) -> SpeechBatch:
    """A zero-weight stand-in for a micro-batch that a step doesn't have: it goes through the whole graph and adds nothing."""
    return collate([None], num_mels=num_mels, keys=())
