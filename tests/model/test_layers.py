"""The exact GELU: its values against `math.erf`, its bits wherever a number stands, its derivative."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanopatch.model.backward import gelu_slope
from nanopatch.model.layers import by_blocks, gelu, normal_cdf

DTYPES = (np.float32, np.float64)
EVERY_SIZE = np.concatenate([np.logspace(-323, 308, 20_000), np.linspace(0, 45, 60_001)])
GRID = np.sort(np.concatenate([-EVERY_SIZE, EVERY_SIZE]))


def grid(dtype):
    with np.errstate(over="ignore"):
        x = GRID.astype(dtype)
    return x[np.isfinite(x)]


def exact(x):
    """Phi by Python, in float64. erfc keeps the digits that 1 + erf loses to the left."""
    return np.array([0.5 * math.erfc(-number * math.sqrt(0.5)) for number in x.tolist()])


@pytest.mark.parametrize("dtype", DTYPES)
def test_normal_cdf_is_that_of_erf_over_the_whole_range(dtype):
    x = grid(dtype)
    actual, eps = normal_cdf(x), np.finfo(dtype).eps
    by_erf = np.array([0.5 * (1 + math.erf(number * math.sqrt(0.5))) for number in x.tolist()])
    assert actual.dtype == dtype
    # Measured against mpmath: 0.49 eps in float32, 0.67 eps in float64. Python's own value may be half an eps off.
    assert np.abs(actual - by_erf).max() <= (0.6 if dtype == np.float32 else 1.5) * eps
    assert actual.min() == 0 and actual.max() == 1
    assert np.diff(actual).min() >= -eps  # it falls nowhere by more than rounding


def test_float32_has_its_last_digits_far_to_the_left_too():
    x = np.linspace(-13, 9, 100_001).astype(np.float32)  # further left Phi is subnormal
    expected = x * exact(x)
    in_last_places = np.abs(gelu(x) - expected) / np.spacing(np.abs(expected).astype(np.float32))
    # Measured: 2.1 from -8 on, 6.9 from -13 on. The fourth term, which is left out, grows with x^4.
    assert in_last_places[x >= -8].max() < 2.5 and in_last_places.max() < 8


def test_float64_from_minus_one_on():
    x = np.linspace(-1, 9, 100_001)
    expected = exact(x)
    assert (np.abs(normal_cdf(x) - expected) / np.spacing(expected)).max() <= 3  # measured: 2, math.erfc's own included


@pytest.mark.parametrize("dtype", DTYPES)
def test_gelu_over_the_whole_range(dtype):
    x = grid(dtype)
    actual, expected = gelu(x), x.astype(float) * exact(x)
    smallest = np.finfo(dtype).smallest_subnormal
    assert actual.dtype == dtype
    # Measured against mpmath: 1 eps |x|. Python's own value may be as far off.
    assert (np.abs(actual - expected) <= 2 * np.finfo(dtype).eps * np.abs(x) + smallest).all()
    lowest = -0.7517915
    assert actual.min() == pytest.approx(-0.1699712, abs=1e-6)
    slack = np.finfo(dtype).eps  # it falls up to its minimum and rises from there, but for rounding
    assert (np.diff(actual[x < lowest]) <= slack).all()
    rising = actual[x > lowest]
    assert (np.diff(rising) >= -slack * np.maximum(np.abs(rising[1:]), 1)).all()


def numbers(dtype):
    return st.lists(st.floats(width=8 * np.dtype(dtype).itemsize), max_size=30)


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_any_number(dtype, data):
    x = np.array(data.draw(numbers(dtype)), dtype)
    np.testing.assert_allclose(normal_cdf(x), exact(x), rtol=0, atol=np.finfo(dtype).eps)  # NaN where Python has NaN
    x = x[np.isfinite(x)]
    expected = exact(x) + x * np.exp(-0.5 * np.clip(x.astype(float), -40, 40) ** 2) / math.sqrt(2 * math.pi)
    np.testing.assert_allclose(gelu_slope(x), expected, rtol=0, atol=3 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_that_are_special(dtype):
    # Warnings are errors here.
    x = np.array([-np.inf, np.inf, np.nan, -np.finfo(dtype).max, np.finfo(dtype).max], dtype)
    assert normal_cdf(x).tolist() == pytest.approx([0, 1, math.nan, 0, 1], abs=0, nan_ok=True)
    assert gelu_slope(x).tolist() == pytest.approx([0, 1, math.nan, 0, 1], abs=0, nan_ok=True)
    assert gelu(x[1:]).tolist() == pytest.approx([math.inf, math.nan, 0, x[-1]], abs=0, rel=0, nan_ok=True)
    zeros = np.array([0.0, -0.0], dtype)
    assert np.signbit(gelu(zeros)).tolist() == [False, True] and not gelu(zeros).any()
    assert normal_cdf(zeros).tolist() == gelu_slope(zeros).tolist() == [0.5, 0.5]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("function", [gelu, gelu_slope, lambda x: by_blocks(gelu_slope, x)])
def test_a_number_has_the_same_bits_wherever_it_stands(function, dtype):
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((5, 17, 1000)) * 3).astype(dtype)  # more than two blocks
    whole = function(x)
    assert whole.shape == x.shape and whole.dtype == dtype
    assert np.array_equal(function(x[2]), whole[2])
    assert np.array_equal(function(x[:, ::3, 1::7]), whole[:, ::3, 1::7])
    order = rng.permutation(x.size)
    assert np.array_equal(function(x.ravel()[order]), whole.ravel()[order])
    assert all(function(x[0, 0, i : i + 1]) == whole[0, 0, i] for i in range(40))
    assert function(x[:0]).shape == (0, 17, 1000)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gelu_into_its_input_or_another_array(dtype):
    x = (np.random.default_rng(0).standard_normal((40, 1000)) * 3).astype(dtype)
    before, expected, other = x.copy(), gelu(x), np.empty_like(x)
    assert np.array_equal(x, before)
    assert gelu(x, out=other) is other and np.array_equal(other, expected)
    assert gelu(x, out=x) is x and np.array_equal(x, expected)


def test_the_slope_is_the_derivative():
    x = np.concatenate([np.linspace(-9, 9, 2001), np.logspace(-300, 0, 50)])
    expected = exact(x) + x * np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    assert np.abs(gelu_slope(x) - expected).max() < 4e-16
    step = 2.0**-17
    numerical = (gelu(x + step) - gelu(x - step)) / (2 * step)
    # Truncation step^2 / 6 times a third derivative below 1, rounding eps |x| / step.
    assert np.abs(gelu_slope(x) - numerical).max() < 5e-10
