"""Options of training that are each tested alone, in one run."""

from __future__ import annotations

import json
import shutil

from kappaspeech.runs.first_adaptor import read_first_adaptor


def test_alignment_replay_anchor_average_and_recomputation_go_together_and_over_a_resume(train, one_rank, tmp_path):
    (tmp_path / "text.txt").write_text("".join(f"a line of plain words number {n} to replay\n" for n in range(9)))
    options = {
        "replay": {"texts": {"en": str(tmp_path / "text.txt")}, "texts_per_step": 3, "max_tokens": 16, "anchor_weight": 0.5},
        "model__adaptor__initial": str(tmp_path / "aligned"),
        "unfreeze": {"mode": "all"},
        "data__test": [],
        "training__ema_decay": 0.9,
        "training__activation_checkpointing": True,
        "training__on_bad_loss": "skip",
        "training__checkpoint_every_steps": 1,
        "batch__packing": True,
    }
    shutil.copytree(one_rank, tmp_path / "aligned")
    began_with = read_first_adaptor(tmp_path / "aligned").origin.to_json()
    first = train("together", ranks=2, training__num_steps=3, training__alignment_steps=2, **options)
    began = json.loads((first / "run.json").read_text())
    # on another number of ranks, aligning longer than it was to, and with the adaptor of its own checkpoint alone
    shutil.rmtree(tmp_path / "aligned")
    run = train("together", training__num_steps=6, training__alignment_steps=4, **options)
    records = [json.loads(line) for line in (run / "steps.jsonl").read_text().splitlines()]
    kinds = [record["objective"] for record in records]
    assert kinds == ["alignment", "alignment", "transcript", "alignment", "transcript", "transcript"]
    assert [record["anchor_nats"] is not None for record in records] == [kind == "transcript" for kind in kinds]
    assert [record["learning_rates"]["llm"] > 0 for record in records] == [kind == "transcript" for kind in kinds]
    state = json.loads((run / "checkpoints" / "step-000006" / "state.json").read_text())
    assert (state["bad_steps"]["num_skipped"], state["bad_steps"]["num_aligning"]) == (0, 3)
    # the adaptor began as the other run's ended
    record, other = (json.loads((folder / "run.json").read_text()) for folder in (run, one_rank))
    assert record["initial_adaptor"] == began["initial_adaptor"] == began_with
    assert record["initial_weights_digest"] == began["initial_weights_digest"] != other["initial_weights_digest"]
    assert other["initial_adaptor"] is None


def test_a_run_may_align_the_adaptor_and_no_more(train):
    options = {"unfreeze": {"mode": "all"}, "training__alignment_steps": 2, "training__num_steps": 2}
    run = train("aligned", training__ema_decay=0.9, **options)
    records = [json.loads(line) for line in (run / "steps.jsonl").read_text().splitlines()]
    assert [record["objective"] for record in records] == ["alignment", "alignment"]
    # the LLM is evaluated, and has moved by nothing
    (last,) = [r for r in map(json.loads, (run / "evaluations.jsonl").read_text().splitlines()) if r["step"] == 2]
    assert set(last["wer"]["languages"]) == {"de", "en"}
    moved = json.loads((run / "drift.json").read_text())["relative_frobenius"]
    assert moved
    assert set(moved.values()) == {0.0}
    assert json.loads((run / "run.json").read_text())["status"] == "finished"
    assert "finished" in (run / "run.md").read_text()
    # others begin with it
    again = train("begun", model__adaptor__initial=str(run), data__test=[], training__num_steps=1)
    assert json.loads((again / "run.json").read_text())["initial_adaptor"] == read_first_adaptor(run).origin.to_json()
