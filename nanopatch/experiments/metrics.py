"""Metrics: functions of a run's logits.

A metric says which logits it needs, so that a sweep computes no others. It measures the unpatched runs and the patched
runs in the same way.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ..errors import NanopatchError
from ..model.layers import top_tokens as top_tokens  # one of the ways of reading logits
from ..progress import look, progress
from ..types import Array


class Target(NamedTuple):
    """What a metric may compare logits with."""

    answer: Any  # token ids; None where the experiment has none, and no metric reads them
    wrong_answer: Any
    tokens: Array  # (n_tokens,): the prompt of the run patched into
    clean_logits: Any  # (n_vocab,): the clean run's at its last token; None if no metric needs them


#: Which logits a metric may ask for.
NEEDS = ("answers", "last", "all")

#: A metric of your own: logits (n_tokens, n_vocab) -> one number.
LogitsFunction = Callable[[Array], Any]


def _takes(function: Any, n: int) -> bool:
    """Whether it is a function that can be called with n arguments."""
    try:
        inspect.signature(function).bind(*range(n))
    except TypeError:
        return False
    except ValueError:  # a function of C, which does not say what it takes
        return True
    return True


@dataclass(frozen=True)
class Metric:
    """A function of a run's logits that returns one number, with its name and, if it has one, its derivative.

    Attributes
    ----------
    name : str
        Its name in results.
    needs : "answers", "last" or "all"
        The logits that it is given, read-only. "answers": (2,), of the answer and the wrong answer at the last token.
        "last": (n_vocab,), at the last token. "all": (n_tokens, n_vocab).
    function : callable
        function(logits, target) -> a number, where target is a `Target`.
    gradient : callable, optional
        gradient(logits, target) -> the derivative of `function` with respect to `logits`, of their shape.
        `nanopatch.attribute` needs it.
    by_differences : bool
        Whether `gradient` uses finite differences.
    reads_answers : bool
        Whether it reads `target.answer` or `target.wrong_answer`, so that the experiment needs them.

    Raises
    ------
    NanopatchError
        If `needs` is none of the three, or a function does not take (logits, target).

    Examples
    --------
    >>> import nanopatch
    >>> answer_logit = nanopatch.Metric("answer_logit", "answers", lambda logits, target: logits[0])
    >>> model, michelle = nanopatch.load("nano"), nanopatch.experiments.MICHELLE
    >>> result = nanopatch.sweep(model, michelle, metric=answer_logit)
    >>> result.metric, result.baseline_clean > result.baseline_corrupted
    ('answer_logit', True)
    """

    name: str
    needs: str
    function: Callable[[Array, Target], Any]
    gradient: Callable[[Array, Target], Any] | None = None
    by_differences: bool = False
    reads_answers: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise NanopatchError(f"a metric's name is a text, not {self.name!r:.60}")
        if self.needs not in NEEDS:
            raise NanopatchError(f"the metric {self.name} needs {self.needs!r}: give one of {', '.join(NEEDS)}")
        if not _takes(self.function, 2) or not (self.gradient is None or _takes(self.gradient, 2)):
            raise NanopatchError(
                f"the metric {self.name}: its function, and its gradient, are functions of (logits, target)"
            )


#: One metric: its name, a `Metric`, or a function of your own.
MetricLike = str | Metric | LogitsFunction


def logit_diff(logits: Array, target: Target) -> float:
    """Logit difference: the answer's logit minus the wrong answer's."""
    return float(logits[0]) - float(logits[1])


def log_probability(logits: Array, target: Target) -> float:
    """Natural logarithm of the answer's probability as the next token."""
    return log_softmax(logits)[target.answer]


def probability(logits: Array, target: Target) -> float:
    """Probability of the answer as the next token."""
    return np.exp(log_softmax(logits)[target.answer])


def rank(logits: Array, target: Target) -> int:
    """How many tokens are likelier than the answer: 0 if it is the prediction."""
    return np.sum(logits > logits[target.answer])


def kl_divergence(logits: Array, target: Target) -> float:
    """KL divergence, in nats, from the clean run's next-token distribution: sum p_clean log(p_clean / p)."""
    clean = log_softmax(target.clean_logits)
    return np.sum(np.exp(clean) * (clean - log_softmax(logits)))


