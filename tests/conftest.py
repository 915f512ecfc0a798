"""What test modules share: random tiny models and experiments on them, ways of drawing them with hypothesis, how close
results must be, and the slowest obvious ways of patching."""

import os
from pathlib import Path

# Before NumPy is imported, here and in what tests start: there is one process for each core, so each needs only one
# thread of matrix products.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from nanopatch import Experiment
from nanopatch.model.checkpoint import build, tensor_shapes
from nanopatch.model.gpt2 import Config
from nanopatch.results.sweep import DIRECTIONS

# On CI every run draws the same examples, and a failure prints how to draw it again. How long an example may take is
# not what these tests are about: the machine may be busy.
settings.register_profile("ci", derandomize=True, print_blob=True, deadline=None)
settings.register_profile("default", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "default")

pytest_plugins = ["browser"]  # the fixtures of tests that need Chromium

ROOT = Path(__file__).parent.parent
REFERENCE = ROOT / "tests" / "reference"

# Comparisons of runs with each other: float32 keeps about 7 digits, float64 about 16; a run's rounding
# grows with the depth and with the size of what is added up, so errors are measured against the largest
# logit.
TOLERANCE = {np.dtype(np.float32): 1e-5, np.dtype(np.float64): 1e-12}

#: Of each prompt that `pairs` draws.
N_TOKENS = 6


# ---- models -----------------------------------------------------------------------------------------


def tiny_config(**changes):
    sizes = dict(n_layer=3, n_head=2, n_embd=12, n_positions=12, vocab_size=29, n_inner=20)
    return Config(**{**sizes, **changes})


def tiny_model(seed=0, dtype=np.float64, biases=True, **changes):
    """A model with random weights of about the size trained ones have. `lm_head` is tied unless the config says not."""
    config = tiny_config(**changes)
    rng = np.random.default_rng(seed)
    tensors = {
        name: rng.normal(0, 0.4, shape) if biases or not name.endswith(".bias") else np.zeros(shape)
        for name, shape in tensor_shapes(config).items()
        if name != "lm_head.weight" or not config.tie_word_embeddings
    }
    for name in tensors:
        if "ln_" in name and name.endswith("weight"):
            tensors[name] += 1
    model = build(config, tensors, dtype)
    return model


@st.composite
def models(draw, most_layers=4, dtypes=(np.float32, np.float64)):
    """Random tiny models, all config switches covered."""
    n_head = draw(st.integers(1, 3))
    return tiny_model(
        seed=draw(st.integers(0, 2**32 - 1)),
        dtype=draw(st.sampled_from(dtypes)),
        biases=draw(st.booleans()),
        tie_word_embeddings=draw(st.booleans()),
        n_layer=draw(st.integers(1, most_layers)),
        n_head=n_head,
        n_embd=n_head * draw(st.integers(4, 8)),  # of fewer numbers, LayerNorm leaves little but rounding
        n_inner=draw(st.integers(1, 30)),
        activation_function=draw(st.sampled_from(["gelu_new", "gelu", "relu"])),
        scale_attn_weights=draw(st.booleans()),
        scale_attn_by_inverse_layer_idx=draw(st.booleans()),
    )


# ---- experiments ------------------------------------------------------------------------------------


@st.composite
def pairs(draw):
    """A model and an experiment on it: prompts of one length that first differ at `first`, and last at `last`."""
    model = draw(models())
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    clean = rng.integers(0, model.n_vocab, N_TOKENS)
    first = draw(st.integers(0, N_TOKENS - 1))
    last = draw(st.integers(first, N_TOKENS - 1))
    corrupted = clean.copy()
    for position in {first, last}:
        corrupted[position] = (clean[position] + draw(st.integers(1, 28))) % model.n_vocab
    return model, Experiment(clean, corrupted, 3, 7), first, last


def make_pairs(n, seed=0, n_tokens=N_TOKENS):
    """Experiments that differ in all tokens but the first and last, each with answers of its own."""
    rng = np.random.default_rng(seed)
    experiments = []
    for _ in range(n):
        clean, corrupted = rng.integers(0, 29, (2, n_tokens)).tolist()
        corrupted[0], corrupted[-1] = clean[0], clean[-1]
        experiments.append(Experiment(clean, corrupted, *rng.choice(29, 2, replace=False).tolist()))
    return experiments


