"""The speech stream beside plain webdataset: seconds and CPU-seconds, padding, balance, memory and planning.

    python benchmarks/stream.py --shards 'PATH/TO/shards/train/*.tar' [--parts bytes …] [--repeats 3]
        [--output benchmarks/results/stream.json]

The shards are what `kappaspeech pack` made. `--parts` takes some of the parts alone, and replaces those of a record of the same
shards. Each reading is a process of its own on one thread, and repeats take turns, so that a slow minute of the machine meets
every method alike; medians are reported, children's CPU-seconds (curl, ffmpeg) included. Over HTTP a server on loopback runs in
this process, and its cost is nobody's; "20 ms away" it answers each request after that time, as a bucket may. webdataset reads in
its usual way: shards in sequence, over HTTP through curl, with a shuffle buffer; audio by soundfile as here, or by
`whisper.load_audio` (ffmpeg), as whisper's users do. This project reads in its own order, that of training, and with training's
reading ahead: samples drawn from all shards. Its time includes that indices are read and compared with the shards.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from machine import processor

from kappaspeech.artefacts import write_json
from kappaspeech.blas import pin_threads

if TYPE_CHECKING:
    from tests.web import FaultyServer

NUM_MELS = 80
# level of reading → epochs
EPOCHS = {"bytes": 3, "waveform": 1, "features": 1}
PARTS = (*EPOCHS, "planning", "memory")
LATENCY_SECONDS = 0.02
# as in training, by default
STEPS_AHEAD = 2
PRELOADED = ["torch", "webdataset", "whisper.audio", "soundfile", "soxr", "aiohttp", "fsspec.implementations.http"]
PRELOADED += [f"kappaspeech.speech.{name}" for name in ("corpus", "loading", "remote", "block_cache", "schedule")]
MAX_SAMPLES, MAX_SECONDS, MICRO_BATCHES = 16, 120.0, 16


# ---- readings, each in a process of its own -----------------------------------------------------------------------------


def read_ours(urls: str, level: str, *, epochs: int, cache: str | None, most_samples: int | None = None) -> Iterator[float]:
    """Audio-seconds of each sample, in training's order."""
    from kappaspeech.speech.corpus import Corpus, SpeechDataset
    from kappaspeech.speech.loading import BadSample, Loader, LoadOptions
    from kappaspeech.speech.read_ahead import ReadAhead
    from kappaspeech.speech.sample_reader import BegunSample, SampleReader, SampleRef
    from kappaspeech.speech.schedule import BatchBudget, Schedule
    from kappaspeech.speech.source import ReadOptions

    class UndecodedReader(SampleReader):
        def read(self, refs: Any, begun: list[BegunSample] | None = None) -> list[Any]:
            return [part for ref, sample in zip(refs, begun or self.begin(refs), strict=True) for part in self.fetch(ref, sample)]

    options = ReadOptions(cache_dir=cache)
    corpus = Corpus(SpeechDataset(urls), options)
    schedule = Schedule([corpus.lengths()], BatchBudget(MAX_SAMPLES, MAX_SECONDS, MICRO_BATCHES), seed=1)
    loader = Loader(LoadOptions(NUM_MELS, 30.0), options)
    ahead = ReadAhead(UndecodedReader(options) if level == "bytes" else SampleReader(options))

    def take_step(step: list[tuple[list[SampleRef], Any]]) -> Iterator[float]:
        for refs, planned in step:
            found: list[Any] = loader.load(refs, planned) if level == "features" else ahead.take(planned)
            for item in found:
                if isinstance(item, (Exception, BadSample)):
                    raise SystemExit(f"a sample can't be read: {item}")
            yield from (ref.entry.seconds for ref in refs)

    left, num_ahead = most_samples or epochs * corpus.num_samples, STEPS_AHEAD
    steps: deque[list[tuple[list[SampleRef], Any]]] = deque()
    for _, plan in schedule.steps(0):
        steps.append([])
        for batch in plan:
            if refs := [corpus.ref(int(sample)) for _, sample in batch[:left]]:
                left -= len(refs)
                steps[-1].append((refs, loader.plan(refs) if level == "features" else ahead.plan(refs)))
        if len(steps) > num_ahead:
            yield from take_step(steps.popleft())
            num_ahead += int((loader if level == "features" else ahead).has_room)
        if not left:
            break
    for step in steps:
        yield from take_step(step)


