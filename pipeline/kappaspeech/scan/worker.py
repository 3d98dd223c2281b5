"""One rank's part of a scan: matrices from the common queue, and the pieces of large ones.

The numbers don't depend on the number of ranks: a large matrix's Gram is always the sum of the same pieces in the same order,
whether one rank forms them all or several add theirs.
"""

from __future__ import annotations

import base64
import contextlib
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kappaspeech.errors import ScanError
from kappaspeech.progress import ProgressBar
from kappaspeech.ranks.cluster import Cluster
from kappaspeech.ranks.liveness import Watch
from kappaspeech.scan.algebra import Algebra
from kappaspeech.scan.checkpoint import Checkpoint
from kappaspeech.scan.description import describe
from kappaspeech.scan.journal import Found, Journal
from kappaspeech.scan.known_matrices import naming
from kappaspeech.scan.matrices import MatrixRef, StoredMatrix, digest_matrix
from kappaspeech.scan.partition import FIXED_SECONDS, Task, assign, blocking_seconds, finishing_cost, matrix_bytes, plan
from kappaspeech.scan.read_ahead import read_ahead
from kappaspeech.scan.scaled_matrix import ScaledMatrix, num_pieces, piece_gram
from kappaspeech.scan.spectrum import DEFAULT_RTOL, Method, measure_scaled, tries_single

# of what BLAS computes on the CPU they may change the last bits
_BLAS_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_CORETYPE")


@dataclass(frozen=True)
class ScanOptions:
    """The options of a measurement. Every field but `is_static` may change a number's last bits."""

    rtol: float = DEFAULT_RTOL
    method: Method = "auto"
    is_static: bool = False
    with_sigmas: bool = False
    device: str | None = None

    def journal_key(self) -> dict[str, Any]:
        """The options in which a journal's lines must agree to be reused: another thread count changes a number's last bits."""
        computed = [self.device.partition(":")[0]] if self.device else [os.environ.get(name, "") for name in _BLAS_VARIABLES]
        return {"rtol": self.rtol, "method": self.method, "computed": computed, "with_sigmas": self.with_sigmas}

    def settings(self) -> dict[str, str]:
        """The options and variables in which all ranks must agree, by the names that a user gives them."""
        named = {"rtol": self.rtol, "method": self.method, "static": self.is_static, "spectrum": self.with_sigmas}
        options = {f"--{name}": str(value) for name, value in named.items()}
        if self.device:
            return {**options, "--device": self.device.partition(":")[0]}
        return {**options, "--device": "none", **{name: os.environ.get(name) or "not set" for name in _BLAS_VARIABLES}}


