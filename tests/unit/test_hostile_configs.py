"""Any bytes in place of a run's YAML, a DeepSpeed JSON or a finished run's files give a result or a sentence, soon."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from hypothesis import strategies as st

from kappaspeech.comparison.experiment import read_experiment
from kappaspeech.comparison.runs import read_run
from kappaspeech.config.deepspeed_config import read_deepspeed_config
from kappaspeech.config.run_config import read_run_config
from kappaspeech.runs.best import read_best, repair_best
from kappaspeech.runs.contents import EVALUATIONS_FILE, STEPS_FILE
from kappaspeech.runs.records import is_evaluation, is_step, read_lines
from kappaspeech.runs.saved_state import find_fault
from tests.fuzzing import cuts, damage, edits, fuzzed, given, json_changes, junk, texts, try_out, with_changes
from tests.made_runs import make_run

REPOSITORY = Path(__file__).parents[2]
CONFIG = (REPOSITORY / "launch/configs/quickstart.yaml").read_text(encoding="utf-8")
DEEPSPEED = (REPOSITORY / "ds_configs/zero3_cpu.json").read_text(encoding="utf-8")
STATE = {
    "step": 3,
    "fingerprints": {"a": "b"},
    "hint": [0, 0],
    "bad_steps": {"norms": [1.0], "num_in_a_row": 0, "num_skipped": 0},
    "train_seconds": 1.0,
    "num_seen": 5,
    "hours_seen": {"de": 0.1},
    "bad_samples": [{"key": "k", "cause": "c", "shard": "s", "detail": "d"}],
}


@fuzzed
@given(edits, cuts)
def test_a_run_s_yaml_with_any_bytes_changed(tmp_path, changes, cut):
    path = tmp_path / "run.yaml"
    path.write_bytes(damage(CONFIG.encode(), changes, cut))
    try_out(lambda: read_run_config(path))


yaml_words = st.lists(
    st.sampled_from(
        [*"[]{}&*!|>-?:,#'\"%@` \n\t0", "&a", "*a", "<<: ", "!!int ", "!!python/object:os.x ", "!!binary ", ": ", "- "]
    )
    | st.sampled_from(["2026-13-45", "1e-4", "0x_", "._", "1:30", ".inf", "no", "~", "=", "x"])
    | texts,
    max_size=12,
).map("".join)


@fuzzed
@given(yaml_words, yaml_words)
def test_yaml_of_anything(tmp_path, text, value):
    (tmp_path / "run.yaml").write_bytes(f"run_dir: {text}\n".encode("utf-8", "surrogatepass"))
    try_out(lambda: read_run_config(tmp_path / "run.yaml"))
    (tmp_path / "good.yaml").write_text(CONFIG, encoding="utf-8")

    def override() -> None:
        from kappaspeech.commands.train import read_settings

        read_settings(tmp_path / "good.yaml", None, [f"seed={value}"])

    try_out(override)


@fuzzed
@given(json_changes, st.sampled_from([read_run_config, read_experiment]))
def test_configurations_with_any_value_changed(tmp_path, changes, read):
    content = yaml.safe_load(CONFIG)
    if read is read_experiment:
        content = {"base": "good.yaml", "arms": [{"name": "a"}, {"name": "b"}], "seeds": [1, 2], "output": "out", "count": 3}
        (tmp_path / "good.yaml").write_text(CONFIG, encoding="utf-8")
    # JSON, of which YAML reads every word
    (tmp_path / "run.yaml").write_text(json.dumps(with_changes(content, changes)), encoding="utf-8")
    try_out(lambda: read(tmp_path / "run.yaml"))


@fuzzed
@given(st.one_of(json_changes, st.binary(max_size=60)))
def test_deepspeed_files_with_any_value_changed(tmp_path, changes):
    content = changes if isinstance(changes, bytes) else json.dumps(with_changes(json.loads(DEEPSPEED), changes)).encode()
    (tmp_path / "ds.json").write_bytes(content)
    try_out(lambda: read_deepspeed_config(tmp_path / "ds.json"))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("made") / "run", "a", seed=1, error_rate=0.3, num_clips=2)


FILES = ["run.json", "config.json", "drift.json", "frozen.json", EVALUATIONS_FILE, STEPS_FILE, "hypotheses"]


@fuzzed
@given(st.sampled_from(FILES), json_changes, st.one_of(st.none(), st.none(), edits), cuts)
def test_finished_runs_with_anything_changed(tmp_path, run, name, values, changes, cut):
    folder = tmp_path / "run"
    if not folder.exists():
        shutil.copytree(run, folder)
    path = max((folder / name).iterdir()) if name == "hypotheses" else folder / name
    whole = path.read_bytes()
    if changes is not None:
        path.write_bytes(damage(whole, changes, cut))
    elif path.suffix == ".jsonl":
        *lines, last = whole.splitlines()
        path.write_bytes(b"\n".join([*lines, json.dumps(with_changes(json.loads(last), values)).encode(), b""]))
    else:
        path.write_text(json.dumps(with_changes(json.loads(whole), values)))
    try_out(lambda: read_run(folder))
    path.write_bytes(whole)


@fuzzed
@given(st.one_of(junk, st.fixed_dictionaries({"schema_version": st.just(1), "step": junk, "mean_wer": junk})), json_changes)
def test_marks_and_states_of_checkpoints_of_anything(tmp_path, mark, changes):
    folder = tmp_path / "checkpoints"
    (folder / "step-000003").mkdir(parents=True, exist_ok=True)
    evaluation = {"step": 3, "wer": {"mean_wer": 0.5}, "text": {}}
    for name, is_record in ((EVALUATIONS_FILE, is_evaluation), (STEPS_FILE, is_step)):
        (tmp_path / name).write_text(json.dumps(with_changes(evaluation, changes)) + "\n")
        try_out(lambda name=name, is_record=is_record: read_lines(tmp_path / name, is_record=is_record))
    (folder / "best.json").write_text(json.dumps(mark))

    def use() -> None:
        repair_best(folder)
        read_best(folder)

    try_out(use)
    state = with_changes(STATE, changes)
    if isinstance(state, dict):
        try_out(lambda: find_fault(state))
