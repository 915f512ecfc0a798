"""Ablations and causal tracing against the slowest obvious way, and their identities."""

import numpy as np
import pytest
from conftest import N_TOKENS, TOLERANCE, assert_metric, diff, notes_of, pairs, slow_logits, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

from nanopatch import (
    Experiment,
    Mean,
    NanopatchError,
    Noise,
    Patch,
    Resample,
    Sweep,
    Zero,
    ablate,
    attribute,
    load,
    sweep,
    trace,
)
from nanopatch.experiments.experiment import MICHELLE
from nanopatch.experiments.patch import SITE_AXES
from nanopatch.results.sweep import DIRECTIONS

EXPERIMENT = Experiment([1, 2, 3, 4], [1, 9, 3, 4], 3, 7)
OTHERS = [[5, 6, 7, 8], [9, 10, 11, 12], [1, 1, 2, 2]]


# ---- ablations --------------------------------------------------------------------------------------


@given(pairs(), st.sampled_from([site for site in SITE_AXES if "position" in SITE_AXES[site]]))
@settings(max_examples=40)
def test_zero(drawn, site):
    model, experiment, *_ = drawn
    result = ablate(model, experiment, Patch(site, ("layer", "position")))
    for layer in range(model.n_layer):
        for position in range(N_TOKENS):
            logits = slow_logits(model, experiment.clean, [(site, layer, position, 0)])
            assert_metric(result.grid[layer, position], diff(logits), model, experiment)


def test_zero_heads_and_patterns():
    model = tiny_model(seed=8)
    z, pattern = ablate(model, EXPERIMENT, "z"), ablate(model, EXPERIMENT, "pattern")
    logits = slow_logits(model, EXPERIMENT.clean, [("z", 1, np.s_[:, 1], 0)])
    assert_metric(z.grid[1, 1], diff(logits), model, EXPERIMENT)
    assert_metric(z.grid, pattern.grid, model, EXPERIMENT)  # a pattern of zeros gives z of zeros


def test_scores_of_zero_attend_alike_to_all_that_is_not_masked():
    model = tiny_model(seed=8)
    scores, n_tokens = ablate(model, EXPERIMENT, "scores"), len(EXPERIMENT.clean)
    uniform = np.tril(np.ones((n_tokens, n_tokens))) / np.arange(1, n_tokens + 1)[:, None]
    logits = slow_logits(model, EXPERIMENT.clean, [("pattern", 1, np.s_[0], uniform)])
    assert_metric(scores.grid[1, 0], diff(logits), model, EXPERIMENT)


def test_means():
    model = tiny_model(seed=8)
    runs = [model.run(prompt) for prompt in OTHERS]
    here = ablate(model, EXPERIMENT, "mlp_out", Mean(OTHERS))
    value = np.mean([run.mlp_out[1, 2] for run in runs], axis=0)
    logits = slow_logits(model, EXPERIMENT.clean, [("mlp_out", 1, 2, value)])
    assert_metric(here.grid[1, 2], diff(logits), model, EXPERIMENT)
    others = [*OTHERS[:2], [1, 2]]
    everywhere = ablate(model, EXPERIMENT, "z", Mean(others, per_position=False))
    means = [model.run(prompt).z[1, :, 0].mean(axis=0) for prompt in others]
    logits = slow_logits(model, EXPERIMENT.clean, [("z", 1, np.s_[:, 0], np.mean(means, axis=0))])
    assert_metric(everywhere.grid[1, 0], diff(logits), model, EXPERIMENT)


@given(pairs(), st.sampled_from(sorted(SITE_AXES)))
@settings(max_examples=40)
def test_the_mean_over_one_prompt_is_that_prompts_own_value(drawn, site):
    model, experiment, *_ = drawn
    result = ablate(model, experiment, site, Mean([experiment.clean]))
    assert_metric(result.grid, result.baseline_clean, model, experiment)


