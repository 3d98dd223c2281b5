"""A data set's samples as its indices list them, and the references by which they are loaded."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kappaspeech.config.data_config import DatasetConfig, ReadConfig
from kappaspeech.errors import DataError
from kappaspeech.redaction import redact
from kappaspeech.speech.feature_cache import entry_name, group_name
from kappaspeech.speech.in_place import is_in_place, open_in_place
from kappaspeech.speech.languages import short_language
from kappaspeech.speech.normalisers import TextNormalization, normaliser_of
from kappaspeech.speech.sample_reader import SampleRef
from kappaspeech.speech.schedule import DatasetLengths
from kappaspeech.speech.shards import SampleEntry, ShardIndex, check_unchanged, expand, read_index
from kappaspeech.speech.source import ReadOptions, is_remote
from kappaspeech.speech.sources import open_source
from kappaspeech.speech.table import MERGED_SUFFIX, SampleTable, read_merged

# Indices of remote shards that are read at once.
_INDICES_AT_ONCE = 16


@dataclass(frozen=True)
class SpeechDataset:
    """Shards (path, URL, glob, brace list, a merged index, or a data set in tars of NeMo or lhotse), with their share of the
    mixture. `language` keeps samples of that one alone; `text_normalization` says how transcripts are written, `instruction`
    what is asked of the LLM, if not the run's, and `name` what the set is called beside others."""

    shards: str
    language: str | None = None
    weight: float = 1.0
    text_normalization: TextNormalization = "none"
    instruction: str | None = None
    name: str = ""


def make_datasets(items: Sequence[DatasetConfig]) -> list[SpeechDataset]:
    """Make the data sets of a configuration's `data.train` or `data.test`."""
    return [
        SpeechDataset(item.shards, item.language, item.weight, item.text_normalization, item.instruction, name)
        for item, name in zip(items, name_sets(items), strict=True)
    ]


def name_sets(items: Sequence[DatasetConfig]) -> list[str]:
    """The names of data sets beside each other: their own, or their shards, without secrets, with the language or a number if
    several sets would have the same. Empty if there is one set, also of several parts."""
    names: list[str] = []
    for item in items:
        name = item.name or redact(item.shards)
        if item.name is None and item.language and sum(other.shards == item.shards for other in items) > 1:
            name = f"{name} ({item.language})"
        if item.name is None and name in names:
            name = next(numbered for number in itertools.count(2) if (numbered := f"{name} [{number}]") not in names)
        names.append(name)
    return names if len(set(names)) > 1 else [""] * len(names)


def make_read_options(config: ReadConfig) -> ReadOptions:
    """Make the options by which a configuration reads remote shards."""
    return ReadOptions(config.attempts, config.stall_seconds, config.cache_dir, int(config.cache_gb * 2**30))


def _read_indices(places: Sequence[str], options: ReadOptions) -> list[ShardIndex]:
    """Read the indices beside shards, some at once: one of a remote shard takes the time of a few answers."""
    if not any(map(is_remote, places)):
        return [read_index(where, options) for where in places]
    with ThreadPoolExecutor(_INDICES_AT_ONCE, thread_name_prefix="shard-indices") as pool:
        futures = [pool.submit(read_index, where, options) for where in places]
        try:
            return [future.result() for future in futures]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


