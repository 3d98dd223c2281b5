"""Training over two hosts: the same losses as on one, and how each fault of a cluster ends."""

from __future__ import annotations

import pytest

from tests.ranks.test_training import assert_same_steps

pytestmark = pytest.mark.slow


def test_two_hosts_train_to_the_losses_of_one(launch, one_rank):
    run = launch("--set", "arm=largest κ; 100% of $HOME")
    code, output = run.wait(timeout=120)
    assert code == 0, output
    assert run.status() == "finished"
    assert_same_steps(run.run_dir, one_rank)
