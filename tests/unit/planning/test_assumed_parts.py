"""Configurations that are completed for a plan."""

from __future__ import annotations

import pytest
from transformers import AutoModelForCausalLM

from kappaspeech.config.run_config import read_run_config
from kappaspeech.planning.assumed_parts import complete
from tests import tiny


@pytest.mark.parametrize(("unfreeze", "share"), [({}, 0.5), ({"mode": "lora"}, 0.03)])
def test_a_share_of_the_llm_stands_for_a_selection_that_is_not_there(home, tmp_path, unfreeze, share):
    absent = str(tmp_path / "absent.json")
    path = tiny.write_config(tmp_path / "run.yaml", home, tmp_path / "run", unfreeze={**unfreeze, "selection": absent})
    known = complete(read_run_config(path), tmp_path, num_trained=None)
    llm = AutoModelForCausalLM.from_pretrained(home / "llm")
    assert known.num_trained == round(share * sum(parameter.numel() for parameter in llm.parameters()))
    (line,) = known.taken
    assert line.startswith(f"unfreeze.selection: {absent} isn't here; {share:.0%} of the LLM's parameters")
    said = complete(read_run_config(path), tmp_path, num_trained=7)
    assert (said.num_trained, said.taken) == (7, ())


def test_what_is_all_there_stays_as_it_is(home, tmp_path):
    config = read_run_config(tiny.write_config(tmp_path / "run.yaml", home, tmp_path / "run"))
    known = complete(config, tmp_path, num_trained=None)
    assert (known.config, known.num_trained, known.taken) == (config, None, ())
