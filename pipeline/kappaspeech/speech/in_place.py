"""NeMo's tarred data sets and Lhotse Shar, trained on where they lie: their lists are read once, into an index that is kept."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import os
import re
import secrets
from collections.abc import Sequence
from pathlib import Path

from kappaspeech.artefacts import digest_json
from kappaspeech.errors import DataError
from kappaspeech.outputs import sweep
from kappaspeech.speech.languages import UnnamedLanguageError, normalise_language
from kappaspeech.speech.layouts import find_recordings
from kappaspeech.speech.listings import Listing
from kappaspeech.speech.nemo_tars import is_nemo_tars, list_nemo_files
from kappaspeech.speech.patterns import shard_name
from kappaspeech.speech.recordings import Recording
from kappaspeech.speech.shar import is_shar, list_shar_files
from kappaspeech.speech.shard_indexing import read_duration
from kappaspeech.speech.shards import SampleEntry, ShardIndex, ShardStamp, digest_heads, known_seconds, split_name
from kappaspeech.speech.source import ReadOptions, is_remote
from kappaspeech.speech.sources import open_source
from kappaspeech.speech.table import MERGED_SUFFIX, SampleTable, read_merged, write_merged

_INDEX_NAME = "kappaspeech-in-place"
_FOLDER_NAME = "kappaspeech-indices"
# Of a part all of its file is read and decoded.
_LARGEST_CUT_BYTES = 32 << 20
# Counted up when lists are read by other rules: what an earlier version kept is made anew, by these.
_RULES = 1
# A temporary file that hasn't grown for so long is of a writer that was killed; another rank's may be younger.
_LEFTOVER_SECONDS = 600.0


def is_in_place(where: str) -> bool:
    """Return whether `where` is a folder or a manifest of a data set in tars that is read where it lies."""
    if is_remote(where) or shard_name(where).endswith((".tar", MERGED_SUFFIX)):
        return False
    source = Path(where).expanduser()
    try:
        return is_nemo_tars(source) or (source.is_dir() and is_shar(source))
    except (OSError, ValueError):
        return False


def open_in_place(where: str, *, language: str | None = None, read: ReadOptions | None = None) -> SampleTable:
    """The samples of a data set, by the index that was kept if the data set is as it was, else by a new one.

    `language` is that of samples that name none. The index is kept beside the data set, or where nothing can be written there
    in the cache folder of `read`, or nowhere. Raises `DataError`.
    """
    source, read = Path(where).expanduser(), read or ReadOptions()
    if (found := find_kept(where, language=language, read=read)) is not None:
        return found[1]
    try:
        table, places = index_in_place(where), _places_of(source, None, read)
    except UnnamedLanguageError as error:
        if language is None:
            raise DataError(f"{error} Of a set in data.train or data.test it is the set's language.") from error
        table, places = index_in_place(where, language=language), _places_of(source, _short(language), read)
    for place in places:
        with contextlib.suppress(OSError):
            return _keep(table, place, source)
    return table


def find_kept(where: str, *, language: str | None = None, read: ReadOptions | None = None) -> tuple[Path, SampleTable] | None:
    """The index that is kept of a data set as it is now, and its place. Raises `DataError` if the data set can't be read."""
    source, read = Path(where).expanduser(), read or ReadOptions()
    state = _state_of(source)
    # one index for all languages, if each sample names its own
    names = [None, *([_short(language), *_former(language)] if language else ())]
    for place in (place for name in names for place in _places_of(source, name, read)):
        if (kept := _read_kept(place, source, state)) is not None:
            return place, kept
    return None


def _keep(table: SampleTable, place: Path, source: Path) -> SampleTable:
    """Keep an index at `place`, unless another rank, of this host or another, has kept it meanwhile: that one is returned, and
    stays, as others may have it mapped. Raises `OSError`."""
    # what a link leads to is replaced, not the link
    place = Path(os.path.realpath(place))
    if (kept := _read_kept(place, source, table.source)) is not None:
        return kept
    place.parent.mkdir(parents=True, exist_ok=True)
    sweep(place.parent, place.name, least_seconds=_LEFTOVER_SECONDS)
    if place.is_file():
        _remove_stale(place, source, table.source)
    try:
        write_merged(table, place, is_new=True)
    except FileExistsError:
        if (kept := _read_kept(place, source, table.source)) is None:
            raise
        return kept
    return table