def read_webdataset(urls: str, level: str, *, decode_by: str, epochs: int) -> Iterator[float]:
    """Read the same shards by plain webdataset."""
    import io

    import soundfile
    import webdataset
    from braceexpand import braceexpand

    from kappaspeech.speech.samples import log_mel

    dataset = webdataset.WebDataset(list(braceexpand(urls)), shardshuffle=100, empty_check=False).shuffle(1000)
    for _ in range(epochs):
        for sample in dataset:
            content = sample["flac"]
            json.loads(sample["json"]) if "json" in sample else sample["txt"].decode()
            if level == "bytes":
                yield soundfile.info(io.BytesIO(content)).duration
                continue
            waveform = soundfile.read(io.BytesIO(content), dtype="float32")[0] if decode_by == "soundfile" else by_ffmpeg(content)
            if level == "features":
                log_mel(waveform, NUM_MELS)
            yield len(waveform) / 16_000


def by_ffmpeg(content: bytes) -> np.ndarray[Any, Any]:
    """A clip by way of a file and a process, which is what `whisper.load_audio` takes."""
    import whisper

    with tempfile.NamedTemporaryFile(suffix=".flac") as file:
        file.write(content)
        file.flush()
        waveform: np.ndarray[Any, Any] = whisper.load_audio(file.name)
        return waveform


def measure_here(request: dict[str, Any]) -> dict[str, Any]:
    """Read as asked in this process: samples and audio-seconds, its CPU-seconds and its children's, wall and memory by epoch."""
    import torch

    from kappaspeech.speech.samples import log_mel

    torch.set_num_threads(1)
    log_mel(np.zeros(16_000, dtype=np.float32) + 0.1, NUM_MELS)
    # what is loaded and opened at first use isn't counted, nor that garbage is looked for among what imports left
    next(start_reading(request, most_samples=1))
    gc.collect()
    gc.freeze()
    samples, num_samples = start_reading(request), int(request["num_samples"])
    before, began, audio_seconds, count, resident = cpu_seconds(), time.monotonic(), 0.0, 0, []
    for seconds in samples:
        audio_seconds += seconds
        count += 1
        if count % num_samples == 0:
            resident.append(resident_megabytes())
    spent = cpu_seconds() - before
    return {
        "samples": count,
        "audio_seconds": audio_seconds,
        "cpu_seconds": spent,
        "wall_seconds": time.monotonic() - began,
        "resident_megabytes_by_epoch": resident,
    }


def start_reading(request: dict[str, Any], *, most_samples: int | None = None) -> Iterator[float]:
    urls, level, epochs = str(request["urls"]), str(request["level"]), int(request["epochs"])
    if request["method"] == "kappaspeech":
        return read_ours(urls, level, epochs=epochs, cache=request.get("cache"), most_samples=most_samples)
    return read_webdataset(urls, level, decode_by=request["decode_by"], epochs=epochs)


def cpu_seconds() -> float:
    """Seconds of a core that this process and its children that have ended took."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def resident_megabytes() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """`measure_here` in a process of its own, forked from one that has loaded the libraries and done nothing else."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=send_measured, args=(sender, request))
    process.start()
    sender.close()
    try:
        result: dict[str, Any] = receiver.recv()
    except EOFError:
        raise SystemExit(f"{request} failed.") from None
    process.join()
    return result


def send_measured(sender: Connection, request: dict[str, Any]) -> None:
    sender.send(measure_here(request))


# ---- what is compared ---------------------------------------------------------------------------------------------------


def compare(
    level: str, local: str, server: FaultyServer, names: str, *, num_samples: int, repeats: int, has_ffmpeg: bool
) -> dict[str, Any]:
    """Every reading of a level, medians over `repeats`, with rates by second and by CPU-second."""
    readings: dict[str, dict[str, Any]] = {}
    remote = f"{server.url}/{names}"
    places = {"local": (local, 0.0), "http": (remote, 0.0), "http 20 ms away": (remote, LATENCY_SECONDS)}
    for place, (urls, latency) in places.items():
        if level == "bytes" or not latency:
            common = {"urls": urls, "level": level, "epochs": EPOCHS[level], "num_samples": num_samples, "latency": latency}
            readings[f"{level}, {place}, kappaspeech"] = {**common, "method": "kappaspeech"}
            readings[f"{level}, {place}, webdataset"] = {**common, "method": "webdataset", "decode_by": "soundfile"}
            if level == "waveform" and has_ffmpeg:
                by = {**common, "method": "webdataset", "decode_by": "ffmpeg"}
                readings[f"{level}, {place}, webdataset by whisper.load_audio"] = by
    cached = {"urls": remote, "level": level, "epochs": EPOCHS[level], "num_samples": num_samples, "method": "kappaspeech"}
    readings[f"{level}, http, kappaspeech, cache filled before"] = {**cached, "cache": f"filled-{level}"}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in readings}
    with tempfile.TemporaryDirectory() as scratch:
        for request in readings.values():
            if "cache" in request:
                request["cache"] = str(Path(scratch) / request["cache"])
                measure(request)
        for _ in range(repeats):
            for name, request in readings.items():
                server.latency_seconds = request.get("latency", 0.0)
                runs[name].append(measure(request))
                last = runs[name][-1]
                by_second, by_cpu = (last["samples"] / last[f"{time}_seconds"] for time in ("wall", "cpu"))
                print(f"  {name}: {by_second:.0f} samples a second, {by_cpu:.0f} a CPU-s", file=sys.stderr, flush=True)
    return {name: summarise(results) for name, results in runs.items()}


