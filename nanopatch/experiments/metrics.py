"""What is measured of a run: functions of its logits.

Each says which logits it needs, so that a sweep computes no others, and is measured in the same way on
the unpatched runs and on every patched one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..errors import NanopatchError
from ..model.layers import softmax


class Target(NamedTuple):
    """What a metric may compare logits with."""

    answer: int  # token ids
    wrong_answer: int
    tokens: np.ndarray  # (n_tokens,): the prompt of the run patched into
    clean_logits: np.ndarray  # (n_vocab,): of the clean run, at its last token


#: Which logits a metric may ask for.
NEEDS = ("answers", "last", "all")


@dataclass(frozen=True)
class Metric:
    """function(logits, target) -> a number.

    needs: the logits it is given. "answers": (2,), of the answer and the wrong answer at the last
    token; "last": (n_vocab,), at the last token; "all": (n_tokens, n_vocab). gradient(logits, target):
    its derivative with respect to those logits, shaped as they are; None if it has none. by_differences:
    whether that is made of finite differences. The logits a metric is given are read-only.
    """

    name: str
    needs: str
    function: Callable
    gradient: Callable = None
    by_differences: bool = False

    def __post_init__(self):
        if self.needs not in NEEDS:
            raise NanopatchError(f"the metric {self.name} needs {self.needs!r}: one of {', '.join(NEEDS)}")


def logit_diff(logits, target):
    """Logit difference: how much the answer is preferred to the wrong one."""
    return float(logits[0]) - float(logits[1])


def log_probability(logits, target):
    """Natural logarithm of the answer's probability as the next token."""
    return log_softmax(logits)[target.answer]


def probability(logits, target):
    """Probability of the answer as the next token."""
    return np.exp(log_softmax(logits)[target.answer])


def rank(logits, target):
    """How many tokens are likelier than the answer: 0 if it is the prediction."""
    return np.sum(logits > logits[target.answer])


def kl_divergence(logits, target):
    """KL divergence, in nats, from the clean run's next-token distribution: sum p_clean log(p_clean / p)."""
    clean = log_softmax(target.clean_logits)
    return np.sum(np.exp(clean) * (clean - log_softmax(logits)))


def cross_entropy(logits, target):
    """Mean over positions of -log p(the token that comes next), in nats.

    The tokens are those of the run patched into, for every run that is measured.
    """
    if len(target.tokens) < 2:
        raise NanopatchError("cross_entropy needs a prompt of two tokens or more: of one there is nothing to predict")
    logs = np.array([log_softmax(row)[token] for row, token in zip(logits[:-1], target.tokens[1:], strict=True)])
    return -logs.mean()


def log_softmax(logits):
    """Natural logarithms of the softmax, in float64: (n_vocab,) to (n_vocab,)."""
    shifted = logits.astype(np.float64) - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


def logit_diff_gradient(logits, target):
    return np.array([1.0, -1.0])


def log_probability_gradient(logits, target):
    return np.eye(1, len(logits), target.answer)[0] - np.exp(log_softmax(logits))


def probability_gradient(logits, target):
    return probability(logits, target) * log_probability_gradient(logits, target)


def kl_divergence_gradient(logits, target):
    return np.exp(log_softmax(logits)) - np.exp(log_softmax(target.clean_logits))


def cross_entropy_gradient(logits, target):
    gradient = np.exp([log_softmax(row) for row in logits])
    gradient[np.arange(len(logits) - 1), target.tokens[1:]] -= 1
    gradient[-1] = 0  # nothing comes after the last token
    return gradient / (len(logits) - 1)


METRICS = {
    metric.name: metric
    for metric in (
        Metric("logit_diff", "answers", logit_diff, logit_diff_gradient),
        Metric("log_probability", "last", log_probability, log_probability_gradient),
        Metric("probability", "last", probability, probability_gradient),
        Metric("rank", "last", rank),  # a count: flat, with jumps
        Metric("kl_divergence", "last", kl_divergence, kl_divergence_gradient),
        Metric("cross_entropy", "all", cross_entropy, cross_entropy_gradient),
    )
}


def as_metric(metric):
    """A `Metric` of a name, or of any function of the logits (n_tokens, n_vocab) that returns a number."""
    if isinstance(metric, Metric):
        return metric
    if isinstance(metric, str):
        if metric not in METRICS:
            raise NanopatchError(
                f"unknown metric {metric!r}; known are {', '.join(METRICS)}, or give a function of the logits"
            )
        return METRICS[metric]
    if callable(metric):
        name = getattr(metric, "__name__", "metric")
        function, gradient = lambda logits, target: metric(logits), differences(metric)
        return Metric(name, "all", function, gradient, by_differences=True)
    raise NanopatchError(f"a metric is a name ({', '.join(METRICS)}) or a function of the logits, not {metric!r:.60}")


