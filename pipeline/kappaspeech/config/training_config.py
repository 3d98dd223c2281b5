"""The configuration's part on steps, their optimizer, their measurement and faults."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from kappaspeech.config.section import Count, NotNegative, Positive, StrictSection


class BatchConfig(StrictSection):
    """A step is `micro_batches_per_step` micro-batches, whatever the number of ranks that share them out."""

    max_samples: Count = Field(default=16, description="Most clips in a micro-batch.")
    max_seconds: Positive = Field(default=120.0, description="Most seconds of padded audio in a micro-batch.")
    max_tokens: Count | None = Field(
        default=None,
        description="Most tokens of the LLM in a micro-batch: prompt, audio, and text by the audio's length; padding isn't "
        "counted. null: no limit but the other two.",
    )
    micro_batches_per_step: Count = Field(default=2, description="Micro-batches in a step, over all ranks.")
    even_shares: bool = Field(
        default=False,
        description="Deal a step's clips out anew if its micro-batches don't go evenly among the ranks, so that no rank is "
        "left without. The step's clips stay the same; dropout then depends on the number of ranks.",
    )
    packing: bool | Literal["auto"] = Field(
        default="auto",
        description="Lay the clips of a micro-batch one after the other in one row of the LLM, each attending to itself alone, "
        "in place of padding each to the longest. auto: on processors, if the LLM's family can. A run keeps what it began with.",
    )


class OptimizerConfig(StrictSection):
    """AdamW, with a learning rate for the adaptor and one for the LLM."""

    adaptor_learning_rate: Positive = Field(default=4e-4, description="Peak learning rate of the adaptor.")
    llm_learning_rate: Positive = Field(default=2e-4, description="Peak learning rate of the LLM's trained tensors.")
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        default=(0.9, 0.98), description="AdamW's β₁ and β₂."
    )
    epsilon: Positive = Field(default=1e-8, description="AdamW's ε.")
    weight_decay: NotNegative = Field(default=0.0, description="Decoupled weight decay.")
    clip_norm: Positive = Field(default=1.0, description="Largest norm of the gradient; a larger one is scaled down to it.")
    warmup_steps: Annotated[int, Field(ge=0)] = Field(default=0, description="Steps over which the rates rise linearly.")
    schedule: Literal["constant", "cosine"] = Field(default="cosine", description="The rates after the warm-up.")
    final_fraction: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.1, description="Share of the peak rates that is left at the last step of a cosine schedule."
    )


class ProfileConfig(StrictSection):
    """A trace of a few steps, in the run folder's profile/."""

    steps: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]] = Field(
        description="The first and the last step to trace, by their numbers in steps.jsonl, which begin at 0. An evaluation or a "
        "checkpoint between them is in the trace too."
    )
    ranks: Literal["first", "all"] = Field(default="first", description="Whose steps: of rank 0, or of every rank.")

    @model_validator(mode="after")
    def _order_steps(self) -> ProfileConfig:
        if self.steps[0] > self.steps[1]:
            raise ValueError(f"training.profile.steps is {list(self.steps)}: give the first step, then the last")
        return self


