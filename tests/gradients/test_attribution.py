"""Attribution patching against its definition, against exact patching, and integrated gradients' completeness."""

import numpy as np
import pytest
from conftest import tiny_model

from nanopatch import (
    Comparison,
    Experiment,
    Mean,
    Metric,
    NanopatchError,
    Noise,
    Patch,
    Resample,
    Zero,
    attribute,
    compare,
    load,
    sweep,
)
from nanopatch.experiments import MICHELLE
from nanopatch.experiments.metrics import METRICS, Target, as_metric, metric_gradient
from nanopatch.experiments.patch import SITE_AXES
from nanopatch.model.sites import SITES
from nanopatch.patching.case import make_case, run_both
from nanopatch.patching.cells import cells_of_patch
from nanopatch.results.sweep import DIRECTIONS

EXPERIMENT = Experiment([1, 2, 3, 4, 5], [1, 9, 3, 8, 5], 3, 7)


@pytest.mark.parametrize("name", [name for name in METRICS if METRICS[name].gradient])
def test_gradients_of_metrics_by_central_differences(name):
    model = tiny_model(seed=1)
    tokens = EXPERIMENT.tokens(model)
    target = Target(tokens.answer, tokens.wrong_answer, tokens.corrupted, model.run(tokens.clean).logits[-1])
    logits = model.run(tokens.corrupted).logits.copy()

    def value(logits):
        metric = METRICS[name]
        given = {"answers": logits[-1, [3, 7]], "last": logits[-1], "all": logits}[metric.needs]
        return metric.function(given, target)

    direction = np.random.default_rng(0).normal(size=logits.shape)
    slope = (value(logits + 1e-5 * direction) - value(logits - 1e-5 * direction)) / 2e-5
    # A central difference of step h errs by about h^2 of the third derivative, and rounding / h: 1e-9 here.
    assert (metric_gradient(METRICS[name], logits, target) * direction).sum() == pytest.approx(slope, abs=1e-8)


@pytest.mark.parametrize("site", sorted(SITE_AXES))
@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_it_is_the_derivative_of_exact_patching(site, direction):
    """Where the other run differs by little, patching is linear and the two agree."""
    model = tiny_model(seed=2)
    near = model.wte.copy()
    near[[9, 8]] = near[[2, 4]] + 1e-4 * np.random.default_rng(0).normal(size=(2, model.d_model))
    model.wte[...] = near  # tokens 9 and 8 are now almost 2 and 4
    exact = sweep(model, EXPERIMENT, site, direction=direction)
    estimate = attribute(model, EXPERIMENT, site, direction=direction)
    effect = exact.grid - exact.base_value
    # Second-order terms are about 1e-4 of the effect.
    assert np.abs(estimate.grid - exact.grid).max() <= 1e-2 * np.abs(effect).max()
    assert estimate.steps == 1 and estimate.title == f"attribution: {exact.title}"
    same = (
        "experiment",
        "site",
        "axes",
        "pieces",
        "columns",
        "metric",
        "baseline_clean",
        "baseline_corrupted",
        "rounding",
    )
    assert {name: estimate.to_dict()[name] for name in same} == {name: exact.to_dict()[name] for name in same}
    assert (estimate.base, estimate.donor, estimate.method) == (exact.base, exact.donor, "attribution")
    assert np.array_equal(estimate.unchanged, exact.unchanged)


def test_every_axis_sums_over_what_it_patches():
    model = tiny_model(seed=3)
    fine = attribute(model, EXPERIMENT, Patch("z", ("layer", "position", "head")))
    coarse = attribute(model, EXPERIMENT, "z")
    baseline = fine.base_value
    assert np.allclose((fine.grid - baseline).sum(axis=1), coarse.grid - baseline, rtol=1e-10)
    window = attribute(model, EXPERIMENT, Patch("z", window=2))
    assert np.allclose(window.grid[0] - baseline, (coarse.grid[:2] - baseline).sum(axis=0), rtol=1e-10)


CHOSEN = [
    ("z", dict(heads=[[0, 1], 1])),
    ("q", dict(axes="head", heads=[[(0, 1), (2, 0)], (1, 1)])),
    ("mlp_post", dict(axes=("layer", "neuron"), neurons=[4, [7, 9]])),
    ("mlp_pre", dict(axes="neuron", neurons=4)),
    ("attn_out", dict(window=2)),
    ("resid_mid", dict(layers=[0, 2], positions=[[1, 3], 4])),
    ("pattern", dict(axes=("query", "key"))),
    ("scores", dict(axes=("layer", "head", "query"), heads=[1])),
    ("k_input", dict(align="diff")),
    ("v", dict(align="diff", heads=[1])),
]


