"""Batched decoding of speech by a trained model, greedy or by beams; whole on this rank, or in step under ZeRO-3.

B batch · T frames · N longest left-padded prompt · H LLM width
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from kappaspeech.errors import DataError, InputError
from kappaspeech.evaluation.decoding import Decoded, Ending, cut_at_end
from kappaspeech.evaluation.forgetting import BaseWeights
from kappaspeech.evaluation.instructions import MAX_ANSWER_TOKENS
from kappaspeech.model.encoder import SpeechEncoder
from kappaspeech.model.generation import GREEDY, generate
from kappaspeech.model.speech_llm import SpeechLLM
from kappaspeech.model.splicing import pad_left
from kappaspeech.model.text_rows import pad_texts
from kappaspeech.speech.prompt import SpeechPrompt, chat_ids, hot_word_ids, make_prompt
from kappaspeech.speech.samples import SAMPLE_RATE_HZ, AudioSample, encoder_input

# Of a user's hot words: attention to them costs each clip the square of their number. Trainings have 128 by default.
MOST_HOT_TOKENS = 4096


def _by_length(samples: Sequence[AudioSample], batch_size: int) -> list[list[int]]:
    """The samples' indices in batches of like length, the longest first: a batch that is too large for the memory fails first."""
    order = sorted(range(len(samples)), key=lambda i: (-len(samples[i].waveform), samples[i].key))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


class Certainty:
    """A logits processor that changes nothing, and keeps the log-probability of each token that greedy decoding takes."""

    def __init__(self) -> None:
        self._steps_B: list[Tensor] = []

    def __call__(self, _ids_BL: Tensor, logits_BV: Tensor) -> Tensor:
        self._steps_B.append(logits_BV.float().log_softmax(dim=-1).amax(dim=-1).cpu())
        return logits_BV

    def of_row(self, row: int, num_tokens: int, *, has_end: bool) -> float:
        """The geometric mean of a row's token probabilities, from 0 to 1; with `has_end` that of the end is among them.

        What comes after a row that was cut is padding, and is there only while its neighbours go on. 0 if a logit was no number:
        JSON has no NaN.
        """
        logs = [float(step_B[row]) for step_B in self._steps_B[: num_tokens + has_end]]
        return math.exp(fmean(logs)) if logs and not math.isnan(fmean(logs)) else 0.0


