"""The options of `kappaspeech select`: one for each rule of the table, of which exactly one is given."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer

from kappaspeech.commands.select import with_rules
from kappaspeech.errors import InputError, SelectionError
from kappaspeech.selection.candidates import Candidate
from kappaspeech.selection.rules import RULES, Budget, Count, Nearest, Ordered, Quotas, Rule, RuleOption, Threshold
from kappaspeech.selection.tensor_selection import TensorSelection


@dataclass(frozen=True)
class Above:
    """A rule of one's own: every tensor of at least so many parameters."""

    num_parameters: int

    def take(self, ordered: Ordered) -> tuple[list[Candidate], str]:
        chosen = [item for item in ordered.candidates if item.num_parameters >= self.num_parameters]
        return chosen, f"{ordered.by}, of {self.num_parameters} parameters or more"


def rule_of(*words: str, options=RULES) -> Rule:
    """The rule that a command line makes."""
    made = []
    app = typer.Typer()

    @app.command()
    @with_rules(options)
    def choose(output: Path = Path("s.json"), *, rule: Rule) -> None:  # noqa: ARG001 - options follow it
        made.append(rule)

    app([*words], standalone_mode=False)
    return made[0]


def test_each_rule_has_its_option(tmp_path):
    TensorSelection("by hand", "m", "c", "r", ()).write(tmp_path / "other.json")
    assert rule_of("--count", "3") == Count(3)
    assert rule_of("--budget", "70") == Budget(70)
    assert rule_of("--threshold", "2.5", "--output", "o.json") == Threshold(2.5)
    assert rule_of("--threshold", "auto") == Threshold("auto")
    assert rule_of("--quota", "v_proj=2", "--quota", "mlp.0=1") == Quotas({"v_proj": 2, "mlp.0": 1})
    assert rule_of("--match-budget", str(tmp_path / "other.json")) == Nearest(0)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], r"exactly one of --count, --budget, --threshold, --quota, --match-budget; given: none"),
        (["--count", "1", "--budget", "100"], "given: --count, --budget"),
    ],
)
def test_exactly_one_rule_is_given(words, says):
    with pytest.raises(SelectionError, match=says):
        rule_of(*words)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("20M", 20_000_000),
        ("1.5b", 1_500_000_000),
        ("64_000", 64_000),
        ("2e6", 2_000_000),
        ("20,000,000", 20_000_000),
        ("+20000000", 20_000_000),
    ],
)
def test_a_budget_may_be_written_with_a_unit(text, number):
    assert rule_of("--budget", text) == Budget(number)


@pytest.mark.parametrize("text", ["many", "20 Mio", "-5", "M", "1.2.3", "", "1,5B", "1,50,000", "1234,567", "0", "0.0001k"])
def test_a_budget_that_is_no_number_is_refused(text):
    with pytest.raises(InputError, match="--budget is"):
        rule_of(f"--budget={text}")


@pytest.mark.parametrize("pairs", [["v_proj=²"], ["v_proj=2", "v_proj=3"]])
def test_a_quota_is_one_number_for_each_type(pairs):
    with pytest.raises(InputError, match="--quota"):
        rule_of(*(word for pair in pairs for word in ("--quota", pair)))


def test_a_rule_that_joins_the_table_is_an_option_and_chooses():
    options = (*RULES, RuleOption("above", int, "All tensors of at least so many parameters.", Above))
    rule = rule_of("--above", "200", options=options)
    sizes = {"a": 100, "b": 200, "c": 300}
    candidates = [Candidate(name, (size,), math.inf, math.inf) for name, size in sizes.items()]
    chosen, what = rule.take(Ordered(candidates, "smallest", 0, "kappa"))
    assert [item.name for item in chosen] == ["b", "c"]
    assert what == "smallest by kappa, of 200 parameters or more"


def test_nothing_heavy_is_loaded_to_find_no_obstacle():
    code = """
import sys
from kappaspeech.planning.obstacles import find_obstacle
from kappaspeech.selection.tensor_selection import TensorSelection
assert find_obstacle(TensorSelection("by hand", "/no/where", "c", "r", ())) is None
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