@pytest.mark.parametrize("direction", sorted(DIRECTIONS))
@pytest.mark.parametrize(("site", "choice"), CHOSEN)
def test_it_is_the_derivative_along_what_is_copied_however_chosen(site, choice, direction):
    """A cell's difference, added in a step of +-1e-5 of the way, moves the metric by that share of the attribution."""
    model, experiment = tiny_model(seed=2), EXPERIMENT
    if "align" in choice:
        experiment = Experiment([9, 8, 1, 5, 6], [7, 2, 5, 6], 3, 7, align="diff")
    patch = Patch(site, **{name: value for name, value in choice.items() if name != "align"})
    result = attribute(model, experiment, patch, direction=direction)
    if isinstance(patch.neurons, int):  # which they are, `attribute` has found
        patch = Patch(site, patch.axes, neurons=[neuron for (neuron,) in result.pieces["neuron"]])
    (runs,) = run_both(model, experiment, 0, None, {"clean": SITES, "corrupted": SITES})
    case = make_case(runs, direction, [as_metric("logit_diff")])
    base, (patches,) = case.base, cells_of_patch(patch, case).batches

    def moved(edits, fraction):
        for step in model.steps(base.tokens):
            for edit in edits:
                if (step.name, step.layer) == (edit.site, edit.layer):
                    here = getattr(base, site)[edit.layer]
                    with np.errstate(invalid="ignore"):
                        difference = np.where(np.isneginf(here), 0, edit.donor - here)  # masked entries stay -inf
                    step.array[edit.where()] += fraction * difference[edit.where()]
        return step.array[-1, 3] - step.array[-1, 7]

    slopes = [(moved(edits, 1e-5) - moved(edits, -1e-5)) / 2e-5 for edits in patches]
    effect = np.where(np.isnan(result.grid), 0, result.grid - result.base_value).ravel()  # NaN: without a partner
    # A central difference of step h errs by about h^2 of the third derivative, and by rounding / h: 1e-9 here.
    assert np.abs(effect - slopes).max() <= 1e-8 * max(1, np.abs(slopes).max()) and np.abs(slopes).max() > 1e-3


def test_resampling_is_estimated_towards_the_prompt_that_was_drawn():
    model, prompts = tiny_model(seed=6), [[1, 2, 3, 4, 6], [7, 2, 8, 4, 5], [3, 3, 1, 8, 5]]

    def estimate(prompts):
        patch = Patch("z", ("layer", "position", "head"))
        return attribute(model, EXPERIMENT, patch, corruption=Resample(prompts), steps=2).grid

    alone = np.array([estimate([prompt]) for prompt in prompts])  # (n_prompts, ...)
    equal = np.isclose(estimate(prompts), alone, rtol=1e-12, atol=0)
    assert equal.any(axis=0).all() and (equal.sum(axis=0) == 1).any()
    assert all(equal[:, layer].any(axis=(1, 2)).sum() > 1 for layer in range(model.n_layer))  # of several, in one layer


def test_integrated_gradients_are_complete():
    """Over all positions of one layer's residual stream they sum to the whole difference, closer with more steps."""
    model = tiny_model(seed=4)
    errors = []
    for steps in (4, 16, 64):
        result = attribute(model, EXPERIMENT, Patch(axes="layer"), steps=steps)
        errors.append(np.abs(result.grid - result.baseline_clean).max())
    # The midpoint rule errs by the square of the step, where the function is smooth enough for that.
    assert errors[1] < errors[0] / 8 and errors[2] < errors[1] / 8 and errors[2] < 1e-2


@pytest.mark.parametrize("site", ["resid_pre", "attn_out", "z", "mlp_post", "pattern"])
def test_without_a_second_prompt_integrated_gradients_are_complete_too(site):
    """A whole layer ablated, or restored under noise: the estimate goes to the exact value as steps grow."""
    model = tiny_model(seed=4)
    prompts = [[1, 2, 3, 4, 6], [7, 2, 8, 4, 5]]
    corruptions = [Noise([1, 2], sigma=1.0, seeds=range(2)), Zero(), Mean(prompts), Resample(prompts)]
    if site == "resid_pre":
        corruptions.remove(Zero())  # LayerNorm sees a direction only: nearly all changes within sqrt(eps) of zero
    for corruption in corruptions:
        patch = Patch(site, "layer")
        exact = sweep(model, EXPERIMENT, patch, metric="probability", corruption=corruption).grid
        coarse, fine = (
            attribute(model, EXPERIMENT, patch, metric="probability", corruption=corruption, steps=steps)
            for steps in (4, 64)
        )
        error = np.abs(fine.grid - exact).max()
        assert error <= 1e-2 * np.abs(exact - fine.base_value).max()
        assert error < np.abs(coarse.grid - exact).max() / 8
        assert "Not patched: integrated gradients, 64 steps." in fine.notes


