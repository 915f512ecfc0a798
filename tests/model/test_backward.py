"""The backward pass: against central differences, against PyTorch's autograd, and by what must hold exactly.

The files in `reference_gradients/` were made by `scripts/make_gradient_reference.py` with PyTorch in float64, for
the models of `reference/tiny_*.npz` and for nano; where torch is installed, the same comparison also runs live.
"""

import json
import sys

import numpy as np
import pytest
from conftest import REFERENCE, ROOT, TOLERANCE, models, steepness, tiny_model
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import nanopatch
from nanopatch import NanopatchError
from nanopatch.model.backward import SLOPES, backward, named_weights, weight_gradients
from nanopatch.model.checkpoint import build
from nanopatch.model.gpt2 import Config
from nanopatch.model.layers import ACTIVATIONS, softmax
from nanopatch.model.sites import BLOCK_SITES, SITES, Run, record

GRADIENTS = ROOT / "tests" / "reference_gradients"
TINY = sorted(path.stem for path in GRADIENTS.glob("tiny_*.npz"))

# Against PyTorch in float64, of the largest derivative of the same layer. Both sides round at each of some hundred
# steps, so 1e-9 and 1e-4 leave the depth of a model and its badly conditioned LayerNorms room of three digits.
AGAINST_PYTORCH = {np.float64: 1e-9, np.float32: 1e-4}


def well_conditioned_models():
    """Models whose LayerNorms see 6 numbers or more. Those of 2 or 3 that happen to be nearly equal divide by nearly
    0, and in a row these factors multiply: derivatives then keep fewer digits, in any order of adding up, and a
    central difference at any EPS worth taking spans a bend."""
    return models().filter(lambda model: model.d_model >= 6)


def float64_models():
    return well_conditioned_models().filter(lambda model: model.dtype == np.float64)


