"""The logit lens: what the residual stream would predict, if the blocks after it were left out.

n_rows   2 n_layer + 1: before each block, between its attention and its MLP, and after the last block
n_tokens, n_vocab  as in `nanopatch.model.gpt2`
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..files import Source
from ..model.gpt2 import Model
from ..model.sites import Run
from ..results.lens import LogitLens
from ..types import Array
from .given import Answer, answer_ids, answer_text, check_run

SITES = ("resid_pre", "resid_mid", "resid_post")
#: The most bytes of logits at once. More rows at once make the product faster, and what is done with it slower.
MEMORY = 2**25


def logit_lens(model: Model, run: Run, answer: Answer = None, wrong_answer: Answer = None) -> LogitLens:
    """Read the residual stream at every layer and position with the final LayerNorm and the unembedding.

    Parameters
    ----------
    model : Model
    run : Run
        Of one prompt: clean, corrupted or patched. It holds resid_pre, resid_mid and resid_post. Edits of ln_final and
        of logits come after these, so no lens shows them.
    answer, wrong_answer : str, int or a list of them, optional
        Tokens to follow. Of a list: the probability of any, the best rank, the mean of the logits.

    Returns
    -------
    LogitLens
        `print` shows a table and `plot` the picture, layers by positions, each cell its likeliest token. `show` makes
        them show another number. Two lenses can be subtracted.

    Raises
    ------
    NanopatchError
        If the run does not hold these arrays (it says which sites to record), or an answer is not one token.

    References
    ----------
    nostalgebraist 2020, "interpreting GPT: the logit lens".

    Examples
    --------
    >>> import nanopatch
    >>> model = nanopatch.load("nano")
    >>> run = model.run("The capital of France is")
    >>> lens = nanopatch.logit_lens(model, run, " Paris", " Rome")
    >>> lens.predicted[-1][-1], lens.logit_diff.shape
    (' Paris', (9, 5))
    """
    return logit_lenses(model, [run], answer, wrong_answer)[0]


def logit_lenses(
    model: Model, runs: Sequence[Run], answer: Answer = None, wrong_answer: Answer = None
) -> list[LogitLens]:
    """A lens of each of several runs. Rows that runs share, such as what a patch leaves as it was, are read once."""
    ids, wrong_ids = answer_ids(model, answer, wrong_answer)
    run_tokens = [check_run(model, run, SITES, "logit_lens") for run in runs]
    resids = [_stream(model, run) for run in runs]  # (n_rows, n_tokens, d_model) each
    rows, places = _different_rows(np.concatenate([resid.reshape(-1, model.d_model) for resid in resids]))
    best = np.zeros(len(rows), np.int64)
    highest, probability, answer_probability, rank, logit_diff = np.zeros((5, len(rows)))
    size = max(1, MEMORY // (model.n_vocab * model.dtype.itemsize))
    for first in range(0, len(rows), size):
        part = slice(first, first + size)
        logits = model.unembed(rows[part])  # (size, n_vocab)
        answers, wrong = (logits[:, tokens].astype(np.float64) for tokens in (ids, wrong_ids))
        if wrong_ids:
            logit_diff[part] = answers.mean(axis=1) - wrong.mean(axis=1)
        # One row after another, because a row stays in the processor's cache between the steps.
        for i, row in enumerate(logits, start=first):  # (n_vocab,)
            if ids:
                rank[i] = np.count_nonzero(row > row[ids].max())
            best[i] = row.argmax()
            highest[i] = row[best[i]]
            row -= row[best[i]]
            probability[i] = 1 / np.exp(row, out=row).sum()  # softmax of the highest
        answer_probability[part] = np.exp(answers - highest[part, None]).sum(axis=1) * probability[part]
    texts = np.array(model.token_strings(best), object)
    lenses = []
    for of_run, resid in zip(run_tokens, resids, strict=True):
        own, places = np.split(places, [resid.shape[0] * resid.shape[1]])
        own = own.reshape(resid.shape[:2])  # (n_rows, n_tokens): where each cell's row was read
        lenses.append(
            LogitLens(
                tokens=tuple(model.token_strings(of_run)),
                ids=tuple(map(int, of_run)),
                predicted=tuple(map(tuple, texts[own].tolist())),
                predicted_ids=tuple(map(tuple, best[own].tolist())),
                probability=probability[own],
                answer=answer_text(model, ids),
                wrong_answer=answer_text(model, wrong_ids),
                answer_probability=answer_probability[own] if ids else None,
                rank=rank[own] if ids else None,
                logit_diff=logit_diff[own] if wrong_ids else None,
                source=model.source or Source("unnamed"),
            )
        )
    return lenses


def _stream(model: Model, run: Run) -> Array:
    """The residual stream at every point that a lens reads: (n_rows, n_tokens, d_model)."""
    inside = [getattr(run, name)[layer] for layer in range(model.n_layer) for name in ("resid_pre", "resid_mid")]
    return np.stack([*inside, run.resid_post[-1]])


def _different_rows(rows: Array) -> tuple[Array, Array]:
    """The rows of a matrix without those that are there before, and for each row where it stands among them."""
    numbers: dict[bytes, int] = {}
    places = np.array([numbers.setdefault(row.tobytes(), len(numbers)) for row in rows])
    first = np.unique(places, return_index=True)[1]
    return rows[first], places
