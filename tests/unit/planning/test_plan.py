"""Plans: arithmetic held against torch's own count of what it keeps, and against what ZeRO-3 and the budget must do."""

from __future__ import annotations

import json
import math
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from kappaspeech.commands import main
from kappaspeech.config.model_config import LoraConfig, UnfreezeConfig
from kappaspeech.config.run_config import read_run_config
from kappaspeech.evaluation import forgetting
from kappaspeech.model.lora import LoraShape, adapted_experts, add_lora, has_dropout
from kappaspeech.model.recomputation import recompute_layers
from kappaspeech.planning import evaluation_memory as memory
from kappaspeech.planning.batches import sizes_by_budget, sizes_by_lengths
from kappaspeech.planning.duration import Rates
from kappaspeech.planning.evaluation_memory import TextLengths, count_scoring
from kappaspeech.planning.memory import (
    count_live,
    count_state,
    count_tokens,
    kept_bytes_per_token,
    read_settings,
)
from kappaspeech.planning.meta_model import build_meta_model
from kappaspeech.planning.plan import ASSUMED_RANGE
from kappaspeech.planning.planner import Planner, estimate_anchored, measure_texts
from kappaspeech.planning.sizes import LlmSizes, SpeechSizes, count_kept_inputs
from kappaspeech.runs.plan_comparison import compare_with_run
from kappaspeech.selection.tensor_selection import SelectedTensor, TensorSelection
from kappaspeech.speech.schedule import BatchBudget, ClipTokens
from tests import families, tiny

REPOSITORY = Path(__file__).parents[3]
WIDTH, INNER, HEADS, KEY_HEADS = 64, 176, 4, 2
RATES = Rates(1e12, 1e9)


@pytest.fixture
def config(home, tmp_path):
    return read_run_config(tiny.write_config(tmp_path / "run.yaml", home, tmp_path / "run"))


def make_llama(
    num_layers: int, trained: str | None, dtype: torch.dtype, attention: str = "sdpa", lora: LoraShape | None = None
) -> torch.nn.Module:
    """A Llama whose weights with `trained` in their names train, or by LoRA, if it is given, factors of them."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": WIDTH, "intermediate_size": INNER, "num_attention_heads": HEADS, "num_key_value_heads": KEY_HEADS}
    config = LlamaConfig(vocab_size=64, num_hidden_layers=num_layers, attn_implementation=attention, **shape)
    llm = LlamaForCausalLM(config).to(dtype).requires_grad_(False)
    for name, parameter in llm.named_parameters():
        parameter.requires_grad_(trained is not None and trained in name)
    if lora is not None:
        add_lora(llm, [name for name, p in llm.named_parameters() if p.requires_grad], lora, seed=1)
    return llm.train()


def kept_by_torch(llm: torch.nn.Module) -> float:
    """Bytes a token that `llm` keeps for its backward, weights aside."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in llm.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    inputs = torch.randn(3, 32, WIDTH, dtype=llm.dtype, requires_grad=True)
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        llm.model(inputs_embeds=inputs, use_cache=False)
        return sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) / 96


def kept_a_layer(*options: Any, **named: Any) -> float:
    """Bytes a token that a layer of `make_llama` with these options keeps."""
    return kept_by_torch(make_llama(3, *options, **named)) - kept_by_torch(make_llama(2, *options, **named))


def counted_a_layer(*options: Any, **named: Any) -> float:
    """Bytes a token that the plan counts for it, squares of attention aside."""
    llm = make_llama(1, *options, **named)
    fused = llm.config._attn_implementation == "sdpa"
    key_width = WIDTH * KEY_HEADS // HEADS
    sizes = LlmSizes(WIDTH, INNER, WIDTH, key_width, HEADS, 1, 64, (1,), 0, 0, fused_attention=fused)
    inputs = count_kept_inputs(
        {name: p.shape for name, p in llm.named_parameters() if p.requires_grad},
        width=WIDTH,
        inner_width=INNER,
        query_width=WIDTH,
        fused_attention=fused,
        has_dropout=has_dropout(llm),
    )
    return kept_bytes_per_token(sizes, itemsize=llm.dtype.itemsize) + llm.dtype.itemsize * inputs


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("trained", [None, "q_proj", "o_proj", "gate_proj", "down_proj", "post_attention_layernorm"])
def test_a_layer_keeps_what_torch_keeps(trained, dtype):
    assert kept_a_layer(trained, dtype) == pytest.approx(counted_a_layer(trained, dtype), rel=1e-9)


@pytest.mark.parametrize("trained", [None, "o_proj"])
def test_attention_by_products_keeps_its_weights_and_its_output_projections_input(trained):
    from kappaspeech.model.attention import register_matmul_attention

    options = (trained, torch.bfloat16, register_matmul_attention())
    # 32 positions attend to 32
    assert kept_a_layer(*options) == pytest.approx(counted_a_layer(*options) + 2 * HEADS * 32, rel=1e-9)
    assert kept_a_layer(*options) != kept_a_layer(trained, torch.bfloat16)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("adapted", ["q_proj", "self_attn", "mlp", "_proj"])
