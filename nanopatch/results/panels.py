"""Several results side by side: sweeps of one question, lenses of several runs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Union

import numpy as np

from ..errors import NanopatchError
from . import plot
from .attention import Attention
from .base import Contents, Result, jsonable, of_type
from .lens import LogitLens
from .matrix import Matrix
from .sweep import Sweep, footer
from .view import Difference, View

if TYPE_CHECKING:
    from matplotlib.figure import Figure


#: What a panel can be, by the kind that its file names.
KINDS: dict[str, type[Any]] = {kind.kind: kind for kind in (Sweep, LogitLens, Attention, Difference)}


class Panels(dict[str, Union[Sweep, View, "Panels"]], Result):
    """Results by name: sweeps of several sites, directions or metrics; or lenses, attention, and their differences.

    A panel may itself be `Panels`.

    Examples
    --------
    >>> import nanopatch
    >>> model = nanopatch.load("nano")
    >>> pair = nanopatch.experiments.MICHELLE
    >>> clean, corrupted = (nanopatch.attention(model, model.run(p), 1, 0) for p in (pair.clean, pair.corrupted))
    >>> nanopatch.Panels({"clean": clean, "corrupted": corrupted, "difference": clean - corrupted})
    <Panels: clean, corrupted, difference>
    """

    kind: ClassVar[str] = "panels"

    def __init__(
        self, panels: Mapping[str, Sweep | View | Panels] = MappingProxyType({}), **named: Sweep | View | Panels
    ) -> None:
        if not isinstance(panels, Mapping):
            raise NanopatchError(f'panels have names: write Panels({{"a name": result}}), not {panels!r:.80}')
        super().__init__(panels, **named)

    def plot(self, normalised: bool = True) -> Figure:
        """Draw them beside and below each other, panels inside panels as columns; returns the matplotlib Figure.

        As for `Result.plot`. normalised: False draws the raw metric of sweeps.
        """
        plot.check_no_path(normalised)
        if not isinstance(normalised, (bool, np.bool_)):
            raise NanopatchError(
                f"normalised is True or False, not {normalised!r:.60}; Panels have a figure of their own: to draw into "
                "axes, plot one of the results in it"
            )
        return plot.for_pyplot(self._picture(normalised))

    def _picture(self, normalised: bool = True) -> Figure:
        columns = [
            [m for name, result in column.items() for m in _matrices(f"{panel} {name}".strip(), result, normalised)]
            for panel, column in self.columns().items()
        ]
        matrices = iter(Matrix.of_one_scale([*itertools.chain(*columns)]))
        columns = [list(itertools.islice(matrices, len(column))) for column in columns]
        lines = footer(self.sweeps(), normalised)
        for name, result in self.results().items():
            if isinstance(result, View):
                lines += [f"{name}: {line}" for line in result.about()] + result.notes
        return plot.panels(columns, lines)

    def __repr__(self) -> str:
        return f"<Panels: {', '.join(map(str, self))}>"

    def text(self) -> str:
        return "\n\n".join(
            result.text() if isinstance(result, Sweep) else f"{name}: {result.text()}"
            for name, result in self.results().items()
        )

    def columns(self) -> dict[str, dict[str, Sweep | View]]:
        """The results of each panel by name; if a panel is one result, the name is empty.

        NanopatchError if there is none, or something else.
        """
        if not self:
            raise NanopatchError(
                'there are no panels: put sweeps in, as in Panels({"z": sweep(model, experiment, "z")})'
            )
        for name, item in self.items():
            if not isinstance(name, str) or not isinstance(item, (*KINDS.values(), Panels)):
                raise NanopatchError(
                    f"panels are sweeps, lenses, attention, their differences, or Panels, by name; not {item!r:.60} by "
                    f"{name!r:.60}"
                )
        return {name: item.results() if isinstance(item, Panels) else {"": item} for name, item in self.items()}

    def results(self) -> dict[str, Sweep | View]:
        """All results in it: {name, or "name name" for those of panels inside panels: result}."""
        return {f"{n} {inner}".strip(): s for n, column in self.columns().items() for inner, s in column.items()}

    def sweeps(self) -> dict[str, Sweep]:
        """Those of `results` that are sweeps."""
        return {name: result for name, result in self.results().items() if isinstance(result, Sweep)}

    def to_rows(self) -> list[dict[str, Any]]:
        """The rows of all. Metrics of the same patches share a row; otherwise the key "panel" tells results apart."""
        results, sweeps = self.results(), list(self.sweeps().values())
        tables = [result.to_rows() for result in results.values()]
        asked = ("site", "between", "direction", "axes", "pieces", "chosen", "experiment", "corruption", "n_pairs")
        questions = {str([jsonable(getattr(sweep, name)) for name in asked]) for sweep in sweeps}
        if len(questions) == 1 and len({sweep.metric for sweep in sweeps}) == len(results):
            return [dict(itertools.chain(*(row.items() for row in rows))) for rows in zip(*tables, strict=True)]
        return [{"panel": name, **row} for name, table in zip(results, tables, strict=True) for row in table]

    def _contents(self) -> dict[str, Any]:
        self.results()  # checks that all can be loaded again
        return dict(self)

    @classmethod
    def _unpack(cls, contents: Contents) -> Panels:
        inside = {name: own for name, own in contents.items() if name not in ("format", "kind")}
        if not inside:
            raise ValueError("it has no panels")
        return cls({name: _panel(name, own) for name, own in inside.items()})


def _matrices(name: str, result: Sweep | View, normalised: bool) -> list[Matrix]:
    """The matrices of a panel, with its name in their titles."""
    if isinstance(result, Sweep):
        return [result.matrix(normalised)._replace(title=name)]
    return [matrix._replace(title=f"{name}: {matrix.title}") for matrix in result.matrices().values()]


def _panel(name: str, contents: Any) -> Sweep | View | Panels:
    try:
        kind = Panels if contents["kind"] == Panels.kind else KINDS.get(contents["kind"], Sweep)
        panel: Sweep | View | Panels = of_type(kind, contents)
        return panel
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{name!r:.60}: {error}") from None
