"""The model card of an export, made from its run: what is recorded, and for the rest that it isn't known."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from kappaspeech.errors import InputError
from kappaspeech.escaping import for_line
from kappaspeech.evaluation.wer import by_set
from kappaspeech.json_lines import read_lines
from kappaspeech.model.hub_cache import find_cached
from kappaspeech.outside import read_json_file
from kappaspeech.redaction import redact
from kappaspeech.runs.best import read_best
from kappaspeech.runs.checkpoints import AVERAGE_FILE, find_weights
from kappaspeech.runs.contents import (
    CHECKPOINTS_FOLDER,
    EVALUATION_FILE,
    EVALUATIONS_FILE,
    RECORD_FILE,
    SELECTION_FILE,
    STEPS_FILE,
    step_of,
)
from kappaspeech.runs.records import is_evaluation, is_step
from kappaspeech.selection.tensor_selection import TensorSelection
from kappaspeech.speech.languages import short_language
from kappaspeech.trained.opening import Step, TrainedRun, check_choice, open_run

_TASK = "automatic-speech-recognition"
_CODE = re.compile(r"[a-z]{2,3}")
_MODES = {
    "adaptor": "The adaptor alone: no tensor of the LLM.",
    "all": "All tensors of the LLM, and the adaptor.",
    "lora": "LoRA factors beside tensors of the LLM, which are merged into them here, and the adaptor.",
}
_MAX_RECORD_BYTES = 16 << 20


def make_card(source: Path, *, name: str, step: Step = None, base: str | None = None) -> str:
    """README.md for an export of `source` called `name`: YAML for the hub, then words. Raises `InputError`.

    Of a difference or another export, which hold no record of their run, it says so.
    """
    check_choice(source, step=step, base=base)
    run = open_run(source, step=step) if (source / RECORD_FILE).exists() else None
    evaluation = None if run is None else _find_evaluation(run)
    llm = None if run is None else base or run.config.model.llm
    values = _describe(run, evaluation, llm) if run is not None and llm is not None else _describe_unknown()
    front = _front_matter(run, evaluation, llm, name=name)
    return f"---\n{front}\n---\n\n{_render(name=_text(name), **values)}"


def _front_matter(run: TrainedRun | None, evaluation: Mapping[str, Any] | None, llm: str | None, *, name: str) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    results, languages = [], set()
    if run is not None:
        languages = {short_language(item.language) for item in run.config.data.train if item.language}
        tested_on = ", ".join(_shown(item.shards) for item in run.config.data.test) or "unknown"
        for language, report in _reports(evaluation).items():
            languages.add(short_language(language))
            rate: dict[str, Any] = {"metric_type": "wer", "metric_name": "WER", "metric_value": round(100 * report["wer"], 3)}
            of_data: dict[str, Any] = {
                "dataset_type": "unpublished",
                "dataset_name": f"{tested_on} ({language})",
                "dataset_config": language,
            }
            results.append(EvalResult(task_type=_TASK, **of_data, **rate))
    data = ModelCardData(
        model_name=name,
        language=sorted(filter(_CODE.fullmatch, languages)) or None,
        library_name="transformers",
        pipeline_tag=_TASK,
        tags=["kappaspeech", "speech", "custom_code"],
        # the hub takes names of its own alone
        base_model=None if llm is None or Path(llm).exists() or llm.startswith(("/", "~", ".")) else llm,
        metrics=["wer"] if results else None,
        eval_results=results or None,
    )
    return str(data.to_yaml()).rstrip()


def _describe(run: TrainedRun, evaluation: Mapping[str, Any] | None, llm: str) -> dict[str, Any]:
    config, record = run.config, run.record
    selection = _read_selection(run)
    steps = [item for item in read_lines(run.path / STEPS_FILE, is_record=is_step) if item["step"] < run.step]
    hours = steps[-1].get("hours_seen") if steps else None
    best = read_best(run.path / CHECKPOINTS_FOLDER)
    versions = record.get("versions") or {}
    encoder = config.model.encoder
    whole_config = yaml.safe_dump(_public(config.model_dump(mode="json")), allow_unicode=True, sort_keys=False)
    return {
        "run": {
            "step": run.step,
            "world_size": record.get("world_size", "?"),
            "dtype": record.get("dtype", "a dtype that isn't recorded"),
            "num_trained": f"{record['num_trained_parameters']:,}" if "num_trained_parameters" in record else "unknown",
            "hours": f"{sum(hours.values()):.2f} hours of audio seen" if isinstance(hours, dict) else None,
            "average_decay": config.training.ema_decay if find_weights(run.checkpoint).name == AVERAGE_FILE else None,
            "seed": config.seed,
            "commit": record.get("git_commit"),
            "config_digest": _code(str(record.get("config_digest"))),
            "checkpoint_digest": _code(str(record.get("checkpoint_digest"))),
            "versions": ", ".join(f"{_text(package)} {_text(str(version))}" for package, version in versions.items()),
        },
        "versions": {"kappaspeech": _text(str(versions.get("kappaspeech") or ""))},
        "trained_share": "a part was trained" if config.unfreeze.mode == "selection" else None,
        "parts": [
            {"kind": "LLM", "origin": _code(_shown(llm)), "licence": _licence(llm)},
            {"kind": "speech encoder", "origin": _code(_shown(encoder)), "licence": _whisper_licence(encoder)},
            {"kind": "adaptor", "origin": "this training", "licence": "see below"},
        ],
        "selection": selection,
        "mode": _MODES.get(config.unfreeze.mode, _code(config.unfreeze.mode)),
        "train": [
            {"shards": _code(_shown(item.shards)), "language": _code(item.language or "as labelled"), "weight": item.weight}
            for item in config.data.train
        ],
        "tested_on": ", ".join(_code(_shown(item.shards)) for item in config.data.test) or "a test set that isn't recorded",
        "rates": [_rate(language, report) for language, report in (*_reports(evaluation).items(), *_reports_by_set(evaluation))],
        "endings": _endings(evaluation),
        "chosen_by_wer": best is not None and step_of(best) == run.step,
        "texts": _texts(run, evaluation),
        "config": whole_config.rstrip(),
        # longer than any in it
        "fence": "`" * max(3, *(len(found) + 1 for found in re.findall("`+", whole_config)), 3),
    }


def _describe_unknown() -> dict[str, Any]:
    parts = [{"kind": kind, "origin": "not known", "licence": None} for kind in ("LLM", "speech encoder", "adaptor")]
    return {"run": None, "versions": {"kappaspeech": None}, "trained_share": None, "parts": parts}


def _find_evaluation(run: TrainedRun) -> Mapping[str, Any] | None:
    """The evaluation of the run's step: its own, or one that was made afterwards."""
    found = [item for item in read_lines(run.path / EVALUATIONS_FILE, is_record=is_evaluation) if item["step"] == run.step]
    if found:
        return found[-1]
    path = run.path / EVALUATION_FILE
    if not path.exists():
        return None
    try:
        made = read_json_file(path, most_bytes=_MAX_RECORD_BYTES)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} can't be read: {error}. Evaluate again, or remove it.") from error
    return made if isinstance(made, dict) and is_evaluation(made) and made["step"] == run.step else None


