"""A cache within a folder that holds other things: what isn't the cache's own is never removed."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from kappaspeech.errors import DataError
from kappaspeech.speech import block_cache
from kappaspeech.speech.block_cache import CachedSource
from kappaspeech.speech.cache_folder import MARKER_NAME, CacheFolder
from kappaspeech.speech.feature_cache import FeatureCache, FeatureCacheOptions
from kappaspeech.speech.source import ReadOptions

BLOCK = 1000
CONTENT = bytes(range(256)) * 64


@dataclass
class Far:
    """A remote file that counts how often it is read."""

    where: str = "http://far/x.tar"
    content: bytes = CONTENT
    num_reads: int = 0

    def num_bytes(self) -> int:
        return len(self.content)

    def stamp(self) -> str:
        return "1"

    def read(self, offset: int, size: int) -> bytes:
        self.num_reads += 1
        return self.content[offset : offset + size]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(block_cache, "_BLOCK_BYTES", BLOCK)
    monkeypatch.setattr(block_cache, "_PAGE_BYTES", 100)


def cached(far: Far, folder: Path | str, *, limit: int) -> CachedSource:
    return CachedSource(far, ReadOptions(cache_dir=str(folder), cache_bytes=limit))


def kept(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.block"))


def test_a_users_files_in_the_cache_folder_outlive_a_cache_that_is_full(tmp_path):
    mine = [tmp_path / "results/wer.json", tmp_path / "a/b/c.states", tmp_path / "x/00000000.block"]
    for path in mine:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 5000)
        os.utime(path, (0, 0))
    source = cached(Far(), tmp_path, limit=3 * BLOCK)
    assert source.read(0, len(CONTENT)) == CONTENT
    assert 0 < len(kept(tmp_path / "kappaspeech-blocks")) <= 3
    assert all(path.stat().st_size == 5000 for path in mine)
    inside = tmp_path / "kappaspeech-blocks/notes/mine.txt"
    inside.parent.mkdir()
    inside.write_text("kept too")
    source.read(0, len(CONTENT))
    assert inside.exists()


def test_the_home_folder_is_what_a_tilde_means(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    cached(Far(), "~/cache", limit=1 << 20).read(0, 10)
    assert kept(tmp_path / "cache")
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize(
    ("kind", "use"),
    [
        ("kappaspeech-blocks", lambda folder: cached(Far(), folder, limit=1 << 20).read(0, 10)),
        ("kappaspeech-states", lambda folder: FeatureCache(FeatureCacheOptions(str(folder), "n", 1 << 20))),
    ],
)
def test_a_folder_of_the_caches_name_that_is_a_users_is_refused(tmp_path, kind, use):
    (tmp_path / kind).mkdir()
    (tmp_path / kind / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match=f"{kind} .*{MARKER_NAME}.*Name another"):
        use(tmp_path)


def test_keeping_a_block_looks_at_the_others_only_when_the_cache_is_full(tmp_path, monkeypatch):
    looks = []
    look = CacheFolder.entries
    monkeypatch.setattr(CacheFolder, "entries", lambda self: looks.append(1) or look(self))
    source = cached(Far(content=CONTENT * 10), tmp_path, limit=100 * 1040)
    for begin in range(0, 90 * BLOCK, BLOCK):
        source.read(begin, 10)
    assert len(kept(tmp_path)) == 90
    assert len(looks) <= 1
    for begin in range(90 * BLOCK, 160 * BLOCK, BLOCK):
        source.read(begin, 10)
    # an emptied sixteenth holds six blocks
    assert len(looks) <= 2 + 60 // 6
    assert 90 <= len(kept(tmp_path)) <= 100


def test_two_caches_of_one_folder_keep_the_limit_together(tmp_path):
    sources = [cached(Far(f"http://far/{number}.tar"), tmp_path, limit=8 * BLOCK) for number in range(4)]
    for begin in range(0, len(CONTENT) - BLOCK, BLOCK):
        for source in sources:
            source.read(begin, 10)
        assert sum(path.stat().st_size for path in kept(tmp_path)) <= 8 * BLOCK


def test_a_damaged_block_is_fetched_again_and_its_other_pages_are_used(tmp_path):
    far = Far()
    source = cached(far, tmp_path, limit=1 << 20)
    source.read(0, BLOCK)
    (path,) = kept(tmp_path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert source.read(0, 900) == CONTENT[:900]
    assert far.num_reads == 1
    assert source.read(950, 50) == CONTENT[950:BLOCK]
    assert far.num_reads == 2
    assert source.read(0, BLOCK) == CONTENT[:BLOCK]
    assert far.num_reads == 2


def test_what_a_killed_process_left_half_written_is_removed_once_it_is_old(tmp_path):
    source = cached(Far(), tmp_path, limit=2 * BLOCK)
    source.read(0, 10)
    leftover, fresh = (kept(tmp_path)[0].with_name(name) for name in (".a.tmp", ".b.tmp"))
    leftover.write_bytes(b"x")
    fresh.write_bytes(b"x")
    os.utime(leftover, (time.time() - 3600,) * 2)
    source.read(0, 5 * BLOCK)
    assert not leftover.exists()
    assert fresh.exists()


def test_a_block_says_that_it_was_used_and_not_for_each_of_many_readings(tmp_path):
    source = cached(Far(), tmp_path, limit=1 << 20)
    source.read(0, 10)
    (path,) = kept(tmp_path)
    for long_ago in (time.time() - 3600, time.time() + 3600):
        os.utime(path, (long_ago, long_ago))
        source.read(0, 10)
        assert abs(path.stat().st_mtime - time.time()) < 600
    # a moment ago, told apart from any other
    moment = time.time_ns() // 1000 * 1000 + 7
    os.utime(path, ns=(moment, moment))
    source.read(20, 10)
    if time.time_ns() - moment < 4e8:
        assert path.stat().st_mtime_ns == moment
