"""Prompts with audio in them, for training and for generation."""

from __future__ import annotations

import torch

from kappaspeech.model.splicing import pad_left, splice


def test_padding_moves_to_the_left_of_each_prompt():
    embed = torch.nn.Embedding(10, 3)
    audio, counts = torch.randn(2, 4, 3), torch.tensor([4, 2])
    no_labels = torch.empty(2, 0, dtype=torch.long)
    spliced = splice(embed, audio, counts, torch.tensor([1, 2]), torch.tensor([3]), no_labels)
    assert spliced.lengths_B.tolist() == [7, 5]
    embeds, mask = pad_left(spliced.embeds_BNH, spliced.lengths_B)
    assert mask.tolist() == [[1] * 7, [0, 0, 1, 1, 1, 1, 1]]
    before, after = embed(torch.tensor([1, 2])), embed(torch.tensor([3]))
    assert torch.equal(embeds[0], torch.cat([before, audio[0], after]))
    assert torch.equal(embeds[1], torch.cat([torch.zeros(2, 3), before, audio[1, :2], after]))
