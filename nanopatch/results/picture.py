"""The figure that results are drawn on. Imported at the first picture: it loads matplotlib."""

from __future__ import annotations

from matplotlib.figure import Figure

from .plot import as_bytes, show_once


class Picture(Figure):
    """A matplotlib Figure that a notebook shows, once, whether pyplot was imported or not."""

    def _repr_png_(self) -> bytes:
        return as_bytes(self)

    def _ipython_display_(self) -> None:
        show_once(self)
