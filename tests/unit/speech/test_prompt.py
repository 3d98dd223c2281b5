"""The prompt around the audio, by templates and tokenizers of many kinds."""

from __future__ import annotations

import pytest
from tokenizers import processors
from transformers import AutoTokenizer

from kappaspeech.errors import CheckpointError, InputError
from kappaspeech.labels import IGNORED_LABEL
from kappaspeech.speech.batches import SpeechPrompt, make_prompt

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
