"""The file page: every reply that the page may ask for, computed beforehand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..errors import NanopatchError
from ..experiments.experiment import Experiment
from ..experiments.patch import SITE_AXES
from ..model.gpt2 import Model
from ..model.sites import shapes
from ..page.document import file_page
from ..page.pack import key_of
from ..results.edges import counts
from .answers import Answers, n_edges
from .pair import DRAWN, Pair, What

#: The arrays that a page holds grids of, unless others are named.
SITES = ("resid_pre", "attn_out", "mlp_out", "z")
#: So many bytes of patched runs are computed at once.
MEMORY = 2**28


def build(
    model: Model,
    experiment: Experiment,
    sites: Sequence[str] = SITES,
    directions: Sequence[str] = ("denoise",),
    metrics: Sequence[str] = ("logit_diff",),
) -> bytes:
    """The page of one experiment as one HTML file, UTF-8.

    sites: what grids are of, each along its first two axes. Every cell of them can be clicked. directions, metrics: as
    for `nanopatch.sweep`. Raises NanopatchError if the experiment cannot be used.
    """
    answers = Answers(model)
    pair = answers.pair(experiment)
    experiment.tokens(model), experiment.columns(model)  # their checks
    for site in sites:
        if site not in SITE_AXES:
            raise NanopatchError(f"cannot patch {site!r:.40}; sites are {', '.join(SITE_AXES)}")
    menu = {
        "sites": list(sites),
        "axes": {site: [list(SITE_AXES[site][:2])] for site in sites},
        "directions": list(directions),
        "metrics": list(metrics),
        "windows": [1],
        "counts": counts(n_edges(model)),
    }
    chunks = [
        {key_of(question): answers.reply(experiment, question) for question in group}
        for group in itertools.chain(unpatched(model, menu), patched(pair, menu))  # one after the other: see `patched`
    ]
    return file_page(answers.start("file", experiment, menu), chunks)


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


def patched(pair: Pair, menu: Mapping[str, Any]) -> Iterator[list[dict[str, Any]]]:
    """The questions about every cell. The runs of some cells are made at once, then let go."""
    model = pair.model
    tokens = pair.runs().tokens
    of_run = shapes(model, max(len(tokens.clean), len(tokens.corrupted)))
    size = sum(model.dtype.itemsize * math.prod(of_run[name]) for name in DRAWN)
    at_once = max(1, MEMORY // size)
    for site in menu["sites"]:
        for axes in menu["axes"][site]:
            for direction in menu["directions"]:
                what = What(site, tuple(axes), 1, direction, 0)
                (edits,) = pair.cells(what)[1].batches
                for first in range(0, len(edits), at_once):
                    some = [what._replace(cell=cell) for cell in range(first, min(first + at_once, len(edits)))]
                    pair.patched(some)
                    pair.lenses(some)
                    for views in (("patch",), ("attention",), ("lens", "direct")):
                        yield [asked(view, each) for each in some for view in views]
                    pair.forget()


def asked(view: str, what: What) -> dict[str, Any]:
    """A question about one cell."""
    of_run = {} if view == "patch" else {"run": "patched"}
    return {"view": view, **of_run, **what._asdict(), "axes": list(what.axes)}
