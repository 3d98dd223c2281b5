"""What a run computes in: chosen once by what its machines do fastest, written down, and kept when it goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kappaspeech.artefacts import read_json
from kappaspeech.cluster import Cluster, agree
from kappaspeech.config import RunConfig, read_precision
from kappaspeech.model.encoder import choose_encoder_dtype
from kappaspeech.model.family import FLASH_ATTENTION, Attentions, read_attentions, read_widths
from kappaspeech.model.llm import choose_attention
from kappaspeech.model.precision import DTYPES, choose_dtype, is_worth_it, like_model, measure_rates, slowest
from kappaspeech.runs.checkpoints import list_checkpoints
from kappaspeech.runs.contents import RECORD_FILE
from kappaspeech.runs.folder import SCHEMA_VERSION, RunFolder


@dataclass(frozen=True)
class Arithmetic:
    """The LLM's and the encoder's dtype, the LLM's attention as transformers knows it, and in words why.

    `flops_per_second`: what a core or GPU of the slowest rank multiplies in each dtype.
    """

    dtype: str
    encoder_dtype: str
    attention: str
    reason: str
    flops_per_second: Mapping[str, float]

    @staticmethod
    def of(
        dtype: str,
        rates: Mapping[str, float],
        *,
        encoder_dtype: str = "auto",
        attention: str = "auto",
        takes: Attentions | None = None,
        reason: str = "as asked for",
    ) -> Arithmetic:
        """What goes with a dtype of the LLM, where a core or GPU multiplies at these `rates`; auto is what is fastest of what the
        LLM's family `takes`. Raises `ConfigError` for an attention that it doesn't."""
        is_fast = is_worth_it(rates)
        return Arithmetic(
            dtype=dtype,
            encoder_dtype=choose_encoder_dtype(encoder_dtype, llm_dtype=dtype, bfloat16_is_fast=is_fast),
            attention=choose_attention(attention, dtype=dtype, bfloat16_is_fast=is_fast, takes=takes),
            reason=reason,
            flops_per_second=rates,
        )

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    @property
    def encoder_torch_dtype(self) -> torch.dtype:
        return DTYPES[self.encoder_dtype]

    @property
    def line(self) -> str:
        """What a person is told."""
        return f"{self.dtype}: {self.reason}"

    def resolve(self, deepspeed_config: Mapping[str, Any]) -> dict[str, Any]:
        """The DeepSpeed JSON with its «auto» replaced, for DeepSpeed knows none."""
        if "bf16" not in deepspeed_config:
            return dict(deepspeed_config)
        return {**deepspeed_config, "bf16": {**deepspeed_config["bf16"], "enabled": self.dtype == "bfloat16"}}


def choose_arithmetic(
    config: RunConfig, deepspeed_config: Mapping[str, Any], *, cluster: Cluster, device: torch.device, folder: RunFolder
) -> Arithmetic:
    """What all ranks compute in. A collective.

    What YAML and JSON say counts. Of what they leave to the machine, a run that goes on keeps what it began with, and a new
    one takes what the slowest rank does fastest.
    """
    # a model that one host lacks must not leave the others waiting
    llm = config.model.llm
    found = agree(cluster, lambda: (read_attentions(llm), measure_rates(device, like_model(*read_widths(llm), device))))
    takes, rates = found[cluster.rank][0], slowest([rank_rates for _, rank_rates in found])
    recorded = agree(cluster, lambda: _read_recorded(folder) if cluster.rank == 0 else None)[0]
    measured = choose_dtype(rates, device.type)
    dtype, reason = measured.dtype, measured.reason
    wanted = read_precision(deepspeed_config)
    if wanted != "auto":
        dtype, reason = wanted, f"as {config.deepspeed} says"
        if dtype != measured.dtype:
            reason += f"; in {measured.dtype} this would be faster: {measured.reason}"
    elif recorded is not None and recorded["dtype"] != dtype:
        dtype = recorded["dtype"]
        reason = f"the run began in it; a new one would take {measured.dtype} here: {measured.reason}"
    attention: str = config.model.attn_implementation
    if attention == "auto" and recorded is not None and recorded["dtype"] == dtype and device.type == "cpu":
        attention = recorded["attn_implementation"]
    encoder: str = config.model.encoder_dtype
    if encoder == "auto" and recorded is not None:
        encoder = recorded["encoder_dtype"]
    return Arithmetic.of(dtype, rates, encoder_dtype=encoder, attention=attention, takes=takes, reason=reason)


def _read_recorded(folder: RunFolder) -> dict[str, str] | None:
    """What a run that has a checkpoint to go on from wrote of its arithmetic; None where it hadn't come to that."""
    path = Path(folder.path) / RECORD_FILE
    if not path.exists() or not list_checkpoints(folder.checkpoints):
        return None
    record = read_json(path, schema_version=SCHEMA_VERSION)
    keys = ("dtype", "encoder_dtype", "attn_implementation")
    return {key: str(record[key]) for key in keys} if all(key in record for key in keys) else None


@dataclass(frozen=True)
class UseArithmetic:
    """What a trained model is used in: as it was trained, but never in bfloat16 on a machine that is slow in it.

    float32 holds every number of bfloat16, so that the model stays the one that was trained; its sums are rounded later.
    """

    bfloat16_is_fast: bool

    @staticmethod
    def of(rates: Mapping[str, float]) -> UseArithmetic:
        """On a machine that multiplies at these operations a second, by dtype."""
        return UseArithmetic(is_worth_it(rates))

    def dtype(self, trained_in: str) -> torch.dtype:
        """What weights that were trained in a dtype are multiplied in here."""
        return DTYPES[trained_in] if self.bfloat16_is_fast else torch.float32

    def attention(self, trained_in: str, *, kept: str = "auto", takes: Attentions | None = None) -> str:
        """The LLM's attention here, as transformers knows it: the one that its run has `kept`, where this machine has it.

        With auto, what computes the same the fastest of what the LLM's family `takes`.
        """
        if kept == FLASH_ATTENTION and not torch.cuda.is_available():
            kept = "auto"
        return choose_attention(kept, dtype=trained_in, bfloat16_is_fast=self.bfloat16_is_fast, takes=takes)


def keep_attention(wanted: str, recorded: str | None) -> str:
    """What later loads of a run's model go by: what its configuration says; of auto, eager where the run computed by it."""
    return "eager" if wanted == "auto" and recorded == "eager" else wanted
