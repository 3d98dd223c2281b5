"""The command line, `kappaspeech`: one module a subcommand. Heavy imports wait until a subcommand runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

import kappaspeech
from kappaspeech.commands.compare import compare
from kappaspeech.commands.config import config
from kappaspeech.commands.demo import demo
from kappaspeech.commands.doctor import doctor
from kappaspeech.commands.evaluate import evaluate
from kappaspeech.commands.export import export
from kappaspeech.commands.pack import index, pack
from kappaspeech.commands.plan import plan
from kappaspeech.commands.push import push
from kappaspeech.commands.scan import scan
from kappaspeech.commands.select import select
from kappaspeech.commands.show import show
from kappaspeech.commands.status import status
from kappaspeech.commands.streams import quiet_libraries, safe_output
from kappaspeech.commands.train import train
from kappaspeech.commands.transcribe import transcribe
from kappaspeech.errors import KappaSpeechError, RankFailure
from kappaspeech.escaping import for_terminal
from kappaspeech.outputs import explain
from kappaspeech.parenthood import heed_parent

app = typer.Typer(
    name="kappaspeech",
    help="Rank an LLM's tensors by condition number, train the best-conditioned ones on speech, and measure what that did.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
for _command in (
    scan,
    select,
    show,
    pack,
    index,
    config,
    doctor,
    plan,
    train,
    status,
    evaluate,
    transcribe,
    compare,
    export,
    push,
):
    app.command()(_command)
app.add_typer(demo)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"kappaspeech {kappaspeech.__version__}")
        raise typer.Exit


@app.callback()
def _kappaspeech(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; return 0 for done, 2 for wrong usage or input, 1 for a run that failed."""
    heed_parent()
    given = _without_local_rank(list(sys.argv[1:] if arguments is None else arguments))
    try:
        with safe_output(), quiet_libraries():
            result = app(given, standalone_mode=False)
    except RankFailure as error:
        # a rank that could has said so itself; rank 0 says it again, for it may be on another host
        speaker = "1" if error.rank == 0 and not error.is_told else "0"
        if os.environ.get("RANK", "0") == speaker:
            print(for_terminal(f"error: {error}"), file=sys.stderr)
        return error.exit_code
    except KappaSpeechError as error:
        print(for_terminal(f"error: {error}"), file=sys.stderr)
        return error.exit_code
    except typer.Exit as leave:
        return leave.exit_code
    except OSError as error:
        # whatever a disk, a path or a pipe refuses
        sentence, code = explain(error)
        print(for_terminal(f"error: {sentence}"), file=sys.stderr)
        return code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        # typer's own usage errors (click underneath) know how to show themselves; anything else is a defect: let it be seen
        show = getattr(error, "show", None)
        if show is None:
            raise
        show()
        return 2
    return result if isinstance(result, int) else 0


def _without_local_rank(words: list[str]) -> list[str]:
    """Leave out --local_rank, which launchers add as one word or two; the rank is read from the environment."""
    kept, is_value = [], False
    for word in words:
        if is_value:
            is_value = False
        elif word in ("--local_rank", "--local-rank"):
            is_value = True
        elif not word.startswith(("--local_rank=", "--local-rank=")):
            kept.append(word)
    return kept
