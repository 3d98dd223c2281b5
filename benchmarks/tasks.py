"""A record of tasks: right answers and followed instructions of trained runs, beside those of their base, from their evaluations.

    kappaspeech demo tasks tasks
    kappaspeech evaluate R --tasks en=tasks/en.jsonl --tasks de=tasks/de.jsonl --max-utterances 1 --batch-size 54 --output R.json
    python benchmarks/tasks.py R.json... --output tasks.json

The second line is said for each run R; all must have been asked the same tasks and have one base. Differences to the base are
paired, with intervals over tasks.
"""

from __future__ import annotations

import argparse
import json
import os
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from machine import processor

from kappaspeech.artefacts import write_json

TYPES = ("tasks", "instructions")
# what is by task, or by group of tasks
LONG = {"picked", "right", "followed", "answers", "groups"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evaluations", type=Path, nargs="+")
    parser.add_argument("--output", type=Path, default=Path("tasks.json"))
    arguments = parser.parse_args()
    records = [json.loads(path.read_text(encoding="utf-8")) for path in arguments.evaluations]
    digests = [{(name, lang): report["items_digest"] for name, lang, report in reports(record)} for record in records]
    if any(found != digests[0] or not found for found in digests):
        raise SystemExit("error: the evaluations aren't of the same tasks")
    runs = [json.loads((Path(record["model"]) / "run.json").read_text(encoding="utf-8")) for record in records]
    if len({run["checkpoint_digest"] for run in runs}) > 1:
        raise SystemExit("error: the runs aren't of one base")
    found = {
        "schema_version": 1,
        "commands": [line.strip() for line in (__doc__ or "").splitlines() if line.startswith("    ")],
        "machine": {"processor": processor(), "cores": os.cpu_count()},
        "date": datetime.now(timezone.utc).date().isoformat(),
        "runs": [describe(record, run) for record, run in zip(records, runs, strict=True)],
    }
    write_json(arguments.output, found)
    for run in found["runs"]:
        for name, language, report in reports(run):
            base, (low, high) = report["base"], report["base"]["interval"]
            print(
                f"{run['run']:10} {name:12} {language} {base['accuracy']:.1%} → {report['accuracy']:.1%}, "
                f"{base['difference']:+.1%} ({low:+.1%} to {high:+.1%}), lost {base['lost']:.1%}, gained {base['gained']:.1%}"
            )
    print(arguments.output)


def reports(record: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [(name, language, report) for name in TYPES for language, report in record.get(name, {}).items()]


def shorten(report: dict[str, Any]) -> dict[str, Any]:
    """A report without its lists."""
    kept = {key: value for key, value in report.items() if key not in LONG}
    return kept | {"base": {key: value for key, value in report["base"].items() if key not in LONG}}


def describe(record: dict[str, Any], run: dict[str, Any]) -> dict[str, Any]:
    return {
        "run": Path(record["model"]).name,
        "arm": run["arm"],
        "rule": run["selection_rule"],
        "step": record["step"],
        "trained_by": {"git_commit": run["git_commit"], "versions": run["versions"]},
        "num_llm_parameters": run["num_llm_trained_parameters"],
        "kl_nats": {language: text["kl_nats"] for language, text in record["text"].items()},
        **{name: {language: shorten(report) for language, report in record.get(name, {}).items()} for name in TYPES},
    }


if __name__ == "__main__":
    main()
