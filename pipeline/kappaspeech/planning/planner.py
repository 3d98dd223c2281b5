"""Plans of one configuration on several numbers of ranks; models are described once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from kappaspeech.config.deepspeed_config import read_deepspeed_config
from kappaspeech.config.replay_config import MOST_MEASURED
from kappaspeech.config.run_config import RunConfig
from kappaspeech.errors import CheckpointError, DataError
from kappaspeech.model.arithmetic import Arithmetic
from kappaspeech.model.encoder import SpeechEncoder
from kappaspeech.model.flops import speech_cost
from kappaspeech.model.llm import load_tokenizer
from kappaspeech.model.speech_llm import SpeechLLM
from kappaspeech.planning.batches import BatchSizes, sizes_by_budget, sizes_by_lengths
from kappaspeech.planning.buckets import leaves_frozen_to_memory, settle_buckets
from kappaspeech.planning.duration import Rates
from kappaspeech.planning.evaluation_memory import WINDOW_TOKENS, TextLengths
from kappaspeech.planning.machine import ModelProduct, find_products
from kappaspeech.planning.memory import read_settings
from kappaspeech.planning.plan import Assumptions, Plan, make_plan
from kappaspeech.planning.remedies import Remedy, find_remedies
from kappaspeech.planning.sizes import measure_sizes
from kappaspeech.speech.corpus import Corpus, make_datasets, make_read_options
from kappaspeech.speech.feature_cache import StateSize
from kappaspeech.speech.prompt import make_configured_prompt
from kappaspeech.speech.schedule import BatchBudget
from kappaspeech.speech.source import is_remote
from kappaspeech.speech.stream import make_budget
from kappaspeech.speech.table import MERGED_SUFFIX

# of a chat template around a short instruction
ASSUMED_PROMPT_TOKENS = 40
_BYTES_PER_TOKEN = 2
_MOST_TEXT_BYTES = 16 << 20


class Planner:
    """A configuration with the shapes of its models and the lengths of its clips."""

    def __init__(
        self,
        config: RunConfig,
        *,
        modules: tuple[SpeechEncoder, SpeechLLM],
        clip_seconds: Sequence[NDArray[np.float32]] | None = None,
        num_trained: int | None = None,
        prompt_tokens: int = ASSUMED_PROMPT_TOKENS,
        anchored_tokens: int | None = None,
    ) -> None:
        """`modules` may lie on the meta device, and are asked before ZeRO-3 takes them. Without `clip_seconds` the clips'
        lengths are read from the indices, if these can be read.

        `num_trained` stands for a selection that isn't there yet; `prompt_tokens` count against a budget of tokens. Without
        `anchored_tokens`, those whose states an anchor keeps, they are estimated. Raises `InputError` if a part can't be
        described.
        """
        self._config = config
        encoder, model = modules
        # what the JSON leaves to the machine was chosen when the modules were made
        dtype = next(model.adaptor.parameters()).dtype
        self.sizes = measure_sizes(encoder, model, num_trained=num_trained)
        said = read_deepspeed_config(Path(config.deepspeed))
        settings = read_settings(settle_buckets(said, layer_elements=self.sizes.llm.layer_elements))
        self._settings = replace(settings, itemsize=dtype.itemsize, may_keep_frozen=leaves_frozen_to_memory(said))
        # the prompt's tokens are an assumption of each plan
        self._cost = speech_cost(encoder, model, num_prompt_tokens=0)
        if num_trained is not None:
            self._cost = replace(self._cost, llm=replace(self._cost.llm, trained_weights=num_trained))
        if clip_seconds is None:
            clip_seconds = _read_clip_seconds(config)
        budget = make_budget(config.batch, prompt_tokens=prompt_tokens, seconds_per_position=self.sizes.seconds_per_audio_token)
        longest = min(config.batch.max_seconds, encoder.dims.max_seconds)
        self.state_bytes = None if clip_seconds is None else self._count_state_bytes(clip_seconds, longest)
        self.batches = _cut_batches(budget, clip_seconds, max_seconds=longest, packs=model.packs)
        self._texts = measure_texts(config.data.text, has_tasks=bool(config.data.tasks))
        self._anchored_tokens = estimate_anchored(config) if anchored_tokens is None else anchored_tokens
        self._encoded_share = _share_encoded(config, clip_seconds, self.batches)

    def _count_state_bytes(self, clip_seconds: Sequence[NDArray[np.float32]], max_seconds: float) -> int:
        """The bytes of a cache of the encoder's states."""
        sizes = self.sizes
        size = StateSize(sizes.seconds_per_state, sizes.encoder_width * sizes.encoder_itemsize, max_seconds)
        return size.count_bytes(clip_seconds)

    def find_products(self, arithmetic: Arithmetic, *, prompt_tokens: int, device_type: str) -> tuple[ModelProduct, ModelProduct]:
        """The LLM's and the encoder's products by which a device's rate is measured."""
        return find_products(
            self.sizes,
            self.batches,
            prompt_tokens=prompt_tokens,
            dtype=arithmetic.torch_dtype,
            encoder_dtype=arithmetic.encoder_torch_dtype,
            device_type=device_type,
        )

    def plan(
        self, world_size: int, *, rates: Rates, prompt_tokens: int, on_gpu: bool = True, memory_bytes: int | None = None
    ) -> Plan:
        """The plan on `world_size` ranks that each compute and receive at these rates, and have so much memory, if known."""
        assumptions = Assumptions(
            world_size,
            "gpu" if on_gpu else "cpu",
            rates,
            prompt_tokens,
            self.batches,
            encoded_share=self._encoded_share,
            memory_bytes=memory_bytes,
            texts=self._texts,
            anchored_tokens=self._anchored_tokens,
        )
        cost = replace(self._cost, num_prompt_tokens=prompt_tokens)
        return make_plan(self._config, self._settings, self.sizes, cost, assumptions)

    @property
    def reduced_dtype(self) -> torch.dtype:
        """The dtype in which gradients are added up over the ranks."""
        return torch.float32 if self._settings.reduced_itemsize == torch.float32.itemsize else torch.bfloat16

    def find_remedies(self, assumptions: Assumptions) -> list[Remedy]:
        """Changes that need less than the plan of these `assumptions`."""
        cost = replace(self._cost, num_prompt_tokens=assumptions.prompt_tokens)
        return find_remedies(self._config, self._settings, self.sizes, cost, assumptions)


