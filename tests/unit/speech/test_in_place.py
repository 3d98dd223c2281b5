"""NeMo's tarred data sets and Lhotse Shar trained on where they lie: the samples that `pack` makes of them, at random access."""

from __future__ import annotations

import fcntl
import io
import json
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from kappaspeech.commands import main
from kappaspeech.config.data_config import DatasetConfig
from kappaspeech.diagnosis.configuration import _check_shards
from kappaspeech.errors import DataError
from kappaspeech.outputs import sweep
from kappaspeech.speech import in_place
from kappaspeech.speech.corpus import Corpus, SpeechDataset
from kappaspeech.speech.feature_cache import entry_name
from kappaspeech.speech.held_out import list_test_samples, read_clips, read_test_batches
from kappaspeech.speech.in_place import index_in_place, is_in_place, open_in_place
from kappaspeech.speech.layouts import find_recordings
from kappaspeech.speech.loading import Loader, LoadOptions
from kappaspeech.speech.overlap import find_overlap
from kappaspeech.speech.packing import pack
from kappaspeech.speech.sample_reader import SampleReader
from kappaspeech.speech.samples import AudioSample, BadSampleError, decode
from kappaspeech.speech.schedule import BatchBudget
from kappaspeech.speech.shard_audio import list_members
from kappaspeech.speech.shards import ShardIndex
from kappaspeech.speech.source import ReadOptions
from kappaspeech.speech.stream import SpeechStream, StreamOptions
from kappaspeech.speech.table import SampleTable, read_merged, write_merged
from tests.speech_files import clip, make_tar, save, write_nemo_tars, write_shar

NO_CACHE = ReadOptions()
WRITERS = {"nemo": write_nemo_tars, "shar": write_shar}


def read_all(where: Path | str, language: str | None = None) -> list[AudioSample]:
    corpus = Corpus(SpeechDataset(str(where), language))
    samples = SampleReader(NO_CACHE).read([corpus.ref(index) for index in range(corpus.num_samples)])
    assert not [sample for sample in samples if isinstance(sample, BadSampleError)]
    return samples


def as_pairs(samples: list[AudioSample]) -> list[tuple[str, str, str, bytes]]:
    """Of each sample what a training takes, in 16 bits as `pack` writes it."""
    values = [np.round(sample.waveform * 2**15).astype(np.int32).tobytes() for sample in samples]
    return sorted((s.key, s.language, s.transcript, value) for s, value in zip(samples, values, strict=True))


@pytest.mark.parametrize("kind", WRITERS)
def test_samples_are_those_that_pack_makes(tmp_path, kind):
    WRITERS[kind](tmp_path / "there")
    packed = pack(find_recordings(tmp_path / "there"), tmp_path / "shards", shard_size=2, num_processes=1)
    assert sum(len(shard.samples) for shard in packed.shards) >= 3
    assert is_in_place(str(tmp_path / "there"))
    assert as_pairs(read_all(tmp_path / "there")) == as_pairs(read_all(tmp_path / "shards/*.tar"))


def test_one_manifest_is_a_data_set_of_its_own(tmp_path):
    write_nemo_tars(tmp_path)
    manifest = tmp_path / "sharded_manifests/manifest_1.json"
    assert [sample.transcript for sample in read_all(manifest)] == ["zwei"]
    assert [sample.transcript for sample in read_all(tmp_path, "de")] == ["zwei"]


def test_other_places_are_not_taken_for_such_data_sets(tmp_path, home):
    for where in (str(home / "shards/train"), str(home / "shards/train/*.tar"), "http://h/x.tar", "s3://b/x", "a\0b", ""):
        assert not is_in_place(where)
    with pytest.raises(DataError, match="No shard matches"):
        Corpus(SpeechDataset(str(tmp_path / "nothing")))


def counted(monkeypatch) -> list[str]:
    """The data sets that are indexed from now on."""
    made: list[str] = []
    index = in_place.index_in_place
    monkeypatch.setattr(in_place, "index_in_place", lambda where, **how: made.append(where) or index(where, **how))
    return made


