"""Tarred data sets of NVIDIA NeMo: `audio_0.tar` and so on, with manifests whose lines say in which of them a recording lies."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from kappaspeech.errors import DataError
from kappaspeech.speech.manifests import is_manifest, read_entries
from kappaspeech.speech.recordings import Recording, Request, TarMember
from kappaspeech.speech.tar_members import list_members
from kappaspeech.speech.text_files import parse_object

_WHOLE_NAME, _SHARDED_NAME = "tarred_audio_manifest.json", "sharded_manifests"
_TAR = re.compile(r"audio[^/]*?_(\d+)[^/]*\.tar")
_MANIFEST = re.compile(r"manifest[^/]*?_(\d+)[^/]*\.jsonl?")
# the parts of one file, which lies in the tar once
_PART = re.compile(r"-sub\d+(?=(\.\w+)?$)")
_LONGEST_LINE_BYTES = 1 << 20
_MOST_DIGITS = 9


def is_nemo_tars(source: Path) -> bool:
    if source.is_file():
        return is_manifest(source) and _names_shards(source) and bool(_find_tars(source))
    return bool(_find_tars(source) and _list_manifests(source))


def read_nemo_tars(source: Path, request: Request) -> Iterator[Recording]:
    """Read a folder of tars and their manifests, or one of these: lines as in any manifest of NeMo, and `shard_id`, which the
    name of a manifest of one tar may say instead. Of a line with an offset a part is packed; one with `_skipme` is left out.
    """
    if request.split is not None:
        raise DataError(f"{source} is a tarred data set, which has no splits: leave out --split.")
    tars = _Tars(_number_tars(source), request)
    for path in [source] if source.is_file() else _list_manifests(source):
        named = _MANIFEST.fullmatch(path.name)
        shard = named[1] if named else None
        place = partial(tars.place, manifest=path, shard=shard)
        yield from read_entries(path, request, place, tag=f"{shard}-" if shard else "")


def list_nemo_files(source: Path) -> list[Path]:
    """The manifests that `read_nemo_tars` reads, and all tars."""
    return [*([source] if source.is_file() else _list_manifests(source)), *(path for _, path in _find_tars(source))]


class _Tars:
    """The tars of a data set by their numbers, each listed when it is first asked for."""

    def __init__(self, paths: dict[int, Path], request: Request) -> None:
        self._paths = paths
        self._request = request
        self._members: dict[int, dict[str, tuple[int, int]]] = {}

    def place(
        self, recording: Recording, audio: str, entry: dict[str, Any], *, manifest: Path, shard: str | None
    ) -> Recording | None:
        """The recording in its tar; None if it is to be skipped. Raises `DataError`."""
        if entry.get("_skipme"):
            return None
        named = str(entry.get("shard_id", shard))
        number = int(named) if named.isdecimal() and len(named) <= _MOST_DIGITS else -1
        if number not in self._paths:
            message = f"{manifest}: {audio} is to lie in the tar of shard_id {named[:_MOST_DIGITS]}, and there is none."
            return self._request.judge(recording, ("missing", f"no tar of shard_id {named[:_MOST_DIGITS]}"), message)
        tar = self._paths[number]
        if number not in self._members:
            self._members[number] = list_members(tar)
        members = self._members[number]
        name = next((name for name in (audio, _PART.sub("", audio)) if name in members), None)
        if name is None:
            message = f"{manifest}: {audio} isn't in {tar}."
            return self._request.judge(recording, ("missing", f"not in {tar.name}"), message)
        return replace(recording, path=tar, member=TarMember(name, *members[name]))


def _find_tars(source: Path) -> list[tuple[int, Path]]:
    folder = source
    if source.is_file():
        folder = source.parent.parent if source.parent.name == _SHARDED_NAME else source.parent
    named = ((_TAR.fullmatch(path.name), path) for path in sorted(folder.glob("audio*.tar")))
    return [(int(match[1]), path) for match, path in named if match is not None]


def _number_tars(source: Path) -> dict[int, Path]:
    """The tars by their numbers. Raises `DataError` if two have the same: one may hold other recordings of the same names."""
    tars: dict[int, Path] = {}
    for number, path in _find_tars(source):
        if tars.setdefault(number, path) is not path:
            raise DataError(f"{path} and {tars[number].name} both have the number {number}: move one of them away.")
    return tars


def _list_manifests(folder: Path) -> list[Path]:
    if (folder / _WHOLE_NAME).exists():
        return [folder / _WHOLE_NAME]
    for place in (folder / _SHARDED_NAME, folder):
        named = ((_MANIFEST.fullmatch(path.name), path) for path in place.glob("manifest*.json*"))
        found = sorted((int(match[1]), path) for match, path in named if match is not None)
        if found:
            return [path for _, path in found]
    return []


def _names_shards(manifest: Path) -> bool:
    """Return whether the manifest is one of tars."""
    if _MANIFEST.fullmatch(manifest.name) and manifest.parent.name == _SHARDED_NAME:
        return True
    try:
        with manifest.open("rb") as file:
            return "shard_id" in parse_object(file.readline(_LONGEST_LINE_BYTES))
    except (OSError, ValueError):
        return False
