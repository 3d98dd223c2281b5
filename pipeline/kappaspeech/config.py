"""The run's configuration: one YAML file, read strictly, with every problem reported at once.

The YAML owns batch, learning rates and steps; the DeepSpeed JSON owns ZeRO, precision and communication. A JSON that sets
one of the YAML's keys is refused, so that a value has one owner.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from kappaspeech.errors import ConfigError
from kappaspeech.redaction import restore_secrets
from kappaspeech.shipped import find_shipped
from kappaspeech.yaml_text import parse_yaml

# Keys of a DeepSpeed JSON whose owner is the YAML.
YAML_OWNED_KEYS = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "optimizer",
    "scheduler",
)

# Beside a run folder's config.json, which holds no secret: what it hides, for its owner's eyes.
SECRETS_NAME = "secrets.json"

# Sections of a DeepSpeed JSON that are looked into here.
_SECTIONS = ("zero_optimization", "bf16", "fp16", "data_types")
_ZERO_SECTIONS = ("offload_optimizer", "offload_param")

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(gt=0)]
Model = TypeVar("Model", bound=BaseModel)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class AdaptorConfig(_Section):
    """The trained bridge from the encoder's states to the LLM's embeddings."""

    width: Count | None = Field(default=None, description="Width of the adaptor's layers. null: the LLM's own width.")
    num_heads: Count = Field(default=8, description="Attention heads. They must divide the width.")
    stacking: Count = Field(default=4, description="Neighbouring encoder states that become one audio position of the LLM.")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.0, description="Dropout inside the adaptor.")


class ModelConfig(_Section):
    """The two pretrained models, and the prompt around the audio."""

    llm: str = Field(description="The LLM: a folder, or a Hugging Face id if there is a network.")
    encoder: str = Field(description="The speech encoder: an openai-whisper file, or its name (large-v3) if there is a network.")
    attn_implementation: Literal["auto", "sdpa", "eager", "flash_attention_2"] = Field(
        default="auto",
        description="transformers' attention. auto takes FlashAttention 2 if a GPU, the package and a 16-bit dtype are there, "
        "matrix products on processors that are fast in bfloat16, else sdpa, and eager if the family computes more than these. "
        "A run keeps what it began with.",
    )
    encoder_dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="What the encoder computes in. auto: the LLM's dtype, but bfloat16 only on machines that are fast in it. A "
        "resumed run keeps what it began with.",
    )
    pad_to_30s: bool = Field(default=False, description="Pad each clip to 30 s, as openai-whisper does. false: to its batch.")
    instruction: str = Field(
        default="Transcribe the speech: {audio}",
        description="The user's turn of the prompt. {audio} marks the place of the recording.",
    )
    chat_template: bool = Field(
        default=True,
        description="Put the instruction into the LLM's chat template. false: the instruction is the whole prompt, which is "
        "shorter and cheaper, and begins as the tokenizer begins texts. A run keeps the prompt's tokens.",
    )
    adaptor: AdaptorConfig = Field(default=AdaptorConfig(), description="The adaptor's shape.")


class LoraConfig(_Section):
    """PEFT's LoRA: W + (alpha / rank)·B·A."""

    rank: Count = Field(default=16, description="Rank of B·A.")
    alpha: Positive = Field(default=32.0, description="Scale: B·A is multiplied by alpha / rank.")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.0, description="Dropout before A.")


class UnfreezeConfig(_Section):
    """What trains beside the adaptor: a selection's tensors, nothing, the whole LLM, or LoRA."""

    mode: Literal["selection", "adaptor", "all", "lora"] = Field(
        default="adaptor",
        description="selection: the tensors of `selection`. adaptor: nothing of the LLM. all: the whole LLM. lora: LoRA on the "
        "modules of the selection's tensors (κ-LoRA), or without a selection on every linear module but the head. If mode is "
        "left out, it is selection if there is a selection, else adaptor.",
    )
    selection: str | None = Field(default=None, description="The file that `kappaspeech select` wrote.")
    lora: LoraConfig | None = Field(default=None, description="LoRA's settings, for mode lora alone.")

    @model_validator(mode="before")
    @classmethod
    def _choose_mode(cls, content: Any) -> Any:
        if not isinstance(content, dict):
            return content
        mode = content.get("mode") or ("selection" if content.get("selection") else "adaptor")
        lora = content.get("lora")
        return {**content, "mode": mode, "lora": {} if mode == "lora" and lora is None else lora}

    @model_validator(mode="after")
    def _check_mode(self) -> UnfreezeConfig:
        if self.mode == "selection" and self.selection is None:
            raise ValueError("mode selection needs a selection: give the file that `kappaspeech select` wrote")
        if self.mode in ("adaptor", "all") and self.selection is not None:
            raise ValueError(f"mode {self.mode} takes no selection: set unfreeze.selection to null")
        if self.mode != "lora" and self.lora is not None:
            raise ValueError(f"mode {self.mode} takes no lora section: remove it or set unfreeze.mode to lora")
        return self


