"""A causal LM that hears, as transformers loads models: Whisper's encoder, the adaptor and the LLM in one.

B batch · M mel channels · T log-mel frames · N longest left-padded prompt · H LLM width · L tokens generated
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedModel

from kappaspeech.model.adaptor import Adaptor, AdaptorShape
from kappaspeech.model.generation import generate
from kappaspeech.model.masked_whisper import EncoderDims, MaskedWhisperEncoder, WhisperWeights
from kappaspeech.model.splicing import pad_left, splice
from kappaspeech.portable.configuration_kappaspeech import KappaSpeechConfig


class KappaSpeechModel(PreTrainedModel, GenerationMixin):
    """Whisper's encoder, the adaptor and the LLM: `generate` gives the token ids of what is said.

    Loaded in the dtype of its training, each part computes in the one that it had there; in another dtype, all but the encoder's
    layer norms compute in that.
    """

    config_class = KappaSpeechConfig
    main_input_name = "input_features"
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: KappaSpeechConfig) -> None:
        super().__init__(config)
        # the first, whose dtype transformers takes for the model's
        self.llm = AutoModelForCausalLM.from_config(config.text_config)
        self.adaptor = Adaptor(AdaptorShape(**config.adaptor))
        self.encoder = _make_encoder(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        embeddings: nn.Module = self.llm.get_input_embeddings()
        return embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.llm.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        head: nn.Module = self.llm.get_output_embeddings()
        return head

    def embed(self, input_features: Tensor, num_frames: Tensor, instruction: str | None = None) -> tuple[Tensor, Tensor]:
        """The prompts with their audio as embeddings (B, N, H), left-padded, and the mask (B, N) of what is real.

        `input_features` are log-mels (B, M, T), zero past `num_frames` (B,). `instruction` is one that a data set of the training
        had of its own. Raises `ValueError` for another.
        """
        others = self.config.prompt.get("others", {})
        if instruction is not None and instruction not in others:
            raise ValueError(f"No data set of the training had the instruction {instruction!r}; there are {sorted(others)}.")
        prompt = self.config.prompt if instruction is None else others[instruction]
        device = self.adaptor.project.weight.device
        states_BSE, num_states_B = self.encoder(input_features.to(device), num_frames)
        audio_BAH, num_audio_B = self.adaptor(states_BSE, num_states_B)
        prefix_P, suffix_Q = (
            torch.tensor(prompt[name], dtype=torch.long, device=device) for name in ("prefix_ids", "suffix_ids")
        )
        no_labels_B0 = torch.empty(len(input_features), 0, dtype=torch.long, device=device)
        spliced = splice(self.llm.get_input_embeddings(), audio_BAH, num_audio_B, prefix_P, suffix_Q, no_labels_B0)
        return pad_left(spliced.embeds_BNH, spliced.lengths_B)

    def forward(self, input_features: Tensor, num_frames: Tensor, **options: Any) -> Any:
        """The LLM's own output on the prompts with their audio."""
        embeds_BNH, mask_BN = self.embed(input_features, num_frames)
        return self.llm(inputs_embeds=embeds_BNH, attention_mask=mask_BN, **options)

    @torch.no_grad()
    def generate(self, input_features: Tensor, num_frames: Tensor, instruction: str | None = None, **options: Any) -> Tensor:
        """The token ids (B, L) of what is said, greedily unless `options` of transformers' `generate` say otherwise.

        `instruction` is one of the training's data sets (`embed`).
        """
        embeds_BNH, mask_BN = self.embed(input_features, num_frames, instruction)
        given = options.pop("generation_config", None)
        settings = copy.deepcopy(self.generation_config if given is None else given)
        # what a given one leaves open is the export's, as in transformers' own `generate`
        settings.update(**self.generation_config.to_dict(), defaults_only=True)
        others = settings.update(**options)
        return generate(self.llm, embeds_BNH, mask_BN, generation_config=settings, **others)


def _make_encoder(config: KappaSpeechConfig) -> MaskedWhisperEncoder:
    """The encoder in the dtype in which it is to be loaded: transformers keeps to it."""
    described = dict(config.encoder)
    trained_in = getattr(torch, described.pop("dtype"))
    pad_to_30s, num_heads, num_layers = (described.pop(name) for name in ("pad_to_30s", "num_heads", "num_layers"))
    dims = EncoderDims(**described)
    weights = WhisperWeights(dims, num_heads=num_heads, num_layers=num_layers)
    # the dtype that is asked for is torch's default while transformers builds a model
    asked_for = torch.get_default_dtype()
    dtype = trained_in if asked_for == getattr(torch, config.trained_in) else asked_for
    modules: Iterable[Any] = weights.modules()
    for module in modules:
        chosen = torch.float32 if isinstance(module, nn.LayerNorm) else dtype
        module._apply(lambda tensor, chosen=chosen: tensor.to(chosen), recurse=False)
    return MaskedWhisperEncoder(weights, dims, pad_to_30s=pad_to_30s)
