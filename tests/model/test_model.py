"""The forward pass: one definition, whichever way it is driven; float32 stays float32; bad input is told."""

import itertools
import sys

import numpy as np
import pytest
from conftest import N_TOKENS, TOLERANCE, models, steepness, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

import nanopatch
from nanopatch import Experiment, Model, NanopatchError
from nanopatch.model.backward import named_weights
from nanopatch.model.layers import causal_mask, layer_norm
from nanopatch.model.sites import BLOCK_SITES, SITES


def prompts(model, seed, n_tokens=7, batch=()):
    return np.random.default_rng(seed).integers(0, model.n_vocab, (*batch, n_tokens))


def assert_same(actual, expected, run):
    """Equal but for rounding, in arrays of such a run: 1e-5 (float64: 1e-12) of its largest |value| and its steepness.

    An array rounds as what it is made of does: a pattern is at most 1, and the scores it is made of may be 100. Where a
    residual stream hardly varies, its LayerNorm makes rounding larger by |stream| / its standard deviation.
    """
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    masked = np.isneginf(expected)
    assert np.array_equal(np.isneginf(actual), masked)
    steepest = steepness(run)
    largest = max(np.abs(getattr(run, name)[np.isfinite(getattr(run, name))]).max() for name in SITES)
    worst = np.abs(np.where(masked, 0, actual) - np.where(masked, 0, expected)).max(initial=0)
    assert worst <= TOLERANCE[actual.dtype] * largest * steepest, f"{worst:.3g}, of {largest:.3g} times {steepest:.3g}"


@given(models(), st.integers(0, 99))
@settings(max_examples=40)
def test_every_way_of_driving_it_gives_the_same_logits(model, seed):
    tokens = prompts(model, seed)
    run = model.run(tokens)

    for site in model.steps(tokens):
        assert site.array.dtype == model.dtype
    assert site.name == "logits"
    assert_same(site.array, run.logits, run)

    resid = model.embed(tokens)
    for layer in range(model.n_layer):
        assert_same(resid, run.resid_pre[layer], run)
        resid = model.block(layer, resid)
    assert_same(model.unembed(resid), run.logits, run)

    assert_same(model.next_logits(tokens), run.logits[-1], run)

    resid = model.embed(tokens)
    for layer in range(model.n_layer):
        for site in model.block_steps(layer, resid):
            assert_same(site.array, getattr(run, site.name)[layer], run)
        resid = site.array
    assert_same(model.unembed(resid), run.logits, run)


@given(models(), st.integers(0, 99), st.data())
@settings(max_examples=40)
def test_running_from_a_layer_on_equals_the_full_run(model, seed, data):
    run = model.run(prompts(model, seed))
    layer = data.draw(st.integers(0, model.n_layer))
    resid = run.resid_pre[layer] if layer < model.n_layer else run.resid_post[-1]
    *_, last = model.steps_from(layer, resid)
    assert_same(last.array, run.logits, run)


@given(models(), st.integers(0, 99))
@settings(max_examples=40)
def test_a_batch_equals_its_rows_one_by_one(model, seed):
    tokens = prompts(model, seed, batch=(3,))
    batch = model.run(tokens)
    for row in range(3):
        alone = model.run(tokens[row])
        for name in SITES:
            array = getattr(batch, name)
            array = array[:, row] if name in BLOCK_SITES else array[row]
            assert_same(array, getattr(alone, name), alone)


@given(models(), st.integers(0, 99), st.integers(0, 6))
@settings(max_examples=40)
def test_changing_a_token_changes_nothing_before_it(model, seed, changed):
    tokens = prompts(model, seed)
    other = tokens.copy()
    other[changed] = (other[changed] + 1) % model.n_vocab
    run, other_run = model.run(tokens), model.run(other)
    assert_same(other_run.logits[:changed], run.logits[:changed], run)
    assert_same(other_run.resid_post[:, :changed], run.resid_post[:, :changed], run)
    assert np.abs(other_run.resid_pre[0, changed] - run.resid_pre[0, changed]).max() > 0


@given(models(), st.integers(0, 99), st.sets(st.sampled_from(SITES), min_size=1))
@settings(max_examples=40)
def test_asking_for_fewer_sites_changes_none_of_them(model, seed, names):
    tokens = prompts(model, seed)
    everything, some = model.run(tokens), model.run(tokens, sites=names)
    assert set(some.names) == names
    for name in names:
        assert_same(getattr(some, name), getattr(everything, name), everything)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_long_prompts_attend_in_blocks_to_the_same_effect(dtype):
    """Where nobody asks for scores or pattern, queries are taken 128 at a time."""
    model = tiny_model(dtype=dtype, n_positions=300)
    tokens = prompts(model, 0, n_tokens=300, batch=(2,))
    run = model.run(tokens)
    assert_same(model.run(tokens, sites=["z", "logits"]).z, run.z, run)
    assert_same(model.next_logits(tokens), run.logits[:, -1], run)


