"""A run as one model that transformers loads by itself: encoder, adaptor and LLM, with the code that puts them together."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kappaspeech.artefacts import write_json, write_text
from kappaspeech.errors import CheckpointError
from kappaspeech.evaluation.transcribe import Transcriber
from kappaspeech.model.encoder import FrozenWhisperEncoder, SpeechEncoder
from kappaspeech.model.generation import GREEDY
from kappaspeech.model.prefixes import ADAPTOR_PREFIX, LLM_PREFIX
from kappaspeech.portable.configuration_kappaspeech import KappaSpeechConfig
from kappaspeech.portable.processing_kappaspeech import KappaSpeechProcessor
from kappaspeech.portable.sources import AUTO_MAP, read_sources
from kappaspeech.progress import ProgressBar
from kappaspeech.trained.arithmetic import UseArithmetic
from kappaspeech.trained.export_folder import write_folder
from kappaspeech.trained.merged_files import OutputTensor, write_tensors
from kappaspeech.trained.opening import Step, open_transcriber

ENCODER_PREFIX = "encoder."
_PROCESSOR_FILE = "processor_config.json"
_CARD_FILE = "README.md"


def export_whole(
    source: Path, output: Path, *, step: Step = None, base: str | None = None, card: str | None = None, max_new_tokens: int = 200
) -> list[Path]:
    """Write a run, an export or a difference as one model: config, weights, tokenizer and the code of model and processor.

    `AutoModel.from_pretrained(output, trust_remote_code=True)` loads it with transformers alone, and
    `KappaSpeechModel.from_pretrained(output)` here. The folder appears whole or not at all. `card` is its README.md. Returns its
    files. Raises `InputError` if `output` exists, `CheckpointError` for a model that can't be written so.
    """
    # each part in the dtype of its training
    use = UseArithmetic(bfloat16_is_fast=True)
    device = torch.device("cpu")
    speaker = open_transcriber(source, step=step, base=base, device=device, batch_size=1, max_new_tokens=max_new_tokens, use=use)
    check_encoder(speaker.encoder)
    size = sum(tensor.nbytes for tensor in _tensors_of(speaker).values())

    def write(folder: Path) -> None:
        with ProgressBar("export", total=size, shown=True) as bar:
            write_model(folder, speaker, advance=bar.advance)
        if card is not None:
            write_text(folder / _CARD_FILE, card)

    return write_folder(output, write, num_bytes=size)


def check_encoder(encoder: SpeechEncoder) -> None:
    """Raise `CheckpointError` for an encoder that isn't Whisper's: the exported code knows no other."""
    if not isinstance(encoder, FrozenWhisperEncoder):
        raise CheckpointError(
            "One model for transformers is written with Whisper's encoder alone, and this run's reads waveforms. Export without "
            "--whole: that export names the encoder's folder and is used with it."
        )


def write_model(folder: Path, speaker: Transcriber, *, advance: Callable[[float], None] = lambda _bytes: None) -> None:
    """Write all that transformers loads into `folder`. Raises `CheckpointError` for a model that can't be written so."""
    if getattr(speaker.model.llm.config, "quantization_config", None) is not None:
        raise CheckpointError("The base model is quantised: trained weights can't be merged into it.")
    tensors = _tensors_of(speaker)
    planned = [OutputTensor(name, None, tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()]
    write_tensors(folder, planned, lambda writer, item: writer.add(item.name, tensors[item.name]), advance=advance)
    for name, text in read_sources().items():
        write_text(folder / name, text)
    _write_config(folder, speaker)
    _write_processor(folder, speaker)
    _write_generation(folder, speaker)


def _tensors_of(speaker: Transcriber) -> Mapping[str, Tensor]:
    """Every tensor of the model by its name in `KappaSpeechModel`; of tied ones the first."""
    llm = speaker.model.llm
    parameters = dict(llm.named_parameters())
    tied = {name for name, _ in llm.named_parameters(remove_duplicate=False)} - parameters.keys()
    # transformers' buffers that are kept have no other place
    of_llm = {**parameters, **{name: value for name, value in llm.state_dict().items() if name not in tied | parameters.keys()}}
    return {
        **{f"{ENCODER_PREFIX}{name}": tensor for name, tensor in speaker.encoder.state_dict().items()},
        **{f"{ADAPTOR_PREFIX}{name}": tensor for name, tensor in speaker.model.adaptor.state_dict().items()},
        **{f"{LLM_PREFIX}{name}": tensor for name, tensor in of_llm.items()},
    }


def _write_config(folder: Path, speaker: Transcriber) -> None:
    encoder, llm = speaker.encoder, speaker.model.llm
    assert isinstance(encoder, FrozenWhisperEncoder), "refused before"
    of_llm = llm.config.to_dict()
    # where it lay on this machine
    of_llm.pop("_name_or_path", None)
    dtype = str(llm.dtype).removeprefix("torch.")
    more: dict[str, Any] = {"attn_implementation": "eager"} if llm.config._attn_implementation == "eager" else {}
    config = KappaSpeechConfig(
        text_config=of_llm,
        encoder={
            **asdict(encoder.dims),
            "num_heads": encoder.whisper.blocks[0].attn.n_head,
            "num_layers": encoder.num_layers,
            "pad_to_30s": encoder.pad_to_30s,
            "dtype": str(encoder.dtype).removeprefix("torch."),
        },
        adaptor=asdict(speaker.model.adaptor.shape),
        prompt={**speaker.prompt.to_json(), "chat_template": speaker.chat_template},
        trained_in=dtype,
        dtype=dtype,
        architectures=["KappaSpeechModel"],
        auto_map=AUTO_MAP,
    )
    # a setting of loading, which transformers reads and doesn't write
    write_json(folder / "config.json", {**json.loads(config.to_json_string(use_diff=False)), **more})


def _write_processor(folder: Path, speaker: Transcriber) -> None:
    """Tokenizer and processor; transformers finds the processor's class by the processor's own file."""
    dims = speaker.encoder.dims
    processor = KappaSpeechProcessor(speaker.tokenizer, whisper_filters(dims.num_mels), dims.max_seconds)
    processor.save_pretrained(folder)
    path = folder / _PROCESSOR_FILE
    content = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, {**content, "auto_map": {"AutoProcessor": AUTO_MAP["AutoProcessor"]}})


def whisper_filters(num_mels: int) -> list[tuple[int, list[float]]]:
    """Whisper's own filterbank, each row as its first bin and the weights from there."""
    from whisper.audio import mel_filters

    rows = []
    for row in mel_filters("cpu", num_mels):
        places = row.nonzero().flatten()
        first, last = (int(places[0]), int(places[-1])) if len(places) else (0, -1)
        rows.append((first, row[first : last + 1].tolist()))
    return rows


def _write_generation(folder: Path, speaker: Transcriber) -> None:
    """The settings with which `kappaspeech transcribe` generates, beside what the LLM's own say of it."""
    settings = copy.deepcopy(speaker.model.llm.generation_config)
    end = speaker.tokenizer.eos_token_id
    settings.update(
        **{**GREEDY, "num_beams": speaker.num_beams}, max_new_tokens=speaker.max_new_tokens, eos_token_id=end, pad_token_id=end
    )
    settings.save_pretrained(folder)
