"""The tensors that a rule takes, and the content of a selection's file."""

from __future__ import annotations

import json
import math
import shlex
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kappaspeech.commands import main
from kappaspeech.errors import InputError, SelectionError
from kappaspeech.expert_names import expert_name
from kappaspeech.ranks.cluster import SingleProcess
from kappaspeech.scan.checkpoint import TensorRef, open_checkpoint
from kappaspeech.scan.description import describe
from kappaspeech.scan.matrices import MatrixRef
from kappaspeech.scan.ranking import KappaRanking
from kappaspeech.scan.spectrum import spectrum_stats
from kappaspeech.scan.stage import scan
from kappaspeech.selection.candidates import Candidate, module_type
from kappaspeech.selection.otsu import otsu_threshold
from kappaspeech.selection.rules import Budget, Count, Fraction, Nearest, Quotas, Threshold, TypeFraction
from kappaspeech.selection.select import select
from kappaspeech.selection.tensor_selection import TensorSelection
from tests.documents import DOCS, commands_run_by
from tests.families import make_llm


@dataclass
class FixedRanking:
    """Twelve tensors of three types; κ = 1, 2, …, the last infinite; one has a second name."""

    model: str = "a model"
    checkpoint_digest: str = "c" * 64
    digest: str = "d" * 64
    gguf_architecture: str | None = None
    scores: list[float] = field(default_factory=lambda: [*map(float, range(1, 12)), math.inf])

    def candidates(self, score: str, *, experts: str = "each") -> list[Candidate]:  # noqa: ARG002 - it has none
        kinds = ("q_proj", "v_proj", "up_proj")
        return [
            Candidate(
                f"layers.{place}.{kinds[place % 3]}.weight",
                (10, 10 * (1 + place % 3)),
                self.scores[place] if score == "kappa" else -float(place),
                self.scores[place],
                ("head.weight",) if place == 4 else (),
            )
            for place in range(12)
        ]


RANKING = FixedRanking()


def test_smallest_and_largest_take_opposite_ends():
    assert select(RANKING, Count(2)).names == ("layers.0.q_proj.weight", "layers.1.v_proj.weight")
    assert select(RANKING, Count(2), order="largest").names == ("layers.11.up_proj.weight", "layers.10.v_proj.weight")


def test_a_seed_fixes_the_random_set_on_any_machine():
    first = select(RANKING, Count(5), order="random", seed=7)
    assert first.names == select(RANKING, Count(5), order="random", seed=7).names
    assert first.names != select(RANKING, Count(5), order="random", seed=8).names
    # written down: the order must not change with a Python release
    assert first.names[0] == "layers.8.up_proj.weight"


def test_the_score_decides_the_order():
    assert select(RANKING, Count(1), score="other").names == ("layers.11.up_proj.weight",)


@given(st.integers(100, 2400))
@settings(deadline=None)
def test_a_budget_is_never_exceeded_and_no_tensor_left_out_would_fit(budget):
    chosen = select(RANKING, Budget(budget))
    assert chosen.num_parameters <= budget
    left = budget - chosen.num_parameters
    assert all(item.num_parameters > left for item in RANKING.candidates("kappa") if item.name not in chosen.names)


@given(st.integers(100, 2400), st.sampled_from(["largest", "random"]))
@settings(deadline=None)
def test_a_matched_budget_is_at_least_as_near_as_a_budget(target, order):
    goal = TensorSelection("", "", "", "", select(RANKING, Budget(target)).tensors)
    matched = select(RANKING, Nearest(goal.num_parameters), order=order)
    greedy = select(RANKING, Budget(goal.num_parameters), order=order)
    assert abs(matched.num_parameters - goal.num_parameters) <= goal.num_parameters - greedy.num_parameters
    assert f"({matched.num_parameters - goal.num_parameters:+d})" in matched.rule


