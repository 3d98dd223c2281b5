from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import time

import pytest

from kappaspeech.speech.cache_claims import CacheClaims
from kappaspeech.speech.cache_folder import CacheFolder
from tests.conftest import clean_environment

HOLDER = """
import sys, time
from kappaspeech.speech.cache_claims import CacheClaims
from kappaspeech.speech.cache_folder import CacheFolder
claims = CacheClaims(CacheFolder(sys.argv[1], "cache", pattern="x"))
claims.make(["killed", "both"])
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def cache(tmp_path):
    folder = CacheFolder(tmp_path, "cache", pattern="x")
    folder.prepare()
    return folder


def claim(cache: CacheFolder, *names: str) -> CacheClaims:
    claims = CacheClaims(cache)
    claims.make(names)
    return claims


def test_a_claim_is_seen_by_others_while_its_maker_lives_and_by_itself(cache):
    first, second = claim(cache, "a", "b"), claim(cache, "b", "c")
    # all ranks of a run claim the same
    again = claim(cache, "b", "a")
    assert first.read() == second.read() == again.read() == {"a", "b", "c"}
    del first
    assert second.read() == {"a", "b", "c"}
    del again
    assert second.read() == {"b", "c"}
    assert len(list((cache.path / "claims").iterdir())) == 1


def test_a_claim_of_a_process_that_was_killed_is_over(cache):
    command = [sys.executable, "-c", HOLDER, str(cache.path.parent)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, env=clean_environment())
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        own = claim(cache, "own", "both")
        assert own.read() == {"own", "both", "killed"}
    finally:
        holder.kill()
        holder.communicate()
    assert own.read() == {"own", "both"}


def test_without_locks_a_claim_counts_for_a_day(cache, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    claim(cache, "ended")
    own = claim(cache, "own")
    assert own.read() == {"own", "ended"}
    for path in (cache.path / "claims").iterdir():
        os.utime(path, (time.time() - 90_000,) * 2)
    assert own.read() == {"own"}
    # a start with the same data claims anew
    os.utime(next((cache.path / "claims").iterdir()), (0, 0))
    claim(cache, "own")
    assert claim(cache, "other").read() == {"own", "other"}


def test_what_cannot_be_read_is_told_and_what_is_half_written_is_no_claim(cache):
    own = claim(cache, "own")
    (cache.path / "claims/.half.tmp").write_text("half")
    assert own.read() == {"own"}
    (cache.path / "claims/folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        own.read()