@pytest.mark.parametrize("kind", WRITERS)
def test_the_lists_are_read_once_and_again_when_anything_changes(tmp_path, monkeypatch, kind):
    WRITERS[kind](tmp_path)
    made = counted(monkeypatch)
    first = open_in_place(str(tmp_path))
    again = open_in_place(str(tmp_path))
    assert len(made) == 1
    assert again.fingerprint == first.fingerprint
    assert [again.entry(row) for row in range(len(again))] == [first.entry(row) for row in range(len(first))]
    changed = next(tmp_path.glob("*1.tar"))
    os.utime(changed, (1, 1))
    # the same samples, so a run goes on
    assert open_in_place(str(tmp_path)).fingerprint == first.fingerprint
    assert len(made) == 2
    (tmp_path / "kappaspeech-in-place.index").write_bytes(b"cut")
    assert open_in_place(str(tmp_path)).fingerprint == first.fingerprint
    assert len(made) == 3


def test_an_index_that_was_made_by_other_rules_is_made_anew(tmp_path, monkeypatch):
    write_shar(tmp_path)
    monkeypatch.setattr(in_place, "_RULES", in_place._RULES - 1)
    open_in_place(str(tmp_path))
    monkeypatch.undo()
    made = counted(monkeypatch)
    open_in_place(str(tmp_path))
    open_in_place(str(tmp_path))
    assert len(made) == 1


def test_an_index_that_another_host_kept_meanwhile_stays(tmp_path, monkeypatch):
    # others have mapped it, and a file that is replaced on a network file system is gone for them
    write_nemo_tars(tmp_path)
    place = tmp_path / "kappaspeech-in-place.index"
    place.write_bytes(b"of an earlier state")
    kept: list[int] = []

    def write_second(table: SampleTable, path: Path, **how: bool) -> None:
        write_merged(table, path)
        kept.append(path.stat().st_ino)
        write_merged(table, path, **how)

    monkeypatch.setattr(in_place, "write_merged", write_second)
    assert len(open_in_place(str(tmp_path))) == 4
    assert [place.stat().st_ino] == kept
    # it may come between looking at a stale one and removing that
    in_place._remove_stale(place, tmp_path, read_merged(place).source)
    assert [place.stat().st_ino] == kept
    assert not list(tmp_path.glob("*.tmp"))


def test_what_a_killed_writing_left_is_removed_by_the_next_and_nothing_of_another(tmp_path, monkeypatch):
    write_nemo_tars(tmp_path)
    place = tmp_path / "kappaspeech-in-place.index"
    names = (f"{place.name}.0123abcd", f"{place.name}.89abcdef", "my.0123abcd", f"{place.name}.4567abcd")
    left, locked, other, young = (tmp_path / f".{name}.tmp" for name in names)
    for path in (left, locked, other, young):
        path.write_bytes(b"half")
    for path in (left, locked, other):
        os.utime(path, (time.time() - 1200,) * 2)
    with locked.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert len(open_in_place(str(tmp_path))) == 4
        # another host's may be written, of whose lock this one knows nothing
        assert set(tmp_path.glob(".*.tmp")) == {locked, other, young}
    other.unlink()
    young.unlink()

    # a stale one that is looked at beside its place is no leftover
    def looked_at(aside: Path, *_: object) -> None:
        sweep(tmp_path)
        assert aside.exists()

    monkeypatch.setattr(in_place, "_read_kept", looked_at)
    in_place._remove_stale(place, tmp_path, "")
    assert not place.exists()
    assert not list(tmp_path.glob(".*.tmp"))


def test_where_nothing_can_be_written_the_index_is_kept_in_the_cache_or_not_at_all(tmp_path, monkeypatch):
    write_nemo_tars(tmp_path / "data")
    # nothing takes the place of a folder
    (tmp_path / "data/kappaspeech-in-place.index").mkdir()
    made = counted(monkeypatch)
    cached = ReadOptions(cache_dir=str(tmp_path / "cache"))
    for _ in range(2):
        assert len(open_in_place(str(tmp_path / "data"), read=cached)) == 4
    assert len(made) == 1
    for _ in range(2):
        assert len(open_in_place(str(tmp_path / "data"))) == 4
    assert len(made) == 3


