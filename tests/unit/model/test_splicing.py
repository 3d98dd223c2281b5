"""Prompts with audio in them, for training and for generation."""

from __future__ import annotations

import torch

from kappaspeech.labels import IGNORED_LABEL
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


def test_rows_with_prompts_of_their_own_are_what_each_is_alone():
    embed = torch.nn.Embedding(10, 3)
    audio, counts = torch.randn(3, 4, 3), torch.tensor([4, 2, 3])
    prompts = [([1, 2, 7], []), ([3], [4, 5]), ([], [6])]
    prefixes = torch.tensor([[1, 2, 7], [3, -100, -100], [-100, -100, -100]])
    suffixes = torch.tensor([[-100, -100], [4, 5], [6, -100]])
    labels = torch.tensor([[8, 9], [9, -100], [-100, -100]])
    whole = splice(embed, audio, counts, prefixes, suffixes, labels)
    places = set()
    for row, (before, after) in enumerate(prompts):
        ids = (torch.tensor(side, dtype=torch.long) for side in (before, after))
        alone = splice(embed, audio[row : row + 1], counts[row : row + 1], *ids, labels[row : row + 1])
        length = int(alone.lengths_B)
        assert int(whole.lengths_B[row]) == length
        assert torch.equal(whole.embeds_BNH[row, :length], alone.embeds_BNH[0, :length])
        if int((labels[row] != IGNORED_LABEL).sum()):
            places |= {(row, *pair) for pair in zip(alone.positions_R.tolist(), alone.labels_R.tolist(), strict=True)}
    found = (part.tolist() for part in (whole.rows_R, whole.positions_R, whole.labels_R))
    assert set(zip(*found, strict=True)) == places
