"""A speech LLM as the few numbers that its memory depends on, from modules that may lie on torch's meta device."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from kappaspeech.model.encoder import SpeechEncoder
from kappaspeech.model.experts import stacked_parameters
from kappaspeech.model.llm import decoder_layers
from kappaspeech.model.lora import adapted_experts, has_dropout
from kappaspeech.model.packed_rows import PACKED_PREFIX
from kappaspeech.model.speech_llm import SpeechLLM, embedding_width
from kappaspeech.model.waveform_encoder import WaveformDims

FLOAT32_BYTES = 4

_FUSED = ("sdpa", "flash_attention_2")
# what families call the inner width of an MLP
_INNER_WIDTHS = ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "d_ff")
# PEFT's factor A reads what its module reads; factor B reads the elements of a rank
_WRAPPED = re.compile(r"\.base_layer|\.lora_A\.\w+")
_LAYER = re.compile(r"\.(?:layers|layer|h|blocks)\.(\d+)\.(.+)\.weight$")
# modules that read one and the same input: it is kept once, for all of them that train
_SHARED_INPUTS = {"q_proj": "attention", "k_proj": "attention", "v_proj": "attention", "gate_proj": "mlp", "up_proj": "mlp"}


@dataclass(frozen=True)
class LlmSizes:
    """A causal LM of Llama's kind. `tensor_sizes` are all parameters' numbers of elements, frozen and trained; `trained_shapes`
    are of what trains.

    `query_width` and `key_width` are summed over heads; `inner_width` is the MLP's, over the experts that a token meets.
    `kept_inputs` counts elements that a token leaves behind for the gradients of trained weights, over all layers.
    Attention that isn't fused keeps its weights, a square of positions a head. `layer_elements` are the largest layer's.
    `fused_elements` are those of the largest tensor of fused experts of which all or some train, or that LoRA adapts: its
    gradient is made whole. `adapted_elements` are those of all that LoRA adapts, `expert_elements` those of all others, whether
    they train or not. `trained_head` are the head's, if it trains, and `trained_embeddings` the token embeddings', if these do.
    """

    width: int
    inner_width: int
    query_width: int
    key_width: int
    num_heads: int
    num_layers: int
    vocabulary: int
    tensor_sizes: tuple[int, ...]
    num_trained: int
    kept_inputs: int
    fused_attention: bool = True
    layer_elements: int = 0
    trained_shapes: tuple[tuple[int, ...], ...] = ()
    fused_elements: int = 0
    expert_elements: int = 0
    adapted_elements: int = 0
    trained_head: int = 0
    trained_embeddings: int = 0

    @property
    def num_parameters(self) -> int:
        return sum(self.tensor_sizes)

    @property
    def trained_sizes(self) -> tuple[int, ...]:
        return tuple(map(math.prod, self.trained_shapes))


@dataclass(frozen=True)
class SpeechSizes:
    """The LLM with the adaptor before it and the encoder beside it. `adaptor_tensor_sizes` are numbers of elements; all train.
    `extraction_elements` are a waveform encoder's, a state of the clip that it convolves."""

    llm: LlmSizes
    adaptor_tensor_sizes: tuple[int, ...]
    adaptor_width: int
    num_adaptor_layers: int
    stacking: int
    encoder_width: int
    num_mels: int
    num_encoder_parameters: int
    encoder_itemsize: int
    max_states: int
    pad_to_30s: bool
    seconds_per_state: float = 0.02
    extraction_elements: int = 0

    @property
    def num_adaptor_parameters(self) -> int:
        return sum(self.adaptor_tensor_sizes)

    @property
    def tensor_sizes(self) -> tuple[int, ...]:
        """The numbers of elements of all tensors that ZeRO-3 partitions."""
        return self.adaptor_tensor_sizes + self.llm.tensor_sizes

    @property
    def seconds_per_audio_token(self) -> float:
        return self.seconds_per_state * self.stacking