class DatasetConfig(_Section):
    """One set of indexed shards."""

    shards: str = Field(description="Shards: a path, URL, glob or brace list of .tar files, or a merged .index file.")
    # YAML 1.1 takes no, Norwegian, for false
    language: Annotated[str | None, BeforeValidator(lambda value: "no" if value is False else value)] = Field(
        default=None, description="Use the samples of this language alone. null: use all samples."
    )
    weight: Positive = Field(default=1.0, description="Share of the mixture, relative to the other sets of data.train.")
    text_normalization: Literal["none", "whisper"] = Field(
        default="none",
        description="How transcripts are written in training. none: as they are in the shards. whisper: as they are compared, by "
        "Whisper's normaliser of their language where that leaves words whole: lower case, without punctuation.",
    )


class ReadConfig(_Section):
    """How remote shards are read."""

    attempts: Count = Field(default=6, description="How often a byte range is tried.")
    stall_seconds: Positive = Field(default=30.0, description="Seconds without a byte after which an attempt is given up.")
    cache_dir: str | None = Field(
        default=None,
        description="A folder on local disk for blocks of remote shards; they are in kappaspeech-blocks in it. null: no cache.",
    )
    cache_gb: Positive = Field(default=20.0, description="Largest size of that cache, in GB.")


class AugmentationConfig(_Section):
    """Seeded changes to training samples: speed, and SpecAugment's masks. Nothing is changed by default."""

    speed_factors: list[Annotated[float, Field(ge=0.5, le=2)]] = Field(
        default=[], description="Each clip is played at one of these speeds, drawn at random: [0.9, 1.0, 1.1]."
    )
    freq_masks: Annotated[int, Field(ge=0)] = Field(default=0, description="SpecAugment: number of frequency masks.")
    freq_width: Count = Field(default=27, description="Largest width of a frequency mask, in mel bands.")
    time_masks: Annotated[int, Field(ge=0)] = Field(default=0, description="SpecAugment: number of time masks.")
    time_width: Count = Field(default=100, description="Largest width of a time mask, in frames of 10 ms.")
    max_time_fraction: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.2, description="Largest share of a clip that one time mask may cover."
    )


class DataConfig(_Section):
    """Speech to train and test on, and text to measure forgetting on."""

    train: Annotated[list[DatasetConfig], Field(min_length=1)] = Field(description="Sets of shards to train on.")
    test: list[DatasetConfig] = Field(default=[], description="Sets of shards to measure WER on.")
    text: dict[str, str] = Field(
        default={},
        description="Texts to measure perplexity on: language → a file of one text a line, or a folder of .txt files.",
    )
    max_bad_fraction: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.01, description="Training stops if more than this share of its samples can't be used."
    )
    prefetch_steps: Count = Field(default=2, description="Steps whose samples are loaded ahead.")
    num_workers: Annotated[int, Field(ge=0)] = Field(
        default=0, description="Processes a rank that load samples. 0: a thread of the rank."
    )
    over_long: Literal["mask", "cut"] = Field(
        default="mask",
        description="Clips of more than 30 s, or of more than batch.max_seconds. mask: not learned from, and counted as samples "
        "that can't be used. cut: their audio is cut there.",
    )
    read: ReadConfig = Field(default=ReadConfig(), description="How remote shards are read.")
    augmentation: AugmentationConfig = Field(default=AugmentationConfig(), description="Seeded changes to training samples.")
    feature_cache_dir: str | None = Field(
        default=None,
        description="A folder on local disk for the encoder's states, in kappaspeech-states in it: later epochs skip audio and "
        "encoder. It excludes augmentation. null: no cache.",
    )
    feature_cache_gb: Positive = Field(default=20.0, description="Largest size of that cache, in GB.")

    @model_validator(mode="after")
    def _cache_what_stays(self) -> DataConfig:
        changes = self.augmentation
        if self.feature_cache_dir is not None and (changes.speed_factors or changes.freq_masks or changes.time_masks):
            raise ValueError(
                "feature_cache_dir keeps what the encoder made of a clip, and augmentation makes another clip of it each time: "
                "remove one of the two"
            )
        return self


