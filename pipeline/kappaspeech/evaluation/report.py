"""An evaluation's record in lines for a person."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kappaspeech.evaluation.wer import by_set


def describe_record(record: Mapping[str, Any]) -> list[str]:
    """WER by language and test set with intervals, what was cut, speed, other counts, the gap to another, perplexity, answers."""
    lines: list[str] = []
    for language, report in (*record["wer"]["languages"].items(), *by_set(record["wer"])):
        if report["wer"] is None:
            lines.append(f"WER {language}: no reference word ({report['num_utterances']} utterances)")
            continue
        low, high = report["interval"]
        size = f"{report['num_utterances']} utterances, {report['reference_length']} words; normaliser {report['normaliser']}"
        edits = ", ".join(f"{report[kind]} {kind}" for kind in ("substitutions", "deletions", "insertions"))
        lines.append(f"WER {language} {report['wer']:7.2%} (95 % of resamples {low:.2%} to {high:.2%}; {size})")
        lines.append(f"  {edits}; CER {report['cer']:.2%}")
    for name in ("mean", "pooled"):
        if record["wer"][f"{name}_wer"] is not None:
            low, high = record["wer"][f"{name}_interval"]
            lines.append(f"WER {name} {record['wer'][f'{name}_wer']:5.2%} ({low:.2%} to {high:.2%})")
    if "hot_words" in record:
        lines.append(_describe_hot_words(record["hot_words"]))
    if record["num_loops"] or record["num_cut"]:
        lines.append(f"texts cut: {record['num_loops']} in a loop, {record['num_cut']} at the longest length")
    if record.get("audio_seconds"):
        lines.append(describe_speed(record["audio_seconds"], record["decode_seconds"]))
    if "compounds" in record:
        for language, report in record["compounds"]["languages"].items():
            if report["wer"] is not None:
                low, high = report["interval"]
                lines.append(f"WER {language} {report['wer']:7.2%} ({low:.2%} to {high:.2%}) by {record['compounds']['aligner']}")
    for scheme, report in record.get("normalisers", {}).items():
        rates = ", ".join(f"{language} {rate:.2%}" for language, rate in report["languages"].items() if rate is not None)
        lines.append(f"WER under the normaliser {scheme}: {rates}")
    if "against" in record:
        for name, gap in {**record["against"]["languages"], "mean": record["against"]["mean"]}.items():
            low, high = gap["interval"]
            lines.append(
                f"WER {name} minus the other's {gap['difference']:+.2%} ({low:+.2%} to {high:+.2%}; p {gap['p_value']:.2g})"
            )
    for language, text in record["text"].items():
        distance = "" if text["kl_nats"] is None else f", KL from the base {text['kl_nats']:.3f} nats a token"
        lines.append(f"text perplexity {language} {text['perplexity']:.2f} ({text['num_tokens']} tokens){distance}")
    lines += describe_tasks(record)
    for task, metrics in record.get("lm_eval", {}).items():
        lines.append(f"{task}: {', '.join(f'{name} {value:.4g}' for name, value in metrics.items())}")
    return lines


def _describe_hot_words(report: Mapping[str, Any]) -> str:
    if report["recall"] is None:
        return f"hot words: none of {report['num_hot_words']} is said"
    rates = f"{report['num_found']} of {report['num_said']} said were written ({report['recall']:.2%}); WER of hot words "
    others = "" if report["unbiased_wer"] is None else f", of all others {report['unbiased_wer']:.2%}"
    return f"hot words: {rates}{report['biased_wer']:.2%}{others}"


def describe_tasks(record: Mapping[str, Any]) -> list[str]:
    """A line on the questions of each language and on its instructions, with the base's answers beside if they are known, and one
    on the groups or kinds of each."""
    lines = []
    for language, report in record.get("tasks", {}).items():
        low, high = report["accuracy_interval"]
        lines.append(
            f"tasks {language} {report['accuracy']:.1%} right ({low:.1%} to {high:.1%}; {report['num_items']} questions, chance "
            f"{report['chance']:.1%}; by length {report['normalised_accuracy']:.1%})"
            f"{_beside_base(report['base'], 'normalised', 'by length')}"
        )
        groups = [
            _describe_part(name or "others", group["accuracy"], group["base"] and group["base"]["accuracy"])
            for name, group in report["groups"].items()
        ]
        lines += [f"  {', '.join(groups)}"] if groups else []
    for language, report in record.get("instructions", {}).items():
        low, high = report["accuracy_interval"]
        lines.append(
            f"instructions {language} {report['accuracy']:.1%} followed ({low:.1%} to {high:.1%}; {report['num_items']} of them; "
            f"loosely {report['loose_accuracy']:.1%}; of {report['num_checks']} checks {report['check_accuracy']:.1%}, loosely "
            f"{report['loose_check_accuracy']:.1%}){_beside_base(report['base'], 'loose', 'loosely')}"
        )
        base = report["base"] or {"kinds": {}}
        lines.append(
            f"  {', '.join(_describe_part(kind, rate, base['kinds'].get(kind)) for kind, rate in report['kinds'].items())}"
        )
    return lines


def _beside_base(base: Mapping[str, Any] | None, second: str, told: str) -> str:
    """The difference to the base, and of the `second` share, which is `told` as that."""
    if base is None:
        return ""
    # records of earlier versions have no second one
    more = f"; {told} {_say_gap(base, f'{second}_')}" if f"{second}_difference" in base else ""
    gaps = f"{_say_gap(base)}{more}"
    return f"; to the base {gaps}: {base['flipped']:.1%} changed, {base['lost']:.1%} lost, {base['gained']:.1%} gained"


def _say_gap(base: Mapping[str, Any], prefix: str = "") -> str:
    lowest, highest = base[f"{prefix}interval"]
    return f"{base[f'{prefix}difference']:+.1%} ({lowest:+.1%} to {highest:+.1%})"


def _describe_part(name: str, rate: float, before: float | None) -> str:
    return f"{name} {'' if before is None else f'{before:.0%} → '}{rate:.0%}"


def real_time_factor(audio_seconds: float, decode_seconds: float) -> float:
    """Seconds that decoding one second of audio takes; 0 if there is none."""
    return decode_seconds / audio_seconds if audio_seconds > 0 else 0.0


def describe_speed(audio_seconds: float, decode_seconds: float) -> str:
    """A line on the audio that was decoded, the time that it took, and the real-time factor."""
    factor = real_time_factor(audio_seconds, decode_seconds)
    return f"{audio_seconds:.1f} s of speech in {decode_seconds:.1f} s: real-time factor {factor:.3g}"
