"""Values of all ranks, by one collective where there is room."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.conftest import clean_environment, free_port
from tests.patience import patience


def test_a_value_takes_one_collective_unless_it_is_larger_than_those_before():
    port = str(free_port())
    ranks = []
    for rank in range(2):
        address = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = clean_environment(OMP_NUM_THREADS="1", **address)
        command = [sys.executable, "-m", "tests.ranks.gathering_rank"]
        ranks.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    for process in ranks:
        output, errors = process.communicate(timeout=patience(60))
        assert process.returncode == 0, errors[-2000:]
        assert json.loads(output) == {"counts": [1, 2, 1, 1, 1, 2, 1, 2], "right": True}
