"""A real SLURM on this machine: munge, slurmctld and a slurmd a node, each node with a name and processes of its own.

The nodes share loopback and the file system. They claim 64 cores and 8 GPUs each, so that job scripts for such nodes are
taken as they are. Nothing outside its folder is touched; its processes end with this one.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from tests.conftest import clean_environment
from tests.debian import install
from tests.patience import patience

_PACKAGES = {"slurmctld": "slurmctld", "slurmd": "slurmd", "sbatch": "slurm-client", "munged": "munge"}
_START_SECONDS = 30.0
_CLIENT_SECONDS = 30.0
_ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "DEADLINE", "BOOT_FAIL"}

_CONFIG = """ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
SlurmctldPort={port}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
MpiDefault=none
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,sched_min_interval=0,bf_interval=1,batch_sched_delay=0
ReturnToService=2
JobRequeue=1
KillWait=5
MinJobAge=3600
SlurmdTimeout=30
SwitchType=switch/none
GresTypes=gpu
PartitionName=batch Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
_NODE = "NodeName={name} NodeAddr=127.0.0.1 NodeHostname={host} Port={port} CPUs=64 RealMemory=512000 Gres=gpu:8\n"
# the node's own name, known to whoever runs on it, its own /dev/shm, and a slurmd whose end is the end of all it started
_START_NODE = """
hostname "$1"
mount --bind "$2/hosts" /etc/hosts
mount -t tmpfs -o mode=1777 none /dev/shm
exec slurmd -D -N "$1"
"""


def why_not() -> str | None:
    """The reason why this machine can't run SLURM, after installing what Debian has of it; None if it can."""
    if os.geteuid() != 0:
        return "its nodes are namespaces, which need root"
    for folder in ("/usr/sbin", "/sbin"):
        if folder not in os.environ["PATH"].split(os.pathsep):
            os.environ["PATH"] += f"{os.pathsep}{folder}"
    missing = sorted({package for tool, package in _PACKAGES.items() if shutil.which(tool) is None})
    if missing and (problem := install(missing)) is not None:
        return problem
    probe = subprocess.run(["unshare", "-m", "-u", "-p", "-f", "true"], capture_output=True, text=True, check=False)
    return f"namespaces aren't allowed here: {probe.stderr.strip()}" if probe.returncode else None


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