def test_lines_without_a_language_are_of_the_sets_own(tmp_path):
    write_nemo_tars(tmp_path)
    manifest = tmp_path / "sharded_manifests/manifest_1.json"
    save(manifest, manifest.read_text().replace(', "lang": "de"', ""))
    with pytest.raises(DataError, match="line 1 names no language"):
        Corpus(SpeechDataset(str(tmp_path)))
    assert [sample.transcript for sample in read_all(tmp_path, "fr")] == ["zwei"]
    # and those that name one keep it
    assert len(read_all(tmp_path, "en")) == 4
    assert open_in_place(str(tmp_path), language="fr").languages == ("en", "fr")
    assert {path.name for path in tmp_path.glob("*.index")} == {f"kappaspeech-in-place-{name}.index" for name in ("en", "fr")}


def test_an_index_that_an_earlier_version_named_by_a_longer_code_is_still_the_sets(tmp_path, monkeypatch):
    write_nemo_tars(tmp_path)
    manifest = tmp_path / "sharded_manifests/manifest_1.json"
    save(manifest, manifest.read_text().replace(', "lang": "de"', ""))
    made = counted(monkeypatch)
    before = open_in_place(str(tmp_path), language="fra")
    (tmp_path / "kappaspeech-in-place-fr.index").rename(tmp_path / "kappaspeech-in-place-fra.index")
    num_made = len(made)
    assert open_in_place(str(tmp_path), language="fra").fingerprint == before.fingerprint
    assert len(made) == num_made
    assert not (tmp_path / "kappaspeech-in-place-fr.index").exists()


@pytest.mark.parametrize("alias", ["german", "DE", "de_DE"])
def test_a_language_chooses_the_same_samples_by_any_of_its_names(tmp_path, alias):
    write_nemo_tars(tmp_path / "nemo")
    assert [sample.transcript for sample in read_all(tmp_path / "nemo", alias)] == ["zwei"]
    # one that the samples have by the set alone
    manifest = tmp_path / "nemo/sharded_manifests/manifest_1.json"
    save(manifest, manifest.read_text().replace(', "lang": "de"', ""))
    assert [sample.transcript for sample in read_all(tmp_path / "nemo", alias)] == ["zwei"]
    pack(find_recordings(tmp_path / "nemo", default_language="de"), tmp_path / "shards", shard_size=9, num_processes=1)
    assert [sample.transcript for sample in read_all(tmp_path / "shards/*.tar", alias)] == ["zwei"]


@pytest.mark.parametrize("language", ["fr", "germn"])
def test_a_language_that_no_sample_has_is_told_with_those_that_they_have(tmp_path, language):
    write_nemo_tars(tmp_path)
    with pytest.raises(DataError, match=r"holds no sample in language.*Its languages are: 'de', 'en'"):
        Corpus(SpeechDataset(str(tmp_path), language))


def test_sets_of_one_language_each_share_an_index(tmp_path, monkeypatch):
    write_nemo_tars(tmp_path)
    made = counted(monkeypatch)
    for language in ("en", "de"):
        Corpus(SpeechDataset(str(tmp_path), language))
    assert len(made) == 1


def test_a_length_that_the_list_lacks_is_the_recordings(tmp_path):
    make_tar(tmp_path / "audio_0.tar", [("a.flac", clip(2.0))])
    lines = [{"audio_filepath": "a.flac", "text": "all", "lang": "en", "shard_id": 0}]
    lines += [{**lines[0], "audio_filepath": "a-sub1.flac", "offset": 0.5, "text": "rest"}]
    save(tmp_path / "tarred_audio_manifest.json", "".join(json.dumps(line) + "\n" for line in lines))
    assert Corpus(SpeechDataset(str(tmp_path))).lengths().seconds.tolist() == [2.0, 1.5]
    assert [len(sample.waveform) for sample in read_all(tmp_path)] == [32_000, 24_000]


