"""The target of `kappaspeech evaluate`: a run, an export or plain Whisper, and the data on which it is measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kappaspeech.artefacts import digest_json
from kappaspeech.config.data_config import DatasetConfig, ReadConfig
from kappaspeech.config.training_config import EvaluationConfig
from kappaspeech.errors import ConfigError, InputError
from kappaspeech.evaluation.decoding import Decoder
from kappaspeech.runs.contents import RECORD_FILE
from kappaspeech.scan.checkpoint import open_checkpoint
from kappaspeech.trained.arithmetic import UseArithmetic
from kappaspeech.trained.difference import SPEECH_FILE
from kappaspeech.trained.identity import identify
from kappaspeech.trained.opening import Step, check_choice, open_run, open_transcriber
from kappaspeech.trained.whole_opening import is_whole

WHISPER_PREFIX = "whisper:"


@dataclass(frozen=True)
class EvaluationTarget:
    """A model, not yet loaded, and the speech, text and questions (language → path) on which it is measured.

    `folder` is the place of its record unless the user gives another, `identity` what all ranks must find alike: the model's
    weights and options.
    """

    folder: Path
    identity: str
    step: int
    train_seconds: float
    speech: tuple[DatasetConfig, ...]
    text: Mapping[str, str]
    tasks: Mapping[str, str]
    options: EvaluationConfig
    read: ReadConfig
    open_decoder: Callable[[torch.device, UseArithmetic], Decoder]


def find_target(
    model: str,
    *,
    data: Sequence[str] = (),
    text: Sequence[str] = (),
    tasks: Sequence[str] = (),
    step: Step = None,
    base: str | None = None,
    options: Mapping[str, Any] | None = None,
    instruction: str | None = None,
) -> EvaluationTarget:
    """Find the kind of `model`. `data` are shards, `text` and `tasks` LANGUAGE=PATH; a run brings its own if they aren't given.

    `instruction` is asked of the LLM for `data`, if not the run's. `options` take the place of a run's evaluation.* or of their
    defaults, `base` that of the base model it was trained on. Raises `InputError`.
    """
    if instruction is not None and not data:
        raise InputError("--instruction is asked for the shards of --data: give these too. A run's own sets name theirs.")
    speech = tuple(DatasetConfig(shards=shards, instruction=instruction) for shards in data)
    texts, questions = dict(_parse_path(item, "--text") for item in text), dict(_parse_path(item, "--tasks") for item in tasks)
    is_whisper = model.startswith(WHISPER_PREFIX) or model.endswith(".pt")
    if step is not None and not (Path(model) / RECORD_FILE).exists():
        raise InputError(f"--step chooses one of a run's checkpoints, and {model} is no run.")
    check_choice(Path(model), base=base)
    if not is_whisper and (Path(model) / RECORD_FILE).exists():
        run = open_run(Path(model), step=step)
        config = run.config
        speech, texts = speech or tuple(config.data.test), texts or dict(config.data.text)
        questions = questions or dict(config.data.tasks)
        chosen = config.evaluation.model_copy(update=dict(options or {}))
        folder, read, train_seconds = run.path, config.data.read, run.train_seconds
        step = reached = run.step
    elif is_whisper or (Path(model) / SPEECH_FILE).exists() or is_whole(Path(model)):
        chosen = EvaluationConfig(**(options or {}))
        folder, read, train_seconds = Path() if is_whisper else Path(model), ReadConfig(), 0.0
        reached = 0
    else:
        raise InputError(f"{model} is neither a run folder, nor an export, nor whisper:NAME, nor an openai-whisper .pt file.")
    if not speech:
        raise ConfigError(f"{model} names no test speech, so there is nothing to measure WER on. Give shards with --data.")
    if is_whisper:
        _refuse_for_whisper(texts, questions, instruction)

    def open_decoder(device: torch.device, use: UseArithmetic) -> Decoder:
        if is_whisper:
            from kappaspeech.evaluation.whisper_baseline import open_whisper

            return open_whisper(model.removeprefix(WHISPER_PREFIX), device=device, num_beams=chosen.num_beams)
        return open_transcriber(
            Path(model),
            step=step,
            base=base,
            device=device,
            batch_size=chosen.batch_size,
            max_new_tokens=chosen.max_new_tokens,
            num_beams=(options or {}).get("num_beams"),
            use=use,
        )

    identity = digest_json([_identify_whisper(model) if is_whisper else identify(Path(model), step=step), chosen.model_dump()])
    return EvaluationTarget(folder, identity, reached, train_seconds, speech, texts, questions, chosen, read, open_decoder)


def _identify_whisper(model: str) -> str:
    """The name of one that openai-whisper fetches and compares with its digest, or the digest of a file's weights."""
    return model if model.startswith(WHISPER_PREFIX) else open_checkpoint(model).digest


def _refuse_for_whisper(texts: Mapping[str, str], questions: Mapping[str, str], instruction: str | None) -> None:
    """Raise `InputError` for what only an LLM can be asked."""
    if texts:
        raise InputError("Plain Whisper reads no text: leave --text out.")
    if questions:
        raise InputError("Plain Whisper answers no questions: leave --tasks out.")
    if instruction is not None:
        raise InputError("Plain Whisper takes no instruction: leave --instruction out.")


def _parse_path(item: str, option: str) -> tuple[str, str]:
    language, equals, path = item.partition("=")
    if not (language and equals and path):
        example = {"--text": "text/en.txt", "--tasks": "tasks/en.jsonl"}[option]
        raise InputError(f"{option} is {item!r}; it wants LANGUAGE=PATH, as in en={example}.")
    return language, path
