"""The time at which a run encodes."""

from __future__ import annotations

from tests import tiny

SCRIPT = """
import sys, weakref
from pathlib import Path
from kappaspeech.model.speech_llm import SpeechLLM
from kappaspeech.training.clip_encoder import ClipEncoder

told, made = [], []
encode, forward = ClipEncoder.encode, SpeechLLM.forward

def tell_encode(self, batch):
    told.append(f"encode{sum(states() is not None for states in made)}")
    states, counts = encode(self, batch)
    made.append(weakref.ref(states))
    return states, counts

def tell_forward(self, *arguments, **options):
    told.append("forward")
    return forward(self, *arguments, **options)

ClipEncoder.encode, SpeechLLM.forward = tell_encode, tell_forward

from kappaspeech.config.run_config import read_run_config
from kappaspeech.training.run import train

train(read_run_config(Path(sys.argv[1])))
print(*told)
"""


def test_a_micro_batch_is_encoded_when_the_one_before_it_is_done_and_gone(home, nursery, tmp_path):
    """All of a step's were held at once: 16 of 192 MB at 1500 s of audio each."""
    changes = {"training__num_steps": 2, "data__test": [], "batch__micro_batches_per_step": 3}
    config = tiny.write_config(tmp_path / "run.yaml", home, tmp_path / "run", **changes)
    done = nursery.run(config, code=SCRIPT)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == " ".join(["encode0 forward"] * 6)
