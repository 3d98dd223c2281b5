"""Hashing beside the gathering."""

from __future__ import annotations

import hashlib
import threading

import torch

from kappaspeech.model import tensor_digests as digests
from kappaspeech.model.tensor_digests import Hasher, share_out
from tests.patience import patience


def sha256(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.numpy().tobytes()).hexdigest()


def test_a_tensor_that_is_given_back_before_it_is_hashed_is_hashed_as_it_was(monkeypatch):
    """As ZeRO-3 takes a gathered tensor back: while others are gathered, and before a thread has come to it."""
    hashes_now, digest_tensor = threading.Event(), digests.digest_tensor

    def wait_first(tensor: torch.Tensor) -> str:
        assert hashes_now.wait(timeout=patience(30))
        return digest_tensor(tensor)

    monkeypatch.setattr(digests, "digest_tensor", wait_first)
    hasher, tensor = Hasher(), torch.arange(12.0).view(3, 4)
    before = sha256(tensor)
    hasher.add("a", tensor)
    tensor.zero_()
    hashes_now.set()
    assert hasher.digests() == {"a": before}


def test_few_copies_wait_at_a_time(monkeypatch):
    waiting: list[int] = []
    lock, digest_tensor = threading.Lock(), digests.digest_tensor

    def count(tensor: torch.Tensor) -> str:
        with lock:
            waiting.append(hasher._waiting_bytes)
        return digest_tensor(tensor)

    monkeypatch.setattr(digests, "digest_tensor", count)
    tensors = {str(n): torch.full((100,), float(n)) for n in range(20)}
    hasher = Hasher(waiting_bytes=1000)
    for name, tensor in tensors.items():
        hasher.add(name, tensor)
        assert hasher._waiting_bytes <= 1000
    assert hasher.digests() == {name: sha256(tensor) for name, tensor in tensors.items()}
    assert len(waiting) == 20


def test_ranks_hash_alike_many_bytes():
    assert share_out([8, 1, 1, 1, 5, 4], 2) == [0, 1, 1, 1, 1, 0]
    assert share_out([3, 3, 3], 1) == [0, 0, 0]
