"""Results as the page shows them: the values and the arrays of a reply (see `nanopatch.page.pack`)."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..page.pack import half, pooled
from ..types import Array
from .attention import Attention
from .direct import DirectAttribution
from .edges import EdgeScores, Faithfulness
from .lens import LogitLens
from .sweep import Sweep

#: Patterns of more tokens are drawn in fewer cells.
MOST_TOKENS = 64


class Shown(NamedTuple):
    """What a reply holds: values that JSON can hold, and arrays."""

    values: dict[str, Any]
    arrays: dict[str, Array]


def of_sweep(sweep: Sweep) -> Shown:
    """The grid laid out flat, raw and normalised, and for each cell its number in the grid."""
    raw, normalised = sweep.matrix(normalised=False), sweep.matrix()
    numbered = sweep.flat(np.arange(sweep.grid.size).reshape(sweep.grid.shape))
    values = {
        "title": sweep.title,
        "metric": sweep.metric,
        "unit": raw.unit,
        "scale": sweep.scale,
        "base": sweep.base,
        "donor": sweep.donor,
        "base_value": sweep.base_value,
        "donor_value": sweep.donor_value,
        "rows": raw.rows,
        "rows_title": raw.rows_title,
        "columns": raw.columns,
        "columns_title": raw.columns_title,
        "notes": sweep.notes,
        "has_scale": sweep.has_scale,
        "ends": {"raw": raw.scale, "normalised": normalised.scale},
    }
    unchanged = np.zeros(raw.values.shape, bool) if raw.unchanged is None else raw.unchanged
    arrays = {
        "values": raw.values,
        "normalised": sweep.flat(sweep.normalised),
        "unchanged": unchanged & np.isfinite(raw.values),
        "blank": sweep.flat(sweep.blank()),
        "cell": numbered,
    }
    return Shown(values, arrays)


def of_attention(result: Attention) -> Shown:
    """Every head's pattern, of many tokens in fewer cells: the largest of neighbours."""
    values, n = result.values, 1
    for axis in (1, 2):
        values, n = pooled(values, MOST_TOKENS, axis)
    about = {"tokens": list(result.tokens), "heads": [list(head) for head in result.heads]}
    return Shown({**about, "exact": n == 1, "pooled": n}, {"values": half(values)})


def of_lens(lens: LogitLens) -> Shown:
    """Every cell's likeliest token, as a number into the list of different ones, and what is known of the answer."""
    texts = list(dict.fromkeys(text for row in lens.predicted for text in row))
    numbers = {text: number for number, text in enumerate(texts)}
    arrays = {"text": np.array([[numbers[text] for text in row] for row in lens.predicted], np.uint16)}
    for name in ("probability", "answer_probability", "rank", "logit_diff"):
        array = getattr(lens, name)
        if array is not None:
            arrays[name] = array.astype(np.float32)
    values = {
        "tokens": list(lens.tokens),
        "rows": lens.rows,
        "columns": lens.matrix().columns,
        "texts": texts,
        "answer": lens.answer,
        "wrong_answer": lens.wrong_answer,
        "notes": lens.notes,
    }
    return Shown(values, arrays)


def of_direct(result: DirectAttribution) -> Shown:
    """The parts, the heads as a matrix, and the sum after each point of the pass."""
    values = {
        "title": result.title,
        "names": list(result.names),
        "total": result.total,
        "cumulative_names": list(result.cumulative),
        "notes": result.notes,
    }
    arrays = {"values": result.values, "heads": result.heads, "cumulative": np.array([*result.cumulative.values()])}
    return Shown(values, arrays)


def of_circuit(scores: EdgeScores, n: int, kept: Faithfulness) -> Shown:
    """The circuit of the best n edges, and the metric of the model when these edges alone carry the clean run."""
    values = {
        "title": scores.title,
        "metric": scores.metric,
        "n_all": len(scores.edges),
        "edges": [[str(edge.sender), str(edge.receiver), edge.score] for edge in scores.circuit(n)],
        "senders": list(map(str, scores.senders)),
        "receivers": list(map(str, scores.receivers)),
        "value": kept.value,
        "normalised": kept.normalised,
        "baseline_clean": kept.baseline_clean,
        "baseline_corrupted": kept.baseline_corrupted,
        "notes": scores.notes,
    }
    return Shown(values, {})
