"""Tar headers: read as tarfile reads them, and believed no further than the file goes."""

from __future__ import annotations

import io
import json
import tarfile
import time
from pathlib import Path

import pytest

from kappaspeech.errors import DataError
from kappaspeech.speech.corpus import SpeechDataset
from kappaspeech.speech.held_out import read_test_batches
from kappaspeech.speech.shard_indexing import index_shard
from kappaspeech.speech.shards import check_header, write_index
from kappaspeech.speech.table import SampleTable, read_merged, write_merged
from kappaspeech.speech.tar_members import read_members
from tests.patience import patience
from tests.speech_files import clip, details, make_tar

LONG = "x" * 90 + "/" + "y" * 120
MEMBERS = [("a.flac", clip(0.5)), ("a.json", details(text="x", language="en", duration=0.5))]


def make(path: Path, members, *, form: int = tarfile.GNU_FORMAT, **headers) -> Path:
    """A tar whose first member has these PAX headers."""
    with tarfile.open(path, "w", format=form, encoding="utf-8", errors="surrogateescape") as archive:
        for number, (name, content) in enumerate(members):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            info.pax_headers = headers if number == 0 else {}
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_those_of_tarfile(tmp_path, form):
    names = ["a.flac", "dir/b.flac", "ö" * 20 + ".json", *([] if form == tarfile.USTAR_FORMAT else [LONG])]
    path = make(tmp_path / "x.tar", [(name, bytes([number]) * (511 + number)) for number, name in enumerate(names)], form=form)
    with tarfile.open(path, "a", format=form) as archive:
        for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.FIFOTYPE):
            link = tarfile.TarInfo("other")
            link.type, link.linkname = kind, LONG if form != tarfile.USTAR_FORMAT else "a"
            archive.addfile(link)
        archive.addfile(tarfile.TarInfo("last.txt"))
    with tarfile.open(path) as archive:
        expected = [(member.name, member.offset_data, member.size) for member in archive if member.isfile()]
    with path.open("rb") as file:
        assert list(read_members(file, path.stat().st_size)) == expected


@pytest.mark.parametrize(
    "headers",
    [
        {"size": "-1024"},
        {"size": "-1536"},
        {"size": "abc"},
        {"size": str(2**62)},
        {"GNU.sparse.map": "1,2,x", "GNU.sparse.size": "9"},
        {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "b.flac", "GNU.sparse.realsize": "5"},
    ],
    ids=str,
)
def test_a_header_that_claims_the_impossible_is_refused_at_once(tmp_path, headers):
    path = make(tmp_path / "x.tar", MEMBERS, form=tarfile.PAX_FORMAT, **headers)
    began = time.monotonic()
    with pytest.raises(DataError, match=r"x\.tar is (no tar file|cut)"):
        index_shard(str(path))
    assert time.monotonic() - began < patience(2)


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_a_header_of_gigabytes_takes_no_memory(tmp_path, kind):
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, 12 << 30
    with (tmp_path / "x.tar").open("wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.truncate(512 + (12 << 30) + 4096)
    with pytest.raises(DataError, match=f"of {12 << 30} bytes"):
        index_shard(str(tmp_path / "x.tar"))


@pytest.mark.parametrize("size", [-512, -1024, -(2**20)])
def test_a_negative_size_is_no_loop(tmp_path, size):
    content = bytearray(make(tmp_path / "x.tar", MEMBERS).read_bytes())
    content[124:136] = b"\xff" + size.to_bytes(11, "big", signed=True)
    content[148:156] = b" " * 8
    content[148:156] = f"{sum(content[:512]):06o}\0 ".encode()
    (tmp_path / "x.tar").write_bytes(content)
    with pytest.raises(DataError, match="for its size"):
        index_shard(str(tmp_path / "x.tar"))


def test_what_macos_leaves_in_a_tar_is_passed_over(tmp_path):
    litter = [("./._a.flac", b"\0\5\x16\7"), ("__MACOSX/._a.json", b"x"), ("./.DS_Store", b"x")]
    shard = index_shard(str(make_tar(tmp_path / "x.tar", [*litter, *MEMBERS])))
    assert [sample.key for sample in shard.samples] == ["a"]


def test_a_name_that_is_no_utf8_is_written_out(tmp_path):
    members = [(f"b\udcff{name[1:]}", content) for name, content in MEMBERS]
    shard = index_shard(str(make(tmp_path / "x.tar", members)))
    assert [sample.key for sample in shard.samples] == [r"b\xff"]
    write_index(shard)
    write_merged(SampleTable.of([shard]), tmp_path / "x.index")
    for shards in ("x.tar", "x.index"):
        ((sample,),) = read_test_batches([SpeechDataset(str(tmp_path / shards))], batch_size=1)
        assert sample.key == r"b\xff"


def test_an_index_holds_three_hundred_languages(tmp_path):
    codes = [f"{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(300)]
    content = clip(0.5)
    members = [
        item
        for code in codes
        for item in (
            (f"{code}.flac", content),
            (f"{code}.json", json.dumps({"text": "x", "language": code, "duration": 0.5}).encode()),
        )
    ]
    table = SampleTable.of([index_shard(str(make_tar(tmp_path / "x.tar", members)))])
    write_merged(table, tmp_path / "x.index")
    read = read_merged(tmp_path / "x.index")
    assert [read.entry(row).language for row in range(300)] == codes
    assert read.fingerprint == table.fingerprint


def test_a_format_that_is_not_read_is_named_beside_those_that_are(tmp_path):
    with pytest.raises(DataError, match=r"no audio \(flac, wav, mp3, opus, ogg\); it has m4a, txt"):
        index_shard(str(make_tar(tmp_path / "x.tar", [("a.m4a", b"x"), ("a.txt", b"hello")])), default_language="en")


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_what_is_no_file_is_no_shard(tmp_path, kind):
    import os

    path = tmp_path / "x.tar"
    path.mkdir() if kind == "folder" else os.mkfifo(path)
    with pytest.raises(DataError, match="no regular file"):
        index_shard(str(path))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 0, True, 10**400, 1e300, "3", None])
def test_a_length_that_cannot_be_is_measured(tmp_path, value):
    content = json.dumps({"text": "x", "language": "en", "duration": value}).encode()
    (sample,) = index_shard(str(make_tar(tmp_path / "x.tar", [("a.flac", clip(1.0)), ("a.json", content)]))).samples
    assert sample.seconds == 1.0


@pytest.mark.parametrize("key", ["de/äpfel", "हिन्दी", "plain"])
def test_a_name_that_is_not_ascii_is_known_by_its_header_again(tmp_path, key):
    """webdataset writes tarfile's own format, whose headers have question marks where letters aren't ASCII."""
    from webdataset import TarWriter

    with TarWriter(str(tmp_path / "x.tar")) as writer:
        writer.write({"__key__": key, "txt": b"said"})
    with tarfile.open(tmp_path / "x.tar") as tar:
        (member,) = tar.getmembers()
    content = (tmp_path / "x.tar").read_bytes()
    header = content[member.offset_data - 512 : member.offset_data]
    check_header(header, key, 4)
    with pytest.raises(ValueError, match="is in its place"):
        check_header(header, key + "x", 4)
