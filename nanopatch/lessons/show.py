"""How a lesson shows a result."""

from __future__ import annotations

from ..progress import in_notebook
from ..results.base import Result


def show(result: Result) -> None:
    """A result as a picture in a notebook, and as a table elsewhere."""
    if in_notebook():
        from IPython.display import display

        display(result)
    else:
        print(result, "\n")
