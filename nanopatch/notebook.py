"""How things show themselves in a notebook: as a small table in HTML."""

from __future__ import annotations

from collections.abc import Iterable


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
