"""The dtype in which training will compute here, chosen as a run chooses it."""

from __future__ import annotations

from pathlib import Path

import torch

from kappaspeech.config.deepspeed_config import read_deepspeed_config
from kappaspeech.config.run_config import RunConfig
from kappaspeech.diagnosis.finding import Finding
from kappaspeech.errors import KappaSpeechError
from kappaspeech.model.family import read_attentions, read_widths
from kappaspeech.model.precision import choose_dtype, is_worth_it, measure_rates, slowest
from kappaspeech.ranks.agreement import agree
from kappaspeech.ranks.cluster import Cluster
from kappaspeech.runs.folder import RunFolder
from kappaspeech.training.arithmetic import choose_arithmetic

_AREA = "dtype"


def check_dtype(config: RunConfig | None, cluster: Cluster) -> list[Finding]:
    """The dtype and the reason for it; a warning if the configuration asks for the slower one. A collective of all ranks.

    Nothing if the model or the DeepSpeed JSON can't be read, which is a finding of its own.
    """
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", cluster.local_rank % torch.cuda.device_count())
    if config is None:
        choice = choose_dtype(slowest(agree(cluster, lambda: measure_rates(device))), device.type)
        return [Finding(_AREA, "ok", f"training computes in {choice.dtype}: {choice.reason}")]
    deepspeed_config = None
    try:
        read_widths(config.model.llm)
        read_attentions(config.model.llm).check(config.model.attn_implementation)
        deepspeed_config = read_deepspeed_config(Path(config.deepspeed))
    except KappaSpeechError:
        pass
    if None in cluster.gather(deepspeed_config) or deepspeed_config is None:
        return []
    arithmetic = choose_arithmetic(
        config, deepspeed_config, cluster=cluster, device=device, folder=RunFolder(Path(config.run_dir))
    )
    found = f"training computes in {arithmetic.line}"
    fastest = "bfloat16" if is_worth_it(arithmetic.flops_per_second) else "float32"
    if arithmetic.dtype == fastest:
        return [Finding(_AREA, "ok", found)]
    return [
        Finding(_AREA, "warning", found, f'For {fastest}: "bf16": {{"enabled": "auto"}} in the DeepSpeed JSON, and a new run.')
    ]
