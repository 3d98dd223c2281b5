"""A run as users start it, killed and resumed with equal losses; what a save and the frozen tensors' digests cost; decoding."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from train_shapes import SHAPES, TINY_SETUP, Setup, Shape, ShapeTraining, choose_tensors

from gpu_sections.cases import PRESETS, Case, Context, Differs, Report, command_line
from gpu_sections.checkpoints import write_llama, write_whisper
from kappaspeech.config.data_config import DatasetConfig
from kappaspeech.evaluation.transcribe import Transcriber
from kappaspeech.model.llm import load_tokenizer
from kappaspeech.ranks.start import start_training_cluster
from kappaspeech.runs.checkpoints import find_damage, list_checkpoints
from kappaspeech.runs.new_checkpoint import NewCheckpoint, Writing
from kappaspeech.scan.checkpoint import open_checkpoint
from kappaspeech.selection.tensor_selection import SelectedTensor, TensorSelection
from kappaspeech.speech.corpus import make_datasets
from kappaspeech.speech.held_out import read_test_batches
from kappaspeech.speech.layouts import find_recordings
from kappaspeech.speech.packing import pack
from kappaspeech.speech.samples import SAMPLE_RATE_HZ, AudioSample
from kappaspeech.trained.opening import open_transcriber
from kappaspeech.zero3 import engine_state
from kappaspeech.zero3.host_copy import HostCopy
from kappaspeech.zero3.trained_states import Updates
from tests import tiny

# A GPU's sums come in another order each time, and bfloat16 rounds them to three digits.
LOSS_TOLERANCE = {"cpu": 0.0, "cuda": 2e-3}
_SAVE_EVERY = 4
_NUM_STEPS = {"cpu": 40, "cuda": 12}
# killed once it has so many steps behind it
_KILLED_AFTER = 6
_NUM_CLIPS, _CLIP_SECONDS = {"cpu": 8, "cuda": 64}, {"cpu": 1.0, "cuda": 8.0}
_BATCH_SIZES, _MAX_NEW_TOKENS = {"cpu": (1, 4), "cuda": (1, 32)}, {"cpu": 4, "cuda": 48}


def cases(_context: Context) -> list[Case]:
    return [
        Case("inputs", make_inputs, 60),
        Case("train, kill, resume", resume, 120),
        Case("saves and digests", save, 75),
        Case("decoding", decode, 60),
    ]


def shape_of(context: Context) -> Shape:
    """The 1B shape stands for the 8B's, which would spend its minutes on loading and saving."""
    return SHAPES["tiny" if context.shape == "tiny" else "llama-3.2-1b"]


def make_inputs(context: Context, report: Report) -> None:
    """Model, tokenizer, Whisper, speech and a selection, as `tests.tiny.write_config` asks for them."""
    home, shape = context.scratch / "home", shape_of(context)
    tiny.make_llm(home / "small")
    tokenizer = load_tokenizer(str(home / "small"))
    tokenizer.save_pretrained(home / "llm")
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    size = write_llama(home / "llm", shape.llm, context.device, **ends)
    write_whisper(home / "whisper.pt", shape.encoder)
    make_speech(home / "speech", context)
    pack(find_recordings(home / "speech"), home / "shards/train", shard_size=16, num_processes=1)
    write_selection(home, shape)
    report.add(line=f"{size / 1e9:.3g} GB of weights, {_NUM_CLIPS[context.device.type]} clips")


def make_speech(folder: Path, context: Context) -> None:
    """Noise of clips of about one length, with transcripts of words."""
    import soundfile

    rng = np.random.default_rng(0)
    (folder / "en").mkdir(parents=True)
    lines = []
    for clip in range(_NUM_CLIPS[context.device.type]):
        seconds = _CLIP_SECONDS[context.device.type] * rng.uniform(0.7, 1.3)
        noise = 0.1 * rng.standard_normal(int(seconds * SAMPLE_RATE_HZ))
        soundfile.write(folder / f"en/{clip:03d}.flac", noise.astype(np.float32), SAMPLE_RATE_HZ)
        lines.append(f"{clip:03d}.flac\t{' '.join(rng.choice(tiny.WORDS['en'], size=max(2, int(2 * seconds))))}\n")
    (folder / "en/transcripts.tsv").write_text("".join(lines), encoding="utf-8")


