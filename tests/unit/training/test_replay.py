"""The text that a step repeats: exact shares, in the same order everywhere, and never what is measured."""

from __future__ import annotations

from collections import Counter

import pytest

from kappaspeech.config.run_config import read_run_config
from kappaspeech.errors import ConfigError, DataError
from kappaspeech.model.llm import load_tokenizer
from kappaspeech.training.replay import Replay, choose_pieces, read_replay, refuse_measured
from tests import tiny

COUNTS = (5, 3)


def replay(seed: int = 7) -> Replay:
    pieces = tuple(tuple(range(2 + place)) for place in range(sum(COUNTS)))
    return Replay(pieces, COUNTS, texts_per_step=4, seed=seed)


def test_every_language_has_its_exact_share_of_every_step():
    for step in range(20):
        places = replay().of_step(step)
        assert [place < COUNTS[0] for place in places] == [True, False, True, False]


def test_every_piece_comes_once_before_any_comes_again():
    drawn = choose_pieces(COUNTS, first=0, number=2 * 15, seed=7)
    for source, count in enumerate(COUNTS):
        mine = drawn[source::2]
        for epoch in range(15 // count):
            assert len(set(mine[epoch * count : (epoch + 1) * count])) == count
    assert max(Counter(drawn).values()) == 5


def test_a_step_is_a_function_of_its_number_and_the_seed():
    steps = [replay().of_step(step) for step in range(10)]
    # as a run that resumes there would ask
    assert [replay().of_step(step) for step in (9, 4)] == [steps[9], steps[4]]
    assert [replay(8).of_step(step) for step in range(10)] != steps
    assert replay(8).fingerprint != replay().fingerprint


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_ranks_share_a_steps_pieces_out_whatever_their_number(world_size):
    micro_batches = 3
    shared = [
        place
        for rank in range(world_size)
        for index in range(rank, -(-micro_batches // world_size) * world_size, world_size)
        for place in replay().of_micro_batch(6, index, micro_batches_per_step=micro_batches)
    ]
    assert sorted(shared) == sorted(replay().of_step(6))


def test_tokens_are_counted_and_pieces_that_no_step_reaches_are_known():
    assert replay().num_tokens(0) == sum(1 + place for place in replay().of_step(0))
    assert replay().reached(1) == sorted(set(replay().of_step(0)))
    assert replay().reached(10) == list(range(8))


def test_a_line_that_is_measured_is_never_replayed_whatever_its_case():
    with pytest.raises(ConfigError, match=r"1 line\(s\) of replay.texts are in data.text.*'the red lamp is on'"):
        refuse_measured({"en": ["Another line of words.", "The red lamp is on!"]}, {"en": ["x", "the red, lamp is on"]})
    # a file of a folder is one text
    with pytest.raises(ConfigError, match="1 line"):
        refuse_measured({"en": ["the red lamp is on"]}, {"en": ["a title\nThe red lamp is on."]})
    refuse_measured({"en": ["Dear Anna,"]}, {"en": ["Dear Anna,"]})


def test_texts_are_read_in_pieces_and_those_of_a_configuration_are_checked(home, tmp_path):
    tokenizer = load_tokenizer(str(home / "llm"))

    def read(**changes):
        return read_replay(
            read_run_config(tiny.write_config(tmp_path / "run.yaml", home, tmp_path / "run", **changes)), tokenizer
        )

    assert read() is None
    path = tmp_path / "replay.txt"
    path.write_text("schalte die rote Lampe ein und öffne die Tür\n\ngrüne Küche\n", encoding="utf-8")
    found = read(replay={"texts": {"de": str(path)}, "max_tokens": 6})
    assert found.counts == (len(found.pieces),)
    assert all(2 <= len(piece) <= 6 for piece in found.pieces)
    assert sum(map(len, found.pieces)) > 12
    with pytest.raises(ConfigError, match="Text that is trained on"):
        read(replay={"texts": {"en": str(home / "text.txt")}})
    path.write_text("a\n", encoding="utf-8")
    with pytest.raises(DataError, match="too short"):
        read(replay={"texts": {"de": str(path)}})
