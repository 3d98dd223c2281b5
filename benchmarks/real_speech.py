"""The paper's comparison on real speech, at the size that two cores can train: SmolLM2-135M-Instruct and Whisper base.

    python benchmarks/real_speech.py RECORDINGS [--experiment real_speech] [--work real_speech]
    python benchmarks/real_speech.py RECORDINGS --experiment unseen|figure1 --texts TEXTS

RECORDINGS has a folder `en` with transcripts.tsv (file, tab, text). It is divided by sentence; the quickstart's generated English
is put beside it under the name of a language of its own, `generated`; both are packed, and the LLM is scanned. Then
`kappaspeech compare benchmarks/experiments/real_speech.yaml` trains the arms, two side by side, a thread each. Interrupted, the
same command goes on. The record in benchmarks/results is the comparison's report.json with machine, versions and command.

`--experiment unseen` trains until sentences are transcribed that were never heard. Beside the recordings stand five hours of an
open vocabulary, the sentences of TEXTS/en.txt spoken by espeak-ng and flite, without the test's own. The adaptor is aligned once,
benchmarks/experiments/unseen_alignment.yaml, and each arm of unseen.yaml begins with it. Its record's texts were the cookies of
Debian's fortunes and fortunes-min, one a line; --fortunes FOLDER writes them from there.

`--experiment figure1` begins with the same adaptor and passes over half an hour of the recordings some six times, so that the
curves show where they turn. `--experiment figure1_baselines` trains other methods' arms alike, `figure1_types` the halves of each
module type by κ, `figure1_held` arms that are held to their base.

Beside the record stands EXPERIMENT_runs.tar.xz: all that a comparison reads of each finished run, some 70 kB, and no weights. The
command takes from it whole seeds of which it has begun no run, so that seeds may be trained on one machine after another.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import yaml
from machine import processor

from kappaspeech.artefacts import write_json
from kappaspeech.comparison.experiment import read_experiment
from kappaspeech.demo.open_speech import read_sentences
from kappaspeech.runs.folder import RunFolder
from kappaspeech.speech.layouts import find_recordings

REPOSITORY = Path(__file__).parents[1]
EXPERIMENTS = ("real_speech", "unseen", "figure1", "figure1_baselines", "figure1_types", "figure1_held")
ALIGNED = EXPERIMENTS[1:]
REPLAYED = ("figure1_baselines", "figure1_held")
# texts a language in each of their folders
REPLAY_FOLDERS = {"replay": 60, "replay_many": 400}
# a quarter of an hour of the recordings: figure1_run.yaml takes two such shards
SHARD_SIZE = "333"
OPEN_HOURS = "5"
LLM = "models/smollm2-135m-instruct"
# of a run's folder what no comparison reads
UNREAD = ("checkpoints", "tensorboard")
# by the name that stands for a language: the folder that it is spoken in
SOURCES = {"en": "speech", "generated": "generated"}


def prepare(work: Path, recordings: Path) -> None:
    """Models, texts, the division and the ranking in `work`; what is there already is left."""
    run(work, "demo", "models", "models")
    run(work, "demo", "texts", "text")
    if not (work / "speech").exists():
        run(work, "demo", "speech", "speech", "--recordings", str(recordings.resolve()))
    if not (work / "ranking.json").exists():
        run(work, "scan", LLM, "--output", "ranking.json")
    link(work / "ds_configs", REPOSITORY / "ds_configs")


def prepare_replay(work: Path) -> None:
    """Texts that the LLM writes itself, for arms that hold it to its beginning by them."""
    for folder, count in REPLAY_FOLDERS.items():
        if not (work / folder).exists():
            run(work, "demo", "replay", LLM, folder, "--count", str(count))


def prepare_commands(work: Path) -> None:
    """Shards of the recordings and of the quickstart's generated commands."""
    check_division([work / "speech/train"], work / "speech/test")
    if not (work / "generated").exists():
        run(work, "demo", "speech", "generated")
    for part in ("train", "test"):
        for language, source in SOURCES.items():
            link(work / "spoken" / part / language, work / source / part / "en")
        run(work, "pack", f"spoken/{part}", f"shards/{part}", "--shard-size", "200")


