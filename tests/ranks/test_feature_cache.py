"""A run with the cache of encoder features against one without, over two epochs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

NUM_CLIPS = 24
TWO_EPOCHS = {"training__num_steps": 8, "training__checkpoint_every_steps": 0, "data__test": [], "data__text": {}}


def losses(run: Path) -> list[tuple[float, str]]:
    records = [json.loads(line) for line in (run / "steps.jsonl").read_text().splitlines()]
    return [(record["loss_nats"], record["keys_digest"]) for record in records]


def kept(cache: Path) -> list[Path]:
    return sorted(cache.rglob("*.states"))


@pytest.mark.slow
def test_losses_are_the_same_bit_for_bit_with_a_cold_a_damaged_and_a_warm_cache(train, tmp_path):
    cache = tmp_path / "cache"
    plain = losses(train("uncached", ranks=2, **TWO_EPOCHS))
    assert len(plain) == 8
    cold = train("cold", ranks=2, data__feature_cache_dir=str(cache), **TWO_EPOCHS)
    assert losses(cold) == plain
    assert len(kept(cache)) == NUM_CLIPS
    for path in kept(cache)[::2]:
        path.write_bytes(path.read_bytes()[:-1])
    warm = train("warm", ranks=2, data__feature_cache_dir=str(cache), data__num_workers=1, **TWO_EPOCHS)
    assert losses(warm) == plain
    assert len(kept(cache)) == NUM_CLIPS


@pytest.mark.slow
def test_a_cache_that_another_packing_filled_is_filled_anew(train, tmp_path):
    cache = tmp_path / "cache"
    cold = train("full-cold", ranks=2, data__feature_cache_dir=str(cache), **TWO_EPOCHS)
    total = sum(path.stat().st_size for path in kept(cache))
    for path in kept(cache):
        # what the same encoder made of shards that are no more
        path.rename(path.with_name(f"{'0' * 32}{path.name[32:]}"))
    limited = {"data__feature_cache_dir": str(cache), "data__feature_cache_gb": total / 2**30}
    again = train("full-again", ranks=2, **limited, **TWO_EPOCHS)
    assert losses(again) == losses(cold)
    new = [path for path in kept(cache) if not path.name.startswith("0" * 32)]
    # the limit may be short of a byte, and room is made for a little more than an entry
    assert len(new) >= NUM_CLIPS - 1
    assert sum(path.stat().st_size for path in kept(cache)) <= total