def test_a_silent_part_is_masked_in_training_and_is_no_hole_in_a_test_set(tmp_path):
    buffer = io.BytesIO()
    sound = np.where(np.arange(32_000) < 16_000, 0.0, np.random.default_rng(0).normal(0, 0.1, 32_000))
    soundfile.write(buffer, sound, 16_000, format="FLAC")
    make_tar(tmp_path / "audio_0.tar", [("a.flac", buffer.getvalue())])
    line = {"audio_filepath": "a.flac", "lang": "en", "shard_id": 0, "duration": 1.0}
    lines = [
        {**line, "offset": 0.0, "text": "silence"},
        {**line, "audio_filepath": "a-sub1.flac", "offset": 1.0, "text": "noise"},
    ]
    save(tmp_path / "tarred_audio_manifest.json", "".join(json.dumps(line) + "\n" for line in lines))
    dataset = SpeechDataset(str(tmp_path))
    refs = {ref.entry.listing.transcript: ref for ref in list_test_samples([dataset])}
    silent, heard = Loader(LoadOptions(80, 20.0), NO_CACHE).load([refs["silence"], refs["noise"]])
    assert (silent.cause, heard.transcript) == ("silent", "noise")
    assert {s.transcript for batch in read_test_batches([dataset], batch_size=2) for s in batch} == {"silence", "noise"}
    assert len(read_clips(list(refs.values()), max_bytes=1 << 20)) == 2


def test_parts_of_a_large_recording_are_refused_in_a_sentence(tmp_path, monkeypatch):
    write_nemo_tars(tmp_path)
    monkeypatch.setattr(in_place, "_LARGEST_CUT_BYTES", 1000)
    with pytest.raises(DataError, match=r"a_long.flac\] has .* MB.*`kappaspeech pack`"):
        open_in_place(str(tmp_path))


def test_a_tar_that_is_replaced_while_it_is_trained_on_is_refused(tmp_path):
    write_nemo_tars(tmp_path)
    corpus = Corpus(SpeechDataset(str(tmp_path)))
    read = SampleReader(NO_CACHE)
    refs = [corpus.ref(index) for index in range(3)]
    make_tar(tmp_path / "audio_1.tar", [("b_other.flac", clip(1.0)), ("b_two.flac", clip(1.0, seed=9))])
    with pytest.raises(DataError, match=r"audio_1.tar .* when it was indexed"):
        corpus.ref(3)
    make_tar(tmp_path / "audio_0.tar", [("a_lone.flac", clip(1.0)), ("a_long.flac", clip(2.0, seed=1))])
    found = read.read(refs)
    assert isinstance(found[0], BadSampleError)
    assert "a_lone.flac of" in str(found[0])


def test_an_index_can_be_made_by_itself_and_moves_with_the_tars(tmp_path):
    write_nemo_tars(tmp_path / "a")
    made = index_in_place(str(tmp_path / "a"))
    write_merged(made, tmp_path / "a/my.index")
    expected = as_pairs(read_all(tmp_path / "a"))
    (tmp_path / "a").rename(tmp_path / "b")
    assert as_pairs(read_all(tmp_path / "b/my.index")) == expected
    assert Corpus(SpeechDataset(str(tmp_path / "b/my.index"))).table.fingerprint == made.fingerprint


def test_texts_count_in_what_a_run_knows_samples_by_and_parts_in_what_a_cache_does(tmp_path):
    write_nemo_tars(tmp_path)
    index = index_in_place(str(tmp_path))
    entry, (_, stamp) = index.entry(0), index.shards[0]
    names = {entry_name(entry, stamp, "none")}
    # a clip's states stay what they are when its list is corrected
    for change in ({"transcript": "other"}, {"begin_seconds": 0.1}, {"seconds": 0.5}):
        names.add(entry_name(replace(entry, key="k", listing=replace(entry.listing, **change)), stamp, "none"))
    assert len(names) == 3
    manifest = tmp_path / "sharded_manifests/manifest_0.json"
    save(manifest, manifest.read_text().replace("all of one", "all of 1"))
    assert index_in_place(str(tmp_path)).fingerprint != index.fingerprint


