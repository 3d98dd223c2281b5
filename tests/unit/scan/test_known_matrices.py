"""A second scan, whose ranks compare with a journal before they measure: they are watched from the first to the last."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from kappaspeech.ranks.pipe_cluster import HUB_VARIABLE, Hub, PipeCluster
from kappaspeech.ranks.rendezvous import Launch
from kappaspeech.scan.checkpoint import open_checkpoint
from kappaspeech.scan.ranking import KappaRanking
from kappaspeech.scan.stage import scan


class Telltale(PipeCluster):
    """Keeps what it posts."""

    def __init__(self, launch: Launch) -> None:
        super().__init__(launch)
        self.posts: list[dict] = []

    def post(self, text: str) -> None:
        self.posts.append(json.loads(text))
        super().post(text)


def scan_on_two_ranks(folder: Path, monkeypatch) -> tuple[KappaRanking, list[Telltale]]:
    hub, clusters = Hub(2), []
    for rank in range(2):
        # as a rank's process would inherit them
        monkeypatch.setenv(HUB_VARIABLE, ",".join(str(os.dup(descriptor)) for descriptor in hub.file_descriptors(rank)))
        clusters.append(Telltale(Launch(rank, 2, rank, "kappaspeech")))
    hub.close_far_ends()

    def scan_on(cluster: Telltale) -> KappaRanking:
        return scan(open_checkpoint(str(folder / "model.safetensors")), cluster=cluster, journal=folder / "journal")

    with ThreadPoolExecutor(2) as ranks:
        rankings = list(ranks.map(scan_on, clusters))
    for cluster in clusters:
        cluster.close()
    return rankings[0], clusters


def test_no_rank_is_thought_to_be_over_before_all_are(tmp_path, monkeypatch):
    generator = np.random.default_rng(0)
    tensors = {f"layers.{index}.weight": generator.standard_normal((8, 8)).astype(np.float32) for index in range(4)}
    save_file(tensors, tmp_path / "model.safetensors")
    first, _ = scan_on_two_ranks(tmp_path, monkeypatch)
    second, clusters = scan_on_two_ranks(tmp_path, monkeypatch)
    assert second == first
    for cluster in clusters:
        assert [post["over"] for post in cluster.posts] == [False] * (len(cluster.posts) - 1) + [True]
        # a beat that begins again would be an old one's to the others
        assert [post["beat"] for post in cluster.posts] == list(range(1, len(cluster.posts) + 1))
