"""Values of all ranks, by one collective if there is room."""

from __future__ import annotations

import json


def test_a_value_takes_one_collective_unless_it_is_larger_than_those_before(nursery):
    done = nursery.run(module="tests.ranks.gathering_rank", ranks=2)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [json.loads(line) for line in done.stdout.splitlines()] == 2 * [{"counts": [1, 2, 1, 1, 1, 2, 1, 2], "right": True}]
