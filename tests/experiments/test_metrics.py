"""Metrics against their formulas, and what a sweep reports of them."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import tiny_model

from nanopatch import Experiment, NanopatchError, attribute, load, saliency, sweep
from nanopatch.experiments.metrics import (
    METRICS,
    Metric,
    Target,
    as_metric,
    log_probability_of,
    log_softmax,
    measure,
    probability_of,
    rounding_of,
    top_tokens,
)
from nanopatch.experiments.patch import Patch
from nanopatch.experiments.tasks import years_above


@pytest.fixture(scope="module")
def sweeps():
    def largest_logit(logits):
        return logits.max()

    model, experiment = tiny_model(seed=7), Experiment([1, 2, 3, 4, 5], [1, 9, 3, 4, 5], 3, 7)
    return model, experiment, sweep(model, experiment, metric=[*METRICS, largest_logit])


def test_every_metric_is_its_formula(sweeps):
    model, experiment, result = sweeps
    clean = model.run(experiment.clean)
    p_clean = np.exp(clean.logits[-1]) / np.exp(clean.logits[-1]).sum()
    for layer in range(model.n_layer):
        for position in range(5):
            for site in model.steps(experiment.corrupted):
                if (site.name, site.layer) == ("resid_pre", layer):
                    site.array[position] = clean.resid_pre[layer, position]
            p = np.exp(site.array) / np.exp(site.array).sum(axis=-1, keepdims=True)
            expected = {
                "logit_diff": site.array[-1, 3] - site.array[-1, 7],
                "log_probability": np.log(p[-1, 3]),
                "probability": p[-1, 3],
                "rank": sum(p[-1] > p[-1, 3]),
                "kl_divergence": (p_clean * np.log(p_clean / p[-1])).sum(),
                "cross_entropy": -np.mean([np.log(p[i, experiment.corrupted[i + 1]]) for i in range(4)]),
                "largest_logit": site.array.max(),
            }
            assert list(result) == list(expected)
            for name, value in expected.items():
                assert result[name].grid[layer, position] == pytest.approx(value, rel=1e-9, abs=1e-12), name


def test_baselines(sweeps):
    _, _, result = sweeps
    assert result["kl_divergence"].baseline_clean == 0 < result["kl_divergence"].baseline_corrupted
    assert result["rank"].metric == "rank" and result["rank"].baseline_clean == int(result["rank"].baseline_clean)


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_patching_everything_is_1_for_every_metric(direction):
    model, experiment = tiny_model(seed=7), Experiment([1, 2, 3, 4, 5], [1, 9, 3, 4, 5], 3, 7)
    result = sweep(model, experiment, Patch(axes="layer"), direction=direction, metric=[*METRICS])
    for name, of_metric in result.items():
        if of_metric.baseline_clean != of_metric.baseline_corrupted:  # rank may be equal
            assert of_metric.normalised == pytest.approx(np.ones(3), rel=1e-8), name


def test_one_metric_of_several_is_that_metric_alone(sweeps):
    model, experiment, result = sweeps
    alone = sweep(model, experiment, metric="logit_diff")
    assert np.allclose(alone.grid, result["logit_diff"].grid, rtol=1e-10)
    assert alone.baseline_clean == pytest.approx(result["logit_diff"].baseline_clean, rel=1e-10)


def test_top_tokens():
    assert top_tokens(np.log(np.array([0.2, 0.5, 0.3], np.float32)), 2) == [
        (1, pytest.approx(0.5)),
        (2, pytest.approx(0.3)),
    ]


def test_an_unknown_metric():
    with pytest.raises(
        NanopatchError, match="unknown metric 'los'; known are logit_diff, log_probability, .*or give a function"
    ):
        sweep(tiny_model(), Experiment([1], [2], 3, 7), metric=["rank", "los"])


@pytest.mark.parametrize("metric", [3, None, ["rank"]])
def test_what_is_no_metric(metric):
    with pytest.raises(NanopatchError, match=r"^unknown metric .*; known are logit_diff, .*give a function of the"):
        as_metric(metric)


def test_a_metric_that_gives_no_finite_number_is_told_and_the_rest_kept():
    model, experiment = tiny_model(seed=7), Experiment([1, 2, 3, 4], [1, 9, 3, 4], 3, 7)
    grid = sweep(model, experiment).grid
    low, high = np.sort(grid[:, 1:], axis=None)[3:5]
    threshold = (low + high) / 2  # between two cells, so that rounding does not decide

    def picky(logits):
        return np.inf if logits[-1, 3] - logits[-1, 7] > threshold else 1.0

    result = sweep(model, experiment, metric=picky)
    first = np.argwhere(np.isinf(result.grid))[0]
    assert np.array_equal(np.isinf(result.grid), grid > threshold) and (result.grid[grid <= threshold] == 1).all()
    count, where = np.isinf(result.grid).sum(), f"layer {first[0]}, position {first[1]}"
    assert result.notes[0] == f"picky is not a finite number after {count} of the patches; the first is at {where}."


def test_a_metric_must_return_one_number():
    with pytest.raises(NanopatchError, match="^give at least one metric, and metrics with different names; not "):
        sweep(tiny_model(), Experiment([1, 2], [1, 3], 3, 7), metric=["rank", "rank"])
    with pytest.raises(NanopatchError, match=r"give at least one metric, .*; not \[\]$"):
        sweep(tiny_model(), Experiment([1, 2], [1, 3], 3, 7), metric=[])
    with pytest.raises(NanopatchError, match="cross_entropy needs a prompt of two tokens or more"):
        sweep(tiny_model(), Experiment([1], [2], 3, 7), metric="cross_entropy")
    with pytest.raises(NanopatchError, match="all positions needs prompts of one length: these have 2 and 3 tokens"):
        sweep(tiny_model(), Experiment([1, 2], [1, 2, 3], 3, 7, align="diff"), metric="cross_entropy")
    with pytest.raises(NanopatchError, match="the metric argmax must return one number, not array"):
        sweep(tiny_model(), Experiment([1, 2], [1, 3], 3, 7), metric=lambda_named_argmax)


def test_what_a_metric_is_given_cannot_be_written_into():
    def greedy(logits):
        logits[:, 3] -= 1
        return 0.0

    with pytest.raises(ValueError, match="read-only"):
        sweep(tiny_model(), Experiment([1, 2], [1, 3], 3, 7), metric=greedy)


def test_a_metric_of_unknown_needs_or_with_a_gradient_of_another_shape():
    with pytest.raises(NanopatchError, match="the metric a needs 'lastt': give one of answers, last, all"):
        Metric("a", "lastt", None)
    wide = Metric("wide", "all", lambda logits, target: 1.0, gradient=lambda logits, target: logits[0])
    with pytest.raises(NanopatchError, match=r"the gradient of wide has shape \(29,\); its logits have \(2, 29\)"):
        attribute(tiny_model(), Experiment([1, 2], [1, 3], 3, 7), metric=wide)


def lambda_named_argmax(logits):
    return logits.argmax(axis=-1)


lambda_named_argmax.__name__ = "argmax"


@pytest.mark.parametrize("own", [False, True], ids=["probability", "a metric of one's own"])
def test_small_baselines_that_differ_are_normalised_in_float32_as_in_float64(own):
    """What rounding does to a probability of 1e-13 is not what it does to a logit of 20."""
    nano, exact = (load("nano", dtype) for dtype in (np.float32, np.float64))
    pair = Experiment("The capital of France is", "The capital of Italy is", " table", " chair")
    (token,) = nano.tokenize(" table")
    metric = (lambda logits: np.exp(logits[-1, token] - logits[-1].max())) if own else "probability"
    rounded, truth = (sweep(model, pair, metric=metric) for model in (nano, exact))
    assert 0 < rounded.baseline_clean < rounded.baseline_corrupted < 1e-9
    assert np.isfinite(rounded.normalised).all() and np.allclose(rounded.normalised, truth.normalised, atol=1e-2)
    shown = str(rounded).splitlines()[-2]
    assert " 0.00" not in shown and f"clean {rounded.baseline_clean:.2g}" in shown
    assert "0.00" not in str(replace(rounded, baseline_corrupted=rounded.baseline_clean, prediction=None))


def test_baselines_that_differ_by_rounding_alone_are_equal():
    """The same prompt twice: what differs is the order of its sums."""
    nano = load("nano")
    batch = nano.run([[464, 3139, 286, 4881, 318]] * 2, sites="logits").logits
    target = Target(6342, 10598, np.array([464]), batch[0, -1])
    metrics = [METRICS[name] for name in ("logit_diff", "log_probability", "probability")]
    alone = nano.run([464, 3139, 286, 4881, 318], sites="logits").logits
    apart = np.abs(np.subtract(measure(metrics, batch[1], target), measure(metrics, alone, target)))
    assert (apart <= rounding_of(metrics, measure(metrics, alone, target), alone, target)).all()


def test_several_right_answers_and_answers_of_several_tokens():
    model = tiny_model(seed=7)
    pair = Experiment([1, 2, 3, 4, 5], [1, 9, 3, 4, 5])
    p = np.exp([log_softmax(row) for row in model.run(pair.clean).logits])
    result = sweep(model, pair, metric=[probability_of([3, 7, 11]), log_probability_of([4, 5, 6])])
    assert result["probability_of"].baseline_clean == pytest.approx(p[-1, [3, 7, 11]].sum(), rel=1e-12)
    one_after_the_other = np.log(p[2, 4]) + np.log(p[3, 5]) + np.log(p[4, 6])
    assert result["log_probability_of"].baseline_clean == pytest.approx(one_after_the_other, rel=1e-12)
    for metric in (probability_of([3]), log_probability_of([3])):
        assert sweep(model, pair, metric=metric).grid[2, 4] == pytest.approx(
            sweep(model, replace(pair, answer=3, wrong_answer=7), metric=metric.name.removesuffix("_of")).grid[2, 4]
        )
    for wrong in ([], [[1]], "a", [1.5], 3, [-1]):
        with pytest.raises(NanopatchError, match="token ids are expected"):
            probability_of(wrong)
    with pytest.raises(NanopatchError, match=r"needs prompts that end in \[7\]: all its tokens but the last"):
        sweep(model, pair, metric=log_probability_of([7, 8]))


@pytest.mark.parametrize("metric", [probability_of([3, 7]), log_probability_of([2, 3, 4])], ids=lambda m: m.name)
def test_their_derivatives_are_those_of_central_differences(metric):
    """The step 1e-5 errs by about 1e-10 of the third derivative, and by rounding 1e-16 / 1e-5."""
    logits = np.random.default_rng(0).normal(0, 1, (5, 13))
    target = Target(None, None, np.array([1, 9, 8, 2, 3]), None)
    given = logits[-1] if metric.needs == "last" else logits
    gradient = metric.gradient(given, target)
    for index in np.ndindex(given.shape):
        step = np.zeros(given.shape)
        step[index] = 1e-5
        slope = (metric.function(given + step, target) - metric.function(given - step, target)) / 2e-5
        assert gradient[index] == pytest.approx(slope, abs=1e-9)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: as_metric(lambda logits, target: 1.0), "is called with one argument, the logits .* give Metric"),
        (lambda: as_metric(lambda: 1.0), "is called with one argument, the logits"),
        (lambda: Metric("a", "all", lambda logits: 1.0), "the metric a: its function, .* of .logits, target."),
        (lambda: Metric("a", "all", 3), "the metric a: its function, .* of .logits, target."),
        (lambda: Metric("a", "all", max, lambda logits: logits), "the metric a: its function, and its gradient"),
        (lambda: years_above("a"), "year is 'a': give the last two digits"),
        (lambda: top_tokens(np.zeros((2, 3))), r"one position's logits, .* not \(2, 3\), k=10"),
        (lambda: top_tokens(np.zeros(3), 0), "k of at least 1"),
    ],
)
def test_a_function_that_is_no_metric_is_refused_before_it_is_called(make, message):
    with pytest.raises(NanopatchError, match=message):
        make()


@pytest.mark.parametrize("value", [1j, np.complex64(1), None, "1", [1, [2]], np.zeros(1)], ids=repr)
def test_what_is_not_one_real_number_is_refused(value):
    with pytest.raises(NanopatchError, match="must return one number, not "):
        measure([as_metric(lambda logits: value)], np.zeros((2, 3)), None)


@pytest.mark.parametrize("value", [True, np.True_, np.float32(1), np.array(1), 1], ids=repr)
def test_what_numpy_makes_of_one_number_is_one(value):
    assert measure([as_metric(lambda logits: value)], np.zeros((2, 3)), None) == [1.0]


def test_ids_outside_the_vocabulary_are_refused_and_one_given_twice_counts_once():
    model, pair = tiny_model(seed=7), Experiment([1, 2, 3], [1, 9, 3])
    for metric in (probability_of([3, 29]), log_probability_of([29]), years_above(30)):
        with pytest.raises(NanopatchError, match=r"token id \d+ is outside the vocabulary, 0 to 28"):
            sweep(model, pair, metric=metric)
    once, twice = (sweep(model, pair, metric=probability_of(ids)) for ids in ([3, 7], [3, 7, 3]))
    assert np.array_equal(once.grid, twice.grid)


def test_a_small_probability_is_no_minimum():
    """In float32 its derivative may be rounded to more than itself."""
    nano, pair = load("nano"), Experiment("The capital of France is", "The capital of Italy is", " table", " chair")
    for direction in ("denoise", "noise"):
        result = attribute(nano, pair, "z", metric="probability", direction=direction)
        truth = attribute(load("nano", dtype=np.float64), pair, "z", metric="probability", direction=direction)
        assert np.allclose(result.grid, truth.grid, rtol=1e-2, atol=1e-3 * np.abs(truth.grid).max())
    assert saliency(nano, pair, metric="probability").norm.any()
    with pytest.raises(NanopatchError, match="the metric is flat here"):  # though it is 0 too
        attribute(nano, pair, "z", metric=lambda logits: float(logits[-1].argmax() == 0))


@pytest.mark.parametrize(
    ("gradient", "message"),
    [
        (lambda logits, target: logits * 1j, "must return an array of numbers, not array"),
        (lambda logits, target: None, "must return an array of numbers, not None"),
        (lambda logits, target: [1, [2]], r"must return an array of numbers, not \[1, \[2\]\]"),
    ],
)
def test_a_gradient_that_is_no_array_of_real_numbers(gradient, message):
    metric = Metric("own", "last", lambda logits, target: logits[0], gradient)
    with pytest.raises(NanopatchError, match=f"the gradient of own {message}"):
        attribute(tiny_model(), Experiment([1, 2], [1, 3], 3, 7), metric=metric)
    with pytest.raises(NanopatchError, match="a metric's name is a text, not 3"):
        Metric(3, "last", max)
