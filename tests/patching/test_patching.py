"""Exact identities of activation patching, over random tiny models (tolerances: conftest.assert_metric)."""

import numpy as np
import pytest
from conftest import N_TOKENS, TOLERANCE, assert_metric, diff, notes_of, pairs, prompts, tiny_model
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from nanopatch import Experiment, NanopatchError, Patch, Zero, sweep
from nanopatch.experiments.patch import SITE_AXES
from nanopatch.results.sweep import DIRECTIONS

POSITION_SITES = tuple(site for site in SITE_AXES if "position" in SITE_AXES[site])


def by_position(site):
    return Patch(site, axes=("layer", "position"))


@given(pairs(), st.sampled_from(POSITION_SITES))
@settings(max_examples=60)
def test_sweep_equals_the_slowest_obvious_way(drawn, site):
    model, experiment, *_ = drawn
    for direction in DIRECTIONS:
        base, donor = prompts(experiment, direction)
        result = sweep(model, experiment, by_position(site), direction=direction)
        run = model.run(donor)
        for layer in range(model.n_layer):
            for position in range(N_TOKENS):
                for step in model.steps(base):
                    if (step.name, step.layer) == (site, layer):
                        step.array[position] = getattr(run, site)[layer, position]
                assert_metric(result.grid[layer, position], diff(step.array), model, experiment)


@given(pairs(), st.data())
@settings(max_examples=60)
def test_patching_all_positions_gives_the_donor(drawn, data):
    model, experiment, *_ = drawn
    clean = model.run(experiment.clean)
    layer = data.draw(st.integers(0, model.n_layer - 1))
    for site in model.steps(experiment.corrupted):
        if site.name == "resid_pre" and site.layer == layer:
            site.array = clean.resid_pre[layer]
    assert np.abs(site.array - clean.logits).max() <= TOLERANCE[model.dtype] * np.abs(clean.logits).max()


@given(pairs(), st.sampled_from(POSITION_SITES))
@settings(max_examples=60)
def test_patching_a_run_into_itself_changes_nothing(drawn, site):
    model, experiment, *_ = drawn
    itself = Experiment(experiment.clean, experiment.clean, 3, 7)
    result = sweep(model, itself, by_position(site))
    assert_metric(result.grid, result.baseline_clean, model, itself)
    assert np.isnan(result.normalised).all() and "Not normalised: logit_diff is" in result.notes[0]


@given(pairs(), st.sampled_from(POSITION_SITES), st.sampled_from(list(DIRECTIONS)))
@settings(max_examples=60)
def test_a_patch_before_the_first_differing_token_changes_nothing(drawn, site, direction):
    model, experiment, first, _ = drawn
    result = sweep(model, experiment, by_position(site), direction=direction)
    assert_metric(result.grid[:, :first], result.base_value, model, experiment)


@given(pairs(), st.sampled_from(list(DIRECTIONS)))
@settings(max_examples=60)
def test_patching_layer_0_at_the_only_differing_token_gives_the_donor(drawn, direction):
    model, experiment, first, last = drawn
    assume(first == last)
    result = sweep(model, experiment, direction=direction)
    assert_metric(result.grid[0, first], result.donor_value, model, experiment)


@given(pairs())
@settings(max_examples=40)
def test_normalised_is_0_at_the_base_and_1_at_the_donor(drawn):
    model, experiment, *_ = drawn
    for direction, (base, donor) in (("denoise", ("corrupted", "clean")), ("noise", ("clean", "corrupted"))):
        result = sweep(model, experiment, direction=direction)
        assert (result.base, result.donor) == (base, donor)
        assert result.base_value == getattr(result, f"baseline_{base}")
        assert result.donor_value == getattr(result, f"baseline_{donor}")
        span = result.donor_value - result.base_value
        assume(abs(span) > result.rounding)
        expected = (result.grid - result.base_value) / span  # the same numbers in the same order: to the bit
        assert np.array_equal(result.normalised, expected)


