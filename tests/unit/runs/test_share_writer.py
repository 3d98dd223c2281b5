"""Pieces written at their places by threads."""

from __future__ import annotations

import gc
import weakref
from collections import deque

import pytest
import torch

from kappaspeech.runs import share_writer
from kappaspeech.runs.checksums import Span, join
from kappaspeech.runs.share_writer import Piece, ShareWriter, cut, place


@pytest.fixture(autouse=True)
def three_threads(monkeypatch):
    monkeypatch.setattr(share_writer, "count_threads", lambda: 3)


def test_pieces_come_to_their_places_and_are_summed_up(tmp_path):
    (tmp_path / "a").write_bytes(b"head" + bytes(800))
    (tmp_path / "b").write_bytes(bytes(12))
    tensor = torch.arange(200.0).view(10, 20).T
    writer = ShareWriter(tmp_path)
    writer.write(deque([*place("a", 4, cut(tensor, block_bytes=64)), *place("b", 8, cut(torch.ones(1)))]))
    found = writer.finish()
    expected = tensor.contiguous().numpy().tobytes()
    assert (tmp_path / "a").read_bytes() == b"head" + expected
    assert (tmp_path / "b").read_bytes() == bytes(8) + torch.ones(1).numpy().tobytes()
    assert join(found["a"])[:2] == (4, 804)
    assert found["b"] == [Span(8, 12, found["b"][0].crc32)]
    assert writer.num_written == 14


def test_what_is_written_is_let_go_of(tmp_path):
    (tmp_path / "a").write_bytes(bytes(8))
    tensor = torch.ones(2)
    alive, pieces = weakref.ref(tensor), deque(place("a", 0, cut(tensor)))
    del tensor
    writer = ShareWriter(tmp_path)
    writer.write(pieces)
    gc.collect()
    assert alive() is None
    assert not pieces


def test_after_an_error_nothing_more_is_written_and_it_is_raised_at_the_end(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(bytes(4000))
    written = []

    def fail_at_the_third(_self: ShareWriter, piece: Piece) -> Span:
        written.append(piece.begin)
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        return Span(piece.begin, piece.begin + 4, 0)

    monkeypatch.setattr(share_writer, "count_threads", lambda: 1)
    monkeypatch.setattr(ShareWriter, "write_piece", fail_at_the_third)
    writer = ShareWriter(tmp_path)
    writer.write(deque(place("a", 0, cut(torch.ones(1000), block_bytes=4))))
    writer.write(deque(place("a", 0, cut(torch.ones(1)))))
    assert len(written) == 3
    with pytest.raises(OSError, match="No space left"):
        writer.finish()


def test_a_file_that_isnt_there_is_an_error_at_the_end(tmp_path):
    writer = ShareWriter(tmp_path)
    writer.write(deque(place("a", 0, cut(torch.ones(1)))))
    with pytest.raises(FileNotFoundError):
        writer.finish()
