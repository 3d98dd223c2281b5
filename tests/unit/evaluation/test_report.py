"""An evaluation in lines for a person."""

from __future__ import annotations

from kappaspeech.evaluation.choice_items import Item
from kappaspeech.evaluation.choices import Picked, measure_choices
from kappaspeech.evaluation.instruction_checks import Check, Instruction
from kappaspeech.evaluation.instructions import measure_instructions
from kappaspeech.evaluation.report import describe_record, describe_tasks
from kappaspeech.evaluation.wer import Hypothesis, measure, measure_sensitivity


def test_a_record_is_told_by_language_with_what_was_cut_and_what_text_became():
    kept = [Hypothesis(f"{n}", "en", "turn the lamp on", "turn the lamp off") for n in range(4)]
    kept.append(Hypothesis("empty", "de", "", ""))
    record = {
        "wer": measure(kept),
        "num_loops": 1,
        "audio_seconds": 40.0,
        "decode_seconds": 10.0,
        "compounds": {**measure(kept), "aligner": "kaldialign, compounds merged"},
        "num_cut": 0,
        "text": {"en": {"perplexity": 12.5, "num_tokens": 90, "kl_nats": 0.25}},
        "normalisers": measure_sensitivity(kept),
        "lm_eval": {"piqa": {"acc": 0.5}},
    }
    lines = describe_record(record)
    assert "WER de: no reference word (1 utterances)" in lines
    assert any(line.startswith("WER en  25.00% (95 % of resamples ") for line in lines)
    assert any(line.startswith("  4 substitutions, 0 deletions, 0 insertions; CER ") for line in lines)
    assert "texts cut: 1 in a loop, 0 at the longest length" in lines
    assert any(line.startswith("WER under the normaliser ") and "en 25.00%" in line for line in lines)
    assert "40.0 s of speech in 10.0 s: real-time factor 0.25" in lines
    assert "WER en  25.00% (25.00% to 25.00%) by kaldialign, compounds merged" in lines
    assert lines[-2:] == ["text perplexity en 12.50 (90 tokens), KL from the base 0.250 nats a token", "piqa: acc 0.5"]


def test_answers_are_told_by_language_and_group_with_the_bases_beside_them():
    items = [Item(str(number), ("a", "b"), 0, "first" if number < 2 else "") for number in range(4)]
    report = measure_choices(items, Picked((0, 1, 0, 0), (0, 0, 0, 0)), Picked((0, 0, 0, 1), (0, 0, 0, 0)))
    head, groups = describe_tasks({"tasks": {"en": report}})
    assert head.startswith("tasks en 75.0% right (25.0% to 100.0%; 4 questions, chance 50.0%; by length 100.0%)")
    gaps = "+0.0% (-75.0% to +75.0%); by length +0.0% (+0.0% to +0.0%)"
    assert head.endswith(f"; to the base {gaps}: 50.0% changed, 25.0% lost, 25.0% gained")
    assert groups == "  first 100% → 50%, others 50% → 100%"
    unknown = measure_choices(items, Picked((0, 1, 0, 0), (0, 0, 0, 0)), None)
    head, groups = describe_tasks({"tasks": {"en": unknown}})
    assert head.endswith("by length 100.0%)")
    assert groups == "  first 50%, others 100%"
    assert describe_tasks({}) == []


def test_instructions_are_told_by_language_and_kind_with_the_bases_beside_them():
    items = [Instruction("one", (Check("json", {}),)), Instruction("two", (Check("lower_case", {}), Check("words", {"most": 1})))]
    report = measure_instructions(items, ["[]", "Sure:\nyes"], ["no", "yes"])
    head, kinds = describe_tasks({"instructions": {"de": report}})
    told = "instructions de 50.0% followed (0.0% to 100.0%; 2 of them; loosely 100.0%; of 3 checks 33.3%, loosely 100.0%)"
    gap, rest = "+0.0% (-100.0% to +100.0%)", "100.0% changed, 50.0% lost, 50.0% gained"
    assert head == f"{told}; to the base {gap}; loosely +50.0% (+0.0% to +100.0%): {rest}"
    # as earlier versions recorded it
    before = {
        name: value for name, value in report["base"].items() if not name.startswith(("loose_difference", "loose_interval"))
    }
    head, _ = describe_tasks({"instructions": {"de": {**report, "base": before}}})
    assert head == f"{told}; to the base {gap}: {rest}"
    assert kinds == "  words 100% → 0%, lower_case 100% → 0%, json 0% → 100%"
    head, kinds = describe_tasks({"instructions": {"de": {**report, "base": None}}})
    assert (head, kinds) == (told, "  words 0%, lower_case 0%, json 100%")


def test_each_test_set_has_a_line_of_its_own():
    kept = [Hypothesis("a", "en", "turn the lamp on", "turn the lamp off", dataset="near")]
    kept += [Hypothesis("a", "en", "turn the lamp on", "turn the lamp on", dataset="far")]
    lines = describe_record({"wer": measure(kept), "num_loops": 0, "num_cut": 0, "text": {}})
    rates = [line.split("(")[0].split() for line in lines if line.startswith("WER en")]
    assert rates == [["WER", "en", "12.50%"], ["WER", "en,", "far", "0.00%"], ["WER", "en,", "near", "25.00%"]]


def test_hot_words_have_a_line_of_their_own():
    report = {"num_hot_words": 3, "num_said": 4, "num_found": 3, "recall": 0.75, "biased_wer": 0.5, "unbiased_wer": 0.125}
    empty = {"wer": measure([]), "num_loops": 0, "num_cut": 0, "text": {}}
    wanted = "hot words: 3 of 4 said were written (75.00%); WER of hot words 50.00%, of all others 12.50%"
    assert wanted in describe_record({**empty, "hot_words": report})
    unsaid = {**report, "num_said": 0, "num_found": 0, "recall": None, "biased_wer": None}
    assert "hot words: none of 3 is said" in describe_record({**empty, "hot_words": unsaid})
