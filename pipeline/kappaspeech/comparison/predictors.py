"""Predictors of forgetting: how well properties of the selected tensors foretell how far text drifts in runs that aren't fitted.

N runs · P columns of a predictor · G groups: runs of one selection are seeds of each other · R resamples
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kappaspeech.comparison.runs import RunSummary
from kappaspeech.errors import InputError
from kappaspeech.evaluation.bootstrap import NUM_RESAMPLES, FloatArray, interval
from kappaspeech.scan.ranking import KappaRanking
from kappaspeech.scan.scores import SCORES
from kappaspeech.selection.candidates import module_type

COUNT = "number of parameters"
# no property of a selection but a control: a run that has learnt little has forgotten little
LOSS = "training loss at the end"
_LAST_STEPS = 10
FEWEST_GROUPS = 8
# on columns of variance 1: a prior that a column explains no more than the noise does
_RIDGE = 1.0
# a rank-deficient tensor's score, as far as float64 tells
_MOST_SCORE = 2.0**52


@dataclass(frozen=True)
class HeldOut:
    """R² of a predictor in groups that it wasn't fitted to, with its 95 % interval over groups; and by how much it is more than
    that of the number of parameters alone where both are fitted together."""

    name: str
    r2: float
    interval: tuple[float, float]
    beyond_count: float | None = None
    beyond_interval: tuple[float, float] | None = None


def describe_runs(
    runs: Sequence[RunSummary], rankings: Mapping[str, KappaRanking]
) -> tuple[dict[str, FloatArray], FloatArray, NDArray[np.int64]]:
    """Predictors by name (N, P), the logarithm of each run's KL(base ‖ trained) a token of text (N,), and each run's group (N,).

    `rankings`, of one checkpoint, are by what their names begin with: "" for plain ones. Tensors count alike in a run's mean.
    Raises `InputError` for runs that trained no selection, or whose text wasn't measured against the base.
    """
    for run in runs:
        if run.config["unfreeze"]["mode"] != "selection":
            raise InputError(
                f"{run.path} trained no selection of tensors, so there is nothing of theirs to predict by. Leave it out."
            )
    predictors: dict[str, FloatArray] = {COUNT: _column([math.log(run.record["num_llm_trained_parameters"]) for run in runs])}
    predictors[LOSS] = _column([fmean(run.losses[-_LAST_STEPS:]) for run in runs])
    types = sorted({module_type(tensor.name) for run in runs for tensor in run.tensors})
    predictors["module type"] = np.array([[_share(run, kind) for kind in types] for run in runs])
    for prefix, ranking in rankings.items():
        for score in SCORES:
            values = {item.name: item.score for item in ranking.candidates(score, experts="each")}
            predictors[f"{prefix}{score}"] = _column([_mean_log(run, values, prefix) for run in runs])
    selections = sorted({tuple(sorted(run.trained_names)) for run in runs})
    groups = np.array([selections.index(tuple(sorted(run.trained_names))) for run in runs])
    return predictors, np.array([math.log(_distance(run)) for run in runs]), groups


def predict(predictors: Mapping[str, FloatArray], drift_N: FloatArray, groups_N: NDArray[np.int64]) -> list[HeldOut]:
    """Each predictor's held-out R², the best first. Raises `InputError` for too few different selections to hold one out."""
    if len(set(groups_N.tolist())) < FEWEST_GROUPS:
        raise InputError(
            f"The runs trained {len(set(groups_N.tolist()))} different selection(s); to hold out one at a time at least "
            f"{FEWEST_GROUPS} are needed, and 30 say more. Train more: random ones with other seeds and counts."
        )
    baseline_N = _errors(np.empty((len(drift_N), 0)), drift_N, groups_N)
    of_count_N = _errors(predictors[COUNT], drift_N, groups_N) if COUNT in predictors else None
    found = []
    for name, columns_NP in predictors.items():
        observed, resampled_R = _r2(_errors(columns_NP, drift_N, groups_N), baseline_N, groups_N)
        beyond = beyond_interval = None
        if of_count_N is not None and name != COUNT:
            both_NP = np.concatenate([columns_NP, predictors[COUNT]], axis=1)
            together, together_R = _r2(_errors(both_NP, drift_N, groups_N), baseline_N, groups_N)
            alone, alone_R = _r2(of_count_N, baseline_N, groups_N)
            beyond, beyond_interval = together - alone, interval(together_R - alone_R)
        found.append(HeldOut(name, observed, interval(resampled_R), beyond, beyond_interval))
    return sorted(found, key=lambda item: -item.r2)


