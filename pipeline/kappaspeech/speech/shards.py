"""Indexed tar shards: what lies where, so that any sample is one ranged read away.

Conventions accepted: audio `flac wav mp3 opus ogg`; text in `txt`, else in a json's `text`, `transcript`, `transcription`,
`sentence`, `normalized_text` or `raw_text`; language in a json's `language`, `lang`, `locale`, `target_lang` or `source_lang`.
"""

from __future__ import annotations

import glob
import hashlib
import os
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from kappaspeech.artefacts import write_json
from kappaspeech.errors import DataError
from kappaspeech.outside import describe
from kappaspeech.speech.listings import Listing
from kappaspeech.speech.patterns import beside, expand_braces, shard_name
from kappaspeech.speech.ranges import read_many
from kappaspeech.speech.recordings import LONGEST_SECONDS
from kappaspeech.speech.source import ReadOptions, Source, is_remote
from kappaspeech.speech.sources import open_source
from kappaspeech.speech.tar_members import HEADER_BYTES, escape_name
from kappaspeech.speech.text_files import TEXT_KEYS, check_unicode, find_text, parse_object

INDEX_SUFFIX = ".index.json"
_SCHEMA_VERSION = 2
# A sample takes about 200 bytes; lists of as many samples as this holds are merged indices.
_MAX_INDEX_BYTES = 256 << 20
_DIGEST_BYTES = 8
_NO_DIGEST = "00" * _DIGEST_BYTES
# Samples of a remote shard that are looked at before any is read.
_NUM_SPREAD = 4
_OTHER_SAMPLES = "holds other samples than"


@dataclass(frozen=True)
class SampleEntry:
    """Byte offsets of a sample's members in its shard, and the values that the schedule needs. With a `listing` there is no
    member of text. `head_digest` is that of `digest_head`; 0 if the index is of a version that noted none."""

    key: str
    seconds: float
    language: str
    audio_offset: int
    audio_bytes: int
    text_offset: int
    text_bytes: int
    text_is_json: bool
    listing: Listing | None = None
    head_digest: int = 0


# a row of an index beside its shard
_INDEXED = [field.name for field in fields(SampleEntry) if field.name not in ("listing", "head_digest")]


@dataclass(frozen=True)
class ShardStamp:
    """Identity of a shard when it was indexed: its size, its modification time or ETag, and a digest of its samples' heads."""

    num_bytes: int
    stamp: str
    digest: str


@dataclass(frozen=True)
class ShardIndex:
    """One shard: its path or URL, what it was when it was indexed, its samples in the order of the tar, and its modification time
    or ETag when it was last looked at."""

    where: str
    stamp: ShardStamp
    samples: tuple[SampleEntry, ...]
    present: str = ""


def expand(pattern: str, options: ReadOptions | None = None) -> list[str]:
    """Shards of a path, URL, glob or brace list, sorted. Raises `DataError` if there is none, or for what can't be read."""
    found: list[str] = []
    for part in expand_braces(pattern):
        if is_remote(part):
            from kappaspeech.speech.remote import expand_remote

            matches = expand_remote(part, options or ReadOptions())
        else:
            try:
                matches = sorted(glob.glob(os.path.expanduser(part)))
            except ValueError as error:
                raise DataError(f"{part!r} can't be a path: {error}.") from error
        if not matches:
            raise DataError(f"No shard matches {part!r} (working folder {Path.cwd()}). Make some with `kappaspeech pack`.")
        found += matches
    wrong = [where for where in found if not shard_name(where).endswith(".tar")]
    if wrong:
        raise DataError(f"{wrong[0]} isn't named .tar. A compressed tar can't be read at random: unpack it with gunzip first.")
    return found


# ---- an index beside its shard ----------------------------------------------------------------------------------------


def read_index(where: str, options: ReadOptions | None = None) -> ShardIndex:
    """The index beside a shard, checked against the shard. Raises `DataError` if it is missing or the shard has changed."""
    options = options or ReadOptions()
    content = _read_beside(where, options)
    try:
        stamp = ShardStamp(int(content["num_bytes"]), str(content["stamp"]), str(content["digest"]))
        heads = content.get("heads") or [_NO_DIGEST] * len(content["samples"])
        rows = zip(content["samples"], heads, strict=True)
        samples = tuple(_parse_entry(dict(zip(_INDEXED, row, strict=True)), head, stamp.num_bytes) for row, head in rows)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"The index of {where} can't be understood ({describe(error)}). {_again(where)}") from error
    return ShardIndex(where, stamp, samples, check_unchanged(open_source(where, options), stamp, samples))


