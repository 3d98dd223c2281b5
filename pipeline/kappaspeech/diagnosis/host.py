"""This host: compiler, build folders, shared memory, limits, ports, GPUs, MPI."""

from __future__ import annotations

import resource
import shutil
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from kappaspeech.diagnosis.finding import Finding, Status
from kappaspeech.processors import count_cores
from kappaspeech.ranks.rendezvous import find_port

_COMPILERS = ("c++", "g++", "clang++")
_STALE_SECONDS = 600.0
_LOCK_NAMES = ("lock", ".ninja_lock")
_ENOUGH_SHM_BYTES = 1 << 30
# Docker's default of 64 MB, which NCCL and loader processes exceed at once
_LITTLE_SHM_BYTES = 128 << 20
_ENOUGH_FILES = 4096
_DEFAULT_PORT = 29500
_ASK_SECONDS = 20.0


def check_host(environment: Mapping[str, str], *, launched: bool) -> list[Finding]:
    """Check everything about this host. `launched`: the rendezvous port is this launch's own, and so taken."""
    return [
        check_compiler(environment),
        *check_build_folder(find_build_folder(environment), now=time.time()),
        check_shared_memory(Path("/dev/shm")),
        check_open_files(*resource.getrlimit(resource.RLIMIT_NOFILE)),
        *([] if launched else [check_port(environment.get("MASTER_PORT") or str(_DEFAULT_PORT))]),
        *check_gpus(),
        check_mpi(),
    ]


def check_compiler(environment: Mapping[str, str]) -> Finding:
    """Check for a C++ compiler and ninja, with which DeepSpeed's ops are compiled."""
    named = environment.get("CXX")
    compiler = next((found for name in ([named] if named else _COMPILERS) if (found := shutil.which(name))), None)
    ninja = shutil.which("ninja")
    if compiler and ninja:
        return Finding("compiler", "ok", f"{compiler} and {ninja}")
    missing = " and ".join(name for name, found in ((named or "a C++ compiler", compiler), ("ninja", ninja)) if not found)
    remedy = (
        "Only DeepSpeed's quantised messages (zero_quantized_weights, zero_quantized_gradients) are compiled: for them install "
        "g++ and ninja, or load your cluster's module."
    )
    return Finding("compiler", "warning", f"{missing} isn't on PATH", remedy)


def find_build_folder(environment: Mapping[str, str]) -> Path:
    """The folder in which torch compiles extensions."""
    named = environment.get("TORCH_EXTENSIONS_DIR")
    cache = environment.get("XDG_CACHE_HOME") or str(Path(environment.get("HOME", "/")) / ".cache")
    return Path(named) if named else Path(cache) / "torch_extensions"


def check_build_folder(folder: Path, *, now: float) -> list[Finding]:
    """Check for locks that a killed build left: every later build waits for them without a word."""
    try:
        locks = [path for name in _LOCK_NAMES for path in folder.rglob(name) if path.is_file()]
        ages = {path: now - path.stat().st_mtime for path in locks}
    except OSError as error:
        return [Finding("build folder", "warning", f"{folder} can't be read: {error}", "Set TORCH_EXTENSIONS_DIR to another.")]
    if not ages:
        return [Finding("build folder", "ok", f"{folder} has no locks")]
    return [
        Finding("build folder", "problem", f"{path} is {age / 60:.0f} minutes old", f"If nothing is being built: rm {path}")
        if age > _STALE_SECONDS
        else Finding("build folder", "warning", f"{path} is {age:.0f} s old: something is being built", "Wait for it to end.")
        for path, age in sorted(ages.items())
    ]


