"""Encoder states of a micro-batch, some of them from the cache: clip by clip as on a CPU, and together as on a GPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kappaspeech.model.encoder import load_encoder
from kappaspeech.speech.batches import CacheTarget, Features, collate
from kappaspeech.speech.feature_cache import CachedClip, from_bits, to_bits
from kappaspeech.training.clip_encoder import ClipEncoder

FRAMES = (120, 301, 200, 77)
CACHED = 1


class Kept(dict):
    """In the cache's place."""

    def keep(self, name: str, clip: CachedClip) -> None:
        self[name] = clip


@pytest.fixture(scope="module")
def encoder(home):
    return load_encoder(str(home / "whisper.pt"))


def clips() -> list[Features]:
    generator = np.random.default_rng(0)
    mels = [generator.normal(size=(80, frames)).astype(np.float32) for frames in FRAMES]
    return [Features(str(n), "en", mel, (1, 2), to_cache=CacheTarget(f"clip {n}", "yes")) for n, mel in enumerate(mels)]


def half_cached(encoder) -> tuple[object, torch.Tensor]:
    """A batch one of whose clips is cached, and that clip's states, which no encoder makes."""
    items = clips()
    states = torch.full(((FRAMES[CACHED] + 1) // 2, encoder.dims.width), 7.0)
    cached = CachedClip(to_bits(states), FRAMES[CACHED], "yes")
    items[CACHED] = Features("1", "en", np.zeros((80, 2), np.float32), (1, 2), cached=cached)
    return collate(items, num_mels=80, keys=[item.key for item in items]), states


def make(encoder, *, together: bool) -> tuple[ClipEncoder, Kept, list[torch.Size]]:
    kept, passes = Kept(), []
    made = ClipEncoder(encoder, torch.device("cpu"), cache=kept)
    made._encodes_together = together
    encoder.register_forward_pre_hook(lambda _module, arguments: passes.append(arguments[0].shape[0]))
    return made, kept, passes


@pytest.mark.parametrize("some_cached", [False, True])
def test_clips_encoded_together_are_those_encoded_alone(encoder, some_cached):
    items = clips()
    batch = half_cached(encoder)[0] if some_cached else collate(items, num_mels=80, keys=list("abcd"))
    (alone, kept_alone, passes_alone), (together, kept, passes) = (make(encoder, together=choice) for choice in (False, True))
    expected, counts = alone.encode(batch)
    passes_alone, _ = list(passes_alone), passes.clear()
    states, num_states = together.encode(batch)
    assert num_states.tolist() == counts.tolist() == [(frames + 1) // 2 for frames in FRAMES]
    # float32 sums in another order, through one layer
    torch.testing.assert_close(states, expected, atol=1e-5, rtol=1e-5)
    if some_cached:
        assert torch.equal(states[CACHED, : counts[CACHED]], half_cached(encoder)[1])
    fresh = len(FRAMES) - some_cached
    assert passes_alone == [1] * fresh
    assert passes == [fresh]
    assert set(kept) == set(kept_alone) == {f"clip {n}" for n in range(4) if not (some_cached and n == CACHED)}
    for name, clip in kept.items():
        row = int(name.removeprefix("clip "))
        assert torch.equal(from_bits(clip.states_SE), states[row, : counts[row]])
        assert (clip.num_frames, clip.transcript) == (FRAMES[row], "yes")
    for name, clip in kept_alone.items():
        row = int(name.removeprefix("clip "))
        assert torch.equal(from_bits(clip.states_SE), expected[row, : counts[row]])


def test_a_batch_that_is_all_cached_meets_no_encoder(encoder):
    items = clips()
    states = [torch.full((4, encoder.dims.width), float(n)) for n in range(2)]
    items = [
        Features(item.key, "en", np.zeros((80, 2), np.float32), (1,), cached=CachedClip(to_bits(made), 8, "yes"))
        for item, made in zip(items, states, strict=False)
    ]
    together, _, passes = make(encoder, together=True)
    found, counts = together.encode(collate(items, num_mels=80, keys=list("ab")))
    assert passes == []
    assert counts.tolist() == [4, 4]
    assert torch.equal(found, torch.stack(states))