def _reports(evaluation: Mapping[str, Any] | None) -> dict[str, Mapping[str, Any]]:
    """WER of each language that had a word to measure it on."""
    languages = {} if evaluation is None else evaluation["wer"].get("languages", {})
    return {language: report for language, report in languages.items() if report["wer"] is not None}


def _reports_by_set(evaluation: Mapping[str, Any] | None) -> list[tuple[str, Mapping[str, Any]]]:
    reports = [] if evaluation is None else by_set(evaluation["wer"])
    return [(name, report) for name, report in reports if report["wer"] is not None]


def _rate(language: str, report: Mapping[str, Any]) -> dict[str, Any]:
    low, high = report["interval"]
    return {
        "language": _code(language),
        "wer": f"{report['wer']:.2%}",
        "interval": f"{low:.2%} to {high:.2%}",
        "cer": f"{report['cer']:.2%}",
        "num_utterances": report["num_utterances"],
        "num_words": report["reference_length"],
        "normaliser": _code(report["normaliser"]),
    }


def _endings(evaluation: Mapping[str, Any] | None) -> str:
    counts = [] if evaluation is None else [evaluation.get(name) for name in ("num_utterances", "num_loops", "num_cut")]
    if not counts or None in counts:
        return ""
    return f"Of {counts[0]} texts {counts[1]} were cut in a loop, and {counts[2]} at the longest length."


