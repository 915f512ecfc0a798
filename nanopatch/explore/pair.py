"""One experiment as the page looks at it: its two runs, and the patched runs of cells that were chosen.

n_tokens  of the run patched into
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..circuits.run import edge_pairs, measure_circuits
from ..errors import NanopatchError
from ..experiments.experiment import Experiment
from ..experiments.metrics import METRICS
from ..experiments.patch import Patch
from ..gradients.edges import score_edges
from ..lenses.direct import direct_logit_attribution
from ..lenses.logit import logit_lenses
from ..model.gpt2 import Model
from ..model.layers import top_tokens
from ..model.sites import ATTENTION_SITES, BLOCK_SITES, Run, record, shapes
from ..patching.case import Case, Runs, check_equal_positions, make_case, run_both
from ..patching.cells import Cells, cells_of_patch
from ..patching.edit import Edit
from ..patching.question import as_sweep
from ..patching.sweep import Running
from ..progress import look
from ..results.direct import DirectAttribution
from ..results.edges import EdgeScores, Faithfulness
from ..results.lens import LogitLens
from ..results.sweep import Sweep, check_direction
from ..types import Array

#: The arrays of a block that the page draws, in the order of the forward pass.
DRAWN = (
    *("resid_pre", "q", "k", "v", "scores", "pattern", "z", "attn_out"),
    *("resid_mid", "mlp_pre", "mlp_post", "mlp_out", "resid_post"),
)


#: How many patched runs and grids are kept, of those asked for one by one.
MOST_RUNS, MOST_GRIDS = 4, 8
#: Bytes: of patched runs that are made at once or kept, and of the largest run that is shown.
MEMORY, MOST_BYTES = 2**28, 2**31


class What(NamedTuple):
    """What is patched, in which direction, and in which cell of its grid."""

    site: str
    axes: tuple[str, ...]
    window: int
    direction: str
    cell: int

    @property
    def patch(self) -> Patch:
        return Patch(self.site, self.axes, window=self.window)


class Pair:
    """The runs of one experiment, made when they are asked for first. The last patched runs are kept."""

    def __init__(self, model: Model, experiment: Experiment) -> None:
        self.model, self.experiment = model, experiment
        self._cases: dict[tuple[str, str], Case] = {}
        self._cells: dict[tuple[Any, ...], Cells] = {}
        self._runs: dict[What, Run] = {}
        self._lenses: dict[What | str, LogitLens] = {}
        self._top: dict[What | str, list[dict[str, Any]]] = {}
        self._scores: dict[str, EdgeScores] = {}
        self._sites: frozenset[str] = frozenset()

    # ---- the two prompts ------------------------------------------------------------------------

    def runs(self, site: str = "resid_pre") -> Runs:
        """Both runs, with every array that is drawn, and one that is patched."""
        wanted = frozenset({*DRAWN, site})
        if not wanted <= self._sites:
            look()
            self._check_size()
            sites = self._sites | wanted
            self._cases.clear()
            self._cells.clear()
            self.__dict__.pop("_finished", None)
            (self._both,) = run_both(self.model, self.experiment, 0, None, dict.fromkeys(("clean", "corrupted"), sites))
            self._sites = sites  # only now: prompts that cannot be run are so at the next question too
        return self._both

    @functools.cached_property
    def size(self) -> int:
        """How many bytes the drawn arrays of the longer prompt's run take."""
        tokens = self.experiment.tokens(self.model)
        of_run = shapes(self.model, max(len(tokens.clean), len(tokens.corrupted)))
        return sum(self.model.dtype.itemsize * math.prod(of_run[name]) for name in DRAWN)

    def _check_size(self) -> None:
        if self.size > MOST_BYTES:
            raise NanopatchError(
                f"a run of these prompts takes {self.size / 1e9:.1f} GB with all its arrays; the page shows runs of "
                f"at most {MOST_BYTES / 1e9:.1f} GB: shorten the prompts"
            )

    def run(self, which: What | str) -> Run:
        """The run "clean" or "corrupted", or that of a cell, with logits."""
        return self.patched([which])[0] if isinstance(which, What) else self._finished[which]

    @functools.cached_property
    def _finished(self) -> dict[str, Run]:
        """The two unpatched runs, with ln_final and logits."""
        runs = self.runs()
        assert runs.corrupted is not None
        both = finished(self.model, [runs.clean]) + finished(self.model, [runs.corrupted])  # perhaps of two lengths
        return dict(zip(("clean", "corrupted"), both, strict=True))

    # ---- patched runs ---------------------------------------------------------------------------

    def case(self, site: str, direction: str, metric: str) -> Case:
        """One direction of the experiment, with the metrics of both runs."""
        check_direction(direction)
        runs, name = self.runs(site), (direction, metric)
        if name not in self._cases:
            self._cases[name] = make_case(runs, direction, [METRICS[metric]])
        return self._cases[name]

    def cells(self, what: What, metric: str | None = None) -> tuple[Case, Cells]:
        """The direction of a patch, and the assignments of every cell of its grid. metric: what measures them."""
        if what.site in ATTENTION_SITES:
            check_equal_positions(self.model, self.experiment, f"patching {what.site}", ": patch z instead")
        if metric is None:  # no cell is measured: any metric that this experiment has
            answered = None not in self.runs().tokens[2:]
            metric = "logit_diff" if answered else "kl_divergence"
        case, name = self.case(what.site, what.direction, metric), what[:4]
        if name not in self._cells:
            if len(self._cells) >= MOST_GRIDS:
                self._cells.clear()
            self._cells[name] = cells_of_patch(what.patch, case)
        return case, self._cells[name]

    def sweep(self, what: What, metric: str) -> Sweep:
        """The grid of a patch, of runs that are there already."""
        case, cells = self.cells(what, metric)
        (values,) = Running(MEMORY).values(case, [cells])
        return as_sweep(what.patch, case, cells, values, 0, None)

    def edits(self, what: What) -> list[Edit]:
        """The assignments of one cell."""
        (edits,) = self.cells(what)[1].batches
        if not 0 <= what.cell < len(edits):
            raise NanopatchError(f"cell {what.cell} does not exist: this grid has {len(edits)} cells, from 0 on")
        return list(edits[what.cell])

    def patched(self, whats: Sequence[What]) -> list[Run]:
        """The patched runs of cells of one grid, all at once. They are kept, and so are a few others."""
        wanted = [what for what in whats if what not in self._runs]
        if wanted:
            case, _ = self.cells(wanted[0])
            runs = patched_runs(self.model, case.base, [self.edits(what) for what in wanted], DRAWN)
            self._runs |= dict(zip(wanted, runs, strict=True))
            most = MOST_RUNS if MOST_RUNS * self.size <= MEMORY else 1
            for old in list(self._runs)[: -max(most, len(whats))]:
                for kept in (self._runs, self._lenses, self._top):
                    kept.pop(old, None)
        return [self._runs[what] for what in whats]

    # ---- what is read of runs -------------------------------------------------------------------

    def top(self, which: What | str) -> list[dict[str, Any]]:
        """The ten likeliest next tokens after a run."""
        if which not in self._top:
            logits = self.run(which).logits[-1]
            found = top_tokens(logits)
            texts = self.model.token_strings([token for token, _ in found])
            self._top[which] = [
                {"text": text, "id": token, "logit": float(logits[token]), "probability": p}
                for (token, p), text in zip(found, texts, strict=True)
            ]
        return self._top[which]

    def rating(self, which: What | str, token: int) -> dict[str, Any]:
        """How a run rates one token: its logit, its probability, and how many tokens are likelier."""
        logits, best = self.run(which).logits[-1], self.top(which)[0]
        logit = float(logits[token])
        probability = best["probability"] * math.exp(logit - best["logit"])  # the softmax has one denominator
        return {"logit": logit, "probability": probability, "rank": int((logits > logits[token]).sum())}

    def lenses(self, which: Sequence[What | str]) -> list[LogitLens]:
        """The logit lenses of runs. What several of them share is read once."""
        wanted = [name for name in which if name not in self._lenses]
        if wanted:
            runs = [self.run(name) for name in wanted]
            answers = self.experiment.answer, self.experiment.wrong_answer
            self._lenses |= dict(zip(wanted, logit_lenses(self.model, runs, *answers), strict=True))
        return [self._lenses[name] for name in which]

    def direct(self, which: What | str) -> DirectAttribution:
        """The direct logit attribution of a run, at its last token."""
        return direct_logit_attribution(
            self.model, self.run(which), self.experiment.answer, self.experiment.wrong_answer
        )

    def scores(self, metric: str) -> EdgeScores:
        """The scores of all edges: EAP-IG with 5 steps, of clean patched into corrupted."""
        if metric not in self._scores:
            check_equal_positions(self.model, self.experiment, "edge attribution")
            case = self.case("resid_pre", "denoise", metric)
            self._scores[metric] = score_edges(self.model, case, 5)
        return self._scores[metric]

    def faithfulness(self, metric: str, n: int) -> Faithfulness:
        """The metric when only the circuit of the best n edges carries the clean run."""
        case = self.case("resid_pre", "noise", metric)
        return measure_circuits(self.model, case, [edge_pairs(self.scores(metric).circuit(n))])[0]


