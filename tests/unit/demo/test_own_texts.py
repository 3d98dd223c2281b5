"""Texts that a model writes itself."""

from __future__ import annotations

from kappaspeech.demo.own_texts import OPENINGS, write_own_texts


def test_a_model_goes_on_from_openings_of_each_language_the_same_for_the_same_seed(home, tmp_path):
    options = {"count": 23, "num_tokens": 24}
    first, again, other = (
        [path.read_text() for path in write_own_texts(str(home / "llm"), tmp_path / str(number), seed=seed, **options)]
        for number, seed in enumerate((1, 1, 2))
    )
    assert first == again != other
    for language, text in zip(OPENINGS, first, strict=True):
        lines = text.removesuffix("\n").split("\n")
        assert len(lines) == 23
        assert all(line.startswith(OPENINGS[language][index % 20]) for index, line in enumerate(lines))
