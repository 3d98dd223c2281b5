"""Bytes that a step moves beside its matrix products: norms, activations, residuals, softmax and loss. Pure arithmetic.

Each operation of PyTorch reads its operands from memory and writes its result; a *pass* is one of these, over all elements.
"""

from __future__ import annotations

from kappaspeech.model.loss import CHUNK_ELEMENTS
from kappaspeech.planning.memory import TokenCounts
from kappaspeech.planning.sizes import FLOAT32_BYTES, LlmSizes, SpeechSizes

# Gradients go through twice of what the forward did: each operation's is read, and one is written for each operand.
_BACKWARD = 2


def count_elementwise(sizes: SpeechSizes, tokens: TokenCounts, *, itemsize: int) -> tuple[int, int]:
    """Bytes that the forward and the backward of a micro-batch's LLM and adaptor read and write."""
    llm = sizes.llm
    layer = tokens.llm * _layer_bytes_per_token(llm, itemsize=itemsize)
    if not llm.fused_attention:
        # scores are scaled and masked, and their softmax is taken
        layer += tokens.squares * llm.num_heads * 5 * itemsize
    adaptor_layer = _norm_passes(itemsize) * sizes.adaptor_width + (3 + 8) * itemsize * sizes.adaptor_width
    # cast, log-softmax and choice, of which the backward writes the gradient
    loss = tokens.labels * llm.vocabulary * (itemsize + 4 * FLOAT32_BYTES)
    forward = llm.num_layers * layer + tokens.audio * sizes.num_adaptor_layers * adaptor_layer + loss
    # of several chunks of logits, each is computed again for its gradient
    again = loss if tokens.labels * llm.vocabulary > CHUNK_ELEMENTS else 0
    return int(forward), int(_BACKWARD * forward + again)


def _layer_bytes_per_token(llm: LlmSizes, *, itemsize: int) -> int:
    """Bytes a token in one layer of Llama's kind, as transformers writes it."""
    b = itemsize
    norms = 2 * _norm_passes(b) * llm.width
    # query and key: by the cosine, turned, by the sine, added
    rotation = 12 * b * (llm.query_width + llm.key_width)
    # heads are laid beside each other, and back
    heads = 2 * b * (2 * llm.query_width + 2 * llm.key_width)
    residuals = 2 * 3 * b * llm.width
    gate = 5 * b * llm.inner_width
    return norms + rotation + heads + residuals + gate


def _norm_passes(itemsize: int) -> int:
    """Bytes an element of a norm in float32: cast, squared, averaged, scaled, cast back, weighted."""
    casts = 2 * (itemsize + FLOAT32_BYTES) if itemsize != FLOAT32_BYTES else 0
    return casts + 5 * FLOAT32_BYTES + 2 * itemsize
