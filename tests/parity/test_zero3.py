"""ZeRO-3 on one to four ranks against a plain PyTorch loop in this process, on the same samples."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch

from kappaspeech.expert_names import split_expert
from kappaspeech.model.expert_places import ExpertPlace
from kappaspeech.model.experts import list_stacks, without_trained
from kappaspeech.model.lora import public_names
from tests.parity.plain import train_parts, train_plainly
from tests.parity.steps import (
    CASES,
    EXPERTS,
    FEW_STEPS,
    NUM_STEPS,
    OPTIMIZER,
    PRESETS,
    SINGLE_EXPERTS,
    Case,
    build_parts,
    open_stream,
    without_key_bias,
)
from tests.patience import patience

pytestmark = pytest.mark.slow

# Float32 sums in another order: relative errors of 1e-7 in a gradient. Adam divides it by its own size, so where a gradient
# is near its error the update differs by a share of the learning rate; this is a twentieth of the adaptor's.
WEIGHT_TOLERANCE = 2e-5
LOSS_TOLERANCE = 1e-6
# bfloat16 keeps 8 bits: a weight or activation is off by up to 0.4 %, and the errors of many sums and tokens cancel.
BF16_LOSS_TOLERANCE = 1e-3
# Float32 sums of 48 micro-batches, and a clip's factor: some roundings of 6e-8.
FLOAT32_SUM_TOLERANCE = 2e-6
# every file of ds_configs/
PRESET_CASES = ("zero3", "zero3_cpu", "zero3_hpz", "zero3_lean", "zero3_offload", "zero3_offload_optimizer")


@pytest.fixture(scope="module")
def zero3(home, nursery, tmp_path_factory):
    """The results of each case on a number of ranks, which are started once."""
    folder = tmp_path_factory.mktemp("zero3")

    @cache
    def run(num_ranks: int) -> dict[str, dict[str, Any]]:
        output = folder / f"{num_ranks}.pt"
        done = nursery.run(home, output, module="tests.parity.zero3_worker", ranks=num_ranks, timeout=patience(240))
        assert done.returncode == 0, done.stderr[-3000:]
        return torch.load(output, weights_only=True)

    return run


@pytest.fixture(scope="module")
def plain(home):
    return train_plainly(home, CASES[2]["selection"])


def assert_equal_steps(computed: dict[str, Any], reference: dict[str, Any], *, num_steps: int = NUM_STEPS) -> None:
    assert len(computed["losses"]) == num_steps
    assert computed["losses"] == pytest.approx(reference["losses"][:num_steps], rel=LOSS_TOLERANCE)
    assert computed["norms"] == pytest.approx(reference["norms"][:num_steps], rel=1e-5)


def assert_equal_weights(
    computed: dict[str, Any], reference: dict[str, Any], *, key: str = "after", num_steps: int = NUM_STEPS
) -> None:
    assert set(computed["trained"]) == set(reference["before"])
    for name, tensor in computed["trained"].items():
        moved = (tensor - reference["before"][name]).abs().max()
        assert moved > num_steps / 2 * WEIGHT_TOLERANCE, f"{name} hardly moved, so the comparison would say nothing"
        found, expected = (without_key_bias(name, each) for each in (tensor, reference[key][name].float()))
        torch.testing.assert_close(found, expected, rtol=0, atol=WEIGHT_TOLERANCE)


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_twenty_steps_of_zero3_are_those_of_plain_pytorch(zero3, plain, num_ranks):
    computed = zero3(num_ranks)["selection"]
    assert_equal_steps(computed, plain)
    assert_equal_weights(computed, plain)
    assert plain["losses"][-1] < plain["losses"][0]
    # the clip must have acted, or it isn't compared
    assert max(plain["norms"]) > OPTIMIZER.clip_norm


def test_zero3_leaves_every_frozen_tensor_bit_equal(home, zero3):
    before = dict(build_parts(home, CASES[2]["selection"]).model.named_parameters())
    frozen = zero3(2)["selection"]["frozen"]
    assert set(frozen) == {name for name, parameter in before.items() if not parameter.requires_grad}
    for name, digest in frozen.items():
        assert digest == hashlib.sha256(before[name].detach().numpy().tobytes()).hexdigest(), name


def test_frozen_weights_that_persist_are_gathered_once_a_run_and_change_no_bit(home, zero3):
    """DeepSpeed's own step cuts them and gathers them again, and exchanges all that it does over gloo."""
    kept, cut = zero3(2)["zero3_cpu"], zero3(2)["zero3_cpu as DeepSpeed"]
    trained = sum(tensor.numel() for tensor in kept["trained"].values())
    frozen = sum(p.numel() for p in build_parts(home, CASES[2]["zero3_cpu"]).model.parameters() if not p.requires_grad)
    assert (kept["shared"], kept["gathered"]) == (trained, 0)
    assert (cut["shared"], cut["gathered"]) == (0, trained + frozen)
    assert (kept["losses"], kept["norms"], kept["frozen"]) == (cut["losses"], cut["norms"], cut["frozen"])
    for key in ("trained", "first_moments"):
        assert all(torch.equal(tensor, cut[key][name]) for name, tensor in kept[key].items())


