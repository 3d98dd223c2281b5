"""The DeepSpeed JSON, which owns ZeRO, precision and communication; the YAML owns batch, learning rates and steps.

A JSON that sets one of the YAML's keys is refused, so that a value has one owner.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kappaspeech.errors import ConfigError
from kappaspeech.outside import parse_json
from kappaspeech.shipped import find_shipped

# Keys of a DeepSpeed JSON whose owner is the YAML.
YAML_OWNED_KEYS = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "optimizer",
    "scheduler",
)

# Sections of a DeepSpeed JSON that are read here.
_SECTIONS = ("zero_optimization", "bf16", "fp16", "data_types")
_ZERO_SECTIONS = ("offload_optimizer", "offload_param")
_ABSENT = object()


@dataclass(frozen=True)
class _Unserved:
    """A key, with a dot after each section's name, that a run can't follow but for `harmless` values; why, and what to do."""

    key: str
    harmless: tuple[object, ...]
    reason: str


_IN_MEMORY = (
    "weights and optimizer states must lie in memory here. "
    'Give "cpu", as in ds_configs/zero3_offload.json, or train on more ranks.'
)
_REMOVED = "DeepSpeed has removed it, and refuses it once a model is loaded. Leave it out."
_ONE_MODEL = "the ranks share out every tensor among them all here, by ZeRO-3 alone. Leave it out."

# What DeepSpeed 0.19 takes, or refuses late, and a run is wrong or breaks with. The code that shows it stands before each group.
_UNSERVED = (
    # Between steps there are empty tensors in place of what lies on a disk (stage3.py: `_create_fp32_partitions`,
    # partition_parameters.py: `_partition_param`), while optimizer states, averages, checkpoints and the base's weights are made
    # of the tensors themselves.
    _Unserved("zero_optimization.offload_optimizer.device", (None, "none", "cpu"), _IN_MEMORY),
    _Unserved("zero_optimization.offload_param.device", (None, "none", "cpu"), _IN_MEMORY),
    # DeepSpeed's own Adam alone is stepped so, and torch's AdamW moves the weights here (stage3.py: `partial_offload`, engine.py:
    # `_configure_zero_optimizer`)
    _Unserved(
        "zero_optimization.offload_optimizer.ratio", (1,), "the optimizer is offloaded as a whole or not at all. Leave ratio out."
    ),
    _Unserved(
        "zero_optimization.offload_optimizer.super_offload",
        (False,),
        'it steps DeepSpeed\'s own Adam, and weights move by torch\'s AdamW here. Give "device": "cpu" alone.',
    ),
    _Unserved(
        "zero_optimization.zenflow",
        (None,),
        "it moves some weights later than others, and here a step moves all, by torch's AdamW. Leave it out.",
    ),
    # zero/config.py: names of before, which mean offload that the memory plan and `doctor` wouldn't see
    _Unserved(
        "zero_optimization.cpu_offload",
        (None, False),
        'it is an old name. Give "offload_optimizer": {"device": "cpu"}.',
    ),
    _Unserved(
        "zero_optimization.cpu_offload_param",
        (None, False),
        'it is an old name. Give "offload_param": {"device": "cpu"}.',
    ),
    # partition_parameters.py: `_partition_param` and `_quantize_param` keep rounded weights, in place of the base's
    _Unserved(
        "zero_optimization.zero_quantized_nontrainable_weights",
        (False,),
        "frozen tensors stay bit-equal to the base's here. Leave it out.",
    ),
    _Unserved("weight_quantization", (None,), "frozen tensors stay bit-equal to the base's here. Leave it out."),
    # stage3.py: `_configure_master_weights`
    _Unserved(
        "bf16.bf16_master_weights_and_grads",
        (False,),
        "master weights, averages and checkpoints are float32 here. Leave it out, or offload the optimizer to save memory.",
    ),
    _Unserved("bf16.bf16_optimizer_states", (False,), "optimizer states are float32 here. Leave it out."),
    # precision_config.py: `get_bfloat16_config`; torch_autocast.py
    _Unserved("bfloat16", (), 'it is an old name. Give "bf16" in its place.'),
    _Unserved(
        "torch_autocast.enabled",
        (False,),
        'what a run computes in is bf16.enabled: true, false or "auto". Give that in its place.',
    ),
    # engine.py: `is_gradient_accumulation_boundary` makes each micro-batch a step
    _Unserved("managed_gradient_accumulation", (True,), "a step here is of several micro-batches. Leave it out."),
    # the engine multiplies a loss by the number of ranks, over which DeepSpeed then takes the mean
    _Unserved("gradient_allreduce_op", ("mean",), "ZeRO-3 averages gradients over ranks. Leave it out."),
    # __init__.py and engine.py replace layers, or give partitions to a part of the ranks
    _Unserved("tensor_parallel.autotp_size", (0, 1), _ONE_MODEL),
    _Unserved("expert_parallel.enabled", (False,), _ONE_MODEL),
    _Unserved("sequence_parallel_size", (1,), _ONE_MODEL),
    _Unserved("hybrid_engine.enabled", (False,), "it replaces layers for generation. Leave it out."),
    _Unserved("data_efficiency.enabled", (False,), "batches are the YAML's, and every token of theirs counts. Leave it out."),
    # config.py: `_REMOVED_TOP_LEVEL_CONFIG_KEYS`, `_REMOVED_ZERO_CONFIG_KEYS`
    *(
        _Unserved(key, (), _REMOVED)
        for key in (
            "amp",
            "compression_training",
            "curriculum_learning",
            "eigenvalue",
            "elasticity",
            "graph_harvesting",
            "nebula",
            "progressive_layer_drop",
            "quantize_training",
            "sparse_attention",
            "sparse_gradients",
            "zero_optimization.mics_hierarchical_params_gather",
            "zero_optimization.mics_shard_size",
            "zero_optimization.zeropp_loco_param",
        )
    ),
)


def _find_preset(path: Path) -> Path:
    """The file itself or, if there is none and its name is a preset's, the preset."""
    if path.exists() or len(path.parts) != 2 or path.parts[0] != "ds_configs":
        return path
    return find_shipped(path.as_posix()) or path


