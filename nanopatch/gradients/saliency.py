"""Which tokens of a prompt a metric depends on: derivatives with respect to their embeddings."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ..experiments.experiment import NAMED, Experiment
from ..experiments.metrics import Target, as_metric, check_slope, measure, metric_gradient
from ..files import Source
from ..model.backward import backward
from ..model.gpt2 import Model
from ..model.layers import top_tokens
from ..patching.average import check_model
from ..patching.case import check_answers, predict
from ..results.saliency import Saliency
from ..types import Prompt


def saliency(model: Model, prompt: Prompt | Experiment, *, metric: Any = "logit_diff") -> Saliency:
    """The metric's derivative with respect to the embedding of each token of a prompt.

    For any other array, such as z, gradient x activation is `run.z * model.backward(run, d_logits).z`.

    Parameters
    ----------
    model : Model
    prompt : Experiment, its name, str, or token ids
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
    check_model(model)
    asked: Any = NAMED.get(prompt, prompt) if isinstance(prompt, str) else prompt
    experiment = asked if isinstance(asked, Experiment) else Experiment(asked, asked)
    experiment = replace(experiment, corrupted=experiment.clean)  # only the clean prompt is run
    tokens, measured = experiment.tokens(model), as_metric(metric)
    run = model.run(tokens.clean)
    if tokens.answer is None:
        (answer, _), (wrong_answer, _) = top_tokens(run.logits[-1], 2)
        tokens = tokens._replace(answer=answer, wrong_answer=wrong_answer)
    check_answers([measured], tokens)
    target = Target(tokens.answer, tokens.wrong_answer, tokens.clean, run.logits[-1])
    (value,) = measure([measured], run.logits, target)
    d_logits = metric_gradient(measured, run.logits, target)
    check_slope(measured, np.abs(d_logits).max(), value)
    gradient = backward(model, run, d_logits, "resid_pre").resid_pre[0].astype(float)
    product = (gradient * model.wte[tokens.clean]).sum(axis=-1)  # (n_tokens,)
    return Saliency(
        tokens=tuple(model.token_strings(tokens.clean)),
        metric=measured.name,
        value=value,
        norm=np.linalg.norm(gradient, axis=-1),
        product=product,
        source=model.source or Source("unnamed"),
        ids=tuple(tokens.clean.tolist()),
        prediction=predict(model, experiment, tokens, run.logits[-1]),
    )