@pytest.mark.parametrize(("share", "number"), [(0.2, 2), (0.29, 3), (0.01, 1), (1.0, 12)])
def test_a_fraction_is_a_share_of_the_tensors_and_one_at_least(share, number):
    assert select(RANKING, Fraction(share)).names == select(RANKING, Count(number)).names
    assert select(RANKING, Fraction(0.5), include=["*v_proj*"]).names == select(RANKING, Count(2), include=["*v_proj*"]).names


def test_a_fraction_takes_what_pefts_kappatune_takes(tmp_path, monkeypatch):
    """Its candidates are the linear modules and the fused experts, of which each has a share of its own."""
    import peft.helpers as helpers

    llm = make_llm("Qwen3-MoE")
    llm.save_pretrained(tmp_path, save_original_format=False)
    ranking = scan(open_checkpoint(str(tmp_path)), cluster=SingleProcess())
    for share in (0.2, 0.29, 0.5, 0.01):
        theirs = helpers.find_kappa_target_modules(llm, top_p=share, show_progress=False)
        linear = select(ranking, Fraction(share), exclude=["*embed_tokens*", "*.experts.*", "*.mlp.gate.weight"])
        fused = select(ranking, Fraction(share), include=["*.experts.*"], experts="together")
        assert [name.removesuffix(".weight") for name in linear.names] == theirs["target_modules"]
        assert list(fused.names) == theirs["target_parameters"]
    # as the documents write it
    ranking.write(tmp_path / "ranking.json")
    monkeypatch.chdir(tmp_path)
    written = []
    for command in commands_run_by(__file__, DOCS / "method.md"):
        assert main(shlex.split(command)[1:]) == 0
        written.append(TensorSelection.read(tmp_path / "selection.json").names)
    assert written == [
        select(ranking, Fraction(0.2), exclude=["*embed_tokens*", "*.experts.*", "*.mlp.gate.weight"]).names,
        select(ranking, Fraction(0.2), include=["*.experts.*"], experts="together").names,
    ]


def test_experts_of_a_tied_tensor_have_its_other_names():
    tensor = TensorRef("a.experts.up", (2, 4, 3), "float32", "model.safetensors", ("b.experts.up",))
    stats = spectrum_stats(np.random.default_rng(0).normal(size=(4, 3)))
    refs = [MatrixRef(expert_name(tensor.name, expert), tensor, (4, 3), expert) for expert in range(2)]
    matrices = [describe(ref, stats) for ref in refs]
    ranking = KappaRanking.of("a model", "c" * 64, method="svd", rtol=1e-7, matrices=matrices, skipped=[])
    each, together = (ranking.candidates("kappa", experts=experts) for experts in ("each", "together"))
    assert {candidate.name: candidate.aliases for candidate in each} == {
        f"a.experts.up[{n}]": (f"b.experts.up[{n}]",) for n in (0, 1)
    }
    assert [(candidate.name, candidate.aliases) for candidate in together] == [("a.experts.up", ("b.experts.up",))]
    assert select(ranking, Count(2), include=["b.experts.up"]).names == ("a.experts.up[0]", "a.experts.up[1]")


def test_quotas_take_so_many_of_each_type_and_no_other():
    chosen = select(RANKING, Quotas({"v_proj": 2, "q_proj": 1}))
    assert chosen.names == ("layers.0.q_proj.weight", "layers.1.v_proj.weight", "layers.4.v_proj.weight")


def test_half_of_each_type_and_the_other_half_share_no_tensor_and_have_as_many_parameters():
    # four of each of three types, which have shapes of their own
    halves = [select(RANKING, TypeFraction(0.5), order=order) for order in ("smallest", "largest")]
    assert halves[0].names == tuple(
        f"layers.{place}.{kind}.weight" for place, kind in enumerate(("q_proj", "v_proj", "up_proj") * 2)
    )
    assert len({*halves[0].names, *halves[1].names}) == 12
    assert halves[0].num_parameters == halves[1].num_parameters
    assert halves[0].rule == "6 smallest by kappa, a share of 0.5 of each module type"
    # rounded down, but one at least
    assert len(select(RANKING, TypeFraction(0.7)).names) == 6
    assert len(select(RANKING, TypeFraction(0.01), order="random", seed=3).names) == 3


