"""Training prompts that name hot words: one training on any ranks, after a resume and from the cache; and the words in use."""

from __future__ import annotations

import json

from kappaspeech.commands import main
from tests.ranks.test_training import assert_same_steps, steps


def test_hot_words_are_one_training_on_any_ranks_and_serve_every_command(train, home, one_rank, tmp_path, capsys):
    options = {
        "data__hot_words": {"share": 0.7, "max_text_share": 0.4, "distractors": 4},
        "data__feature_cache_dir": str(tmp_path / "cache"),
        "data__text": {},
        "batch__packing": True,
    }
    alone = train("hot-one", **options)
    train("hot-two", ranks=2, training__num_steps=2, **options)
    shared = train("hot-two", ranks=2, **options)
    assert_same_steps(alone, shared)
    # the clips are those of a run that names none, and its prompts are longer
    assert [record["keys_digest"] for record in steps(alone)] == [record["keys_digest"] for record in steps(one_rank)]
    assert [record["loss_nats"] for record in steps(alone)] != [record["loss_nats"] for record in steps(one_rank)]
    prompts = [json.loads((run / "run.json").read_text())["prompt"] for run in (alone, shared, one_rank)]
    assert prompts[0] == prompts[1]
    assert prompts[0].pop("around_hot_words")
    assert prompts[0] == prompts[2]

    clip = str(home / "speech/test/de/000.flac")
    words = tmp_path / "words.txt"
    words.write_text("Küche\nGarten\n", encoding="utf-8")
    export = tmp_path / "export"
    assert main(["export", str(alone), str(export), "--whole"]) == 0
    said = []
    for model in (alone, export):
        capsys.readouterr()
        assert main(["transcribe", str(model), clip, "--hot-words", str(words), "--max-new-tokens", "8"]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    record = tmp_path / "evaluation.json"
    assert main(["evaluate", str(alone), "--hot-words", "Küche, Garten", "--no-page", "--output", str(record)]) == 0
    found = json.loads(record.read_text())["hot_words"]
    assert found["num_hot_words"] == 2
    assert "hot words: " in capsys.readouterr().out
    assert main(["transcribe", str(one_rank), clip, "--hot-words", "Küche"]) == 2
    assert "trained without data.hot_words" in capsys.readouterr().err
