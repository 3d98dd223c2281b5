"""A rank's peak memory, from loading to a step, for a 1.1B-parameter Llama on 1, 2 and 4 CPU ranks.

    python benchmarks/memory.py [--ranks 1 2 4] [--output benchmarks/results/memory.json]

The Llama has TinyLlama's shape and random bfloat16 weights; its q, k and v projections are trained, the rest is frozen. Every
rank goes the way of a training: map the files, measure the embeddings, mark what trains, hash its share of what is frozen,
partition, step twice with activation checkpointing, gather what was trained, hash again. Counted is anonymous memory (RssAnon),
sampled: pages of mapped files aren't in it, they are shared and the system may drop them. A peak of fixed + shared/N is fitted
to the first and last number of ranks; those between test it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

SHAPE = {
    "vocab_size": 32_000,
    "hidden_size": 2_048,
    "intermediate_size": 5_632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
}
TRAINED = ("q_proj", "k_proj", "v_proj")
PRESET = Path(__file__).parents[1] / "ds_configs/zero3_lean.json"
ENCODER_WIDTH = 512
NUM_STEPS = 2
_SAMPLE_SECONDS = 0.01
# without these, glibc keeps what a rank has freed
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


class Peak:
    """The most anonymous memory that this process held in each of its phases, in MiB."""

    def __init__(self) -> None:
        self.by_phase: dict[str, float] = {}
        self._phase = "start"
        threading.Thread(target=self._watch, daemon=True).start()

    def enter(self, phase: str) -> None:
        self._sample()
        self._phase = phase
        self._sample()

    def _watch(self) -> None:
        wait = threading.Event()
        while not wait.wait(_SAMPLE_SECONDS):
            self._sample()

    def _sample(self) -> None:
        status = Path("/proc/self/status").read_text()
        held = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon:")) / 1024
        phase = self._phase
        self.by_phase[phase] = max(self.by_phase.get(phase, 0.0), held)


def make_llama(folder: Path) -> int:
    """Write the model tensor by tensor; return its number of parameters."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from kappaspeech.tensor_files.safetensors_writer import SafetensorsWriter

    config = LlamaConfig(**SHAPE, dtype="bfloat16", architectures=["LlamaForCausalLM"])
    with torch.device("meta"):
        shapes = {name: tuple(p.shape) for name, p in AutoModelForCausalLM.from_config(config).named_parameters()}
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    torch.manual_seed(0)
    writer = SafetensorsWriter(folder / "model.safetensors", shapes, dtype=torch.bfloat16, metadata={"format": "pt"})
    for name, shape in shapes.items():
        writer.add(name, torch.ones(shape) if len(shape) == 1 else torch.randn(shape) * 0.02)
    writer.close()
    return sum(int(torch.Size(shape).numel()) for shape in shapes.values())


