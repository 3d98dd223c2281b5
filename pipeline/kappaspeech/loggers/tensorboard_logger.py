"""TensorBoard's event files."""

from __future__ import annotations

from kappaspeech.loggers.logger import Point, RunToShow


class TensorBoardLogger:
    """Writes scalars; at a resumption, TensorBoard itself hides what came after."""

    def __init__(self, run: RunToShow) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run.folder), purge_step=run.resume_step)

    def add(self, point: Point) -> None:
        for name, value in point.values.items():
            self._writer.add_scalar(name, value, point.step)

    def flush(self) -> None:
        self._writer.flush()

    def close(self, *, failed: bool) -> None:  # noqa: ARG002 - event files don't tell
        self._writer.close()
