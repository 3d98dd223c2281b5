"""Memory of what a run keeps beside its weights, against known answers and against the directions that OSF holds."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from kappaspeech.config.run_config import read_run_config
from kappaspeech.model.kept_directions import count_kept_directions, find_directions
from kappaspeech.planning.kept_memory import Kept, count_directions, count_kept, read_kept
from kappaspeech.planning.memory import read_settings
from kappaspeech.planning.sizes import LlmSizes, SpeechSizes
from tests import tiny

# of 6,000 elements 1,200 train, 200 of them the head's; the adaptor has 800
LLM = LlmSizes(8, 16, 8, 8, 2, 3, 100, (4_800, 1_000, 200), 1_200, 0, trained_shapes=((20, 50), (25, 8)), trained_head=200)
SIZES = SpeechSizes(LLM, (800,), 8, 2, 4, 8, 80, 1, 2, 1_500, pad_to_30s=False)
HERE, AWAY = (
    read_settings({"bf16": {"enabled": True}, "zero_optimization": {"stage": 3, "offload_optimizer": {"device": device}}})
    for device in ("none", "cpu")
)


@pytest.mark.parametrize(
    ("share", "shape", "number"), [(0.5, (20, 50), 10), (0.3, (25, 8), 2), (0.01, (20, 50), 1), (1.0, (4, 6), 4)]
)
def test_a_matrix_keeps_the_share_of_its_short_side_and_one_direction_at_least(share, shape, number):
    assert count_kept_directions(shape, share=share) == number


@pytest.mark.parametrize("shape", [(20, 50), (25, 8), (3, 8, 6)])
def test_as_many_bytes_are_counted_as_the_directions_take(shape):
    held = find_directions(torch.randn(shape), share=0.5)
    tensors = [getattr(held, field.name) for field in fields(held)]
    assert count_directions([shape], 0.5, 1) == sum(tensor.nbytes for tensor in tensors)


def test_the_rank_that_has_most_directions_counts():
    # in bytes 4 · (40 + 50 + 1) · 20, 4 · (8 + 6 + 1) · 3 · 3 and 4 · (30 + 30 + 1) · 15
    shapes = [(40, 50), (3, 8, 6), (30, 30)]
    first, second, third = 7_280, 540, 3_660
    assert count_directions(shapes, 0.5, 1) == first + second + third
    # each goes to the rank that has fewest elements so far
    assert count_directions(shapes[::-1], 0.5, 2) == first + second
    assert count_directions(shapes, 0.5, 2) == first
    assert count_directions([], 0.5, 2) == 0


def test_what_a_rank_keeps_is_counted_in_bytes():
    assert all(part.num_bytes == 0 for part in count_kept(SIZES, HERE, Kept(), world_size=2))
    everything = Kept(average=True, fisher=True, base_weights=True, directions_share=0.5, anchored_tokens=70)
    parts = {part.name: part.num_bytes for part in count_kept(SIZES, HERE, everything, world_size=2)}
    assert parts == {
        "moving average": 4 * (1_200 + 800) // 2,
        "Fisher and its anchor": 2 * 4 * 1_200 // 2,
        # ten of the first matrix
        "kept directions": 4 * 10 * (20 + 50 + 1),
        "base of trained weights": 2 * 1_200 // 2,
        "anchor's states": 2 * 8 * 70,
        "anchor's head": 2 * 200,
    }


def test_what_lies_on_the_host_follows_the_optimizer_but_for_states_and_base():
    here, away = ({part.name for part in count_kept(SIZES, each, Kept(), world_size=2) if part.on_host} for each in (HERE, AWAY))
    assert here == {"base of trained weights", "anchor's states"}
    assert away == here | {"moving average", "Fisher and its anchor"}


def test_a_configuration_says_what_is_kept(home, tmp_path):
    def read(**changes):
        path = tiny.write_config(tmp_path / "run.yaml", home, tmp_path / "run", **changes)
        return read_kept(read_run_config(path), anchored_tokens=70)

    plain = read(evaluation__decode="replica")
    assert plain == Kept()
    assert read(training__ema_decay=0.99, evaluation__decode="replica") == Kept(average=True)
    assert read(ewc={"texts": {"x": "x.txt"}}, evaluation__decode="replica") == Kept(fisher=True)
    assert read(unfreeze__osf={"kept_share": 0.25}, evaluation__decode="replica") == Kept(directions_share=0.25)
    assert read(evaluation__decode="zero3") == Kept(base_weights=True)
    assert read(evaluation__decode="zero3", data__text={}) == Kept()
    for weight, tokens in ((1.0, 70), (0.0, None)):
        replay = {"texts": {"x": "x.txt"}, "anchor_weight": weight}
        assert read(replay=replay, evaluation__decode="replica") == Kept(anchored_tokens=tokens)
    budget = {"texts": {"x": "x.txt"}, "anchor_weight": 1.0, "forgetting_budget_nats": 0.1}
    assert read(replay=budget, evaluation__decode="replica") == Kept(anchored_tokens=70, base_weights=True)
