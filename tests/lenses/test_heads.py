"""Head scores: exact on patterns made by hand, and the known heads of nano."""

import random

import numpy as np
import pytest
from conftest import tiny_model

import nanopatch
from nanopatch import NanopatchError
from nanopatch.lenses.heads import head_scores


def looking_back(distance, n_tokens):
    """A pattern (n_query, n_key) that attends only to the token `distance` before; the first ones to token 0."""
    return np.eye(n_tokens)[np.maximum(0, np.arange(n_tokens) - distance)]


@pytest.mark.parametrize("before", [0, 1, 3])
def test_heads_that_attend_to_one_token(before):
    n_tokens = 2 * 4 + before  # period 4, perhaps something before it
    layer_0 = [looking_back(1, n_tokens), looking_back(4, n_tokens)]
    layer_1 = [looking_back(3, n_tokens), looking_back(0, n_tokens)]
    scores = head_scores(np.array([layer_0, layer_1]), 4)
    assert scores["previous_token"].tolist() == [[1, 0], [0, 0]]
    assert scores["duplicate_token"].tolist() == [[0, 1], [0, 0]]
    assert scores["induction"].tolist() == [[0, 0], [1, 0]]


def test_the_mean_is_over_the_second_copy_alone():
    pattern = np.zeros((1, 1, 4, 4))
    pattern[0, 0] = [[1, 0, 0, 0], [1, 0, 0, 0], [0.25, 0.75, 0, 0], [0, 0.5, 0.5, 0]]
    scores = head_scores(pattern, 2)
    assert scores["previous_token"].tolist() == scores["induction"].tolist() == [[(0.75 + 0.5) / 2]]
    assert scores["duplicate_token"].tolist() == [[(0.25 + 0.5) / 2]]


def test_a_batch_keeps_its_axis():
    pattern = np.random.default_rng(0).random((2, 5, 3, 8, 8))  # (n_layer, batch, n_head, n_query, n_key)
    scores = head_scores(pattern, 4)
    assert {name: values.shape for name, values in scores.items()} == dict.fromkeys(scores, (2, 5, 3))
    for number in range(5):
        alone = head_scores(pattern[:, number], 4)
        assert all(np.array_equal(scores[name][:, number], alone[name]) for name in scores)


@pytest.mark.parametrize(("shape", "period"), [((1, 1, 8, 8), 5), ((1, 1, 8, 8), 1), ((1, 1, 1, 8), 4)])
def test_a_pattern_that_is_too_small(shape, period):
    with pytest.raises(NanopatchError, match=f"^period is {period} and the pattern is {shape[2]} x 8: give a period"):
        head_scores(np.zeros(shape), period)


def test_the_heads_of_nano_are_those_of_its_readme():
    """The same draws as in `scripts/train_nano.py`, whose table in weights/nano/README.md has two decimals."""
    model, draw = nanopatch.load("nano"), random.Random(5)
    tokens = [draw.sample(range(50256), 25) * 2 for _ in range(50)]
    scores = head_scores(model.run(tokens, sites="pattern").pattern, 25)
    scores = {name: values.mean(axis=1) for name, values in scores.items()}  # (n_layer, n_head)
    assert np.argwhere(scores["previous_token"] > 0.5).tolist() == [[0, 1], [0, 3]]
    assert np.argwhere(scores["induction"] > 0.5).tolist() == [[1, 0], [1, 1], [1, 2], [1, 3]]
    rounding = 0.0051  # of two decimals, and of float32 in another program
    assert scores["previous_token"][:2].ravel() == pytest.approx(
        [0.01, 0.58, 0.11, 0.60, 0.00, 0.00, 0.00, 0.00], abs=rounding
    )
    assert scores["induction"][1] == pytest.approx([0.90, 0.88, 0.87, 0.88], abs=rounding)
    assert scores["duplicate_token"][1:].ravel() == pytest.approx(
        [0.01, 0.01, 0.01, 0.01, 0.01, 0.03, 0.01, 0.01, 0.03, 0.03, 0.01, 0.03], abs=rounding
    )


def test_what_is_no_pattern_or_no_period():
    run = tiny_model().run([1, 2, 3, 1, 2, 3])
    for wrong in (run.scores, run, [[1.0]]):
        with pytest.raises(NanopatchError, match="a run's pattern is expected"):
            head_scores(wrong, 3)
    for period in (2.5, "3", None):
        with pytest.raises(NanopatchError, match="give a period of 2 or more"):
            head_scores(run.pattern, period)
