"""Text beside speech, as a user trains with it: the same on one rank and on two, stopped and continued."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from tests import tiny
from tests.ranks.test_training import BF16_LOSS_TOLERANCE, steps

BUDGET_NATS = 0.006

TEXT = "schalte die rote Lampe ein und öffne die grüne Tür\nopen the kitchen door and turn the lamp off\ndie Küche ist grün\n"


def test_replayed_text_and_its_anchor_are_the_same_on_any_ranks_and_after_a_resume(train, one_rank, tmp_path):
    (tmp_path / "replay.txt").write_text(TEXT, encoding="utf-8")
    replay = {"texts": {"x": str(tmp_path / "replay.txt")}, "texts_per_step": 3, "max_tokens": 8, "anchor_weight": 1.0}
    # all trains, the head too, and fast enough to leave the base
    options = {"replay": replay, "data__test": [], "unfreeze": {"mode": "all"}, "optimizer__llm_learning_rate": 2e-3}
    alone = train("replay-one", **options)
    train("replay-two", ranks=2, training__num_steps=2, **options)
    shared = train("replay-two", ranks=2, **options)
    ours, theirs = steps(alone), steps(shared)
    # speech is what it is without text
    assert [record["keys_digest"] for record in ours] == [record["keys_digest"] for record in steps(one_rank)]
    assert [record["num_replayed_tokens"] for record in ours] == [record["num_replayed_tokens"] for record in theirs]
    assert all(record["num_replayed_tokens"] > 6 for record in ours)
    for name in ("loss_nats", "replay_nats"):
        assert [record[name] for record in ours] == pytest.approx([r[name] for r in theirs], rel=BF16_LOSS_TOLERANCE), name
    distances = [[record["anchor_nats"] for record in run] for run in (ours, theirs)]
    assert distances[0] == pytest.approx(distances[1], rel=0.1, abs=1e-4)
    # the base is that of the start, also after a resume
    for run in distances:
        assert abs(run[0]) < 1e-4 < run[-1] / 4, run
    assert "from the base" in (shared / "run.md").read_text(encoding="utf-8")


def test_a_budget_is_kept_on_text_that_is_not_replayed_also_across_a_stop(train, tmp_path):
    (tmp_path / "replay.txt").write_text(TEXT, encoding="utf-8")
    replay = {"texts": {"x": str(tmp_path / "replay.txt")}, "texts_per_step": 3, "max_tokens": 16, "weight": 0.0}
    options = {"data__test": [], "unfreeze": {"mode": "all"}, "optimizer__llm_learning_rate": 2e-3}
    options |= {"optimizer__schedule": "cosine", "training__checkpoint_every_steps": 0}
    budget = {**replay, "anchor_weight": 0.05, "forgetting_budget_nats": BUDGET_NATS, "measure_every_steps": 2}
    train("budget", ranks=2, training__num_steps=80, replay=budget, training__time_budget_seconds=2.0, **options)
    run = train("budget", training__num_steps=80, replay=budget, **options)
    distances = [json.loads(line) for line in (run / "distances.jsonl").read_text().splitlines()]
    assert [record["step"] for record in distances] == list(range(2, 81, 2))
    # as near as so few and so large steps allow; without the budget it goes three times as far
    assert 0.6 * BUDGET_NATS < distances[-1]["kl_nats"] < 1.2 * BUDGET_NATS
    assert max(record["anchor_weight"] for record in distances) > 0.1
    assert f"of a budget of {BUDGET_NATS:g}" in (run / "run.md").read_text(encoding="utf-8")


def test_a_run_that_no_weight_keeps_in_its_budget_ends_there_all_the_same_on_any_ranks(train, tmp_path):
    (tmp_path / "replay.txt").write_text(TEXT, encoding="utf-8")
    replay = {"texts": {"x": str(tmp_path / "replay.txt")}, "texts_per_step": 3, "max_tokens": 16, "anchor_weight": 1e-6}
    replay |= {"forgetting_budget_nats": 1e-4, "measure_every_steps": 3}
    options = {"unfreeze": {"mode": "all"}, "optimizer__llm_learning_rate": 2e-3, "optimizer__schedule": "constant"}
    options |= {"training__num_steps": 6, "training__ema_decay": 0.5, "replay": replay}
    for ranks in (1, 2):
        run = train(f"drawn-back-{ranks}", ranks=ranks, **options)
        last = json.loads((run / "distances.jsonl").read_text().splitlines()[-1])
        assert last["moved_nats"] > 3e-4
        assert last["kl_nats"] == pytest.approx(1e-4, rel=0.05)
        # an evaluation reads the same text, by weights that were gathered whole
        evaluation = json.loads((run / "evaluations.jsonl").read_text().splitlines()[-1])
        measured = [text["kl_nats"] for text in evaluation["text"].values()]
        assert sum(measured) / len(measured) == pytest.approx(1e-4, rel=0.1)
        assert "drawn back towards its base 1 time(s)" in (run / "run.md").read_text(encoding="utf-8")


def test_lora_is_drawn_back_straight_to_the_base_as_other_weights_are(train, tmp_path):
    """B·A comes straight nearer if B alone does."""
    (tmp_path / "replay.txt").write_text(TEXT, encoding="utf-8")
    replay = {"texts": {"x": str(tmp_path / "replay.txt")}, "texts_per_step": 3, "max_tokens": 16, "anchor_weight": 1e-6}
    lora = {"mode": "lora", "lora": {"rank": 2, "alpha": 8.0}}
    options = {"unfreeze": lora, "optimizer__llm_learning_rate": 2e-2, "data__test": [], "training__num_steps": 4}
    free, held = (
        load_file(train(f"lora-{name}", **options, replay={**replay, **budget}) / "checkpoints/step-000004/trained.safetensors")
        for name, budget in (("free", {}), ("held", {"forgetting_budget_nats": 1e-3, "measure_every_steps": 4}))
    )
    second = [name for name in free if name.endswith(".lora_B.weight")]
    shares = [float(held[name].norm() / free[name].norm()) for name in second]
    assert 0 < shares[0] < 0.9
    for name, tensor in free.items():
        torch.testing.assert_close(held[name], tensor * shares[0] if name in second else tensor, rtol=1e-4, atol=1e-7)


def test_hosts_with_other_text_to_measure_on_are_refused(home, run_command, tmp_path):
    """Each would divide its share by another number of tokens, and steer its anchor by another distance."""
    (tmp_path / "replay.txt").write_text(TEXT, encoding="utf-8")
    replay = {"texts": {"x": str(tmp_path / "replay.txt")}, "anchor_weight": 0.05, "forgetting_budget_nats": BUDGET_NATS}
    config = tiny.write_config(tmp_path / "run.yaml", home, tmp_path / "run", replay=replay)
    done = run_command("train", config, ranks=2, sabotage=("read_other_text", "1", "text.txt"))
    assert done.returncode == 2, done.stderr[-3000:]
    assert "the text of the budget is " in done.stderr
    assert "the text that is scored is " in done.stderr


@pytest.mark.parametrize(
    ("fault", "what"),
    [
        (("read_other_text", "1", "text.txt"), "the text that is scored"),
        (("miss_a_test_sample", "1"), "the test speech"),
        (("find_another_model", "1"), "the model"),
    ],
)
def test_an_evaluation_refuses_hosts_with_other_data_or_another_model(one_rank, run_command, tmp_path, fault, what):
    done = run_command("evaluate", one_rank, "--output", tmp_path / "evaluation.json", ranks=2, sabotage=fault)
    assert done.returncode == 2, done.stderr[-3000:]
    assert f"{what} is " in done.stderr


def test_a_rank_that_cannot_time_its_products_is_named_by_the_others(one_rank, run_command, tmp_path):
    """They ended with a traceback of a connection that was closed."""
    done = run_command("evaluate", one_rank, "--output", tmp_path / "e.json", ranks=2, sabotage=("fail_to_measure", "1"))
    assert done.returncode == 1, done.stderr[-3000:]
    assert "error: rank 1" in done.stderr
    assert "CUDA out of memory" in done.stderr.partition("error: rank 1")[2]
