"""Linear layers under ZeRO-3 keep their input if their weight trains, and compute what DeepSpeed's compute."""

from __future__ import annotations

import json

import pytest
import torch
from deepspeed.runtime.zero.linear import zero3_linear_wrap
from torch.autograd.graph import saved_tensors_hooks

from kappaspeech.zero3.linear_layers import keep_no_frozen_inputs

# one step of a rank in one process, which says what it keeps of the MLPs' inner states
STEP = """
import json, sys
from pathlib import Path
import torch
from torch.autograd.graph import saved_tensors_hooks
from kappaspeech.ranks.start import start_training_cluster
from kappaspeech.zero3.engine import MicroBatch, TrainingEngine
from tests.parity import steps
from tests.patience import patience

home, kept = Path(sys.argv[1]), {}
case = steps.Case(mode="adaptor")
cluster = start_training_cluster(timeout_seconds=patience(60))
parts = steps.build_parts(home, case)
config = parts.model.llm.config
engine = TrainingEngine(
    parts.model, cluster=cluster, deepspeed_config=case.deepspeed_config, optimizer=steps.OPTIMIZER, micro_batches_per_rank=1
)
batch = next(steps.open_stream(home, parts.tokenizer, rank=0, world_size=1).steps(0)).batches[0]

def keep(tensor):
    # weights have their inner width elsewhere
    if tensor.dim() == 3 and tensor.shape[-1] == config.intermediate_size:
        kept[tensor.untyped_storage().data_ptr()] = tensor
    return tensor

with saved_tensors_hooks(keep, lambda tensor: tensor):
    engine.step(
        [MicroBatch(*parts.encoder(batch.audio_input, batch.num_frames), batch.label_ids)],
        prefix_ids=parts.prompt.prefix_ids,
        suffix_ids=parts.prompt.suffix_ids,
        num_target_tokens=batch.num_target_tokens,
        seeds=[0],
    )
print(json.dumps([len(kept), config.num_hidden_layers]), flush=True)
engine.close()
"""


@pytest.fixture
def linear(monkeypatch):
    """The function in the place of torch's once ZeRO-3 has a model."""
    monkeypatch.setattr(torch.nn.functional, "linear", zero3_linear_wrap)
    keep_no_frozen_inputs()
    return torch.nn.functional.linear


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("trains", [False, True])
def test_a_frozen_layer_keeps_nothing_of_its_input_and_has_the_gradients_of_deepspeeds(linear, trains, has_bias):
    torch.manual_seed(0)
    inputs, weight, bias = torch.randn(2, 5, 4), torch.randn(3, 4), torch.randn(3)
    computed = []
    for function in (zero3_linear_wrap, linear):
        leaves = [inputs.clone().requires_grad_(), weight.clone().requires_grad_(trains)]
        leaves += [bias.clone().requires_grad_(trains)] if has_bias else []
        kept: list[torch.Tensor] = []
        with saved_tensors_hooks(lambda tensor, kept=kept: kept.append(tensor) or tensor, lambda tensor: tensor):
            output = function(*leaves)
        output.square().sum().backward()
        computed.append([output, *(leaf.grad for leaf in leaves)])
        keeps_input = any(tensor.shape == inputs.shape for tensor in kept)
        assert keeps_input == (trains or function is zero3_linear_wrap)
    for deepspeeds, own in zip(*computed, strict=True):
        assert (deepspeeds is None and own is None) or torch.equal(deepspeeds, own)


def test_torchs_own_function_stays_where_the_json_asks_for_it(monkeypatch):
    monkeypatch.setattr(torch.nn.functional, "linear", torch._C._nn.linear)
    keep_no_frozen_inputs()
    assert torch.nn.functional.linear is torch._C._nn.linear


def test_a_step_under_zero3_keeps_what_frozen_layers_keep_under_torch(home, nursery):
    done = nursery.run(home, code=STEP, ranks=1)
    assert done.returncode == 0, done.stderr[-2000:]
    num_kept, num_layers = json.loads(done.stdout.splitlines()[-1])
    # the gate before and after SiLU, and its other factor; not their product
    assert num_kept == 3 * num_layers
