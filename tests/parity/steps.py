"""What both sides of the parity test share: models, data and options, and nothing of how a step is computed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.config import OptimizerConfig
from pipeline.model.adaptor import AdaptorShape
from pipeline.model.encoder import FrozenWhisperEncoder, load_encoder
from pipeline.model.freezing import unfreeze
from pipeline.model.llm import load_llm, load_tokenizer
from pipeline.model.speech_llm import SpeechLLM, token_embedding_std
from pipeline.model.trained import build_adaptor
from pipeline.selection import TensorSelection
from pipeline.speech.batches import SpeechPrompt, make_prompt
from pipeline.speech.schedule import BatchBudget
from pipeline.speech.stream import SpeechDataset, SpeechStream
from tests import tiny

NUM_STEPS = 5
# three micro-batches on two ranks: one rank fills up with a zero-weight batch
BUDGET = BatchBudget(max_samples=2, max_seconds=20.0, micro_batches_per_step=3)
OPTIMIZER = OptimizerConfig()


@dataclass(frozen=True)
class Parts:
    encoder: FrozenWhisperEncoder
    tokenizer: Any
    prompt: SpeechPrompt
    model: SpeechLLM


def build_parts(home: Path) -> Parts:
    """The tiny model in float32, with its selection unfrozen."""
    llm = load_llm(str(home / "llm"), dtype=torch.float32)
    unfreeze(llm, TensorSelection.read(home / "selection.json").shapes)
    tokenizer = load_tokenizer(str(home / "llm"))
    shape = AdaptorShape(tiny.ENCODER_WIDTH, 32, 32, 4, 4, 0.0, token_embedding_std(llm))
    model = SpeechLLM(build_adaptor(shape, seed=3), llm)
    return Parts(load_encoder(str(home / "whisper.pt")), tokenizer, make_prompt(tokenizer, "Transcribe."), model)


def open_stream(home: Path, tokenizer: Any, *, rank: int, world_size: int) -> SpeechStream:
    return SpeechStream(
        [SpeechDataset(str(home / "shards/train/*.tar"))],
        tokenizer=tokenizer,
        num_mels=80,
        budget=BUDGET,
        max_seconds=20.0,
        seed=1,
        rank=rank,
        world_size=world_size,
    )
