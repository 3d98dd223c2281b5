"""Plain Whisper on the same data: openai-whisper's own decoding, given each sample's language."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from kappaspeech.errors import DataError
from kappaspeech.evaluation.decoding import Decoded, Ending, ends_in_loop
from kappaspeech.model.encoder import load_whisper
from kappaspeech.speech.languages import short_language
from kappaspeech.speech.samples import SAMPLE_RATE_HZ, AudioSample

# codes of languages that Whisper knows under another one
_WHISPERS_CODES = {"jv": "jw", "nb": "no"}


@dataclass(frozen=True)
class WhisperBaseline:
    """A whole Whisper, greedy or by beams, at temperature 0: without the fallbacks of its `transcribe`, which draw at random."""

    whisper: Any
    num_beams: int = 1
    in_step: bool = False

    def check(self, samples: Sequence[AudioSample]) -> None:
        """Raise `DataError` for a sample of more than Whisper's 30 s, or in a language that it doesn't have."""
        from whisper.audio import CHUNK_LENGTH
        from whisper.tokenizer import LANGUAGES

        known = LANGUAGES if self.whisper.is_multilingual else {"en": "english"}
        for sample in samples:
            seconds = len(sample.waveform) / SAMPLE_RATE_HZ
            if seconds > CHUNK_LENGTH:
                raise DataError(f"{sample.key} is {seconds:.1f} s long; Whisper takes {CHUNK_LENGTH} s. Cut it, or leave it out.")
            if _code_of(sample.language) not in known:
                kind = "this Whisper" if self.whisper.is_multilingual else "this Whisper, an English-only one,"
                raise DataError(f"{sample.key} is in language {sample.language!r}, which {kind} doesn't have.")

    @torch.no_grad()
    def decode(self, samples: Sequence[AudioSample]) -> list[Decoded]:
        """The texts of one batch, decoded by language. Raises `DataError`."""
        from whisper.audio import log_mel_spectrogram, pad_or_trim
        from whisper.decoding import DecodingOptions

        self.check(samples)
        found: dict[int, Decoded] = {}
        for language in sorted({sample.language for sample in samples}):
            rows = [row for row, sample in enumerate(samples) if sample.language == language]
            mels = [log_mel_spectrogram(pad_or_trim(samples[row].waveform), self.whisper.dims.n_mels) for row in rows]
            options = DecodingOptions(
                language=_code_of(language),
                without_timestamps=True,
                beam_size=self.num_beams if self.num_beams > 1 else None,
                fp16=self.whisper.device.type == "cuda",
            )
            results = self.whisper.decode(torch.stack(mels).to(self.whisper.device), options)
            # whisper's own limit on a text
            longest = self.whisper.dims.n_text_ctx // 2
            for row, result in zip(rows, results, strict=True):
                ending: Ending = "length" if len(result.tokens) >= longest else "end"
                if bool(ends_in_loop(torch.tensor([result.tokens], dtype=torch.long))[0]):
                    ending = "loop"
                found[row] = Decoded(result.text, ending)
        return [found[row] for row in range(len(samples))]


def _code_of(language: str) -> str:
    # an index of another tool's, or of an earlier version, may have longer codes
    short = short_language(language)
    return _WHISPERS_CODES.get(short, short)


def open_whisper(name_or_path: str, *, device: torch.device, num_beams: int = 1) -> WhisperBaseline:
    """The whole Whisper of an openai-whisper checkpoint. Raises `CheckpointError`."""
    return WhisperBaseline(load_whisper(name_or_path).to(device).eval(), num_beams)