def test_frozen_weights_above_the_threshold_persist_too_where_they_are_to(zero3):
    kept, cut = zero3(2)["frozen persist"], zero3(2)["prefetched little"]
    # two micro-batches, each of which gathers what trains for its forward and backward
    assert kept["gathered"] == 2 * sum(tensor.numel() for tensor in kept["trained"].values()) < cut["gathered"]
    assert (kept["losses"], kept["norms"], kept["frozen"]) == (cut["losses"], cut["norms"], cut["frozen"])
    assert all(torch.equal(tensor, cut["trained"][name]) for name, tensor in kept["trained"].items())


def test_no_weight_is_waited_for_but_where_the_json_prefetches_less_than_a_layer(zero3):
    assert zero3(2)["selection"]["late"] == zero3(2)["checkpointed"]["late"] == {}
    assert zero3(2)["prefetched little"]["late"]["LlamaDecoderLayer"] > 0


def test_a_step_reads_one_number_beside_the_lengths_that_lie_on_the_host(zero3):
    """DeepSpeed asks once whether the norm is finite. The sums and that norm come to the host at the end, in one list:
    no operator that is counted here."""
    for case in ("selection", "bf16"):
        # of each of two micro-batches the longest row, where its labels are, and transformers' look for packed texts
        assert zero3(2)[case]["reads"] == {"aten::_local_scalar_dense": 2 * 2 + 1, "aten::nonzero": 2}


def test_packed_clips_train_under_zero3_as_padded_ones_in_plain_pytorch(zero3, plain):
    """Each of two layers computes what the clips hold, and no padding."""
    packed, padded = zero3(2)["packed"], zero3(2)["selection"]
    assert_equal_steps(packed, plain)
    assert_equal_weights(packed, plain)
    assert packed["llm_positions"] == 2 * packed["llm_tokens"]
    assert padded["llm_positions"] > 2 * padded["llm_tokens"] == 2 * packed["llm_tokens"]
    # of each of two micro-batches the longest clip and the clips' places, both on the host; transformers doesn't look any more
    assert packed["reads"] == {"aten::_local_scalar_dense": 2 * 2 + 1, "aten::nonzero": 2 * 2}
    assert packed["collectives"] == padded["collectives"]
    assert packed["late"] == {}


def test_packed_clips_train_under_zero3_by_lora_and_with_a_layer_computed_again(home, zero3):
    reference = train_plainly(home, CASES[2]["lora"])
    assert_equal_steps(zero3(2)["packed by lora"], reference, num_steps=FEW_STEPS)


def test_lora_under_zero3_trains_as_in_plain_pytorch(home, zero3):
    reference = train_plainly(home, CASES[2]["lora"])
    assert_equal_steps(zero3(2)["lora"], reference)
    assert_equal_weights(zero3(2)["lora"], reference)


