"""Many patched runs of one prompt, where only what they change is computed.

A patched run differs from the run it is patched into (the base run) only from the patched layer on and only from the
patched position on, because attention only looks backwards. So each patched run starts as the base run's own rows at
its layer, from its position to the end. The rows of all runs stand in one tall matrix, so that each weight is read
only once for all. Keys and values of the positions before come from the base run.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ..model.gpt2 import Model
from ..model.packing import Rows, Segment
from ..model.sites import ATTENTION_SITES, BLOCK_SITES, Run, Site
from ..types import Array

#: Sites of a block that come after the keys and values are read. In the last block they reach the last token's
#: logits only through the last position.
AFTER_KEYS = frozenset(BLOCK_SITES) - {"resid_pre", "k_input", "v_input", "k", "v"}
#: The sites that the base run must record.
BASE_SITES = ("resid_pre", "k", "v")
#: Bytes that a stack may take by default.
MEMORY = 2**28


class Edit(NamedTuple):
    """One assignment: at a site of a layer, `array[positions, within] = donor[positions, within]`.

    donor: an array shaped as the site's own for one prompt. positions: a list of the prompt's positions,
    increasing; for `scores` and `pattern`, of the queries. within: a list of heads of q, k, v, z, scores
    and pattern, or of columns of the others; None for all. keys: a list of key positions, for `scores`
    and `pattern`; None for all. draw: where several donors are drawn from, the number of this one.
    """

    site: str
    layer: int
    donor: Array
    positions: Sequence[int]
    within: Sequence[int] | None = None
    keys: Sequence[int] | None = None
    draw: int = 0

    def where(self, offset: int = 0) -> tuple[Array, ...]:
        """Where it writes, as an index into one run's array whose positions begin at `offset`."""
        rows = np.array(self.positions, int) - offset
        if self.site in ATTENTION_SITES:
            n_head, _, n_key = self.donor.shape
            heads = np.arange(n_head) if self.within is None else np.array(self.within, int)
            return np.ix_(heads, rows, np.arange(n_key) if self.keys is None else np.array(self.keys, int))
        return (rows,) if self.within is None else np.ix_(rows, np.array(self.within, int))

    def assign(self, array: Array, offset: int) -> None:
        """The patch itself: assign into one run's array whose positions begin at `offset`."""
        array[self.where(offset)] = self.donor[self.where()]


def reach(model: Model, edits: Sequence[Edit], n_tokens: int, last_only: bool) -> tuple[list[Edit], int]:
    """The edits that can change the logits that will be read, and the first position they change.

    The causal mask decides this: in the last block, sites after the keys and values reach the last
    position's logits only from that position. last_only: only the last position's logits will be read.
    """
    kept = []
    for edit in edits:
        positions = edit.positions
        if edit.keys is not None:  # to a query, later keys are masked
            positions = [position for position in positions if position >= min(edit.keys)]
        if last_only and edit.layer == model.n_layer - 1 and edit.site in AFTER_KEYS:
            positions = [position for position in positions if position == n_tokens - 1]
        if len(positions):
            kept.append(edit._replace(positions=positions))
    return kept, min((edit.positions[0] for edit in kept), default=n_tokens)


class Job(NamedTuple):
    """One patched run: computed from block `layer` on, from position `start` on."""

    number: int
    start: int
    layer: int
    edits: list[Edit]


def patched_resids(
    model: Model, base: Run, patches: Sequence[Sequence[Edit]], *, last_only: bool = True, memory: int = MEMORY
) -> Iterator[tuple[int, int, Array]]:
    """Run every patch to the end of the last block: yields (number of the patch, first position, rows).

    base: the run patched into, a record of `BASE_SITES` at least. patches: the edits of each patch. rows: the
    residual stream after the last block from that position on, (n_rows, d_model), or with last_only at the last
    position, (1, d_model). Patches that can change nothing are left out. memory: bytes that a stack may take; if not
    all patches fit, there are several stacks.
    """
    n_tokens = base.resid_pre.shape[1]
    jobs = []
    for number, given in enumerate(patches):
        edits, start = reach(model, given, n_tokens, last_only)
        if edits:
            jobs.append(Job(number, start, min(edit.layer for edit in edits), edits))
    jobs.sort(key=lambda job: job.layer)  # those that start late share a stack that starts late
    for stack in split(jobs, n_tokens, bytes_per_row(model, n_tokens), memory):
        yield from run_stack(model, base, stack, last_only)