def test_the_estimate_of_an_ablation_is_gradient_times_activation():
    model = tiny_model(seed=6)
    run = model.run(EXPERIMENT.clean)
    d_logits = np.zeros_like(run.logits)
    d_logits[-1, [3, 7]] = 1, -1
    expected = -(run.z * model.backward(run, d_logits).z).sum(axis=(1, 3))  # (n_layer, n_head)
    result = attribute(model, EXPERIMENT, "z", corruption=Zero())
    assert np.abs(result.grid - result.baseline_clean - expected).max() <= 1e-12 * np.abs(expected).max()
    with pytest.raises(NanopatchError, match="steps=1.5: a whole number is needed"):
        attribute(model, EXPERIMENT, "z", corruption=Zero(), steps=1.5)


def test_the_average_over_pairs_is_that_of_the_estimates():
    model, pairs = tiny_model(seed=6), [EXPERIMENT, Experiment([1, 2, 6, 4, 5], [1, 2, 7, 4, 5], 4, 8)]
    result = attribute(model, pairs, "z", metric=["logit_diff", "probability"], steps=3)
    for name in ("logit_diff", "probability"):
        each = [attribute(model, pair, "z", metric=name, steps=3).grid for pair in pairs]
        assert np.allclose(result[name].grid, np.mean(each, axis=0), rtol=1e-12, atol=0)
    assert result["logit_diff"].n_pairs == 2 and "integrated gradients, 3 steps" in str(result)


def test_on_nano_it_fails_early_and_integration_mends_it():
    nano = load("nano")
    exact, plain = sweep(nano, MICHELLE), attribute(nano, MICHELLE)
    integrated = attribute(nano, MICHELLE, steps=10)
    errors = [np.abs(estimate.normalised - exact.normalised)[:2].max() for estimate in (plain, integrated)]
    assert errors[1] < errors[0] / 2


def test_several_at_once_and_aligned():
    model = tiny_model(seed=5)
    metrics = ["logit_diff", "probability"]
    panels = attribute(model, EXPERIMENT, ("z", "mlp_out"), direction=("denoise", "noise"), metric=metrics)
    assert list(panels.sweeps())[0] == "z denoise logit_diff" and len(panels.sweeps()) == 8
    unequal = attribute(model, Experiment([9, 8, 1, 5, 6], [7, 2, 5, 6], 3, 7, align="diff"))
    assert np.isnan(unequal.grid[:, 0]).all() and np.isfinite(unequal.grid[:, 1:]).all()


def test_a_metric_of_ones_own():
    model = tiny_model(seed=5)
    own = Metric("own", "all", lambda logits, target: logits[-1, 3] - logits[-1, 7], gradient=own_gradient)
    assert np.allclose(attribute(model, EXPERIMENT, metric=own).grid, attribute(model, EXPERIMENT).grid, rtol=1e-12)


def own_gradient(logits, target):
    gradient = np.zeros_like(logits)
    gradient[-1, [3, 7]] = 1, -1
    return gradient


def test_a_function_of_ones_own_is_differentiated_by_differences_and_that_is_said():
    calls = []

    def difference(logits):
        calls.append(logits)
        return logits[-1, 3] - logits[-1, 7]

    model = tiny_model(seed=5)
    result, exact = attribute(model, EXPERIMENT, metric=difference), attribute(model, EXPERIMENT)
    assert np.abs(result.grid - exact.grid).max() <= 1e-8 * np.abs(exact.grid).max()
    assert result.notes[1] == "The derivative of difference was taken by finite differences over the logits."
    # Of 145 logits two count: twice log2(145) halvings, two calls each, then two differences; baselines, and the value.
    assert len(calls) <= 2 * 2 * 8 + 2 * 2 + 4
    with pytest.raises(NanopatchError, match="<lambda> has no finite derivative here"):
        attribute(model, EXPERIMENT, metric=lambda logits: np.nan)


def test_a_cell_of_several_layers_or_of_some_heads_says_so():
    model = tiny_model(seed=5)
    assert attribute(model, EXPERIMENT, Patch(window=2)).notes[1].startswith("Cells of several layers add up: ")
    assert len(attribute(model, EXPERIMENT).notes) == 1
    some = sweep(model, EXPERIMENT, Patch("pattern", ("query", "key"), layers=[0, 2], heads=[1]))
    assert some.chosen == {"head": (1,), "layer": (0, 2)}
    assert some.notes == [
        "Only head 1 was patched; `head` is not an axis of this grid.",
        "Only layer 0+2 was patched; `layer` is not an axis of this grid.",
    ]
    assert sweep(model, EXPERIMENT, Patch("pattern", ("query", "key"))).notes == []
    pairs = sweep(model, EXPERIMENT, Patch("z", "position", heads=[(0, 1), (2, 0)]))
    assert pairs.notes == ["Only head 0.1+2.0 was patched; `head` is not an axis of this grid."]


