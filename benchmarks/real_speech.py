"""The paper's comparison on real speech, at the size that two cores can train: SmolLM2-135M-Instruct and Whisper base.

    python benchmarks/real_speech.py RECORDINGS [--experiment real_speech] [--work real_speech]

RECORDINGS has a folder `en` with transcripts.tsv (file, tab, text). It is divided by sentence; the quickstart's generated English
is put beside it under the name of a language of its own, `generated`; both are packed, and the LLM is scanned. Then
`kappaspeech compare benchmarks/experiments/real_speech.yaml` trains the arms, two side by side, a thread each. Interrupted, the
same command goes on. The record in benchmarks/results is the comparison's report.json with machine, versions and command.
`--experiment figure1` trains many more arms, for longer: benchmarks/experiments/figure1.yaml.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

from machine import processor

from kappaspeech.comparison.experiment import read_experiment
from kappaspeech.speech.layouts import find_recordings

REPOSITORY = Path(__file__).parents[1]
EXPERIMENTS = ("real_speech", "figure1")
LLM = "models/smollm2-135m-instruct"
# by the name that stands for a language: the folder that it is spoken in
SOURCES = {"en": "speech", "generated": "generated"}


def prepare(work: Path, recordings: Path) -> None:
    """Models, texts, the division, shards and the ranking in `work`; what is there already is left."""
    run(work, "demo", "models", "models")
    run(work, "demo", "texts", "text")
    if not (work / "speech").exists():
        run(work, "demo", "speech", "speech", "--recordings", str(recordings.resolve()))
    check_division(work / "speech")
    if not (work / "generated").exists():
        run(work, "demo", "speech", "generated")
    for part in ("train", "test"):
        for language, source in SOURCES.items():
            link(work / "spoken" / part / language, work / source / part / "en")
        run(work, "pack", f"spoken/{part}", f"shards/{part}", "--shard-size", "200")
    if not (work / "ranking.json").exists():
        run(work, "scan", LLM, "--output", "ranking.json")
    if not (work / "replay").exists():
        # of what the LLM writes itself, for the arms that replay text
        run(work, "demo", "replay", LLM, "replay")
    link(work / "ds_configs", REPOSITORY / "ds_configs")


def link(path: Path, target: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(target.resolve())


def check_division(speech: Path) -> None:
    """Exit if a test sentence occurs in training, however it is written."""
    said = {
        part: {(item.language, "".join(filter(str.isalnum, item.transcript.lower()))) for item in find_recordings(speech / part)}
        for part in ("train", "test")
    }
    shared = said["train"] & said["test"]
    if shared:
        raise SystemExit(f"{len(shared)} test sentences are in training, as {min(shared)}")
    print(f"{len(said['train'])} sentences to train on, {len(said['test'])} others to test on", flush=True)


def run(work: Path, *words: str) -> None:
    subprocess.run([sys.executable, "-m", "kappaspeech", *words], cwd=work, env=environment(), check=True)


def environment() -> dict[str, str]:
    """One thread a process: two arms side by side fill two cores better than two threads fill one arm's."""
    return {**os.environ, "PYTHONPATH": str(REPOSITORY / "pipeline"), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recordings", type=Path)
    parser.add_argument("--work", type=Path, default=Path("real_speech"), help="the folder of all that is made")
    parser.add_argument("--jobs", type=int, default=2, help="arms side by side")
    parser.add_argument("--experiment", choices=EXPERIMENTS, default=EXPERIMENTS[0], help="a YAML of benchmarks/experiments")
    parser.add_argument("--output", type=Path, help="the record; by default benchmarks/results/EXPERIMENT.json")
    arguments = parser.parse_args()
    experiment = REPOSITORY / f"benchmarks/experiments/{arguments.experiment}.yaml"
    folder = arguments.work / read_experiment(experiment).output
    output = arguments.output or REPOSITORY / f"benchmarks/results/{arguments.experiment}.json"
    arguments.work.mkdir(parents=True, exist_ok=True)
    prepare(arguments.work, arguments.recordings)
    began = time.monotonic()
    command = [sys.executable, "-m", "kappaspeech", "compare", str(experiment), "--jobs", str(arguments.jobs)]
    done = subprocess.run(command, cwd=arguments.work, env=environment(), check=False)
    if done.returncode:
        raise SystemExit(done.returncode)
    first = next((folder / "runs").glob("*/run.json"))
    made_by = json.loads(first.read_text(encoding="utf-8"))
    record = {
        "command": f"python benchmarks/real_speech.py RECORDINGS --experiment {arguments.experiment} --jobs {arguments.jobs}",
        "machine": {"processor": processor(), "cores": os.cpu_count(), "ranks": 1, "arms side by side": arguments.jobs},
        "date": datetime.now(timezone.utc).date().isoformat(),
        "git_commit": made_by["git_commit"],
        "versions": made_by["versions"],
        "seconds_of_the_last_start": round(time.monotonic() - began),
        "experiment": experiment.read_text(encoding="utf-8"),
        "run": experiment.with_name("real_speech_run.yaml").read_text(encoding="utf-8"),
        **json.loads((folder / "report.json").read_text(encoding="utf-8")),
    }
    output.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(output)


if __name__ == "__main__":
    main()
