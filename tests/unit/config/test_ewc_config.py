"""The configuration's sections on what holds weights to their beginning."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from kappaspeech.config.ewc_config import EwcConfig
from kappaspeech.config.model_config import UnfreezeConfig
from kappaspeech.config.run_config import RunConfig


@pytest.mark.parametrize("changes", [{"weight": 0.0}, {"texts": {}}, {"max_tokens": 1}, {"num_pieces": 0}])
def test_what_would_hold_nothing_is_refused(changes):
    assert EwcConfig(texts={"de": "de.txt"}).weight == 1.0
    with pytest.raises(ValidationError):
        EwcConfig(**{"texts": {"de": "de.txt"}, **changes})


def test_a_subspace_is_of_a_selections_tensors_alone():
    found = UnfreezeConfig.model_validate({"selection": "kappa.json", "osf": {}})
    assert (found.mode, found.osf.kept_share) == ("selection", 0.5)
    for content in ({"osf": {}}, {"mode": "all", "osf": {}}, {"selection": "x", "mode": "lora", "osf": {}}):
        with pytest.raises(ValidationError, match="takes no osf section"):
            UnfreezeConfig.model_validate(content)
    for share in (0.0, 1.0):
        with pytest.raises(ValidationError):
            UnfreezeConfig.model_validate({"selection": "x", "osf": {"kept_share": share}})


def test_lora_is_held_by_no_fisher_information():
    content = {"ewc": {"texts": {"de": "de.txt"}}, "unfreeze": {"mode": "lora", "selection": "kappa.json"}}
    needed = {"run_dir": "run", "model": {"llm": "llm", "encoder": "base.pt"}, "data": {"train": [{"shards": "a.tar"}]}}
    needed["training"] = {"num_steps": 1}
    with pytest.raises(ValidationError, match="ewc can't hold LoRA"):
        RunConfig.model_validate({**needed, **content})
    assert RunConfig.model_validate({**needed, **content, "unfreeze": {"selection": "kappa.json"}}).ewc is not None
