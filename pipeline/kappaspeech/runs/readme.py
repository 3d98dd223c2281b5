"""A run's folder in words: the meaning of each file and the way to go on, written from the files that are there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kappaspeech.artefacts import read_json
from kappaspeech.escaping import for_line
from kappaspeech.runs.checkpoints import list_checkpoints
from kappaspeech.runs.contents import CHECKPOINTS_FOLDER, CONFIG_FILE, CONTENTS, EVALUATIONS_FILE, RECORD_FILE, STEPS_FILE
from kappaspeech.runs.records import is_evaluation, is_step, read_lines


def describe_outcome(run_dir: Path) -> list[str]:
    """A few lines for a person: the run's progress, its WER, its plan against the measurements, its last checkpoint."""
    record = read_json(run_dir / RECORD_FILE, schema_version=1)
    reason = f" ({record['reason']})" if record.get("reason") else ""
    lines = [f"{record['status']}{reason}: {_progress(run_dir, record)}"]
    evaluations = read_lines(run_dir / EVALUATIONS_FILE, is_record=is_evaluation)
    if evaluations:
        rates = [f"{_rate(item['wer']['mean_wer'])} at step {item['step']}" for item in evaluations]
        lines.append(f"mean WER {', '.join(dict.fromkeys((rates[0], rates[-1])))}")
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
    steps = read_lines(run_dir / STEPS_FILE, is_record=is_step)
    config = read_json(run_dir / CONFIG_FILE, schema_version=1)
    done = steps[-1]["step"] + 1 if steps else 0
    loss = f", loss {steps[-1]['loss_nats']:.3f} nats a token" if steps else ""
    if steps and steps[-1].get("replay_nats") is not None:
        loss += f"; of replayed text {steps[-1]['replay_nats']:.3f}"
        loss += f", {steps[-1]['anchor_nats']:.3f} from the base" if steps[-1].get("anchor_nats") else ""
    return (
        f"step {done} of {config['training']['num_steps']} on {record['world_size']} rank(s), "
        f"{record['num_trained_parameters']:,} parameters trained{loss}"
    )


def write_readme(run_dir: Path) -> str:
    """The text of run.md."""
    record = read_json(run_dir / RECORD_FILE, schema_version=1)
    there = [f"- `{name}`: {meaning}" for name, meaning in CONTENTS if any(run_dir.glob(name))]
    commands = [f"- go on, or with more training.num_steps further: `kappaspeech train {run_dir / CONFIG_FILE}`"]
    if list_checkpoints(run_dir / CHECKPOINTS_FOLDER):
        commands += [
            f"- measure it again, or on other shards: `kappaspeech evaluate {run_dir}`",
            f"- a folder for transformers, or `--only difference`: `kappaspeech export {run_dir} exported`",
            f"- use it: `kappaspeech transcribe {run_dir} RECORDING…`",
            f"- against another run: `kappaspeech compare {run_dir} OTHER --output comparison`",
        ]
    title = f"# {for_line(record['arm'])}: {for_line(record['selection_rule'])}"
    return "\n".join([title, "", *(f"{line}  " for line in describe_outcome(run_dir)), "", *there, "", *commands, ""])
