"""Results of many experiments: the mean, what each pair gave, and the parts that are computed apart and put together.

A part holds the numbers of each of its pairs, and what its pairs share. Parts joined in the order of their pairs are
the same to the bit, whoever computed them: sums go through the pairs in order, in blocks of `BLOCK`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Generic

import numpy as np

from ..errors import NanopatchError
from ..types import Array
from . import plot
from .base import R, Result, check, check_shape
from .matrix import Matrix, number

if TYPE_CHECKING:
    from .plot import Drawing

#: How many pairs are summed at once. A block bounds the memory of a sum; all sums use the same blocks.
BLOCK = 1024


@dataclass(frozen=True, eq=False, repr=False)
class Pairs(Result):
    """What each pair of a mean gave.

    Attributes
    ----------
    numbers : tuple of int
        Which of the given experiments each row is, from 0. Those that were left out are missing.
    values : ndarray
        The metric, (n_pairs, ...), float64: row i shaped as the grid, the scores or the value of the mean.
    baseline_clean, baseline_corrupted : ndarray or None
        The metric of the unpatched runs, (n_pairs,); None where the mean has none.
    """

    kind: ClassVar[str] = "pairs"

    numbers: tuple[int, ...]
    values: Array
    baseline_clean: Array | None = None
    baseline_corrupted: Array | None = None

    def __len__(self) -> int:
        return len(self.numbers)

    def __repr__(self) -> str:
        return f"<Pairs: {len(self)} pairs, each {' x '.join(map(str, self.values.shape[1:])) or 'one number'}>"

    def text(self) -> str:
        ends = (self.values.min(), self.values.max()) if self.values.size else (np.nan, np.nan)
        return f"{self!r}; values from {number(float(ends[0]))} to {number(float(ends[1]))}"

    @property
    def cells(self) -> list[str]:
        """The index of each cell, such as "2,0"; "value" where a pair gave one number."""
        return [",".join(map(str, index)) or "value" for index in np.ndindex(self.values.shape[1:])]

    def to_rows(self) -> list[dict[str, Any]]:
        """One dict for each pair: its number, its baselines, and each cell's value under the cell's index ("2,0")."""
        rows = []
        for i, pair in enumerate(self.numbers):
            row: dict[str, Any] = {"pair": pair}
            for name in ("baseline_clean", "baseline_corrupted"):
                if (baselines := getattr(self, name)) is not None:
                    row[name] = float(baselines[i])
            rows.append(row | dict(zip(self.cells, map(float, self.values[i].reshape(-1)), strict=True)))
        return rows

    def _parts(self) -> tuple[Drawing, list[str]]:
        flat = self.values.reshape(len(self), -1)
        matrix = Matrix(
            values=flat,
            rows=list(map(str, self.numbers)),
            rows_title="pair",
            columns=self.cells,
            columns_title="cell",
            title=f"{len(self)} pairs",
            unit="metric",
            signed=True,
            largest=0.0,
        )
        return plot.heatmap(matrix), []

    def _check(self) -> None:
        n = len(self.numbers)
        check(n and self.values.ndim and len(self.values) == n and self.values.dtype == float, "values")
        check(all(a < b for a, b in zip(self.numbers, self.numbers[1:], strict=False)), "numbers")
        for name in ("baseline_clean", "baseline_corrupted"):
            check_shape(getattr(self, name), (n,), name, float)

    # ---- what they say together -----------------------------------------------------------------

    def interval(
        self, level: float = 0.95, n_samples: int = 1000, seed: int = 0, base: str | None = None
    ) -> tuple[Array, Array]:
        """A bootstrap interval of the mean: (lower ends, upper ends), each shaped as the mean.

        Pairs are drawn with replacement, as many as there are, `n_samples` times; the ends are percentiles of the means
        (Efron 1979). base: "clean" or "corrupted", the run that was patched into, for the interval of the normalised
        mean; each sample's mean grid is then put on the scale of the sample's own mean baselines. None: of the metric.

        Raises NanopatchError for fewer than two pairs, or a level that is not between 0 and 1.
        """
        if len(self) < 2:
            raise NanopatchError("an interval needs at least two pairs")
        if not 0 < level < 1 or n_samples < 1:
            raise NanopatchError(f"level={level!r}, n_samples={n_samples!r}: a level between 0 and 1 is expected")
        random, means, ends = np.random.default_rng(seed), [], []
        flat = self.values.reshape(len(self), -1)
        baselines = [self.baseline_clean, self.baseline_corrupted]
        for _ in range(n_samples):
            counts = np.bincount(random.integers(len(self), size=len(self)), minlength=len(self)) / len(self)
            means.append(counts @ flat)
            ends.append([np.nan if values is None else counts @ values for values in baselines])
        samples = np.array(means).reshape(n_samples, *self.values.shape[1:])
        if base is not None:
            clean, corrupted = np.array(ends).T.reshape(2, n_samples, *[1] * (self.values.ndim - 1))
            low, high = (clean, corrupted) if base == "clean" else (corrupted, clean)
            span = np.abs(low) if self.baseline_corrupted is None else high - low
            with np.errstate(divide="ignore", invalid="ignore"):
                samples = (samples - low) / span
        tail = 100 * (1 - level) / 2
        lower, upper = np.percentile(samples, [tail, 100 - tail], axis=0)
        return lower, upper

    def furthest(self, *cell: int, k: int = 10) -> list[dict[str, Any]]:
        """The k pairs whose value in a cell is furthest from the mean: dicts of "pair", "value", "from_mean".

        cell: its index, such as (layer, head); nothing for a mean that is one number. "pair" is the number of the
        experiment in the list that was given. NanopatchError if there is no such cell.

        Examples
        --------
        >>> import nanopatch
        >>> model, pairs = nanopatch.load("nano"), nanopatch.tasks.indirect_object(8)
        >>> result = nanopatch.sweep(model, pairs, "z")
        >>> worst = result.pairs.furthest(2, 0, k=1)[0]  # layer 2, head 0
        >>> bool(worst["value"] == nanopatch.sweep(model, pairs[worst["pair"]], "z").grid[2, 0])
        True
        """
        shape = self.values.shape[1:]
        if len(cell) != len(shape) or not all(-n <= i < n for i, n in zip(cell, shape, strict=True)):
            raise NanopatchError(f"{cell!r} is no cell of a grid of {shape!r}")
        at: Any = (slice(None), *cell)
        values = np.asarray(self.values[at])
        from_mean = values - values.mean()
        order = np.argsort(-np.abs(from_mean), kind="stable")[:k]
        return [
            {"pair": self.numbers[i], "value": float(values[i]), "from_mean": float(from_mean[i])}
            for i in order.tolist()
        ]

    def normalised(self, base: str, rounding: float = 0.0) -> Array:
        """Each pair's values on the scale of its own unpatched runs, as `Sweep.normalised`; NaN where it has none."""
        shape = (len(self), *[1] * (self.values.ndim - 1))
        clean, corrupted = self.baseline_clean, self.baseline_corrupted
        if clean is None:
            raise NanopatchError("these values have no baselines")
        low = clean if base == "clean" or corrupted is None else corrupted
        with np.errstate(invalid="ignore"):  # a metric may be infinite
            high = None if corrupted is None else (corrupted if base == "clean" else clean)
            span = np.abs(low) if high is None else high - low
            span = np.where((rounding < np.abs(span)) & np.isfinite(span), span, np.nan)
            scaled: Array = (self.values - low.reshape(shape)) / span.reshape(shape)
        return scaled


