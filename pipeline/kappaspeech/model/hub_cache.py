"""Models in the Hugging Face hub's local cache."""

from __future__ import annotations

from pathlib import Path


def find_cached(name: str) -> str | None:
    """The folder of a hub id's config.json in the local cache."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        return None
    return str(Path(found).parent) if isinstance(found, str) else None
