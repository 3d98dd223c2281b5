"""The amount of a run's computation: operations and tokens of its batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kappaspeech.labels import IGNORED_LABEL
from kappaspeech.model.flops import ClipLengths, SpeechCost
from kappaspeech.speech.batches import SpeechBatch
from kappaspeech.speech.prompt import SpeechPrompt


@dataclass(frozen=True)
class StepWork:
    """The work of a rank in a step: the LLM's tokens (prompt, audio, labels; no padding) and all operations of its model."""

    num_llm_tokens: int
    flops: int


def count_work(
    cost: SpeechCost,
    batches: Sequence[SpeechBatch],
    *,
    prompt: SpeechPrompt | None = None,
    texts: Sequence[int] = (),
    anchored: bool = False,
) -> StepWork:
    """The work of these batches, and of replayed texts of so many tokens. A masked sample is none. `prompt` has the prompts of
    their instructions; without it each clip has the cost's."""
    clips = [
        ClipLengths(
            num_frames,
            num_labels,
            encoded=states is None,
            num_prompt_tokens=prompt.of(instruction).count_tokens(len(hot_ids)) if prompt else None,
        )
        for batch in batches
        for num_frames, num_labels, weight, states, instruction, hot_ids in zip(
            batch.num_frames.tolist(),
            (batch.label_ids != IGNORED_LABEL).sum(dim=1).tolist(),
            batch.weights.tolist(),
            batch.states,
            batch.instructions,
            batch.hot_ids,
            strict=True,
        )
        if weight > 0
    ]
    num_tokens = sum(cost.num_llm_tokens(clip) for clip in clips) + sum(texts)
    return StepWork(num_tokens, cost.step(clips).total + cost.replay(texts, anchored=anchored).total)