def bytes_per_row(model: Model, n_tokens: int) -> int:
    """About how many bytes one row of the stack takes at the peak of a block, temporaries included."""
    widths = 8 * model.d_model + 2 * model.d_mlp + 2 * model.n_head * n_tokens
    return widths * model.dtype.itemsize


def split(jobs: Sequence[Job], n_tokens: int, row_bytes: int, memory: int) -> Iterator[list[Job]]:
    """Jobs in lists whose rows together fit into `memory` bytes. A job that does not fit stands alone."""
    stack: list[Job] = []
    rows = 0
    for job in jobs:
        n_rows = n_tokens - job.start
        if stack and (rows + n_rows) * row_bytes > memory:
            yield stack
            stack, rows = [], 0
        stack.append(job)
        rows += n_rows
    if stack:
        yield stack


def run_stack(model: Model, base: Run, jobs: Sequence[Job], last_only: bool) -> Iterator[tuple[int, int, Array]]:
    """Run some jobs together, block by block; yields what `patched_resids` does."""
    n_tokens = base.resid_pre.shape[1]
    jobs = sorted(jobs, key=lambda job: job.start)  # runs of one length stand together: one segment
    resids: list[Array] = [np.empty(0)] * len(jobs)  # each run's rows of the residual stream, (n_rows, d_model)
    for layer in range(min(job.layer for job in jobs), model.n_layer):
        for i, job in enumerate(jobs):
            if job.layer == layer:
                resids[i] = base.resid_pre[layer, job.start :]
        running = [i for i, job in enumerate(jobs) if job.layer <= layer]
        spans = row_ranges([len(resids[i]) for i in running])

        # In the last block, if only the last logits are read, only each run's last row attends.
        last = last_only and layer == model.n_layer - 1
        query_spans = row_ranges([1] * len(running)) if last else spans
        query_start = [n_tokens - 1 if last else jobs[i].start for i in running]
        rows = Rows(
            [span.stop - 1 for span in spans] if last else slice(None),
            segments([jobs[i].start for i in running], spans, query_spans, base.k[layer], base.v[layer]),
        )
        edits = [(edit, run) for run, i in enumerate(running) for edit in jobs[i].edits if edit.layer == layer]
        resid = np.concatenate([resids[i] for i in running])
        for site in model.block_steps(layer, resid, sites={"resid_post", *(edit.site for edit, _ in edits)}, rows=rows):
            for edit, run in edits:
                if (
                    edit.site == site.name
                    and (array := array_of_run(site, run, spans[run], query_spans[run])) is not None
                ):
                    after_keys = site.name in AFTER_KEYS
                    edit.assign(array, query_start[run] if after_keys else jobs[running[run]].start)
        for run, i in enumerate(running):
            resids[i] = site.array[query_spans[run]]
    for job, resid in zip(jobs, resids, strict=True):
        yield job.number, n_tokens - len(resid), resid


def array_of_run(site: Site, run: int, span: slice, query_span: slice) -> Array | None:
    """One run's part of a packed site, a view; None if it is in another segment of scores or pattern."""
    if site.name in ATTENTION_SITES:
        assert isinstance(site.segment, Segment)
        return site.array[site.segment.runs.index(run)] if run in site.segment.runs else None
    return site.array[query_span if site.name in AFTER_KEYS else span]


def row_ranges(lengths: Sequence[int]) -> list[slice]:
    """Where runs of these lengths stand, one after the other."""
    ends = np.cumsum(lengths).tolist()
    return [slice(end - length, end) for length, end in zip(lengths, ends, strict=True)]


def segments(
    starts: Sequence[int], spans: Sequence[slice], query_spans: Sequence[slice], k: Array, v: Array
) -> list[Segment]:
    """One `Segment` for each group of equal starts; k, v: the base run's keys and values of one layer."""
    found = []
    for start, group in itertools.groupby(range(len(starts)), key=starts.__getitem__):
        runs = list(group)
        first, last = runs[0], runs[-1]
        found.append(
            Segment(
                runs=range(first, last + 1),
                rows=slice(spans[first].start, spans[last].stop),
                query_rows=slice(query_spans[first].start, query_spans[last].stop),
                past_k=k[:start],
                past_v=v[:start],
            )
        )
    return found
