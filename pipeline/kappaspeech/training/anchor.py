"""The base model's word on replayed texts, kept from before the first step: what holds the LLM to it while it trains.

The states before the head are kept, a vocabulary's logits of a text being many times as large; the head makes them again.

H LLM width · K tokens that pieces foretell
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kappaspeech.model.label_logits import KeptStates, head_states, label_logits
from kappaspeech.model.loss import anchor_nats
from kappaspeech.training.surroundings import Surroundings
from kappaspeech.zero3.engine import TrainingEngine


@dataclass(frozen=True)
class Anchor:
    """The states (K, H) of each piece, on the host, by its place; and the base's head, if the LLM's own trains."""

    states: Mapping[int, Tensor]
    head: nn.Module | None

    def keep(self, places: Sequence[int], device: torch.device) -> KeptStates:
        """The states of these pieces, one after another."""
        return KeptStates(torch.cat([self.states[place] for place in places]).to(device, non_blocking=True), self.head)


def keep_head(llm: Any) -> nn.Module | None:
    """A copy of `llm`'s head if it trains, else None. For before ZeRO-3 cuts it."""
    head: nn.Module = llm.get_output_embeddings()
    if not any(parameter.requires_grad for parameter in head.parameters()):
        return None
    return copy.deepcopy(head).requires_grad_(False).eval()


def measure_distance(engine: TrainingEngine, pieces: Sequence[Sequence[int]], anchor: Anchor, *, around: Surroundings) -> float:
    """Mean KL(base ‖ now) a token over `pieces`, with the engine's present weights, in nats. A collective, as `ask_base` is."""
    cluster, llm = around.cluster, engine.model.llm
    engine.model.eval()
    total_nats = 0.0
    for start in range(0, len(pieces), cluster.world_size):
        place = min(start + cluster.rank, len(pieces) - 1)
        nats = _distance(llm, torch.tensor(pieces[place], device=engine.device), anchor.keep([place], engine.device))
        total_nats += nats if start + cluster.rank < len(pieces) else 0.0
        around.phases.tick()
        around.watch.check()
    engine.release_gathered()
    return math.fsum(cluster.gather(total_nats)) / sum(len(piece) - 1 for piece in pieces)


@torch.no_grad()
def _distance(llm: Any, ids_N: Tensor, kept: KeptStates) -> float:
    """Σ KL(base ‖ now) of one text, in nats."""
    positions_K = torch.arange(len(ids_N) - 1, device=ids_N.device)
    embeds_BNH = llm.get_input_embeddings()(ids_N[None])
    logits = label_logits(llm, embeds_BNH, torch.zeros_like(positions_K), positions_K, kept=kept)
    return float(anchor_nats(*torch.split(logits, len(positions_K))))


def ask_base(
    engine: TrainingEngine, pieces: Mapping[int, Sequence[int]], *, head: nn.Module | None, around: Surroundings
) -> Anchor:
    """Read `pieces` with the weights that the engine has before any step and any resume. A collective.

    Ranks share the pieces out. They compute together, so each makes as many passes as every other, the last over stand-ins.
    """
    cluster, llm = around.cluster, engine.model.llm
    engine.model.eval()
    states: dict[int, Tensor] = {}
    places = sorted(pieces)
    for start in range(0, len(places), cluster.world_size):
        place = places[min(start + cluster.rank, len(places) - 1)]
        # a view would keep the whole pass's
        mine = head_states(llm, torch.tensor(pieces[place], device=engine.device)).cpu().clone()
        states.update(cluster.gather((place, mine)))
        around.phases.tick()
        around.watch.check()
    # a tensor that stays gathered wouldn't follow a resume
    engine.release_gathered()
    return Anchor(states, head if head is None else head.to(engine.device))
