"""Which tokens of a prompt a metric depends on: derivatives with respect to their embeddings."""

from dataclasses import dataclass

import numpy as np

from ..model.backward import backward
from ..errors import NanopatchError
from ..experiments.experiment import Experiment
from ..experiments.metrics import Target, as_metric, check_slope, measure, metric_gradient, top_tokens
from ..results.sweep import visible


@dataclass(frozen=True, eq=False)
class Saliency:
    """How a metric depends on each token's embedding; arrays are float64 (n_tokens,).

    norm: length of the metric's derivative with respect to `resid_pre` of block 0 at each position (Simonyan et al.
    2013, arXiv 1312.6034). product: that derivative times the token's embedding, summed ("gradient x input";
    Shrikumar et al. 2016, arXiv 1605.01713).
    """

    tokens: tuple
    metric: str
    value: float
    norm: np.ndarray
    product: np.ndarray

    def __str__(self):
        margin = max(len(visible(token)) for token in self.tokens) + 5
        lines = [f"{self.metric} {self.value:.3f}", f"{'':{margin}}      norm  gradient x embedding"]
        for i, token in enumerate(self.tokens):
            lines.append(f"{i:>3} {visible(token):{margin - 4}}{self.norm[i]:10.3f}{self.product[i]:22.3f}")
        return "\n".join(lines)


def saliency(model, prompt, metric="logit_diff"):
    """The metric's derivative with respect to the embedding of each token of a prompt: `Saliency`.

    prompt: an `Experiment`, of which the clean prompt runs; or text or token ids, the likeliest next token being
    the answer then and the second likeliest the wrong answer. Any other array's gradient x activation falls out of
    the same record: `run.z * model.backward(run, d_logits).z`.
    """
    if isinstance(prompt, Experiment):
        tokens, _, answer, wrong_answer = prompt.tokens(model)
    else:
        tokens, answer, wrong_answer = model.tokenize(prompt), None, None
    if tokens.ndim != 1:
        raise NanopatchError(f"saliency is of one prompt, not of a batch of {len(tokens)}")
    metric, run = as_metric(metric), model.run(tokens)
    if answer is None:
        (answer, _), (wrong_answer, _) = top_tokens(run.logits[-1], 2)
    target = Target(answer, wrong_answer, tokens, run.logits[-1])
    (value,) = measure([metric], run.logits, target)
    d_logits = metric_gradient(metric, run.logits, target)
    check_slope(metric, value, d_logits)
    gradient = backward(model, run, d_logits, "resid_pre").resid_pre[0].astype(float)
    product = (gradient * model.wte[tokens]).sum(axis=-1)  # (n_tokens,)
    return Saliency(tuple(model.token_strings(tokens)), metric.name, value, np.linalg.norm(gradient, axis=-1), product)
