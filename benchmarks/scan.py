"""The κ-scan beside its peers: CPU-seconds, peak memory and exactness, in one run, each in a process of its own on one thread.

    python benchmarks/scan.py --model PATH/TO/smollm2-135m-instruct [--repeats 3] [--output benchmarks/results/scan.json]

Compared are this project's scan, PEFT's KappaTuneSelector, WeightWatcher (both optional: `pip install peft weightwatcher`) and
float32 `torch.linalg.svdvals` as stored, on a whole model and on the seven matrices of one Llama-3.1-8B layer (Gaussian, in
bfloat16). The command itself is timed, from its start to its end, on one rank and on two, which share four such layers; beside it
stands what two scans of the whole, side by side, lose to each other on this machine, as two ranks can't do better. Repeats take
turns, so that a slow minute of the machine meets every method alike; medians are reported.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from machine import processor

from kappaspeech.artefacts import write_json
from kappaspeech.blas import pin_threads

LAYER_SHAPES = {
    "self_attn.q_proj": (4096, 4096),
    "self_attn.k_proj": (1024, 4096),
    "self_attn.v_proj": (1024, 4096),
    "self_attn.o_proj": (4096, 4096),
    "mlp.gate_proj": (14336, 4096),
    "mlp.up_proj": (14336, 4096),
    "mlp.down_proj": (4096, 14336),
}
NUM_SHARED_LAYERS = 4


def scan_ours(folder: Path) -> dict[str, float]:
    from kappaspeech.ranks.cluster import SingleProcess
    from kappaspeech.scan.checkpoint import open_checkpoint
    from kappaspeech.scan.stage import scan

    ranking = scan(open_checkpoint(str(folder)), cluster=SingleProcess())
    return {matrix.parameter: matrix.stats.kappa for matrix in ranking.matrices}


def scan_peft(folder: Path) -> dict[str, float]:
    from peft.helpers import KappaTuneSelector

    selector = KappaTuneSelector(load_modules(folder), show_progress=False)
    selector.get_best_targets()
    return {f"{name}.weight": kappa for name, kappa in selector._condition_numbers.items()}


def scan_weightwatcher(folder: Path) -> dict[str, float]:
    import weightwatcher

    watcher = weightwatcher.WeightWatcher(model=load_modules(folder))
    details = watcher.analyze()
    return {f"layer {row.layer_id}": float(row.sv_max / row.sv_min) for row in details.itertuples()}


def scan_svdvals(folder: Path) -> dict[str, float]:
    return reference_kappas(folder, dtype_name="float32")


def scan_reference(folder: Path) -> dict[str, float]:
    return reference_kappas(folder, dtype_name="float64")


METHODS: dict[str, Callable[[Path], dict[str, float]]] = {
    "kappaspeech": scan_ours,
    "peft": scan_peft,
    "weightwatcher": scan_weightwatcher,
    "svdvals_float32": scan_svdvals,
    # the reference of exactness; taken tall, so that it ends
    "svdvals_float64": scan_reference,
}
# ours is always measured; without the reference no error is
PEERS = ("peft", "weightwatcher", "svdvals_float32", "svdvals_float64")


def load_modules(folder: Path) -> Any:
    """The model as its library loads it; for a layer alone, a module of linear layers with its names."""
    import torch

    if (folder / "config.json").exists():
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    from safetensors.torch import load_file

    root = torch.nn.Module()
    for name, tensor in load_file(folder / "model.safetensors").items():
        *path, leaf = name.removesuffix(".weight").split(".")
        parent = root
        for part in path:
            if not hasattr(parent, part):
                parent.add_module(part, torch.nn.Module())
            parent = getattr(parent, part)
        linear = torch.nn.Linear(tensor.shape[1], tensor.shape[0], bias=False, dtype=tensor.dtype)
        linear.weight.data = tensor
        parent.add_module(leaf, linear)
    return root


def reference_kappas(folder: Path, *, dtype_name: str) -> dict[str, float]:
    import torch
    from safetensors import safe_open

    kappas = {}
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - not a mapping
            weight = file.get_tensor(name)
            if weight.ndim != 2:
                continue
            weight = weight.to(getattr(torch, dtype_name))
            if dtype_name == "float64" and weight.shape[0] < weight.shape[1]:
                weight = weight.T
            sigmas = torch.linalg.svdvals(weight)
            kappas[name] = float(sigmas[0] / sigmas[-1])
    return kappas


def measure_here(method: str, folder: Path) -> dict[str, Any]:
    """Run a method in this process: its CPU-seconds and peak memory beyond imports, and what it found."""
    import_of(method)
    before, peak = resource.getrusage(resource.RUSAGE_SELF), peak_kilobytes()
    began = time.monotonic()
    kappas = METHODS[method](folder)
    after = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "cpu_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "wall_seconds": time.monotonic() - began,
        "peak_megabytes": (peak_kilobytes() - peak) / 1024,
        "kappas": kappas,
    }


def peak_kilobytes() -> int:
    """The most memory that this program has held; unlike `ru_maxrss` it doesn't count what was there before it started."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def import_of(method: str) -> None:
    """Load what a method loads, and warm its libraries up, so that neither is counted."""
    import torch

    torch.set_num_threads(1)
    torch.linalg.svdvals(torch.randn(8, 8))
    if method == "kappaspeech":
        import kappaspeech.scan.checkpoint
        import kappaspeech.scan.stage  # noqa: F401
        from kappaspeech.allocator import keep_freed_memory
        from kappaspeech.scan.spectrum import spectrum_stats

        # as the command does
        keep_freed_memory()
        spectrum_stats(torch.randn(8, 8).numpy())
    elif method == "peft":
        import peft.helpers  # noqa: F401
    elif method == "weightwatcher":
        import weightwatcher  # noqa: F401
    if method in ("peft", "weightwatcher"):
        import transformers.models.llama.modeling_llama  # noqa: F401


