"""The quickstart as a newcomer meets it: in a fresh clone of this repository's last commit, with an environment of its own.

    python benchmarks/quickstart.py [--seeds 18 19] [--controls] [--work DIR] [--output benchmarks/results/quickstart.json]

Runs `bash launch/quickstart.sh` there, to its end, and keeps what it said of its times, the run's evaluations and the report
beside the machine and the versions; the report's picture goes to docs/quickstart.png. Then trains again on the same speech: with
other seeds, for how reliably the recipe ends well, and the controls, the 100 tensors of largest κ and the adaptor alone. An older
processor is imitated by ONEDNN_MAX_CPU_ISA=AVX2 and ATEN_CPU_CAPABILITY=avx2 in the environment, which the record keeps.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from machine import processor

REPOSITORY = Path(__file__).parents[1]
COMMAND = "bash launch/quickstart.sh"
# what makes a processor an older one
RESTRICTIONS = ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")
# of this process's environment nothing that would find another installation
LEFT_OUT = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "VENV")


def run(command: str, log: Path, *, cwd: Path, **variables: str) -> float:
    """Run a command; return the seconds that it took."""
    environment = {name: value for name, value in os.environ.items() if name not in LEFT_OUT} | variables
    began = time.monotonic()
    with log.open("wb") as output:
        code = subprocess.run(command.split(), cwd=cwd, env=environment, stdout=output, stderr=subprocess.STDOUT).returncode
    if code:
        raise SystemExit(f"{command} ended with {code}:\n{log.read_text(errors='replace')[-2000:]}")
    return time.monotonic() - began


def train_again(clone: Path, name: str, settings: Sequence[str], log: Path) -> list[dict[str, Any]]:
    """The quickstart's training with other settings, on the speech and ranking that are there; return its evaluations."""
    run_dir = f"runs/{name}"
    settings = [
        f"run_dir={run_dir}",
        "training.evaluate_every_steps=0",
        f"deepspeed={clone / 'ds_configs/zero3_cpu.json'}",
        *settings,
    ]
    options = " ".join(f"--set {setting}" for setting in settings)
    command = f"bash {clone / 'launch/train.sh'} {clone / 'launch/configs/quickstart.yaml'} {options}"
    work = clone / "quickstart"
    run(command, log, cwd=work, NUM_RANKS="2", **with_commands(clone))
    return read_lines(work / run_dir / "evaluations.jsonl")


def with_commands(clone: Path) -> dict[str, str]:
    """The clone's own environment first on PATH."""
    return {"PATH": f"{clone / '.venv/bin'}{os.pathsep}{os.environ['PATH']}"}


def train_controls(clone: Path, work: Path) -> Iterator[dict[str, Any]]:
    """Train the controls of the smallest κ: the largest, and nothing of the LLM."""
    select = "kappaspeech select ranking.json --count 100 --largest --output selection-inverse.json"
    run(select, work / "select.log", cwd=clone / "quickstart", **with_commands(clone))
    for arm, settings in (
        ("largest κ", ["unfreeze.selection=selection-inverse.json"]),
        ("adaptor only", ["unfreeze.mode=adaptor", "unfreeze.selection=null"]),
    ):
        name = arm.partition(" ")[0]
        yield {"arm": arm, "evaluations": train_again(clone, name, settings, work / f"{name}.log")}


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def describe(output: Path, log: Path, seconds: float) -> dict[str, Any]:
    """The record of a run that has ended."""
    made_by = json.loads((output / "runs/kappa/run.json").read_text(encoding="utf-8"))
    records = read_lines(output / "runs/kappa/steps.jsonl")
    steps, aligning = (
        [record for record in records if record["objective"] == objective] for objective in ("transcript", "alignment")
    )
    said = log.read_text(encoding="utf-8", errors="replace")
    stages = re.findall(r"^\[\d+\] (.+?)(?: (?:in)?to /\S+)? \((\d+) s\)$", said, re.MULTILINE)
    return {
        "command": COMMAND,
        "machine": {"cpu": processor(), "cores": os.cpu_count(), "ranks": 2},
        "restrictions": {name: os.environ[name] for name in RESTRICTIONS if name in os.environ},
        "arithmetic": {
            key: made_by[key]
            for key in ("dtype", "dtype_reason", "encoder_dtype", "attn_implementation", "dtype_flops_per_second")
        },
        "plan_comparison": made_by["plan_comparison"],
        "date": datetime.now(timezone.utc).date().isoformat(),
        "git_commit": made_by["git_commit"],
        "versions": made_by["versions"],
        "seconds": {"whole": round(seconds), "begun_at": {stage: int(at) for stage, at in stages}},
        "step_seconds_median": statistics.median(step["seconds"] for step in steps),
        "alignment_step_seconds_median": statistics.median(step["seconds"] for step in aligning),
        "alignment_nats": [round(step["loss_nats"], 4) for step in aligning],
        "wait_seconds_total": sum(step["wait_seconds"] for step in records),
        "loss_nats": [round(step["loss_nats"], 4) for step in steps],
        "evaluations": read_lines(output / "runs/kappa/evaluations.jsonl"),
        "report": json.loads((output / "comparison/report.json").read_text(encoding="utf-8")),
    }


def write(record: dict[str, Any], output: Path) -> None:
    output.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="where to clone to (default: a temporary folder)")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "benchmarks/results/quickstart.json")
    parser.add_argument("--seeds", type=int, nargs="*", default=[], help="other seeds to train with")
    parser.add_argument("--controls", action="store_true", help="train the controls as well")
    parser.add_argument("--picture", type=Path, default=REPOSITORY / "docs/quickstart.png")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = arguments.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        clone, log = work / "kappaspeech", work / "quickstart.log"
        if clone.exists():
            raise SystemExit(f"{clone} is there already; remove it or give another --work.")
        subprocess.run(["git", "clone", "--quiet", str(REPOSITORY), str(clone)], check=True)
        record = describe(clone / "quickstart", log, run(COMMAND, log, cwd=clone))
        record |= {"again": [], "controls": []}
        write(record, arguments.output)
        shutil.copyfile(clone / "quickstart/comparison/report.png", arguments.picture)
        for seed in arguments.seeds:
            evaluations = train_again(clone, f"seed-{seed}", [f"seed={seed}"], work / f"seed-{seed}.log")
            record["again"].append({"seed": seed, "evaluations": evaluations})
            write(record, arguments.output)
        for control in train_controls(clone, work) if arguments.controls else ():
            record["controls"].append(control)
            write(record, arguments.output)
    print(arguments.output)


if __name__ == "__main__":
    main()
