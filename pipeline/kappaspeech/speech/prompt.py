"""The prompt around a recording, and text as token ids."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from kappaspeech.config.data_config import DatasetConfig
from kappaspeech.config.run_config import RunConfig
from kappaspeech.errors import CheckpointError, InputError
from kappaspeech.labels import IGNORED_LABEL

AUDIO_MARK = "{audio}"
_HOT_WORDS_MARK = "{hot_words}"
_HOT_WORDS_LINE = f"Hot words:{_HOT_WORDS_MARK}\n"


@dataclass(frozen=True)
class SpeechPrompt:
    """Token ids before and after the audio, int64: what the chat template puts around a user's recording.

    `others` are the prompts of data sets with an instruction of their own, by that instruction. `around_hot_words` are the ids
    before and after hot words: with these they take the place of `prefix_ids`. None for a prompt that names none.
    """

    prefix_ids: Tensor
    suffix_ids: Tensor
    others: Mapping[str, SpeechPrompt] = field(default_factory=dict)
    around_hot_words: tuple[Tensor, Tensor] | None = None

    @property
    def num_tokens(self) -> int:
        return self.prefix_ids.numel() + self.suffix_ids.numel()

    @property
    def takes_hot_words(self) -> bool:
        return self.around_hot_words is not None

    def before_audio(self, hot_ids: Sequence[int] = ()) -> Tensor:
        """The ids before the audio, with those of hot words if there are any. Raises `InputError` if it names none."""
        if not hot_ids:
            return self.prefix_ids
        if self.around_hot_words is None:
            raise InputError("This model's prompt names no hot words: it was trained without data.hot_words.")
        before, after = self.around_hot_words
        return torch.cat([before, torch.tensor(hot_ids, dtype=torch.long), after])

    def count_tokens(self, num_hot_tokens: int = 0) -> int:
        """The prompt's tokens around the audio, with so many of hot words."""
        if not num_hot_tokens or self.around_hot_words is None:
            return self.num_tokens
        return num_hot_tokens + sum(ids.numel() for ids in (*self.around_hot_words, self.suffix_ids))

    def of(self, instruction: str | None) -> SpeechPrompt:
        """The prompt of an instruction; None is that of all data sets without one of their own."""
        return self if instruction is None else self.others[instruction]

    def only(self, sets: Iterable[DatasetConfig]) -> SpeechPrompt:
        """This prompt, of `others` with those alone that these data sets have."""
        wanted = {item.instruction for item in sets}
        return replace(self, others={text: prompt for text, prompt in self.others.items() if text in wanted})

    def most_tokens(self, sets: Iterable[DatasetConfig], *, hot: int | None = None) -> int:
        """The tokens of the longest prompt of these data sets, with `hot` tokens of hot words at most."""
        return max(self.of(item.instruction).count_tokens(hot or 0) for item in sets)

    def around(self, instructions: Sequence[str | None], hot_ids: Sequence[Sequence[int]] | None = None) -> tuple[Tensor, Tensor]:
        """The ids before and after the audio of a batch's rows: (P,) and (Q,) if no row has an instruction or hot words of its
        own, else (B, P) and (B, Q), right-padded with `IGNORED_LABEL`. `hot_ids` are those of each row's hot words."""
        hot_ids = hot_ids or [()] * len(instructions)
        if all(instruction is None for instruction in instructions) and not any(hot_ids):
            return self.prefix_ids, self.suffix_ids
        prompts = [self.of(instruction) for instruction in instructions]
        before = [prompt.before_audio(ids) for prompt, ids in zip(prompts, hot_ids, strict=True)]
        after = [prompt.suffix_ids for prompt in prompts]
        prefixes, suffixes = (pad_sequence(rows, batch_first=True, padding_value=IGNORED_LABEL) for rows in (before, after))
        return prefixes, suffixes

    def to_json(self) -> dict[str, Any]:
        """The prompt as JSON for a run's folder: what a template renders may depend on the day, and a run keeps its prompt."""
        others = {text: prompt.to_json() for text, prompt in sorted(self.others.items())}
        own: dict[str, Any] = {"prefix_ids": self.prefix_ids.tolist(), "suffix_ids": self.suffix_ids.tolist()}
        if self.around_hot_words is not None:
            own["around_hot_words"] = [ids.tolist() for ids in self.around_hot_words]
        return {**own, "others": others} if others else own

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> SpeechPrompt:
        """Read what `to_json` returned. Raises `InputError`."""
        is_mapping = isinstance(content, Mapping)
        parts = [content.get(name) if is_mapping else None for name in ("prefix_ids", "suffix_ids")]
        others = content.get("others", {}) if is_mapping else None
        # versions that knew no hot words wrote none
        around = content.get("around_hot_words", []) if is_mapping else None
        if isinstance(around, list) and len(around) in (0, 2):
            parts += around
        else:
            parts.append(None)
        if not isinstance(others, Mapping) or not all(
            isinstance(ids, list) and all(type(index) is int and index >= 0 for index in ids) for ids in parts
        ):
            raise InputError(f"A recorded prompt is {str(content)[:80]}, which are no token ids. Train or export again.")
        prefix_ids, suffix_ids, *hot = (torch.tensor(ids, dtype=torch.long) for ids in parts)
        made = {text: SpeechPrompt.from_json(other) for text, other in others.items()}
        return SpeechPrompt(prefix_ids, suffix_ids, made, (hot[0], hot[1]) if hot else None)


