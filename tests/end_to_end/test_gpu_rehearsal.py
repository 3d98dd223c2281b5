"""benchmarks/gpu.py without a GPU: every section at the tiny shape, and what it does where time runs out."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.conftest import clean_environment
from tests.offline_host import gather_and_install, index_answers, make_host
from tests.patience import patience

REPOSITORY = Path(__file__).parents[2]
SECTIONS = ("device", "parity", "training", "scan", "resume")


def run_gpu(output: Path, *words: str, python: str = sys.executable, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, str(REPOSITORY / "benchmarks/gpu.py"), "--device", "cpu", "--output", str(output), *words],
        env=clean_environment(OMP_NUM_THREADS="1", DS_ACCELERATOR="cpu", **variables),
        capture_output=True,
        text=True,
        timeout=patience(280),
    )


@pytest.fixture
def benchmarks(monkeypatch):
    """Import a module of benchmarks/ by its name."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    return importlib.import_module


@pytest.fixture(scope="module")
def offline_host(tmp_path_factory) -> dict[str, str] | None:
    """The interpreter and PYTHONPATH of a host with the gathered wheels alone; None if no package index answers."""
    folder = tmp_path_factory.mktemp("host")
    if not index_answers(folder / "probe"):
        return None
    # of transformers it has an older one
    python = make_host(folder, without={"transformers"})
    return {"python": str(python), "PYTHONPATH": gather_and_install(python, folder)}


@pytest.mark.slow
def test_every_section_runs_at_the_tiny_shape_on_a_cpu(tmp_path, offline_host):
    done = run_gpu(tmp_path, "--shape", "8b", "--minutes", str(patience(270) / 60), **offline_host or {})
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    records = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in SECTIONS}
    for name, record in records.items():
        assert record["status"] == "ok", (name, record)
        assert record["shape"] == "tiny"
        assert "its numbers say nothing" in record["rehearsal"]
        assert all(case["line"] for case in record["cases"])
    # what a GPU host can send back: few files, small, of plain names
    files = list(tmp_path.iterdir())
    assert {path.name for path in files} == {*(f"{name}.json" for name in SECTIONS), "summary.md"}
    assert len(files) <= 8
    assert all(path.stat().st_size < 1 << 20 and re.fullmatch(r"[A-Za-z0-9._-]+", path.name) for path in files)
    assert str(REPOSITORY) not in "".join(path.read_text() for path in files)

    parity = {case["name"]: case["compared"] for case in records["parity"]["cases"]}
    assert parity["float32"]["recomputed"]["layer_passes"] == 2 * parity["float32"]["kept"]["layer_passes"]
    presets = {path.stem for path in (REPOSITORY / "ds_configs").glob("*.json")}
    assert set(parity["presets"]) == presets - {"zero3_hpz"}
    training = {case["name"]: case for case in records["training"]["cases"]}
    assert training["recomputed"]["hardware_utilisation"] > training["recomputed"]["mfu"] > 0
    assert training["kept"]["hardware_utilisation"] == training["kept"]["mfu"]
    assert training["kept"]["phase_seconds"]["forward_backward"] > 0
    resumed = next(case for case in records["resume"]["cases"] if case["name"] == "train, kill, resume")
    assert resumed["losses_bit_equal"]
    assert resumed["same_samples"]
    scans = {case["name"]: case for case in records["scan"]["cases"]}
    assert scans["several workers"]["equal_bytes"]
    assert len(scans["float64"]["compared"]) == 6


@pytest.mark.slow
def test_that_host_has_its_libraries_from_the_wheels_that_were_gathered(offline_host):
    if offline_host is None:
        pytest.skip("no package index answers: every section ran in this environment")
    words = "import importlib.util as it; print(it.find_spec('transformers').origin)"
    found = subprocess.run(
        [offline_host["python"], "-c", words],
        env={"PYTHONPATH": offline_host["PYTHONPATH"]},
        capture_output=True,
        text=True,
        timeout=patience(60),
        check=True,
    )
    assert found.stdout.startswith(offline_host["PYTHONPATH"].partition(":")[0])


def test_parity_is_of_products_with_all_digits(benchmarks, tmp_path, monkeypatch):
    """In an image that switches TF32 on, losses and weights would lie farther apart than the tolerances of float32."""
    parity, cases = benchmarks("gpu_sections.parity"), benchmarks("gpu_sections.cases")
    met: list[object] = []

    def stop(_scratch: Path) -> None:
        met.extend((torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))
        raise InterruptedError

    monkeypatch.setattr(parity, "make_home", stop)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    torch.set_float32_matmul_precision("high")
    try:
        with pytest.raises(InterruptedError):
            parity.compare_float32(cases.Context("tiny", torch.device("cpu"), tmp_path, 60.0), cases.Report(tmp_path / "report"))
    finally:
        torch.set_float32_matmul_precision("highest")
    assert met == ["highest", False]


def test_what_has_no_time_left_is_left_out_and_written_down(tmp_path):
    done = run_gpu(tmp_path, "--sections", "device", "scan", "--minutes", "0.2")
    assert done.returncode == 1
    for name in ("device", "scan"):
        record = json.loads((tmp_path / f"{name}.json").read_text())
        assert {case["status"] for case in record["cases"]} == {"left out"}
    assert "| device | rates | left out |" in (tmp_path / "summary.md").read_text()


