"""A run's folder in words: the meaning of each file and the ways to continue, written from the files that are there."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from kappaspeech.artefacts import read_json
from kappaspeech.escaping import for_line
from kappaspeech.json_lines import read_last_line
from kappaspeech.progress import say_duration
from kappaspeech.runs.checkpoints import list_checkpoints
from kappaspeech.runs.contents import (
    CHECKPOINTS_FOLDER,
    CONFIG_FILE,
    CONTENTS,
    DISTANCES_FILE,
    EVALUATIONS_FILE,
    RECORD_FILE,
    STEPS_FILE,
)
from kappaspeech.runs.records import is_distance, is_evaluation, is_step, read_lines


def describe_outcome(run_dir: Path, *, seconds_left: float | None = None) -> list[str]:
    """A few lines for a person: the run's progress, its WER, its plan against the measurements, its last checkpoint.

    `seconds_left` is the time to the end of a run that is training, if it is known.
    """
    record = read_json(run_dir / RECORD_FILE, schema_version=1)
    reason = f" ({record['reason']})" if record.get("reason") else ""
    lines = [f"{record['status']}{reason}: {_progress(run_dir, record)}"]
    if record["status"] == "running":
        left = f"about {say_duration(seconds_left)} left, " if seconds_left is not None else ""
        lines.append(f"{left}as of {datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC")
    evaluations = read_lines(run_dir / EVALUATIONS_FILE, is_record=is_evaluation)
    if evaluations:
        rates = [f"{_rate(item['wer']['mean_wer'])} at step {item['step']}" for item in evaluations]
        lines.append(f"mean WER {', '.join(dict.fromkeys((rates[0], rates[-1])))}")
        sets = evaluations[-1]["wer"].get("sets", {})
        lines += [f"of {for_line(name)} {_rate(of_set['mean_wer'])}" for name, of_set in sets.items()]
        for language, report in evaluations[-1].get("tasks", {}).items():
            told = f"of questions in {for_line(language)} {report['accuracy']:.1%} answered right"
            lines.append(told + (f", by the base {report['base']['accuracy']:.1%}" if report["base"] else ""))
        for language, report in evaluations[-1].get("instructions", {}).items():
            told = f"of instructions in {for_line(language)} {report['accuracy']:.1%} followed"
            lines.append(told + (f", by the base {report['base']['accuracy']:.1%}" if report["base"] else ""))
    distances = read_lines(run_dir / DISTANCES_FILE, is_record=is_distance)
    if distances:
        last = distances[-1]
        lines.append(
            f"{last['kl_nats']:.3g} nats a token from the base at step {last['step']}, of a budget of {last['budget_nats']:g}"
        )
        num_moves = sum(item["kl_nats"] < item.get("moved_nats", 0.0) for item in distances)
        if num_moves:
            lines.append(
                f"the LLM was drawn back towards its base {num_moves} time(s), as no weight of the anchor kept the budget; "
                "a lower optimizer.llm_learning_rate or more replay.texts may keep it"
            )
    compared = record.get("plan_comparison")
    if compared:
        memory, seconds = compared["peak_memory_bytes"], compared["step_seconds"]
        lines.append(
            f"peak memory a rank {memory['measured'] / 1e9:.2f} GB (planned {memory['predicted'] / 1e9:.2f}), "
            f"step {seconds['measured']:.2f} s (planned {seconds['predicted']:.2f})"
        )
    found = list_checkpoints(run_dir / CHECKPOINTS_FOLDER)
    if found:
        lines.append(f"last checkpoint {found[-1]}")
    return lines


def _rate(mean_wer: float | None) -> str:
    """A WER in words; None means that no language had a reference word."""
    return "unknown" if mean_wer is None else f"{mean_wer:.2%}"


def _progress(run_dir: Path, record: Mapping[str, Any]) -> str:
    last = read_last_line(run_dir / STEPS_FILE, is_record=is_step)
    config = read_json(run_dir / CONFIG_FILE, schema_version=1)
    done = last["step"] + 1 if last else 0
    kind = "alignment loss" if last and last.get("objective") == "alignment" else "loss"
    loss = f", {kind} {last['loss_nats']:.3f} nats a token" if last else ""
    if last and last.get("replay_nats") is not None:
        loss += f"; of replayed text {last['replay_nats']:.3f}"
        loss += f", {last['anchor_nats']:.3f} from the base" if last.get("anchor_nats") is not None else ""
    return (
        f"step {done} of {config['training']['num_steps']} on {record['world_size']} rank(s), "
        f"{record['num_trained_parameters']:,} parameters trained{loss}"
    )


def write_readme(run_dir: Path, *, seconds_left: float | None = None) -> str:
    """The text of run.md."""
    record = read_json(run_dir / RECORD_FILE, schema_version=1)
    there = [f"- `{name}`: {meaning}" for name, meaning in CONTENTS if any(run_dir.glob(name))]
    commands = [f"- continue it, or train further with more training.num_steps: `kappaspeech train {run_dir / CONFIG_FILE}`"]
    if list_checkpoints(run_dir / CHECKPOINTS_FOLDER):
        commands += [
            f"- measure it again, or on other shards: `kappaspeech evaluate {run_dir}`",
            f"- write it for transformers, or what was trained with `--only difference`: `kappaspeech export {run_dir} exported`",
            f"- transcribe with it: `kappaspeech transcribe {run_dir} RECORDING…`",
            f"- compare it with another run: `kappaspeech compare {run_dir} OTHER --output comparison`",
        ]
    title = f"# {for_line(record['arm'])}: {for_line(record['selection_rule'])}"
    outcome = [f"{line}  " for line in describe_outcome(run_dir, seconds_left=seconds_left)]
    return "\n".join([title, "", *outcome, "", *there, "", *commands, ""])
