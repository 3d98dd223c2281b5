"""Greedy and beam decoding: the same text in any company, loops cut, plain Whisper beside it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from kappaspeech.errors import DataError, InputError
from kappaspeech.evaluation.decoding import LOOP_MIN_TOKENS, cut_at_end, ends_in_loop
from kappaspeech.evaluation.transcribe import Certainty, Transcriber
from kappaspeech.evaluation.whisper_baseline import open_whisper
from kappaspeech.speech.prompt import make_prompt
from kappaspeech.speech.samples import AudioSample, log_mel
from tests.parity.steps import Case, build_parts

EOS = 1
NUM_SAMPLES = 7


pytestmark = pytest.mark.usefixtures("on_one_thread")


def build(home, *, scale: float) -> Transcriber:
    parts = build_parts(home, Case())
    with torch.no_grad():
        for parameter in parts.model.llm.parameters():
            parameter.mul_(scale)
        parts.model.adaptor.output_norm.weight.mul_(20)
    parts.model.eval().requires_grad_(False)
    return Transcriber(parts.model, parts.encoder, parts.tokenizer, parts.prompt, batch_size=3, max_new_tokens=20)


@pytest.fixture(scope="module")
def transcriber(home):
    """The tiny models in float32. A random model's most likely token hardly depends on the audio, so its weights are larger."""
    return build(home, scale=3)


@pytest.fixture(scope="module")
def samples():
    rng = np.random.default_rng(0)
    lengths = rng.integers(3_000, 40_000, NUM_SAMPLES)
    return [
        AudioSample(str(i), rng.normal(0, 0.1, length).astype(np.float32), "", "de" if i % 2 else "en")
        for i, length in enumerate(lengths)
    ]


def test_more_hot_words_than_the_llm_can_read_are_refused(transcriber):
    naming = replace(transcriber, prompt=make_prompt(transcriber.tokenizer, "Write. {audio}", hot_words=True))
    assert naming.with_hot_words(["Ludwig"]).hot_words == ("Ludwig",)
    with pytest.raises(InputError, match=r"gives 400 words of \d+ tokens.*the LLM reads 512 at most"):
        naming.with_hot_words([f"word{number}" for number in range(400)])


def test_hot_words_that_would_take_minutes_a_clip_are_refused_whatever_the_llm_reads(home):
    """10,000 of them kept two processors and a tiny LLM busy for more than two minutes with two clips."""
    transcriber = build(home, scale=1)
    transcriber.model.llm.config.max_position_embeddings = 1 << 20
    naming = replace(transcriber, prompt=make_prompt(transcriber.tokenizer, "Write. {audio}", hot_words=True))
    with pytest.raises(InputError, match=r"gives 10,000 words of [\d,]+ tokens.*4,096 tokens at most are taken"):
        naming.with_hot_words([f"lamp {number}" for number in range(10_000)])
    assert len(naming.with_hot_words(["lamp"] * 500).hot_words) == 500


def test_the_head_is_given_one_block_for_it_would_be_copied_for_every_row(transcriber, samples):
    blocks = []
    head = transcriber.model.llm.get_output_embeddings()
    hook = head.register_forward_hook(lambda _head, inputs, _output: blocks.append(inputs[0].is_contiguous()))
    transcriber.decode(samples[:3])
    hook.remove()
    assert len(blocks) > 1
    assert all(blocks)
    assert not head._forward_pre_hooks


@pytest.mark.parametrize("num_beams", [1, 3])
def test_a_text_does_not_depend_on_the_batch_it_is_decoded_in(transcriber, samples, num_beams):
    decoder = replace(transcriber, num_beams=num_beams)
    alone = [decoder.decode([sample])[0] for sample in samples]
    assert len({item.text for item in alone}) > NUM_SAMPLES // 2, "texts that are all alike would prove nothing"
    assert decoder.decode(samples) == alone
    assert decoder.decode(samples[2:5]) == alone[2:5]
    for batch_size in (1, 2, NUM_SAMPLES):
        assert replace(decoder, batch_size=batch_size).transcribe(samples) == [item.text for item in alone]


def test_greedy_takes_the_most_likely_token_again_and_again(transcriber, samples):
    """Against a loop without cache, padding or batch."""
    for sample in samples[:3]:
        embeds, _ = transcriber._embed([sample])
        ids: list[int] = []
        with torch.no_grad():
            while len(ids) < transcriber.max_new_tokens:
                chosen = int(transcriber.model.llm(inputs_embeds=embeds, use_cache=False).logits[0, -1].argmax())
                if chosen == transcriber.tokenizer.eos_token_id:
                    break
                ids.append(chosen)
                if bool(ends_in_loop(torch.tensor([ids]))[0]):
                    break
                after = transcriber.model.llm.get_input_embeddings()(torch.tensor([[chosen]]))
                embeds = torch.cat([embeds, after], dim=1)
        expected = transcriber.tokenizer.decode(ids, skip_special_tokens=True).strip()
        assert transcriber.decode([sample])[0].text == expected


def test_a_checkpoints_own_defaults_for_chat_change_nothing(transcriber, samples):
    before = transcriber.decode(samples)
    defaults = transcriber.model.llm.generation_config
    kept = {key: getattr(defaults, key) for key in ("repetition_penalty", "no_repeat_ngram_size", "do_sample", "temperature")}
    try:
        defaults.repetition_penalty, defaults.no_repeat_ngram_size = 1.9, 2
        defaults.do_sample, defaults.temperature = True, 3.0
        assert transcriber.decode(samples) == before
    finally:
        for key, value in kept.items():
            setattr(defaults, key, value)