def _cut_batches(
    budget: BatchBudget, clip_seconds: Sequence[NDArray[np.float32]] | None, *, max_seconds: float, packs: bool
) -> BatchSizes:
    if clip_seconds is None:
        return sizes_by_budget(budget)
    return sizes_by_lengths(clip_seconds, budget, max_seconds=max_seconds, packs=packs)


def _share_encoded(config: RunConfig, clip_seconds: Sequence[NDArray[np.float32]] | None, batches: BatchSizes) -> float:
    """The share of a run's clips that meet the encoder: with a cache of its states, those of the first epoch."""
    if config.data.feature_cache_dir is None or clip_seconds is None:
        return 1.0
    num_trained = config.training.num_steps * config.batch.micro_batches_per_step * batches.mean.num_samples
    return min(1.0, sum(len(seconds) for seconds in clip_seconds) / num_trained)


def measure_texts(texts: Mapping[str, str], *, has_tasks: bool = False) -> TextLengths | None:
    """The windows that evaluations score, by the sizes of the files: a line each, or a file of a folder; None without texts.

    A token is taken to have two bytes at least. A text that isn't here, or that is large, is taken to fill windows. A batch of
    questions is as large as a window.
    """
    if not (texts or has_tasks):
        return None
    longest, count = (WINDOW_TOKENS, 1) if has_tasks else (0, 0)
    for sizes in map(_text_sizes, texts.values()):
        longest = max([longest, *(size // _BYTES_PER_TOKEN for size in sizes)])
        count += sum(-(-size // (_BYTES_PER_TOKEN * WINDOW_TOKENS)) for size in sizes)
    return TextLengths(min(longest, WINDOW_TOKENS), count)


def count_prompt(config: RunConfig) -> int:
    """The number of the prompt's tokens at most; an estimate if there is no tokenizer."""
    try:
        tokenizer = load_tokenizer(config.model.llm)
    except CheckpointError:
        return ASSUMED_PROMPT_TOKENS
    return make_configured_prompt(tokenizer, config).most_tokens(config.data.train, hot=config.data.most_hot_tokens)


def estimate_anchored(config: RunConfig) -> int:
    """The most tokens of which an anchor keeps states, by the sizes of the texts, of which a token has two bytes at least.

    Of replayed texts no more count than a run reaches; of those by which a budget is kept, no more than are measured.
    """
    options = config.replay
    if options is None:
        return 0
    replayed = sum(sum(_text_sizes(path)) // _BYTES_PER_TOKEN for path in options.texts.values())
    reached = config.training.num_steps * options.texts_per_step * options.max_tokens
    measured = 0
    if options.forgetting_budget_nats is not None:
        most = MOST_MEASURED * WINDOW_TOKENS
        measured = sum(min(sum(_text_sizes(path)) // _BYTES_PER_TOKEN, most) for path in config.data.text.values())
    return min(replayed, reached) + measured


def _text_sizes(name: str) -> list[int]:
    """Bytes of the texts at a path: a file of a folder is one, or else a line; of what isn't here or is large, many in one."""
    path = Path(name)
    try:
        if path.is_dir():
            return [file.stat().st_size for file in path.glob("**/*.txt")]
        size = path.stat().st_size
        return [len(line) for line in path.read_bytes().splitlines()] if size <= _MOST_TEXT_BYTES else [size]
    except OSError:
        return [_MOST_TEXT_BYTES]


def _read_clip_seconds(config: RunConfig) -> list[NDArray[np.float32]] | None:
    """The clips' lengths by data set; None if an index lies behind a URL or can't be read."""
    datasets = make_datasets(config.data.train)
    if any(is_remote(item.shards) and not item.shards.endswith(MERGED_SUFFIX) for item in datasets):
        return None
    try:
        return [Corpus(item, make_read_options(config.data.read)).lengths().seconds for item in datasets]
    except DataError:
        return None
