"""Packages that a training needs by its configuration."""

from __future__ import annotations

import os

from kappaspeech.config.run_config import RunConfig
from kappaspeech.needed_packages import need
from kappaspeech.speech.source import need_reader


def check_packages(config: RunConfig) -> None:
    """Raise `InputError` if a package is missing that `config` needs at its start, on its way or at its end."""
    # a logger's name is its module's
    loggers = config.training.loggers
    curves = ["tensorboard"] if "tensorboard" in loggers else []
    need("kappaspeech train", "deepspeed", "transformers", "whisper", "soundfile", "soxr", *curves)
    for name in loggers:
        need(f"training.loggers: {name}", name)
    if "mlflow" in loggers and not os.environ.get("MLFLOW_TRACKING_URI"):
        need("training.loggers: mlflow without MLFLOW_TRACKING_URI", "sqlalchemy", "alembic")
    if config.data.test:
        need("data.test", "jiwer")
    if config.unfreeze.mode == "lora":
        need("unfreeze.mode lora", "peft")
    for dataset in (*config.data.train, *config.data.test):
        need_reader(dataset.shards)
