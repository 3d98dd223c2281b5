"""Shared by both sides of the parity tests: models, data, options and cases, and nothing of how a step is computed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from kappaspeech.config.model_config import LoraConfig, UnfreezeConfig
from kappaspeech.config.training_config import OptimizerConfig
from kappaspeech.model.adaptor import AdaptorShape
from kappaspeech.model.encoder import FrozenWhisperEncoder, load_encoder
from kappaspeech.model.llm import load_llm, load_tokenizer
from kappaspeech.model.marking import mark_trained
from kappaspeech.model.packed_rows import pack_rows
from kappaspeech.model.recomputation import recompute_layers
from kappaspeech.model.speech_llm import SpeechLLM, token_embedding_std
from kappaspeech.model.trained import build_adaptor
from kappaspeech.selection.tensor_selection import SelectedTensor, TensorSelection
from kappaspeech.speech.corpus import SpeechDataset
from kappaspeech.speech.prompt import SpeechPrompt, make_prompt
from kappaspeech.speech.schedule import BatchBudget
from kappaspeech.speech.stream import SpeechStream
from kappaspeech.zero3.classp import Classp
from tests import tiny

NUM_STEPS = 20
FEW_STEPS = 5
# three micro-batches: on two ranks one of them fills up with a zero-weight batch
BUDGET = BatchBudget(max_samples=2, max_seconds=20.0, micro_batches_per_step=3)
# as many as make bfloat16 lose digits
MANY = BatchBudget(max_samples=1, max_seconds=20.0, micro_batches_per_step=48)
OPTIMIZER = OptimizerConfig()
# both tensors of one module's experts, one of another's, and a linear module
EXPERTS = {
    "model.layers.0.mlp.experts.gate_up_proj": (4, 48, 32),
    "model.layers.0.mlp.experts.down_proj": (4, 32, 24),
    "model.layers.1.mlp.experts.down_proj": (4, 32, 24),
    "model.layers.1.self_attn.q_proj.weight": (32, 32),
}
# single experts: of both tensors of one module, several of one, and a linear module
SINGLE_EXPERTS = {
    "model.layers.0.mlp.experts.gate_up_proj[1]": (48, 32),
    "model.layers.0.mlp.experts.gate_up_proj[3]": (48, 32),
    "model.layers.0.mlp.experts.down_proj[1]": (32, 24),
    "model.layers.1.mlp.experts.down_proj[0]": (32, 24),
    "model.layers.1.self_attn.q_proj.weight": (32, 32),
    # as files that have the experts apart call them
    "model.layers.1.mlp.experts.2.up_proj.weight": (24, 32),
}
PRESETS = Path(__file__).parents[2] / "ds_configs"
# everything partitioned, however small
PARTITIONED = Path(__file__).parents[1] / "zero3.json"


@dataclass(frozen=True)
class Case:
    """One way to train; `preset` is a file of ds_configs/, or none, with `changes` to its ZeRO section, and `settings`."""

    mode: str = "selection"
    num_steps: int = NUM_STEPS
    bf16: bool = False
    checkpointing: bool | int = False
    ema_decay: float | None = None
    alignment_weight: float = 0.0
    alignment_steps: int = 0
    experts: Mapping[str, tuple[int, ...]] | None = None
    packs: bool = False
    preset: str | None = None
    # cut and exchanged by DeepSpeed itself
    as_deepspeed: bool = False
    persists_frozen: bool = False
    # a state that is known, when all steps are taken
    saves: bool = False
    # parameters are partitioned in groups of about this size; the tiny model is one group of the engine's own
    partition_bytes: int | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    budget: BatchBudget = BUDGET
    # what holds the LLM to its beginning
    ewc_weight: float | None = None
    kept_share: float | None = None
    classp: Classp | None = None

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.bf16 else torch.float32

    @property
    def deepspeed_config(self) -> dict[str, Any]:
        content = json.loads((PRESETS / f"{self.preset}.json" if self.preset else PARTITIONED).read_text())
        content["bf16"]["enabled"] = self.bf16
        content["zero_optimization"].update(self.changes)
        return {**content, **self.settings}


HPZ = Case(
    preset="zero3_hpz",
    num_steps=FEW_STEPS,
    ema_decay=0.6,
    saves=True,
    partition_bytes=4096,
    # the preset's partitions span the 8 GPUs of a host
    changes={"zero_hpz_partition_size": 2},
)
# what each number of ranks runs, one after the other in the same processes
CASES: dict[int, dict[str, Case]] = {
    1: {
        "selection": Case(saves=True),
        "single experts": Case(experts=SINGLE_EXPERTS, num_steps=FEW_STEPS, ema_decay=0.6),
        "zero3_offload_optimizer": Case(preset="zero3_offload_optimizer", num_steps=FEW_STEPS),
    },
    2: {
        "selection": Case(saves=True),
        "bf16": Case(bf16=True),
        "lora": Case(mode="lora"),
        "packed": Case(packs=True),
        "packed by lora": Case(mode="lora", packs=True, checkpointing=1, num_steps=FEW_STEPS),
        "average": Case(ema_decay=0.6),
        "aligned": Case(alignment_weight=0.5, num_steps=FEW_STEPS),
        "aligned first": Case(alignment_steps=2, num_steps=FEW_STEPS),
        "checkpointed": Case(checkpointing=True),
        "one layer checkpointed": Case(checkpointing=1, num_steps=FEW_STEPS),
        "adaptor": Case(mode="adaptor", num_steps=FEW_STEPS),
        "adaptor checkpointed": Case(mode="adaptor", num_steps=FEW_STEPS, checkpointing=True),
        "experts": Case(experts=EXPERTS, num_steps=FEW_STEPS),
        "experts by lora": Case(mode="lora", experts=EXPERTS, num_steps=FEW_STEPS),
        "single experts": Case(experts=SINGLE_EXPERTS, num_steps=FEW_STEPS, ema_decay=0.6),
        "single experts checkpointed": Case(experts=SINGLE_EXPERTS, num_steps=FEW_STEPS, checkpointing=True),
        "single experts persist": Case(
            experts=SINGLE_EXPERTS, num_steps=FEW_STEPS, preset="zero3_cpu", persists_frozen=True, ema_decay=0.6
        ),
        "zero3_cpu": Case(preset="zero3_cpu", num_steps=FEW_STEPS),
        "zero3_cpu as DeepSpeed": Case(preset="zero3_cpu", num_steps=FEW_STEPS, as_deepspeed=True),
        "frozen persist": Case(num_steps=FEW_STEPS, persists_frozen=True),
        # a part of a layer
        "prefetched little": Case(num_steps=FEW_STEPS, changes={"stage3_prefetch_bucket_size": 1_000}),
        "zero3": Case(preset="zero3", num_steps=FEW_STEPS),
        "zero3_lean": Case(preset="zero3_lean", num_steps=FEW_STEPS),
        "zero3_offload": Case(preset="zero3_offload", num_steps=FEW_STEPS),
        "zero3_offload_optimizer": Case(preset="zero3_offload_optimizer", num_steps=FEW_STEPS),
        "zero3_hpz": HPZ,
        "accumulated": Case(bf16=True, num_steps=1, budget=MANY),
        "reduced in bf16": Case(bf16=True, num_steps=1, budget=MANY, settings={"communication_data_type": "bf16"}),
        "accumulated in bf16": Case(
            bf16=True,
            num_steps=1,
            budget=MANY,
            settings={"communication_data_type": "bf16", "data_types": {"grad_accum_dtype": "bf16"}},
        ),
    },
    3: {"selection": Case(saves=True)},
    # two hosts, as it were
    4: {"zero3_hpz": HPZ},
}
# a threshold at which most of the weights stay
CLASSP = Classp(threshold=1e-6, power=1.5, epsilon=1e-8)
# what any number of ranks runs where it is asked for by name
HELD_CASES = {
    "ewc": Case(mode="all", num_steps=FEW_STEPS, ewc_weight=300.0),
    "ewc aligned first": Case(mode="all", num_steps=FEW_STEPS, ewc_weight=300.0, alignment_steps=2),
    "ewc offloaded": Case(mode="all", num_steps=FEW_STEPS, ewc_weight=300.0, alignment_steps=2, preset="zero3_offload_optimizer"),
    "classp": Case(mode="all", num_steps=FEW_STEPS, classp=CLASSP, alignment_steps=1),
    "osf": Case(num_steps=FEW_STEPS, kept_share=0.5, ema_decay=0.6),
    "osf in bf16": Case(num_steps=FEW_STEPS, kept_share=0.25, bf16=True),
    "osf of experts": Case(num_steps=2, kept_share=0.5, experts=EXPERTS),
}
EWC_TEXTS = ("open the kitchen door", "schalte die rote Lampe ein und öffne die grüne Tür", "the garden is green")


def without_key_bias(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """A trained tensor without the adaptor's bias of all keys, to which softmax is blind: its gradient is rounding alone, which
    Adam makes as large as any other."""
    if not name.endswith("query_key_value.bias"):
        return tensor
    query, _, value = tensor.chunk(3)
    return torch.cat([query, value])


@dataclass(frozen=True)
class Parts:
    encoder: FrozenWhisperEncoder
    tokenizer: Any
    prompt: SpeechPrompt
    model: SpeechLLM


def build_parts(home: Path, case: Case) -> Parts:
    """The tiny model, with what its case trains unfrozen. LoRA takes every linear module: a selection may hold embeddings."""
    tokenizer = load_tokenizer(str(home / "llm"))
    llm = make_experts(len(tokenizer)) if case.experts else load_llm(str(home / "llm"), dtype=case.dtype)
    shape = AdaptorShape(tiny.ENCODER_WIDTH, 32, 32, 4, 4, 0.0, token_embedding_std(llm))
    selection = TensorSelection.read(home / "selection.json") if case.mode == "selection" else None
    if case.experts:
        tensors = tuple(SelectedTensor(*item, kappa=1.0) for item in case.experts.items())
        selection = TensorSelection("by hand", "", "", "", tensors)
    options = UnfreezeConfig(
        mode=case.mode,
        selection="by hand" if selection else None,
        lora=LoraConfig(rank=4, alpha=16.0, dropout=0.0) if case.mode == "lora" else None,
    )
    mark_trained(llm, options, selection, seed=3)
    recompute_layers(llm, case.checkpointing)
    model = SpeechLLM(
        build_adaptor(shape, seed=3).to(case.dtype),
        llm,
        alignment_weight=case.alignment_weight,
        packs=case.packs and pack_rows(llm, "sdpa"),
    )
    return Parts(load_encoder(str(home / "whisper.pt")), tokenizer, make_prompt(tokenizer, "Transcribe."), model)


def make_experts(vocab_size: int) -> Any:
    """A two-layer mixture of four fused experts."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        moe_intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=512,
    )
    return Qwen3MoeForCausalLM(config).eval()


def open_stream(home: Path, tokenizer: Any, *, rank: int, world_size: int, budget: BatchBudget = BUDGET) -> SpeechStream:
    return SpeechStream(
        [SpeechDataset(str(home / "shards/train/*.tar"))],
        tokenizer=tokenizer,
        num_mels=80,
        budget=budget,
        max_seconds=20.0,
        seed=1,
        rank=rank,
        world_size=world_size,
    )
