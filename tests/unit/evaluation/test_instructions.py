"""Answers to instructions, counted by hand."""

from __future__ import annotations

from kappaspeech.evaluation.choice_items import digest_items
from kappaspeech.evaluation.instruction_checks import Check, Instruction
from kappaspeech.evaluation.instructions import Prompt, cut_prompts, measure_instructions

LOWER, SHORT = Check("lower_case", {}), Check("words", {"most": 2})
ITEMS = [
    Instruction("first", (LOWER,)),
    Instruction("second", (LOWER, SHORT)),
    Instruction("third", (SHORT,)),
    Instruction("fourth", (SHORT,)),
]


def test_answers_are_counted_by_hand():
    now = ["fine", "Sure:\nfine", "far too many words", "Here is what you wanted:\nfine"]
    base = ["Fine", "fine", "fine", "far too many words"]
    report = measure_instructions(ITEMS, now, base)
    # strictly the first alone: the second isn't in lower case until its first line is gone
    assert (report["num_items"], report["num_checks"]) == (4, 5)
    assert report["followed"] == [True, False, False, False]
    assert (report["accuracy"], report["loose_accuracy"]) == (0.25, 0.75)
    # of the second's checks the one on words is obeyed
    assert (report["check_accuracy"], report["loose_check_accuracy"]) == (0.4, 0.8)
    assert report["kinds"] == {"words": 1 / 3, "lower_case": 0.5}
    before = report["base"]
    assert (before["accuracy"], before["check_accuracy"], before["kinds"]["words"]) == (0.5, 0.6, 2 / 3)
    assert (before["difference"], before["flipped"], before["lost"], before["gained"]) == (-0.25, 0.75, 0.5, 0.25)
    low, high = before["interval"]
    assert -1 <= low < -0.25 < high <= 1
    # loosely the base follows the second and the third, and the model all of these and the first and the fourth but the third
    assert (before["loose_accuracy"], before["loose_difference"]) == (0.5, 0.25)
    low, high = before["loose_interval"]
    assert -0.5 <= low < 0.25 < high <= 1
    low, high = report["accuracy_interval"]
    assert 0 <= low < 0.25 < high <= 1
    assert report["loose_interval"][1] == 1
    assert (report["answers"], report["items_digest"]) == (now, digest_items(ITEMS))


def test_without_a_base_nothing_is_said_of_it():
    report = measure_instructions(ITEMS[:1], ["Fine"], None)
    assert (report["base"], report["accuracy_interval"], report["kinds"]) == (None, [0, 0], {"lower_case": 0})


def test_prompts_of_like_length_are_answered_together_the_longest_first():
    prompts = [Prompt(number, (0,) * length) for number, length in enumerate((3, 9, 3, 7, 8))]
    assert [[prompt.number for prompt in batch] for batch in cut_prompts(prompts, 2)] == [[1, 4], [3, 0], [2]]
