"""Weights & Biases: its server, or files in the run folder."""

from __future__ import annotations

from typing import Any

from kappaspeech.escaping import make_logger
from kappaspeech.loggers.logger import Point, RunToShow

_PROJECT = "kappaspeech"
# as all curves' horizontal axis; W&B's own counts the points
_AXIS = "step"
_FINISH_SECONDS = 45.0
_log = make_logger(__name__)


class WandbLogger:
    """Shows a run by WANDB_MODE, WANDB_PROJECT and all other settings of W&B's. Without a login it is kept offline, to be sent by
    `wandb sync`: nobody is asked for a password while others wait.

    W&B's own picture of the machine is left out, for it holds the command line, which may hold a secret.
    """

    def __init__(self, run: RunToShow) -> None:
        import wandb

        known = wandb.setup().settings
        mode = known.mode
        if mode == "online" and not _has_login(known):
            mode = "offline"
            _log.warning(
                "training.loggers: wandb has no login (`wandb login`, WANDB_API_KEY). It writes into %s; `wandb sync` sends it.",
                run.folder,
            )
        settings = wandb.Settings(
            silent=True, console="off", disable_git=True, disable_code=True, x_disable_meta=True, finish_timeout=_FINISH_SECONDS
        )
        run.folder.parent.mkdir(parents=True, exist_ok=True)
        self._run: Any = wandb.init(
            project=known.project or _PROJECT,
            id=known.run_id or run.run_id,
            name=known.run_name or run.name,
            # it adds a folder of its own name
            dir=str(run.folder.parent),
            config=dict(run.config),
            allow_val_change=True,
            mode=mode,
            resume="allow",
            settings=settings,
        )
        self._run.define_metric(_AXIS)
        self._run.define_metric("*", step_metric=_AXIS)

    def add(self, point: Point) -> None:
        self._run.log({_AXIS: point.step, **point.values}, step=point.turn)

    def flush(self) -> None:
        pass

    def close(self, *, failed: bool) -> None:
        self._run.finish(exit_code=1 if failed else 0)


def _has_login(settings: Any) -> bool:
    """True if W&B would find a key by itself: in its settings or variables, or in the file of passwords."""
    from wandb.sdk.lib import wbauth

    known = settings.api_key or settings.identity_token_file or wbauth.read_netrc_auth(host=settings.base_url)
    return known is not None