def _remove_stale(place: Path, source: Path, state: str) -> None:
    """Remove the index of another state at `place`, and no right one that has come there since it was read."""
    aside = place.with_name(f".{place.name}.{secrets.token_hex(4)}.tmp")
    with contextlib.suppress(FileNotFoundError), contextlib.ExitStack() as opened:
        # nobody sweeps what is locked
        with contextlib.suppress(OSError):
            fcntl.flock(opened.enter_context(place.open("rb")), fcntl.LOCK_SH | fcntl.LOCK_NB)
        place.rename(aside)
        if _read_kept(aside, source, state) is not None and not place.exists():
            aside.rename(place)
        else:
            aside.unlink()


def index_in_place(where: str, *, language: str | None = None) -> SampleTable:
    """Index a data set: each sample's place in its tar, length, text and language. Raises `DataError`, also for what it lists
    and lacks."""
    source = Path(where).expanduser()
    # before it is read: what changes meanwhile is read again
    state = _state_of(source)
    layout = "nemo-tars" if is_nemo_tars(source) else "shar"
    recordings = sorted(find_recordings(source, layout=layout, default_language=language), key=_place_of)
    by_tar = itertools.groupby(recordings, key=lambda recording: recording.path)
    return SampleTable.of([_index_tar(tar, list(part)) for tar, part in by_tar], source=state)


def _place_of(recording: Recording) -> tuple[str, int, float, str]:
    assert recording.member is not None
    return str(recording.path), recording.member.offset, recording.begin_seconds, recording.key


def _index_tar(tar: Path, recordings: Sequence[Recording]) -> ShardIndex:
    source = open_source(str(tar), ReadOptions())
    samples = [_enter(recording) for recording in recordings]
    return ShardIndex(str(tar), ShardStamp(source.num_bytes(), source.stamp(), digest_heads(source, samples)), tuple(samples))


def _enter(recording: Recording) -> SampleEntry:
    """A recording of a tar as a sample. Raises `DataError`."""
    member = recording.member
    assert member is not None
    if not recording.is_whole and member.num_bytes > _LARGEST_CUT_BYTES:
        raise DataError(
            f"{recording.name} has {member.num_bytes >> 20} MB, which would be read anew for each part of it that is listed: "
            "make shards of this data set with `kappaspeech pack`."
        )
    seconds = recording.listed_seconds if recording.is_whole else recording.seconds
    if not seconds:
        seconds = _measure(recording) - recording.begin_seconds
    listing = Listing(split_name(member.name)[0], recording.transcript, recording.begin_seconds, recording.seconds)
    place = (member.offset, member.num_bytes)
    return SampleEntry(
        recording.key, known_seconds(seconds), recording.language, *place, 0, 0, text_is_json=False, listing=listing
    )


def _measure(recording: Recording) -> float:
    try:
        content = recording.read()
    except OSError as error:
        raise DataError(f"{recording.name} can't be read: {error}.") from error
    return read_duration(str(recording.path), recording.key, content)


def _files_of(source: Path) -> list[Path]:
    return (list_nemo_files if is_nemo_tars(source) else list_shar_files)(source)


def _state_of(source: Path) -> str:
    """A digest of the sizes and times of a data set's files, and of the rules by which they are read."""
    try:
        states = [(path, path.stat()) for path in _files_of(source)]
    except OSError as error:
        raise DataError(f"{source} can't be read: {error}.") from error
    return digest_json([_RULES, *([path.name, status.st_size, status.st_mtime_ns] for path, status in states)])


def _short(language: str) -> str:
    return normalise_language(language, where="language")


def _former(language: str) -> list[str]:
    """The code by which an earlier version, which didn't know it, may have kept an index: runs go on with that."""
    word = re.split("[-_]", language.strip().lower())[0]
    return [word] if re.fullmatch("[a-z]{3}", word) and word != _short(language) else []


def _places_of(source: Path, short: str | None, read: ReadOptions) -> list[Path]:
    """The places where an index may be kept, the best first; of samples of which none names a language it is `short`."""
    name = f"{'-'.join(filter(None, (_INDEX_NAME, short)))}{MERGED_SUFFIX}"
    places = [source / name if source.is_dir() else source.with_name(f"{source.name}.{name}")]
    if read.cache_dir is not None:
        folder = hashlib.sha256(str(source.resolve()).encode("utf-8", "surrogateescape")).hexdigest()[:32]
        places.append(Path(read.cache_dir).expanduser() / _FOLDER_NAME / folder / name)
    return places


def _read_kept(place: Path, source: Path, state: str) -> SampleTable | None:
    """The index at `place`, if it is of this data set in this state: one that came with a data set may name any file or URL."""
    try:
        kept = read_merged(place)
        if kept.source != state or any(is_remote(where) for where, *_ in kept.shards):
            return None
        own = {path.resolve() for path in _files_of(source)}
        return kept if all(Path(where).resolve() in own for where, *_ in kept.shards) else None
    except (DataError, OSError, ValueError):
        return None