def test_resampling_takes_one_of_the_prompts():
    model = tiny_model(seed=8)
    result = ablate(model, EXPERIMENT, "resid_post", Resample(OTHERS, seed=1))
    tolerance = 2 * TOLERANCE[model.dtype] * np.abs(model.run(EXPERIMENT.clean).logits).max()
    for index, value in np.ndenumerate(result.grid):
        possible = [
            diff(slow_logits(model, EXPERIMENT.clean, [("resid_post", *index, model.run(other).resid_post[index])]))
            for other in OTHERS
        ]
        assert np.isclose(value, possible, rtol=0, atol=tolerance).any()
    again = ablate(model, EXPERIMENT, "resid_post", Resample(OTHERS, seed=1))
    other = ablate(model, EXPERIMENT, "resid_post", Resample(OTHERS, seed=2))
    assert np.array_equal(result.grid, again.grid) and not np.array_equal(result.grid, other.grid)


def test_the_result_reports_the_relative_change(tmp_path):
    result = ablate(tiny_model(seed=8), EXPERIMENT, "z", metric=["logit_diff", "kl_divergence"])
    diffs, divergences = result["logit_diff"], result["kl_divergence"]
    expected = (diffs.grid - diffs.baseline_clean) / abs(diffs.baseline_clean)
    assert np.array_equal(diffs.normalised, expected) and diffs.scale == "relative change"
    assert "z replaced by zero (ablation), unnamed\nlogit_diff, relative change\n" in str(diffs)
    assert "logit_diff_relative_change" in diffs.to_rows()[0]
    assert diffs.baseline_corrupted is None and diffs.donor_value is None and diffs.base_value == diffs.baseline_clean
    assert np.isnan(divergences.normalised).all()
    assert divergences.notes[0].startswith("No relative change: kl_divergence")
    assert diffs.plot().axes[0].images[0].cmap.name == "RdBu_r" and diffs._repr_png_()
    diffs.save(tmp_path / "a.npz")
    assert Sweep.load(tmp_path / "a.npz").to_dict() == diffs.to_dict()


@pytest.mark.parametrize(
    ("by", "donor", "words"),
    [
        (Zero(), "zero", "replaced by zero (ablation)"),
        (Zero(), "zero", "replaced by zero (ablation)"),
        (Mean(OTHERS), "mean", "replaced by the mean over 3 prompts (ablation)"),
        (Resample(OTHERS, 4), "resample", "replaced by activations of another prompt (ablation)"),
    ],
)
def test_an_ablation_is_a_sweep_with_a_corruption_that_noises(by, donor, words):
    model = tiny_model(seed=8)
    result = ablate(model, EXPERIMENT, "z", by)
    same = sweep(model, EXPERIMENT, "z", corruption=by)  # "noise" is the only direction
    assert result.to_dict() == same.to_dict() and result.corruption == by
    assert (result.direction, result.base, result.donor, result.method) == ("noise", "clean", donor, "patching")
    assert f"z {words}, unnamed" == result.title
    assert sweep(model, EXPERIMENT, "z", direction="noise", corruption=by).to_dict() == same.to_dict()


def test_several_sites_are_ablated_at_once():
    model, corruption = tiny_model(seed=8), Resample(OTHERS, 4)
    panels = ablate(model, EXPERIMENT, ["z", Patch("mlp_out", "position")], corruption)
    assert list(panels) == ["z", "mlp_out"]
    assert panels["z"].to_dict() == ablate(model, EXPERIMENT, "z", corruption).to_dict()
    alone = ablate(model, EXPERIMENT, Patch("mlp_out", "position"), corruption)
    assert panels["mlp_out"].to_dict() == alone.to_dict()


def test_what_is_not_patched_in_an_ablation_is_noted():
    result = ablate(tiny_model(seed=8), EXPERIMENT, Patch("z", layers=[1], axes="position"))
    assert notes_of(result) == ["Only layer 1 was patched; `layer` is not an axis of this grid."]
    assert {axis: list(items) for axis, items in result.chosen.items()} == {"layer": [1]}


# ---- noise ------------------------------------------------------------------------------------------


def noised(model, experiment, positions, sigma, seed):
    """The embeddings with noise: (n_tokens, d_model)."""
    resid = model.embed(experiment.clean)
    noise = np.random.default_rng(seed).normal(0, sigma * float(model.wte.std()), (len(positions), model.d_model))
    resid[list(positions)] += noise.astype(model.dtype)
    return resid