@pytest.mark.parametrize("name", ["experts", "experts by lora"])
def test_fused_experts_under_zero3_train_as_in_plain_pytorch(home, zero3, name):
    reference = train_plainly(home, CASES[2][name])
    assert_equal_steps(zero3(2)[name], reference, num_steps=FEW_STEPS)
    assert_equal_weights(zero3(2)[name], reference, num_steps=FEW_STEPS)


def train_masked(home, case: Case) -> dict[str, Any]:
    """As `train_plainly`, of a case of single experts, on whole tensors: gradients are masked, and whatever else moves is put
    back. Losses, norms, and the selected matrices before, after and averaged."""
    places: dict[str, ExpertPlace] = {}
    fused = {**EXPERTS, "model.layers.1.mlp.experts.gate_up_proj": (4, 48, 32)}
    parts = build_parts(home, replace(case, experts=fused))
    for name in case.experts:
        tensor, expert = split_expert(name)
        if expert is not None:
            places[name] = ExpertPlace(tensor, expert, 0, fused[tensor][1])
    # the second half of the fused rows
    places["model.layers.1.mlp.experts.2.up_proj.weight"] = ExpertPlace("model.layers.1.mlp.experts.gate_up_proj", 2, 24, 48)
    masks = {f"llm.{place.parameter}": torch.zeros(fused[place.parameter]) for place in places.values()}
    for place in places.values():
        place.of(masks[f"llm.{place.parameter}"]).fill_(1)

    def selected(tensors) -> dict[str, torch.Tensor]:
        found = {f"llm.{name}": place.of(tensors[f"llm.{place.parameter}"]) for name, place in places.items()}
        return {**found, **{name: tensor for name, tensor in tensors.items() if name not in masks}}

    plain = train_parts(home, case, parts, masks)
    return {**plain, **{key: selected(plain[key]) for key in ("before", "after", "average")}}


@pytest.mark.parametrize(
    ("num_ranks", "name"),
    [(1, "single experts"), (2, "single experts"), (2, "single experts checkpointed"), (2, "single experts persist")],
)
def test_single_experts_under_zero3_train_as_whole_tensors_with_masked_gradients(home, zero3, num_ranks, name):
    case = CASES[num_ranks][name]
    reference = train_masked(home, case)
    assert_equal_steps(zero3(num_ranks)[name], reference, num_steps=FEW_STEPS)
    assert_equal_weights(zero3(num_ranks)[name], reference, key="average" if case.ema_decay else "after", num_steps=FEW_STEPS)


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_zero3_leaves_the_other_experts_bit_equal_and_gives_them_no_state(home, zero3, num_ranks):
    computed = zero3(num_ranks)["single experts"]
    model = build_parts(home, CASES[num_ranks]["single experts"]).model
    stacks = list_stacks(model)
    assert len(stacks) == 4
    before = {name: without_trained(p, stacks.get(name, ())) for name, p in model.named_parameters() if not p.requires_grad}
    assert computed["frozen"] == {name: hashlib.sha256(t.detach().numpy().tobytes()).hexdigest() for name, t in before.items()}
    of_llm = {name: tuple(t.shape) for name, t in computed["first_moments"].items() if name.startswith("llm.")}
    assert of_llm == {f"llm.{name}": shape for name, shape in SINGLE_EXPERTS.items()}


def test_the_moving_average_is_that_of_plain_pytorchs_weights(zero3, plain):
    assert_equal_steps(zero3(2)["average"], plain)
    assert_equal_weights(zero3(2)["average"], plain, key="average")


def test_the_alignment_loss_trains_under_zero3_as_in_plain_pytorch(home, zero3, plain):
    aligned = train_plainly(home, CASES[2]["aligned"])
    assert_equal_steps(zero3(2)["aligned"], aligned, num_steps=FEW_STEPS)
    # it has an effect, and the losses that are recorded leave it out
    assert aligned["losses"][0] == pytest.approx(plain["losses"][0], rel=1e-6)
    assert aligned["norms"][0] != pytest.approx(plain["norms"][0], rel=1e-2)


