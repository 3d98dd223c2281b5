"""The prompt around the audio, by templates and tokenizers of many kinds."""

from __future__ import annotations

import json

import pytest
import torch
from tokenizers import processors
from transformers import AutoTokenizer

from kappaspeech.errors import CheckpointError, InputError
from kappaspeech.labels import IGNORED_LABEL
from kappaspeech.speech.prompt import SpeechPrompt, hot_word_ids, make_prompt

PLAIN = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[a]"
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + PLAIN
STRICT = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}"
    "{% endif %}{{ m.content }}{% endfor %}"
)
DEAF = "{% for m in messages %}{{ m.role }}{% endfor %}"


@pytest.fixture
def tokenizer(home):
    return AutoTokenizer.from_pretrained(home / "llm")


@pytest.fixture
def beginning(tokenizer):
    """A tokenizer that begins each text with BOS, as those of Llama and Gemma do."""
    bos, bos_id = tokenizer.bos_token, tokenizer.bos_token_id
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, bos_id)])
    assert tokenizer("a")["input_ids"][0] == bos_id
    return tokenizer


@pytest.mark.parametrize(
    ("template", "before"), [(PLAIN, "[system][user]Hear: "), (NO_SYSTEM, "[user]Hear: "), (STRICT, "Hear: ")]
)
def test_no_system_turn_is_given_to_a_template_that_has_none(tokenizer, template, before):
    tokenizer.chat_template = template
    prompt = make_prompt(tokenizer, "Hear: {audio}")
    assert tokenizer.decode(prompt.prefix_ids) == before


@pytest.mark.parametrize(
    ("template", "complaint"),
    [(DEAF, "leaves out what the user says"), ("{{ raise_exception('no chat here') }}", "no chat here"), ("{% oops %}", "oops")],
)
def test_a_template_that_renders_no_users_turn_is_refused_with_a_way_out(tokenizer, template, complaint):
    tokenizer.chat_template = template
    with pytest.raises(CheckpointError, match=complaint) as refused:
        make_prompt(tokenizer, "Hear: {audio}")
    assert "model.chat_template" in str(refused.value)
    assert make_prompt(tokenizer, "Hear: {audio}", chat=False).prefix_ids.numel()


def test_a_base_models_prompt_begins_as_its_texts_do(beginning):
    bos = beginning.bos_token_id
    assert make_prompt(beginning, "Hear: {audio}", chat=False).prefix_ids.tolist() == beginning("Hear: ")["input_ids"]
    beginning.chat_template = None
    assert make_prompt(beginning, "Hear: {audio}").prefix_ids[0] == bos
    assert make_prompt(beginning, "{audio}").prefix_ids.tolist() == [bos]
    # as versions made it that wrote no prompt down
    assert bos not in make_prompt(beginning, "Hear: {audio}", as_before=True).prefix_ids.tolist()
    # what a template says is all there is
    beginning.chat_template = PLAIN
    assert bos not in make_prompt(beginning, "Hear: {audio}").prefix_ids.tolist()


def test_a_tokenizer_that_begins_no_text_with_bos_begins_no_prompt_with_it(tokenizer):
    tokenizer.chat_template = None
    assert tokenizer.decode(make_prompt(tokenizer, "Hear: {audio}").prefix_ids) == "Hear: "


def test_a_prompt_is_read_as_it_was_written(tokenizer):
    prompt = make_prompt(tokenizer, "Hear: {audio} Write.")
    again = SpeechPrompt.from_json(prompt.to_json())
    assert (again.prefix_ids.tolist(), again.suffix_ids.tolist()) == (prompt.prefix_ids.tolist(), prompt.suffix_ids.tolist())


@pytest.mark.parametrize("content", [None, [], {}, {"prefix_ids": [1]}, {"prefix_ids": [1], "suffix_ids": [True]}, "ids"])
def test_what_is_no_prompt_is_refused(content):
    with pytest.raises(InputError, match="token ids"):
        SpeechPrompt.from_json(content)


