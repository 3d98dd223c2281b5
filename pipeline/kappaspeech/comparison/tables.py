"""The comparison's tables, a row an arm: speech, text, languages, training; and forgetting at equal WER."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kappaspeech.comparison.words import say_p


@dataclass(frozen=True)
class Cell:
    """The text that a table shows, and the number by which it is sorted."""

    text: str
    value: float | str


@dataclass(frozen=True)
class Table:
    """A header and rows, with a title and what its numbers cover."""

    title: str
    note: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


def make_tables(summary: Mapping[str, Any]) -> list[Table]:
    """Speech first, then what it costs in text, then languages and training; a table without columns of its own is left out."""
    arms = summary["arms"]
    seeds = max(len(arm["seeds"]) for arm in arms)
    spread = f" ± is the standard deviation over up to {seeds} seeds." if seeds > 1 else " One seed: nothing is known of others."
    over = "Intervals cover 95 % of resampled test utterances, paired by utterance and seed; they don't cover other seeds"
    over += ", as the sentences above do." if seeds > 1 else "."
    if len({tuple(arm["seeds"]) for arm in arms}) > 1:
        over += " Arms differ in seeds: means are over an arm's own, and a difference is over those that both arms have."
    tables = [
        make_speech_table(summary),
        _text_table(
            arms, "Perplexity before → after training; KL is the distance from the base model, in nats a token." + spread
        ),
        _tasks_table(arms),
        _instructions_table(arms),
        _language_table(arms, f"WER before → after training.{spread}"),
        _training_table(arms),
        _best_table(arms),
    ]
    tables[0] = Table(tables[0].title, f"{over}{spread}", tables[0].header, tables[0].rows)
    return [table for table in tables if len(table.header) > 1]


def make_speech_table(summary: Mapping[str, Any]) -> Table:
    """Mean WER, and the difference to the reference, which is the first arm; alone, an arm has none."""
    arms = summary["arms"]
    header = ["arm", "seeds", "LLM parameters trained", "mean WER (95 %)"]
    if len(arms) > 1:
        header += [f"minus {arms[0]['arm']}, points (95 %)", "p"]
    rows = []
    for arm in arms:
        mean = arm["wer"]["mean"]
        cells = [
            Cell(arm["arm"], arm["arm"]),
            Cell(str(len(arm["seeds"])), len(arm["seeds"])),
            Cell(f"{arm['num_llm_trained_parameters']['mean'] / 1e6:.2f} M", arm["num_llm_trained_parameters"]["mean"]),
            Cell(f"{_percent(mean)} ({_range(mean['interval'])})", mean["mean"]),
        ]
        if len(arms) > 1:
            cells += _difference(arm)
        rows.append(tuple(cells))
    return Table("Speech", "", tuple(header), tuple(rows))


def _difference(arm: Mapping[str, Any]) -> list[Cell]:
    if arm["difference"] is None:
        return [Cell("reference", 0.0), Cell("–", 1.0)]
    gap = arm["difference"]["mean"]
    low, high = (100 * bound for bound in gap["interval"])
    return [
        Cell(f"{100 * gap['mean']:+.1f} ({low:+.1f} to {high:+.1f})", gap["mean"]),
        Cell(say_p(gap["p_value"]), gap["p_value"]),
    ]


def _text_table(arms: Sequence[Mapping[str, Any]], note: str) -> Table:
    languages = list(arms[0]["text"])
    measured = [language for language in languages if all(arm["text"][language]["kl_nats"] for arm in arms)]
    header = ["arm", *(f"perplexity {language}" for language in languages), *(f"KL {language}" for language in measured)]
    rows = []
    for arm in arms:
        cells = [Cell(arm["arm"], arm["arm"])]
        for language in languages:
            before, after = (arm["text"][language][key] for key in ("perplexity_before", "perplexity"))
            cells.append(Cell(f"{before['mean']:.1f} → {_number(after, '.1f')}", after["mean"]))
        for language in measured:
            values = arm["text"][language]["kl_nats"]
            cells.append(Cell(_number(values, ".3f"), values["mean"]))
        rows.append(tuple(cells))
    return Table("Text", note, tuple(header), tuple(rows))


def _tasks_table(arms: Sequence[Mapping[str, Any]]) -> Table:
    languages, header, rows = _answer_columns(arms, "tasks", "right")
    chances = ", ".join(f"{language} {100 * arms[0]['tasks'][language]['chance']:.0f} %" for language in languages)
    note = (
        "Questions with several choices: share of right answers before → after training, and of answers that differ from the "
        f"base's. Intervals cover 95 % of resampled questions. Guessing: {chances}."
    )
    return Table("Tasks", note, header, rows)


def _instructions_table(arms: Sequence[Mapping[str, Any]]) -> Table:
    languages, header, rows = _answer_columns(arms, "instructions", "followed")
    counts = ", ".join(f"{language} {arms[0]['instructions'][language]['num_items']}" for language in languages)
    note = (
        "Instructions whose obedience a program can tell: share that is followed strictly, before → after training; loosely, "
        "after it; and share that either the base follows or the arm, not both. Intervals cover 95 % of resampled "
        f"instructions. Their number: {counts}."
    )
    return Table("Instructions", note, header, rows)


def _answer_columns(
    arms: Sequence[Mapping[str, Any]], key: str, verb: str
) -> tuple[list[str], tuple[str, ...], tuple[tuple[Cell, ...], ...]]:
    """The languages that all arms have of a type of task, and a header and rows of them."""
    first, languages = arms[0]["arm"], sorted(set.intersection(*(set(arm.get(key, {})) for arm in arms)))
    header, rows = ["arm"], [[Cell(arm["arm"], arm["arm"])] for arm in arms]
    for language in languages:
        reports = [arm[key][language] for arm in arms]
        header += [f"{verb} {language} (95 %)"]
        header += [f"loosely {language}"] if key == "instructions" else []
        header += [f"changed {language}"]
        header += [f"minus {first}, points (95 %)", "p"] if len(arms) > 1 else []
        for row, report in zip(rows, reports, strict=True):
            before, accuracy, flipped = report["accuracy_before"], report["accuracy"], report["flipped"]
            start = "" if before is None else f"{100 * before['mean']:.0f} → "
            row.append(Cell(f"{start}{_percent(accuracy)} ({_range(accuracy['interval'])})", accuracy["mean"]))
            row += [Cell(_percent(report["loose"]), report["loose"]["mean"])] if key == "instructions" else []
            row.append(Cell("–" if flipped is None else _percent(flipped), -1.0 if flipped is None else flipped["mean"]))
            if len(arms) > 1:
                row += _difference({"difference": report["difference"] and {"mean": report["difference"]}})
    return languages, tuple(header), tuple(map(tuple, rows))


def _language_table(arms: Sequence[Mapping[str, Any]], note: str) -> Table:
    languages = list(arms[0]["wer"]["languages"])
    rows = []
    for arm in arms:
        cells = [Cell(arm["arm"], arm["arm"])]
        for language in languages:
            report, before = arm["wer"]["languages"][language], arm["wer_before"].get(language)
            text = _percent(report) if before is None else f"{100 * before:.0f} → {_percent(report)}"
            cells.append(Cell(text, report["mean"]))
        rows.append(tuple(cells))
    return Table("Speech, by language", note, ("arm", *(f"WER {language}" for language in languages)), tuple(rows))


def has_several_rates(arms: Sequence[Mapping[str, Any]]) -> bool:
    """True if the arms that train the LLM differ in its learning rate."""
    return len({arm["llm_learning_rate"] for arm in arms} - {None}) > 1


def _rate(learning_rate: float | None) -> Cell:
    return Cell("–", 0.0) if learning_rate is None else Cell(f"{learning_rate:.3g}", learning_rate)


def _training_table(arms: Sequence[Mapping[str, Any]]) -> Table:
    rows = []
    several = has_several_rates(arms)
    for arm in arms:
        minutes = {key: value / 60 if isinstance(value, float | int) else value for key, value in arm["train_seconds"].items()}
        rows.append(
            (
                Cell(arm["arm"], arm["arm"]),
                Cell(f"{arm['num_tensors']['mean']:.0f}", arm["num_tensors"]["mean"]),
                Cell(_number(arm["mean_drift"], ".3f"), arm["mean_drift"]["mean"]),
                Cell(f"{arm['num_target_tokens']['mean']:,.0f}", arm["num_target_tokens"]["mean"]),
                Cell(_number(minutes, ".1f"), arm["train_seconds"]["mean"]),
                *([_rate(arm["llm_learning_rate"])] if several else []),
            )
        )
    note = "Drift is the mean of ‖W − W₀‖/‖W₀‖ over the trained tensors; minutes are of training, without evaluations."
    if skipped := [f"{arm['arm']} {arm['num_skipped_steps']}" for arm in arms if arm["num_skipped_steps"]]:
        note += f" Bad steps that were skipped, in all seeds: {', '.join(skipped)}."
    header = ("arm", "tensors", "drift", "target tokens", "minutes", *(["LLM's learning rate"] if several else []))
    return Table("Training", note, header, tuple(rows))


def _best_table(arms: Sequence[Mapping[str, Any]]) -> Table:
    rows = []
    for arm in arms:
        best = arm["best"]
        rise = {key: 100 * value if isinstance(value, float | int) else value for key, value in best["rise"].items()}
        rows.append(
            (
                Cell(arm["arm"], arm["arm"]),
                Cell(_percent(best["mean_wer"]), best["mean_wer"]["mean"]),
                Cell(_number(best["step"], ".0f"), best["step"]["mean"]),
                Cell(_number(rise, ".1f"), rise["mean"]),
            )
        )
    note = "The evaluation of lowest mean WER, each run's own, and by how many points WER has risen from there to the end."
    return Table("Best evaluation", note, ("arm", "lowest mean WER", "at step", "rise to the end, points"), tuple(rows))


def make_equal_table(summary: Mapping[str, Any]) -> Table:
    """Forgetting at equal levels, one row a level and an arm."""
    equal = summary["equal"]
    levels = [(f"{100 * level['level']:.0f} % WER", level) for level in equal["wer"]]
    levels += [(f"training loss {level['level']:.2f}", level) for level in equal["loss"]]
    first = summary["arms"][0]["arm"]
    several = len(summary["arms"]) > 1
    header = ("at", "arm", "forgotten, nats a token (95 %)", *((f"minus {first} (95 %)", "p") if several else ()))
    rows = []
    for number, (name, level) in enumerate(levels):
        for arm in level["arms"]:
            cells = [Cell(name, number), Cell(arm["arm"], arm["arm"])]
            cells.append(Cell(_with_interval(arm, ".3f"), arm["mean"]))
            cells += _gap_cells(arm["difference"], is_reference=arm["arm"] == first) if several else []
            rows.append(tuple(cells))
    return Table("Forgetting at equal WER", "", header, tuple(rows))


def _gap_cells(gap: Mapping[str, Any] | None, *, is_reference: bool) -> list[Cell]:
    if gap is None:
        return [Cell("reference" if is_reference else "–", 0.0), Cell("–", 1.0)]
    p_value = gap["p_value"]
    return [
        Cell(_with_interval(gap, "+.3f"), gap["mean"]),
        Cell("–", 1.0) if p_value is None else Cell(say_p(p_value), p_value),
    ]


def _with_interval(values: Mapping[str, Any], form: str) -> str:
    """A mean and, if there is one, its interval."""
    if values["interval"] is None:
        return f"{values['mean']:{form}}"
    low, high = values["interval"]
    return f"{values['mean']:{form}} ({low:{form}} to {high:{form}})"


def _number(values: Mapping[str, Any], form: str) -> str:
    return f"{values['mean']:{form}}" + (f" ± {values['sd']:{form}}" if values["sd"] is not None else "")


def _percent(values: Mapping[str, Any]) -> str:
    if values["sd"] is None:
        return f"{100 * values['mean']:.1f} %"
    return f"{100 * values['mean']:.1f} ± {100 * values['sd']:.1f} %"


def _range(bounds: Sequence[float]) -> str:
    low, high = bounds
    return f"{100 * low:.1f} to {100 * high:.1f} %"
