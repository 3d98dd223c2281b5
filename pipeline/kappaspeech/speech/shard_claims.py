"""Claims on shards: a file beside each shard names the corpus and the recordings that it was made from."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from kappaspeech.artefacts import digest_json, write_json
from kappaspeech.errors import DataError
from kappaspeech.speech.languages import short_language
from kappaspeech.speech.recordings import Recording
from kappaspeech.speech.regular_files import is_regular
from kappaspeech.speech.shards import INDEX_SUFFIX, ShardIndex, read_index
from kappaspeech.speech.text_files import parse_object

SOURCE_SUFFIX = ".source.json"


def corpus_of(recordings: Iterable[Recording]) -> str:
    """The corpus of recordings, as a claim names it."""
    return " + ".join(sorted({recording.corpus for recording in recordings}))


def refuse_others(paths: Sequence[Path], recordings: Sequence[Recording], finished: Iterable[Path]) -> None:
    """Raise `DataError` if one of `paths` is there and is neither `finished` nor of the same corpus."""
    done, corpus = set(finished), corpus_of(recordings)
    keys = {recording.key for recording in recordings}
    others = [path for path in paths if path.exists() and path not in done and not _is_of(path, corpus, keys)]
    if others:
        theirs = read_claim(others[0]).get("corpus")
        raise DataError(
            f"{len(others)} shard(s) of another corpus lie where those of {corpus} would go: {others[0]} is of "
            f"{theirs or 'an unknown one'}. Pack into another folder, put a name before the new ones with --prefix NAME, or "
            f"remove the old ones with their {INDEX_SUFFIX} and {SOURCE_SUFFIX}."
        )


def _is_of(path: Path, corpus: str, keys: set[str]) -> bool:
    claim = read_claim(path)
    if "corpus" in claim or "digest" not in claim:
        return claim.get("corpus") == corpus
    # the claims of earlier versions name no corpus
    with contextlib.suppress(DataError):
        return all(sample.key in keys for sample in read_index(str(path)).samples)
    return False


def find_stale(planned: Sequence[Path], corpus: str) -> list[Path]:
    """Shards of the same corpus, prefix and languages as those that are `planned`, and none of them: cut otherwise before."""
    stems = {_stem(path) for path in planned}
    others = {other for path in planned[:1] for other in path.parent.glob("*.tar")} - set(planned)
    alike = [other for other in others if not stems.isdisjoint((_stem(other), _short_stem(other)))]
    return sorted(other for other in alike if corpus and read_claim(other).get("corpus") == corpus)


def _stem(path: Path) -> str:
    return re.sub(r"-\d{6,}\.tar$", "", path.name)


def _short_stem(path: Path) -> str:
    """The stem that a shard would have today: versions that didn't know a language's longer code kept it."""
    prefix, dash, language = _stem(path).rpartition("-")
    return f"{prefix}{dash}{short_language(language)}"


def remove_shard(path: Path) -> None:
    """A shard with the files beside it."""
    for suffix in ("", INDEX_SUFFIX, SOURCE_SUFFIX):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def read_claim(path: Path) -> dict[str, Any]:
    """Read the claim beside a shard; empty if it can't be read."""
    try:
        return parse_object(path.with_name(path.name + SOURCE_SUFFIX).read_bytes())
    except (OSError, ValueError):
        return {}


def write_claim(path: Path, corpus: str, *, digest: str | None = None, rejected: dict[str, str] | None = None) -> None:
    """Claim a shard that is about to be made, or with its `digest` say that shard and index are whole."""
    write_json(path.with_name(path.name + SOURCE_SUFFIX), {"corpus": corpus, "digest": digest, "rejected": rejected or {}})


def source_digest(part: Sequence[Recording], max_seconds: float | None) -> str:
    """A digest of a shard's sources: transcripts, and size and time of files."""
    states = {path: _state_of(path, is_dataset=is_dataset) for path, is_dataset in {(r.path, r.row is not None) for r in part}}
    sources = [
        [
            *(r.key, r.transcript, r.begin_seconds, r.seconds, r.row, *states[r.path]),
            *filter(None, (r.listed_seconds, r.fault, r.member and [r.member.offset, r.member.num_bytes])),
        ]
        for r in part
    ]
    return digest_json([sources, max_seconds])


def _state_of(path: Path, *, is_dataset: bool) -> tuple[int, int] | tuple[()]:
    """Size and time of a file, or of the files in a data set's folder, whose own time stays if they are written over; nothing of
    what isn't there."""
    files = [path] if is_regular(path) else sorted(filter(is_regular, path.iterdir())) if is_dataset else []
    states = [file.stat() for file in files]
    return (sum(state.st_size for state in states), max(int(state.st_mtime) for state in states)) if states else ()


def is_finished(path: Path, part: Sequence[Recording], max_seconds: float | None) -> bool:
    """Return whether an earlier call made the shard from the same recordings."""
    if not (path.exists() and path.with_name(path.name + INDEX_SUFFIX).exists()):
        return False
    claim = read_claim(path)
    is_whole = claim.get("digest") is not None and isinstance(claim.get("rejected"), dict)
    return is_whole and claim["digest"] == source_digest(part, max_seconds)


def read_finished(folder: Path) -> list[tuple[ShardIndex, dict[str, str]]]:
    """Every shard in a folder that was packed whole and still is, with what was left out of it."""
    found = []
    for path in sorted(folder.glob("*.tar")):
        claim = read_claim(path)
        if claim.get("digest") and isinstance(claim.get("rejected"), dict):
            with contextlib.suppress(DataError):
                found.append((read_index(str(path)), claim["rejected"]))
    return found