def make_prompt(
    tokenizer: Any,
    instruction: str,
    *,
    others: Iterable[str] = (),
    chat: bool = True,
    as_before: bool = False,
    hot_words: bool = False,
) -> SpeechPrompt:
    """The chat template's tokens around `instruction`, whose `AUDIO_MARK` says where the audio is put; else it comes first.

    `others` are instructions of single data sets. Without `chat`, or without a template, `instruction` is plain text, and begins
    as the tokenizer begins texts: with BOS if it has one. `as_before` is what versions made that began no text with it, for
    their runs. With `hot_words` it can also name these, in a line before the instruction. Raises `CheckpointError` for a template
    that can't render it.
    """
    user = instruction if AUDIO_MARK in instruction else AUDIO_MARK + instruction
    options = {"chat": chat, "as_before": as_before}
    prefix_ids, suffix_ids = _make_parts(tokenizer, user, (AUDIO_MARK,), **options)
    around: tuple[Tensor, Tensor] | None = None
    if hot_words:
        before, after, _ = _make_parts(tokenizer, _HOT_WORDS_LINE + user, (_HOT_WORDS_MARK, AUDIO_MARK), **options)
        around = before, after
    made = {text: make_prompt(tokenizer, text, chat=chat, as_before=as_before, hot_words=hot_words) for text in others}
    return SpeechPrompt(prefix_ids, suffix_ids, made, around)


def make_configured_prompt(tokenizer: Any, config: RunConfig, *, as_before: bool = False) -> SpeechPrompt:
    """The prompt that a run's configuration asks for. Raises `CheckpointError` as `make_prompt` does."""
    return make_prompt(
        tokenizer,
        config.model.instruction,
        hot_words=config.data.hot_words is not None,
        others=config.data.instructions,
        chat=config.model.chat_template,
        as_before=as_before,
    )


def _make_parts(
    tokenizer: Any, user: str, marks: Sequence[str], *, chat: bool, as_before: bool, empty_system: bool = True
) -> list[Tensor]:
    """The token ids before, between and after `marks` in a user's turn."""
    start: list[int] = []
    if chat and getattr(tokenizer, "chat_template", None):
        rest = _render(tokenizer, user, empty_system=empty_system)
    else:
        rest = f"{user}\n" if chat else user
        start = [] if as_before else _text_start(tokenizer)
    texts = []
    for mark in marks:
        text, _, rest = rest.partition(mark)
        texts.append(text)
    parts = [tokenizer(part, add_special_tokens=False)["input_ids"] for part in (*texts, rest)]
    parts[0] = [*start, *parts[0]]
    if not parts[0] and tokenizer.bos_token_id is not None:
        parts[0] = [tokenizer.bos_token_id]
    return [torch.tensor(ids, dtype=torch.long) for ids in parts]


def chat_ids(tokenizer: Any, user: str) -> list[int]:
    """The token ids of a user's turn that is text alone, as the LLM's users give it: with its template's own system turn. What
    looks like a special token in it is text."""
    before, after = _make_parts(tokenizer, AUDIO_MARK, (AUDIO_MARK,), chat=True, as_before=False, empty_system=False)
    return [*before.tolist(), *text_ids(tokenizer, user), *after.tolist()]


def hot_word_ids(tokenizer: Any, words: Sequence[str], *, max_tokens: int | None = None) -> tuple[int, ...]:
    """The token ids of hot words as a prompt names them; none for no words. Of more than `max_tokens` the last words are left
    out. What looks like a special token in them is text."""
    kept = list(words)
    while kept:
        ids = text_ids(tokenizer, f" {', '.join(kept)}")
        if max_tokens is None or len(ids) <= max_tokens:
            return tuple(ids)
        kept.pop()
    return ()


def _render(tokenizer: Any, user: str, *, empty_system: bool) -> str:
    """The chat template around a user's turn.

    With `empty_system` such a turn is given, as some templates put a long default into one that is left out; and none if a
    template has no such turn. Without it a template that lets its LLM think before it answers is told not to: an answer is short.
    """
    from jinja2 import TemplateError

    turn = {"role": "user", "content": user}
    reason = "it leaves out what the user says"
    silent = {"role": "system", "content": ""}
    options: dict[str, Any] = {} if empty_system else {"enable_thinking": False}
    for turns in ([silent, turn], [turn]) if empty_system else ([turn],):
        try:
            text: str = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, **options)
        except (TemplateError, TypeError, ValueError, LookupError) as error:
            reason = str(error) or type(error).__name__
            continue
        if AUDIO_MARK in text:
            return text
    without = "set model.chat_template to false, which makes model.instruction the whole prompt"
    raise CheckpointError(
        f"The chat template of {tokenizer.name_or_path} can't render a user's turn: {reason}. Mend chat_template.jinja beside "
        f"the tokenizer, or {without if empty_system else 'leave instructions out of data.tasks'}."
    )


def _text_start(tokenizer: Any) -> list[int]:
    """The token ids that the tokenizer puts before each text: BOS, or none."""
    bare, whole = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    for place in range(len(whole) - len(bare) + 1):
        if whole[place : place + len(bare)] == bare:
            return list(whole[:place])
    return []


def text_ids(tokenizer: Any, text: str) -> list[int]:
    """The token ids of plain text, in which nothing is a special token."""
    try:
        return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])
    except ValueError:
        # mistral-common knows no other way than this, and refuses to be asked for it
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
