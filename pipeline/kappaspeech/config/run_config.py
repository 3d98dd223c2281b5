"""The configuration of a run, whole: one YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from kappaspeech.config.classp_config import ClasspConfig
from kappaspeech.config.data_config import DataConfig
from kappaspeech.config.ewc_config import EwcConfig
from kappaspeech.config.model_config import ModelConfig, UnfreezeConfig
from kappaspeech.config.reading import read_yaml
from kappaspeech.config.replay_config import ReplayConfig
from kappaspeech.config.section import StrictSection
from kappaspeech.config.training_config import BatchConfig, EvaluationConfig, OptimizerConfig, TrainingConfig


class RunConfig(StrictSection):
    """A training run, whole."""

    run_dir: str = Field(description="Folder of the run. If it holds a checkpoint, the run continues from it.")
    arm: str = Field(default="run", description="The run's name in reports. Runs of the same arm are seeds of each other.")
    seed: int = Field(
        default=17, description="Seed of the adaptor's and LoRA's weights, the data's order, augmentation and dropout."
    )
    model: ModelConfig = Field(description="The two pretrained models, and the prompt.")
    unfreeze: UnfreezeConfig = Field(default=UnfreezeConfig(), description="What trains beside the adaptor.")
    data: DataConfig = Field(description="Speech and text.")
    replay: ReplayConfig | None = Field(default=None, description="Text in every step, against forgetting. null: speech alone.")
    ewc: EwcConfig | None = Field(
        default=None, description="A pull of each weight back to its beginning, against forgetting. null: none."
    )
    classp: ClasspConfig | None = Field(
        default=None, description="Another optimizer for the LLM's tensors, against forgetting. null: AdamW."
    )
    batch: BatchConfig = Field(default=BatchConfig(), description="Size of a step.")
    optimizer: OptimizerConfig = Field(default=OptimizerConfig(), description="AdamW and its rates.")
    training: TrainingConfig = Field(description="Length, cadence and faults.")
    evaluation: EvaluationConfig = Field(default=EvaluationConfig(), description="Decoding of data.test.")
    deepspeed: str = Field(
        default="ds_configs/zero3.json",
        description="The DeepSpeed JSON, which owns ZeRO, precision and communication. Presets are in ds_configs/.",
    )

    @model_validator(mode="after")
    def _measure_what_is_budgeted(self) -> RunConfig:
        if self.replay is not None and self.replay.forgetting_budget_nats is not None and not self.data.text:
            raise ValueError("replay.forgetting_budget_nats is a distance on data.text, which is empty: name texts there")
        return self

    @model_validator(mode="after")
    def _hold_no_factors(self) -> RunConfig:
        if self.ewc is not None and self.unfreeze.mode == "lora":
            raise ValueError(
                "ewc can't hold LoRA: its factor A has no Fisher information at the start. Remove ewc, or unfreeze a selection"
            )
        return self


def read_run_config(path: Path, *, overrides: dict[str, Any] | None = None) -> RunConfig:
    """Read a run's YAML. Relative paths in it are kept as they are: they count from the working folder.

    `overrides` maps dotted keys to values that take the place of the file's. Raises `ConfigError` with all problems found.
    """
    return read_yaml(path, RunConfig, overrides=overrides)
