"""A run from its first start to its end, started again after faults on the hosts that are left."""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kappaspeech.artefacts import write_private, write_text
from kappaspeech.errors import ConfigError, InputError, TrainingError
from kappaspeech.escaping import for_terminal
from kappaspeech.gpus import count_for_training, count_gpus
from kappaspeech.launching import remote
from kappaspeech.launching.attempt import Attempt, Signals, run_attempt
from kappaspeech.launching.command_lines import (
    FORWARDED_VARIABLES,
    MARK_VARIABLE,
    CommandLine,
    carried_variables,
    choose_launcher,
    environment_file_text,
    is_plain,
    on_hosts,
    on_this_host,
    path_word,
    split_words,
    under_slurm,
)
from kappaspeech.launching.file_system import find_problem
from kappaspeech.launching.guard import guarded
from kappaspeech.launching.hostfile import read_hostfile
from kappaspeech.launching.reports import report_folder
from kappaspeech.processors import share_cores
from kappaspeech.ranks.rendezvous import free_port
from kappaspeech.redaction import HIDDEN, redact
from kappaspeech.runs.checkpoints import list_checkpoints
from kappaspeech.runs.contents import CHECKPOINTS_FOLDER
from kappaspeech.runs.lease import free
from kappaspeech.shipped import find_shipped

FIRST_DELAY_SECONDS = 5.0
LONGEST_DELAY_SECONDS = 300.0


@dataclass(frozen=True)
class Request:
    """A start: the arguments of `train`, the folder they name, the hosts of the ranks, and the longest stall of one."""

    arguments: tuple[str, ...]
    run_dir: Path
    num_ranks: int | None = None
    hostfile: Path | None = None
    stall_seconds: float = 300.0


@dataclass(frozen=True)
class Start:
    """A command line with the files that must be on disk before it runs, the host of each rank, and the hosts reached by ssh."""

    command: CommandLine
    mark: str
    environment_path: Path | None = None
    environment_text: str = ""
    hosts_by_rank: tuple[str, ...] = ()
    ssh_hosts: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.environment_path is None:
            return str(self.command)
        # a user's own variables may be secrets
        pairs = [line.partition("=") for line in self.environment_text.splitlines()]
        shown = [f"{name}={value if name in (*FORWARDED_VARIABLES, MARK_VARIABLE) else HIDDEN}" for name, _, value in pairs]
        return f"# {self.environment_path} holds: {shlex.join(shown)}\n{self.command}"


def find_script(name: str) -> str:
    """A file of `launch/`, as one would type it from here. Raises `ConfigError` if it is missing."""
    path = find_shipped(f"launch/{name}")
    if path is None:
        raise ConfigError(f"launch/{name} is missing beside the package. Install kappaspeech again, or work in a clone.")
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def prepare_start(request: Request, *, ask_hosts: bool) -> Start:
    """The next start: a fresh mark, a free port, and without the hosts that don't answer.

    With `ask_hosts` False no host is asked, and the port is DeepSpeed's own. Raises `TrainingError` if no host answers.
    """
    mark = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
    script = find_script("train.sh")
    if request.hostfile is None:
        assert request.num_ranks is not None
        launcher = _choose_launcher(request.num_ranks)
        variables = _rank_variables(request.num_ranks, launcher)
        return Start(
            on_this_host(script, request.arguments, launcher=launcher, variables=variables),
            mark,
            hosts_by_rank=(socket.gethostname(),) * request.num_ranks,
        )
    if not is_plain(sys.executable):
        raise ConfigError(
            f"DeepSpeed starts {sys.executable} on other hosts without quoting it, so that a shell there would take it apart. "
            "Put the environment at a path of letters, digits and ./-_."
        )
    hosts = read_hostfile(request.hostfile)
    names = [host.name for host in hosts]
    answers = remote.find_ports(names, ssh_options=_ssh_options()) if ask_hosts else []
    gone = {answer.host: answer.problem for answer in answers if answer.problem is not None}
    if len(gone) == len(names):
        reasons = "; ".join(f"{host}: {problem}" for host, problem in gone.items())
        raise TrainingError(f"No host of {request.hostfile} answers over ssh ({reasons}).")
    for host, problem in gone.items():
        print(for_terminal(f"{host} is left out: {problem}"), file=sys.stderr)
    port = next((int(answer.text) for answer in answers if answer.problem is None), 29500)
    environment_path = report_folder(request.run_dir, mark) / "deepspeed_env"
    command = on_hosts(
        script,
        request.arguments,
        hostfile=path_word(request.hostfile),
        left_out=list(gone),
        port=port,
        environment_file=str(environment_path.absolute()),
        ssh=os.environ.get("PDSH_SSH_ARGS_APPEND", ""),
    )
    forwarded = carried_variables(os.environ, folder=str(Path.cwd()))
    text = environment_file_text(_own_environment_files(), {**forwarded, MARK_VARIABLE: mark})
    used = [host for host in hosts if host.name not in gone]
    by_rank = tuple(host.name for host in used for _ in range(host.slots))
    return Start(command, mark, environment_path, text, by_rank, tuple(host.name for host in used))


def _choose_launcher(num_ranks: int) -> tuple[str, ...]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return choose_launcher(num_ranks, num_gpus=count_for_training(), visible=visible, port=free_port())


