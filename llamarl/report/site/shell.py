"""The HTML document of every page: style, script and values in one file that opens by double click and asks nobody.

Whatever a model, a judge or a data set wrote is a value: JSON in an element that is never executed, put on the page as
text by our script. The content policy names our style and our script by their hashes and allows nothing else, so even
text that found a way out of its element would stay text.
"""

import base64
import hashlib
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from typing import Any

from llamarl.report.files import encode
from llamarl.report.text import visible

_STYLES = ("uplot.css", "page.css")
_SCRIPTS = (
    "uplot.js",
    "text.js",
    "charts.js",
    "rows.js",
    "rollouts.js",
    "timeline.js",
    "runs.js",
    "report.js",
    "page.js",
)
_BREAKING = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"})
"""Characters with which JSON could end its element; in JSON they stand in strings only, where escapes mean the same."""


def render_document(title: str, values: Mapping[str, Any], *, may_ask_server: bool = False) -> str:
    """The HTML document.

    Args:
        title: of the window, any text.
        values: for the script, as JSON takes them.
        may_ask_server: True lets the script ask the server that the document came from.
    """
    style, script = _asset(*_STYLES), _asset(*_SCRIPTS)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{content_policy(style, script, may_ask_server)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<title>{escape(visible(title))}</title>
<style>{style}</style>
</head>
<body>
<noscript><p>This page draws itself with a script of its own. Please allow it; it makes no request to anywhere.</p>\
</noscript>
<div id="page"></div>
<script type="application/json" id="values">{embed(values)}</script>
<script>{script}</script>
</body>
</html>
"""


def content_policy(style: str, script: str, may_ask_server: bool = False) -> str:
    """A policy under which only this style and this script count."""
    connect = "; connect-src 'self'" if may_ask_server else ""
    return (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}{connect}; "
        "base-uri 'none'; form-action 'none'"
    )


def embed(values: Any) -> str:
    """JSON that cannot end the element it stands in."""
    return encode(values).decode(errors="replace").translate(_BREAKING)


def _asset(*names: str) -> str:
    folder = files(__package__) / "assets"
    return "\n".join((folder / name).read_text(encoding="utf-8") for name in names)


def _hash(text: str) -> str:
    """The hash as a browser computes it of the element's text, in which it has only line feeds."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
