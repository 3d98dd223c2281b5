"""A run's arithmetic, chosen by its machine, and kept when it continues on another kind of machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kappaspeech.commands import main
from kappaspeech.trained.arithmetic import UseArithmetic
from kappaspeech.trained.opening import open_transcriber
from tests import tiny
from tests.conftest import clean_environment, free_port
from tests.patience import patience

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
# takes a processor's bfloat16 instructions away, whatever it has
OLDER = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}


def train(config: Path, *, ranks: int, **variables: str) -> str:
    """Train, and return what it said."""
    launcher = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={ranks}", f"--master_port={free_port()}"]
    done = subprocess.run(
        [*launcher, "-m", "kappaspeech", "train", str(config)],
        env=clean_environment(OMP_NUM_THREADS="1", **variables),
        capture_output=True,
        text=True,
        timeout=patience(120),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


@pytest.fixture(scope="module")
def write(home, tmp_path_factory):
    """Write the configuration of a run that leaves its arithmetic to the machine."""
    folder = tmp_path_factory.mktemp("kept")
    preset = str(REPOSITORY / "ds_configs/zero3_cpu.json")

    def write_config(num_steps: int) -> Path:
        changes = {"model__encoder_dtype": "auto", "deepspeed": preset, "data__test": [], "training__num_steps": num_steps}
        return tiny.write_config(folder / "run.yaml", home, folder / "run", **changes)

    return write_config


def test_a_run_begun_without_bfloat16_goes_on_in_float32_where_there_is_bfloat16(write, tmp_path, monkeypatch):
    said = train(write(2), ranks=2, **OLDER)
    run = write(4).parent / "run"
    first = json.loads((run / "run.json").read_text())
    assert (first["dtype"], first["encoder_dtype"], first["attn_implementation"]) == ("float32", "float32", "sdpa")
    assert first["dtype_flops_per_second"]["float32"] > 1.2 * first["dtype_flops_per_second"]["bfloat16"]
    # one line, of rank 0
    assert [line for line in said.splitlines() if line.startswith("computes in ")] == [
        f"computes in float32: {first['dtype_reason']}"
    ]
    assert first["deepspeed_config"]["bf16"]["enabled"] is False
    train(write(4), ranks=1)
    again = json.loads((run / "run.json").read_text())
    assert (again["dtype"], again["encoder_dtype"], again["attn_implementation"]) == ("float32", "float32", "sdpa")
    assert [json.loads(line)["step"] for line in (run / "steps.jsonl").read_text().splitlines()] == [0, 1, 2, 3]
    # and it is used as it was trained
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(run), str(tmp_path / "export")]) == 0
    assert json.loads((tmp_path / "export/speech.json").read_text())["dtype"] == "float32"


def test_a_model_trained_in_bfloat16_keeps_its_weights_where_it_is_used_in_float32(two_ranks):
    options = {"device": torch.device("cpu"), "batch_size": 1, "max_new_tokens": 2}
    fast, slow = (open_transcriber(two_ranks, use=UseArithmetic(is_fast), **options) for is_fast in (True, False))
    trained, used = dict(fast.model.named_parameters()), dict(slow.model.named_parameters())
    assert {tensor.dtype for tensor in trained.values()} == {torch.bfloat16}
    assert {tensor.dtype for tensor in used.values()} == {torch.float32}
    assert all(torch.equal(tensor.float(), used[name]) for name, tensor in trained.items())
