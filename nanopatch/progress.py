"""Progress bars."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any


def in_notebook() -> bool:
    """Whether stderr is the output of a notebook's cell, which is not a terminal."""
    return type(sys.stderr).__module__.startswith("ipykernel.")


class Stopped(Exception):
    """Raised by a check to stop the work that it watches. The model and all runs stay as they are."""


_check: ContextVar[Callable[[], None] | None] = ContextVar("check", default=None)


@contextmanager
def watch(check: Callable[[], None]) -> Iterator[None]:
    """Call `check` between the pieces of all work inside the `with` block. It may raise `Stopped`. No bars appear.

    Examples
    --------
    >>> def enough():
    ...     raise Stopped
    >>> with watch(enough):
    ...     list(progress(range(3), "steps"))
    Traceback (most recent call last):
    nanopatch.progress.Stopped
    """
    token = _check.set(check)
    try:
        yield
    finally:
        _check.reset(token)


def look() -> None:
    """Call the check that watches this work, if there is one."""
    check = _check.get()
    if check is not None:
        check()


def progress(items: Iterable[Any] | None, unit: str, total: int | None = None) -> Any:
    """A tqdm bar over the items, on stderr. It appears only on a terminal or in a notebook, and only after one second.

    Iterate over it. If `items` is None, use it in a `with` block and call its `update(n)`. Before each item the check
    of `watch` is called; who calls `update` calls `look` too.
    """
    from tqdm import tqdm

    stderr = sys.stderr  # None in a program without one
    hidden = stderr is None or _check.get() is not None
    return tqdm(
        None if items is None else _looking(items),
        total=len(items) if total is None and isinstance(items, Sized) else total,
        unit=f" {unit}",
        disable=hidden or (False if in_notebook() else None),  # None: tqdm asks whether it is a terminal
        delay=1,
        leave=False,
        # A notebook has no cursor to move up, so a bar inside another bar takes the same line.
        position=0 if in_notebook() else None,
    )


def _looking(items: Iterable[Any]) -> Iterator[Any]:
    for item in items:
        look()
        yield item