def _errors(columns_NP: FloatArray, drift_N: FloatArray, groups_N: NDArray[np.int64]) -> FloatArray:
    """Squared errors (N,) of a ridge regression in each group, fitted to the others; without columns, of the others' mean."""
    squares_N = np.empty(len(drift_N))
    for group in np.unique(groups_N):
        held_N = groups_N == group
        fitted_NP, rest = columns_NP[~held_N], drift_N[~held_N]
        middle_P, scale_P = fitted_NP.mean(axis=0), fitted_NP.std(axis=0)
        # a column that doesn't vary says nothing
        scale_P = np.where(scale_P > 0, scale_P, np.inf)
        design_NP = (fitted_NP - middle_P) / scale_P
        normal_PP = design_NP.T @ design_NP + _RIDGE * np.eye(columns_NP.shape[1])
        weights_P = np.linalg.solve(normal_PP, design_NP.T @ (rest - rest.mean()))
        predicted = rest.mean() + (columns_NP[held_N] - middle_P) / scale_P @ weights_P
        squares_N[held_N] = (drift_N[held_N] - predicted) ** 2
    return squares_N


def _r2(squares_N: FloatArray, baseline_N: FloatArray, groups_N: NDArray[np.int64]) -> tuple[float, FloatArray]:
    """1 − Σ errors/Σ of the mean's errors, and that of resamples of groups (R,), whose models aren't fitted again."""
    number = int(groups_N.max()) + 1
    mine_G, theirs_G = (np.bincount(groups_N, weights=squares, minlength=number) for squares in (squares_N, baseline_N))
    # equal numbers of groups draw the same ones, so that differences are paired
    drawn_RG = np.random.default_rng(2).multinomial(number, np.full(number, 1 / number), size=NUM_RESAMPLES)
    floor = np.finfo(np.float64).tiny
    return float(1 - mine_G.sum() / max(theirs_G.sum(), floor)), 1 - drawn_RG @ mine_G / np.maximum(drawn_RG @ theirs_G, floor)


def _column(values: Sequence[float]) -> FloatArray:
    return np.array(values, dtype=np.float64)[:, None]


def _share(run: RunSummary, kind: str) -> float:
    return fmean(module_type(tensor.name) == kind for tensor in run.tensors)


def _mean_log(run: RunSummary, values: Mapping[str, float], prefix: str) -> float:
    """A ranking by activations knows linear modules alone: the others have no part in the mean."""
    known = [values[name] for tensor in run.tensors for name in (tensor.name, *tensor.aliases) if name in values]
    if not known:
        raise InputError(
            f"The ranking of {prefix or 'the plain scores'} has none of the tensors of {run.path}. Scan its own base."
        )
    return fmean(math.log(min(value, _MOST_SCORE)) for value in known)


def _distance(run: RunSummary) -> float:
    measured = [text.get("kl_nats") for text in run.last["text"].values()]
    if not measured or None in measured:
        raise InputError(f"{run.path} has no text that was measured against the base. Name texts in data.text and train again.")
    return max(fmean(measured), float(np.finfo(np.float64).tiny))


def to_json(found: Sequence[HeldOut]) -> list[dict[str, Any]]:
    """The finding as JSON, in its order."""
    return [
        {
            "predictor": item.name,
            "held_out_r2": item.r2,
            "interval": list(item.interval),
            "beyond_count": item.beyond_count,
            "beyond_interval": list(item.beyond_interval) if item.beyond_interval else None,
        }
        for item in found
    ]
