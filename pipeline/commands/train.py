"""`kappaspeech train`: stage 2, under the DeepSpeed launcher or any other, or alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

# sysexits.h EX_TEMPFAIL: nothing is wrong, and the same command goes on where this one stopped
EXIT_RESUMABLE = 75


def train(
    config: Annotated[Path, typer.Argument(help="The run's YAML; launch/configs/ has examples.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Change a value: optimizer.clip_norm=0.5. May be repeated.")
    ] = None,
) -> int:
    """Train the adaptor and the selected tensors under ZeRO-3, resuming where the run folder's last checkpoint stands."""
    from pipeline.config import read_run_config

    settings = read_run_config(config, overrides=_parse_overrides(set_ or []))
    from pipeline.training.run import train as run_training

    outcome = run_training(settings)
    import os

    if os.environ.get("RANK", "0") == "0":
        print(f"{outcome.status} at step {outcome.step}" + (f", stopped by {outcome.reason}" if outcome.reason else ""))
        print(outcome.run_dir)
    return 0 if outcome.status == "finished" else EXIT_RESUMABLE


def _parse_overrides(pairs: list[str]) -> dict[str, Any]:
    import yaml

    from pipeline.errors import ConfigError

    overrides = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set is {pair!r}; give a dotted key and a value, as in training.num_steps=100.")
        try:
            overrides[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {key} holds no YAML value: {error}") from error
    return overrides
