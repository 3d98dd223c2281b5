"""Causal LMs of many families, by transformers' own classes, small enough that all of them fit into one test.

`SIZES` are shared; a family's entry says what it calls them by, and what makes it itself.
"""

from __future__ import annotations

from typing import Any

import torch

VOCABULARY = 64
# of a checkpoint's generation_config.json: each changes what plain greedy decoding gives, or is refused beside it
CHAT_DEFAULTS: dict[str, Any] = {
    "do_sample": True,
    "temperature": 0.3,
    "top_k": 40,
    "top_p": 0.9,
    "top_h": 0.4,
    "min_p": 0.15,
    "typical_p": 0.9,
    "epsilon_cutoff": 1e-3,
    "eta_cutoff": 1e-3,
    "num_beams": 4,
    "num_return_sequences": 2,
    "early_stopping": True,
    "length_penalty": 2.0,
    "repetition_penalty": 1.3,
    "no_repeat_ngram_size": 1,
    "min_length": 20,
    "min_new_tokens": 20,
    "max_time": 1e-9,
    "stop_strings": ["a"],
    "forced_eos_token_id": 1,
    "exponential_decay_length_penalty": (1, 1.5),
    "guidance_scale": 1.5,
    "return_dict_in_generate": True,
}
_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
    "tie_word_embeddings": False,
}
_TIED = {"tie_word_embeddings": True}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_LATENT = {
    "kv_lora_rank": 8,
    "q_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "n_shared_experts": 1,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
_WINDOWED = {"head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8}
_OPT = {"word_embed_proj_dim": 32, "ffn_dim": 48, "do_layer_norm_before": True, "dropout": 0.0}
_MAMBA = {"state_size": 8, "conv_kernel": 4, "expand": 2, "time_step_rank": 4}
_GPT2 = {"n_embd": 32, "n_inner": 48, "n_layer": 2, "n_head": 4, "n_positions": 512}
_NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
_VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}

# name → (transformers' model_type, what differs from `_COMMON`)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("llama", {}),
    "Llama, tied": ("llama", _TIED),
    "Mistral": ("mistral", {"sliding_window": 8}),
    "Qwen2": ("qwen2", {}),
    "Qwen3": ("qwen3", {"head_dim": 8}),
    "Qwen3-MoE": ("qwen3_moe", {"head_dim": 8, **_EXPERTS}),
    "Qwen3-Next": (
        "qwen3_next",
        {
            "head_dim": 8,
            **_EXPERTS,
            "shared_expert_intermediate_size": 24,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "layer_types": ["linear_attention", "full_attention"],
        },
    ),
    "Gemma": ("gemma", {"head_dim": 8, **_TIED}),
    "Gemma-2": ("gemma2", {**_WINDOWED, **_TIED, "final_logit_softcapping": 2.0, "attn_logit_softcapping": 2.0}),
    "Gemma-3": ("gemma3_text", {**_WINDOWED, **_TIED}),
    "Gemma-3 multimodal": (
        "gemma3",
        {"text_config": {**_COMMON, **_WINDOWED}, "vision_config": _VISION, "mm_tokens_per_image": 4},
    ),
    "Phi-3": ("phi3", {"pad_token_id": 1}),
    "Granite": ("granite", {"logits_scaling": 8.0, "embedding_multiplier": 12.0, "residual_multiplier": 0.2}),
    "Granite-MoE": ("granitemoe", {"logits_scaling": 8.0, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "Cohere": ("cohere", {"logit_scale": 0.25, **_TIED}),
    "Cohere-2": ("cohere2", {"logit_scale": 0.25, "sliding_window": 8, **_TIED}),
    "OLMo": ("olmo", {}),
    "OLMo-2": ("olmo2", {}),
    "OLMoE": ("olmoe", {"num_experts": 4, "num_experts_per_tok": 2}),
    "Mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "DBRX": (
        "dbrx",
        {
            "d_model": 32,
            "n_heads": 4,
            "n_layers": 2,
            "max_seq_len": 512,
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4},
            "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2},
        },
    ),
    "DeepSeek-V2": ("deepseek_v2", _LATENT),
    "DeepSeek-V3": ("deepseek_v3", _LATENT),
    "GPT-2": ("gpt2", {**_GPT2, **_NO_DROPOUT, **_TIED}),
    "GPT-NeoX": ("gpt_neox", {"hidden_dropout": 0.0, "attention_dropout": 0.0}),
    "GPT-J": ("gptj", {**_GPT2, **_NO_DROPOUT, "rotary_dim": 4}),
    "OPT": ("opt", {**_OPT, **_TIED}),
    "OPT, projected": ("opt", {**_OPT, "word_embed_proj_dim": 16, "do_layer_norm_before": False, **_TIED}),
    "BLOOM": ("bloom", {"n_layer": 2, "n_head": 4, **_TIED}),
    "Falcon": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2, **_TIED}),
    "StarCoder2": ("starcoder2", {"residual_dropout": 0.0, "embedding_dropout": 0.0, **_TIED}),
    "StableLM": ("stablelm", {}),
    "gpt-oss": ("gpt_oss", {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8}),
    "SmolLM3": ("smollm3", _TIED),
    "Nemotron": ("nemotron", {}),
    "EXAONE-4": ("exaone4", {"sliding_window": 8}),
    "GLM-4": ("glm4", {"head_dim": 8}),
    "Llama-4": (
        "llama4_text",
        {
            "head_dim": 8,
            "num_local_experts": 2,
            "num_experts_per_tok": 1,
            "intermediate_size_mlp": 48,
            "interleave_moe_layer_step": 2,
        },
    ),
    "MPT": ("mpt", {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 512, **_TIED}),
    "Mamba": ("mamba", {**_MAMBA, **_TIED}),
    "Mamba-2": ("mamba2", {"state_size": 8, "num_heads": 4, "head_dim": 16, "n_groups": 2, "chunk_size": 8}),
    "Falcon-H1": (
        "falcon_h1",
        {
            "head_dim": 8,
            "mamba_d_ssm": 32,
            "mamba_n_heads": 4,
            "mamba_d_head": 8,
            "mamba_d_state": 8,
            "mamba_chunk_size": 8,
            "lm_head_multiplier": 0.5,
            "embedding_multiplier": 3.0,
        },
    ),
}
# the experts of a layer lie in one matrix, and train as one
TOGETHER = ("DBRX",)


def make_config(name: str, *, vocabulary: int = VOCABULARY) -> Any:
    """The configuration of a family's tiny model."""
    from transformers import AutoConfig

    model_type, changes = FAMILIES[name]
    size = {"vocab_size": vocabulary}
    if "text_config" in changes:
        return AutoConfig.for_model(model_type, **{**changes, "text_config": {**changes["text_config"], **size}})
    return AutoConfig.for_model(model_type, **{**_COMMON, **changes, **size})


def make_llm(name: str, *, attention: str | None = None, seed: int = 0) -> Any:
    """A family's tiny model in float32, in eval mode; every parameter is drawn, with biases and gains that act."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    options = {} if attention is None else {"attn_implementation": attention}
    llm = AutoModelForCausalLM.from_config(make_config(name), dtype=torch.float32, **options).eval()
    with torch.no_grad():
        for parameter in llm.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return llm
