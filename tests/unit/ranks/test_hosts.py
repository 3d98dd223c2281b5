"""The host that differs from the others."""

from __future__ import annotations

import platform
import re
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import pytest

from kappaspeech.errors import ConfigError, RankFailure
from kappaspeech.ranks import hosts
from kappaspeech.ranks.cluster import SingleProcess
from kappaspeech.ranks.hosts import check_alike, check_software, describe_clocks, describe_difference, software
from tests.patience import patience


def test_the_minority_differs_even_where_it_holds_rank_0():
    everywhere = [("h1", {"torch": "2.12"}), ("h2", {"torch": "2.13"}), ("h3", {"torch": "2.13"})]
    assert describe_difference(everywhere, 0) == "torch is 2.12 on h1, and 2.13 on h2 (rank 1)"
    assert describe_difference(everywhere, 1) is None
    assert describe_difference(everywhere, 2) is None


def test_between_two_the_one_without_rank_0_is_named():
    everywhere = [("h1", {"torch": "2.13", "numpy": "2"}), ("h2", {"torch": "2.12", "numpy": "1"})]
    assert describe_difference(everywhere, 0) is None
    difference = describe_difference(everywhere, 1)
    assert difference == "torch is 2.12 on h2, and 2.13 on h1 (rank 0); numpy is 1 on h2, and 2 on h1 (rank 0)"


class Seat(SingleProcess):
    """A rank of several that are threads of this process."""

    def __init__(self, rank: int, table: list[Any], meeting: threading.Barrier) -> None:
        super().__init__()
        self.rank, self.world_size = rank, len(table)
        self._table, self._meeting = table, meeting

    def gather(self, value: Any) -> list[Any]:
        self._table[self.rank] = value
        self._meeting.wait()
        everywhere = list(self._table)
        self._meeting.wait()
        return everywhere


def meet(monkeypatch, hosts: Sequence[str], act: Callable[[Seat, str], object]) -> dict[str, Exception | None]:
    """Run `act` on one rank of each host at once; return what it raises there."""
    monkeypatch.setattr(socket, "gethostname", lambda: threading.current_thread().name)
    table, meeting = [None] * len(hosts), threading.Barrier(len(hosts), timeout=patience(10))
    raised: dict[str, Exception | None] = {}

    def be_rank(rank: int, host: str) -> None:
        try:
            act(Seat(rank, table, meeting), host)
            raised[host] = None
        except (ConfigError, RankFailure) as error:
            raised[host] = error

    threads = [threading.Thread(target=be_rank, args=pair, name=pair[1]) for pair in enumerate(hosts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


def check_together(monkeypatch, facts: Mapping[str, Mapping[str, str]]) -> dict[str, Exception | None]:
    """Run `check_alike` on all hosts in `facts` at once."""
    remedy = "Install the same on all hosts."
    return meet(monkeypatch, list(facts), lambda seat, host: check_alike(seat, facts[host], remedy=remedy))


def test_hosts_that_run_alike_go_on(monkeypatch):
    assert check_together(monkeypatch, {"h1": software(), "h2": software()}) == {"h1": None, "h2": None}


def test_a_host_that_runs_another_version_is_told_by_name_on_every_host(monkeypatch):
    raised = check_together(monkeypatch, {"h1": software(), "h2": {**software(), "numpy": "0.9"}, "h3": software()})
    numpy = software()["numpy"]
    said = f"numpy is 0.9 on h2, and {numpy} on h1 (rank 0). Install the same on all hosts."
    assert isinstance(raised["h2"], ConfigError)
    assert str(raised["h2"]) == said
    for host in ("h1", "h3"):
        failure = raised[host]
        assert isinstance(failure, RankFailure)
        assert (failure.rank, failure.exit_code) == (1, 2)
        assert str(failure) == f"rank 1 on h2 failed: {said}"


def test_hosts_are_asked_for_their_software_and_ranks_of_one_host_are_not(monkeypatch):
    versions = {"h1": "1", "h2": "2"}
    monkeypatch.setattr(hosts, "software", lambda: {"numpy": versions[threading.current_thread().name]})
    raised = meet(monkeypatch, ["h1", "h2"], lambda seat, _host: check_software(seat))
    assert str(raised["h2"]) == "numpy is 2 on h2, and 1 on h1 (rank 0). Install the same on all hosts."
    monkeypatch.setattr(hosts, "software", lambda: pytest.fail("it takes a while"))
    check_software(SingleProcess())


def test_what_a_host_runs_is_its_python_its_packages_and_this_projects_code():
    found = software()
    assert found["Python"] == platform.python_version()
    assert found["torch"] == version("torch")
    assert re.fullmatch("[0-9a-f]{64}", found["kappaspeech's code"])
    assert "not installed" not in found.values()


@pytest.mark.parametrize(("seconds", "words"), [(90.0, "90 s ahead of"), (-90.0, "90 s behind"), (4.0, None)])
def test_a_clock_apart_is_told_with_its_skew(seconds, words):
    lines = describe_clocks([("h1", 1000.0), ("h1", 1000.1), ("h2", 1000.0 + seconds)])
    assert [words in line and line.startswith("the clock of h2") for line in lines] == ([True] if words else [])
