"""The DeepSpeed JSON, which owns ZeRO, precision and communication; the YAML owns batch, learning rates and steps.

A JSON that sets one of the YAML's keys is refused, so that a value has one owner.
"""

from __future__ import annotations

from collections.abc import Mapping
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


def _find_preset(path: Path) -> Path:
    """The file itself or, if there is none and its name is a preset's, the preset."""
    if path.exists() or len(path.parts) != 2 or path.parts[0] != "ds_configs":
        return path
    return find_shipped(path.as_posix()) or path


def read_deepspeed_config(path: Path) -> dict[str, Any]:
    """Read the DeepSpeed JSON. `ds_configs/NAME.json` names a preset in any working folder.

    Raises `ConfigError` if it is missing, isn't ZeRO-3, sets a key that the YAML owns, or offloads to where a run can't follow.
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
    _refuse_offload(zero, path)
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


def _refuse_offload(zero: Mapping[str, Any], path: Path) -> None:
    """Refuse offload to disks, and of a part of the optimizer.

    Between steps DeepSpeed 0.19 has empty tensors in place of what it has put on a disk (stage3.py: `_create_fp32_partitions`,
    partition_parameters.py: `_partition_param`), while optimizer states, averages, checkpoints and the base's weights are made of
    the tensors themselves. It steps a part of the optimizer for its own Adam alone.
    """
    for name in _ZERO_SECTIONS:
        if zero.get(name, {}).get("device") == "nvme":
            raise ConfigError(
                f'{path} has {name}.device "nvme"; weights and optimizer states must lie in memory here. Give "cpu", as in '
                "ds_configs/zero3_offload.json, or train on more ranks."
            )
    ratio = zero.get("offload_optimizer", {}).get("ratio", 1)
    if ratio != 1:
        raise ConfigError(
            f"{path} has offload_optimizer.ratio {ratio!r}; the optimizer is offloaded as a whole or not at all. Leave ratio out."
        )


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
