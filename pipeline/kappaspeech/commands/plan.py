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
    from kappaspeech.config.run_config import RunConfig
    from kappaspeech.planning.plan import Plan
    from kappaspeech.planning.planner import Planner

# an H100's bfloat16 as trainings of this kind reach it, NVLink inside a host, and a 400 Gb/s adaptor a GPU between hosts;
# PCIe 4 to the host, and a host's memory under AdamW, which its GPUs share: assumed, nothing of it is measured yet
_TFLOPS = 400.0
_LINK_GBS, _HOST_MEMORY_GBS = 25.0, 150.0
_NEAR_GBS, _FAR_GBS = 200.0, 40.0
_GPU_MEMORY_GB = 80.0
_HOST_GPUS = 8
# Of an LLM's parameters, if nobody says which will train: the 100 tensors of the quickstart are 46 % of its LLM.
# LoRA's share is that of rank 64.
_TRAINED_SHARE, _LORA_SHARE = 0.5, 0.03


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
    import torch

    from kappaspeech.planning.report import describe_model, describe_plan, describe_remedies, describe_table

    num_trained = None if trained_parameters is None else round(trained_parameters)
    memory = [round(_host_gb() / count, 1) if here else gpu_memory or _GPU_MEMORY_GB for count in counts]
    ranks = list(zip(counts, [int(gb * 1e9) for gb in memory], strict=True))
    with tempfile.TemporaryDirectory() as folder:
        settings, num_trained, absent = _take_what_is_known(settings, Path(folder), num_trained)
        if here:
            planner, plans, line = _plan_here(settings, ranks, num_trained)
            absent.insert(0, line)
        else:
            planner, plans = _plan_gpus(settings, ranks, num_trained, tflops=tflops or _TFLOPS, bandwidth_gbs=bandwidth_gbs)
    fits = [made.fits(room) for made, room in zip(plans, memory, strict=True)]
    content = {
        "schema_version": 1,
        "gpu_memory_gb": memory[0],
        "assumed": absent,
        "plans": [
            {**made.to_json(), "gpu_memory_gb": room, "fits": fit} for made, room, fit in zip(plans, memory, fits, strict=True)
        ],
    }
    if output is not None:
        write_json(output, content)
    if as_json:
        print(json.dumps(content, indent=1))
        return 0 if any(fits) else 1
    for line in (*absent, *describe_model(planner.sizes, planner.batches)):
        print(for_terminal(line))
    if len(plans) == 1:
        lines = describe_plan(plans[0], gpu_memory_gb=memory[0])
        if not fits[0]:
            lines += describe_remedies(planner.find_remedies(plans[0].assumptions), gpu_memory_gb=memory[0])
    else:
        lines = describe_table(plans, gpu_memory_gb=memory)
    print(for_terminal("\n".join(lines)))
    if not here and tflops is None and gpu_memory is None and not torch.cuda.is_available():
        print(f"This is for GPUs of {_GPU_MEMORY_GB:g} GB, and this machine has none. For its processors: --here.")
    if output is not None:
        print(for_terminal(str(output)))
    return 0 if any(fits) else 1


def _take_what_is_known(settings: RunConfig, folder: Path, num_trained: int | None) -> tuple[RunConfig, int | None, list[str]]:
    """Settings and a number of trained parameters that can be planned before everything is here, and a line on what is taken."""
    from kappaspeech.planning.known_models import stand_in

    there = stand_in(settings.model.llm, settings.model.encoder, folder)
    model = settings.model.model_copy(update={"llm": there.llm, "encoder": there.encoder})
    settings, taken = settings.model_copy(update={"model": model}), list(there.taken)
    selection = settings.unfreeze.selection
    if num_trained is None and selection is not None and not Path(selection).exists():
        share = _LORA_SHARE if settings.unfreeze.mode == "lora" else _TRAINED_SHARE
        num_trained = round(share * _count_parameters(settings))
        taken.append(
            f"unfreeze.selection: {selection} isn't here; {share:.0%} of the LLM's parameters are taken to train. Say how many "
            "will: --trained-parameters 3e9"
        )
    return settings, num_trained, taken


def _count_parameters(settings: RunConfig) -> int:
    from kappaspeech.model.meta_llm import build_meta_llm

    return sum(parameter.numel() for parameter in build_meta_llm(settings.model.llm).parameters())


