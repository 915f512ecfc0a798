"""Attribution patching against its definition, against exact patching, and integrated gradients' completeness."""

import numpy as np
import pytest
from conftest import TOLERANCE, notes_of, tiny_model

from nanopatch import (
    Experiment,
    Mean,
    Metric,
    NanopatchError,
    Noise,
    Patch,
    Resample,
    Zero,
    attribute,
    edge_attribution,
    load,
    record,
    saliency,
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


def without(fields, names):
    return {name: value for name, value in fields.items() if name not in names}


def floor(model, *prompts):
    """1e-12 (float32: 1e-5) of the largest |logit|: what rounding may do to a difference of logits."""
    return TOLERANCE[model.dtype] * max(float(np.abs(model.run(prompt).logits).max()) for prompt in prompts)


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
    others = {"grid", "normalised", "notes", "steps", "adds_layers"}
    assert without(estimate.to_dict(), others) == without(exact.to_dict(), others)
    assert (estimate.base, estimate.donor, estimate.method) == (exact.base, exact.donor, "attribution")
    assert np.array_equal(estimate.unchanged, exact.unchanged)


def test_every_axis_sums_over_what_it_patches():
    model = tiny_model(seed=3)
    fine = attribute(model, EXPERIMENT, Patch("z", ("layer", "position", "head")))
    coarse = attribute(model, EXPERIMENT, "z")
    baseline = fine.base_value
    rounding = 10 * floor(model, EXPERIMENT.clean, EXPERIMENT.corrupted)  # of sums of up to 10 cells
    assert np.abs((fine.grid - baseline).sum(axis=1) - (coarse.grid - baseline)).max() <= rounding
    window = attribute(model, EXPERIMENT, Patch("z", window=2))
    assert np.abs(window.grid[0] - baseline - (coarse.grid[:2] - baseline).sum(axis=0)).max() <= rounding


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
    equal = np.isclose(estimate(prompts), alone, rtol=0, atol=floor(model, EXPERIMENT.clean, *prompts))
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
        patch, metric = Patch(site, "layer"), "probability" if isinstance(corruption, Noise) else "logit_diff"
        exact = sweep(model, EXPERIMENT, patch, metric=metric, corruption=corruption).grid
        coarse, fine = (
            attribute(model, EXPERIMENT, patch, metric=metric, corruption=corruption, steps=steps) for steps in (4, 64)
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
    rounding = 1e-12 * np.abs(expected).max() + floor(model, EXPERIMENT.clean)
    assert np.abs(result.grid - result.baseline_clean - expected).max() <= rounding
    with pytest.raises(NanopatchError, match="steps=1.5: a whole number is needed"):
        attribute(model, EXPERIMENT, "z", corruption=Zero(), steps=1.5)


def test_the_average_over_pairs_is_that_of_the_estimates():
    model, pairs = tiny_model(seed=6), [EXPERIMENT, Experiment([1, 2, 6, 4, 5], [1, 2, 7, 4, 5], 4, 8)]
    result = attribute(model, pairs, "z", metric=["logit_diff", "probability"], steps=3)
    for name in ("logit_diff", "probability"):
        each = [attribute(model, pair, "z", metric=name, steps=3).grid for pair in pairs]
        assert np.abs(result[name].grid - np.mean(each, axis=0)).max() <= 1e-12 * max(1, np.abs(each).max())
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
    rounding = floor(model, EXPERIMENT.clean, EXPERIMENT.corrupted)
    assert np.abs(attribute(model, EXPERIMENT, metric=own).grid - attribute(model, EXPERIMENT).grid).max() <= rounding


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
    assert len(notes_of(attribute(model, EXPERIMENT))) == 1
    some = sweep(model, EXPERIMENT, Patch("pattern", ("query", "key"), layers=[0, 2], heads=[1]))
    assert some.chosen == {"head": (1,), "layer": (0, 2)}
    assert notes_of(some) == [
        "Only head 1 was patched; `head` is not an axis of this grid.",
        "Only layer 0+2 was patched; `layer` is not an axis of this grid.",
    ]
    assert notes_of(sweep(model, EXPERIMENT, Patch("pattern", ("query", "key")))) == []
    pairs = sweep(model, EXPERIMENT, Patch("z", "position", heads=[(0, 1), (2, 0)]))
    assert notes_of(pairs) == ["Only head 0.1+2.0 was patched; `head` is not an axis of this grid."]


def test_what_cannot_be_done():
    model = tiny_model()
    with pytest.raises(NanopatchError, match="rank has no derivative"):
        attribute(model, EXPERIMENT, metric="rank")
    with pytest.raises(NanopatchError, match="kl_divergence and its derivative are 0 in the run patched into"):
        attribute(model, EXPERIMENT, direction="noise", metric="kl_divergence")
    assert np.ptp(attribute(model, EXPERIMENT, direction="noise", metric="kl_divergence", steps=2).grid) > 0.1
    with pytest.raises(NanopatchError, match="steps=0: a whole number is needed"):
        attribute(model, EXPERIMENT, steps=0)
    nowhere = Metric("nowhere", "last", as_metric("rank").function, gradient=lambda logits, target: logits * np.nan)
    with pytest.raises(NanopatchError, match="nowhere has no finite derivative here"):
        attribute(model, EXPERIMENT, metric=nowhere)


# ---- without a second prompt, and over several experiments, written out ---------------------------


def logit_diff_gradient(model, run):
    """The derivative of the difference of logits 3 and 7 at the last position with respect to z."""
    d_logits = np.zeros_like(run.logits)
    d_logits[-1, [3, 7]] = 1, -1
    return model.backward(run, d_logits, sites="z").z


def slow_estimate(model, embedding, donors, steps):
    """The estimate for each layer and head of z, by one loop: (grid, the size of what is added up).

    embedding: the residual stream that enters the run patched into. donors: {(layer, head): what is put in,
    (n_layer, n_tokens, n_head, d_head)}.
    """

    def run(layer=None, head=None, fraction=0.0):
        def on_the_line():
            for site in model.steps_from(0, embedding):
                if (site.name, site.layer) == ("z", layer):
                    site.array += fraction * (donors[layer, head][layer] - site.array)
                yield site

        return record(on_the_line())

    base = run()
    grid, size = np.empty((model.n_layer, model.n_head)), np.abs(base.logits).max()
    for layer, head in np.ndindex(grid.shape):
        lines = [run(layer, head, (step + 0.5) / steps) for step in range(steps)] if steps > 1 else [base]
        slope = np.mean([logit_diff_gradient(model, line)[layer, :, head] for line in lines], axis=0)
        terms = (donors[layer, head][layer, :, head] - base.z[layer, :, head]) * slope
        grid[layer, head] = base.logits[-1, 3] - base.logits[-1, 7] + terms.sum()
        size = max(size, np.abs(terms).sum())
    return grid, size


def assert_mean_of(result, estimates):
    """It is the mean of these (grid, size), up to 1e-12 of the size of what is added up, in float64."""
    grids, sizes = zip(*estimates, strict=True)
    assert np.abs(result.grid - np.mean(grids, axis=0)).max() <= 1e-12 * max(sizes)


OTHERS = [[1, 2, 3, 4, 6], [7, 2, 8, 4, 5], [3, 3, 1, 8, 5]]
SEVERAL = [EXPERIMENT, Experiment([1, 2, 6, 4, 5], [1, 2, 7, 4, 5], 3, 7), Experiment([8, 2, 6, 4, 2], [8] * 5, 3, 7)]


def all_alike(model, donor):
    return dict.fromkeys(np.ndindex(model.n_layer, model.n_head), donor)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("direction", sorted(DIRECTIONS))
def test_under_noise_it_is_the_mean_over_seeds(direction, steps):
    model, noise = tiny_model(seed=6), Noise([1, 2], sigma=1.5, seeds=[3, 4, 7])
    clean, estimates = model.embed(EXPERIMENT.clean), []
    for seed in noise.seeds:
        noisy = clean.copy()
        noisy[[1, 2]] += np.random.default_rng([seed, 0]).normal(0, 1.5 * model.wte.std(), (2, model.d_model))
        base, other = (noisy, clean) if direction == "denoise" else (clean, noisy)
        donor = record(model.steps_from(0, other)).z
        estimates.append(slow_estimate(model, base, all_alike(model, donor), steps))
    assert_mean_of(attribute(model, EXPERIMENT, "z", direction=direction, corruption=noise, steps=steps), estimates)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("experiments", [SEVERAL[:1], SEVERAL], ids=["one", "several"])
def test_of_an_ablation_it_is_written_out_for_each_corruption(experiments, steps):
    """Each cell of a resample, of each experiment, draws its own prompt."""
    model = tiny_model(seed=6)
    runs = [model.run(prompt).z for prompt in OTHERS]
    estimates = {"zero": [], "mean": [], "mean of all positions": [], "resample": []}
    for number, experiment in enumerate(experiments):
        random, embedding = np.random.default_rng([5, number]), model.embed(experiment.clean)
        mean, overall = np.mean(runs, axis=0), np.broadcast_to(np.mean(runs, axis=(0, 2))[:, None], runs[0].shape)
        drawn = {cell: runs[random.integers(3)] for cell in np.ndindex(model.n_layer, model.n_head)}
        assert len({id(run) for run in drawn.values()}) > 1
        donors = [all_alike(model, donor) for donor in (np.zeros_like(mean), mean, overall)] + [drawn]
        for name, of_cells in zip(estimates, donors, strict=True):
            estimates[name].append(slow_estimate(model, embedding, of_cells, steps))
    corruptions = [Zero(), Mean(OTHERS), Mean(OTHERS, per_position=False), Resample(OTHERS, seed=5)]
    for name, corruption in zip(estimates, corruptions, strict=True):
        result = attribute(model, experiments, "z", corruption=corruption, steps=steps)
        assert_mean_of(result, estimates[name])
        assert result.n_pairs == len(experiments) and result.corruption == corruption


def test_under_noise_it_is_the_mean_of_the_estimates_of_each_seed():
    model = tiny_model(seed=6)
    both = attribute(model, EXPERIMENT, "z", corruption=Noise([1, 2], seeds=[3, 4]))
    alone = [attribute(model, EXPERIMENT, "z", corruption=Noise([1, 2], seeds=[seed])) for seed in (3, 4)]
    grids = np.array([result.grid for result in alone])
    assert np.abs(both.grid - grids.mean(axis=0)).max() <= 1e-14 * np.abs(grids).max()
    assert both.n_pairs == 1 and both.standard_error is None and both.corruption.seeds == (3, 4)


def test_the_mean_over_experiments_has_its_standard_error():
    model = tiny_model(seed=6)
    pairs = [EXPERIMENT, Experiment([1, 2, 6, 4, 5], [1, 2, 7, 4, 5], 4, 8), Experiment([9, 2, 6], [9, 1, 6], 4, 8)]
    for corruption in (None, Zero()):
        result = attribute(model, pairs, "z", corruption=corruption)
        grids = [attribute(model, pair, "z", corruption=corruption).grid for pair in pairs[:2]]
        rounding = 1e-14 * np.abs(grids).max()  # another order of a float64 sum
        assert np.abs(result.grid - np.mean(grids, axis=0)).max() <= rounding
        assert np.abs(result.standard_error - np.std(grids, axis=0, ddof=1) / np.sqrt(2)).max() <= rounding
        assert result.n_pairs == 2 and result.skipped[0][0] == "pair 2"


def on_top(logits):
    return float(logits[-1].argmax() == 3)


@pytest.mark.parametrize(
    "estimated",
    [
        lambda model: attribute(model, EXPERIMENT, metric=on_top),
        lambda model: attribute(model, EXPERIMENT, metric=on_top, steps=3),
        lambda model: attribute(model, EXPERIMENT, metric=lambda logits: 1.0 + on_top(logits)),
        lambda model: edge_attribution(model, EXPERIMENT, metric=lambda logits: 1.0 + on_top(logits)),
        lambda model: edge_attribution(model, EXPERIMENT, metric=on_top, steps=3),
        lambda model: saliency(model, EXPERIMENT, metric=lambda logits: 1.0 + on_top(logits)),
    ],
    ids=["attribute", "steps", "not 0", "edges", "edges, steps", "saliency"],
)
def test_a_flat_metric_is_an_error_and_no_grid_of_zeros(estimated):
    with pytest.raises(NanopatchError, match="flat here|are 0 in the run patched into"):
        estimated(tiny_model())
