"""Instructions whose obedience a program can tell, as in IFEval (Zhou et al. 2023, arXiv:2311.07911): their kinds, and how
strictly and how loosely an answer obeys them."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kappaspeech.speech.text_files import check_unicode

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
# After its marks a space follows, or the end. It is looked for from the first mark alone, not from each.
_SENTENCE_END = re.compile(r"(?<![.!?…])([.!?…]+)[\"”“\u00ab\u00bb')\]]*(?=\s|$)")
_LAST_WORD = re.compile(r"\w+$")
_NEXT_WORD = re.compile(r"[^\S\n]+[\"„“(]*(\w+)")
_ABBREVIATIONS = frozenset(["Dr", "Mr", "Mrs", "Ms", "Nr", "Prof", "St", "bzw", "ca", "evtl", "ggf", "inkl", "vgl", "vs"])
# Behind these a name is complete, and a sentence may be.
_AFTER_NAMES = frozenset(["Jr", "Sr"])
# No word before a full stop, nor the one before that, is looked for farther back; a whole answer each time takes quadratic time.
_REACH = 40
# A number within a line, which is no number of a list: "am 3.", "Karl V."; and the word before it.
_ORDINAL = re.compile(r"(?:(\w+)|\S)[^\S\n]+(?:\d+|[IVXL]+)$")
_MONTH = re.compile(
    r"Jan(?:uar)?|Jänner|Feb(?:ruar)?|März|Apr(?:il)?|Mai|Juni?|Juli?|Aug(?:ust)?|Sept?(?:ember)?|Okt(?:ober)?|Nov(?:ember)?"
    r"|Dez(?:ember)?"
)
# "8. 5. 1945" has two full stops within.
_DAY, _MONTH_NUMBER = re.compile(r"\b\d{1,2}$"), re.compile(r"[^\S\n]+\d{1,2}\.(?=\s|$)")
_DAY_AND_MONTH, _YEAR = re.compile(r"\b\d{1,2}\.[^\S\n]*\d{1,2}$"), re.compile(r"[^\S\n]+\d{2,4}\b")
# Of German alone: behind "am" in English a sentence may end ("I am 12.").
_BEFORE_ORDINALS = re.compile(
    r"der|die|das|dem|den|des|im|vom|zum|zur|beim|ins|jede[mnrs]?|diese[mnrs]?|(?:[msd]?ein|ihr|unser|euer|eur)(?:e[mnrs]?)?"
)
_BULLET = re.compile(r"^\s*[-*•]\s+\S", re.MULTILINE)
_TITLE = re.compile(r"<<[^<>\n]*[^\W_][^<>\n]*>>")
_FENCE = re.compile(r"^```(?:json)?\s*\n(.*?)\n?```$", re.DOTALL | re.IGNORECASE)
_GUILLEMETS = "\u00ab\u00bb"
_QUOTATIONS = ('""', "„“", "„”", "“”", _GUILLEMETS, _GUILLEMETS[::-1])
_QUOTES = f' \t\n"„“”{_GUILLEMETS}'
_MARKS = f"{_QUOTES}.!?"
# Frequent words that the other language doesn't have.
_FUNCTION_WORDS = {
    "en": "the of and to is that it for with are this be by from they you your has have can not its or which when their "
    "there would people if he she we i but how what who my our as more other",
    "de": "der das und ist nicht ein eine einen einem einer es zu den dem mit von für auf sich auch sind wird dass ich sie wir "
    "ihr wie oder bei nach wenn aber kann haben wo werden durch als zum zur viele sehr einfach",
}
_OWN_WORDS = {language: frozenset(words.split()) for language, words in _FUNCTION_WORDS.items()}
# Capitals of these begin a sentence: no noun is written so, which an ordinal could go with.
_BEGINNING_WORDS = (
    "die was dann danach da dort hier man er du wen wem wer warum alle beide einige manche keiner niemand jemand jeder jede "
    "jedes dies diese dieser dieses jener jene ihnen ihn ihm mein dein sein unser doch denn nun jetzt heute gestern trotzdem "
    "deshalb daher also so"
)
_BEGINNINGS = _OWN_WORDS["de"].union(_BEGINNING_WORDS.split())
_OWN_LETTERS = {"en": frozenset[str](), "de": frozenset("äöüß")}


@dataclass(frozen=True)
class Kind:
    """A checker of an answer, and the form of each of its parameters; with `any_of`, some of them may be left out."""

    obeys: Callable[..., bool]
    forms: Mapping[str, str]
    any_of: bool = False


@dataclass(frozen=True)
class Check:
    """One thing that an answer must be: a kind, with its parameters."""

    kind: str
    parameters: Mapping[str, Any]

    def is_obeyed(self, answer: str) -> bool:
        """True if the answer as it is obeys; an empty one never does. An umlaut may be written as a letter with a mark."""
        text = unicodedata.normalize("NFC", answer.strip())
        return bool(text) and KINDS[self.kind].obeys(text, **self.parameters)

    def is_obeyed_loosely(self, answer: str) -> bool:
        """True if the answer obeys as it is, without its first line, its last or both, with or without asterisks: IFEval's loose
        criterion, to which an introduction or bold type is no fault."""
        lines = answer.split("\n")
        texts = [answer, *("\n".join(part) for part in (lines[1:], lines[:-1], lines[1:-1]))]
        return any(self.is_obeyed(text) for text in (*texts, *(text.replace("*", "") for text in texts)))

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, **self.parameters}


@dataclass(frozen=True)
class Instruction:
    """A user's turn, and all that the LLM's answer must be."""

    text: str
    checks: tuple[Check, ...]

    def to_json(self) -> dict[str, Any]:
        return {"instruction": self.text, "checks": [check.to_json() for check in self.checks]}


def parse_instruction(fields: Mapping[str, Any]) -> Instruction:
    """An instruction as JSON has it. Raises `ValueError`."""
    unknown = sorted(fields.keys() - {"instruction", "checks"})
    if unknown:
        raise ValueError(f"{unknown[0]!r} is no part of an instruction")
    text, checks = fields.get("instruction"), fields.get("checks")
    if not _is_text(text):
        raise ValueError("instruction is empty, or no text")
    if not isinstance(checks, list) or not checks:
        raise ValueError("checks is no list of one check or more")
    return Instruction(str(text).strip(), tuple(_parse_check(check) for check in checks))


def _parse_check(fields: Any) -> Check:
    name = fields.get("kind") if isinstance(fields, dict) else None
    kind = KINDS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise ValueError(f"{str(fields)[:60]} is no check: its kind is none of {', '.join(KINDS)}")
    parameters = {key: value for key, value in fields.items() if key != "kind"}
    for key, value in parameters.items():
        if key not in kind.forms:
            raise ValueError(f"{key!r} is no parameter of {name}, whose are {', '.join(kind.forms) or 'none'}")
        if not _FORMS[kind.forms[key]](value):
            raise ValueError(f"{key} of {name} is {str(value)[:60]!r}, not {kind.forms[key]}")
    missing = [key for key in kind.forms if key not in parameters]
    if missing and (not kind.any_of or not parameters):
        raise ValueError(f"{name} lacks {missing[0]}")
    if parameters.get("least", 0) > parameters.get("most", parameters.get("least", 0)):
        raise ValueError(f"least of {name} is more than most: no answer obeys")
    return Check(str(name), parameters)


def _is_text(value: Any) -> bool:
    if not isinstance(value, str) or not value.strip():
        return False
    check_unicode(value)
    return True


_FORMS: Mapping[str, Callable[[Any], bool]] = {
    "a number from 0 on": lambda value: type(value) is int and value >= 0,
    "a text": _is_text,
    "a list of texts": lambda value: isinstance(value, list) and bool(value) and all(map(_is_text, value)),
    "en or de": lambda value: isinstance(value, str) and value in _OWN_WORDS,
}


def _words(text: str) -> list[str]:
    return [word.casefold() for word in _WORD.findall(text)]


def _fold(text: str) -> str:
    return unicodedata.normalize("NFC", text).strip().casefold()


def _bare(text: str) -> str:
    """A text without the marks around it, if it is more than marks."""
    return _fold(text.strip(_MARKS) or text)


def _has(text: str, phrase: str) -> bool:
    """True if a text has a word or phrase whole, in whatever case; a mark at its ends may touch a word."""
    wanted = _fold(phrase)
    before, after = r"(?<!\w)" if wanted[0].isalnum() else "", r"(?!\w)" if wanted[-1].isalnum() else ""
    return re.search(f"{before}{re.escape(wanted)}{after}", text.casefold()) is not None


def _in_range(count: int, least: int, most: int | None) -> bool:
    return least <= count and (most is None or count <= most)


def _num_words(answer: str, *, least: int = 0, most: int | None = None) -> bool:
    return _in_range(len(_words(answer)), least, most)


def _num_sentences(answer: str, *, least: int = 0, most: int | None = None) -> bool:
    return _in_range(_count_sentences(answer), least, most)


def _count_sentences(text: str) -> int:
    begin, parts = 0, []
    first_capital = next((place for place, letter in enumerate(text) if letter.isupper()), len(text))
    for end in _SENTENCE_END.finditer(text):
        if end[1] != "." or not _goes_on(text, end, in_small_letters=end.start() <= first_capital):
            parts.append(text[begin : end.end()])
            begin = end.end()
    # a number of a list has no letter
    return sum(any(map(str.isalpha, part)) for part in (*parts, text[begin:]))


def _goes_on(text: str, stop: re.Match[str], *, in_small_letters: bool) -> bool:
    """True if a full stop is an abbreviation's ("z. B.") or an ordinal's ("am 3. Mai"), and ends no sentence.

    `in_small_letters`: the text before it has no capital.
    """
    before = text[max(0, stop.start() - _REACH) : stop.start()].rpartition("\n")[2]
    word, following = _LAST_WORD.search(before), _NEXT_WORD.match(text, stop.end())
    if word is None:
        return False
    is_before_small = following is not None and following[1].islower()
    if word[0] in _AFTER_NAMES:
        return is_before_small
    if (len(word[0]) == 1 and word[0].isalpha() and word[0] != "I") or word[0] in _ABBREVIATIONS:
        return True
    ordinal = _ORDINAL.search(before)
    if ordinal is None or following is None:
        return False
    leading, trailing = ordinal[1] or "", following[1]
    is_day = word[0].isdecimal() and 1 <= int(word[0]) <= 31
    if is_day and (_MONTH.fullmatch(trailing) or _is_in_date(before, text, stop.end())):
        return True
    if is_before_small:
        # in a text of small letters alone a sentence begins so; "I" is also a pronoun
        return not in_small_letters and (word[0] != "I" or leading[:1].isupper())
    is_beginning = trailing.casefold() in _BEGINNINGS
    return not is_beginning and _BEFORE_ORDINALS.fullmatch(leading.casefold()) is not None


def _is_in_date(before: str, text: str, place: int) -> bool:
    dates = ((_DAY, _MONTH_NUMBER), (_DAY_AND_MONTH, _YEAR))
    return any(begun.search(before) and rest.match(text, place) for begun, rest in dates)


def _num_bullets(answer: str, *, least: int = 0, most: int | None = None) -> bool:
    return _in_range(len(_BULLET.findall(answer)), least, most)


def _includes(answer: str, *, words: Sequence[str]) -> bool:
    return all(_has(answer, word) for word in words)


def _excludes(answer: str, *, words: Sequence[str]) -> bool:
    return not any(_has(answer, word) for word in words)


def _lacks(answer: str, *, text: str) -> bool:
    return unicodedata.normalize("NFC", text) not in answer


def _is_lower(answer: str) -> bool:
    return any(map(str.islower, answer)) and not any(map(str.isupper, answer))


def _is_upper(answer: str) -> bool:
    # ß has no capital that anyone writes
    return any(map(str.isupper, answer)) and not any(map(str.islower, answer.replace("ß", "")))


def _starts(answer: str, *, text: str) -> bool:
    wanted = _fold(text)
    return any(
        start.startswith(wanted) and not (wanted[-1].isalnum() and start[len(wanted) : len(wanted) + 1].isalnum())
        for start in (answer.casefold(), answer.lstrip(_MARKS).casefold())
    )


def _ends(answer: str, *, text: str) -> bool:
    wanted = _fold(text.rstrip(_MARKS))
    if not wanted:
        # a mark alone, which only quotation marks may follow
        return answer.endswith(text.strip()) or answer.rstrip(_QUOTES).endswith(text.strip())
    end = answer.rstrip(_MARKS).casefold()
    return end.endswith(wanted) and not (wanted[0].isalnum() and end[: len(end) - len(wanted)][-1:].isalnum())


def _is_in(answer: str, *, language: str) -> bool:
    """True if more of the words belong to this language alone than to any other that is known."""
    words = _words(answer)
    counts = {
        name: sum(word in own or not _OWN_LETTERS[name].isdisjoint(word) for word in words) for name, own in _OWN_WORDS.items()
    }
    return counts.pop(language) > max(counts.values())


def _is_json(answer: str) -> bool:
    fenced = _FENCE.match(answer)
    try:
        return isinstance(json.loads(fenced[1] if fenced else answer), dict | list)
    except (ValueError, RecursionError):
        return False


def _is_quoted(answer: str) -> bool:
    return len(answer) > 2 and answer[0] + answer[-1] in _QUOTATIONS


def _has_title(answer: str) -> bool:
    return _TITLE.search(answer) is not None


def _is_one_of(answer: str, *, texts: Sequence[str]) -> bool:
    return _bare(answer) in map(_bare, texts)


_RANGE = {"least": "a number from 0 on", "most": "a number from 0 on"}

KINDS: Mapping[str, Kind] = {
    "words": Kind(_num_words, _RANGE, any_of=True),
    "sentences": Kind(_num_sentences, _RANGE, any_of=True),
    "bullets": Kind(_num_bullets, _RANGE, any_of=True),
    "includes": Kind(_includes, {"words": "a list of texts"}),
    "excludes": Kind(_excludes, {"words": "a list of texts"}),
    "lacks": Kind(_lacks, {"text": "a text"}),
    "lower_case": Kind(_is_lower, {}),
    "upper_case": Kind(_is_upper, {}),
    "starts_with": Kind(_starts, {"text": "a text"}),
    "ends_with": Kind(_ends, {"text": "a text"}),
    "language": Kind(_is_in, {"language": "en or de"}),
    "json": Kind(_is_json, {}),
    "quoted": Kind(_is_quoted, {}),
    "title": Kind(_has_title, {}),
    "one_of": Kind(_is_one_of, {"texts": "a list of texts"}),
}