def drawn(model, seed, n_tokens=5, batch=()):
    """A prompt, its record, a random derivative for every logit, and the generator for more."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, model.n_vocab, (*batch, n_tokens))
    run = model.run(tokens)
    return tokens, run, rng.standard_normal(run.logits.shape).astype(model.dtype), rng


# ---- against central differences ------------------------------------------------------------------

EPS = 1e-6


def scalar(model, tokens, d_logits, changes):
    """sum(d_logits * logits) of a run in which `changes`, {(name, layer): array}, are added on the way.

    Also where each ReLU was on: a difference taken across a kink is no derivative.
    """
    on = []
    for site in model.steps(tokens):
        if (site.name, site.layer) in changes:
            site.array += changes[site.name, site.layer]
        if site.name == "mlp_pre" and model.config.activation_function == "relu":
            on.append(site.array > 0)
    return (d_logits * site.array).sum(), np.array(on)


def assert_is_derivative(gradient, direction, plus, minus, size):
    """`gradient` along `direction` is the central difference of `plus` and `minus`, scalars EPS to either side.

    Rounding: a scalar is a sum of terms of together about `size`, exact to some 1e-15 of it, and that error is
    divided by EPS: 1e-9 `size`. Truncation: EPS^2 / 6 times the third derivative, which grows as the square of all the
    factors 1 / sigma of the LayerNorms in a row; 1e-6 of the first derivative allows these to be 1000 together.
    """
    (plus, on), (minus, still_on) = plus, minus
    if not np.array_equal(on, still_on):
        assume(False)
    difference = (plus - minus) / (2 * EPS)
    allowed = 1e-9 * size + 1e-6 * np.linalg.norm(gradient) * np.linalg.norm(direction)
    assert abs((gradient * direction).sum() - difference) <= allowed


@given(float64_models(), st.integers(0, 99), st.sampled_from([(), (2,)]), st.booleans())
@settings(max_examples=15)
def test_every_named_array_against_central_differences(model, seed, batch, edited):
    """Also of a run that is edited on its way, by adding something to every array of it."""
    tokens, run, d_logits, rng = drawn(model, seed, 4, batch)
    run, edits = random_edits(model, tokens, rng) if edited else (run, {})
    gradients = backward(model, run, d_logits)
    size = np.abs(d_logits * run.logits).sum()
    for name in SITES:
        for layer in range(model.n_layer) if name in BLOCK_SITES else [None]:
            gradient = getattr(gradients, name) if layer is None else getattr(gradients, name)[layer]
            direction = rng.standard_normal(gradient.shape)
            edit = edits.get((name, layer), 0)
            plus, minus = (
                scalar(model, tokens, d_logits, edits | {(name, layer): edit + eps * direction}) for eps in (EPS, -EPS)
            )
            assert_is_derivative(gradient, direction, plus, minus, size)


def random_edits(model, tokens, rng):
    """The record of a run to every array of which something is added, and what was: {(name, layer): array}."""
    edits = {}

    def steps():
        for site in model.steps(tokens):
            edits[site.name, site.layer] = 0.3 * rng.standard_normal(site.array.shape)
            site.array += edits[site.name, site.layer]
            yield site

    run = record(steps())
    run.tokens = tokens
    return run, edits


@given(float64_models(), st.integers(0, 99), st.sampled_from([(), (2,)]), st.booleans(), st.booleans())
@settings(max_examples=15)
def test_every_weight_against_central_differences(model, seed, batch, tied, edited):
    """Also of a run that is edited on its way."""
    if not tied:
        lm_head = np.random.default_rng(seed).standard_normal(model.wte.shape)
        model = build(model.config, named_weights(model) | {"lm_head.weight": lm_head}, np.float64)
    tokens, run, d_logits, rng = drawn(model, seed, 4, batch)
    run, edits = random_edits(model, tokens, rng) if edited else (run, {})
    gradients = weight_gradients(model, run, backward(model, run, d_logits))
    size = np.abs(d_logits * run.logits).sum()
    weights = named_weights(model)
    assert gradients.keys() == weights.keys()
    for name, weight in weights.items():
        direction = rng.standard_normal(weight.shape)
        before = weight.copy()
        weight += EPS * direction
        plus = scalar(model, tokens, d_logits, edits)
        weight[...] = before - EPS * direction
        minus = scalar(model, tokens, d_logits, edits)
        weight[...] = before
        assert gradients[name].shape == weight.shape and gradients[name].dtype == np.float64
        assert_is_derivative(gradients[name], direction, plus, minus, size)


def test_an_assignment_is_exact_from_the_assigned_array_on():
    model = tiny_model()
    tokens, clean, d_logits, rng = drawn(model, 0)
    patch = clean.z[1] + 1.0

    def steps(name=None, layer=None, change=0):
        for site in model.steps(tokens):
            if (site.name, site.layer) == ("z", 1):
                site.array = patch
            if (site.name, site.layer) == (name, layer):
                site.array += change
            yield site

    gradients = backward(model, record(steps()), d_logits)
    after = [("z", 1), ("attn_out", 1), ("resid_mid", 1), ("resid_pre", 2), ("pattern", 2), ("mlp_in", 2)]
    for name, layer in after:
        gradient = getattr(gradients, name)[layer]
        direction = rng.standard_normal(gradient.shape)
        plus, minus = (
            ((d_logits * record(steps(name, layer, eps * direction)).logits).sum(), ()) for eps in (EPS, -EPS)
        )
        assert_is_derivative(gradient, direction, plus, minus, np.abs(d_logits * clean.logits).sum())
    # Before it, the derivative is that of the same edit as an addition, which lets `v` act on `z` still.
    assert np.abs(gradients.v[1]).max() > 0
    assert (d_logits * record(steps("v", 1, 1.0)).logits).sum() == (d_logits * record(steps()).logits).sum()


@pytest.mark.parametrize("name", SLOPES)
def test_slopes_of_the_activations(name):
    assert SLOPES.keys() == ACTIVATIONS.keys()
    x = np.linspace(-8, 8, 1000)  # 0 is not among them: ReLU has no slope there
    difference = (ACTIVATIONS[name](x + 1e-5) - ACTIVATIONS[name](x - 1e-5)) / 2e-5
    # Truncation 1e-10 / 6 times a third derivative below 3, rounding 1e-15 / 1e-5.
    assert np.abs(SLOPES[name](x) - difference).max() < 1e-9
    far = np.array([-1e4, 1e4], np.float32)
    assert SLOPES[name](far).tolist() == [0, 1] and SLOPES[name](far).dtype == np.float32
    assert SLOPES["relu"](np.zeros(1)).tolist() == [0]


# ---- against PyTorch ------------------------------------------------------------------------------


def assert_agrees(name, actual, expected, tolerance, by_layer):
    assert actual.shape == expected.shape
    for i in range(len(actual)) if by_layer else [...]:
        worst, scale = np.abs(actual[i] - expected[i]).max(), np.abs(expected[i]).max()
        assert worst <= tolerance * scale, f"{name}[{i}]: largest difference {worst:.3g}, of {scale:.3g}"


def assert_agrees_with_pytorch(model, tokens, d_logits, arrays, weights):
    """arrays and weights: PyTorch's derivatives in float64, as `make_gradient_reference.pytorch_gradients` has them."""
    tolerance = AGAINST_PYTORCH[model.dtype.type]
    run = model.run(tokens)
    gradients = backward(model, run, d_logits.astype(model.dtype))
    for name, expected in arrays.items():
        assert_agrees(name, getattr(gradients, name), expected, tolerance, by_layer=name in BLOCK_SITES)
    of_weights = weight_gradients(model, run, gradients)
    assert of_weights.keys() == weights.keys()
    for key, expected in weights.items():
        actual = of_weights[key].reshape(expected.shape)
        if key.endswith("attn.c_attn.bias"):
            # Adding the same to every key changes no pattern, so the derivative for the key bias is 0 but for rounding.
            thirds = actual.reshape(3, -1), expected.reshape(3, -1)
            assert max(np.abs(third[1]).max() for third in thirds) <= tolerance * np.abs(expected).max()
        assert_agrees(key, actual, expected, tolerance, by_layer=False)


