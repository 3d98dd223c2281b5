"""κ(W·Σ^½): against a Monte-Carlo estimate, and against what a model's modules put out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from kappaspeech.commands import main
from kappaspeech.errors import InputError, ScanError
from kappaspeech.model.llm import load_llm
from kappaspeech.scan.activations import rank_by_activations, second_moments, weigh
from kappaspeech.scan.checkpoint import open_checkpoint
from kappaspeech.scan.ranking import KappaRanking
from kappaspeech.scan.spectrum import spectrum_stats

WINDOWS = [[int(token) for token in row] for row in np.random.default_rng(0).integers(2, 300, size=(6, 40))]


def test_it_is_the_spread_of_outputs_that_drawing_inputs_shows():
    source = np.random.default_rng(1)
    weight, mixing = source.normal(size=(6, 9)), source.normal(size=(9, 9)) * np.array([5, 3, 2, 1, 1, 1, 0.5, 0.3, 0.2])
    inputs = source.normal(size=(200_000, 9)) @ mixing.T
    values = np.linalg.eigvalsh(np.cov((inputs @ weight.T).T))
    found = spectrum_stats(weigh(weight, mixing @ mixing.T)).kappa
    assert found == pytest.approx(math.sqrt(values[-1] / values[0]), rel=0.01)
    assert abs(found / spectrum_stats(weight).kappa - 1) > 0.2


def test_inputs_alike_in_all_directions_leave_kappa_as_it_is():
    weight = np.random.default_rng(2).normal(size=(7, 5))
    assert spectrum_stats(weigh(weight, 4 * np.eye(5))).kappa == pytest.approx(spectrum_stats(weight).kappa, rel=1e-12)


def test_inputs_that_never_point_somewhere_make_it_infinite_and_no_text_with_a_nan_is_measured():
    weight = np.random.default_rng(3).normal(size=(4, 4))
    assert spectrum_stats(weigh(weight, np.diag([1.0, 2.0, 3.0, 0.0]))).kappa == math.inf
    with pytest.raises(ScanError, match="finite"):
        weigh(weight, np.full((4, 4), np.nan))


@pytest.mark.parametrize("most_held_bytes", [1, 1 << 30])
def test_a_models_matrices_are_ranked_by_what_they_put_out(home, most_held_bytes, tmp_path):
    checkpoint = open_checkpoint(str(home / "llm"))
    ranking = rank_by_activations(checkpoint, WINDOWS, most_held_bytes=most_held_bytes)
    llm = load_llm(str(home / "llm"), dtype=torch.float32)
    for name in ("model.layers.1.self_attn.q_proj", "model.layers.0.self_attn.k_proj", "model.layers.0.mlp.down_proj"):
        outputs: list[torch.Tensor] = []
        hook = llm.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, output, kept=outputs: kept.append(output[0])
        )
        with torch.no_grad():
            for window in WINDOWS:
                llm(torch.tensor([window]))
        hook.remove()
        put_out = torch.cat(outputs).double()
        values = torch.linalg.eigvalsh(put_out.T @ put_out)
        found = next(matrix for matrix in ranking.matrices if matrix.name == f"{name}.weight")
        assert found.stats.kappa == pytest.approx(float((values[-1] / values[0]).sqrt()), rel=1e-3)
    assert {item.name for item in ranking.skipped} >= {"model.embed_tokens.weight", "model.norm.weight"}
    # a ranking like any other
    ranking.write(tmp_path / "ranking.json")
    again = KappaRanking.read(tmp_path / "ranking.json")
    assert (again.digest, again.checkpoint_digest, again.method) == (ranking.digest, checkpoint.digest, "activations")
    assert len(again.candidates("entropy-deficit")) == len(ranking.matrices) == 15


def test_neighbours_that_share_an_input_are_summed_apart(home):
    llm = load_llm(str(home / "llm"), dtype=torch.float32)
    attention = llm.model.layers[0].self_attn
    moments = second_moments(llm, [attention.q_proj, attention.k_proj], WINDOWS)
    alone = second_moments(llm, [attention.k_proj], WINDOWS)
    assert torch.equal(moments[attention.q_proj].mean_II, moments[attention.k_proj].mean_II)
    assert torch.equal(moments[attention.k_proj].mean_II, alone[attention.k_proj].mean_II)


def routed(llm, num_tokens: int):
    """`llm` with a layer whose MLP is given the first tokens of each text alone, as a router does with an expert."""
    mlp = llm.model.layers[1].mlp
    whole = mlp.forward
    mlp.forward = lambda states: torch.cat([whole(states[:, :num_tokens]), torch.zeros_like(states[:, num_tokens:])], dim=1)
    return llm


def test_a_module_has_the_moment_of_the_tokens_that_reach_it(home):
    llm = routed(load_llm(str(home / "llm"), dtype=torch.float32), 25)
    gate = llm.model.layers[1].mlp.gate_proj
    inputs: list[torch.Tensor] = []
    hook = gate.register_forward_pre_hook(lambda _module, given: inputs.append(given[0][0].double()))
    moment = second_moments(llm, [gate], WINDOWS)[gate]
    hook.remove()
    states = torch.cat(inputs)
    assert moment.num_tokens == len(states) == 25 * len(WINDOWS)
    torch.testing.assert_close(moment.mean_II, states.T @ states / len(states), rtol=1e-12, atol=0)


def test_an_expert_that_too_few_tokens_reach_is_listed_as_skipped_with_their_number(home, monkeypatch):
    llm = routed(load_llm(str(home / "llm"), dtype=torch.float32), 3)
    monkeypatch.setattr("kappaspeech.scan.activations.load_llm", lambda *_, **__: llm)
    ranking = rank_by_activations(open_checkpoint(str(home / "llm")), WINDOWS)
    few = {item.name for item in ranking.skipped if f"only {3 * len(WINDOWS)} of the text's tokens reach it" in item.reason}
    assert few == {f"model.layers.1.mlp.{kind}_proj.weight" for kind in ("gate", "up", "down")}
    assert not few & {matrix.name for matrix in ranking.matrices}


@pytest.mark.parametrize(("options", "named"), [(["--workers=2"], "--workers"), (["--journal=there"], "--journal")])
def test_options_that_it_has_no_use_for_are_refused_by_name(options, named, tmp_path, capsys):
    assert main(["scan", str(tmp_path), "--activations", str(tmp_path / "text.txt"), *options]) == 2
    assert f"leave {named} out" in capsys.readouterr().err


def test_the_method_that_was_asked_for_measures_it(home):
    ranking = rank_by_activations(open_checkpoint(str(home / "llm")), WINDOWS, method="svd")
    assert {matrix.stats.rung for matrix in ranking.matrices} == {"svd"}


def test_a_module_that_no_token_reaches_is_listed_as_skipped(home, monkeypatch):
    llm = load_llm(str(home / "llm"), dtype=torch.float32)
    llm.model.layers[1].mlp.forward = lambda states: states
    monkeypatch.setattr("kappaspeech.scan.activations.load_llm", lambda *_, **__: llm)
    ranking = rank_by_activations(open_checkpoint(str(home / "llm")), WINDOWS)
    unreached = {item.name for item in ranking.skipped if "no inputs" in item.reason}
    assert unreached == {f"model.layers.1.mlp.{kind}_proj.weight" for kind in ("gate", "up", "down")}


def test_too_little_text_is_refused_with_the_number_that_is_needed(home):
    with pytest.raises(InputError, match=r"has 10 tokens.*96 tokens at least"):
        rank_by_activations(open_checkpoint(str(home / "llm")), [WINDOWS[0][:10]])


def test_the_command_makes_a_ranking_that_a_selection_is_chosen_from(home, tmp_path, capsys):
    text, ranking = tmp_path / "text.txt", tmp_path / "by-activations.json"
    text.write_text("schalte die rote Lampe ein und öffne die Tür\n" * 30, encoding="utf-8")
    assert main(["scan", str(home / "llm"), "--activations", str(text), "--output", str(ranking)]) == 0
    assert "15 matrices ranked" in capsys.readouterr().out
    assert main(["select", str(ranking), "--count", "4", "--output", str(tmp_path / "selection.json")]) == 0
    plain = KappaRanking.read(home / "ranking.json")
    assert KappaRanking.read(ranking).checkpoint_digest == plain.checkpoint_digest
    assert main(["scan", str(home / "llm"), "--activations", str(text), "--device", "cpu"]) == 2
