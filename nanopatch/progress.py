"""Progress bars."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import Any


def in_notebook() -> bool:
    """Whether stderr is the output of a notebook's cell, which is not a terminal."""
    return type(sys.stderr).__module__.startswith("ipykernel.")


_check: ContextVar[Callable[[], None] | None] = ContextVar("check", default=None)


def look() -> None:
    """Call the check that watches this work, if there is one. It may raise `Stopped`."""
    check = _check.get()
    if check is not None:
        check()


def progress(items: Iterable[Any] | None, unit: str, total: int | None = None) -> Any:
    """A tqdm bar over the items, on stderr. It appears only on a terminal or in a notebook, and only after one second.

    Iterate over it. If `items` is None, use it in a `with` block and call its `update(n)`.
    """
    from tqdm import tqdm

    stderr = sys.stderr  # None in a program without one
    return tqdm(
        items,
        total=total,
        unit=f" {unit}",
        disable=stderr is None or (False if in_notebook() else None),  # None: tqdm asks whether it is a terminal
        delay=1,
        leave=False,
        # A notebook has no cursor to move up, so a bar inside another bar takes the same line.
        position=0 if in_notebook() else None,
    )
