"""The arithmetic of a run: chosen once, by the rates of its machines, recorded, and kept when the run resumes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from kappaspeech.artefacts import read_json
from kappaspeech.config.deepspeed_config import read_precision
from kappaspeech.config.run_config import RunConfig
from kappaspeech.model.arithmetic import Arithmetic
from kappaspeech.model.family import read_attentions, read_config, read_widths
from kappaspeech.model.packed_rows import check_packing, why_not_packed
from kappaspeech.model.precision import choose_dtype, like_model, measure_rates, slowest
from kappaspeech.ranks.agreement import agree
from kappaspeech.ranks.cluster import Cluster
from kappaspeech.runs.checkpoints import list_checkpoints
from kappaspeech.runs.contents import RECORD_FILE
from kappaspeech.runs.folder import SCHEMA_VERSION, RunFolder


def choose_arithmetic(
    config: RunConfig, deepspeed_config: Mapping[str, Any], *, cluster: Cluster, device: torch.device, folder: RunFolder
) -> Arithmetic:
    """Choose the arithmetic of all ranks. A collective.

    An explicit value in YAML or JSON counts. For values that they leave to the machine, a run that resumes keeps those that it
    began with, and a new one takes those that the slowest rank computes fastest.
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
    made = Arithmetic.of(dtype, rates, encoder_dtype=encoder, attention=attention, takes=takes, reason=reason)
    obstacle = agree(cluster, lambda: why_not_packed(read_config(llm), made.attention))[0]
    # packed rows were measured on processors alone
    packs, why_padded = device.type == "cpu" and obstacle is None, obstacle
    if recorded is not None:
        packs, why_padded = recorded["packs"] and obstacle is None, None
    if config.batch.packing != "auto":
        packs, why_padded = config.batch.packing, None
        check_packing(config.batch.packing, obstacle)
    return replace(made, packs=packs, why_padded=why_padded)


def _read_recorded(folder: RunFolder) -> dict[str, Any] | None:
    """The recorded arithmetic of a run that has a checkpoint to resume from; None if it recorded none."""
    path = Path(folder.path) / RECORD_FILE
    if not path.exists() or not list_checkpoints(folder.checkpoints):
        return None
    record = read_json(path, schema_version=SCHEMA_VERSION)
    keys = ("dtype", "encoder_dtype", "attn_implementation")
    if not all(key in record for key in keys):
        return None
    # versions that knew no packed rows padded all
    return {**{key: str(record[key]) for key in keys}, "packs": record.get("packs") is True}