def test_a_table_of_shards_and_lists_is_refused(tmp_path):
    write_nemo_tars(tmp_path)
    listed = index_in_place(str(tmp_path))
    entry = listed.entry(0)
    unlisted = replace(entry, listing=None)
    where, stamp = listed.shards[0]
    with pytest.raises(DataError, match="don't go into one index"):
        SampleTable.of([ShardIndex(where, stamp, (entry, unlisted))])


@pytest.mark.parametrize(
    ("column", "value", "says"),
    [
        ("begin_seconds", np.nan, "a part from nan s"),
        ("part_seconds", -1.0, "-1.0 s long"),
        ("transcript_end", -5, "no transcript"),
        ("member_end", 1 << 40, "no member"),
    ],
)
def test_a_damaged_index_is_told(tmp_path, column, value, says):
    write_nemo_tars(tmp_path)
    table = index_in_place(str(tmp_path))
    values = table.columns[column].copy()
    values[0] = value
    write_merged(replace(table, columns={**table.columns, column: values}), tmp_path / "x.index")
    read = read_merged(tmp_path / "x.index")
    with pytest.raises(DataError, match=says):
        read.entry(0)


# ---- what is done with samples -------------------------------------------------------------------------------------------


class Letters:
    """A tokenizer of letters."""

    eos_token_id = 0

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) for letter in text]}

    def encode(self, text: str, **_: object) -> list[int]:
        return [ord(letter) for letter in text]


def keys_of(where: Path, first_step: int, count: int, *, rank: int = 0, world_size: int = 1, workers: int = 0) -> list[list[str]]:
    datasets = [SpeechDataset(str(where), "en", 1.0, instruction="Write: {audio}"), SpeechDataset(str(where), "de", 2.0)]
    stream = SpeechStream(
        datasets,
        tokenizer=Letters(),
        num_mels=80,
        budget=BatchBudget(2, 4.0, 2),
        max_seconds=30.0,
        seed=1,
        rank=rank,
        world_size=world_size,
        options=StreamOptions(num_workers=workers),
    )
    steps = stream.steps(first_step)
    found = [next(steps) for _ in range(count)]
    steps.close()
    assert not [bad for step in found for bad in step.bad_samples]
    return [step.keys for step in found]


def test_a_stream_resumes_and_is_shared_out_as_over_shards(tmp_path):
    write_nemo_tars(tmp_path)
    whole = keys_of(tmp_path, 0, 6)
    assert {key.partition("/")[0] for step in whole for key in step} == {"en", "de"}
    assert keys_of(tmp_path, 3, 3) == whole[3:]
    halves = [keys_of(tmp_path, 0, 6, rank=rank, world_size=2) for rank in range(2)]
    assert [sorted(a + b) for a, b in zip(*halves, strict=True)] == [sorted(step) for step in whole]
    assert keys_of(tmp_path, 0, 2, workers=1) == whole[:2]


def test_a_test_set_is_read_whole_and_its_clips_can_be_heard(tmp_path):
    write_nemo_tars(tmp_path)
    dataset = SpeechDataset(str(tmp_path))
    batches = read_test_batches([dataset], batch_size=2)
    assert sorted(s.transcript for batch in batches for s in batch) == ["all of one", "its beginning", "its end", "zwei"]
    refs = list_test_samples([dataset])
    clips = read_clips(refs, max_bytes=1 << 20)
    lengths = {ref.entry.listing.transcript: len(decode(clips["", ref.entry.key])) for ref in refs}
    assert lengths == {"all of one": 16_000, "its beginning": 16_000, "its end": 16_000, "zwei": 16_000}