class Slurm:
    """The cluster, running for as long as the context is open."""

    def __init__(self, folder: Path, *, num_nodes: int) -> None:
        self._folder = folder
        self.nodes = [f"n{number}" for number in range(1, num_nodes + 1)]
        self._daemons: list[subprocess.Popen[bytes]] = []
        # as of somebody who submits with the environment active, and whose cache is here
        active = {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "XDG_CACHE_HOME": str(folder / "cache"),
        }
        self._environment = clean_environment(**active, OMP_NUM_THREADS="1", SLURM_CONF=str(folder / "slurm.conf"))
        del self._environment["PYTHONPATH"]

    def __enter__(self) -> Slurm:
        try:
            self._configure()
            files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "seed-file": "seed", "log-file": "log"}
            self._start("munged", "--foreground", *(f"--{word}={self._folder}/munge.{end}" for word, end in files.items()))
            self._await("munge", lambda: (self._folder / "munge.socket").exists())
            self._start("slurmctld", "-D", "-c")
            for node in self.nodes:
                unshare = ("unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc")
                self._start(*unshare, "bash", "-ec", _START_NODE, "node", node, str(self._folder))
            self._await("every node idle", lambda: self._count_idle() == len(self.nodes))
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _configure(self) -> None:
        host, (port, *node_ports) = socket.gethostname().partition(".")[0], _free_ports(1 + len(self.nodes))
        nodes = "".join(
            _NODE.format(name=name, host=host, port=node_port) for name, node_port in zip(self.nodes, node_ports, strict=True)
        )
        (self._folder / "slurm.conf").write_text(_CONFIG.format(host=host, folder=self._folder, port=port) + nodes)
        for number in range(8):
            # SLURM wants a device for each GPU and does no more than look that it is one
            os.mknod(self._folder / f"gpu{number}", mode=stat.S_IFCHR | 0o666, device=os.stat("/dev/null").st_rdev)
        (self._folder / "gres.conf").write_text(f"Name=gpu File={self._folder}/gpu[0-7]\n")
        names = "".join(f"127.0.0.1 {name}\n" for name in self.nodes)
        (self._folder / "hosts").write_text(Path("/etc/hosts").read_text() + names)
        (self._folder / "state").mkdir()
        key = self._folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        # munge wants a way that nobody else can change
        self._folder.chmod(0o755)

    def _start(self, *words: str) -> None:
        # they end with this process, however it ends
        command = ["setpriv", "--pdeathsig", "KILL", *words]
        with (self._folder / "daemons.log").open("ab") as log:
            self._daemons.append(
                subprocess.Popen(command, env=self._environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
            )

    def _await(self, what: str, is_so, *, seconds: float = _START_SECONDS) -> None:
        deadline = time.monotonic() + patience(seconds)
        while not is_so():
            if time.monotonic() > deadline or any(daemon.poll() is not None for daemon in self._daemons):
                raise RuntimeError(f"SLURM: no '{what}'\n{self.logs()}")
            time.sleep(0.1)

    def _count_idle(self) -> int:
        done = subprocess.run(
            ["sinfo", "-h", "-t", "idle", "-o", "%D"],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=patience(_CLIENT_SECONDS),
        )
        return sum(int(word) for word in done.stdout.split())

    def logs(self) -> str:
        """The last of what each daemon said."""
        return "\n".join(
            f"== {path.name}\n{path.read_text(errors='replace')[-1500:]}" for path in sorted(self._folder.glob("*.log"))
        )

    def _end(self) -> None:
        # a node's namespace takes with it whatever still runs there
        for daemon in reversed(self._daemons):
            daemon.kill()
            daemon.wait()

    def run(self, *words: object, cwd: Path | None = None) -> str:
        """Run a client (sbatch, scontrol, scancel); return what it prints. Its failure is an `AssertionError`."""
        done = subprocess.run(
            [*map(str, words)],
            cwd=cwd,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=patience(_CLIENT_SECONDS),
            check=False,
        )
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def submit(self, *words: object, cwd: Path) -> int:
        """sbatch; the new job's id."""
        return int(self.run("sbatch", "--parsable", *words, cwd=cwd).split(";")[0])

    def job(self, number: int) -> dict[str, str]:
        """The facts that SLURM has of a job, by its own names: JobState, ExitCode, Restarts, NodeList, …"""
        record = self.run("scontrol", "-o", "show", "job", number).splitlines()[0]
        return dict(re.findall(r"(\w+)=(\S*)", record))

    def wait(self, number: int, *states: str, seconds: float) -> dict[str, str]:
        """The job once it is in one of `states`, or has ended. Raises `AssertionError` with its output after `seconds`."""
        deadline = time.monotonic() + patience(seconds)
        while True:
            job = self.job(number)
            if job["JobState"] in ({*states} or _ENDED):
                return job
            assert job["JobState"] not in _ENDED, f"{job}\n{self.output(job)}"
            assert time.monotonic() < deadline, f"{job}\n{self.output(job)}"
            time.sleep(0.2)

    def output(self, job: dict[str, str]) -> str:
        """The output of the job's ranks and its script so far."""
        path = Path(job.get("StdOut", "/nowhere"))
        return path.read_text(errors="replace") if path.is_file() else "(no output)"

    def finish(self, numbers: Sequence[int], *, seconds: float) -> list[str]:
        """Wait until the jobs have ended, each with exit code 0; return what they said."""
        outputs = []
        for number in numbers:
            job = self.wait(number, seconds=seconds)
            assert (job["JobState"], job["ExitCode"]) == ("COMPLETED", "0:0"), f"{job}\n{self.output(job)}"
            outputs.append(self.output(job))
        return outputs
