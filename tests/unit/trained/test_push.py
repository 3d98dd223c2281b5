"""Pushing to a double of the hub: what arrives, what a cut costs, and what a person is told."""

from __future__ import annotations

import hashlib
import json
import logging

import pytest
from huggingface_hub import constants

from kappaspeech.commands import main
from kappaspeech.errors import CheckpointError, HubError, InputError
from kappaspeech.trained.push import push
from tests.hub import TOKEN, FakeHub
from tests.made_runs import make_run


@pytest.fixture(autouse=True)
def logged_in(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.delenv("HF_OIDC_RESOURCE", raising=False)
    # the double speaks the hub's HTTP, and no Xet
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@pytest.fixture
def make_hub(monkeypatch):
    """A hub that `HfApi` takes for its own, as it does if HF_ENDPOINT names one before the start."""
    opened = []

    def start(**faults):
        opened.append(FakeHub(**faults).__enter__())
        monkeypatch.setattr(constants, "ENDPOINT", opened[-1].endpoint)
        return opened[-1]

    yield start
    for hub in opened:
        hub.__exit__()


@pytest.fixture
def exported(tmp_path):
    folder = tmp_path / "exported"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "kappaspeech"}')
    (folder / "README.md").write_text("---\nlibrary_name: transformers\n---\n# A model\n")
    for number in range(2):
        (folder / f"model-{number}.safetensors").write_bytes(bytes([number]) * 100_000)
    return folder


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_export_arrives_whole_in_a_repository_for_its_maker_alone(make_hub, exported, capsys, caplog):
    hub = make_hub()
    with caplog.at_level(logging.DEBUG):
        assert main(["push", str(exported), "me/kappa", "--message", "First"]) == 0
    assert hub.files["me/kappa"] == content(exported)
    assert hub.is_private["me/kappa"]
    assert hub.commits == ["First"]
    printed = capsys.readouterr()
    assert printed.out == f"{hub.endpoint}/me/kappa\n"
    assert TOKEN not in printed.out + printed.err + caplog.text


def test_a_repository_that_is_there_takes_what_is_new_and_stays_as_it_is(make_hub, exported):
    hub = make_hub()
    push(exported, "me/kappa", private=False)
    (exported / "model-1.safetensors").write_bytes(b"trained on")
    uploaded = len(hub.uploads)
    push(exported, "me/kappa")
    assert hub.files["me/kappa"] == content(exported)
    assert len(hub.uploads) == uploaded + 1
    assert not hub.is_private["me/kappa"]


def test_a_push_that_was_cut_goes_on_where_it_was(make_hub, exported, monkeypatch):
    # the client tries again, with pauses that a test hasn't the time for
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    first, second = (hashlib.sha256((exported / f"model-{number}.safetensors").read_bytes()).hexdigest() for number in range(2))
    hub = make_hub(cut=second)
    # the two go up side by side: the first one's end isn't waited for if the second breaks off
    hub.objects[first] = (exported / "model-0.safetensors").read_bytes()
    with pytest.raises(HubError, match="isn't uploaded again"):
        push(exported, "me/kappa")
    assert hub.files["me/kappa"] == {}
    hub.cut = None
    push(exported, "me/kappa")
    assert hub.files["me/kappa"] == content(exported)
    assert hub.uploads == [second]


@pytest.mark.parametrize(
    ("status", "remedy"),
    [(401, "log in again"), (403, "write access"), (404, "USER/NAME"), (400, "Push again")],
)
def test_a_refusal_is_a_sentence_without_the_token(make_hub, exported, status, remedy, capsys):
    make_hub(refusal=status)
    assert main(["push", str(exported), "me/kappa"]) == 1
    said = capsys.readouterr().err
    assert f"answers {status}" in said
    assert remedy in said
    assert "Traceback" not in said
    assert TOKEN not in said


def test_without_a_network_it_says_so(monkeypatch, exported):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match=r"127\.0\.0\.1:9 can't be reached"):
        push(exported, "me/kappa")


def test_without_a_token_nothing_is_sent(make_hub, exported, monkeypatch):
    hub = make_hub()
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(InputError, match="hf auth login"):
        push(exported, "me/kappa")
    assert hub.files == {}


def test_a_run_that_can_not_be_exported_makes_no_repository(make_hub, tmp_path):
    hub = make_hub()
    run = make_run(tmp_path / "run", "all", seed=1, error_rate=0.2)
    with pytest.raises(CheckpointError, match="no checkpoint yet"):
        push(run, "me/kappa")
    # what is left of a run that lost its record has secrets beside its configuration
    (run / "run.json").unlink()
    (run / "secrets.json").write_text("{}")
    with pytest.raises(InputError, match="neither a run folder nor an export"):
        push(run, "me/kappa")
    assert hub.files == {}


def test_no_folder_of_this_machine_goes_up(make_hub, exported):
    hub = make_hub()
    parts = {"schema_version": 1, "encoder": "/home/me/base.pt", "base": {"llm": "/home/me/llm", "checkpoint_digest": "0"}}
    (exported / "speech.json").write_text(json.dumps(parts))
    push(exported, "me/kappa")
    pushed = json.loads(hub.files["me/kappa"]["speech.json"])
    assert pushed == {"schema_version": 1, "encoder": "base.pt", "base": {"llm": "llm", "checkpoint_digest": "0"}}
    assert hub.files["me/kappa"].keys() == content(exported).keys()
    assert json.loads((exported / "speech.json").read_text()) == parts


def test_what_is_no_export_and_no_name_is_refused_before_anything_is_sent(make_hub, exported, tmp_path):
    hub = make_hub()
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="neither a run folder nor an export"):
        push(tmp_path / "empty", "me/kappa")
    for options in ({"step": 5}, {"step": "best"}, {"base": "llm"}):
        with pytest.raises(InputError, match="are for a run"):
            push(exported, "me/kappa", **options)
    with pytest.raises(InputError, match="no repository's name"):
        push(exported, "me/kappa/more")
    assert hub.files == {}
