"""Models and speech small enough to train in seconds, with every part real: Llama, tokenizer, Whisper, FLAC, shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from kappaspeech.model.arithmetic import Arithmetic

WORDS = {
    "en": ("turn", "the", "red", "lamp", "on", "open", "door", "green", "kitchen", "garden"),
    "de": ("schalte", "die", "rote", "Lampe", "ein", "öffne", "Tür", "grüne", "Küche", "Garten"),
}
ENCODER_WIDTH = 16
# what `write_config` asks for, on every machine
ARITHMETIC = Arithmetic("bfloat16", "float32", "sdpa", "a test says so", {"float32": 1.0, "bfloat16": 1.0})


def make_llm(folder: Path, *, seed: int = 0, tied: bool = False) -> Path:
    """A two-layer Llama in bfloat16 with a byte-level tokenizer and a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([" ".join(words) for words in WORDS.values()], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[a]{% endif %}"
    )
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        bos_token_id=fast.bos_token_id,
        eos_token_id=fast.eos_token_id,
    )
    llm = LlamaForCausalLM(config).to(torch.bfloat16)
    llm.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def make_whisper(path: Path, *, seed: int = 0) -> Path:
    """A one-layer openai-whisper checkpoint with Whisper's own sizes of input: 80 mels, 30 s."""
    from dataclasses import asdict

    from whisper.model import ModelDimensions, Whisper

    dims = ModelDimensions(80, 1500, ENCODER_WIDTH, 2, 1, 51865, 16, ENCODER_WIDTH, 2, 1)
    torch.manual_seed(seed)
    torch.save({"dims": asdict(dims), "model_state_dict": Whisper(dims).state_dict()}, path)
    return path


def make_waveform_encoder(folder: Path, family: str, *, norm: str = "group", normalises: bool = True, **changes: Any) -> Path:
    """A two-layer wav2vec2, HuBERT or WavLM as transformers saves it, with its own convolutions: 320 samples a state."""
    from transformers import AutoConfig, AutoModel, Wav2Vec2FeatureExtractor

    sizes = {
        "hidden_size": ENCODER_WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "conv_dim": [8] * 7,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 2,
        # as the large models' are
        "do_stable_layer_norm": norm == "layer",
        "conv_bias": norm == "layer",
    }
    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model(family, feat_extract_norm=norm, **{**sizes, **changes})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=normalises, return_attention_mask=norm == "layer").save_pretrained(folder)
    return folder


def make_recordings(folder: Path, *, num_clips: int, seed: int = 0) -> Path:
    """`num_clips` a language, each word of a text as a tone of its own: `folder`/{en,de}/transcripts.tsv and FLAC files."""
    import soundfile

    rng = np.random.default_rng(seed)
    for language, words in WORDS.items():
        (folder / language).mkdir(parents=True, exist_ok=True)
        lines = []
        for clip in range(num_clips):
            chosen = rng.integers(len(words), size=rng.integers(2, 6))
            waveform = np.concatenate([_tone(200.0 + 150.0 * index) for index in chosen])
            soundfile.write(folder / language / f"{clip:03d}.flac", waveform, 16_000)
            lines.append(f"{clip:03d}.flac\t{' '.join(words[index] for index in chosen)}\n")
        (folder / language / "transcripts.tsv").write_text("".join(lines), encoding="utf-8")
    return folder


def _tone(hertz: float) -> np.ndarray:
    time = np.arange(3_200) / 16_000
    return (0.3 * np.sin(2 * np.pi * hertz * time) * np.hanning(len(time))).astype(np.float32)


def write_config(path: Path, home: Path, run_dir: Path, **changes: Any) -> Path:
    """A run's YAML on what `home` holds; `changes` are dotted keys with __ for the dots."""
    content: dict[str, Any] = {
        "run_dir": str(run_dir),
        "model": {
            "llm": str(home / "llm"),
            "encoder": str(home / "whisper.pt"),
            "adaptor": {"width": 32, "num_heads": 4},
            "encoder_dtype": "float32",
        },
        "unfreeze": {"selection": str(home / "selection.json")},
        "data": {
            "train": [
                {"shards": str(home / "shards/train/en-*.tar"), "language": "en"},
                {"shards": str(home / "shards/train/de-*.tar"), "language": "de"},
            ],
            "test": [{"shards": str(home / "shards/test/*.tar")}],
            "text": {"en": str(home / "text.txt")},
        },
        "batch": {"max_samples": 3, "max_seconds": 20.0, "micro_batches_per_step": 2},
        "optimizer": {"warmup_steps": 1, "schedule": "constant"},
        "training": {"num_steps": 4, "checkpoint_every_steps": 2},
        "evaluation": {"batch_size": 4, "max_new_tokens": 8},
        "deepspeed": str(Path(__file__).parent / "zero3.json"),
    }
    for key, value in changes.items():
        *sections, last = key.split("__")
        inner = content
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[last] = value
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    return path
