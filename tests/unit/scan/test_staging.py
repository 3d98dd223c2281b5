"""Weights on the way to a device: whole on arrival, in any shape and dtype, whatever the host's memory holds next."""

from __future__ import annotations

import pytest
import torch

from kappaspeech.scan.staging import Staging

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("device", DEVICES)
def test_what_arrives_is_what_was_sent_however_large_what_came_before(device):
    staging = Staging(torch.device(device))
    sent = [torch.arange(size, dtype=torch.int16).view(-1, 2) for size in (6, 600, 60)]
    arrived = [staging.bring(tensor) for tensor in sent]
    for tensor, there in zip(sent, arrived, strict=True):
        assert there.device.type == device
        assert torch.equal(there.cpu(), tensor)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="page-locked memory is a GPU's")
def test_the_hosts_memory_may_be_used_again_at_once():
    staging = Staging(torch.device("cuda"))
    source = torch.zeros(1 << 24, dtype=torch.int16)
    there = staging.bring(source)
    source.fill_(1)
    assert not there.any()