def read_deepspeed_config(path: Path) -> dict[str, Any]:
    """Read the DeepSpeed JSON. `ds_configs/NAME.json` names a preset in any working folder.

    Raises `ConfigError` if it is missing, isn't ZeRO-3, sets a key that the YAML owns, or asks for what a run can't follow.
    """
    try:
        content = parse_json(_find_preset(path).read_bytes(), is_finite=True, is_unique=True)
    except FileNotFoundError:
        raise ConfigError(f"There is no DeepSpeed configuration at {path}; presets are in ds_configs/.") from None
    except (OSError, ValueError) as error:
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
    _refuse_unserved(content, path)
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


def _refuse_unserved(content: Mapping[str, Any], path: Path) -> None:
    """Raise a `ConfigError` that names all keys of `_UNSERVED` with a value that a run can't follow."""
    found = []
    for unserved in _UNSERVED:
        value = _look_up(content, unserved.key)
        if value is not _ABSENT and value not in unserved.harmless:
            found.append(f"{path} has {unserved.key} {json.dumps(value)}; {unserved.reason}")
    if found:
        raise ConfigError("\n".join(found))


def _look_up(content: Any, key: str) -> Any:
    """The value of a key with dots between a section's name and its own; `_ABSENT` if there is none."""
    for name in key.split("."):
        if not isinstance(content, Mapping) or name not in content:
            return _ABSENT
        content = content[name]
    return content


def _settle_sections(content: dict[str, Any], names: tuple[str, ...], path: Path) -> None:
    """Remove sections that are null, which means the same as absent; refuse a value that is no section."""
    for name in names:
        if content.get(name) is None:
            content.pop(name, None)
        elif not isinstance(content[name], dict):
            example = 'give {"enabled": "auto"}' if name == "bf16" else "give an object"
            raise ConfigError(f"{path} has {name} {content[name]!r}; it is a section: {example}, or leave it out.")


def read_precision(deepspeed_config: Mapping[str, Any]) -> Literal["auto", "bfloat16", "float32"]:
    """The dtype of a DeepSpeed JSON: bf16.enabled true, false or absent, or "auto", which leaves it to the machine."""
    enabled = deepspeed_config.get("bf16", {}).get("enabled", False)
    return "auto" if enabled == "auto" else "bfloat16" if enabled else "float32"


def settle_gradients(deepspeed_config: Mapping[str, Any], *, world_size: int) -> dict[str, Any]:
    """A DeepSpeed JSON in which gradients are added up, over micro-batches and over ranks, in float32, unless it says otherwise.

    Left to itself DeepSpeed 0.19 takes the compute dtype for both sums. In bfloat16, of 8 bits, the sum over micro-batches loses
    digits with each micro-batch and the sum over ranks with each rank. ZeRO-3 honours both keys on all its paths, offload among
    them. They cost 2 more bytes a trained parameter over the ranks, and 2 more an element in the reduce bucket, in its copy, and
    on the wire. One rank alone sums nothing, so its bucket holds gradients as they come, whatever the JSON says.
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
