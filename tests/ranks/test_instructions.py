"""Two tasks in one mixture, as a user trains with them: the same on any ranks, packed, aligned first, and from the cache."""

from __future__ import annotations

import json

from tests.ranks.test_training import assert_same_steps, evaluations, steps

TRANSLATE = "Translate the speech to German: {audio}"


def test_two_tasks_are_one_training_on_any_ranks_and_after_a_resume(train, home, one_rank, run_command, tmp_path):
    def sets(part: str, instruction: str | None) -> list[dict[str, str | None]]:
        shards = [(language, str(home / f"shards/{part}/{language}-*.tar")) for language in ("en", "de")]
        return [{"shards": path, "language": name, "instruction": instruction if name == "de" else None} for name, path in shards]

    options = {
        "data__train": sets("train", TRANSLATE),
        "data__test": sets("test", TRANSLATE),
        "data__feature_cache_dir": str(tmp_path / "cache"),
        "training__alignment_steps": 1,
        "batch__packing": True,
    }
    alone = train("asked-one", **options)
    train("asked-two", ranks=2, training__num_steps=2, **options)
    shared = train("asked-two", ranks=2, **options)
    assert_same_steps(alone, shared)
    assert [record["objective"] for record in steps(alone)] == ["alignment", *["transcript"] * 3]
    # the clips are those of a run that asks all of them the same
    assert [record["keys_digest"] for record in steps(alone)] == [record["keys_digest"] for record in steps(one_rank)]
    kept = json.loads((alone / "run.json").read_text())["prompt"]["others"][TRANSLATE]
    assert json.loads((shared / "run.json").read_text())["prompt"]["others"] == {TRANSLATE: kept}
    assert evaluations(alone)[0]["wer"] == evaluations(shared)[0]["wer"]
    assert [list(part["languages"]) for part in evaluations(alone)[0]["wer"]["sets"].values()] == [["de"], ["en"]]
    clip = str(home / "speech/test/de/000.flac")
    said = run_command("transcribe", alone, clip, "--instruction", TRANSLATE, "--format", "json")
    assert said.returncode == 0, said.stderr
