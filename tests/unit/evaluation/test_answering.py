"""Tasks answered by the tiny models: what is generated is what the LLM writes one prompt at a time."""

from __future__ import annotations

import copy
from dataclasses import fields, replace

import pytest
import torch

from kappaspeech.errors import CheckpointError, DataError
from kappaspeech.evaluation import answering, choice_items
from kappaspeech.evaluation.answering import answer_tasks
from kappaspeech.evaluation.choice_items import Item
from kappaspeech.evaluation.instruction_checks import Check, Instruction
from kappaspeech.evaluation.instructions import MAX_ANSWER_TOKENS
from kappaspeech.evaluation.transcribe import Transcriber
from kappaspeech.model.generation import ends_in_loop
from kappaspeech.model.trained import find_base, load_trained_model
from kappaspeech.ranks.cluster import SingleProcess
from tests.parity.steps import Case, build_parts
from tests.rank_threads import RankThreads, together

pytestmark = pytest.mark.usefixtures("on_one_thread")

CHECKS = (Check("lower_case", {}),)
# of several lengths, so that some are padded; what looks like a special token is text
INSTRUCTIONS = [
    Instruction(text, CHECKS) for text in ("turn it on", "öffne die Tür und die Lampe " * 3, "a", "the </s> lamp", "die Tür")
]
QUESTION = Item("turn the red lamp", ("on", "off"), 0)


@pytest.fixture(scope="module")
def transcriber(home):
    """The tiny models with two of the LLM's tensors changed, and with weights so large that answers differ."""
    parts = build_parts(home, Case())
    base = dict(parts.model.llm.named_parameters())
    torch.manual_seed(0)
    changes = {
        name: 8 * base[name].detach() + 0.2 for name in ("model.layers.0.mlp.up_proj.weight", "lm_head.weight") if name in base
    }
    trained = {f"llm.{name}": tensor for name, tensor in changes.items()}
    model = load_trained_model(str(home / "llm"), parts.model.adaptor.shape, trained, dtype=torch.float32)
    return Transcriber(
        model, parts.encoder, parts.tokenizer, parts.prompt, batch_size=2, max_new_tokens=4, base_weights=find_base(model)
    )


def write_plainly(transcriber, text) -> str:
    """One token after the other, without a cache, a batch or `generate`."""
    ids = transcriber.chat_ids(text)
    written: list[int] = []
    while len(written) < MAX_ANSWER_TOKENS:
        with torch.no_grad():
            logits_V = transcriber.model.llm(input_ids=torch.tensor([[*ids, *written]])).logits[0, -1]
        written.append(int(logits_V.argmax()))
        if written[-1] == transcriber.tokenizer.eos_token_id or ends_in_loop(torch.tensor([written])):
            break
    return transcriber.tokenizer.decode(written, skip_special_tokens=True).strip()


def answer(transcriber, items, *, stop=lambda: False):
    advanced: list[float] = []
    reports = answer_tasks(transcriber, {"en": items}, SingleProcess(), advanced.append, stop)
    return reports, sum(advanced)


def test_answers_are_those_of_a_plain_loop_and_the_bases_are_those_before_training(transcriber):
    reports, advanced = answer(transcriber, [*INSTRUCTIONS, QUESTION])
    assert advanced == 6
    assert list(reports) == ["tasks", "instructions"]
    assert reports["tasks"]["en"]["num_items"] == 1
    found = reports["instructions"]["en"]
    assert found["answers"] == [write_plainly(transcriber, item.text) for item in INSTRUCTIONS]
    with transcriber.base_weights():
        of_base = [write_plainly(transcriber, item.text) for item in INSTRUCTIONS]
    assert of_base != found["answers"]
    alone, _ = answer(replace(transcriber, base_weights=None), INSTRUCTIONS)
    assert alone["instructions"]["en"] == {**found, "base": None}
    with transcriber.base_weights():
        before, _ = answer(replace(transcriber, base_weights=None), INSTRUCTIONS)
    assert before["instructions"]["en"]["answers"] == of_base
    assert found["base"]["answers"] == of_base
    assert found["base"]["accuracy"] == before["instructions"]["en"]["accuracy"]


def test_answers_do_not_depend_on_the_size_of_a_batch(transcriber):
    sizes = [answer(replace(transcriber, batch_size=size), INSTRUCTIONS)[0] for size in (1, 5)]
    assert sizes[0] == sizes[1]