def test_a_case_is_stopped_at_its_limit_with_all_that_it_has_started(benchmarks, tmp_path, monkeypatch):
    gpu, cases = benchmarks("gpu"), benchmarks("gpu_sections.cases")
    options = gpu.Options(("device",), "tiny", 1.0, tmp_path, None, "cpu")
    script = tmp_path / "slow.py"
    script.write_text(
        "import pathlib, subprocess, sys\n"
        "child = subprocess.Popen(['sleep', '60'])\n"
        f"pathlib.Path({str(tmp_path / 'child')!r}).write_text(str(child.pid))\n"
        f'pathlib.Path(sys.argv[5]).write_text(\'{{"status": "running", "found": 7}}\')\n'
        "print('half way', flush=True)\n"
        "child.wait()\n"
    )
    monkeypatch.setattr(gpu, "__file__", str(script))
    kept: list[dict[str, object]] = []
    facts = gpu.run_case("device", cases.Case("slow", lambda *_: None), options, tmp_path, 3.0, keep=kept.append)
    # before its end, which this process may not live to see
    assert kept == [{"status": "running", "found": 7}]
    assert (facts["status"], facts["found"]) == ("stopped", 7)
    assert "half way" in facts["error"]
    child = Path("/proc", (tmp_path / "child").read_text(), "stat")
    ends = time.monotonic() + patience(5)
    # gone, or dead and not yet reaped by its new parent
    while child.exists() and ") Z" not in child.read_text() and time.monotonic() < ends:
        time.sleep(0.05)
    assert not child.exists() or ") Z" in child.read_text()


def test_a_trace_is_told_by_the_share_of_kernels_and_the_gaps_between_them(benchmarks):
    tracing = benchmarks("gpu_sections.tracing")
    # microseconds: the second and third overlap, then nothing for 300
    kernels = [tracing.Span(*item) for item in (("a", 100, 200), ("b", 200, 400), ("a", 300, 500), ("c", 800, 1000))]
    host = [tracing.Span("cudaStreamSynchronize", 0, 50), tracing.Span("aten::item", 0, 60), tracing.Span("other", 0, 900)]
    found = tracing.summarise(kernels, host)
    assert found["wall_seconds"] == pytest.approx(1e-3)
    assert found["kernel_share"] == pytest.approx(0.6)
    assert found["longest_gaps_seconds"] == [pytest.approx(3e-4)]
    assert found["host_waits"] == {"cudaStreamSynchronize": 1}
    assert found["host_reads"] == {"aten::item": 1}
    assert [kernel["name"] for kernel in found["kernels"]] == ["a", "b", "c"]
    assert found["kernels"][0]["share"] == pytest.approx(0.3 / 0.7)


def test_the_shape_of_8b_trains_what_a_real_ranking_chooses(benchmarks):
    """Mostly MLPs and v: 2 to 4 billion parameters of 100 tensors, and not half a billion."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shapes, training, cases = (benchmarks(name) for name in ("train_shapes", "gpu_sections.training", "gpu_sections.cases"))
    shape = shapes.SHAPES["llama-3.1-8b"]
    with torch.device("meta"):
        llm = LlamaForCausalLM(LlamaConfig(**shape.llm))
    ways = training.setups(cases.Context("8b", torch.device("cpu"), Path(), 1.0))
    for setup in ways.values():
        chosen = shapes.choose_tensors(llm, shape, num_mlp=setup.num_mlp)
        assert len(chosen) == 100
        assert 1.5e9 < sum(rows * columns for rows, columns in chosen.values()) < 4e9
        assert sum("v_proj" in name for name in chosen) == 32
    assert any(setup.preset == "zero3_offload_optimizer" for setup in ways.values())


@pytest.mark.parametrize(
    "name, rate",
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA GB200", 2500e12),
        ("NVIDIA B200", 2250e12),
        ("NVIDIA H20", 148e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        # a seventh of it, a card whose name begins alike, one without bfloat16
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA RTX A4000", None),
        ("Tesla V100-SXM2-32GB", None),
    ],
)
def test_a_card_has_its_own_data_sheet_or_none(benchmarks, name, rate):
    assert benchmarks("gpu_sections.device").data_sheet_rate(name) == rate


def test_what_moves_by_rounding_alone_is_no_difference(benchmarks, monkeypatch):
    """The bias of all keys, which no gradient moves: on a GPU its noise would have failed the whole section."""
    monkeypatch.syspath_prepend(str(REPOSITORY))
    name = "adaptor.layers.0.query_key_value.bias"
    plain = {"losses": [1.0], "norms": [1.0], "trained": {name: torch.zeros(6)}}
    moved = {**plain, "trained": {name: torch.tensor([0.0, 0.0, 1.0, 1.0, 0.0, 1e-6])}}
    found = benchmarks("gpu_sections.parity").differences(moved, plain)
    assert found["weight_difference"] == pytest.approx(1e-6)
