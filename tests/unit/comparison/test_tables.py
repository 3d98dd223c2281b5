"""The numbers of a comparison as its tables write and sort them."""

from __future__ import annotations

from typing import Any

from kappaspeech.comparison.tables import make_equal_table, make_speech_table, make_tables


def arm(name: str, rate: float, gap: dict[str, Any] | None) -> dict[str, Any]:
    mean = {"mean": rate, "sd": None, "interval": [rate - 0.01, rate + 0.02]}
    difference = None if gap is None else {"mean": gap}
    return {
        "arm": name,
        "seeds": [17, 18],
        "num_llm_trained_parameters": {"mean": 2_500_000.0},
        "wer": {"mean": mean},
        "difference": difference,
    }


GAP = {"mean": -0.05, "interval": [-0.1, 0.01], "p_value": 0.024}


def test_a_rate_is_a_fraction_to_sort_by_and_percent_to_read():
    table = make_speech_table({"arms": [arm("a", 0.2, None), arm("b", 0.15, GAP)]})
    assert table.header == ("arm", "seeds", "LLM parameters trained", "mean WER (95 %)", "minus a, points (95 %)", "p")
    reference, other = table.rows
    assert [cell.text for cell in reference] == ["a", "2", "2.50 M", "20.0 % (19.0 to 22.0 %)", "reference", "–"]
    assert [cell.text for cell in other][3:] == ["15.0 % (14.0 to 17.0 %)", "-5.0 (-10.0 to +1.0)", "0.024"]
    assert [cell.value for cell in other] == ["b", 2, 2_500_000.0, 0.15, -0.05, 0.024]


def test_an_arm_alone_has_no_difference():
    table = make_speech_table({"arms": [arm("a", 0.2, None)]})
    assert table.header == ("arm", "seeds", "LLM parameters trained", "mean WER (95 %)")
    assert [len(row) for row in table.rows] == [4]


def test_forgetting_stands_by_level_and_sorts_levels_as_they_are_numbered():
    def at(level: float) -> dict[str, Any]:
        arms = [
            {"arm": "a", "mean": 0.3, "interval": [0.2, 0.4], "difference": None},
            {"arm": "b", "mean": 0.1, "interval": [0.0, 0.2], "difference": {**GAP, "p_value": 1e-9}},
        ]
        return {"level": level, "arms": arms}

    summary = {"arms": [{"arm": "a"}, {"arm": "b"}], "equal": {"wer": [at(0.1), at(0.2)], "loss": [at(1.25)]}}
    rows = make_equal_table(summary).rows
    names = ["10 % WER", "20 % WER", "training loss 1.25"]
    assert [(row[0].text, row[0].value, row[1].text) for row in rows] == [
        (name, number, which) for number, name in enumerate(names) for which in "ab"
    ]
    assert [cell.text for cell in rows[0]][2:] == ["0.300 (0.200 to 0.400)", "reference", "–"]
    assert [cell.text for cell in rows[1]][2:] == ["0.100 (0.000 to 0.200)", "-0.050 (-0.100 to +0.010)", "≤ 0.001"]


def test_where_an_arm_was_best_and_how_far_it_has_risen_since_are_told():
    spread = {"mean": 0.25, "sd": 0.05, "by_seed": [0.2, 0.3]}
    best = {"step": {"mean": 400.0, "sd": None}, "mean_wer": {"mean": 0.061, "sd": None}, "rise": spread}
    rest = {
        "text": {},
        "wer": {"mean": {"mean": 0.31, "sd": None, "interval": [0.2, 0.4]}, "languages": {}},
        "wer_before": {},
        "llm_learning_rate": 2e-4,
        "num_tensors": spread,
        "mean_drift": spread,
        "num_target_tokens": spread,
        "train_seconds": spread,
        "num_skipped_steps": 0,
    }
    (table,) = [item for item in make_tables({"arms": [{**arm("a", 0.31, None), **rest, "best": best}]}) if "Best" in item.title]
    assert [cell.text for cell in table.rows[0]] == ["a", "6.1 %", "400", "25.0 ± 5.0"]


def test_what_nothing_was_resampled_of_has_no_interval_and_no_p():
    gap = {"mean": -0.2, "interval": None, "p_value": None}
    arms = [
        {"arm": "a", "mean": 0.3, "interval": None, "difference": None},
        {"arm": "b", "mean": 0.1, "interval": None, "difference": gap},
    ]
    summary = {"arms": [{"arm": "a"}, {"arm": "b"}], "equal": {"wer": [], "loss": [{"level": 1.25, "arms": arms}]}}
    assert [[cell.text for cell in row][2:] for row in make_equal_table(summary).rows] == [
        ["0.300", "reference", "–"],
        ["0.100", "-0.200", "–"],
    ]
