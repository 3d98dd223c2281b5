"""Recordings into what a `KappaSpeechModel` takes, and its token ids into text.

M mel channels · Q bins of the Fourier transform
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import BatchFeature, ProcessorMixin

from kappaspeech.speech.waveforms import NUM_BINS, SAMPLE_RATE_HZ, SHORTEST_SECONDS, find_fault, log_mel, mix


class KappaSpeechProcessor(ProcessorMixin):
    """The LLM's tokenizer and Whisper's log-mels.

    `mel_filters` are the rows of Whisper's own filterbank, each as its first bin and the weights from there: transformers'
    differ from them by rounding.
    """

    def __init__(self, tokenizer: Any, mel_filters: Sequence[tuple[int, Sequence[float]]], max_seconds: float) -> None:
        self.mel_filters = mel_filters
        self.max_seconds = max_seconds
        super().__init__(tokenizer)

    @classmethod
    def from_pretrained(cls, name_or_path: Any, **options: Any) -> KappaSpeechProcessor:
        """The processor of an export. A tokenizer needs none of the folder's code, and transformers would ask whether it may."""
        found: KappaSpeechProcessor = super().from_pretrained(name_or_path, **{"trust_remote_code": False, **options})
        return found

    def __call__(self, audio: Any, sampling_rate: int | None = None) -> BatchFeature:
        """`input_features` (B, M, T) and `num_frames` (B,) of one recording or a list of them.

        A recording is a path, which needs soundfile, a row of `datasets` (torchcodec's decoder or {"array", "sampling_rate"}), or
        an array (T,) or (T, channels) of floats between -1 and 1 at `sampling_rate`. Another rate than 16 kHz needs soxr. Raises
        `ValueError` for what can't be speech, and for more than `max_seconds`.
        """
        many = audio if isinstance(audio, (list, tuple)) else [audio]
        filters_MQ = self._filters()
        mels = [torch.from_numpy(log_mel(self._read(item, sampling_rate), filters_MQ)) for item in many]
        num_frames_B = torch.tensor([mel.shape[1] for mel in mels])
        features = torch.zeros(len(mels), len(self.mel_filters), int(num_frames_B.max()))
        for row, mel in enumerate(mels):
            features[row, :, : mel.shape[1]] = mel
        return BatchFeature({"input_features": features, "num_frames": num_frames_B})

    def texts(self, ids: Any) -> list[str]:
        """The texts of `generate`'s token ids, each up to its end."""
        end = self.tokenizer.eos_token_id
        rows = [row[: row.index(end)] if end in row else row for row in torch.as_tensor(ids).tolist()]
        return [text.strip() for text in self.tokenizer.batch_decode(rows, skip_special_tokens=True)]

    @property
    def model_input_names(self) -> list[str]:
        return ["input_features", "num_frames"]

    def _filters(self) -> Tensor:
        filters_MQ = torch.zeros(len(self.mel_filters), NUM_BINS)
        for row, (first, weights) in zip(filters_MQ, self.mel_filters, strict=True):
            row[first : first + len(weights)] = torch.tensor(weights)
        return filters_MQ

    def _read(self, item: Any, rate_hz: int | None) -> NDArray[np.float32]:
        """A recording, mono at 16 kHz."""
        name = "the recording"
        if isinstance(item, (str, Path)):
            name = str(item)
            waveform, rate_hz = _read_file(name)
        elif isinstance(item, dict):
            waveform, rate_hz = np.asarray(item["array"]), item["sampling_rate"]
        elif hasattr(item, "get_all_samples"):
            samples = item.get_all_samples()
            # (channels, T)
            waveform, rate_hz = samples.data.cpu().numpy().T, samples.sample_rate
        else:
            waveform = np.asarray(item)
        if rate_hz is None:
            raise ValueError(f"The rate of an array isn't known: give sampling_rate ({SAMPLE_RATE_HZ} is taken as it is).")
        if waveform.ndim not in (1, 2) or not np.issubdtype(waveform.dtype, np.floating):
            raise ValueError(
                f"{name} has shape {waveform.shape} and dtype {waveform.dtype}; wanted are floats between -1 and 1 of shape "
                "(samples,) or (samples, channels)."
            )
        mono = waveform.astype(np.float32) if waveform.ndim == 1 else mix(waveform.astype(np.float32))
        seconds = len(mono) / rate_hz
        if not SHORTEST_SECONDS <= seconds <= self.max_seconds:
            raise ValueError(f"{name} is {seconds:.2f} s long; {SHORTEST_SECONDS} to {self.max_seconds:g} s are taken. Cut it.")
        if fault := find_fault(mono):
            raise ValueError(f"{name} can't be used: {fault[1]}")
        return mono if rate_hz == SAMPLE_RATE_HZ else _resample(mono, rate_hz)


def _read_file(name: str) -> tuple[NDArray[np.float32], int]:
    try:
        import soundfile
    except ImportError:
        raise ValueError("Reading a file needs soundfile (pip install soundfile). Or give an array and its rate.") from None
    waveform, rate_hz = soundfile.read(name, dtype="float32", always_2d=True)
    return waveform, int(rate_hz)


def _resample(mono: NDArray[np.float32], rate_hz: int) -> NDArray[np.float32]:
    try:
        import soxr
    except ImportError:
        raise ValueError(
            f"The recording is at {rate_hz} Hz, and without soxr (pip install soxr) {SAMPLE_RATE_HZ} Hz alone are taken."
        ) from None
    return np.asarray(soxr.resample(mono, rate_hz, SAMPLE_RATE_HZ), dtype=np.float32)
