"""A step's time: traffic against what DeepSpeed's rules make of a few tensors, and each part at its own rate."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from kappaspeech.model.flops import SpeechCost, StackCost
from kappaspeech.model.kept_directions import find_directions
from kappaspeech.planning.batches import MicroBatchSize
from kappaspeech.planning.duration import (
    Rates,
    StepWork,
    Traffic,
    count_restoring,
    count_traffic,
    count_updated,
    predict_alignment,
    predict_step,
)
from kappaspeech.planning.elementwise import count_elementwise
from kappaspeech.planning.memory import ReplayedTexts, count_tokens, count_whole, read_settings
from kappaspeech.planning.offload import Offloaded, count_offloaded
from kappaspeech.planning.sizes import LlmSizes, SpeechSizes

LLM = LlmSizes(
    width=8,
    inner_width=16,
    query_width=8,
    key_width=4,
    num_heads=2,
    num_layers=3,
    vocabulary=100,
    tensor_sizes=(8, 1_000, 3_000),
    num_trained=1_000,
    trained_shapes=((20, 50),),
    kept_inputs=0,
)
SIZES = SpeechSizes(
    llm=LLM,
    adaptor_tensor_sizes=(8, 992),
    adaptor_width=8,
    num_adaptor_layers=2,
    stacking=4,
    encoder_width=8,
    num_mels=80,
    num_encoder_parameters=1,
    encoder_itemsize=2,
    max_states=1500,
    pad_to_30s=False,
)
COST = SpeechCost(StackCost(1_000), StackCost(1_000, 1_000), StackCost(4_000, 1_000), StackCost(800), 4, 6)
BATCH = MicroBatchSize(4, 2.0)
RATES = Rates(1e9, 1e6)


def settings(threshold: int, **zero):
    zero = {"stage": 3, "stage3_param_persistence_threshold": threshold, **zero}
    return read_settings({"bf16": {"enabled": True}, "zero_optimization": zero})


def predict(rates: Rates, **changes):
    work = StepWork(COST, SIZES, settings(0), BATCH, micro_batches_per_rank=2, world_size=changes.pop("world_size", 2))
    return predict_step(work, rates, **{"num_recomputed": 0, "overlaps": False, **changes})


def test_one_rank_receives_nothing():
    assert count_traffic(SIZES, settings(0), world_size=1, micro_batches_per_rank=4) == Traffic(0, 0, 0)


def test_of_tensors_that_are_kept_whole_a_step_gathers_what_trains_alone():
    whole, trained = 5_008, 2_000
    every, kept = (count_traffic(SIZES, settings(threshold), world_size=2, micro_batches_per_rank=4) for threshold in (0, 10_000))
    # weights in bfloat16, gradients in float32
    assert every == Traffic(2 * 4 * whole // 2, 4 * 4 * trained // 2, 4 * 5 + 4)
    assert kept == Traffic(0, 4 * 4 * trained // 2, 4, 2 * trained // 2, 3)
    some = count_traffic(SIZES, settings(8), world_size=2, micro_batches_per_rank=4)
    # the adaptor's small tensor trains, the LLM's is frozen
    assert (some.gathered, some.regathered, some.num_regathered) == (2 * 4 * (whole - 16) // 2, 2 * 8 // 2, 1)


def test_updated_weights_go_by_their_own_rates_where_these_are_known():
    traffic = Traffic(gathered=0, reduced=0, num_messages=0, regathered=4_000, num_regathered=3)
    plain = replace(RATES, seconds_per_message=0.5)
    assert traffic.seconds(plain) == pytest.approx(4_000 / 1e6 + 3 * 0.5)
    shared = replace(plain, regathered_bytes_per_second=4e6, seconds_per_regathered=0.01)
    assert traffic.seconds(shared) == pytest.approx(4_000 / 4e6 + 3 * 0.01)


def test_what_stays_whole_is_counted_in_memory_and_no_longer_in_traffic():
    apart = settings(8)
    whole = replace(apart, keeps_frozen=True)
    assert (count_whole(SIZES, apart), count_whole(SIZES, whole)) == ((16, 0), (16, 3_000))
    some = count_traffic(SIZES, whole, world_size=2, micro_batches_per_rank=4)
    # the adaptor's small tensor, and for each micro-batch the large ones that train
    assert (some.gathered, some.regathered) == (2 * 4 * (992 + 1_000) // 2, 2 * 8 // 2)


def test_a_model_above_the_limit_of_live_parameters_is_gathered_for_each_pass():
    above = count_traffic(SIZES, settings(0, stage3_max_live_parameters=100), world_size=2, micro_batches_per_rank=1)
    below = count_traffic(SIZES, settings(0), world_size=2, micro_batches_per_rank=1)
    assert above.gathered == 2 * below.gathered
    assert above.reduced == below.reduced


def test_float32_doubles_the_weights_that_travel():
    wide, narrow = (
        count_traffic(SIZES, replace(settings(0), itemsize=itemsize), world_size=4, micro_batches_per_rank=1)
        for itemsize in (4, 2)
    )
    assert (wide.gathered, wide.reduced) == (2 * narrow.gathered, narrow.reduced)


def test_gradients_travel_in_the_dtype_that_the_json_names():
    narrow, wide = (
        count_traffic(SIZES, read_settings({"bf16": {"enabled": True}, **named}), world_size=2, micro_batches_per_rank=1)
        for named in ({"communication_data_type": "bf16"}, {})
    )
    assert (wide.gathered, wide.reduced) == (narrow.gathered, 2 * narrow.reduced)


def test_the_update_is_shared_by_ranks_and_the_collecting_is_not():
    two, four = (count_updated(SIZES, settings(0), world_size=count, micro_batches_per_rank=1) for count in (2, 4))
    # bfloat16 gradients, and float32 in the bucket: written, put in order, divided
    whole = 2_000 * (2 + 5 * 4)
    assert two - whole == 2 * (four - whole)
    alone = count_updated(SIZES, settings(0), world_size=1, micro_batches_per_rank=1)
    # its bucket stays in bfloat16, and is copied twice more
    assert alone == 2 * (two - whole) + 2_000 * (6 * 2 + 4 * 2 + 2 - 4)


def test_a_step_that_aligns_the_adaptor_collects_its_gradients_alone_and_gathers_all_that_trains():
    options = {"world_size": 2, "micro_batches_per_rank": 3}
    whole, aligning = (count_traffic(SIZES, settings(10_000), aligning=alone, **options) for alone in (False, True))
    assert (aligning.regathered, aligning.reduced) == (whole.regathered, whole.reduced // 2)
    # of tensors that don't stay whole, those of the adaptor and the token embeddings
    apart = count_traffic(SIZES, settings(0), aligning=True, **options)
    assert apart.gathered == 2 * 3 * (1_000 + 100 * 8) // 2
    # the embeddings stay whole if all that is frozen does and they are
    kept = replace(settings(0), keeps_frozen=True)
    trained = replace(SIZES, llm=replace(LLM, trained_embeddings=100 * 8))
    frozen_ones, trained_ones = (count_traffic(each, kept, aligning=True, **options) for each in (SIZES, trained))
    assert (frozen_ones.gathered, trained_ones.gathered) == (2 * 3 * 1_000 // 2, apart.gathered)
    assert apart.num_messages - frozen_ones.num_messages == 3
    moved, still = (count_updated(SIZES, settings(0), aligning=alone, **options) for alone in (False, True))
    # of the LLM's 1,000: three times a bucket's way and the partition's, and AdamW's once
    assert moved - still == 3 * (1_000 * 22 + 1_000 * 16 // 2) + 1_000 * 28 // 2
    shared = replace(RATES, regathered_bytes_per_second=1e3)
    step = predict(RATES)
    work = StepWork(COST, SIZES, settings(10_000), BATCH, **options)
    more, less = (predict_alignment(work, rates, step) for rates in (shared, RATES))
    assert more - less == pytest.approx(whole.regathered * (1 / 1e3 - 1 / 1e6))


def test_directions_are_restored_by_as_many_operations_as_torch_counts():
    shapes = [(12, 20), (20, 12), (3, 8, 6)]
    with FlopCounterMode(display=False) as counter:
        for shape in shapes:
            weight = torch.randn(shape)
            find_directions(weight, share=0.5).restore(weight)
    assert count_restoring(shapes, 0.5) == counter.get_total_flops()


def test_restored_directions_lengthen_a_step_by_products_and_messages():
    plain, restored = predict(RATES), predict(RATES, directions_share=0.5)
    assert restored.optimizer - plain.optimizer == pytest.approx(count_restoring([(20, 50)], 0.5) / 1e9)
    # in float32 there and back, and so in bfloat16
    assert restored.communication - plain.communication == pytest.approx(1_000 * (2 * 4 + 2 * 2) / 2 / 1e6)
    alone = [predict(RATES, directions_share=share, world_size=1).communication for share in (None, 0.5)]
    assert alone == [0, 0]


def test_each_part_goes_by_its_own_rate():
    plain = predict(RATES)
    assert plain.elementwise == plain.optimizer == 0
    assert predict(replace(RATES, backward_flops_per_second=5e8)).backward == pytest.approx(2 * plain.backward)
    assert predict(replace(RATES, encoder_flops_per_second=5e8)).encoder == pytest.approx(2 * plain.encoder)
    assert predict(replace(RATES, encoder_flops_per_second=5e8)).forward == plain.forward
    slow = predict(replace(RATES, reduced_bytes_per_second=5e5))
    assert slow.communication - plain.communication == pytest.approx(2 * 2_000 * 4 / 2 / 1e6)
    measured = predict(replace(RATES, elementwise_bytes_per_second=1e6, memory_bytes_per_second=1e6, seconds_per_message=0.5))
    assert measured.elementwise > 0
    assert measured.communication - plain.communication == pytest.approx(0.5 * (2 * 5 + 2))
    parts = (measured.encoder, measured.forward, measured.backward, measured.elementwise, measured.communication)
    assert measured.total == pytest.approx(sum(parts) + measured.optimizer)


def test_communication_hides_only_where_the_device_overlaps():
    shown, hidden = predict(RATES), predict(RATES, overlaps=True)
    assert shown.total - hidden.total == pytest.approx(min(shown.communication, shown.forward + shown.backward))


def test_clips_from_the_cache_meet_no_encoder():
    assert predict(RATES, encoded_share=0.25).encoder == pytest.approx(predict(RATES).encoder / 4)


def test_norms_in_float32_cost_less_where_all_is():
    """Two casts of each norm fall away, and all else doubles."""
    tokens = count_tokens(BATCH, SIZES, prompt_tokens=6)
    (narrow, _), (wide, back) = (count_elementwise(SIZES, tokens, itemsize=itemsize) for itemsize in (2, 4))
    assert narrow < wide < 2 * narrow
    assert back == 2 * wide
    unfused = replace(SIZES, llm=replace(LLM, fused_attention=False))
    assert count_elementwise(unfused, tokens, itemsize=2)[0] > narrow


def test_a_gradient_on_the_host_comes_back_with_each_micro_batch_but_the_first():
    away = settings(0, offload_optimizer={"device": "cpu"})
    one, three = (count_offloaded(SIZES, away, world_size=2, micro_batches_per_rank=count) for count in (1, 3))
    trained = 2_000 // 2
    # float32 gradients there; the updated bfloat16 weights back
    assert one == Offloaded(4 * trained, 2 * trained, (7 * 4 + 2) * trained)
    assert three == Offloaded(3 * 4 * trained, 2 * 4 * trained + 2 * trained, one.updated)


def test_weights_on_the_host_come_from_there_for_every_gather():
    weights = 5_008
    all_away = settings(0, offload_optimizer={"device": "cpu"}, offload_param={"device": "cpu"})
    optimizer_away = settings(0, offload_optimizer={"device": "cpu"})
    more, less = (count_offloaded(SIZES, each, world_size=2, micro_batches_per_rank=4) for each in (all_away, optimizer_away))
    assert more.from_host - less.from_host == 4 * 2 * weights // 2
    assert (more.to_host, more.updated) == (less.to_host, less.updated)
    assert count_offloaded(SIZES, settings(0), world_size=2, micro_batches_per_rank=4) == Offloaded(0, 0, 0)


def test_what_goes_to_the_host_lengthens_a_step_of_a_device_that_has_one():
    away = settings(0, offload_optimizer={"device": "cpu"})
    with_host = replace(RATES, host_link_bytes_per_second=1e4, host_update_bytes_per_second=1e5)
    work = StepWork(COST, SIZES, away, BATCH, micro_batches_per_rank=2, world_size=2)
    here, there = (predict_step(work, rates, num_recomputed=0, overlaps=True) for rates in (RATES, with_host))
    # two gradients out, one and the weights back, at 1e4; the update at 1e5
    assert there.offload == pytest.approx((2 * 4_000 + 4_000 + 2_000) / 1e4 + 30_000 / 1e5)
    assert there.total == pytest.approx(here.total + there.offload)
    assert here.offload == 0


def test_replayed_texts_are_counted_in_positions_and_time():
    counts = count_tokens(BATCH, SIZES, prompt_tokens=6)
    row = counts.llm / BATCH.num_samples
    beside = count_tokens(BATCH, SIZES, prompt_tokens=6, replayed=ReplayedTexts(2, 100, anchored=True))
    # all six rows are as long as the longest, a text
    assert row < 100
    assert (beside.llm, beside.squares) == (600, 6 * 100**2)
    assert beside.labels == counts.labels + 2 * 2 * 99
    alone, replayed, anchored = (
        predict(RATES, replayed=texts) for texts in (None, ReplayedTexts(2, 100, False), ReplayedTexts(2, 100, True))
    )
    assert replayed.forward - alone.forward == pytest.approx(2 * 2 * COST.replay([100], anchored=False).forward / 1e9)
    assert replayed.backward > alone.backward
    assert anchored.forward > replayed.forward
    assert anchored.backward == replayed.backward
