"""Several sweeps of one question, side by side."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, ClassVar, Union

import numpy as np

from ..errors import NanopatchError
from . import plot
from .base import Contents, Result, jsonable, of_type
from .matrix import Matrix
from .sweep import Sweep, footer

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Panels(dict[str, Union[Sweep, "Panels"]], Result):
    """Sweeps by name: of several sites, directions or metrics. A panel may itself be `Panels`."""

    kind: ClassVar[str] = "panels"

    def plot(self, normalised: bool = True) -> Figure:
        """Draw them beside and below each other, panels inside panels as columns; returns the matplotlib Figure.

        As for `Result.plot`.
        """
        plot.check_no_path(normalised)
        if not isinstance(normalised, (bool, np.bool_)):
            raise NanopatchError(
                f"normalised is True or False, not {normalised!r:.60}; Panels have a figure of their own: to draw into "
                "axes, plot one of the sweeps in it"
            )
        return plot.for_pyplot(self._picture(normalised))

    def _picture(self, normalised: bool = True) -> Figure:
        sweeps = self.sweeps()
        titled = (s.matrix(normalised)._replace(title=name) for name, s in sweeps.items())
        matrices = iter(Matrix.of_one_scale(list(titled)))
        columns = [list(itertools.islice(matrices, len(column))) for column in self.columns().values()]
        return plot.panels(columns, footer(sweeps, normalised))

    def __repr__(self) -> str:
        return f"<Panels: {', '.join(map(str, self))}>"

    def text(self) -> str:
        return "\n\n".join(panel.text() for panel in self.sweeps().values())

    def columns(self) -> dict[str, dict[str, Sweep]]:
        """The sweeps of each panel by name; if a panel is one sweep, the name is empty.

        NanopatchError if there is none, or something else.
        """
        if not self:
            raise NanopatchError(
                'there are no panels: put sweeps in, as in Panels({"z": sweep(model, experiment, "z")})'
            )
        for name, item in self.items():
            if not isinstance(name, str) or not isinstance(item, (Sweep, Panels)):
                raise NanopatchError(f"panels are sweeps, or Panels, by name; not {item!r:.60} by {name!r:.60}")
        return {name: item.sweeps() if isinstance(item, Panels) else {"": item} for name, item in self.items()}

    def sweeps(self) -> dict[str, Sweep]:
        """All sweeps in it: {name, or "name name" for those of panels inside panels: sweep}."""
        return {f"{n} {inner}".strip(): s for n, column in self.columns().items() for inner, s in column.items()}

    def to_rows(self) -> list[dict[str, Any]]:
        """One dict per patch. Metrics of the same patches share a row; otherwise the key "panel" tells sweeps apart."""
        sweeps = self.sweeps()
        tables = [sweep.to_rows() for sweep in sweeps.values()]
        asked = ("site", "between", "direction", "axes", "pieces", "chosen", "experiment", "corruption", "n_pairs")
        questions = {str([jsonable(getattr(sweep, name)) for name in asked]) for sweep in sweeps.values()}
        if len(questions) == 1 and len({sweep.metric for sweep in sweeps.values()}) == len(sweeps):
            return [dict(itertools.chain(*(row.items() for row in rows))) for rows in zip(*tables, strict=True)]
        return [{"panel": name, **row} for name, table in zip(sweeps, tables, strict=True) for row in table]

    def _contents(self) -> dict[str, Any]:
        self.sweeps()  # checks that all can be loaded again
        return dict(self)

    @classmethod
    def _unpack(cls, contents: Contents) -> Panels:
        inside = {name: own for name, own in contents.items() if name not in ("format", "kind")}
        if not inside:
            raise ValueError("it has no panels")
        return cls({name: _panel(name, own) for name, own in inside.items()})


def _panel(name: str, contents: Any) -> Sweep | Panels:
    try:
        panel: Sweep | Panels = of_type(Panels if contents["kind"] == Panels.kind else Sweep, contents)
        return panel
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{name!r:.60}: {error}") from None
