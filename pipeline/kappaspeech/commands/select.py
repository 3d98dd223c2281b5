"""`kappaspeech select`: choose the tensors to train from a ranking."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from kappaspeech.commands.choices import either
from kappaspeech.escaping import for_terminal
from kappaspeech.scan.scores import SCORES
from kappaspeech.selection.rules import RULES, Rule, RuleOption

if TYPE_CHECKING:
    from kappaspeech.selection.tensor_selection import TensorSelection


class Export(str, Enum):
    """Formats of other tools."""

    names = "names"
    peft = "peft"
    axolotl = "axolotl"
    kappatune = "kappatune"


class ExpertsAs(str, Enum):
    """The part of a tensor of fused experts that is chosen."""

    each = "each"
    together = "together"


def with_rules(options: Sequence[RuleOption]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command an option for each rule, after `output`, and the one rule that they make as `rule`."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        own = [parameter for parameter in signature.parameters.values() if parameter.name != "rule"]
        place = [parameter.name for parameter in own].index("output") + 1
        own[place:place] = [
            inspect.Parameter(
                option.name,
                inspect.Parameter.POSITIONAL_OR_KEYWORD,
                default=None,
                annotation=Annotated[option.kind | None, typer.Option(help=option.help)],
            )
            for option in options
        ]

        @functools.wraps(command)
        def run(**values: Any) -> None:
            given = {option: value for option in options if (value := values.pop(option.name)) not in (None, [])}
            command(rule=_make_rule(given, options), **values)

        run.__annotations__ = {parameter.name: parameter.annotation for parameter in own}
        run.__signature__ = signature.replace(parameters=own)  # type: ignore[attr-defined]
        return run

    return decorate


def _make_rule(given: Mapping[RuleOption, Any], options: Sequence[RuleOption]) -> Rule:
    from kappaspeech.errors import SelectionError

    if len(given) != 1:
        names, wrong = (", ".join(f"--{option.name.replace('_', '-')}" for option in some) for some in (options, given))
        raise SelectionError(f"Give exactly one of {names}; given: {wrong or 'none'}.")
    ((option, value),) = given.items()
    return option.make(value)


@with_rules(RULES)
def select(
    ranking: Annotated[Path, typer.Argument(help="The ranking, from `kappaspeech scan`.")],
    output: Annotated[Path, typer.Option(help="File of the selection (JSON).")] = Path("selection.json"),
    largest: Annotated[bool, typer.Option("--largest", help="From the largest score down, in place of the smallest up.")] = False,
    random: Annotated[bool, typer.Option("--random", help="In random order.")] = False,
    seed: Annotated[int, typer.Option(help="The seed of --random.")] = 0,
    score: Annotated[str, typer.Option(help=f"{either(SCORES)}.")] = "kappa",
    include: Annotated[list[str] | None, typer.Option(help="Only these tensors: a name or a glob. May be repeated.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="None of these: a name or a glob. May be repeated.")] = None,
    experts: Annotated[
        ExpertsAs | None,
        typer.Option(
            help="What is chosen of fused experts: each by its own score, or all of a tensor together by their mean, as LoRA and "
            "other tools need it. Default: each; together with an export that knows whole tensors alone."
        ),
    ] = None,
    export: Annotated[list[Export] | None, typer.Option(help="Write it for another tool too. May be repeated.")] = None,
    *,
    rule: Rule,
) -> None:
    """Choose the tensors to train from a ranking, by default those of smallest κ."""
    from kappaspeech.errors import InputError
    from kappaspeech.outputs import try_output
    from kappaspeech.planning.obstacles import find_obstacle
    from kappaspeech.scan.ranking import KappaRanking
    from kappaspeech.selection.exports import is_of_gguf, write_export
    from kappaspeech.selection.select import select as choose

    if largest and random:
        raise InputError("--largest and --random exclude each other.")
    try_output(output)
    order: Literal["smallest", "largest", "random"] = "largest" if largest else "random" if random else "smallest"
    chosen = choose(
        KappaRanking.read(ranking),
        rule,
        order=order,
        seed=seed,
        score=score,
        include=include or (),
        exclude=exclude or (),
        experts=_choose_experts(experts, export or ()),
    )
    chosen.write(output)
    _print_summary(chosen, output)
    if (obstacle := find_obstacle(chosen)) is not None:
        print(for_terminal(f"This selection can't be trained here: {obstacle}"), file=sys.stderr)
    if is_of_gguf(chosen):
        print("Its names are GGUF's; exports have transformers' names. To train it here, scan the safetensors.", file=sys.stderr)
    for kind in export or ():
        print(for_terminal(str(write_export(chosen, kind.value, output))))


def _choose_experts(wanted: ExpertsAs | None, exports: Sequence[Export]) -> Literal["each", "together"]:
    if wanted is not None:
        return "each" if wanted is ExpertsAs.each else "together"
    return "together" if any(export is not Export.names for export in exports) else "each"


def _print_summary(chosen: TensorSelection, output: Path) -> None:
    from collections import Counter

    from kappaspeech.escaping import for_line, for_terminal
    from kappaspeech.selection.candidates import module_type

    kinds = Counter(module_type(name) for name in chosen.names)
    print(f"{len(chosen.names)} tensors, {chosen.num_parameters:,} parameters ({for_terminal(chosen.rule)})")
    print("  " + ", ".join(f"{for_line(kind)} {number}" for kind, number in kinds.most_common()))
    print(for_terminal(str(output)))
