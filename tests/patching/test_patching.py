"""Exact identities of activation patching, over random tiny models (tolerances: tiny.assert_close)."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from conftest import TOLERANCE, models, tiny_model

from nanopatch import Experiment, NanopatchError, sweep
from nanopatch.patching.sweep import SITE_AXES

N_TOKENS = 6
POSITION_SITES = tuple(site for site in SITE_AXES if "position" in SITE_AXES[site])


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


def assert_metric(actual, expected, model, experiment):
    """Equal up to the tolerance that holds for logits: 1e-5 (float64: 1e-12) of the largest |logit|."""
    largest = max(np.abs(model.run(p, sites="logits").logits).max() for p in (experiment.clean, experiment.corrupted))
    assert np.abs(np.asarray(actual) - expected).max(initial=0) <= 2 * TOLERANCE[model.dtype] * largest


@given(pairs(), st.sampled_from(POSITION_SITES))
@settings(deadline=None, max_examples=60)
def test_sweep_equals_the_slowest_obvious_way(drawn, site):
    model, experiment, *_ = drawn
    for direction in ("denoise", "noise"):
        source, into = (experiment.clean, experiment.corrupted)[:: 1 if direction == "denoise" else -1]
        result = sweep(model, experiment, site=site, axes=("layer", "position"), direction=direction)
        run = model.run(source)
        for layer in range(model.n_layer):
            for position in range(N_TOKENS):
                for step in model.steps(into):
                    if (step.name, step.layer) == (site, layer):
                        step.array[position] = getattr(run, site)[layer, position]
                logits = step.array[-1]
                assert_metric(result.grid[layer, position], float(logits[3]) - float(logits[7]), model, experiment)


@given(pairs(), st.data())
@settings(deadline=None, max_examples=60)
def test_patching_all_positions_gives_the_run_patched_from(drawn, data):
    model, experiment, *_ = drawn
    clean = model.run(experiment.clean)
    layer = data.draw(st.integers(0, model.n_layer - 1))
    for site in model.steps(experiment.corrupted):
        if site.name == "resid_pre" and site.layer == layer:
            site.array = clean.resid_pre[layer]
    assert np.abs(site.array - clean.logits).max() <= TOLERANCE[model.dtype] * np.abs(clean.logits).max()


@given(pairs(), st.sampled_from(POSITION_SITES))
@settings(deadline=None, max_examples=60)
def test_patching_a_run_into_itself_changes_nothing(drawn, site):
    model, experiment, *_ = drawn
    itself = Experiment(experiment.clean, experiment.clean, 3, 7)
    result = sweep(model, itself, site=site, axes=("layer", "position"))
    assert_metric(result.grid, result.baseline_clean, model, itself)
    assert np.isnan(result.normalised).all() and "Not normalised: logit_diff is" in result.notes[0]


@given(pairs(), st.sampled_from(POSITION_SITES), st.sampled_from(["denoise", "noise"]))
@settings(deadline=None, max_examples=60)
def test_a_patch_before_the_first_differing_token_changes_nothing(drawn, site, direction):
    model, experiment, first, _ = drawn
    result = sweep(model, experiment, site=site, axes=("layer", "position"), direction=direction)
    assert_metric(result.grid[:, :first], result.baseline_into, model, experiment)


@given(pairs(), st.sampled_from(["denoise", "noise"]))
@settings(deadline=None, max_examples=60)
def test_patching_layer_0_at_the_only_differing_token_gives_the_run_patched_from(drawn, direction):
    model, experiment, first, last = drawn
    assume(first == last)
    result = sweep(model, experiment, direction=direction)
    assert_metric(result.grid[0, first], result.baseline_from, model, experiment)


@given(pairs())
@settings(deadline=None, max_examples=40)
def test_normalised_is_0_at_the_run_patched_into_and_1_at_the_run_patched_from(drawn):
    model, experiment, *_ = drawn
    for direction, into in (("denoise", "baseline_corrupted"), ("noise", "baseline_clean")):
        result = sweep(model, experiment, direction=direction)
        assert result.baseline_into == getattr(result, into)
        span = result.baseline_from - result.baseline_into
        assume(abs(span) > result.rounding)
        expected = (result.grid - result.baseline_into) / span
        assert np.allclose(result.normalised, expected, rtol=1e-12, atol=0)


def test_the_loop_of_the_readme_is_a_cell_of_the_sweep():
    model = tiny_model(seed=3)
    experiment = Experiment([1, 2, 3, 4], [1, 5, 3, 4], 3, 7)
    clean = model.run(experiment.clean)
    resid = model.embed(experiment.corrupted)
    for layer in range(model.n_layer):
        if layer == 2:
            resid[1] = clean.resid_pre[2, 1]
        resid = model.block(layer, resid)
    logits = model.unembed(resid)[-1]
    assert np.isclose(sweep(model, experiment).grid[2, 1], logits[3] - logits[7], rtol=1e-12)


def test_aligned_prompts_are_patched_from_their_partners():
    model = tiny_model(seed=4)
    experiment = Experiment([9, 8, 1, 5, 6], [7, 2, 5, 6], 3, 7)  # 9 8 1 | 7 2: 1 meets 2, 8 meets 7, 9 nobody
    result = sweep(model, experiment, align="diff")
    assert result.columns == ((0, None), (1, 0), (2, 1), (3, 2), (4, 3))
    assert np.isnan(result.grid[:, 0]).all() and np.isfinite(result.grid[:, 1:]).all()
    clean = model.run(experiment.clean)
    for site in model.steps(experiment.corrupted):
        if site.name == "resid_pre" and site.layer == 1:
            site.array[1] = clean.resid_pre[1, 2]
    assert np.isclose(result.grid[1, 2], site.array[-1, 3] - site.array[-1, 7], rtol=1e-12)
    assert len(result.to_rows()) == 3 * 4
    assert [note[:6] for note in result.notes] == ["Tokens", "The pr"]
    noised = sweep(model, experiment, align="diff", direction="noise")
    for site in model.steps(experiment.clean):
        if site.name == "resid_pre" and site.layer == 1:
            site.array[2] = model.run(experiment.corrupted).resid_pre[1, 1]
    assert np.isclose(noised.grid[1, 2], site.array[-1, 3] - site.array[-1, 7], rtol=1e-12)


def test_a_sweep_leaves_nothing_behind():
    model, experiment = tiny_model(), Experiment([1, 2, 3], [1, 4, 3], 3, 7)
    first, second = sweep(model, experiment), sweep(model, experiment)
    assert np.array_equal(first.grid, second.grid)


BAD = [
    (dict(site="resid"), "cannot patch 'resid'; sites are resid_pre, "),
    (dict(site="logits"), "cannot patch 'logits'; sites are resid_pre, "),
    (dict(axes=("layer", "head")), "resid_pre has the axes layer, position, each at most once; not 'layer', 'head'"),
    (dict(site=[]), "a site or direction is a name, or a list of names, each once"),
    (dict(direction=()), "a site or direction is a name, or a list of names, each once"),
    (dict(axes=("layer", "layer")), "each at most once; not 'layer', 'layer'"),
    (dict(axes=()), "each at most once; not none"),
    (dict(direction="both"), "unknown direction 'both': \"denoise\""),
    (dict(metric="loss"), "unknown metric 'loss'; known are logit_diff, "),
    (dict(metric=3), "a metric is a name .* or a function of the logits, not 3"),
    (dict(align="left"), "unknown alignment 'left'"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_unknown_arguments_say_what_exists(arguments, message):
    with pytest.raises(NanopatchError, match=message):
        sweep(tiny_model(), Experiment([1, 2], [1, 3], 3, 7), **arguments)
