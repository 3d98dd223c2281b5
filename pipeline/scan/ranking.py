"""The scan's result: every matrix's spectrum in order of κ, and why the other tensors aren't in it. JSON in and out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.artefacts import digest_json, read_json, write_json, write_with
from pipeline.errors import InputError, SelectionError
from pipeline.scan.matrices import SkippedTensor
from pipeline.scan.scores import SCORES
from pipeline.scan.spectrum import SpectrumStats
from pipeline.selection import Candidate

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class RankedMatrix:
    """A measured matrix. `name` is its parameter's, with [expert] for one of many; `shape` is the parameter's.

    `storage_noise` is how far, relative to it, rounding to the stored dtype moves σ_min as a rule (one standard deviation of
    uᵀEv); at 1 and above κ says more of the rounding than of the weights. None where the rounding isn't known.
    """

    name: str
    parameter: str
    shape: tuple[int, ...]
    dtype: str
    stats: SpectrumStats
    expert: int | None = None
    aliases: tuple[str, ...] = ()
    storage_noise: float | None = None

    @property
    def is_below_storage_noise(self) -> bool:
        return self.storage_noise is not None and self.storage_noise >= 1

    def to_json(self) -> dict[str, Any]:
        """As ranking.json holds it. JSON has no infinity: κ is null beside `zero_sigmas` > 0."""
        stats = self.stats
        return {
            "name": self.name,
            "parameter": self.parameter,
            "expert": self.expert,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "aliases": list(self.aliases),
            "kappa": stats.kappa if math.isfinite(stats.kappa) else None,
            "sigma_max": stats.sigma_max,
            "sigma_min": stats.sigma_min,
            "zero_sigmas": stats.zero_sigmas,
            "log2_volume": stats.log2_volume,
            "entropy_bits": stats.output_entropy_bits(),
            "frobenius": stats.frobenius,
            "stable_rank": stats.stable_rank,
            "matrix_shape": list(stats.shape),
            "error_bound": stats.error_bound,
            "rung": stats.rung,
            "storage_noise": self.storage_noise,
            "is_below_storage_noise": self.is_below_storage_noise,
        }

    @staticmethod
    def from_json(entry: Mapping[str, Any]) -> RankedMatrix:
        """Raises `KeyError`, `TypeError` or `ValueError` where `entry` isn't one."""
        rows, columns = entry["matrix_shape"]
        stats = SpectrumStats(
            shape=(int(rows), int(columns)),
            sigma_max=float(entry["sigma_max"]),
            sigma_min=float(entry["sigma_min"]),
            zero_sigmas=int(entry["zero_sigmas"]),
            log2_volume=float(entry["log2_volume"]),
            frobenius=float(entry["frobenius"]),
            error_bound=float(entry["error_bound"]),
            rung=str(entry["rung"]),
        )
        return RankedMatrix(
            name=str(entry["name"]),
            parameter=str(entry["parameter"]),
            shape=tuple(int(size) for size in entry["shape"]),
            dtype=str(entry["dtype"]),
            stats=stats,
            expert=None if entry["expert"] is None else int(entry["expert"]),
            aliases=tuple(map(str, entry["aliases"])),
            storage_noise=None if entry["storage_noise"] is None else float(entry["storage_noise"]),
        )


