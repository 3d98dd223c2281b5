"""Training beside its peers: audio-seconds trained a second, at equal samples, targets, rates and cores, each in its own process.

    python benchmarks/train.py --llm SMOLLM2 --encoder WHISPER.pt --selection SELECTION.json --speech SPEECH [--ways]
    python benchmarks/train.py --device cuda [--shape llama-3.1-8b]

`kappaspeech` is this project's stream and engine under ZeRO-3; `padded` is the way most peers train, written fairly in plain
PyTorch: input padded to 30 s, batches of fixed size, logits at all positions; `trainer_zero3` is transformers' Trainer with
DeepSpeed ZeRO-3 on our model. A first step warms up and isn't counted. Repeats take turns; medians are reported. On a machine
that others use at the time, compare by processor seconds: wall time is then mostly theirs.

`--ways` measures this project's own ways in place of its peers, by the quickstart's recipe: clips padded to the longest of their
micro-batch, and encoded; packed in one row of the LLM, and encoded; and packed, with the encoder's states kept from an earlier
epoch. All three train on the same clips in the same steps.

`--device cuda` trains a model of random weights in one process on made-up audio, and reports tokens a second, peak memory and the
model FLOPs utilisation over the measured rate of matrix products; `--device cpu --shape tiny` is its rehearsal.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from machine import processor
from train_ours import ACCUMULATE, MICRO_BATCH, OPTIMIZER, STEP_SIZE, WAYS, Way, assemble_way, read_recipe, run_ours
from train_peers import Step, run_padded, run_trainer
from train_shapes import SHAPES, train_shape

from kappaspeech.allocator import keep_freed_memory
from kappaspeech.artefacts import write_json
from kappaspeech.config.model_config import ModelConfig
from kappaspeech.config.run_config import RunConfig
from kappaspeech.model.arithmetic import Arithmetic
from kappaspeech.model.precision import measure_rates
from kappaspeech.ranks.start import start_training_cluster
from kappaspeech.speech.layouts import Recording, find_recordings
from kappaspeech.speech.samples import SAMPLE_RATE_HZ, read_recording
from kappaspeech.training.assembly import Assembly, assemble

RATES = ("audio_seconds_per_second", "audio_seconds_per_cpu_second")
METHODS = ("kappaspeech", "padded", "trainer_zero3")
PACKAGES = ("torch", "deepspeed", "transformers", "openai-whisper", "accelerate")


def read_clips(speech: Path, count: int) -> list[Recording]:
    """`STEP_SIZE` clips to warm up on and `count` to be measured on, drawn once."""
    clips = sorted(find_recordings(speech), key=lambda clip: clip.key)
    return random.Random(0).sample(clips, STEP_SIZE + count)


def arithmetic() -> Arithmetic:
    """bfloat16, as the peers are run in, with what goes with it here; the encoder as every one of them has it."""
    return Arithmetic.of("bfloat16", measure_rates(torch.device("cpu")), encoder_dtype="float32")


def make_assembly(arguments: argparse.Namespace) -> Assembly:
    content = {
        "run_dir": "unused",
        "model": ModelConfig(llm=str(arguments.llm), encoder=str(arguments.encoder)).model_dump(),
        "unfreeze": {"selection": str(arguments.selection)},
        "data": {"train": [{"shards": "unused"}]},
        "training": {"num_steps": 1},
    }
    return assemble(RunConfig.model_validate(content), arithmetic())


class Meter:
    """Counts what comes after the first step: wall and processor seconds, and the loss."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self._began: tuple[float, float] | None = None

    def add(self, step: Step) -> None:
        if self._began is None:
            self._first_loss = step.loss_sum_nats / step.num_target_tokens
            self._began = time.monotonic(), cpu_seconds()
            return
        self.steps.append(step)
        self._ended = time.monotonic(), cpu_seconds()

    def result(self, audio_seconds: float) -> dict[str, Any]:
        assert self._began is not None
        wall, cpu = (after - before for before, after in zip(self._began, self._ended, strict=True))
        num_tokens = sum(step.num_target_tokens for step in self.steps)
        half = self.steps[len(self.steps) // 2 :]
        return {
            "audio_seconds_per_second": audio_seconds / wall,
            "audio_seconds_per_cpu_second": audio_seconds / cpu,
            "wall_seconds": wall,
            "cpu_seconds": cpu,
            "num_steps": len(self.steps),
            "num_target_tokens": num_tokens,
            "loss_nats_of_warm_up": self._first_loss,
            "loss_nats": sum(step.loss_sum_nats for step in self.steps) / num_tokens,
            "loss_nats_of_last_half": sum(s.loss_sum_nats for s in half) / sum(s.num_target_tokens for s in half),
            "peak_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }


def cpu_seconds() -> float:
    """Seconds of a core that this process took; a loader's that still runs isn't in it, which is to the peers' good."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def measure_here(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run one method in this process."""
    torch.set_num_threads(arguments.threads)

    clips = read_clips(arguments.speech, arguments.clips)
    audio_seconds = count_seconds(clips[STEP_SIZE:])
    assembly = make_assembly(arguments)
    meter = Meter()
    with tempfile.TemporaryDirectory() as scratch:
        if arguments.one == "kappaspeech":
            for step in run_ours(assembly, clips, Path(scratch), Way()):
                meter.add(step)
        elif arguments.one == "padded":
            assembly.model.llm.set_attn_implementation("sdpa")
            for step in run_padded(assembly, clips, OPTIMIZER, micro_batch=MICRO_BATCH, accumulate=ACCUMULATE):
                meter.add(step)
        else:
            # by DeepSpeed, so that it doesn't compile what it won't use
            start_training_cluster()
            assembly.model.llm.set_attn_implementation("sdpa")
            sizes = {"micro_batch": MICRO_BATCH, "accumulate": ACCUMULATE}
            run_trainer(assembly, clips, OPTIMIZER, **sizes, scratch=Path(scratch), on_step=meter.add)
    return meter.result(audio_seconds)


def measure_way(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run one of our own ways in this process: steps with the LLM, then as many that align the adaptor alone; and the rate of all
    the steps of the recipe, which has so many of either."""
    torch.set_num_threads(arguments.threads)
    # as a run has it
    keep_freed_memory()
    clips = read_clips(arguments.speech, arguments.clips)
    audio_seconds = count_seconds(clips[STEP_SIZE:])
    recipe = read_recipe(arguments.llm, arguments.encoder, arguments.selection)
    way = WAYS[arguments.one]
    meters = {"": Meter(), "alignment_": Meter()}
    with tempfile.TemporaryDirectory() as scratch:
        steps = run_ours(assemble_way(recipe, way), clips, Path(scratch), way, aligns=(False, True))
        for meter in meters.values():
            for step in itertools.islice(steps, len(clips) // STEP_SIZE):
                meter.add(step)
        assert next(steps, None) is None
    result = {f"{name}{key}": value for name, meter in meters.items() for key, value in meter.result(audio_seconds).items()}
    shares = {"": 1 - recipe.training.alignment_steps / recipe.training.num_steps}
    shares["alignment_"] = 1 - shares[""]
    for rate in RATES:
        result[f"recipe_{rate}"] = 1 / sum(share / result[f"{name}{rate}"] for name, share in shares.items())
    return result


def count_seconds(clips: list[Recording]) -> float:
    return sum(len(read_recording(clip.path)) for clip in clips) / SAMPLE_RATE_HZ


def measure(method: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run a method in a fresh process."""
    paths = {"--llm": arguments.llm, "--encoder": arguments.encoder, "--selection": arguments.selection}
    words = [word for name, path in paths.items() for word in (name, str(path))]
    counts = ["--speech", str(arguments.speech), "--clips", str(arguments.clips), "--threads", str(arguments.threads)]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(arguments.threads),
        "DS_ACCELERATOR": "cpu",
        "TOKENIZERS_PARALLELISM": "false",
    }
    command = [sys.executable, __file__, "--one", method, *words, *counts]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{method} failed:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Medians of each method's repeats, and how many times as fast ours is; or each way is, beside padded rows."""
    methods = tuple(WAYS) if arguments.ways else METHODS
    runs: dict[str, list[dict[str, Any]]] = {method: [] for method in methods}
    for _ in range(arguments.repeats):
        for method in methods:
            runs[method].append(measure(method, arguments))
            print(f"  {method} {json.dumps(runs[method][-1])}", file=sys.stderr, flush=True)

    def median(method: str, key: str) -> float:
        return statistics.median(run[key] for run in runs[method])

    table = {}
    for method, results in runs.items():
        table[method] = {key: median(method, key) for key in results[0]}
        for rate in (key for key in results[0] if key.endswith(RATES)):
            table[method][f"{rate}_of_each"] = [run[rate] for run in results]
            if arguments.ways:
                table[method][f"times_padded_in_{rate}"] = median(method, rate) / median(methods[0], rate)
            else:
                table[method][f"ours_in_{rate}"] = median("kappaspeech", rate) / median(method, rate)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, text in (
        ("llm", "a folder"),
        ("encoder", "a Whisper .pt"),
        ("selection", "a file"),
        ("speech", "a folder a language"),
    ):
        parser.add_argument(f"--{name}", type=Path, help=text)
    parser.add_argument("--clips", type=int, default=48, help=f"a multiple of {STEP_SIZE}")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of each method")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--shape", choices=sorted(SHAPES), help="train one of these with random weights")
    parser.add_argument("--ways", action="store_true", help="measure this project's own ways in place of its peers")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--one", choices=(*METHODS, *WAYS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps((measure_way if arguments.one in WAYS else measure_here)(arguments)))
        return
    if arguments.shape or arguments.device == "cuda":
        shape = arguments.shape or "llama-3.1-8b"
        results: dict[str, Any] = train_shape(SHAPES[shape], torch.device(arguments.device))
        command = f"python benchmarks/train.py --device {arguments.device} --shape {shape}"
    else:
        results = compare(arguments)
        command = (
            f"python benchmarks/train.py --llm {arguments.llm.name} --encoder {arguments.encoder.name} --selection "
            f"{arguments.selection.name} --speech {arguments.speech.name} --clips {arguments.clips} --repeats {arguments.repeats}"
            f"{' --ways' if arguments.ways else ''}"
        )
    record = {
        "command": command,
        "machine": {"cpu": processor(), "cores": os.cpu_count(), "threads": arguments.threads},
        "versions": {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}},
        "batch": {"micro_batch": MICRO_BATCH, "accumulate": ACCUMULATE, "ranks": 1, "dtype": "bfloat16"},
        "results": results,
    }
    print(json.dumps(record, indent=1, ensure_ascii=False))
    if arguments.output:
        write_json(arguments.output, record)


if __name__ == "__main__":
    main()
