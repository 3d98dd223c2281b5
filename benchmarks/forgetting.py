"""Predictors of forgetting: held-out R² of κ, other scores, module types and parameter counts on the drift of text.

    python benchmarks/forgetting.py ranking.json RUN... [--activations ranking_activations.json] [--output forgetting.json]

Each RUN is the folder of a finished training of a selection, and all are of one base, data and length; at least eight different
selections are needed, and thirty say more. Drift is the logarithm of KL(base ‖ trained) a token of data.text after training. A
selection is held out at a time, with all its seeds, and foretold by a ridge regression on the others. A negative R² is worse than
the others' mean. `--activations` is a ranking by `scan --activations` of the same checkpoint. `kappaspeech compare
benchmarks/experiments/forgetting.yaml`, started in the quickstart's folder, trains 32 such runs. The loss at the end of training
stands among the predictors as a control: a run that has learnt little has forgotten little.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from datetime import datetime, timezone
from pathlib import Path

from machine import processor

from kappaspeech.artefacts import write_json
from kappaspeech.comparison.predictors import LOSS, describe_runs, predict, to_json
from kappaspeech.comparison.runs import find_differences, read_run
from kappaspeech.errors import KappaSpeechError
from kappaspeech.scan.ranking import KappaRanking


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ranking", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--activations", type=Path)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    try:
        report = measure(arguments.ranking, arguments.runs, activations=arguments.activations)
    except KappaSpeechError as error:
        raise SystemExit(f"error: {error}") from error
    for item in report["predictors"]:
        low, high = item["interval"]
        line = f"{item['predictor']:32} R² {item['held_out_r2']:6.2f} ({low:.2f} to {high:.2f})"
        if item["beyond_count"] is not None:
            low, high = item["beyond_interval"]
            line += f"; beyond the number of parameters {item['beyond_count']:+.2f} ({low:+.2f} to {high:+.2f})"
        print(line)
    if arguments.output:
        write_json(arguments.output, report)
        print(arguments.output)


def measure(ranking: Path, folders: list[Path], *, activations: Path | None = None) -> dict:
    runs = [read_run(folder) for folder in folders]
    for run in runs[1:]:
        if differing := find_differences(runs[0], run):
            raise SystemExit(f"{run.path} and {runs[0].path} differ in more than the selection: {', '.join(differing)}")
    rankings = {"": KappaRanking.read(ranking)}
    if activations is not None:
        rankings["activations, "] = KappaRanking.read(activations)
    for name, read in rankings.items():
        if read.checkpoint_digest != runs[0].record["checkpoint_digest"]:
            raise SystemExit(f"the ranking{f' by {name}' * bool(name)} is of another checkpoint than the runs")
    predictors, drift, groups = describe_runs(runs, rankings)
    found = predict(predictors, drift, groups)
    return {
        "schema_version": 1,
        "command": "python benchmarks/forgetting.py ranking.json RUN..." + " --activations RANKING" * (activations is not None),
        "machine": {"processor": processor(), "cores": os.cpu_count()},
        "date": datetime.now(timezone.utc).date().isoformat(),
        "git_commit": runs[0].record["git_commit"],
        "versions": runs[0].record["versions"],
        "num_runs": len(runs),
        "num_selections": len(set(groups.tolist())),
        "runs": [
            {
                "run": folder.name,
                "num_parameters": run.record["num_llm_trained_parameters"],
                "nats_of_drift": math.exp(nats),
                "training_loss": predictors[LOSS][row].item(),
            }
            for row, (folder, run, nats) in enumerate(zip(folders, runs, drift.tolist(), strict=True))
        ],
        "predictors": json.loads(json.dumps(to_json(found))),
    }


if __name__ == "__main__":
    main()
