"""A Whisper that transformers saved, as the encoder: against transformers' own."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import WhisperConfig, WhisperForConditionalGeneration

from kappaspeech.config.run_config import read_run_config
from kappaspeech.errors import CheckpointError
from kappaspeech.model.encoder import load_encoder
from kappaspeech.model.transformers_whisper import WhisperShape, read_shape
from kappaspeech.planning.meta_model import build_meta_model
from tests import tiny

# unlike tiny.make_whisper's in every size, and with heads that aren't of 64
SIZES = {"num_mel_bins": 128, "d_model": 24, "encoder_layers": 3, "encoder_attention_heads": 3, "encoder_ffn_dim": 96}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder, and the model that was saved there."""
    folder = tmp_path_factory.mktemp("whisper")
    torch.manual_seed(0)
    decoder = {"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 32, "vocab_size": 100}
    tokens = {"pad_token_id": 1, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 3}
    model = WhisperForConditionalGeneration(WhisperConfig(**SIZES, **decoder, **tokens)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder, model


@pytest.mark.parametrize("pad_to_30s", [False, True])
def test_it_hears_what_transformers_own_hears(saved, pad_to_30s):
    folder, model = saved
    encoder = load_encoder(str(folder), pad_to_30s=pad_to_30s)
    assert (encoder.dims.num_mels, encoder.dims.width, encoder.dims.max_states, encoder.num_layers) == (128, 24, 1500, 3)
    clip = torch.randn(2, 128, 3000, generator=torch.Generator().manual_seed(1))
    states, counts = encoder(clip, torch.tensor([3000, 3000]))
    with torch.no_grad():
        expected = model.model.encoder(clip).last_hidden_state
    assert counts.tolist() == [1500, 1500]
    torch.testing.assert_close(states, expected, atol=1e-4, rtol=1e-4)
    assert states.std() > 0.1


def test_it_computes_in_the_dtype_that_it_is_asked_for(saved):
    encoder = load_encoder(str(saved[0]), dtype=torch.bfloat16)
    assert encoder.dtype == torch.bfloat16
    assert encoder(torch.zeros(1, 128, 200), torch.tensor([200]))[0].dtype == torch.bfloat16
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_a_plan_knows_its_sizes_by_its_config_alone(saved, home, tmp_path):
    (tmp_path / "config.json").write_bytes((saved[0] / "config.json").read_bytes())
    assert read_shape(str(tmp_path)) == WhisperShape(128, 1500, 24, 3, 3)
    config = read_run_config(tiny.write_config(tmp_path / "run.yaml", home, tmp_path / "run", model__encoder=str(tmp_path)))
    planned, _ = build_meta_model(config)
    loaded = load_encoder(str(saved[0]))
    assert planned.dims == loaded.dims
    shapes = [{name: p.shape for name, p in encoder.named_parameters()} for encoder in (planned, loaded)]
    assert shapes[0] == shapes[1]
    assert planned.whisper.blocks[0].attn.n_head == loaded.whisper.blocks[0].attn.n_head == 3


def test_another_family_and_a_damaged_folder_are_refused(saved, home, tmp_path):
    with pytest.raises(CheckpointError, match="of type llama"):
        load_encoder(str(home / "llm"))
    (tmp_path / "config.json").write_bytes((saved[0] / "config.json").read_bytes())
    with pytest.raises(CheckpointError, match="can't be loaded as a Whisper"):
        load_encoder(str(tmp_path))
    tensors = load_file(saved[0] / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "encoder.layers.1.fc2" not in name}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 2 tensors .*encoder\.layers\.1\.fc2"):
        load_encoder(str(tmp_path))
    content = json.loads((saved[0] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**content, "activation_function": "relu"}))
    with pytest.raises(CheckpointError, match="with relu"):
        load_encoder(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({**content, "encoder_ffn_dim": 48}))
    with pytest.raises(CheckpointError, match="48 wide inside"):
        load_encoder(str(tmp_path))
