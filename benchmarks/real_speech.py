"""The paper's comparison on real speech, at the size that two cores can train: SmolLM2-135M-Instruct and Whisper base.

    python benchmarks/real_speech.py RECORDINGS [--experiment real_speech] [--work real_speech]
    python benchmarks/real_speech.py RECORDINGS --experiment unseen|figure1 --texts TEXTS [--send PIECES]
    python benchmarks/real_speech.py --received PIECES --experiment unseen|figure1 [--jobs 4] [--minutes 9]

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
command begins with those of its runs that compare with what this machine trains (run_archive.py), so that an experiment may be
trained on one machine after another.

For a host without a network, with a GPU or without, `--send PIECES` prepares everything, packs what the trials read into pieces
of at most `--limit-mib`, and trains nothing. There, `--received PIECES` stands for RECORDINGS. After `--minutes` the trials are
stopped, each with a checkpoint, and the record is of those that have finished.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
import yaml
from machine import processor
from pieces import files_of, read_pieces, write_pieces
from run_archive import Here, bring_runs, find_finished, keep_runs

from kappaspeech.artefacts import write_json
from kappaspeech.comparison.experiment import Experiment, read_experiment
from kappaspeech.demo.open_speech import read_sentences
from kappaspeech.errors import KappaSpeechError
from kappaspeech.model.family import read_widths
from kappaspeech.model.precision import choose_dtype, like_model, measure_rates
from kappaspeech.runs.checkpoints import OPTIMIZER_FILE, list_checkpoints
from kappaspeech.runs.first_adaptor import read_first_adaptor
from kappaspeech.runs.folder import describe_software
from kappaspeech.signals import Handling
from kappaspeech.speech.layouts import find_recordings
from kappaspeech.speech.shards import expand

REPOSITORY = Path(__file__).parents[1]
EXPERIMENTS = ("real_speech", "unseen", "figure1", "figure1_baselines", "figure1_types", "figure1_held")
ALIGNED = EXPERIMENTS[1:]
MIB = 1 << 20
REPLAYED = ("figure1_baselines", "figure1_held")
# texts a language in each of their folders
REPLAY_FOLDERS = {"replay": 60, "replay_many": 400}
# a quarter of an hour of the recordings: figure1_run.yaml takes two such shards
SHARD_SIZE = "333"
OPEN_HOURS = "5"
LLM = "models/smollm2-135m-instruct"
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


def prepare_all(arguments: argparse.Namespace) -> None:
    """All that the trials of the experiment read, in the folder of `--work`."""
    prepare(arguments.work, arguments.recordings)
    if arguments.experiment in ALIGNED:
        if arguments.fortunes is not None:
            write_fortunes(arguments.fortunes, arguments.work / "cookies/en.txt")
        prepare_open(arguments.work, arguments.texts or arguments.work / "cookies")
    else:
        prepare_commands(arguments.work)
    if arguments.experiment in REPLAYED:
        prepare_replay(arguments.work)


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
    device = {} if torch.cuda.is_available() else {"DS_ACCELERATOR": "cpu"}
    paths = [str(REPOSITORY / "pipeline"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", **device}


def find_read(work: Path, experiment: Experiment) -> list[Path]:
    """The files in `work`, from there on, that the trials of a prepared experiment read."""
    base = experiment.base
    sets = [*base.data.train, *base.data.test]
    shards = [Path(shard) for part in sets for shard in expand(str(work / part.shards))]
    paths = [Path(base.model.llm), Path(base.model.encoder), *map(Path, base.data.text.values())]
    paths += [path.relative_to(work) for shard in shards for path in shard.parent.glob(f"{shard.name}*")]
    texts = [held.texts for arm in experiment.config.arms for held in (arm.replay, arm.ewc) if held is not None]
    paths += [Path(path) for group in texts for path in group.values()]
    if experiment.config.ranking is not None:
        paths.append(Path(experiment.config.ranking))
    if base.model.adaptor.initial is not None:
        run_dir = Path(base.model.adaptor.initial)
        checkpoint = list_checkpoints(work / run_dir / "checkpoints")[-1].relative_to(work)
        paths += [*(path.relative_to(work) for path in (work / run_dir).glob("*.json")), checkpoint]
    return files_of(work, paths, without=(OPTIMIZER_FILE,))


def train(work: Path, experiment: Path, *, jobs: int, minutes: float | None) -> int:
    """Train the trials in `work` and report on those that have finished; exit if none has.

    Return 0 if none failed, else what `kappaspeech compare` did: 75 if the same command continues them. Trials that the time
    stops don't count as failed. Signals go on to them, and this waits for their checkpoints.
    """
    command = [sys.executable, "-m", "kappaspeech", "compare", str(experiment)]
    # in a session of its own a terminal's Ctrl-C reaches it through this process alone, once
    trained = subprocess.Popen([*command, "--jobs", str(jobs)], cwd=work, env=environment(), start_new_session=True)
    with Handling(lambda number, _frame: trained.send_signal(number)):
        try:
            code = trained.wait(None if minutes is None else 60 * minutes)
            is_over = False
        except subprocess.TimeoutExpired:
            print(f"{minutes:g} minutes are over: the trials are stopped", flush=True)
            trained.terminate()
            code, is_over = trained.wait(), True
    if code == 0:
        return 0
    report = work / read_experiment(experiment).output / "report.json"
    report.unlink(missing_ok=True)
    subprocess.run([*command, "--report-only"], cwd=work, env=environment(), check=False)
    if not report.exists():
        raise SystemExit(code)
    return 0 if is_over else code


def look_around(work: Path, experiment: Experiment) -> Here:
    """The facts of this machine that decide which finished runs compare with those that it trains."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    initial = experiment.base.model.adaptor.initial
    digest = None if initial is None else read_first_adaptor(work / initial).origin.digest
    rates = measure_rates(device, like_model(*read_widths(str(work / experiment.base.model.llm)), device))
    return Here(describe_software(), choose_dtype(rates, device.type).dtype, digest)