@dataclass(frozen=True)
class Transcriber:
    """All that turns waveforms into text.

    With `in_step` the model is partitioned, so that each pass is a collective: every rank must decode as many batches as every
    other, and a rank whose batch has ended goes on until all have (DeepSpeed#8262). `base_weights` lets the LLM compute what its
    base does. `prompt` has the training's; that of another instruction is made when it is met, with or without a `chat_template`.
    Each prompt names the `hot_words`.
    """

    model: SpeechLLM
    encoder: SpeechEncoder
    tokenizer: Any
    prompt: SpeechPrompt
    batch_size: int
    max_new_tokens: int
    num_beams: int = 1
    in_step: bool = False
    base_weights: BaseWeights | None = None
    keeps_confidence: bool = False
    chat_template: bool = True
    hot_words: tuple[str, ...] = ()

    def with_hot_words(self, words: Sequence[str]) -> Transcriber:
        """This transcriber with `words` in every prompt. Raises `InputError` if the model's prompt names none, if they are more
        tokens than `MOST_HOT_TOKENS`, or if the LLM reads no prompt as long."""
        if words and not self.prompt.takes_hot_words:
            raise InputError(
                "This model's prompt names no hot words: it was trained without data.hot_words. Leave --hot-words out."
            )
        context = getattr(self.model.llm.config.get_text_config(), "max_position_embeddings", None)
        most_audio = -(-self.encoder.dims.max_states // self.model.adaptor.shape.stacking)
        num_hot = len(hot_word_ids(self.tokenizer, words))
        if num_hot > MOST_HOT_TOKENS:
            raise InputError(
                f"--hot-words gives {len(words):,} words of {num_hot:,} tokens, which would stand before every clip; "
                f"{MOST_HOT_TOKENS:,} tokens at most are taken. Give those alone that the recordings may hold."
            )
        needed = self.prompt.count_tokens(num_hot) + most_audio
        if words and context is not None and needed >= context:
            raise InputError(
                f"--hot-words gives {len(words)} words of {num_hot} tokens. With the longest audio the prompt has {needed}, and "
                f"the LLM reads {context} at most. Give those alone that the recordings may hold."
            )
        return replace(self, hot_words=tuple(words))

    def transcribe(self, samples: Sequence[AudioSample]) -> list[str]:
        """The text of each sample, in the order given."""
        return [decoded.text for decoded in self.decode_all(samples)]

    def decode_all(
        self, samples: Sequence[AudioSample], *, advance: Callable[[float], None] = lambda _seconds: None
    ) -> list[Decoded]:
        """Each sample decoded, in the order given; the longest first, in batches of like length, whose seconds `advance` gets."""
        found: dict[int, Decoded] = {}
        for chosen in _by_length(samples, self.batch_size):
            batch = [samples[i] for i in chosen]
            found.update(zip(chosen, self.decode(batch), strict=True))
            advance(sum(len(sample.waveform) for sample in batch) / SAMPLE_RATE_HZ)
        return [found[index] for index in range(len(samples))]

    def check(self, samples: Sequence[AudioSample]) -> None:
        """Raise `DataError` for a sample longer than the encoder takes."""
        longest = self.encoder.dims.max_seconds
        for sample in samples:
            seconds = len(sample.waveform) / SAMPLE_RATE_HZ
            if seconds > longest:
                raise DataError(
                    f"{sample.key} is {seconds:.1f} s long; the encoder takes {longest:g} s. Cut it, or leave it out."
                )

    @torch.no_grad()
    def decode(self, samples: Sequence[AudioSample]) -> list[Decoded]:
        """The texts of one batch. Raises `DataError` for a sample longer than the encoder takes."""
        self.check(samples)
        self.model.eval()
        embeds_BNH, mask_BN = self._embed(samples)
        # of several beams it isn't known here which one wins
        certainty = Certainty() if self.keeps_confidence and self.num_beams == 1 else None
        rows = self._generate(
            embeds_BNH,
            mask_BN,
            max_new_tokens=self.max_new_tokens,
            num_beams=self.num_beams,
            logits_processor=[certainty] if certainty is not None else None,
        )
        texts = self.tokenizer.batch_decode([ids for ids, _ in rows], skip_special_tokens=True)
        confidences = [
            certainty.of_row(row, len(ids), has_end=ending == "end") if certainty else None
            for row, (ids, ending) in enumerate(rows)
        ]
        return [
            Decoded(text.strip(), ending, confidence, len(ids) + (ending == "end"))
            for text, (ids, ending), confidence in zip(texts, rows, confidences, strict=True)
        ]

    def chat_ids(self, text: str) -> list[int]:
        """The tokens of a user's turn without audio, by the LLM's chat template if it has one, whatever that of speech is."""
        return chat_ids(self.tokenizer, text)

    @torch.no_grad()
    def write(self, prompts: Sequence[Sequence[int]]) -> list[str]:
        """The texts that the LLM writes after these prompts of tokens, greedily, each of at most `MAX_ANSWER_TOKENS`."""
        self.model.eval()
        embed = self.model.llm.get_input_embeddings()
        ids_BN = pad_texts(prompts).clamp(min=0).to(embed.weight.device)
        lengths_B = torch.tensor([len(ids) for ids in prompts], device=ids_BN.device)
        # an LLM may end a turn by another token than a text
        ends = getattr(getattr(self.model.llm, "generation_config", None), "eos_token_id", None) or []
        ends = [ends] if isinstance(ends, int) else ends
        rows = self._generate(*pad_left(embed(ids_BN), lengths_B), ends=ends, max_new_tokens=MAX_ANSWER_TOKENS)
        return [text.strip() for text in self.tokenizer.batch_decode([ids for ids, _ in rows], skip_special_tokens=True)]

    def _generate(
        self, embeds_BNH: Tensor, mask_BN: Tensor, *, ends: Sequence[int] = (), **options: Any
    ) -> list[tuple[list[int], Ending]]:
        """The tokens after each left-padded prompt until EOS or another of `ends`, and how they ended."""
        end = self.tokenizer.eos_token_id
        ids_BL = generate(
            self.model.llm,
            embeds_BNH,
            mask_BN,
            eos_token_id=sorted({end, *ends}),
            pad_token_id=end,
            synced_gpus=self.in_step,
            **{**GREEDY, **options},
        )
        return [cut_at_end([end if token in ends else token for token in row], end) for row in ids_BL.tolist()]

    def _embed(self, samples: Sequence[AudioSample]) -> tuple[Tensor, Tensor]:
        """Prompts with their audio, left-padded, and the mask of what is real."""
        device = self.prompt_device
        inputs = [torch.as_tensor(encoder_input(sample.waveform, self.encoder.dims.num_mels)) for sample in samples]
        num_frames_B = torch.tensor([one.shape[1] for one in inputs])
        audio_input_BMT = torch.zeros(len(inputs), self.encoder.dims.num_mels, int(num_frames_B.max()))
        for row, one in enumerate(inputs):
            audio_input_BMT[row, :, : one.shape[1]] = one
        states_BSE, num_states_B = self.encoder(audio_input_BMT.to(device), num_frames_B)
        audio_BAH, num_audio_B = self.model.adaptor(states_BSE, num_states_B)
        no_labels_B0 = torch.empty(len(samples), 0, dtype=torch.long, device=device)
        instructions = [sample.instruction for sample in samples]
        hot_ids = [hot_word_ids(self.tokenizer, self.hot_words)] * len(samples)
        prefix, suffix = (ids.to(device) for ids in self._prompt_of(instructions).around(instructions, hot_ids))
        spliced = self.model.splice(audio_BAH, num_audio_B, prefix, suffix, no_labels_B0)
        return pad_left(spliced.embeds_BNH, spliced.lengths_B)

    def _prompt_of(self, instructions: Sequence[str | None]) -> SpeechPrompt:
        unknown = {text for text in instructions if text is not None} - self.prompt.others.keys()
        hot_words = self.prompt.takes_hot_words
        made = {text: make_prompt(self.tokenizer, text, chat=self.chat_template, hot_words=hot_words) for text in unknown}
        return replace(self.prompt, others={**self.prompt.others, **made})

    @property
    def prompt_device(self) -> torch.device:
        return self.model.adaptor.project.weight.device