def differences(function):
    """A gradient for a function of the logits that brings none: central differences, one logit after another.

    That takes two calls of the function for each logit that counts. Those that do not are passed over many at a time:
    moved all at once, each by an amount of its own, they leave the function's value as it was.
    """

    def gradient(logits, target):
        from tqdm import tqdm

        moved, slopes = np.array(logits, np.float64), np.zeros(logits.size)
        flat, shown = moved.reshape(-1), read_only(moved)
        step, value = 1e-4 * max(1.0, np.abs(logits).max()), float(function(shown))
        amounts = step * np.random.default_rng(0).uniform(0.5, 1, logits.size)

        def value_with(part, change):
            before = flat[part].copy()
            flat[part] += change
            changed = float(function(shown))
            flat[part] = before
            return changed

        parts = [slice(0, logits.size)] if np.isfinite(value) else []
        with tqdm(total=logits.size, unit=" logits", disable=None, delay=1, leave=False) as bar:
            while parts:
                part = parts.pop()
                size = part.stop - part.start
                if size > 1 and value_with(part, amounts[part]) != value:
                    middle = part.start + size // 2
                    parts += [slice(part.start, middle), slice(middle, part.stop)]
                    continue
                if size == 1:
                    slopes[part] = (value_with(part, step) - value_with(part, -step)) / (2 * step)
                bar.update(size)
        return slopes.reshape(logits.shape) if np.isfinite(value) else np.full(logits.shape, np.nan)

    return gradient


def read_only(array):
    """A view of it through which nothing can be written."""
    view = array.view()
    view.flags.writeable = False
    return view


def as_metrics(metric):
    """A list of `Metric` of one or several; NanopatchError for none, or two of one name."""
    metrics = [as_metric(m) for m in (metric if isinstance(metric, (list, tuple)) else [metric])]
    names = [m.name for m in metrics]
    if not names or len(set(names)) < len(names):
        raise NanopatchError(f"metrics need names of their own, and at least one is needed: not {names}")
    return metrics


def measure(metrics, logits, target, answers_only=False):
    """Every metric's value: [float]. logits: (n_tokens, n_vocab), or (1, 2) of the answers where `answers_only`."""
    logits = read_only(logits)  # they are used again, for every metric and patch
    answers = logits[-1] if answers_only else logits[-1, [target.answer, target.wrong_answer]]
    given = {"answers": answers, "last": logits[-1], "all": logits}
    values = [metric.function(given[metric.needs], target) for metric in metrics]
    for metric, value in zip(metrics, values, strict=True):
        if np.ndim(value) != 0 or not isinstance(value, (int, float, np.number)):
            raise NanopatchError(f"the metric {metric.name} must return one number, not {value!r:.60}")
    return [float(value) for value in values]


def metric_gradient(metric, logits, target):
    """Derivative of a metric with respect to all logits of a run: (n_tokens, n_vocab), as them.

    A function of one's own is differentiated by differences; `Metric("name", "all", function, gradient)`
    gives it a derivative. Raises NanopatchError where there is none, or it is not finite.
    """
    if metric.gradient is None:
        with_one = ", ".join(name for name, known in METRICS.items() if known.gradient)
        raise NanopatchError(
            f"{metric.name} has no derivative: give one that has ({with_one}), or a Metric with its own"
        )
    at = {"answers": (-1, [target.answer, target.wrong_answer]), "last": -1, "all": ...}[metric.needs]
    given = read_only(logits)[at]
    slope = np.asarray(metric.gradient(given, target))
    if slope.shape != given.shape:
        raise NanopatchError(f"the gradient of {metric.name} has shape {slope.shape}; its logits have {given.shape}")
    gradient = np.zeros_like(logits)
    gradient[at] = slope
    if not np.isfinite(gradient).all():
        raise NanopatchError(f"{metric.name} has no finite derivative here")
    return gradient


def check_slope(metric, value, gradient):
    """NanopatchError where a metric is 0 and flat, up to rounding: its first-order estimate would be rounding alone.

    So kl_divergence is in the clean run, its minimum. gradient: of `metric_gradient`, where the metric is `value`.
    """
    slope = np.abs(gradient).max()
    if abs(value) <= slope <= 100 * np.finfo(gradient.dtype).eps:
        raise NanopatchError(
            f"{metric.name} is 0 in the run patched into, and so is its derivative, which then says nothing: take "
            "more steps (integrated gradients), another direction or another metric"
        )


def top_tokens(logits, k=10):
    """The k most likely next tokens, likeliest first: [(token id, probability)]. logits: (n_vocab,)."""
    probabilities = softmax(logits.astype(np.float64))
    best = np.argsort(-probabilities, kind="stable")[:k]
    return [(int(token), float(probabilities[token])) for token in best]
