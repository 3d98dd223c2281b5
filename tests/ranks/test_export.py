"""A trained run exported whole and as a difference, and used by transformers and by this project."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from kappaspeech.commands import main
from kappaspeech.speech.samples import AudioSample, read_recording
from kappaspeech.trained.arithmetic import UseArithmetic
from kappaspeech.trained.opening import open_transcriber
from tests.patience import patience

# in a process of its own, in which nothing of this project nor of openai-whisper can be imported
LOAD_AND_GENERATE = """
import json, sys
for name in ("kappaspeech", "whisper", "soxr", "peft", "deepspeed"):
    sys.modules[name] = None
import torch
from transformers import AutoModel, AutoProcessor
folder, *clips = sys.argv[1:]
model = AutoModel.from_pretrained(folder, dtype=torch.float32, trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
print(json.dumps(processor.texts(model.generate(**processor(clips), max_new_tokens=8))))
"""


@pytest.fixture(scope="module")
def exported(two_ranks, tmp_path_factory):
    """The run merged, its difference, and the difference merged again."""
    folder = tmp_path_factory.mktemp("exports")
    for words in (
        (two_ranks, folder / "merged"),
        (two_ranks, folder / "difference", "--only", "difference"),
        (folder / "difference", folder / "again"),
        (two_ranks, folder / "whole", "--whole"),
        (folder / "difference", folder / "whole again", "--whole"),
        (two_ranks, folder / "llm", "--only", "llm"),
        (two_ranks, folder / "adaptor", "--only", "adaptor"),
    ):
        assert main(["export", *map(str, words)]) == 0
    return folder


def test_an_export_holds_the_base_but_for_the_selection(home, exported):
    base, merged = load_file(home / "llm/model.safetensors"), load_file(exported / "merged/model.safetensors")
    selected = {entry["name"] for entry in json.loads((home / "selection.json").read_text())["tensors"]}
    assert {name for name in base if not torch.equal(base[name], merged[name])} == selected
    assert {tensor.dtype for tensor in merged.values()} == {torch.bfloat16}


def test_transformers_loads_an_export_without_a_missing_or_spare_tensor(exported):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    llm, report = AutoModelForCausalLM.from_pretrained(exported / "merged", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert llm.dtype == torch.bfloat16
    assert AutoTokenizer.from_pretrained(exported / "merged").chat_template


def test_a_difference_with_its_base_gives_the_same_files(exported):
    names = {path.name for path in (exported / "merged").iterdir()}
    assert names == {path.name for path in (exported / "again").iterdir()}
    for name in names:
        assert (exported / "merged" / name).read_bytes() == (exported / "again" / name).read_bytes(), name


def test_a_difference_holds_what_was_trained_alone(two_ranks, exported):
    checkpoint = load_file(two_ranks / "checkpoints/step-000004/trained.safetensors")
    difference = load_file(exported / "difference/trained.safetensors")
    assert set(difference) == set(checkpoint)
    for name, tensor in difference.items():
        assert torch.equal(tensor, checkpoint[name].bfloat16() if name.startswith("llm.") else checkpoint[name])


def test_transformers_alone_writes_what_this_project_writes(home, two_ranks, exported, tmp_path):
    clips = [home / f"speech/test/{language}/{number:03d}.flac" for language in ("en", "de") for number in range(3)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", LOAD_AND_GENERATE, str(exported / "whole"), *map(str, clips)],
        capture_output=True,
        text=True,
        timeout=patience(120),
        env=environment,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    options = {"device": torch.device("cpu"), "batch_size": len(clips), "max_new_tokens": 8}
    transcriber = open_transcriber(two_ranks, use=UseArithmetic(bfloat16_is_fast=False), **options)
    expected = transcriber.transcribe([AudioSample(path.name, read_recording(path), "", "") for path in clips])
    assert any(expected)
    assert json.loads(done.stdout) == expected


def test_one_model_is_the_same_from_a_run_and_from_its_difference(exported):
    names = {path.name for path in (exported / "whole").iterdir()} - {"README.md"}
    assert names == {path.name for path in (exported / "whole again").iterdir()} - {"README.md"}
    for name in names:
        assert (exported / "whole" / name).read_bytes() == (exported / "whole again" / name).read_bytes(), name


def test_a_run_tells_its_export_what_it_was(exported):
    assert "## Word error rate" in (exported / "whole/README.md").read_text()
    assert "holds no record of its run" in (exported / "whole again/README.md").read_text()


def test_a_part_alone_is_that_of_the_whole(exported):
    parts, whole = exported / "merged", load_file(exported / "whole/model.safetensors")
    of_both = {path.name for path in parts.iterdir()} - {"speech.json", "adaptor.safetensors"}
    assert {path.name for path in (exported / "llm").iterdir()} == of_both
    assert {path.name for path in (exported / "adaptor").iterdir()} == {"speech.json", "adaptor.safetensors"}
    for part, file in (("llm", "model.safetensors"), ("adaptor", "adaptor.safetensors")):
        alone = load_file(exported / part / file)
        assert (exported / part / file).read_bytes() == (parts / file).read_bytes()
        for name, tensor in alone.items():
            assert torch.equal(whole[f"{part}.{name}"], tensor.bfloat16()), name


def test_parts_and_the_whole_are_not_asked_for_at_once(two_ranks, tmp_path, capsys):
    assert main(["export", str(two_ranks), str(tmp_path / "a"), "--whole", "--only", "llm"]) == 2
    assert main(["export", str(two_ranks), str(tmp_path / "a"), "--base", "b", "--only", "adaptor"]) == 2
    assert "give one of the two" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_difference_is_refused_on_another_base(home, exported, tmp_path, capsys):
    other = shutil.copytree(home / "llm", tmp_path / "other")
    content = bytearray((other / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (other / "model.safetensors").write_bytes(content)
    assert main(["export", str(exported / "difference"), str(tmp_path / "out"), "--base", str(other)]) == 2
    assert "was trained on" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other"]


def test_run_export_and_difference_transcribe_alike_and_a_broken_file_stops_nothing(home, two_ranks, exported, tmp_path, capsys):
    clips = [str(home / "speech/test/en/000.flac"), str(home / "speech/test/de/001.flac")]
    (tmp_path / "broken.flac").write_bytes(b"no audio")
    words = [clips[0], str(tmp_path / "broken.flac"), clips[1], "--format", "json", "--max-new-tokens", "4"]
    found = []
    for model in (two_ranks, exported / "merged", exported / "difference", exported / "whole"):
        assert main(["transcribe", str(model), *words]) == 1
        printed = capsys.readouterr()
        assert "broken.flac can't be used as audio" in printed.err
        found.append(json.loads(printed.out)["recordings"])
    assert found[0] == found[1] == found[2]
    # the same weights, by another attention if this processor is fast in bfloat16
    assert [recording["recording"] for recording in found[3]] == clips
    assert [recording["recording"] for recording in found[0]] == clips
    assert all(segment["end_seconds"] > 0.3 for recording in found[0] for segment in recording["segments"])
    assert all(0 < segment["confidence"] < 1 for recording in found[0] for segment in recording["segments"])


def test_subtitles_of_several_recordings_go_into_a_folder(home, two_ranks, tmp_path, capsys):
    clips = [str(home / f"speech/test/{language}/000.flac") for language in ("en", "de")]
    words = ["transcribe", str(two_ranks), *clips, "--format", "srt", "--max-new-tokens", "4"]
    assert main(words) == 2
    assert "--output DIR" in capsys.readouterr().err
    assert main([*words, "--output", str(tmp_path)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000-2.srt", "000.srt"]
