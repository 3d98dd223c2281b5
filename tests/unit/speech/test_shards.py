"""Packing, indexing and reading shards, whole and damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from kappaspeech.errors import DataError
from kappaspeech.speech.corpus import SpeechDataset
from kappaspeech.speech.held_out import list_test_samples, read_share, read_test_batches
from kappaspeech.speech.languages import normalise_language
from kappaspeech.speech.layouts import find_recordings
from kappaspeech.speech.packing import pack
from kappaspeech.speech.shard_indexing import index_shard
from kappaspeech.speech.shards import expand, read_index, write_index
from tests import tiny
from tests.speech_files import clip, details, make_tar


def audio(seconds: float = 0.5) -> bytes:
    return clip(seconds)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory) -> Path:
    return tiny.make_recordings(tmp_path_factory.mktemp("recordings"), num_clips=7)


def test_what_is_packed_is_read_back(recordings, tmp_path):
    report = pack(find_recordings(recordings), tmp_path, shard_size=3, num_processes=1)
    assert [len(shard.samples) for shard in report.shards] == [3, 3, 1, 3, 3, 1]
    batches = read_test_batches([SpeechDataset(str(tmp_path / "*.tar"))], batch_size=4)
    read = {sample.key: sample for batch in batches for sample in batch}
    for recording in find_recordings(recordings):
        original, _ = soundfile.read(recording.path, dtype="float32")
        sample = read.pop(recording.key)
        assert (sample.transcript, sample.language) == (recording.transcript, recording.language)
        np.testing.assert_array_equal(sample.waveform, original)
    assert not read


def test_test_batches_do_not_depend_on_the_number_of_ranks(recordings, tmp_path):
    pack(find_recordings(recordings), tmp_path, shard_size=3, num_processes=1)

    def keys(rank: int, world_size: int) -> list[list[str]]:
        datasets = [SpeechDataset(str(tmp_path / "*.tar"))]
        batches = read_share(list_test_samples(datasets), batch_size=4, rank=rank, world_size=world_size)
        return [[sample.key for sample in batch] for batch in batches]

    assert sorted(keys(0, 1)) == sorted(batch for rank in range(3) for batch in keys(rank, 3))


def test_webdataset_itself_reads_the_shards(recordings, tmp_path):
    import webdataset

    report = pack(find_recordings(recordings), tmp_path, shard_size=20, num_processes=1)
    read = list(webdataset.WebDataset([str(report.shards[0].where)], shardshuffle=False))
    assert [sample["__key__"] for sample in read] == [sample.key for sample in report.shards[0].samples]
    assert all(set(sample) >= {"flac", "json"} for sample in read)


def test_finished_shards_are_kept_and_changed_ones_made_again(recordings, tmp_path):
    import shutil

    source = shutil.copytree(recordings, tmp_path / "source")
    output = tmp_path / "shards"
    first = pack(find_recordings(source), output, shard_size=3, num_processes=1)
    times = {shard.where: Path(shard.where).stat().st_mtime_ns for shard in first.shards}
    again = pack(find_recordings(source), output, shard_size=3, num_processes=1)
    assert {shard.where: Path(shard.where).stat().st_mtime_ns for shard in again.shards} == times
    lines = (source / "de/transcripts.tsv").read_text().splitlines(keepends=True)
    (source / "de/transcripts.tsv").write_text("".join(line.replace("\t", "\tneu ") for line in lines))
    changed = pack(find_recordings(source), output, shard_size=3, num_processes=1)
    paths = [Path(shard.where) for shard in changed.shards]
    renewed = {path.name for path in paths if path.stat().st_mtime_ns != times[str(path)]}
    assert renewed == {"de-000000.tar", "de-000001.tar", "de-000002.tar"}


def test_a_bad_recording_stops_packing_by_name_or_is_left_out_by_choice(recordings, tmp_path):
    import shutil

    source = shutil.copytree(recordings, tmp_path / "source")
    (source / "en/003.flac").write_bytes(b"no audio")
    with pytest.raises(DataError, match=r"003\.flac: decode"):
        pack(find_recordings(source), tmp_path / "shards", shard_size=3, num_processes=1)
    report = pack(find_recordings(source), tmp_path / "shards", shard_size=3, num_processes=1, skip_bad=True)
    assert [Path(path).name for path in report.rejected] == ["003.flac"]
    assert sum(len(shard.samples) for shard in report.shards) == 13


@pytest.mark.parametrize(
    ("line", "complaint"), [("003.flac only spaces", "line 2"), ("gone.flac\ttext", "names gone.flac"), ("003.flac\t ", "line 2")]
)
def test_a_wrong_transcripts_line_is_named(recordings, tmp_path, line, complaint):
    import shutil

    source = shutil.copytree(recordings, tmp_path / "source")
    first = (source / "en/transcripts.tsv").read_text().splitlines()[0]
    (source / "en/transcripts.tsv").write_text(f"{first}\n{line}\n")
    with pytest.raises(DataError, match=complaint):
        find_recordings(source)


def test_a_shard_that_changed_since_it_was_indexed_is_refused(tmp_path):
    members = [("a.flac", audio()), ("a.json", details(text="x", language="en"))]
    path = make_tar(tmp_path / "x.tar", members)
    write_index(index_shard(str(path)))
    assert read_index(str(path)).samples[0].key == "a"
    make_tar(path, [*members, ("b.flac", audio(2.0)), ("b.json", details(text="y", language="en"))])
    with pytest.raises(DataError, match=r"x\.tar has .* when it was indexed"):
        read_index(str(path))


@pytest.mark.parametrize(("name", "short"), [("DE", "de"), ("de_DE", "de"), ("german", "de"), ("en-GB", "en"), ("fr", "fr")])
def test_languages_have_one_name(name, short):
    assert normalise_language(name) == short


def test_no_command_hides_in_a_shard_list(tmp_path):
    for pattern in ("pipe:cat x.tar", "ftp://localhost/x.tar", "http://localhost/*.tar", str(tmp_path / "*.tar")):
        with pytest.raises(DataError):
            expand(pattern)


def test_a_name_that_no_file_can_have_is_refused():
    with pytest.raises(DataError, match="can't be a path"):
        expand("~\ud800/x.tar")
