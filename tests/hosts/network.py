"""Hosts for tests: each a set of Linux namespaces with a network, a host name, a /tmp, processes and an sshd of its own.

They hang on one switch, share the folders they are given as a cluster shares a file system, and can be crashed, unplugged and
slowed. Nothing of them has a name outside: all is gone once their first processes are, and those die with this one.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from tests.debian import install
from tests.patience import patience

_PREFIX = "10.213.7."
_PACKAGES = {
    "sshd": "openssh-server",
    "ssh": "openssh-client",
    "pdsh": "pdsh",
    "ip": "iproute2",
    "tc": "iproute2",
    "mkfs.ext4": "e2fsprogs",
    "fsfreeze": "util-linux",
}
_NEEDED = ("unshare", "nsenter", "setpriv", "mount")
_START_SECONDS = 20.0

_SSHD_CONFIG = """Port 22
HostKey {keys}/host
AuthorizedKeysFile {keys}/user.pub
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
PasswordAuthentication no
PidFile none
MaxStartups 100
"""
_SSH_CONFIG = """Host *
 IdentityFile {keys}/user
 StrictHostKeyChecking no
 UserKnownHostsFile /dev/null
 LogLevel ERROR
"""
# The first process of a host. Shared folders below /tmp are put aside while /tmp becomes the host's own.
_INIT = """
set -eu
hostname "$1"
mount -t tmpfs -o mode=1777 none /dev/shm
mount -t tmpfs none /run
mkdir -p /run/sshd /run/shared
for folder in {shared}; do
  mkdir -p "/run/shared$folder"
  mount --bind "$folder" "/run/shared$folder"
done
mount -t tmpfs -o mode=1777 none /tmp
for folder in {shared}; do
  mkdir -p "$folder"
  mount --move "/run/shared$folder" "$folder"
done
mount --bind {keys}/hosts /etc/hosts
mount --bind {keys}/ssh_config /etc/ssh/ssh_config
until ip -4 address show dev eth0 2>/dev/null | grep -q inet; do sleep 0.02; done
"$(command -v sshd)" -f {keys}/sshd_config -E {keys}/sshd-"$1".log
touch {keys}/ready-"$1"
exec sleep infinity
"""


def why_not() -> str | None:
    """The reason why this machine can't have such hosts, after installing what Debian has of it; None if it can."""
    if os.geteuid() != 0:
        return "network namespaces with an sshd each need root"
    os.environ["PATH"] += f"{os.pathsep}/usr/sbin{os.pathsep}/sbin"
    lacking = [tool for tool in _NEEDED if shutil.which(tool) is None]
    if lacking:
        return f"{', '.join(lacking)} isn't installed"
    packages = sorted({package for tool, package in _PACKAGES.items() if shutil.which(tool) is None})
    if packages and (problem := install(packages)) is not None:
        return problem
    probe = subprocess.run(["unshare", "-n", "-u", "-m", "-p", "-f", "true"], capture_output=True, text=True, check=False)
    return f"namespaces aren't allowed here: {probe.stderr.strip()}" if probe.returncode else None


