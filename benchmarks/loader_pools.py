"""The loader's worker processes beside concurrent.futures' doing the same work, in one run.

    python benchmarks/loader_pools.py --shards 'PATH/TO/shards/train/*.tar' [--workers 1 2] [--repeats 3] [--output …]

Both load the same micro-batches into log-mels in the same number of spawned processes, three for each worker begun ahead, as a
training has them; and answer calls that do nothing, which shows what a call itself takes. Each reading is a process of its own,
the two take turns, and medians are reported. What happens before the first batch isn't counted.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from machine import processor

from kappaspeech.blas import pin_threads

METHODS = ("kappaspeech", "concurrent.futures")
MAX_SAMPLES, MAX_SECONDS, MICRO_BATCHES, NUM_MELS = 16, 120.0, 16, 80
BATCHES_AHEAD, NUM_CALLS, EPOCHS = 3, 5000, 2


def nothing(_item: Any) -> int:
    return 0


def prepare_nothing() -> None:
    pass


def micro_batches(urls: str) -> Iterator[Sequence[Any]]:
    """The samples of each micro-batch, in training's order."""
    from kappaspeech.speech.corpus import Corpus, SpeechDataset
    from kappaspeech.speech.schedule import BatchBudget, Schedule
    from kappaspeech.speech.source import ReadOptions

    corpus = Corpus(SpeechDataset(urls), ReadOptions())
    schedule = Schedule([corpus.lengths()], BatchBudget(MAX_SAMPLES, MAX_SECONDS, MICRO_BATCHES), seed=1)
    left = EPOCHS * corpus.num_samples
    for _, plan in schedule.steps(0):
        for batch in plan:
            refs = [corpus.ref(int(sample)) for _, sample in batch[:left]]
            left -= len(refs)
            if refs:
                yield refs
        if not left:
            return


def start_pool(
    method: str, num_workers: int, work: Callable[[Any], Any], prepare: Callable[..., None], arguments: tuple[Any, ...]
) -> Callable[[Any], Future[Any]]:
    """Start a pool of so many processes; return the function that submits an item to it."""
    if method == "kappaspeech":
        from kappaspeech.speech.worker_pool import WorkerPool

        return WorkerPool(work, num_workers=num_workers, prepare=prepare, arguments=arguments).submit
    executor = ProcessPoolExecutor(num_workers, mp_context=get_context("spawn"), initializer=prepare, initargs=arguments)
    return lambda item: executor.submit(work, item)


def rate(submit: Callable[[Any], Future[Any]], items: Sequence[Any], *, num_workers: int, size: Callable[[Any], int]) -> float:
    """Units of work a second, from when every worker has begun."""
    for started in [submit(items[0]) for _ in range(2 * num_workers)]:
        started.result()
    began, waiting = time.perf_counter(), deque[Future[Any]]()
    for item in items:
        if len(waiting) == BATCHES_AHEAD * num_workers:
            waiting.popleft().result()
        waiting.append(submit(item))
    for future in waiting:
        future.result()
    return sum(map(size, items)) / (time.perf_counter() - began)


def measure_here(request: dict[str, Any]) -> dict[str, float]:
    from kappaspeech.speech import loader_pool
    from kappaspeech.speech.loading import LoadOptions
    from kappaspeech.speech.source import ReadOptions

    method, num_workers = request["method"], int(request["workers"])
    calls = start_pool(method, num_workers, nothing, prepare_nothing, ())
    found = {"calls_per_second": rate(calls, range(NUM_CALLS), num_workers=num_workers, size=lambda _: 1)}
    arguments = (os.getpid(), LoadOptions(NUM_MELS, 30.0), ReadOptions())
    loads = start_pool(method, num_workers, loader_pool._load_in_worker, loader_pool._start_worker, arguments)
    batches = list(micro_batches(request["urls"]))
    return {**found, "samples_per_second": rate(loads, batches, num_workers=num_workers, size=len)}


def measure(request: dict[str, Any]) -> dict[str, float]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1] / "pipeline"), *sys.path[:1]])}
    pin_threads(environment, 1)
    command = [sys.executable, __file__, "--one", json.dumps(request)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{request} failed:\n{done.stderr[-2000:]}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", help="a glob of packed local shards")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure_here(json.loads(arguments.one))))
        # concurrent.futures' end would wait for its processes
        sys.stdout.flush()
        os._exit(0)
    readings: dict[str, Any] = {}
    for workers in arguments.workers:
        runs: dict[str, list[dict[str, float]]] = {method: [] for method in METHODS}
        for _ in range(arguments.repeats):
            for method in METHODS:
                runs[method].append(measure({"method": method, "workers": workers, "urls": arguments.shards}))
        for method, found in runs.items():
            readings[f"{method}, {workers} workers"] = {key: statistics.median(run[key] for run in found) for key in found[0]}
    record = {
        "command": f"python benchmarks/loader_pools.py --shards '…/*.tar' --repeats {arguments.repeats}",
        "machine": {"cpu": processor(), "cores": os.cpu_count(), "threads": 1},
        "readings": readings,
    }
    text = json.dumps(record, indent=1, ensure_ascii=False)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