class TellsItsBatch(Transcriber):
    """Answers with the number of prompts in the batch, as rounding may hang on it."""

    def write(self, prompts):
        return [f"one of {len(prompts)}"] * len(prompts)


def test_what_a_rank_without_a_batch_writes_beside_the_others_is_no_answer(transcriber):
    """Under ZeRO-3, where every pass is one of all ranks: the answer by itself took the place of the one from its batch."""
    parts = {field.name: getattr(transcriber, field.name) for field in fields(transcriber)}
    telling = TellsItsBatch(**{**parts, "in_step": True, "base_weights": None})
    alone, _ = answer(telling, INSTRUCTIONS)
    with RankThreads() as ranks:
        found = together(
            ranks.connect(2),
            lambda cluster: answer_tasks(telling, {"en": INSTRUCTIONS}, cluster, lambda _: None, lambda: False),
        )
    assert sorted(set(alone["instructions"]["en"]["answers"])) == ["one of 1", "one of 2"]
    assert found == [alone, alone]


def test_questions_are_shared_out_as_instructions_are(transcriber, monkeypatch):
    """By the same rule: each rank makes as many passes as the others, and what it finds beside them is none of the answers."""
    monkeypatch.setattr(choice_items, "WINDOW_TOKENS", 24)
    questions = [replace(QUESTION, question=f"turn {colour} lamp {'green ' * number}") for number, colour in enumerate("abcd")]
    passes: list[int] = []

    def score(_llm, batches):
        passes.append(len(batches))
        # on its own an answer is rounded otherwise
        return {item.choice: len(batch) for batch in batches for row in batch for item in row.foretold}

    monkeypatch.setattr(answering, "score_batches", score)
    parts = {field.name: getattr(transcriber, field.name) for field in fields(transcriber)}
    decoder = Transcriber(**{**parts, "in_step": True, "base_weights": None})
    alone, _ = answer(decoder, questions)
    count, before = sum(passes), len(passes)
    with RankThreads() as ranks:
        found = together(
            ranks.connect(2), lambda cluster: answer_tasks(decoder, {"en": questions}, cluster, lambda _: None, lambda: False)
        )
    assert found == [alone, alone]
    assert count % 2
    assert sum(passes[before:]) == count + 1


def test_an_answer_ends_where_the_llm_ends_a_turn(transcriber):
    config = transcriber.model.llm.generation_config
    (whole,) = transcriber.write([transcriber.chat_ids("turn it on")])
    ids = transcriber.tokenizer(whole, add_special_tokens=False)["input_ids"]
    before = config.eos_token_id
    config.eos_token_id = [before, ids[2]]
    try:
        (cut,) = transcriber.write([transcriber.chat_ids("turn it on")])
    finally:
        config.eos_token_id = before
    assert len(cut) < len(whole)
    assert whole.startswith(cut)


def test_the_chat_template_is_taken_whatever_the_prompt_of_speech_is(transcriber):
    # no system turn is added to it
    for chosen in (transcriber, replace(transcriber, chat_template=False)):
        assert transcriber.tokenizer.decode(chosen.chat_ids("turn it on")) == "[user]turn it on[a]"
    thinking = copy.deepcopy(transcriber.tokenizer)
    thinking.chat_template += "{% if enable_thinking is not defined or enable_thinking %}[on]{% endif %}"
    assert thinking.decode(replace(transcriber, tokenizer=thinking).chat_ids("turn it on")) == "[user]turn it on[a]"
    thinking.chat_template = "{{ raise_exception('no') }}"
    with pytest.raises(CheckpointError, match=r"or leave instructions out of data\.tasks\.$"):
        replace(transcriber, tokenizer=thinking, chat_template=False).chat_ids("turn it on")
    bare = copy.deepcopy(transcriber.tokenizer)
    bare.chat_template = None
    plain = replace(transcriber, tokenizer=bare).chat_ids("turn it on")
    assert bare.decode(plain, skip_special_tokens=True).strip() == "turn it on"


def test_an_instruction_that_is_too_long_is_refused_and_one_that_is_stopped_says_nothing(transcriber):
    with pytest.raises(
        DataError, match=r"data\.tasks: 'on on .* tokens with the chat template, and an instruction may have 1024"
    ):
        answer(transcriber, [Instruction("on " * 1_200, CHECKS)])
    assert answer(transcriber, INSTRUCTIONS, stop=lambda: True) == (None, 0)