@pytest.mark.parametrize(
    ("ids", "loops"),
    [
        ([7] * LOOP_MIN_TOKENS, True),
        ([7] * (LOOP_MIN_TOKENS - 1), False),  # a long number or laughter isn't one
        ([2, 3, *[7] * LOOP_MIN_TOKENS], True),
        ([*[7] * LOOP_MIN_TOKENS, 8], False),
        ([4, 5, 6] * 8, True),
        ([6, *[4, 5, 6] * 8], True),  # wherever in the n-gram it ends
        ([4, 5, 6] * 7, False),
        (list(range(10, 30)) * 4, True),
        (list(range(10, 30)) * 3, False),
        (list(range(10, 31)) * 5, False),  # 21 tokens are longer than a loop's n-gram
        ([], False),
    ],
)
def test_a_loop_is_an_n_gram_again_and_again_at_the_end(ids, loops):
    assert ends_in_loop(torch.tensor([ids], dtype=torch.long)).tolist() == [loops]
    kept, ending = cut_at_end([*ids, EOS, EOS], EOS)
    assert (kept, ending) == (ids, "loop" if loops else "end")


def test_a_row_without_an_end_was_cut_at_its_longest_length():
    assert cut_at_end([5, 6, 7], EOS) == ([5, 6, 7], "length")
    assert cut_at_end([5, EOS, 6], EOS) == ([5], "end")


def test_a_row_that_loops_ends_there(home, samples):
    """A random model as it is says one thing for ever."""
    decoder = replace(build(home, scale=1), max_new_tokens=60)
    decoded = decoder.decode(samples)
    looping = [sample for sample, item in zip(samples, decoded, strict=True) if item.ending == "loop"]
    assert looping, f"no row of this model loops ({decoded}), so nothing is shown"
    assert replace(decoder, max_new_tokens=90).decode(looping) == [item for item in decoded if item.ending == "loop"]


def test_a_clip_longer_than_the_encoder_takes_is_refused(transcriber):
    with pytest.raises(DataError, match=r"long one is 31\.0 s long; the encoder takes 30 s"):
        transcriber.decode([AudioSample("long one", np.ones(31 * 16_000, dtype=np.float32), "", "en")])


def test_the_whisper_baseline_is_whispers_own_decoding_with_the_samples_language(home, samples):
    from whisper.audio import pad_or_trim
    from whisper.decoding import DecodingOptions

    baseline = open_whisper(str(home / "whisper.pt"), device=torch.device("cpu"))
    decoded = baseline.decode(samples[:3])
    for sample, item in zip(samples[:3], decoded, strict=True):
        mel = torch.as_tensor(log_mel(pad_or_trim(sample.waveform), 80))
        options = DecodingOptions(language=sample.language, without_timestamps=True, fp16=False)
        assert item.text == baseline.whisper.decode(mel, options).text


def test_the_whisper_baseline_refuses_what_whisper_does_not_take(home):
    baseline = open_whisper(str(home / "whisper.pt"), device=torch.device("cpu"))
    second = np.ones(16_000, dtype=np.float32)
    with pytest.raises(DataError, match="language 'tlh'"):
        baseline.decode([AudioSample("a", second, "", "tlh")])
    with pytest.raises(DataError, match=r"31\.0 s"):
        baseline.decode([AudioSample("a", np.tile(second, 31), "", "en")])


def test_the_whisper_baseline_knows_a_language_by_whispers_own_code(home, samples):
    baseline = open_whisper(str(home / "whisper.pt"), device=torch.device("cpu"))
    for ours, whispers in (("jv", "jw"), ("cmn", "zh"), ("deu", "de")):
        by_ours, by_whispers = (baseline.decode([replace(samples[0], language=code)]) for code in (ours, whispers))
        assert by_ours == by_whispers


def test_confidence_is_the_geometric_mean_of_the_likeliest_tokens():
    certainty = Certainty()
    for first, second in ((0.9, 0.5), (0.4, 0.8), (0.9, 0.6)):
        # a step of two rows over a vocabulary of three; the rest of the probability is halved
        rows = [[p, (1 - p) / 2, (1 - p) / 2] for p in (first, second)]
        logits_BV = torch.tensor(rows).log() + 3.0
        assert certainty(torch.zeros(2, 1), logits_BV) is logits_BV
    # two tokens and the end; one token and the end
    assert certainty.of_row(0, 2, has_end=True) == pytest.approx((0.9 * 0.4 * 0.9) ** (1 / 3))
    assert certainty.of_row(1, 1, has_end=True) == pytest.approx((0.5 * 0.8) ** (1 / 2))
    # one token, cut in a loop: the next step is its neighbour's
    assert certainty.of_row(1, 1, has_end=False) == pytest.approx(0.5)


def test_a_text_of_logits_that_are_no_numbers_has_no_confidence():
    certainty = Certainty()
    certainty(torch.zeros(1, 1), torch.tensor([[0.0, torch.nan]]))
    assert certainty.of_row(0, 1, has_end=False) == 0.0


def test_clips_are_asked_different_things_in_one_batch(transcriber, samples):
    asked = ["Answer: {audio}", None, "Say what you hear. {audio} Begin."]
    clips = [replace(sample, instruction=text) for sample, text in zip(samples, asked, strict=False)]
    assert [found.text for found in transcriber.decode(clips)] == [transcriber.decode([clip])[0].text for clip in clips]
    # also what no training asked: its prompt is made as it is met
    prompts = [make_prompt(transcriber.tokenizer, text) if text else transcriber.prompt for text in asked]
    lengths = [mask.sum(dim=1) for _, mask in map(transcriber._embed, (clips, samples[:3]))]
    assert (lengths[0] - lengths[1]).tolist() == [prompt.num_tokens - transcriber.prompt.num_tokens for prompt in prompts]