def test_the_adaptor_aligned_alone_first_trains_under_zero3_as_in_plain_pytorch(home, zero3, plain):
    computed, aligned = zero3(2)["aligned first"], train_plainly(home, CASES[2]["aligned first"])
    assert_equal_steps(computed, aligned, num_steps=FEW_STEPS)
    # the LLM's first update is that of a new AdamW, as here
    assert_equal_weights(computed, aligned, num_steps=FEW_STEPS)
    assert aligned["losses"][2] != pytest.approx(plain["losses"][2], rel=1e-3)


def test_bfloat16_stays_near_float32(zero3, plain):
    assert zero3(2)["bf16"]["losses"] == pytest.approx(plain["losses"], rel=BF16_LOSS_TOLERANCE)


@pytest.fixture
def one_thread():
    """As many as a rank has: more would sum in another order, and a last bit of bfloat16 may fall to the other side."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def accumulate_exactly(home, case: Case, *, world_size: int, monkeypatch) -> dict[str, torch.Tensor]:
    """The gradient of the first step, its micro-batches' bfloat16 gradients added up in float64.

    ZeRO-3 adds a linear layer's bias after its product is rounded, and torch before: with DeepSpeed's, the micro-batches'
    gradients are the engine's, bit for bit, and all that is compared is how they are added up.
    """
    from deepspeed.runtime.zero.linear import zero3_linear_wrap

    monkeypatch.setattr(torch.nn.functional, "linear", zero3_linear_wrap)
    parts = build_parts(home, case)
    names = public_names(parts.model)
    trained = {names[name]: p for name, p in parts.model.named_parameters() if p.requires_grad}
    data = next(open_stream(home, parts.tokenizer, rank=0, world_size=1, budget=case.budget).steps(0))
    num_tokens = sum(batch.num_target_tokens for batch in data.batches)
    total = {name: torch.zeros(p.shape, dtype=torch.float64) for name, p in trained.items()}
    for batch in data.batches:
        parts.model.zero_grad()
        states, counts = parts.encoder(batch.audio_input, batch.num_frames)
        nats, _ = parts.model(states, counts, parts.prompt.prefix_ids, parts.prompt.suffix_ids, batch.label_ids)
        # rounded where the engine rounds
        (nats * (world_size / num_tokens)).backward()
        for name, parameter in trained.items():
            total[name] += parameter.grad.double() / world_size
    return total


def relative_error(computed: dict[str, Any], exact: dict[str, torch.Tensor]) -> float:
    """Of the first step's gradient, which is read off Adam's first moment."""
    norm = sum(float(tensor.square().sum()) for tensor in exact.values()) ** 0.5
    clipped = min(1.0, OPTIMIZER.clip_norm / computed["norms"][0]) * (1 - OPTIMIZER.betas[0])
    errors = (computed["first_moments"][name].double() / clipped - tensor for name, tensor in exact.items())
    return sum(float(error.square().sum()) for error in errors) ** 0.5 / norm


@pytest.mark.usefixtures("one_thread")
def test_bfloat16_gradients_of_many_micro_batches_are_added_up_in_float32(home, zero3, monkeypatch):
    """And summed over ranks in it, unless the JSON says otherwise; DeepSpeed's own choice is bfloat16 for both."""
    cases = zero3(2)
    exact = accumulate_exactly(home, CASES[2]["accumulated"], world_size=2, monkeypatch=monkeypatch)
    names = ("accumulated", "reduced in bf16", "accumulated in bf16")
    in_float32, reduced, in_bfloat16 = (relative_error(cases[name], exact) for name in names)
    # what float32 leaves; then the roundings of one sum over ranks, and those of 24 sums a rank
    assert in_float32 < FLOAT32_SUM_TOLERANCE
    assert reduced > 100 * in_float32
    assert in_bfloat16 > 2 * reduced


def test_partitioning_copies_nothing_of_the_files_that_a_rank_has_mapped(zero3):
    """DeepSpeed's broadcast from rank 0 wrote into them: rank 1 came to hold the model whole."""
    assert zero3(2)["bf16"]["copied_kilobytes"] == [0, 0]


