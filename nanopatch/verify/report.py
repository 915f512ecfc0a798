"""One comparison with a reference (`Check`), all of one model (`Report`), and how they are made."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..results.base import jsonable, write_text
from ..results.sweep import Sweep
from ..types import Array, PathLike

#: Published values were computed in float32, so this much is allowed beyond half a unit of their last decimal: for
#: logits and everything made of them (differences, grids, direct logit attribution), and for attention.
PUBLISHED_LOGITS, PUBLISHED_PATTERNS = 1e-3, 1e-4


@dataclass(frozen=True)
class Check:
    """One comparison: the largest difference, where it is, the largest |value|, and the largest difference allowed."""

    name: str
    difference: float
    where: str
    largest: float
    bound: float

    @property
    def ok(self) -> bool:
        return self.difference <= self.bound  # False for NaN too


@dataclass(frozen=True)
class Report:
    """The comparisons of one model with one reference; `print` shows them as a table.

    Attributes
    ----------
    model : str
        The name of the model.
    reference : str
        What it was compared with.
    checks : tuple of Check
    """

    model: str
    reference: str
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether every check holds."""
        return all(check.ok for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """The whole report as JSON can hold it: NaN as None, infinity as "inf"."""
        checks = [{**asdict(check), "ok": check.ok} for check in self.checks]
        return jsonable({"model": self.model, "reference": self.reference, "ok": self.ok, "checks": checks})

    def to_json(self, path: PathLike | None = None) -> str:
        """`to_dict()` as JSON; with a path, also written there (UTF-8)."""
        return write_text(json.dumps(self.to_dict(), ensure_ascii=False, allow_nan=False), path)

    def __str__(self) -> str:
        rows = [["", "difference", "allowed", "largest |value|", "at", ""]]
        for check in self.checks:
            numbers = (f"{number:.3g}" for number in (check.difference, check.bound, check.largest))
            rows.append([check.name, *numbers, check.where, "ok" if check.ok else "FAIL"])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        line = "  ".join(f"{{:{side}{width}}}" for side, width in zip("<>>><<", widths, strict=True))  # numbers right
        lines = [line.format(*row).rstrip() for row in rows]
        failed = [check.name for check in self.checks if not check.ok]
        verdict = f"{len(failed)} of {len(self.checks)} checks FAIL: {', '.join(failed)}" if failed else "all ok"
        return "\n".join([f"{self.model}: {self.reference}", *lines, verdict])


def differences(actual: Array, expected: Array) -> Array:
    """|actual - expected|, entry by entry: 0 where both are -inf (masked), infinite where one is -inf or NaN."""
    with np.errstate(invalid="ignore"):
        apart = np.where(actual == expected, 0, np.abs(actual - expected))
    return np.where(np.isnan(apart), np.inf, apart)


def largest_difference(actual: Any, expected: Any) -> float:
    """The largest |difference|; infinite where the shapes differ."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    return float(differences(actual, expected).max()) if actual.shape == expected.shape else math.inf


def largest_value(array: Array) -> float:
    """The largest |value| that is a finite number; masked ones are not. 0 if there is none."""
    return float(np.abs(array[np.isfinite(array)]).max(initial=0))


def share_check(name: str, where: str, actual: Any, expected: Array, share: float) -> Check:
    """A `Check` that allows a share of the largest |value|."""
    largest = largest_value(expected)
    return Check(name, largest_difference(actual, expected), where, largest, share * largest)


def worst(checks: Iterable[Check]) -> Check:
    """The check whose difference is the largest share of what is allowed."""
    return max(checks, key=lambda check: check.difference / check.bound if check.bound else check.difference)


def grid_check(
    prompts: str,
    patched: Sweep,
    *published: Any,
    how: str = "patched",
    normalised: bool = True,
    allowance: float = PUBLISHED_LOGITS,
) -> Check:
    """Compare a sweep with one or more published grids, whose rows are all axes but the last."""
    name = f"{patched.site} {how} by {' x '.join(patched.axes)}, {prompts}"
    grid, cells = patched.normalised if normalised else patched.grid, []
    for expected in map(np.array, published):
        if expected.shape != (math.prod(grid.shape[:-1]), grid.shape[-1]):
            return Check(name, math.inf, f"shape {grid.shape}", 1.0, allowance)
        for index, value in np.ndenumerate(expected.reshape(grid.shape)):
            pieces = ((axis, patched.pieces[axis][i]) for axis, i in zip(patched.axes, index, strict=True))
            where = ", ".join(f"{axis} {number}" for axis, (number,) in pieces)
            cells.append((where, grid[index], value))
    return published_check(name, allowance, cells)


def published_check(
    name: str, allowance: float, comparisons: Sequence[tuple[str, Any, Any]], decimals: int | None = None
) -> Check:
    """The worst of the comparisons (where, value, published value). decimals: of the published values, if rounded."""
    bound = allowance + (0.5 * 10.0**-decimals if decimals is not None else 0)
    difference, where = max(
        ((largest_difference(actual, expected), where) for where, actual, expected in comparisons),
        key=lambda comparison: comparison[0],
    )
    largest = max(float(np.abs(expected).max()) for _, _, expected in comparisons)
    return Check(name, difference, where, largest, bound)
