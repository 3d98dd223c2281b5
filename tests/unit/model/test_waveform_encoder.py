"""wav2vec2, HuBERT and WavLM as the encoder: against transformers' own, alone and in padded batches."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode

from kappaspeech.config.run_config import read_run_config
from kappaspeech.errors import CheckpointError, ConfigError
from kappaspeech.model.encoder import load_encoder
from kappaspeech.model.flops import encoder_cost, speech_cost
from kappaspeech.model.waveform_encoder import check_options
from kappaspeech.planning.batches import MicroBatchSize
from kappaspeech.planning.memory import count_activations, count_tokens, read_settings
from kappaspeech.planning.meta_model import build_meta_model
from kappaspeech.planning.sizes import measure_sizes
from tests import tiny

KINDS = [
    ("wav2vec2", "group"),
    ("wav2vec2", "layer"),
    ("hubert", "group"),
    ("hubert", "layer"),
    ("wavlm", "group"),
    ("wavlm", "layer"),
]
LENGTHS = (16_000, 4_321, 9_999)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One folder for each of `KINDS`."""
    place = tmp_path_factory.mktemp("encoders")
    return {kind: tiny.make_waveform_encoder(place / "-".join(kind), kind[0], norm=kind[1]) for kind in KINDS}


def make_clips() -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [(0.2 * rng.standard_normal(length) + 0.05).astype(np.float32) for length in LENGTHS]


def pad(clips: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    padded = torch.zeros(len(clips), 1, max(map(len, clips)))
    for row, clip in enumerate(clips):
        padded[row, 0, : len(clip)] = torch.from_numpy(clip)
    return padded, torch.tensor([len(clip) for clip in clips])


@pytest.mark.parametrize("kind", KINDS)
def test_a_clip_alone_has_the_states_of_transformers_own_model(folders, kind):
    from transformers import AutoModel, Wav2Vec2FeatureExtractor

    encoder, theirs = load_encoder(str(folders[kind])), AutoModel.from_pretrained(folders[kind]).eval()
    reading = Wav2Vec2FeatureExtractor.from_pretrained(folders[kind])
    for clip in make_clips():
        given = reading(clip, sampling_rate=16_000, return_tensors="pt").input_values
        with torch.no_grad():
            expected = theirs(given).last_hidden_state
        states, counts = encoder(*pad([clip]))
        assert counts.tolist() == [expected.shape[1]] == [encoder.dims.count_states(len(clip))]
        torch.testing.assert_close(states, expected, atol=2e-5, rtol=2e-5)
        assert states.std() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_no_state(folders, kind):
    encoder, clips = load_encoder(str(folders[kind])), make_clips()
    together, counts = encoder(*pad(clips))
    for row, clip in enumerate(clips):
        alone, _ = encoder(*pad([clip]))
        # products of other shapes are summed in another order
        torch.testing.assert_close(together[row, : counts[row]], alone[0], atol=2e-5, rtol=2e-5)
        assert not together[row, counts[row] :].any()


def test_transformers_own_batches_differ_for_a_group_norm(folders):
    """The reason why clips pass the convolutions alone."""
    from transformers import AutoModel

    theirs, (padded, lengths) = AutoModel.from_pretrained(folders["wav2vec2", "group"]).eval(), pad(make_clips())
    with torch.no_grad():
        alone = theirs(padded[1, :, : lengths[1]]).last_hidden_state
        together = theirs(padded[:, 0]).last_hidden_state[1, : alone.shape[1]]
    assert (alone[0] - together).abs().max() > 0.01


def test_a_batch_norm_before_the_positions_leaks_no_padding(tmp_path):
    folder = tiny.make_waveform_encoder(tmp_path, "hubert", conv_pos_batch_norm=True)
    encoder, clips = load_encoder(str(folder)), make_clips()
    together, counts = encoder(*pad(clips))
    for row, clip in enumerate(clips):
        torch.testing.assert_close(together[row, : counts[row]], encoder(*pad([clip]))[0][0], atol=2e-5, rtol=2e-5)


def test_waveforms_are_normalised_as_the_checkpoint_says(tmp_path):
    """A layer norm sees how loud a clip is, unless it was normalised."""
    clip = make_clips()[0]
    for normalises in (True, False):
        folder = tiny.make_waveform_encoder(tmp_path / str(normalises), "hubert", norm="layer", normalises=normalises)
        encoder = load_encoder(str(folder))
        soft, loud = (encoder(*pad([factor * clip]))[0] for factor in (1.0, 3.0))
        assert torch.allclose(soft, loud, atol=1e-4) == normalises


def test_a_digest_knows_what_no_tensor_tells(folders):
    first = load_encoder(str(folders["hubert", "group"]))
    before = first.digests()
    first.normalises = False
    after = first.digests()
    assert {name for name in before if before[name] != after[name]} == {"settings"}
    assert before == load_encoder(str(folders["hubert", "group"])).digests()


@pytest.mark.parametrize(("samples", "states"), [(2, 1), (400, 1), (719, 1), (720, 2), (1_600, 4), (480_000, 1499)])
def test_states_are_counted_as_the_convolutions_make_them(folders, samples, states):
    encoder = load_encoder(str(folders["hubert", "group"]))
    assert encoder.dims.count_states(samples) == states
    assert (encoder.dims.max_seconds, encoder.dims.seconds_per_state) == (30.0, 0.02)
    if samples < 10_000:
        found, counts = encoder(torch.randn(1, 1, samples), torch.tensor([samples]))
        assert counts.tolist() == [states] == [found.shape[1]]


def test_a_clip_longer_than_30_s_is_refused(folders):
    with pytest.raises(ValueError, match="30 s"):
        load_encoder(str(folders["hubert", "group"]))(torch.zeros(1, 1, 480_001), torch.tensor([480_001]))


@pytest.mark.parametrize("kind", [("wav2vec2", "group"), ("hubert", "layer")])
def test_its_operations_are_those_that_torch_counts(folders, kind):
    encoder = load_encoder(str(folders[kind]))
    # the counter knows no fused attention on the CPU
    encoder.encoder.config._attn_implementation = "eager"
    batch = pad([np.ones(32_080, np.float32)] * 2)
    with FlopCounterMode(display=False) as counter:
        encoder(*batch)
    # a few positions more at the convolutions' edges
    assert encoder_cost(encoder).forward([100, 100]) == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_it_computes_in_the_dtype_that_it_is_asked_for(folders):
    encoder = load_encoder(str(folders["wav2vec2", "layer"]), dtype=torch.bfloat16)
    states, _ = encoder(*pad(make_clips()))
    assert encoder.dtype == states.dtype == torch.bfloat16
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert not encoder.train().training


@pytest.mark.parametrize("kind", KINDS)
def test_a_plan_knows_its_sizes_by_its_config_alone(folders, kind, home, tmp_path):
    (tmp_path / "config.json").write_bytes((folders[kind] / "config.json").read_bytes())
    config = read_run_config(tiny.write_config(tmp_path / "run.yaml", home, tmp_path / "run", model__encoder=str(tmp_path)))
    planned, loaded = build_meta_model(config)[0], load_encoder(str(folders[kind]))
    assert planned.dims == loaded.dims
    assert planned.weights_per_state == loaded.weights_per_state
    shapes = [{name: p.shape for name, p in encoder.named_parameters()} for encoder in (planned, loaded)]
    assert shapes[0] == shapes[1]


def test_options_for_spectrograms_are_refused(folders, home, tmp_path):
    folder = str(folders["hubert", "group"])
    with pytest.raises(ConfigError, match="pad_to_30s"):
        load_encoder(folder, pad_to_30s=True)
    masks = {"data__augmentation": {"time_masks": 2}}
    config = tiny.write_config(tmp_path / "run.yaml", home, tmp_path / "run", model__encoder=folder, **masks)
    with pytest.raises(ConfigError, match="time_masks to 0"):
        build_meta_model(read_run_config(config))
    whisper = load_encoder(str(home / "whisper.pt"), pad_to_30s=True)
    check_options("whisper", whisper.dims, pad_to_30s=True, num_masks=2)


def test_folders_that_lack_something_are_refused(folders, tmp_path):
    source = folders["wav2vec2", "group"]
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())
    with pytest.raises(CheckpointError, match="preprocessor_config"):
        load_encoder(str(tmp_path))
    settings = json.loads((source / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**settings, "sampling_rate": 8_000}))
    with pytest.raises(CheckpointError, match="8000 Hz"):
        load_encoder(str(tmp_path))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match="can't be loaded as a wav2vec2"):
        load_encoder(str(tmp_path))
    tensors = load_file(source / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "layers.1.feed_forward" not in name}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 4 tensors of a wav2vec2 .*layers\.1\.feed_forward"):
        load_encoder(str(tmp_path))
    content = json.loads((source / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**content, "add_adapter": True}))
    with pytest.raises(CheckpointError, match="add_adapter"):
        load_encoder(str(tmp_path))


