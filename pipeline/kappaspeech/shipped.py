"""Files beside the code: launch scripts and DeepSpeed presets, of a clone or of an installed package."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parent


def find_shipped(name: str) -> Path | None:
    """A file such as `launch/train.sh` or `ds_configs/zero3.json`. None if there is no such file."""
    # the wheel holds both folders within the package (setup.py)
    for folder in (_PACKAGE.parents[1], _PACKAGE / "shipped"):
        if (folder / name).is_file():
            return folder / name
    return None
