"""All loggers of a run as one, so that whoever records something needn't know how many there are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from kappaspeech.loggers.beside import Beside
from kappaspeech.loggers.logger import Logger, Point, RunToShow
from kappaspeech.loggers.mlflow_logger import MlflowLogger
from kappaspeech.loggers.tensorboard_logger import TensorBoardLogger
from kappaspeech.loggers.trackio_logger import TrackioLogger
from kappaspeech.loggers.wandb_logger import WandbLogger

Kind = Literal["step", "evaluation", "distance"]
LOGGERS: Mapping[str, Callable[[RunToShow], Logger]] = {
    "tensorboard": TensorBoardLogger,
    "wandb": WandbLogger,
    "trackio": TrackioLogger,
    "mlflow": MlflowLogger,
}
# these take back what a run repeats after a resumption; the others were told it already, and aren't told again
_REWINDING = {"tensorboard"}


class Curves:
    """The loggers of `names`, each beside the steps. `told` is the last step of each kind that was recorded before."""

    def __init__(self, names: Sequence[str], describe: Callable[[str], RunToShow], *, told: Mapping[Kind, int]) -> None:
        """`describe` gives a logger's view of the run, by the logger's name."""
        self._loggers = {name: Beside(name, _opener(name, describe(name))) for name in names}
        self._told = told

    def add(self, kind: Kind, step: int, values: Mapping[str, float]) -> None:
        """Show numbers of a step."""
        # the evaluation after 3 steps comes before step 3, the fourth
        point = Point(step, 2 * step + (kind == "step"), values)
        for name, logger in self._loggers.items():
            if name in _REWINDING or step > self._told.get(kind, -1):
                logger.add(point)

    def flush(self) -> None:
        for logger in self._loggers.values():
            logger.flush()

    def close(self, *, failed: bool, hurried: bool = False) -> None:
        """Wait for what is still to be shown; if the run was asked to stop and so is `hurried`, not for long."""
        # one after the other they might take minutes, which a launcher that ends the ranks doesn't give
        for logger in self._loggers.values():
            logger.end(failed=failed, hurried=hurried)
        for logger in self._loggers.values():
            logger.close()


def _opener(name: str, run: RunToShow) -> Callable[[], Logger]:
    return lambda: LOGGERS[name](run)
