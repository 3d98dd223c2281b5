"""`kappaspeech push`: a run or an export into a repository of the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kappaspeech.escaping import for_terminal


def push(
    source: Annotated[Path, typer.Argument(help="A run's folder, which is exported as one model first, or any export.")],
    repository: Annotated[str, typer.Argument(help="USER/NAME on the hub. It is made if it isn't there.")],
    step: Annotated[str | None, typer.Option(help="Of a run: the checkpoint's step, or best. Default: the last.")] = None,
    base: Annotated[str | None, typer.Option(help="Of a run: the base model, if it has moved since the training.")] = None,
    public: Annotated[bool, typer.Option("--public", help="Make the repository for all to see. Default: for you alone.")] = False,
    message: Annotated[str | None, typer.Option(help="The commit's message.")] = None,
) -> None:
    """Upload to the Hugging Face hub, by the token of `hf auth login` or HF_TOKEN. The same command continues after a cut."""
    from kappaspeech.needed_packages import need

    need("kappaspeech push", "transformers")
    from kappaspeech.trained.opening import parse_step
    from kappaspeech.trained.push import push as run_push

    address = run_push(source, repository, step=parse_step(step), base=base, private=not public, message=message)
    print(for_terminal(address))
