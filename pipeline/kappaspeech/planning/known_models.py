"""Models that a plan knows by name, before anything is downloaded: shapes of common LLMs, and of Whisper's encoders."""

from __future__ import annotations

import json
import os
import re
import socket
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from kappaspeech.errors import CheckpointError
from kappaspeech.model.hub_cache import find_cached
from kappaspeech.model.transformers_whisper import is_folder_of_transformers

# what makers append to a shape's name; neither changes the shape
_VARIANTS = re.compile(r"-(?:instruct|chat|base|it|pt)(?=-|$)")
# (width, heads, layers) of openai-whisper's encoders
_WHISPER = {
    "tiny": (384, 6, 4),
    "base": (512, 8, 6),
    "small": (768, 12, 12),
    "medium": (1024, 16, 24),
    "large": (1280, 20, 32),
}
# by openai-whisper's own names; those that read 128 mels, and those that read 80
_NAMES_128 = ("large-v3", "large", "large-v3-turbo", "turbo")
_SIZES_80 = ("tiny", "base", "small", "medium")
_NAMES_80 = (*_SIZES_80, *(f"{size}.en" for size in _SIZES_80), "large-v1", "large-v2")
_HUB_SECONDS = 2.0


def find_llm(name_or_path: str) -> tuple[str, Any] | None:
    """The name and transformers' config of a common LLM, by the end of a hub id or of a folder's path."""
    from transformers import AutoConfig

    shapes = json.loads(resources.files("kappaspeech.planning").joinpath("shapes.json").read_text(encoding="utf-8"))
    wanted = _plain(name_or_path)
    for name, content in shapes.items():
        if wanted == _plain(name):
            return name, AutoConfig.for_model(**content)
    return None


def _plain(name: str) -> str:
    return re.sub(r"-v1\.0$", "", _VARIANTS.sub("", Path(name).name.lower()))


def find_encoder(name: str) -> tuple[int, int, int, int] | None:
    """Mels, width, heads and layers of an encoder by openai-whisper's name; None for any other word."""
    if name not in _NAMES_128 + _NAMES_80:
        return None
    size = "large" if name == "turbo" else re.split(r"[.-]", name)[0]
    return (128 if name in _NAMES_128 else 80, *_WHISPER[size])


def encoder_name(path: str) -> str:
    """The name that openai-whisper has for the encoder in a file of this name: `models/whisper-base.pt` is its base."""
    return Path(path).name.removesuffix(".pt").removeprefix("whisper-")


def list_encoders() -> str:
    """openai-whisper's names, for a message."""
    return ", ".join((*_NAMES_80, *_NAMES_128))


def fetch_config(name: str) -> str | None:
    """The folder of a hub id's config.json, downloaded if the hub answers; None if it doesn't, or has none of that name.

    Raises `CheckpointError` for a model that the hub has and doesn't give.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import GatedRepoError

    if not hub_answers():
        return None
    try:
        return str(Path(hf_hub_download(name, "config.json", etag_timeout=_HUB_SECONDS)).parent)
    except GatedRepoError:
        raise CheckpointError(f"{name} is gated: accept its licence on the hub and run `hf auth login`.") from None
    except (OSError, ValueError):
        return None


def hub_answers() -> bool:
    """True if the hub can be reached at all; a library that asks it would try again for most of a minute."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    address = urlsplit(constants.ENDPOINT)
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        # behind a proxy only the library can ask
        return True
    try:
        with socket.create_connection((address.hostname or "", address.port or 443), timeout=_HUB_SECONDS):
            return True
    except OSError:
        return False


@dataclass(frozen=True)
class StandIn:
    """A folder with the LLM's config.json and an encoder that can be described, and what was taken for them, a line each."""

    llm: str
    encoder: str
    taken: tuple[str, ...]


def stand_in(llm: str, encoder: str, folder: Path) -> StandIn:
    """`llm` and `encoder` as they are if they are here; else what their names tell of them, written to `folder`.

    A hub id that isn't known by name is asked for its config.json, if the hub answers.
    """
    taken = []
    if not Path(llm).is_dir() and find_cached(llm) is None:
        known = find_llm(llm)
        if known is not None:
            name, config = known
            config.save_pretrained(folder)
            taken.append(f"model.llm: {llm} isn't here; its shape is {name}'s, known by name")
            llm = str(folder)
        else:
            fetched = fetch_config(llm)
            if fetched is not None:
                taken.append(f"model.llm: {llm} isn't here; its shape is from the hub's config.json of that name")
                llm = fetched
    is_here = Path(encoder).is_file() or is_folder_of_transformers(encoder)
    if not is_here and find_encoder(encoder) is None and find_encoder(name := encoder_name(encoder)) is not None:
        taken.append(f"model.encoder: {encoder} isn't here; its shape is that of Whisper {name}, known by name")
        encoder = name
    return StandIn(llm, encoder, tuple(taken))
