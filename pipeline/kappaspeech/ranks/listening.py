"""The address at which the ranks' common store listens: not every interface, as torch's does, since it authenticates nobody."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import re
import socket
from collections.abc import Collection
from datetime import timedelta
from typing import Any

from kappaspeech.escaping import make_logger

_LOOPBACK_INTERFACE = "lo"
# interfaces that lead to containers and virtual machines of this host alone: Docker's, libvirt's, Kubernetes'
_BRIDGE = re.compile(r"(docker|virbr|cni|podman|lxcbr|lxdbr)\d+|br-[0-9a-f]{12}")
_BACKLOG = 2048
_log = make_logger(__name__)


def narrowest_address(master: str, resolved: set[str], *, is_one_host: bool, own: Collection[str] = ()) -> str | None:
    """The one address at which all ranks find the host `master`, resolved by its own host to `resolved`; None if unknown.

    A host that knows itself by loopback alone (127.0.1.1 of Debian) is known to others by another address. So may be a host that
    has several (`own`): each host's own files and servers decide what a name means. A host that is given "localhost" may be the
    first of several (Kubeflow), unless all ranks are known to be on it.
    """
    if is_one_host and master == "localhost":
        return "127.0.0.1"
    with contextlib.suppress(ValueError):
        return str(ipaddress.ip_address(master))
    if len(resolved) != 1 or (not is_one_host and (any(map(_is_loopback, resolved)) or not resolved.issuperset(own))):
        return None
    return next(iter(resolved))


def _find_address(master: str, *, is_one_host: bool) -> str | None:
    resolved, own = _resolve(master), set[str]()
    if not is_one_host:
        try:
            own = _own_addresses()
        except OSError:
            # a name may resolve to addresses that aren't known
            resolved.clear()
    return narrowest_address(master, resolved, is_one_host=is_one_host, own=own)


def _own_addresses() -> set[str]:
    """The addresses by which other hosts may reach this one: of interfaces that are up, not of one link or of this host alone."""
    import psutil

    addresses, states = psutil.net_if_addrs(), psutil.net_if_stats()
    reachable = [name for name in addresses if name in states and states[name].isup and not _BRIDGE.fullmatch(name)]
    found = {address.address.partition("%")[0] for name in reachable for address in addresses[name]}
    return {text for text in found if (address := _parse(text)) and not address.is_loopback and not address.is_link_local}


def _parse(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None  # a network card's hardware address


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def _resolve(name: str) -> set[str]:
    try:
        return {str(found[4][0]) for found in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)}
    except OSError:
        return set()


def listen_narrowly(address: str, port: int) -> socket.socket:
    """A socket that listens at `address` alone. Raises `OSError` if that isn't this host's (a service's address, NAT), and
    `RuntimeError` if the port is taken."""
    listening = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((address, port))
        listening.listen(_BACKLOG)
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            raise RuntimeError(f"EADDRINUSE: {error}") from error
        raise
    return listening


def open_store(rank: int, *, timeout: timedelta) -> Any:
    """The server of rank 0's store, to be kept: the store that torch or DeepSpeed start for `env://` finds it by its port.

    None on other ranks, under torchrun, whose agent has the store, and if only torch's own will do. Raises `RuntimeError`.
    """
    master, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    is_one_host = os.environ["WORLD_SIZE"] in ("1", os.environ.get("LOCAL_WORLD_SIZE"))
    address = _find_address(master, is_one_host=is_one_host)
    if address is not None and _is_loopback(address) and _LOOPBACK_INTERFACE in [name for _, name in socket.if_nameindex()]:
        # gloo's sockets authenticate nobody either
        os.environ.setdefault("GLOO_SOCKET_IFNAME", _LOOPBACK_INTERFACE)
    if rank != 0 or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return None
    if address is None:
        _log.warning(
            "%s may stand for several addresses of this host: the ranks' store listens on all of them. MASTER_ADDR as an address "
            "narrows it to one.",
            master,
        )
        return None
    try:
        listening = listen_narrowly(address, port)
    except OSError as error:
        _log.warning("The ranks' store listens on all addresses of this host: %s alone it may not (%s).", address, error.strerror)
        return None
    import torch.distributed as dist

    return dist.TCPStore(  # type: ignore[attr-defined]
        master,
        port,
        None,
        is_master=True,
        timeout=timeout,
        wait_for_workers=False,
        multi_tenant=True,
        master_listen_fd=listening.detach(),
    )