def _plan_gpus(
    settings: RunConfig, ranks: list[tuple[int, int]], num_trained: int | None, *, tflops: float, bandwidth_gbs: float | None
) -> tuple[Planner, list[Plan]]:
    """Plans on GPUs. `ranks` are numbers of them, each with the bytes that one has."""
    from kappaspeech.planning.duration import Rates
    from kappaspeech.planning.meta_model import build_meta_model
    from kappaspeech.planning.planner import ASSUMED_PROMPT_TOKENS, Planner

    modules = build_meta_model(settings, read_selection=num_trained is None)
    planner = Planner(settings, modules=modules, num_trained=num_trained, anchored_tokens=_count_anchored(settings))
    plans = []
    for count, room in ranks:
        bandwidth = bandwidth_gbs or (_NEAR_GBS if count <= _HOST_GPUS else _FAR_GBS)
        rates = Rates(
            tflops * 1e12,
            bandwidth * 1e9,
            host_link_bytes_per_second=_LINK_GBS * 1e9,
            host_update_bytes_per_second=_HOST_MEMORY_GBS * 1e9 / min(count, _HOST_GPUS),
        )
        plans.append(planner.plan(count, rates=rates, prompt_tokens=ASSUMED_PROMPT_TOKENS, memory_bytes=room))
    return planner, plans


def _plan_here(settings: RunConfig, ranks: list[tuple[int, int]], num_trained: int | None) -> tuple[Planner, list[Plan], str]:
    """Plans at rates that are measured on this machine, in the dtype that a run would choose; and a line that says so."""
    import torch

    from kappaspeech.allocator import keep_freed_memory
    from kappaspeech.config.deepspeed_config import read_deepspeed_config
    from kappaspeech.errors import InputError
    from kappaspeech.planning.machine import measure_here
    from kappaspeech.planning.meta_model import build_meta_model
    from kappaspeech.planning.planner import Planner
    from kappaspeech.processors import count_cores
    from kappaspeech.ranks.cluster import SingleProcess
    from kappaspeech.runs.folder import RunFolder
    from kappaspeech.training.arithmetic import choose_arithmetic

    if torch.cuda.is_available():
        raise InputError("--here is for machines without GPUs; of this one's, give --tflops and --gpu-memory.")
    cores = count_cores()
    most = max(count for count, _ in ranks)
    if most > cores:
        raise InputError(f"{most} ranks on the {cores} core(s) of this machine would wait for each other. Give fewer.")
    keep_freed_memory()
    cpu = torch.device("cpu")
    arithmetic = choose_arithmetic(
        settings,
        read_deepspeed_config(Path(settings.deepspeed)),
        cluster=SingleProcess(),
        device=cpu,
        folder=RunFolder(Path(settings.run_dir)),
    )
    modules = build_meta_model(settings, read_selection=num_trained is None, arithmetic=arithmetic)
    prompt_tokens = _count_prompt(settings)
    anchored_tokens = _count_anchored(settings)
    planner = Planner(
        settings, modules=modules, num_trained=num_trained, prompt_tokens=prompt_tokens, anchored_tokens=anchored_tokens
    )
    products = planner.find_products(arithmetic, prompt_tokens=prompt_tokens, device_type=cpu.type)
    plans = []
    for count, room in ranks:
        num_threads = settings.training.num_threads or max(1, cores // count)
        rates = measure_here(
            count, num_threads=num_threads, llm=products[0], encoder=products[1], reduced_dtype=planner.reduced_dtype
        )
        plans.append(planner.plan(count, rates=rates, prompt_tokens=prompt_tokens, on_gpu=False, memory_bytes=room))
    return planner, plans, f"on this machine's {cores} core(s), in {arithmetic.line}"


def _count_prompt(settings: RunConfig) -> int:
    """The number of the prompt's tokens; an estimate if there is no tokenizer."""
    from kappaspeech.errors import CheckpointError
    from kappaspeech.model.llm import load_tokenizer
    from kappaspeech.planning.planner import ASSUMED_PROMPT_TOKENS
    from kappaspeech.speech.prompt import make_configured_prompt

    try:
        tokenizer = load_tokenizer(settings.model.llm)
    except CheckpointError:
        return ASSUMED_PROMPT_TOKENS
    prompt = make_configured_prompt(tokenizer, settings)
    return prompt.most_tokens(settings.data.train, hot=settings.data.most_hot_tokens)


def _count_anchored(settings: RunConfig) -> int | None:
    """The number of tokens of which an anchor keeps states; None if the tokenizer or a text isn't here."""
    from kappaspeech.errors import InputError
    from kappaspeech.model.llm import load_tokenizer
    from kappaspeech.training.replay import count_anchored, read_measured, read_replay

    if settings.replay is None or not settings.replay.anchor_weight:
        return 0
    try:
        tokenizer = load_tokenizer(settings.model.llm)
        replay, measured = read_replay(settings, tokenizer), read_measured(settings, tokenizer)
    except InputError:
        return None
    return count_anchored(replay, measured, num_steps=settings.training.num_steps)


def _host_gb() -> float:
    import psutil

    return float(psutil.virtual_memory().total) / 1e9


def _parse_counts(text: str) -> list[int]:
    from kappaspeech.errors import InputError

    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        raise InputError(f"--world-size is {text!r}; give numbers of ranks, as in 8 or 1,2,4,8.")
    return counts
