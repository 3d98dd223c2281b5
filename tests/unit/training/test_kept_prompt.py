"""A run's prompt is made once."""

from __future__ import annotations

import json

import pytest
from transformers import AutoTokenizer

from kappaspeech.config.run_config import read_run_config
from kappaspeech.errors import CheckpointError, ConfigError
from kappaspeech.ranks.cluster import SingleProcess
from kappaspeech.runs.checkpoints import check_fingerprints
from kappaspeech.runs.folder import RunFolder
from kappaspeech.training.kept_prompt import settle_prompt
from tests import tiny

# as the day changes
DAY = "{{% for m in messages %}}On {day}: {{{{ m.content }}}}{{% endfor %}}"


@pytest.fixture
def settle(home, tmp_path):
    """The prompt of a run on a day, whose folder is `tmp_path`/run."""

    def run(day: str, **changes):
        tokenizer = AutoTokenizer.from_pretrained(home / "llm")
        tokenizer.chat_template = DAY.format(day=day)
        config = read_run_config(tiny.write_config(tmp_path / "run.yaml", home, tmp_path / "run", **changes))
        return config, settle_prompt(config, tokenizer, cluster=SingleProcess(), folder=RunFolder(tmp_path / "run")).to_json()

    return run


def leave_a_run(folder, config, prompt):
    (folder / "checkpoints/step-000002").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"schema_version": 1, **config.model_dump(mode="json")}))
    record = {"schema_version": 1, "status": "stopped", **({} if prompt is None else {"prompt": prompt})}
    (folder / "run.json").write_text(json.dumps(record))


def test_a_run_goes_on_with_the_prompt_of_the_day_that_it_began(settle, tmp_path):
    config, monday = settle("Monday")
    _, tuesday = settle("Tuesday")
    assert monday != tuesday
    leave_a_run(tmp_path / "run", config, monday)
    assert settle("Tuesday")[1] == monday


@pytest.mark.parametrize(("key", "value"), [("instruction", "Write: {audio}"), ("chat_template", False)])
def test_a_run_does_not_go_on_with_another_instruction(settle, tmp_path, key, value):
    leave_a_run(tmp_path / "run", *settle("Monday"))
    with pytest.raises(ConfigError, match=f"model.{key} is"):
        settle("Monday", **{f"model__{key}": value})


def test_a_run_keeps_the_place_of_its_hot_words_and_goes_on_with_no_others(settle, tmp_path):
    config, monday = settle("Monday", data__hot_words={"share": 0.5})
    assert monday["around_hot_words"]
    leave_a_run(tmp_path / "run", config, monday)
    assert settle("Tuesday", data__hot_words={"share": 0.5})[1] == monday
    for other in (None, {"share": 0.4}):
        with pytest.raises(ConfigError, match=r"data\.hot_words is .* begun with .*0\.5"):
            settle("Monday", data__hot_words=other)


def ask(home, **instructions):
    """Sets of the tiny data, with the instructions of these languages."""
    shards = [(language, str(home / f"shards/train/{language}-*.tar")) for language in ("en", "de")]
    return [{"shards": path, "language": name, "instruction": instructions.get(name)} for name, path in shards]


def test_a_run_keeps_the_prompt_of_each_data_set(settle, home, tmp_path):
    sets = ask(home, de="Translate: {audio}")
    config, monday = settle("Monday", data__train=sets)
    assert list(monday["others"]) == ["Translate: {audio}"]
    leave_a_run(tmp_path / "run", config, monday)
    assert settle("Tuesday", data__train=sets)[1] == monday
    # a test set that came later has one of its own
    test = [{"shards": str(home / "shards/test/*.tar"), "instruction": "Answer: {audio}"}]
    later = settle("Tuesday", data__train=sets, data__test=test)[1]
    assert later["others"]["Translate: {audio}"] == monday["others"]["Translate: {audio}"]
    assert list(later["others"]) == ["Answer: {audio}", "Translate: {audio}"]


def test_a_run_does_not_go_on_with_another_instruction_of_a_data_set(settle, home, tmp_path):
    leave_a_run(tmp_path / "run", *settle("Monday", data__train=ask(home, de="Translate: {audio}")))
    with pytest.raises(ConfigError, match=r"data\.train\.1\.instruction is None.*begun with 'Translate"):
        settle("Monday", data__train=ask(home))


def test_a_run_that_wrote_no_prompt_down_goes_on_with_the_one_it_had(settle, tmp_path):
    config, prompt = settle("Monday")
    leave_a_run(tmp_path / "run", config, None)
    assert settle("Monday")[1] == prompt


def test_a_checkpoint_is_of_its_prompt(tmp_path):
    with pytest.raises(CheckpointError, match="another prompt"):
        check_fingerprints(tmp_path, {"prompt": "a"}, {"prompt": "b"})
    # of a version that knew none
    check_fingerprints(tmp_path, {}, {"prompt": "b"})
    with pytest.raises(CheckpointError, match="another encoder"):
        check_fingerprints(tmp_path, {}, {"encoder": "b"})
