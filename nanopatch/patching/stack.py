"""Many patched runs of one prompt at the price of what they change.

A patched run differs from the run it is patched into (the base run) only from the patched layer on and
only from the patched position on, for attention looks backwards alone. So each patch starts as the base
run's own rows at its layer, from its position to the end, and is computed from there; the rows of all
patches stand in one tall matrix, so that each weight is read once a layer for all of them. Keys and
values of the positions before come from the base run.
"""

import itertools
from typing import NamedTuple

import numpy as np

from ..model.packing import Segment
from ..model.sites import ATTENTION_SITES, BLOCK_SITES

#: Sites of a block that come after the keys and values are read: in the last block they reach the last
#: token's logits only through the last position.
AFTER_KEYS = frozenset(BLOCK_SITES) - {"resid_pre", "k_input", "v_input", "k", "v"}
#: What must be known of the base run.
BASE_SITES = ("resid_pre", "k", "v")
#: Bytes that a stack may take unless told otherwise.
MEMORY = 2**28


class Edit(NamedTuple):
    """One assignment: at a site of a layer, `array[positions, within] = source[positions, within]`.

    source: an array shaped as the site's own for one prompt. positions: a list of the prompt's positions,
    increasing; for `scores` and `pattern`, of the queries. within: a list of heads of q, k, v, z, scores
    and pattern, or of columns of the others; None for all. keys: a list of key positions, for `scores`
    and `pattern`; None for all.
    """

    site: str
    layer: int
    source: np.ndarray
    positions: list
    within: list = None
    keys: list = None

    def index(self, offset=0):
        """Where it writes, as an index into one run's array whose positions begin at `offset`."""
        rows = np.array(self.positions, int) - offset
        if self.site in ATTENTION_SITES:
            n_head, _, n_key = self.source.shape
            heads = range(n_head) if self.within is None else self.within
            return np.ix_(heads, rows, range(n_key) if self.keys is None else self.keys)
        return (rows,) if self.within is None else np.ix_(rows, self.within)

    def assign(self, array, offset):
        """Assign into one run's array whose positions begin at `offset`."""
        array[self.index(offset)] = self.source[self.index()]


def reach(model, edits, n_tokens, last_only):
    """The edits that can change the logits that will be read, and the first position they change, or None.

    Decided by the causal mask: in the last block, what comes after the keys and values reaches the last
    position's logits from that position alone. last_only: only the last position's logits will be read.
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
    return kept, min((edit.positions[0] for edit in kept), default=None)


def patched_resids(model, base, patches, *, last_only=True, memory=MEMORY):
    """Run every patch to the end of the last block: yields (number of the patch, first position, rows).

    base: the run patched into, a record of `BASE_SITES` at least. patches: a list of lists of `Edit`.
    rows: the residual stream after the last block from that position on, (n_rows, d_model), or with
    last_only of the last position, (1, d_model). Patches that can change nothing are left out. memory:
    bytes that the stack may take; more patches than fit are run one stack after another.
    """
    n_tokens = base.resid_pre.shape[1]
    jobs = []
    for number, edits in enumerate(patches):
        edits, start = reach(model, edits, n_tokens, last_only)
        if edits:
            jobs.append(Job(number, start, min(edit.layer for edit in edits), edits))
    jobs.sort(key=lambda job: job.layer)  # those that start late share a stack that starts late
    for stack in split(jobs, n_tokens, bytes_per_row(model, n_tokens), memory):
        yield from run_stack(model, base, stack, last_only)


class Job(NamedTuple):
    """One patched run: computed from block `layer` on, from position `start` on."""

    number: int
    start: int
    layer: int
    edits: list


def bytes_per_row(model, n_tokens):
    """About what one row of the stack takes at the fullest moment of a block, temporaries included."""
    widths = 8 * model.d_model + 2 * model.d_mlp + 2 * model.n_head * n_tokens
    return widths * model.dtype.itemsize


def split(jobs, n_tokens, row_bytes, memory):
    """Jobs in lists whose rows together fit into `memory` bytes; one job alone always may."""
    stack, rows = [], 0
    for job in jobs:
        n_rows = n_tokens - job.start
        if stack and (rows + n_rows) * row_bytes > memory:
            yield stack
            stack, rows = [], 0
        stack.append(job)
        rows += n_rows
    if stack:
        yield stack


def run_stack(model, base, jobs, last_only):
    """Run some jobs together, block by block; yields as `patched_resids`."""
    n_tokens = base.resid_pre.shape[1]
    jobs = sorted(jobs, key=lambda job: job.start)  # runs of one length stand together: one segment
    resids = [None] * len(jobs)  # each run's rows of the residual stream, (n_tokens - start, d_model)
    for layer in range(min(job.layer for job in jobs), model.n_layer):
        for i, job in enumerate(jobs):
            if job.layer == layer:
                resids[i] = base.resid_pre[layer, job.start :]
        running = [i for i, job in enumerate(jobs) if job.layer <= layer]
        rows = row_ranges([len(resids[i]) for i in running])

        # In the last block, if only the last logits are read, only each run's last row attends.
        last = last_only and layer == model.n_layer - 1
        query_rows = row_ranges([1] * len(running)) if last else rows
        query_start = [n_tokens - 1 if last else jobs[i].start for i in running]

        edits = [(edit, run) for run, i in enumerate(running) for edit in jobs[i].edits if edit.layer == layer]
        for site in model.block_steps(
            layer,
            np.concatenate([resids[i] for i in running]),
            sites={"resid_post", *(edit.site for edit, _ in edits)},
            parts=segments([jobs[i].start for i in running], rows, query_rows, base.k[layer], base.v[layer]),
            queries=[span.stop - 1 for span in rows] if last else None,
        ):
            for edit, run in edits:
                if edit.site != site.name:
                    continue
                if site.name in ATTENTION_SITES:
                    if run in site.part.runs:
                        edit.assign(site.array[site.part.runs.index(run)], query_start[run])
                elif site.name in AFTER_KEYS:
                    edit.assign(site.array[query_rows[run]], query_start[run])
                else:
                    edit.assign(site.array[rows[run]], jobs[running[run]].start)
        for run, i in enumerate(running):
            resids[i] = site.array[query_rows[run]]
    for job, resid in zip(jobs, resids, strict=True):
        yield job.number, n_tokens - len(resid), resid


def row_ranges(lengths):
    """Where runs of these lengths stand, one after the other: a list of slices."""
    ends = np.cumsum(lengths).tolist()
    return [slice(end - length, end) for length, end in zip(lengths, ends, strict=True)]


def segments(starts, rows, query_rows, k, v):
    """One `Segment` for each run of equal starts; k, v: the base run's keys and values of one layer."""
    parts = []
    for start, group in itertools.groupby(range(len(starts)), key=starts.__getitem__):
        runs = list(group)
        first, last = runs[0], runs[-1]
        parts.append(
            Segment(
                runs=range(first, last + 1),
                rows=slice(rows[first].start, rows[last].stop),
                query_rows=slice(query_rows[first].start, query_rows[last].stop),
                past_k=k[:start],
                past_v=v[:start],
            )
        )
    return parts