class TrainingConfig(StrictSection):
    """Length of the training, how often it is measured and saved, and what it does about faults."""

    num_steps: Count = Field(description="Optimizer steps.")
    evaluate_every_steps: Annotated[int, Field(ge=0)] = Field(
        default=0, description="Measure WER and perplexity each time after so many steps. 0: before and after training alone."
    )
    evaluate_every_minutes: Positive | None = Field(default=None, description="Measure also after so many minutes of training.")
    checkpoint_every_steps: Annotated[int, Field(ge=0)] = Field(
        default=0, description="Save each time after so many steps. 0: at the end alone."
    )
    keep_checkpoints: Count = Field(default=2, description="Newest checkpoints that are kept.")
    keep_best: bool = Field(default=True, description="Also save and keep the checkpoint of lowest mean WER.")
    time_budget_seconds: Positive | None = Field(
        default=None, description="Save and end after so many seconds of this start. The same command continues the run."
    )
    on_bad_loss: Literal["stop", "skip"] = Field(
        default="stop",
        description="A step is bad if its loss or gradient norm isn't finite, or by `explode_factor`. It moves no weight, and "
        "skipped_steps.jsonl names its samples. stop: the run ends. skip: it continues.",
    )
    explode_factor: Annotated[float, Field(gt=1)] | None = Field(
        default=None,
        description="A step is also bad if its gradient norm is this many times the median of the last good steps. null: never.",
    )
    max_skipped_steps: Count = Field(default=10, description="With skip: more bad steps in a row than this end the run.")
    collective_timeout_seconds: Positive = Field(default=600.0, description="Seconds that a rank waits for the others.")
    stall_seconds: Positive = Field(
        default=300.0,
        description="Seconds without progress on any rank after which all ranks end and say where each one was waiting.",
    )
    stop_without_launcher: bool = Field(
        default=True,
        description="Save and end if the process that started the ranks is gone. false: for a launcher that needn't stay.",
    )
    activation_checkpointing: bool | Annotated[int, Field(ge=0)] | Literal["auto"] = Field(
        default=False,
        description="Compute layers again in the backward pass: less memory, more time. true: all. A number: so many. auto: as "
        "many as the memory asks for, by the plan.",
    )
    num_threads: Count | None = Field(default=None, description="Threads a rank on processors. null: the cores, shared out.")
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None,
        description="Keep a moving average of what trains, with this decay a step. The average is evaluated and exported. null: "
        "no average.",
    )
    alignment_weight: NotNegative = Field(
        default=0.0,
        description="Weight of the adaptor's alignment loss (CTC over the transcript's own token embeddings), added to the "
        "transcript's. Recorded losses leave it out. 0: none.",
    )
    alignment_steps: Annotated[int, Field(ge=0)] = Field(
        default=0,
        description="The first steps of `num_steps` that train the adaptor alone, by the alignment loss and without the LLM's "
        "layers, for a small part of a step's time. The learning rates' schedule runs over these steps, and anew over the rest. "
        "As many as `num_steps`: the run aligns the adaptor and no more, and others begin with it (model.adaptor.initial).",
    )

    loggers: list[Literal["tensorboard", "wandb", "trackio", "mlflow"]] = Field(
        default=["tensorboard"],
        description="The places that show the run's curves. Each takes its own environment variables (WANDB_MODE, TRACKIO_DIR, "
        "MLFLOW_TRACKING_URI); without them everything is written into the run folder. One that fails never stops the run.",
    )

    profile: ProfileConfig | None = Field(
        default=None, description="Trace a few steps with PyTorch's profiler, and the GPU's memory in them. null: no trace."
    )

    @model_validator(mode="after")
    def _name_each_logger_once(self) -> TrainingConfig:
        if len(set(self.loggers)) < len(self.loggers):
            raise ValueError(f"training.loggers names one twice: {', '.join(self.loggers)}")
        return self

    @model_validator(mode="after")
    def _check_steps(self) -> TrainingConfig:
        if self.alignment_steps > self.num_steps:
            raise ValueError(
                f"training.alignment_steps is {self.alignment_steps}: give at most training.num_steps, {self.num_steps}"
            )
        return self


class EvaluationConfig(StrictSection):
    """Decoding of `data.test`."""

    batch_size: Count = Field(default=32, description="Utterances decoded together.")
    max_new_tokens: Count = Field(default=200, description="Most tokens of a transcript.")
    num_beams: Count = Field(default=1, description="Beams. 1: greedy.")
    decode: Literal["auto", "replica", "zero3"] = Field(
        default="auto",
        description="How ranks decode during training. replica: each with a whole model. zero3: all together with the "
        "partitioned model, which takes no more memory and several times as long. auto: replicas if they fit.",
    )
    max_utterances: Count | None = Field(
        default=None, description="Test on a fixed part of the utterances, with equal shares of each language. null: on all."
    )
