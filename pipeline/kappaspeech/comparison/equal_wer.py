"""Arms at equal WER and at equal training loss: what each had forgotten of text when it had learnt as much as the others."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

import numpy as np

from kappaspeech.comparison.curves import smooth
from kappaspeech.comparison.frontier import LanguageErrors, Path, fixed_path, price, price_gap, wer_path
from kappaspeech.comparison.runs import Arm, RunSummary
from kappaspeech.comparison.words import holds_zero, say_gap, say_seeds
from kappaspeech.errors import DataError
from kappaspeech.evaluation.bootstrap import FloatArray
from kappaspeech.evaluation.evaluate import read_hypotheses
from kappaspeech.evaluation.wer import count_words
from kappaspeech.runs.contents import HYPOTHESES_FOLDER, hypotheses_path

WER_LEVELS = (0.8, 0.5, 0.3, 0.2, 0.1, 0.05)


def compare_at_equal(arms: Sequence[Arm]) -> dict[str, Any]:
    """Forgetting at equal levels as JSON: `wer` and `loss` are lists of levels, with the estimates of arms that reach them.

    Forgetting is the growth of the mean loss on the texts since before training, in nats a token. An arm reaches a level if all
    its runs do; the first must, and another arm, if there is one. `missed` names the others. An arm's `difference` is its
    forgetting minus the first's, over the seeds that both have. `why_not` says why the list of WER is empty. The level of loss is
    the lowest that all arms reach that train the LLM: others can't forget. It is missing if an arm only aligned the adaptor.
    """
    if not all(record["text"] for arm in arms for run in arm.runs for record in run.evaluations):
        return _nothing("No text was scored, so forgetting isn't known. Name texts in data.text.")
    try:
        by_wer = [_Paths(arm, [_wer_path(run) for run in arm.runs]) for arm in arms]
    except DataError as error:
        return _nothing(str(error))
    found: dict[str, Any] = {"wer": _at(WER_LEVELS, by_wer), "loss": [], "why_not": None}
    if all(run.losses for arm in arms for run in arm.runs):
        by_loss = [_Paths(arm, [_loss_path(run) for run in arm.runs]) for arm in arms]
        changing = [paths for arm, paths in zip(arms, by_loss, strict=True) if any(run.trained_names for run in arm.runs)]
        lowest = max(float(path.rates_RT[0].min()) for paths in changing or by_loss for path in paths.all)
        found["loss"] = _at([lowest], by_loss)
    if not found["wer"]:
        tried = ", ".join(f"{100 * level:.0f}" for level in WER_LEVELS)
        who = f"{arms[0].name} and another arm" if len(arms) > 1 else arms[0].name
        found["why_not"] = f"No level of WER ({tried} %) was reached by all runs of {who}."
    return found


def state_price(summary: Mapping[str, Any]) -> list[str]:
    """The finding of each arm after the first, at the lowest WER that both reached; the last sentence names arms that reached
    none."""
    if not summary["wer"]:
        return []
    first, *_ = summary["wer"][0]["arms"]
    # later levels are lower
    lowest = {arm["arm"]: (level["level"], arm["difference"]) for level in summary["wer"] for arm in level["arms"]}
    said = []
    for name, (level, gap) in lowest.items():
        if gap is None:
            continue
        size, interval = say_gap(gap["mean"], gap["interval"], unit="nats a token", digits=2)
        unsure = ": it could be chance" if holds_zero(gap) else ""
        seeds = len(gap["by_seed"])
        over = "seeds and utterances" if seeds > 1 else "utterances"
        said.append(
            f"At {100 * level:.0f} % WER, {name} has forgotten {size} than {first['arm']} "
            f"(95 % over {over}: {interval}; {say_seeds(seeds)}){unsure}."
        )
    if never := [name for name in summary["wer"][0]["missed"] if name not in lowest]:
        said.append(
            f"At no WER that {first['arm']} reached can {' and '.join(never)} be compared: not all their runs came so far."
        )
    return said


class _Paths:
    """An arm's paths, and those that it shares with another arm by their seeds."""

    def __init__(self, arm: Arm, paths: Sequence[Path]) -> None:
        self.name, self.all = arm.name, paths
        self._by_seed = dict(zip(arm.seeds, paths, strict=True))

    def shared_with(self, other: _Paths) -> tuple[list[Path], list[Path]]:
        seeds = [seed for seed in self._by_seed if seed in other._by_seed]
        return [self._by_seed[seed] for seed in seeds], [other._by_seed[seed] for seed in seeds]


def _at(levels: Sequence[float], arms: Sequence[_Paths]) -> list[dict[str, Any]]:
    """Those of `levels` that the first arm reaches, and another if there is one, with every arm's estimate that reaches it."""
    found = []
    for level in levels:
        estimates = [(arm, price(arm.all, level)) for arm in arms]
        described = []
        for arm, estimate in estimates:
            if estimate is not None:
                gap = None if arm is arms[0] else price_gap(*arms[0].shared_with(arm), level)
                described.append({"arm": arm.name, **asdict(estimate), "difference": asdict(gap) if gap else None})
        missed = [arm.name for arm, estimate in estimates if estimate is None]
        if arms[0].name not in missed and len(described) >= min(2, len(arms)):
            found.append({"level": level, "arms": described, "missed": missed})
    return found


def _nothing(why: str) -> dict[str, Any]:
    return {"wer": [], "loss": [], "why_not": why}


def _wer_path(run: RunSummary) -> Path:
    counts: dict[str, list[list[tuple[int, int]]]] = {}
    said: list[tuple[str, str, str]] | None = None
    for record in run.evaluations:
        path = hypotheses_path(run.path / HYPOTHESES_FOLDER, record["step"])
        hypotheses = read_hypotheses(path)
        utterances = sorted((item.key, item.language, item.reference) for item in hypotheses)
        if utterances != (said := said or utterances):
            raise DataError(f"{path} is of other utterances than the evaluations before it, so its WER isn't one of theirs.")
        for language in sorted({item.language for item in hypotheses}):
            of_language = sorted((item for item in hypotheses if item.language == language), key=lambda item: item.key)
            counted = [(count.errors, count.reference_length) for count in count_words(of_language)]
            counts.setdefault(language, []).append(counted)
    languages = {}
    for language, by_evaluation in counts.items():
        table_TN2 = np.array(by_evaluation, dtype=np.float64)
        # a language without a reference word has no rate, here as in measure_arm
        if table_TN2[0, :, 1].any():
            languages[language] = LanguageErrors(table_TN2[:, :, 0], table_TN2[0, :, 1])
    return wer_path(languages, _forgetting(run))


def _loss_path(run: RunSummary) -> Path:
    smoothed = smooth(run.losses)
    # the record of step 60 comes after steps 0 to 59, and that of step 0 before the first
    steps = run.loss_steps
    values = [smoothed[max(bisect_left(steps, record["step"]) - 1, 0)] for record in run.evaluations]
    return fixed_path(np.array(values), _forgetting(run))


def _forgetting(run: RunSummary) -> FloatArray:
    losses = [fmean(math.log(score["perplexity"]) for score in record["text"].values()) for record in run.evaluations]
    return np.array(losses) - losses[0]
