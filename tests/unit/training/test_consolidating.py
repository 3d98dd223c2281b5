"""The text by which weights are held: evenly of each language, and never what is measured."""

from __future__ import annotations

import pytest
import torch

from kappaspeech.config.model_config import UnfreezeConfig
from kappaspeech.config.run_config import read_run_config
from kappaspeech.errors import ConfigError, DataError
from kappaspeech.model.llm import load_llm, load_tokenizer
from kappaspeech.model.speech_llm import SpeechLLM
from kappaspeech.selection.tensor_selection import SelectedTensor, TensorSelection
from kappaspeech.training.assembly import digest_trained
from kappaspeech.training.consolidating import read_consolidated, trains_llm
from tests import tiny


def test_pieces_are_spread_over_each_language_and_measured_text_is_refused(home, tmp_path):
    tokenizer = load_tokenizer(str(home / "llm"))

    def read(**changes):
        path = tiny.write_config(tmp_path / "run.yaml", home, tmp_path / "run", **changes)
        return read_consolidated(read_run_config(path), tokenizer)

    assert read() == []
    lines = [f"die Tür ist {color}" for color in ("rot", "grün", "blau", "weit", "alt", "neu")]
    (tmp_path / "de.txt").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "en.txt").write_text("open the door\n", encoding="utf-8")
    texts = {"de": str(tmp_path / "de.txt"), "en": str(tmp_path / "en.txt")}
    found = [tokenizer.decode(piece) for piece in read(ewc={"texts": texts, "num_pieces": 3})]
    assert found == [lines[0], lines[2], lines[4], "open the door"]
    assert max(map(len, read(ewc={"texts": texts, "max_tokens": 4}))) == 4
    with pytest.raises(ConfigError, match=r"of ewc\.texts are in data\.text"):
        read(ewc={"texts": {"en": str(home / "text.txt")}})
    (tmp_path / "en.txt").write_text("a\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"\(ewc\.texts\) is too short"):
        read(ewc={"texts": texts})


def test_an_arm_of_the_adaptor_alone_has_nothing_to_hold(home):
    model = SpeechLLM(torch.nn.Identity(), load_llm(str(home / "llm"), dtype=None))
    assert trains_llm(model)
    model.llm.requires_grad_(False)
    assert not trains_llm(model)


def test_a_checkpoint_in_a_subspace_is_no_checkpoint_of_another():
    selection = TensorSelection("by hand", "", "", "", (SelectedTensor("a.weight", (3, 2), kappa=1.0),))
    options = [{}, {"osf": {"kept_share": 0.5}}, {"osf": {"kept_share": 0.25}}]
    digests = {digest_trained(UnfreezeConfig.model_validate({"selection": "x", **item}), selection) for item in options}
    assert len(digests) == 3
