"""`kappaspeech status`: how a training ended, for scripts, which can't rely on a launcher's exit code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def status(
    run: Annotated[Path | None, typer.Argument(help="A training's run folder, or its YAML.")] = None,
    config: Annotated[Path | None, typer.Option("--config", help="Its YAML, by name, as for train.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="A value that train was given. May be repeated.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print status, step, reason and folder as JSON.")] = False,
) -> int:
    """Print a training's status in one word: finished, resumable, failed, running (or killed while it ran), absent.

    Exit code 0 if it is finished, else 1.
    """
    from kappaspeech.commands.train import read_settings
    from kappaspeech.escaping import for_terminal
    from kappaspeech.runs.contents import RECORD_FILE
    from kappaspeech.runs.folder import RunFolder

    folder = run if run is not None and run.is_dir() and config is None else Path(read_settings(run, config, set_ or []).run_dir)
    record = RunFolder(folder).read_record() if (folder / RECORD_FILE).exists() else {"status": "absent"}
    word = str(record["status"])
    if as_json:
        told = {key: record.get(key) for key in ("status", "step", "reason")}
        print(json.dumps({"schema_version": 1, **told, "run_dir": str(folder)}))
    else:
        print(for_terminal(word))
    return 0 if word == "finished" else 1
