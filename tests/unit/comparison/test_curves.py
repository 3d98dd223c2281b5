from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from kappaspeech.comparison.curves import draw_forgetting, draw_loss, smooth, text_keys
from kappaspeech.comparison.theme import Style, arm_background


def test_a_smoothed_curve_begins_at_its_first_value_and_keeps_what_is_constant():
    assert smooth([]) == []
    assert smooth([4.0] * 30) == pytest.approx([4.0] * 30)
    assert smooth([1.0, 2.0], factor=0.5) == pytest.approx([1.0, 5 / 3])


def test_smoothing_takes_noise_away_and_follows_in_the_end():
    source = random.Random(0)
    noisy = [source.gauss(5.0, 1.0) for _ in range(200)]
    late = smooth(noisy)[100:]
    assert max(late) - min(late) < (max(noisy) - min(noisy)) / 2
    assert smooth([0.0] * 50 + [1.0] * 100)[-1] == pytest.approx(1.0, abs=1e-3)


def test_only_what_every_evaluation_says_of_text_is_drawn():
    whole = {"en": {"perplexity": 9.0, "kl_nats": 0.1}, "de": {"perplexity": 8.0, "kl_nats": 0.2}}
    first = {"en": {"perplexity": 9.0, "kl_nats": None}}
    runs = [SimpleNamespace(evaluations=[{"text": first}, {"text": whole}]), SimpleNamespace(evaluations=[{"text": whole}])]
    assert text_keys(runs) == [("en", "perplexity", "perplexity of en text")]
    assert [(language, key) for language, key, _ in text_keys(runs[1:])] == [
        ("de", "perplexity"),
        ("de", "kl_nats"),
        ("en", "perplexity"),
        ("en", "kl_nats"),
    ]


def test_an_arm_without_an_error_has_its_name_at_the_bottom():
    records = [{"text": {"en": {"perplexity": 9.0 + rate}}, "wer": {"mean_wer": rate}} for rate in (0.5, 0.0)]
    arm = SimpleNamespace(name="all right", runs=[SimpleNamespace(evaluations=records, last=records[-1])])
    axes = Figure().subplots()
    draw_forgetting(axes, [arm], language="en", key="perplexity", title="perplexity")
    assert [label.xy[1] for label in axes.texts if label.get_text() == "all right"] == [0]


def test_the_loss_of_seeds_is_averaged_step_by_step_though_one_skipped_some():
    whole = SimpleNamespace(losses=[4.0, 4.0, 2.0, 2.0], loss_steps=[0, 1, 2, 3])
    lacking = SimpleNamespace(losses=[4.0, 2.0, 2.0], loss_steps=[0, 2, 3])
    axes = Figure().subplots()
    draw_loss(axes, [SimpleNamespace(name="a", runs=[whole, lacking])])
    line = axes.lines[0]
    first, second = smooth(whole.losses), smooth(lacking.losses)
    assert list(line.get_xdata()) == [1, 3, 4]
    assert list(line.get_ydata()) == pytest.approx([4.0, (first[2] + second[1]) / 2, (first[3] + second[2]) / 2])


def test_more_arms_than_colours_are_told_apart_by_their_lines_their_markers_and_their_signs():
    """Beyond seven arms an experiment had two of one look."""
    styles = [Style(number, f"arm {number}") for number in range(24)]
    for looks in (
        {(style.colour, style.line) for style in styles},
        {(style.colour, style.marker) for style in styles},
        {arm_background(style.number) for style in styles},
    ):
        assert len(looks) == len(styles)


@pytest.mark.parametrize("figure", ["loss", "forgetting"])
def test_twelve_arms_have_twelve_looks_in_a_drawing(figure):
    records = [{"text": {"en": {"perplexity": 9.0 + rate}}, "wer": {"mean_wer": rate}} for rate in (0.5, 0.3)]
    run = SimpleNamespace(losses=[4.0, 2.0], loss_steps=[0, 1], evaluations=records, last=records[-1])
    arms = [SimpleNamespace(name=f"arm {number}", runs=[run]) for number in range(12)]
    axes = Figure().subplots()
    if figure == "loss":
        draw_loss(axes, arms)
    else:
        draw_forgetting(axes, arms, language="en", key="perplexity", title="perplexity")
    lines = [line for line in axes.lines if len(line.get_xdata()) == 2]
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 12


def test_a_line_leads_from_each_last_point_to_its_name():
    """Of arms of one colour a name that was pushed away could be the other's."""
    records = [{"text": {"en": {"kl_nats": rate}}, "wer": {"mean_wer": rate}} for rate in (0.5, 0.3)]
    arms = [SimpleNamespace(name=f"arm {n}", runs=[SimpleNamespace(evaluations=records, last=records[-1])]) for n in range(9)]
    axes = Figure().subplots()
    draw_forgetting(axes, arms, language="en", key="kl_nats", title="KL")
    named = [label for label in axes.texts if label.get_text().startswith("arm ")]
    assert len(named) == 9
    for label in named:
        assert label.xy == pytest.approx((0.3, 30))
        assert label.arrow_patch.get_edgecolor() == pytest.approx(to_rgba(label.get_color()))