def write_selection(home: Path, shape: Shape) -> None:
    """Write a selection as a ranking would choose it, the training section's own."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        chosen = choose_tensors(LlamaForCausalLM(LlamaConfig(**shape.llm)), shape)
    tensors = tuple(SelectedTensor(name, size, kappa=1.0) for name, size in chosen.items())
    digest = open_checkpoint(str(home / "llm")).digest
    TensorSelection("by hand", str(home / "llm"), digest, "", tensors).write(home / "selection.json")


def write_run(context: Context, name: str) -> Path:
    """The YAML of a run of this name."""
    home, on_gpu = context.scratch / "home", context.device.type == "cuda"
    return tiny.write_config(
        context.scratch / f"{name}.yaml",
        home,
        context.scratch / name,
        model__adaptor={"width": shape_of(context).adaptor_width, "num_heads": 4},
        model__encoder_dtype="auto",
        data={"train": [{"shards": str(home / "shards/train/*.tar")}]},
        batch={"max_samples": 8 if on_gpu else 2, "max_seconds": 120.0, "micro_batches_per_step": 2},
        training={
            "num_steps": _NUM_STEPS[context.device.type],
            "checkpoint_every_steps": _SAVE_EVERY,
            "keep_checkpoints": 1,
            "activation_checkpointing": on_gpu,
        },
        deepspeed=str(PRESETS / ("zero3.json" if on_gpu else "zero3_cpu.json")),
    )


def resume(context: Context, report: Report) -> None:
    """Two runs of the same configuration at once, of which one is killed and started again."""
    whole, broken = start(context, "whole"), start(context, "broken")
    try:
        done_before = wait_for_steps(context, broken)
        os.killpg(broken.pid, signal.SIGKILL)
        broken.wait()
        last = list_checkpoints(context.scratch / "broken/checkpoints")
        report.add(killed_after_steps=done_before, resumed_from=[path.name for path in last][-1:])
        broken = start(context, "broken")
        for name, process in (("whole", whole), ("broken", broken)):
            if process.wait(timeout=max(context.seconds_left, 1.0)) != 0:
                raise RuntimeError(f"the run '{name}' ended with {process.returncode}:\n{last_words(context, name)}")
    finally:
        for process in (whole, broken):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    records = {name: read_steps(context, name) for name in ("whole", "broken")}
    losses = {name: [record["loss_nats"] for record in of_run] for name, of_run in records.items()}
    apart = max(abs(a - b) / abs(a) for a, b in zip(losses["whole"], losses["broken"], strict=True))
    report.add(
        losses=losses,
        same_samples=[record["keys_digest"] for record in records["whole"]] == [r["keys_digest"] for r in records["broken"]],
        losses_bit_equal=losses["whole"] == losses["broken"],
        loss_relative_difference=apart,
        loss_tolerance=LOSS_TOLERANCE[context.device.type],
        audio_seconds_per_second=[record["audio_seconds_per_second"] for record in records["whole"]],
        line=f"{len(losses['whole'])} steps, killed after {done_before}: losses "
        + ("bit-equal" if apart == 0 else f"to {apart:.1g}"),
    )
    if apart > LOSS_TOLERANCE[context.device.type]:
        raise Differs(f"losses after resuming differ by {apart:.3g}")


def start(context: Context, name: str) -> subprocess.Popen[bytes]:
    log = context.scratch / f"{name}.log"
    with log.open("ab") as output:
        words = command_line("train", write_run(context, name))
        return subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)


def wait_for_steps(context: Context, process: subprocess.Popen[bytes]) -> int:
    """Wait until a run has written enough steps and a checkpoint; return the number of steps. Raises if it ends before."""
    while len(steps := read_steps(context, "broken")) < _KILLED_AFTER:
        if process.poll() is not None:
            raise RuntimeError(f"the run ended with {process.returncode} before it was killed:\n{last_words(context, 'broken')}")
        if context.seconds_left < 1:
            raise TimeoutError(f"no {_KILLED_AFTER} steps in time; last words:\n{last_words(context, 'broken')}")
        time.sleep(0.02)
    return len(steps)


def read_steps(context: Context, name: str) -> list[dict[str, Any]]:
    path = context.scratch / name / "steps.jsonl"
    if not path.exists():
        return []
    # the last line may be half written
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]


def last_words(context: Context, name: str) -> str:
    return (context.scratch / f"{name}.log").read_text(encoding="utf-8", errors="replace")[-2500:]


def save(context: Context, report: Report) -> None:
    """Seconds of what a run does around its steps, at the shape with random weights."""
    setup = TINY_SETUP if context.shape == "tiny" else Setup()
    cluster = start_training_cluster(timeout_seconds=60)
    training = ShapeTraining(shape_of(context), setup, context.device, cluster=cluster)
    report.add(**training.facts)
    training.step()
    folder, seconds, kept = context.scratch / "saved", {}, HostCopy()
    beside, writing = cluster.beside(), list[Writing]()

    def begin(step: int, copy: HostCopy | None) -> None:
        new = NewCheckpoint(folder, step, {}, keep=1)
        writing.append(engine_state.save(training.engine, cluster, beside, new, choose_copy=lambda _num_bytes: copy))

    def finish() -> None:
        while not writing[-1].wait(1.0):
            pass
        if (failure := writing[-1].failure()) is not None:
            raise failure

    def save_and_wait() -> None:
        begin(1, None)
        finish()

    for name, work in {
        "a save that steps wait for": save_and_wait,
        "the first copy": lambda: begin(2, kept),
        "writing it": finish,
        "a copy": lambda: begin(3, kept),
        "a step beside its writing": training.step,
        "the rest of its writing": finish,
        "checking it": lambda: find_damage(folder / "step-000003", cluster=cluster),
        "restoring it": lambda: engine_state.restore(training.engine, folder / "step-000003", cluster, num_updates=Updates(2, 2)),
        "digests of the frozen tensors": training.engine.frozen_digests,
    }.items():
        began = time.monotonic()
        work()
        seconds[name] = time.monotonic() - began
        report.add(seconds_of=seconds)
    size = sum(path.stat().st_size for path in (folder / "step-000003").iterdir())
    report.add(checkpoint_bytes=size, step_seconds_after=training.step())
    training.close()
    report.add(line=f"{size / 1e9:.3g} GB: " + ", ".join(f"{name} {value:.2g} s" for name, value in seconds.items()))


def decode(context: Context, report: Report) -> None:
    """The trained run over its own clips: random weights never end a text, so each is as long as allowed."""
    kind = context.device.type
    path = context.scratch / "home/shards/train/*.tar"
    (samples,) = read_test_batches(make_datasets([DatasetConfig(shards=str(path))]), batch_size=_NUM_CLIPS[kind])
    opened = open_transcriber(
        context.scratch / "whole", device=context.device, batch_size=1, max_new_tokens=_MAX_NEW_TOKENS[kind]
    )
    found = {}
    for batch_size in _BATCH_SIZES[kind]:
        chosen = samples[:batch_size]
        opened.decode(chosen)
        found[f"batches of {batch_size}"] = time_decoding(context, opened, chosen)
        report.add(decoding=found)
    report.add(line=", ".join(f"{name}: real-time factor {item['real_time_factor']:.3g}" for name, item in found.items()))


def time_decoding(context: Context, transcriber: Transcriber, samples: list[AudioSample]) -> dict[str, Any]:
    """Seconds of one batch; `num_passes` is how often the LLM ran: once for the prompts and once for each further token."""
    passes: list[None] = []
    counting = transcriber.model.llm.get_decoder().register_forward_hook(lambda *_: passes.append(None))
    context.synchronize()
    began = time.monotonic()
    decoded = transcriber.decode(samples)
    context.synchronize()
    seconds = time.monotonic() - began
    counting.remove()
    audio_seconds = sum(len(sample.waveform) for sample in samples) / SAMPLE_RATE_HZ
    endings = [item.ending for item in decoded]
    return {
        "seconds": seconds,
        "audio_seconds": audio_seconds,
        "real_time_factor": seconds / audio_seconds,
        "num_passes": len(passes),
        "seconds_per_pass": seconds / len(passes),
        "endings": {ending: endings.count(ending) for ending in ("end", "loop", "length")},
    }