def test_each_array_is_what_its_name_says():
    """The table of names, each computed here from the arrays before it; products to 1e-12 of their largest |value|."""

    def equal(actual, expected):
        return np.abs(actual - expected).max() <= 1e-12 * np.abs(expected).max()

    model = tiny_model(n_layer=2)
    run = model.run(prompts(model, 0))
    for layer, block in enumerate(model.h):
        attn, mlp = block.attn, block.mlp
        assert np.array_equal(run.q_input[layer], run.resid_pre[layer])
        assert np.array_equal(run.mlp_in[layer], run.resid_mid[layer])
        for head in range(model.n_head):
            scores = run.q[layer, :, head] @ run.k[layer, :, head].T / np.sqrt(model.d_head)
            for query in range(7):
                seen = np.exp(scores[query, : query + 1]) / np.exp(scores[query, : query + 1]).sum()
                error = np.abs(run.pattern[layer, head, query, : query + 1] / seen - 1).max()
                # What a score rounds by is a part of the score, and becomes a part of the pattern.
                assert error <= 1e-12 * max(1, np.abs(scores[query, : query + 1]).max())
                assert not run.pattern[layer, head, query, query + 1 :].any()
            assert equal(run.z[layer, :, head], run.pattern[layer, head] @ run.v[layer, :, head])
        attn_out = run.z[layer].reshape(7, -1) @ attn.c_proj.weight + attn.c_proj.bias
        assert equal(run.attn_out[layer], attn_out)
        assert np.array_equal(run.resid_mid[layer], run.resid_pre[layer] + run.attn_out[layer])
        assert equal(run.mlp_out[layer], run.mlp_post[layer] @ mlp.c_proj.weight + mlp.c_proj.bias)
        assert np.array_equal(run.resid_post[layer], run.resid_mid[layer] + run.mlp_out[layer])
    assert np.array_equal(run.resid_pre[1], run.resid_post[0])
    assert equal(run.logits, run.ln_final @ model.wte.T)
    assert run.names == SITES


def test_shapes_and_dtypes():
    model = tiny_model(dtype=np.float32)
    run = model.run(prompts(model, 0, batch=(2,)))
    d_mlp, heads = model.d_mlp, (model.n_head, model.d_head)
    shapes = dict.fromkeys(SITES, (3, 2, 7, model.d_model)) | {
        **dict.fromkeys(("q", "k", "v", "z"), (3, 2, 7, *heads)),
        **dict.fromkeys(("scores", "pattern"), (3, 2, model.n_head, 7, 7)),
        **dict.fromkeys(("mlp_pre", "mlp_post"), (3, 2, 7, d_mlp)),
        "ln_final": (2, 7, model.d_model),
        "logits": (2, 7, model.n_vocab),
    }
    assert {name: getattr(run, name).shape for name in SITES} == shapes
    assert {getattr(run, name).dtype for name in SITES} == {np.dtype(np.float32)}


def test_block_never_writes_into_its_input_and_its_output_may_be_edited():
    model = tiny_model()
    resid = model.embed([1, 2, 3])
    before = resid.copy()
    after = model.block(0, resid)
    assert np.array_equal(resid, before)
    after[1] = 0
    for site in model.block_steps(0, resid):
        site.array[...] = 0
    assert np.array_equal(resid, before)


def test_a_run_changes_neither_the_model_nor_the_next_run():
    model = tiny_model()
    weights = [model.wte.copy(), model.h[1].attn.c_attn.weight.copy(), model.ln_f.bias.copy()]
    first = model.run([1, 2, 3])
    for site in model.steps([1, 2, 3]):
        site.array *= 0.5
    assert all(map(np.array_equal, weights, [model.wte, model.h[1].attn.c_attn.weight, model.ln_f.bias]))
    second = model.run([1, 2, 3])
    assert all(np.array_equal(getattr(first, name), getattr(second, name)) for name in SITES)


# ---- memory -------------------------------------------------------------------------------------------


