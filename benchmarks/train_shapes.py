"""Models of given shapes with random weights, trained on made-up audio: how near training comes to what a device can do."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.cluster import start_training_cluster
from pipeline.config import OptimizerConfig, read_deepspeed_config
from pipeline.model.adaptor import AdaptorShape
from pipeline.model.encoder import EncoderDims, FrozenWhisperEncoder
from pipeline.model.flops import speech_cost
from pipeline.model.freezing import unfreeze
from pipeline.model.precision import measure_rate, measure_rates
from pipeline.model.speech_llm import SpeechLLM, token_embedding_std
from pipeline.model.trained import build_adaptor
from pipeline.speech.batches import Features, SpeechBatch, collate
from pipeline.training.arithmetic import Arithmetic
from pipeline.training.engine import MicroBatch, TrainingEngine
from pipeline.training.speed import count_work
from pipeline.training.tally import peak_memory_bytes

NUM_STEPS, NUM_WARM_STEPS = 6, 2
NUM_PROMPT_TOKENS, NUM_LABELS = 20, 60
PRESETS = Path(__file__).parents[1] / "ds_configs"


@dataclass(frozen=True)
class Shape:
    """A Llama by `llm` (arguments of `LlamaConfig`), a Whisper encoder (mels, width, heads, layers), and a micro-batch."""

    llm: dict[str, int]
    encoder: tuple[int, int, int, int]
    adaptor_width: int
    num_unfrozen: int
    num_clips: int
    clip_seconds: float


SHAPES = {
    "llama-3.1-8b": Shape(
        llm={
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 128256,
        },
        encoder=(128, 1280, 20, 32),
        adaptor_width=2048,
        num_unfrozen=100,
        num_clips=16,
        clip_seconds=15.0,
    ),
    "tiny": Shape(
        llm={
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 300,
        },
        encoder=(80, 32, 2, 2),
        adaptor_width=64,
        num_unfrozen=5,
        num_clips=4,
        clip_seconds=2.0,
    ),
}


def train_shape(shape: Shape, device: torch.device) -> dict[str, Any]:
    """Tokens a second, peak memory and MFU of steps of one micro-batch, without checkpointing of activations."""
    cluster = start_training_cluster()
    torch.manual_seed(0)
    arithmetic = Arithmetic.of("bfloat16", measure_rates(device))
    preset = read_deepspeed_config(PRESETS / ("zero3.json" if device.type == "cuda" else "zero3_cpu.json"))
    with device:
        encoder = make_encoder(shape)
        model = make_model(shape, arithmetic.attention)
    engine = TrainingEngine(
        model,
        cluster=cluster,
        deepspeed_config=arithmetic.resolve(preset),
        optimizer=OptimizerConfig(),
        micro_batches_per_rank=1,
    )
    rate = measure_rate(device, torch.bfloat16)
    batch = make_batch(shape)
    work = count_work(speech_cost(encoder, model, num_prompt_tokens=NUM_PROMPT_TOKENS), [batch])
    seconds = [step_seconds(engine, encoder, batch, device) for _ in range(NUM_WARM_STEPS + NUM_STEPS)]
    median = sorted(seconds[NUM_WARM_STEPS:])[NUM_STEPS // 2]
    engine.close()
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "num_parameters": sum(p.ds_numel for p in model.parameters()),
        "num_trained_parameters": sum(p.ds_numel for p in model.parameters() if p.requires_grad),
        "seconds_per_step": median,
        "tokens_per_second": work.num_llm_tokens / median,
        "audio_seconds_per_second": shape.num_clips * shape.clip_seconds / median,
        "matmul_flops_per_second": rate,
        "mfu": work.flops / median / rate,
        "peak_memory_bytes": peak_memory_bytes(),
    }


def make_encoder(shape: Shape) -> FrozenWhisperEncoder:
    from whisper.model import AudioEncoder

    num_mels, width, num_heads, num_layers = shape.encoder
    whisper = AudioEncoder(num_mels, 1500, width, num_heads, num_layers).to(torch.bfloat16)
    for module in whisper.modules():
        if isinstance(module, nn.LayerNorm):
            # as Whisper computes them
            module.float()
    return FrozenWhisperEncoder(whisper, EncoderDims(num_mels, width, 1500))


def make_model(shape: Shape, attention: str) -> SpeechLLM:
    from transformers import LlamaConfig, LlamaForCausalLM

    llm = LlamaForCausalLM(LlamaConfig(**shape.llm, attn_implementation=attention, dtype="bfloat16")).to(torch.bfloat16)
    names = [(name, tuple(p.shape)) for name, p in llm.named_parameters() if p.ndim == 2 and ".layers." in name]
    chosen = torch.randperm(len(names), device="cpu")[: shape.num_unfrozen].tolist()
    unfreeze(llm, dict(names[index] for index in chosen))
    options = AdaptorShape(shape.encoder[1], llm.config.hidden_size, shape.adaptor_width, 4, 4, 0.0, token_embedding_std(llm))
    return SpeechLLM(build_adaptor(options, seed=0).to(torch.bfloat16), llm)


def make_batch(shape: Shape) -> SpeechBatch:
    rng = torch.Generator().manual_seed(0)
    labels = tuple(range(3, 3 + NUM_LABELS))
    frames = int(shape.clip_seconds * 100)
    noise = [torch.randn(shape.encoder[0], frames, generator=rng).numpy() for _ in range(shape.num_clips)]
    rows = [Features(str(index), "en", features, labels) for index, features in enumerate(noise)]
    return collate(rows, num_mels=shape.encoder[0], keys=[row.key for row in rows])


def step_seconds(engine: TrainingEngine, encoder: FrozenWhisperEncoder, batch: SpeechBatch, device: torch.device) -> float:
    prefix = torch.arange(NUM_PROMPT_TOKENS, device=device)
    began = time.perf_counter()
    states, num_states = encoder(batch.log_mel.to(device), batch.num_frames.to(device))
    engine.step(
        [MicroBatch(states, num_states, batch.label_ids.to(device))],
        prefix_ids=prefix[: NUM_PROMPT_TOKENS // 2],
        suffix_ids=prefix[NUM_PROMPT_TOKENS // 2 :],
        num_target_tokens=batch.num_target_tokens,
        seeds=[0],
    )
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began