def cross_entropy(logits: Array, target: Target) -> float:
    """Mean over positions of -log p(next token), in nats. The tokens are those of the run patched into."""
    if len(target.tokens) < 2:
        raise NanopatchError("cross_entropy needs a prompt of two tokens or more: one token leaves nothing to predict")
    logs = np.array([log_softmax(row)[token] for row, token in zip(logits[:-1], target.tokens[1:], strict=True)])
    return -logs.mean()


def log_softmax(logits: Array) -> Array:
    """Natural logarithms of the softmax, in float64: (n_vocab,) to (n_vocab,)."""
    shifted = logits.astype(np.float64) - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


def logit_diff_gradient(logits: Array, target: Target) -> Array:
    return np.array([1.0, -1.0])


def log_probability_gradient(logits: Array, target: Target) -> Array:
    return np.eye(1, len(logits), target.answer)[0] - np.exp(log_softmax(logits))


def probability_gradient(logits: Array, target: Target) -> Array:
    return probability(logits, target) * log_probability_gradient(logits, target)


def kl_divergence_gradient(logits: Array, target: Target) -> Array:
    return np.exp(log_softmax(logits)) - np.exp(log_softmax(target.clean_logits))


def cross_entropy_gradient(logits: Array, target: Target) -> Array:
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
        Metric("kl_divergence", "last", kl_divergence, kl_divergence_gradient, reads_answers=False),
        Metric("cross_entropy", "all", cross_entropy, cross_entropy_gradient, reads_answers=False),
    )
}


def probability_of(tokens: Sequence[int]) -> Metric:
    """Several right answers: the probability that the next token is one of them.

    Examples
    --------
    >>> import nanopatch
    >>> model, michelle = nanopatch.load("nano"), nanopatch.experiments.MICHELLE
    >>> either = nanopatch.metrics.probability_of(model.tokenize(" Jones Smith"))
    >>> round(nanopatch.sweep(model, michelle, metric=either).baseline_clean, 2)
    0.99
    """
    ids = list(dict.fromkeys(_ids(tokens)))  # each counts once
    function, gradient = partial(_probability_of, ids), partial(_probability_of_gradient, ids)
    return Metric("probability_of", "last", function, gradient, reads_answers=False)


def _probability_of(ids: list[int], logits: Array, target: Target) -> Any:
    check_vocabulary(ids, logits)
    return np.exp(log_softmax(logits)[ids]).sum()


def _probability_of_gradient(ids: list[int], logits: Array, target: Target) -> Array:
    p = np.exp(log_softmax(logits))
    return p * (np.isin(np.arange(len(p)), ids) - p[ids].sum())


def log_probability_of(tokens: Sequence[int]) -> Metric:
    """An answer of several tokens: the natural logarithm of its probability, by teacher forcing.

    Both prompts must end in all its tokens but the last. The logits at their last positions then rate each token after
    those before it, and the logarithms add up.

    Examples
    --------
    >>> import nanopatch
    >>> model = nanopatch.load("nano")
    >>> answer = model.tokenize(" Jones was a")
    >>> prompts = [f"Michelle {name} was a top-notch student. Michelle Jones was" for name in ("Jones", "Smith")]
    >>> pair = nanopatch.Experiment(*prompts)
    >>> result = nanopatch.sweep(model, pair, metric=nanopatch.metrics.log_probability_of(answer))
    >>> result.baseline_clean > result.baseline_corrupted
    True
    """
    ids = _ids(tokens)
    function, gradient = partial(_log_probability_of, ids), partial(_log_probability_of_gradient, ids)
    return Metric("log_probability_of", "all", function, gradient, reads_answers=False)


def _forced(ids: list[int], logits: Array, target: Target) -> Array:
    """The log probabilities at the positions that rate the tokens: (len(ids), n_vocab)."""
    check_vocabulary(ids, logits)
    if len(target.tokens) < len(ids) or list(target.tokens[len(target.tokens) - len(ids) + 1 :]) != ids[:-1]:
        raise NanopatchError(f"log_probability_of needs prompts that end in {ids[:-1]}: all its tokens but the last")
    return np.array([log_softmax(row) for row in logits[-len(ids) :]])


def _log_probability_of(ids: list[int], logits: Array, target: Target) -> Any:
    return _forced(ids, logits, target)[np.arange(len(ids)), ids].sum()


def _log_probability_of_gradient(ids: list[int], logits: Array, target: Target) -> Array:
    slope = np.zeros(logits.shape)
    slope[-len(ids) :] = -np.exp(_forced(ids, logits, target))
    slope[np.arange(-len(ids), 0), ids] += 1
    return slope