def summarise(results: list[dict[str, Any]]) -> dict[str, Any]:
    def median(rate: Callable[[dict[str, Any]], float]) -> float:
        return statistics.median(map(rate, results))

    return {
        "samples": results[0]["samples"],
        "samples_per_second": median(lambda run: run["samples"] / run["wall_seconds"]),
        "samples_per_cpu_second": median(lambda run: run["samples"] / run["cpu_seconds"]),
        "audio_seconds_per_cpu_second": median(lambda run: run["audio_seconds"] / run["cpu_seconds"]),
        "seconds_of_each": [run["wall_seconds"] for run in results],
        "cpu_seconds_of_each": [run["cpu_seconds"] for run in results],
    }


def planning(local: str) -> dict[str, Any]:
    """Padding and balance of the schedule on these shards and on a long-tailed corpus; 10 million samples planned."""
    from kappaspeech.speech.corpus import Corpus, SpeechDataset
    from kappaspeech.speech.schedule import BatchBudget, DatasetLengths, Schedule

    rng = np.random.default_rng(0)
    # as read speech corpora are: a broad hump to 16 s, and a tail of short utterances
    long_tailed = np.clip(
        np.where(rng.random(200_000) < 0.6, rng.normal(13, 2.5, 200_000), rng.gamma(2.5, 2.2, 200_000)), 0.5, 30
    )
    corpora = {"these shards": Corpus(SpeechDataset(local)).lengths().seconds, "200,000 samples of 0.5 to 30 s": long_tailed}
    result: dict[str, Any] = {}
    for name, seconds in corpora.items():
        lengths = DatasetLengths(seconds, np.arange(0, len(seconds), 1000), 1.0)
        schedule = Schedule([lengths], BatchBudget(MAX_SAMPLES, MAX_SECONDS, MICRO_BATCHES), seed=1)
        steps = []
        for _, plan in schedule.steps(0):
            steps.append(plan)
            if sum(len(batch) for step in steps for batch in step) >= len(seconds):
                break
        batches = [seconds[batch[:, 1]] for step in steps for batch in step]
        shuffled = rng.permutation(seconds)
        fixed = [shuffled[start : start + 32] for start in range(0, len(shuffled) - 31, 32)]
        result[name] = {
            "padding": padding(batches),
            "padding_unbucketed_batches_of_32": padding(fixed),
            "padding_to_30_s": 1 - float(seconds.sum()) / (30 * len(seconds)),
            "max_over_mean_cost_of_8_ranks": balance(steps, seconds, 8),
        }
    result["10,000,000 samples"] = plan_ten_million()
    return result


def padding(batches: list[np.ndarray[Any, Any]]) -> float:
    return 1 - sum(float(batch.sum()) for batch in batches) / sum(float(batch.max()) * len(batch) for batch in batches)


def balance(steps: list[list[np.ndarray[Any, Any]]], seconds: np.ndarray[Any, Any], world_size: int) -> float:
    """Padded seconds of the busiest rank over the mean, averaged over full steps: ranks wait for each other in each."""
    ratios = []
    for step in steps:
        if len(step) % world_size:
            continue
        costs = np.array([float(seconds[batch[:, 1]].max()) * len(batch) for batch in step])
        by_rank = [costs[rank::world_size].sum() for rank in range(world_size)]
        ratios.append(max(by_rank) / (sum(by_rank) / world_size))
    return float(np.mean(ratios))


