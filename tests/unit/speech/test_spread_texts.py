from __future__ import annotations

from kappaspeech.speech.corpus import Corpus, SpeechDataset
from kappaspeech.speech.source import ReadOptions
from kappaspeech.speech.sources import open_source
from kappaspeech.speech.spread_texts import read_spread_texts


def test_transcripts_are_read_as_they_stand_and_of_a_part_spread_over_all(home):
    corpora = [Corpus(SpeechDataset(str(home / f"shards/train/{language}-*.tar"))) for language in ("en", "de")]

    def read(most: int | None = None) -> list[tuple[str, str, str]]:
        found = read_spread_texts(corpora, lambda where: open_source(where, ReadOptions()), most)
        return [(ref.entry.language, ref.entry.key, text) for ref, text in found]

    everything, part = read(), read(8)
    lines = {language: (home / f"speech/train/{language}/transcripts.tsv").read_text().splitlines() for language in ("en", "de")}
    texts = sorted((language, line.split("\t")[1]) for language, found in lines.items() for line in found)
    assert sorted((language, text) for language, _, text in everything) == texts
    assert [language for language, _, _ in part] == ["en"] * 4 + ["de"] * 4
    assert set(part) < set(everything)