def measure_sizes(encoder: SpeechEncoder, model: SpeechLLM, *, num_trained: int | None = None) -> SpeechSizes:
    """The sizes of these modules, by their shapes and `requires_grad`, before ZeRO-3 partitions them.

    `num_trained` is for an LLM of which it isn't known yet which tensors train: so many parameters, of all kinds alike.
    """
    parameters = list(model.llm.named_parameters())
    trained = [(name, p) for name, p in parameters if p.requires_grad]
    shape = model.adaptor.shape
    config = model.llm.config.get_text_config(decoder=True)
    width = int(getattr(config, "hidden_size", None) or embedding_width(model.llm))
    # recurrent families have no heads
    num_heads = int(getattr(config, "num_attention_heads", None) or 0)
    head_width = int(getattr(config, "head_dim", None) or width // max(1, num_heads))
    num_keys = int(getattr(config, "num_key_value_heads", None) or num_heads)
    inner_width = _inner_width(config, width)
    query_width = num_heads * head_width
    adapted = adapted_experts(model.llm)
    fused_attention = num_heads == 0 or config._attn_implementation.removeprefix(PACKED_PREFIX) in _FUSED

    def count_inputs(named: Sequence[tuple[str, nn.Parameter]]) -> int:
        return count_kept_inputs(
            # factors of fused experts read no token
            {name: p.shape for name, p in named if not name.startswith(tuple(f"{path}.lora_" for path in adapted))},
            width=width,
            inner_width=inner_width,
            query_width=query_width,
            fused_attention=fused_attention,
            has_dropout=has_dropout(model.llm),
        )

    kept_inputs = count_inputs(trained)
    trained_shapes = tuple(tuple(p.shape) for _, p in trained)
    if num_trained is not None:
        trained_shapes = _spread([tuple(p.shape) for _, p in parameters], num_trained)
        kept_inputs = round(count_inputs(parameters) * min(1.0, num_trained / sum(p.numel() for _, p in parameters)))
    head = list(model.llm.get_output_embeddings().parameters())
    elsewhere = {id(stack) for _, stack in stacked_parameters(model.llm)} | {id(p) for p in adapted.values()}
    llm = LlmSizes(
        width=width,
        inner_width=inner_width,
        query_width=query_width,
        key_width=num_keys * head_width,
        num_heads=num_heads,
        num_layers=len(decoder_layers(model.llm)),
        vocabulary=model.llm.get_output_embeddings().weight.shape[0],
        tensor_sizes=tuple(p.numel() for _, p in parameters),
        num_trained=sum(p.numel() for _, p in trained) if num_trained is None else num_trained,
        kept_inputs=kept_inputs,
        fused_attention=fused_attention,
        layer_elements=largest_layer(model.llm),
        trained_shapes=trained_shapes,
        fused_elements=max(
            [p.numel() for _, p in trained if p.dim() == 3]
            + [fused.numel() for fused, _ in stacked_parameters(model.llm)]
            + [p.numel() for p in adapted.values()],
            default=0,
        ),
        trained_head=sum(p.numel() for p in head) if any(p.requires_grad for p in head) else 0,
        trained_embeddings=sum(p.numel() for p in model.llm.get_input_embeddings().parameters() if p.requires_grad),
        expert_elements=sum(p.numel() for _, p in parameters if p.dim() == 3 and id(p) not in elsewhere),
        adapted_elements=sum(p.numel() for p in adapted.values()),
    )
    return SpeechSizes(
        llm=llm,
        adaptor_tensor_sizes=tuple(p.numel() for p in model.adaptor.parameters()),
        adaptor_width=shape.width,
        num_adaptor_layers=len(model.adaptor.layers),
        stacking=shape.stacking,
        encoder_width=encoder.dims.width,
        num_mels=encoder.dims.num_mels,
        num_encoder_parameters=sum(p.numel() for p in encoder.parameters()),
        encoder_itemsize=encoder.dtype.itemsize,
        max_states=encoder.dims.max_states,
        pad_to_30s=encoder.pad_to_30s,
        seconds_per_state=encoder.dims.seconds_per_state,
        extraction_elements=encoder.dims.extraction_elements if isinstance(encoder.dims, WaveformDims) else 0,
    )


def largest_layer(llm: Any) -> int:
    """Elements of the largest of a causal LM's decoder layers, before ZeRO-3 partitions them."""
    return max(sum(parameter.numel() for parameter in layer.parameters()) for layer in decoder_layers(llm))


def _spread(shapes: Sequence[tuple[int, ...]], num_trained: int) -> tuple[tuple[int, ...], ...]:
    """An even part of a model's tensors of two or more dimensions, as a selection has, of about so many elements."""
    matrices = [shape for shape in shapes if len(shape) >= 2]
    share = num_trained / sum(map(math.prod, matrices))
    return tuple(shape for index, shape in enumerate(matrices) if int((index + 1) * share) > int(index * share))


def _inner_width(config: Any, width: int) -> int:
    named = (getattr(config, name, None) for name in _INNER_WIDTHS)
    # four times the width, as the Transformer's authors took it, for families that name none
    of_config = next((size for size in named if isinstance(size, int)), 4 * width)
    experts = getattr(config, "num_experts_per_tok", None)
    if not experts:
        return of_config
    return int(experts) * int(getattr(config, "moe_intermediate_size", None) or of_config)


def count_kept_inputs(
    shapes: Mapping[str, Sequence[int]],
    *,
    width: int,
    inner_width: int,
    query_width: int,
    fused_attention: bool = True,
    has_dropout: bool = False,
) -> int:
    """Elements a token that are kept because the weights of these names and shapes train.

    An output projection reads what fused attention keeps anyway. With dropout each of LoRA's factors A reads a tensor of its own,
    for whose gradient a mask is kept, as large on a processor.
    """
    read = {"down_proj": inner_width, "o_proj": query_width}
    kept: dict[tuple[str, str], int] = {}
    for name, shape in shapes.items():
        match = _LAYER.search(_WRAPPED.sub("", f".{name}"))
        if match is None:
            continue
        layer, path = match.groups()
        module = path.rsplit(".", 1)[-1]
        if ".lora_B." in name:
            kept[layer, path] = shape[-1]
        elif has_dropout and ".lora_A." in name:
            kept[layer, path] = 2 * read.get(module, width)
        elif module != "o_proj" or not fused_attention:
            kept[layer, _SHARED_INPUTS.get(module, path)] = read.get(module, width)
    return sum(kept.values())
