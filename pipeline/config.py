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
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.errors import ConfigError

# Keys of a DeepSpeed JSON whose owner is the YAML.
YAML_OWNED_KEYS = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "optimizer",
    "scheduler",
)

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(gt=0)]
Model = TypeVar("Model", bound=BaseModel)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class AdaptorConfig(_Section):
    """`width` null: the LLM's own."""

    width: Count | None = None
    num_heads: Count = 8
    stacking: Count = 4
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0


class ModelConfig(_Section):
    """`llm` and `encoder`: a path, or a hub id and an openai-whisper name where there is a network.

    `instruction` is the user's turn; {audio} is where the recording stands in it. Without `chat_template` it is all there is:
    a short one is less to compute, and begins as the tokenizer begins texts. A run keeps the prompt's tokens.
    `attn_implementation` is transformers'; auto takes FlashAttention 2 where a GPU, the package and a 16-bit dtype are there,
    matrix products on processors that are fast in bfloat16, else sdpa, and eager where the family computes more than these.
    `encoder_dtype` auto is the LLM's, but bfloat16 only on machines that are fast in it. A run keeps what it began with.
    """

    llm: str
    encoder: str
    attn_implementation: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    encoder_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    pad_to_30s: bool = False
    instruction: str = "Transcribe the speech: {audio}"
    chat_template: bool = True
    adaptor: AdaptorConfig = AdaptorConfig()


class LoraConfig(_Section):
    """PEFT's LoRA: W + (alpha / rank)·B·A, with `dropout` before A."""

    rank: Count = 16
    alpha: Positive = 32.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0


class UnfreezeConfig(_Section):
    """What trains beside the adaptor: a selection's tensors, nothing, the whole LLM, or LoRA.

    `selection` is the file that `kappaspeech select` wrote; without `mode`, one that is given is trained, and null trains the
    adaptor alone. `lora` adapts the modules of the selection's tensors, or without one every linear module but the head.
    """

    mode: Literal["selection", "adaptor", "all", "lora"] = "adaptor"
    selection: str | None = None
    lora: LoraConfig | None = None

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
    """One set of indexed shards: path, URL, glob, brace list, or a merged index. `weight` is its share of the mixture.

    `text_normalization` whisper writes transcripts as Whisper's normaliser of their language does.
    """

    shards: str
    language: str | None = None
    weight: Positive = 1.0
    text_normalization: Literal["none", "whisper"] = "none"


class ReadConfig(_Section):
    """Remote shards: how often a range is tried, after how long without a byte, and how much is kept on local disk, if asked."""

    attempts: Count = 6
    stall_seconds: Positive = 30.0
    cache_dir: str | None = None
    cache_gb: Positive = 20.0


class AugmentationConfig(_Section):
    """Seeded changes to training samples: a speed chosen from `speed_factors`, and SpecAugment's masks. None by default."""

    speed_factors: list[Annotated[float, Field(ge=0.5, le=2)]] = []
    freq_masks: Annotated[int, Field(ge=0)] = 0
    freq_width: Count = 27
    time_masks: Annotated[int, Field(ge=0)] = 0
    time_width: Count = 100
    max_time_fraction: Annotated[float, Field(ge=0, le=1)] = 0.2


class DataConfig(_Section):
    """What is trained on, tested on, and read to see what is forgotten (`text`: language → file of one text a line).

    Training stops once more than `max_bad_fraction` of its samples can't be used. `over_long` samples are masked, or their
    audio is cut. `num_workers` processes a rank load samples; 0 loads in a thread of its own. `feature_cache_dir` keeps up to
    `feature_cache_gb` of the encoder's states on local disk, so that later epochs skip audio and encoder.
    """

    train: Annotated[list[DatasetConfig], Field(min_length=1)]
    test: list[DatasetConfig] = []
    text: dict[str, str] = {}
    max_bad_fraction: Annotated[float, Field(ge=0, le=1)] = 0.01
    prefetch_steps: Count = 2
    num_workers: Annotated[int, Field(ge=0)] = 0
    over_long: Literal["mask", "cut"] = "mask"
    read: ReadConfig = ReadConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    feature_cache_dir: str | None = None
    feature_cache_gb: Positive = 20.0

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
    """A step is `micro_batches_per_step` micro-batches, whatever the number of ranks that share them out.

    A micro-batch holds at most `max_samples` clips and at most `max_seconds` of padded audio.
    """

    max_samples: Count = 16
    max_seconds: Positive = 120.0
    micro_batches_per_step: Count = 2


class OptimizerConfig(_Section):
    """AdamW with separate peak rates; `schedule` after the warm-up."""

    adaptor_learning_rate: Positive = 4e-4
    llm_learning_rate: Positive = 2e-4
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.98)
    epsilon: Positive = 1e-8
    weight_decay: NotNegative = 0.0
    clip_norm: Positive = 1.0
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    schedule: Literal["constant", "cosine"] = "cosine"
    final_fraction: Annotated[float, Field(ge=0, le=1)] = 0.1


