"""First contact with a GPU: everything that is to be learnt of one, by one command, every number kept.

    python benchmarks/gpu.py [--sections device parity …] [--shape 8b|1b|tiny] [--minutes 9] [--models QUICKSTART]
        [--output benchmarks/results/gpu]

Sections, most valuable first: device (versions, doctor, matrix products, copies), parity (the engine against plain PyTorch),
training (speed, utilisation, memory), scan (a checkpoint of the shape's size), resume (a run killed and resumed, saves,
decoding), and real, where `--models` names a quickstart's output folder. Each section has its share of `--minutes`, and what
others leave. Each of its cases runs in a process of its own with a limit of time; `--output` gets a JSON a section, written anew
with each number that a case has found, and summary.md with each case. A failure is written down and ends nothing else.

On a machine without CUDA this runs on the CPU at `--shape tiny`: a rehearsal, as every record then says.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gpu_sections.cases import REPOSITORY, Case, Context, Differs, Report, fast_scratch
from machine import processor

from kappaspeech.artefacts import write_json, write_text
from kappaspeech.package_versions import find_version

# section: its module, its share of the time, and the bytes that its scratch takes at most
SECTIONS = {
    "device": ("device", 35, 0),
    "parity": ("parity", 85, 1 << 26),
    "training": ("training", 200, 0),
    "scan": ("scanning", 80, 17 << 30),
    "resume": ("resuming", 130, 40 << 30),
    "real": ("real", 120, 1 << 30),
}
PACKAGES = (
    "torch",
    "triton",
    "deepspeed",
    "transformers",
    "accelerate",
    "peft",
    "numpy",
    "scipy",
    "safetensors",
    "openai-whisper",
)
REHEARSAL = "on a CPU at the tiny shape: it shows that the command works, and its numbers say nothing"
# a case isn't begun with less than this
_LEAST_SECONDS = 8.0
_ENDING_SECONDS = 8.0
_GLANCE_SECONDS = 1.0
_TAIL = 3000


@dataclass(frozen=True)
class Options:
    """Options of the command."""

    sections: tuple[str, ...]
    shape: str
    minutes: float
    output: Path
    models: Path | None
    device: str


class Section:
    """A section's record, written whenever it has changed."""

    def __init__(self, name: str, options: Options) -> None:
        self.name = name
        self._path = options.output / f"{name}.json"
        self._began = time.monotonic()
        self.record: dict[str, Any] = {
            "schema_version": 1,
            "section": name,
            "status": "running",
            "command": describe_command(options),
            "shape": options.shape,
            "device": torch.cuda.get_device_name() if options.device == "cuda" else processor(),
            "rehearsal": REHEARSAL if options.device == "cpu" else None,
            "machine": {"cores": os.cpu_count(), "load_average": os.getloadavg()[0], "python": platform.python_version()},
            "versions": find_versions(),
            "cases": [],
        }
        self._write()

    def add(self, name: str, seconds: float, facts: dict[str, Any]) -> None:
        """Keep what a case has found; what was kept of the same case so far makes way for it."""
        cases = [case for case in self.record["cases"] if case["name"] != name]
        self.record["cases"] = [*cases, {"name": name, "seconds": round(seconds, 2), **without_places(facts)}]
        self._write()

    def end(self, *, error: str | None = None) -> None:
        states = [case["status"] for case in self.record["cases"]]
        good = states.count("ok")
        self.record["status"] = "ok" if good == len(states) and not error else "partly" if good else "failed"
        if error:
            self.record |= without_places({"error": error})
        self._write()

    def _write(self) -> None:
        self.record["seconds"] = round(time.monotonic() - self._began, 2)
        write_json(self._path, self.record)


def without_places(facts: dict[str, Any]) -> dict[str, Any]:
    """`text` with names for the places of the repository and of the user's home, which a record needn't tell."""
    text = json.dumps(facts)
    for place, name in ((REPOSITORY, "REPOSITORY"), (Path.home(), "~")):
        # a home may be the root of all
        text = text.replace(f"{place}/", f"{name}/") if len(place.parts) > 1 else text
    renamed: dict[str, Any] = json.loads(text)
    return renamed


def find_versions() -> dict[str, str | None]:
    return {**{package: find_version(package) for package in PACKAGES}, "torch": torch.__version__, "cuda": torch.version.cuda}


def describe_command(options: Options) -> str:
    words = ["python benchmarks/gpu.py", f"--shape {options.shape}", f"--minutes {options.minutes:g}"]
    words.append(f"--sections {' '.join(options.sections)}")
    return " ".join(words + ["--models QUICKSTART"] * (options.models is not None))


