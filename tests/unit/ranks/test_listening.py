"""At which address the ranks' store listens."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from types import SimpleNamespace

import psutil
import pytest

from kappaspeech.ranks import listening
from kappaspeech.ranks.cluster import MAX_POST_BYTES
from kappaspeech.ranks.listening import listen_narrowly, narrowest_address
from kappaspeech.ranks.liveness import fit


@pytest.mark.parametrize(
    ("master", "resolved", "address"),
    [
        ("127.0.0.1", {"127.0.0.1"}, "127.0.0.1"),
        ("localhost", {"::1", "127.0.0.1"}, None),
        ("localhost", {"127.0.0.1"}, None),
        ("10.1.2.3", {"10.1.2.3"}, "10.1.2.3"),
        ("::1", {"::1"}, "::1"),
        ("gpu07", {"10.1.2.3"}, "10.1.2.3"),
        # other hosts know it by another address, or by one of several
        ("gpu07", {"127.0.1.1"}, None),
        ("gpu07", {"10.1.2.3", "192.168.0.3"}, None),
        ("unknown", set(), None),
    ],
)
def test_the_narrowest_address_at_which_all_find_the_master(master, resolved, address):
    assert narrowest_address(master, resolved, is_one_host=False) == address


@pytest.mark.parametrize(
    ("resolved", "own", "address"),
    [
        ({"10.1.2.3"}, {"10.1.2.3"}, "10.1.2.3"),
        # other hosts may know it by the other network, or by IPv6
        ({"10.1.2.3"}, {"10.1.2.3", "192.168.0.3"}, None),
        ({"10.1.2.3"}, {"10.1.2.3", "2001:db8::3"}, None),
        # a service's address, which isn't the host's own
        ({"10.9.9.9"}, {"10.1.2.3"}, None),
    ],
)
def test_a_name_is_narrowed_to_an_address_where_it_can_stand_for_no_other(resolved, own, address):
    assert narrowest_address("gpu07", resolved, is_one_host=False, own=own) == address
    # which address stands in MASTER_ADDR, all know
    assert narrowest_address("10.1.2.3", {"10.1.2.3"}, is_one_host=False, own=own) == "10.1.2.3"


def test_a_name_means_the_same_to_all_ranks_of_one_host():
    assert narrowest_address("gpu07", {"127.0.1.1"}, is_one_host=True, own={"10.1.2.3"}) == "127.0.1.1"
    assert narrowest_address("gpu07", {"10.1.2.3"}, is_one_host=True, own={"10.1.2.3", "192.168.0.3"}) == "10.1.2.3"
    assert narrowest_address("gpu07", {"127.0.1.1", "10.1.2.3"}, is_one_host=True, own={"10.1.2.3"}) is None


@pytest.fixture
def two_hosts(monkeypatch) -> Callable[[str], None]:
    """Be the first of two hosts, the master by this name."""

    def begin(master: str) -> None:
        for name, value in (("MASTER_ADDR", master), ("MASTER_PORT", "0"), ("WORLD_SIZE", "2"), ("LOCAL_WORLD_SIZE", "1")):
            monkeypatch.setenv(name, value)

    return begin


def test_a_store_that_listens_on_all_addresses_says_why(two_hosts, monkeypatch, caplog):
    monkeypatch.setattr(listening, "_resolve", lambda _name: {"127.0.1.1"})
    two_hosts("gpu07")
    assert listening.open_store(0, timeout=timedelta(seconds=1)) is None
    assert "gpu07 may stand for several addresses of this host" in caplog.text
    caplog.clear()
    two_hosts("192.0.2.1")
    assert listening.open_store(0, timeout=timedelta(seconds=1)) is None
    assert "may stand for several" not in caplog.text
    assert "192.0.2.1 alone it may not" in caplog.text


def test_a_host_alone_does_not_ask_for_its_interfaces(two_hosts, monkeypatch):
    def refuse() -> None:
        raise PermissionError("no netlink here")

    monkeypatch.setattr(psutil, "net_if_addrs", refuse)
    monkeypatch.setattr(listening, "_resolve", lambda _name: {"10.1.2.3"})
    # among several hosts, by which other addresses it goes isn't known then
    two_hosts("gpu07")
    assert listening.open_store(0, timeout=timedelta(seconds=1)) is None
    two_hosts("127.0.0.1")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert listening.open_store(0, timeout=timedelta(seconds=9)) is not None


def test_bridges_of_this_host_and_interfaces_that_are_down_are_no_way_to_it(monkeypatch):
    addresses = {"eth0": "10.1.2.3", "eth1": "10.9.9.9", "docker0": "172.17.0.1", "virbr0": "192.168.122.1", "lo": "127.0.0.1"}
    found = {name: [SimpleNamespace(address=address)] for name, address in addresses.items()}
    states = {name: SimpleNamespace(isup=name != "eth1") for name in addresses}
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: found)
    monkeypatch.setattr(psutil, "net_if_stats", lambda: states)
    assert listening._own_addresses() == {"10.1.2.3"}


def test_localhost_is_loopback_where_all_ranks_are_on_it():
    assert narrowest_address("localhost", {"::1"}, is_one_host=True) == "127.0.0.1"


def test_a_socket_listens_at_that_address_alone():
    with listen_narrowly("127.0.0.1", 0) as found:
        assert found.getsockname()[0] == "127.0.0.1"
        with pytest.raises(RuntimeError, match="EADDRINUSE"):
            listen_narrowly("127.0.0.1", found.getsockname()[1])


def test_an_address_that_is_not_this_hosts_is_left_to_torch():
    # TEST-NET-1, RFC 5737
    with pytest.raises(OSError, match="assign"):
        listen_narrowly("192.0.2.1", 0)


@pytest.mark.parametrize("letter", ["x", "ü", "κ", "語", "\U0001f600", "\ud800", "\x1b", '"'])
def test_a_post_of_any_letters_fits_and_keeps_its_ends(letter):
    post = {
        "beat": 3,
        "doing": letter * 200,
        "cause": (f"first {letter * 280} last", 2),
        "over": False,
        "place": ["h", "n", 4, 5],
    }
    text = fit(post)
    assert len(text.encode()) <= MAX_POST_BYTES
    assert '"beat": 3' in text
    assert '"place": ["h", "n", 4, 5]' in text
    assert "first" in text
    assert "last" in text


def test_a_post_of_a_usual_length_is_not_changed():
    assert fit({"doing": "model.layers.0.größe"}) == '{"doing": "model.layers.0.größe"}'