def test_lora_keeps_what_torch_keeps(adapted, dropout):
    """Arms of equal parameters have ranks of hundreds, whose elements factors B keep: they weren't counted."""
    options = {"dtype": torch.bfloat16, "lora": LoraShape(24, 48.0, dropout)}
    assert kept_a_layer(adapted, **options) == pytest.approx(counted_a_layer(adapted, **options), rel=1e-9)


def test_the_meta_model_has_the_parameters_of_the_real_one(home, config):
    from kappaspeech.model.llm import load_llm

    encoder, model = build_meta_model(config)
    real = load_llm(str(home / "llm"), dtype=torch.bfloat16)
    assert {n: p.shape for n, p in model.llm.named_parameters()} == {n: p.shape for n, p in real.named_parameters()}
    selected = {entry["name"] for entry in json.loads((home / "selection.json").read_text())["tensors"]}
    assert {name for name, p in model.llm.named_parameters() if p.requires_grad} == selected
    assert (encoder.dims.num_mels, encoder.dims.width, len(encoder.whisper.blocks)) == (80, tiny.ENCODER_WIDTH, 1)
    assert all(p.is_meta for p in (*model.parameters(), *encoder.parameters()))


@pytest.mark.parametrize("unfreeze", [{"mode": "all"}, {"mode": "lora"}, {"mode": "adaptor"}])
def test_what_trains_on_the_meta_device_is_what_trains(home, tmp_path, unfreeze):
    from kappaspeech.training.assembly import assemble

    config = read_run_config(tiny.write_config(tmp_path / "run.yaml", home, tmp_path / "run", unfreeze=unfreeze))
    _, model = build_meta_model(config)
    real = assemble(config, tiny.ARITHMETIC).model
    assert [(n, p.shape, p.requires_grad) for n, p in model.named_parameters()] == [
        (n, p.shape, p.requires_grad) for n, p in real.named_parameters()
    ]


@pytest.mark.parametrize(("mode", "train"), [("all", True), ("adaptor", False)])
def test_a_plan_knows_if_the_token_embeddings_train(home, tmp_path, mode, train):
    config = read_run_config(tiny.write_config(tmp_path / "run.yaml", home, tmp_path / "run", unfreeze={"mode": mode}))
    modules = build_meta_model(config)
    number = modules[1].llm.get_input_embeddings().weight.numel()
    assert Planner(config, modules=modules).sizes.llm.trained_embeddings == (number if train else 0)


def test_a_plan_counts_what_loras_factors_read(home, tmp_path):
    def count(**options):
        unfreeze = {"mode": "lora", "lora": options}
        config = read_run_config(tiny.write_config(tmp_path / "run.yaml", home, tmp_path / "run", unfreeze=unfreeze))
        return Planner(config, modules=build_meta_model(config)).sizes.llm.kept_inputs

    # in each of two layers attention's input, the MLP's and its inner states, and of seven modules a rank's elements
    assert count(rank=5) == 2 * (32 + 32 + 48 + 7 * 5)
    # an input of its own for each module, and a mask
    assert count(rank=5, dropout=0.1) == 2 * (2 * (6 * 32 + 48) + 7 * 5)


def test_a_plan_knows_that_single_experts_have_state_of_their_own_and_their_tensor_a_whole_gradient(config, tmp_path):
    families.make_llm("Mixtral").save_pretrained(tmp_path / "llm")
    down = [f"model.layers.0.block_sparse_moe.experts.{expert}.w2.weight" for expert in (0, 3)]
    TensorSelection("", "", "", "", tuple(SelectedTensor(name, (32, 48), 2.0) for name in down)).write(tmp_path / "s.json")
    model = config.model.model_copy(update={"llm": str(tmp_path / "llm")})
    unfreeze = config.unfreeze.model_copy(update={"selection": str(tmp_path / "s.json")})
    adaptor = config.unfreeze.model_copy(update={"mode": "adaptor", "selection": None})
    config = config.model_copy(update={"model": model})
    sizes, frozen = (
        Planner(each, modules=build_meta_model(each)).sizes.llm
        for each in (config.model_copy(update={"unfreeze": options}) for options in (unfreeze, adaptor))
    )
    assert (sizes.num_trained, frozen.num_trained) == (2 * 32 * 48, 0)
    assert sizes.num_parameters - sizes.num_trained == frozen.num_parameters
    assert (sizes.fused_elements, frozen.fused_elements) == (4 * 32 * 48, 0)
    (plan,) = plans(config.model_copy(update={"unfreeze": unfreeze}), 2)
    assert {part.name: part.num_bytes for part in plan.step_parts}["gradient of fused experts"] == 4 * 32 * 48 * 2


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm"])
def test_autograd_keeps_fused_experts_whole_until_their_backward_as_is_counted_unless_it_computes_them_again(implementation):
    """As if ZeRO-3 had let go of the parameter in between."""
    kept = {}
    for recomputed in (False, True):
        llm = families.make_llm("Mixtral").requires_grad_(False)
        llm.set_experts_implementation(implementation)
        recompute_layers(llm.train(), recomputed)
        parameter = llm.get_parameter("model.layers.0.mlp.experts.gate_up_proj")
        storage = weakref.ref(parameter.data.untyped_storage())
        embeds = llm.get_input_embeddings()(torch.arange(9)[None]).requires_grad_()
        loss = llm(inputs_embeds=embeds, use_cache=False).logits.sum()
        parameter.data = torch.empty(0)
        kept[recomputed] = storage() is not None
        del loss
    assert kept == {False: True, True: False}


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm"])
def test_autograd_keeps_fused_experts_with_loras_change_and_not_themselves(implementation):
    llm = families.make_llm("Mixtral").requires_grad_(False)
    llm.set_experts_implementation(implementation)
    experts = {name: p for name, p in llm.named_parameters() if p.dim() == 3}
    add_lora(llm, list(experts), LoraShape(3, 6.0, 0.0), seed=1)
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    embeds = llm.get_input_embeddings()(torch.arange(9)[None]).requires_grad_()
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = llm(inputs_embeds=embeds, use_cache=False).logits
    assert not kept.keys() & {p.untyped_storage().data_ptr() for p in experts.values()}
    least = min(p.nbytes for p in experts.values())
    assert logits.requires_grad
    assert sum(num_bytes for num_bytes in kept.values() if num_bytes >= least) == sum(p.nbytes for p in experts.values())
    assert {id(p) for p in adapted_experts(llm).values()} == {id(p) for p in experts.values()}


