"""Tiny models of many families through all of it: scan, select, two steps, a third after a resume, evaluate, export, reload.

    python benchmarks/families.py [FAMILY ...] [--ranks 2] [--work /tmp/families] [--record benchmarks/results/families.json]
    python benchmarks/families.py --record benchmarks/results/families.json --write-docs

Families are those of `tests/families.py`, all without an argument. `--record` adds to what the file has, of which
`--write-docs` makes docs/families.md. A family is "equal" if the export, loaded by itself, says of a text what the run's last
checkpoint says, to the last bit.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from tests import families, tiny  # noqa: E402 - of the repository, which isn't installed with its tests
from tests.conftest import _pack  # noqa: E402
from tests.nursery import Nursery  # noqa: E402
from tests.patience import patience  # noqa: E402

DOCS = REPOSITORY / "docs/families.md"
_NOT_RUN = "the loss is equal; not run end to end"
_INTRODUCTION = """# Families of language models

Tiny models by transformers' own classes, in bfloat16, through everything: scan, select three tensors, two steps, a third after a
resume, evaluate, export, and the export evaluated by itself. "Equal": run and export say the same of a text to the last bit. The
loss of training is compared with transformers' own in `tests/unit/model/test_families.py`, for every family that isn't refused.
`python benchmarks/families.py` tries them, and makes this page of its record.

`doctor`, `plan` and `select` report a refusal too, before anything is trained.

| Family | transformers' class | Attention | Result |
|---|---|---|---|
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", help="By name; all by default.")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--record", type=Path)
    parser.add_argument("--write-docs", action="store_true", help="Make docs/families.md of the record, and try nothing.")
    options = parser.parse_args()
    if options.write_docs:
        DOCS.write_text(make_page(json.loads(options.record.read_text(encoding="utf-8"))), encoding="utf-8")
        return
    work = options.work or Path(tempfile.mkdtemp(prefix="families-"))
    record = json.loads(options.record.read_text()) if options.record and options.record.exists() else {}
    home = _make_home(work / "home")
    with Nursery() as nursery:
        for name in options.families or families.FAMILIES:
            record[name] = {**_describe(name), "ranks": options.ranks, "result": _try(name, nursery, home, work, options.ranks)}
            print(f"{name:22} {record[name]['result']}", flush=True)
            if options.record is not None:
                options.record.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def make_page(record: dict[str, Any]) -> str:
    """docs/families.md."""
    known = {name: record.get(name) or {**_describe(name), "result": _NOT_RUN} for name in families.FAMILIES}
    rows = [f"| {name} | {row['class']} | {row['attention']} | {row['result']} |\n" for name, row in sorted(known.items())]
    return _INTRODUCTION + "".join(rows)


def _describe(name: str) -> dict[str, str]:
    from kappaspeech.model.family import attentions_of, find_class

    takes = attentions_of(find_class(families.make_config(name)))
    return {"class": takes.family, "attention": takes.default}


def _make_home(home: Path) -> Path:
    if not home.exists():
        home.mkdir(parents=True)
        tiny.make_llm(home / "llm")
        tiny.make_whisper(home / "whisper.pt")
        for part, count in (("train", 12), ("test", 3)):
            _pack(tiny.make_recordings(home / "speech" / part, num_clips=count, seed=len(part)), home / "shards" / part)
        (home / "text.txt").write_text("turn the red lamp on\nopen the green door\n", encoding="utf-8")
    return home


def _make_family(name: str, folder: Path, home: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(home / "llm")
    torch.manual_seed(0)
    config = families.make_config(name, vocabulary=len(tokenizer))
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _try(name: str, nursery: Nursery, home: Path, work: Path, ranks: int) -> str:
    folder = work / "".join(letter if letter.isalnum() else "-" for letter in name)
    shutil.rmtree(folder, ignore_errors=True)
    _make_family(name, folder / "llm", home)
    run, exported = folder / "run", folder / "export"
    log = folder / "log.txt"

    def call(*words: object, ranks: int = 1) -> str | None:
        """None if it went well, else its last line."""
        began = log.stat().st_size if log.exists() else 0
        pids = nursery.start(*words, ranks=ranks, output=log)
        codes = nursery.wait(pids, timeout_seconds=patience(60))
        lines = [line for line in log.read_text()[began:].splitlines() if line.strip()]
        if all(code == 0 for code in codes):
            return None
        refusals = [line for line in lines if line.startswith("error: ")]
        # a refusal may be wrapped over lines
        text = " ".join(lines[lines.index(refusals[-1]) :]) if refusals else lines[-1]
        return f"{'refused' if set(codes) == {2} else 'FAILS'} by {words[0]}: {text.removeprefix('error: ')}"

    def configure(num_steps: int) -> Path:
        changes = {"model__llm": str(folder / "llm"), "unfreeze__selection": str(folder / "selection.json")}
        training = {
            "training__num_steps": num_steps,
            "data__test": [],
            "deepspeed": str(REPOSITORY / "ds_configs/zero3_cpu.json"),
        }
        return tiny.write_config(folder / "run.yaml", home, run, **changes, **training)

    measure = ("--data", home / "shards/test/*.tar", "--text", f"en={home / 'text.txt'}", "--max-new-tokens", "4")
    choice = ("--count", "3", "--experts", "together" if name in families.TOGETHER else "each")
    failed = (
        call("scan", folder / "llm", "--output", folder / "ranking.json")
        or call("select", folder / "ranking.json", "--output", folder / "selection.json", *choice)
        or call("plan", configure(2))
        or call("train", configure(2), ranks=ranks)
        or call("train", configure(3), ranks=ranks)
        or call("evaluate", run, *measure)
        or call("export", run, exported)
        or call("evaluate", exported, *measure)
    )
    if failed:
        return failed.replace(str(folder), name)
    of_run, of_export = (json.loads((path / "evaluation.json").read_text()) for path in (run, exported))
    same = of_run["text"]["en"]["nats_sum"] == of_export["text"]["en"]["nats_sum"] and of_run["wer"] == of_export["wer"]
    return "works, equal" if same else "works, NOT equal"


if __name__ == "__main__":
    main()