def check_pairs(pairs: Pairs | None, n_pairs: int, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless the pairs of a loaded mean go with it. Older files have none."""
    if pairs is not None:
        check(n_pairs == len(pairs) and pairs.values.shape[1:] == shape, "pairs")


@dataclass(frozen=True, eq=False)
class Gathered(Generic[R]):
    """The results of some pairs that differ only in their experiment, as little as the mean needs of them.

    first: the first pair's. common: the same, with what all of them share. numbers: (n_pairs,), which of the
    experiments they are. values: {each field that is averaged: (n_pairs, ...)}, without those that are None.
    """

    first: R
    common: R
    numbers: Array
    values: Mapping[str, Array]


def gather(results: Sequence[tuple[int, R]]) -> Gathered[R]:
    """Of (number of the experiment, its result), in the order of the numbers."""
    first = results[0][1]
    return Gathered(
        first=first,
        common=shared([(result, result) for _, result in results]),
        numbers=np.array([number for number, _ in results]),
        values={
            name: np.array([getattr(result, name) for _, result in results], np.float64)
            for name in first.averaged
            if getattr(first, name) is not None
        },
    )


def shared(of: Sequence[tuple[R, R]]) -> R:
    """What several pairs share, or several parts: of (the first pair's result, what the part's pairs share)."""
    first = of[0][0]
    return replace(first, **first._shared(of))  # type: ignore[type-var]


def mean(of: Gathered[R], skipped: Sequence[tuple[str, str]] = ()) -> R:
    """The mean over pairs, with its standard error, and what each pair gave; for one pair, its result.

    The raw metrics are averaged, and `normalised` is made of the means. So a pair with a large difference counts more.
    A mean of normalised grids would depend mostly on the pairs whose baselines happen to be close.
    """
    n, main = len(of.numbers), of.first.averaged[0]
    with np.errstate(invalid="ignore"):  # inf and -inf have no mean, and inf has no spread: NaN
        means = {name: _number(sum_of(values) / n) for name, values in of.values.items()}
        error = _number(np.sqrt(sum_of(of.values[main], means[main]) / (n - 1)) / np.sqrt(n)) if n > 1 else None
    pairs = None
    if n > 1:
        baselines = {name: of.values.get(name) for name in ("baseline_clean", "baseline_corrupted")}
        pairs = Pairs(tuple(of.numbers.tolist()), of.values[main], **baselines)
    given = dict(means, standard_error=error, n_pairs=n, skipped=tuple(skipped), pairs=pairs)
    return replace(of.common, **given)  # type: ignore[type-var]


def mean_of(results: Sequence[R], skipped: Sequence[tuple[str, str]] = ()) -> R:
    """The mean over results that differ only in their experiment; see `mean`."""
    return mean(gather(list(enumerate(results))), skipped)


def sum_of(values: Array, around: Any = None) -> Array:
    """The sum over the first axis; with `around`, that of the squared differences from it. In blocks: see `BLOCK`."""
    total: Any = 0.0
    for block in _blocks(values):
        total = total + (block if around is None else (block - around) ** 2).sum(axis=0)
    return np.asarray(total)


def _blocks(values: Array) -> Iterator[Array]:
    for start in range(0, len(values), BLOCK):
        yield np.asarray(values[start : start + BLOCK])


def _number(value: Array) -> Any:
    """An array, or a float of an array without axes."""
    return value if value.ndim else float(value)
