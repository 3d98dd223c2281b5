"""An export, or a run as one model, put into a repository of the Hugging Face hub."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kappaspeech.artefacts import read_json
from kappaspeech.errors import HubError, InputError
from kappaspeech.runs.contents import RECORD_FILE
from kappaspeech.tensor_files.weight_files import read_config
from kappaspeech.trained.card import make_card
from kappaspeech.trained.difference import SCHEMA_VERSION, SPEECH_FILE
from kappaspeech.trained.opening import Step
from kappaspeech.trained.whole import export_whole

_SCREENED = "***"
_REMEDIES = {
    401: "The hub doesn't take the token: log in again (hf auth login), or set HF_TOKEN to a token that may write.",
    403: "The token may not write there: give it write access to this repository, or name one of your own.",
    404: "There is no such user or organisation, or the token doesn't see it: check the name, which is USER/NAME.",
    413: "The hub takes no files of this size there.",
    429: "The hub asks for patience: push again later.",
}


def push(
    source: Path, repository: str, *, step: Step = None, base: str | None = None, private: bool = True, message: str | None = None
) -> str:
    """Upload `source` to `repository` (USER/NAME), which is made if it isn't there; return its address.

    A run is exported first as one model with its card, into a temporary folder; an export goes up as it is, but for absolute
    paths in speech.json, of which the last part does. What the hub has of a push that was cut isn't uploaded again. A repository
    that is there stays as visible as it is. Raises `InputError` before anything is sent, `HubError` afterwards, and what
    `export_whole` does.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise InputError(f"{repository!r} is no repository's name: {error} Give USER/NAME.") from None
    is_run = (source / RECORD_FILE).exists()
    # a run whose record is lost still has a config.json, and secrets beside it
    if not is_run and not (source / SPEECH_FILE).is_file() and "model_type" not in (read_config(source) or {}):
        raise InputError(f"{source} is neither a run folder nor an export. Write one with `kappaspeech export`.")
    token = get_token()
    if token is None:
        raise InputError("There is no token for the hub: log in (hf auth login), or set HF_TOKEN to a token that may write.")
    card = make_card(source, name=repository.rpartition("/")[2], step=step, base=base) if is_run else None
    parts = None if is_run else _read_public_parts(source)
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory(prefix="kappaspeech-push-") as made:
        with _explained(repository, api.endpoint, token):
            url = api.create_repo(repository, private=private, exist_ok=True)
        folder = source
        if is_run:
            # after the hub has let us in: an export takes its time
            folder = Path(made) / "export"
            export_whole(source, folder, step=step, base=base, card=card)
        said = message or "Export of kappaspeech"
        with _explained(repository, api.endpoint, token):
            if parts is not None:
                api.upload_file(repo_id=url.repo_id, path_in_repo=SPEECH_FILE, path_or_fileobj=parts, commit_message=said)
            api.upload_folder(
                repo_id=url.repo_id,
                folder_path=folder,
                commit_message=said,
                ignore_patterns=None if parts is None else SPEECH_FILE,
            )
    return str(url)


def _read_public_parts(export: Path) -> bytes | None:
    """An export's speech.json without this machine's folders, which nobody else can open; None if it names none."""
    if not (export / SPEECH_FILE).is_file():
        return None
    parts = read_json(export / SPEECH_FILE, schema_version=SCHEMA_VERSION)
    public = {**parts, "encoder": _last_part(parts.get("encoder"))}
    if isinstance(base := parts.get("base"), dict):
        public["base"] = {**base, "llm": _last_part(base.get("llm"))}
    return None if public == parts else json.dumps(public, indent=1).encode()


def _last_part(name_or_path: Any) -> Any:
    return Path(name_or_path).name if isinstance(name_or_path, str) and Path(name_or_path).is_absolute() else name_or_path


@contextmanager
def _explained(repository: str, endpoint: str, token: str) -> Iterator[None]:
    """Turn a refusal of the hub or of the way to it into a sentence without the token."""
    from httpx import HTTPError
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        yield
    except OfflineModeIsEnabled:
        raise HubError("HF_HUB_OFFLINE is set, so nothing can be pushed: unset it.") from None
    except (HTTPError, ConnectionError, TimeoutError, RuntimeError) as error:
        # a file's upload wraps what it met
        cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ is not None else error
        if isinstance(cause, HfHubHTTPError):
            status = cause.response.status_code
            said = _first_line(cause.server_message or str(cause), token)
            remedy = _REMEDIES.get(status, "Push again: what it has by now is kept.")
            raise HubError(f"{repository} can't be pushed: {endpoint} answers {status} ({said}). {remedy}") from None
        raise HubError(
            f"{endpoint} can't be reached, or the connection broke ({_first_line(str(cause), token)}). Check the network, "
            "and push again: what the hub has by now isn't uploaded again."
        ) from None


def _first_line(text: str, token: str) -> str:
    return next(iter(text.replace(token, _SCREENED).strip().splitlines()), "no reason given").rstrip(".")