def test_a_plan_counts_fused_experts_with_loras_change(config, tmp_path):
    families.make_llm("Mixtral").save_pretrained(tmp_path / "llm")
    name, shape = "model.layers.0.mlp.experts.down_proj", (4, 32, 48)
    TensorSelection("", "", "", "", (SelectedTensor(name, shape, 2.0),)).write(tmp_path / "s.json")
    unfreeze = UnfreezeConfig(mode="lora", selection=str(tmp_path / "s.json"), lora=LoraConfig(rank=3))
    model = config.model.model_copy(update={"llm": str(tmp_path / "llm")})
    config = config.model_copy(update={"model": model, "unfreeze": unfreeze})
    sizes = Planner(config, modules=build_meta_model(config)).sizes.llm
    whole = math.prod(shape)
    assert (sizes.adapted_elements, sizes.fused_elements, sizes.kept_inputs) == (whole, whole, 0)
    # in each of two layers the other tensor is twice as large
    assert sizes.expert_elements == 2 * (2 * whole + whole) - whole
    (plan,) = plans(config, 2)
    parts = {part.name: part.num_bytes for part in plan.step_parts}
    assert parts["fused experts with LoRA"] == parts["gradient of fused experts"] == whole * 2


def test_fused_experts_stay_gathered_until_their_backward_unless_it_computes_them_again():
    zero = {"max_live_parameters": 100, "prefetch_bucket_size": 0, "param_persistence_threshold": 0}
    settings = read_settings({"zero_optimization": {f"stage3_{name}": value for name, value in zero.items()}})
    llm = LlmSizes(8, 8, 8, 8, 1, 4, 10, (100,) * 20, 100, 0, trained_shapes=((10, 10),), expert_elements=1_000)
    sizes = SpeechSizes(llm, (), 8, 1, 4, 8, 80, 1, 2, 100, pad_to_30s=False)
    counted = [count_live(sizes, settings, world_size=2, num_recomputed=number) for number in (0, 3, 4)]
    assert [num_bytes // settings.itemsize for num_bytes in counted] == [1_100, 350, 100]
    assert count_live(sizes, settings, world_size=1) == 0
    assert count_live(sizes, replace(settings, keeps_frozen=True), world_size=2) == 100 * settings.itemsize


def plans(config, *counts: int, **options):
    planner = Planner(config, modules=build_meta_model(config))
    return [planner.plan(n, rates=RATES, prompt_tokens=20, **options) for n in counts]


def test_partitioned_parts_fall_as_one_over_the_ranks(config):
    one, four = ({part.name: part.num_bytes for part in plan.parts} for plan in plans(config, 1, 4))
    for name in ("frozen weights", "trained weights", "fp32 master, Adam", "gradients"):
        assert four[name] == one[name] // 4
    assert four["encoder"] == one["encoder"]


def test_checkpointing_trades_memory_for_computation(config):
    checkpointed = config.model_copy(update={"training": config.training.model_copy(update={"activation_checkpointing": True})})
    (plain,), (again,) = plans(config, 2), plans(checkpointed, 2)
    assert again.step_bytes < plain.step_bytes
    assert again.step_time.recomputation > plain.step_time.recomputation == 0


def test_a_plan_gathers_as_far_ahead_as_the_engine(config, tmp_path):
    from kappaspeech.planning.sizes import largest_layer

    (tmp_path / "zero3.json").write_text(json.dumps({"zero_optimization": {"stage": 3}}))
    modules = build_meta_model(config)
    planner = Planner(config.model_copy(update={"deepspeed": str(tmp_path / "zero3.json")}), modules=modules)
    # queries, keys, values and outputs; the MLP; two norms
    assert largest_layer(modules[1].llm) == 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48 + 2 * 32
    assert planner._settings.prefetch == 2 * largest_layer(modules[1].llm)


def test_as_few_layers_are_computed_again_as_memory_asks_for(config):
    def plan(wanted, memory_bytes=None):
        training = config.training.model_copy(update={"activation_checkpointing": wanted})
        (made,) = plans(config.model_copy(update={"training": training}), 2, memory_bytes=memory_bytes)
        return made

    none, one, both = (plan(number) for number in (0, 1, 2))
    assert both == plan(True)
    assert none.peak_bytes > one.peak_bytes
    # all of the last layer is there when the backward begins, be it kept or computed again
    assert both.peak_bytes >= one.peak_bytes
    assert (none.step_time.recomputation, one.step_time.recomputation) == (0, both.step_time.recomputation / 2)
    # a tenth is left for what a plan doesn't know
    for made in (none, one):
        assert plan("auto", int(made.peak_bytes / 0.9) + 2).num_recomputed == made.num_recomputed
    assert plan("auto").num_recomputed == plan("auto", 1).num_recomputed == 1


def test_frozen_weights_stay_whole_where_the_json_leaves_it_to_the_memory_and_they_fit(config, tmp_path):
    def plan(threshold, memory_bytes=None):
        zero = {"stage": 3, "stage3_param_persistence_threshold": threshold}
        (tmp_path / "zero3.json").write_text(json.dumps({"zero_optimization": zero}))
        chosen = config.model_copy(update={"deepspeed": str(tmp_path / "zero3.json")})
        (made,) = plans(chosen, 2, memory_bytes=memory_bytes)
        return made

    apart, whole = plan(100_000, 10**12), plan("auto", 10**12)
    assert (apart.keeps_frozen, whole.keeps_frozen) == (False, True)
    assert not plan("auto").keeps_frozen
    assert not plan("auto", int(whole.peak_bytes / 0.9) - 2).keeps_frozen
    # below DeepSpeed's threshold they do so anyway
    assert whole.state_bytes == apart.state_bytes
    nothing, frozen = plan(0, 10**12), next(part for part in whole.parts if part.name == "frozen weights kept whole")
    assert nothing.state_bytes < apart.state_bytes
    assert frozen.num_bytes == 0


def test_a_moving_average_takes_four_bytes_a_trained_parameter(config):
    averaged = config.model_copy(update={"training": config.training.model_copy(update={"ema_decay": 0.99})})
    (plain,), (more,) = plans(config, 2), plans(averaged, 2)
    sizes = Planner(config, modules=build_meta_model(config)).sizes
    assert more.state_bytes - plain.state_bytes == 4 * (sizes.llm.num_trained + sizes.num_adaptor_parameters) // 2


def test_a_checkpoints_copy_takes_what_a_ranks_share_of_its_files_does(config):
    averaged = config.model_copy(update={"training": config.training.model_copy(update={"ema_decay": 0.99})})
    (plain,), (more,) = plans(config, 4), plans(averaged, 4)
    sizes = Planner(config, modules=build_meta_model(config)).sizes
    trained = sizes.llm.num_trained + sizes.num_adaptor_parameters
    assert (plain.checkpoint_copy_bytes, more.checkpoint_copy_bytes) == (12 * trained // 4, 16 * trained // 4)
    # it is no part of what a step needs: without it the steps wait
    assert plain.step_bytes == replace(plain, checkpoint_copy_bytes=0).step_bytes


def test_offloading_the_optimizer_leaves_the_weights_that_are_computed_with(config):
    sizes = Planner(config, modules=build_meta_model(config)).sizes
    content = {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}, "bf16": {"enabled": True}}
    parts = {part.name: part for part in count_state(sizes, read_settings(content), world_size=1)}
    trained = sizes.llm.num_trained + sizes.num_adaptor_parameters
    assert not parts["trained weights"].on_host
    assert parts["trained weights"].num_bytes == 2 * trained
    # master weights, two moments, gradients as they are added up, and the copy that AdamW reads
    on_host = sum(part.num_bytes for part in parts.values() if part.on_host)
    assert on_host == 5 * 4 * trained


def test_offload_moves_the_optimizer_to_the_host():
    settings = {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}, "bf16": {"enabled": True}}
    assert read_settings(settings).optimizer_on_host
    assert not read_settings({"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "none"}}}).optimizer_on_host


@pytest.mark.parametrize(
    "section, gradients, reduced",
    [
        ({}, 4, 4),
        ({"data_types": {"grad_accum_dtype": "bf16"}, "communication_data_type": "bf16"}, 2, 2),
        ({"communication_data_type": "bf16"}, 4, 2),
    ],
)
def test_gradients_are_counted_in_what_they_are_added_up_in(config, section, gradients, reduced):
    content = {"zero_optimization": {"stage": 3, "reduce_bucket_size": 1000}, "bf16": {"enabled": True}, **section}
    sizes = Planner(config, modules=build_meta_model(config)).sizes
    trained = sizes.llm.num_trained + sizes.num_adaptor_parameters
    assert trained > 1000
    one, two = ({part.name: part.num_bytes for part in count_state(sizes, read_settings(content), world_size=n)} for n in (1, 2))
    assert two["gradients"] == gradients * trained // 2
    # and its copy in the ranks' order
    assert two["reduce bucket"] == reduced * 2000
    assert one["reduce bucket"] == 2 * 2000


def test_ranks_without_micro_batches_are_told(config):
    assert [plan.idle_share for plan in plans(config, 1, 2, 3, 8)] == [0, 0, pytest.approx(1 / 3), 0.75]


def test_clips_dealt_out_leave_no_rank_idle_and_a_step_shorter(config):
    even = config.model_copy(update={"batch": config.batch.model_copy(update={"even_shares": True})})
    for apart, dealt in zip(plans(config, 1, 2, 8), plans(even, 1, 2, 8), strict=True):
        assert dealt.idle_share == 0
        assert dealt.audio_seconds_per_step == apart.audio_seconds_per_step
        # two micro-batches for eight ranks become eight of a quarter
        share = 1 - apart.idle_share
        assert dealt.step_time.forward == pytest.approx(share * apart.step_time.forward)


def test_packed_clips_are_planned_without_padding(config):
    budget = BatchBudget(max_samples=4, max_seconds=20.0, micro_batches_per_step=2)
    lengths = [np.float32([1, 2, 3, 4])]
    padded, packed = (sizes_by_lengths(lengths, budget, max_seconds=20.0, packs=packs) for packs in (False, True))
    assert (padded.mean.llm_seconds, packed.mean.llm_seconds) == (16, 10)
    sizes = Planner(config, modules=build_meta_model(config)).sizes
    with_padding, without = (count_tokens(item.mean, sizes, prompt_tokens=20) for item in (padded, packed))
    # the encoder, the adaptor and attention have their clips beside each other
    assert (without.states, without.audio, without.squares) == (with_padding.states, with_padding.audio, with_padding.squares)
    assert with_padding.llm == 16 / sizes.seconds_per_audio_token + 16 * 4 + 4 + 4 * 20
    assert without.llm == 10 / sizes.seconds_per_audio_token + 10 * 4 + 4 + 4 * 20
    assert packed.mean.scaled(0.5).llm_seconds == 5

    def plan(packing):
        chosen = config.model_copy(update={"batch": config.batch.model_copy(update={"packing": packing})})
        return Planner(chosen, modules=build_meta_model(chosen), clip_seconds=lengths).plan(1, rates=RATES, prompt_tokens=20)

    # a plan for GPUs packs if that is asked for
    assert plan("auto") == plan(False)
    assert plan(True).step_time.forward < plan(False).step_time.forward
    assert plan(True).step_bytes < plan(False).step_bytes


def test_a_limit_of_tokens_is_planned(config):
    def plan(max_tokens):
        chosen = config.model_copy(update={"batch": config.batch.model_copy(update={"max_tokens": max_tokens})})
        return Planner(chosen, modules=build_meta_model(chosen), prompt_tokens=20).batches

    assert plan(None).mean.num_samples > plan(60).mean.num_samples
    budget = BatchBudget(2, 100.0, 1, 200, ClipTokens(per_clip=20, per_second=16.0))
    # of 200 tokens 40 are two prompts
    assert sizes_by_budget(budget).largest.padded_seconds == 10


def test_micro_batches_are_cut_as_the_schedule_cuts_them():
    budget = BatchBudget(max_samples=4, max_seconds=20.0, micro_batches_per_step=2)
    sizes = sizes_by_lengths([np.float32([1, 1, 1, 1, 8, 9, 40])], budget, max_seconds=20.0)
    assert (sizes.largest.num_samples, sizes.largest.clip_seconds) == (2, 9)
    assert sizes.mean.num_samples == 3
    assert sizes.mean.padded_seconds == pytest.approx((4 + 18) / 2)
    assert sizes_by_budget(budget).largest.padded_seconds == 20
    assert sizes_by_budget(budget).longest_seconds is None
    # nine clips of 2 s fill more than the longest alone
    several = sizes_by_lengths([np.float32([2] * 9 + [12])], BatchBudget(9, 20.0, 2), max_seconds=20.0)
    assert (several.largest.clip_seconds, several.longest_seconds) == (2, 12)


def test_a_run_is_compared_with_its_plan_once_it_has_warmed_up(config):
    (plan,) = plans(config, 1, on_gpu=False)
    content = json.loads(json.dumps(plan.to_json()))
    steps = [{"seconds": seconds, "peak_memory_bytes": 1000 + n} for n, seconds in enumerate((9.0, 9.0, 1.0, 3.0, 2.0))]
    assert compare_with_run(content, steps[:2]) is None
    compared = compare_with_run(content, steps)
    assert compared["step_seconds"]["measured"] == 2.0
    assert compared["peak_memory_bytes"]["measured"] == 1004
    assert compared["peak_memory_bytes"]["predicted"] == plan.peak_bytes


def test_steps_that_align_the_adaptor_alone_take_their_part_of_the_runs_time(home, tmp_path):
    path = tiny.write_config(tmp_path / "run.yaml", home, tmp_path / "run", training={"num_steps": 8, "alignment_steps": 5})
    (plan,) = plans(read_run_config(path), 1, on_gpu=False)
    assert 0 < plan.alignment_seconds < plan.step_time.total
    expected = 5 * plan.alignment_seconds + 3 * plan.step_time.total
    assert plan.run_seconds == pytest.approx([factor * expected for factor in ASSUMED_RANGE])


def test_the_sizes_of_an_8b_model_need_neither_its_weights_nor_data(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    words = ["plan", "launch/configs/llama8b.yaml", "--set", "model.llm=launch/shapes/llama-3.1-8b", "--world-size", "1,8"]
    # before there is a selection, a plan takes a large part of the LLM to train, and says so
    assert main(words) == 0
    assert "kappa.json isn't here; 50% of the LLM's parameters are taken to train" in capsys.readouterr().out
    output = tmp_path / "plan.json"
    assert main([*words, "--trained-parameters", "1.5e9", "--output", str(output)]) == 0
    content = json.loads(output.read_text())
    frozen, trained = 8_030_261_248 - 1_500_000_000, 1_500_000_000 + 52_465_664
    parts = {part["name"]: part["num_bytes"] for part in content["plans"][1]["parts"]}
    assert parts["frozen weights"] == 2 * frozen // 8
    assert parts["gradients"] == pytest.approx(4 * trained / 8, rel=0.01)
    assert content["plans"][1]["checkpoint_copy_bytes"] == pytest.approx(12 * trained / 8, rel=1e-4)
    assert main([*words[:-1], "1", "--trained-parameters", "1.5e9", "--gpu-memory", "24"]) == 1
    assert "does not fit into 24 GB" in capsys.readouterr().out


@pytest.mark.parametrize("words", [[], ["--trained-parameters", "2e4"]])
def test_osf_is_planned_before_there_is_a_selection(home, tmp_path, capsys, words):
    """Norms, of one dimension, have no directions, and no selection has them."""
    absent = {"selection": str(tmp_path / "absent.json")}
    steps = {}
    for share, unfreeze in ((None, absent), (0.5, {**absent, "osf": {"kept_share": 0.5}})):
        path = tiny.write_config(tmp_path / "run.yaml", home, tmp_path / "run", unfreeze=unfreeze)
        assert main(["plan", str(path), "--json", "--world-size", "1", *words]) == 0
        content = json.loads(capsys.readouterr().out)
        (steps[share],) = content["plans"]
        assert any("absent.json isn't here" in line for line in content["assumed"]) is not bool(words)
    kept = {
        share: {part["name"]: part["num_bytes"] for part in plan["parts"]}["kept directions"] for share, plan in steps.items()
    }
    assert kept[None] == 0 < kept[0.5]
    assert steps[0.5]["step_seconds"]["optimizer"] > steps[None]["step_seconds"]["optimizer"]


def test_of_a_selection_that_is_not_there_an_even_part_of_the_matrices_is_taken(config):
    encoder, model = build_meta_model(config)
    matrices = [tuple(p.shape) for p in model.llm.parameters() if p.dim() >= 2]
    everything, half = (
        Planner(config, modules=(encoder, model), num_trained=sum(map(math.prod, matrices)) // part).sizes.llm.trained_shapes
        for part in (1, 2)
    )
    assert everything == tuple(matrices)
    assert len(half) == len(matrices) // 2


def test_a_plan_says_that_it_is_for_gpus_where_there_are_none(home, tmp_path, capsys):
    config = tiny.write_config(tmp_path / "run.yaml", home, tmp_path / "run")
    assert main(["plan", str(config)]) == 0
    assert "This is for GPUs of 80 GB, and this machine has none. For its processors: --here." in capsys.readouterr().out
    assert main(["plan", str(config), "--gpu-memory", "40"]) == 0
    assert "--here" not in capsys.readouterr().out


def test_a_plan_of_this_machine_goes_by_what_is_measured(home, tmp_path, capsys):
    config = tiny.write_config(tmp_path / "run.yaml", home, tmp_path / "run")
    assert main(["plan", str(config), "--here", "--output", str(tmp_path / "plan.json")]) == 0
    printed = capsys.readouterr().out
    assert "on this machine's" in printed
    assert f"in bfloat16: as {REPOSITORY}/tests/zero3.json says" in printed
    content = json.loads((tmp_path / "plan.json").read_text())
    (plan,) = content["plans"]
    assert (plan["assumptions"]["device"], plan["assumptions"]["world_size"]) == ("cpu", 1)
    assert 1e7 < plan["assumptions"]["rates"]["flops_per_second"] < 1e14
    assert content["gpu_memory_gb"] == pytest.approx(psutil.virtual_memory().total / 1e9, abs=0.06)
    assert plan["step_seconds"]["optimizer"] > 0
    assert plan["step_seconds"]["communication"] == 0
    for words in (["--tflops", "1"], ["--gpu-memory", "80"], ["--world-size", "9999"]):
        assert main(["plan", str(config), "--here", *words]) == 2


def test_each_plan_of_this_machine_has_the_memory_of_a_rank(home, tmp_path, capsys):
    config = tiny.write_config(tmp_path / "run.yaml", home, tmp_path / "run")
    assert main(["plan", str(config), "--here", "--world-size", "1,2", "--json"]) == 0
    one, two = json.loads(capsys.readouterr().out)["plans"]
    assert two["gpu_memory_gb"] == pytest.approx(one["gpu_memory_gb"] / 2, abs=0.1)


@pytest.mark.parametrize("words", [["--world-size", "two"], ["--world-size", "0"], ["--set", "model.llm=nobody/nothing"]])
def test_nonsense_is_refused(words, capsys):
    assert main(["plan", str(REPOSITORY / "launch/configs/llama8b.yaml"), "--trained-parameters", "1e9", *words]) == 2
    assert "error: " in capsys.readouterr().err


class Living(TorchDispatchMode):
    """Counts the float32 results that live at once."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.dtype == torch.float32 and result.ndim == 2:
            self.now += 1
            self.most = max(self.most, self.now)
            weakref.finalize(result, self._lose)
        return result

    def _lose(self):
        self.now -= 1


def test_scoring_takes_what_the_plan_counts(config):
    assert (memory.WINDOW_TOKENS, memory.HELD_LOGITS_BYTES) == (
        forgetting.WINDOW_TOKENS,
        forgetting._HELD_LOGITS_BYTES,
    )
    with Living() as living:
        forgetting._kl_nats(torch.zeros(4, 8, dtype=torch.bfloat16), torch.zeros(4, 8, dtype=torch.bfloat16))
    assert living.most == memory._KL_PASSES
    sizes = Planner(config, modules=build_meta_model(config)).sizes
    settings = read_settings({"bf16": {"enabled": True}})
    logits = 100 * sizes.llm.vocabulary
    # three windows' logits are held and one more is there, in two bytes; then the arrays of the distance
    assert count_scoring(sizes, settings, TextLengths(100, 3)) == 4 * 2 * logits + memory._KL_PASSES * 4 * logits
    whole = memory.WINDOW_TOKENS * sizes.llm.vocabulary
    held = memory.HELD_LOGITS_BYTES // (2 * whole)
    assert count_scoring(sizes, settings, TextLengths(5_000, 10**9)) == (held + 1) * 2 * whole + memory._KL_PASSES * 4 * whole


def test_beams_keep_keys_and_values_of_their_own(home):
    from kappaspeech.model.llm import load_llm

    llm, num_clips, num_positions, new_tokens = load_llm(str(home / "llm"), dtype=torch.bfloat16), 2, 7, 4
    embeds = llm.get_input_embeddings()(torch.arange(num_clips * num_positions).view(num_clips, -1) + 20)
    key_width, num_layers = 2 * 8, 2
    sizes = LlmSizes(32, 48, 32, key_width, 4, num_layers, 300, (1,), 0, 0)
    for num_beams in (1, 3):
        options = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "num_beams": num_beams}
        done = llm.generate(inputs_embeds=embeds, return_dict_in_generate=True, **options)
        taken = sum(part.nbytes for layer in done.past_key_values.layers for part in (layer.keys, layer.values))
        # the last token is never read
        positions, rows = num_positions + new_tokens - 1, num_clips * num_beams
        assert taken == memory.count_keys_and_values(sizes, num_rows=rows, positions=positions, itemsize=2)


def test_a_plan_counts_the_beams_of_evaluations(config):
    def plan(num_beams):
        options = {"num_beams": num_beams, "batch_size": 1_000}
        chosen = config.model_copy(update={"evaluation": config.evaluation.model_copy(update=options)})
        (made,) = plans(chosen, 1)
        return made

    assert plan(8).evaluation_bytes > 4 * plan(1).evaluation_bytes


def test_what_stays_whole_is_not_counted_as_gathered_again(config, tmp_path):
    def count(threshold):
        zero = {"stage": 3, "stage3_param_persistence_threshold": threshold}
        (tmp_path / "zero3.json").write_text(json.dumps({"zero_optimization": zero, "bf16": {"enabled": True}}))
        chosen = config.model_copy(update={"deepspeed": str(tmp_path / "zero3.json")})
        (made,) = plans(chosen, 2, on_gpu=False)
        return {part.name: part.num_bytes for part in (*made.parts, *made.step_parts)}

    sizes = Planner(config, modules=build_meta_model(config)).sizes
    all_bytes = 2 * sum(sizes.tensor_sizes)
    apart, whole = count(0), count(10**9)
    assert (apart["small weights kept whole"], apart["gathered weights"]) == (0, all_bytes)
    assert (whole["small weights kept whole"], whole["gathered weights"]) == (all_bytes, 0)


def test_texts_are_measured_by_the_sizes_of_their_files(tmp_path):
    assert measure_texts({}) is None
    (tmp_path / "lines.txt").write_bytes(b"a" * 300 + b"\n" + b"b" * 5_000 + b"\n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/one.txt").write_bytes(b"c\n" * 100)
    # two bytes a token: 150 tokens, and 2,500 in three windows; a file of a folder is one text
    assert measure_texts({"a": str(tmp_path / "lines.txt")}) == TextLengths(memory.WINDOW_TOKENS, 4)
    assert measure_texts({"b": str(tmp_path / "folder")}) == TextLengths(100, 1)
    # a batch of questions is as large as a window
    assert measure_texts({}, has_tasks=True) == TextLengths(memory.WINDOW_TOKENS, 1)


def test_replayed_text_takes_memory_and_time(home, tmp_path, config):
    replaying = read_run_config(
        tiny.write_config(tmp_path / "replay.yaml", home, tmp_path / "run", replay={"texts": {"x": "x.txt"}, "texts_per_step": 3})
    )
    plans = [Planner(item, modules=build_meta_model(item)).plan(1, rates=RATES, prompt_tokens=6) for item in (config, replaying)]
    assert plans[1].step_bytes > plans[0].step_bytes
    assert plans[1].step_time.total > plans[0].step_time.total


@pytest.mark.parametrize(("mode", "anchored"), [("all", True), ("all", False), ("adaptor", True)])
def test_an_anchor_takes_a_head_of_its_own_where_the_llms_trains(home, tmp_path, mode, anchored):
    replay = {"texts": {"x": "x.txt"}, "anchor_weight": float(anchored)}
    path = tiny.write_config(tmp_path / "run.yaml", home, tmp_path / "run", replay=replay, unfreeze={"mode": mode})
    config = read_run_config(path)
    encoder, model = build_meta_model(config)
    head = model.llm.get_output_embeddings().weight
    plan = Planner(config, modules=(encoder, model)).plan(1, rates=RATES, prompt_tokens=6)
    taken = {part.name: part.num_bytes for part in plan.parts}["anchor's head"]
    assert taken == (2 * head.numel() if mode == "all" and anchored else 0)


def test_ewc_takes_more_while_the_optimizer_steps(home, tmp_path, config):
    changes = {"ewc": {"texts": {"x": "x.txt"}}, "unfreeze__osf": {"kept_share": 0.25}}
    holding = read_run_config(tiny.write_config(tmp_path / "held.yaml", home, tmp_path / "run", **changes))
    modules = build_meta_model(config)
    plans = [Planner(item, modules=modules).plan(2, rates=RATES, prompt_tokens=6) for item in (config, holding)]
    num_trained = sum(p.numel() for p in modules[1].llm.parameters() if p.requires_grad)
    assert plans[1].update_bytes >= plans[0].update_bytes + 4 * num_trained // 2


def test_of_texts_that_are_not_here_an_anchor_keeps_what_the_run_reaches(home, tmp_path):
    def estimate(**changes):
        replay = {"texts": {"x": str(tmp_path / "x.txt")}, "anchor_weight": 1.0, "texts_per_step": 3, "max_tokens": 10}
        options = {"replay": {**replay, **changes}, "training__num_steps": 100}
        return estimate_anchored(read_run_config(tiny.write_config(tmp_path / "run.yaml", home, tmp_path / "run", **options)))

    assert estimate() == 100 * 3 * 10
    (tmp_path / "x.txt").write_bytes(b"a" * 300 + b"\n" + b"b" * 500 + b"\n")
    # two bytes a token
    assert estimate() == 400
    measured = estimate(forgetting_budget_nats=0.1) - estimate()
    assert measured == sum(len(line) for line in (home / "text.txt").read_bytes().splitlines()) // 2


def test_a_plan_counts_an_anchors_states_by_the_texts_and_the_tokenizer_that_are_here(home, tmp_path, capsys):
    from kappaspeech.model.llm import load_tokenizer

    (tmp_path / "x.txt").write_text("die Tür ist rot\nopen the kitchen door\n", encoding="utf-8")
    replay = {"texts": {"x": str(tmp_path / "x.txt")}, "anchor_weight": 1.0}
    path = tiny.write_config(tmp_path / "run.yaml", home, tmp_path / "run", replay=replay)
    assert main(["plan", str(path), "--json"]) == 0
    (plan,) = json.loads(capsys.readouterr().out)["plans"]
    tokenizer = load_tokenizer(str(home / "llm"))
    num_tokens = sum(len(tokenizer(line)["input_ids"]) - 1 for line in (tmp_path / "x.txt").read_text().splitlines())
    (states,) = [part for part in plan["parts"] if part["name"] == "anchor's states"]
    # 32 elements of bfloat16 a token, which don't lie on the GPU
    assert states == {"name": "anchor's states", "num_bytes": 64 * num_tokens, "on_host": True}
