"""The few functions a GPT-2 block is made of. Each acts on the last axis and keeps the array's dtype.

`out` is the array to write the result into. It may be the (contiguous) input itself, which saves memory
traffic if the input is not needed any more. Without `out` the input stays as it is.
"""

import functools
import math
from collections.abc import Callable
from numbers import Integral

import numpy as np

from ..errors import NanopatchError
from ..types import Array

#: The LayerNorms and affine maps of a block, by their names in a checkpoint. Each has a weight and a bias.
BLOCK_WEIGHTS = ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")


def affine(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """`x @ weight + bias`. The weight is stored as (n_in, n_out), as in the checkpoint's Conv1D.

    x: (..., n_in); weight: (n_in, n_out); bias: (n_out,) or None; returns (..., n_out).
    """
    rows = x.reshape(-1, x.shape[-1]) @ weight  # one tall product for any number of leading axes
    if bias is not None:
        rows += bias
    return rows.reshape(*x.shape[:-1], -1)


def standardise(x: Array, eps: float) -> tuple[Array, Array]:
    """`x` with zero mean and unit variance, and the standard deviation sigma by which it was divided."""
    with np.errstate(over="ignore", invalid="ignore"):
        normed, sigma = _standardise(x, eps)
        if not np.isfinite(sigma).all():  # squares overflow, and what is divided by infinity looks like a result
            _, exponent = np.frexp(np.abs(x).max(axis=-1, keepdims=True))
            size = np.ldexp(np.ones_like(sigma), np.maximum(exponent - 1, 0))  # a power of two: division is exact
            normed, sigma = _standardise(x / size, eps / size**2)
            sigma *= size
    return normed, sigma


def _standardise(x: Array, eps: float | Array) -> tuple[Array, Array]:
    normed = x - x.mean(axis=-1, keepdims=True)
    squares = np.einsum("...i,...i->...", normed, normed)[..., None]  # the sum of squares, without storing them
    sigma = np.sqrt(squares / x.shape[-1] + eps)
    normed /= sigma
    return normed, sigma


def layer_norm(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    """LayerNorm (Ba et al. 2016, arXiv 1607.06450): zero mean and unit variance, then scale and shift."""
    normed, _ = standardise(x, eps)
    normed *= weight
    normed += bias
    return normed


def causal_mask(n_query: int, n_key: int, dtype: np.dtype) -> Array:
    """0 where a query may look (its own position and earlier), -inf elsewhere. The last query is the last key."""
    return np.triu(np.full((n_query, n_key), -np.inf, dtype), k=1 + n_key - n_query)


def softmax(x: Array) -> Array:
    """exp(x) divided by its sum. The maximum is subtracted first, so that exp cannot overflow."""
    exps = x - x.max(axis=-1, keepdims=True)
    np.exp(exps, out=exps)
    exps /= exps.sum(axis=-1, keepdims=True)
    return exps


def gelu_new(x: Array, out: Array | None = None) -> Array:
    """GELU, tanh form: 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) (arXiv 1606.08415, section 2)."""
    a = math.sqrt(2 / math.pi)  # not np.sqrt: its result is a float64 scalar, which turns float32 into float64
    out = np.empty(x.shape, x.dtype) if out is None else out
    rows, results = x.reshape(-1, x.shape[-1]), out.reshape(-1, x.shape[-1])
    size = max(1, 2**16 // x.shape[-1])  # the number of rows that stay in the processor's cache between steps
    for i in range(0, len(rows), size):
        part = rows[i : i + size]
        inner = part * part  # x ** 3 is many times slower than products
        inner *= 0.044715 * a
        inner += a
        inner *= part
        np.tanh(inner, out=inner)
        inner += 1
        inner *= 0.5
        np.multiply(inner, part, out=results[i : i + size])
    return out


def gelu(x: Array, out: Array | None = None) -> Array:
    """GELU, exact form: x Phi(x), with Phi the normal distribution function (arXiv 1606.08415, section 2).

    The error is below 1.5 eps |x|, with eps the spacing of the dtype at 1.
    """

    def of_block(part: Array) -> Array:
        result = normal_cdf(part)
        result *= part
        return result

    return by_blocks(of_block, x, out)


def by_blocks(function: Callable[[Array], Array], x: Array, out: Array | None = None) -> Array:
    """`function` of every number of x, of as many at once as stay in the processor's cache between its steps."""
    out, size = np.empty(x.shape, x.dtype) if out is None else out, 2**14
    numbers, results = x.reshape(-1), out.reshape(-1)
    for i in range(0, numbers.size, size):
        results[i : i + size] = function(numbers[i : i + size])
    return out


def normal_cdf(x: Array) -> Array:
    """The normal distribution function Phi(x) = (1 + erf(x / sqrt(2))) / 2. Its error is below eps.

    NumPy has no erf. Python's takes one number at a time, and SciPy is large for one function. This is the method of
    `erf` in Arm's Optimized Routines (github.com/ARM-software/optimized-routines, math/aarch64/advsimd/erf.c), for Phi:
    a Taylor series around the nearest point of a table. It has no branches and no fitted coefficients.
    """
    # With r the nearest point, d = x - r, and phi the density, the derivative of Phi:
    # Phi(x) = Phi(r) + phi(r) d (g_0 / 1! + g_1 / 2! + g_2 / 3! + ...), where g_n = (-d)^n He_n(r).
    # The Hermite polynomials He_n have g_0 = 1, g_1 = -r d and g_(n+1) = -r d g_n - n d^2 g_(n-1).
    # Clenshaw's method (1955) sums such a series from its last term to its first.
    cdf, density = _normal_table(x.dtype)
    n_terms = 3 if x.dtype == np.float32 else 8  # the next is below rounding, in float32 from -8 on
    d, r, squared, total, after, step = np.empty((6, *x.shape), x.dtype)  # one allocation is faster than six
    np.clip(x, _LEFT, _RIGHT, out=d)
    np.multiply(d, _STEPS, out=r)
    np.rint(r, out=r)
    with np.errstate(invalid="ignore"):  # NaN becomes some integer. Its d stays NaN, and so does its result.
        index = r.astype(np.intp)
    index -= _LEFT * _STEPS
    r *= -1 / _STEPS
    d += r
    r *= d  # -r d
    np.multiply(d, d, out=squared)
    after.fill(1 / math.factorial(n_terms))
    np.multiply(r, after, out=total)
    total += 1 / math.factorial(n_terms - 1)
    for n in range(n_terms - 2, 0, -1):
        np.multiply(r, total, out=step)
        step += 1 / math.factorial(n)
        after *= squared
        after *= n
        step -= after
        total, after, step = step, total, after
    total *= d
    total *= density.take(index, out=step, mode="clip")  # clip: whatever NaN became is brought into the table
    total += cdf.take(index, out=step, mode="clip")
    return total


#: The table has `_STEPS` points to the unit. Left of it Phi is 0 in both dtypes, and right of it 1.
_LEFT, _RIGHT, _STEPS = -39, 9, 128


@functools.cache
def _normal_table(dtype: np.dtype) -> tuple[Array, Array]:
    """Phi and phi at the points of the table."""
    points = [i / _STEPS for i in range(_LEFT * _STEPS, _RIGHT * _STEPS + 1)]
    cdf = [0.5 * math.erfc(-r * math.sqrt(0.5)) for r in points]
    density = [math.exp(-0.5 * r * r) / math.sqrt(2 * math.pi) for r in points]
    return np.array(cdf, dtype), np.array(density, dtype)


def relu(x: Array, out: Array | None = None) -> Array:
    """max(x, 0)."""
    return np.maximum(x, 0, out=out)


ACTIVATIONS = {"gelu_new": gelu_new, "gelu": gelu, "relu": relu}


def top_tokens(logits: Array, k: int = 10) -> list[tuple[int, float]]:
    """The k most likely next tokens, likeliest first: [(token id, probability)]. logits: (n_vocab,)."""
    if np.ndim(logits) != 1 or not isinstance(k, Integral) or k < 1:
        shape = getattr(logits, "shape", type(logits).__name__)
        raise NanopatchError(
            f"one position's logits, (n_vocab,), and k of at least 1 are expected; not {shape}, k={k!r}"
        )
    probabilities = softmax(logits.astype(np.float64))
    least = np.partition(probabilities, -min(k, len(probabilities)))[-min(k, len(probabilities))]
    candidates = np.flatnonzero(~(probabilities < least))  # few: to sort the whole vocabulary takes ten times as long
    best = candidates[np.argsort(-probabilities[candidates], kind="stable")[:k]]
    return [(int(token), float(probabilities[token])) for token in best]
