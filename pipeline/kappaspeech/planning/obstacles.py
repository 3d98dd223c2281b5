"""Obstacles to training a selection, found as soon as the selection is made."""

from __future__ import annotations

from pathlib import Path

from kappaspeech.errors import KappaSpeechError
from kappaspeech.selection.tensor_selection import TensorSelection
from kappaspeech.tensor_files.weight_files import read_config


def find_obstacle(selection: TensorSelection) -> str | None:
    """The reason why the selected tensors can't be trained here; None if none is known, or if their model isn't here.

    From the model's config alone, in a moment whatever its size.
    """
    try:
        if not Path(selection.model).is_dir() or "model_type" not in (read_config(Path(selection.model)) or {}):
            return None
        from kappaspeech.model.freezing import check_selected
        from kappaspeech.model.meta_llm import build_meta_llm
        from kappaspeech.model.stored_names import rename_shapes

        llm = build_meta_llm(selection.model)
        check_selected(llm, rename_shapes(llm, selection.shapes))
    except KappaSpeechError as error:
        return str(error)
    return None
