"""The training loss, in nats: of labels from their logits, of distance from the base model, and of the adaptor's alignment.

B batch · A audio positions · L label tokens · H LLM width · V vocabulary · R label positions of the batch, flattened · C rows of
a chunk, or different labels of the batch
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from kappaspeech.labels import IGNORED_LABEL

# Elements of the logits whose float32 copy, softmax and gradient are there at once.
CHUNK_ELEMENTS = 1 << 26
# The logit of a cosine of 1: enough for a clear choice among a batch's words.
_ALIGNMENT_SCALE = 30.0


def transcript_nats(logits_RV: Tensor, labels_R: Tensor) -> Tensor:
    """Σ −log p(label) over every label that isn't `IGNORED_LABEL`; float32."""
    nats_R = label_nats(logits_RV, labels_R.clamp(min=0))
    return (nats_R * (labels_R != IGNORED_LABEL)).sum()


def alignment_nats(audio_BAH: Tensor, num_audio_B: Tensor, label_embeds_RH: Tensor, label_ids_BL: Tensor) -> Tensor:
    """Σ −log p of each row's words read off its audio embeddings alone, in order: CTC (Graves 2006).

    At each audio position one of the batch's words is chosen by the cosine of its token embedding (`label_embeds_RH`, without a
    gradient). The last label's (the end of a text) is CTC's blank. So the adaptor learns at once to put words where they are
    said, in vectors that the LLM knows, long before the LLM listens to it. Only the adaptor gets a gradient. A row with more
    words than audio positions gives 0; there must be a label.
    """
    is_label_BL = label_ids_BL != IGNORED_LABEL
    num_words_B = (is_label_BL.sum(dim=1) - 1).clamp(min=0)
    is_word_BL = torch.arange(label_ids_BL.shape[1], device=label_ids_BL.device)[None] < num_words_B[:, None]
    _, class_R = torch.unique(label_ids_BL[is_label_BL], return_inverse=True)
    num_classes = int(class_R.max()) + 1
    first_C = torch.full((num_classes,), len(class_R), device=class_R.device)
    first_C = first_C.scatter_reduce(0, class_R, torch.arange(len(class_R), device=class_R.device), "amin")
    device = audio_BAH.device
    words_CH = functional.normalize(label_embeds_RH.float()[first_C.to(device, non_blocking=True)], dim=-1)
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


def anchor_nats(logits_RV: Tensor, base_logits_RV: Tensor) -> Tensor:
    """Σ KL(base ‖ now) = Σ_R Σ_V p (log p − log q), p from the base's logits, which get no gradient; float32 at least.

    At most `CHUNK_ELEMENTS` of each are held in float32 at once. The gradient of a row's logits is q − p.
    """
    nats: Tensor = _ChunkedKl.apply(logits_RV, base_logits_RV)  # type: ignore[no-untyped-call]
    return nats


class _ChunkedKl(torch.autograd.Function):
    """Σ KL of one chunk of rows after another; the gradient is made beside it, in the logits' own dtype."""

    @staticmethod
    def forward(context: Any, logits_RV: Tensor, base_logits_RV: Tensor) -> Tensor:
        num_rows = max(1, CHUNK_ELEMENTS // logits_RV.shape[1])
        gradient_RV = torch.empty_like(logits_RV)
        wide = torch.promote_types(logits_RV.dtype, torch.float32)
        nats = torch.zeros((), dtype=wide, device=logits_RV.device)
        parts = (torch.split(part, num_rows) for part in (logits_RV, base_logits_RV, gradient_RV))
        for logits_CV, base_CV, gradient_CV in zip(*parts, strict=True):
            log_q_CV, log_p_CV = (part.to(wide).log_softmax(dim=-1) for part in (logits_CV, base_CV))
            p_CV = log_p_CV.exp()
            nats += (p_CV * (log_p_CV - log_q_CV)).sum()
            gradient_CV.copy_(log_q_CV.exp_().sub_(p_CV))
        context.save_for_backward(gradient_RV)
        return nats

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient_RV,) = context.saved_tensors
        return gradient_RV * gradients[0].to(gradient_RV.dtype), None


def label_nats(logits_RV: Tensor, labels_R: Tensor, *, chunk_elements: int = CHUNK_ELEMENTS) -> Tensor:
    """−log p of each label (R,), in nats, float32.

    Beside the logits and their gradient, both in their own dtype, at most `chunk_elements` of them are ever held in float32: for
    6,600 labels among 128,000 words, copy and softmax would be 7 GB. Loss and gradient equal those of all rows at once, bit by
    bit, since rows are independent.
    """
    num_rows = max(1, chunk_elements // logits_RV.shape[1])
    if len(labels_R) <= num_rows:
        return _nats(logits_RV, labels_R)
    nats_R: Tensor = _ChunkedNats.apply(logits_RV, labels_R, num_rows)  # type: ignore[no-untyped-call]
    return nats_R


def _nats(logits_CV: Tensor, labels_C: Tensor) -> Tensor:
    return functional.cross_entropy(logits_CV.float(), labels_C, reduction="none")


class _ChunkedNats(torch.autograd.Function):
    """`_nats` of one chunk after another, each computed again for its gradient."""

    @staticmethod
    def forward(context: Any, logits_RV: Tensor, labels_R: Tensor, num_rows: int) -> Tensor:
        context.save_for_backward(logits_RV, labels_R)
        context.num_rows = num_rows
        chunks = zip(torch.split(logits_RV, num_rows), torch.split(labels_R, num_rows), strict=True)
        return torch.cat([_nats(logits_CV, labels_C) for logits_CV, labels_C in chunks])

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        logits_RV, labels_R = context.saved_tensors
        gradient_RV = torch.empty_like(logits_RV)
        parts = (torch.split(part, context.num_rows) for part in (logits_RV, labels_R, gradients[0], gradient_RV))
        for logits_CV, labels_C, gradient_C, gradient_CV in zip(*parts, strict=True):
            with torch.enable_grad():
                again_CV = logits_CV.detach().requires_grad_()
                nats_C = _nats(again_CV, labels_C)
            gradient_CV.copy_(torch.autograd.grad(nats_C, again_CV, gradient_C)[0])
        return gradient_RV, None, None
