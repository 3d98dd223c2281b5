"""`kappaspeech plan`: what a training will need of each rank, before anything is loaded or rented."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kappaspeech.commands.numbers import finite
from kappaspeech.escaping import for_terminal

if TYPE_CHECKING:
    from kappaspeech.planning.assumed_parts import Completed
    from kappaspeech.planning.plans import Plans

_GPU_MEMORY_GB = 80.0


def plan(
    config: Annotated[Path, typer.Argument(help="The run's YAML.")],
    set_: Annotated[list[str] | None, typer.Option("--set", help="Change a value, as for train. May be repeated.")] = None,
    world_size: Annotated[
        str | None, typer.Option(help="Numbers of ranks, one GPU each: 8, or 1,2,4,8. Default: 8, or 1 with --here.")
    ] = None,
    gpu_memory: Annotated[float | None, typer.Option(callback=finite, min=1, help="A GPU's memory in GB. Default: 80.")] = None,
    trained_parameters: Annotated[
        float | None,
        typer.Option(
            callback=finite, min=0, help="Number of the LLM's parameters that train, if there is no selection yet: 3e9."
        ),
    ] = None,
    tflops: Annotated[
        float | None,
        typer.Option(callback=finite, min=0.001, help="A GPU's speed in 10¹² operations a second. Default: 400."),
    ] = None,
    bandwidth_gbs: Annotated[
        float | None,
        typer.Option(
            callback=finite, min=0.001, help="Bandwidth into a rank in GB a second. Default: 200 in a host of 8, else 40."
        ),
    ] = None,
    here: Annotated[bool, typer.Option("--here", help="Plan for this machine's processors, whose speed is measured.")] = False,
    output: Annotated[Path | None, typer.Option(help="Write the plans as JSON.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plans as JSON, and nothing else.")] = False,
) -> int:
    """Predict memory and time of a training on N GPUs, without reading a weight. Exit 1 if it fits on none of them.

    Only the YAML needs to exist. For models and a selection that aren't there yet, the plan says what it assumes.
    """
    from kappaspeech.artefacts import write_json
    from kappaspeech.commands.train import read_settings
    from kappaspeech.errors import InputError
    from kappaspeech.outputs import try_output

    if output is not None:
        try_output(output)
    settings = read_settings(config, None, set_ or [])
    counts = _parse_counts(world_size or ("1" if here else "8"))
    if here and (gpu_memory, tflops, bandwidth_gbs) != (None, None, None):
        raise InputError(
            "--here measures this machine; --gpu-memory, --tflops and --bandwidth-gbs describe another. Give either."
        )
    from kappaspeech.planning.assumed_parts import complete

    num_trained = None if trained_parameters is None else round(trained_parameters)
    with tempfile.TemporaryDirectory() as folder:
        known = complete(settings, Path(folder), num_trained=num_trained)
        assumed = list(known.taken)
        if here:
            made, line = _plan_here(known, counts)
            assumed.insert(0, line)
        else:
            made = _plan_gpus(known, counts, gpu_memory=gpu_memory, tflops=tflops, bandwidth_gbs=bandwidth_gbs)
    content = made.to_json(assumed)
    if output is not None:
        write_json(output, content)
    if as_json:
        print(json.dumps(content, indent=1))
    else:
        _print(made, assumed, output=output, is_for_assumed_gpus=not here and (tflops, gpu_memory) == (None, None))
    return 0 if any(made.fits) else 1


def _plan_gpus(
    known: Completed, counts: list[int], *, gpu_memory: float | None, tflops: float | None, bandwidth_gbs: float | None
) -> Plans:
    from kappaspeech.planning.plans import Ranks, plan_gpus
    from kappaspeech.training.replay import foresee_anchored

    return plan_gpus(
        known.config,
        tuple(Ranks(count, gpu_memory or _GPU_MEMORY_GB) for count in counts),
        num_trained=known.num_trained,
        anchored_tokens=foresee_anchored(known.config),
        tflops=tflops,
        bandwidth_gbs=bandwidth_gbs,
    )


def _plan_here(known: Completed, counts: list[int]) -> tuple[Plans, str]:
    """Plans at rates that are measured on this machine, in the arithmetic that a run would choose; and a line that says so."""
    import psutil
    import torch

    from kappaspeech.allocator import keep_freed_memory
    from kappaspeech.config.deepspeed_config import read_deepspeed_config
    from kappaspeech.errors import InputError
    from kappaspeech.planning.plans import Ranks, plan_processors
    from kappaspeech.processors import count_cores
    from kappaspeech.ranks.cluster import SingleProcess
    from kappaspeech.runs.folder import RunFolder
    from kappaspeech.training.arithmetic import choose_arithmetic
    from kappaspeech.training.replay import foresee_anchored

    if torch.cuda.is_available():
        raise InputError("--here is for machines without GPUs; of this one's, give --tflops and --gpu-memory.")
    cores = count_cores()
    if max(counts) > cores:
        raise InputError(f"{max(counts)} ranks on the {cores} core(s) of this machine would wait for each other. Give fewer.")
    keep_freed_memory()
    arithmetic = choose_arithmetic(
        known.config,
        read_deepspeed_config(Path(known.config.deepspeed)),
        cluster=SingleProcess(),
        device=torch.device("cpu"),
        folder=RunFolder(Path(known.config.run_dir)),
    )
    memory_gb = psutil.virtual_memory().total / 1e9
    made = plan_processors(
        known.config,
        tuple(Ranks(count, round(memory_gb / count, 1)) for count in counts),
        arithmetic=arithmetic,
        num_cores=cores,
        num_trained=known.num_trained,
        anchored_tokens=foresee_anchored(known.config),
    )
    return made, f"on this machine's {cores} core(s), in {arithmetic.line}"


def _print(made: Plans, assumed: list[str], *, output: Path | None, is_for_assumed_gpus: bool) -> None:
    import torch

    for line in (*assumed, *made.describe()):
        print(for_terminal(line))
    if is_for_assumed_gpus and not torch.cuda.is_available():
        print(f"This is for GPUs of {_GPU_MEMORY_GB:g} GB, and this machine has none. For its processors: --here.")
    if output is not None:
        print(for_terminal(str(output)))


def _parse_counts(text: str) -> list[int]:
    from kappaspeech.errors import InputError

    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        raise InputError(f"--world-size is {text!r}; give numbers of ranks, as in 8 or 1,2,4,8.")
    return counts
