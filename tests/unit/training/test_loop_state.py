"""The state from which a run continues, through the JSON of a checkpoint."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

from kappaspeech.config.run_config import read_run_config
from kappaspeech.runs.saved_state import find_fault
from kappaspeech.training.loop_state import LoopState
from kappaspeech.zero3.engine import StepResult
from tests import tiny
from tests.unit.training.test_totals import bad_sample, share


def test_a_state_comes_back_from_its_json_and_is_what_a_checkpoint_may_hold(home, tmp_path):
    config = read_run_config(tiny.write_config(tmp_path / "run.yaml", home, tmp_path / "run"))
    # of a stream it asks its length alone
    stream = SimpleNamespace(num_samples=1000)
    state, again = LoopState(config, stream), LoopState(config, stream)
    state.totals.add([share(1, bad=(bad_sample("x"),))], seconds=2.5)
    state.bad_steps.judge(1, StepResult(math.nan, 1.0, is_applied=False), loss_sum_nats=math.nan, keys=["a"])
    state.hint = (3, 7)
    saved = json.loads(json.dumps(state.to_json()))
    assert find_fault({"step": 1, "fingerprints": {}, **saved}) is None
    again.restore(saved)
    assert again.to_json() == state.to_json() != LoopState(config, stream).to_json()
    assert again.hint == (3, 7)
    assert again.totals.train_seconds == 2.5
    assert again.bad_steps.num_skipped == 1
