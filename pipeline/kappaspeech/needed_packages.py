"""Packages that a command or an option needs, looked for before it does any work."""

from __future__ import annotations

from importlib.util import find_spec

from kappaspeech.errors import InputError

# module → its package, as pip knows it: one that is always asked for, or the extra of this project that brings it
PACKAGES = {
    "aiohttp": "kappaspeech[http]",
    "alembic": "kappaspeech[mlflow]",
    "datasets": "kappaspeech[datasets]",
    "deepspeed": "deepspeed",
    "espeakng_loader": "kappaspeech[demo]",
    "fsspec": "fsspec",
    "gcsfs": "kappaspeech[gs]",
    "gguf": "gguf",
    "jinja2": "jinja2",
    "jiwer": "jiwer",
    "kaldialign": "kappaspeech[kaldialign]",
    "lm_eval": "kappaspeech[lm-eval]",
    "matplotlib": "matplotlib",
    "mlflow": "kappaspeech[mlflow]",
    "mpi4py": "mpi4py",
    "peft": "peft",
    "pyarrow": "kappaspeech[parquet]",
    "s3fs": "kappaspeech[s3]",
    "soundfile": "soundfile",
    "soxr": "soxr",
    "sqlalchemy": "kappaspeech[mlflow]",
    "tensorboard": "tensorboard",
    "trackio": "kappaspeech[trackio]",
    "transformers": "transformers",
    "wandb": "kappaspeech[wandb]",
    "webdataset": "webdataset",
    "whisper": "openai-whisper",
}


def need(purpose: str, *modules: str, kind: type[InputError] = InputError) -> None:
    """Raise `kind` if one of `modules` isn't installed. `purpose`, an option or a command, begins the sentence.

    Nothing is imported, so that the answer comes at once.
    """
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        verb = "isn't" if len(missing) == 1 else "aren't"
        packages = " ".join(f"'{PACKAGES[module]}'" for module in missing)
        raise kind(f"{purpose} needs {' and '.join(missing)}, which {verb} installed: pip install {packages}.")
