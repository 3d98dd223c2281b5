"""Prompt, labels and padding: samples into tensors.

B batch · M mel channels · T frames · L label tokens
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kappaspeech.errors import CheckpointError, InputError
from kappaspeech.labels import IGNORED_LABEL
from kappaspeech.speech.feature_cache import CachedClip, from_bits
from kappaspeech.speech.samples import BadSampleError

AUDIO_MARK = "{audio}"
# The fastest speakers take ten words a second; if a tokenizer knows a script by its bytes alone, a word may take ten tokens.
_MOST_TOKENS_PER_SECOND = 100
_MOST_TOKENS = 100


@dataclass(frozen=True)
class SpeechPrompt:
    """Token ids before and after the audio, int64: what the chat template puts around a user's recording."""

    prefix_ids: Tensor
    suffix_ids: Tensor

    @property
    def num_tokens(self) -> int:
        return self.prefix_ids.numel() + self.suffix_ids.numel()

    def to_json(self) -> dict[str, list[int]]:
        """The prompt as JSON for a run's folder: what a template renders may depend on the day, and a run keeps its prompt."""
        return {"prefix_ids": self.prefix_ids.tolist(), "suffix_ids": self.suffix_ids.tolist()}

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> SpeechPrompt:
        """Read what `to_json` returned. Raises `InputError`."""
        parts = [content.get(name) if isinstance(content, Mapping) else None for name in ("prefix_ids", "suffix_ids")]
        if not all(isinstance(ids, list) and all(type(index) is int and index >= 0 for index in ids) for ids in parts):
            raise InputError(f"A recorded prompt is {str(content)[:80]}, which are no token ids. Train or export again.")
        return SpeechPrompt(*(torch.tensor(ids, dtype=torch.long) for ids in parts))


@dataclass(frozen=True)
class CacheTarget:
    """The cache entry of a clip's states, and the transcript that is kept beside them."""

    name: str
    transcript: str


@dataclass(frozen=True)
class Features:
    """One sample as the model sees it: `log_mel` (M, frames) and the transcript's token ids with EOS at their end.

    Of a clip in the feature cache, `cached` takes the place of the spectrogram; `to_cache` is one to be put there.
    """

    key: str
    language: str
    log_mel: NDArray[np.float32]
    label_ids: tuple[int, ...]
    cached: CachedClip | None = None
    to_cache: CacheTarget | None = None

    @property
    def num_frames(self) -> int:
        return int(self.log_mel.shape[1]) if self.cached is None else self.cached.num_frames


@dataclass(frozen=True)
class SpeechBatch:
    """A micro-batch. Masked samples keep their row, with `weights` 0 and no labels.

    log_mel (B, M, T) float32, zero past `num_frames` (B,) int64; label_ids (B, L) int64, right-padded with −100; weights (B,).
    A row whose `states` (S, E) are there has been encoded before, and its log_mel is zero; `to_cache` says which are to be kept.
    """

    log_mel: Tensor
    num_frames: Tensor
    label_ids: Tensor
    weights: Tensor
    keys: tuple[str, ...]
    languages: tuple[str, ...]
    states: tuple[Tensor | None, ...] = ()
    to_cache: tuple[CacheTarget | None, ...] = ()

    @property
    def num_target_tokens(self) -> int:
        return int((self.label_ids != IGNORED_LABEL).sum())


def make_prompt(tokenizer: Any, instruction: str, *, chat: bool = True, as_before: bool = False) -> SpeechPrompt:
    """The chat template's tokens around `instruction`, whose `AUDIO_MARK` says where the audio is put; else it comes first.

    Without `chat`, or without a template, `instruction` is plain text, and begins as the tokenizer begins texts: with BOS if it
    has one. `as_before` is what versions made that began no text with it, for their runs. Raises `CheckpointError` for a
    template that can't render it.
    """
    user = instruction if AUDIO_MARK in instruction else AUDIO_MARK + instruction
    start: list[int] = []
    if chat and getattr(tokenizer, "chat_template", None):
        text = _render(tokenizer, user)
    else:
        text = f"{user}\n" if chat else user
        start = [] if as_before else _text_start(tokenizer)
    before, _, after = text.partition(AUDIO_MARK)
    prefix, suffix = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in (before, after))
    prefix = [*start, *prefix]
    if not prefix and tokenizer.bos_token_id is not None:
        prefix = [tokenizer.bos_token_id]
    return SpeechPrompt(*(torch.tensor(ids, dtype=torch.long) for ids in (prefix, suffix)))