def run_sections(options: Options) -> list[dict[str, Any]]:
    """Run all sections in their order; return the record of each."""
    ends = time.monotonic() + 60 * options.minutes - _ENDING_SECONDS
    records = []
    for index, name in enumerate(options.sections):
        waiting = sum(SECTIONS[other][1] for other in options.sections[index:])
        left = ends - time.monotonic()
        section = Section(name, options)
        try:
            # a rehearsal, on a machine that may do other things too, is held to the whole alone
            share = SECTIONS[name][1] / waiting if options.device == "cuda" else 1.0
            run_section(section, options, ends=time.monotonic() + left * share, before=records)
            section.end()
        except Exception:  # noqa: BLE001 - it is written down, and the other sections run
            section.end(error=traceback.format_exc()[-_TAIL:])
            print(f"{name}: {section.record['error']}", flush=True)
        records.append(section.record)
        write_summary(options, records)
    return records


def write_summary(options: Options, records: list[dict[str, Any]]) -> None:
    write_text(options.output / "summary.md", summarise(records))


def run_section(section: Section, options: Options, *, ends: float, before: list[dict[str, Any]]) -> None:
    """Run a section's cases. The summary shows those that are done, after the records of the sections `before`."""
    module, _, needed = SECTIONS[section.name]
    with tempfile.TemporaryDirectory(dir=fast_scratch(needed), prefix=f"{section.name}-", ignore_cleanup_errors=True) as folder:
        context = Context(options.shape, torch.device(options.device), Path(folder), ends - time.monotonic(), options.models)
        for case in importlib.import_module(f"gpu_sections.{module}").cases(context):
            left = min(case.seconds, ends - time.monotonic())
            if options.device == "cpu":
                left = ends - time.monotonic()
            began = time.monotonic()
            if left < _LEAST_SECONDS:
                facts = {"status": "left out", "error": f"{max(left, 0):.0f} s of its section's time were left"}
            else:
                keep = partial(keep_so_far, section, case.name, began)
                facts = run_case(section.name, case, options, Path(folder), left, keep=keep)
            section.add(case.name, time.monotonic() - began, facts)
            write_summary(options, [*before, section.record])
            print(line_of(section.name, section.record["cases"][-1]), flush=True)


def keep_so_far(section: Section, name: str, began: float, facts: dict[str, Any]) -> None:
    section.add(name, time.monotonic() - began, facts)