class Corpus:
    """One data set's samples, in their order."""

    def __init__(
        self,
        dataset: SpeechDataset,
        read: ReadOptions | None = None,
        *,
        named: bool = False,
        most_shards: int | None = None,
    ) -> None:
        """Read the indices, of `most_shards` from all over the data set if there are more; `named` samples have names in the
        feature cache.

        Raises `DataError` if shards or indices are missing or don't fit each other.
        """
        self.dataset = dataset
        self._named = named
        self._read = read or ReadOptions()
        # of each shard that was compared with its index
        self._stamps: dict[int, str] = {}
        if dataset.shards.endswith(MERGED_SUFFIX) and not is_remote(dataset.shards):
            self.table = read_merged(Path(dataset.shards).expanduser())
            self._check_sizes()
        elif is_in_place(dataset.shards):
            self.table = open_in_place(dataset.shards, language=dataset.language, read=self._read)
        else:
            places = expand(dataset.shards, self._read)
            if most_shards is not None and len(places) > most_shards:
                places = [places[i * len(places) // most_shards] for i in range(most_shards)]
            indices = _read_indices(places, self._read)
            self.table = SampleTable.of(indices)
            self._stamps = {number: index.present for number, index in enumerate(indices)}
        self._rows = self._rows_of(dataset.language)
        self.num_samples = len(self.table) if self._rows is None else len(self._rows)
        if not self.num_samples:
            held = ", ".join(map(repr, self.table.languages)) or "none"
            raise DataError(f"{dataset.shards} holds no sample in language {dataset.language!r}. Its languages are: {held}.")

    def _check_sizes(self) -> None:
        """A local shard that is gone or cut is an error at the start; other changes are, when it is first read."""
        for where, stamp in self.table.shards:
            if not is_remote(where) and open_source(where, self._read).num_bytes() != stamp.num_bytes:
                check_unchanged(open_source(where, self._read), stamp, [])

    def _rows_of(self, language: str | None) -> NDArray[np.uint32] | None:
        """Rows of the table that are in the data set; None for all."""
        if language is None:
            return None
        # an index of another tool's may have names for codes
        wanted = short_language(language)
        numbers = [number for number, held in enumerate(self.table.languages) if short_language(held) == wanted]
        if len(numbers) == len(self.table.languages):
            return None
        return np.flatnonzero(np.isin(self.table.columns["language"], numbers)).astype(np.uint32)

    def column(self, name: str) -> NDArray[Any]:
        """A column of the table, of the data set's samples alone."""
        values = self.table.columns[name]
        return values if self._rows is None else values[self._rows]

    def row(self, index: int) -> int:
        """The table's row of the data set's sample number `index`."""
        return index if self._rows is None else int(self._rows[index])

    def ref(self, index: int, *counter: int) -> SampleRef:
        """Make the reference to load a sample by. Raises `DataError` if its shard has changed since it was indexed."""
        row = self.row(index)
        shard = self.table.shard_of(row)
        where, stamp = self.table.shards[shard]
        if shard not in self._stamps:
            self._stamps[shard] = check_unchanged(open_source(where, self._read), stamp, self.table.shard_entries(shard))
        entry, dataset = self.table.entry(row), self.dataset
        name = entry_name(entry, stamp, self._written(entry.language)) if self._named else None
        return SampleRef(
            where, entry, dataset.text_normalization, counter, name, self._stamps[shard], dataset.instruction, dataset.name
        )

    def cache_groups(self) -> set[str]:
        """The groups of the feature cache that the data set's samples belong to."""
        languages = self.table.languages
        by_shard = np.split(self.column("language"), self._shard_ends()[:-1])
        return {
            group_name(stamp, languages[number], self._written(languages[number]))
            for (_, stamp), numbers in zip(self.table.shards, by_shard, strict=True)
            for number in np.unique(numbers)
        }

    def _written(self, language: str) -> str:
        """The way in which texts of a language are written, for the names of samples in the feature cache."""
        normalization = self.dataset.text_normalization
        return normalization if normalization == "none" else f"{normalization}: {normaliser_of(language)}"

    def _shard_ends(self) -> NDArray[Any]:
        """One past the last sample of each shard, of the data set's samples alone."""
        ends = self.table.columns["shard_end"]
        return ends if self._rows is None else np.searchsorted(self._rows, ends)

    def entry(self, index: int) -> SampleEntry:
        """One sample, as its index lists it."""
        return self.table.entry(self.row(index))

    def lengths(self, *, longest_factor: float = 1.0) -> DatasetLengths:
        """The lengths that the schedule needs. Samples may become `longest_factor` times longer."""
        seconds, ends = self.table.seconds, self._shard_ends()
        if self._rows is not None:
            seconds = seconds[self._rows]
        starts = np.unique(np.append(0, ends[ends < len(seconds)])).astype(np.int64)
        seconds = seconds if longest_factor == 1 else seconds * np.float32(longest_factor)
        return DatasetLengths(seconds, starts, self.dataset.weight)
