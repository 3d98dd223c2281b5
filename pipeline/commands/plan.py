"""`kappaspeech plan`: what a training will need of each rank, before anything is loaded or rented."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

# an H100's bfloat16 as trainings of this kind reach it, NVLink inside a host, and a 400 Gb/s adaptor a GPU between hosts
_TFLOPS = 400.0
_NEAR_GBS, _FAR_GBS = 200.0, 40.0
_HOST_GPUS = 8
_PROMPT_TOKENS = 40


def plan(
    config: Annotated[Path, typer.Argument(help="The run's YAML.")],
    set_: Annotated[list[str] | None, typer.Option("--set", help="Change a value, as for train. May be repeated.")] = None,
    world_size: Annotated[str, typer.Option(help="Numbers of ranks, one GPU each: 8, or 1,2,4,8.")] = "8",
    gpu_memory: Annotated[float, typer.Option(min=1, help="A GPU's memory in GB.")] = 80.0,
    trained_parameters: Annotated[
        float | None, typer.Option(min=0, help="Of the LLM, where there is no selection yet: 5e8.")
    ] = None,
    tflops: Annotated[float, typer.Option(min=0.001, help="What a GPU computes, in 10¹² operations a second.")] = _TFLOPS,
    bandwidth_gbs: Annotated[
        float | None,
        typer.Option(min=0.001, help="What a rank receives, in GB a second.  [default: 200 in a host of 8, else 40]"),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Write the plans as JSON.")] = None,
) -> int:
    """Predict memory and step time of a training on N GPUs, without reading a weight; exit 1 where it fits on none of them."""
    from pipeline.artefacts import write_json
    from pipeline.commands.train import read_settings

    settings = read_settings(config, None, set_ or [])
    counts = _parse_counts(world_size)
    from pipeline.planning.planner import Planner
    from pipeline.planning.report import describe_model, describe_plan, describe_remedies, describe_table
    from pipeline.training.meta_model import build_meta_model

    num_trained = None if trained_parameters is None else round(trained_parameters)
    modules = build_meta_model(settings, read_selection=num_trained is None)
    planner = Planner(settings, modules=modules, num_trained=num_trained)
    plans = []
    for count in counts:
        bandwidth = bandwidth_gbs or (_NEAR_GBS if count <= _HOST_GPUS else _FAR_GBS)
        plans.append(planner.plan(count, tflops=tflops, bandwidth_gbs=bandwidth, prompt_tokens=_PROMPT_TOKENS))
    for line in describe_model(planner.sizes, planner.batches):
        print(line)
    if len(plans) == 1:
        lines = describe_plan(plans[0], gpu_memory_gb=gpu_memory)
        if not plans[0].fits(gpu_memory):
            lines += describe_remedies(planner.find_remedies(plans[0].assumptions), gpu_memory_gb=gpu_memory)
    else:
        lines = describe_table(plans, gpu_memory_gb=gpu_memory)
    print("\n".join(lines))
    if output is not None:
        content = [{**made.to_json(), "fits": made.fits(gpu_memory)} for made in plans]
        write_json(output, {"schema_version": 1, "gpu_memory_gb": gpu_memory, "plans": content})
        print(output)
    return 0 if any(made.fits(gpu_memory) for made in plans) else 1


def _parse_counts(text: str) -> list[int]:
    from pipeline.errors import InputError

    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        raise InputError(f"--world-size is {text!r}; give numbers of ranks, as in 8 or 1,2,4,8.")
    return counts