def _texts(run: TrainedRun, evaluation: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Perplexity of text before the training, if the run measured it, and after."""
    records = read_lines(run.path / EVALUATIONS_FILE, is_record=is_evaluation)
    before: Mapping[str, Any] = next((item["text"] for item in records if item["step"] == 0), {})
    rows = []
    for language, text in ({} if evaluation is None else evaluation["text"]).items():
        first, distance = before.get(language), text.get("kl_nats")
        rows.append(
            {
                "language": _code(language),
                "before": None if first is None else f"{first['perplexity']:.2f}",
                "after": f"{text['perplexity']:.2f}",
                "kl": None if distance is None else f"{distance:.3f}",
                "num_tokens": text["num_tokens"],
            }
        )
    return rows


def _read_selection(run: TrainedRun) -> dict[str, Any] | None:
    if not (run.path / SELECTION_FILE).exists():
        return None
    selection, lora = TensorSelection.read(run.path / SELECTION_FILE), run.config.unfreeze.lora
    how = "trained whole" if lora is None else f"changed by LoRA of rank {lora.rank} and alpha {lora.alpha:g}, merged into them"
    return {
        "rule": _text(selection.rule),
        "how": how,
        "count": len(selection.tensors),
        "num_parameters": f"{selection.num_parameters:,}",
        "tensors": [f"{_code(item.name)}, κ {item.kappa:.4g}" for item in selection.tensors],
    }


def _licence(llm: str) -> str | None:
    """The licence that the model card beside a base model's files names."""
    from huggingface_hub import ModelCard

    folder = llm if Path(llm).is_dir() else find_cached(llm)
    path = None if folder is None else Path(folder) / "README.md"
    if path is None or not path.is_file():
        return None
    try:
        found = ModelCard.load(path, ignore_metadata_errors=True).data.get("license")
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return _code(str(found)) if found else None


def _whisper_licence(encoder: str) -> str | None:
    """MIT for what openai-whisper fetches by name; of a file nobody knows whose weights it holds."""
    import whisper

    return "MIT" if encoder in whisper.available_models() and not Path(encoder).exists() else None


def _public(value: Any) -> Any:
    """A configuration without secrets, and without the folders of the machine that it was used on."""
    if isinstance(value, Mapping):
        return {key: _public(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_public(item) for item in value]
    return _shown(value) if isinstance(value, str) else value


def _shown(name_or_path: str) -> str:
    """A path or URL as others may see it: without the URL's secrets, and of an absolute path the last part.

    A run's configuration, as it is read, has its URLs whole.
    """
    return f"…/{Path(name_or_path).name}" if name_or_path.startswith(("/", "~", "file:")) else redact(name_or_path)


def _code(text: str) -> str:
    """`text` as Markdown's code, also in a table's cell."""
    return f"`{for_line(text).replace('`', chr(39)).replace('|', chr(92) + '|')}`"


def _text(text: str) -> str:
    """`text` as Markdown's plain text."""
    return re.sub(r"([\\`*_{}\[\]<>()#!|])", r"\\\1", for_line(text))


def _render(**values: Any) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    # Markdown and no HTML: each value has been made plain by `_text` or `_code`
    environment = Environment(
        loader=PackageLoader("kappaspeech.trained", ""),
        autoescape=False,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return re.sub(r"\n{3,}", "\n\n", environment.get_template("card.md.jinja").render(**values)).rstrip() + "\n"
