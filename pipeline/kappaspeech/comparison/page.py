"""The comparison as one HTML page that needs nothing but itself: no network, no file beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from typing import Any

from kappaspeech.comparison.curves import draw_forgetting, draw_loss, draw_text, draw_wer, text_keys
from kappaspeech.comparison.equal_wer import state_price
from kappaspeech.comparison.maps import draw_drift, draw_kappas, draw_map
from kappaspeech.comparison.runs import Arm
from kappaspeech.comparison.summary import Cell, make_equal_table, make_table
from kappaspeech.comparison.theme import arm_variable, inline_svg, style_variables, themed
from kappaspeech.evaluation.markup import for_page

_NUM_EXAMPLES = 4
_NUM_DIGEST_DIGITS = 16


def make_page(arms: Sequence[Arm], summary: Mapping[str, Any]) -> str:
    """The page's HTML."""
    config = arms[0].runs[0].config
    title = " · ".join(arm.name for arm in arms)
    header, rows = make_table(summary)
    parts = [
        "<!doctype html><html lang=en><head><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width,initial-scale=1'>",
        # an icon of its own, empty: a browser would ask the server for one
        f"<title>{for_page(title)}</title><link rel=icon href='data:,'>",
        f"<style>{style_variables()}{_asset('page.css')}</style></head><body><main>",
        f"<h1>{for_page(title)}</h1>",
        f"<p class=faint>{for_page(_describe(config, summary))}</p>",
        "<ul class=lead>"
        + "".join(f"<li>{for_page(said)}" for said in [*state_price(summary["equal"]), *_say_result(summary)])
        + "</ul>",
        _note_missing(summary["missing"]),
        _controls(arms),
        _wer_figures(arms),
        "<h2>In numbers</h2><p class=faint>After training. ± is the standard deviation over seeds; intervals are 95 % of a "
        "bootstrap over test utterances, differences paired by utterance and seed. Click a heading to sort.</p>",
        _table(header, rows, sortable=True, arms=arms),
        _languages(arms),
        _forgetting(arms),
        _equal(summary),
        _tensors(arms),
        _loss(arms),
        _proof(summary["proof"]),
        _examples(arms),
        f"</main><script>{_asset('page.js')}</script></body></html>\n",
    ]
    return "\n".join(part for part in parts if part)


def _asset(name: str) -> str:
    return resources.files("kappaspeech.comparison").joinpath(name).read_text(encoding="utf-8")