def run_rank(folder: Path) -> None:
    """The way of a training; rank 0 prints every rank's peaks as one line of JSON."""
    peak = Peak()
    import torch

    from kappaspeech.config.training_config import OptimizerConfig
    from kappaspeech.model.adaptor import AdaptorShape
    from kappaspeech.model.freezing import unfreeze
    from kappaspeech.model.llm import load_llm
    from kappaspeech.model.speech_llm import SpeechLLM, token_embedding_std
    from kappaspeech.model.trained import build_adaptor
    from kappaspeech.ranks.start import start_training_cluster
    from kappaspeech.training.frozen_check import digest_frozen
    from kappaspeech.zero3.engine import MicroBatch, TrainingEngine

    torch.set_num_threads(1)
    cluster = start_training_cluster(timeout_seconds=1200)
    peak.enter("load")
    llm = load_llm(str(folder), dtype=torch.bfloat16)
    std = token_embedding_std(llm)
    unfreeze(llm, {name: p.shape for name, p in llm.named_parameters() if name.split(".")[-2] in TRAINED})
    llm.gradient_checkpointing_enable({"use_reentrant": False})
    width = SHAPE["hidden_size"]
    adaptor = build_adaptor(AdaptorShape(ENCODER_WIDTH, width, 512, 8, 4, 0.0, std), seed=1).to(torch.bfloat16)
    model = SpeechLLM(adaptor, llm)
    peak.enter("hash")
    parts: Any = SimpleNamespace(model=model, encoder=SimpleNamespace(whisper=torch.nn.Identity()))
    before = digest_frozen(parts, cluster)
    peak.enter("partition")
    engine = TrainingEngine(
        model,
        cluster=cluster,
        deepspeed_config={**json.loads(PRESET.read_text()), "bf16": {"enabled": True}},
        optimizer=OptimizerConfig(),
        micro_batches_per_rank=1,
    )
    peak.enter("step")
    ids = torch.arange(3, 8)
    batch = MicroBatch(torch.randn(1, 40, ENCODER_WIDTH), torch.tensor([40]), ids[None])
    for _ in range(NUM_STEPS):
        engine.step([batch], prefix_ids=ids, suffix_ids=ids, num_target_tokens=5 * cluster.world_size, seeds=[0])
    peak.enter("gather")
    for _name, _tensor in engine.states.gather_weights():
        pass
    assert engine.frozen_digests() == before
    peak.enter("end")
    peaks = cluster.gather(peak.by_phase)
    if cluster.rank == 0:
        print("PEAKS " + json.dumps(peaks), flush=True)
    engine.close()
    cluster.close()


def measure(folder: Path, num_ranks: int) -> list[dict[str, float]]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_ranks}"]
    done = subprocess.run(
        [*launcher, __file__, "--rank-of", str(folder)],
        env={**os.environ, **MALLOC, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    line = next((line for line in done.stdout.splitlines() if line.startswith("PEAKS ")), None)
    if done.returncode or line is None:
        raise SystemExit(done.stderr[-3000:])
    peaks: list[dict[str, float]] = json.loads(line.removeprefix("PEAKS "))
    return peaks


def summarise(peaks: dict[int, list[dict[str, float]]]) -> dict[str, Any]:
    """Peaks of the rank that held most, by phase; and fixed + shared/N through the first and last number of ranks."""
    largest = {n: {phase: round(max(rank[phase] for rank in ranks)) for phase in ranks[0]} for n, ranks in peaks.items()}
    whole = {n: max(phases.values()) for n, phases in largest.items()}
    summary: dict[str, Any] = {"mebibytes_by_phase": largest, "peak_mebibytes": whole}
    if len(whole) > 1:
        few, many = min(whole), max(whole)
        shared = (whole[few] - whole[many]) / (1 / few - 1 / many)
        fixed = whole[few] - shared / few
        between = {n: round(whole[n] / (fixed + shared / n) - 1, 3) for n in whole if n not in (few, many)}
        summary |= {"fixed_mebibytes": round(fixed), "shared_mebibytes": round(shared), "relative_error_between": between}
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results/memory.json")
    parser.add_argument("--rank-of", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank_of is not None:
        run_rank(options.rank_of)
        return
    from importlib.metadata import version

    from kappaspeech.artefacts import write_json

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "llama"
        num_parameters = make_llama(folder)
        peaks = {}
        for num_ranks in options.ranks:
            peaks[num_ranks] = measure(folder, num_ranks)
            print(f"{num_ranks} ranks: {summarise({num_ranks: peaks[num_ranks]})['mebibytes_by_phase']}", flush=True)
    record = {
        "command": f"python benchmarks/memory.py --ranks {' '.join(map(str, options.ranks))}",
        "machine": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "gpu": None},
        "versions": {"python": platform.python_version(), **{p: version(p) for p in ("torch", "deepspeed", "transformers")}},
        "model": {**SHAPE, "num_parameters": num_parameters, "weights_mebibytes": round(2 * num_parameters / 2**20)},
        "deepspeed": json.loads(PRESET.read_text()),
        "trained": list(TRAINED),
        **summarise(peaks),
    }
    write_json(options.output, record)
    print(json.dumps({key: record[key] for key in record if "mebibytes" in key or "error" in key}))


if __name__ == "__main__":
    main()
