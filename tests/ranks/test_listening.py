"""Ranks of one host can't be reached from another, and what a stranger writes into their store is no rank's word."""

from __future__ import annotations

import pytest

SCRIPT = """
import json, os, pathlib, re, sys
from kappaspeech.ranks.start import start_cluster, start_training_cluster

def say(line):
    # in one write, or the other rank's comes between a line and its end
    os.write(1, (line + "\\n").encode())

cluster = start_training_cluster(timeout_seconds=60) if sys.argv[1] == "train" else start_cluster(timeout_seconds=60)
inodes = set()
for link in pathlib.Path("/proc/self/fd").iterdir():
    try:
        inodes |= set(re.findall(r"socket:\\[(\\d+)\\]", os.readlink(link)))
    except OSError:
        pass
places = set()
for table in ("tcp", "tcp6"):
    for line in pathlib.Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]:
        words = line.split()
        if words[3] == "0A" and words[9] in inodes:
            places.add(words[1].split(":")[0])
say(f"listens at {sorted(places)}")
cluster.post("word of " + str(cluster.rank))
cluster.barrier()
if cluster.rank == 1:
    from datetime import timedelta
    import torch.distributed as dist
    stranger = dist.TCPStore("127.0.0.1", int(os.environ["MASTER_PORT"]), is_master=False, timeout=timedelta(seconds=20))
    stranger.set("kappaspeech/post/0", json.dumps({"cause": ["\\x1b[2Jgive up", 1]}))
    own = stranger.get("kappaspeech/post/1").decode() if stranger.check(["kappaspeech/post/1"]) else ""
    stranger.set("kappaspeech/post/0", own)
    stranger.set("kappaspeech/post/1", "x" * 70)
cluster.barrier()
say(f"posts {cluster.read_posts()}")
cluster.barrier()
cluster.post("later word of " + str(cluster.rank))
cluster.barrier()
say(f"posts {cluster.read_posts()}")
cluster.close()
"""
# 127.0.0.1 as /proc/net/tcp has it
LOOPBACK = "0100007F"


@pytest.mark.parametrize("kind", ["train", "scan"])
def test_ranks_of_one_host_listen_on_loopback_and_believe_no_stranger(nursery, kind):
    done = nursery.run(kind, code=SCRIPT, ranks=2)
    assert done.returncode == 0, done.stderr[-2000:]
    for said in (
        f"listens at ['{LOOPBACK}']",
        "posts ['word of 0', 'word of 1']",
        "posts ['later word of 0', 'later word of 1']",
    ):
        assert done.stdout.splitlines().count(said) == 2, done.stdout