def test_each_row_of_a_batch_has_the_prompt_of_its_instruction(tokenizer):
    tokenizer.chat_template = PLAIN
    prompt = make_prompt(tokenizer, "Hear: {audio}", others=["Say it in German: {audio} Now."])
    rows = prompt.around([None, "Say it in German: {audio} Now.", None])
    texts = [[tokenizer.decode([index for index in ids if index != IGNORED_LABEL]) for ids in side.tolist()] for side in rows]
    assert texts[0] == ["[system][user]Hear: ", "[system][user]Say it in German: ", "[system][user]Hear: "]
    assert texts[1] == ["[a]", " Now.[a]", "[a]"]
    # one prompt for all costs a batch nothing
    assert [ids.dim() for ids in prompt.around([None, None])] == [1, 1]
    again = SpeechPrompt.from_json(prompt.to_json())
    assert again.to_json() == prompt.to_json()
    assert again.of("Say it in German: {audio} Now.").num_tokens > again.num_tokens
    assert make_prompt(tokenizer, "Hear: {audio}").to_json().keys() == {"prefix_ids", "suffix_ids"}


@pytest.mark.parametrize("others", [[], {"Write": None}, {"Write": {"prefix_ids": ["1"], "suffix_ids": []}}])
def test_other_instructions_that_are_no_prompts_are_told(others):
    with pytest.raises(InputError, match="no token ids"):
        SpeechPrompt.from_json({"prefix_ids": [1], "suffix_ids": [], "others": others})


def test_a_prompt_names_hot_words_in_a_line_before_its_instruction(tokenizer):
    other = "Say it in German: {audio} Now."
    prompt = make_prompt(tokenizer, "Hear: {audio}", others=[other], hot_words=True)
    plain = make_prompt(tokenizer, "Hear: {audio}", others=[other])
    ids = hot_word_ids(tokenizer, ["New York", "Örebro"])
    prefix, suffix = prompt.around([None, other, None], [ids, ids, ()])
    texts = [tokenizer.decode([i for i in row.tolist() if i != IGNORED_LABEL]) for row in prefix]
    bare = [tokenizer.decode(plain.of(instruction).prefix_ids) for instruction in (None, other)]
    line = "Hot words: New York, Örebro\n"
    assert texts == [bare[0].replace("Hear", f"{line}Hear"), bare[1].replace("Say", f"{line}Say"), bare[0]]
    assert line in texts[0]
    assert suffix[0].tolist() == [*plain.suffix_ids.tolist(), *[IGNORED_LABEL] * (suffix.shape[1] - plain.suffix_ids.numel())]
    # without words nothing has changed
    assert torch.equal(prompt.prefix_ids, plain.prefix_ids)
    assert [part.dim() for part in prompt.around([None, None], [(), ()])] == [1, 1]
    assert prompt.count_tokens(len(ids)) == prefix[0].numel() - int((prefix[0] == IGNORED_LABEL).sum()) + plain.suffix_ids.numel()
    assert prompt.count_tokens() == plain.num_tokens
    kept = SpeechPrompt.from_json(json.loads(json.dumps(prompt.to_json())))
    assert torch.equal(kept.of(other).before_audio(ids), prompt.of(other).before_audio(ids))
    with pytest.raises(InputError, match=r"without data\.hot_words"):
        plain.around([None], [ids])
    with pytest.raises(InputError, match="no token ids"):
        SpeechPrompt.from_json({**prompt.to_json(), "around_hot_words": [[1]]})


def test_hot_words_are_text_and_as_many_as_their_tokens_allow(tokenizer):
    words = ["red", "</s>", "lamp"]
    ids = hot_word_ids(tokenizer, words)
    assert tokenizer.eos_token_id not in ids
    assert tokenizer.decode(ids) == " red, </s>, lamp"
    assert hot_word_ids(tokenizer, words, max_tokens=len(ids)) == ids
    assert tokenizer.decode(hot_word_ids(tokenizer, words, max_tokens=len(ids) - 1)) == " red, </s>"
    assert hot_word_ids(tokenizer, words, max_tokens=1) == hot_word_ids(tokenizer, []) == ()