def prepare_open(work: Path, texts: Path) -> None:
    """Shards of the English recordings and of an open vocabulary's speech, and the adaptor that all arms begin with."""
    leave_out_tested(texts / "en.txt", work / "texts/en.txt", tested=said(work / "speech/test"))
    if not (work / "open/train/en/transcripts.tsv").exists():
        run(work, "demo", "speech", "open", "--texts", "texts", "--hours", OPEN_HOURS, "--num-test", "100")
    check_division([work / "speech/train", work / "open/train"], work / "speech/test")
    for source, part, name in (("speech", "train", "real"), ("open", "train", "open"), ("speech", "test", "real")):
        run(work, "pack", f"{source}/{part}/en", f"shards/{part}", "--prefix", name, "--shard-size", SHARD_SIZE)
    run(work, "train", str(REPOSITORY / "benchmarks/experiments/unseen_alignment.yaml"))


def leave_out_tested(texts: Path, output: Path, *, tested: set[tuple[str, str]]) -> None:
    """Write the sentences of a text, one a line, without those that are tested on."""
    kept = [sentence for sentence in read_sentences(texts) if ("en", letters(sentence)) not in tested]
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text("".join(f"{sentence}\n" for sentence in kept), encoding="utf-8")


def write_fortunes(folder: Path, output: Path) -> None:
    """Write the cookies of a folder of fortunes, one a line."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.suffix)
    cookies = [" ".join(cookie.split()) for path in files for cookie in path.read_text(encoding="utf-8").split("\n%\n")]
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text("".join(f"{cookie}\n" for cookie in cookies if cookie), encoding="utf-8")


def link(path: Path, target: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(target.resolve())


def letters(text: str) -> str:
    """A sentence without what it may be written with in another way."""
    return "".join(filter(str.isalnum, text.lower()))


def said(folder: Path) -> set[tuple[str, str]]:
    return {(item.language, letters(item.transcript)) for item in find_recordings(folder)}


def check_division(train: Sequence[Path], test: Path) -> None:
    """Exit if a test sentence occurs in training, however it is written."""
    trained, tested = {item for folder in train for item in said(folder)}, said(test)
    if shared := trained & tested:
        raise SystemExit(f"{len(shared)} test sentences are in training, as {min(shared)}")
    print(f"{len(trained)} sentences to train on, {len(tested)} others to test on", flush=True)


def run(work: Path, *words: str) -> None:
    subprocess.run([sys.executable, "-m", "kappaspeech", *words], cwd=work, env=environment(), check=True)


def environment() -> dict[str, str]:
    """One thread a process: two arms side by side fill two cores better than two threads fill one arm's."""
    return {**os.environ, "PYTHONPATH": str(REPOSITORY / "pipeline"), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}


def base_of(experiment: Path) -> str:
    """The name of the run's YAML that an experiment repeats."""
    return str(yaml.safe_load(experiment.read_text(encoding="utf-8"))["base"])


def bring_runs(archive: Path, folder: Path, trials: Sequence[str]) -> None:
    """Put finished runs of `archive` into the comparison in `folder`: seeds of which it has no run, and the archive all `trials`.

    The arms of a seed begin with one adaptor, and another machine's is another one.
    """
    begun = {seed_of(path.name) for path in (folder / "runs").glob("*")}
    with tarfile.open(archive) as tar:
        files = {Path(member.name): member for member in tar if member.isfile()}
        there = {path.parts[1] for path in files if is_of_run(path)}
        partial = {seed_of(name) for name in trials if name not in there}
        brought = {name for name in trials if seed_of(name) not in begun | partial}
        for path, member in files.items():
            content = tar.extractfile(member)
            if is_of_run(path) and path.parts[1] in brought and content is not None:
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).write_bytes(content.read())
    print(f"{len(brought)} finished runs from {archive}", flush=True)


def keep_runs(folder: Path, archive: Path) -> None:
    """Write all that a comparison reads of the finished runs in `folder`."""
    runs = sorted((folder / "runs").iterdir())
    with tarfile.open(archive, "w:xz") as tar:
        for run_folder in (run for run in runs if RunFolder(run).read_record()["status"] == "finished"):
            tar.add(run_folder, f"runs/{run_folder.name}", filter=without_weights)


