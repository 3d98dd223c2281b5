"""A check that an LLM treats words given as embeddings as it treats their tokens: audio lies among such words."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from kappaspeech.errors import CheckpointError
from kappaspeech.model.family import LOADING_ERRORS
from kappaspeech.model.llm import decoder_layers


class _MetError(Exception):
    """Ends a forward pass at its first layer."""


@torch.no_grad()
def check_embedded_words(llm: Any) -> None:
    """Raise `CheckpointError` if the first layer's input differs between tokens and their embeddings.

    Some families scale embeddings on the way from tokens alone. Only two rows of the embedding are read.
    """
    embed = llm.get_input_embeddings()
    num_tokens = embed.weight.shape[0]
    ids = torch.tensor([[num_tokens // 2, num_tokens - 1]])
    met: list[Tensor] = []

    def end(_layer: Any, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
        given = [*inputs, *options.values()]
        met.append(next(item for item in given if isinstance(item, Tensor) and item.is_floating_point()))
        raise _MetError

    hook = decoder_layers(llm)[0].register_forward_pre_hook(end, with_kwargs=True)
    try:
        for words in ({"input_ids": ids}, {"inputs_embeds": embed(ids)}):
            with suppress(_MetError):
                llm(**words, use_cache=False)
    except LOADING_ERRORS as error:
        raise CheckpointError(f"{type(llm).__name__} can't be given words as embeddings: {error}") from error
    finally:
        hook.remove()
    if len(met) != 2 or not torch.allclose(met[0].float(), met[1].float()):
        raise CheckpointError(
            f"{type(llm).__name__} reads words given as embeddings otherwise than as tokens, and audio has to be put among "
            "such words. Give a model of another family as model.llm."
        )