class BatchConfig(_Section):
    """A step is `micro_batches_per_step` micro-batches, whatever the number of ranks that share them out."""

    max_samples: Count = Field(default=16, description="Most clips in a micro-batch.")
    max_seconds: Positive = Field(default=120.0, description="Most seconds of padded audio in a micro-batch.")
    micro_batches_per_step: Count = Field(default=2, description="Micro-batches in a step, over all ranks.")


class OptimizerConfig(_Section):
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


class TrainingConfig(_Section):
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
        "skipped_steps.jsonl names its samples. stop: the run ends. skip: it goes on.",
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


class EvaluationConfig(_Section):
    """How `data.test` is decoded."""

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


class RunConfig(_Section):
    """A training run, whole."""

    run_dir: str = Field(description="Folder of the run. If it holds a checkpoint, the run continues from it.")
    arm: str = Field(default="run", description="The run's name in reports. Runs of the same arm are seeds of each other.")
    seed: int = Field(
        default=17, description="Seed of the adaptor's and LoRA's weights, the data's order, augmentation and dropout."
    )
    model: ModelConfig = Field(description="The two pretrained models, and the prompt.")
    unfreeze: UnfreezeConfig = Field(default=UnfreezeConfig(), description="What trains beside the adaptor.")
    data: DataConfig = Field(description="Speech and text.")
    batch: BatchConfig = Field(default=BatchConfig(), description="Size of a step.")
    optimizer: OptimizerConfig = Field(default=OptimizerConfig(), description="AdamW and its rates.")
    training: TrainingConfig = Field(description="Length, cadence and faults.")
    evaluation: EvaluationConfig = Field(default=EvaluationConfig(), description="Decoding of data.test.")
    deepspeed: str = Field(
        default="ds_configs/zero3.json",
        description="The DeepSpeed JSON, which owns ZeRO, precision and communication. Presets are in ds_configs/.",
    )


def read_run_config(path: Path, *, overrides: dict[str, Any] | None = None) -> RunConfig:
    """Read a run's YAML. Relative paths in it are kept as they are: they count from the working folder.

    `overrides` maps dotted keys to values that take the place of the file's. Raises `ConfigError` with all problems found.
    """
    return read_yaml(path, RunConfig, overrides=overrides)


def read_yaml(path: Path, model: type[Model], *, overrides: dict[str, Any] | None = None) -> Model:
    """Read a YAML file into a strict `model`. Raises `ConfigError` with all problems found."""
    try:
        # some editors begin a file with a byte order mark
        text = path.read_text(encoding="utf-8-sig")
        content = json.loads(text) if path.suffix == ".json" else parse_yaml(text)
    except FileNotFoundError:
        raise ConfigError(f"There is no configuration at {path}.") from None
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} can't be read as {'JSON' if path.suffix == '.json' else 'YAML'}: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold a mapping of keys to values; it holds {type(content).__name__}.")
    # a run folder's config.json is a configuration like any other
    if content.pop("schema_version", None) is not None:
        content = restore_secrets(content, read_secrets(path.parent))
    for key, value in (overrides or {}).items():
        _set_dotted(content, key, value)
    try:
        # lax only in that YAML has no tuples and writes 1 for 1.0
        return model.model_validate_json(json.dumps(content))
    except (TypeError, ValueError) as error:
        problems = _explain(error, model) if isinstance(error, ValidationError) else [str(error)]
        listing = "\n".join(f"  - {problem}" for problem in problems)
        raise ConfigError(f"{path} has {len(problems)} problem(s):\n{listing}") from error


