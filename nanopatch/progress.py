"""Progress bars."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def progress(items: Iterable[Any] | None, unit: str, total: int | None = None) -> Any:
    """A tqdm bar over the items, on stderr. It appears only on a terminal, and only after one second.

    Iterate over it. If `items` is None, use it in a `with` block and call its `update(n)`.
    """
    from tqdm import tqdm

    return tqdm(items, total=total, unit=f" {unit}", disable=None, delay=1, leave=False)
