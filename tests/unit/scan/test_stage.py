"""The device that each rank of a scan computes on."""

from __future__ import annotations

import pytest
import torch

from kappaspeech.scan.stage import own_device


@pytest.mark.parametrize(("rank", "own"), [(0, "cuda:0"), (1, "cuda:1"), (3, "cuda:1")])
def test_ranks_of_one_machine_take_its_gpus_in_turns(rank, own, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert own_device("cuda", rank) == own


@pytest.mark.parametrize("device", ["cpu", "cuda:1", "meta"])
def test_a_device_that_was_named_in_full_is_every_ranks(device):
    assert own_device(device, 3) == device
