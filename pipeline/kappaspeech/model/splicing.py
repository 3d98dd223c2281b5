"""The layout of a prompt with audio in it: [prefix | audio | suffix | labels] as embeddings.

An export holds this file as it is.

B batch · A audio positions · P prefix tokens · Q suffix tokens · L label tokens · N whole sequence · H LLM width ·
R label positions of the batch, flattened
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from kappaspeech.labels import IGNORED_LABEL


@dataclass(frozen=True)
class Spliced:
    """A batch of sequences [prefix | audio | suffix | labels], each without gaps, padded at the right.

    `embeds_BNH`, `lengths_B` on the labels' device, and for each label its row, the position that predicts it, and the label
    itself (R,). Of texts beside the speech, the rows follow in `embeds_BNH` alone.
    """

    embeds_BNH: Tensor
    lengths_B: Tensor
    rows_R: Tensor
    positions_R: Tensor
    labels_R: Tensor


def splice(
    embed: Callable[[Tensor], Tensor],
    audio_BAH: Tensor,
    num_audio_B: Tensor,
    prefix_ids_P: Tensor,
    suffix_ids_Q: Tensor,
    label_ids_BL: Tensor,
    text_ids_TM: Tensor | None = None,
) -> Spliced:
    """Lay out [prefix | audio | suffix | labels] for each row; labels are right-padded with `IGNORED_LABEL`.

    Prefix and suffix are the same for all rows, (P,) and (Q,), or each row's own, (B, P) and (B, Q), padded as labels are.
    `embed` is the LLM's embedding of token ids. The layout is worked out on the labels' device: on the host, in training, so that
    nothing waits for the device to learn a length. `text_ids_TM` are rows of plain tokens that follow the batch in the
    embeddings, for one pass of both; any token may fill them up at the right.
    """
    device, where = audio_BAH.device, label_ids_BL.device
    num_audio_B, prefix_ids_P, suffix_ids_Q = (ids.to(where) for ids in (num_audio_B, prefix_ids_P, suffix_ids_Q))
    batch = audio_BAH.shape[0]
    prefix_ids_BP, suffix_ids_BQ = prefix_ids_P.expand(batch, -1), suffix_ids_Q.expand(batch, -1)
    num_prefix_B, num_suffix_B = ((ids != IGNORED_LABEL).sum(dim=1) for ids in (prefix_ids_BP, suffix_ids_BQ))
    is_label_BL = label_ids_BL != IGNORED_LABEL
    starts_B = num_prefix_B + num_audio_B + num_suffix_B
    lengths_B = starts_B + is_label_BL.sum(dim=1)
    num_positions = max(int(lengths_B.max()), 0 if text_ids_TM is None else text_ids_TM.shape[1])
    positions_N = torch.arange(num_positions, device=where)[None]
    audio_index_BN = positions_N - num_prefix_B[:, None]
    suffix_index_BN = audio_index_BN - num_audio_B[:, None]
    label_index_BN = suffix_index_BN - num_suffix_B[:, None]

    tokens_BN = _pick(prefix_ids_BP, positions_N.expand(batch, -1))
    tokens_BN = torch.where(suffix_index_BN >= 0, _pick(suffix_ids_BQ, suffix_index_BN), tokens_BN)
    # a token that stands for padding has no meaning, but it must be one
    tokens_BN = torch.where(label_index_BN >= 0, _pick(label_ids_BL, label_index_BN), tokens_BN).clamp(min=0)
    is_audio_BN = (audio_index_BN >= 0) & (suffix_index_BN < 0)
    index_BN = audio_index_BN.clamp(0, audio_BAH.shape[1] - 1)
    rows_R, columns_R = is_label_BL.nonzero(as_tuple=True)
    labels_R = label_ids_BL[rows_R, columns_R]
    if rows_R.numel() == 0:
        # one position with an ignored label keeps the head in the graph
        rows_R = columns_R = torch.zeros(1, dtype=torch.long, device=where)
        labels_R = torch.full_like(rows_R, IGNORED_LABEL)
    positions_R = (starts_B[rows_R] + columns_R - 1).clamp(min=0)

    if text_ids_TM is not None:
        tokens_BN = torch.cat([tokens_BN, functional.pad(text_ids_TM.to(where), (0, num_positions - text_ids_TM.shape[1]))])
    layout = (tokens_BN, is_audio_BN, index_BN, rows_R, positions_R, labels_R)
    tokens_BN, is_audio_BN, index_BN, rows_R, positions_R, labels_R = (part.to(device, non_blocking=True) for part in layout)
    embeds_BNH = embed(tokens_BN)
    audio_BNH = audio_BAH.to(embeds_BNH.dtype).gather(1, index_BN[:, :, None].expand(batch, -1, audio_BAH.shape[2]))
    speech_BNH = torch.where(is_audio_BN[:, :, None], audio_BNH, embeds_BNH[:batch])
    embeds_BNH = speech_BNH if text_ids_TM is None else torch.cat([speech_BNH, embeds_BNH[batch:]])
    return Spliced(embeds_BNH, lengths_B, rows_R, positions_R, labels_R)


def pad_left(embeds_BNH: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
    """Move each row's padding from the right to the left, where generation needs it; return the mask of what is real."""
    length = embeds_BNH.shape[1]
    source_BN = torch.arange(length, device=embeds_BNH.device)[None] - (length - lengths_B)[:, None]
    mask_BN = source_BN >= 0
    index_BNH = source_BN.clamp(min=0)[:, :, None].expand(-1, -1, embeds_BNH.shape[2])
    return embeds_BNH.gather(1, index_BNH) * mask_BN[:, :, None], mask_BN.long()


def _pick(ids_BL: Tensor, index_BN: Tensor) -> Tensor:
    """`ids_BL[b, index_BN[b, n]]`, with indices out of range clamped (the caller masks them); zeros if L = 0."""
    if ids_BL.shape[1] == 0:
        return torch.zeros_like(index_BN)
    return ids_BL.gather(1, index_BN.clamp(0, ids_BL.shape[1] - 1))