def test_the_mask_of_its_pretraining_is_no_part_of_it(folders, tmp_path):
    """A checkpoint without it would have a random one, and a resumed run another fingerprint."""
    source = folders["wav2vec2", "group"]
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((source / name).read_bytes())
    tensors = load_file(source / "model.safetensors")
    save_file({n: t for n, t in tensors.items() if n != "masked_spec_embed"}, tmp_path / "model.safetensors", {"format": "pt"})
    assert load_encoder(str(tmp_path)).digests() == load_encoder(str(source)).digests()


def test_a_plan_counts_the_memory_and_the_seconds_of_waveforms(folders, home, tmp_path):
    changes = {"model__encoder": str(folders["wav2vec2", "layer"])}
    config = read_run_config(tiny.write_config(tmp_path / "run.yaml", home, tmp_path / "run", **changes))
    encoder, model = build_meta_model(config)
    sizes, cost = measure_sizes(encoder, model), speech_cost(encoder, model, num_prompt_tokens=0)
    assert (sizes.seconds_per_audio_token, cost.frames_per_second) == (0.08, 16_000)
    # 320 samples a state, of which the first convolution takes each fifth; 8 channels, three times
    assert sizes.extraction_elements == 320 // 5 * 8 * 3
    settings, batch = read_settings({}), MicroBatchSize(num_samples=2, clip_seconds=2.0)
    peaks = []
    for factor in (1_000, 3_000):
        larger = replace(sizes, extraction_elements=factor)
        parts = count_activations(larger, settings, count_tokens(batch, larger, prompt_tokens=0), num_recomputed=2)
        peaks.append({part.name: part.num_bytes for part in parts}["encoding"])
    # one clip of 100 states is convolved at a time
    assert peaks[1] - peaks[0] == 2_000 * 100 * sizes.encoder_itemsize
