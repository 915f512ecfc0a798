"""Progress bars."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def progress(items: Iterable[T], unit: str, total: int | None = None) -> Iterator[T]:
    """The items, with a bar on stderr: only on a terminal, and only for what takes over a second."""
    from tqdm import tqdm

    return iter(tqdm(items, total=total, unit=f" {unit}", disable=None, delay=1, leave=False))