@dataclass(frozen=True)
class KappaRanking:
    """All matrices of a checkpoint by (κ, name), and the tensors that aren't ranked."""

    model: str
    checkpoint_digest: str
    method: str
    rtol: float
    matrices: tuple[RankedMatrix, ...]
    skipped: tuple[SkippedTensor, ...]
    # every singular value by matrix, descending, float32, (m,); empty where they weren't asked for. Not in ranking.json.
    spectra: Mapping[str, NDArray[np.float32]] = field(default_factory=dict, compare=False, repr=False)

    @staticmethod
    def of(
        model: str,
        checkpoint_digest: str,
        *,
        method: str,
        rtol: float,
        matrices: Iterable[RankedMatrix],
        skipped: Iterable[SkippedTensor],
        spectra: Mapping[str, NDArray[np.float32]] | None = None,
    ) -> KappaRanking:
        """A ranking in its order, whatever the order of what it is made from."""
        ordered = tuple(sorted(matrices, key=lambda matrix: (matrix.stats.kappa, matrix.name)))
        return KappaRanking(
            model, checkpoint_digest, method, rtol, ordered, tuple(sorted(skipped, key=lambda tensor: tensor.name)), spectra or {}
        )

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything but what the model was called."""
        return digest_json({key: value for key, value in self._to_json().items() if key != "model"})

    def candidates(self, score: str) -> list[Candidate]:
        """One candidate a parameter. Fused experts train together: theirs is the mean over the experts, as PEFT takes it.

        Raises `SelectionError` for a score that isn't one.
        """
        if score not in SCORES:
            raise SelectionError(f"There is no score {score!r}. There are: {', '.join(SCORES)}.")
        grouped: dict[str, list[RankedMatrix]] = {}
        for matrix in self.matrices:
            grouped.setdefault(matrix.parameter, []).append(matrix)
        skipped = {tensor.name for tensor in self.skipped}
        return [
            Candidate(
                name,
                group[0].shape,
                _mean([SCORES[score](matrix.stats) for matrix in group]),
                _mean([matrix.stats.kappa for matrix in group]),
                group[0].aliases,
            )
            for name, group in grouped.items()
            # a parameter of which one expert holds NaN has no score
            if name not in skipped and not any(tensor.startswith(f"{name}[") for tensor in skipped)
        ]

    def _to_json(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "model": self.model,
            "checkpoint_digest": self.checkpoint_digest,
            "method": self.method,
            "rtol": self.rtol,
            "tensors": [matrix.to_json() for matrix in self.matrices],
            "skipped": [{"name": item.name, "shape": list(item.shape), "reason": item.reason} for item in self.skipped],
        }

    def write(self, path: Path) -> None:
        """Write `ranking.json`, atomically."""
        write_json(path, self._to_json())

    def write_spectra(self, path: Path) -> None:
        """Write `spectra` as one safetensors file, atomically; its metadata is the checkpoint's digest."""
        from safetensors.numpy import save_file

        spectra = {name: np.ascontiguousarray(sigmas) for name, sigmas in self.spectra.items()}
        # one entry: several would come in another order each time
        metadata = {"checkpoint_digest": self.checkpoint_digest}
        write_with(path, lambda temporary: save_file(spectra, temporary, metadata=metadata))

    def with_spectra(self, path: Path) -> KappaRanking:
        """This ranking with the spectra that `write_spectra` kept. Raises `InputError` where they are another checkpoint's."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="np") as file:
                digest = (file.metadata() or {}).get("checkpoint_digest")
                spectra = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path} is no file of spectra: {error}. Make it with `kappaspeech scan --spectrum`.") from error
        if digest != self.checkpoint_digest:
            raise InputError(f"{path} holds the spectra of another checkpoint than the ranking is of.")
        return replace(self, spectra=spectra)

    @staticmethod
    def read(path: Path) -> KappaRanking:
        """Read a `ranking.json`. Raises `InputError` where it isn't one."""
        content = read_json(path, schema_version=SCHEMA_VERSION)
        try:
            return KappaRanking(
                model=str(content["model"]),
                checkpoint_digest=str(content["checkpoint_digest"]),
                method=str(content["method"]),
                rtol=float(content["rtol"]),
                matrices=tuple(RankedMatrix.from_json(entry) for entry in content["tensors"]),
                skipped=tuple(
                    SkippedTensor(str(item["name"]), tuple(int(size) for size in item["shape"]), str(item["reason"]))
                    for item in content["skipped"]
                ),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} is no ranking: {error!r}. Make it again with `kappaspeech scan`.") from error


def _mean(values: list[float]) -> float:
    return values[0] if len(values) == 1 else math.fsum(values) / len(values)