class Host:
    """One host; `pid` is its first process, by which others enter it."""

    def __init__(self, name: str, address: str, network: Network) -> None:
        self.name = name
        self.address = address
        self._network = network
        self._init: subprocess.Popen[bytes] | None = None
        self.pid = 0
        self._is_slow = False
        self.start()

    def start(self) -> None:
        """Switch the host on."""
        keys = self._network.folder
        ready = keys / f"ready-{self.name}"
        ready.unlink(missing_ok=True)
        init = _INIT.format(keys=keys, shared=" ".join(map(str, self._network.shared)))
        namespaces = ("-n", "-u", "-m", "-p", "-f", "--mount-proc", "--kill-child")
        self._init = subprocess.Popen(
            [*_dying_with_us(), "unshare", *namespaces, "bash", "-c", init, "init", self.name],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        children = Path(f"/proc/{self._init.pid}/task/{self._init.pid}/children")
        _wait_for(lambda: bool(children.read_text().split()), f"{self.name} to have a first process")
        self.pid = int(children.read_text().split()[0])
        self._network.plug_in(self)
        _wait_for(ready.exists, f"{self.name} to be ready")

    def command(self, *words: object) -> list[str]:
        """`words` as a command that runs on this host, in this process's working folder."""
        inside = ["nsenter", "-t", str(self.pid), "-n", "-u", "-m", "-p", f"--wd={os.getcwd()}", "--"]
        return [*inside, *map(str, words)]

    def run(self, *words: object, timeout: float = patience(60)) -> str:
        """Run a command here and return what it prints."""
        done = subprocess.run(self.command(*words), capture_output=True, text=True, timeout=timeout, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def replace(self, path: Path, other: Path) -> None:
        """Let this host alone see `other` where all see `path`."""
        self.run("mount", "--bind", other, path)

    def put_back(self, path: Path) -> None:
        self.run("umount", path)

    def ranks(self) -> list[int]:
        """Processes of this host that are ranks of something, by their ids on it."""
        listing = "grep -lzs ^LOCAL_RANK= /proc/[0-9]*/environ | cut -d/ -f3"
        return [int(word) for word in self.run("bash", "-c", listing).split()]

    def unplug(self) -> None:
        """Pull the cable at the switch: the others hear nothing any more."""
        self._network.switch("ip", "link", "set", self.name, "down")

    def replug(self) -> None:
        self._network.switch("ip", "link", "set", self.name, "up")

    def slow_down(self, rate: str) -> None:
        """Limit what reaches the host and what it sends, as "200kbit"."""
        limit = ["root", "tbf", "rate", rate, "burst", "16k", "latency", "400ms"]
        self._network.switch("tc", "qdisc", "add", "dev", self.name, *limit)
        self.run("tc", "qdisc", "add", "dev", "eth0", *limit)
        self._is_slow = True

    def speed_up(self) -> None:
        """Take back `slow_down`, if there was one."""
        if self._is_slow:
            self._network.switch("tc", "qdisc", "del", "dev", self.name, "root")
            self.run("tc", "qdisc", "del", "dev", "eth0", "root")
        self._is_slow = False

    def crash(self) -> None:
        """Cut the power: no process gets to say good-bye to another host."""
        self.unplug()
        self.stop()

    def stop(self) -> None:
        if self._init is not None:
            self._init.kill()
            self._init.wait()
            _wait_for(lambda: not Path(f"/proc/{self.pid}").exists(), f"{self.name} to be gone")
            self._init = None

    @property
    def is_on(self) -> bool:
        return self._init is not None


class Network:
    """A switch and the hosts h1, h2, … on it. `shared` folders are the same on all; use as a context."""

    def __init__(self, folder: Path, *, num_hosts: int, shared: Sequence[Path]) -> None:
        self.folder = folder
        self.shared = tuple(shared)
        self.hosts: list[Host] = []
        self._num_hosts = num_hosts
        self._switch: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Network:
        self.folder.mkdir(parents=True, exist_ok=True)
        for key in ("host", "user"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.folder / key], check=True)
        (self.folder / "sshd_config").write_text(_SSHD_CONFIG.format(keys=self.folder))
        (self.folder / "ssh_config").write_text(_SSH_CONFIG.format(keys=self.folder))
        names = [f"{_PREFIX}{number} h{number}\n" for number in range(1, self._num_hosts + 1)]
        (self.folder / "hosts").write_text("127.0.0.1 localhost\n" + "".join(names))
        try:
            ready = f"ip link add br0 type bridge && ip link set br0 up && touch {self.folder}/switch && exec sleep infinity"
            self._switch = subprocess.Popen([*_dying_with_us(), "unshare", "-n", "bash", "-c", ready], start_new_session=True)
            _wait_for((self.folder / "switch").exists, "the switch")
            for number in range(1, self._num_hosts + 1):
                self.hosts.append(Host(f"h{number}", f"{_PREFIX}{number}", self))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for host in self.hosts:
            with contextlib.suppress(Exception):
                host.stop()
        if self._switch is not None:
            self._switch.kill()
            self._switch.wait()

    def switch(self, *words: str) -> None:
        """Run a command in the switch's network."""
        done = self._on_switch(*words)
        assert done.returncode == 0, done.stderr

    def _on_switch(self, *words: str) -> subprocess.CompletedProcess[str]:
        assert self._switch is not None
        inside = ["nsenter", "-t", str(self._switch.pid), "-n", *words]
        return subprocess.run(inside, capture_output=True, text=True, check=False)

    def plug_in(self, host: Host) -> None:
        """Give `host` an eth0 with its address, at the switch's port of its name."""
        # the kernel takes its time to remove the port of a host that has crashed
        self._on_switch("ip", "link", "del", host.name)
        # a host keeps its card, and so the others' memory of it holds, when it starts anew
        card = f"02:00:00:00:00:{int(host.address.rpartition('.')[2]):02x}"
        self.switch(
            *("ip", "link", "add", host.name, "type", "veth"),
            *("peer", "name", "eth0", "address", card, "netns", str(host.pid)),
        )
        self.switch("ip", "link", "set", host.name, "master", "br0", "up")
        for words in ("link set lo up", f"address add {host.address}/24 dev eth0", "link set eth0 up"):
            subprocess.run(["nsenter", "-t", str(host.pid), "-n", "ip", *words.split()], check=True)


def _dying_with_us() -> list[str]:
    return ["setpriv", "--pdeathsig", "KILL"]


def _wait_for(condition: object, what: str) -> None:
    deadline = time.monotonic() + patience(_START_SECONDS)
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {_START_SECONDS:.0f} s for {what}")
        time.sleep(0.02)
