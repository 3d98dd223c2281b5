"""Ranks that would share a GPU refuse the start together. They run on processors, and say that they have one GPU."""

from __future__ import annotations

SCRIPT = """
from kappaspeech.errors import KappaSpeechError
from kappaspeech.ranks.devices import refuse_shared_gpu
from kappaspeech.ranks.start import start_training_cluster
cluster = start_training_cluster(timeout_seconds=60)
refuse_shared_gpu(cluster, f"GPU {cluster.rank}")
try:
    refuse_shared_gpu(cluster, "6f1c")
except KappaSpeechError as error:
    print(f"{type(error).__name__} {error.exit_code}: {error}", flush=True)
cluster.close()
"""


def test_a_shared_gpu_is_refused_on_every_rank_and_told_once(nursery):
    done = nursery.run(code=SCRIPT, ranks=2)
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = sorted(done.stdout.splitlines())
    assert first.startswith("ConfigError 2: Ranks 0 and 1 on ")
    assert second.startswith("RankFailure 2: rank 0 on ")
