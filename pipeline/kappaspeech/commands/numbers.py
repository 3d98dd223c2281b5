"""Options that are numbers, checked as typer reads them."""

from __future__ import annotations

import math

import typer


def finite(value: float | None) -> float | None:
    """A number as it is; "inf" and "nan", which Python reads as numbers, are refused."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is no finite number.")
    return value
