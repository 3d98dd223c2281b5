"""`kappaspeech scan`: rank a checkpoint's tensors by condition number."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kappaspeech.escaping import for_terminal

if TYPE_CHECKING:
    from kappaspeech.ranks.cluster import Cluster
    from kappaspeech.scan.checkpoint import Checkpoint
    from kappaspeech.scan.ranking import KappaRanking


class Method(str, Enum):
    """Ways to compute κ."""

    auto = "auto"
    svd = "svd"


class Backend(str, Enum):
    """Ways in which ranks reach each other."""

    torch = "torch"
    mpi = "mpi"


@dataclass(frozen=True)
class _Wanted:
    """The arguments of a command line, by their names."""

    model: str
    output: Path
    rtol: float
    method: Method
    workers: int | None
    threads: int | None
    backend: Backend
    device: str | None
    spectrum: Path | None
    activations: Path | None
    static: bool
    journal: Path | None
    no_journal: bool

    def words(self) -> list[str]:
        """The command line of each of the ranks that a scan starts itself as."""
        from kappaspeech.commands.local_ranks import to_words

        kept = ("output", "rtol", "device", "spectrum", "static", "journal", "no_journal")
        options = {name: getattr(self, name) for name in kept}
        # a model's name may begin with a dash
        return ["scan", *to_words({**options, "method": self.method.value, "threads": self.threads or 1}), "--", self.model]


def scan(
    model: Annotated[str, typer.Argument(help="A folder or file of weights, or a hub id.")],
    output: Annotated[Path, typer.Option(help="File of the ranking (JSON).")] = Path("ranking.json"),
    rtol: Annotated[float, typer.Option(help="Relative tolerance of κ.")] = 1e-6,
    method: Annotated[Method, typer.Option(help="auto: fast, with a bound; svd: plain singular values.")] = Method.auto,
    workers: Annotated[
        int | None, typer.Option(help="Number of processes, if no launcher starts them. Default: one a core, if memory lasts.")
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            help="Threads of each process. More processes are faster than more threads. Default: 1, of --activations all."
        ),
    ] = None,
    backend: Annotated[Backend, typer.Option(help="torch, or mpi under mpirun.")] = Backend.torch,
    device: Annotated[
        str | None, typer.Option(help="Device to compute on by torch, such as cuda. Default: the CPU, by BLAS.")
    ] = None,
    spectrum: Annotated[Path | None, typer.Option(help="Also write all singular values there (safetensors).")] = None,
    activations: Annotated[
        Path | None,
        typer.Option(
            help="Rank W·Σ^½ in place of W, Σ being of the inputs that this text brings each linear module: a file of one text a "
            "line, or a folder of .txt files. By this process alone."
        ),
    ] = None,
    static: Annotated[bool, typer.Option("--static", help="Assign tensors to processes beforehand, not from a queue.")] = False,
    journal: Annotated[Path | None, typer.Option(help="Folder of finished tensors. Default: the user's cache.")] = None,
    no_journal: Annotated[
        bool, typer.Option("--no-journal", help="Neither keep nor use tensors that were measured before.")
    ] = False,
) -> int:
    """Rank a model's tensors by condition number κ = σ_max/σ_min, on all cores or as ranks of any launcher.

    Finished tensors are kept in a journal: a scan that was killed continues where it stopped.
    """
    began = time.monotonic()
    wanted = _Wanted(
        model=model,
        output=output,
        rtol=rtol,
        method=method,
        workers=workers,
        threads=threads,
        backend=backend,
        device=device,
        spectrum=spectrum,
        activations=activations,
        static=static,
        journal=journal,
        no_journal=no_journal,
    )
    _check(wanted)
    _pin(wanted)
    from kappaspeech.ranks.workers import run_workers

    cluster, checkpoint = _meet(wanted)
    if activations is not None:
        ranking = _rank_by_activations(checkpoint, activations, wanted)
    else:
        wanted = _settle_journal(cluster, wanted)
        num_workers = _count_workers(checkpoint, wanted)
        if num_workers > 1:
            return run_workers(wanted.words(), num_workers=num_workers)
        ranking = _measure(cluster, checkpoint, wanted)
    _report(cluster, ranking, wanted, seconds=time.monotonic() - began)
    cluster.close()
    return 0


def _check(wanted: _Wanted) -> None:
    """Refuse values that no scan has, and options and launchers that --activations knows nothing of."""
    from kappaspeech.errors import InputError
    from kappaspeech.needed_packages import need

    if not 0 < wanted.rtol < 1:
        raise InputError(f"--rtol is {wanted.rtol}; give a relative tolerance between 0 and 1, as 1e-6.")
    if any(number is not None and number < 1 for number in (wanted.threads, wanted.workers)):
        raise InputError("--threads and --workers are at least 1.")
    if wanted.activations is not None:
        _check_alone(is_plain=not (wanted.device or wanted.spectrum), workers=wanted.workers, journal=wanted.journal)
    if wanted.backend is Backend.mpi:
        need("--backend mpi", "mpi4py")


def _pin(wanted: _Wanted) -> None:
    """Settle the number of BLAS's threads, before BLAS is loaded."""
    from kappaspeech.blas import pin_threads

    if wanted.activations is None or wanted.threads is not None:
        pin_threads(os.environ, wanted.threads or 1)


