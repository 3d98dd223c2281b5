"""A causal LM that reads speech: audio embeddings between the prompt's tokens, loss at label positions alone.

B batch · A audio positions · P prefix tokens · Q suffix tokens · L label tokens · N whole sequence · H LLM width ·
V vocabulary · R label positions of the batch, flattened
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from kappaspeech.labels import IGNORED_LABEL
from kappaspeech.model.adaptor import Adaptor
from kappaspeech.model.label_logits import label_logits
from kappaspeech.model.loss import alignment_nats, transcript_nats
from kappaspeech.model.splicing import Spliced, splice

# rows of the embedding table that are read at once
_BLOCK_ROWS = 4_096


class SpeechLLM(nn.Module):
    """The adaptor and the LLM: all that trains lives here, and this is what DeepSpeed wraps."""

    def __init__(self, adaptor: Adaptor, llm: Any, *, alignment_weight: float = 0.0) -> None:
        """`alignment_weight`: the weight of the adaptor's alignment loss in the loss that is minimised."""
        super().__init__()
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
        spliced = self.splice(audio_BAH, num_audio_B, prefix_ids_P, suffix_ids_Q, label_ids_BL)
        logits_RV = label_logits(self.llm, spliced.embeds_BNH, spliced.rows_R, spliced.positions_R)
        nats = transcript_nats(logits_RV, spliced.labels_R)
        loss = nats
        if self.alignment_weight and bool((label_ids_BL != IGNORED_LABEL).any()):
            # a label's own embedding lies one position after the one that predicts it
            label_embeds_RH = spliced.embeds_BNH[spliced.rows_R, spliced.positions_R + 1].detach()
            loss = nats + self.alignment_weight * alignment_nats(audio_BAH, num_audio_B, label_embeds_RH, label_ids_BL)
        return loss, nats.detach()

    def splice(
        self, audio_BAH: Tensor, num_audio_B: Tensor, prefix_ids_P: Tensor, suffix_ids_Q: Tensor, label_ids_BL: Tensor
    ) -> Spliced:
        """`splicing.splice` by this LLM's embeddings."""
        embed = self.llm.get_input_embeddings()
        return splice(embed, audio_BAH, num_audio_B, prefix_ids_P, suffix_ids_Q, label_ids_BL)


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