def run_case(
    section: str, case: Case, options: Options, scratch: Path, seconds: float, *, keep: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Run a case in a process of its own; return what it has written down, whatever became of it. `keep` is given what it has
    written so far, for this process may be ended too."""
    report = scratch / f".report-{case.name.replace(' ', '-').replace(',', '')}.json"
    words = [sys.executable, __file__, "--one", section, case.name, str(scratch), str(report), str(seconds)]
    words += ["--shape", options.shape, "--device", options.device]
    words += ["--models", str(options.models)] if options.models else []
    log = report.with_suffix(".log")
    with log.open("wb") as said:
        # in a session of its own, so that what it has started ends with it
        process = subprocess.Popen(words, env=environment(options), stdout=said, stderr=said, start_new_session=True)
        try:
            code = await_case(process, report, time.monotonic() + seconds, keep=keep)
        finally:
            end_all(process)
    facts: dict[str, Any] = json.loads(report.read_text(encoding="utf-8")) if report.exists() else {"status": "running"}
    if facts["status"] == "running":
        tail = log.read_text(encoding="utf-8", errors="replace")[-_TAIL:]
        how = f"stopped at its limit of {seconds:.0f} s" if code is None else f"ended with {code} and without a word of its own"
        facts = {**facts, "status": "stopped" if code is None else "failed", "error": f"{how}; the last that it said:\n{tail}"}
    return facts


def await_case(
    process: subprocess.Popen[bytes], report: Path, ends: float, *, keep: Callable[[dict[str, Any]], None]
) -> int | None:
    """The exit code of a case; None if it hasn't ended by then."""
    kept = b""
    while (left := ends - time.monotonic()) > 0:
        try:
            return process.wait(timeout=min(left, _GLANCE_SECONDS))
        except subprocess.TimeoutExpired:
            written = report.read_bytes() if report.exists() else b""
            if written != kept:
                keep(json.loads(written))
                kept = written
    return None


def end_all(process: subprocess.Popen[bytes]) -> None:
    """End a case and all that it has started, and wait until its memory on the GPU is free."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        if process.poll() is None:
            try:
                process.wait(timeout=3)
            except subprocess.TimeoutExpired:
                continue
    process.wait()


def environment(options: Options) -> dict[str, str]:
    """This process's environment, with the repository on the path, which needn't be installed, and no network but this host."""
    paths = [str(REPOSITORY / "pipeline"), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    for name, value in (("NCCL_SOCKET_IFNAME", "lo"), ("GLOO_SOCKET_IFNAME", "lo")):
        variables.setdefault(name, value)
    variables.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    if options.device == "cpu":
        variables |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    return variables


def run_one(words: argparse.Namespace) -> None:
    """Be the process of one case."""
    section, name, scratch, path, seconds = words.one
    # at its limit a case still ends what it has put into sessions of their own
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    report = Report(Path(path))
    report.add()
    context = Context(words.shape, torch.device(words.device), Path(scratch), float(seconds), words.models)
    try:
        named = {case.name: case for case in importlib.import_module(f"gpu_sections.{SECTIONS[section][0]}").cases(context)}
        named[name].run(context, report)
        report.add(status="ok")
    except Differs as difference:
        report.add(status="differs", error=str(difference))
    except Exception:  # noqa: BLE001 - it is what this case has to say
        report.add(status="failed", error=traceback.format_exc()[-_TAIL:])
    # nothing that a library does at its end may undo what is written
    sys.stdout.flush()
    os._exit(0)


def summarise(records: list[dict[str, Any]]) -> str:
    """A page for people."""
    first = records[0]
    lines = [f"# {first['device']}, shape {first['shape']}", "", f"`{first['command']}`", ""]
    if first["rehearsal"]:
        lines += [f"A rehearsal {first['rehearsal']}.", ""]
    lines += [", ".join(f"{name} {number}" for name, number in first["versions"].items() if number), ""]
    lines += ["| section | case | status | seconds | what was found |", "|---|---|---|---|---|"]
    for record in records:
        if "error" in record:
            lines.append(f"| {record['section']} | | {record['status']} | | {record['error'].strip().splitlines()[-1][:300]} |")
        for case in record["cases"]:
            wrong = [] if case["status"] == "ok" else case.get("error", "").strip().splitlines()[-1:]
            text = "; ".join(filter(None, [case.get("line"), *wrong])).replace("|", "\\|")
            lines.append(f"| {record['section']} | {case['name']} | {case['status']} | {case['seconds']:.0f} | {text[:400]} |")
    return "\n".join(lines) + "\n"


def line_of(section: str, case: dict[str, Any]) -> str:
    said = case.get("line", "")
    if case["status"] != "ok":
        said = "\n    ".join([said, *case.get("error", "").strip().splitlines()[-4:]])
    return f"{section}: {case['name']}: {case['status']} ({case['seconds']:.0f} s) {said}"


def read_options(words: argparse.Namespace) -> Options:
    """A machine without CUDA rehearses at the tiny shape, whatever was asked for."""
    shape = words.shape if words.device == "cuda" else "tiny"
    if words.device != "cuda" and words.shape not in (None, "tiny"):
        print(f"without CUDA the shape {words.shape} can't be run: this is a rehearsal at the tiny one", flush=True)
    sections = tuple(name for name in SECTIONS if name in words.sections and (name != "real" or words.models is not None))
    models = words.models.resolve() if words.models else None
    return Options(sections, shape or "8b", words.minutes, words.output, models, words.device)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", nargs="+", choices=tuple(SECTIONS), default=tuple(SECTIONS))
    parser.add_argument("--shape", choices=("8b", "1b", "tiny"), help="default: 8b, and tiny on a CPU")
    parser.add_argument("--minutes", type=float, default=9.0, help="for all sections together")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "benchmarks/results/gpu")
    parser.add_argument("--models", type=Path, help="a quickstart's output folder, for the section real")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--one", nargs=5, help=argparse.SUPPRESS)
    words = parser.parse_args()
    # the sections share models and cases with the tests, which no installation has
    sys.path.append(str(REPOSITORY))
    if words.one:
        run_one(words)
    options = read_options(words)
    if not options.sections:
        parser.error("the section real wants --models with a quickstart's output folder")
    options.output.mkdir(parents=True, exist_ok=True)
    records = run_sections(options)
    print((options.output / "summary.md").read_text(encoding="utf-8"))
    return 0 if all(record["status"] == "ok" for record in records) else 1


if __name__ == "__main__":
    sys.exit(main())
