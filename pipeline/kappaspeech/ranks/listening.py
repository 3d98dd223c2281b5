"""Where the ranks' common store listens: not on every interface, as torch's does, for it asks nobody who he is."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
from collections.abc import Collection
from datetime import timedelta
from typing import Any

from kappaspeech.escaping import make_logger

_LOOPBACK_INTERFACE = "lo"
_BACKLOG = 2048
_log = make_logger(__name__)


def narrowest_address(master: str, resolved: set[str], *, is_one_host: bool, own: Collection[str] = ()) -> str | None:
    """The one address at which all ranks find the host `master`, which its own host resolves to `resolved`; None for unknown.

    A host that knows itself by loopback alone (127.0.1.1 of Debian) is known to others by another address, and so may be one that
    has several (`own`): a name stands for what each host's own files and servers say. One that is told «localhost» may be the
    first of several (Kubeflow), unless all ranks are known to be on it.
    """
    if is_one_host and master == "localhost":
        return "127.0.0.1"
    with contextlib.suppress(ValueError):
        return str(ipaddress.ip_address(master))
    if len(resolved) != 1 or (not is_one_host and (any(map(_is_loopback, resolved)) or not resolved.issuperset(own))):
        return None
    return next(iter(resolved))


def _own_addresses() -> set[str]:
    """By which other hosts may reach this one: of all interfaces, but those that hold on one link alone."""
    import psutil

    found = {address.address.partition("%")[0] for interface in psutil.net_if_addrs().values() for address in interface}
    return {text for text in found if (address := _parse(text)) and not address.is_loopback and not address.is_link_local}


def _parse(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None  # a card's own


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def _resolve(name: str) -> set[str]:
    try:
        return {str(found[4][0]) for found in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)}
    except OSError:
        return set()


def listen_narrowly(master: str, port: int, *, is_one_host: bool = False) -> socket.socket | None:
    """A socket that listens at the master address's own interface; None where that isn't known or isn't this host's (a service's
    address, NAT): then torch's listens on all. Raises `RuntimeError` where the port is taken."""
    address = narrowest_address(master, _resolve(master), is_one_host=is_one_host, own=_own_addresses())
    if address is None:
        return None
    listening = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((address, port))
        listening.listen(_BACKLOG)
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            raise RuntimeError(f"EADDRINUSE: {error}") from error
        return None
    return listening


def open_store(rank: int, *, timeout: timedelta) -> Any:
    """On rank 0 the server of the store, to be kept: what torch or DeepSpeed then start for `env://` finds it by its port.

    None on other ranks, under torchrun, whose agent has the store, and where only torch's own will do. Raises `RuntimeError`.
    """
    master, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    is_one_host = os.environ["WORLD_SIZE"] in ("1", os.environ.get("LOCAL_WORLD_SIZE"))
    address = narrowest_address(master, _resolve(master), is_one_host=is_one_host, own=_own_addresses())
    if address is not None and _is_loopback(address) and _LOOPBACK_INTERFACE in [name for _, name in socket.if_nameindex()]:
        # gloo's sockets ask nobody either
        os.environ.setdefault("GLOO_SOCKET_IFNAME", _LOOPBACK_INTERFACE)
    if rank != 0 or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return None
    listening = listen_narrowly(master, port, is_one_host=is_one_host)
    if listening is None:
        _log.warning(
            "%s may stand for several addresses of this host: the ranks' store listens on all of them. MASTER_ADDR as an address "
            "narrows it to one.",
            master,
        )
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
