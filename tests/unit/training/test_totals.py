"""A run's totals so far, without a process."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from kappaspeech.errors import DataError
from kappaspeech.speech.loading import BadSample
from kappaspeech.speech.stream import StepData
from kappaspeech.training.throughput import StepWork
from kappaspeech.training.totals import RankShare, Totals
from kappaspeech.zero3.engine import StepResult


def share(step: int, *, seconds: float = 36.0, bad: tuple[BadSample, ...] = (), keys: tuple[str, ...] = ("a", "b")) -> RankShare:
    data = StepData(step, (), bad, {"en": seconds}, wait_seconds=0.5 * (step + 1), padding=0.2, llm_padding=0.1, hint=(0, 0))
    return RankShare(3.0, data, list(keys), StepWork(num_llm_tokens=50, flops=1_000))


def bad_sample(key: str) -> BadSample:
    return BadSample(key=key, shard="shard.tar", cause="silent", detail="nothing above -60 dB")


def record(totals: Totals, shares: list[RankShare], **counts: int):
    return totals.record(
        shares,
        num_target_tokens=12,
        learning_rates={"llm": 1e-4},
        grad_norm=1.0,
        objective="transcript",
        phase_seconds={"encoder": 1.5, "rest": 0.5},
        peak_flops_per_second=10_000.0,
        **counts,
    )


def test_a_record_is_of_all_ranks_and_hours_add_up_over_steps():
    totals = Totals(num_samples=100, max_bad_fraction=0.1)
    for step in range(2):
        shares = [share(step, keys=("a", "b")), share(step, keys=("c",))]
        totals.add(shares, seconds=2.0)
    written = record(totals, shares)
    assert (written.step, written.loss_nats, written.seconds, written.audio_seconds) == (1, 0.5, 2.0, 72.0)
    assert (written.tokens_per_second, written.mfu, written.wait_seconds) == (50.0, 0.1, 1.0)
    assert written.hours_seen == pytest.approx({"en": 0.04})
    assert totals.train_seconds == 4.0


def test_hours_add_up_by_data_set_over_ranks_and_resuming_and_a_set_alone_has_none():
    def drawn(seconds: dict[str, float]) -> RankShare:
        return RankShare(3.0, replace(share(0).data, seconds_by_dataset=seconds), ["a"], StepWork(50, 1_000))

    totals = Totals(num_samples=100, max_bad_fraction=0.1)
    shares = [drawn({"read": 36.0}), drawn({"read": 36.0, "calls": 72.0})]
    totals.add(shares, seconds=2.0)
    resumed = Totals(num_samples=100, max_bad_fraction=0.1)
    resumed.restore(json.loads(json.dumps(totals.to_json())))
    resumed.add(shares, seconds=2.0)
    assert record(resumed, shares).hours_by_dataset == pytest.approx({"calls": 0.04, "read": 0.04})
    # a checkpoint that doesn't know them: none are told rather than too few
    state = totals.to_json()
    del state["hours_by_dataset"]
    resumed.restore(state)
    for _ in range(2):
        resumed.add(shares, seconds=2.0)
        assert record(resumed, shares).hours_by_dataset == {}
        resumed.restore(json.loads(json.dumps(resumed.to_json())))
    alone = Totals(num_samples=100, max_bad_fraction=0.1)
    alone.add([drawn({"": 36.0})], seconds=2.0)
    assert record(alone, [drawn({"": 36.0})]).hours_by_dataset == {}


def test_replayed_text_is_divided_by_its_own_tokens():
    totals = Totals(num_samples=100, max_bad_fraction=0.1)
    shares = [RankShare.of(share(0).data, StepResult(3.0, 1.0, True, nats, 0.5), work=share(0).work) for nats in (6.0, 2.0)]
    totals.add(shares, seconds=2.0)
    assert record(totals, shares).replay_nats is None
    written = record(totals, shares, num_replayed_tokens=4, is_anchored=True)
    assert (written.loss_nats, written.replay_nats, written.anchor_nats) == (0.5, 2.0, 0.25)


def test_without_an_anchor_the_distance_from_the_base_is_unknown_and_not_zero():
    totals = Totals(num_samples=100, max_bad_fraction=0.1)
    shares = [RankShare.of(share(0).data, StepResult(3.0, 1.0, True, 6.0, 0.0), work=share(0).work)]
    totals.add(shares, seconds=2.0)
    written = record(totals, shares, num_replayed_tokens=4)
    assert (written.replay_nats, written.anchor_nats) == (1.5, None)


def test_minutes_have_passed_only_in_the_step_that_crosses_them():
    totals = Totals(num_samples=100, max_bad_fraction=0.1)
    passed = []
    for step in range(6):
        totals.add([share(step)], seconds=25.0)
        passed.append(totals.has_passed(1.0))
    assert passed == [False, False, True, False, True, False]


def test_too_many_bad_samples_stop_the_run_and_the_same_one_counts_once():
    totals = Totals(num_samples=10, max_bad_fraction=0.2)
    for step in range(5):
        totals.add([share(step, bad=(bad_sample("x"), bad_sample("y")))], seconds=1.0)
        totals.check_bad_samples()
    totals.add([share(5, bad=(bad_sample("z"),))], seconds=1.0)
    with pytest.raises(DataError, match=r"3 of 10 training samples can't be used \(3 silent\).*shard.tar \(3\)"):
        totals.check_bad_samples()


def test_it_goes_on_from_what_a_checkpoint_keeps():
    totals = Totals(num_samples=10, max_bad_fraction=0.5)
    totals.add([share(0, bad=(bad_sample("x"),))], seconds=50.0)
    resumed = Totals(num_samples=10, max_bad_fraction=0.5)
    resumed.restore(json.loads(json.dumps(totals.to_json())))
    assert resumed.to_json() == totals.to_json()
    assert not resumed.has_passed(0.5)
    for each in (totals, resumed):
        each.add([share(1)], seconds=20.0)
    assert record(resumed, [share(1)]).hours_seen == record(totals, [share(1)]).hours_seen
    assert resumed.has_passed(1.0)
