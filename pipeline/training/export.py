"""A run as a Hugging Face model folder with the adaptor beside it, for use without this run or DeepSpeed."""

from __future__ import annotations

import shutil
from pathlib import Path

from pipeline.artefacts import sync_folder, write_json
from pipeline.errors import InputError
from pipeline.model.llm import load_tokenizer
from pipeline.training.trained_run import ADAPTOR_FILE, SPEECH_FILE, open_run


def export(run_dir: Path, output: Path, *, step: int | None = None) -> list[Path]:
    """Write the LLM and tokenizer as transformers reads them, `adaptor.safetensors` and `speech.json` to `output`.

    The folder appears whole or not at all. Returns its files. Raises `InputError` where `output` exists.
    """
    from safetensors.torch import save_file

    if output.exists():
        raise InputError(f"{output} exists already. Give a folder that doesn't, or remove it.")
    run = open_run(run_dir, step=step)
    model = run.load_model()
    temporary = output.with_name(f".{output.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        model.llm.save_pretrained(temporary)
        load_tokenizer(run.config.model.llm).save_pretrained(temporary)
        save_file(
            {name: tensor.float().contiguous() for name, tensor in model.adaptor.state_dict().items()}, temporary / ADAPTOR_FILE
        )
        write_json(temporary / SPEECH_FILE, {**run.parts.to_json(), "encoder": _portable(run.parts.encoder)})
        temporary.rename(output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    sync_folder(output.parent)
    return sorted(output.iterdir())


def _portable(encoder: str) -> str:
    """A path counts from the working folder; an export may be used from another one."""
    path = Path(encoder)
    return str(path.resolve()) if path.is_file() else encoder
