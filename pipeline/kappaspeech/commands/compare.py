"""`kappaspeech compare`: an experiment's arms trained alike and put side by side, or runs that are there already."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kappaspeech.comparison.experiment import Experiment
    from kappaspeech.comparison.runs import RunSummary
    from kappaspeech.comparison.trial_runner import Failure


def compare(
    what: Annotated[
        list[Path],
        typer.Argument(help="An experiment's YAML, or folders of finished runs."),
    ],
    output: Annotated[
        Path | None, typer.Option(help="Folder of the report. Default: comparison, or the experiment's own output.")
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="Print the experiment's trials with their numbers and states.")] = False,
    arm: Annotated[int | None, typer.Option(help="Train the trial of this number alone, as a SLURM array task does.")] = None,
    reference: Annotated[str | None, typer.Option(help="The arm that the others are compared with. Default: the first.")] = None,
    report_only: Annotated[bool, typer.Option("--report-only", help="Train nothing: report on what has finished.")] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Trials trained side by side.")] = 1,
) -> int:
    """Train the arms of an experiment, which differ only in what they unfreeze, and report on them; or report on runs.

    Finished trials are kept, and interrupted ones continue. Runs that differ in more than the arm are refused.
    """
    from kappaspeech.errors import InputError
    from kappaspeech.needed_packages import need
    from kappaspeech.outputs import sweep, try_folder

    if not list_:
        need("kappaspeech compare", "jinja2", "matplotlib")

    is_experiment = len(what) == 1 and what[0].suffix in (".yaml", ".yml")
    if not is_experiment:
        if list_ or arm is not None or report_only or jobs != 1:
            raise InputError("--list, --arm, --report-only and --jobs belong to an experiment: give its one YAML file.")
        from kappaspeech.comparison.runs import read_run

        try_folder(output or Path("comparison"))
        _report([read_run(path) for path in what], output or Path("comparison"), reference=reference)
        return 0
    if list_ + (arm is not None) + report_only > 1:
        raise InputError("--list, --arm and --report-only exclude each other.")
    from kappaspeech.comparison.experiment import read_experiment

    experiment = read_experiment(what[0])
    if list_:
        _print_trials(experiment)
        return 0
    if not report_only:
        from kappaspeech.comparison.experiment import LORA
        from kappaspeech.training.needs import check_packages

        check_packages(experiment.base)
        if any(arm.select in LORA for arm in experiment.config.arms):
            need("An arm of LoRA", "peft")
    for folder in {experiment.output, output or experiment.output}:
        try_folder(folder)
        sweep(folder)
    from kappaspeech.comparison.trial_runner import make_ranking
    from kappaspeech.comparison.trials import prepare

    if arm is not None and not 0 <= arm < len(experiment.trials):
        raise InputError(f"--arm is {arm}; the experiment's trials are 0 to {len(experiment.trials) - 1}, see --list.")
    if not report_only:
        make_ranking(experiment)
    prepare(experiment)
    failures: list[Failure] = []
    if not report_only:
        failures, stopped = _train(experiment, arm=arm, jobs=jobs)
        if arm is not None or stopped:
            return _exit_code(failures)
    return _report_trials(experiment, failures, output or experiment.output, reference=reference)


def _train(experiment: Experiment, *, arm: int | None, jobs: int) -> tuple[list[Failure], bool]:
    from kappaspeech.comparison.trial_runner import TrialRunner
    from kappaspeech.escaping import for_terminal

    trials = experiment.trials if arm is None else (experiment.trials[arm],)
    with TrialRunner(experiment, say=lambda text: print(for_terminal(text), flush=True)) as runner:
        return runner.train(trials, num_side_by_side=jobs), runner.stopped_by is not None


def _exit_code(failures: Sequence[Failure]) -> int:
    """0 if nothing is missing, 75 if the same command continues all that is, else 1."""
    from kappaspeech.comparison.trial_runner import EXIT_RESUMABLE

    if not failures:
        return 0
    return EXIT_RESUMABLE if all(failure.exit_code == EXIT_RESUMABLE for failure in failures) else 1


def _print_trials(experiment: Experiment) -> None:
    from kappaspeech.comparison.trials import read_state
    from kappaspeech.escaping import for_column

    for trial in experiment.trials:
        columns = (trial.number, trial.arm.name, f"seed {trial.seed}", read_state(trial), trial.run_dir)
        print("\t".join(for_column(str(column)) for column in columns))


def _report_trials(experiment: Experiment, failures: Sequence[Failure], output: Path, *, reference: str | None) -> int:
    from kappaspeech.comparison.runs import read_run
    from kappaspeech.comparison.trials import read_state
    from kappaspeech.errors import InputError
    from kappaspeech.escaping import for_terminal

    told = {failure.trial.number: failure.cause for failure in failures}
    finished = [trial for trial in experiment.trials if read_state(trial) == "finished"]
    missing = {
        f"{trial.arm.name}, seed {trial.seed}": told.get(trial.number, f"its state is '{read_state(trial)}'")
        for trial in experiment.trials
        if trial not in finished
    }
    if not finished:
        raise InputError(f"No trial of this experiment has finished, so there is nothing to report on: {'; '.join(missing)}.")
    _report([read_run(trial.run_dir) for trial in finished], output, missing=missing, reference=reference)
    for name, cause in missing.items():
        print(for_terminal(f"missing: {name}: {cause}"))
    if not missing:
        return 0
    return _exit_code(failures) if len(failures) == len(missing) else 1


def _report(
    runs: Sequence[RunSummary], output: Path, *, missing: dict[str, str] | None = None, reference: str | None = None
) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from kappaspeech.comparison.equal_wer import state_price
    from kappaspeech.comparison.report import write_report
    from kappaspeech.comparison.runs import group_runs
    from kappaspeech.comparison.tables import make_speech_table
    from kappaspeech.comparison.words import say_verdict
    from kappaspeech.escaping import for_table, for_terminal

    summary, paths = write_report(group_runs(runs, reference=reference), output, missing=missing or {})
    content = make_speech_table(summary)
    # the page has the other tables
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in content.header:
        table.add_column(for_table(name))
    for row in content.rows:
        table.add_row(*(for_table(cell.text) for cell in row))
    print(for_terminal(say_verdict(summary)))
    Console().print(table)
    for sentence in state_price(summary["equal"]):
        print(for_terminal(sentence))
    for path in paths:
        print(for_terminal(str(path)))
