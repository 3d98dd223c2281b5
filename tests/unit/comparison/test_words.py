"""The sentences of a comparison say no more than its numbers: over which seeds, and what could be chance."""

from __future__ import annotations

import re

import pytest

from kappaspeech.comparison.runs import group_runs, read_run
from kappaspeech.comparison.summary import summarise
from kappaspeech.comparison.tables import make_tables
from kappaspeech.comparison.words import say_differences, say_verdict
from tests.made_runs import make_run


@pytest.fixture
def compare(tmp_path):
    def make(*runs):
        """The comparison of runs, each an arm, a seed, an error rate, and how its texts' perplexity has grown."""
        made = [
            make_run(tmp_path / f"{arm}-{seed}", arm, seed=seed, error_rate=rate, forgetting=forgetting)
            for arm, seed, rate, forgetting in runs
        ]
        return summarise(group_runs([read_run(run) for run in made]), missing={})

    return make


def test_an_arm_that_lacks_the_hard_seed_does_not_lead_by_that(compare):
    """Its mean is the lowest, and on the seed that both have it is worse."""
    summary = compare(("whole", 1, 0.05, 0.3), ("whole", 2, 0.5, 0.3), ("partial", 1, 0.2, 0.3))
    whole, partial = summary["arms"]
    assert partial["wer"]["mean"]["mean"] < whole["wer"]["mean"]["mean"]
    assert partial["difference"]["mean"]["interval"][0] > 0
    said = say_verdict(summary)
    assert said.startswith("whole has the lowest mean WER over the seeds that arms have in common. ")
    assert said.endswith(" Arms differ in seeds: whole has 2 (1, 2); partial has 1 (1).")
    (note,) = [table.note for table in make_tables(summary) if table.title == "Speech"]
    assert "a difference is over those that both arms have" in note


def test_the_leader_is_compared_with_each_arm_and_not_with_the_reference_alone(compare):
    arms = [("deaf", 1.0), ("good", 0.1), ("as good", 0.11)]
    summary = compare(*((arm, seed, rate, 0.3) for seed in (1, 2, 3) for arm, rate in arms))
    leader, other = sorted(("good", "as good"), key=lambda name: name != summary["lead"]["arm"])
    assert f"{leader} has the lowest mean WER, " in say_verdict(summary)
    assert f" %; chance could explain its lead over {other}. " in say_verdict(summary)
    assert summary["lead"]["over"]["deaf"]["interval"][0] > 0


def test_a_leader_without_a_seed_in_common_with_an_arm_is_not_said_to_beat_it(compare):
    summary = compare(("whole", 1, 0.5, 0.3), ("whole", 2, 0.5, 0.3), ("one", 1, 0.1, 0.3), ("two", 2, 0.2, 0.3))
    assert summary["lead"]["over"]["two"] is None
    assert "one has the lowest mean WER over the seeds that arms have in common; it has no seed in common with two. " in (
        say_verdict(summary)
    )


def test_a_leader_over_other_seeds_is_not_said_to_lead_an_arm_that_beats_it_on_theirs(compare):
    """Against the reference it gains most on a seed that the other lacks."""
    reference = [("all", seed, 0.9, 0.3) for seed in (1, 2, 3)]
    summary = compare(*reference, ("first", 1, 0.05, 0.3), ("first", 2, 0.8, 0.3), ("last", 2, 0.5, 0.3), ("last", 3, 0.5, 0.3))
    assert summary["lead"]["arm"] == "first"
    assert summary["lead"]["over"]["last"]["interval"][1] < 0
    said = say_verdict(summary)
    # two seeds of which one gains nearly all are no sure lead
    assert (
        "first has the lowest mean WER over the seeds that arms have in common; chance could explain its lead over all; on the "
        "seeds that both have it is behind last. " in said
    )


def test_each_sentence_has_the_number_of_seeds_behind_it(compare):
    summary = compare(("a", 1, 0.1, 0.3), ("a", 2, 0.1, 0.3), ("b", 1, 0.5, 0.3))
    reference, other = say_differences(summary)
    assert re.fullmatch(r"The reference, a: mean WER \d+\.\d % over 2 seeds\.", reference)
    over = r"\(95 % over utterances: \S+ to \S+; p ≤ 0\.001; 1 seed\)"
    assert re.fullmatch(rf"b: \d+\.\d % over 1 seed, \S+ points more than a {over}\.", other)


def test_seeds_that_disagree_are_chance_however_sure_the_utterances_are(compare):
    """Of three seeds one turns the difference round: of the same test set its mean is sure, and of training it is not."""
    rates = {"steady": (0.3, 0.3, 0.3), "wild": (0.35, 0.25, 0.75)}
    summary = compare(*((arm, seed, rate, 0.3) for arm, of_seed in rates.items() for seed, rate in enumerate(of_seed)))
    gap = summary["arms"][1]["difference"]["mean"]
    assert min(gap["by_seed"]) < 0 < gap["interval"][0]
    assert gap["interval_over_seeds"][0] < 0 < gap["interval_over_seeds"][1]
    assert "steady has the lowest mean WER, " in say_verdict(summary)
    assert " %; chance could explain its lead over wild. " in say_verdict(summary)
    over = r"\(95 % over utterances: \S+ to \S+; p \S+ 0\.\d+; over seeds, too: \S+ less to \S+ more; 3 seeds\)"
    assert re.search(rf" points more than steady {over}: it could be chance\.", say_differences(summary)[1])


def test_seeds_that_agree_widen_the_interval_and_leave_the_lead(compare):
    summary = compare(*((arm, seed, rate, 0.3) for arm, rate in (("a", 0.1), ("b", 0.8)) for seed in (1, 2, 3)))
    gap = summary["arms"][1]["difference"]["mean"]
    assert 0 < gap["interval_over_seeds"][0] < gap["interval"][0] < gap["interval"][1] < gap["interval_over_seeds"][1]
    assert "chance" not in " ".join([say_verdict(summary), *say_differences(summary)])


def test_of_one_seed_nothing_is_said_of_others(compare):
    said = say_verdict(compare(("a", 1, 0.1, 0.3), ("b", 1, 0.5, 0.2)))
    assert said.endswith("before training. Each arm has 1 seed: nothing is known of others.")


def test_text_is_kept_best_in_pairs_and_seeds_that_disagree_are_told(compare):
    # on seed 2 all forget much
    summary = compare(("a", 1, 0.1, 0.2), ("a", 2, 0.1, 2.0), ("b", 1, 0.5, 0.4))
    assert "It also keeps text best: perplexity is 1.90 times what it was before training. " in say_verdict(summary)
    mixed = compare(("c", 1, 0.1, 0.2), ("c", 2, 0.1, 0.5), ("d", 1, 0.5, 1.0), ("d", 2, 0.5, 0.4))
    assert "before training, though on a seed d kept it as well. Each arm has 2 seeds." in say_verdict(mixed)