def test_tracing_is_the_average_over_noises():
    model = tiny_model(seed=9)
    result = trace(model, EXPERIMENT, [1, 2], "mlp_out", seeds=[3, 4])
    clean, values, corrupted = model.run(EXPERIMENT.clean), [], []
    for seed in (3, 4):
        resid = clean.resid_pre[0].copy()
        resid[[1, 2]] += np.random.default_rng(seed).normal(0, 3 * model.wte.std(), (2, model.d_model))
        for restored, into in ((None, corrupted), (2, values)):
            for site in model.steps_from(0, resid):
                if restored is not None and (site.name, site.layer) == ("mlp_out", 1):
                    site.array[restored] = clean.mlp_out[1, restored]
            p = np.exp(site.array[-1])
            into.append(p[3] / p.sum())
    # A probability changes by no more than its logit does.
    assert_metric(result.grid[1, 2], np.mean(values), model, EXPERIMENT)
    assert_metric(result.baseline_corrupted, np.mean(corrupted), model, EXPERIMENT)
    assert_metric(result.grid[:, 0], result.baseline_corrupted, model, EXPERIMENT)
    assert "arXiv 2309.16042" in result.notes[1]
    whole = trace(model, EXPERIMENT, [0, 1, 2, 3], Patch(axes="layer"), seeds=[3])
    assert_metric(whole.grid, whole.baseline_clean, model, EXPERIMENT)


@given(pairs(), st.sampled_from(["resid_pre", "z", "mlp_out"]), st.sampled_from(list(DIRECTIONS)), st.data())
@settings(max_examples=40)
def test_patches_between_a_prompt_and_its_noised_self_equal_the_slowest_obvious_way(drawn, site, direction, data):
    model, experiment, *_ = drawn
    positions = sorted(data.draw(st.sets(st.integers(0, N_TOKENS - 1), min_size=1)))
    sigma, seeds = (
        data.draw(st.sampled_from([0.5, 3.0])),
        data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=2)),
    )
    corruption = Noise(positions, sigma, seeds)
    what = Patch(site, ("layer", "position"))
    result = sweep(model, experiment, what, direction=direction, corruption=corruption)
    clean = model.run(experiment.clean)
    grids, clean_values, corrupted_values, largest = [], [], [], np.abs(clean.logits).max()
    for seed in seeds:
        embedded = {
            "clean": model.embed(experiment.clean),
            "corrupted": noised(model, experiment, positions, sigma, seed),
        }
        base, donor = (embedded[name] for name in DIRECTIONS[direction])
        arrays, logits = {}, {}
        for name, resid in embedded.items():
            for step in model.steps_from(0, resid):
                if step.name == site:
                    arrays.setdefault(name, []).append(step.array.copy())
            logits[name] = step.array
            largest = max(largest, np.abs(step.array).max())
        from_donor = arrays[DIRECTIONS[direction][1]]
        clean_values.append(diff(logits["clean"]))
        corrupted_values.append(diff(logits["corrupted"]))
        grid = np.empty((model.n_layer, N_TOKENS))
        for layer in range(model.n_layer):
            for position in range(N_TOKENS):
                for step in model.steps_from(0, base):
                    if (step.name, step.layer) == (site, layer):
                        step.array[position] = from_donor[layer][position]
                grid[layer, position] = diff(step.array)
        grids.append(grid)
    tolerance = 2 * TOLERANCE[model.dtype] * largest
    assert np.abs(result.grid - np.mean(grids, axis=0)).max() <= tolerance
    assert abs(result.baseline_clean - np.mean(clean_values)) <= tolerance
    assert abs(result.baseline_corrupted - np.mean(corrupted_values)) <= tolerance
    assert (result.direction, result.corruption, result.n_pairs) == (direction, corruption, 1)
    assert result.standard_error is None  # it is of experiments, not of seeds


def test_a_trace_is_a_sweep_with_noise():
    model = tiny_model(seed=9)
    result = trace(model, EXPERIMENT, [2, 1, 1], "z", metric="logit_diff", sigma=1, seeds=range(2))
    same = sweep(model, EXPERIMENT, "z", corruption=Noise([1, 2], 1.0, [0, 1]))
    assert result.to_dict() == same.to_dict()
    assert (result.direction, result.base, result.donor) == ("denoise", "corrupted", "clean")
    assert (result.base_value, result.donor_value) == (result.baseline_corrupted, result.baseline_clean)
    assert trace(model, EXPERIMENT, [1]).corruption == Noise((1,), 3.0, tuple(range(10)))


