"""Text beside a batch of speech: what it costs, what it holds, and that the speech doesn't notice it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional

from kappaspeech.labels import IGNORED_LABEL
from kappaspeech.model.label_logits import KeptStates, head_states
from kappaspeech.model.llm import load_llm
from kappaspeech.model.speech_llm import SpeechLLM
from kappaspeech.model.text_rows import TextRows, pad_texts
from kappaspeech.model.trained import build_adaptor
from tests.unit.model.test_speech_llm import PREFIX, SHAPE, SUFFIX, labels, states

# one of them longer than any row of speech, one shorter
TEXTS = [list(range(20, 70)), [9, 8, 7]]


@pytest.fixture
def model(home) -> SpeechLLM:
    return SpeechLLM(build_adaptor(SHAPE, seed=1), load_llm(str(home / "llm"), dtype=torch.float32))


def batch():
    return (*states(23, 40), PREFIX, SUFFIX, labels([20, 21, 22, 1], [30, 1]))


def move(model: SpeechLLM, *names: str) -> None:
    """Change tensors of the LLM, as training does."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.llm.named_parameters():
            if name in names:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)


def rows(base: KeptStates | None = None, *, weight: float = 0.0, anchor_weight: float = 0.0) -> TextRows:
    return TextRows(pad_texts(TEXTS), weight, anchor_weight, base)


def ask(model: SpeechLLM) -> torch.Tensor:
    return torch.cat([head_states(model.llm, torch.tensor(text)) for text in TEXTS])


def by_hand(llm, text: list[int]) -> torch.Tensor:
    return llm(torch.tensor([text])).logits[0, :-1].log_softmax(dim=-1)


def test_texts_cost_their_own_loss_and_speech_the_same_as_without_them(model):
    alone, nats = model(*batch())
    loss, beside, sums = model(*batch(), rows(weight=0.5))
    nats_of_texts = [functional.nll_loss(by_hand(model.llm, text), torch.tensor(text[1:]), reduction="sum") for text in TEXTS]
    expected = sum(float(part.detach()) for part in nats_of_texts)
    assert float(beside) == pytest.approx(float(nats), rel=1e-5)
    assert sums.tolist() == [pytest.approx(expected, rel=1e-5), 0]
    assert float(loss.detach()) == pytest.approx(float(alone.detach()) + 0.5 * expected, rel=1e-5)


@pytest.mark.parametrize("trained", ["model.layers.1.mlp.up_proj.weight", "lm_head.weight"])
def test_the_anchor_is_the_distance_from_the_base_also_where_the_head_has_moved(model, trained):
    base = copy.deepcopy(model.llm).requires_grad_(False)
    head = base.get_output_embeddings() if trained == "lm_head.weight" else None
    kept = KeptStates(ask(model), head)
    loss, _, sums = model(*batch(), rows(kept, anchor_weight=2.0))
    assert float(sums[1]) == pytest.approx(0, abs=1e-4)
    move(model, trained)
    alone = float(model(*batch())[0].detach())
    loss, _, sums = model(*batch(), rows(kept, anchor_weight=2.0))
    expected = 0.0
    for text in TEXTS:
        log_p, log_q = by_hand(base, text), by_hand(model.llm, text).detach()
        expected += float((log_p.exp() * (log_p - log_q)).sum())
    assert float(sums[1]) == pytest.approx(expected, rel=1e-4)
    assert expected > 0.01
    assert float(loss.detach()) == pytest.approx(alone + 2 * expected, rel=1e-4)


def test_a_batch_without_speech_still_holds_the_llm_by_its_texts(model):
    silence = (*states(2), PREFIX, SUFFIX, labels([IGNORED_LABEL]))
    loss, nats, sums = model(*silence, rows(weight=1.0))
    loss.backward()
    assert float(nats) == 0
    assert float(loss.detach()) == pytest.approx(float(sums[0]))
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_an_anchored_llm_stays_nearer_to_its_base_on_a_text_that_it_was_not_held_to(home):
    other = list(range(40, 90))
    distances = {}
    for anchor_weight in (0.0, 3.0):
        model = SpeechLLM(build_adaptor(SHAPE, seed=1), load_llm(str(home / "llm"), dtype=torch.float32))
        before, kept = by_hand(model.llm, other).detach(), KeptStates(ask(model))
        model.llm.get_output_embeddings().requires_grad_(False)
        steps = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
        for _ in range(15):
            steps.zero_grad()
            model(*batch(), rows(kept, anchor_weight=anchor_weight))[0].backward()
            steps.step()
        distances[anchor_weight] = float(
            functional.kl_div(by_hand(model.llm, other).detach(), before, reduction="sum", log_target=True)
        )
    assert distances[3.0] < 0.7 * distances[0.0]
