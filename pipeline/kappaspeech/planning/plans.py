"""Plans of one configuration on several numbers of ranks, whatever machine these are of: on assumed GPUs, or measured here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kappaspeech.config.run_config import RunConfig
from kappaspeech.model.arithmetic import Arithmetic
from kappaspeech.planning.duration import Rates
from kappaspeech.planning.machine import measure_here
from kappaspeech.planning.meta_model import build_meta_model
from kappaspeech.planning.plan import Plan
from kappaspeech.planning.planner import ASSUMED_PROMPT_TOKENS, Planner, count_prompt
from kappaspeech.planning.report import describe_model, describe_plan, describe_remedies, describe_table

SCHEMA_VERSION = 1
# an H100's bfloat16 as trainings of this kind reach it, NVLink inside a host, and a 400 Gb/s adaptor a GPU between hosts;
# PCIe 4 to the host, and a host's memory under AdamW, which its GPUs share: assumed, nothing of it is measured yet
_TFLOPS = 400.0
_LINK_GBS, _HOST_MEMORY_GBS = 25.0, 150.0
_NEAR_GBS, _FAR_GBS = 200.0, 40.0
_HOST_GPUS = 8


@dataclass(frozen=True)
class Ranks:
    """A number of ranks, and the memory that each has."""

    count: int
    memory_gb: float

    @property
    def memory_bytes(self) -> int:
        return int(self.memory_gb * 1e9)


@dataclass(frozen=True)
class Plans:
    """One plan for each of `ranks`, and what they assume, a line each."""

    planner: Planner
    ranks: tuple[Ranks, ...]
    plans: tuple[Plan, ...]

    @property
    def fits(self) -> list[bool]:
        """True for each plan that a rank's memory is enough for."""
        return [plan.fits(ranks.memory_gb) for plan, ranks in zip(self.plans, self.ranks, strict=True)]

    def to_json(self, assumed: list[str]) -> dict[str, Any]:
        """The plans as they are written; `assumed` are lines on what they take for parts that aren't here."""
        plans = [
            {**plan.to_json(), "gpu_memory_gb": ranks.memory_gb, "fits": fit}
            for plan, ranks, fit in zip(self.plans, self.ranks, self.fits, strict=True)
        ]
        first = self.ranks[0].memory_gb
        return {"schema_version": SCHEMA_VERSION, "gpu_memory_gb": first, "assumed": assumed, "plans": plans}

    def describe(self) -> list[str]:
        """The model, and one plan in full, with what would need less if it doesn't fit, or else a line for each."""
        lines = describe_model(self.planner.sizes, self.planner.batches)
        memory = [ranks.memory_gb for ranks in self.ranks]
        if len(self.plans) > 1:
            return [*lines, *describe_table(self.plans, gpu_memory_gb=memory)]
        lines += describe_plan(self.plans[0], gpu_memory_gb=memory[0])
        if not self.fits[0]:
            lines += describe_remedies(self.planner.find_remedies(self.plans[0].assumptions), gpu_memory_gb=memory[0])
        return lines


def plan_gpus(
    config: RunConfig,
    ranks: tuple[Ranks, ...],
    *,
    num_trained: int | None,
    anchored_tokens: int | None,
    tflops: float | None = None,
    bandwidth_gbs: float | None = None,
) -> Plans:
    """Plans on GPUs, at assumed rates unless others are given. `num_trained` and `anchored_tokens` as of `Planner`."""
    modules = build_meta_model(config, read_selection=num_trained is None)
    planner = Planner(config, modules=modules, num_trained=num_trained, anchored_tokens=anchored_tokens)
    plans = []
    for those in ranks:
        rates = _assume_rates(those.count, tflops=tflops or _TFLOPS, bandwidth_gbs=bandwidth_gbs)
        plans.append(planner.plan(those.count, rates=rates, prompt_tokens=ASSUMED_PROMPT_TOKENS, memory_bytes=those.memory_bytes))
    return Plans(planner, ranks, tuple(plans))


def _assume_rates(count: int, *, tflops: float, bandwidth_gbs: float | None) -> Rates:
    """A GPU's rates, if so many compute: more than a host holds are slower to reach."""
    return Rates(
        tflops * 1e12,
        (bandwidth_gbs or (_NEAR_GBS if count <= _HOST_GPUS else _FAR_GBS)) * 1e9,
        host_link_bytes_per_second=_LINK_GBS * 1e9,
        host_update_bytes_per_second=_HOST_MEMORY_GBS * 1e9 / min(count, _HOST_GPUS),
    )


def plan_processors(
    config: RunConfig,
    ranks: tuple[Ranks, ...],
    *,
    arithmetic: Arithmetic,
    num_cores: int,
    num_trained: int | None,
    anchored_tokens: int | None,
) -> Plans:
    """Plans on this machine's processors, whose rates are measured, in a run's arithmetic here."""
    prompt_tokens = count_prompt(config)
    planner = Planner(
        config,
        modules=build_meta_model(config, read_selection=num_trained is None, arithmetic=arithmetic),
        num_trained=num_trained,
        prompt_tokens=prompt_tokens,
        anchored_tokens=anchored_tokens,
    )
    llm, encoder = planner.find_products(arithmetic, prompt_tokens=prompt_tokens, device_type="cpu")
    plans = []
    for those in ranks:
        threads = config.training.num_threads or max(1, num_cores // those.count)
        rates = measure_here(those.count, num_threads=threads, llm=llm, encoder=encoder, reduced_dtype=planner.reduced_dtype)
        plans.append(
            planner.plan(those.count, rates=rates, prompt_tokens=prompt_tokens, on_gpu=False, memory_bytes=those.memory_bytes)
        )
    return Plans(planner, ranks, tuple(plans))
