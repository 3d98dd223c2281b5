"""Names of languages, from wherever they come: one short code each, which is also safe in a file's name."""

from __future__ import annotations

import re

from kappaspeech.errors import DataError


class UnnamedLanguageError(DataError):
    """A list names no language for a recording, and none was given."""


# English names, as corpora and Whisper write them, and the few own names that are met.
_NAMES = """
afrikaans=af albanian=sq amharic=am arabic=ar armenian=hy assamese=as azerbaijani=az bashkir=ba basque=eu belarusian=be
bengali=bn bosnian=bs breton=br bulgarian=bg burmese=my cantonese=yue castilian=es catalan=ca chinese=zh croatian=hr czech=cs
danish=da deutsch=de dutch=nl english=en esperanto=eo estonian=et faroese=fo filipino=tl finnish=fi flemish=nl francais=fr
français=fr french=fr galician=gl georgian=ka german=de greek=el gujarati=gu haitian=ht hausa=ha hawaiian=haw hebrew=he hindi=hi
hungarian=hu icelandic=is igbo=ig indonesian=id irish=ga italian=it italiano=it japanese=ja javanese=jv kannada=kn kazakh=kk
khmer=km kinyarwanda=rw korean=ko kurdish=ku kyrgyz=ky lao=lo latin=la latvian=lv letzeburgesch=lb lingala=ln lithuanian=lt
luxembourgish=lb macedonian=mk malagasy=mg malay=ms malayalam=ml maltese=mt mandarin=zh maori=mi marathi=mr moldavian=ro
moldovan=ro mongolian=mn myanmar=my nederlands=nl nepali=ne norwegian=no nynorsk=nn occitan=oc oriya=or panjabi=pa pashto=ps
persian=fa polish=pl polski=pl portuguese=pt português=pt punjabi=pa pushto=ps romanian=ro russian=ru sanskrit=sa serbian=sr
shona=sn sindhi=sd sinhala=si sinhalese=si slovak=sk slovenian=sl somali=so spanish=es español=es sundanese=su swahili=sw
swedish=sv tagalog=tl tajik=tg tamil=ta tatar=tt telugu=te thai=th tibetan=bo turkish=tr turkmen=tk uighur=ug ukrainian=uk
urdu=ur uyghur=ug uzbek=uz valencian=ca vietnamese=vi welsh=cy wolof=wo xhosa=xh yiddish=yi yoruba=yo zulu=zu
"""
# ISO 639-3, as many multilingual corpora have it, of the same languages; of what has members the one that is met, and the German,
# French, Dutch, Czech, Greek and Chinese of ISO 639-2.
_LONG_CODES = """
afr=af sqi=sq amh=am ara=ar arb=ar hye=hy asm=as aze=az azj=az bak=ba eus=eu bel=be ben=bn bos=bs bre=br bul=bg mya=my cat=ca
zho=zh chi=zh cmn=zh hrv=hr ces=cs cze=cs dan=da nld=nl dut=nl eng=en epo=eo est=et ekk=et fao=fo fil=tl fin=fi fra=fr fre=fr
glg=gl kat=ka deu=de ger=de ell=el gre=el guj=gu hat=ht hau=ha heb=he hin=hi hun=hu isl=is ibo=ig ind=id gle=ga ita=it jpn=ja
jav=jv kan=kn kaz=kk khm=km kin=rw kor=ko kur=ku kir=ky lao=lo lat=la lav=lv lvs=lv lin=ln lit=lt ltz=lb mkd=mk mlg=mg msa=ms
zsm=ms mal=ml mlt=mt mri=mi mar=mr mon=mn nep=ne npi=ne nor=no nob=nb nno=nn oci=oc ori=or ory=or pan=pa pus=ps fas=fa pes=fa
pol=pl por=pt ron=ro rus=ru san=sa srp=sr sna=sn snd=sd sin=si slk=sk slv=sl som=so spa=es sun=su swa=sw swh=sw swe=sv tgl=tl
tgk=tg tam=ta tat=tt tel=te tha=th bod=bo tur=tr tuk=tk uig=ug ukr=uk urd=ur uzb=uz uzn=uz vie=vi cym=cy wol=wo xho=xh yid=yi
yor=yo zul=zu
"""
_CODES = dict(pair.split("=") for pair in (_NAMES + _LONG_CODES).split())
# A code, or a name of one's own for a set that is told apart like a language: a word that no file system takes for a path.
_WORD = re.compile(r"[^\W_]{1,32}")
_TAGS = re.compile(r"[\w.@-]*")
_PRIVATE = re.compile(r"x-[a-z0-9]{1,32}")
_SHOWN_LETTERS = 40


def normalise_language(name: object, *, where: str = "") -> str:
    """`DE`, `de_DE`, `deu`, `german` → `de`; `x-klingon`, and a word that is no known name, stay.

    Raises `DataError`, which begins with `where`, for what can't be one: languages become parts of file names.
    """
    short = name.strip().lower().replace("_", "-") if isinstance(name, str) else ""
    if short in _CODES or _PRIVATE.fullmatch(short):
        return _CODES.get(short, short)
    word, _, tags = short.partition("-")
    if _WORD.fullmatch(word) and _TAGS.fullmatch(tags):
        return _CODES.get(word, word)
    shown = repr(name)
    shown = shown if len(shown) <= _SHOWN_LETTERS else f"{shown[:_SHOWN_LETTERS]}…"
    raise DataError(
        f"{where + ': ' if where else ''}{shown} is no language. Wanted is a code (en, de, yue) or an English name; for what "
        "has neither, one word of letters and digits."
    )


def is_known_language(name: str) -> bool:
    """Return whether `name` is, however it is written, a language that is known here, and no word of one's own."""
    return short_language(name) in _CODES.values()


def short_language(name: str) -> str:
    """`name` normalised, or as it is if it can't be a language."""
    try:
        return normalise_language(name)
    except DataError:
        return name