def _parse_entry(row: dict[str, Any], head: str, num_bytes: int) -> SampleEntry:
    """A row of an index. Raises `ValueError` if it isn't of the right types, or names bytes that the shard doesn't have."""
    for name, kind in (("key", str), ("language", str), ("seconds", (int, float)), ("text_is_json", bool)):
        if not isinstance(row[name], kind):
            raise ValueError(f"{name} is {row[name]!r}")
    for part in ("audio", "text"):
        offset, size = row[f"{part}_offset"], row[f"{part}_bytes"]
        if type(offset) is not int or type(size) is not int or not 0 <= size <= num_bytes - offset or offset < HEADER_BYTES:
            raise ValueError(f"{part} lies at byte {offset!r} and has {size!r}, in a shard of {num_bytes}")
    check_unicode(row["key"])
    digest = _to_integer(bytes.fromhex(head))
    return SampleEntry(**{**row, "seconds": known_seconds(float(row["seconds"]))}, head_digest=digest)


def _read_beside(where: str, options: ReadOptions) -> dict[str, Any]:
    source = open_source(beside(where, INDEX_SUFFIX), options)
    try:
        num_bytes = source.num_bytes()
        if num_bytes > _MAX_INDEX_BYTES:
            raise DataError(f"it has {num_bytes:,} bytes, and at most {_MAX_INDEX_BYTES:,} are read")
        content = parse_object(source.read(0, num_bytes))
    except (DataError, EOFError) as error:
        raise DataError(f"{where} has no index beside it that can be read ({str(error).rstrip('.')}). {_again(where)}") from error
    except ValueError as error:
        raise DataError(f"The index of {where} is no JSON ({error}). {_again(where)}") from error
    if content.get("schema_version") != _SCHEMA_VERSION:
        raise DataError(f"The index of {where} is of another version than this program's. {_again(where)}")
    return content


def _again(where: str) -> str:
    return f"Make it with `kappaspeech index {where}{' --output FILE.index' if is_remote(where) else ''}`."


def check_unchanged(source: Source, stamp: ShardStamp, samples: Sequence[SampleEntry]) -> str:
    """The shard's stamp now. Raises `DataError` if it isn't what was indexed; one that was only copied or touched passes."""
    num_bytes, present = source.num_bytes(), source.stamp()
    # a server that tells no version says nothing by telling none again
    is_known = stamp.stamp != "" and present == stamp.stamp
    if num_bytes == stamp.num_bytes and (is_known or _holds(source, stamp, samples)):
        return present
    what = f"has {num_bytes} bytes but had {stamp.num_bytes}" if num_bytes != stamp.num_bytes else _OTHER_SAMPLES
    raise changed(source.where, what)


def changed(where: str, what: str = _OTHER_SAMPLES) -> DataError:
    """The error of a shard that isn't what was indexed."""
    return DataError(
        f"{where} {what} when it was indexed: it is cut or was replaced. Restore it, or index it again with "
        f"`kappaspeech index {where}`."
    )


def _holds(source: Source, stamp: ShardStamp, samples: Sequence[SampleEntry]) -> bool:
    claim = f"{stamp.digest} {[(sample.audio_offset, sample.audio_bytes) for sample in samples]}"
    return source.confirms(claim, lambda: _compare(source, stamp, samples))