def without_weights(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """A part of a run's folder as it goes into an archive, without the names of who made it; None if no comparison reads it."""
    if any(part in UNREAD for part in Path(member.name).parts):
        return None
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    return member


def is_of_run(path: Path) -> bool:
    """True for the name of a run's file in an archive, which leads out of no folder."""
    return path.parts[0] == "runs" and len(path.parts) > 2 and ".." not in path.parts


def seed_of(run_name: str) -> str:
    """The seed in the name of a trial's folder, as in smallest-kappa-seed17."""
    return run_name.rpartition("-seed")[2]


def describe(folder: Path, experiment: Path, *, jobs: int, seconds: float) -> dict[str, Any]:
    """The record of a comparison that has ended."""
    first = next((folder / "runs").glob("*/run.json"))
    made_by = json.loads(first.read_text(encoding="utf-8"))
    spoken = " --texts TEXTS" if experiment.stem in ALIGNED else ""
    return {
        "command": f"python benchmarks/real_speech.py RECORDINGS --experiment {experiment.stem}{spoken} --jobs {jobs}",
        "machine": {"processor": processor(), "cores": os.cpu_count(), "ranks": 1, "arms side by side": jobs},
        "date": datetime.now(timezone.utc).date().isoformat(),
        "git_commit": made_by["git_commit"],
        "versions": made_by["versions"],
        "seconds_of_the_last_start": round(seconds),
        "experiment": experiment.read_text(encoding="utf-8"),
        "run": (experiment.parent / base_of(experiment)).read_text(encoding="utf-8"),
        **json.loads((folder / "report.json").read_text(encoding="utf-8")),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recordings", type=Path)
    parser.add_argument("--work", type=Path, default=Path("real_speech"), help="the folder of all that is made")
    parser.add_argument("--jobs", type=int, default=2, help="arms side by side")
    parser.add_argument("--experiment", choices=EXPERIMENTS, default=EXPERIMENTS[0], help="a YAML of benchmarks/experiments")
    parser.add_argument("--texts", type=Path, help="for all but real_speech: a folder with en.txt, the sentences to speak")
    parser.add_argument("--fortunes", type=Path, help="in place of --texts: a folder of fortunes")
    parser.add_argument("--output", type=Path, help="the record; by default benchmarks/results/EXPERIMENT.json")
    arguments = parser.parse_args()
    if arguments.experiment in ALIGNED and (arguments.texts is None) == (arguments.fortunes is None):
        parser.error(f"--experiment {arguments.experiment} needs either --texts or --fortunes")
    experiment = REPOSITORY / f"benchmarks/experiments/{arguments.experiment}.yaml"
    folder = arguments.work / read_experiment(experiment).output
    output = arguments.output or REPOSITORY / f"benchmarks/results/{arguments.experiment}.json"
    arguments.work.mkdir(parents=True, exist_ok=True)
    prepare(arguments.work, arguments.recordings)
    if arguments.experiment in ALIGNED:
        if arguments.fortunes is not None:
            write_fortunes(arguments.fortunes, arguments.work / "cookies/en.txt")
        prepare_open(arguments.work, arguments.texts or arguments.work / "cookies")
    else:
        prepare_commands(arguments.work)
    if arguments.experiment in REPLAYED:
        prepare_replay(arguments.work)
    archive = output.with_name(f"{output.stem}_runs.tar.xz")
    if archive.exists():
        bring_runs(archive, folder, [trial.run_dir.name for trial in read_experiment(experiment).trials])
    began = time.monotonic()
    command = [sys.executable, "-m", "kappaspeech", "compare", str(experiment), "--jobs", str(arguments.jobs)]
    done = subprocess.run(command, cwd=arguments.work, env=environment(), check=False)
    if done.returncode:
        raise SystemExit(done.returncode)
    record = describe(folder, experiment, jobs=arguments.jobs, seconds=time.monotonic() - began)
    keep_runs(folder, archive)
    write_json(output, record)
    print(output)


if __name__ == "__main__":
    main()