@pytest.mark.parametrize("kept", ["selection", "adaptor"])
def test_activation_checkpointing_recomputes_every_layer_and_changes_nothing(zero3, kept):
    """Also if every weight of a layer is frozen: DeepSpeed#8130, #8148."""
    computed = zero3(2)["checkpointed" if kept == "selection" else "adaptor checkpointed"]
    reference = zero3(2)[kept]
    assert computed["layer_passes"] == 2 * reference["layer_passes"]
    assert computed["losses"] == reference["losses"]
    assert computed["norms"] == pytest.approx(reference["norms"], rel=1e-6)
    for name, tensor in computed["trained"].items():
        torch.testing.assert_close(tensor, reference["trained"][name], rtol=0, atol=1e-6)


def test_recomputing_a_part_of_the_layers_changes_no_loss(zero3):
    computed, reference = zero3(2)["one layer checkpointed"], zero3(2)["selection"]
    # the first of two, with two micro-batches a rank
    assert computed["layer_passes"] == FEW_STEPS * 2 * (2 + 1)
    assert computed["losses"] == reference["losses"][:FEW_STEPS]
    assert computed["norms"] == pytest.approx(reference["norms"][:FEW_STEPS], rel=1e-6)


def test_no_preset_is_left_out():
    assert {path.stem for path in PRESETS.glob("*.json")} == set(PRESET_CASES)


@pytest.mark.parametrize("name", PRESET_CASES)
def test_every_preset_trains_as_plain_pytorch(zero3, plain, name):
    assert_equal_steps(zero3(2)[name], plain, num_steps=FEW_STEPS)


def test_the_preset_for_one_gpu_trains_on_one(zero3, plain):
    computed = zero3(1)["zero3_offload_optimizer"]
    assert_equal_steps(computed, plain, num_steps=FEW_STEPS)


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_hpz_takes_a_model_of_many_groups_of_parameters(zero3, plain, num_ranks):
    """DeepSpeed's `zero.Init` asserts that hpZ's group isn't there yet: every model of over 64 MiB failed at its second call."""
    assert_equal_steps(zero3(num_ranks)["zero3_hpz"], plain, num_steps=FEW_STEPS)


@pytest.mark.parametrize("case", ["average", "zero3_hpz"])
def test_the_weights_are_back_after_the_average_stood_in_their_place(zero3, case):
    """Under hpZ the second copy, which forward passes read, would still be the average's."""
    before, averaged, after = zero3(2)[case]["around_average"]
    assert averaged != before
    assert after == before


def test_a_checkpoints_files_are_byte_equal_from_one_two_three_and_four_ranks(zero3):
    found = [zero3(num_ranks)["selection"]["saved"] for num_ranks in (1, 2, 3)]
    averaged = [zero3(num_ranks)["zero3_hpz"]["saved"] for num_ranks in (2, 4)]
    assert averaged[0].keys() == {"trained.safetensors", "optimizer.safetensors", "average.safetensors"}
    assert averaged[0] == averaged[1]
    average = averaged[0].pop("average.safetensors")
    assert found[0] == found[1] == found[2] == averaged[0]
    assert average != averaged[0]["trained.safetensors"]


def test_of_a_checkpoint_each_rank_is_sent_what_it_writes_alone(zero3):
    for num_ranks, case in ((1, "selection"), (2, "selection"), (3, "selection"), (4, "zero3_hpz")):
        for received, written in zero3(num_ranks)[case]["received"]:
            # its own part lies there; a part is up to one number longer than the tensor's share
            padding = 4 * num_ranks * len(zero3(num_ranks)[case]["trained"])
            assert 0 <= received - written * (num_ranks - 1) / num_ranks <= padding


def test_gradients_of_ranks_on_processors_are_no_all_reduce(zero3):
    """Gloo's reduce-scatter is one, of a copy."""
    for case in ("selection", "bf16"):
        collectives = zero3(2)[case]["collectives"]
        assert collectives.keys().isdisjoint({"c10d::_reduce_scatter_base_", "c10d::reduce_scatter_"})