def test_overlap_compares_texts_of_lists_and_parts_of_one_file_are_not_the_same(tmp_path):
    write_nemo_tars(tmp_path)
    everything, german = Corpus(SpeechDataset(str(tmp_path))), Corpus(SpeechDataset(str(tmp_path), "de"))
    overlap = find_overlap([everything], [german])
    assert (overlap.num_sentences, overlap.num_recordings) == (1, 1)
    beginning = find_recordings(tmp_path)[1]
    assert beginning.transcript == "its beginning"
    manifest = tmp_path / "sharded_manifests/manifest_0.json"
    lines = manifest.read_text().splitlines()
    for name, line in (("train", lines[1]), ("test", lines[2])):
        (tmp_path / name).mkdir()
        make_tar(tmp_path / name / "audio_0.tar", [("a_long.flac", clip(2.0, seed=1))])
        save(tmp_path / name / "tarred_audio_manifest.json", line + "\n")
    parts = [Corpus(SpeechDataset(str(tmp_path / name))) for name in ("train", "test")]
    assert find_overlap(parts[:1], parts[1:]).num_recordings == 0
    assert find_overlap(parts[:1], parts[:1]).num_recordings == 1


def test_parts_are_not_transcribed_as_if_they_were_whole(tmp_path):
    write_nemo_tars(tmp_path)
    write_merged(index_in_place(str(tmp_path)), tmp_path / "x.index")
    with pytest.raises(DataError, match="is a part of a recording"):
        list_members(str(tmp_path / "x.index"))


def test_the_command_makes_the_index_that_a_run_takes(tmp_path, capsys, monkeypatch):
    write_nemo_tars(tmp_path / "nemo")
    write_shar(tmp_path / "shar")
    assert main(["index", str(tmp_path / "nemo")]) == 0
    assert "4 samples in 2 shards: de 0.000 h, en 0.001 h" in capsys.readouterr().out
    made = counted(monkeypatch)
    Corpus(SpeechDataset(str(tmp_path / "nemo")))
    assert not made
    assert main(["index", str(tmp_path / "shar"), "--output", str(tmp_path / "shar.index")]) == 0
    assert len(read_all(tmp_path / "shar.index")) == 3
    assert main(["index", str(tmp_path / "nemo"), str(tmp_path / "shar")]) == 2
    assert "don't go into one index" in capsys.readouterr().err


def test_an_index_that_came_with_a_data_set_names_its_own_tars_alone(tmp_path, monkeypatch):
    write_nemo_tars(tmp_path / "nemo")
    table = open_in_place(str(tmp_path / "nemo"))
    # the same state elsewhere, with an index of tars that aren't its own
    moved = shutil.copytree(tmp_path / "nemo", tmp_path / "moved")
    (index,) = (path for path in moved.iterdir() if path.suffix == ".index")
    write_merged(table, index)
    assert read_merged(index).source == in_place._state_of(moved)
    made = counted(monkeypatch)
    assert all(Path(where).parent == moved for where, *_ in open_in_place(str(moved)).shards)
    assert made


def test_a_shar_folder_with_a_table_of_transcripts_is_read_by_its_own_lists(tmp_path):
    write_shar(tmp_path)
    (tmp_path / "transcripts.tsv").write_text("x.wav\thello\n", encoding="utf-8")
    assert len(open_in_place(str(tmp_path))) == 3


def test_an_index_that_is_kept_nowhere_is_no_success(tmp_path, capsys, monkeypatch):
    write_nemo_tars(tmp_path)

    def refuse(*_: object, **_how: bool) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(in_place, "write_merged", refuse)
    assert main(["index", str(tmp_path)]) == 2
    assert "no index can be written" in capsys.readouterr().err


def test_doctor_counts_what_lies_in_such_a_folder(tmp_path):
    write_shar(tmp_path)
    (finding,) = _check_shards(DatasetConfig(shards=str(tmp_path)), NO_CACHE)
    assert finding.found == f"{tmp_path}: 3 clips in 2 tar(s), 0.00 h"
    (finding,) = _check_shards(DatasetConfig(shards=str(tmp_path), language="german"), NO_CACHE)
    assert finding.found == f"{tmp_path}: 1 clips in 2 tar(s), 0.00 h"
    with pytest.raises(DataError, match="no sample in language 'fr'"):
        _check_shards(DatasetConfig(shards=str(tmp_path), language="fr"), NO_CACHE)
