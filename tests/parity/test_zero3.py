"""ZeRO-3 on two ranks against a plain PyTorch loop in this process, on the same samples."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import pytest
import torch

from tests.conftest import clean_environment, free_port
from tests.parity.steps import BUDGET, NUM_STEPS, OPTIMIZER, build_parts, open_stream

# Float32 sums in another order: relative errors of 1e-7 in a gradient. Adam divides it by its own size, so where a gradient
# is near its error the update differs by a share of the learning rate; this is a twentieth of the adaptor's.
WEIGHT_TOLERANCE = 5e-5
LOSS_TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def zero3(home, tmp_path_factory):
    output = tmp_path_factory.mktemp("zero3") / "result.pt"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}"]
    done = subprocess.run(
        [*launcher, "-m", "tests.parity.zero3_worker", str(home), str(output)],
        env=clean_environment(OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(output, weights_only=True)


@pytest.fixture(scope="module")
def plain(home):
    """Losses, gradient norms and the model after the same steps of plain AdamW on whole batches."""
    parts = build_parts(home)
    llm = [parameter for parameter in parts.model.llm.parameters() if parameter.requires_grad]
    groups = [
        {"params": list(parts.model.adaptor.parameters()), "lr": OPTIMIZER.adaptor_learning_rate},
        {"params": llm, "lr": OPTIMIZER.llm_learning_rate},
    ]
    adamw = torch.optim.AdamW(groups, betas=OPTIMIZER.betas, eps=OPTIMIZER.epsilon, weight_decay=OPTIMIZER.weight_decay)
    losses, norms = [], []
    for data in open_stream(home, parts.tokenizer, rank=0, world_size=1).steps(0):
        if data.global_step == NUM_STEPS:
            break
        assert len(data.batches) == BUDGET.micro_batches_per_step
        total, num_tokens = torch.zeros(()), 0
        for batch in data.batches:
            states, counts = parts.encoder(batch.log_mel, batch.num_frames)
            total = total + parts.model(states, counts, parts.prompt.prefix_ids, parts.prompt.suffix_ids, batch.label_ids)
            num_tokens += batch.num_target_tokens
        adamw.zero_grad()
        (total / num_tokens).backward()
        trained = [parameter for group in groups for parameter in group["params"]]
        norms.append(float(torch.nn.utils.clip_grad_norm_(trained, OPTIMIZER.clip_norm)))
        adamw.step()
        losses.append(float(total.detach()) / num_tokens)
    return losses, norms, dict(parts.model.named_parameters())


def test_five_steps_on_two_ranks_of_zero3_have_the_losses_of_plain_pytorch(zero3, plain):
    losses, norms, _ = plain
    assert zero3["losses"] == pytest.approx(losses, rel=LOSS_TOLERANCE)
    assert zero3["norms"] == pytest.approx(norms, rel=1e-4)
    assert losses[-1] < losses[0]


def test_five_steps_on_two_ranks_of_zero3_train_the_weights_of_plain_pytorch(home, zero3, plain):
    after = plain[2]
    before = dict(build_parts(home).model.named_parameters())
    assert set(zero3["trained"]) == {name for name, parameter in after.items() if parameter.requires_grad}
    for name, tensor in zero3["trained"].items():
        moved = (tensor - before[name]).abs().max()
        assert moved > 10 * WEIGHT_TOLERANCE, f"{name} hardly moved, so the comparison would say nothing"
        torch.testing.assert_close(tensor, after[name].detach(), rtol=0, atol=WEIGHT_TOLERANCE)


def test_zero3_leaves_every_frozen_tensor_bit_equal(home, zero3):
    before = dict(build_parts(home).model.named_parameters())
    assert set(zero3["frozen"]) == {name for name, parameter in before.items() if not parameter.requires_grad}
    for name, digest in zero3["frozen"].items():
        assert digest == hashlib.sha256(before[name].detach().numpy().tobytes()).hexdigest(), name
