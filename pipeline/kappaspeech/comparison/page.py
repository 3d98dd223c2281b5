"""The comparison as one HTML page that needs nothing but itself: no network, no file beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from kappaspeech.comparison.curves import draw_forgetting, draw_loss, draw_text, draw_wer, text_keys
from kappaspeech.comparison.equal_wer import state_price
from kappaspeech.comparison.maps import draw_drift, draw_kappas, draw_map
from kappaspeech.comparison.runs import Arm
from kappaspeech.comparison.tables import Cell, Table, has_several_rates, make_equal_table, make_tables
from kappaspeech.comparison.theme import arm_background, inline_svg, style_variables, themed
from kappaspeech.comparison.words import say_differences, say_verdict
from kappaspeech.evaluation.markup import for_page, raw, render

_NUM_EXAMPLES = 4
_NUM_DIGEST_DIGITS = 10
# A drawing is as wide as a phone, so that its letters have their own size there.
_SIZE = (5.3, 3.9)


@dataclass(frozen=True)
class Drawing:
    """An SVG with its caption; with a `clock`, one of two that buttons change."""

    svg: str
    label: str
    clock: str = ""


@dataclass(frozen=True)
class Example:
    """An arm's wrong transcripts, some of each language."""

    caption: str
    table: Table


def make_page(arms: Sequence[Arm], summary: Mapping[str, Any]) -> str:
    """The page's HTML."""
    config = arms[0].runs[0].config
    return render(
        "kappaspeech.comparison",
        "page.html.jinja",
        title=" · ".join(arm.name for arm in arms),
        style=raw(style_variables() + _asset("page.css")),
        script=raw(_asset("page.js")),
        verdict=say_verdict(summary),
        description=_describe(config, summary),
        sentences=[*state_price(summary["equal"]), *say_differences(summary)],
        missing=list(summary["missing"].items()),
        arms=[arm.name for arm in arms],
        signs=[arm_background(number) for number in range(len(arms))],
        tables=make_tables(summary),
        wer_figures=_wer_figures(arms),
        forgetting_figures=_forgetting(arms),
        equal=make_equal_table(summary),
        why_not=summary["equal"]["why_not"],
        tensor_figures=_tensors(arms),
        loss_figure=_figure(_plot(draw_loss, arms), name="loss", label="Training loss, smoothed, mean over seeds."),
        proof=_proof(summary["proof"]),
        examples=[_example(arm) for arm in arms],
    )


def _asset(name: str) -> str:
    return resources.files("kappaspeech.comparison").joinpath(name).read_text(encoding="utf-8")


def _describe(config: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    first = summary["arms"][0]
    hours, tokens = first["audio_hours"]["mean"], first["num_target_tokens"]["mean"]
    seeds = sorted({seed for arm in summary["arms"] for seed in arm["seeds"]})
    llm, encoder = (config["model"][part].rsplit("/", 1)[-1] for part in ("llm", "encoder"))
    several = len(summary["arms"]) > 1
    rate = "in the LLM's learning rate, " if has_several_rates(summary["arms"]) else ""
    only = f"The arms differ only in the tensors that they unfreeze, {rate}and in what holds these to their beginning."
    alike = f" {only} Differences are against {first['arm']}." if several else ""
    return (
        f"{llm} with {encoder}; {first['step']} steps, {hours:.2f} hours of speech, {tokens:,.0f} target "
        f"tokens{' an arm' * several}; seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}.{alike}"
    )


def _figure(draw: Callable[[Any], None], *, name: str, label: str, size: tuple[float, float] = _SIZE, clock: str = "") -> Drawing:
    """One drawing with its caption; `draw` is given a matplotlib figure."""
    from matplotlib.figure import Figure

    with themed(name):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        svg = inline_svg(figure, label=for_page(label))
    return Drawing(raw(svg), label, clock)


def _plot(draw: Callable[..., None], *arguments: Any, **options: Any) -> Callable[[Any], None]:
    return lambda figure: draw(figure.subplots(), *arguments, **options)


def _wer_figures(arms: Sequence[Arm]) -> list[Drawing]:
    bands = "; bands span the seeds" if any(len(arm.runs) > 1 for arm in arms) else ""
    steps = f"Mean of the languages' WER over optimizer steps{bands}."
    minutes = f"Mean of the languages' WER over minutes of training, evaluations left out of the time{bands}."
    languages = sorted(arms[0].runs[0].last["wer"]["languages"])
    return [
        _figure(_plot(draw_wer, arms, clock="steps"), name="steps", label=steps, clock="steps"),
        _figure(_plot(draw_wer, arms, clock="minutes"), name="minutes", label=minutes, clock="minutes"),
        *(
            _figure(_plot(draw_wer, arms, clock="steps", language=language), name=f"wer-{language}", label=f"WER, {language}.")
            for language in languages
        ),
    ]


def _forgetting(arms: Sequence[Arm]) -> list[Drawing]:
    figures = []
    for language, key, title in text_keys([run for arm in arms for run in arm.runs]):
        name = f"{key}-{language}"
        against = _plot(draw_forgetting, arms, language=language, key=key, title=title)
        over = _plot(draw_text, arms, language=language, key=key)
        figures.append(_figure(against, name=f"against-{name}", label=f"Mean WER against {title}."))
        figures.append(_figure(over, name=f"over-{name}", label=f"{title[0].upper()}{title[1:]} over training."))
    return figures


def _tensors(arms: Sequence[Arm]) -> list[Drawing]:
    if not any(run.trained_names for arm in arms for run in arm.runs):
        return []
    # every arm keeps its place, so that its colour is its own in all drawings
    height = 0.6 + 1.9 * len(arms)
    return [
        _figure(_plot(draw_drift, arms), name="drift", label="How far each trained matrix moved, against its κ."),
        _figure(_plot(draw_kappas, arms), name="kappas", label="What training did to each matrix's κ."),
        _figure(
            lambda figure: draw_map(figure, arms),
            name="map",
            label="Which tensors each arm unfreezes: modules by layers. Paler if only some seeds do.",
            size=(_SIZE[0], height),
        ),
    ]


def _proof(proofs: Sequence[Mapping[str, Any]]) -> Table:
    header = ("seed", "runs", "initial weights (SHA-256)", "steps", "samples, in order (SHA-256)", "first loss, widest gap")
    rows = []
    for proof in proofs:
        cells = (
            str(proof["seed"]),
            str(proof["num_runs"]),
            proof["initial_weights_digest"][:_NUM_DIGEST_DIGITS] + "…",
            str(proof["num_steps"]),
            proof["samples_digest"][:_NUM_DIGEST_DIGITS] + "…",
            f"{proof['first_loss_spread']:.2g} nats",
            ", ".join(map(str, proof["world_sizes"])),
            ", ".join(commit[:10] for commit in proof["git_commits"]),
        )
        rows.append(tuple(Cell(text, text) for text in cells))
    return Table("", "", (*header, "ranks", "commit"), tuple(rows))


def _example(arm: Arm) -> Example:
    hypotheses = arm.runs[0].hypotheses
    wrong = [item for item in hypotheses if item.reference != item.hypothesis]
    languages = sorted({item.language for item in hypotheses})
    chosen = [item for language in languages for item in [w for w in wrong if w.language == language][:_NUM_EXAMPLES]]
    rows = tuple(tuple(Cell(text, text) for text in (item.language, item.reference, item.hypothesis)) for item in chosen)
    caption = f"{arm.name}: {len(wrong)} of {len(hypotheses)} utterances differ from their reference, letter by letter"
    return Example(caption, Table("", "", ("language", "said", "written"), rows))