def test_tracing_takes_several_metrics_and_says_what_is_not_finite():
    model, metrics = tiny_model(seed=9), ["logit_diff", "probability"]
    both = trace(model, EXPERIMENT, [1, 2], "mlp_out", metric=metrics, seeds=[3])
    for name in metrics:
        alone = trace(model, EXPERIMENT, [1, 2], "mlp_out", metric=name, seeds=[3])
        assert_metric(both[name].grid, alone.grid, model, EXPERIMENT)
    result = trace(model, EXPERIMENT, [1], seeds=[3], metric=lambda logits: np.nan)
    *_, strange, no_scale = notes_of(result)
    assert strange.startswith("<lambda> is not a finite number after 12 of the patches; the first is at ")
    assert no_scale == "Not normalised: <lambda> is nan in both unpatched runs, so there is no scale."
    assert (
        "No relative change: <lambda> of the unpatched run is nan."
        in ablate(model, EXPERIMENT, metric=lambda logits: np.nan).notes
    )


def test_the_result_shows_no_corrupted_prompt():
    model, experiment = tiny_model(seed=9), Experiment([1, 2, 3, 4], [1, 28, 3, 4], 3, 7)
    for result in (ablate(model, experiment), trace(model, experiment, [1], seeds=[3])):
        assert result.corrupted_tokens == result.clean_tokens == ("#1", "#2", "#3", "#4")
        assert result.column_labels == ["#1", "#2", "#3", "#4"] and "#28" not in str(result) + result.to_csv()
        below = result.plot().get_supxlabel()
        assert "clean: token ids [1, 2, 3, 4]" in below and "[1, 28" not in below


def test_the_corrupted_prompt_does_not_matter():
    model = tiny_model(seed=9)
    for other in (Experiment([1, 2, 3, 4], [5, 6], 3, 7), Experiment([1, 2, 3, 4], [5, 6], 3, 7, align="diff")):
        for metric in ("logit_diff", "cross_entropy"):
            ablated, traced = (
                (ablate(model, e, metric=metric), trace(model, e, [1], metric=metric, seeds=[3]))
                for e in (EXPERIMENT, other)
            )
            for a, b in zip(ablated, traced, strict=True):
                assert np.array_equal(a.grid, b.grid) and a.columns == b.columns


@pytest.mark.parametrize("unusable", [[99], [], "text", [1] * 40], ids=["unknown", "empty", "text", "long"])
def test_the_corrupted_prompt_is_not_read(unusable):
    model, experiment = tiny_model(seed=9), Experiment([1, 2, 3, 4], unusable, 3, 7)
    assert np.array_equal(ablate(model, experiment).grid, ablate(model, EXPERIMENT).grid)
    assert np.array_equal(trace(model, experiment, [1]).grid, trace(model, EXPERIMENT, [1]).grid)


# ---- what cannot be done ----------------------------------------------------------------------------


