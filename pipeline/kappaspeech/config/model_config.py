"""The configuration's part on the models, and on the tensors of them that train."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from kappaspeech.config.section import Count, Positive, StrictSection


class AdaptorConfig(StrictSection):
    """The trained bridge from the encoder's states to the LLM's embeddings."""

    width: Count | None = Field(default=None, description="Width of the adaptor's layers. null: the LLM's own width.")
    num_heads: Count = Field(default=8, description="Attention heads. They must divide the width.")
    stacking: Count = Field(default=4, description="Neighbouring encoder states that become one audio position of the LLM.")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.0, description="Dropout inside the adaptor.")
    initial: str | None = Field(
        default=None,
        description="A run's folder, or an export's with adaptor.safetensors, whose adaptor this run begins with: one alignment "
        "for the arms of a comparison, say. It must have been trained with these options and widths. A run "
        "reads it once, and resumes from its own checkpoints, also if that folder is gone. null: random weights.",
    )


class ModelConfig(StrictSection):
    """The two pretrained models, and the prompt around the audio."""

    llm: str = Field(description="The LLM: a folder, or a Hugging Face id if there is a network.")
    encoder: str = Field(
        description="The speech encoder: an openai-whisper file, a folder of a Whisper, wav2vec2, HuBERT or WavLM as "
        "transformers saves it, or an openai-whisper name (large-v3) if there is a network."
    )
    attn_implementation: Literal["auto", "sdpa", "eager", "flash_attention_2"] = Field(
        default="auto",
        description="transformers' attention. auto takes FlashAttention 2 if a GPU, the package and a 16-bit dtype are there, "
        "matrix products on processors that are fast in bfloat16, else sdpa, and eager if the family computes more than these. "
        "A run keeps what it began with.",
    )
    encoder_dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="What the encoder computes in. auto: the LLM's dtype, but bfloat16 only on machines that are fast in it. A "
        "resumed run keeps what it began with.",
    )
    pad_to_30s: bool = Field(default=False, description="Pad each clip to 30 s, as openai-whisper does. false: to its batch.")
    instruction: str = Field(
        default="Transcribe the speech: {audio}",
        description="The user's turn of the prompt. {audio} marks the place of the recording.",
    )
    chat_template: bool = Field(
        default=True,
        description="Put the instruction into the LLM's chat template. false: the instruction is the whole prompt, which is "
        "shorter and cheaper, and begins as the tokenizer begins texts. A run keeps the prompt's tokens.",
    )
    adaptor: AdaptorConfig = Field(default=AdaptorConfig(), description="The adaptor's shape and first weights.")


class LoraConfig(StrictSection):
    """PEFT's LoRA: W + (alpha / rank)·B·A."""

    rank: Count = Field(default=16, description="Rank of B·A.")
    alpha: Positive = Field(default=32.0, description="Scale: B·A is multiplied by alpha / rank.")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.0, description="Dropout before A.")


class OsfConfig(StrictSection):
    """OSF, orthogonal subspace fine-tuning (arXiv:2504.07097): a matrix is trained in what its top singular directions leave."""

    kept_share: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.5, description="Share of each tensor's singular directions, those of largest σ, that stay as they are."
    )


class UnfreezeConfig(StrictSection):
    """The parameters that train beside the adaptor: a selection's tensors, nothing, the whole LLM, or LoRA."""

    mode: Literal["selection", "adaptor", "all", "lora"] = Field(
        default="adaptor",
        description="selection: the tensors of `selection`. adaptor: nothing of the LLM. all: the whole LLM. lora: LoRA on the "
        "modules of the selection's tensors (κ-LoRA), or without a selection on every linear module but the head. If mode is "
        "left out, it is selection if there is a selection, else adaptor.",
    )
    selection: str | None = Field(default=None, description="The file that `kappaspeech select` wrote.")
    lora: LoraConfig | None = Field(default=None, description="LoRA's settings, for mode lora alone.")

    osf: OsfConfig | None = Field(
        default=None, description="Train a selection's tensors in a subspace alone, for mode selection. null: wholly."
    )

    @model_validator(mode="before")
    @classmethod
    def _choose_mode(cls, content: Any) -> Any:
        if not isinstance(content, dict):
            return content
        mode = content.get("mode") or ("selection" if content.get("selection") else "adaptor")
        lora = content.get("lora")
        return {**content, "mode": mode, "lora": {} if mode == "lora" and lora is None else lora}

    @model_validator(mode="after")
    def _check_mode(self) -> UnfreezeConfig:
        if self.mode == "selection" and self.selection is None:
            raise ValueError("mode selection needs a selection: give the file that `kappaspeech select` wrote")
        if self.mode in ("adaptor", "all") and self.selection is not None:
            raise ValueError(f"mode {self.mode} takes no selection: set unfreeze.selection to null")
        if self.mode != "lora" and self.lora is not None:
            raise ValueError(f"mode {self.mode} takes no lora section: remove it or set unfreeze.mode to lora")
        if self.mode != "selection" and self.osf is not None:
            raise ValueError(f"mode {self.mode} takes no osf section: remove it or set unfreeze.mode to selection")
        return self
