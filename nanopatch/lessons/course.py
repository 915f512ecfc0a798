"""The list of lessons, and each as a script or a notebook."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import NanopatchError


class Lesson(NamedTuple):
    """number: from 1. title and minutes: as the first cell of its script says. path: of the script."""

    number: int
    title: str
    minutes: int
    path: Path

    @property
    def text(self) -> str:
        """The script."""
        return self.path.read_text(encoding="utf-8")

    def notebook(self) -> str:
        """The lesson as a notebook, in JSON. Raises NanopatchError if jupytext is not installed."""
        try:
            import jupytext
        except ModuleNotFoundError:
            raise NanopatchError('a notebook is made by jupytext: pip install "nanopatch[lessons]"') from None
        notebook = jupytext.reads(self.text, fmt="py:percent")
        for number, cell in enumerate(notebook.cells):
            cell["id"] = f"cell-{number}"  # not by chance: the same lesson makes the same file
        notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        text: str = jupytext.writes(notebook, fmt="ipynb")
        return text


def lessons() -> Sequence[Lesson]:
    """All lessons, in order.

    Examples
    --------
    >>> lessons()[0].title
    'The forward pass at a breakpoint'
    """
    found = []
    for path in sorted(Path(__file__).parent.glob("lesson_*.py")):
        head = re.match(
            r"# %% \[markdown\]\n# # (?P<number>\d+)\. (?P<title>.+)\n#\n# \*(?P<minutes>\d+) minutes\.",
            path.read_text(encoding="utf-8"),
        )
        assert head, f"{path.name} does not begin with its number, its title and its minutes"
        found.append(Lesson(int(head["number"]), head["title"], int(head["minutes"]), path))
    return found


def find(number: int) -> Lesson:
    """A lesson by its number; NanopatchError if there is none."""
    known = lessons()
    for lesson in known:
        if lesson.number == number:
            return lesson
    raise NanopatchError(f"there is no lesson {number}: they are 1 to {len(known)}")