def _render(tokenizer: Any, user: str) -> str:
    """The chat template around a user's turn.

    An empty system turn is given, as some templates put a long default into one that is left out; and none if a template has no
    such turn.
    """
    from jinja2 import TemplateError

    turn = {"role": "user", "content": user}
    reason = "it leaves out what the user says"
    for turns in ([{"role": "system", "content": ""}, turn], [turn]):
        try:
            text: str = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        except (TemplateError, TypeError, ValueError, LookupError) as error:
            reason = str(error) or type(error).__name__
            continue
        if AUDIO_MARK in text:
            return text
    raise CheckpointError(
        f"The chat template of {tokenizer.name_or_path} can't render a user's turn: {reason}. Mend chat_template.jinja beside "
        "the tokenizer, or set model.chat_template to false, which makes model.instruction the whole prompt."
    )


def _text_start(tokenizer: Any) -> list[int]:
    """The token ids that the tokenizer puts before each text: BOS, or none."""
    bare, whole = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    for place in range(len(whole) - len(bare) + 1):
        if whole[place : place + len(bare)] == bare:
            return list(whole[:place])
    return []


def label_ids(tokenizer: Any, transcript: str, *, seconds: float | None = None) -> tuple[int, ...]:
    """The transcript's token ids and EOS, which is a target like any other, also if it serves as padding.

    What looks like a special token in a transcript is text. Raises `BadSampleError` for more tokens than anybody says in so many
    seconds: such a sample would take the memory of hundreds, and is no transcript.
    """
    try:
        ids = tokenizer(transcript, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    except ValueError:
        # mistral-common knows no other way than this, and refuses to be asked for it
        ids = tokenizer(transcript, add_special_tokens=False)["input_ids"]
    if seconds is not None and len(ids) > (most := int(_MOST_TOKENS + _MOST_TOKENS_PER_SECOND * seconds)):
        raise BadSampleError("too much text", f"{len(ids)} tokens in {seconds:.2f} s; at most {most} are taken")
    return (*ids, tokenizer.eos_token_id)


def collate(features: Sequence[Features | None], *, num_mels: int, keys: Sequence[str]) -> SpeechBatch:
    """Pad features into one batch. `None` is a masked sample: a row of two silent frames, without labels or weight."""
    rows = [item.log_mel if item is not None else np.zeros((num_mels, 2), dtype=np.float32) for item in features]
    labels = [item.label_ids if item is not None else () for item in features]
    frames = [item.num_frames if item is not None else row.shape[1] for item, row in zip(features, rows, strict=True)]
    log_mel = torch.zeros(len(rows), num_mels, max(frames))
    label_tensor = torch.full((len(rows), max(1, *(len(ids) for ids in labels))), IGNORED_LABEL)
    for index, (row, ids) in enumerate(zip(rows, labels, strict=True)):
        log_mel[index, :, : row.shape[1]] = torch.from_numpy(row)
        label_tensor[index, : len(ids)] = torch.tensor(ids, dtype=torch.long)
    return SpeechBatch(
        log_mel=log_mel,
        num_frames=torch.tensor(frames),
        label_ids=label_tensor,
        weights=torch.tensor([0.0 if item is None else 1.0 for item in features]),
        keys=tuple(keys),
        languages=tuple("" if item is None else item.language for item in features),
        states=tuple(None if item is None or item.cached is None else from_bits(item.cached.states_SE) for item in features),
        to_cache=tuple(None if item is None else item.to_cache for item in features),
    )


def empty_batch(num_mels: int) -> SpeechBatch:
    """A zero-weight stand-in for a micro-batch that a step doesn't have: it goes through the whole graph and adds nothing."""
    return collate([None], num_mels=num_mels, keys=())
