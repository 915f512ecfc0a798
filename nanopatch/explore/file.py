"""The file page: every reply that the page may ask for, computed beforehand."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import NanopatchError
from ..experiments.experiment import Experiment
from ..experiments.patch import SITE_AXES
from ..files import write_whole
from ..model.gpt2 import Model
from ..page.document import file_page
from ..page.pack import key_of
from ..patching.average import checked
from ..patching.case import check_answers
from ..patching.question import ask
from ..progress import look, progress
from ..results.edges import counts
from ..types import PathLike
from .answers import Answers, n_edges
from .pair import MEMORY, Pair, What

#: The arrays that a page holds grids of, unless others are named.
SITES = ("resid_pre", "z")


@dataclass(frozen=True, repr=False)
class Page:
    """The interactive page of one experiment, as one HTML file. `make_page` makes it.

    html: the file, UTF-8. It holds all its numbers, and requests nothing.
    """

    html: bytes

    def save(self, path: PathLike) -> None:
        """Write it to `path`, whose ending is .html. NanopatchError for another ending, or if it cannot be written."""
        if Path(path).suffix.lower() != ".html":
            raise NanopatchError(f"cannot save {path}: the ending of a page is .html")
        write_whole(path, self.html)

    def __repr__(self) -> str:
        return f"<Page: {len(self.html):,} bytes of HTML; save('page.html') writes it>"

    def _repr_html_(self) -> str:  # in a frame of its own, so that it and the notebook keep their styles to themselves
        from html import escape  # here, because it loads a table of all HTML entities

        text = escape(self.html.decode("utf-8"))
        frame = "width: 100%; height: 900px; border: 1px solid #ccc"
        return f'<iframe title="nanopatch" style="{frame}" srcdoc="{text}"></iframe>'


def make_page(
    model: Model,
    experiment: Experiment | str,
    sites: str | Sequence[str] = SITES,
    *,
    direction: str | Sequence[str] = "denoise",
    metric: str | Sequence[str] = "logit_diff",
) -> Page:
    """The page of one experiment: its prompts, heatmaps in which every cell can be clicked, and the views of each run.

    Parameters
    ----------
    model : Model
    experiment : Experiment, or its name
    sites : str or list of str
        What heatmaps are of, each along its first two axes.
    direction, metric : str or list of str
        As for `nanopatch.sweep`; of metrics, their names.

    Returns
    -------
    Page
        `save("page.html")` writes it; a notebook shows it. Patterns and activations in it have three digits (float16),
        metrics and logits all of theirs.

    Raises
    ------
    NanopatchError
        If a name is unknown, or the prompts or answers cannot be used.

    Examples
    --------
    >>> import nanopatch
    >>> model = nanopatch.load("nano")
    >>> page = nanopatch.make_page(model, "capital", "resid_pre")
    >>> page.html[:15]
    b'<!doctype html>'
    """
    one = checked(model, experiment)
    if not isinstance(one, Experiment):
        raise NanopatchError("a page shows one experiment: give one, or its name")
    experiment = one
    answers = Answers(model)
    pair = answers.pair(experiment)
    experiment.columns(model)  # its checks
    question = ask(_listed(sites), _listed(direction), _listed(metric), None)
    names = [what.site for what in question.whats.values()]
    menu: dict[str, Any] = {
        "sites": names,
        "axes": {site: [list(SITE_AXES[site][:2])] for site in names},
        "directions": question.directions,
        "metrics": [metric.name for metric in question.metrics],
        "windows": [1],
        "counts": counts(n_edges(model)),
    }
    check_answers(question.metrics, pair.runs().tokens)
    grids = [
        What(site, tuple(axes), 1, direction, 0)
        for site in names
        for axes in menu["axes"][site]
        for direction in question.directions
    ]
    n_cells = sum(pair.cells(grid)[1].blank.size for grid in grids)  # their checks, too
    groups = [*unpatched(model, menu)]
    chunks = []
    with progress(None, "replies", sum(map(len, groups)) + 4 * n_cells) as bar:
        for group in itertools.chain(groups, patched(pair, grids)):  # one after the other: see `patched`
            look()
            chunks.append({key_of(question): answers.reply(experiment, question) for question in group})
            bar.update(len(group))
    return Page(file_page(answers.start("file", experiment, menu), chunks))


def _listed(names: str | Sequence[str]) -> list[str]:
    return list(names) if isinstance(names, Iterable) and not isinstance(names, str) else [names]


def unpatched(model: Model, menu: Mapping[str, Any]) -> Iterator[list[dict[str, Any]]]:
    """The questions about no cell, in groups that are read together."""
    grids = [
        {"view": "sweep", "site": site, "axes": axes, "window": 1, "direction": direction, "metric": metric}
        for site in menu["sites"]
        for axes in menu["axes"][site]
        for direction in menu["directions"]
        for metric in menu["metrics"]
    ]
    runs = ("clean", "corrupted")
    yield [{"view": "prompts"}, grids[0], *({"view": "attention", "run": run} for run in runs)]
    yield grids[1:]
    yield [{"view": view, "run": run} for view in ("lens", "direct") for run in runs]
    yield [{"view": "arrays", "run": run, "layer": layer} for layer in range(model.n_layer + 1) for run in runs]
    yield [{"view": "circuit", "metric": menu["metrics"][0], "n": n} for n in menu["counts"]]


def patched(pair: Pair, grids: Sequence[What]) -> Iterator[list[dict[str, Any]]]:
    """The questions about every cell. The runs of some cells are made at once; the next ones take their place."""
    at_once = max(1, MEMORY // pair.size)
    for grid in grids:
        n_cells = pair.cells(grid)[1].blank.size
        for first in range(0, n_cells, at_once):
            some = [grid._replace(cell=cell) for cell in range(first, min(first + at_once, n_cells))]
            pair.patched(some)
            pair.lenses(some)
            for views in (("patch",), ("attention",), ("lens", "direct")):
                yield [asked(view, each) for each in some for view in views]


def asked(view: str, what: What) -> dict[str, Any]:
    """A question about one cell."""
    of_run = {} if view == "patch" else {"run": "patched"}
    return {"view": view, **of_run, **what._asdict(), "axes": list(what.axes)}
