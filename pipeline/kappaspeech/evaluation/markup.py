"""Pages from templates: text from files stays text, whatever it holds."""

from __future__ import annotations

import html
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from markupsafe import Markup

# what HTML has no place for, what reorders the text around it, and halves of surrogate pairs; joiners are letters' own
_UNSHOWABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def for_page(text: str) -> str:
    """`text` between tags or within a quoted attribute: no markup, no control, and nothing that reorders its neighbours."""
    return html.escape(_show(text), quote=True)


def _show(text: str) -> str:
    return _UNSHOWABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def render(package: str, template: str, **values: Any) -> str:
    """A page from `template`, a file of `package`.

    Every value is escaped as `for_page` does it, but what `raw` says is markup already; a name that no value has is an error.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader(package, ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
    )
    return environment.get_template(template).render(**values) + "\n"


def _finalize(value: Any) -> Any:
    from markupsafe import Markup

    return _show(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def raw(markup: str) -> Markup:
    """Markup of this project's own making, as an SVG or a style, which isn't escaped."""
    from markupsafe import Markup

    return Markup(markup)
