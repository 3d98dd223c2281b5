"""The κ-scan on the device: a random checkpoint, one worker and several, rankings byte for byte, some matrices in float64."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from train_shapes import SHAPES

from gpu_sections.cases import Case, Context, Differs, Report, run_command
from gpu_sections.checkpoints import write_llama
from kappaspeech.scan.checkpoint import open_checkpoint

# κ is asked for to this
RTOL = 1e-6
_NUM_WORKERS = {"cuda": 4, "cpu": 2}
# up to this many rows singular values come directly, beyond it as roots of the Gram matrix's
_MAX_DIRECT = 1500
_MATRICES = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")


def cases(_context: Context) -> list[Case]:
    return [
        Case("checkpoint", make, 60),
        Case("one worker", scan_by_one, 90),
        Case("several workers", scan_by_several, 90),
        Case("float64", compare_with_float64, 60),
    ]


def make(context: Context, report: Report) -> None:
    name = {"8b": "llama-3.1-8b", "1b": "llama-3.2-1b"}.get(context.shape, context.shape)
    began = time.monotonic()
    size = write_llama(folder_of(context), SHAPES[name].llm, context.device)
    seconds = time.monotonic() - began
    report.add(bytes=size, seconds_to_write=seconds, line=f"{size / 1e9:.3g} GB of random bfloat16 in {seconds:.1f} s")


def scan_by_one(context: Context, report: Report) -> None:
    scan(context, report, num_workers=1)


def scan_by_several(context: Context, report: Report) -> None:
    scan(context, report, num_workers=_NUM_WORKERS[context.device.type])
    one = ranking_of(context, 1)
    if not one.exists():
        report.add(equal_bytes=None)
        return
    equal = one.read_bytes() == ranking_of(context, _NUM_WORKERS[context.device.type]).read_bytes()
    report.add(equal_bytes=equal, line=f"{report.facts['line']}; ranking byte-equal: {'yes' if equal else 'no'}")
    if not equal:
        raise Differs("the rankings of one worker and of several aren't the same bytes")


def scan(context: Context, report: Report, *, num_workers: int) -> None:
    output = ranking_of(context, num_workers)
    options = ["--no-journal", f"--workers={num_workers}", f"--rtol={RTOL}", f"--device={context.device.type}"]
    seconds, _ = run_command(context, "scan", folder_of(context), f"--output={output}", *options)
    matrices = json.loads(output.read_text(encoding="utf-8"))["tensors"]
    rungs: dict[str, int] = {}
    for matrix in matrices:
        rungs[str(matrix["rung"])] = rungs.get(str(matrix["rung"]), 0) + 1
    report.add(seconds_of_the_command=seconds, num_workers=num_workers, num_matrices=len(matrices), rungs=rungs)
    report.add(line=f"{len(matrices)} matrices by {num_workers} worker(s) in {seconds:.1f} s, start included")


def compare_with_float64(context: Context, report: Report) -> None:
    """Six matrices of the middle layer. Raises `Differs` if a κ lies farther off than its bound and the reference allow."""
    rankings = sorted(context.scratch.glob("ranking-*.json"))
    if not rankings:
        raise RuntimeError("no scan has left a ranking")
    matrices = json.loads(rankings[0].read_text(encoding="utf-8"))["tensors"]
    ranked = {matrix["parameter"]: matrix for matrix in matrices}
    layer = max(int(name.split(".layers.")[1].split(".")[0]) for name in ranked if ".layers." in name) // 2
    compared: list[dict[str, Any]] = []
    for kind in _MATRICES:
        name = f"model.layers.{layer}.{kind}.weight"
        began = time.perf_counter()
        kappa, method, error = reference_kappa(read(context, name))
        found = ranked[name]
        compared.append(
            {
                "name": name,
                "kappa": found["kappa"],
                "reference": kappa,
                "relative_difference": abs(found["kappa"] - kappa) / kappa,
                "error_bound": found["error_bound"],
                "reference_error": error,
                "method": method,
                "seconds": time.perf_counter() - began,
            }
        )
        report.add(compared=compared)
    wrong = [c["name"] for c in compared if c["relative_difference"] > max(c["error_bound"], RTOL) + c["reference_error"]]
    worst = max(item["relative_difference"] for item in compared)
    report.add(line=f"{len(compared)} matrices in float64: κ to {worst:.1g}")
    if wrong:
        raise Differs(f"κ beyond its bound: {', '.join(wrong)}")


def read(context: Context, name: str) -> Tensor:
    from safetensors import safe_open

    index = json.loads((folder_of(context) / "model.safetensors.index.json").read_text(encoding="utf-8"))
    assert name in open_checkpoint(str(folder_of(context)))
    with safe_open(folder_of(context) / index["weight_map"][name], framework="pt") as file:
        return file.get_tensor(name).to(context.device).double()


def reference_kappa(matrix: Tensor) -> tuple[float, str, float]:
    """κ in float64 by torch alone, how, and about how far it may be off: a Gram matrix squares κ, and with it the rounding."""
    if min(matrix.shape) <= _MAX_DIRECT:
        sigmas = torch.linalg.svdvals(matrix)
        kappa = float(sigmas[0] / sigmas[-1])
        return kappa, "svdvals", 100 * torch.finfo(torch.float64).eps * kappa
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    squares = torch.linalg.eigvalsh(wide @ wide.T)
    kappa = math.sqrt(float(squares[-1]) / float(squares[0]))
    return kappa, "eigvalsh of the Gram matrix", 10 * torch.finfo(torch.float64).eps * kappa**2


def folder_of(context: Context) -> Path:
    return context.scratch / "llm"


def ranking_of(context: Context, num_workers: int) -> Path:
    return context.scratch / f"ranking-{num_workers}.json"