def _ids(tokens: Sequence[int]) -> list[int]:
    ids = [int(token) for token in tokens] if np.ndim(tokens) == 1 and np.asarray(tokens).dtype.kind in "iu" else []
    if not ids or min(ids) < 0:
        raise NanopatchError(f"token ids are expected, as model.tokenize gives them, at least one; not {tokens!r:.60}")
    return ids


def check_vocabulary(ids: Sequence[int], logits: Array) -> None:
    """NanopatchError if a token id has no logit. logits: (..., n_vocab)."""
    if max(ids) >= logits.shape[-1]:
        raise NanopatchError(f"token id {max(ids)} is outside the vocabulary, 0 to {logits.shape[-1] - 1}")


def as_metric(metric: MetricLike) -> Metric:
    """The `Metric` of a name, or of a function of the logits (n_tokens, n_vocab) that returns one number."""
    if isinstance(metric, Metric):
        return metric
    if isinstance(metric, str) and metric in METRICS:
        return METRICS[metric]
    if isinstance(metric, str) or not callable(metric):
        raise NanopatchError(
            f"unknown metric {metric!r:.60}; known are {', '.join(METRICS)}, or give a function of the logits"
        )
    name = getattr(metric, "__name__", "metric")
    if not _takes(metric, 1):
        raise NanopatchError(
            f"the metric {name} is called with one argument, the logits (n_tokens, n_vocab), and does not take it: "
            'for a function of (logits, target) give Metric(name, "all", function)'
        )
    own = partial(_of_logits, metric)
    return Metric(name, "all", own, by_finite_differences(metric), True, False)


def _of_logits(function: LogitsFunction, logits: Array, target: Target) -> Any:
    return function(logits)


def identity(metric: Metric) -> Any:
    """What tells a metric from all others, as JSON can hold it. NanopatchError if nothing does, as of a lambda."""
    if METRICS.get(metric.name) == metric:
        return metric.name
    parts: list[Any] = [metric.name, metric.needs]
    function: Any = metric.function
    while isinstance(function, partial):
        parts += [one for one in function.args if not callable(one)]
        function = next((one for one in function.args if callable(one)), function.func)
    name = getattr(function, "__qualname__", "<lambda>")
    if "<" in name:  # <lambda>, <locals>
        raise NanopatchError(
            f"a folder cannot tell the metric {metric.name} from another: define it by `def` at the top of a module"
        )
    return [*parts, f"{function.__module__}.{name}"]


def as_metrics(metric: MetricLike | Sequence[MetricLike]) -> list[Metric]:
    """One or several metrics as a list of `Metric`. Raises NanopatchError if two have one name, or there are none."""
    several: Any = metric if isinstance(metric, (list, tuple)) else [metric]
    metrics = [as_metric(one) for one in several]
    names = [m.name for m in metrics]
    if not names or len(set(names)) < len(names):
        raise NanopatchError(f"give at least one metric, and metrics with different names; not {names}")
    return metrics


def by_finite_differences(function: LogitsFunction) -> Callable[[Array, Target], Array]:
    """A gradient for a function of the logits that has none: central differences, one logit after another.

    That takes two calls of the function for each logit that it depends on. The other logits are skipped in groups:
    if all logits of a group change at once, each by its own amount, the value of the function stays the same.
    """

    return partial(_finite_differences, function)


def _finite_differences(function: LogitsFunction, logits: Array, target: Target) -> Array:
    moved, slopes = np.array(logits, np.float64), np.zeros(logits.size)
    flat, shown = moved.reshape(-1), read_only(moved)
    step, value = 1e-4 * max(1.0, np.abs(logits).max()), float(function(shown))
    if not np.isfinite(value):
        return np.full(logits.shape, np.nan)
    amounts = step * np.random.default_rng(0).uniform(0.5, 1, logits.size)

    def value_with(part: slice, change: Any) -> float:
        before = flat[part].copy()
        flat[part] += change
        changed = float(function(shown))
        flat[part] = before
        return changed

    parts = [slice(0, logits.size)]
    with progress(None, "logits", logits.size) as bar:
        while parts:
            look()
            part = parts.pop()
            size = part.stop - part.start
            if size > 1 and value_with(part, amounts[part]) != value:
                middle = part.start + size // 2
                parts += [slice(part.start, middle), slice(middle, part.stop)]
                continue
            if size == 1:
                slopes[part] = (value_with(part, step) - value_with(part, -step)) / (2 * step)
            bar.update(size)
    return slopes.reshape(logits.shape)


