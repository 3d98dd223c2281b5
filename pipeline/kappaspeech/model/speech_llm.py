"""A causal LM that reads speech: audio embeddings between the prompt's tokens, loss at label positions alone.

B batch · A audio positions · P prefix tokens · Q suffix tokens · L label tokens · N whole sequence · H LLM width ·
V vocabulary · R label positions of the batch, flattened
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kappaspeech.labels import IGNORED_LABEL
from kappaspeech.model.adaptor import Adaptor
from kappaspeech.model.label_logits import label_logits
from kappaspeech.model.loss import alignment_nats, transcript_nats
from kappaspeech.model.packed_rows import PackedRow, pack_lengths

# rows of the embedding table that are read at once
_BLOCK_ROWS = 4_096


@dataclass(frozen=True)
class Spliced:
    """A batch of sequences [prefix | audio | suffix | labels], each without gaps, padded at the right.

    `embeds_BNH`, `lengths_B` on the labels' device, and for each label its row, the position that predicts it, and the label
    itself (R,). If they are packed, they are one sequence, and `packed_row` says where each is.
    """

    embeds_BNH: Tensor
    lengths_B: Tensor
    rows_R: Tensor
    positions_R: Tensor
    labels_R: Tensor
    packed_row: PackedRow | None = None


class SpeechLLM(nn.Module):
    """The adaptor and the LLM: all that trains lives here, and this is what DeepSpeed wraps."""

    def __init__(self, adaptor: Adaptor, llm: Any, *, alignment_weight: float = 0.0, packs: bool = False) -> None:
        """`alignment_weight`: the weight of the adaptor's alignment loss in the loss that is minimised. `packs`: the clips of a
        micro-batch are one row of the LLM, which must be able to compute that (`pack_rows`)."""
        super().__init__()
        self.packs = packs
        self.alignment_weight = alignment_weight
        self.adaptor = adaptor
        self.llm = llm
        # the LLM's tensors before training changed them, by its own names; None if they aren't known
        self.base_tensors: dict[str, Tensor] | None = None

    def forward(
        self, states_BSE: Tensor, num_states_B: Tensor, prefix_ids_P: Tensor, suffix_ids_Q: Tensor, label_ids_BL: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The loss to minimise; and, without a graph, its part Σ −log p(label) over each label that isn't `IGNORED_LABEL`.

        Both are float32, in nats. One of the two has a graph: under ZeRO-3, DeepSpeed 0.19.8 counts a module's outputs that have
        one, and with two the ranks' orders of gathering came apart, so that all waited for each other. Both are sums and no
        means: the caller divides once by the target tokens of all ranks and micro-batches. A batch without labels gives 0 through
        the whole graph, so that its rank runs every module its peers run.
        """
        audio_BAH, num_audio_B = self.adaptor(states_BSE, num_states_B)
        spliced = self.splice(audio_BAH, num_audio_B, prefix_ids_P, suffix_ids_Q, label_ids_BL, packed=self.packs)
        logits_RV = label_logits(self.llm, spliced.embeds_BNH, spliced.rows_R, spliced.positions_R, packed_row=spliced.packed_row)
        nats = transcript_nats(logits_RV, spliced.labels_R)
        loss = nats
        if self.alignment_weight and bool((label_ids_BL != IGNORED_LABEL).any()):
            # a label's own embedding lies one position after the one that predicts it
            label_embeds_RH = spliced.embeds_BNH[spliced.rows_R, spliced.positions_R + 1].detach()
            loss = nats + self.alignment_weight * alignment_nats(audio_BAH, num_audio_B, label_embeds_RH, label_ids_BL)
        return loss, nats.detach()

    def splice(
        self,
        audio_BAH: Tensor,
        num_audio_B: Tensor,
        prefix_ids_P: Tensor,
        suffix_ids_Q: Tensor,
        label_ids_BL: Tensor,
        *,
        packed: bool = False,
    ) -> Spliced:
        """Lay out [prefix | audio | suffix | labels] for each row; labels are right-padded with `IGNORED_LABEL`. If `packed`, all
        rows become one, without padding.

        It is worked out on the labels' device: on the host, in training, so that nothing waits for the device to learn a length.
        """
        device, where = audio_BAH.device, label_ids_BL.device
        num_audio_B, prefix_ids_P, suffix_ids_Q = (ids.to(where) for ids in (num_audio_B, prefix_ids_P, suffix_ids_Q))
        batch, num_prefix, num_suffix = audio_BAH.shape[0], prefix_ids_P.numel(), suffix_ids_Q.numel()
        is_label_BL = label_ids_BL != IGNORED_LABEL
        starts_B = num_prefix + num_audio_B + num_suffix
        lengths_B = starts_B + is_label_BL.sum(dim=1)
        positions_N = torch.arange(int(lengths_B.max()), device=where)[None]
        audio_index_BN = positions_N - num_prefix
        suffix_index_BN = audio_index_BN - num_audio_B[:, None]
        label_index_BN = suffix_index_BN - num_suffix

        tokens_BN = _pick(prefix_ids_P.expand(batch, -1), positions_N.expand(batch, -1))
        tokens_BN = torch.where(suffix_index_BN >= 0, _pick(suffix_ids_Q.expand(batch, -1), suffix_index_BN), tokens_BN)
        tokens_BN = torch.where(label_index_BN >= 0, _pick(label_ids_BL.clamp(min=0), label_index_BN), tokens_BN)
        is_audio_BN = (audio_index_BN >= 0) & (suffix_index_BN < 0)
        index_BN = audio_index_BN.clamp(0, audio_BAH.shape[1] - 1)
        rows_R, columns_R = is_label_BL.nonzero(as_tuple=True)
        labels_R = label_ids_BL[rows_R, columns_R]
        if rows_R.numel() == 0:
            # one position with an ignored label keeps the head in the graph
            rows_R = columns_R = torch.zeros(1, dtype=torch.long, device=where)
            labels_R = torch.full_like(rows_R, IGNORED_LABEL)
        positions_R = (starts_B[rows_R] + columns_R - 1).clamp(min=0)
        row = pack_lengths(lengths_B) if packed else None
        if row is not None:
            index_BN = index_BN + audio_BAH.shape[1] * torch.arange(batch, device=where)[:, None]
            tokens_BN, is_audio_BN, index_BN = (
                layout.flatten()[row.places_N][None] for layout in (tokens_BN, is_audio_BN, index_BN)
            )
            audio_BAH = audio_BAH.flatten(0, 1)[None]
            positions_R = positions_R + (lengths_B.cumsum(0) - lengths_B)[rows_R]
            rows_R = torch.zeros_like(rows_R)
            row = row.to(device)

        layout = (tokens_BN, is_audio_BN, index_BN, rows_R, positions_R, labels_R)
        tokens_BN, is_audio_BN, index_BN, rows_R, positions_R, labels_R = (part.to(device, non_blocking=True) for part in layout)
        embeds_BNH = self.llm.get_input_embeddings()(tokens_BN)
        index_BNH = index_BN[:, :, None].expand(len(tokens_BN), -1, audio_BAH.shape[2])
        audio_BNH = audio_BAH.to(embeds_BNH.dtype).gather(1, index_BNH)
        embeds_BNH = torch.where(is_audio_BN[:, :, None], audio_BNH, embeds_BNH)
        return Spliced(embeds_BNH, lengths_B, rows_R, positions_R, labels_R, row)


