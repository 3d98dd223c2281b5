from __future__ import annotations

import pytest
import torch
from torch import nn

from kappaspeech.errors import CheckpointError
from kappaspeech.model.label_logits import label_logits
from kappaspeech.model.llm import load_llm

ROWS, POSITIONS = torch.tensor([0, 1, 1]), torch.tensor([4, 0, 2])


@pytest.fixture(scope="module")
def llm(home):
    return load_llm(str(home / "llm"), dtype=torch.float32)


def embeddings(llm) -> torch.Tensor:
    return llm.get_input_embeddings()(torch.arange(3, 13).reshape(2, 5))


def test_the_logits_of_chosen_positions_are_those_of_the_whole_and_the_head_sees_no_other(llm):
    embeds = embeddings(llm)
    seen = []
    hook = llm.get_output_embeddings().register_forward_hook(lambda _head, inputs, _output: seen.append(inputs[0].shape[:-1]))
    with torch.no_grad():
        found = label_logits(llm, embeds, ROWS, POSITIONS)
        hook.remove()
        whole = llm(inputs_embeds=embeds, use_cache=False).logits
    torch.testing.assert_close(found, whole[ROWS, POSITIONS])
    assert seen == [(3,)]
    # nothing stays behind: the call above had all positions
    assert whole.shape[:-1] == (2, 5)


def test_a_head_that_fails_leaves_no_hook_behind(llm):
    with pytest.raises(IndexError):
        label_logits(llm, embeddings(llm), ROWS, POSITIONS + 10)
    with torch.no_grad():
        assert llm(inputs_embeds=embeddings(llm), use_cache=False).logits.shape[:-1] == (2, 5)


def test_an_llm_that_passes_its_head_by_is_refused(llm):
    class ByItsWeight(nn.Module):
        def get_output_embeddings(self):
            return llm.get_output_embeddings()

        def forward(self, inputs_embeds, **_options):
            return type("Output", (), {"logits": inputs_embeds @ llm.get_output_embeddings().weight.T})

    with torch.no_grad(), pytest.raises(CheckpointError, match="ByItsWeight passes its head by"):
        label_logits(ByItsWeight(), embeddings(llm), ROWS, POSITIONS)