def read_secrets(run_dir: Path) -> dict[str, str]:
    """What a run folder's config.json hides of URLs, by its place there; nothing where it can't be read."""
    try:
        secrets = json.loads((run_dir / SECRETS_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return secrets if isinstance(secrets, dict) else {}


def _set_dotted(content: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        below = content.setdefault(section, {})
        if not isinstance(below, dict):
            raise ConfigError(f"{key} can't be set: {section} isn't a section.")
        content = below
    content[last] = value


def _explain(error: ValidationError, root: type[BaseModel]) -> list[str]:
    """One line a problem: where, what, and for an unknown key the nearest valid one."""
    problems = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            valid = _keys_at(item["loc"][:-1], root)
            near = difflib.get_close_matches(str(item["loc"][-1]), valid, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}?" if near else f"valid keys are {', '.join(sorted(valid))}."
            problems.append(f"{where}: unknown key; {hint}")
        elif item["type"] == "missing":
            problems.append(f"{where}: missing.")
        else:
            problems.append(f"{where}: {item['msg']} (it is {item['input']!r}).")
    return problems


def _keys_at(location: tuple[int | str, ...], root: type[BaseModel]) -> list[str]:
    """The keys that the section of `root` at `location` accepts."""
    section = root
    for part in location:
        if isinstance(part, int):
            continue
        for candidate in _flatten(section.model_fields[part].annotation):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                section = candidate
    return list(section.model_fields)


def _flatten(annotation: Any) -> list[Any]:
    """An annotation and everything inside its brackets."""
    found = [annotation]
    for inner in get_args(annotation):
        found += _flatten(inner)
    return found


def _find_preset(path: Path) -> Path:
    """The file itself or, if there is none and its name is a preset's, the preset."""
    if path.exists() or len(path.parts) != 2 or path.parts[0] != "ds_configs":
        return path
    return find_shipped(path.as_posix()) or path


def read_deepspeed_config(path: Path) -> dict[str, Any]:
    """Read the DeepSpeed JSON. `ds_configs/NAME.json` names a preset wherever one works.

    Raises `ConfigError` where it is missing, isn't ZeRO-3, or sets what the YAML owns.
    """
    try:
        content = json.loads(_find_preset(path).read_text(encoding="utf-8-sig"), parse_constant=_refuse_constant)
    except FileNotFoundError:
        raise ConfigError(f"There is no DeepSpeed configuration at {path}; presets are in ds_configs/.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} can't be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold a JSON object.")
    _settle_sections(content, _SECTIONS, path)
    owned = [key for key in YAML_OWNED_KEYS if key in content]
    if owned:
        raise ConfigError(f"{path} sets {', '.join(owned)}, which the run's YAML owns. Remove it there and set batch/optimizer.")
    zero = content.get("zero_optimization", {})
    _settle_sections(zero, _ZERO_SECTIONS, path)
    stage = zero.get("stage")
    if stage != 3:
        raise ConfigError(f"{path} has zero_optimization.stage {stage!r}; this pipeline trains under ZeRO-3.")
    precision = content.get("bf16", {})
    if precision.get("enabled", False) not in (True, False, "auto"):
        raise ConfigError(
            f'{path} has bf16 {precision!r}; give {{"enabled": true}}, false, or "auto", which takes what is faster.'
        )
    if content.get("fp16", {}).get("enabled"):
        raise ConfigError(
            f"{path} enables fp16, in which this pipeline doesn't train. Give bf16 with enabled true, false or auto."
        )
    return content


def _settle_sections(content: dict[str, Any], names: tuple[str, ...], path: Path) -> None:
    """Take away sections that are null, which says as much as nothing; refuse what is none."""
    for name in names:
        if content.get(name) is None:
            content.pop(name, None)
        elif not isinstance(content[name], dict):
            example = 'give {"enabled": "auto"}' if name == "bf16" else "give an object"
            raise ConfigError(f"{path} has {name} {content[name]!r}; it is a section: {example}, or leave it out.")


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def read_precision(deepspeed_config: Mapping[str, Any]) -> Literal["auto", "bfloat16", "float32"]:
    """What a DeepSpeed JSON says of the dtype: bf16.enabled true, false or absent, or «auto», which leaves it to the machine."""
    enabled = deepspeed_config.get("bf16", {}).get("enabled", False)
    return "auto" if enabled == "auto" else "bfloat16" if enabled else "float32"


def settle_gradients(deepspeed_config: Mapping[str, Any], *, world_size: int) -> dict[str, Any]:
    """A DeepSpeed JSON in which gradients are added up, over micro-batches and over ranks, in float32, unless it says otherwise.

    Left to itself DeepSpeed 0.19 takes the compute dtype for both. In bfloat16, of 8 bits, the one loses digits with each
    micro-batch and the other with each rank. ZeRO-3 honours both keys on all its paths, offload among them. They cost 2 more
    bytes a trained parameter over the ranks, and 2 more an element in the reduce bucket, in its copy, and on the wire. One rank
    alone sums nothing, so its bucket holds gradients as they come, whatever the JSON says.
    """
    settled = dict(deepspeed_config)
    if read_precision(settled) != "bfloat16":
        return settled
    settled["data_types"] = {"grad_accum_dtype": "fp32", **settled.get("data_types", {})}
    if world_size > 1:
        settled.setdefault("communication_data_type", "fp32")
    else:
        settled.pop("communication_data_type", None)
    return settled
