"""Progress bars."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def progress(items: Iterable[Any] | None, unit: str, total: int | None = None) -> Any:
    """tqdm's bar over the items, on stderr: only on a terminal, and only for what takes over a second.

    Iterate over it; without items, tell it `update(n)` inside `with`.
    """
    from tqdm import tqdm

    return tqdm(items, total=total, unit=f" {unit}", disable=None, delay=1, leave=False)
