"""How things show themselves: in a notebook as a small table in HTML, and on any terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable

#: What stands for a sign that the terminal does not have.
PLAIN = {"░": ".", "▒": ":", "▓": "*", "█": "#", "␣": "_", "…": "...", "–": "-", "≠": "!=", "·": ".", "±": "+-"}


def html_table(title: str, rows: Iterable[tuple[str, object]]) -> str:
    """A title, and below it a row for each (name, value). All text is shown as it is: nothing is read as HTML."""
    from html import escape  # here, because it loads a table of all HTML entities

    # The classes tell a notebook that $...$ is no formula. pre-wrap keeps the spaces of prompts and tokens.
    left = 'style="text-align: left; vertical-align: top; white-space: pre-wrap"'
    cells = "".join(
        f"<tr><th {left}>{escape(name)}</th><td {left}>{escape(str(value))}</td></tr>" for name, value in rows
    )
    title = f'<thead><tr><th colspan="2" {left}>{escape(title)}</th></tr></thead>'
    return f'<table class="tex2jax_ignore mathjax_ignore">{title}<tbody>{cells}</tbody></table>'


def printable(text: str) -> str:
    """The text with what stdout cannot write replaced, so that `print` never raises: on Windows, say."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    for sign, plain in PLAIN.items():
        if sign.encode(encoding, "ignore") == b"":
            text = text.replace(sign, plain)
    return text.encode(encoding, "backslashreplace").decode(encoding)
