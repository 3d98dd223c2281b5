"""The result of a scan: every matrix's spectrum in order of κ, and the other tensors with the reason. JSON in and out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kappaspeech.artefacts import digest_json, read_json, write_json, write_with
from kappaspeech.errors import InputError
from kappaspeech.expert_names import split_expert
from kappaspeech.outside import check_regular, explained
from kappaspeech.scan.matrices import SkippedTensor
from kappaspeech.scan.ranking_file import RankingEntry, RankingFile
from kappaspeech.scan.scores import SCORES, check_score
from kappaspeech.scan.statistics import SpectrumStats
from kappaspeech.selection.candidates import Candidate, Experts

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class RankedMatrix:
    """A measured matrix. `name` is its parameter's, with [expert] for one of many, as in `aliases`; `shape` is the parameter's.

    `storage_noise` is the usual change of σ_min by rounding to the stored dtype, relative to it (one standard deviation of uᵀEv).
    At 1 and above κ says more of the rounding than of the weights. None if the rounding isn't known.
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
        """The entry of ranking.json. JSON has no infinity: κ is null beside `zero_sigmas` > 0."""
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
    def from_json(entry: Mapping[str, Any], *, is_trusted: bool = False) -> RankedMatrix:
        """The matrix of an entry. Raises `ValueError` if `entry` isn't one, or has values of no matrix; `is_trusted` skips
        that."""
        return RankedMatrix._of(RankingEntry.model_construct(**entry) if is_trusted else RankingEntry.model_validate(entry))

    @staticmethod
    def _of(entry: RankingEntry) -> RankedMatrix:
        stats = SpectrumStats(
            shape=(entry.matrix_shape[0], entry.matrix_shape[1]),
            sigma_max=entry.sigma_max,
            sigma_min=entry.sigma_min,
            zero_sigmas=entry.zero_sigmas,
            log2_volume=entry.log2_volume,
            frobenius=entry.frobenius,
            error_bound=entry.error_bound,
            rung=entry.rung,
        )
        return RankedMatrix(
            name=entry.name,
            parameter=entry.parameter,
            shape=tuple(entry.shape),
            dtype=entry.dtype,
            stats=stats,
            expert=entry.expert,
            aliases=tuple(entry.aliases),
            storage_noise=entry.storage_noise,
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
    # every singular value by matrix, descending, float32, (m,); empty if they weren't asked for. Not in ranking.json.
    spectra: Mapping[str, NDArray[np.float32]] = field(default_factory=dict, compare=False, repr=False)
    # the family of a GGUF file: from it an export derives the tensors' names in transformers
    gguf_architecture: str | None = None

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
        gguf_architecture: str | None = None,
    ) -> KappaRanking:
        """A ranking in its order, whatever the order of its parts."""
        ordered = tuple(sorted(matrices, key=lambda matrix: (matrix.stats.kappa, matrix.name)))
        left_out = tuple(sorted(skipped, key=lambda tensor: tensor.name))
        return KappaRanking(
            model, checkpoint_digest, method, rtol, ordered, left_out, spectra or {}, gguf_architecture=gguf_architecture
        )

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything but the names of the model and its family."""
        return digest_json({key: value for key, value in self._to_json().items() if key not in ("model", "gguf_architecture")})

    def candidates(self, score: str, *, experts: Experts = "each") -> list[Candidate]:
        """One candidate per matrix; or per parameter, with the mean over fused experts as PEFT takes it, if these are taken
        together.

        Raises `SelectionError` for a score that isn't one.
        """
        check_score(score)
        if experts == "each":
            return [
                Candidate(
                    matrix.name,
                    matrix.shape if matrix.expert is None else matrix.stats.shape,
                    SCORES[score](matrix.stats),
                    matrix.stats.kappa,
                    matrix.aliases,
                )
                for matrix in self.matrices
            ]
        grouped: dict[str, list[RankedMatrix]] = {}
        for matrix in self.matrices:
            grouped.setdefault(matrix.parameter, []).append(matrix)
        skipped = {split_expert(item.name)[0] for item in self.skipped}
        return [
            Candidate(
                name,
                group[0].shape,
                _mean([SCORES[score](matrix.stats) for matrix in group]),
                _mean([matrix.stats.kappa for matrix in group]),
                tuple(split_expert(alias)[0] for alias in group[0].aliases),
            )
            for name, group in grouped.items()
            # a parameter of which one expert holds NaN has no score
            if name not in skipped
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
            **({"gguf_architecture": self.gguf_architecture} if self.gguf_architecture else {}),
        }

    def write(self, path: Path) -> None:
        """Write `ranking.json`, atomically."""
        write_json(path, self._to_json())

    def write_spectra(self, path: Path) -> None:
        """Write `spectra` as one safetensors file, atomically; its metadata is the checkpoint's digest."""
        from safetensors.numpy import save_file

        spectra = {name: np.ascontiguousarray(sigmas) for name, sigmas in self.spectra.items()}
        # one entry only: several would be written in another order each time
        metadata = {"checkpoint_digest": self.checkpoint_digest}
        write_with(path, lambda temporary: save_file(spectra, temporary, metadata=metadata))

    def with_spectra(self, path: Path) -> KappaRanking:
        """This ranking with the spectra that `write_spectra` kept. Raises `InputError` if they are another checkpoint's."""
        from safetensors import safe_open

        with explained(f"{path} is no file of spectra", "Make it with `kappaspeech scan --spectrum`."):
            check_regular(path.stat())
            with safe_open(path, framework="np") as file:
                digest = (file.metadata() or {}).get("checkpoint_digest")
                spectra = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            for name, sigmas in spectra.items():
                if sigmas.ndim != 1 or not len(sigmas) or sigmas.dtype != np.float32 or not np.isfinite(sigmas).all():
                    raise ValueError(f"{name} has no singular values")
        if digest != self.checkpoint_digest:
            raise InputError(f"{path} holds the spectra of another checkpoint than the ranking is of.")
        return replace(self, spectra=spectra)

    @staticmethod
    def read(path: Path) -> KappaRanking:
        """Read a `ranking.json`. Raises `InputError` if it isn't one."""
        content = read_json(path, schema_version=SCHEMA_VERSION)
        with explained(f"{path} is no ranking", "Make it again with `kappaspeech scan`."):
            file = RankingFile.model_validate(content)
        return KappaRanking(
            model=file.model,
            checkpoint_digest=file.checkpoint_digest,
            method=file.method,
            rtol=file.rtol,
            matrices=tuple(RankedMatrix._of(entry) for entry in file.tensors),
            skipped=tuple(SkippedTensor(item.name, tuple(item.shape), item.reason) for item in file.skipped),
            gguf_architecture=file.gguf_architecture,
        )


def _mean(values: list[float]) -> float:
    return values[0] if len(values) == 1 else math.fsum(values) / len(values)
