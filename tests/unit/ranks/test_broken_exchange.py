"""Messages of libraries when a rank is gone, and messages that only sound like it."""

from __future__ import annotations

import pytest

from kappaspeech.ranks.broken_exchange import is_broken_collective, tells_of_broken_exchange


@pytest.mark.parametrize(
    ("error", "maybe", "surely"),
    [
        (RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:8000"), True, True),
        (RuntimeError("NCCL communicator was aborted on rank 1"), True, True),
        (RuntimeError("Connection reset by peer"), True, True),
        (RuntimeError("Broken pipe"), False, True),
        (ConnectionResetError(104, "Connection reset by peer"), False, True),
        # a rank's own trouble with a server or a disk isn't told after all others
        (RuntimeError("Timed out waiting for clients"), True, False),
        (RuntimeError("a rank ended before all had gathered"), True, False),
        (RuntimeError("the process that started the ranks is gone"), True, False),
        (TimeoutError("timed out"), False, False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False, False),
        (ValueError("gloo"), False, True),
    ],
    ids=str,
)
def test_a_watch_takes_what_may_be_an_end_and_a_report_what_must_be(error, maybe, surely):
    assert is_broken_collective(error) is maybe
    assert tells_of_broken_exchange(f"{type(error).__name__}: {error}") is surely


def test_an_error_of_torchs_store_is_known_by_its_type():
    assert tells_of_broken_exchange("DistNetworkError: failed to recv, got 0 bytes")
    assert tells_of_broken_exchange("DistBackendError: socket")