def test_comparison_with_exact_patching():
    model = tiny_model(seed=5)
    comparison = compare(model, EXPERIMENT)
    x, y = sweep(model, EXPERIMENT).grid.ravel(), attribute(model, EXPERIMENT).grid.ravel()
    assert comparison.correlation == pytest.approx(np.corrcoef(x, y)[0, 1], rel=1e-12)
    (label, exact, estimate), *_ = comparison.worst()
    worst = np.abs(x - y).argmax()
    assert (exact, estimate) == (x[worst], y[worst])
    layer, position = divmod(worst, 5)
    assert label == f"layer {layer}, position {comparison.exact.column_labels[position]}"
    assert f"correlation with exact patching {comparison.correlation:.3f}" in str(comparison)
    assert comparison._repr_png_().startswith(b"\x89PNG")
    (ax,) = comparison.plot().axes
    points = ax.collections[0].get_offsets()
    assert np.allclose(points, np.column_stack([x, y]))
    *numbers, legend = [text.get_text() for text in ax.texts]
    assert numbers == ["1", "2", "3"] and legend.splitlines()[:2] == ["worst cells", f"1  {label}"]
    assert ax.get_title().startswith(f"attribution:\n{comparison.exact.title}\ncorrelation ")
    assert comparison.slope == pytest.approx(np.cov(x, y)[0, 1] / np.var(x, ddof=1), rel=1e-9)
    line = ax.lines[0].get_xydata()
    assert (line[:, 0] == line[:, 1]).all()  # the identity
    with pytest.raises(NanopatchError, match="compared with a sweep of the same prompts, site, axes and metric"):
        Comparison(sweep(model, EXPERIMENT, "attn_out"), attribute(model, EXPERIMENT, "mlp_out"))
    with pytest.raises(NanopatchError, match="a comparison takes two sweeps, of one site, direction and metric"):
        compare(model, EXPERIMENT, ["z", "q"])


def test_what_cannot_be_done():
    model = tiny_model()
    with pytest.raises(NanopatchError, match="rank has no derivative"):
        attribute(model, EXPERIMENT, metric="rank")
    with pytest.raises(NanopatchError, match="kl_divergence is 0 in the run patched into, and so is its derivative"):
        attribute(model, EXPERIMENT, direction="noise", metric="kl_divergence")
    assert np.ptp(attribute(model, EXPERIMENT, direction="noise", metric="kl_divergence", steps=2).grid) > 0.1
    with pytest.raises(NanopatchError, match="steps=0: a whole number is needed"):
        attribute(model, EXPERIMENT, steps=0)
    nowhere = Metric("nowhere", "last", as_metric("rank").function, gradient=lambda logits, target: logits * np.nan)
    with pytest.raises(NanopatchError, match="nowhere has no finite derivative here"):
        attribute(model, EXPERIMENT, metric=nowhere)


def test_under_noise_it_is_the_mean_of_each_seed_s_estimate():
    model = tiny_model(seed=6)
    both = attribute(model, EXPERIMENT, "z", corruption=Noise([1, 2], seeds=[3, 4]))
    alone = [attribute(model, EXPERIMENT, "z", corruption=Noise([1, 2], seeds=[seed])) for seed in (3, 4)]
    assert np.array_equal(both.grid, np.mean([result.grid for result in alone], axis=0))
    assert both.n_pairs == 1 and both.standard_error is None and both.corruption.seeds == (3, 4)


def test_the_mean_over_experiments_has_its_standard_error():
    model = tiny_model(seed=6)
    pairs = [EXPERIMENT, Experiment([1, 2, 6, 4, 5], [1, 2, 7, 4, 5], 4, 8), Experiment([9, 2, 6], [9, 1, 6], 4, 8)]
    for corruption in (None, Zero()):
        result = attribute(model, pairs, "z", corruption=corruption)
        grids = [attribute(model, pair, "z", corruption=corruption).grid for pair in pairs[:2]]
        assert np.array_equal(result.grid, np.mean(grids, axis=0))
        assert np.allclose(result.standard_error, np.std(grids, axis=0, ddof=1) / np.sqrt(2), rtol=1e-12, atol=0)
        assert result.n_pairs == 2 and result.skipped[0][0] == "pair 2"
