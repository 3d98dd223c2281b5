"""`kappaspeech status`: how a training ended, for scripts, which can't rely on a launcher's exit code."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def status(
    run: Annotated[Path | None, typer.Argument(help="A training's run folder, or its YAML.")] = None,
    config: Annotated[Path | None, typer.Option("--config", help="Its YAML, by name, as for train.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="A value that train was given. May be repeated.")] = None,
) -> int:
    """Print a training's status in one word: finished, resumable, failed, running (or killed while it ran), absent.

    Exit code 0 if it is finished, else 1.
    """
    from kappaspeech.commands.train import read_settings
    from kappaspeech.escaping import for_terminal
    from kappaspeech.runs.contents import RECORD_FILE
    from kappaspeech.runs.folder import RunFolder

    folder = run if run is not None and run.is_dir() and config is None else Path(read_settings(run, config, set_ or []).run_dir)
    word = str(RunFolder(folder).read_record()["status"]) if (folder / RECORD_FILE).exists() else "absent"
    print(for_terminal(word))
    return 0 if word == "finished" else 1
