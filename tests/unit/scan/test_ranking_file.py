"""A ranking or selection that was edited, torn or made up is refused with the field and its value."""

from __future__ import annotations

import copy
import json

import pytest

from kappaspeech.errors import InputError
from kappaspeech.scan.ranking import KappaRanking
from kappaspeech.selection.tensor_selection import TensorSelection

GONE = object()
VALUES = [GONE, None, "x", -1, [], {}, 10**30, "\ud800"]
REPLACEABLE = {"model", "method", "rung", "dtype", "name", "parameter", "reason", "checkpoint_digest", "rule", "ranking_digest"}
# computed from the rest, and not read
UNREAD = {"entropy_bits", "stable_rank", "is_below_storage_noise"}


def spoil(content, path, value):
    content = copy.deepcopy(content)
    place = content
    for key in path[:-1]:
        place = place[key]
    if value is GONE:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return content


def leaves(content, path=()):
    items = content.items() if isinstance(content, dict) else enumerate(content[:1]) if isinstance(content, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from leaves(value, (*path, key))


def is_harmless(path, value) -> bool:
    """True if a file says something that may be, after the change."""
    key = next(part for part in reversed(path) if isinstance(part, str))
    if value is GONE and path[-1] == 0 and key != "shape" and key != "matrix_shape":
        return True  # one tensor, or one alias, fewer
    if path[0] == "skipped" and key == "shape" and (path[-1] == 0 or value == []):
        return value is GONE or value == []
    if key in UNREAD or (key == "aliases" and (value == [] or isinstance(path[-1], int))):
        return value != "\ud800"
    if key in REPLACEABLE:
        return value == "x"
    if (key, value) in (("skipped", []), ("tensors", []), ("storage_noise", None), ("expert", None)):
        return True
    return key in ("rtol", "error_bound", "storage_noise") and value == 10**30


def refuse(kind, path) -> str | None:
    try:
        kind.read(path)
    except InputError as error:
        return str(error)
    return None


@pytest.mark.parametrize("kind", [KappaRanking, TensorSelection])
def test_every_field_of_another_type_or_out_of_range_is_refused(home, tmp_path, kind):
    name = "ranking.json" if kind is KappaRanking else "selection.json"
    content = json.loads((home / name).read_text())
    tried = 0
    for path in leaves(content):
        for value in VALUES:
            (tmp_path / name).write_text(json.dumps(spoil(content, path, value)))
            refusal = refuse(kind, tmp_path / name)
            harmless = is_harmless(path, value) or (kind is TensorSelection and path[-1] in ("kappa", "aliases"))
            assert refusal is not None or harmless, (path, value)
            assert refusal is None or (str(tmp_path / name) in refusal and len(refusal) < 800)
            tried += 1
    assert tried > 100


def test_the_numbers_of_a_ranking_belong_together(home, tmp_path):
    content = json.loads((home / "ranking.json").read_text())
    first = content["tensors"][0]
    for change in (
        {"sigma_min": first["sigma_max"] * 2},
        {"kappa": 1.0},
        {"zero_sigmas": 3},
        {"frobenius": first["frobenius"] * 100},
        {"log2_volume": 1e6},
        {"matrix_shape": [7, 11]},
        {"shape": [2**40, 2**40], "matrix_shape": [2**40, 2**40]},
    ):
        (tmp_path / "r.json").write_text(json.dumps({**content, "tensors": [{**first, **change}]}))
        with pytest.raises(InputError, match="is no ranking"):
            KappaRanking.read(tmp_path / "r.json")
    (tmp_path / "r.json").write_text(json.dumps({**content, "tensors": [first, first]}))
    with pytest.raises(InputError, match="twice"):
        KappaRanking.read(tmp_path / "r.json")
