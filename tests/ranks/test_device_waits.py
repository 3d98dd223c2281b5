"""A step waits for its device where this project reads what it has found, and DeepSpeed's own timers don't."""

from __future__ import annotations

import json

SCRIPT = """
import json, sys
from pathlib import Path
import torch
from kappaspeech.ranks.start import start_training_cluster
from kappaspeech.zero3.engine import MicroBatch, TrainingEngine
from tests.parity import steps
from tests.patience import patience

home, case = Path(sys.argv[1]), steps.Case()
torch.set_num_threads(1)
cluster = start_training_cluster(timeout_seconds=patience(60))
from deepspeed.accelerator import get_accelerator
waits, timers = [], []
get_accelerator().synchronize = lambda *_: waits.append(None)
for timed in (None, {"throughput": {"enabled": True}}):
    parts = steps.build_parts(home, case)
    engine = TrainingEngine(
        parts.model,
        cluster=cluster,
        deepspeed_config={**case.deepspeed_config, **({"timers": timed} if timed else {})},
        optimizer=steps.OPTIMIZER,
        micro_batches_per_rank=steps.BUDGET.micro_batches_per_step,
    )
    waits.clear()
    for data in steps.open_stream(home, parts.tokenizer, rank=0, world_size=1).steps(0):
        # its timer begins with the third step
        if data.global_step == 4:
            break
        engine.step(
            [MicroBatch(*parts.encoder(batch.audio_input, batch.num_frames), batch.label_ids) for batch in data.batches],
            prefix_ids=parts.prompt.prefix_ids,
            suffix_ids=parts.prompt.suffix_ids,
            num_target_tokens=sum(batch.num_target_tokens for batch in data.batches),
            seeds=[0] * len(data.batches),
        )
    timers.append(len(waits))
    engine.close()
print(json.dumps([timers, steps.BUDGET.micro_batches_per_step]), flush=True)
"""


def test_deepspeeds_timer_does_not_wait_for_the_device_unless_its_json_asks_for_it(home, nursery):
    done = nursery.run(home, code=SCRIPT, ranks=1)
    assert done.returncode == 0, done.stderr[-2000:]
    timers, num_micro_batches = json.loads(done.stdout.splitlines()[-1])
    # twice a micro-batch, in two steps of the four
    assert timers == [0, 2 * 2 * num_micro_batches]
