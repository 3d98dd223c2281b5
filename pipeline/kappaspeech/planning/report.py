"""Plans in words, for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from kappaspeech.planning.batches import BatchSizes
from kappaspeech.planning.duration import StepTime
from kappaspeech.planning.plan import ASSUMED_RANGE, GB, MEASURED_RANGE, Plan
from kappaspeech.planning.remedies import Remedy
from kappaspeech.planning.sizes import SpeechSizes
from kappaspeech.progress import hours_minutes
from kappaspeech.speech.schedule import LABEL_TOKENS_PER_SECOND

_NUM_REMEDIES = 5


def describe_model(sizes: SpeechSizes, batches: BatchSizes) -> list[str]:
    """The planned model: parameters in all and trained, and the micro-batches."""
    llm, largest, mean = sizes.llm, batches.largest, batches.mean
    return [
        f"LLM {llm.num_parameters / 1e6:,.0f} M parameters, of which {llm.num_trained / 1e6:,.1f} M train; adaptor "
        f"{sizes.num_adaptor_parameters / 1e6:,.1f} M; encoder {sizes.num_encoder_parameters / 1e6:,.0f} M, frozen",
        f"micro-batch, largest: {largest.num_samples:.0f} clips of {largest.clip_seconds:.1f} s; mean: {mean.num_samples:.1f} of "
        f"{mean.clip_seconds:.1f} s{', packed' if mean.packed_seconds is not None else ''} (from {batches.source})",
    ]


def describe_plan(plan: Plan, *, gpu_memory_gb: float) -> list[str]:
    """Memory by part, the verdict, and a step's time by part."""
    lines = [
        f"  {part.name:36}{part.num_bytes / GB:9.2f} GB{' of host memory' if part.on_host else ''}"
        for part in (*plan.parts, *plan.step_parts)
        if part.num_bytes
    ]
    overhead = "CUDA, NCCL, fragmentation (assumed)" if plan.assumptions.device == "gpu" else "libraries, fragmentation"
    lines.append(f"  {overhead:36}{plan.overhead_bytes / GB:9.2f} GB")
    if plan.evaluation_bytes and plan.decodes_by != "zero3":
        chosen = "" if plan.decodes_by == "replica" else ", or else evaluations decode under ZeRO-3"
        lines.append(f"  in an evaluation, in place of the step's: {plan.evaluation_bytes / GB:.2f} GB for a replica{chosen}")
    copied = f"{plan.checkpoint_copy_bytes / GB:.2f} GB of host memory for a rank's copy"
    lines.append(f"  while a checkpoint is written: {copied}, or else the steps wait for it")
    verdict = f"{'fits' if plan.fits(gpu_memory_gb) else 'does not fit'} into {gpu_memory_gb:g} GB"
    time, rates = plan.step_time, plan.assumptions.rates
    lines += [
        f"peak {plan.least_bytes / GB:.1f} to {plan.peak_bytes / GB:.1f} GB a rank on {plan.assumptions.world_size} rank(s): "
        f"{verdict}",
        f"step {time.total:.2f} s: encoder {time.encoder:.2f}, forward {time.forward:.2f}, backward {time.backward:.2f}, "
        f"computed again {time.recomputation:.2f}{_describe_recomputed(plan)}, "
        f"communication {time.communication:.2f}{_describe_others(time)} "
        f"(at {rates.flops_per_second / 1e12:.4g} TFLOP/s and {rates.bytes_per_second / GB:.4g} GB/s a rank)",
        f"{plan.audio_seconds_per_step:,.0f} s of audio a step, {plan.audio_seconds_per_step / time.total:,.0f} a second",
        f"the run: {_say_run(plan)} h",
    ]
    return [*lines, *_describe_idle([plan]), *_describe_assumptions(plan)]


def describe_table(plans: Sequence[Plan], *, gpu_memory_gb: Sequence[float]) -> list[str]:
    """One line for each number of ranks, with the memory that a rank has there; all memory in GB a rank."""
    alike = len(set(gpu_memory_gb)) == 1
    verdict = f"in {gpu_memory_gb[0]:g} GB" if alike else "its share"
    header = f"{'ranks':>5} {'state':>6} {'step':>6} {'replica':>7} {'peak, GB':>13}  {verdict:9} {'step':>9} {'run, h:mm':>15}"
    lines = [header]
    for plan, memory in zip(plans, gpu_memory_gb, strict=True):
        replica = f"{(plan.state_bytes + plan.evaluation_bytes) / GB:.1f}" if plan.evaluation_bytes else "-"
        peak = f"{plan.least_bytes / GB:.1f} to {plan.peak_bytes / GB:.1f}"
        lines.append(
            f"{plan.assumptions.world_size:5d} {plan.state_bytes / GB:6.1f} {plan.step_bytes / GB:6.1f} {replica:>7} {peak:>13}  "
            f"{'fits' if plan.fits(memory) else 'too much':9} {plan.step_time.total:7.2f} s {_say_run(plan):>15}"
        )
    return [*lines, *_describe_idle(plans), *_describe_assumptions(plans[0])]


def _say_run(plan: Plan) -> str:
    low, high = plan.run_seconds
    return f"{hours_minutes(low)} to {hours_minutes(high)}"


def _describe_assumptions(plan: Plan) -> list[str]:
    """A plan's assumptions, and what its ranges span."""
    low, high = MEASURED_RANGE if plan.assumptions.rates.are_measured else ASSUMED_RANGE
    source = "measured on this machine" if plan.assumptions.rates.are_measured else "assumed, not measured"
    return [
        f"time of the run: {plan.num_steps:,} steps without evaluations, at {low:g} to {high:g} times the predicted step; rates "
        f"are {source}",
        f"peak: the second number includes what the allocator loses; {LABEL_TOKENS_PER_SECOND:g} target tokens a second of "
        f"speech and {plan.assumptions.prompt_tokens} of the prompt a clip",
    ]


def _describe_recomputed(plan: Plan) -> str:
    return f" ({plan.num_recomputed} layers)" if plan.num_recomputed else ""


def _describe_others(time: StepTime) -> str:
    """Parts that not every plan has: those of a measured machine, and what goes to a host and back."""
    measured = f", between products {time.elementwise:.2f}, optimizer {time.optimizer:.2f}"
    offload = f", to the host, updated there and back {time.offload:.2f}" if time.offload else ""
    return (measured if time.elementwise or time.optimizer else "") + offload


def _describe_idle(plans: Sequence[Plan]) -> list[str]:
    return [
        f"on {plan.assumptions.world_size} ranks {plan.idle_share:.0%} of them have nothing to compute, for want of "
        "micro-batches: raise batch.micro_batches_per_step to a multiple of the ranks, or set batch.even_shares"
        for plan in plans
        if plan.idle_share > 0
    ]


def describe_remedies(remedies: Sequence[Remedy], *, gpu_memory_gb: float) -> list[str]:
    """The changes that make it fit, the smallest need first; if none does, those that save most."""
    if not remedies:
        return []
    fitting = [item for item in remedies if item.peak_bytes <= gpu_memory_gb * GB]
    lines = ["what would make it fit:" if fitting else "none of these alone makes it fit:"]
    for item in (fitting or remedies)[:_NUM_REMEDIES]:
        host = f" and {item.host_bytes / GB:.1f} GB of host memory" if item.host_bytes else ""
        lines.append(f"  {item.peak_bytes / GB:6.1f} GB{host}: {item.change}")
    return lines
