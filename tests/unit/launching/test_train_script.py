"""launch/train.sh on a host with GPUs, of which this one has none: nvidia-smi and Python are stand-ins that tell and show."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import clean_environment
from tests.patience import patience

SCRIPT = Path(__file__).parents[3] / "launch/train.sh"
# it has every package, knows a free port, counts GPUs as the real one, and shows what else it is to run
PYTHON = f"""#!/bin/bash
if [ "$2" = kappaspeech.gpus ]; then exec "{sys.executable}" "$@"; fi
if [ "$1" = -c ]; then [[ $2 != *socket* ]] || echo 1234; else echo "$@ [${{CUDA_VISIBLE_DEVICES-all}}]"; fi
"""
NVIDIA_SMI = '#!/bin/bash\nfor number in 0 1 2 3; do echo "GPU $number: NVIDIA H100 (UUID: GPU-$number)"; done\n'


def start(
    folder: Path, *, python: str = PYTHON, nvidia_smi: str = NVIDIA_SMI, **variables: str
) -> subprocess.CompletedProcess[str]:
    for name, content in (("python", python), ("nvidia-smi", nvidia_smi)):
        (folder / name).write_text(content)
        (folder / name).chmod(0o755)
    environment = clean_environment(PATH=f"{folder}:/usr/bin:/bin", PYTHON=str(folder / "python"), **variables)
    for name in {"DS_ACCELERATOR", "CUDA_VISIBLE_DEVICES", "NUM_RANKS", "OMP_NUM_THREADS"} - set(variables):
        environment.pop(name, None)
    words = ["bash", str(SCRIPT), "c.yaml"]
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=patience(10), check=False)


@pytest.mark.parametrize(
    "variables, words, visible",
    [
        ({}, "deepspeed.launcher.runner -q --master_port", "all"),
        ({"CUDA_VISIBLE_DEVICES": "2,3"}, "deepspeed.launcher.runner -q --include localhost:2,3", "all"),
        ({"NUM_RANKS": "3"}, "deepspeed.launcher.runner -q --num_gpus 3", "all"),
        ({"NUM_RANKS": "1", "CUDA_VISIBLE_DEVICES": "2,3"}, "deepspeed.launcher.runner -q --include localhost:2", "all"),
        # DeepSpeed's launcher ended at the first letter of a name
        ({"CUDA_VISIBLE_DEVICES": "GPU-1,GPU-3"}, "torch.distributed.run --standalone --nproc-per-node 2", "GPU-1,GPU-3"),
        ({"NUM_RANKS": "1", "CUDA_VISIBLE_DEVICES": "MIG-7"}, "torch.distributed.run --standalone --nproc-per-node 1", "MIG-7"),
        ({"DS_ACCELERATOR": "cpu", "NUM_RANKS": "6"}, "deepspeed.launcher.runner -q --num_gpus 6", "all"),
        ({"CUDA_VISIBLE_DEVICES": ""}, "deepspeed.launcher.runner -q --num_gpus 1", ""),
        ({"CUDA_VISIBLE_DEVICES": "-1", "NUM_RANKS": "2"}, "deepspeed.launcher.runner -q --num_gpus 2", "-1"),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, "deepspeed.launcher.runner -q --num_gpus 1", "NoDevFiles"),
    ],
)
def test_ranks_take_the_gpus_that_may_be_used(tmp_path, variables, words, visible):
    done = start(tmp_path, **variables)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"-m {words}")
    assert done.stdout.endswith(f"c.yaml [{visible}]\n")


def test_ranks_of_torchrun_share_out_the_cores_as_others_do(tmp_path):
    python = PYTHON.replace('echo "$@ [', 'echo "$OMP_NUM_THREADS $@ [')
    # as `python -m kappaspeech.processors N` on ten cores
    python = python.replace("if ", 'if [ "$2" = kappaspeech.processors ]; then echo $((10 / $3)); exit; fi\nif ', 1)
    for variables, threads in (
        ({"CUDA_VISIBLE_DEVICES": "GPU-1,GPU-3,GPU-2"}, 3),
        ({"DS_ACCELERATOR": "cpu", "NUM_RANKS": "2"}, 5),
        ({"DS_ACCELERATOR": "cpu", "NUM_RANKS": "2", "OMP_NUM_THREADS": "7"}, 7),
    ):
        done = start(tmp_path, python=python, **variables)
        assert done.stdout.startswith(f"{threads} -m "), done
    done = start(tmp_path, python=python, CUDA_VISIBLE_DEVICES="GPU-1,GPU-3", OMP_NUM_THREADS="1")
    assert done.stdout.startswith("1 -m torch.distributed.run ")


@pytest.mark.parametrize("variables, num_gpus", [({"NUM_RANKS": "5"}, 4), ({"NUM_RANKS": "2", "CUDA_VISIBLE_DEVICES": "3"}, 1)])
def test_more_ranks_than_gpus_are_refused(tmp_path, variables, num_gpus):
    """Two ranks of one GPU met in NCCL's words alone."""
    done = start(tmp_path, **variables)
    assert done.returncode == 2
    assert f"there are {num_gpus} GPU(s) here, of which each takes one rank" in done.stderr


def test_a_driver_that_hangs_is_told_before_anything_starts(tmp_path):
    source = "import sys; from kappaspeech import gpus; gpus._DRIVER_SECONDS = 0.2; sys.exit(gpus.main())"
    python = PYTHON.replace('"$@"; fi', f'-c "{source}"; fi', 1)
    done = start(tmp_path, python=python, nvidia_smi="#!/bin/bash\nexec sleep 60\n")
    assert (done.returncode, done.stdout) == (1, "")
    assert "the GPUs' driver hangs" in done.stderr
