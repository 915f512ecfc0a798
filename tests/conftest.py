"""Random tiny models, and ways of drawing them with hypothesis."""

import numpy as np
from hypothesis import strategies as st

from nanopatch.model.checkpoint import build, tensor_shapes
from nanopatch.model.gpt2 import Config

# Comparisons of runs with each other: float32 keeps about 7 digits, float64 about 16; a run's rounding
# grows with the depth and with the size of what is added up, so errors are measured against the largest
# logit.
TOLERANCE = {np.dtype(np.float32): 1e-5, np.dtype(np.float64): 1e-12}


def tiny_config(**changes):
    sizes = dict(n_layer=3, n_head=2, n_embd=12, n_positions=12, vocab_size=29, n_inner=20)
    return Config(**{**sizes, **changes})


def tiny_model(seed=0, dtype=np.float64, **changes):
    """A model with random weights of about the size trained ones have; `lm_head` is tied."""
    config = tiny_config(**changes)
    rng = np.random.default_rng(seed)
    tensors = {
        name: rng.normal(0, 0.4, shape) for name, shape in tensor_shapes(config).items() if name != "lm_head.weight"
    }
    for name in tensors:
        if "ln_" in name and name.endswith("weight"):
            tensors[name] += 1
    model = build(config, tensors, dtype)
    model.reads_text = False
    return model


def assert_close(actual, expected):
    """The largest difference is at most 1e-5 (float64: 1e-12) of the largest |value|; -inf is where -inf is."""
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    masked = np.isneginf(expected)
    assert np.array_equal(np.isneginf(actual), masked)
    actual, expected = np.where(masked, 0, actual), np.where(masked, 0, expected)
    worst, scale = np.abs(actual - expected).max(initial=0), np.abs(expected).max(initial=0)
    assert worst <= TOLERANCE[actual.dtype] * scale, f"largest difference {worst:.3g}, of {scale:.3g}"


@st.composite
def models(draw):
    """Random tiny models, all config switches covered."""
    n_head = draw(st.integers(1, 3))
    return tiny_model(
        seed=draw(st.integers(0, 2**32 - 1)),
        dtype=draw(st.sampled_from([np.float32, np.float64])),
        n_layer=draw(st.integers(1, 4)),
        n_head=n_head,
        n_embd=n_head * draw(st.integers(2, 8)),
        n_inner=draw(st.integers(1, 30)),
        activation_function=draw(st.sampled_from(["gelu_new", "gelu", "relu"])),
        scale_attn_weights=draw(st.booleans()),
        scale_attn_by_inverse_layer_idx=draw(st.booleans()),
    )