def measure(method: str, folder: Path) -> dict[str, Any]:
    """Run a method in a fresh process on one thread."""
    environment = dict(os.environ)
    pin_threads(environment, 1)
    command = [sys.executable, __file__, "--one", method, "--model", str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{method} failed:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def make_layers(folder: Path, count: int) -> Path:
    """The matrices of so many Llama-3.1-8B layers, Gaussian, in bfloat16."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    content = {
        f"model.layers.{layer}.{name}.weight": (0.02 * torch.randn(shape, generator=generator)).bfloat16()
        for layer in range(count)
        for name, shape in LAYER_SHAPES.items()
    }
    save_file(content, folder / "model.safetensors")
    return folder


def compare(folder: Path, methods: list[str], repeats: int) -> dict[str, Any]:
    """Medians of each method's repeats, their costs relative to ours, and each κ's greatest error against float64."""
    runs: dict[str, list[dict[str, Any]]] = {method: [] for method in methods}
    for turn in range(repeats):
        for method in methods:
            # exactness needs the reference once
            if method == "svdvals_float64" and turn > 0:
                continue
            runs[method].append(measure(method, folder))
            print(f"  {method} {runs[method][-1]['cpu_seconds']:.2f} CPU-s", file=sys.stderr, flush=True)
    reference = runs["svdvals_float64"][0]["kappas"] if "svdvals_float64" in runs else {}
    ours = statistics.median(run["cpu_seconds"] for run in runs["kappaspeech"])
    table = {}
    for method, results in runs.items():
        seconds = statistics.median(run["cpu_seconds"] for run in results)
        found = results[0]["kappas"]
        shared = [name for name in found if name in reference]
        errors = [abs(found[name] / reference[name] - 1) for name in shared]
        same = sorted(shared, key=found.__getitem__) == sorted(shared, key=reference.__getitem__) if shared else None
        table[method] = {
            "cpu_seconds": seconds,
            "cpu_seconds_of_each": [run["cpu_seconds"] for run in results],
            "times_ours": seconds / ours,
            "peak_megabytes": statistics.median(run["peak_megabytes"] for run in results),
            "num_matrices": len(found),
            "greatest_relative_error": max(errors) if errors else None,
            "same_ranking_as_float64": same,
        }
    return table


def compare_ranks(folder: Path, repeats: int) -> dict[str, Any]:
    """Seconds of `kappaspeech scan` on one rank, on two, and of two commands of one rank at once; a thread each."""
    seconds: dict[str, list[float]] = {"one rank": [], "two ranks": [], "one rank, twice at once": []}
    with tempfile.TemporaryDirectory() as scratch:

        def scan_all(*workers: int) -> float:
            began = time.monotonic()
            command = [sys.executable, "-m", "kappaspeech", "scan", str(folder), "--no-journal"]
            started = [
                subprocess.Popen(
                    [*command, f"--workers={count}", f"--output={scratch}/{count}-{number}.json"],
                    stdout=subprocess.DEVNULL,
                    stderr=(Path(scratch) / f"{number}.log").open("wb"),
                )
                for number, count in enumerate(workers)
            ]
            codes = [scan.wait() for scan in started]
            if any(codes):
                said = (Path(scratch) / "0.log").read_text(errors="replace")
                raise SystemExit(f"{' '.join(command)} ended with {codes}:\n{said[-2000:]}")
            return time.monotonic() - began

        for _ in range(repeats):
            for measured, workers in zip(seconds.values(), ((1,), (2,), (1, 1)), strict=True):
                measured.append(scan_all(*workers))
                print(f"  {workers} {measured[-1]:.2f} s", file=sys.stderr, flush=True)
        if Path(scratch, "1-0.json").read_bytes() != Path(scratch, "2-0.json").read_bytes():
            raise SystemExit("the rankings of one rank and of two differ")
    one, two, crowded = seconds.values()
    return {
        "num_layers": NUM_SHARED_LAYERS,
        "seconds": seconds,
        "one_over_two": statistics.median(a / b for a, b in zip(one, two, strict=True)),
        "two_alone_over_two_at_once": statistics.median(2 * a / b for a, b in zip(one, crowded, strict=True)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a folder with model.safetensors")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--without", action="append", default=[], choices=[*PEERS], help="leave a peer out")
    parser.add_argument("--skip-model", action="store_true", help="leave the whole model out")
    parser.add_argument("--skip-layer", action="store_true", help="leave the 8B layer out")
    parser.add_argument("--skip-ranks", action="store_true", help="leave two ranks against one out, which need an idle machine")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--one", choices=METHODS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure_here(arguments.one, arguments.model)))
        return
    from kappaspeech.package_versions import NOT_INSTALLED, describe_versions

    packages = ("torch", "numpy", "scipy", "peft", "weightwatcher")
    versions = {"python": platform.python_version(), **describe_versions(packages)}
    methods = [method for method in METHODS if versions.get(method) != NOT_INSTALLED and method not in arguments.without]
    results = {}
    if not arguments.skip_model:
        results["model"] = compare(arguments.model, methods, arguments.repeats)
    if not arguments.skip_layer:
        with tempfile.TemporaryDirectory() as scratch:
            results["llama-3.1-8b layer"] = compare(make_layers(Path(scratch), 1), methods, arguments.repeats)
    if not arguments.skip_ranks:
        with tempfile.TemporaryDirectory() as scratch:
            results["ranks"] = compare_ranks(make_layers(Path(scratch), NUM_SHARED_LAYERS), max(3, arguments.repeats))
    record = {
        "command": f"python benchmarks/scan.py --model {arguments.model.name} --repeats {arguments.repeats}"
        + "".join(f" --without {method}" for method in arguments.without)
        + " --skip-model" * arguments.skip_model
        + " --skip-layer" * arguments.skip_layer
        + " --skip-ranks" * arguments.skip_ranks,
        "machine": {"cpu": processor(), "cores": os.cpu_count(), "threads": 1},
        "versions": versions,
        "results": results,
    }
    print(json.dumps(record, indent=1, ensure_ascii=False))
    if arguments.output:
        write_json(arguments.output, record)


if __name__ == "__main__":
    main()