def test_the_loop_of_the_readme_is_a_cell_of_the_sweep():
    model = tiny_model(seed=3)
    experiment = Experiment([1, 2, 3, 4], [1, 5, 3, 4], 3, 7)
    clean = model.run(experiment.clean)
    resid = model.embed(experiment.corrupted)
    for layer in range(model.n_layer):
        if layer == 2:
            resid[1] = clean.resid_pre[2, 1]
        resid = model.block(layer, resid)
    assert_metric(sweep(model, experiment).grid[2, 1], diff(model.unembed(resid)), model, experiment)


def test_aligned_prompts_are_patched_from_their_partners():
    model = tiny_model(seed=4)
    # 9 8 1 | 7 2: 1 meets 2, 8 meets 7, 9 nobody
    experiment = Experiment([9, 8, 1, 5, 6], [7, 2, 5, 6], 3, 7, align="diff")
    result = sweep(model, experiment)
    assert result.columns == ((0, None), (1, 0), (2, 1), (3, 2), (4, 3))
    assert np.isnan(result.grid[:, 0]).all() and np.isfinite(result.grid[:, 1:]).all()
    clean = model.run(experiment.clean)
    for site in model.steps(experiment.corrupted):
        if site.name == "resid_pre" and site.layer == 1:
            site.array[1] = clean.resid_pre[1, 2]
    assert_metric(result.grid[1, 2], diff(site.array), model, experiment)
    assert len(result.to_rows()) == 3 * 4
    assert [note[:6] for note in notes_of(result)] == ["Tokens", "The pr"]
    noised = sweep(model, experiment, direction="noise")
    for site in model.steps(experiment.clean):
        if site.name == "resid_pre" and site.layer == 1:
            site.array[2] = model.run(experiment.corrupted).resid_pre[1, 1]
    assert_metric(noised.grid[1, 2], diff(site.array), model, experiment)


def test_a_sweep_leaves_nothing_behind():
    model, experiment = tiny_model(), Experiment([1, 2, 3], [1, 4, 3], 3, 7)
    first, second = sweep(model, experiment), sweep(model, experiment)
    assert np.array_equal(first.grid, second.grid)


def swept(site="resid_pre", align=None, axes=None, **arguments):
    """A small sweep; axes: of a `Patch`."""
    what = site if axes is None else Patch(site, axes)
    return sweep(tiny_model(), Experiment([1, 2], [1, 3], 3, 7, align=align), what, **arguments)


BAD = [
    (dict(site="resid"), "cannot patch 'resid'; sites are resid_pre, "),
    (dict(site="logits"), "cannot patch 'logits'; sites are resid_pre, "),
    (dict(site=3), "cannot patch 3; sites are resid_pre, "),
    (dict(axes=("layer", "head")), "resid_pre has the axes layer, position, each at most once; not 'layer', 'head'"),
    (dict(site=[]), "a list of sites or directions needs at least one$"),
    (dict(direction=()), "a list of sites or directions needs at least one$"),
    (dict(site=["z", "q", "z"]), "z is listed twice: each site, with its axes, at most once$"),
    (dict(direction=["noise", "noise"]), "direction 'noise' is listed twice: each at most once$"),
    (dict(axes=("layer", "layer")), "each at most once; not 'layer', 'layer'"),
    (dict(axes=()), "each at most once; not none"),
    (dict(direction="both"), "unknown direction 'both': \"denoise\""),
    (dict(metric="loss"), "unknown metric 'loss'; known are logit_diff, "),
    (dict(metric=3), "unknown metric 3; known are logit_diff, .*, or give a function of the logits$"),
    (dict(align="left"), "unknown alignment 'left'"),
    (dict(corruption="zero"), r"corruption='zero': Zero\(\), Mean\(\), Resample\(\) or Noise\(\) is expected$"),
    (dict(corruption=Zero), "corruption=<class .*: Zero"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_unknown_arguments_say_what_exists(arguments, message):
    with pytest.raises(NanopatchError, match=message):
        swept(**arguments)
