"""The schema of a line of a ranking or a journal: types, ranges, and numbers that a matrix can have."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

# a larger Gram would need terabytes, so no scan has measured one
_MAX_SHORT_SIDE = 1 << 20
_ROUNDING = 1e-6

Size = Annotated[int, Field(ge=0, lt=2**48)]
Shape = Annotated[list[Size], Field(max_length=64)]
Magnitude = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False, frozen=True)


class RankingEntry(_Strict):
    """One measured matrix, as `RankedMatrix.to_json` writes it; values that follow from the rest may be absent."""

    name: str
    parameter: str
    expert: Size | None
    shape: Shape
    dtype: str
    aliases: list[str]
    kappa: float | None
    sigma_max: Magnitude
    sigma_min: Magnitude
    zero_sigmas: Size
    log2_volume: float
    frobenius: Magnitude
    matrix_shape: Annotated[list[Annotated[int, Field(ge=1, lt=2**48)]], Field(min_length=2, max_length=2)]
    error_bound: Magnitude
    rung: str
    storage_noise: Magnitude | None

    @model_validator(mode="after")
    def _check(self) -> RankingEntry:
        short, size = min(self.matrix_shape), math.prod(self.matrix_shape)
        if not self._is_part():
            raise ValueError(f"a matrix of shape {self.matrix_shape} is no part of a tensor of shape {self.shape}")
        if short > _MAX_SHORT_SIDE or size >= 2**48:
            raise ValueError(f"no matrix of shape {self.matrix_shape} can have been measured")
        rank = short - self.zero_sigmas
        # each σ is known to the tolerance of the scan
        room, most = _ROUNDING + 4 * self.error_bound, math.sqrt(short) * self.sigma_max
        if rank < 0 or self.sigma_min > self.sigma_max * (1 + room) or (self.sigma_min > 0) != (rank > 0):
            raise ValueError(f"no matrix has σ from {self.sigma_max} to {self.sigma_min}, {self.zero_sigmas} of them zero")
        if not self.sigma_max * (1 - room) <= self.frobenius <= most * (1 + room):
            raise ValueError(f"no matrix has a largest σ of {self.sigma_max} and a Frobenius norm of {self.frobenius}")
        self._check_volume(rank)
        kappa = math.inf if self.zero_sigmas else self.sigma_max / self.sigma_min
        if not math.isclose(math.inf if self.kappa is None else self.kappa, kappa, rel_tol=_ROUNDING):
            raise ValueError(f"kappa is {self.kappa}, but σ_max/σ_min is {kappa}")
        return self

    def _is_part(self) -> bool:
        """True if the matrix is all of its tensor, flattened, or one of the experts that the tensor stacks."""
        if not self.shape:
            return False
        whole = [self.shape[0], math.prod(self.shape[1:])]
        if self.expert is None:
            return whole == self.matrix_shape
        if len(self.shape) == 3:
            return self.shape[1:] == self.matrix_shape and self.expert < self.shape[0]
        # the rows of all experts lie one after the other
        num_rows, width = self.matrix_shape
        num_experts, rest = divmod(whole[0], num_rows)
        return len(self.shape) == 2 and width == whole[1] and rest == 0 and self.expert < num_experts

    def _check_volume(self, rank: int) -> None:
        if rank == 0:
            least = most = 0.0
        else:
            least, most = sorted(rank * math.log2(sigma) for sigma in (self.sigma_min, self.sigma_max))
        room = _ROUNDING * (rank + abs(least) + abs(most)) + rank * math.log2(1 + 4 * self.error_bound)
        if not least - room <= self.log2_volume <= most + room:
            raise ValueError(f"no matrix of these σ has a log₂ volume of {self.log2_volume}")


class SkippedEntry(_Strict):
    """A tensor that isn't ranked."""

    name: str
    shape: Shape
    reason: str


class RankingFile(_Strict):
    """The content of ranking.json except its schema_version."""

    model: str
    checkpoint_digest: str
    method: str
    rtol: Magnitude
    tensors: list[RankingEntry]
    skipped: list[SkippedEntry]
    gguf_architecture: str | None = None

    @model_validator(mode="after")
    def _check(self) -> RankingFile:
        names = [entry.name for entry in self.tensors]
        if len(set(names)) != len(names):
            raise ValueError(f"it ranks {next(name for name in names if names.count(name) > 1)!r} twice")
        shapes: dict[str, list[int]] = {}
        for entry in self.tensors:
            if shapes.setdefault(entry.parameter, entry.shape) != entry.shape:
                raise ValueError(f"{entry.parameter} has two shapes")
        return self