def assert_apart(arrays, *others):
    """No array shares memory with another one, or with one of the others. All are dicts."""
    for (name, array), (other, theirs) in itertools.combinations(arrays.items(), 2):
        assert not np.shares_memory(array, theirs), f"{name} and {other}"
    for (name, array), (other, theirs) in itertools.product(
        arrays.items(), [pair for o in others for pair in o.items()]
    ):
        assert not np.shares_memory(array, theirs), f"{name} and {other}"


def named(there):
    """Those of a block's local names that are sites."""
    return {name: there[name] for name in BLOCK_SITES if name in there}


@given(models(), st.integers(0, 99), st.sets(st.sampled_from(SITES)), st.sampled_from([(), (2,)]))
@settings(max_examples=40)
def test_no_array_handed_over_shares_memory_with_another_or_with_the_model(model, seed, names, batch):
    tokens = prompts(model, seed, batch=batch)
    arrays = {(site.name, site.layer): site.array for site in model.steps(tokens, sites=names)}
    assert {name for name, _ in arrays} == names
    assert_apart(arrays, named_weights(model))


@given(models(), st.integers(0, 99), st.sets(st.sampled_from(SITES)), st.data())
@settings(max_examples=40)
def test_nothing_shares_memory_with_the_residual_stream_that_was_given(model, seed, names, data):
    resid = model.embed(prompts(model, seed))
    layer = data.draw(st.integers(0, model.n_layer))
    arrays = {(site.name, site.layer): site.array for site in model.steps_from(layer, resid, sites=names)}
    assert_apart(arrays, {"given": resid}, named_weights(model))
    if layer < model.n_layer:
        assert_apart({"resid_post": model.block(layer, resid), "given": resid}, named_weights(model))
    assert_apart({"logits": model.unembed(resid), "given": resid}, named_weights(model))


@given(models(), st.integers(0, 99), st.sets(st.sampled_from(BLOCK_SITES)), st.sampled_from([(), (2,)]))
@settings(max_examples=40)
def test_at_each_site_every_array_of_the_frame_is_one_of_its_own(model, seed, names, batch):
    """As a debugger shows it. mlp_post may take the memory of mlp_pre if that is not asked for; the name then goes."""
    resid = model.embed(prompts(model, seed, batch=batch))
    steps = model.block_steps(model.n_layer - 1, resid, sites=names)
    for site in steps:
        there = steps.gi_frame.f_locals
        assert there[site.name] is site.array
        assert_apart(named(there), {"given": resid})
        if site.name == "scores":
            assert not there["z"].any()
        if "mlp_post" in there:
            assert ("mlp_pre" in there) == ("mlp_pre" in names)


def watch_blocks(call):
    """Call it, with a look at the locals of `Model.block_steps` wherever that calls a function; returns how many.

    What it calls most is `hand_over`, for each site, whether it is asked for or not.
    """
    filled, looked = [], 0

    def look(frame, event, argument):
        nonlocal looked
        if event != "call" or frame.f_back is None or frame.f_back.f_code is not Model.block_steps.__code__:
            return
        there = frame.f_back.f_locals
        looked += 1
        assert_apart(named(there), {"given": there["resid"]})
        if "z" in there and not any(there["z"] is z for z in filled):
            assert not there["z"].any()
            filled.append(there["z"])
        if "mlp_post" in there:
            assert ("mlp_pre" in there) == ("mlp_pre" in there["sites"])

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        call()
    finally:
        sys.setprofile(before)
    assert filled
    return looked


def other_prompt(tokens):
    return Experiment(tokens, [*tokens[:2], (tokens[2] + 1) % 29, *tokens[3:]], 3, 7)


DRIVEN = {
    "run": lambda model, tokens: model.run(tokens),
    "run of few sites": lambda model, tokens: model.run(tokens, sites=("q", "mlp_post")),
    "steps without sites": lambda model, tokens: list(model.steps(tokens, sites=())),
    "block": lambda model, tokens: model.block(0, model.embed(tokens)),
    "next_logits": lambda model, tokens: model.next_logits(tokens),
    "generate": lambda model, tokens: nanopatch.generate(model, tokens, 2),
    "sweep": lambda model, tokens: nanopatch.sweep(model, other_prompt(tokens), nanopatch.Patch("z", layers=[0])),
    "attribute": lambda model, tokens: nanopatch.attribute(model, other_prompt(tokens), "z", steps=2),
    "path_patch": lambda model, tokens: nanopatch.path_patch(model, other_prompt(tokens), "head 0.0", "mlp"),
    "faithfulness": lambda model, tokens: nanopatch.faithfulness(model, other_prompt(tokens), [("embed", "logits")]),
}