def plan_ten_million() -> dict[str, float]:
    """Start-up of a schedule, deep into training, in a process of its own."""
    program = """
import json, time
import numpy as np
from kappaspeech.speech.schedule import BatchBudget, DatasetLengths, Schedule
def peak_kilobytes():
    # of this program alone: ru_maxrss counts what was there before it started
    return int(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0])
count = 10_000_000
before = peak_kilobytes()
seconds = 1 + 19 * np.random.default_rng(0).random(count, dtype=np.float32)
began = time.perf_counter()
schedule = Schedule([DatasetLengths(seconds, np.arange(0, count, 1000), 1.0)], BatchBudget(16, 120.0, 8), seed=1)
_, plan = next(schedule.steps(900_000, hint=(1_000, 899_983)))
assert len(plan) == 8, "a micro-batch is missing"
print(json.dumps({"seconds_to_start": time.perf_counter() - began,
                  "megabytes": (peak_kilobytes() - before) / 1024}))
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "pipeline")}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", help="a glob of packed local shards")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    # for the processes that are started, before they load anything
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[1] / "pipeline")
    pin_threads(os.environ, 1)
    record = make_record(arguments.shards, arguments.parts, arguments.repeats)
    if arguments.output:
        record = with_earlier_parts(record, arguments.output)
    print(json.dumps(record, indent=1, ensure_ascii=False))
    if arguments.output:
        write_json(arguments.output, record)


def make_record(pattern: str, parts: list[str], repeats: int) -> dict[str, Any]:
    import shutil
    from importlib.metadata import version

    from kappaspeech.speech.shards import expand, read_index
    from tests.web import FaultyServer

    shards = expand(pattern)
    folder = Path(shards[0]).resolve().parent
    num_samples = sum(len(read_index(shard).samples) for shard in shards)
    # a brace list is what a web server's shards are named by
    names = "{" + ",".join(Path(shard).name for shard in shards) + "}"
    local, has_ffmpeg = f"{folder}/{names}", shutil.which("ffmpeg") is not None
    packages = ("webdataset", "soundfile", "numpy", "torch", "openai-whisper", "aiohttp", "fsspec")
    record: dict[str, Any] = {
        "command": name_command(parts, repeats),
        "machine": {"cpu": processor(), "cores": os.cpu_count(), "threads": 1},
        "versions": {package: version(package) for package in packages},
        "ffmpeg": has_ffmpeg,
        "shards": len(shards),
        "samples": num_samples,
        "epochs": EPOCHS,
        "readings": {},
    }
    with FaultyServer(folder) as server:
        for level in [level for level in EPOCHS if level in parts]:
            common = {"num_samples": num_samples, "repeats": repeats, "has_ffmpeg": has_ffmpeg}
            record["readings"] |= compare(level, local, server, names, **common)
    if "planning" in parts:
        record["planning"] = planning(local)
    if "memory" in parts:
        lasting = {"urls": local, "level": "features", "epochs": 20, "num_samples": num_samples, "method": "kappaspeech"}
        memory = measure(lasting)["resident_megabytes_by_epoch"]
        record["resident_megabytes"] = {f"after epoch {epoch}": memory[epoch - 1] for epoch in (1, 2, 5, 10, 20)}
    return record


def name_command(parts: Sequence[str], repeats: int) -> str:
    """The command that measures these parts, in their order whatever they were named in."""
    named = [part for part in PARTS if part in parts]
    chosen = "" if len(named) == len(PARTS) else f" --parts {' '.join(named)}"
    return f"python benchmarks/stream.py --shards '…/*.tar'{chosen} --repeats {repeats}"


def with_earlier_parts(record: dict[str, Any], output: Path) -> dict[str, Any]:
    """The record, and of an earlier one what it doesn't have, if that was measured likewise; by the command for the parts of
    both."""
    earlier = json.loads(output.read_text(encoding="utf-8")) if output.exists() else {}
    about = [key for key in record if key not in ("command", "readings", "planning", "resident_megabytes")]
    repeats = record["command"].rpartition(" --repeats ")[2]
    if any(record[key] != earlier.get(key) for key in about) or earlier["command"].rpartition(" --repeats ")[2] != repeats:
        return record
    whole = {**earlier, **record, "readings": {**earlier["readings"], **record["readings"]}}
    return {**whole, "command": name_command(parts_of(whole), int(repeats))}


def parts_of(record: dict[str, Any]) -> list[str]:
    """The parts that a record holds."""
    kept = {"planning": "planning" in record, "memory": "resident_megabytes" in record}
    return [part for part in PARTS if kept.get(part) or any(name.startswith(part) for name in record["readings"])]


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main()
