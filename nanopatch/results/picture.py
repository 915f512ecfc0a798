"""The figure that results are drawn on, and how a notebook shows it. Loads matplotlib, so it is imported late."""

from __future__ import annotations

import io
import sys
from typing import Any

import matplotlib
from matplotlib.figure import Figure


class Picture(Figure):
    """A matplotlib Figure that a notebook shows, once, whether pyplot was imported or not."""

    def draw(self, renderer: Any) -> None:
        with matplotlib.rc_context({"text.usetex": False}):  # a larger window may need new numbers on the axes
            super().draw(renderer)

    def tight_layout(
        self,
        *,
        pad: float = 1.08,
        h_pad: float | None = None,
        w_pad: float | None = None,
        rect: tuple[float, float, float, float] | None = None,
    ) -> None:
        """Do nothing: all is in its place already, and matplotlib would warn that it can move none of it."""

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, format="png")
        return file.getvalue()

    def _ipython_display_(self) -> None:
        show_once(self)


def inline() -> bool:
    """Whether this is a notebook that shows the figures of pyplot at the end of each cell."""
    return "matplotlib.pyplot" in sys.modules and "inline" in matplotlib.get_backend()


def show_once(figure: Figure) -> None:
    """What a notebook calls before it shows a figure: it is not to be shown again at the end of the cell."""
    if inline():
        sys.modules["matplotlib.pyplot"].close(figure)
    raise NotImplementedError  # which tells IPython to go on and show it