@pytest.mark.parametrize("call", DRIVEN.values(), ids=DRIVEN)
@given(models(), st.integers(0, 99))
@settings(max_examples=8)
def test_whoever_runs_a_block_every_array_of_its_frame_is_one_of_its_own(call, model, seed):
    tokens = prompts(model, seed, N_TOKENS).tolist()
    assert watch_blocks(lambda: call(model, tokens)) >= len(BLOCK_SITES)


def test_z_is_zero_before_it_is_filled_block_by_block():
    """300 positions are filled 128 at a time: what is not filled yet is zero."""
    model = tiny_model(n_layer=1, n_positions=300)
    tokens, ends = prompts(model, 0, 300), []

    def look(frame, event, argument):
        caller = frame.f_back
        if event == "call" and frame.f_code.co_name == "by_head" and caller.f_code is Model.block_steps.__code__:
            ends.append(int(np.flatnonzero(caller.f_locals["z"].any(axis=(1, 2))).max(initial=-1)) + 1)

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        z = model.run(tokens, sites="z").z
    finally:
        sys.setprofile(before)
    assert ends == [0, 128, 256] and z.any(axis=(0, 2, 3)).all()


# ---- odds and ends --------------------------------------------------------------------------------------


def test_causal_mask():
    assert np.array_equal(np.isneginf(causal_mask(2, 4, np.float32)), [[0, 0, 0, 1], [0, 0, 0, 0]])
    assert causal_mask(1, 1, np.float32).dtype == np.float32


def test_prepend_bos():
    model = nanopatch.load("nano")
    tokens = model.tokenize("Hello", prepend_bos=True)
    assert tokens.tolist() == [50256, *model.tokenize("Hello")]
    assert np.array_equal(
        model.run("Hello", prepend_bos=True, sites="logits").logits, model.run(tokens, sites="logits").logits
    )


@pytest.mark.parametrize("layer", [-1, 3, "0", 1.0])
def test_a_layer_that_does_not_exist(layer):
    model = tiny_model()
    resid = model.embed([1, 2])
    with pytest.raises(NanopatchError, match=f"layer {layer} does not exist: this model's layers are 0 to 2"):
        model.block(layer, resid)


def test_a_residual_stream_of_another_shape_or_dtype():
    model = tiny_model(dtype=np.float32)
    with pytest.raises(NanopatchError, match=r"\(n_tokens, 12\) of dtype float32, not \(2, 12\) and float64"):
        model.block(0, np.zeros((2, 12)))
    with pytest.raises(NanopatchError, match=r"not \(12,\) and float32"):
        model.unembed(np.zeros(12, np.float32))
    for resid in ([[0.0] * 12], np.zeros((0, 12), np.float32), None):
        with pytest.raises(NanopatchError, match="a residual stream is"):
            model.block(0, resid)
    for tokens in ([-1], [99999], ["a"]):
        with pytest.raises(NanopatchError):
            model.unembed(np.zeros((1, 12), np.float32), tokens)
    with pytest.raises(NanopatchError, match="unknown site 'resid'; sites are resid_pre, "):
        list(model.steps([1], sites=["resid"]))


@pytest.mark.parametrize("size", [1e17, 1e19, 1e25, 1e36])
def test_a_layer_norm_whose_squares_overflow(size):
    """As float64 has it, to float32's rounding; rows of ordinary size beside it stay as they are, to the bit."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 50)).astype(np.float32)
    large = x.copy()
    large[1] *= np.float32(size)
    weight, bias = rng.normal(size=(2, 50)).astype(np.float32)
    ours = layer_norm(large, weight, bias, 1e-5)
    np.testing.assert_allclose(ours, layer_norm(large.astype(np.float64), weight, bias, 1e-5), rtol=0, atol=1e-5)
    np.testing.assert_array_equal(ours[[0, 2]], layer_norm(x, weight, bias, 1e-5)[[0, 2]])


def test_large_weights_give_the_right_logits_or_none():
    """wte and wpe of 1e19, whose squares are outside float32: the ratio to float64's logits is 1."""
    small, large = tiny_model(dtype=np.float32), tiny_model(dtype=np.float64)
    for model in (small, large):
        model.wte[...] *= 1e19
        model.wpe[...] *= 1e19
    logits = large.run([1, 2, 3]).logits
    assert np.abs(small.run([1, 2, 3]).logits - logits).max() <= 1e-5 * np.abs(logits).max()
