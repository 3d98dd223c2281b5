"""The traffic of a step that a plan counts, held against what ranks receive in a training."""

from __future__ import annotations

import json

from kappaspeech.config.run_config import read_run_config
from kappaspeech.planning.duration import count_traffic
from kappaspeech.planning.meta_model import build_meta_model
from kappaspeech.planning.planner import Planner
from tests import tiny


def test_a_step_gathers_updated_weights_and_averages_gradients_as_the_plan_counts(home, tmp_path, run_command):
    """With weights that stay whole, as ds_configs/zero3_cpu.json has them, through the exchange alone."""
    (tmp_path / "zero3.json").write_text(
        json.dumps({"bf16": {"enabled": True}, "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 10**9}})
    )
    options = {
        "deepspeed": str(tmp_path / "zero3.json"),
        "data__test": [],
        "training__num_steps": 5,
        "training__checkpoint_every_steps": 5,
        "data__text": {},
    }
    path = tiny.write_config(tmp_path / "run.yaml", home, tmp_path / "run", **options)
    done = run_command(path, ranks=2, module="tests.ranks.traffic_rank")
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"averaged"')]
    config = read_run_config(path)
    planner = Planner(config, modules=build_meta_model(config))
    traffic = count_traffic(planner.sizes, planner._settings, world_size=2, micro_batches_per_rank=1)
    assert (traffic.gathered, traffic.num_regathered) == (0, len(planner.sizes.adaptor_tensor_sizes) + 4)
    assert len(found) == 2
    for received in found:
        # the first step makes the frozen weights whole too
        first, *others = received["gathered"]
        assert first > traffic.regathered
        assert others == [traffic.regathered] * 4
        assert sum(received["averaged"]) == 5 * traffic.reduced
