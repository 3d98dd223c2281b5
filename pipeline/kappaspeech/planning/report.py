"""Plans in words, for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from kappaspeech.planning.batches import BatchSizes
from kappaspeech.planning.duration import StepTime
from kappaspeech.planning.plan import GB, Plan, Remedy
from kappaspeech.planning.sizes import SpeechSizes

_NUM_REMEDIES = 5


def describe_model(sizes: SpeechSizes, batches: BatchSizes) -> list[str]:
    """What is planned: parameters in all and trained, and the micro-batches."""
    llm, largest, mean = sizes.llm, batches.largest, batches.mean
    return [
        f"LLM {llm.num_parameters / 1e6:,.0f} M parameters, of which {llm.num_trained / 1e6:,.1f} M train; adaptor "
        f"{sizes.num_adaptor_parameters / 1e6:,.1f} M; encoder {sizes.num_encoder_parameters / 1e6:,.0f} M, frozen",
        f"micro-batch, largest: {largest.num_samples:.0f} clips of {largest.clip_seconds:.1f} s; mean: {mean.num_samples:.1f} of "
        f"{mean.clip_seconds:.1f} s (from {batches.source})",
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
    verdict = f"{'fits' if plan.fits(gpu_memory_gb) else 'does not fit'} into {gpu_memory_gb:g} GB"
    time, rates = plan.step_time, plan.assumptions.rates
    lines += [
        f"peak {plan.peak_bytes / GB:.1f} GB a rank on {plan.assumptions.world_size} rank(s): {verdict}",
        f"step {time.total:.2f} s: encoder {time.encoder:.2f}, forward {time.forward:.2f}, backward {time.backward:.2f}, "
        f"computed again {time.recomputation:.2f}{_describe_recomputed(plan)}, "
        f"communication {time.communication:.2f}{_describe_others(time)} "
        f"(at {rates.flops_per_second / 1e12:.4g} TFLOP/s and {rates.bytes_per_second / GB:.4g} GB/s a rank)",
        f"{plan.audio_seconds_per_step:,.0f} s of audio a step, {plan.audio_seconds_per_step / time.total:,.0f} a second",
    ]
    return lines + _describe_idle([plan])


def describe_table(plans: Sequence[Plan], *, gpu_memory_gb: Sequence[float]) -> list[str]:
    """A line a number of ranks, which has so much memory a rank; all memory in GB a rank."""
    alike = len(set(gpu_memory_gb)) == 1
    verdict = f"in {gpu_memory_gb[0]:g} GB" if alike else "its share"
    lines = [f"{'ranks':>5} {'state':>7} {'step':>7} {'as replica':>10} {'peak':>7}  {verdict:9} {'step':>9} {'audio-s/s':>10}"]
    for plan, memory in zip(plans, gpu_memory_gb, strict=True):
        evaluation = f"{(plan.state_bytes + plan.evaluation_bytes) / GB:.1f}" if plan.evaluation_bytes else "-"
        lines.append(
            f"{plan.assumptions.world_size:5d} {plan.state_bytes / GB:7.1f} {plan.step_bytes / GB:7.1f} {evaluation:>10} "
            f"{plan.peak_bytes / GB:7.1f}  {'fits' if plan.fits(memory) else 'too much':9} {plan.step_time.total:7.2f} s "
            f"{plan.audio_seconds_per_step / plan.step_time.total:10,.0f}"
        )
    return lines + _describe_idle(plans)


def _describe_recomputed(plan: Plan) -> str:
    return f" ({plan.num_recomputed} layers)" if plan.num_recomputed else ""


def _describe_others(time: StepTime) -> str:
    """What not every plan has: what is known apart where a machine has been measured, and what goes to a host and back."""
    measured = f", between products {time.elementwise:.2f}, optimizer {time.optimizer:.2f}"
    offload = f", to the host, updated there and back {time.offload:.2f}" if time.offload else ""
    return (measured if time.elementwise or time.optimizer else "") + offload


def _describe_idle(plans: Sequence[Plan]) -> list[str]:
    return [
        f"on {plan.assumptions.world_size} ranks {plan.idle_share:.0%} of them have nothing to compute, for want of "
        "micro-batches: raise batch.micro_batches_per_step to a multiple of the ranks"
        for plan in plans
        if plan.idle_share > 0
    ]


def describe_remedies(remedies: Sequence[Remedy], *, gpu_memory_gb: float) -> list[str]:
    """The changes that make it fit, the smallest need first; where none does, those that save most."""
    if not remedies:
        return []
    fitting = [item for item in remedies if item.peak_bytes <= gpu_memory_gb * GB]
    lines = ["what would make it fit:" if fitting else "none of these alone makes it fit:"]
    for item in (fitting or remedies)[:_NUM_REMEDIES]:
        host = f" and {item.host_bytes / GB:.1f} GB of host memory" if item.host_bytes else ""
        lines.append(f"  {item.peak_bytes / GB:6.1f} GB{host}: {item.change}")
    return lines