def _compare(source: Source, stamp: ShardStamp, samples: Sequence[SampleEntry]) -> bool:
    """Compare a shard with its index: of a remote one whose samples are known one by one, a few now and each when it is read."""
    if not _are_known(samples):
        return digest_heads(source, samples) == stamp.digest
    if _digest_digests(samples) != stamp.digest:
        return False
    last = len(samples) - 1
    spread = {last * place // (_NUM_SPREAD - 1) for place in range(_NUM_SPREAD)}
    chosen = [samples[index] for index in sorted(spread)] if is_remote(source.where) else samples
    heads = zip(read_heads(source, chosen), chosen, strict=True)
    return all(isinstance(head, bytes) and digest_head(head) == sample.head_digest for head, sample in heads)


def _are_known(samples: Sequence[SampleEntry]) -> bool:
    return bool(samples) and all(sample.head_digest for sample in samples)


def stamp_shard(source: Source, num_bytes: int, samples: Sequence[SampleEntry]) -> tuple[ShardStamp, tuple[SampleEntry, ...]]:
    """A shard's stamp, and its samples with their heads' digests. Raises `DataError` or `EOFError` for what can't be read."""
    noted = []
    for head, sample in zip(read_heads(source, samples), samples, strict=True):
        if isinstance(head, Exception):
            raise head
        noted.append(replace(sample, head_digest=digest_head(head)))
    return ShardStamp(num_bytes, source.stamp(), _digest_digests(noted)), tuple(noted)


def digest_heads(source: Source, samples: Sequence[SampleEntry]) -> str:
    """SHA-256 over the heads of samples."""
    total = hashlib.sha256()
    for content in read_heads(source, samples):
        total.update(content if isinstance(content, bytes) else repr(content).encode())
    return total.hexdigest()


def read_heads(source: Source, samples: Sequence[SampleEntry]) -> list[bytes | Exception]:
    """The head of each sample, its tar header and the first bytes of its audio; in place of one that can't be read, its error."""
    return read_many([(source, sample.audio_offset - HEADER_BYTES, head_bytes(sample)) for sample in samples])


def head_bytes(sample: SampleEntry) -> int:
    return HEADER_BYTES + min(HEADER_BYTES, sample.audio_bytes)


def digest_head(head: bytes) -> int:
    """The first 64 bits of SHA-256 over a sample's head, signed; never 0, which stands for none."""
    return _to_integer(hashlib.sha256(head).digest()[:_DIGEST_BYTES]) or 1


def _digest_digests(samples: Sequence[SampleEntry]) -> str:
    return hashlib.sha256(b"".join(map(_digest_of, samples))).hexdigest()


def _digest_of(sample: SampleEntry) -> bytes:
    return sample.head_digest.to_bytes(_DIGEST_BYTES, "big", signed=True)


def _to_integer(digest: bytes) -> int:
    if len(digest) != _DIGEST_BYTES:
        raise ValueError(f"a head's digest has {len(digest)} bytes")
    return int.from_bytes(digest, "big", signed=True)


def write_index(index: ShardIndex) -> Path:
    """Write an index beside its shard. Raises `DataError` for a remote one: that is what a merged index is for."""
    if is_remote(index.where):
        raise DataError(f"Beside {index.where} nothing can be written. Index it into a local file: --output FILE.index.")
    beside = Path(index.where + INDEX_SUFFIX)
    rows = [[getattr(sample, name) for name in _INDEXED] for sample in index.samples]
    stamp = {"num_bytes": index.stamp.num_bytes, "stamp": index.stamp.stamp, "digest": index.stamp.digest}
    heads = {"heads": [_digest_of(sample).hex() for sample in index.samples]} if _are_known(index.samples) else {}
    write_json(beside, {"schema_version": _SCHEMA_VERSION, **stamp, "samples": rows, **heads})
    return beside


def split_name(name: str) -> tuple[str, str]:
    """A member's key and extension, split at the last dot: `spk.1.utt.wav` is the sample `spk.1.utt`."""
    key, _, extension = name.rpartition(".")
    return key.removeprefix("./"), extension.lower()


def check_header(header: bytes, key: str, size: int) -> None:
    """Raise `ValueError` if a tar header isn't that of a member of sample `key` of so many bytes."""
    try:
        member = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except tarfile.TarError as error:
        raise ValueError(f"no tar header comes before it ({error})") from error
    # a name too long for the header stands in a block of its own, before it
    # and so does one that isn't ASCII, whose header has question marks (tarfile's own format, PAX)
    in_header = split_name(escape_name(member.name))[0]
    is_other = in_header not in (key, key.encode("ascii", "replace").decode()) and len(member.name) < 99
    if member.size != size or is_other:
        raise ValueError(f"{member.name} of {member.size} bytes is in its place")


def known_seconds(seconds: float) -> float:
    """A clip's length, 0 for what can't be one: nothing, NaN, weeks."""
    return seconds if 0 < seconds <= LONGEST_SECONDS else 0.0


def parse_transcript(content: bytes, *, is_json: bool) -> str:
    """The transcript in a txt or json member. Raises `ValueError` if there is none."""
    if not is_json:
        return content.decode("utf-8-sig").strip()
    return find_text(parse_object(content), TEXT_KEYS).strip()


def count_hours(shards: Sequence[ShardIndex]) -> dict[str, float]:
    """Hours of audio by language."""
    hours: dict[str, float] = {}
    for shard in shards:
        for sample in shard.samples:
            hours[sample.language] = hours.get(sample.language, 0.0) + sample.seconds / 3600
    return hours
