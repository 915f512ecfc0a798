"""Progress bars."""

from __future__ import annotations

import sys
import time
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


#: Seconds between two lines in a log.
EVERY = 60.0


@contextmanager
def counting(total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """A function to call with how many more items are done: a bar as in `progress`, or lines if there is no terminal.

    The bar says how many are done in a second, and how much time is left. So does the line that a log file gets each
    minute.
    """
    begin = last = time.monotonic()  # which no change of the clock turns back
    done = 0

    def line(n: int) -> None:
        nonlocal last, done
        done, now = done + n, time.monotonic()
        if now - last >= EVERY and done < total:
            last, rate = now, done / (now - begin)
            left = span_of((total - done) / rate)
            print(f"{done:,} of {total:,} {unit}, {rate:.3g} a second, {left} left", file=sys.stderr, flush=True)

    with progress(None, unit, total) as bar:
        in_log = bar.disable and sys.stderr is not None and _check.get() is None
        yield line if in_log else bar.update


def span_of(seconds: float) -> str:
    """ "50 s", "12 min", "3 h 20 min"."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def _looking(items: Iterable[Any]) -> Iterator[Any]:
    for item in items:
        look()
        yield item
