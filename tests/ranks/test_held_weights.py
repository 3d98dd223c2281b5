"""Weights held to their beginning, as a user trains with them: the same on one rank and on two, stopped and continued."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from kappaspeech.model.kept_directions import find_directions
from kappaspeech.model.llm import load_llm
from tests import tiny
from tests.ranks.test_training import BF16_LOSS_TOLERANCE, steps

# at which some of the weights move in a step and most don't
THRESHOLD = 1e-7
TEXT = "schalte die rote Lampe ein und öffne die grüne Tür\nopen the kitchen door and turn the lamp off\ndie Küche ist grün\n"


def test_held_weights_are_the_same_on_any_ranks_and_after_a_resume(home, train, one_rank, tmp_path):
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    unfreeze = {"selection": str(home / "selection.json"), "osf": {"kept_share": 0.5}}
    ewc = {"texts": {"x": str(tmp_path / "text.txt")}, "weight": 100.0}
    options = {"unfreeze": unfreeze, "ewc": ewc, "data__test": [], "optimizer__llm_learning_rate": 2e-3}
    alone = train("held-one", **options)
    train("held-two", ranks=2, training__num_steps=2, **options)
    shared = train("held-two", ranks=2, **options)
    ours, theirs = steps(alone), steps(shared)
    assert [record["keys_digest"] for record in ours] == [record["keys_digest"] for record in steps(one_rank)]
    losses = [[record["loss_nats"] for record in run] for run in (ours, theirs)]
    assert losses[0] == pytest.approx(losses[1], rel=BF16_LOSS_TOLERANCE)
    # the first step isn't the optimizer's yet, and the time of the Fisher isn't a step's
    assert losses[0][0] == pytest.approx(steps(one_rank)[0]["loss_nats"], rel=BF16_LOSS_TOLERANCE)
    base = dict(load_llm(str(home / "llm"), dtype=torch.float32).named_parameters())
    for run in (alone, shared):
        trained = load_file(run / "checkpoints/step-000004/trained.safetensors")
        selected = {name.removeprefix("llm."): tensor for name, tensor in trained.items() if name.startswith("llm.")}
        assert selected
        for name, tensor in selected.items():
            # also across a resume, which finds the directions anew
            kept = find_directions(base[name].detach(), share=0.5)
            change = tensor - base[name].detach()
            assert float(change.abs().max()) > 1e-3
            assert float((kept.left_MK.mT @ change).abs().max()) < 2e-6 * float(kept.sigma_K.max())
            assert float((change @ kept.right_NK).abs().max()) < 2e-6 * float(kept.sigma_K.max())


def test_classp_is_the_same_on_any_ranks_and_its_sums_go_on_after_a_resume(train):
    options = {"classp": {"threshold": THRESHOLD}, "data__test": [], "optimizer__llm_learning_rate": 2e-3}
    alone = train("classp-one", **options)
    train("classp-two", ranks=2, training__num_steps=2, **options)
    shared = train("classp-two", ranks=2, **options)
    losses = [[record["loss_nats"] for record in steps(run)] for run in (alone, shared)]
    assert losses[0] == pytest.approx(losses[1], rel=BF16_LOSS_TOLERANCE)
    checkpoints = [shared / f"checkpoints/step-{step:06d}" for step in (2, 4)]
    begun, ended = (load_file(folder / "optimizer.safetensors") for folder in checkpoints)
    before, after = (load_file(folder / "trained.safetensors") for folder in checkpoints)
    names = [name for name in ended if name.startswith("llm.") and name.endswith("exp_avg_sq")]
    assert any((ended[name] > begun[name]).any() for name in names)
    for name in names:
        assert (ended[name] >= begun[name]).all()
        # of a weight that stays, its sum stays
        still = ended[name] == begun[name]
        assert still.any()
        weight = name.removesuffix("/exp_avg_sq")
        assert torch.equal(after[weight][still], before[weight][still])


def test_a_user_who_asks_for_what_classp_does_not_heed_is_told_once(home, run_command, tmp_path):
    options = {"classp": {}, "optimizer__weight_decay": 0.1, "training__num_steps": 1, "data__test": []}
    done = run_command("train", tiny.write_config(tmp_path / "run.yaml", home, tmp_path / "run", **options), ranks=2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("warning: optimizer.weight_decay 0.1 is AdamW's, and with classp the adaptor's alone") == 1
