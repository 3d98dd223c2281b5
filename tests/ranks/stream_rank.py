"""A rank of a stream, in a process of its own: reads requests {rank, world_size, first, count} as JSON lines, answers with each
step's keys and weights."""

from __future__ import annotations

import itertools
import json
import sys
from dataclasses import replace

from kappaspeech.model.llm import load_tokenizer
from kappaspeech.speech.corpus import SpeechDataset
from kappaspeech.speech.schedule import BatchBudget
from kappaspeech.speech.stream import SpeechStream


def main() -> None:
    home, shards = sys.argv[1:]
    tokenizer = load_tokenizer(f"{home}/llm")
    for line in sys.stdin:
        request = json.loads(line)
        datasets = [SpeechDataset(shards, language=language, weight=weight) for language, weight in (("en", 1.0), ("de", 2.0))]
        stream = SpeechStream(
            [replace(dataset) for dataset in datasets],
            tokenizer=tokenizer,
            num_mels=80,
            budget=BatchBudget(max_samples=2, max_seconds=20.0, micro_batches_per_step=3),
            max_seconds=20.0,
            seed=5,
            rank=request["rank"],
            world_size=request["world_size"],
        )
        steps = stream.steps(request["first"], hint=tuple(request["hint"]))
        answer = [
            {"step": data.global_step, "hint": data.hint, "batches": [list(batch.keys) for batch in data.batches]}
            for data in itertools.islice(steps, request["count"])
        ]
        steps.close()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
