"""The fields that `state.json` of a checkpoint must hold for a run to resume from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Count = Annotated[int, Field(ge=0)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class _BadSteps(_Part):
    norms: list[float]
    is_of_alignment: bool = False
    num_in_a_row: Count
    num_skipped: Count
    num_aligning: Count = 0


class _BadSample(_Part):
    model_config = ConfigDict(extra="forbid")

    key: str
    cause: str
    shard: str
    detail: str


class SavedState(_Part):
    """The fields that are read; others may be beside them."""

    step: Count
    fingerprints: dict[str, str]
    hint: Annotated[list[Count], Field(min_length=2, max_length=2)]
    bad_steps: _BadSteps
    train_seconds: Annotated[float, Field(ge=0)]
    num_seen: Count
    hours_seen: dict[str, float]
    hours_by_dataset: dict[str, float] | None = None
    bad_samples: list[_BadSample]


def find_fault(state: Mapping[str, Any]) -> str | None:
    """The first field that is missing or of the wrong kind, in words; None if all are there."""
    try:
        SavedState.model_validate(dict(state))
    except ValidationError as error:
        first = error.errors()[0]
        return f"state.json: {'.'.join(map(str, first['loc']))}: {first['msg']}"
    return None
