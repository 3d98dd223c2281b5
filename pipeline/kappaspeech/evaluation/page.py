"""Every hypothesis on one page: aligned with its reference, sortable, with the clip to play. One file that needs no network."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from kappaspeech.evaluation.markup import for_page
from kappaspeech.evaluation.wer import Hypothesis, WerCount, count_words, measure, normalise, normaliser_name

# A page that a browser opens at once: so many utterances, those with the most errors, and of these so many clips and bytes.
MAX_ROWS = 2_000
MAX_CLIPS = 200
MAX_CLIP_BYTES = 20 << 20
_MAGIC = {b"fLaC": "audio/flac", b"RIFF": "audio/wav", b"OggS": "audio/ogg"}


def worst_first(hypotheses: Sequence[Hypothesis]) -> list[tuple[Hypothesis, WerCount]]:
    """Utterances with their counts, the most word errors first; of as many, the shorter reference."""
    counted = zip(hypotheses, count_words(hypotheses), strict=True)
    return sorted(counted, key=lambda pair: (-pair[1].errors, pair[1].reference_length, pair[0].key))


def make_page(title: str, hypotheses: Sequence[Hypothesis], clips: Mapping[str, bytes]) -> str:
    """The page, of the worst `MAX_ROWS` utterances; `clips` are encoded audio by key, as it lies in the shards.

    Text is shown as it was compared, after its normaliser, with its own spelling beneath.
    """
    ranked = worst_first(hypotheses)
    report = measure(hypotheses)
    rows = [_row(item, count, clips.get(item.key)) for item, count in ranked[:MAX_ROWS]]
    shown = (
        f"{len(rows)} of {len(ranked)} utterances, most errors first" if len(rows) < len(ranked) else f"{len(rows)} utterances"
    )
    languages = "".join(f"<option>{for_page(language)}" for language in report["languages"])
    return "\n".join(
        [
            f"<!doctype html><html lang=en><meta charset=utf-8><title>{for_page(title)}</title><style>{_STYLE}</style>",
            f"<h1>{for_page(title)}</h1>",
            *(_summary(language, part) for language, part in report["languages"].items()),
            "<p><s class=sub>said</s> <b class=sub>written</b> a word in another's place · <s class=del>said</s> left out · "
            f"<b class=ins>written</b> put in. {shown}; {len(clips)} clips to play, of at most {MAX_CLIPS} and "
            f"{MAX_CLIP_BYTES >> 20} MiB. <label>Language <select><option value=''>all{languages}</select></label></p>",
            "<table><thead><tr>",
            *(f"<th><button data-key={key}>{label}</button>" for key, label in _COLUMNS.items()),
            "<th>said and written<tbody>",
            *rows,
            f"</table><script>{_SCRIPT}</script>",
        ]
    )


def _summary(language: str, report: Mapping[str, Any]) -> str:
    if report["wer"] is None:
        return f"<p>{for_page(language)}: no reference word</p>"
    low, high = report["interval"]
    return (
        f"<p>{for_page(language)}: WER <b>{report['wer']:.2%}</b> (95 % of resamples {low:.2%} to {high:.2%}), CER "
        f"{report['cer']:.2%}; {report['num_utterances']} utterances, {report['reference_length']} words, "
        f"{report['substitutions']} substitutions, {report['deletions']} deletions, {report['insertions']} insertions; "
        f"normaliser {for_page(report['normaliser'])}</p>"
    )


def _row(item: Hypothesis, count: WerCount, clip: bytes | None) -> str:
    rate = count.rate if count.reference_length else float(count.errors)
    cells = {
        "errors": (count.errors, str(count.errors)),
        "rate": (rate, f"{rate:.0%}" if count.reference_length else "–"),
        "seconds": (item.seconds, f"{item.seconds:.1f}"),
        "language": (item.language, item.language),
        "ending": (item.ending, "" if item.ending == "end" else item.ending),
        "key": (item.key, item.key),
    }
    values = "".join(f'<td data-{key}="{for_page(str(v))}">{for_page(text)}' for key, (v, text) in cells.items())
    audio = ""
    if clip is not None:
        kind = _MAGIC.get(clip[:4], "audio/mpeg")
        audio = f'<audio controls preload=none src="data:{kind};base64,{base64.b64encode(clip).decode()}"></audio>'
    own = f"<small>{for_page(item.reference)}<br>{for_page(item.hypothesis)}</small>"
    return f'<tr>{values}<td title="{for_page(normaliser_name(item.language))}">{align(item)}{own}{audio}'


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
_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:80rem;margin:2rem auto;padding:0 1rem;color:#1b1b1b}
table{border-collapse:collapse;width:100%}thead{position:sticky;top:0;background:#fff}
th,td{padding:.35rem .6rem;border-bottom:1px solid #ccc;text-align:left;vertical-align:top}
td{font-variant-numeric:tabular-nums}td:last-child{width:60%}
button{font:inherit;font-weight:600;border:0;background:none;cursor:pointer;padding:0;white-space:nowrap}
button[aria-sort]::after{content:" ▾"}button[aria-sort=ascending]::after{content:" ▴"}
small{display:block;color:#666}audio{display:block;height:2rem;margin-top:.3rem}
.sub{background:#ffe2a8}.del{background:#ffc9c9}.ins{background:#c5e3ff}b{font-weight:500}"""
# #seconds or #-seconds at the end of the address sorts by a column from the start
_SCRIPT = """const body=document.querySelector('tbody'),rows=[...body.rows];
const texts=['language','ending','key'],buttons=[...document.querySelectorAll('button')];
const value=(row,key)=>row.querySelector(`[data-${key}]`).dataset[key];
function sort(key,up){
  const compare=texts.includes(key)?(x,y)=>x.localeCompare(y):(x,y)=>x-y;
  rows.sort((a,b)=>compare(value(a,key),value(b,key))*(up?1:-1));
  body.append(...rows);
  for(const button of buttons){
    button.removeAttribute('aria-sort');
    if(button.dataset.key===key)button.setAttribute('aria-sort',up?'ascending':'descending');
  }
}
for(const button of buttons)button.onclick=()=>sort(button.dataset.key,button.getAttribute('aria-sort')==='descending');
document.querySelector('select').onchange=event=>{
  for(const row of rows)row.hidden=event.target.value!==''&&value(row,'language')!==event.target.value;
};
const wish=location.hash.slice(1),column=wish.replace('-','');
if(buttons.some(button=>button.dataset.key===column))sort(column,wish[0]!=='-');"""