def check_shared_memory(folder: Path) -> Finding:
    """Check the room in which loader processes and NCCL exchange data."""
    try:
        usage = shutil.disk_usage(folder)
    except OSError as error:
        return Finding("shared memory", "warning", f"{folder} can't be read: {error.strerror}", "Set data.num_workers to 0.")
    found = f"{folder} has {usage.free / 1e9:.2f} of {usage.total / 1e9:.2f} GB free"
    remedy = "In a container: --shm-size=8g, or --ipc=host. Else remove what killed processes left there."
    status: Status = "ok" if usage.free >= _ENOUGH_SHM_BYTES else "warning" if usage.free >= _LITTLE_SHM_BYTES else "problem"
    return Finding("shared memory", status, found, "" if status == "ok" else remedy)


def check_open_files(soft: int, hard: int) -> Finding:
    """Check the limit of open files: each shard that is read is one, and each rank has a dozen sockets."""
    unlimited = resource.RLIM_INFINITY
    found = f"a process may have {'any number' if soft == unlimited else soft} open"
    if soft == unlimited or soft >= _ENOUGH_FILES:
        return Finding("open files", "ok", found)
    possible = _ENOUGH_FILES if hard == unlimited else min(_ENOUGH_FILES, hard)
    return Finding("open files", "warning", found, f"ulimit -n {possible}, before the launch and on every host")


def check_port(named: str) -> Finding:
    """Check the port at which torchrun and deepspeed meet, unless they are given another."""
    port = find_port(named)
    if port is None:
        return Finding("ports", "problem", f"MASTER_PORT is {named!r:.60}, which is no port", "Set it to one, or unset it.")
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
        except OSError as error:
            remedy = "launch/train.sh and kappaspeech train choose a free one; for other launchers give --master_port."
            return Finding("ports", "warning", f"port {port} is taken ({error.strerror})", remedy)
    return Finding("ports", "ok", f"port {port} is free")


def check_gpus() -> list[Finding]:
    """Check what torch sees against what the driver sees, and NCCL."""
    import torch

    driver = _ask("nvidia-smi", "--query-gpu=driver_version,name,memory.used,memory.total", "--format=csv,noheader,nounits")
    seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not driver:
        found = f"no GPU: training runs on this CPU, {count_cores()} cores"
        return [Finding("GPUs", "ok", found)]
    rows = [[cell.strip() for cell in line.split(",")] for line in driver.splitlines()]
    if not seen:
        built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
        remedy = "Install PyTorch's CUDA build that the driver supports; see also CUDA_VISIBLE_DEVICES."
        return [Finding("GPUs", "problem", f"the driver has {len(rows)} GPU(s), torch ({built}) sees none", remedy)]
    nccl = ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]
    findings = [Finding("GPUs", "ok", f"{seen} × {rows[0][1]}, driver {rows[0][0]}, CUDA {torch.version.cuda}, NCCL {nccl}")]
    return [*findings, *find_taken_gpus(rows)]


def find_taken_gpus(rows: Sequence[Sequence[str]]) -> list[Finding]:
    """A warning for each GPU whose memory something holds. `rows`: driver, name, MiB in use and in all.

    Of a GPU that shares its host's memory the driver says "[N/A]".
    """
    findings = []
    for number, (_, _, used, total, *_) in enumerate(rows):
        if used.isdecimal() and total.isdecimal() and int(used) > 0.1 * int(total):
            found = f"GPU {number} has {int(used) / 1024:.1f} of {int(total) / 1024:.0f} GiB in use"
            findings.append(Finding("GPUs", "warning", found, "Something runs on it (nvidia-smi): end it, or take other GPUs."))
    return findings


def _ask(*words: str) -> str:
    """A tool's output; "" if it isn't there or fails."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=_ASK_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def check_mpi() -> Finding:
    """Check for mpirun, which only `mpirun` launches and `scan --backend mpi` need."""
    path = shutil.which("mpirun")
    if path is None:
        return Finding("MPI", "ok", "no mpirun on PATH: launch with deepspeed, torchrun, srun or kappaspeech train")
    version = _ask(path, "--version").splitlines()
    return Finding("MPI", "ok", f"{path}: {version[0]}" if version else f"{path} (it doesn't say its version)")
