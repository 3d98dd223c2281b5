"""`kappaspeech select`: choose the tensors to train from a ranking."""

from __future__ import annotations

import re
import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from kappaspeech.escaping import for_terminal

if TYPE_CHECKING:
    from kappaspeech.selection import TensorSelection


_FACTORS = {"": 1, "k": 1_000, "m": 1_000_000, "b": 1_000_000_000}


class Export(str, Enum):
    """Formats of other tools."""

    names = "names"
    peft = "peft"
    axolotl = "axolotl"
    kappatune = "kappatune"


def select(
    ranking: Annotated[Path, typer.Argument(help="The ranking, from `kappaspeech scan`.")],
    output: Annotated[Path, typer.Option(help="File of the selection (JSON).")] = Path("selection.json"),
    count: Annotated[int | None, typer.Option(help="Number of tensors.")] = None,
    budget: Annotated[
        str | None, typer.Option(help="Number of parameters that the tensors may have together: 20000000, 20M or 1.5B.")
    ] = None,
    threshold: Annotated[
        str | None, typer.Option(help="All tensors up to this score (with --largest, from it on); auto finds it (Otsu).")
    ] = None,
    quota: Annotated[
        list[str] | None, typer.Option(help="Number of tensors of a module type: v_proj=10. May be repeated.")
    ] = None,
    match_budget: Annotated[Path | None, typer.Option(help="Another selection, whose number of parameters is matched.")] = None,
    largest: Annotated[bool, typer.Option("--largest", help="From the largest score down, in place of the smallest up.")] = False,
    random: Annotated[bool, typer.Option("--random", help="In random order.")] = False,
    seed: Annotated[int, typer.Option(help="The seed of --random.")] = 0,
    score: Annotated[
        str, typer.Option(help="kappa, kappa-nonzero, kappa-over-gaussian, entropy-deficit or stable-rank.")
    ] = "kappa",
    include: Annotated[list[str] | None, typer.Option(help="Only these tensors: a name or a glob. May be repeated.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="None of these: a name or a glob. May be repeated.")] = None,
    export: Annotated[list[Export] | None, typer.Option(help="Write it for another tool too. May be repeated.")] = None,
) -> None:
    """Choose the tensors to train from a ranking, by default those of smallest κ."""
    from kappaspeech.errors import InputError
    from kappaspeech.exports import is_of_gguf, write_export
    from kappaspeech.outputs import try_output
    from kappaspeech.scan.ranking import KappaRanking
    from kappaspeech.selection import TensorSelection
    from kappaspeech.selection import select as choose
    from kappaspeech.training.obstacles import find_obstacle

    if largest and random:
        raise InputError("--largest and --random exclude each other.")
    try_output(output)
    order: Literal["smallest", "largest", "random"] = "largest" if largest else "random" if random else "smallest"
    chosen = choose(
        KappaRanking.read(ranking),
        order=order,
        seed=seed,
        score=score,
        count=count,
        budget=_parse_budget(budget),
        threshold=_parse_threshold(threshold),
        quotas=_parse_quotas(quota or []),
        match=TensorSelection.read(match_budget) if match_budget else None,
        include=include or (),
        exclude=exclude or (),
    )
    chosen.write(output)
    _print_summary(chosen, output)
    if (obstacle := find_obstacle(chosen)) is not None:
        print(for_terminal(f"This selection can't be trained here: {obstacle}"), file=sys.stderr)
    if is_of_gguf(chosen):
        print("Its names are GGUF's; exports have transformers' names. To train it here, scan the safetensors.", file=sys.stderr)
    for kind in export or ():
        print(for_terminal(str(write_export(chosen, kind.value, output))))


def _parse_budget(text: str | None) -> int | None:
    from kappaspeech.errors import InputError

    if text is None:
        return None
    match = re.fullmatch(r"([0-9][0-9_,]*(?:\.[0-9]+)?(?:e[0-9]{1,2})?)([kmb]?)", text.strip().lower())
    if match is None:
        raise InputError(f"--budget is {text!r}; give a number of parameters, as in 20000000, 20M or 1.5B.")
    return round(float(re.sub("[_,]", "", match[1])) * _FACTORS[match[2]])


def _parse_threshold(text: str | None) -> Any:
    from kappaspeech.errors import InputError

    if text is None or text == "auto":
        return text
    try:
        return float(text)
    except ValueError:
        raise InputError(f"--threshold is {text!r}; give a number or auto.") from None


def _parse_quotas(pairs: list[str]) -> dict[str, int]:
    from kappaspeech.errors import InputError

    quotas = {}
    for pair in pairs:
        kind, _, number = pair.rpartition("=")
        if not kind or not number.isdigit():
            raise InputError(f"--quota is {pair!r}; give a module type and a number, as in v_proj=10.")
        quotas[kind] = int(number)
    return quotas


def _print_summary(chosen: TensorSelection, output: Path) -> None:
    from collections import Counter

    from kappaspeech.escaping import for_line, for_terminal
    from kappaspeech.selection import module_type

    kinds = Counter(module_type(name) for name in chosen.names)
    print(f"{len(chosen.names)} tensors, {chosen.num_parameters:,} parameters ({for_terminal(chosen.rule)})")
    print("  " + ", ".join(f"{for_line(kind)} {number}" for kind, number in kinds.most_common()))
    print(for_terminal(str(output)))
