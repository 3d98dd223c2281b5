"""The options of `kappaspeech select`: one for each rule of the table, of which exactly one is given."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import typer
from safetensors.torch import save_file

from kappaspeech.commands import main
from kappaspeech.commands.select import with_rules
from kappaspeech.errors import InputError, SelectionError
from kappaspeech.selection.candidates import Candidate
from kappaspeech.selection.rules import (
    RULES,
    Budget,
    Count,
    Fraction,
    Nearest,
    Ordered,
    Quotas,
    Rule,
    RuleOption,
    Threshold,
    TypeFraction,
)
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
    assert rule_of("--fraction", "0.2") == Fraction(0.2)
    assert rule_of("--type-fraction", "0.5") == TypeFraction(0.5)
    assert rule_of("--threshold", "2.5", "--output", "o.json") == Threshold(2.5)
    assert rule_of("--threshold", "auto") == Threshold("auto")
    assert rule_of("--quota", "v_proj=2", "--quota", "mlp.0=1") == Quotas({"v_proj": 2, "mlp.0": 1})
    assert rule_of("--match-budget", str(tmp_path / "other.json")) == Nearest(0)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], r"exactly one of --count, --fraction, --type-fraction, --budget, --threshold, --quota, --match-budget; given: none"),
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


@pytest.fixture(scope="module")
def experts(tmp_path_factory) -> Path:
    """A ranking of two fused tensors of three experts, κ = 2 to 7, and a matrix of κ 4.5."""
    folder = tmp_path_factory.mktemp("experts")
    fused = [torch.stack([torch.diag(torch.tensor([kappa, 1.0])) for kappa in each]) for each in ((2.0, 7, 3), (4.0, 5, 6))]
    tensors = {f"model.layers.{layer}.mlp.experts.down_proj": tensor for layer, tensor in enumerate(fused)}
    save_file({**tensors, "model.layers.0.q_proj.weight": torch.diag(torch.tensor([4.5, 1.0]))}, folder / "model.safetensors")
    assert main(["scan", str(folder), "--output", str(folder / "ranking.json")]) == 0
    return folder / "ranking.json"


def chosen_of(ranking: Path, *words: str) -> list[str]:
    output = ranking.with_name("selection.json")
    assert main(["select", str(ranking), "--output", str(output), *words]) == 0
    return [name.removeprefix("model.layers.") for name in TensorSelection.read(output).names]


def test_fused_experts_are_candidates_each_by_its_own_score(experts):
    down = "mlp.experts.down_proj"
    assert chosen_of(experts, "--count", "4") == [f"0.{down}[0]", f"0.{down}[2]", f"1.{down}[0]", "0.q_proj.weight"]
    assert chosen_of(experts, "--budget", "8", "--largest") == [f"0.{down}[1]", f"1.{down}[2]"]
    assert chosen_of(experts, "--threshold", "3.5") == [f"0.{down}[0]", f"0.{down}[2]"]
    assert chosen_of(experts, "--fraction", "0.3") == [f"0.{down}[0]", f"0.{down}[2]"]
    assert chosen_of(experts, "--quota", "down_proj=1") == [f"0.{down}[0]"]
    selection = TensorSelection.read(experts.with_name("selection.json"))
    assert (selection.tensors[0].shape, selection.tensors[0].kappa, selection.num_parameters) == ((2, 2), pytest.approx(2), 4)


def test_an_expert_goes_by_its_tensors_name_too(experts):
    down = "mlp.experts.down_proj"
    assert chosen_of(experts, "--count", "1", "--include", f"model.layers.1.{down}") == [f"1.{down}[0]"]
    assert chosen_of(experts, "--count", "1", "--exclude", "*.down_proj") == ["0.q_proj.weight"]
    assert chosen_of(experts, "--count", "1", "--include", f"model.layers.1.{down}[2]") == [f"1.{down}[2]"]


def test_experts_of_a_tensor_are_taken_together_on_demand_and_for_tools_that_know_whole_tensors_alone(experts, capsys):
    whole = ["0.mlp.experts.down_proj", "0.q_proj.weight"]
    assert chosen_of(experts, "--count", "2", "--experts", "together") == whole
    assert chosen_of(experts, "--count", "2", "--export", "peft") == whole
    assert chosen_of(experts, "--count", "1", "--export", "names") == ["0.mlp.experts.down_proj[0]"]
    words = ["select", str(experts), "--output", str(experts.with_name("s.json")), "--count", "1", "--experts", "each"]
    capsys.readouterr()
    assert main([*words, "--export", "axolotl"]) == 2
    assert "--experts together" in " ".join(capsys.readouterr().err.split())


def test_what_a_selection_names_is_marked_single_experts_and_whole_tensors(experts, capsys):
    for words, number in ((["--count", "2"], 2), (["--count", "2", "--experts", "together"], 4)):
        chosen_of(experts, *words)
        capsys.readouterr()
        assert main(["show", str(experts), "--selection", str(experts.with_name("selection.json"))]) == 0
        assert capsys.readouterr().out.count("\tyes") == number


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
