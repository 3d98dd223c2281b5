"""A digest by which a trained model is known again, wherever it lies: of a run's checkpoint, an export or a difference."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from kappaspeech.artefacts import digest_file, digest_json
from kappaspeech.errors import InputError
from kappaspeech.runs.contents import RECORD_FILE
from kappaspeech.scan.checkpoint import Checkpoint
from kappaspeech.tensor_files.weight_files import open_file
from kappaspeech.trained.difference import SPEECH_FILE
from kappaspeech.trained.opening import Step, open_run
from kappaspeech.trained.whole_opening import is_whole

_CONFIG_FILE, _GENERATION_FILE = "config.json", "generation_config.json"


def identify(path: Path, *, step: Step = None) -> str:
    """SHA-256, as 64 hex digits, of what makes a model's texts: its weights, sampled as `Checkpoint.digest` does, and its prompt.

    Of an encoder that lies elsewhere only the name is in it. Raises `InputError` if `path` is no trained model.
    """
    if (path / RECORD_FILE).exists():
        difference = open_run(path, step=step).difference
        parts = {**asdict(difference.parts), "encoder": Path(difference.parts.encoder).name}
        return digest_json([difference.base_digest, _digest_weights(difference.trained), parts])
    if not (path / SPEECH_FILE).exists() and not is_whole(path):
        raise InputError(f"{path} is neither a run folder ({RECORD_FILE}) nor an export ({SPEECH_FILE}).")
    weights = {file.name: _digest_weights(file) for file in sorted(path.glob("*.safetensors"))}
    # an export in one model keeps its number of beams beside its config; what an LLM's own says of generation is not followed
    names = (_CONFIG_FILE, _GENERATION_FILE) if is_whole(path) else (_CONFIG_FILE, SPEECH_FILE)
    texts = {name: digest_file(path / name) for name in names if (path / name).is_file()}
    return digest_json([weights, texts])


def _digest_weights(file: Path) -> str:
    return Checkpoint(file.name, open_file(file)).digest
