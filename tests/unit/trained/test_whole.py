"""An export in one model: what transformers loads from it computes what was written, bit by bit, for every family."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from kappaspeech.errors import CheckpointError, InputError
from kappaspeech.evaluation.lm_harness import check_harness
from kappaspeech.evaluation.transcribe import Transcriber
from kappaspeech.model.adaptor import AdaptorShape
from kappaspeech.model.encoder import load_encoder
from kappaspeech.model.llm import load_llm, load_tokenizer
from kappaspeech.model.speech_llm import SpeechLLM, embedding_width
from kappaspeech.model.trained import build_adaptor
from kappaspeech.portable.modeling_kappaspeech import KappaSpeechModel
from kappaspeech.portable.processing_kappaspeech import KappaSpeechProcessor
from kappaspeech.speech.prompt import SpeechPrompt
from kappaspeech.speech.samples import AudioSample
from kappaspeech.trained.arithmetic import UseArithmetic
from kappaspeech.trained.whole import write_model
from kappaspeech.trained.whole_opening import is_whole, load_whole
from tests.families import CHAT_DEFAULTS, FAMILIES, make_llm

HEARING = [name for name in FAMILIES if name not in ("Falcon-H1", "Gemma-3 multimodal")]
PROMPT = SpeechPrompt(torch.tensor([5, 6, 7]), torch.tensor([8, 9]))
CLIPS = [
    AudioSample("a", 0.1 * np.random.default_rng(seed).standard_normal(length).astype(np.float32), "", "")
    for seed, length in ((0, 9600), (1, 5000))
]


def speaker(home, llm, *, dtype=torch.float32, encoder_dtype=torch.float32, pad_to_30s=False) -> Transcriber:
    width = embedding_width(llm)
    adaptor = build_adaptor(AdaptorShape(16, width, 32, 4, 4, 0.0, 0.5), seed=1).to(dtype)
    encoder = load_encoder(str(home / "whisper.pt"), dtype=encoder_dtype, pad_to_30s=pad_to_30s)
    model = SpeechLLM(adaptor, llm.to(dtype)).eval()
    return Transcriber(model, encoder, load_tokenizer(str(home / "llm")), PROMPT, batch_size=2, max_new_tokens=6)


def logits(model, embeds, mask):
    with torch.no_grad():
        return model(inputs_embeds=embeds, attention_mask=mask).logits


def load(folder, **options):
    model, found = KappaSpeechModel.from_pretrained(folder, output_loading_info=True, **options)
    assert not any(found.values()), found
    inputs = KappaSpeechProcessor.from_pretrained(folder)([clip.waveform for clip in CLIPS], sampling_rate=16_000)
    return model.eval(), inputs


@pytest.mark.parametrize("name", HEARING)
def test_a_family_is_loaded_as_it_was_written(home, name, tmp_path):
    ours = speaker(home, make_llm(name))
    write_model(tmp_path, ours)
    model, inputs = load(tmp_path)
    with torch.no_grad():
        expected, mask = ours._embed(CLIPS)
        embeds, same_mask = model.embed(**inputs)
    assert torch.equal(embeds, expected)
    assert torch.equal(mask, same_mask)
    weights, written = ours.model.llm.state_dict(), model.llm.state_dict()
    assert all(torch.equal(weights[key], written[key]) for key in weights)
    # the same numbers at other addresses: some kernels without AVX-512 sum what isn't aligned in another order
    torch.testing.assert_close(logits(model.llm, embeds, mask), logits(ours.model.llm, expected, mask), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("encoder_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pad_to_30s", [False, True])
def test_each_part_computes_in_the_dtype_of_its_training(home, dtype, encoder_dtype, pad_to_30s, tmp_path):
    llm = load_llm(str(home / "llm"), dtype=dtype, attention="sdpa")
    ours = speaker(home, llm, dtype=dtype, encoder_dtype=encoder_dtype, pad_to_30s=pad_to_30s)
    write_model(tmp_path, ours)
    model, inputs = load(tmp_path)
    assert (model.llm.dtype, model.encoder.dtype, model.adaptor.project.weight.dtype) == (dtype, encoder_dtype, dtype)
    assert model.encoder.whisper.ln_post.weight.dtype == torch.float32
    expected = [decoded.text for decoded in ours.decode(CLIPS)]
    processor = KappaSpeechProcessor.from_pretrained(tmp_path)
    assert processor.texts(model.generate(**inputs, max_new_tokens=6)) == expected
    # the number of tokens is that of the export unless another is asked for
    assert processor.texts(model.generate(**inputs)) == expected
    assert model.generate(**inputs, max_new_tokens=2).shape[1] == 2


def test_settings_that_are_given_leave_the_others_as_they_are(home, tmp_path):
    write_model(tmp_path, speaker(home, load_llm(str(home / "llm"), dtype=torch.float32)))
    model, inputs = load(tmp_path)
    expected = model.generate(**inputs)
    assert expected.shape[1] == 6
    for given in (None, GenerationConfig(do_sample=False)):
        assert torch.equal(model.generate(**inputs, generation_config=given), expected)


def test_in_another_dtype_all_of_it_computes_in_that(home, tmp_path):
    llm = load_llm(str(home / "llm"), dtype=torch.bfloat16)
    write_model(tmp_path, speaker(home, llm, dtype=torch.bfloat16, encoder_dtype=torch.bfloat16))
    model, _ = load(tmp_path, dtype=torch.float32)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_a_saved_copy_is_the_same_model(home, tmp_path):
    llm = load_llm(str(home / "llm"), dtype=torch.bfloat16)
    write_model(tmp_path, speaker(home, llm, dtype=torch.bfloat16))
    model, inputs = load(tmp_path)
    model.save_pretrained(tmp_path / "again")
    assert model.dtype == torch.bfloat16
    again = KappaSpeechModel.from_pretrained(tmp_path / "again").eval()
    assert torch.equal(again.embed(**inputs)[0], model.embed(**inputs)[0])


def test_an_eager_run_stays_eager(home, tmp_path):
    llm = load_llm(str(home / "llm"), dtype=torch.float32, attention="eager")
    write_model(tmp_path, speaker(home, llm))
    model, _ = load(tmp_path)
    assert model.llm.config._attn_implementation == "eager"
    assert load(tmp_path, attn_implementation="sdpa")[0].llm.config._attn_implementation == "sdpa"


def test_it_is_opened_here_without_its_own_code(home, tmp_path):
    llm = load_llm(str(home / "llm"), dtype=torch.bfloat16, attention="sdpa")
    ours = speaker(home, llm, dtype=torch.bfloat16)
    write_model(tmp_path, ours)
    assert is_whole(tmp_path)
    assert not is_whole(home / "llm")
    for path in tmp_path.glob("*.py"):
        path.write_text("raise SystemExit('code of a folder was run')")
    read = load_whole(tmp_path, UseArithmetic(bfloat16_is_fast=True))
    again = replace(ours, model=read.model, encoder=read.encoder, tokenizer=read.tokenizer, prompt=read.prompt)
    assert again.decode(CLIPS) == ours.decode(CLIPS)


def test_it_decodes_with_the_beams_of_its_training(home, tmp_path):
    greedy = speaker(home, load_llm(str(home / "llm"), dtype=torch.float32))
    ours = replace(greedy, num_beams=3)
    write_model(tmp_path, ours)
    model, inputs = load(tmp_path)
    processor = KappaSpeechProcessor.from_pretrained(tmp_path)
    expected = [decoded.text for decoded in ours.decode(CLIPS)]
    assert processor.texts(model.generate(**inputs)) == expected
    assert (
        processor.texts(model.generate(**inputs, num_beams=1)) == [decoded.text for decoded in greedy.decode(CLIPS)] != expected
    )
    assert load_whole(tmp_path, UseArithmetic(bfloat16_is_fast=False)).num_beams == 3


def test_a_torn_one_is_refused_in_a_sentence(home, tmp_path):
    write_model(tmp_path, speaker(home, load_llm(str(home / "llm"), dtype=torch.float32)))
    content = json.loads((tmp_path / "config.json").read_text())
    del content["trained_in"]
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="Export it again"):
        load_whole(tmp_path, UseArithmetic(bfloat16_is_fast=True))


def test_no_path_of_this_machine_is_in_it(home, tmp_path):
    write_model(tmp_path, speaker(home, load_llm(str(home / "llm"), dtype=torch.float32)))
    for path in tmp_path.glob("*.json"):
        assert str(home) not in path.read_text(), path.name


def test_text_tasks_want_the_llm_alone(home, tmp_path):
    write_model(tmp_path, speaker(home, load_llm(str(home / "llm"), dtype=torch.float32)))
    with pytest.raises(InputError, match="--only llm"):
        check_harness(tmp_path)


def test_an_export_is_asked_what_a_data_set_of_its_training_was(home, tmp_path):
    llm = load_llm(str(home / "llm"), dtype=torch.float32)
    other = SpeechPrompt(torch.tensor([4]), torch.tensor([9, 8, 7]))
    asked = replace(PROMPT, others={"Answer: {audio}": other})
    ours = replace(speaker(home, llm), prompt=asked, chat_template=False)
    write_model(tmp_path, ours)
    model, inputs = load(tmp_path)
    expected, mask = ours._embed([replace(clip, instruction="Answer: {audio}") for clip in CLIPS])
    with torch.no_grad():
        embeds, same_mask = model.embed(**inputs, instruction="Answer: {audio}")
        plain, _ = model.embed(**inputs)
    assert torch.equal(embeds, expected)
    assert torch.equal(mask, same_mask)
    assert plain.shape[1] == embeds.shape[1] + PROMPT.num_tokens - other.num_tokens
    assert model.generate(**inputs, instruction="Answer: {audio}", max_new_tokens=2).shape[1] <= 2
    with pytest.raises(ValueError, match=r"'Sing'.*'Answer: \{audio\}'"):
        model.generate(**inputs, instruction="Sing")
    read = load_whole(tmp_path, UseArithmetic(bfloat16_is_fast=False))
    assert (read.prompt.to_json(), read.chat_template) == (asked.to_json(), False)


def test_it_is_written_whatever_defaults_the_base_brings_and_generates_the_same(home, tmp_path):
    ours = speaker(home, make_llm("Llama"))
    for name in ("plain", "chat"):
        (tmp_path / name).mkdir()
    write_model(tmp_path / "plain", ours)
    for name, value in CHAT_DEFAULTS.items():
        setattr(ours.model.llm.generation_config, name, value)
    write_model(tmp_path / "chat", ours)
    (plain, inputs), (chat, _) = load(tmp_path / "plain"), load(tmp_path / "chat")
    assert torch.equal(chat.generate(**inputs), plain.generate(**inputs))