def prompts(experiment, direction):
    """(the prompt patched into, the prompt patched from)."""
    return [getattr(experiment, name) for name in DIRECTIONS[direction]]


def as_lists(pieces):
    """The pieces of a result, to be compared whatever sequences they are: {axis: [[item, ...], ...]}."""
    return {axis: [list(piece) for piece in entries] for axis, entries in pieces.items()}


# ---- how close --------------------------------------------------------------------------------------


def assert_close(actual, expected):
    """The largest difference is at most 1e-5 (float64: 1e-12) of the largest |value|; -inf is where -inf is."""
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    masked = np.isneginf(expected)
    assert np.array_equal(np.isneginf(actual), masked)
    actual, expected = np.where(masked, 0, actual), np.where(masked, 0, expected)
    worst, scale = np.abs(actual - expected).max(initial=0), np.abs(expected).max(initial=0)
    assert worst <= TOLERANCE[actual.dtype] * scale, f"largest difference {worst:.3g}, of {scale:.3g}"


def steepness(*runs):
    """How much larger LayerNorms of these runs make rounding, at most: |stream| / its standard deviation, 1 or more."""
    steepest = 1
    for run in runs:
        eps = run.model.config.layer_norm_epsilon
        for stream in (run.resid_pre, run.resid_mid, run.resid_post):
            steepest = max(steepest, (np.abs(stream).max(axis=-1) / np.sqrt(stream.var(axis=-1) + eps)).max())
    return steepest


def assert_metric(actual, expected, model, experiment):
    """Equal up to the tolerance that holds for logits: 1e-5 (float64: 1e-12) of the largest |logit|."""
    largest = max(np.abs(model.run(p, sites="logits").logits).max() for p in (experiment.clean, experiment.corrupted))
    assert np.abs(np.asarray(actual) - expected).max(initial=0) <= 2 * TOLERANCE[model.dtype] * largest


def diff(logits):
    """The logit difference of the experiments drawn here, whose answers are 3 and 7. logits: (n_tokens, n_vocab)."""
    return float(logits[-1, 3]) - float(logits[-1, 7])


# ---- the slowest obvious ways -----------------------------------------------------------------------


def slow_logits(model, into, assignments):
    """Copy, assign, run everything again. assignments: (site, layer, index, value)."""
    for step in model.steps(into):
        for site, layer, index, value in assignments:
            if (step.name, step.layer) == (site, layer):
                step.array[index] = value
    return step.array


def parts(name):
    """ "head 2.1" -> ("head", 2, 1); layer and head are None where there are none. name: a text or a `Node`."""
    kind, _, place = str(name).partition(" ")
    layer, _, head = place.partition(".")
    return kind, int(layer) if layer else None, int(head) if head else None


def is_after(receiver, sender):
    """Whether the receiver comes later in the forward pass, from the order of the code in a block."""
    (what, to, _), (kind, layer, _) = parts(receiver), parts(sender)
    if what == "logits" or kind == "embed":
        return True
    return to > layer or (to == layer and kind in ("head", "attn") and what == "mlp")


def replace(step, sender, other):
    """The sender's assignment, in a loop over model.steps."""
    kind, layer, head = parts(sender)
    if kind == "embed" and (step.name, step.layer) == ("resid_pre", 0):
        step.array = other.resid_pre[0]
    if kind == "head" and (step.name, step.layer) == ("z", layer):
        step.array[:, head] = other.z[layer][:, head]
    if kind in ("attn", "mlp") and (step.name, step.layer) == (f"{kind}_out", layer):
        step.array = getattr(other, step.name)[layer]


def sent(model, base, other, sender):
    """What the sender adds to the residual stream when replaced: (n_tokens, d_model)."""
    kind, layer, head = parts(sender)
    if kind == "embed":
        return other.resid_pre[0] - base.resid_pre[0]
    if kind == "head":
        rows = model.h[layer].attn.c_proj.weight[head * model.d_head : (head + 1) * model.d_head]
        return (other.z[layer][:, head] - base.z[layer][:, head]) @ rows
    return getattr(other, f"{kind}_out")[layer] - getattr(base, f"{kind}_out")[layer]


def notes_of(result):
    """Its notes but the one that a random model does not predict the answer."""
    return [note for note in result.notes if "does not predict the answer" not in note]
