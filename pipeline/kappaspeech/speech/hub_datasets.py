"""Data sets of the Hugging Face hub, fetched as Parquet files into its cache."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath

from kappaspeech.errors import DataError, InputError
from kappaspeech.needed_packages import need
from kappaspeech.speech.parquet_files import choose_files
from kappaspeech.speech.parquet_rows import PARQUET_SUFFIX

HUB_PREFIX = "hf:"
# where the hub keeps what it makes of data sets in other forms
_CONVERTED = "refs/convert/parquet"


def fetch_dataset(source: str, *, split: str | None = None) -> Path:
    """Fetch a data set, "hf:USER/NAME", or one folder of it, "hf:USER/NAME/FOLDER"; return where its Parquet files lie.

    Of the files those of `split` alone, or of what `choose_splits` takes. What is in the hub's cache isn't fetched again. Raises
    `InputError` for what is no such name, `DataError` if there is nothing to fetch, or the hub refuses.
    """
    need(f"Fetching {source}", "pyarrow")
    from huggingface_hub import snapshot_download

    user, _, rest = source.removeprefix(HUB_PREFIX).strip("/").partition("/")
    name, _, folder = rest.partition("/")
    if not (user and name) or ".." in PurePath(folder).parts:
        raise InputError(f"{source} names no data set of the hub; wanted is {HUB_PREFIX}USER/NAME, or one with a folder behind.")
    with _explained(source):
        commit, places = _find_files(f"{user}/{name}", PurePath(folder))
        if not places:
            raise DataError(
                f"{source} has no Parquet files there, nor has the hub made any. Pack what `datasets` saves to disk of it."
            )
        chosen = choose_files(Path(source), places, split)
        patterns = [glob.escape(str(folder / place)) for place in chosen]
        snapshot = snapshot_download(f"{user}/{name}", repo_type="dataset", revision=commit, allow_patterns=patterns)
    return Path(snapshot) / folder


def _find_files(repository: str, folder: PurePath) -> tuple[str, list[PurePath]]:
    """A commit, and the Parquet files below `folder` in it: the data set's own, or those that the hub made of it."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RevisionNotFoundError

    for revision in (None, _CONVERTED):
        try:
            info = HfApi().dataset_info(repository, revision=revision)
        except RevisionNotFoundError:
            continue
        files = [PurePath(item.rfilename) for item in info.siblings or ()]
        found = [path.relative_to(folder) for path in files if path.suffix == PARQUET_SUFFIX and path.is_relative_to(folder)]
        if found:
            return str(info.sha), sorted(found)
    return "", []


@contextmanager
def _explained(source: str) -> Iterator[None]:
    """Turn a refusal of the hub or of the way to it into a sentence."""
    from httpx import HTTPError
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    try:
        yield
    except OfflineModeIsEnabled:
        raise DataError(f"HF_HUB_OFFLINE is set, so {source} can't be looked for: unset it, or give a folder.") from None
    except HFValidationError as error:
        raise InputError(f"{source} names no data set of the hub: {error}.") from None
    except GatedRepoError:
        raise DataError(f"{source} is gated: accept its licence on the hub and run `hf auth login`.") from None
    except RepositoryNotFoundError:
        raise DataError(f"The hub has no data set {source}, or hides it: check the name, or run `hf auth login`.") from None
    except HfHubHTTPError as error:
        raise DataError(f"{source} can't be fetched: the hub answers {error.response.status_code}. Pack again later.") from None
    except (HTTPError, ConnectionError, TimeoutError, LocalEntryNotFoundError) as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"The hub can't be reached for {source} ({said}). Check the network, or give a folder.") from None
