"""The few functions a GPT-2 block is made of. Each acts on the last axis and keeps the array's dtype.

`out` may name the array to write the result into, the (contiguous) input itself included, which saves
memory traffic on arrays that nobody else looks at; without it the input is left alone.
"""

import math

import numpy as np


def affine(x, weight, bias=None):
    """`x @ weight + bias`, weights stored (n_in, n_out) as the checkpoint's Conv1D has them.

    x: (..., n_in); weight: (n_in, n_out); bias: (n_out,) or None; returns (..., n_out).
    """
    rows = x.reshape(-1, x.shape[-1]) @ weight  # one tall product, however many leading axes
    if bias is not None:
        rows += bias
    return rows.reshape(*x.shape[:-1], -1)


def layer_norm(x, weight, bias, eps):
    """LayerNorm (Ba et al. 2016, arXiv 1607.06450): zero mean and unit variance, then scale and shift."""
    normed = x - x.mean(axis=-1, keepdims=True)
    variance = (normed * normed).mean(axis=-1, keepdims=True)
    normed /= np.sqrt(variance + eps)
    normed *= weight
    normed += bias
    return normed


def softmax(x, out=None):
    """exp(x) over its sum, with the maximum taken off first so that exp cannot overflow."""
    out = np.subtract(x, x.max(axis=-1, keepdims=True), out=out)
    np.exp(out, out=out)
    out /= out.sum(axis=-1, keepdims=True)
    return out


def gelu_new(x, out=None):
    """GELU, tanh form: 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) (arXiv 1606.08415, section 2)."""
    a = math.sqrt(2 / math.pi)  # math's, not NumPy's: np.sqrt of a Python number would make float32 float64
    out = np.empty(x.shape, x.dtype) if out is None else out
    rows, results = x.reshape(-1, x.shape[-1]), out.reshape(-1, x.shape[-1])
    size = max(1, 2**16 // x.shape[-1])  # as many rows as stay in the processor's cache from step to step
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


def gelu(x, out=None):
    """GELU, exact form: x Phi(x) = 0.5 x (1 + erf(x / sqrt(2))). NumPy has no erf; Python's is exact, if slow."""
    erf = np.frompyfunc(math.erf, 1, 1)(x * math.sqrt(0.5)).astype(x.dtype)
    return np.multiply(0.5 * x, 1 + erf, out=out)


def relu(x, out=None):
    """max(x, 0)."""
    return np.maximum(x, 0, out=out)


ACTIVATIONS = {"gelu_new": gelu_new, "gelu": gelu, "relu": relu}
