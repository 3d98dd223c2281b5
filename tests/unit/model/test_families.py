"""The demands of training on an LLM, over tiny models of many families by transformers' own classes."""

from __future__ import annotations

import importlib.util
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from kappaspeech.errors import CheckpointError
from kappaspeech.labels import IGNORED_LABEL
from kappaspeech.model.adaptor import AdaptorShape
from kappaspeech.model.embedded_words import check_embedded_words
from kappaspeech.model.family import attentions_of, check_hears, find_class
from kappaspeech.model.llm import decoder_layers
from kappaspeech.model.speech_llm import SpeechLLM, embedding_width, token_embedding_std
from kappaspeech.model.trained import build_adaptor
from tests.documents import REPOSITORY
from tests.families import FAMILIES, VOCABULARY, make_config, make_llm

# what each is refused for, by name, before anything is loaded
REFUSED = {"Falcon-H1": "continues token ids alone", "Gemma-3 multimodal": "continues token ids alone"}
TRAINED = [name for name in FAMILIES if name not in REFUSED]
PREFIX, SUFFIX = torch.tensor([5, 6, 7]), torch.tensor([8, 9])
LABELS = torch.tensor([[20, 21, 22, 1], [30, 1, IGNORED_LABEL, IGNORED_LABEL]])


@cache
def load(name: str) -> Any:
    return make_llm(name)


@cache
def speech_llm(name: str) -> SpeechLLM:
    llm = load(name)
    width = embedding_width(llm)
    shape = AdaptorShape(16, width, width, 4, 4, 0.0, token_embedding_std(llm))
    return SpeechLLM(build_adaptor(shape, seed=1), llm)


def states() -> tuple[torch.Tensor, torch.Tensor]:
    values = torch.randn(2, 30, 16, generator=torch.Generator().manual_seed(0))
    counts = torch.tensor([30, 17])
    return values * (torch.arange(30)[None] < counts[:, None])[:, :, None], counts


@pytest.mark.parametrize("name", TRAINED)
def test_the_training_loss_is_the_models_own(name):
    """Row by row, by the labels that transformers' own loss is given."""
    model = speech_llm(name)
    values, counts = states()
    with torch.no_grad():
        _, nats = model(values, counts, PREFIX, SUFFIX, LABELS)
        expected = 0.0
        for row in range(len(LABELS)):
            audio, number = model.adaptor(values[row : row + 1, : counts[row]], counts[row : row + 1])
            ids = LABELS[row][LABELS[row] != IGNORED_LABEL]
            embed = model.llm.get_input_embeddings()
            sequence = torch.cat([embed(PREFIX), audio[0, : int(number)], embed(SUFFIX), embed(ids)])[None]
            targets = torch.full(sequence.shape[:2], IGNORED_LABEL)
            targets[0, -len(ids) :] = ids
            loss = model.llm(inputs_embeds=sequence, labels=targets, use_cache=False, output_router_logits=False).loss
            expected += float(loss) * len(ids)
    assert float(nats) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", TRAINED)
def test_text_read_as_embeddings_is_text_read_as_tokens(name):
    """`evaluation.forgetting` measures the same model that training changes."""
    llm = load(name)
    ids = torch.randint(2, VOCABULARY, (2, 11), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        by_tokens = llm(input_ids=ids, use_cache=False).logits
        by_embeddings = llm(inputs_embeds=llm.get_input_embeddings()(ids), use_cache=False).logits
    torch.testing.assert_close(by_embeddings, by_tokens, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", TRAINED)
def test_audio_embeddings_begin_at_the_scale_of_the_words(name):
    model = speech_llm(name)
    with torch.no_grad():
        audio, _ = model.adaptor(*states())
        words = model.llm.get_input_embeddings()(torch.arange(VOCABULARY))
    assert float(audio[0].std()) == pytest.approx(float(words.std()), rel=0.15)


def test_the_head_is_applied_at_label_positions_alone():
    model = speech_llm("Gemma-2")
    seen = []
    hook = model.llm.get_output_embeddings().register_forward_hook(lambda _head, _inputs, output: seen.append(output.shape))
    with torch.no_grad():
        model(*states(), PREFIX, SUFFIX, LABELS)
    hook.remove()
    assert seen == [(6, VOCABULARY)]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_that_can_not_hear_is_refused_by_its_config(name):
    if name not in REFUSED:
        check_hears(make_config(name))
        return
    with pytest.raises(CheckpointError, match=REFUSED[name]) as refused:
        check_hears(make_config(name))
    assert find_class(make_config(name)).__name__ in str(refused.value)


@pytest.mark.parametrize("name", TRAINED)
def test_every_family_that_trains_meets_embedded_words_as_tokens(name):
    check_embedded_words(load(name))


def test_a_family_that_scales_what_comes_from_tokens_alone_is_refused():
    with pytest.raises(CheckpointError, match="FalconH1ForCausalLM reads words given as embeddings otherwise"):
        check_embedded_words(make_llm("Falcon-H1"))


@pytest.mark.parametrize("model_type", ["t5", "whisper", "clip", "gemma3n_text"])
def test_what_does_not_read_embeddings_as_a_decoder_is_refused_by_its_config(model_type):
    from transformers import AutoConfig

    with pytest.raises(CheckpointError, match=r"as model\.llm"):
        check_hears(AutoConfig.for_model(model_type))


@pytest.mark.parametrize("name", TRAINED)
def test_every_familys_layers_are_found(name):
    llm = load(name)
    layers = decoder_layers(llm)
    assert len(layers) == llm.config.get_text_config(decoder=True).num_hidden_layers == 2


def test_the_page_of_families_says_what_is_so():
    """`python benchmarks/families.py --write-docs` makes it."""
    lines = (Path(__file__).parents[3] / "docs/families.md").read_text(encoding="utf-8").splitlines()
    rows = {cells[1]: cells[2:] for line in lines if len(cells := [cell.strip() for cell in line.split("|")]) == 6}
    assert set(FAMILIES) <= set(rows)
    for name in FAMILIES:
        takes = attentions_of(find_class(make_config(name)))
        assert rows[name][:2] == [takes.family, takes.default], name
        assert ("refused" in rows[name][2]) == (name in REFUSED), name
        assert "FAILS" not in rows[name][2]
        assert "NOT" not in rows[name][2]


def test_the_page_of_families_is_made_of_its_record():
    spec = importlib.util.spec_from_file_location("families_of_benchmarks", REPOSITORY / "benchmarks/families.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    record = json.loads((REPOSITORY / "benchmarks/results/families.json").read_text(encoding="utf-8"))
    assert made.make_page(record) == made.DOCS.read_text(encoding="utf-8"), "run python benchmarks/families.py --write-docs"
