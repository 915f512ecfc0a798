"""The logit lens: what the residual stream would predict, if the blocks after it were left out.

n_rows   2 n_layer + 1: before each block, between its attention and its MLP, and after the last block
n_tokens, n_vocab  as in `nanopatch.model.gpt2`
"""

from __future__ import annotations

import numpy as np

from ..files import Source
from ..model.gpt2 import Model
from ..model.sites import Run
from ..results.lens import LogitLens
from .given import Answer, answer_ids, answer_text, check_run

SITES = ("resid_pre", "resid_mid", "resid_post")


def logit_lens(model: Model, run: Run, answer: Answer = None, wrong_answer: Answer = None) -> LogitLens:
    """Read the residual stream at every layer and position with the final LayerNorm and the unembedding.

    Parameters
    ----------
    model : Model
    run : Run
        Of one prompt: clean, corrupted or patched. It holds resid_pre, resid_mid and resid_post.
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
    tokens = check_run(model, run, SITES, "logit_lens")
    ids, wrong_ids = answer_ids(model, answer), answer_ids(model, wrong_answer)
    stream = [getattr(run, name)[layer] for layer in range(model.n_layer) for name in ("resid_pre", "resid_mid")]
    stream.append(run.resid_post[-1])  # n_rows of (n_tokens, d_model)
    best, probability, answer_probability, rank, logit_diff = [], [], [], [], []
    for resid in stream:
        logits = model.unembed(resid)  # (n_tokens, n_vocab)
        highest = logits.max(axis=-1)
        sizes = np.exp(logits - highest[:, None]).sum(axis=-1, dtype=np.float64)  # softmax's denominator
        best.append(logits.argmax(axis=-1))
        probability.append(1 / sizes)
        if ids:
            answers = logits[:, ids].astype(np.float64)
            answer_probability.append((np.exp(answers - highest[:, None]) / sizes[:, None]).sum(axis=-1))
            rank.append((logits > answers.max(axis=-1, keepdims=True)).sum(axis=-1).astype(np.float64))
            if wrong_ids:
                logit_diff.append(answers.mean(axis=-1) - logits[:, wrong_ids].mean(axis=-1, dtype=np.float64))
    return LogitLens(
        tokens=tuple(model.token_strings(tokens)),
        ids=tuple(map(int, tokens)),
        predicted=tuple(tuple(model.token_strings(row)) for row in best),
        predicted_ids=tuple(tuple(map(int, row)) for row in best),
        probability=np.array(probability),
        answer=answer_text(model, ids),
        wrong_answer=answer_text(model, wrong_ids) if ids else None,
        answer_probability=np.array(answer_probability) if ids else None,
        rank=np.array(rank) if ids else None,
        logit_diff=np.array(logit_diff) if ids and wrong_ids else None,
        source=model.source or Source("unnamed"),
    )