def tiny_reference(stem, dtype):
    """The model of one file of tiny references, and the file's derivatives, those of equal arrays filled in."""
    with np.load(REFERENCE / f"{stem}.npz") as file:
        tensors = {key.removeprefix("weights."): file[key] for key in file if key.startswith("weights.")}
        tokens = file["tokens"]
    with np.load(GRADIENTS / f"{stem}.npz") as file:
        stored = dict(file)
    assert np.array_equal(stored["tokens"], tokens)
    arrays = {key.removeprefix("array."): stored[key] for key in stored if key.startswith("array.")}
    arrays |= {"mlp_out": arrays["resid_post"], "attn_out": arrays["resid_mid"], "logits": stored["d_logits"]}
    assert arrays.keys() == set(SITES)
    config = json.loads(str(stored["header"]))["config"]
    config.pop("tie_word_embeddings", None)  # says what the weights say: whether there is an lm_head of its own
    config.setdefault("n_inner", 4 * config["n_embd"])
    weights = {key.removeprefix("weight."): stored[key] for key in stored if key.startswith("weight.")}
    return build(Config(**config), tensors, dtype), tokens, stored["d_logits"], arrays, weights


def test_there_are_references():
    assert len(TINY) == 5


@pytest.mark.parametrize("dtype", AGAINST_PYTORCH)
@pytest.mark.parametrize("stem", TINY)
def test_stored_gradients_of_tiny_models(stem, dtype):
    assert_agrees_with_pytorch(*tiny_reference(stem, dtype))


