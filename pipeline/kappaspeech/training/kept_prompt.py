"""The prompt of a run: made once by rank 0, recorded, and kept when the run resumes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from kappaspeech.artefacts import digest_json
from kappaspeech.config.run_config import RunConfig
from kappaspeech.errors import ConfigError
from kappaspeech.ranks.agreement import agree
from kappaspeech.ranks.cluster import Cluster
from kappaspeech.runs.checkpoints import list_checkpoints
from kappaspeech.runs.contents import RECORD_FILE
from kappaspeech.runs.folder import RunFolder
from kappaspeech.speech.prompt import SpeechPrompt, make_configured_prompt


def settle_prompt(config: RunConfig, tokenizer: Any, *, cluster: Cluster, folder: RunFolder) -> SpeechPrompt:
    """The prompt that all ranks put around the audio. A collective.

    A template may contain the day's date: each day would have a prompt of its own, and two hosts at midnight would have two. So a
    run that resumes takes the ids that it began with, and a new one rank 0's. Raises `ConfigError` if another is now asked for.
    """

    def settle() -> SpeechPrompt | None:
        return _keep_or_make(config, tokenizer, folder) if cluster.rank == 0 else None

    found = agree(cluster, settle)[0]
    assert found is not None
    return found


def _keep_or_make(config: RunConfig, tokenizer: Any, folder: RunFolder) -> SpeechPrompt:
    model = config.model
    if not (folder.path / RECORD_FILE).exists() or not list_checkpoints(folder.checkpoints):
        return make_configured_prompt(tokenizer, config)
    began = folder.read_config()
    asked: list[tuple[str, Any, Any]] = [
        (f"model.{name}", getattr(began.model, name), getattr(model, name)) for name in ("instruction", "chat_template")
    ]
    asked += [
        (f"data.train.{number}.instruction", before.instruction, now.instruction)
        # sets that came or went are another difference, which the data's fingerprint tells
        for number, (before, now) in enumerate(zip(began.data.train, config.data.train, strict=False))
    ]
    before_hot, hot = (None if data.hot_words is None else data.hot_words.model_dump() for data in (began.data, config.data))
    asked.append(("data.hot_words", before_hot, hot))
    for name, before, now in asked:
        if before != now:
            raise ConfigError(
                f"{name} is {now!r}, and {folder.path} was begun with {before!r}: a run keeps its prompt. Put that back, "
                "or train into another run_dir."
            )
    recorded = folder.read_record().get("prompt")
    # a run of a version that recorded none began its texts otherwise
    made = make_configured_prompt(tokenizer, config, as_before=recorded is None)
    if recorded is None:
        return made
    kept = SpeechPrompt.from_json(recorded)
    # test sets may have come since
    return replace(kept, others={**made.others, **kept.others})


def digest_prompt_source(config: RunConfig, tokenizer: Any) -> str:
    """A digest of the prompt's sources, without the day: hosts must have the same."""
    instructions = [config.model.instruction, *config.data.instructions]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in instructions]
    return digest_json([ids, getattr(tokenizer, "chat_template", None)])
