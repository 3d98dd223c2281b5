"""`kappaspeech train`: stage 2, under the DeepSpeed launcher or any other, or alone; or what starts such a launcher."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kappaspeech.escaping import for_terminal

if TYPE_CHECKING:
    from kappaspeech.config.run_config import RunConfig


def train(
    config: Annotated[Path | None, typer.Argument(help="The run's YAML; launch/configs/ has examples.")] = None,
    config_: Annotated[Path | None, typer.Option("--config", help="The same, by name.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Change a value: optimizer.clip_norm=0.5. May be repeated.")
    ] = None,
    nproc: Annotated[int | None, typer.Option(min=1, help="Start this many ranks on this host.")] = None,
    hostfile: Annotated[Path | None, typer.Option(help="Start ranks on these hosts, over ssh: lines of 'name slots=N'.")] = None,
    slurm: Annotated[str | None, typer.Option(help="Submit to SLURM with these options: '--nodes=2 --time=8:00:00'.")] = None,
    max_restarts: Annotated[int, typer.Option(min=0, help="Start again after a fault, this often at most.")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be started, and start nothing.")] = False,
) -> int:
    """Train the adaptor and the selected tensors under ZeRO-3, continuing from the run folder's last checkpoint.

    A run that was asked to stop ends with 0, like one that is finished: a launcher takes any other code for a fault, kills the
    other ranks in their last lines, and may start again. `kappaspeech status` tells the two apart.
    """
    from kappaspeech.errors import ConfigError
    from kappaspeech.launching.command_lines import path_word

    overrides = set_ or []
    settings = read_settings(config, config_, overrides)
    arguments = [path_word(config or config_ or ""), *(word for pair in overrides for word in ("--set", pair))]
    places = [place for place in (nproc, hostfile, slurm) if place is not None]
    if places and "RANK" in os.environ:
        raise ConfigError("--nproc, --hostfile and --slurm start ranks, and this is already one that a launcher started.")
    if len(places) > 1:
        raise ConfigError("Give one of --nproc, --hostfile and --slurm; a hostfile's slots say how many ranks a host takes.")
    if not places and (max_restarts or dry_run):
        raise ConfigError("--max-restarts and --dry-run need --nproc, --hostfile or --slurm.")
    if slurm is not None:
        if max_restarts:
            raise ConfigError("--max-restarts is for --nproc and --hostfile; a SLURM job requeues itself.")
        from kappaspeech.launching.supervisor import submit

        return submit(arguments, options=slurm, dry_run=dry_run)
    if places:
        from kappaspeech.launching.supervisor import Request

        stall_seconds = settings.training.stall_seconds
        request = Request(tuple(arguments), Path(settings.run_dir), nproc, hostfile, stall_seconds=stall_seconds)
        return _launch(request, max_restarts=max_restarts, dry_run=dry_run)
    return _train_here(settings)


def _train_here(settings: Any) -> int:
    from kappaspeech.allocator import expand_segments, keep_few_primitives
    from kappaspeech.launching.reports import write_report
    from kappaspeech.runs.contents import README_FILE
    from kappaspeech.runs.readme import describe_outcome

    expand_segments(os.environ)
    keep_few_primitives(os.environ)
    if "RANK" not in os.environ:
        from kappaspeech.outputs import try_folder
        from kappaspeech.runs.lease import free
        from kappaspeech.training.needs import check_packages

        check_packages(settings)
        # before torch and DeepSpeed are loaded: a second start is refused at once, and so is a disk that takes nothing
        try_folder(Path(settings.run_dir))
        free(Path(settings.run_dir))
    from kappaspeech.training.run import train as run_training

    try:
        outcome = run_training(settings, on_fatal=lambda failure: write_report(Path(settings.run_dir), failure))
    except BaseException as error:
        write_report(Path(settings.run_dir), error)
        raise
    if os.environ.get("RANK", "0") == "0":
        stopped = f", stopped by {outcome.reason}; the same command continues from there" if outcome.reason else ""
        print(for_terminal(f"{outcome.status} at step {outcome.step}{stopped}"))
        for line in describe_outcome(Path(outcome.run_dir))[1:]:
            print(for_terminal(line))
        print(for_terminal(f"{outcome.run_dir} (its contents: {Path(outcome.run_dir) / README_FILE})"))
    return 0


def _launch(request: Any, *, max_restarts: int, dry_run: bool) -> int:
    from kappaspeech.launching.supervisor import prepare_start, supervise

    if dry_run:
        print(for_terminal(str(prepare_start(request, ask_hosts=False))))
        return 0
    attempt = supervise(request, max_restarts=max_restarts)
    for cause in attempt.causes:
        print(for_terminal(f"error: {cause}"), file=sys.stderr)
    return attempt.exit_code


def read_settings(position: Path | None, option: Path | None, pairs: list[str]) -> RunConfig:
    """The run that a command line names: its YAML once, by position or as --config, and the --set pairs."""
    from kappaspeech.config.run_config import read_run_config
    from kappaspeech.errors import ConfigError

    config = position or option
    if config is None or (position and option):
        raise ConfigError("Give the run's YAML once: kappaspeech train CONFIG.yaml, or --config CONFIG.yaml.")
    return read_run_config(config, overrides=_parse_overrides(pairs))


def _parse_overrides(pairs: list[str]) -> dict[str, Any]:
    import yaml

    from kappaspeech.config.yaml_text import parse_yaml
    from kappaspeech.errors import ConfigError

    overrides = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set is {pair!r}; give a dotted key and a value, as in training.num_steps=100.")
        try:
            overrides[key] = parse_yaml(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {key} holds no YAML value: {error}") from error
    return overrides
