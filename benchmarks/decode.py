"""Decoding in batches beside one utterance at a time: the same texts, on the same cores, in one run.

    python benchmarks/decode.py MODEL --data 'shards/test/*.tar' [--batches 2] [--batch-size 32] [--max-new-tokens 48]
        [--output benchmarks/results/decode.json]

MODEL is a run or an export of the quickstart's models (SmolLM2-135M, Whisper base); without a trained one, `--untrained LLM
WHISPER.pt` makes one whose adaptor says nothing, so that texts are as long as allowed: the batches' best case, and the record
says so. Of the batches that an evaluation of all the data would decode, longest clips first, `--batches` are taken, evenly
spread. Both ways take turns, batch by batch, after a warm-up; each text is compared. On a machine that others use, `--threads 1`
and processor seconds say more than seconds. `--output` adds a run to those that the file has.

What a batch saves is the generation of each token. Encoder and prompt are matrix products that keep a processor busy also for one
utterance, and cost the same in a batch: the gain on a CPU grows with the length of the texts.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from machine import processor

from kappaspeech.artefacts import write_json
from kappaspeech.config.data_config import DatasetConfig
from kappaspeech.evaluation.decoding import Decoded
from kappaspeech.evaluation.transcribe import Transcriber
from kappaspeech.model.adaptor import AdaptorShape
from kappaspeech.model.encoder import load_encoder
from kappaspeech.model.llm import load_tokenizer
from kappaspeech.model.speech_llm import token_embedding_std
from kappaspeech.model.trained import load_trained_model
from kappaspeech.speech.corpus import make_datasets
from kappaspeech.speech.held_out import read_test_batches
from kappaspeech.speech.prompt import make_prompt
from kappaspeech.speech.samples import SAMPLE_RATE_HZ, AudioSample
from kappaspeech.trained.opening import open_transcriber


def make_untrained(llm: str, whisper: str, dtype: torch.dtype) -> Transcriber:
    """The quickstart's parts before any training."""
    encoder, tokenizer = load_encoder(whisper), load_tokenizer(llm)
    model = load_trained_model(llm, AdaptorShape(encoder.dims.width, 576, 576, 8, 4, 0.0, 1.0), {}, dtype=dtype)
    model.adaptor.shape = replace(model.adaptor.shape, embedding_std=token_embedding_std(model.llm))
    prompt = make_prompt(tokenizer, "Transcribe the speech: {audio}")
    return Transcriber(model, encoder, tokenizer, prompt, batch_size=1, max_new_tokens=1)


def decode(transcriber: Transcriber, samples: list[AudioSample], batch_size: int) -> tuple[float, float, list[Decoded]]:
    """Seconds, processor seconds, and what was decoded."""
    began, began_cpu = time.perf_counter(), time.process_time()
    decoded = [
        item for start in range(0, len(samples), batch_size) for item in transcriber.decode(samples[start : start + batch_size])
    ]
    return time.perf_counter() - began, time.process_time() - began_cpu, decoded


def measure(transcriber: Transcriber, samples: list[AudioSample], batch_size: int) -> dict[str, Any]:
    """Both ways over all samples, taking turns batch by batch, so that a slow minute of the machine meets both."""
    for warm_up in (1, batch_size):
        replace(transcriber, max_new_tokens=4).decode(samples[:warm_up])
    seconds, cpu_seconds = ({"one at a time": 0.0, "in batches": 0.0} for _ in range(2))
    texts: dict[str, list[Decoded]] = {name: [] for name in seconds}
    for start in range(0, len(samples), batch_size):
        for name, size in (("one at a time", 1), ("in batches", batch_size)):
            took, took_cpu, decoded = decode(transcriber, samples[start : start + batch_size], size)
            seconds[name] += took
            cpu_seconds[name] += took_cpu
            texts[name] += decoded
            print(f"{name}: {took:.1f} s", file=sys.stderr, flush=True)
    single, batched = texts["one at a time"], texts["in batches"]
    tokens = [len(transcriber.tokenizer(item.text)["input_ids"]) for item in batched]
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "times_faster": seconds["one at a time"] / seconds["in batches"],
        "times_less_cpu": cpu_seconds["one at a time"] / cpu_seconds["in batches"],
        "same_texts": sum(a == b for a, b in zip(single, batched, strict=True)),
        "num_utterances": len(samples),
        "mean_tokens": statistics.mean(tokens),
        "most_tokens": max(tokens),
        "endings": {ending: sum(item.ending == ending for item in batched) for ending in ("end", "loop", "length")},
        "audio_seconds": sum(len(sample.waveform) for sample in samples) / SAMPLE_RATE_HZ,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--untrained", nargs=2, metavar=("LLM", "WHISPER"))
    parser.add_argument("--data", required=True)
    parser.add_argument("--batches", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--max-new-tokens", type=int, default=48)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    dtype = getattr(torch, options.dtype)
    if options.untrained:
        transcriber = make_untrained(*options.untrained, dtype)
    else:
        transcriber = open_transcriber(Path(options.model), device=torch.device("cpu"), batch_size=1, max_new_tokens=1)
        transcriber.model.to(dtype)
    transcriber = replace(transcriber, max_new_tokens=options.max_new_tokens)
    datasets = make_datasets([DatasetConfig(shards=options.data)])
    whole = read_test_batches(datasets, batch_size=options.batch_size)
    chosen = sorted({int((i + 0.5) / options.batches * len(whole)) for i in range(options.batches)})
    samples = [sample for i in chosen for sample in whole[i]]
    result = {
        "model": "SmolLM2-135M-Instruct + Whisper base, " + ("untrained" if options.untrained else "trained"),
        "dtype": options.dtype,
        "batch_size": options.batch_size,
        "batches": f"{chosen} of {len(whole)}, longest clips first",
        "max_new_tokens": options.max_new_tokens,
        "threads": options.threads,
        "machine": {
            "processor": processor(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "load_average": os.getloadavg()[0],
        },
        **measure(transcriber, samples, options.batch_size),
    }
    print(json.dumps(result, indent=1))
    if options.output:
        before = json.loads(options.output.read_text(encoding="utf-8"))["runs"] if options.output.exists() else []
        content = {
            "schema_version": 1,
            "runs": [*before, {"command": " ".join(["benchmarks/decode.py", *sys.argv[1:]]), **result}],
        }
        write_json(options.output, content)


if __name__ == "__main__":
    main()
