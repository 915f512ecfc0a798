"""The course: twelve lessons, each one idea. `nanopatch lessons` lists them.

A lesson is a script in cells, as Jupyter and VS Code know them. It calls four functions:

>>> from nanopatch.lessons import check, hint, show, solution
"""

from .exercises import check, hint, solution
from .show import show

__all__ = ["check", "hint", "show", "solution"]
