"""A run whose encoder reads waveforms, by every command: the same on any ranks, after a resume, and from the cache."""

from __future__ import annotations

import json

import pytest

from kappaspeech.commands import main
from tests import tiny
from tests.ranks.test_training import assert_same_steps, evaluations

ALL = {"wav2vec2": "layer", "hubert": "group"}


@pytest.mark.parametrize("family", ALL)
def test_a_run_trains_resumes_and_serves_every_command(train, home, tmp_path, capsys, family):
    encoder = tiny.make_waveform_encoder(tmp_path / family, family, norm=ALL[family])
    options = {"model__encoder": str(encoder), "data__text": {}}
    config = tiny.write_config(tmp_path / "run.yaml", home, tmp_path / "planned", **options)
    assert main(["doctor", str(config)]) == 0
    alone = train(f"{family}-one", **options)
    cached = {**options, "data__feature_cache_dir": str(tmp_path / "cache")}
    train(f"{family}-two", ranks=2, training__num_steps=2, **cached)
    shared = train(f"{family}-two", ranks=2, **cached)
    # clips are encoded one by one on a CPU, so that the cache changes no bit
    assert_same_steps(alone, shared)
    assert evaluations(alone)[0]["wer"] == evaluations(shared)[0]["wer"]
    assert "error" not in json.loads((alone / "run.json").read_text())["plan"]
    capsys.readouterr()
    assert main(["evaluate", str(alone), "--no-page", "--output", str(tmp_path / "evaluation.json")]) == 0
    export, clip = tmp_path / "export", str(home / "speech/test/de/000.flac")
    assert main(["export", str(alone), str(export)]) == 0
    said = []
    for model in (alone, export):
        capsys.readouterr()
        assert main(["transcribe", str(model), clip, "--max-new-tokens", "8"]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    assert main(["export", str(alone), str(tmp_path / "whole"), "--whole"]) == 2
    assert "Whisper's encoder alone" in capsys.readouterr().err
    assert not (tmp_path / "whole").exists()