PROMPTS = "a list of prompts is expected, with at least one"
BAD = [
    (lambda m: ablate(m, EXPERIMENT, by="half"), r"by='half': Zero\(\), Mean\(prompts\) or Resample"),
    (lambda m: ablate(m, EXPERIMENT, by=Mean([])), r"prompts=\(\): give at least one prompt to take activations from"),
    (lambda m: ablate(m, EXPERIMENT, by=Resample([])), r"prompts=\(\): give at least one prompt"),
    (
        lambda m: ablate(m, EXPERIMENT, by=Mean([[1, 2]])),
        "prompt 0 has 2 tokens, the clean prompt 4: .*per_position=False",
    ),
    (
        lambda m: ablate(m, EXPERIMENT, "pattern", Resample([[1, 2]])),
        "prompt 0 has 2 tokens, the clean prompt 4: use prompts of its length$",
    ),
    (lambda m: ablate(m, EXPERIMENT, "pattern", Mean(OTHERS, per_position=False)), "no mean over positions"),
    (lambda m: ablate(m, EXPERIMENT, Patch("mlp_post", "neuron", neurons=3)), "no second run to rank neurons by"),
    (lambda m: ablate(m, EXPERIMENT, by=Mean("abc")), f"prompts='abc': {PROMPTS}"),
    (lambda m: ablate(m, EXPERIMENT, by=Resample(3)), f"prompts=3: {PROMPTS}"),
    (lambda m: ablate(m, EXPERIMENT, by=Mean(3)), f"prompts=3: {PROMPTS}"),
    (lambda m: ablate(m, EXPERIMENT, by=Resample(OTHERS, -1)), "seed -1: a whole number is expected, 0 or above"),
    (lambda m: trace(m, EXPERIMENT, [1], sigma=np.nan), "sigma=nan: a number above 0 is expected"),
    (lambda m: trace(m, EXPERIMENT, [1], sigma=0), "sigma=0: a number above 0 is expected"),
    (lambda m: trace(m, EXPERIMENT, 1), "positions=1 and seeds=.*: lists of whole numbers are expected"),
    (lambda m: trace(m, EXPERIMENT, [1.5]), r"positions=\[1.5\] and seeds=.*: lists of whole numbers are expected"),
    (lambda m: trace(m, EXPERIMENT, [1], seeds=3), "seeds=3: lists of whole numbers are expected"),
    (lambda m: trace(m, EXPERIMENT, [4]), r"noise at positions \[4\]: give positions of the prompt, 0 to 3"),
    (lambda m: trace(m, EXPERIMENT, [-1]), r"noise at positions \[-1\]: give positions of the prompt, 0 to 3"),
    (lambda m: trace(m, EXPERIMENT, []), "at least one position"),
    (lambda m: trace(m, EXPERIMENT, [1], seeds=[]), "at least one seed"),
    (lambda m: trace(m, EXPERIMENT, [1], seeds=[-1]), "seed -1: a whole number is expected, 0 or above"),
    (lambda m: ablate(m, EXPERIMENT, ["z", "zz"]), "cannot patch 'zz'; sites are resid_pre"),
    (
        lambda m: attribute(m, EXPERIMENT, "attn_out", metric="kl_divergence", corruption=Zero()),
        "kl_divergence and its derivative are 0 in the run",
    ),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_what_cannot_be_done(call, message):
    with pytest.raises(NanopatchError, match=message):
        call(tiny_model())


@pytest.mark.parametrize("corruption", [Zero(), Mean(OTHERS), Resample(OTHERS)])
@pytest.mark.parametrize("method", [sweep, attribute])
@pytest.mark.parametrize("direction", ["denoise", ["noise", "denoise"]])
def test_there_is_no_run_to_denoise_into_in_an_ablation(corruption, method, direction):
    message = '^an ablation patches .* into the clean run: its direction is "noise", not "denoise"$'
    with pytest.raises(NanopatchError, match=message):
        method(tiny_model(), EXPERIMENT, "z", direction=direction, corruption=corruption)


def test_ablation_prompts_get_the_same_bos():
    nano = load("nano")
    experiment = Experiment(MICHELLE.clean, MICHELLE.corrupted, " Jones", " Smith", prepend_bos=True)
    result = ablate(nano, experiment, "z", Mean([MICHELLE.clean]))
    assert_metric(result.grid, result.baseline_clean, nano, with_ids(nano, experiment))


def with_ids(model, experiment):
    tokens = experiment.tokens(model)
    return Experiment(tokens.clean, tokens.corrupted, tokens.answer, tokens.wrong_answer)


def test_one_of_a_thing_is_not_called_several():
    assert str(Noise([1], 1, [0])) == (
        "Gaussian noise of 1 standard deviation on the embeddings of position 1, averaged over 1 seed"
    )
    assert str(Noise([1, 2])).endswith(
        "standard deviations on the embeddings of positions 1, 2, averaged over 10 seeds"
    )
    assert str(Mean(["a"])) == "the mean over 1 prompt"
    with pytest.raises(NanopatchError, match="prompts: each is a text or a list of token ids, not "):
        Mean([[1, [2]]])


def test_a_seed_counts_once_and_per_position_is_true_or_false():
    assert Noise([1], seeds=[2, 0, 2]).seeds == (2, 0)
    with pytest.raises(NanopatchError, match="per_position='no': True or False is expected"):
        Mean(["a"], per_position="no")
