"""WER of the adaptor alone on real unseen sentences, by steps of alignment and by shards of open vocabulary.

    python benchmarks/alignment_curve.py WORK [--shards 0 1 2 6] [--steps 300] [--output benchmarks/results/alignment_curve.json]

WORK is the folder that `real_speech.py --experiment unseen` made. Each checkpoint of its alignment is read off without the LLM's
layers: at each audio position the token of the training transcripts whose cosine is largest, without repetitions and blanks
(greedy CTC). Then shorter alignments are trained on the recordings and on so many shards of open vocabulary, of about 0.9 hours
each, and are read off as well.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
import yaml
from machine import processor
from real_speech import REPOSITORY, environment
from torch import Tensor
from torch.nn import functional

from kappaspeech.artefacts import write_json
from kappaspeech.config.data_config import DatasetConfig
from kappaspeech.config.run_config import RunConfig
from kappaspeech.evaluation.wer import Hypothesis, measure
from kappaspeech.model.adaptor import Adaptor, AdaptorShape
from kappaspeech.model.encoder import load_encoder
from kappaspeech.model.llm import load_llm, load_tokenizer
from kappaspeech.model.prefixes import ADAPTOR_PREFIX
from kappaspeech.runs.checkpoints import checkpoints_by_step, find_weights, read_trained
from kappaspeech.runs.folder import RunFolder
from kappaspeech.speech.batches import label_ids
from kappaspeech.speech.corpus import Corpus, make_datasets
from kappaspeech.speech.held_out import read_test_batches
from kappaspeech.speech.layouts import find_recordings
from kappaspeech.speech.normalisers import normalise_text
from kappaspeech.speech.samples import AudioSample, log_mel
from kappaspeech.speech.source import ReadOptions

ALIGNMENT = REPOSITORY / "benchmarks/experiments/unseen_alignment.yaml"
TEST = "shards/test/real-*.tar"


class Listener:
    """Test clips as the encoder hears them, and the vocabulary that is read off: the tokens of the training transcripts."""

    def __init__(self, work: Path, config: RunConfig) -> None:
        sets = make_datasets([DatasetConfig(shards=str(work / TEST))])
        self.samples: list[AudioSample] = list(itertools.chain(*read_test_batches(sets, batch_size=40)))
        encoder = load_encoder(str(work / config.model.encoder))
        self.states = [self._encode(encoder, sample) for sample in self.samples]
        llm, self._tokenizer = str(work / config.model.llm), load_tokenizer(str(work / config.model.llm))
        said = {item.transcript for source in ("speech", "open") for item in find_recordings(work / source / "train" / "en")}
        tokens = {token for text in said for token in label_ids(self._tokenizer, normalise_text(text, "en", "whisper"))}
        blank = self._tokenizer.eos_token_id
        self._tokens = [blank, *sorted(tokens - {blank})]
        embeddings = load_llm(llm, dtype=torch.float32).get_input_embeddings().weight
        self._words_VH = functional.normalize(embeddings.detach()[self._tokens], dim=-1)

    @staticmethod
    def _encode(encoder: Any, sample: AudioSample) -> Tensor:
        frames = torch.from_numpy(log_mel(sample.waveform, encoder.dims.num_mels))
        states_BSE, _ = encoder(frames[None], torch.tensor([frames.shape[1]]))
        return states_BSE[0]

    @torch.no_grad()
    def read_off(self, adaptor: Adaptor) -> dict[str, Any]:
        """WER of the words that the adaptor's output is nearest to."""
        heard = []
        for sample, states_SE in zip(self.samples, self.states, strict=True):
            audio_BAH, _ = adaptor(states_SE[None], torch.tensor([len(states_SE)]))
            best = (functional.normalize(audio_BAH[0], dim=-1) @ self._words_VH.T).argmax(dim=-1).tolist()
            tokens = [self._tokens[place] for place, _ in itertools.groupby(best) if place]
            heard.append(Hypothesis(sample.key, "en", sample.transcript, self._tokenizer.decode(tokens)))
        of_english = measure(heard)["languages"]["en"]
        return {"wer": of_english["wer"], "interval": of_english["interval"]}


def read_checkpoints(run: Path, listener: Listener) -> Iterator[dict[str, Any]]:
    """Each checkpoint's step, alignment loss of the 20 steps before it, and WER."""
    folder = RunFolder(run)
    adaptor = Adaptor(AdaptorShape(**folder.read_record()["adaptor"])).eval()
    steps = [json.loads(line) for line in (run / "steps.jsonl").read_text(encoding="utf-8").splitlines()]
    aligned = [record["loss_nats"] for record in steps if record["objective"] == "alignment"]
    for step, checkpoint in checkpoints_by_step(folder.checkpoints).items():
        if step > len(aligned):
            continue
        trained = read_trained(find_weights(checkpoint))
        of_adaptor = {name: tensor for name, tensor in trained.items() if name.startswith(ADAPTOR_PREFIX)}
        adaptor.load_state_dict({name.removeprefix(ADAPTOR_PREFIX): tensor for name, tensor in of_adaptor.items()})
        recent = aligned[max(0, step - 20) : step]
        yield {"step": step, "alignment_nats": sum(recent) / len(recent), **listener.read_off(adaptor)}


def align(work: Path, num_shards: int, steps: int) -> Path:
    """Align an adaptor on the recordings and the first shards of open vocabulary; return its run."""
    real, opened = yaml.safe_load(ALIGNMENT.read_text(encoding="utf-8"))["data"]["train"]
    sets = [real]
    if num_shards:
        sets.append({**opened, "shards": f"shards/train/open-en-{{000000..{num_shards - 1:06d}}}.tar"})
    run = f"runs/alignment-{num_shards}-shards"
    values = {
        "run_dir": run,
        "data.train": json.dumps(sets),
        "training.num_steps": steps,
        "training.alignment_steps": steps,
        "training.checkpoint_every_steps": steps,
    }
    words = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "kappaspeech", "train", str(ALIGNMENT), *words]
    subprocess.run(command, cwd=work, env=environment(), check=True)
    return work / run


def hours_of(run: Path, work: Path) -> float:
    """The hours of the clips that a run trains on."""
    shards = [item.shards for item in RunFolder(run).read_config().data.train]
    sets = make_datasets([DatasetConfig(shards=str(work / pattern)) for pattern in shards])
    return sum(float(Corpus(item, ReadOptions()).lengths().seconds.sum()) for item in sets) / 3600


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--shards", type=int, nargs="*", default=[0, 1, 2, 6], help="shards of open vocabulary")
    parser.add_argument("--steps", type=int, default=300, help="steps of each shorter alignment")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "benchmarks/results/alignment_curve.json")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    run = options.work / "runs/alignment"
    made_by = RunFolder(run).read_record()
    listener = Listener(options.work, RunFolder(run).read_config())
    record: dict[str, Any] = {
        "command": f"python benchmarks/alignment_curve.py WORK --steps {options.steps}",
        "machine": {"processor": processor(), "threads": 1},
        "date": datetime.now(timezone.utc).date().isoformat(),
        "git_commit": made_by["git_commit"],
        "versions": made_by["versions"],
        "clips": len(listener.samples),
        "by_steps": list(read_checkpoints(run, listener)),
        "by_shards": [],
    }
    for num_shards in options.shards:
        shorter = align(options.work, num_shards, options.steps)
        (last,) = read_checkpoints(shorter, listener)
        record["by_shards"].append({"shards": num_shards, "hours": hours_of(shorter, options.work), **last})
        write_json(options.output, record)
    print(options.output)


if __name__ == "__main__":
    main()