def test_a_threshold_keeps_its_side():
    assert len(select(RANKING, Threshold(3)).names) == 3
    assert len(select(RANKING, Threshold(3), order="largest").names) == 10


def test_otsu_splits_two_clouds_between_them():
    low, high = [3.0, 4.0, 5.0, 4.5], [900.0, 1100.0, 1000.0]
    assert 5 < otsu_threshold([*low, *high, math.inf]) < 900
    ranking = FixedRanking(scores=[*low, *high, *high, 4.2, math.inf])
    assert select(ranking, Threshold("auto")).names == tuple(
        item.name for item in sorted(ranking.candidates("kappa"), key=lambda item: item.score)[:5]
    )


@given(st.lists(st.floats(1, 1e6), min_size=2, max_size=30).filter(lambda scores: len(set(map(math.log, scores))) > 1))
def test_otsu_is_invariant_to_the_scores_scale(scores):
    threshold, scaled = otsu_threshold(scores), otsu_threshold([8 * score for score in scores])
    below = sum(score <= threshold for score in scores)
    assert 0 < below < len(scores)
    assert scaled == pytest.approx(8 * threshold, rel=1e-9) or below != sum(8 * score <= scaled for score in scores)


def test_include_and_exclude_are_exact_names_or_globs_of_any_alias():
    assert select(RANKING, Count(1), include=["head.weight"]).names == ("layers.4.v_proj.weight",)
    assert "layers.4.v_proj.weight" not in select(RANKING, Count(11), exclude=["head*"]).names
    assert len(select(RANKING, Count(4), include=["*.q_proj.weight"]).names) == 4
    # a name is never a substring: layers.1 doesn't take layers.10 and layers.11
    with pytest.raises(SelectionError, match=r"layers\.1"):
        select(RANKING, Count(1), include=["layers.1"])


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        (Count(13), "12 are there"),
        (Count(0), "1 to 12"),
        (Fraction(0.0), "above 0 and up to 1"),
        (Fraction(20), "above 0 and up to 1"),
        (TypeFraction(1.5), "--type-fraction is 1.5; give a share"),
        (Fraction(math.nan), "above 0 and up to 1"),
        (Budget(99), "smallest has 100"),
        (Threshold(0.5), "No tensor has"),
        (Quotas({"w_proj": 1}), "w_proj"),
        (Quotas({"v_proj": 9}), "4 are there"),
    ],
)
def test_a_request_that_the_ranking_cannot_meet_is_refused_by_name(rule, says):
    with pytest.raises(SelectionError, match=says):
        select(RANKING, rule)


def test_a_threshold_has_no_random_side():
    with pytest.raises(SelectionError, match="no random one"):
        select(RANKING, Threshold(1.0), order="random")


def test_a_selection_survives_its_file(tmp_path):
    chosen = select(RANKING, Count(12))
    chosen.write(tmp_path / "selection.json")
    assert TensorSelection.read(tmp_path / "selection.json") == chosen
    content = json.loads((tmp_path / "selection.json").read_text())
    assert content["num_parameters"] == chosen.num_parameters == 2400
    assert content["tensors"][-1]["kappa"] is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"schema_version": 9}, "schema_version 9"),
        ({"tensors": [{"name": "a"}]}, "no selection"),
        ({"num_parameters": 5}, "num_parameters 5"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused(tmp_path, change, says):
    path = tmp_path / "selection.json"
    select(RANKING, Count(2)).write(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InputError, match=says):
        TensorSelection.read(path)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model.layers.3.self_attn.v_proj.weight", "v_proj"),
        ("model.layers.0.mlp.experts.gate_up_proj[7]", "gate_up_proj"),
        ("encoder.blocks.1.mlp.0.weight", "mlp.0"),
        ("blk.2.attn_q.weight", "attn_q"),
        ("lm_head.weight", "lm_head"),
    ],
)
def test_a_module_type_is_what_a_tensor_is_in_its_layer(name, kind):
    assert module_type(name) == kind
