"""Ranks whose launcher doesn't say which of their host's they are: they find it out where they meet."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import clean_environment, free_port

SCRIPT = """
import os, pathlib, socket, sys
from kappaspeech.ranks.start import start_cluster, start_training_cluster
# as if on three ranks of two hosts
socket.gethostname = lambda: ["a", "b", "a"][int(os.environ["RANK"])]
cluster = start_training_cluster(timeout_seconds=60) if sys.argv[1] == "train" else start_cluster(timeout_seconds=60)
print("local rank", cluster.local_rank, cluster.gather(cluster.rank), os.environ.get("LOCAL_RANK"), flush=True)
cluster.close()
threads = [task.joinpath("comm").read_text().strip() for task in pathlib.Path("/proc/self/task").iterdir()]
print("threads", [name for name in threads if "gloo" in name])
"""


@pytest.mark.parametrize("kind", ["train", "scan"])
def test_ranks_that_no_launcher_numbered_find_their_number_on_their_host(kind):
    port = str(free_port())
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, kind],
            env=clean_environment(
                RANK=str(rank),
                WORLD_SIZE="3",
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=port,
                DS_ACCELERATOR="cpu",
                OMP_NUM_THREADS="1",
            ),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(3)
    ]
    told = [rank.communicate(timeout=120) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0, 0], [errors[-2000:] for _, errors in told]
    for (output, _), expected in zip(told, (0, 0, 1), strict=True):
        # DeepSpeed reads it from the environment
        assert f"local rank {expected} [0, 1, 2] {expected if kind == 'train' else None}\n" in output
        # threads of a group that is still referred to abort a rank at its end, one time in many
        assert "threads []" in output
