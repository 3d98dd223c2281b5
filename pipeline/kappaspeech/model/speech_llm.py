"""A causal LM that reads speech: audio embeddings between the prompt's tokens, loss at label positions alone.

B batch · A audio positions · P prefix tokens · Q suffix tokens · L label tokens · N whole sequence · H LLM width ·
V vocabulary · R label positions of the batch, flattened · T texts beside the speech · K their foretold tokens, flattened
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from kappaspeech.labels import IGNORED_LABEL
from kappaspeech.model.adaptor import Adaptor
from kappaspeech.model.label_logits import KeptStates, label_logits
from kappaspeech.model.loss import alignment_nats, anchor_nats, transcript_nats
from kappaspeech.model.packed_rows import pack_lengths
from kappaspeech.model.splicing import Spliced, splice
from kappaspeech.model.text_rows import TextRows

# rows of the embedding table that are read at once
_BLOCK_ROWS = 4_096


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
        self,
        states_BSE: Tensor,
        num_states_B: Tensor,
        prefix_ids_P: Tensor,
        suffix_ids_Q: Tensor,
        label_ids_BL: Tensor,
        text: TextRows | None = None,
        *,
        alignment_only: bool = False,
    ) -> tuple[Tensor, ...]:
        """The loss to minimise; and, without a graph, its part Σ −log p(label) over each label that isn't `IGNORED_LABEL`.

        With `text` in the batch, Σ −log p of its tokens and Σ KL(base ‖ now) follow, (2,), also without a graph. All are float32,
        in nats. One output has a graph: under ZeRO-3, DeepSpeed 0.19.8 counts a module's outputs that have one, and with two the
        ranks' orders of gathering came apart, so that all waited for each other. For the same reason text and speech pass each
        module together. All are sums and no means: the caller divides once by the target tokens of all ranks and micro-batches.
        A batch without labels gives 0 through the whole graph, so that its rank runs every module its peers run. With
        `alignment_only` both are the adaptor's alignment loss, and no layer of the LLM is run.
        """
        audio_BAH, num_audio_B = self.adaptor(states_BSE, num_states_B)
        if alignment_only:
            nats = self._align(audio_BAH, num_audio_B, label_ids_BL)
            return nats, nats.detach()
        spliced = self.splice(audio_BAH, num_audio_B, prefix_ids_P, suffix_ids_Q, label_ids_BL, text)
        replay, replayed = None, list[Tensor]()
        if text is None:
            logits_RV = self._logits(spliced, spliced.lengths_B, spliced.rows_R, spliced.positions_R)
        else:
            logits_RV, replay, *replayed = self._read_text(spliced, text)
        nats = transcript_nats(logits_RV, spliced.labels_R)
        loss = nats if replay is None else nats + replay
        if self.alignment_weight and bool((label_ids_BL != IGNORED_LABEL).any()):
            # a label's own embedding lies one position after the one that predicts it
            label_embeds_RH = spliced.embeds_BNH[spliced.rows_R, spliced.positions_R + 1].detach()
            loss = loss + self.alignment_weight * alignment_nats(audio_BAH, num_audio_B, label_embeds_RH, label_ids_BL)
        return loss, nats.detach(), *replayed

    def _read_text(self, spliced: Spliced, text: TextRows) -> tuple[Tensor, Tensor, Tensor]:
        """The logits of the transcripts' labels; of the texts beside them the part of the loss, and its two sums (2,)."""
        device, num_speech = spliced.rows_R.device, len(spliced.lengths_B)
        texts_K, positions_K, tokens_K = (part.to(device, non_blocking=True) for part in text.places())
        rows = torch.cat([spliced.rows_R, num_speech + texts_K])
        positions = torch.cat([spliced.positions_R, positions_K])
        logits = self._logits(spliced, torch.cat([spliced.lengths_B, text.lengths]), rows, positions, kept=text.base)
        sizes = [len(spliced.rows_R), len(tokens_K), len(logits) - len(rows)]
        logits_RV, logits_KV, base_KV = torch.split(logits, sizes)
        text_nats = transcript_nats(logits_KV, tokens_K)
        replay, kl_nats = text.weight * text_nats, torch.zeros_like(text_nats)
        if text.base is not None:
            kl_nats = anchor_nats(logits_KV, base_KV.detach())
            replay = replay + text.anchor_weight * kl_nats
        return logits_RV, replay, torch.stack([text_nats, kl_nats]).detach()

    def _logits(
        self, spliced: Spliced, lengths: Tensor, rows: Tensor, positions: Tensor, *, kept: KeptStates | None = None
    ) -> Tensor:
        """The logits at these positions of rows of these lengths, which lie on the host; in one row of the LLM if it packs."""
        embeds, packed_row = spliced.embeds_BNH, None
        if self.packs:
            starts = (lengths.cumsum(0) - lengths).to(positions.device, non_blocking=True)
            packed_row = pack_lengths(lengths).to(embeds.device)
            embeds = embeds.flatten(0, 1).index_select(0, packed_row.places_N)[None]
            rows, positions = torch.zeros_like(rows), positions + starts[rows]
        return label_logits(self.llm, embeds, rows, positions, packed_row=packed_row, kept=kept)

    def _align(self, audio_BAH: Tensor, num_audio_B: Tensor, label_ids_BL: Tensor) -> Tensor:
        ids_R = label_ids_BL[label_ids_BL != IGNORED_LABEL]
        has_labels = len(ids_R) > 0
        embeds_RH = self.llm.get_input_embeddings()((ids_R if has_labels else ids_R.new_zeros(1)).to(audio_BAH.device))
        if not has_labels:
            return 0.0 * audio_BAH.float().sum()
        return alignment_nats(audio_BAH, num_audio_B, embeds_RH.detach(), label_ids_BL)

    def splice(
        self,
        audio_BAH: Tensor,
        num_audio_B: Tensor,
        prefix_ids_P: Tensor,
        suffix_ids_Q: Tensor,
        label_ids_BL: Tensor,
        text: TextRows | None = None,
    ) -> Spliced:
        """`splicing.splice` by this LLM's embeddings; the rows of `text` follow."""
        embed, text_ids_TM = self.llm.get_input_embeddings(), None if text is None else text.tokens
        return splice(embed, audio_BAH, num_audio_B, prefix_ids_P, suffix_ids_Q, label_ids_BL, text_ids_TM)


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
