"""Texts that a model writes itself."""

from __future__ import annotations

from kappaspeech.demo.own_texts import read_openings, write_own_texts
from kappaspeech.demo.texts import LANGUAGES, write_texts
from kappaspeech.training.replay import refuse_measured


def test_a_model_goes_on_from_openings_of_each_language_the_same_for_the_same_seed(home, tmp_path):
    options = {"count": 33, "num_tokens": 12}
    first, again, other = (
        [path.read_text() for path in write_own_texts(str(home / "llm"), tmp_path / str(number), seed=seed, **options)]
        for number, seed in enumerate((1, 1, 2))
    )
    assert first == again != other
    for language, text in zip(LANGUAGES, first, strict=True):
        lines = text.removesuffix("\n").split("\n")
        assert len(lines) == 33
        openings = read_openings(language)
        assert all(line.startswith(openings[index % 30]) for index, line in enumerate(lines))
        assert lines[30] != lines[0]


def test_no_opening_is_measured(tmp_path):
    measured = {path.stem: path.read_text(encoding="utf-8").splitlines() for path in write_texts(tmp_path)}
    refuse_measured({language: read_openings(language) for language in LANGUAGES}, measured)
