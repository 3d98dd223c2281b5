"""Seconds of a training step by dtype, ranks and threads, on this processor as it is and as one without bfloat16 would be.

    python benchmarks/step_time.py --work QUICKSTART [--kinds native avx2] [--output benchmarks/results/step_time.json]

Each line of the table is a training of its own by `launch/train.sh`: launch/configs/quickstart.yaml for 8 steps of 8 clips, the
same clips in every line, from QUICKSTART, the output folder of `launch/quickstart.sh` (models, shards, selection.json). It
doesn't evaluate and keeps no encoder states, so every clip meets the encoder, as in a first epoch. The median leaves out the
first two steps, which warm up. `avx2` tells oneDNN and PyTorch to use no instructions beyond AVX2 (ONEDNN_MAX_CPU_ISA,
ATEN_CPU_CAPABILITY), as on processors that lack bfloat16; a step in bfloat16 takes minutes there, so that a training is ended
whose step takes longer than --limit seconds, and the table says "over" so many. Nothing is extrapolated.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from machine import processor

from kappaspeech.artefacts import write_json
from kappaspeech.processors import count_cores

REPOSITORY = Path(__file__).parents[1]
CONFIG = REPOSITORY / "launch/configs/quickstart.yaml"
PRESET = REPOSITORY / "ds_configs/zero3_cpu.json"
KINDS: dict[str, dict[str, str]] = {"native": {}, "avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}}
DTYPES = ("bfloat16", "float32")
CLIPS_PER_STEP, NUM_STEPS, NUM_WARM_UP = 8, 8, 2
START_SECONDS = 300.0
POLL_SECONDS = 0.5


def layouts(cores: int) -> list[tuple[int, int]]:
    """Ranks and threads of each: one thread, all cores for one rank, and a rank a core."""
    return sorted({(1, 1), (1, cores), (cores, 1)})


def train(
    work: Path, scratch: Path, words: list[str], *, dtype: str, ranks: int, threads: int, kind: str, limit: float
) -> dict[str, Any]:
    """Train once; what was measured, or how long a step would have had to be waited for."""
    name = f"{kind}-{dtype}-{ranks}x{threads}"
    run_dir, preset = scratch / name, scratch / f"{dtype}.json"
    content = json.loads(PRESET.read_text(encoding="utf-8"))
    preset.write_text(json.dumps({**content, "bf16": {"enabled": dtype == "bfloat16"}}), encoding="utf-8")
    values = {
        "run_dir": run_dir,
        "deepspeed": preset,
        "data.test": [],
        "data.feature_cache_dir": "null",
        "training.num_steps": NUM_STEPS,
        "training.alignment_steps": 0,
        "training.num_threads": threads,
    }
    pairs = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
    environment = {
        **os.environ,
        **KINDS[kind],
        "NUM_RANKS": str(ranks),
        "OMP_NUM_THREADS": str(threads),
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHON": sys.executable,
    }
    log = scratch / f"{name}.log"
    command = ["bash", str(REPOSITORY / "launch/train.sh"), str(CONFIG), *pairs, *words]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=work, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        ended_after = wait(process, run_dir, limit=limit)
    if process.returncode and ended_after is None:
        raise SystemExit(f"{name} ended with {process.returncode}:\n{log.read_text(errors='replace')[-2000:]}")
    shutil.rmtree(run_dir / "checkpoints", ignore_errors=True)
    # what else runs here shows in it
    load = round(os.getloadavg()[0], 1)
    return describe(run_dir, ended_after, {"dtype": dtype, "ranks": ranks, "threads": threads, "load_average": load})


def wait(process: subprocess.Popen[bytes], run_dir: Path, *, limit: float) -> float | None:
    """Until it ends; or end it once it trains and has ended no step for `limit` seconds, and return these."""
    steps = run_dir / "steps.jsonl"
    since, seen = time.monotonic(), -1
    while process.poll() is None:
        now, begun = time.monotonic(), (run_dir / "run.json").exists()
        size = steps.stat().st_size if steps.exists() else 0
        if begun and size != seen:
            since, seen = now, size
        if now - since > (limit if begun else START_SECONDS):
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return limit
        time.sleep(POLL_SECONDS)
    return None


def describe(run_dir: Path, ended_after: float | None, row: dict[str, Any]) -> dict[str, Any]:
    steps_file = run_dir / "steps.jsonl"
    lines = steps_file.read_text(encoding="utf-8").splitlines() if steps_file.exists() else []
    steps = [json.loads(line) for line in lines if line.endswith("}")]
    if len(steps) > NUM_WARM_UP:
        seconds = [step["seconds"] for step in steps[NUM_WARM_UP:]]
        row |= {"step_seconds": statistics.median(seconds), "step_seconds_of_each": [round(item, 3) for item in seconds]}
        row["audio_seconds_per_second"] = sum(step["audio_seconds"] for step in steps[NUM_WARM_UP:]) / sum(seconds)
    else:
        row |= {"over_seconds": ended_after, "num_steps_done": len(steps)}
    if (run_dir / "run.json").exists():
        made_by = json.loads((run_dir / "run.json").read_text(encoding="utf-8"))
        row["core_flops_per_second"] = made_by["dtype_flops_per_second"]
        row["planned_step_seconds"] = made_by["plan"].get("step_seconds", {}).get("total")
    return row


def describe_row(row: Mapping[str, Any]) -> str:
    if "step_seconds" in row:
        said = f"{row['step_seconds']:8.2f} s {row['audio_seconds_per_second']:8.2f} audio-s/s, load {row['load_average']}"
    else:
        said = f"    over {row['over_seconds']:g} s"
    return f"  {row['dtype']:9} {row['ranks']} rank(s) × {row['threads']} thread(s) {said}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="an output folder of launch/quickstart.sh")
    parser.add_argument("--kinds", nargs="+", choices=sorted(KINDS), default=list(KINDS), help="the others stay as recorded")
    parser.add_argument("--limit", type=float, default=60.0, help="seconds after which a step is too slow to wait for")
    parser.add_argument("--set", dest="pairs", action="append", default=[], metavar="KEY=VALUE", help="change the recipe")
    parser.add_argument("--layouts", nargs="+", metavar="RANKSxTHREADS", help="in place of those of this machine's cores")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--output", type=Path, default=REPOSITORY / "benchmarks/results/step_time.json")
    arguments = parser.parse_args()
    pairs = [tuple(map(int, text.split("x"))) for text in arguments.layouts or ()] or layouts(count_cores())
    words = [word for pair in arguments.pairs for word in ("--set", pair)]
    tables: dict[str, Any] = {}
    if arguments.output.exists():
        tables = json.loads(arguments.output.read_text(encoding="utf-8"))["results"]
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        for kind in arguments.kinds:
            print(kind, flush=True)
            tables[kind] = []
            for dtype, (ranks, threads) in itertools.product(arguments.dtypes, pairs):
                layout = {"dtype": dtype, "ranks": ranks, "threads": threads}
                row = train(arguments.work.resolve(), scratch, words, kind=kind, limit=arguments.limit, **layout)
                tables[kind].append(row)
                print(describe_row(row), flush=True)
            versions = json.loads(max(scratch.glob("*/run.json")).read_text(encoding="utf-8"))["versions"]
            record = {
                "command": shlex.join(["python", "benchmarks/step_time.py", *describe_arguments(arguments)]),
                "machine": {"cpu": processor(), "cores": count_cores()},
                "date": datetime.now(timezone.utc).date().isoformat(),
                "versions": versions,
                "kinds": KINDS,
                "work": {"clips_per_step": CLIPS_PER_STEP, "num_steps": NUM_STEPS, "num_warm_up": NUM_WARM_UP},
                "results": tables,
            }
            write_json(arguments.output, record)
    print(arguments.output)


def describe_arguments(arguments: argparse.Namespace) -> list[str]:
    """The arguments as typed, without a path of this machine."""
    said = ["--work", arguments.work.name, "--limit", f"{arguments.limit:g}"]
    if arguments.layouts:
        said += ["--layouts", *arguments.layouts]
    return said


if __name__ == "__main__":
    main()