def _pick(ids_BL: Tensor, index_BN: Tensor) -> Tensor:
    """`ids_BL[b, index_BN[b, n]]`, with indices out of range clamped (the caller masks them); zeros if L = 0."""
    if ids_BL.shape[1] == 0:
        return torch.zeros_like(index_BN)
    return ids_BL.gather(1, index_BN.clamp(0, ids_BL.shape[1] - 1))


def embedding_width(llm: Any) -> int:
    """The width of the LLM's token embeddings, which its layers may project to another."""
    return int(llm.get_input_embeddings().weight.shape[1])


def token_embedding_std(llm: Any) -> float:
    """Standard deviation of the LLM's token embeddings as its layers meet them; a block at a time, in float64.

    It is that of the module's output and not of its weight, which some multiply: Gemma by the root of its width.
    """
    embed = llm.get_input_embeddings()
    num_tokens = embed.weight.shape[0]
    sums, squares, count = 0.0, 0.0, embed.weight.numel()
    with torch.no_grad():
        for start in range(0, num_tokens, _BLOCK_ROWS):
            ids = torch.arange(start, min(start + _BLOCK_ROWS, num_tokens), device=embed.weight.device)
            values = embed(ids).double()
            sums += float(values.sum())
            squares += float(values.square().sum())
    mean = sums / count
    # a variance near zero may come out below it by rounding
    return math.sqrt(max(squares - count * mean * mean, 0.0) / (count - 1))
