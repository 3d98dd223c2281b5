"""Ranks whose launcher doesn't say which of their host's they are: they find it out where they meet."""

from __future__ import annotations

import json

import pytest

SCRIPT = """
import json, os, pathlib, socket, sys
from kappaspeech.ranks.start import start_cluster, start_training_cluster
del os.environ["LOCAL_RANK"], os.environ["LOCAL_WORLD_SIZE"]
# as if on three ranks of two hosts
socket.gethostname = lambda: ["a", "b", "a"][int(os.environ["RANK"])]
cluster = start_training_cluster(timeout_seconds=60) if sys.argv[1] == "train" else start_cluster(timeout_seconds=60)
told = [cluster.rank, cluster.local_rank, cluster.gather(cluster.rank), os.environ.get("LOCAL_RANK")]
cluster.close()
threads = [task.joinpath("comm").read_text().strip() for task in pathlib.Path("/proc/self/task").iterdir()]
print(json.dumps([*told, [name for name in threads if "gloo" in name]]), flush=True)
"""


@pytest.mark.parametrize("kind", ["train", "scan"])
def test_ranks_that_no_launcher_numbered_find_their_number_on_their_host(nursery, kind):
    done = nursery.run(kind, code=SCRIPT, ranks=3)
    assert done.returncode == 0, done.stderr[-2000:]
    told = sorted(json.loads(line) for line in done.stdout.splitlines())
    # DeepSpeed reads it from the environment; and threads of a group that is still referred to abort a rank at its end, one time
    # in many
    assert told == [[rank, local, [0, 1, 2], str(local) if kind == "train" else None, []] for rank, local in enumerate((0, 0, 1))]
