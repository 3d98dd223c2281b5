from __future__ import annotations

import os
import subprocess
import sys

from kappaspeech.blas import pin_threads
from tests.patience import patience


def test_what_starts_in_the_environment_multiplies_on_so_many_threads():
    environment = {**os.environ, "OMP_NUM_THREADS": "7"}
    pin_threads(environment, 1)
    code = (
        "import os, numpy as np; a = np.ones((600, 600)); a @ a; "
        "print(len(os.listdir('/proc/self/task')), os.environ['OMP_NUM_THREADS'])"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=patience(30))
    assert done.stdout.split() == ["1", "1"], done.stderr