def finished(model: Model, runs: Sequence[Run]) -> list[Run]:
    """Runs of prompts of one length, with ln_final, and with the logits of the last token.

    Only these logits are known. They stand at every position, in memory once.
    """
    resid = np.stack([run.resid_post[-1] for run in runs])  # (n_runs, n_tokens, d_model)
    ln_final = next(model.steps_from(model.n_layer, resid, sites="ln_final")).array  # (n_runs, n_tokens, d_model)
    last = model.unembed(resid[:, -1:])  # (n_runs, 1, n_vocab)
    whole = []
    for run, normed, logits in zip(runs, ln_final, last, strict=True):
        arrays = {name: np.asarray(getattr(run, name)) for name in run.names}
        arrays |= {"ln_final": normed.copy(), "logits": np.broadcast_to(logits, (len(normed), model.n_vocab))}
        whole.append(Run(arrays, run.tokens, model))
    return whole


def patched_runs(model: Model, base: Run, cells: Sequence[Sequence[Edit]], sites: Iterable[str]) -> list[Run]:
    """A run with the assignments of each cell, recording `sites`, as a loop over `model.steps` makes them one by one.

    They run as a batch. What a patch cannot reach, before its first layer and its first position, is the base run's own
    array, to the last bit.
    """
    tokens, kept = np.asarray(base.tokens), {*sites}
    assigned = {edit.site for edits in cells for edit in edits}

    def edited() -> Any:
        for site in model.steps(np.stack([tokens] * len(cells)), sites=kept | assigned):
            look()
            for run, edits in zip(site.array, cells, strict=True):
                for edit in edits:
                    if (edit.site, edit.layer) == (site.name, site.layer):
                        edit.assign(run, 0)
            yield site

    batch = record(edited(), sites=kept)
    runs = []
    for i, edits in enumerate(cells):
        arrays = {name: np.array(getattr(batch, name)[:, i]) for name in batch.names}
        for name, array in arrays.items():
            keep_unreached(name, array, getattr(base, name), edits)
        runs.append(Run(arrays, base.tokens, model))
    return finished(model, runs)


def keep_unreached(name: str, array: Array, base: Array, edits: Sequence[Edit]) -> None:
    """Put the base run's own values wherever a patch cannot reach: earlier layers, sites and positions."""
    first = min((BLOCK_SITES.index(edit.site) + len(BLOCK_SITES) * edit.layer for edit in edits), default=None)
    position = min((position for edit in edits for position in edit.positions), default=None)
    if first is None or position is None:
        array[...] = base
        return
    layer = max(0, -(-(first - BLOCK_SITES.index(name)) // len(BLOCK_SITES)))  # the first layer in which it may differ
    array[:layer] = base[:layer]
    rows, own = (a.swapaxes(1, 2) if name in ATTENTION_SITES else a for a in (array, base))
    rows[:, :position] = own[:, :position]  # (n_layer, n_tokens, ...): positions, or those of queries