def _describe(config: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    first = summary["arms"][0]
    hours, tokens = first["audio_hours"]["mean"], first["num_target_tokens"]["mean"]
    seeds = sorted({seed for arm in summary["arms"] for seed in arm["seeds"]})
    llm, encoder = (config["model"][part].rsplit("/", 1)[-1] for part in ("llm", "encoder"))
    return (
        f"{llm} with {encoder}; {first['step']} steps, "
        f"{hours:.2f} hours of speech, {tokens:,.0f} target tokens an arm; seed{'s' * (len(seeds) > 1)} "
        f"{', '.join(map(str, seeds))}. The arms differ in the tensors they unfreeze alone."
    )


def _say_result(summary: Mapping[str, Any]) -> list[str]:
    """The finding in words: each arm's WER, and whether its difference to the first can be told from chance."""
    first, *others = summary["arms"]
    said = [f"{first['arm']}: mean WER {100 * first['wer']['mean']['mean']:.1f} %."]
    for arm in others:
        gap = arm["difference"]["mean"]
        low, high = (100 * bound for bound in gap["interval"])
        word = "more" if gap["mean"] > 0 else "less"
        known = "" if low > 0 or high < 0 else ": it could be chance"
        said.append(
            f"{arm['arm']}: {100 * arm['wer']['mean']['mean']:.1f} %, {abs(100 * gap['mean']):.1f} points {word} "
            f"(95 %: {low:+.1f} to {high:+.1f}; p = {gap['p_value']:.3f}){known}."
        )
    return said


def _note_missing(missing: Mapping[str, str]) -> str:
    if not missing:
        return ""
    items = "".join(f"<li>{for_page(name)}: {for_page(cause)}" for name, cause in missing.items())
    return f"<div class=note><strong>Not all of the experiment is here.</strong><ul>{items}</ul></div>"


def _controls(arms: Sequence[Arm]) -> str:
    buttons = "".join(
        f"<button data-arm={number} aria-pressed=true><span class=swatch style='background:{arm_variable(number)}'></span>"
        f"{for_page(arm.name)}</button>"
        for number, arm in enumerate(arms)
    )
    return f"<div class=controls>{buttons}</div>"


def _figure(draw: Callable[[Any], None], *, name: str, label: str, size: tuple[float, float], attributes: str = "") -> str:
    """One drawing with its caption; `draw` is given a matplotlib figure."""
    from matplotlib.figure import Figure

    with themed(name):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        svg = inline_svg(figure, label=for_page(label))
    return f"<figure {attributes}>{svg}<figcaption>{for_page(label)}</figcaption></figure>"


def _plot(draw: Callable[..., None], *arguments: Any, **options: Any) -> Callable[[Any], None]:
    return lambda figure: draw(figure.subplots(), *arguments, **options)


def _wer_figures(arms: Sequence[Arm]) -> str:
    steps = _figure(
        _plot(draw_wer, arms, clock="steps"),
        name="steps",
        label="Mean of the languages' WER over optimizer steps; bands span the seeds.",
        size=(10, 4.4),
        attributes="data-shown-by=steps",
    )
    minutes = _figure(
        _plot(draw_wer, arms, clock="minutes"),
        name="minutes",
        label="The same over minutes of training, evaluations left out of the time.",
        size=(10, 4.4),
        attributes="data-shown-by=minutes hidden",
    )
    clock = (
        "<div class='controls clock'><button data-clock=steps aria-pressed=true>over steps</button>"
        "<button data-clock=minutes aria-pressed=false>over minutes</button></div>"
    )
    return f"<h2>WER over training</h2>{clock}{steps}{minutes}"


def _languages(arms: Sequence[Arm]) -> str:
    figures = [
        _figure(
            _plot(draw_wer, arms, clock="steps", language=language),
            name=f"wer-{language}",
            label=f"WER, {language}",
            size=(6.6, 4),
        )
        for language in sorted(arms[0].runs[0].last["wer"]["languages"])
    ]
    return f"<h2>By language</h2><div class=pair>{''.join(figures)}</div>"


def _forgetting(arms: Sequence[Arm]) -> str:
    figures = []
    for language, key, title in text_keys([run for arm in arms for run in arm.runs]):
        name = f"{key}-{language}"
        against = _plot(draw_forgetting, arms, language=language, key=key, title=title)
        over = _plot(draw_text, arms, language=language, key=key, title=title[0].upper() + title[1:])
        figures.append(_figure(against, name=f"against-{name}", label=f"Mean WER against {title}.", size=(6.6, 4)))
        figures.append(_figure(over, name=f"over-{name}", label=f"The {title} over training.", size=(6.6, 4)))
    if not figures:
        return ""
    return (
        "<h2>What it costs: WER against forgetting</h2><p class=faint>Each small mark is an evaluation, the large one the last; "
        "lower hears better, further left has forgotten less of text that was never trained on.</p>"
        f"<div class=pair>{''.join(figures)}</div>"
    )


def _equal(summary: Mapping[str, Any]) -> str:
    header, rows = make_equal_table(summary)
    why_not = summary["equal"]["why_not"]
    note = f"<p class=faint>{for_page(why_not)}</p>" if why_not else ""
    if not rows:
        return note
    return (
        "<h2>Forgetting at equal WER</h2><p class=faint>An arm that has learnt less has forgotten less. So each run is read "
        "where its WER, or its smoothed training loss, first comes down to the same level, by a line between its evaluations. "
        "Forgotten: how much the mean loss on the texts has grown since before training. Intervals are 95 % of a bootstrap "
        "over seeds and, for WER, over test utterances; the texts are taken as they are. Few seeds make them too narrow.</p>"
        + note
        + _table(header, rows)
    )


def _tensors(arms: Sequence[Arm]) -> str:
    selecting = [arm for arm in arms if any(run.trained_names for run in arm.runs)]
    if not selecting:
        return ""
    # every arm keeps its place, so that its colour is its own in all drawings
    grids = _figure(
        lambda figure: draw_map(figure, arms),
        name="map",
        label="Which tensors each arm unfreezes: modules by layers. Paler where only some seeds do.",
        size=(10, 0.6 + 2.1 * len(arms)),
    )
    plots = [
        _figure(
            _plot(draw_drift, arms), name="drift", label="How far each trained matrix moved, against its κ.", size=(6.6, 4.2)
        ),
        _figure(_plot(draw_kappas, arms), name="kappas", label="What training did to each matrix's κ.", size=(6.6, 4.2)),
    ]
    return f"<h2>What was unfrozen, and how far it moved</h2>{grids}<div class=pair>{''.join(plots)}</div>"


def _loss(arms: Sequence[Arm]) -> str:
    return "<h2>Training loss</h2>" + _figure(
        _plot(draw_loss, arms), name="loss", label="Smoothed, mean over seeds.", size=(10, 3.8)
    )


def _proof(proofs: Sequence[Mapping[str, Any]]) -> str:
    header = ["seed", "runs", "initial weights (SHA-256)", "steps", "their samples, in order (SHA-256)", "first loss, widest gap"]
    header += ["ranks", "commit"]
    rows = [
        [
            Cell(text, text)
            for text in (
                str(proof["seed"]),
                str(proof["num_runs"]),
                proof["initial_weights_digest"][:_NUM_DIGEST_DIGITS] + "…",
                str(proof["num_steps"]),
                proof["samples_digest"][:_NUM_DIGEST_DIGITS] + "…",
                f"{proof['first_loss_spread']:.2g} nats",
                ", ".join(map(str, proof["world_sizes"])),
                ", ".join(commit[:10] for commit in proof["git_commits"]),
            )
        ]
        for proof in proofs
    ]
    return (
        "<h2>What the arms have in common</h2><p class=faint>Runs that differ in configuration, data, software, initial weights "
        "or samples are refused; these are the digests that all runs of a seed share. The first step's loss, before any arm "
        "has changed a weight, is the same where the weights, the samples and the number of ranks are.</p>" + _table(header, rows)
    )


def _examples(arms: Sequence[Arm]) -> str:
    parts = ["<h2>What was written</h2>"]
    for arm in arms:
        hypotheses = arm.runs[0].hypotheses
        wrong = [item for item in hypotheses if item.reference != item.hypothesis]
        languages = sorted({item.language for item in hypotheses})
        chosen = [item for language in languages for item in [w for w in wrong if w.language == language][:_NUM_EXAMPLES]]
        rows = [[Cell(text, text) for text in (item.language, item.reference, item.hypothesis)] for item in chosen]
        caption = f"{arm.name}: {len(wrong)} of {len(hypotheses)} utterances differ from their reference, letter by letter"
        parts.append(f"<details><summary>{for_page(caption)}</summary>{_table(['language', 'said', 'written'], rows)}</details>")
    return "".join(parts)


def _table(header: Sequence[str], rows: Sequence[Sequence[Cell]], *, sortable: bool = False, arms: Sequence[Arm] = ()) -> str:
    """With `arms`, one of them a row, the first cell carries its colour."""
    head = "".join(f"<th scope=col>{for_page(cell)}</th>" for cell in header)
    body = []
    for number, row in enumerate(rows):
        swatch = f"<span class=swatch style='background:{arm_variable(number)}'></span>" if arms else ""
        cells = []
        for column, cell in enumerate(row):
            wide = " class=wide" if len(cell.text) > 48 else ""
            value = for_page(str(cell.value))
            cells.append(f'<td{wide} data-value="{value}">{swatch if column == 0 else ""}{for_page(cell.text)}</td>')
        body.append("<tr>" + "".join(cells) + "</tr>")
    kind = " class=sortable" if sortable else ""
    return f"<div class=scroll><table{kind}><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
