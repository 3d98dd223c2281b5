"""Every hypothesis on one page: aligned with its reference, sortable, with the clip to play. One file that needs no network."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from kappaspeech.evaluation.alignment import WerCount
from kappaspeech.evaluation.markup import for_page, raw, render
from kappaspeech.evaluation.wer import Hypothesis, by_set, count_words, measure, normalise, normaliser_name

# A page that a browser opens at once: so many utterances, those with the most errors, and of these so many clips and bytes.
MAX_ROWS = 2_000
MAX_CLIPS = 200
MAX_CLIP_BYTES = 20 << 20
_MAGIC = {b"fLaC": "audio/flac", b"RIFF": "audio/wav", b"OggS": "audio/ogg"}


def worst_first(hypotheses: Sequence[Hypothesis]) -> list[tuple[Hypothesis, WerCount]]:
    """Utterances with their counts, the most word errors first; of as many, the shorter reference."""
    counted = zip(hypotheses, count_words(hypotheses), strict=True)
    return sorted(counted, key=lambda pair: (-pair[1].errors, pair[1].reference_length, pair[0].key))


def make_page(
    title: str, hypotheses: Sequence[Hypothesis], clips: Mapping[tuple[str, str], bytes], *, notes: Sequence[str] = ()
) -> str:
    """The page, of the worst `MAX_ROWS` utterances; `clips` are encoded audio by data set and key, as it lies in the
    shards, and `notes` lines on what was measured beside.

    Text is shown as it was compared, after its normaliser, with its own spelling beneath.
    """
    ranked = worst_first(hypotheses)
    report = measure(hypotheses)
    rows = [_row(item, count, clips.get((item.dataset, item.key))) for item, count in ranked[:MAX_ROWS]]
    shown = f"{len(rows)} of {len(ranked)} utterances" if len(rows) < len(ranked) else f"{len(rows)} utterances"
    endings = sorted({item.ending for item, _ in ranked[:MAX_ROWS]} & _ENDINGS.keys())
    return render(
        "kappaspeech.evaluation",
        "hypotheses.html.jinja",
        title=title,
        style=raw(_asset("hypotheses.css")),
        script=raw(_asset("hypotheses.js")),
        summaries=[_summary(language, part) for language, part in (*report["languages"].items(), *by_set(report))],
        notes=list(notes),
        shown=f"{shown}, most errors first",
        clips=f"{len(clips)} clips to play, of at most {MAX_CLIPS} and {MAX_CLIP_BYTES >> 20} MiB",
        cut="; ".join(f"{ending}, {_ENDINGS[ending]}" for ending in endings),
        languages=list(report["languages"]),
        columns=_COLUMNS,
        rows=rows,
    )


def _asset(name: str) -> str:
    return resources.files("kappaspeech.evaluation").joinpath(name).read_text(encoding="utf-8")


def _summary(language: str, report: Mapping[str, Any]) -> dict[str, str]:
    if report["wer"] is None:
        return {"language": language, "rate": "", "rest": ""}
    low, high = report["interval"]
    rest = (
        f"(95 % of resamples {low:.2%} to {high:.2%}), CER {report['cer']:.2%}; {report['num_utterances']} utterances, "
        f"{report['reference_length']} words, {report['substitutions']} substitutions, {report['deletions']} deletions, "
        f"{report['insertions']} insertions; normaliser {report['normaliser']}"
    )
    return {"language": language, "rate": f"{report['wer']:.2%}", "rest": rest}


def _row(item: Hypothesis, count: WerCount, clip: bytes | None) -> dict[str, Any]:
    rate = count.rate if count.reference_length else float(count.errors)
    cells = {
        "errors": (count.errors, str(count.errors)),
        "rate": (rate, f"{rate:.0%}" if count.reference_length else "–"),
        "seconds": (item.seconds, f"{item.seconds:.1f}"),
        "language": (item.language, item.language),
        "ending": (item.ending, "" if item.ending == "end" else item.ending),
        "key": (item.key, item.key),
    }
    source = ""
    if clip is not None:
        kind = _MAGIC.get(clip[:4], "audio/mpeg")
        source = f"data:{kind};base64,{base64.b64encode(clip).decode()}"
    return {
        "cells": [
            {"key": key, "value": str(value), "text": text, "title": _ENDINGS.get(text, "") if key == "ending" else ""}
            for key, (value, text) in cells.items()
        ],
        "normaliser": normaliser_name(item.language),
        "aligned": raw(align(item)),
        "reference": item.reference,
        "hypothesis": item.hypothesis,
        "clip": source,
        "seconds": f"{item.seconds:.1f}",
    }


def align(item: Hypothesis) -> str:
    """The reference as HTML, with what was written in place of it, left out of it or put into it marked."""
    import jiwer

    said, written = (normalise(text, item.language) for text in (item.reference, item.hypothesis))
    if not said:
        return _mark("b", "ins", written.split())
    done = jiwer.process_words(said, written)
    parts = []
    for chunk in done.alignments[0]:
        old = done.references[0][chunk.ref_start_idx : chunk.ref_end_idx]
        new = done.hypotheses[0][chunk.hyp_start_idx : chunk.hyp_end_idx]
        if chunk.type == "substitute":
            parts += [f"{_mark('s', 'sub', [a])} {_mark('b', 'sub', [b])}" for a, b in zip(old, new, strict=True)]
        elif chunk.type == "delete":
            parts.append(_mark("s", "del", old))
        elif chunk.type == "insert":
            parts.append(_mark("b", "ins", new))
        else:
            parts.append(for_page(" ".join(old)))
    return " ".join(parts)


def _mark(tag: str, kind: str, words: Sequence[str]) -> str:
    return f"<{tag} class={kind}>{for_page(' '.join(words))}</{tag}>" if words else ""


_COLUMNS = {
    "errors": "errors",
    "rate": "WER",
    "seconds": "seconds",
    "language": "language",
    "ending": "cut",
    "key": "key",
}
# why decoding ended before the model's own end
_ENDINGS = {
    "loop": "the text repeated itself and was cut there",
    "length": "the text reached the most tokens that evaluation.max_new_tokens allows",
}