def read_only(array: Array) -> Array:
    """A view of an array through which nothing can be written."""
    view = array.view()
    view.flags.writeable = False
    return view


def measure(metrics: Sequence[Metric], logits: Array, target: Target, answers_only: bool = False) -> list[float]:
    """Every metric's value. logits: (n_tokens, n_vocab), or those of the two answers, (1, 2), if `answers_only`."""
    logits = read_only(logits)  # every metric and patch uses them again
    given = {"last": logits[-1], "all": logits}
    if any(metric.needs == "answers" for metric in metrics):
        given["answers"] = logits[-1] if answers_only else logits[-1, [target.answer, target.wrong_answer]]
    values = [metric.function(given[metric.needs], target) for metric in metrics]
    for metric, value in zip(metrics, values, strict=True):
        is_one = isinstance(value, (int, float, np.generic, np.ndarray)) and np.ndim(value) == 0
        if not is_one or np.asarray(value).dtype.kind not in "biuf":
            raise NanopatchError(f"the metric {metric.name} must return one number, not {value!r:.60}")
    return [float(value) for value in values]


def rounding_of(
    metrics: Sequence[Metric], values: Sequence[float], logits: Array, target: Target, answers_only: bool = False
) -> list[float]:
    """How much rounding may change each metric's value: two values closer than that may be the same.

    The logits are moved at random, four times, by what rounding may do to them: 100 eps of the largest one. The
    largest change of a metric, doubled, is its rounding. values: what `measure` gives; the rest is what it is given.
    """
    amount = 100 * np.finfo(logits.dtype).eps * np.abs(logits[-1]).max()
    random, changes = np.random.default_rng(0), []
    for _ in range(4):
        moved = logits + (amount * random.uniform(-1, 1, logits.shape)).astype(logits.dtype)
        with np.errstate(invalid="ignore"):  # inf - inf
            changes.append(np.abs(np.subtract(measure(metrics, moved, target, answers_only), values)))
    return [float(change) for change in 2 * np.nan_to_num(changes, nan=0, posinf=0).max(axis=0)]


def metric_gradient(metric: Metric, logits: Array, target: Target) -> Array:
    """Derivative of a metric with respect to all logits of a run: (n_tokens, n_vocab), with their dtype.

    Raises NanopatchError if the metric has no derivative, or one that is not finite or of another shape.
    """
    if metric.gradient is None:
        with_one = ", ".join(name for name, known in METRICS.items() if known.gradient)
        raise NanopatchError(
            f"{metric.name} has no derivative: give a metric that has one ({with_one}), or a Metric with a gradient"
        )
    at: Any = {"answers": (-1, [target.answer, target.wrong_answer]), "last": -1, "all": ...}[metric.needs]
    given = read_only(logits)[at]
    returned = metric.gradient(given, target)
    slope = returned if isinstance(returned, np.ndarray) else np.array(None)
    if slope.dtype.kind not in "biuf":
        raise NanopatchError(f"the gradient of {metric.name} must return an array of numbers, not {returned!r:.60}")
    if slope.shape != given.shape:
        raise NanopatchError(f"the gradient of {metric.name} has shape {slope.shape}; its logits have {given.shape}")
    gradient = np.zeros_like(logits)
    gradient[at] = slope
    if not np.isfinite(gradient).all():
        raise NanopatchError(f"{metric.name} has no finite derivative here: take another metric")
    return gradient


def check_slope(metric: Metric, slope: np.floating[Any], value: float | None = None) -> None:
    """NanopatchError where a first-order estimate would be 0 or rounding everywhere, because the derivative is.

    slope: the largest |entry| of `metric_gradient`, of all steps. value: of the metric, where there is one step.
    kl_divergence and its derivative are 0 in the clean run, at its minimum. A metric that counts (rank, or whether the
    answer is on top) is flat between its jumps. A small probability is neither: it is about as large as its derivative.
    """
    at_minimum = value is not None and abs(value) <= 0.01 * slope <= np.finfo(slope.dtype).eps
    if at_minimum and (slope > 0 or not metric.by_differences):
        raise NanopatchError(
            f"{metric.name} and its derivative are 0 in the run patched into, so nothing can be estimated: take more "
            "steps (integrated gradients), another direction or another metric"
        )
    if slope == 0:
        raise NanopatchError(
            f"the derivative of {metric.name} is 0 for all logits: the metric is flat here, and nothing can be "
            "estimated from it; take a metric that changes with every logit, such as logit_diff, or patch with sweep"
        )