def base_of(experiment: Path) -> str:
    """The name of the run's YAML that an experiment repeats."""
    return str(yaml.safe_load(experiment.read_text(encoding="utf-8"))["base"])


def describe(folder: Path, experiment: Path, *, jobs: int, seconds: float, received: bool = False) -> dict[str, Any]:
    """The record of a comparison that has ended; `received` if its inputs came in pieces."""
    made_by = json.loads((find_finished(folder)[0] / "run.json").read_text(encoding="utf-8"))
    source = "--received PIECES" if received else "RECORDINGS"
    spoken = " --texts TEXTS" if experiment.stem in ALIGNED and not received else ""
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {
        "command": f"python benchmarks/real_speech.py {source} --experiment {experiment.stem}{spoken} --jobs {jobs}",
        "machine": {"processor": processor(), "cores": os.cpu_count(), **gpu, "ranks": 1, "arms side by side": jobs},
        "date": datetime.now(timezone.utc).date().isoformat(),
        "git_commit": made_by["git_commit"],
        "versions": made_by["versions"],
        "seconds_of_the_last_start": round(seconds),
        "experiment": experiment.read_text(encoding="utf-8"),
        "run": (experiment.parent / base_of(experiment)).read_text(encoding="utf-8"),
        **json.loads((folder / "report.json").read_text(encoding="utf-8")),
    }


def main() -> None:
    arguments = parse_arguments()
    work: Path = arguments.work
    path = REPOSITORY / f"benchmarks/experiments/{arguments.experiment}.yaml"
    experiment = read_experiment(path)
    work.mkdir(parents=True, exist_ok=True)
    if arguments.received is not None:
        read_pieces(arguments.received, work)
        link(work / "ds_configs", REPOSITORY / "ds_configs")
    else:
        prepare_all(arguments)
    if arguments.send is not None:
        for piece in write_pieces(work, find_read(work, experiment), arguments.send, limit_bytes=arguments.limit_mib * MIB):
            print(f"{piece} {piece.stat().st_size / MIB:.1f} MiB")
        return
    folder = work / experiment.output
    output = arguments.output or REPOSITORY / f"benchmarks/results/{arguments.experiment}.json"
    archive = output.with_name(f"{output.stem}_runs.tar.xz")
    if archive.exists():
        trials = [trial.run_dir.name for trial in experiment.trials]
        brought = bring_runs(archive, folder, trials, look_around(work, experiment))
        print(f"{len(brought)} finished runs from {archive}", flush=True)
    began = time.monotonic()
    code = train(work, path, jobs=arguments.jobs, minutes=arguments.minutes)
    seconds, received = time.monotonic() - began, arguments.received is not None
    record = describe(folder, path, jobs=arguments.jobs, seconds=seconds, received=received)
    keep_runs(folder, archive)
    write_json(output, record)
    print(output)
    if code:
        raise SystemExit(code)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recordings", type=Path, nargs="?")
    parser.add_argument("--received", type=Path, metavar="PIECES", help="in place of RECORDINGS: a folder of pieces")
    parser.add_argument("--send", type=Path, metavar="PIECES", help="prepare and write pieces into this folder; train nothing")
    parser.add_argument("--limit-mib", type=int, default=60, help="the largest piece")
    parser.add_argument("--work", type=Path, default=Path("real_speech"), help="the folder of all that is made")
    parser.add_argument("--jobs", type=int, default=2, help="arms side by side")
    parser.add_argument("--minutes", type=float, help="stop the trials after that; by default they end by themselves")
    parser.add_argument("--experiment", choices=EXPERIMENTS, default=EXPERIMENTS[0], help="a YAML of benchmarks/experiments")
    parser.add_argument("--texts", type=Path, help="for all but real_speech: a folder with en.txt, the sentences to speak")
    parser.add_argument("--fortunes", type=Path, help="in place of --texts: a folder of fortunes")
    parser.add_argument("--output", type=Path, help="the record; by default benchmarks/results/EXPERIMENT.json")
    arguments = parser.parse_args()
    if (arguments.recordings is None) == (arguments.received is None):
        parser.error("give either RECORDINGS or --received PIECES")
    if arguments.limit_mib < 1 or arguments.jobs < 1:
        parser.error("--limit-mib and --jobs are at least 1")
    if arguments.minutes is not None and not 0 < arguments.minutes < float("inf"):
        parser.error("--minutes is above 0")
    if arguments.received is not None and (arguments.texts or arguments.fortunes or arguments.send):
        parser.error("--received has all that the trials read: leave --texts, --fortunes and --send out")
    wants_texts = arguments.experiment in ALIGNED and arguments.received is None
    if wants_texts and (arguments.texts is None) == (arguments.fortunes is None):
        parser.error(f"--experiment {arguments.experiment} needs either --texts or --fortunes")
    return arguments


if __name__ == "__main__":
    try:
        main()
    except KappaSpeechError as fault:
        raise SystemExit(f"error: {fault}") from fault
