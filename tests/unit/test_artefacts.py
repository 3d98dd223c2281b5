"""Digests of values and lines."""

from __future__ import annotations

import hashlib

from kappaspeech.artefacts import digest_json, digest_lines


def test_a_digest_is_of_canonical_json():
    assert digest_json({"b": "ä", "a": [1]}) == hashlib.sha256('{"a":[1],"b":"ä"}'.encode()).hexdigest()
    assert digest_lines(["a", "ä"]) == hashlib.sha256("a\nä\n".encode()).hexdigest()


def test_half_of_a_surrogate_pair_has_a_digest_of_its_own():
    """JSON may hold one, and so may an index."""
    assert len({digest_json("\ud800"), digest_json("\ud801"), digest_json("?")}) == 3
    assert len({digest_lines(["\ud800"]), digest_lines(["\ud801"]), digest_lines(["?"])}) == 3
