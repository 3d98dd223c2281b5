"""DeepSpeed: the model built under ZeRO-3, and one step.

Every method is a collective: all ranks call it, in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from kappaspeech.config.deepspeed_config import settle_gradients
from kappaspeech.config.training_config import OptimizerConfig
from kappaspeech.model.experts import list_stacks, without_trained
from kappaspeech.model.llm import decoder_layers
from kappaspeech.model.lora import public_names
from kappaspeech.model.speech_llm import SpeechLLM
from kappaspeech.model.tensor_digests import Hasher, share_out
from kappaspeech.model.text_rows import TextRows
from kappaspeech.planning.buckets import settle_buckets
from kappaspeech.planning.sizes import largest_layer
from kappaspeech.ranks.cluster import Cluster
from kappaspeech.zero3.classp import Classp
from kappaspeech.zero3.linear_layers import keep_no_frozen_inputs
from kappaspeech.zero3.partitioning import bring_buffers, cut_into_partitions
from kappaspeech.zero3.processor_exchange import ProcessorExchange
from kappaspeech.zero3.residency import keep_frozen_whole, persist_frozen
from kappaspeech.zero3.trained_states import TrainedStates

EnginePhase = Literal["forward_backward", "optimizer"]
# Given a partition of the LLM's float32 weights with its gradient, and the factor by which that gradient was clipped, at most 1.
GradientChange = Callable[[Tensor, float], None]
_MASK_64 = (1 << 64) - 1


@dataclass(frozen=True)
class MicroBatch:
    """The tensors of one pass: encoder states (B, S, E) on the device; their counts (B,) and labels (B, L), best on the host.

    `text` stands beside them, and its weights in the loss with it. `prompt_ids`, before and after the audio, are of all rows or
    of each (`splicing.splice`); without them they are the step's.
    """

    states_BSE: Tensor
    num_states_B: Tensor
    label_ids_BL: Tensor
    text: TextRows | None = None
    prompt_ids: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True)
class StepResult:
    """This rank's summed loss in nats, and the norm of the whole model's gradient before clipping, infinite if it is NaN.

    `is_applied`: the optimizer has updated the weights, on all ranks; or on none. Of replayed text this rank's Σ −log p and
    Σ KL(base ‖ now), in nats and without weights.
    """

    loss_sum_nats: float
    grad_norm: float
    is_applied: bool
    replay_sum_nats: float = 0.0
    anchor_sum_nats: float = 0.0


class TrainingEngine:
    """The adaptor and the LLM under ZeRO-3, with AdamW on what trains."""

    def __init__(
        self,
        model: SpeechLLM,
        *,
        cluster: Cluster,
        deepspeed_config: Mapping[str, Any],
        optimizer: OptimizerConfig,
        micro_batches_per_rank: int,
        on_phase: Callable[[EnginePhase], None] = lambda _phase: None,
        ema_decay: float | None = None,
    ) -> None:
        """Partition `model`, whose `requires_grad` already says what trains, and build its optimizer.

        `model` must be the same on every rank. Frozen tensors stay in the model's dtype and get no optimizer state. Gradients are
        added up in float32 unless `deepspeed_config` says otherwise (`settle_gradients`). With `ema_decay` an exponential moving
        average of the float32 weights is kept beside them, partitioned like them. `on_phase` is called with each phase that
        begins.
        """
        import deepspeed

        buckets = settle_buckets(deepspeed_config, layer_elements=largest_layer(model.llm))
        settings = {
            **settle_gradients(buckets, world_size=cluster.world_size),
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": micro_batches_per_rank,
            "gradient_clipping": optimizer.clip_norm,
            "zero_allow_untested_optimizer": True,
            # DeepSpeed 0.19's throughput timer waits for the whole device twice a micro-batch (utils/timer.py), for a line that
            # nobody is shown
            "timers": deepspeed_config.get("timers", {"throughput": {"enabled": False}}),
        }
        self._deepspeed = deepspeed
        self._names = public_names(model)
        # A decoder layer is gathered and reduced whole, by one hook and not by one for each tensor. DeepSpeed asks that its input
        # needs a gradient; it does, for the adaptor comes before it. PEFT's wrappers of fused experts depend on it too: they
        # read weights that aren't their own.
        deepspeed.utils.set_z3_leaf_modules(model.llm, list({type(layer) for layer in decoder_layers(model.llm)}))
        cut_into_partitions(model, settings)
        keep_no_frozen_inputs()
        groups: list[dict[str, Any]] = [
            {"params": [p for p in part.parameters() if p.requires_grad], "lr": rate, "name": name}
            for name, part, rate in (
                ("adaptor", model.adaptor, optimizer.adaptor_learning_rate),
                ("llm", model.llm, optimizer.llm_learning_rate),
            )
        ]
        groups = [group for group in groups if group["params"]]
        adamw = torch.optim.AdamW(
            groups, fused=True, betas=optimizer.betas, eps=optimizer.epsilon, weight_decay=optimizer.weight_decay
        )
        adamw.register_step_pre_hook(self._withhold)
        adamw.register_step_post_hook(self._give_back)
        self._withheld: list[tuple[Tensor, Tensor | None]] = []
        self._norm_limit, self._keeps_llm = math.inf, False
        self._clip_norm = optimizer.clip_norm
        self._change: GradientChange | None = None
        self._classp: Classp | None = None
        self._settle: Callable[[], None] | None = None
        self._peak_rates = {str(group["name"]): float(group["lr"]) for group in groups}
        self._engine, *_ = deepspeed.initialize(model=model, optimizer=adamw, config=settings, dist_init_required=False)
        bring_buffers(model, self._engine.device)
        keep_frozen_whole(self._engine.optimizer, model)
        self._exchange = ProcessorExchange()
        self.model = model
        self.device = self._engine.device
        self._cluster = cluster
        self._world_size = cluster.world_size
        self._on_phase = on_phase
        self.states = TrainedStates(model, self._engine.optimizer, device=self.device, rank=cluster.rank, ema_decay=ema_decay)

    def set_rates(self, factor: float) -> dict[str, float]:
        """Set each group's learning rate to its peak times `factor`; return them by group name."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = self._peak_rates[group["name"]] * factor
        return {name: peak * factor for name, peak in self._peak_rates.items()}

    def step(
        self,
        batches: Iterable[MicroBatch],
        *,
        prefix_ids: Tensor,
        suffix_ids: Tensor,
        num_target_tokens: int,
        seeds: Sequence[int],
        norm_limit: float = math.inf,
        alignment_only: bool = False,
    ) -> StepResult:
        """Take one optimizer step over this rank's micro-batches; the loss is divided by the tokens of *all* ranks, once.

        `batches` are asked for one at a time, each when the work on the one before is done. ZeRO-3 averages gradients over ranks,
        hence the factor world_size. `seeds`, one a micro-batch, make dropout a function of the data and not of the rank that
        computes it. If the gradient's norm isn't finite or is above `norm_limit`, the optimizer doesn't move: no weight, moment
        or count of updates changes. With `alignment_only` the loss is the adaptor's alignment, and the LLM's tensors don't move.
        """
        self._norm_limit, self._keeps_llm = norm_limit, alignment_only
        self._engine.train()
        # it stays on its device: reading it there would wait for the device after each micro-batch
        sums_nats = torch.zeros(3, dtype=torch.float64, device=self.device)
        coming = iter(batches)
        for seed in seeds:
            # not by zip, which would hold on to one batch while it asks for the next
            batch = next(coming)
            self._on_phase("forward_backward")
            torch.manual_seed(seed & _MASK_64)
            prompt_ids = batch.prompt_ids or (prefix_ids, suffix_ids)
            parts = (batch.states_BSE, batch.num_states_B, *prompt_ids, batch.label_ids_BL, batch.text)
            loss, nats, *replayed = self._engine(*parts, alignment_only=alignment_only)
            sums_nats[0] += nats
            if replayed:
                sums_nats[1:] += replayed[0]
            self._engine.backward(loss * (self._world_size / max(num_target_tokens, 1)), scale_wrt_gas=False)
            self._on_phase("optimizer")
            self._engine.step()
            del batch, parts
        assert next(coming, None) is None, "more micro-batches than seeds"
        total_nats, replay_nats, anchor_nats, grad_norm = self._read(sums_nats, self._engine.get_global_grad_norm())
        is_applied = math.isfinite(grad_norm) and grad_norm <= norm_limit
        if is_applied:
            if self._settle is not None and not alignment_only:
                self._settle()
            self.states.count_update()
        return StepResult(total_nats, grad_norm, is_applied, replay_nats, anchor_nats)

    def _read(self, sums_nats: Tensor, grad_norm: Any) -> list[float]:
        """Read all of these as numbers, with one wait for the device; the norm is 0 if DeepSpeed has none.

        The next pass must not begin before: its weights are gathered in a stream that doesn't wait for the optimizer's.
        """
        norm = torch.as_tensor(0.0 if grad_norm is None else grad_norm, dtype=torch.float64, device=self.device)
        numbers: list[float] = torch.cat([sums_nats, norm.reshape(1)]).tolist()
        return numbers

    def _withhold(self, adamw: Any, _arguments: Any, _named: Any) -> None:
        """Take a partition's gradient away before AdamW moves it, if the whole norm, the same on all ranks, is above the limit.

        Also of the LLM's partitions while the adaptor is aligned alone: a gradient of zeros would count as an update of theirs.
        And if CLASSP moves them, which it does here.
        DeepSpeed itself leaves out a step whose norm isn't finite, and calls this for none of its partitions.
        """
        is_above = self._norm_limit < math.inf and float(self._engine.optimizer._global_grad_norm) > self._norm_limit
        for group in adamw.param_groups:
            if self._change is not None and group["name"] == "llm" and group["params"] and not self._keeps_llm:
                # as DeepSpeed clips
                clipped = 1 / max(1.0, (float(self._engine.optimizer._global_grad_norm) + 1e-6) / self._clip_norm)
                for partition in group["params"]:
                    self._change(partition, clipped)
            takes_over = self._classp is not None and group["name"] == "llm"
            if self._classp is not None and takes_over and not (is_above or self._keeps_llm):
                for partition in group["params"]:
                    sums = adamw.state[partition]["exp_avg_sq"]
                    self._classp.move(partition, partition.grad, sums, rate=group["lr"])
            if is_above or takes_over or (self._keeps_llm and group["name"] == "llm"):
                for partition in group["params"]:
                    self._withheld.append((partition, partition.grad))
                    partition.grad = None

    def _give_back(self, _adamw: Any, _arguments: Any, _named: Any) -> None:
        """Put gradients back that AdamW was not to see: an offloaded one has its place for the whole run, and DeepSpeed writes
        the next step's into it."""
        for partition, gradient in self._withheld:
            partition.grad = gradient
        self._withheld.clear()

    def change_gradients(self, change: GradientChange) -> None:
        """Let `change` have each partition of the LLM's weights before AdamW moves it by its gradient. Not a collective."""
        self._change = change

    def move_llm(self, classp: Classp) -> None:
        """Let CLASSP move the LLM's weights in AdamW's place. Its sums lie where AdamW would have its second moments, so
        checkpoints hold them. Not a collective."""
        self._classp = classp

    def look_at_gradient(
        self, batch: MicroBatch, look: GradientChange, *, prefix_ids: Tensor, suffix_ids: Tensor, seed: int
    ) -> float:
        """Show `look` the gradient of a pass that all ranks make alike, its sums not divided; nothing moves. Return its norm."""
        before, self._change = self._change, look
        # whatever number of micro-batches a step has
        self._engine._is_gradient_accumulation_boundary = True
        try:
            result = self.step(
                [batch],
                prefix_ids=prefix_ids,
                suffix_ids=suffix_ids,
                num_target_tokens=self._world_size,
                seeds=[seed],
                norm_limit=-math.inf,
            )
        finally:
            self._engine._is_gradient_accumulation_boundary, self._engine.micro_steps = None, 0
            # a step that aligns the adaptor alone would find it there, and count it in its norm
            self._engine.optimizer.grad_partitions_flat_buffer.zero_()
            self._change = before
        return result.grad_norm

    def after_updates(self, settle: Callable[[], None]) -> None:
        """Call `settle`, on all ranks, after each update of the LLM's weights. Not a collective."""
        self._settle = settle

    def persist_frozen(self) -> None:
        """Keep every frozen tensor whole on each rank from the first step on."""
        persist_frozen(self._engine.optimizer, self.model)

    def release_gathered(self) -> None:
        """Give back every tensor that is still gathered whole; its next user gathers it again."""
        self._engine.empty_partition_cache()

    def model_bytes(self) -> int:
        """The size of the whole model, unpartitioned, in the dtype that it computes in."""
        parameters: list[Any] = list(self.model.parameters())
        return sum(int(parameter.ds_numel) * parameter.dtype.itemsize for parameter in parameters)

    def frozen_digests(self) -> dict[str, str]:
        """SHA-256 of every frozen tensor's bytes, each gathered whole, without the experts of it that train.

        The ranks share the hashing out, each in threads beside the gathering: a rank that hashed while a tensor is gathered
        would keep all others waiting for it.
        """
        frozen: list[tuple[str, Any]] = [
            (self._names[name], p) for name, p in self.model.named_parameters() if not p.requires_grad
        ]
        stacks = {self._names[name]: found for name, found in list_stacks(self.model).items()}
        hashers = share_out([int(p.ds_numel) * p.dtype.itemsize for _, p in frozen], self._world_size)
        mine = Hasher()
        for (name, parameter), rank in zip(frozen, hashers, strict=True):
            with self._deepspeed.zero.GatheredParameters([parameter]):
                if rank == self._cluster.rank:
                    mine.add(name, without_trained(parameter.data, stacks.get(name, ())))
        return {name: digest for part in self._cluster.gather(mine.digests()) for name, digest in part.items()}

    def close(self) -> None:
        self._exchange.close()
        self._engine.destroy()
