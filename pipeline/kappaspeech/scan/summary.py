"""A scan's result in a few lines for a person."""

from __future__ import annotations

import math
import shlex
import statistics
from collections import Counter, defaultdict
from pathlib import Path

from kappaspeech.progress import say_duration
from kappaspeech.scan.ranking import KappaRanking
from kappaspeech.selection.candidates import module_type

# nobody reads more types than this
_MAX_TYPES = 12
_MAX_REASONS = 4
_COUNT = 100


def format_kappa(kappa: float | None) -> str:
    """κ as a person reads it, whole numbers whole: 3.94939, 1,340,291, ∞."""
    if kappa is None or math.isinf(kappa):
        return "∞"
    return f"{kappa:,.0f}" if 1000 <= kappa < 1e12 else f"{kappa:.6g}"


def summarise_scan(ranking: KappaRanking, output: Path, *, seconds: float) -> list[str]:
    """The range of κ by module type, matrices less exact than asked for, tensors not ranked, and the next command."""
    matrices = ranking.matrices
    lines = [f"{len(matrices)} matrices ranked in {say_duration(seconds)}: {output}"]
    by_type: dict[str, list[float]] = defaultdict(list)
    for matrix in matrices:
        by_type[module_type(matrix.parameter)].append(matrix.stats.kappa)
    kinds = sorted(by_type, key=lambda kind: (statistics.median(by_type[kind]), kind))
    width = max((len(kind) for kind in kinds[:_MAX_TYPES]), default=0)
    if kinds:
        lines.append(f"  {'κ by type':{width}} {'number':>7} {'least':>11} {'median':>11} {'most':>11}")
    for kind in kinds[:_MAX_TYPES]:
        kappas = by_type[kind]
        ends = [format_kappa(value) for value in (min(kappas), statistics.median(kappas), max(kappas))]
        lines.append(f"  {kind:{width}} {len(kappas):7d} " + " ".join(f"{end:>11}" for end in ends))
    if len(kinds) > _MAX_TYPES:
        lines.append(f"  and {len(kinds) - _MAX_TYPES} types of larger κ")
    wide = sum(matrix.stats.error_bound > ranking.rtol for matrix in matrices)
    if wide:
        lines.append(f"{wide} of them have an error bound above --rtol {ranking.rtol:g}: see error_bound in the ranking")
    noisy = sum(matrix.is_below_storage_noise for matrix in matrices)
    if noisy:
        lines.append(f"{noisy} of them have a smallest singular value below their dtype's rounding: κ tells of the rounding")
    if ranking.skipped:
        reasons = Counter(item.reason for item in ranking.skipped)
        told = "; ".join(f"{count} × {reason}" for reason, count in reasons.most_common(_MAX_REASONS))
        more = "; and others" if len(reasons) > _MAX_REASONS else ""
        lines.append(f"{len(ranking.skipped)} tensors have no κ: {told}{more}")
    if matrices:
        count = min(_COUNT, max(1, len(matrices) // 2))
        lines.append(f"next: kappaspeech select {shlex.quote(str(output))} --count {count}")
    return lines
