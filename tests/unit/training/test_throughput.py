from __future__ import annotations

import numpy as np
import torch

from kappaspeech.model.flops import ClipLengths, SpeechCost, StackCost
from kappaspeech.speech.batches import Features, collate
from kappaspeech.speech.feature_cache import CachedClip
from kappaspeech.speech.prompt import SpeechPrompt
from kappaspeech.training.throughput import count_work

COST = SpeechCost(StackCost(10), StackCost(5, 5), StackCost(7), StackCost(3), stacking=4, num_prompt_tokens=2)


def batch(*frames: int | None):
    rows = [None if count is None else Features("k", "en", np.zeros((80, count), np.float32), (1, 2, 3)) for count in frames]
    return collate(rows, num_mels=80, keys=["k"] * len(rows))


def test_work_is_that_of_usable_samples_without_padding():
    work = count_work(COST, [batch(160, None, 16), batch(None)])
    clips = [ClipLengths(160, 3), ClipLengths(16, 3)]
    assert work.flops == COST.step(clips).total
    # 160 frames are 80 states are 20 positions; 16 are 2
    assert work.num_llm_tokens == (2 + 20 + 3) + (2 + 2 + 3)


def test_a_clip_from_the_cache_costs_no_encoder():
    clip = Features("k", "en", np.zeros((80, 0), np.float32), (1, 2, 3), CachedClip(np.zeros((80, 4), np.float32), 160, ""))
    cached = count_work(COST, [collate([clip], num_mels=80, keys=["k"])])
    fresh = count_work(COST, [batch(160)])
    assert cached.num_llm_tokens == fresh.num_llm_tokens
    assert fresh.flops - cached.flops == COST.step([ClipLengths(160, 3)]).encoder


def test_replayed_texts_are_work_and_an_anchor_is_the_heads_work_again():
    speech, replayed = count_work(COST, [batch(160)]), count_work(COST, [batch(160)], texts=[10, 6])
    assert replayed.num_llm_tokens - speech.num_llm_tokens == 16
    # forward and backward of the LLM's 7 weights at 16 tokens, and of the head's 3 at the 14 that are foretold
    assert replayed.flops - speech.flops == 4 * 7 * 16 + 4 * 3 * 14
    assert count_work(COST, [batch(160)], texts=[10, 6], anchored=True).flops - replayed.flops == 2 * 3 * 14


def test_a_clip_counts_the_tokens_of_its_own_prompt():
    one, five = torch.tensor([1]), torch.arange(5)
    rows = [Features("k", "en", np.zeros((80, 160), np.float32), (1, 2, 3), instruction=text) for text in (None, "Answer")]
    prompt = SpeechPrompt(one, one, {"Answer": SpeechPrompt(five, one)})
    work = count_work(COST, [collate(rows, num_mels=80, keys=["a", "b"])], prompt=prompt)
    assert work.num_llm_tokens == (2 + 20 + 3) + (6 + 20 + 3)
