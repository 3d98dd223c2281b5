"""The files of code that an export holds: modules of this package as they are, with imports that work beside each other."""

from __future__ import annotations

import re
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
CONFIGURATION, MODELING, PROCESSING = (f"{kind}_kappaspeech" for kind in ("configuration", "modeling", "processing"))
_ROOTS = tuple(f"kappaspeech.portable.{name}" for name in (CONFIGURATION, MODELING, PROCESSING))
_OURS = re.compile(r"^from (kappaspeech[\w.]*)\.(\w+) import ", flags=re.MULTILINE)
# transformers loads the files of one folder, by such names
AUTO_MAP = {
    "AutoConfig": f"{CONFIGURATION}.KappaSpeechConfig",
    "AutoModel": f"{MODELING}.KappaSpeechModel",
    "AutoProcessor": f"{PROCESSING}.KappaSpeechProcessor",
}


def read_sources() -> dict[str, str]:
    """File name → text of each module that model and processor need: their own, and whatever these import of this package.

    `from kappaspeech.model.adaptor import Adaptor` becomes `from .adaptor import Adaptor`; nothing else is changed.
    """
    found: dict[str, str] = {}
    waiting = list(_ROOTS)
    while waiting:
        module = waiting.pop()
        name = f"{module.rpartition('.')[2]}.py"
        if name in found:
            continue
        text = _PACKAGE.joinpath(*module.split(".")[1:]).with_suffix(".py").read_text(encoding="utf-8")
        waiting += [f"{match[1]}.{match[2]}" for match in _OURS.finditer(text)]
        found[name] = _OURS.sub(r"from .\2 import ", text)
    return found
