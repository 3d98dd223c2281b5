"""Floating-point operations of a training step, from shapes: those that the model needs, on any device and by any method.

A multiplication and its addition are two operations. Matrix products and attention are counted, with whole squares of positions
though they are causal, as in PaLM's appendix B (arXiv:2204.02311) and in torch's `FlopCounterMode`. Norms, activations and sums
are not counted, nor is a computation that is repeated to save memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from kappaspeech.model.adaptor import Adaptor
from kappaspeech.model.encoder import EncoderDims, SpeechEncoder
from kappaspeech.model.experts import stacked_parameters
from kappaspeech.model.speech_llm import SpeechLLM

_FLOPS_PER_WEIGHT = 2
# products of attention: queries by keys, and their softmax by values
_ATTENTION_PRODUCTS = 2


@dataclass(frozen=True)
class StackCost:
    """A stack of layers: the weights that every position is multiplied by, and the width of attention, summed over layers.

    `input_weights` are those of `weights` whose input needs no gradient.
    """

    weights: int
    trained_weights: int = 0
    attention_width: int = 0
    input_weights: int = 0

    def forward(self, lengths: Sequence[int]) -> int:
        """Operations of the forward pass for rows of these lengths."""
        return _FLOPS_PER_WEIGHT * self.weights * sum(lengths) + self._attention(lengths)

    def backward(self, lengths: Sequence[int]) -> int:
        """Operations for the gradients of all activations, and of the weights that train."""
        products = self.weights - self.input_weights + self.trained_weights
        return _FLOPS_PER_WEIGHT * products * sum(lengths) + 2 * self._attention(lengths)

    def _attention(self, lengths: Sequence[int]) -> int:
        squares = sum(length * length for length in lengths)
        return _ATTENTION_PRODUCTS * _FLOPS_PER_WEIGHT * self.attention_width * squares


@dataclass(frozen=True)
class ClipLengths:
    """A row of a micro-batch: the encoder's frames, tokens that are targets, whether the encoder has to run for it, and the
    tokens of its prompt, if not the cost's."""

    num_frames: int
    num_labels: int
    encoded: bool = True
    num_prompt_tokens: int | None = None


@dataclass(frozen=True)
class StepFlops:
    """Operations of a step by part. `forward` and `backward` are the adaptor's and the LLM's."""

    encoder: int
    forward: int
    backward: int

    @property
    def total(self) -> int:
        return self.encoder + self.forward + self.backward


