"""Plans of one configuration on several numbers of ranks."""

from __future__ import annotations

import pytest

from kappaspeech.config.run_config import read_run_config
from kappaspeech.planning.plans import Plans, Ranks, plan_gpus
from tests import tiny


@pytest.fixture
def config(home, tmp_path):
    return read_run_config(tiny.write_config(tmp_path / "run.yaml", home, tmp_path / "run"))


def plans(config, *ranks: Ranks, **options) -> Plans:
    return plan_gpus(config, ranks, num_trained=None, anchored_tokens=0, **options)


def test_more_gpus_than_a_host_has_are_slower_to_reach_and_share_no_more_of_a_hosts_memory(config):
    made = plans(config, Ranks(1, 80), Ranks(8, 80), Ranks(16, 80))
    one, host, two = (plan.assumptions.rates for plan in made.plans)
    assert one.bytes_per_second == host.bytes_per_second > two.bytes_per_second
    assert one.host_update_bytes_per_second == 8 * host.host_update_bytes_per_second
    assert host.host_update_bytes_per_second == two.host_update_bytes_per_second
    told = plans(config, Ranks(16, 80), tflops=7.0, bandwidth_gbs=3.0).plans[0].assumptions.rates
    assert (told.flops_per_second, told.bytes_per_second) == (7e12, 3e9)


def test_a_plan_is_told_whole_several_in_a_table_and_what_does_not_fit_with_remedies(config):
    fitting, small = plans(config, Ranks(1, 80)), plans(config, Ranks(1, 0.001))
    assert (fitting.fits, small.fits) == ([True], [False])
    assert any(line.startswith("step ") for line in fitting.describe())
    assert len(small.describe()) > len(fitting.describe())
    both = plans(config, Ranks(1, 0.001), Ranks(2, 80))
    assert both.fits == [False, True]
    assert not any(line.startswith("step ") for line in both.describe())
    content = both.to_json(["a line"])
    assert (content["gpu_memory_gb"], content["assumed"]) == (0.001, ["a line"])
    assert [plan["fits"] for plan in content["plans"]] == [False, True]
