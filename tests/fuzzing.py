"""Readers tried with what no writer wrote: values, bytes, and what a reader may do with them.

KAPPASPEECH_FUZZ_EXAMPLES asks for more examples of each reader than the few hundred of every day, other ones each time.
"""

from __future__ import annotations

import copy
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kappaspeech.errors import KappaSpeechError
from kappaspeech.speech.samples import BadSampleError
from tests.patience import patience

__all__ = ["cuts", "damage", "edits", "fuzzed", "given", "json_changes", "junk", "numbers", "texts", "try_out", "with_changes"]

EXAMPLES = int(os.environ.get("KAPPASPEECH_FUZZ_EXAMPLES", "0"))
MOST_SECONDS, MOST_BYTES = 2.0, 500 << 20

numbers = st.one_of(
    st.integers(-3, 40),
    st.sampled_from([2**31, 2**32, 2**40, 2**62, 2**63, 2**64, 10**30, -(2**63)]),
    st.floats(allow_nan=True, allow_infinity=True),
)
texts = st.one_of(
    st.text(st.characters(exclude_categories=()), max_size=6),
    st.sampled_from(
        ["", ".", "..", "../x", "/etc/passwd", "a.weight", "F32", "BF16", "I8", "F8_E4M3", "\ud800", "\x00", "x" * 5000]
    ),
)
junk = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, texts),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=6,
)
edits = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=4)
cuts = st.one_of(st.none(), st.floats(0, 1))


def fuzzed(test: Callable[..., None]) -> Callable[..., None]:
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    often = settings(
        max_examples=EXAMPLES or 250, derandomize=not EXAMPLES, deadline=None, database=None, suppress_health_check=checks
    )
    return often(test)


def memory(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def try_out(act: Callable[[], object]) -> None:
    """Let `act` return or say what is wrong, within the bounds."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    before, began = memory("VmRSS"), time.process_time()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            act()
    except (KappaSpeechError, BadSampleError) as error:
        problem = str(error)
    else:
        problem = "-"
    assert (0 < len(problem) < 20_000, "Error(" in problem[:20]) == (True, False), problem
    assert time.process_time() - began < patience(MOST_SECONDS)
    assert memory("VmHWM") - before < MOST_BYTES


def damage(content: bytes, changes: list[tuple[float, int]], cut: float | None) -> bytes:
    damaged = bytearray(content)
    for place, value in changes:
        damaged[int(place * (len(damaged) - 1))] = value
    return bytes(damaged if cut is None else damaged[: int(cut * len(damaged))])


def places(content: object, path: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    items = (
        list(content.items() if isinstance(content, dict) else enumerate(content)) if isinstance(content, (dict, list)) else []
    )
    return [path, *(place for key, value in items for place in places(value, (*path, key)))]


def with_changes(content: object, changes: list[tuple[float, object]]) -> object:
    changed = copy.deepcopy(content)
    for where, value in changes:
        found = places(changed)
        path = found[int(where * (len(found) - 1))]
        if not path:
            return copy.deepcopy(value)
        place = changed
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = copy.deepcopy(value)
    return changed


json_changes = st.lists(st.tuples(st.floats(0, 1), junk), min_size=1, max_size=2)