def _rank_variables(num_ranks: int, launcher: Sequence[str]) -> dict[str, str]:
    """The variables that ranks here need: on processors DeepSpeed would look for a GPU, and every rank would take all cores;
    torchrun gives each rank one core, where the optimizer may be offloaded to."""
    on_processors = "DS_ACCELERATOR" not in os.environ and not count_gpus()
    if not on_processors and launcher[0] != "torchrun":
        return {}
    threads = os.environ.get("OMP_NUM_THREADS") or str(share_cores(num_ranks))
    return {**({"DS_ACCELERATOR": "cpu"} if on_processors else {}), "OMP_NUM_THREADS": threads}


def _own_environment_files() -> str:
    """The text of the user's own DeepSpeed environment files, in DeepSpeed's order: home folder, working folder."""
    name = os.environ.get("DS_ENV_FILE", ".deepspeed_env")
    paths = dict.fromkeys(folder / name for folder in (Path.home(), Path.cwd()))
    return "\n".join(path.read_text(encoding="utf-8") for path in paths if path.is_file())


def _ssh_options() -> list[str]:
    return split_words(os.environ.get("PDSH_SSH_ARGS_APPEND", ""), what="PDSH_SSH_ARGS_APPEND")


def supervise(request: Request, *, max_restarts: int = 0, first_delay_seconds: float = FIRST_DELAY_SECONDS) -> Attempt:
    """Start the run, and again after each fault, at most `max_restarts` times; return its end.

    Each start leaves out the hosts that don't answer then. The delay doubles for as long as no new checkpoint appears. A fault in
    the input would come again the next time: it ends the run at once.
    """
    history: list[str] = []
    delay = first_delay_seconds
    with Signals() as signals:
        while True:
            problem, reached = _newest_checkpoint(request)
            attempt = Attempt("failed", 1, (problem,)) if problem is not None else _start(request, signals)
            if attempt.status != "failed" or attempt.exit_code == 2 or signals.count:
                return attempt
            history.append("; ".join(attempt.causes))
            if len(history) > max_restarts:
                numbered = tuple(f"start {number}: {cause}" for number, cause in enumerate(history, start=1))
                return Attempt("failed", attempt.exit_code, numbered if max_restarts else attempt.causes)
            problem, newest = _newest_checkpoint(request)
            delay = first_delay_seconds if problem is None and newest != reached else delay
            again = f"restart {len(history)} of {max_restarts} in {delay:.0f} s"
            print(for_terminal(f"failed: {history[-1]}\n{again}"), file=sys.stderr)
            if not _pause(delay, signals):
                return attempt
            delay = min(2 * delay, LONGEST_DELAY_SECONDS)


def _start(request: Request, signals: Signals) -> Attempt:
    try:
        # before this start touches the files of one that runs
        free(request.run_dir)
        start = prepare_start(request, ask_hosts=True)
        write_text(report_folder(request.run_dir, start.mark) / "command.txt", redact(f"{start}\n"))
        if start.environment_path is not None:
            write_private(start.environment_path, start.environment_text)
    except (TrainingError, InputError) as error:
        return Attempt("failed", error.exit_code, (str(error),))
    except OSError as error:
        return Attempt("failed", 1, (f"{request.run_dir} can't be written on {socket.gethostname()}: {error}",))
    print(for_terminal(str(start)), file=sys.stderr)

    def end_remote() -> list[str]:
        answers = remote.end_leftovers(start.ssh_hosts, start.mark, ssh_options=_ssh_options())
        return [f"what runs on {a.host} can't be ended ({a.problem})" for a in answers if a.problem is not None]

    with guarded(start.mark, hosts=start.ssh_hosts, ssh_options=_ssh_options() if start.ssh_hosts else ()):
        return run_attempt(
            start.command,
            mark=start.mark,
            run_dir=request.run_dir,
            signals=signals,
            stall_seconds=request.stall_seconds,
            hosts_by_rank=start.hosts_by_rank,
            end_remote=end_remote if start.ssh_hosts else None,
        )


def submit(arguments: Sequence[str], *, options: str, dry_run: bool) -> int:
    """Hand the run to SLURM, where the job itself resumes and requeues; return sbatch's exit code."""
    command = under_slurm(find_script("slurm/train.sbatch"), arguments, options=options)
    print(for_terminal(str(command)))
    if dry_run:
        return 0
    if shutil.which("sbatch") is None:
        raise ConfigError("There is no sbatch here; submit from a host of the SLURM cluster.")
    return 1 if subprocess.run(command.words, check=False).returncode else 0


def _newest_checkpoint(request: Request) -> tuple[str | None, str | None]:
    """The reason why the run folder can't be used, and the name of its last checkpoint.

    It asks first: a read in a file system that hangs would keep this process for good.
    """
    problem = find_problem(request.run_dir, timeout_seconds=request.stall_seconds)
    found = list_checkpoints(request.run_dir / CHECKPOINTS_FOLDER) if problem is None else []
    return problem, found[-1].name if found else None


def _pause(seconds: float, signals: Signals) -> bool:
    """Wait; False if a signal came meanwhile."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not signals.count:
        time.sleep(0.1)
    return not signals.count