def _is_alone(wanted: _Wanted) -> bool:
    from kappaspeech.ranks.rendezvous import find_launch

    return wanted.backend is Backend.torch and find_launch(os.environ).world_size == 1


def _meet(wanted: _Wanted) -> tuple[Cluster, Checkpoint]:
    """The ranks, and the checkpoint on each. A collective."""
    from kappaspeech.outputs import try_output
    from kappaspeech.ranks.agreement import agreement
    from kappaspeech.ranks.cluster import SingleProcess
    from kappaspeech.ranks.start import start_cluster
    from kappaspeech.scan.checkpoint import open_checkpoint

    # ranks meet first: what one of them can't open must reach those that would wait for it
    cluster = SingleProcess() if _is_alone(wanted) else start_cluster(backend=wanted.backend.value)
    with agreement(cluster):
        for path in (wanted.output, wanted.spectrum) if cluster.rank == 0 else ():
            if path is not None:
                try_output(path)
        checkpoint = open_checkpoint(wanted.model)
    return cluster, checkpoint


def _settle_journal(cluster: Cluster, wanted: _Wanted) -> _Wanted:
    """The same without a journal, if it would lie in a cache that a rank's user can't write into. A collective."""
    from kappaspeech.scan.journal import find_fault

    if wanted.journal is not None or wanted.no_journal:
        return wanted
    fault = find_fault(cluster)
    if fault is not None and cluster.rank == 0:
        told = f"no journal can be kept ({fault}): a scan that is killed begins again. --journal FOLDER keeps one elsewhere."
        print(for_terminal(f"warning: {told}"), file=sys.stderr)
    return replace(wanted, no_journal=fault is not None)


def _count_workers(checkpoint: Checkpoint, wanted: _Wanted) -> int:
    """The number of processes to start, 1 for none; it says so if memory is free for fewer than there are cores."""
    from kappaspeech.ranks.workers import count_devices
    from kappaspeech.scan.processes import count_processes

    if not _is_alone(wanted):
        return 1
    if wanted.workers is not None:
        return wanted.workers
    if wanted.device is not None:
        return count_devices(wanted.device)
    processes = count_processes(checkpoint, num_threads=wanted.threads or 1)
    if processes.fitting < processes.most:
        told = (
            f"{processes.fitting} of {processes.most} possible processes: {processes.free_bytes / 1e9:.1f} GB of memory are free"
        )
        print(for_terminal(f"{told} for them (--workers says otherwise)"), file=sys.stderr)
    return processes.fitting


def _measure(cluster: Cluster, checkpoint: Checkpoint, wanted: _Wanted) -> KappaRanking:
    """The ranking, on every rank. A collective."""
    from kappaspeech.allocator import keep_freed_memory
    from kappaspeech.ranks.agreement import agreement
    from kappaspeech.scan.journal import default_folder
    from kappaspeech.scan.stage import scan as run_scan

    if wanted.device is None:
        # otherwise the pages of each block are given back and faulted in again, a quarter of the time
        keep_freed_memory()
    with agreement(cluster):
        folder = None if wanted.no_journal else wanted.journal or default_folder(checkpoint)
    return run_scan(
        checkpoint,
        cluster=cluster,
        rtol=wanted.rtol,
        method=wanted.method.value,
        is_static=wanted.static,
        with_sigmas=wanted.spectrum is not None,
        device=wanted.device,
        journal=folder,
        shows_progress=True,
    )


def _report(cluster: Cluster, ranking: KappaRanking, wanted: _Wanted, *, seconds: float) -> None:
    """Write what was measured, and print the summary. A collective; rank 0 does it."""
    from kappaspeech.ranks.agreement import agreement
    from kappaspeech.scan.summary import summarise_scan

    with agreement(cluster):
        if cluster.rank == 0:
            ranking.write(wanted.output)
            if wanted.spectrum is not None:
                ranking.write_spectra(wanted.spectrum)
                print(for_terminal(str(wanted.spectrum)))
            for line in summarise_scan(ranking, wanted.output, seconds=seconds):
                print(for_terminal(line))


def _check_alone(*, is_plain: bool, workers: int | None, journal: Path | None) -> None:
    """Refuse options and launchers that --activations knows nothing of."""
    from kappaspeech.errors import InputError
    from kappaspeech.needed_packages import need
    from kappaspeech.ranks.rendezvous import find_launch

    if find_launch(os.environ).world_size > 1 or not is_plain:
        raise InputError("--activations is measured by one process on the CPU, and keeps no spectrum: give it alone.")
    ignored = [option for option, given in (("--workers", (workers or 1) > 1), ("--journal", journal)) if given]
    if ignored:
        raise InputError(
            f"--activations is measured by one process, which keeps no journal: leave {' and '.join(ignored)} out. "
            "--threads says how many cores it uses."
        )
    need("--activations", "transformers")


def _rank_by_activations(checkpoint: Checkpoint, text: Path, wanted: _Wanted) -> KappaRanking:
    from kappaspeech.evaluation.forgetting import cut_windows, read_texts
    from kappaspeech.model.llm import load_tokenizer
    from kappaspeech.scan.activations import rank_by_activations

    windows = cut_windows(load_tokenizer(checkpoint.where), read_texts(text))
    return rank_by_activations(checkpoint, windows, rtol=wanted.rtol, method=wanted.method.value, shows_progress=True)
