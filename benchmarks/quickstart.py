"""The quickstart as a newcomer meets it: in a fresh clone of this repository's last commit, with an environment of its own.

    python benchmarks/quickstart.py [--seeds 18 19] [--work DIR] [--output benchmarks/results/quickstart.json]

Runs `bash launch/quickstart.sh` there, to its end, and keeps what it said of its times, the run's evaluations and the report
beside the machine and the versions; the report's picture goes to docs/quickstart.png. Then trains again with other seeds, on the
same speech, for how reliably the recipe ends well. An older processor is imitated by ONEDNN_MAX_CPU_ISA=AVX2 and
ATEN_CPU_CAPABILITY=avx2 in the environment, which the record keeps.
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


def train_again(clone: Path, seed: int, log: Path) -> dict[str, Any]:
    """The quickstart's training with another seed, on the speech and selection that are there."""
    run_dir = f"runs/seed-{seed}"
    settings = f"run_dir={run_dir} seed={seed} training.evaluate_every_steps=0 deepspeed={clone / 'ds_configs/zero3_cpu.json'}"
    options = " ".join(f"--set {setting}" for setting in settings.split())
    command = f"bash {clone / 'launch/train.sh'} {clone / 'launch/configs/quickstart.yaml'} {options}"
    work = clone / "quickstart"
    run(command, log, cwd=work, NUM_RANKS="2", PATH=f"{clone / '.venv/bin'}{os.pathsep}{os.environ['PATH']}")
    return {"seed": seed, "evaluations": read_lines(work / run_dir / "evaluations.jsonl")}


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def describe(output: Path, log: Path, seconds: float) -> dict[str, Any]:
    """The record of a run that has ended."""
    made_by = json.loads((output / "runs/kappa/run.json").read_text(encoding="utf-8"))
    steps = read_lines(output / "runs/kappa/steps.jsonl")
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
        "wait_seconds_total": sum(step["wait_seconds"] for step in steps),
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
        record["again"] = []
        write(record, arguments.output)
        shutil.copyfile(clone / "quickstart/comparison/report.png", arguments.picture)
        for seed in arguments.seeds:
            record["again"].append(train_again(clone, seed, work / f"seed-{seed}.log"))
            write(record, arguments.output)
    print(arguments.output)


if __name__ == "__main__":
    main()
