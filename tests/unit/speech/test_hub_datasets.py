"""Data sets of the hub, fetched from a double of it."""

from __future__ import annotations

import pytest
from huggingface_hub import constants

from kappaspeech.commands import main
from kappaspeech.errors import DataError, InputError
from kappaspeech.speech.hub_datasets import fetch_dataset
from kappaspeech.speech.shards import read_index
from tests.hub import FakeDatasets
from tests.speech_files import clip, write_parquet


@pytest.fixture
def hub_of(monkeypatch, tmp_path):
    """A hub with the data set me/speech of these files, and an empty cache."""
    opened = []

    def start(**files: dict[str, bytes]) -> FakeDatasets:
        opened.append(FakeDatasets("me/speech", files).__enter__())
        monkeypatch.setattr(constants, "ENDPOINT", opened[-1].endpoint)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.partition("/{repo_id}")
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", opened[-1].endpoint + "".join(template[1:]))
        return opened[-1]

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    # the double speaks the hub's HTTP, and no Xet
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield start
    for hub in opened:
        hub.__exit__()


@pytest.fixture
def parquet(tmp_path):
    def make(text: str) -> bytes:
        write_parquet(tmp_path / "made.parquet", [(clip(1.0), text, "en")])
        return (tmp_path / "made.parquet").read_bytes()

    return make


def test_a_data_set_is_fetched_and_packed_without_what_is_held_out(hub_of, parquet, tmp_path, capsys):
    names = ("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet")
    hub = hub_of(main={name: parquet(name[5:9]) for name in names} | {"README.md": b"a card"})
    assert main(["pack", "hf:me/speech", str(tmp_path / "shards"), "--workers", "1"]) == 0, capsys.readouterr().err
    assert hub.fetched == [names[0]]
    assert len(read_index(str(tmp_path / "shards/en-000000.tar")).samples) == 1
    # what is there isn't fetched again
    assert main(["pack", "hf:me/speech", str(tmp_path / "shards"), "--workers", "1"]) == 0
    assert main(["pack", "hf:me/speech", str(tmp_path / "test"), "--workers", "1", "--split", "test"]) == 0
    assert hub.fetched == list(names)


def test_what_the_hub_has_made_of_a_data_set_is_fetched_by_folder(hub_of, parquet):
    made = {f"{folder}/train/0000.parquet": parquet(folder) for folder in ("de_de", "en_us")}
    hub = hub_of(**{"main": {"speech.py": b""}, "refs/convert/parquet": made})
    with pytest.raises(DataError, match=r"2 folders \(de_de, en_us\).*as in hf:me/speech/en_us"):
        fetch_dataset("hf:me/speech")
    assert not hub.fetched
    folder = fetch_dataset("hf:me/speech/de_de")
    assert hub.fetched == ["de_de/train/0000.parquet"]
    assert (folder / "train/0000.parquet").read_bytes() == made["de_de/train/0000.parquet"]


def test_what_cannot_be_fetched_is_told(hub_of, monkeypatch):
    hub = hub_of(main={"audio.zip": b""})
    with pytest.raises(DataError, match="no Parquet files there"):
        fetch_dataset("hf:me/speech")
    with pytest.raises(DataError, match="The hub has no data set hf:me/other"):
        fetch_dataset("hf:me/other")
    for name in ("hf:speech", "hf:", "hf:me/speech/../other", "hf:me/--speech--"):
        with pytest.raises(InputError, match="names no data set"):
            fetch_dataset(name)
    hub.status = 503
    with pytest.raises(DataError, match="the hub answers 503"):
        fetch_dataset("hf:me/speech")
    hub.__exit__()
    with pytest.raises(DataError, match="The hub can't be reached for hf:me/speech"):
        fetch_dataset("hf:me/speech")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="HF_HUB_OFFLINE is set"):
        fetch_dataset("hf:me/speech")
