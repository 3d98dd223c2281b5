"""The reference of the parity tests: a plain PyTorch loop in one process, on the same samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from kappaspeech.model.lora import public_names
from tests.parity.steps import BUDGET, OPTIMIZER, Case, Parts, build_parts, open_stream

Tensors = Mapping[str, torch.Tensor]


def train_plainly(home, case: Case) -> dict[str, Any]:
    """Losses, gradient norms, and the trained weights before, after, and averaged, of plain AdamW on whole batches."""
    return train_parts(home, case, build_parts(home, case))


def train_parts(
    home,
    case: Case,
    parts: Parts,
    masks: Mapping[str, torch.Tensor] | None = None,
    *,
    penalty: Callable[[Tensors], torch.Tensor] | None = None,
    project: Callable[[Tensors], None] | None = None,
) -> dict[str, Any]:
    """`penalty` of the trained tensors is a part of the loss whose gradient is clipped by the same factor; `project` changes them
    after each step."""
    masks = masks or {}
    names = public_names(parts.model)
    trained = {names[name]: p for name, p in parts.model.named_parameters() if p.requires_grad}
    before = {name: p.detach().clone() for name, p in trained.items()}
    average = {name: p.double() for name, p in before.items()}
    groups = [
        {"params": list(parts.model.adaptor.parameters()), "lr": OPTIMIZER.adaptor_learning_rate},
        {"params": [p for p in parts.model.llm.parameters() if p.requires_grad], "lr": OPTIMIZER.llm_learning_rate},
    ]
    adamw = torch.optim.AdamW(groups, betas=OPTIMIZER.betas, eps=OPTIMIZER.epsilon, weight_decay=OPTIMIZER.weight_decay)
    losses, norms = [], []
    moved: dict[str, torch.Tensor] = {}
    for data in open_stream(home, parts.tokenizer, rank=0, world_size=1).steps(0):
        if data.global_step == case.num_steps:
            break
        assert len(data.batches) == BUDGET.micro_batches_per_step
        minimised, total, num_tokens = torch.zeros(()), torch.zeros(()), 0
        for batch in data.batches:
            states, counts = parts.encoder(batch.audio_input, batch.num_frames)
            loss, nats = parts.model(
                states,
                counts,
                parts.prompt.prefix_ids,
                parts.prompt.suffix_ids,
                batch.label_ids,
                alignment_only=data.global_step < case.alignment_steps,
            )
            minimised, total = minimised + loss, total + nats
            num_tokens += batch.num_target_tokens
        adamw.zero_grad()
        (minimised / num_tokens).backward()
        for name, mask in masks.items():
            trained[name].grad *= mask
        if data.global_step < case.alignment_steps:
            assert all(p.grad is None for p in parts.model.llm.parameters())
        norms.append(float(torch.nn.utils.clip_grad_norm_(trained.values(), OPTIMIZER.clip_norm)))
        if penalty is not None and data.global_step >= case.alignment_steps:
            pulls = torch.autograd.grad(penalty(trained), list(trained.values()), allow_unused=True)
            for parameter, pull in zip(trained.values(), pulls, strict=True):
                if pull is not None:
                    parameter.grad += pull * min(1.0, OPTIMIZER.clip_norm / (norms[-1] + 1e-6))
        if case.classp is not None and data.global_step >= case.alignment_steps:
            for name, parameter in trained.items():
                if name.startswith("llm."):
                    sums = moved.setdefault(name, torch.zeros_like(parameter))
                    case.classp.move(parameter, parameter.grad, sums, rate=OPTIMIZER.llm_learning_rate)
                    parameter.grad = None
        adamw.step()
        if project is not None:
            with torch.no_grad():
                project(trained)
        with torch.no_grad():
            for name, mask in masks.items():
                trained[name].copy_(torch.where(mask > 0, trained[name], before[name]))
        losses.append(float(total) / num_tokens)
        update = data.global_step + 1
        decay = min(0.6, (1 + update) / (10 + update))
        average = {name: decay * old + (1 - decay) * trained[name].detach().double() for name, old in average.items()}
    after = {name: p.detach() for name, p in trained.items()}
    return {"losses": losses, "norms": norms, "before": before, "after": after, "average": average}
