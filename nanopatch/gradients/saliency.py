"""Which tokens of a prompt a metric depends on: derivatives with respect to their embeddings."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import NanopatchError
from ..experiments.experiment import Experiment
from ..experiments.metrics import Target, as_metric, check_slope, measure, metric_gradient, top_tokens
from ..model.backward import backward
from ..model.gpt2 import Model
from ..results.saliency import Saliency
from ..types import Prompt


def saliency(model: Model, prompt: Prompt | Experiment, *, metric: Any = "logit_diff") -> Saliency:
    """The metric's derivative with respect to the embedding of each token of a prompt.

    For any other array, such as z, gradient x activation is `run.z * model.backward(run, d_logits).z`.

    Parameters
    ----------
    model : Model
    prompt : Experiment, str, or token ids
        An experiment's clean prompt is run. For a prompt, the likeliest next token is the answer and the second
        likeliest is the wrong answer.
    metric : str, Metric or callable
        As for `nanopatch.sweep`; it needs a derivative.

    Examples
    --------
    >>> import nanopatch
    >>> result = nanopatch.saliency(nanopatch.load("nano"), nanopatch.experiments.MICHELLE)
    >>> result.tokens[result.norm.argmax()]
    ' Jones'
    """
    if isinstance(prompt, Experiment):
        given = prompt.tokens(model)
        tokens, answers = given.clean, given[2:] if given.answer is not None else None
    else:
        tokens, answers = model.tokenize(prompt), None
    if tokens.ndim != 1:
        raise NanopatchError(f"saliency takes one prompt, not a batch of {len(tokens)}")
    measured, run = as_metric(metric), model.run(tokens)
    if answers is None:
        (answer, _), (wrong_answer, _) = top_tokens(run.logits[-1], 2)
        answers = answer, wrong_answer
    target = Target(*answers, tokens, run.logits[-1])
    (value,) = measure([measured], run.logits, target)
    d_logits = metric_gradient(measured, run.logits, target)
    check_slope(measured, [d_logits], value)
    gradient = backward(model, run, d_logits, "resid_pre").resid_pre[0].astype(float)
    product = (gradient * model.wte[tokens]).sum(axis=-1)  # (n_tokens,)
    return Saliency(
        tokens=tuple(model.token_strings(tokens)),
        metric=measured.name,
        value=value,
        norm=np.linalg.norm(gradient, axis=-1),
        product=product,
        ids=tuple(tokens.tolist()),
    )