class TrainingConfig(_Section):
    """Length and cadence, in optimizer steps. 0 evaluates or saves at the end alone.

    The newest `keep_checkpoints` are kept, and with `keep_best` the one of lowest mean WER, which is saved when it is measured.
    Once no rank has got on for `stall_seconds`, all end and say where each one stood: by default a little after a remote
    read has been given up, and half of what a collective waits. With `stop_without_launcher` ranks save and end once the
    process that started them is gone; switch it off where that one needn't stay.
    With `ema_decay` a moving average of what trains is kept, and it is what is evaluated and exported.

    `alignment_weight` adds that many times the adaptor's alignment loss (`SpeechLLM`): the model begins to listen in a third of
    the steps. The losses that are recorded are the transcripts' alone.

    A step is bad whose loss or gradient norm isn't finite or, with `explode_factor`, whose norm is that many times the median of
    the last good steps'. The optimizer doesn't move; the samples are named in the run folder's skipped_steps.jsonl; and the
    run stops, or with `on_bad_loss` skip goes on, until more than `max_skipped_steps` follow each other.
    """

    num_steps: Count
    evaluate_every_steps: Annotated[int, Field(ge=0)] = 0
    evaluate_every_minutes: Positive | None = None
    checkpoint_every_steps: Annotated[int, Field(ge=0)] = 0
    keep_checkpoints: Count = 2
    keep_best: bool = True
    time_budget_seconds: Positive | None = None
    on_bad_loss: Literal["stop", "skip"] = "stop"
    explode_factor: Annotated[float, Field(gt=1)] | None = None
    max_skipped_steps: Count = 10
    collective_timeout_seconds: Positive = 600.0
    stall_seconds: Positive = 300.0
    stop_without_launcher: bool = True
    activation_checkpointing: bool = False
    num_threads: Count | None = None
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    alignment_weight: NotNegative = 0.0


class EvaluationConfig(_Section):
    """Decoding of `data.test`: greedy, or by beams. `max_utterances` takes a fixed part, the same share of each language.

    `decode`, during training: each rank decodes with a replica of the whole model, or all together with it partitioned under
    ZeRO-3, which takes no more memory and several times as long; auto takes replicas where they fit.
    """

    batch_size: Count = 32
    max_new_tokens: Count = 200
    num_beams: Count = 1
    decode: Literal["auto", "replica", "zero3"] = "auto"
    max_utterances: Count | None = None


class RunConfig(_Section):
    """A training run, whole."""

    run_dir: str
    arm: str = "run"
    seed: int = 17
    model: ModelConfig
    unfreeze: UnfreezeConfig = UnfreezeConfig()
    data: DataConfig
    batch: BatchConfig = BatchConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    training: TrainingConfig
    evaluation: EvaluationConfig = EvaluationConfig()
    deepspeed: str = "ds_configs/zero3.json"


def read_run_config(path: Path, *, overrides: dict[str, Any] | None = None) -> RunConfig:
    """Read a run's YAML. Relative paths in it are kept as they are: they count from the working folder.

    `overrides` maps dotted keys to values that take the place of the file's. Raises `ConfigError` with all problems found.
    """
    return read_yaml(path, RunConfig, overrides=overrides)


def read_yaml(path: Path, model: type[Model], *, overrides: dict[str, Any] | None = None) -> Model:
    """Read a YAML file into a strict `model`. Raises `ConfigError` with all problems found."""
    try:
        text = path.read_text(encoding="utf-8")
        # YAML 1.1 takes JSON's 1e-08 for a word
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except FileNotFoundError:
        raise ConfigError(f"There is no configuration at {path}.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path} can't be read as YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold a mapping of keys to values; it holds {type(content).__name__}.")
    # a run folder's config.json is a configuration like any other
    content.pop("schema_version", None)
    for key, value in (overrides or {}).items():
        _set_dotted(content, key, value)
    try:
        # lax only in that YAML has no tuples and writes 1 for 1.0
        return model.model_validate_json(json.dumps(content))
    except (TypeError, ValueError) as error:
        problems = _explain(error, model) if isinstance(error, ValidationError) else [str(error)]
        listing = "\n".join(f"  - {problem}" for problem in problems)
        raise ConfigError(f"{path} has {len(problems)} problem(s):\n{listing}") from error


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


def read_deepspeed_config(path: Path) -> dict[str, Any]:
    """Read the DeepSpeed JSON. Raises `ConfigError` where it is missing, isn't ZeRO-3, or sets what the YAML owns."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"There is no DeepSpeed configuration at {path}; presets are in ds_configs/.") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path} can't be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold a JSON object.")
    owned = [key for key in YAML_OWNED_KEYS if key in content]
    if owned:
        raise ConfigError(f"{path} sets {', '.join(owned)}, which the run's YAML owns. Remove it there and set batch/optimizer.")
    stage = content.get("zero_optimization", {}).get("stage")
    if stage != 3:
        raise ConfigError(f"{path} has zero_optimization.stage {stage!r}; this pipeline trains under ZeRO-3.")
    precision = content.get("bf16", {})
    if not isinstance(precision, dict) or precision.get("enabled", False) not in (True, False, "auto"):
        raise ConfigError(
            f'{path} has bf16 {precision!r}; give {{"enabled": true}}, false, or "auto", which takes what is faster.'
        )
    if content.get("fp16", {}).get("enabled"):
        raise ConfigError(
            f"{path} enables fp16, in which this pipeline doesn't train. Give bf16 with enabled true, false or auto."
        )
    return content


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
