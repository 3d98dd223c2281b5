"""Models of given shapes with random weights, trained on made-up audio: how near training comes to what a device can do."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kappaspeech.config.deepspeed_config import read_deepspeed_config
from kappaspeech.config.training_config import OptimizerConfig
from kappaspeech.model.adaptor import AdaptorShape
from kappaspeech.model.arithmetic import Arithmetic
from kappaspeech.model.attention import MATMUL_ATTENTION, register_matmul_attention
from kappaspeech.model.encoder import EncoderDims, FrozenWhisperEncoder
from kappaspeech.model.flops import ClipLengths, SpeechCost, speech_cost
from kappaspeech.model.freezing import unfreeze
from kappaspeech.model.precision import measure_rate, measure_rates
from kappaspeech.model.speech_llm import SpeechLLM, token_embedding_std
from kappaspeech.model.trained import build_adaptor
from kappaspeech.ranks.start import start_training_cluster
from kappaspeech.ranks.torch_cluster import TorchCluster
from kappaspeech.speech.batches import Features, SpeechBatch, collate
from kappaspeech.training.phases import Phase, PhaseClock
from kappaspeech.training.throughput import count_work
from kappaspeech.training.totals import peak_memory_bytes
from kappaspeech.zero3.engine import MicroBatch, TrainingEngine

NUM_STEPS, NUM_WARM_STEPS = 6, 2
NUM_PROMPT_TOKENS, NUM_LABELS = 20, 60
PRESETS = Path(__file__).parents[1] / "ds_configs"
# in the order in which a selection of smallest κ takes them, once it has its MLPs
ATTENTION = ("v_proj", "k_proj", "q_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Shape:
    """A Llama by `llm` (arguments of `LlamaConfig`), a Whisper encoder (mels, width, heads, layers), and what trains of the LLM:
    `num_unfrozen` matrices, `num_mlp` of them of MLPs, as the smallest κ of a real model are."""

    llm: dict[str, Any]
    encoder: tuple[int, int, int, int]
    adaptor_width: int
    num_unfrozen: int
    num_mlp: int


@dataclass(frozen=True)
class Setup:
    """The training of a shape: a file of ds_configs/, recomputation, micro-batches, MLP matrices other than the shape's, and
    what gradients are added up in, if DeepSpeed's JSON doesn't say so (fp32, bf16).
    """

    preset: str = "zero3"
    recomputes: bool = True
    num_clips: int = 16
    clip_seconds: float = 15.0
    num_micro_batches: int = 1
    num_mlp: int | None = None
    gradients: str | None = None

    @property
    def deepspeed_config(self) -> dict[str, Any]:
        config = read_deepspeed_config(PRESETS / f"{self.preset}.json")
        return {**config, "data_types": {"grad_accum_dtype": self.gradients}} if self.gradients else config


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
        num_mlp=40,
    ),
    "llama-3.2-1b": Shape(
        llm={
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 128256,
            "tie_word_embeddings": True,
        },
        encoder=(80, 768, 12, 12),
        adaptor_width=2048,
        num_unfrozen=50,
        num_mlp=24,
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
        num_mlp=3,
    ),
}
TINY_SETUP = Setup(preset="zero3_cpu", recomputes=False, num_clips=4, clip_seconds=2.0)


def train_shape(shape: Shape, device: torch.device) -> dict[str, Any]:
    """Tokens a second, peak memory and utilisation of one card's safe way to train a shape."""
    setup = Setup() if device.type == "cuda" else TINY_SETUP
    training = ShapeTraining(shape, setup, device, cluster=start_training_cluster())
    found = {**training.facts, **training.measure()}
    training.close()
    return found


class WaitingClock(PhaseClock):
    """Waits, if it is told to, for the GPU at the end of a phase, so that each has what it gave the GPU to do."""

    waits = False

    def enter(self, phase: Phase) -> None:
        if self.waits and torch.cuda.is_available():
            torch.cuda.synchronize()
        super().enter(phase)


