"""The errors a user meets. Each message says what, where, the value, and the remedy.

`exit_code` is what a command returns: 2 for wrong usage, configuration or input, 1 for a run that failed.
"""

from __future__ import annotations

from kappaspeech.redaction import redact

# a value out of a damaged file may be as long as the file
_MAX_LETTERS, _TAIL_LETTERS = 10_000, 2_000


class KappaSpeechError(Exception):
    """Root of every error that is shown to a user without a traceback.

    No secret of a URL is in its message, and of a message that is too long to read the middle is left out.
    """

    exit_code = 1

    def __init__(self, *arguments: object) -> None:
        super().__init__(*(_shorten(redact(item)) if isinstance(item, str) else item for item in arguments))


def _shorten(message: str) -> str:
    left_out = len(message) - _MAX_LETTERS
    if left_out <= 0:
        return message
    return f"{message[: _MAX_LETTERS - _TAIL_LETTERS]} … ({left_out:,} characters left out) … {message[-_TAIL_LETTERS:]}"


class InputError(KappaSpeechError):
    """The user's input can't be used: a path, an option, a file's content."""

    exit_code = 2


class ConfigError(InputError):
    """The run's YAML or the DeepSpeed JSON is wrong; the message lists every problem found."""


class CheckpointError(InputError):
    """A model checkpoint is missing, torn, or of a kind that can't be read."""


class SelectionError(InputError):
    """A ranking or selection doesn't fit the model, the checkpoint or the request."""


class DataError(InputError):
    """Shards, recordings or transcripts are missing, damaged, or changed since they were indexed."""


class ScanError(KappaSpeechError):
    """A matrix has no singular spectrum to speak of (NaN or Inf), or a scan couldn't finish."""


class TrainingError(KappaSpeechError):
    """A training run can't continue; what was saved is named in the message."""


class ClusterError(KappaSpeechError):
    """The ranks can't meet, or no longer reach each other; nothing is wrong with the input."""


class HubError(KappaSpeechError):
    """The hub refused a push, or can't be reached; what it has by then stays there, and another push continues from it."""


class RankFailure(KappaSpeechError):
    """Raised on every rank when one of them failed, so that none waits in a collective.

    `is_told`: the rank that failed has told the cause itself, and not the others for it.
    """

    def __init__(self, rank: int, cause: str, *, exit_code: int = 1, host: str | None = None, is_told: bool = False) -> None:
        super().__init__(f"rank {rank}{f' on {host}' if host else ''} failed: {cause}")
        self.rank = rank
        self.is_told = is_told
        self.exit_code = exit_code
