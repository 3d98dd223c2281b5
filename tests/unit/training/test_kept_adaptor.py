"""A run reads its first adaptor once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kappaspeech.config.run_config import RunConfig, read_run_config
from kappaspeech.errors import CheckpointError
from kappaspeech.ranks.cluster import SingleProcess
from kappaspeech.runs.first_adaptor import AdaptorOrigin
from kappaspeech.runs.folder import RunFolder
from kappaspeech.training.kept_adaptor import KeptAdaptor, find_kept_adaptor, refuse_other_adaptor
from tests import tiny

ORIGIN = AdaptorOrigin("gone/checkpoints/step-000010/trained.safetensors", "a" * 64)


@pytest.fixture
def config(home, tmp_path) -> RunConfig:
    return read_run_config(tiny.write_config(tmp_path / "run.yaml", home, tmp_path / "run", model__adaptor__initial="gone"))


def leave_a_run(folder: Path, config: RunConfig, **record: object) -> KeptAdaptor | None:
    """Return the kept first adaptor of a run whose record holds these values."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"schema_version": 1, **config.model_dump(mode="json")}))
    (folder / "run.json").write_text(json.dumps({"schema_version": 1, "status": "stopped", **record}))
    return find_kept_adaptor(cluster=SingleProcess(), folder=RunFolder(folder))


def leave_a_checkpoint(folder: Path, first_adaptor: str) -> None:
    """Leave what a checkpoint says of the adaptor that its run began with."""
    (folder / "checkpoints/step-000002").mkdir(parents=True)
    content = {"schema_version": 1, "step": 2, "fingerprints": {"initial adaptor": first_adaptor}}
    (folder / "checkpoints/step-000002/state.json").write_text(json.dumps(content))


def test_it_is_known_by_the_record_once_there_is_a_checkpoint(config, tmp_path):
    folder = tmp_path / "run"
    record = {"initial_adaptor": ORIGIN.to_json(), "initial_weights_digest": "b" * 64}
    assert find_kept_adaptor(cluster=SingleProcess(), folder=RunFolder(folder)) is None
    # the next start begins anew
    assert leave_a_run(folder, config, **record) is None
    leave_a_checkpoint(folder, ORIGIN.digest)
    assert find_kept_adaptor(cluster=SingleProcess(), folder=RunFolder(folder)) == KeptAdaptor("gone", ORIGIN, "b" * 64)


def test_a_run_of_random_weights_resumes_though_its_configuration_has_keys_of_another_version(config, tmp_path):
    leave_a_checkpoint(tmp_path / "run", "random")
    leave_a_run(tmp_path / "run", config, initial_adaptor=None, initial_weights_digest="b" * 64)
    (tmp_path / "run/config.json").write_text('{"schema_version": 1, "renamed_since": 1}')
    assert find_kept_adaptor(cluster=SingleProcess(), folder=RunFolder(tmp_path / "run")) is None


@pytest.mark.parametrize("began_with", ["random", "c" * 64])
def test_a_record_that_the_checkpoints_contradict_counts_for_nothing(config, tmp_path, began_with):
    """In earlier versions a start with another adaptor wrote it before it was refused."""
    leave_a_checkpoint(tmp_path / "run", began_with)
    record = {"initial_adaptor": ORIGIN.to_json(), "initial_weights_digest": "b" * 64}
    assert leave_a_run(tmp_path / "run", config, **record) is None
    (tmp_path / "run/checkpoints/step-000002/state.json").write_text("{")
    assert find_kept_adaptor(cluster=SingleProcess(), folder=RunFolder(tmp_path / "run")) is None


@pytest.mark.parametrize("told", [None, {"file": "x"}, {"file": 1, "digest": "a"}, "x"])
def test_a_record_that_tells_of_none_is_no_reason_to_skip_reading_one(config, tmp_path, told):
    leave_a_checkpoint(tmp_path / "run", ORIGIN.digest)
    assert leave_a_run(tmp_path / "run", config, initial_adaptor=told, initial_weights_digest="b" * 64) is None


def test_another_one_is_refused_with_the_name_of_the_first(config):
    kept = KeptAdaptor("gone", ORIGIN, "b" * 64)
    # moved, and the same
    refuse_other_adaptor(kept, config, AdaptorOrigin("elsewhere", "a" * 64))
    for other in (None, AdaptorOrigin("elsewhere", "c" * 64)):
        with pytest.raises(CheckpointError, match="another adaptor than gone"):
            refuse_other_adaptor(kept, config, other)