class ShapeTraining:
    """A shape under the engine, and a step of it on made-up audio that can be taken again and again."""

    def __init__(self, shape: Shape, setup: Setup, device: torch.device, *, cluster: TorchCluster) -> None:
        torch.manual_seed(0)
        self.setup, self.device, self.clock = setup, device, WaitingClock()
        arithmetic = Arithmetic.of("bfloat16", measure_rates(device))
        self._rate = measure_rate(device, torch.bfloat16)
        began = time.perf_counter()
        with device:
            self.encoder = make_encoder(shape)
            self.model = make_model(shape, arithmetic.attention, num_mlp=setup.num_mlp)
        if setup.recomputes:
            self.model.llm.gradient_checkpointing_enable({"use_reentrant": False})
        self.engine = TrainingEngine(
            self.model,
            cluster=cluster,
            deepspeed_config=arithmetic.resolve(setup.deepspeed_config),
            optimizer=OptimizerConfig(),
            micro_batches_per_rank=setup.num_micro_batches,
            on_phase=self.clock.enter,
        )
        self.batch = make_batch(shape, setup)
        self.work = StepSize.of(speech_cost(self.encoder, self.model, num_prompt_tokens=NUM_PROMPT_TOKENS), self.batch, setup)
        # what the start has freed would count as the steps' memory
        gc.collect()
        self.facts = {
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "num_parameters": sum(p.ds_numel for p in self.model.parameters()),
            "num_trained_parameters": sum(p.ds_numel for p in self.model.parameters() if p.requires_grad),
            "start_seconds": time.perf_counter() - began,
            "start_peak_memory_bytes": peak_memory_bytes(),
            "matmul_flops_per_second": self._rate,
        }
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
            self.facts["state_bytes"] = torch.cuda.memory_allocated(device)

    def measure(
        self, *, seconds: float = float("inf"), on_step: Callable[[list[float]], None] = lambda _: None
    ) -> dict[str, Any]:
        """The speed of steps after those that warm up, of as many as `seconds` allow, two at least; `on_step` hears of each."""
        ends = time.perf_counter() + seconds
        taken: list[float] = []
        while len(taken) < NUM_WARM_STEPS + NUM_STEPS:
            if len(taken) >= NUM_WARM_STEPS + 2 and time.perf_counter() + taken[-1] > ends:
                break
            taken.append(self.step())
            on_step(taken)
        measured = sorted(taken[NUM_WARM_STEPS:])
        median = measured[len(measured) // 2]
        found = {
            "seconds_per_step": median,
            "seconds_of_each_step": taken,
            "tokens_per_second": self.work.num_llm_tokens / median,
            "audio_seconds_per_second": self.work.audio_seconds / median,
            "mfu": self.work.flops / median / self._rate,
            "hardware_utilisation": self.work.computed_flops / median / self._rate,
            "flops_per_step": self.work.flops,
            "peak_memory_bytes": peak_memory_bytes(),
        }
        if self.device.type == "cuda":
            found["peak_reserved_bytes"] = torch.cuda.max_memory_reserved(self.device)
        return found

    def step(self) -> float:
        """The seconds of one step, encoder included."""
        prefix = torch.arange(NUM_PROMPT_TOKENS, device=self.device)
        began = time.perf_counter()
        count = self.setup.num_micro_batches
        result = self.engine.step(
            # each is encoded just before its own pass
            (self._encode() for _ in range(count)),
            prefix_ids=prefix[: NUM_PROMPT_TOKENS // 2],
            suffix_ids=prefix[NUM_PROMPT_TOKENS // 2 :],
            num_target_tokens=self.batch.num_target_tokens * count,
            seeds=[0] * count,
        )
        self.clock.enter("rest")
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.last_loss_nats = result.loss_sum_nats / (self.batch.num_target_tokens * count)
        return time.perf_counter() - began

    def phase_seconds(self) -> dict[Phase, float]:
        """Seconds of a step by phase, each waited for."""
        self.clock.waits = True
        self.clock.take_seconds()
        self.step()
        self.clock.waits = False
        return self.clock.take_seconds()

    def _encode(self) -> MicroBatch:
        self.clock.enter("encoder")
        states, num_states = self.encoder(self.batch.audio_input.to(self.device), self.batch.num_frames.to(self.device))
        return MicroBatch(states, num_states, self.batch.label_ids.to(self.device))

    def close(self) -> None:
        self.engine.close()


@dataclass(frozen=True)
class StepSize:
    """The size of a step: `flops` that the model needs, `computed_flops` with what recomputation adds."""

    num_llm_tokens: int
    audio_seconds: float
    flops: int
    computed_flops: int

    @staticmethod
    def of(cost: SpeechCost, batch: SpeechBatch, setup: Setup) -> StepSize:
        work = count_work(cost, [batch] * setup.num_micro_batches)
        num_frames = batch.num_frames.tolist()
        lengths = [cost.num_llm_tokens(ClipLengths(count, NUM_LABELS)) for count in num_frames] * setup.num_micro_batches
        # the LLM's layers alone are recomputed
        again = cost.llm.forward(lengths) if setup.recomputes else 0
        audio_seconds = sum(num_frames) / 100 * setup.num_micro_batches
        return StepSize(work.num_llm_tokens, audio_seconds, work.flops, work.flops + again)


def make_encoder(shape: Shape) -> FrozenWhisperEncoder:
    from whisper.model import AudioEncoder

    num_mels, width, num_heads, num_layers = shape.encoder
    whisper = AudioEncoder(num_mels, 1500, width, num_heads, num_layers).to(torch.bfloat16)
    for module in whisper.modules():
        if isinstance(module, nn.LayerNorm):
            # as Whisper computes them
            module.float()
    return FrozenWhisperEncoder(whisper, EncoderDims(num_mels, width, 1500))


def make_model(shape: Shape, attention: str, *, num_mlp: int | None = None) -> SpeechLLM:
    from transformers import LlamaConfig, LlamaForCausalLM

    if attention == MATMUL_ATTENTION:
        register_matmul_attention()
    before = torch.get_default_dtype()
    # in float32 first, an 8B model would take 32 GB
    torch.set_default_dtype(torch.bfloat16)
    try:
        llm = LlamaForCausalLM(LlamaConfig(**shape.llm, attn_implementation=attention, dtype="bfloat16"))
    finally:
        torch.set_default_dtype(before)
    unfreeze(llm, choose_tensors(llm, shape, num_mlp=num_mlp))
    options = AdaptorShape(shape.encoder[1], llm.config.hidden_size, shape.adaptor_width, 4, 4, 0.0, token_embedding_std(llm))
    return SpeechLLM(build_adaptor(options, seed=0).to(torch.bfloat16), llm)


def choose_tensors(llm: nn.Module, shape: Shape, *, num_mlp: int | None = None) -> dict[str, tuple[int, ...]]:
    """Names and shapes of `num_unfrozen` matrices: of MLPs in layers at random, then v of every layer, then k, q and o."""
    matrices = {name: tuple(p.shape) for name, p in llm.named_parameters() if p.ndim == 2 and ".layers." in name}
    mlp = [name for name in matrices if name.split(".")[-2] in MLP]
    order = torch.randperm(len(mlp), generator=torch.Generator().manual_seed(0), device="cpu").tolist()
    chosen = [mlp[index] for index in order[: shape.num_mlp if num_mlp is None else num_mlp]]
    attention = [name for kind in ATTENTION for name in matrices if name.split(".")[-2] == kind]
    chosen += attention[: shape.num_unfrozen - len(chosen)]
    return {name: matrices[name] for name in chosen}


def make_batch(shape: Shape, setup: Setup) -> SpeechBatch:
    rng = torch.Generator().manual_seed(0)
    labels = tuple(range(3, 3 + NUM_LABELS))
    frames = int(setup.clip_seconds * 100)
    noise = [torch.randn(shape.encoder[0], frames, generator=rng).numpy() for _ in range(setup.num_clips)]
    rows = [Features(str(index), "en", features, labels) for index, features in enumerate(noise)]
    return collate(rows, num_mels=shape.encoder[0], keys=[row.key for row in rows])
