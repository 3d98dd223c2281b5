from __future__ import annotations

import dataclasses
import json
import shutil

from kappaspeech.planning.obstacles import find_obstacle
from kappaspeech.selection.tensor_selection import TensorSelection


def test_a_selection_of_its_own_model_has_nothing_against_it(home):
    assert find_obstacle(TensorSelection.read(home / "selection.json")) is None


def test_a_model_that_no_longer_has_a_tensor_is_told_of_with_its_name(home, tmp_path):
    selection = TensorSelection.read(home / "selection.json")
    folder = shutil.copytree(home / "llm", tmp_path / "llm")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    told = find_obstacle(dataclasses.replace(selection, model=str(folder)))
    (missing, *_) = [name for name in selection.names if name.startswith("model.layers.1.")]
    assert missing in str(told)


def test_nothing_is_said_of_a_model_that_is_not_here(home, tmp_path):
    selection = TensorSelection.read(home / "selection.json")
    assert find_obstacle(dataclasses.replace(selection, model="someone/something")) is None
    (tmp_path / "config.json").write_text("{}")
    assert find_obstacle(dataclasses.replace(selection, model=str(tmp_path))) is None
