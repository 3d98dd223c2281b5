"""Lhotse Shar: folders in the format that it documents, and, where lhotse is installed, folders of its own."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest

from kappaspeech.errors import DataError
from kappaspeech.speech.layouts import find_recordings
from kappaspeech.speech.packing import _cut
from kappaspeech.speech.samples import BadSampleError, decode
from kappaspeech.speech.shar import is_shar
from tests.speech_files import clip, details, make_tar, save, write_shar


def test_cuts_that_lhotse_wrote_are_read(tmp_path):
    lhotse = pytest.importorskip("lhotse", reason="lhotse isn't installed")
    cuts = []
    for number, (language, text) in enumerate((("en", "one"), ("de", "zwei"), (None, "three"))):
        path = tmp_path / f"{number}.flac"
        save(path, clip(2.0, seed=number))
        recording = lhotse.Recording.from_file(path, recording_id=f"rec.{number}")
        segment = lhotse.SupervisionSegment(f"s{number}", recording.id, 0.5, 1.0, text=text, language=language)
        cut = recording.to_cut()
        cut.supervisions = [segment]
        # a part of it, which lhotse cuts as it writes
        cuts.append(cut.truncate(offset=0.5, duration=1.0))
    (tmp_path / "shar").mkdir()
    lhotse.CutSet.from_cuts(cuts).to_shar(tmp_path / "shar", fields={"recording": "flac"}, shard_size=2)
    with pytest.raises(DataError, match="line 1 names no language"):
        find_recordings(tmp_path / "shar")
    found = find_recordings(tmp_path / "shar", language="en")
    assert [item.transcript for item in found] == ["one", "zwei", "three"]
    for number, item in enumerate(found):
        expected = decode(clip(2.0, seed=number))[8_000:24_000]
        np.testing.assert_allclose(_cut(item, None), expected, atol=2**-15)


def test_splits_are_folders(tmp_path):
    for split in ("train", "dev"):
        write_shar(tmp_path / split)
    assert {item.path.parent.name for item in find_recordings(tmp_path)} == {"train"}
    assert {item.path.parent.name for item in find_recordings(tmp_path, split="dev")} == {"dev"}


def rewrite(root, **changes) -> None:
    """The only cut of the second shard, changed."""
    path = root / "cuts.000001.jsonl.gz"
    cut = json.loads(gzip.decompress(path.read_bytes()))
    save(path, gzip.compress(json.dumps({**cut, **changes}).encode()))


def supervision(start: float, duration: float, text: str | None) -> dict[str, object]:
    return {"start": start, "duration": duration, "text": text, "language": "de"}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"id": "gone"}, "has no recording of gone"),
        ({"supervisions": [{"text": None, "language": "de"}]}, "there is no text"),
        ({"supervisions": [{"text": 3, "language": "de"}]}, "text is no text"),
        *(
            ({"supervisions": [supervision(0.0, 0.5, "drei"), supervision(0.5, 0.5, text)]}, "1 of 2 supervisions have no text")
            for text in (None, "", "  ")
        ),
        ({"supervisions": [supervision(-0.6, 1.0, "drei vier")]}, r"from -0\.60 s to 0\.40 s reaches beyond its cut"),
        ({"supervisions": [supervision(0.5, 1.0, "drei vier")]}, r"from 0\.50 s to 1\.50 s reaches beyond its cut"),
    ],
)
def test_a_cut_that_cannot_be_used_is_told_or_left_out(tmp_path, changes, says):
    write_shar(tmp_path)
    rewrite(tmp_path, **changes)
    with pytest.raises(DataError, match=says):
        find_recordings(tmp_path)
    kept = find_recordings(tmp_path, keeps_faults=True)
    assert [item.fault is not None for item in kept] == [False, False, True]


def test_times_that_are_rounded_do_not_reach_beyond_a_cut(tmp_path):
    write_shar(tmp_path)
    rewrite(tmp_path, supervisions=[supervision(-0.01, 0.5, " drei "), supervision(0.5, 0.52, "vier")])
    assert find_recordings(tmp_path)[2].transcript == "drei vier"


@pytest.mark.parametrize(
    "changes",
    [
        *({"id": 3}, {"supervisions": 3}, {"supervisions": [3]}, {"tracks": []}),
        *({"supervisions": [{"start": start, "text": "a"}]} for start in ("now", 10**400, float("nan"))),
    ],
)
def test_what_is_no_cut_is_told(tmp_path, changes):
    write_shar(tmp_path)
    rewrite(tmp_path, **changes)
    with pytest.raises(DataError, match="line 1: wanted is a cut of lhotse"):
        find_recordings(tmp_path)


def test_a_cut_for_which_no_recording_was_written_is_left_out(tmp_path):
    write_shar(tmp_path)
    make_tar(tmp_path / "recording.000001.tar", [("b.nodata", b""), ("b.nometa", b"")])
    assert find_recordings(tmp_path, keeps_faults=True)[2].fault == ("missing", "no recording of b")


def test_a_recording_is_as_long_as_its_cut(tmp_path):
    write_shar(tmp_path)
    make_tar(tmp_path / "recording.000001.tar", [("b.flac", clip(3.0)), ("b.json", details(id="b"))])
    with pytest.raises(BadSampleError, match=r"the list says 1\.00 s"):
        _cut(find_recordings(tmp_path)[2], None)


def test_cuts_without_their_tar_and_cut_files_are_told(tmp_path):
    write_shar(tmp_path)
    content = (tmp_path / "cuts.000001.jsonl.gz").read_bytes()
    (tmp_path / "cuts.000001.jsonl.gz").write_bytes(content[:-12])
    with pytest.raises(DataError, match=r"cuts.000001.jsonl.gz can't be read"):
        find_recordings(tmp_path)
    (tmp_path / "recording.000000.tar").unlink()
    with pytest.raises(DataError, match=r"has no recording.000000.tar beside it"):
        find_recordings(tmp_path)
    assert is_shar(tmp_path)
    assert not is_shar(tmp_path.parent / "none")
