"""The configuration's part on speech and text."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from kappaspeech.config.section import Count, Positive, StrictSection


class DatasetConfig(StrictSection):
    """One set of indexed shards."""

    shards: str = Field(
        description="Shards: a path, URL, glob or brace list of .tar files, or a merged .index file; or a folder of NeMo's "
        "tarred data sets (or its manifest) or of lhotse's Shar, read where it lies."
    )
    # YAML 1.1 reads `no`, Norwegian, as false
    language: Annotated[str | None, BeforeValidator(lambda value: "no" if value is False else value)] = Field(
        default=None,
        description="Use the samples of this language alone. null: use all samples. In lists of NeMo and lhotse it is also the "
        "language of samples that name none.",
    )
    name: str | None = Field(
        default=None,
        min_length=1,
        description="The name of a set in tables of WER and in curves; sets of one name are counted together. null: its shards.",
    )
    weight: Positive = Field(default=1.0, description="Share of the mixture, relative to the other sets of data.train.")
    text_normalization: Literal["none", "whisper"] = Field(
        default="none",
        description="How transcripts are written in training. none: as they are in the shards. whisper: as they are compared, by "
        "Whisper's normaliser of their language if that leaves words whole: lower case, without punctuation.",
    )
    instruction: str | None = Field(
        default=None,
        description="The user's turn of the prompt for this set's samples, with {audio} as in model.instruction, so that one run "
        "learns several tasks. null: model.instruction.",
    )


class ReadConfig(StrictSection):
    """Reading of remote shards."""

    attempts: Count = Field(default=6, description="How often a byte range is tried.")
    stall_seconds: Positive = Field(default=30.0, description="Seconds without a byte after which an attempt is given up.")
    cache_dir: str | None = Field(
        default=None,
        description="A folder on local disk for blocks of remote shards; they are in kappaspeech-blocks in it. null: no cache.",
    )
    cache_gb: Positive = Field(default=20.0, description="Largest size of that cache, in GB.")


class AugmentationConfig(StrictSection):
    """Seeded changes to training samples: speed, and SpecAugment's masks. Nothing is changed by default."""

    speed_factors: list[Annotated[float, Field(ge=0.5, le=2)]] = Field(
        default=[],
        description="Each clip is played at one of these speeds, drawn at random: [0.9, 1.0, 1.1]. One that would make it longer "
        "than the longest clip allowed isn't drawn.",
    )
    freq_masks: Annotated[int, Field(ge=0)] = Field(default=0, description="SpecAugment: number of frequency masks.")
    freq_width: Count = Field(default=27, description="Largest width of a frequency mask, in mel bands.")
    time_masks: Annotated[int, Field(ge=0)] = Field(default=0, description="SpecAugment: number of time masks.")
    time_width: Count = Field(default=100, description="Largest width of a time mask, in frames of 10 ms.")
    max_time_fraction: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.2, description="Largest share of a clip that one time mask may cover."
    )

    @property
    def num_masks(self) -> int:
        """The masks that are put on a clip's spectrogram."""
        return self.freq_masks + self.time_masks


class HotWordsConfig(StrictSection):
    """Hot words in training prompts: for a share of the clips the prompt names rare words of the transcript among distractors."""

    share: Annotated[float, Field(gt=0, le=1)] = Field(default=0.3, description="Share of clips whose prompt names hot words.")
    per_clip: Count = Field(
        default=3,
        description="Most words that are the clip's own: rare ones of its transcript, and never more than half of its words.",
    )
    distractors: Annotated[int, Field(ge=0)] = Field(
        default=20, description="Most distractors beside them: rare words of other transcripts of the language."
    )
    only_distractors: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.2, description="Share of those clips whose prompt names distractors alone."
    )
    max_text_share: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.005, description="A word is rare if at most this share of the language's transcripts has it."
    )
    max_tokens: Count = Field(
        default=128, description="Most tokens of a clip's hot words; of a longer list the last are left out."
    )


class DataConfig(StrictSection):
    """Speech to train and test on, and text and tasks to measure forgetting on."""

    train: Annotated[list[DatasetConfig], Field(min_length=1)] = Field(description="Sets of shards to train on.")
    test: list[DatasetConfig] = Field(default=[], description="Sets of shards to measure WER on.")
    text: dict[str, str] = Field(
        default={},
        description="Texts to measure perplexity on: language → a file of one text a line, or a folder of .txt files.",
    )
    tasks: dict[str, str] = Field(
        default={},
        description="Questions with several choices, whose right answers are counted, and instructions that are followed or not: "
        "language → a file of one a line, as JSON. `kappaspeech demo tasks` writes some.",
    )
    max_bad_fraction: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.01, description="Training stops if more than this share of its samples can't be used."
    )
    prefetch_steps: Count = Field(default=2, description="Steps whose samples are loaded ahead.")
    num_workers: Annotated[int, Field(ge=0)] = Field(
        default=0, description="Processes a rank that load samples. 0: a thread of the rank."
    )
    over_long: Literal["mask", "cut"] = Field(
        default="mask",
        description="Clips of more than 30 s, or of more than batch.max_seconds. mask: not learned from, and counted as samples "
        "that can't be used. cut: their audio is cut there.",
    )
    read: ReadConfig = Field(default=ReadConfig(), description="How remote shards are read.")
    augmentation: AugmentationConfig = Field(default=AugmentationConfig(), description="Seeded changes to training samples.")
    hot_words: HotWordsConfig | None = Field(
        default=None,
        description="Name words in some clips' prompts, so that --hot-words of transcribe and evaluate helps. null: in none.",
    )
    feature_cache_dir: str | None = Field(
        default=None,
        description="A folder on local disk for the encoder's states, in kappaspeech-states in it: later epochs skip audio and "
        "encoder. It excludes augmentation. null: no cache.",
    )
    feature_cache_gb: Positive = Field(
        default=20.0,
        description="Largest size of that cache, in GB. When it is full, states go that no present run's data have, the least "
        "recently used first.",
    )

    @property
    def most_hot_tokens(self) -> int | None:
        """The most tokens that hot words take in a training prompt; None if no prompt has any."""
        return None if self.hot_words is None else self.hot_words.max_tokens

    @property
    def instructions(self) -> list[str]:
        """The instructions that sets of data.train and data.test have of their own, each once."""
        return sorted({item.instruction for item in (*self.train, *self.test) if item.instruction is not None})

    @model_validator(mode="after")
    def _cache_what_stays(self) -> DataConfig:
        changes = self.augmentation
        if self.feature_cache_dir is not None and (changes.speed_factors or changes.freq_masks or changes.time_masks):
            raise ValueError(
                "feature_cache_dir keeps what the encoder made of a clip, and augmentation makes another clip of it each time: "
                "remove one of the two"
            )
        return self
