"""Many patched runs of one prompt, where only what they change is computed.

A patched run differs from the run it is patched into (the base run) only from the patched layer on and only from the
patched position on, because attention only looks backwards. So each patched run starts as the base run's own rows at
its layer, from its position to the end. The rows of all runs stand in one tall matrix, so that each weight is read
only once for all. Keys and values of the positions before come from the base run.

From a sweep to the assignment: `sweep` asks a `Question`; `carry_out` makes the cells, lists of `Edit`;
`measure_patches` gives them to `patched_resids`; `run_stack` stands at each site of each block and calls `Edit.assign`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ..model.gpt2 import Model
from ..model.packing import Rows, Segment
from ..model.sites import ATTENTION_SITES, Run, Site
from ..types import Array
from .edit import Edit
from .reach import AFTER_KEYS, reach

#: The sites that the base run must record.
BASE_SITES = ("resid_pre", "k", "v")
#: Bytes that a stack may take by default.
MEMORY = 2**28


class Job(NamedTuple):
    """One patched run: computed from block `layer` on, from position `start` on.

    An edit of what a block leaves is made where the next block begins; after the last block, nothing is computed.
    """

    number: int
    start: int
    layer: int
    edits: list[Edit]


def patched_resids(
    model: Model, base: Run, patches: Sequence[Sequence[Edit]], *, last_only: bool = True, memory: float = MEMORY
) -> Iterator[tuple[int, int, Array]]:
    """Run every patch to the end of the last block: yields (number of the patch, first position, rows).

    base: the run patched into, a record of `BASE_SITES` at least; with resid_post, edits of it after the last block
    need no run. patches: the edits of each patch. rows: the residual stream after the last block from that position on,
    (n_rows, d_model), or with last_only at the last position, (1, d_model). Patches that can change nothing are left
    out. memory: bytes that a stack may take; if not all patches fit, there are several stacks.
    """
    n_tokens = base.resid_pre.shape[1]
    last_begin = model.n_layer if hasattr(base, "resid_post") else model.n_layer - 1
    jobs = []
    for number, given in enumerate(patches):
        edits, start = reach(model, given, n_tokens, last_only)
        if edits:
            layer = min(edit.layer + (edit.site == "resid_post") for edit in edits)
            jobs.append(Job(number, start, min(layer, last_begin), edits))
    jobs.sort(key=lambda job: job.layer)  # those that start late share a stack that starts late
    for stack in split(jobs, n_tokens, bytes_per_row(model, n_tokens), memory):
        yield from run_stack(model, base, stack, last_only)


def bytes_per_row(model: Model, n_tokens: int) -> int:
    """About how many bytes one row of the stack takes at the peak of a block, temporaries included."""
    widths = 8 * model.d_model + 2 * model.d_mlp + 2 * model.n_head * n_tokens
    return widths * model.dtype.itemsize


def split(jobs: Sequence[Job], n_tokens: int, row_bytes: int, memory: float) -> Iterator[list[Job]]:
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
    resids: dict[int, Array] = {}  # by number, each run's rows of the residual stream, (n_rows, d_model)
    for layer in range(min(job.layer for job in jobs), model.n_layer):
        running = [job for job in jobs if job.layer <= layer]
        for job in running:
            if job.layer == layer:
                resids[job.number] = begun(job, base.resid_pre[layer])
        spans = row_ranges([len(resids[job.number]) for job in running])

        # In the last block, if only the last logits are read, only each run's last row attends.
        last = last_only and layer == model.n_layer - 1
        query_spans = row_ranges([1] * len(running)) if last else spans
        rows = Rows(
            [span.stop - 1 for span in spans] if last else slice(None),
            segments([job.start for job in running], spans, query_spans, base.k[layer], base.v[layer]),
        )
        edits = [(edit, run) for run, job in enumerate(running) for edit in job.edits if edit.layer == layer]
        resid = np.concatenate([resids[job.number] for job in running])
        for site in model.block_steps(layer, resid, sites={"resid_post", *(edit.site for edit, _ in edits)}, rows=rows):
            for edit, run in edits:
                array = array_of_run(site, run, spans[run], query_spans[run]) if edit.site == site.name else None
                if array is not None:
                    only_last_row = last and site.name in AFTER_KEYS
                    edit.assign(array, n_tokens - 1 if only_last_row else running[run].start)  # the patch
        for run, job in enumerate(running):
            resids[job.number] = np.asarray(site.array)[query_spans[run]]
    for job in jobs:
        if job.layer == model.n_layer:
            resids[job.number] = begun(job, base.resid_post[-1])[-1 if last_only else 0 :]
    for number, resid in resids.items():
        yield number, n_tokens - len(resid), resid


def begun(job: Job, resid: Array) -> Array:
    """The residual stream where a job begins, (n_rows, d_model); resid: the base run's, (n_tokens, d_model)."""
    rows: Array = np.array(resid[job.start :])
    for edit in job.edits:
        if edit.site == "resid_post" and edit.layer == job.layer - 1:
            edit.assign(rows, job.start)
    return rows


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
