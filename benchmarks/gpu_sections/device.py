"""The device and the speeds it reaches: versions, `doctor`, matrix products on random numbers, attention, and copies."""

from __future__ import annotations

import re
import shutil
import subprocess

import torch
from torch.nn import functional

from gpu_sections.cases import Case, Context, Report, command_line, median_seconds
from kappaspeech.model.precision import measure_rates

# dense bfloat16 summed in float32, from the makers' data sheets, by words of a device's name; the first that fits counts
_DATA_SHEETS = {
    "GB200": 2500e12,
    "B200": 2250e12,
    "GH200": 989e12,
    "H200 NVL": 836e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H800 PCIe": 756e12,
    "H800": 989e12,
    "H20": 148e12,
    "A100": 312e12,
    "A800": 312e12,
    "A30": 165e12,
    "A40": 149.7e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "RTX 6000 Ada": 364e12,
    "RTX A6000": 154.8e12,
    "RTX 4090": 165.2e12,
    "RTX 3090": 71e12,
}
_ASK_SECONDS = 20.0
# (rows, inner, columns): a square one, and the MLP and the head of Llama-3.1-8B on a micro-batch
_PRODUCTS = {"square": (8192, 8192, 8192), "mlp": (4096, 4096, 14336), "head": (1024, 4096, 128256)}
_SMALL_PRODUCTS = {"square": (256, 256, 256), "mlp": (64, 64, 128)}
_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}
# batch, heads, positions, head width
_ATTENTION, _SMALL_ATTENTION = (16, 32, 512, 128), (2, 4, 64, 16)


def cases(_context: Context) -> list[Case]:
    return [Case("rates", measure, 60), Case("doctor", ask_doctor, 60)]


def data_sheet_rate(name: str) -> float | None:
    """Dense bfloat16 operations a second as the maker states them; None for a device that isn't known here, or a part of one."""
    words = set(re.split("[ -]", name))
    if "MIG" in words:
        return None
    return next((rate for part, rate in _DATA_SHEETS.items() if words.issuperset(part.split())), None)


def measure(context: Context, report: Report) -> None:
    device = context.device
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        free, total = torch.cuda.mem_get_info(device)
        facts = {"processors": properties.multi_processor_count, "free_bytes": free, "total_bytes": total}
        report.add(**facts, capability=f"{properties.major}.{properties.minor}", nvidia_smi=ask_nvidia_smi())
        report.add(data_sheet_bfloat16_flops_per_second=data_sheet_rate(properties.name))
    # "high" is TF32, which NVIDIA's images switch on
    report.add(float32_matmul_precision=torch.get_float32_matmul_precision())
    measure_products(context, report)
    # what a run chooses its dtype by
    report.add(measure_rates=measure_rates(device))
    report.add(attention=measure_attention(context))
    copies = measure_copies(context)
    report.add(copy_bytes_per_second=copies)
    best = max(report.facts["matmul_flops_per_second"]["bfloat16"].values(), default=0.0)
    lines = ", ".join(f"{name} {rate / 1e9:.0f} GB/s" for name, rate in copies.items())
    report.add(line=f"bfloat16 {best / 1e12:.4g} TFLOP/s on random numbers; copies: {lines}")


def measure_products(context: Context, report: Report) -> None:
    """Report operations a second by dtype and product, each as it is known, and the error of a dtype that the device refuses."""
    found: dict[str, dict[str, float]] = {name: {} for name in _DTYPES}
    errors: dict[str, str] = {}
    for dtype_name, dtype in _DTYPES.items():
        try:
            for name, (rows, inner, columns) in (_SMALL_PRODUCTS if context.is_rehearsal else _PRODUCTS).items():
                left = torch.randn(rows, inner, device=context.device).to(dtype)
                right = torch.randn(inner, columns, device=context.device).to(dtype)
                seconds = median_seconds(context, lambda left=left, right=right: left @ right)
                found[dtype_name][name] = 2 * rows * inner * columns / seconds
                report.add(matmul_flops_per_second=found)
        except RuntimeError as error:
            errors[dtype_name] = str(error)
            report.add(refused_dtypes=errors)


def measure_attention(context: Context) -> dict[str, float]:
    """Causal attention's forward and backward in bfloat16, whole squares counted."""
    batch, heads, length, width = _SMALL_ATTENTION if context.is_rehearsal else _ATTENTION
    query, key, value = (
        torch.randn(batch, heads, length, width, device=context.device).to(torch.bfloat16).requires_grad_() for _ in range(3)
    )
    gradient = torch.randn_like(query)

    def work() -> None:
        functional.scaled_dot_product_attention(query, key, value, is_causal=True).backward(gradient)

    seconds = median_seconds(context, work)
    # two products forward, four backward
    return {"seconds": seconds, "flops_per_second": 6 * 2 * batch * heads * length * length * width / seconds}


def measure_copies(context: Context) -> dict[str, float]:
    """Bytes a second, those read and those written counted on one device, those that cross between two."""
    size = 1 << (20 if context.is_rehearsal else 30)
    here = torch.randint(0, 255, (size,), dtype=torch.uint8, device=context.device)
    there = torch.empty_like(here)
    rates = {"on the device": 2 * size / median_seconds(context, lambda: there.copy_(here))}
    if context.device.type == "cuda":
        pinned, pageable = torch.empty(size, dtype=torch.uint8, pin_memory=True), torch.ones(size, dtype=torch.uint8)
        moves = {
            "from the host, pinned": lambda: here.copy_(pinned, non_blocking=True),
            "to the host, pinned": lambda: pinned.copy_(here, non_blocking=True),
            "from the host": lambda: here.copy_(pageable),
            "to the host": lambda: pageable.copy_(here),
        }
        rates |= {name: size / median_seconds(context, move) for name, move in moves.items()}
    return rates


def ask_nvidia_smi() -> str | None:
    """Name, driver, clocks, power and temperature, as the driver's tool has them."""
    if shutil.which("nvidia-smi") is None:
        return None
    fields = "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.draw,power.limit,temperature.gpu,memory.total"
    words = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=_ASK_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        return str(error)
    return done.stdout.strip() or done.stderr.strip()


def ask_doctor(context: Context, report: Report) -> None:
    """Run `doctor`. Its findings are recorded, and are no failure of this case."""
    words = command_line("doctor")
    done = subprocess.run(words, capture_output=True, text=True, timeout=max(context.seconds_left, 1.0), check=False)
    lines = done.stdout.strip().splitlines()
    report.add(exit_code=done.returncode, says=lines)
    if done.returncode not in (0, 1) or not lines:
        raise RuntimeError(f"kappaspeech doctor ended with {done.returncode}:\n{done.stderr[-3000:]}")
    report.add(line=lines[-1])
