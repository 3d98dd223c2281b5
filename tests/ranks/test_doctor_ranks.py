"""`kappaspeech doctor` under a launcher."""

from __future__ import annotations

from tests import tiny


def test_two_ranks_of_a_host_give_one_report(home, tmp_path, run_command):
    config = tiny.write_config(tmp_path / "run.yaml", home, tmp_path / "run", batch__micro_batches_per_step=3)
    done = run_command("doctor", config, ranks=2)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert sum("packages within their bounds" in line for line in lines) == 1
    assert any("3 micro-batches a step on 2 rank(s): 2 a rank, and 1 of 4 passes are empty" in line for line in lines)
    assert "(on " not in done.stdout


def test_a_rank_that_cannot_time_its_products_is_named_by_the_others(run_command):
    """They ended with a traceback of a connection that was closed."""
    done = run_command("doctor", ranks=2, sabotage=("fail_to_measure", "1"))
    assert done.returncode == 1, done.stderr[-3000:]
    assert "CUDA out of memory" in done.stderr.partition("error: rank 1")[2]
