"""A causal LM that reads speech: audio embeddings between the prompt's tokens, loss at label positions alone.

B batch · A audio positions · P prefix tokens · Q suffix tokens · L label tokens · N whole sequence · H LLM width ·
V vocabulary · R label positions of the batch, flattened · C different labels of the batch
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kappaspeech.labels import IGNORED_LABEL
from kappaspeech.model.adaptor import Adaptor
from kappaspeech.model.label_logits import label_logits
from kappaspeech.model.label_loss import label_nats

# What a cosine of 1 is worth in logits: enough for a clear choice among a batch's words.
_ALIGNMENT_SCALE = 30.0
# rows of the embedding table that are read at once
_BLOCK_ROWS = 4_096


@dataclass(frozen=True)
class Spliced:
    """A batch of sequences [prefix | audio | suffix | labels], each without gaps, padded at the right.

    `embeds_BNH`, `lengths_B` where the labels lay, and for each label its row, the position that predicts it, and the label
    itself (R,).
    """

    embeds_BNH: Tensor
    lengths_B: Tensor
    rows_R: Tensor
    positions_R: Tensor
    labels_R: Tensor


class SpeechLLM(nn.Module):
    """The adaptor and the LLM: all that trains lives here, and this is what DeepSpeed wraps."""

    def __init__(self, adaptor: Adaptor, llm: Any, *, alignment_weight: float = 0.0) -> None:
        """`alignment_weight`: how much of the adaptor's alignment loss is added to what is minimised."""
        super().__init__()
        self.alignment_weight = alignment_weight
        self.adaptor = adaptor
        self.llm = llm
        # what stood where training has changed the LLM, by its own names; None where nobody knows
        self.base_tensors: dict[str, Tensor] | None = None

    def forward(
        self, states_BSE: Tensor, num_states_B: Tensor, prefix_ids_P: Tensor, suffix_ids_Q: Tensor, label_ids_BL: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What is minimised; and, without a graph, its part Σ −log p(label) over every label that isn't `IGNORED_LABEL`. In nats,
        float32.

        One of the two has a graph: under ZeRO-3, DeepSpeed 0.19.8 counts a module's outputs that have one, and with two the
        ranks' orders of gathering came apart, so that all waited for each other. Sums and no means: the caller divides once
        by the target tokens of all ranks and micro-batches. A batch without labels gives 0 through the whole graph, so that its
        rank runs every module its peers run.
        """
        audio_BAH, num_audio_B = self.adaptor(states_BSE, num_states_B)
        spliced = self.splice(audio_BAH, num_audio_B, prefix_ids_P, suffix_ids_Q, label_ids_BL)
        logits_RV = label_logits(self.llm, spliced.embeds_BNH, spliced.rows_R, spliced.positions_R)
        nats_R = label_nats(logits_RV, spliced.labels_R.clamp(min=0))
        nats = (nats_R * (spliced.labels_R != IGNORED_LABEL)).sum()
        loss = nats
        if self.alignment_weight:
            loss = nats + self.alignment_weight * self._align(audio_BAH, num_audio_B, spliced, label_ids_BL)
        return loss, nats.detach()

    def _align(self, audio_BAH: Tensor, num_audio_B: Tensor, spliced: Spliced, label_ids_BL: Tensor) -> Tensor:
        """Σ −log p of each row's words read off its audio embeddings alone, in order: CTC (Graves 2006), in nats.

        At each audio position one of the batch's words is chosen by the cosine of its token embedding, the last label's (the
        end of a text) standing for none. So the adaptor learns at once to put words where they are said, in vectors that the
        LLM knows, long before the LLM listens to it. Only the adaptor gets a gradient. A row with more words than audio
        positions gives 0.
        """
        is_label_BL = label_ids_BL != IGNORED_LABEL
        if not is_label_BL.any():
            return torch.zeros((), device=audio_BAH.device)
        num_words_B = (is_label_BL.sum(dim=1) - 1).clamp(min=0)
        is_word_BL = torch.arange(label_ids_BL.shape[1], device=label_ids_BL.device)[None] < num_words_B[:, None]
        # a label's own embedding stands one position after the one that predicts it
        label_embeds_RH = spliced.embeds_BNH[spliced.rows_R, spliced.positions_R + 1].detach().float()
        _, class_R = torch.unique(label_ids_BL[is_label_BL], return_inverse=True)
        num_classes = int(class_R.max()) + 1
        first_C = torch.full((num_classes,), len(class_R), device=class_R.device)
        first_C = first_C.scatter_reduce(0, class_R, torch.arange(len(class_R), device=class_R.device), "amin")
        device = audio_BAH.device
        words_CH = functional.normalize(label_embeds_RH[first_C.to(device, non_blocking=True)], dim=-1)
        logits_BAC = _ALIGNMENT_SCALE * functional.normalize(audio_BAH.float(), dim=-1) @ words_CH.T
        nats_B = functional.ctc_loss(
            logits_BAC.log_softmax(dim=-1).transpose(0, 1),
            class_R[is_word_BL[is_label_BL]].to(device, non_blocking=True),
            num_audio_B.to(label_ids_BL.device),
            num_words_B,
            blank=int(class_R[-1]),
            reduction="none",
            zero_infinity=True,
        )
        return (nats_B * is_label_BL.any(dim=1).to(device, non_blocking=True)).sum()

    def splice(
        self, audio_BAH: Tensor, num_audio_B: Tensor, prefix_ids_P: Tensor, suffix_ids_Q: Tensor, label_ids_BL: Tensor
    ) -> Spliced:
        """Lay out [prefix | audio | suffix | labels] for each row; labels are right-padded with `IGNORED_LABEL`.

        It is worked out where the labels lie: on the host, in training, so that nobody waits for the device to learn a length.
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

        layout = (tokens_BN, is_audio_BN, index_BN, rows_R, positions_R, labels_R)
        tokens_BN, is_audio_BN, index_BN, rows_R, positions_R, labels_R = (part.to(device, non_blocking=True) for part in layout)
        embeds_BNH = self.llm.get_input_embeddings()(tokens_BN)
        audio_BNH = audio_BAH.to(embeds_BNH.dtype).gather(1, index_BN[:, :, None].expand(batch, -1, audio_BAH.shape[2]))
        embeds_BNH = torch.where(is_audio_BN[:, :, None], audio_BNH, embeds_BNH)
        return Spliced(embeds_BNH, lengths_B, rows_R, positions_R, labels_R)


def _pick(ids_BL: Tensor, index_BN: Tensor) -> Tensor:
    """`ids_BL[b, index_BN[b, n]]`, with indices out of range clamped (the caller masks them); zeros where L = 0."""
    if ids_BL.shape[1] == 0:
        return torch.zeros_like(index_BN)
    return ids_BL.gather(1, index_BN.clamp(0, ids_BL.shape[1] - 1))


def embedding_width(llm: Any) -> int:
    """The width of the LLM's token embeddings, which its layers may project to another."""
    return int(llm.get_input_embeddings().weight.shape[1])


def token_embedding_std(llm: Any) -> float:
    """Standard deviation of the LLM's token embeddings as its layers meet them; a block at a time, in float64.

    Of what the module gives and not of its weight, which some multiply: Gemma by the root of its width.
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
