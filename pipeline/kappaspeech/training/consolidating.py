"""A run's elastic weight consolidation, made ready before its first step: texts read, the Fisher measured, the weights held."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from kappaspeech.config.run_config import RunConfig
from kappaspeech.errors import DataError
from kappaspeech.evaluation.forgetting import cut_windows, read_texts
from kappaspeech.model.speech_llm import SpeechLLM
from kappaspeech.model.text_rows import TextRows, pad_texts
from kappaspeech.speech.batches import empty_batch
from kappaspeech.speech.prompt import SpeechPrompt
from kappaspeech.training.clip_encoder import ClipEncoder
from kappaspeech.training.replay import choose_evenly, refuse_measured
from kappaspeech.training.surroundings import Surroundings
from kappaspeech.zero3.consolidation import Consolidation
from kappaspeech.zero3.engine import MicroBatch, TrainingEngine


def read_consolidated(config: RunConfig, tokenizer: Any) -> list[tuple[int, ...]]:
    """The pieces of text by which the Fisher is measured; none without `ewc`. Raises `DataError`; `ConfigError` for texts that
    forgetting is measured on."""
    options = config.ewc
    if options is None:
        return []
    texts = {language: read_texts(Path(path)) for language, path in options.texts.items()}
    refuse_measured(texts, {language: read_texts(Path(path)) for language, path in config.data.text.items()}, key="ewc.texts")
    pieces: list[tuple[int, ...]] = []
    for language, lines in texts.items():
        cut = cut_windows(tokenizer, lines, most_tokens=options.max_tokens)
        if not cut:
            raise DataError(f"{options.texts[language]} (ewc.texts) is too short: no text of it has two tokens.")
        pieces += choose_evenly(cut, options.num_pieces)
    return pieces


def consolidate(
    engine: TrainingEngine,
    pieces: Sequence[Sequence[int]],
    encoder: ClipEncoder,
    *,
    weight: float,
    num_mels: int,
    prompt: SpeechPrompt,
    around: Surroundings,
) -> Consolidation:
    """Hold the LLM to the weights that the engine has now, by the Fisher of `pieces`. For before any step and any resume: a start
    that resumes measures it again, of the same weights. A collective.

    Beside each piece stands a clip without labels, as beside a rank's missing micro-batch: a pass runs the modules that it always
    runs.
    """
    states_BSE, num_states_B = encoder.encode(silence := empty_batch(num_mels))

    def batches() -> Iterator[MicroBatch]:
        for piece in pieces:
            around.phases.tick()
            around.watch.check()
            yield MicroBatch(states_BSE, num_states_B, silence.label_ids, TextRows(pad_texts([piece]), 1.0, 0.0))

    held = Consolidation(engine)
    num_tokens = sum(len(piece) - 1 for piece in pieces)
    held.measure(batches(), num_tokens=num_tokens, prefix_ids=prompt.prefix_ids, suffix_ids=prompt.suffix_ids)
    engine.release_gathered()
    held.hold(weight)
    return held


def trains_llm(model: SpeechLLM) -> bool:
    """Return whether there is anything to hold: of an arm that trains the adaptor alone there isn't."""
    return any(parameter.requires_grad for parameter in model.llm.parameters())
