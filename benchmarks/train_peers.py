"""The two ways of training that `train.py` measures against, in plain PyTorch and with transformers' Trainer.

Both start from the weights, the trained tensors, the instruction and the rates of ours, and see the same samples and targets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import whisper
from torch import Tensor, nn

from kappaspeech.config.training_config import OptimizerConfig
from kappaspeech.labels import IGNORED_LABEL
from kappaspeech.speech.batches import label_ids
from kappaspeech.speech.layouts import Recording
from kappaspeech.speech.prompt import SpeechPrompt
from kappaspeech.speech.samples import log_mel, read_recording
from kappaspeech.training.assembly import Assembly


@dataclass(frozen=True)
class Step:
    """One optimizer step's loss: a sum in nats, and the target tokens that it is over."""

    loss_sum_nats: float
    num_target_tokens: int


class Recordings(torch.utils.data.Dataset[dict[str, Any]]):
    """Each clip's log-mel, at its own length or of 30 s as `whisper.pad_or_trim` makes it, and its target ids."""

    def __init__(self, clips: Sequence[Recording], tokenizer: Any, num_mels: int, *, pad_to_30s: bool) -> None:
        self._clips, self._tokenizer, self._num_mels, self._pad = clips, tokenizer, num_mels, pad_to_30s

    def __len__(self) -> int:
        return len(self._clips)

    def __getitem__(self, index: int) -> dict[str, Any]:
        clip = self._clips[index]
        waveform = read_recording(clip.path)
        if self._pad:
            waveform = whisper.pad_or_trim(waveform)
        features = torch.from_numpy(log_mel(waveform, self._num_mels))
        return {"log_mel": features, "labels": torch.tensor(label_ids(self._tokenizer, clip.transcript))}