@pytest.mark.skipif(not (GRADIENTS / "nano.npz").exists(), reason="run scripts/make_gradient_reference.py nano first")
@pytest.mark.parametrize("dtype", AGAINST_PYTORCH)
def test_stored_gradients_of_nano(dtype):
    with np.load(GRADIENTS / "nano.npz") as file:
        stored = dict(file)
    tolerance = AGAINST_PYTORCH[dtype]
    model, tokens, columns = nanopatch.load("nano", dtype=dtype), stored["tokens"], stored["columns"]
    assert model.source.sha256 == json.loads(str(stored["header"]))["sha256"], "made for another nano: make it again"
    run = model.run(tokens)
    d_logits = np.zeros_like(run.logits)
    d_logits[-1, columns] = 1, -1
    gradients = backward(model, run, d_logits)
    names = {key.removeprefix("array.") for key in stored if key.startswith("array.")}
    assert names == set(SITES) - {"mlp_out", "attn_out", "logits"}
    for name in names:
        expected = stored[f"array.{name}"]
        assert_agrees(name, getattr(gradients, name), expected, tolerance, by_layer=name in BLOCK_SITES)
    for key, array in weight_gradients(model, run, gradients).items():
        if key == "wte.weight":
            rows = np.unique([*tokens, *columns])
            assert not np.delete(array, rows, axis=0).any()
            array = array[rows]
        expected, norm = stored[f"sample.{key}"], stored[f"norm.{key}"]
        largest = np.abs(array).max()
        assert abs(np.linalg.norm(array.astype(np.float64)) - norm) <= tolerance * norm
        assert np.abs(array.ravel()[:: max(1, array.size // 500)] - expected).max() <= tolerance * largest


@pytest.mark.parametrize("batch", [(), (3,)])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("activation", ["gelu_new", "gelu", "relu"])
def test_live_against_pytorch(activation, tied, batch, monkeypatch):
    """With weights, prompt and switches that no stored file has."""
    pytest.importorskip("torch", reason="`pip install torch transformers` makes this test run")
    pytest.importorskip("transformers", reason="`pip install torch transformers` makes this test run")
    monkeypatch.setattr(sys, "path", [str(ROOT / "scripts"), *sys.path])
    import make_gradient_reference as reference

    switches = dict(n_inner=20, scale_attn_by_inverse_layer_idx=tied, scale_attn_weights=activation != "gelu")
    switches |= dict(activation_function=activation, layer_norm_epsilon=1e-4)
    config = {**reference.SIZES, **switches}
    tensors = reference.random_tensors(config | {"tie_word_embeddings": tied}, seed=700)
    torch_model = reference.pytorch_model(config | {"tie_word_embeddings": tied}, tensors).double()
    tokens = np.random.default_rng(7).integers(0, config["vocab_size"], (*batch, 10))
    d_logits = reference.random_d_logits(tokens, config["vocab_size"], seed=701)
    arrays, weights = reference.pytorch_gradients(torch_model, tokens, d_logits)
    assert arrays.keys() == set(SITES)
    for dtype in AGAINST_PYTORCH:
        assert_agrees_with_pytorch(build(Config(**config), tensors, dtype), tokens, d_logits, arrays, weights)


# ---- what must hold exactly -----------------------------------------------------------------------


def assert_same(actual, expected, gradients, growth=1):
    """Two sums of the same terms: 1e-12 (float32: 1e-5) of the record's largest derivative, since the terms of a
    LayerNorm's derivative may nearly cancel and leave numbers smaller than their rounding. growth: of rounding, between
    runs that are not one run."""
    largest = max(np.abs(getattr(gradients, name)).max() for name in SITES)
    assert actual.shape == expected.shape and actual.dtype == expected.dtype
    assert np.abs(actual - expected).max() <= TOLERANCE[actual.dtype] * largest * growth


def growth_of_rounding(run):
    """How much larger, relative to what it rounds, an error may become in one step of a run.

    A LayerNorm makes it larger by |stream| / the stream's standard deviation. A softmax turns what rounds of scores,
    which is a part of the largest score, into a part of the pattern.
    """
    return max(steepness(run), np.abs(run.scores[np.isfinite(run.scores)]).max())


@given(well_conditioned_models(), st.integers(0, 99))
@settings(max_examples=30)
def test_a_sum_hands_its_derivative_on_and_readers_add_up(model, seed):
    _, run, d_logits, _ = drawn(model, seed)
    g = backward(model, run, d_logits)
    assert np.array_equal(g.logits, d_logits)
    assert np.array_equal(g.resid_post[:-1], g.resid_pre[1:])
    assert np.array_equal(g.mlp_out, g.resid_post)
    assert np.array_equal(g.attn_out, g.resid_mid)
    assert_same(g.resid_mid, g.resid_post + g.mlp_in, g)
    assert_same(g.resid_pre, g.resid_mid + g.q_input + g.k_input + g.v_input, g)
    # A LayerNorm does not see what all of its inputs share, nor softmax what all of its row does.
    zeros = np.zeros((model.n_layer, 5), model.dtype)
    for name in ("q_input", "k_input", "v_input", "mlp_in"):
        assert_same(getattr(g, name).sum(axis=-1), zeros, g)
    assert_same(g.scores.sum(axis=(1, 3)), zeros, g)
    assert not g.scores[np.isneginf(run.scores)].any()
    assert not np.isnan(g.scores).any()


@given(well_conditioned_models(), st.integers(0, 99))
@settings(max_examples=30)
def test_a_batch_equals_its_rows_and_everything_keeps_shape_and_dtype(model, seed):
    tokens, run, d_logits, _ = drawn(model, seed, batch=(3,))
    batch, growth = backward(model, run, d_logits), growth_of_rounding(run)
    assert batch.names == SITES and batch.tokens is run.tokens
    rows = [model.run(row) for row in tokens]
    alone = [backward(model, row, d) for row, d in zip(rows, d_logits, strict=True)]
    for name in SITES:
        array = getattr(batch, name)
        assert array.shape == getattr(run, name).shape and array.dtype == model.dtype
        assert not array.flags.writeable
        axis = 1 if name in BLOCK_SITES else 0
        assert_same(array, np.stack([getattr(row, name) for row in alone], axis), batch, growth)
    sums = [weight_gradients(model, *pair) for pair in zip(rows, alone, strict=True)]
    for key, array in weight_gradients(model, run, batch).items():
        assert array.dtype == model.dtype
        largest = max(np.abs(array).max(), max(np.abs(getattr(batch, name)).max() for name in SITES))
        assert np.abs(array - sum(row[key] for row in sums)).max() <= TOLERANCE[model.dtype] * largest * growth


@given(models(), st.integers(0, 99), st.integers(0, 4))
@settings(max_examples=30)
def test_nothing_after_the_last_position_the_metric_looks_at_counts(model, seed, n_seen):
    """n_seen = 0: a metric that looks at no logit has derivative 0 everywhere."""
    _, run, d_logits, _ = drawn(model, seed)
    d_logits[n_seen:] = 0
    gradients = backward(model, run, d_logits)
    for name in SITES:
        array = getattr(gradients, name)
        by_position = np.moveaxis(array, -2 if name in ("scores", "pattern") or array.ndim < 4 else -3, 0)
        assert by_position.shape[0] == 5
        assert not by_position[n_seen:].any()
    assert not gradients.scores[..., n_seen:].any()
    if n_seen == 0:
        assert not any(array.any() for array in weight_gradients(model, run, gradients).values())
    else:
        assert gradients.ln_final[n_seen - 1].any()


@given(well_conditioned_models(), st.integers(0, 99))
@settings(max_examples=30)
def test_a_metric_of_few_tokens_and_one_of_all_take_the_same_path(model, seed):
    """The product with lm_head leaves out columns of zeros: the derivatives add up all the same."""
    _, run, d_logits, _ = drawn(model, seed)
    few, rest = d_logits.copy(), d_logits.copy()
    few[:, 2:], rest[:, :2] = 0, 0
    whole, parts = backward(model, run, d_logits), [backward(model, run, d) for d in (few, rest)]
    for name in SITES:
        assert_same(getattr(parts[0], name) + getattr(parts[1], name), getattr(whole, name), whole)


def test_fewer_sites_are_the_same_derivatives():
    model = tiny_model()
    _, run, d_logits, _ = drawn(model, 0)
    whole = backward(model, run, d_logits)
    for kept in ("logits", "resid_pre", ("ln_final", "z", "scores")):
        some = model.backward(run, d_logits, sites=kept)
        assert set(some.names) == set([kept] if isinstance(kept, str) else kept)
        assert all(np.array_equal(getattr(some, name), getattr(whole, name)) for name in some.names)
    with pytest.raises(NanopatchError, match="unknown site 'zed'"):
        model.backward(run, d_logits, sites="zed")


def test_nothing_given_is_changed():
    model = tiny_model()
    tokens, run, d_logits, _ = drawn(model, 0)
    before = {name: getattr(run, name).copy() for name in SITES}, d_logits.copy()
    gradients = backward(model, run, d_logits)
    weight_gradients(model, run, gradients)
    assert all(np.array_equal(getattr(run, name), array) for name, array in before[0].items())
    assert np.array_equal(d_logits, before[1]) and d_logits.flags.writeable
    assert not any(np.shares_memory(getattr(gradients, name), d_logits) for name in SITES)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_toy_model_learns(dtype):
    """Twenty steps of plain gradient descent on one batch: the cross-entropy of the next token falls at each."""
    model = tiny_model(dtype=dtype)
    tokens = np.random.default_rng(0).integers(0, model.n_vocab, (4, 9))
    targets = tokens[:, 1:, None]
    losses = []
    for _ in range(20):
        run = model.run(tokens[:, :-1])
        probabilities = softmax(run.logits)
        losses.append(-np.log(np.take_along_axis(probabilities, targets, axis=-1)).mean())
        d_logits = probabilities / targets.size  # the derivative of that mean: (probability - 1 at the target) / number
        hits = np.take_along_axis(d_logits, targets, axis=-1) - 1 / targets.size
        np.put_along_axis(d_logits, targets, hits, axis=-1)
        gradients = weight_gradients(model, run, backward(model, run, d_logits))
        for name, weight in named_weights(model).items():
            weight -= 0.02 * gradients[name]
    assert all(after < before for before, after in zip(losses, losses[1:], strict=False))
    assert losses[-1] < 0.8 * losses[0]


def test_weight_gradients_is_public_and_three_steps_lower_the_loss():
    """By names of `nanopatch` alone, for one prompt: the cross-entropy of each next token."""
    assert {"weight_gradients", "named_weights"} <= set(nanopatch.__all__)
    assert nanopatch.weight_gradients is weight_gradients and nanopatch.named_weights is named_weights
    model = tiny_model(seed=3)
    tokens = np.random.default_rng(3).integers(0, model.n_vocab, 10)
    losses, expected = [], []
    for _ in range(4):
        run = model.run(tokens[:-1])
        logs = run.logits - np.log(np.exp(run.logits).sum(axis=-1, keepdims=True))
        losses.append(-logs[range(9), tokens[1:]].mean())
        d_logits = np.exp(logs) / 9
        d_logits[range(9), tokens[1:]] -= 1 / 9
        gradients = nanopatch.weight_gradients(model, run, model.backward(run, d_logits))
        weights = nanopatch.named_weights(model)
        expected.append(0.0002 * sum((gradient**2).sum() for gradient in gradients.values()))
        for name, weight in weights.items():
            weight -= 0.0002 * gradients[name]
    # To first order, a step of size s lowers the loss by s times the gradient's square; the second order is small.
    lowered = -np.diff(losses)
    assert (lowered > 0).all() and np.abs(lowered / expected[:3] - 1).max() < 0.1


# ---- bad input ------------------------------------------------------------------------------------


def test_a_record_that_is_not_whole_or_not_of_this_model():
    model = tiny_model()
    tokens, run, d_logits, _ = drawn(model, 0)
    with pytest.raises(NanopatchError, match=r"the run lacks q_input, scores: record every array, with sites=None"):
        backward(model, model.run(tokens, sites=set(SITES) - {"scores", "q_input"}), d_logits)
    with pytest.raises(NanopatchError, match=r"must be a record as model.run\(prompt\) returns it, not RunArray"):
        backward(model, run.logits, d_logits)
    with pytest.raises(NanopatchError, match=r"its resid_pre has shape \(3, 5, 12\) .* makes \(2, 5, 12\) and float64"):
        backward(tiny_model(n_layer=2), run, d_logits)
    with pytest.raises(NanopatchError, match=r"its q has shape \(3, 5, 2, 6\) .* makes \(3, 5, 3, 4\)"):
        backward(tiny_model(n_head=3), run, d_logits)
    with pytest.raises(NanopatchError, match=r"its mlp_pre has shape \(3, 5, 20\)"):
        backward(tiny_model(n_inner=21), run, d_logits)
    with pytest.raises(NanopatchError, match=r"its resid_pre has shape .* and dtype float64, .* and float32"):
        backward(tiny_model(dtype=np.float32), run, d_logits)
    mixed = {name: getattr(run, name) for name in SITES} | {"z": model.run([1, 2]).z}
    with pytest.raises(NanopatchError, match=r"its z has shape \(3, 2, 2, 6\) .* makes \(3, 5, 2, 6\)"):
        backward(model, Run(mixed), d_logits)
    with pytest.raises(NanopatchError, match=r"the run is of another model, Model\(unnamed: 3 layers"):
        backward(tiny_model(seed=1), run, d_logits)
    gradients = backward(model, run, d_logits)
    assert gradients.is_gradient and repr(gradients).startswith("Run of derivatives(resid_pre (3, 5, 12), ")
    with pytest.raises(NanopatchError, match="the run must hold arrays of a run, not derivatives"):
        backward(model, gradients, d_logits)
    with pytest.raises(NanopatchError, match="the run must hold arrays of a run, not derivatives"):
        weight_gradients(model, gradients, run)
    with pytest.raises(NanopatchError, match="the record of gradients must hold derivatives, not arrays of a run"):
        weight_gradients(model, run, run)
    with pytest.raises(NanopatchError, match="the gradients belong to a run on other tokens"):
        weight_gradients(model, model.run(tokens[::-1]), gradients)
    same_again = backward(tiny_model(), run, d_logits)
    assert np.array_equal(same_again.z, backward(model, run, d_logits).z)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d[:-1], r"shape \(5, 29\) and dtype float64, not \(4, 29\) and float64"),
        (lambda d: d[-1], r"not \(29,\) and float64"),
        (lambda d: d[None], r"not \(1, 5, 29\) and float64"),
        (lambda d: d.astype(np.float32), r"not \(5, 29\) and float32"),
        (lambda d: d.tolist(), "not a list"),
        (lambda d: np.where(d > 1, np.nan, d), "d_logits holds NaN or infinity: the metric has no finite derivative"),
        (lambda d: np.where(d > 1, np.inf, d), "d_logits holds NaN or infinity"),
    ],
)
def test_a_d_logits_that_does_not_fit(change, said):
    model = tiny_model()
    _, run, d_logits, _ = drawn(model, 0)
    with pytest.raises(NanopatchError, match=said):
        backward(model, run, change(d_logits))


def test_weight_gradients_of_what_does_not_belong_together():
    model = tiny_model()
    tokens, run, d_logits, _ = drawn(model, 0)
    gradients = backward(model, run, d_logits)
    with pytest.raises(NanopatchError, match="the gradients belong to a run on other tokens"):
        weight_gradients(model, model.run([1, 2]), gradients)
    with pytest.raises(NanopatchError, match="the record of gradients lacks resid_pre, "):
        weight_gradients(model, run, backward(model, run, d_logits, sites="logits"))
    by_hand = record(model.steps_from(0, model.embed(tokens)))
    with pytest.raises(NanopatchError, match=r"lacks its \(5,\) token ids, .* set run.tokens to them"):
        weight_gradients(model, by_hand, gradients)
    by_hand.tokens = tokens
    again = weight_gradients(model, by_hand, gradients)
    assert all(np.array_equal(array, again[key]) for key, array in weight_gradients(model, run, gradients).items())