@dataclass
class Worker:
    """One rank's share of the work, and its measurements: a matrix's JSON by name."""

    checkpoint: Checkpoint
    cluster: Cluster
    options: ScanOptions
    algebra: Algebra
    watch: Watch
    journal: Journal | None
    matrices: list[MatrixRef]
    kept: Found
    # digests of matrices that the journal has, of this checkpoint or of another that shares its folder
    digests: dict[str, str]
    # the most bytes that a matrix may take of each rank
    limits: Sequence[float]
    results: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._grams: dict[tuple[int, int | None], Any] = {}
        known = [self._find_kept(ref, self.digests.get(ref.name, "")) is not None for ref in self.matrices]
        pieces = [
            1 if ref.tensor.dtype == "float64" or is_known else num_pieces(max(ref.shape))
            for ref, is_known in zip(self.matrices, known, strict=True)
        ]
        shapes = [ref.shape for ref in self.matrices]
        costs = [FIXED_SECONDS if is_known else None for is_known in known]
        self.tasks = plan(shapes, pieces, world_size=self.cluster.world_size, known_costs=costs)

    def run(self, bar: ProgressBar) -> dict[str, dict[str, Any]]:
        """Measure whole matrices and form pieces, then bring the pieces together."""
        self._bar, self._shown = bar, 0.0
        with self.watch.telling(self._show), contextlib.ExitStack() as self._spilled:
            mine: list[Task] = []
            for task, read in self._read_tasks():
                self.watch.check()
                ref = self.matrices[task.matrix]
                self.watch.begin(ref.name, patience_seconds=blocking_seconds(ref.shape))
                if task.piece is None:
                    self._measure(ref, read)
                else:
                    with naming(self.checkpoint, ref):
                        self._spill(task, self._form_piece(ref, task.piece))
                    mine.append(task)
                self._advance(task.cost)
            self.watch.begin("")
            if any(task.piece is not None for task in self.tasks):
                self._join_pieces(mine)
            # the gather that follows waits for the slowest: it must be watched too
            self.cluster.barrier()
        return self.results

    def _read_tasks(self) -> Iterator[tuple[Task, Callable[[], ScaledMatrix | None]]]:
        """This rank's tasks, and what reads the matrix of each. A device has the next one read while it computes: for a fraction
        of a second, so that the next ticket may be taken early."""
        if self.options.device is None:
            yield from ((task, partial(self._open, self.matrices[task.matrix])) for task in self._take_tasks())
        else:
            yield from read_ahead(self._take_tasks(), self._fetch)

    def _open(self, ref: MatrixRef) -> ScaledMatrix:
        """A matrix, in memory if it isn't too large. Raises `OSError`."""
        return ScaledMatrix(StoredMatrix(self.checkpoint, ref, watch=self.watch.check), self.algebra)

    def _fetch(self, task: Task) -> ScaledMatrix | None:
        """A matrix on the device; None if it needn't be read, or is read in pieces. Raises `OSError`."""
        ref = self.matrices[task.matrix]
        if task.piece is not None or self._find_kept(ref, self.digests.get(ref.name, "")) is not None:
            return None
        scaled = self._open(ref)
        scaled.fetch()
        return scaled

    def _form_piece(self, ref: MatrixRef, piece: int) -> NDArray[Any]:
        matrix = self._open(ref).matrix
        options = self.options
        is_single = tries_single(matrix, self.algebra, method=options.method, with_sigmas=options.with_sigmas)
        return piece_gram(matrix, piece, algebra=self.algebra, is_single=is_single)

    def _take_tasks(self) -> Iterator[Task]:
        if self.options.is_static:
            shares = assign(
                [task.cost for task in self.tasks],
                self.cluster.world_size,
                takes=lambda index, rank: self._takes(self.tasks[index].matrix, rank),
            )
            yield from (self.tasks[index] for index in shares[self.cluster.rank])
            return
        limit = min(self.limits)
        large: list[Task] = []
        small: list[Task] = []
        for task in self.tasks:
            (small if matrix_bytes(self.matrices[task.matrix].shape) <= limit else large).append(task)
        # matrices that not every rank has memory for are a queue of their own, which comes first
        queues = [("scan large", large), ("scan", small)] if large else [("scan", small)]
        # the counters are the cluster's: earlier scans on it have taken some. All ranks meet them, in the same order
        taken = [max(self.cluster.gather(self.cluster.take_ticket(name))) + 1 for name, _ in queues]
        for (name, tasks), first in zip(queues, taken, strict=True):
            if tasks is large and math.isfinite(self.limits[self.cluster.rank]):
                continue
            while (ticket := self.cluster.take_ticket(name) - first) < len(tasks):
                yield tasks[ticket]

    def _takes(self, matrix: int, rank: int) -> bool:
        """True if a rank may measure a matrix: its host has the memory for it, whatever the other ranks measure."""
        return matrix_bytes(self.matrices[matrix].shape) <= self.limits[rank]

    def _join_pieces(self, mine: list[Task]) -> None:
        """Carry each cut matrix's Grams to one rank, which adds them in order and finishes. As many matrices at once as ranks."""
        holders = {(task.matrix, task.piece): rank for rank, tasks in enumerate(self.cluster.gather(mine)) for task in tasks}
        cut = sorted({matrix for matrix, _ in holders})
        shares = assign(
            [finishing_cost(self.matrices[matrix].shape) for matrix in cut],
            self.cluster.world_size,
            takes=lambda index, rank: self._takes(cut[index], rank),
        )
        for turn in range(max(map(len, shares))):
            gram: NDArray[Any] | None = None
            for owner, share in enumerate(shares):
                if turn < len(share):
                    received = self._receive(cut[share[turn]], owner, holders)
                    gram = received if self.cluster.rank == owner else gram
            if gram is not None:
                ref = self.matrices[cut[shares[self.cluster.rank][turn]]]
                self.watch.begin(ref.name, patience_seconds=blocking_seconds(ref.shape))
                self._measure(ref, partial(self._open, ref), gram=gram)

    def _receive(self, matrix: int, owner: int, holders: dict[tuple[int, int | None], int]) -> NDArray[Any] | None:
        total: NDArray[Any] | None = None
        for piece in range(num_pieces(max(self.matrices[matrix].shape))):
            self.watch.check()
            holder = holders[matrix, piece]
            gram = np.load(self._grams[matrix, piece]) if self.cluster.rank == holder else None
            gram = self.cluster.move(gram, source=holder, target=owner)
            if gram is not None:
                with np.errstate(over="ignore"):
                    total = gram if total is None else np.add(total, gram, out=total)
        return total

    def _spill(self, task: Task, gram: NDArray[Any]) -> None:
        """Keep a piece's Gram in a file without a name: whatever ends this process, none of it is left behind. Raises
        `ScanError`."""
        try:
            file = self._spilled.enter_context(tempfile.TemporaryFile(buffering=0))  # noqa: SIM115 - open until all are joined
            np.save(file, gram)
            file.seek(0)
        except OSError as error:
            raise ScanError(
                f"{self.matrices[task.matrix].name}: {tempfile.gettempdir()} has no room for {gram.nbytes:,} bytes of what was "
                f"computed of it ({error.strerror or error}). Name a folder that has by TMPDIR."
            ) from error
        self._grams[task.matrix, task.piece] = file

    def _find_kept(self, ref: MatrixRef, digest: str) -> dict[str, Any] | None:
        """The journal's value of a matrix of that name, dtype and bytes."""
        if not self.journal or not self.kept:
            return None
        value = self.kept.get(self.journal.key(ref), {}).get(digest)
        return value if value is not None and ("invalid" in value or value["name"] == ref.name) else None

    def _measure(self, ref: MatrixRef, read: Callable[[], ScaledMatrix | None], *, gram: NDArray[Any] | None = None) -> None:
        with naming(self.checkpoint, ref):
            digest = self.digests.get(ref.name) or (digest_matrix(self.checkpoint, ref) if self.journal else "")
            kept = self._find_kept(ref, digest)
            if kept is not None:
                self.results[ref.name] = kept
                return
            scaled = read() or self._open(ref)
            try:
                stats = measure_scaled(
                    scaled,
                    rtol=self.options.rtol,
                    method=self.options.method,
                    gram=gram,
                    with_sigmas=self.options.with_sigmas,
                )
                value = describe(ref, stats).to_json()
                if stats.sigmas is not None:
                    value["sigmas"] = base64.b64encode(stats.sigmas.astype("<f4").tobytes()).decode()
            except ScanError as error:
                value = {"invalid": str(error)}
        self.results[ref.name] = value
        if self.journal:
            self.journal.append(ref, digest, value)

    def _advance(self, cost: float) -> None:
        self.watch.advance(cost)
        if self.cluster.world_size == 1:
            self._bar.advance(cost)

    def _show(self, done: float) -> None:
        self._bar.advance(done - self._shown)
        self._shown = done
