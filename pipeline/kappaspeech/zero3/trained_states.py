"""Trained tensors under ZeRO-3, whole: weights, Adam's moments and the moving average, gathered from partitions and put back.

Every method that gathers or puts back is a collective: all ranks call it, in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kappaspeech.model.speech_llm import SpeechLLM
from kappaspeech.model.trained_tensors import TrainedTensor, list_trained
from kappaspeech.zero3.whole_tensors import collect_whole, put_whole, spread

ADAM_STATES = ("exp_avg", "exp_avg_sq")
WEIGHTS, AVERAGE = "weights", "moving_average"


@dataclass(frozen=True)
class Updates:
    """Updates so far of the adaptor and of the LLM's tensors, which are fewer if the adaptor was aligned alone at first."""

    adaptor: int = 0
    llm: int = 0


class TrainedStates:
    """All that training changes, of a model under ZeRO-3."""

    def __init__(
        self, model: SpeechLLM, optimizer: Any, *, device: torch.device, rank: int, ema_decay: float | None = None
    ) -> None:
        """Begin the states of `optimizer`, DeepSpeed's of stage 3 around an AdamW; with `ema_decay` also the moving average."""
        self._model = model
        self._optimizer = optimizer
        self._device = device
        self._rank = rank
        self._ema_decay = ema_decay
        self._begin(Updates())

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and whole shapes of the trained tensors, in the order in which they are gathered."""
        return {name: shape for trained in self._trained() for name, shape in trained.shapes.items()}

    def gather_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Each trained tensor, whole, as its float32 master weights, one at a time; on every rank's host."""
        from deepspeed.utils import safe_get_full_fp32_param

        for trained in self._trained():
            yield from trained.split(_take(safe_get_full_fp32_param(trained.parameter)))

    def gather_average(self) -> Iterator[tuple[str, Tensor]]:
        """Each trained tensor's moving average, as `gather_weights` gives the weights."""
        from deepspeed.utils import safe_get_full_optimizer_state

        for trained in self._trained():
            yield from trained.split(_take(safe_get_full_optimizer_state(trained.parameter, AVERAGE)))

    def collect(self, kind: str, owners: Mapping[str, int]) -> Iterator[tuple[str, Tensor | None]]:
        """Each trained tensor's `WEIGHTS`, Adam state or `AVERAGE`, whole, on its owner's device; None on the other ranks.

        Only the owner receives it. Of stacked experts that have several owners, all ranks receive all.
        """
        from deepspeed.utils import safe_get_local_fp32_param, safe_get_local_optimizer_state

        for trained in self._trained():
            parameter = trained.parameter
            local = (
                safe_get_local_fp32_param if kind == WEIGHTS else partial(safe_get_local_optimizer_state, optim_state_key=kind)
            )
            whole = collect_whole(parameter, local(parameter), ranks={owners[name] for name in trained.names})
            tensors = dict.fromkeys(trained.names) if whole is None else dict(trained.split(whole))
            for name, tensor in tensors.items():
                yield name, tensor if owners[name] == self._rank else None

    def gather_result(self) -> Iterator[tuple[str, Tensor]]:
        """The result of the training, which is evaluated and exported: the moving average if one is kept, else the weights."""
        return self.gather_average() if self.keeps_average else self.gather_weights()

    def local_average(self) -> list[tuple[Any, Tensor]]:
        """Each trained parameter with this rank's partition of its moving average; none if none is kept."""
        from deepspeed.utils import safe_get_local_optimizer_state

        if not self.keeps_average:
            return []
        parameters = [trained.parameter for trained in self._trained()]
        return [(parameter, safe_get_local_optimizer_state(parameter, AVERAGE)) for parameter in parameters]

    def change_local(self, parameter: Any, change: Callable[[Tensor], Tensor]) -> None:
        """Change this rank's partition of a parameter's master weights, and of their moving average.

        What the model computes with stays as it was.
        """
        from deepspeed.utils import (
            safe_get_local_fp32_param,
            safe_get_local_optimizer_state,
            safe_set_local_fp32_param,
            safe_set_local_optimizer_state,
        )

        safe_set_local_fp32_param(parameter, change(safe_get_local_fp32_param(parameter)))
        if self.keeps_average:
            average = change(safe_get_local_optimizer_state(parameter, AVERAGE))
            safe_set_local_optimizer_state(parameter, average, AVERAGE)

    @property
    def keeps_average(self) -> bool:
        return self._ema_decay is not None

    def restore(
        self,
        read_weight: Callable[[str], Tensor],
        read_state: Callable[[str, str], Tensor],
        read_average: Callable[[str], Tensor] | None = None,
        *,
        num_updates: Updates,
    ) -> None:
        """Put back the tensors of the gathering methods, on any number of ranks, after so many updates."""
        self._begin(num_updates)
        for trained in self._trained():
            parameter = trained.parameter
            put_whole(parameter, trained.join(read_weight).to(self._device), rank=self._rank)
            for state in ADAM_STATES:
                moments = trained.join(read_state, state)
                spread(parameter, state, moments, rank=self._rank)
            if read_average is not None:
                spread(parameter, AVERAGE, trained.join(read_average), rank=self._rank)

    def _begin(self, num_updates: Updates) -> None:
        """Give each partition the states that AdamW would make at its first step, and the average beside them.

        DeepSpeed's own access to states reaches the average there too.
        """
        adamw = self._optimizer
        for index, partition in enumerate(adamw.fp32_partitioned_groups_flat):
            name = adamw.param_groups[adamw.sub_group_to_group_id[index]]["name"]
            count = float(num_updates.llm if name == "llm" else num_updates.adaptor)
            adamw.optimizer.state[partition] = {
                # a fused AdamW keeps its count on the device where it computes
                "step": torch.tensor(count, device=partition.device),
                **{state: torch.zeros_like(partition) for state in ADAM_STATES},
                **({AVERAGE: partition.detach().clone()} if self.keeps_average else {}),
            }
        self._num_updates = num_updates.adaptor

    def count_update(self) -> None:
        """Count an update of the weights, and let the average follow them. Not a collective."""
        self._num_updates += 1
        if self._ema_decay is None:
            return
        adamw = self._optimizer
        share = 1 - average_decay(self._num_updates, decay=self._ema_decay)
        for partition in adamw.fp32_partitioned_groups_flat:
            adamw.optimizer.state[partition][AVERAGE].lerp_(partition.detach(), share)

    def llm_tensors(self) -> list[TrainedTensor]:
        """The LLM's parameters that train."""
        return list_trained(self._model.llm)

    def llm_partitions(self) -> list[Tensor]:
        """This rank's partitions of the LLM's trained weights, in float32, each of many tensors."""
        adamw = self._optimizer
        owners = [
            adamw.param_groups[adamw.sub_group_to_group_id[i]]["name"] for i in range(len(adamw.fp32_partitioned_groups_flat))
        ]
        return [part for part, owner in zip(adamw.fp32_partitioned_groups_flat, owners, strict=True) if owner == "llm"]

    def _trained(self) -> list[TrainedTensor]:
        return list_trained(self._model)


def _take(gathered: Tensor) -> Tensor:
    return gathered.detach().cpu()


def average_decay(num_updates: int, *, decay: float) -> float:
    """The decay of the moving average at its `num_updates`-th update: smaller at first, or it would remember the beginning."""
    return min(decay, (1 + num_updates) / (10 + num_updates))
