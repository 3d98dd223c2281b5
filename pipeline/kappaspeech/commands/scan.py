"""`kappaspeech scan`: rank a checkpoint's tensors by condition number."""

from __future__ import annotations

import os
import sys
import time
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from kappaspeech.ranks.cluster import Cluster
    from kappaspeech.scan.checkpoint import Checkpoint


class Method(str, Enum):
    """Ways to compute κ."""

    auto = "auto"
    svd = "svd"


class Backend(str, Enum):
    """Ways in which ranks reach each other."""

    torch = "torch"
    mpi = "mpi"


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
    from kappaspeech.blas import pin_threads
    from kappaspeech.errors import InputError
    from kappaspeech.escaping import for_terminal
    from kappaspeech.needed_packages import need
    from kappaspeech.ranks.agreement import agreement
    from kappaspeech.ranks.cluster import SingleProcess
    from kappaspeech.ranks.rendezvous import find_launch
    from kappaspeech.ranks.start import start_cluster

    if not 0 < rtol < 1:
        raise InputError(f"--rtol is {rtol}; give a relative tolerance between 0 and 1, as 1e-6.")
    if (threads is not None and threads < 1) or (workers is not None and workers < 1):
        raise InputError("--threads and --workers are at least 1.")
    if activations is not None:
        _check_alone(is_plain=not (device or spectrum), workers=workers, journal=journal)
    if backend is Backend.mpi:
        need("--backend mpi", "mpi4py")
    if activations is None or threads is not None:
        pin_threads(os.environ, threads or 1)
    from kappaspeech.outputs import try_output
    from kappaspeech.scan.checkpoint import open_checkpoint
    from kappaspeech.scan.journal import default_folder

    is_alone = find_launch(os.environ).world_size == 1 and backend is Backend.torch
    # ranks meet first: what one of them can't open must reach those that would wait for it
    cluster = SingleProcess() if is_alone else start_cluster(backend=backend.value)
    with agreement(cluster):
        for path in (output, spectrum) if cluster.rank == 0 else ():
            if path is not None:
                try_output(path)
        checkpoint = open_checkpoint(model)
    if activations is not None:
        return _scan_activations(checkpoint, activations, output, rtol=rtol, method=method.value, began=began)
    if journal is None and not no_journal:
        no_journal = not _can_keep_journal(cluster)
    if is_alone:
        from kappaspeech.ranks.workers import count_devices, run_workers

        num_workers = workers or (count_devices(device) if device else _count_workers(checkpoint, threads or 1))
        if num_workers > 1:
            again = ["scan", f"--output={output}", f"--rtol={rtol}", f"--method={method.value}", f"--threads={threads or 1}"]
            again += [f"--device={device}"] * bool(device) + [f"--spectrum={spectrum}"] * bool(spectrum)
            again += ["--static"] * static + ["--no-journal"] * no_journal + ([f"--journal={journal}"] if journal else [])
            # a model's name may begin with a dash
            return run_workers([*again, "--", model], num_workers=num_workers)
    from kappaspeech.allocator import keep_freed_memory
    from kappaspeech.scan.stage import scan as run_scan
    from kappaspeech.scan.summary import summarise_scan

    if device is None:
        # otherwise the pages of each block are given back and faulted in again, a quarter of the time
        keep_freed_memory()
    with agreement(cluster):
        folder = None if no_journal else journal or default_folder(checkpoint)
    ranking = run_scan(
        checkpoint,
        cluster=cluster,
        rtol=rtol,
        method=method.value,
        is_static=static,
        with_sigmas=spectrum is not None,
        device=device,
        journal=folder,
        shows_progress=True,
    )
    with agreement(cluster):
        if cluster.rank == 0:
            ranking.write(output)
            if spectrum is not None:
                ranking.write_spectra(spectrum)
                print(for_terminal(str(spectrum)))
            for line in summarise_scan(ranking, output, seconds=time.monotonic() - began):
                print(for_terminal(line))
    cluster.close()
    return 0


def _count_workers(checkpoint: Checkpoint, num_threads: int) -> int:
    """A process a core, or as many as the memory that is free is enough for; it says so if these are fewer."""
    from kappaspeech.escaping import for_terminal
    from kappaspeech.host_memory import free_memory_bytes
    from kappaspeech.processors import count_cores
    from kappaspeech.scan.matrices import list_matrices
    from kappaspeech.scan.partition import fitting_processes

    most, free = max(1, count_cores() // num_threads), free_memory_bytes()
    fitting = fitting_processes([ref.shape for ref in list_matrices(checkpoint)[0]], most=most, free_bytes=free)
    if fitting < most:
        told = (
            f"{fitting} of {most} possible processes: {free / 1e9:.1f} GB of memory are free for them (--workers says otherwise)"
        )
        print(for_terminal(told), file=sys.stderr)
    return fitting


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


def _can_keep_journal(cluster: Cluster) -> bool:
    """Return whether every rank can write into its user's cache; if not, rank 0 says so. A collective."""
    from kappaspeech.escaping import for_terminal
    from kappaspeech.outside import describe
    from kappaspeech.scan.journal import find_cache

    fault = None
    try:
        find_cache()
    except OSError as error:
        fault = f"{error.filename}: {describe(error)}" if error.filename else describe(error)
    fault = next((found for found in cluster.gather(fault) if found is not None), None)
    if fault is not None and cluster.rank == 0:
        told = f"no journal can be kept ({fault}): a scan that is killed begins again. --journal FOLDER keeps one elsewhere."
        print(for_terminal(f"warning: {told}"), file=sys.stderr)
    return fault is None


def _scan_activations(
    checkpoint: Checkpoint, text: Path, output: Path, *, rtol: float, method: Literal["auto", "svd"], began: float
) -> int:
    from kappaspeech.escaping import for_terminal
    from kappaspeech.evaluation.forgetting import cut_windows, read_texts
    from kappaspeech.model.llm import load_tokenizer
    from kappaspeech.scan.activations import rank_by_activations
    from kappaspeech.scan.summary import summarise_scan

    windows = cut_windows(load_tokenizer(checkpoint.where), read_texts(text))
    ranking = rank_by_activations(checkpoint, windows, rtol=rtol, method=method, shows_progress=True)
    ranking.write(output)
    for line in summarise_scan(ranking, output, seconds=time.monotonic() - began):
        print(for_terminal(line))
    return 0
