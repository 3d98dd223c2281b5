"""The contents of a run's folder: each file's name and meaning, for its writer, its readers, and the list in run.md."""

from __future__ import annotations

import re
from pathlib import Path

from kappaspeech.redaction import SECRETS_FILE

README_FILE, CONFIG_FILE, RECORD_FILE = "run.md", "config.json", "run.json"
SELECTION_FILE, FROZEN_FILE, DRIFT_FILE = "selection.json", "frozen.json", "drift.json"
STEPS_FILE, EVALUATIONS_FILE, BAD_SAMPLES_FILE = "steps.jsonl", "evaluations.jsonl", "bad_samples.jsonl"
SKIPPED_STEPS_FILE, LEASE_FILE, STOP_FILE = "skipped_steps.jsonl", "lease.json", "STOP"
DISTANCES_FILE, LOGGERS_FILE = "distances.jsonl", "loggers.json"
PROFILE_FOLDER, COLLECTIVES_FOLDER = "profile", "flight_recorder"
# of an export: what a speech LLM needs beside its LLM's own folder
SPEECH_FILE, ADAPTOR_FILE = "speech.json", "adaptor.safetensors"
EVALUATION_FILE, DAMAGED_LINES = "evaluation.json", "*.damaged"
CURVES_FOLDER, HYPOTHESES_FOLDER, CHECKPOINTS_FOLDER, LAUNCH_FOLDER = "tensorboard", "hypotheses", "checkpoints", "launch"
_CHECKPOINT = re.compile(r"step-(\d{6,18})")

CONTENTS = (
    (CONFIG_FILE, "the resolved configuration; `kappaspeech train` takes it as it takes the YAML"),
    (
        SECRETS_FILE,
        "passwords and signatures of URLs, which config.json hides; for your eyes alone: leave it out of what you share",
    ),
    (RECORD_FILE, "status, digests, versions, commit, and the plan beside what was measured"),
    (SELECTION_FILE, "the LLM's tensors that were trained"),
    (STEPS_FILE, "a record a step: loss, rates, gradient norm, times, padding, memory, digest of the samples"),
    (CURVES_FOLDER, "the same as curves: `tensorboard --logdir` this folder"),
    ("wandb", "the same for Weights & Biases; what was offline is sent by `wandb sync` with this folder's folders"),
    ("trackio", "the same for trackio: `TRACKIO_DIR` names this folder, then `trackio show`"),
    ("mlflow", "the same for MLflow: `mlflow ui --backend-store-uri` names what is in it"),
    (LOGGERS_FILE, "the run's id there, by which the next start goes on with the same curves"),
    (EVALUATIONS_FILE, "WER by language with intervals, perplexity of text, and answers to questions"),
    (
        DISTANCES_FILE,
        "with a forgetting budget: the distance from the base, before and after the LLM was drawn back, and the anchor's weight",
    ),
    (HYPOTHESES_FOLDER, "every transcript of each evaluation"),
    (CHECKPOINTS_FOLDER, "what was trained, with its optimizer; the base model isn't in it"),
    (BAD_SAMPLES_FILE, "samples that couldn't be used, and why"),
    (SKIPPED_STEPS_FILE, "steps that moved no weight, for their loss or gradient, and their samples"),
    (DAMAGED_LINES, "lines of the files above that couldn't be read, set aside"),
    (FROZEN_FILE, "digests of every frozen tensor, before and after"),
    (DRIFT_FILE, "how far each trained tensor has moved"),
    (PROFILE_FOLDER, "traces of steps for https://ui.perfetto.dev, and of the GPU's memory for https://pytorch.org/memory_viz"),
    (COLLECTIVES_FOLDER, "the last collectives of ranks that waited for each other; docs/clusters.md has what reads them"),
    (LAUNCH_FOLDER, "each start's command line, and why its ranks ended"),
    (EVALUATION_FILE, "what `kappaspeech evaluate` measured afterwards"),
    ("evaluation.hypotheses.jsonl", "every transcript of that"),
    ("evaluation.html", "the same as a page, with clips"),
)


def is_run(folder: Path) -> bool:
    """Return whether `folder` is the folder of a training run that has begun."""
    return (folder / RECORD_FILE).exists() and (folder / CONFIG_FILE).exists()


def checkpoint_path(folder: Path, step: int) -> Path:
    """The checkpoint of `step` in a run's folder of checkpoints."""
    return folder / f"step-{step:06d}"


def step_of(checkpoint: Path) -> int | None:
    """The step of a checkpoint, by its name; None if it isn't a finished one."""
    match = _CHECKPOINT.fullmatch(checkpoint.name)
    return int(match[1]) if match else None


def hypotheses_path(folder: Path, step: int) -> Path:
    """The transcripts of the evaluation after `step` steps, in a run's folder of hypotheses."""
    return folder / f"step-{step:06d}.jsonl"