def collate(items: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """Pad a batch to its longest clip and its longest transcript."""
    frames = [item["log_mel"].shape[1] for item in items]
    features = torch.zeros(len(items), items[0]["log_mel"].shape[0], max(frames))
    for row, item in zip(features, items, strict=True):
        row[:, : item["log_mel"].shape[1]] = item["log_mel"]
    labels = nn.utils.rnn.pad_sequence([item["labels"] for item in items], batch_first=True, padding_value=IGNORED_LABEL)
    return {"log_mel": features, "num_frames": torch.tensor(frames), "labels": labels}


def optimizer_of(assembly: Assembly, options: OptimizerConfig) -> torch.optim.AdamW:
    groups = [
        {"params": list(assembly.model.adaptor.parameters()), "lr": options.adaptor_learning_rate},
        {"params": [p for p in assembly.model.llm.parameters() if p.requires_grad], "lr": options.llm_learning_rate},
    ]
    return torch.optim.AdamW(groups, betas=options.betas, eps=options.epsilon, weight_decay=options.weight_decay, fused=True)


class PaddedSpeechLLM(nn.Module):
    """Whisper's stock forward on 30 s, the adaptor, and the LLM with transformers' own loss: logits at every position."""

    def __init__(self, assembly: Assembly) -> None:
        super().__init__()
        self.encoder, self.adaptor, self.llm = assembly.encoder.whisper, assembly.model.adaptor, assembly.model.llm
        self.prompt: SpeechPrompt = assembly.prompt

    def forward(self, log_mel_BMT: Tensor, labels_BL: Tensor) -> Tensor:
        with torch.no_grad():
            states = self.encoder(log_mel_BMT.to(self.encoder.conv1.weight.dtype))
        audio, _ = self.adaptor(states, torch.full((len(states),), states.shape[1]))
        batch, num_audio = audio.shape[:2]
        embed = self.llm.get_input_embeddings()
        prefix, suffix = (embed(ids.expand(batch, -1)) for ids in (self.prompt.prefix_ids, self.prompt.suffix_ids))
        target = labels_BL != IGNORED_LABEL
        embeds = torch.cat([prefix, audio.to(prefix.dtype), suffix, embed(labels_BL.clamp(min=0))], dim=1)
        before = prefix.shape[1] + num_audio + suffix.shape[1]
        mask = torch.cat([torch.ones(batch, before, dtype=torch.bool), target], dim=1)
        labels = torch.cat([torch.full((batch, before), IGNORED_LABEL), labels_BL], dim=1)
        loss: Tensor = self.llm(inputs_embeds=embeds, attention_mask=mask, labels=labels, use_cache=False).loss
        return loss * target.sum()


def run_padded(
    assembly: Assembly, clips: Sequence[Recording], options: OptimizerConfig, *, micro_batch: int, accumulate: int
) -> Iterator[Step]:
    """The way most peers train: input padded to 30 s, batches of fixed size in random order, all logits. Plain PyTorch."""
    model = PaddedSpeechLLM(assembly).train()
    adamw = optimizer_of(assembly, options)
    data = Recordings(clips, assembly.tokenizer, assembly.encoder.dims.num_mels, pad_to_30s=True)
    loader = torch.utils.data.DataLoader(data, batch_size=micro_batch, collate_fn=collate, num_workers=1)
    trained = [parameter for group in adamw.param_groups for parameter in group["params"]]
    batches: list[dict[str, Tensor]] = []
    for batch in loader:
        batches.append(batch)
        if len(batches) < accumulate:
            continue
        num_tokens = sum(int((item["labels"] != IGNORED_LABEL).sum()) for item in batches)
        total = 0.0
        for item in batches:
            loss = model(item["log_mel"], item["labels"])
            (loss / num_tokens).backward()
            total += float(loss.detach())
        nn.utils.clip_grad_norm_(trained, options.clip_norm)
        adamw.step()
        adamw.zero_grad()
        batches = []
        yield Step(total, num_tokens)


class TrainerModel(nn.Module):
    """Our model for `Trainer`: any length, logits at label positions alone. The encoder is no part of what DeepSpeed wraps,
    for its layer norms fail in an engine that computes in bfloat16."""

    def __init__(self, assembly: Assembly) -> None:
        super().__init__()
        self.speech = assembly.model
        # Trainer reads a model's hidden sizes off its config
        self.config = assembly.model.llm.config
        self._outside = (assembly.encoder, assembly.prompt)
        self.sums: list[tuple[Tensor, int]] = []

    def forward(self, log_mel: Tensor, num_frames: Tensor, labels: Tensor, num_items_in_batch: Any = None, **_: Any) -> Any:
        encoder, prompt = self._outside
        states, num_states = encoder(log_mel.float(), num_frames)
        loss = self.speech(states, num_states, prompt.prefix_ids, prompt.suffix_ids, labels)
        num_tokens = int((labels != IGNORED_LABEL).sum())
        self.sums.append((loss.detach(), num_tokens))
        return {"loss": loss / (num_items_in_batch if num_items_in_batch is not None else num_tokens)}


def run_trainer(
    assembly: Assembly,
    clips: Sequence[Recording],
    options: OptimizerConfig,
    *,
    micro_batch: int,
    accumulate: int,
    scratch: Path,
    on_step: Callable[[Step], None],
) -> None:
    """transformers' Trainer under DeepSpeed ZeRO-3 with DeepSpeed's defaults, batches of fixed size padded to their longest."""
    from torch.utils.data import SequentialSampler
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Report(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            on_step(Step(sum(float(loss) for loss, _ in model.sums), sum(count for _, count in model.sums)))
            model.sums.clear()

    class SameTraining(Trainer):
        """Our order of clips and our optimizer: under DeepSpeed, Trainer makes its own in place of one that it was given."""

        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return SequentialSampler(train_dataset if train_dataset is not None else self.train_dataset)

        def create_optimizer(self, *_: Any, **__: Any) -> Any:
            self.optimizer = optimizer_of(assembly, options)
            return self.optimizer

        def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
            del num_training_steps
            self.lr_scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer or self.optimizer, factor=1.0)
            return self.lr_scheduler

    settings = {
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": 3},
        "zero_allow_untested_optimizer": True,
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulate,
        "gradient_clipping": options.clip_norm,
    }
    arguments = TrainingArguments(
        output_dir=str(scratch),
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=accumulate,
        max_steps=len(clips) // (micro_batch * accumulate),
        max_grad_norm=options.clip_norm,
        bf16=True,
        use_cpu=not torch.cuda.is_available(),
        deepspeed=settings,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_num_workers=1,
        dataloader_pin_memory=False,
    )
    model = TrainerModel(assembly)
    trainer = SameTraining(
        model=model,
        args=arguments,
        train_dataset=Recordings(clips, assembly.tokenizer, assembly.encoder.dims.num_mels, pad_to_30s=False),
        data_collator=collate,
        callbacks=[Report()],
    )
    trainer.train()
