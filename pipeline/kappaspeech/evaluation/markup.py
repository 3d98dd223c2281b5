"""Text from files in a page: as text, whatever it holds."""

from __future__ import annotations

import html
import re

# what HTML has no place for, what reorders the text around it, and halves of surrogate pairs; joiners are letters' own
_UNSHOWABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def for_page(text: str) -> str:
    """`text` between tags or within a quoted attribute: no markup, no control, and nothing that reorders its neighbours."""
    return html.escape(_UNSHOWABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), text), quote=True)