@dataclass(frozen=True)
class SpeechCost:
    """The costs of a whole speech LLM. The adaptor trains and comes first, so gradients pass through all of the LLM."""

    encoder: StackCost
    adaptor: StackCost
    llm: StackCost
    head: StackCost
    stacking: int
    num_prompt_tokens: int
    fixed_states: int | None = None
    """The encoder's states for any clip, if it is padded to 30 s."""
    count_states: Callable[[int], int] = EncoderDims(80, 0, 1500).count_states
    frames_per_second: int = 100

    def num_llm_tokens(self, clip: ClipLengths) -> int:
        """The number of the LLM's positions that a clip takes: prompt, audio and labels."""
        num_states = self.count_states(clip.num_frames)
        num_prompt = self.num_prompt_tokens if clip.num_prompt_tokens is None else clip.num_prompt_tokens
        return num_prompt + -(-num_states // self.stacking) + clip.num_labels

    def without_llm(self) -> SpeechCost:
        """The costs of a step that aligns the adaptor alone."""
        return replace(self, llm=StackCost(0), head=StackCost(0))

    def step(self, clips: Sequence[ClipLengths]) -> StepFlops:
        """Operations for these rows, without padding."""
        states = [self.count_states(clip.num_frames) for clip in clips]
        audio = [-(-count // self.stacking) for count in states]
        tokens = [self.num_llm_tokens(clip) for clip in clips]
        labels = [clip.num_labels for clip in clips]
        parts = ((self.adaptor, audio), (self.llm, tokens), (self.head, labels))
        return StepFlops(
            encoder=self.encoder.forward(
                [self.fixed_states or count for count, clip in zip(states, clips, strict=True) if clip.encoded]
            ),
            forward=sum(part.forward(lengths) for part, lengths in parts),
            backward=sum(part.backward(lengths) for part, lengths in parts),
        )

    def replay(self, lengths: Sequence[int], *, anchored: bool) -> StepFlops:
        """Operations for texts of these lengths; with an anchor, the head computes their base's logits again."""
        foretold = [length - 1 for length in lengths]
        return StepFlops(
            encoder=0,
            forward=self.llm.forward(lengths) + (2 if anchored else 1) * self.head.forward(foretold),
            backward=self.llm.backward(lengths) + self.head.backward(foretold),
        )


def speech_cost(encoder: SpeechEncoder, model: SpeechLLM, *, num_prompt_tokens: int) -> SpeechCost:
    """The costs of these modules, by their shapes and by the part of them that trains; they may lie on torch's meta device or be
    partitioned by ZeRO-3."""
    return SpeechCost(
        encoder=encoder_cost(encoder),
        adaptor=adaptor_cost(model.adaptor),
        llm=_decoder_cost(model.llm),
        head=_weights_cost([model.llm.get_output_embeddings().weight]),
        stacking=model.adaptor.shape.stacking,
        num_prompt_tokens=num_prompt_tokens,
        fixed_states=encoder.dims.max_states if encoder.pad_to_30s else None,
        count_states=encoder.dims.count_states,
        frames_per_second=round(encoder.dims.frames_per_state / encoder.dims.seconds_per_state),
    )


def encoder_cost(encoder: SpeechEncoder) -> StackCost:
    """The cost of the encoder, by states."""
    return StackCost(encoder.weights_per_state, attention_width=encoder.num_layers * encoder.dims.width)


def adaptor_cost(adaptor: Adaptor) -> StackCost:
    """The cost of the adaptor, by audio positions. Nothing before its first layer needs a gradient."""
    cost = _weights_cost(_matrices(adaptor))
    attention_width = len(adaptor.layers) * adaptor.shape.width
    return StackCost(cost.weights, cost.trained_weights, attention_width, input_weights=_numel(adaptor.project.weight))


def _decoder_cost(llm: Any) -> StackCost:
    """The cost of the LLM's layers, by tokens. Of a stack of experts, a token meets as many as it is routed to."""
    config = llm.config.get_text_config(decoder=True)
    embedding = llm.get_input_embeddings().weight
    active = _active_experts(config)
    pairs = list(stacked_parameters(llm))
    # trained experts are multiplied in their tensor, whose whole gradient is computed
    stacks, partly = {id(stack) for _, stack in pairs}, {id(fused): fused for fused, _ in pairs}
    matrices = (p for p in _matrices(llm.get_decoder()) if p is not embedding and id(p) not in stacks)
    cost = _weights_cost(matrices, active_experts=active)
    trained = cost.trained_weights + _weights_cost(partly.values(), active_experts=active).weights
    # recurrent families have no heads
    num_heads = getattr(config, "num_attention_heads", None) or 0
    width = num_heads * (getattr(config, "head_dim", None) or config.hidden_size // max(1, num_heads))
    attention_width = config.num_hidden_layers * width
    return StackCost(cost.weights, trained, attention_width)


def _weights_cost(parameters: Iterable[Any], *, active_experts: int = 1) -> StackCost:
    """The cost of matrices as they are; of three-dimensional ones, stacks of experts, `active_experts` of each."""
    weights = trained = 0
    for parameter in parameters:
        shape = _shape(parameter)
        count = _numel(parameter) if len(shape) == 2 else active_experts * _numel(parameter) // shape[0]
        weights += count
        trained += count if parameter.requires_grad else 0
    return StackCost(weights, trained)


def _active_experts(config: Any) -> int:
    return int(getattr(config, "num_experts_per_tok", None) or 1)


def _matrices(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if len(_shape(parameter)) >= 2]


def _shape(parameter: Any) -> tuple[int, ...]:
    """The shape of the whole tensor, also if ZeRO-3 has partitioned it."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def _numel(parameter: Any) -> int:
    return int(getattr(parameter, "ds_numel", parameter.numel()))
