"""Ablations and causal tracing against the slowest obvious way, and their identities."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_patching import N_TOKENS, assert_metric, pairs
from test_stack import slow_logits
from conftest import tiny_model

from nanopatch import Experiment, NanopatchError, Sweep, load
from nanopatch.patching.ablation import ablate, trace
from nanopatch.experiments import MICHELLE
from nanopatch.patching.sweep import SITE_AXES

EXPERIMENT = Experiment([1, 2, 3, 4], [1, 9, 3, 4], 3, 7)
OTHERS = [[5, 6, 7, 8], [9, 10, 11, 12], [1, 1, 2, 2]]


def diff(logits):
    return float(logits[-1, 3]) - float(logits[-1, 7])


@given(pairs(), st.sampled_from([site for site in SITE_AXES if "position" in SITE_AXES[site]]))
@settings(deadline=None, max_examples=40)
def test_zero(drawn, site):
    model, experiment, *_ = drawn
    result = ablate(model, experiment, site, axes=("layer", "position"))
    for layer in range(model.n_layer):
        for position in range(N_TOKENS):
            logits = slow_logits(model, experiment.clean, [(site, layer, position, 0)])
            assert_metric(result.grid[layer, position], diff(logits), model, experiment)


def test_zero_heads_and_patterns():
    model = tiny_model(seed=8)
    z, pattern = ablate(model, EXPERIMENT, "z"), ablate(model, EXPERIMENT, "pattern")
    logits = slow_logits(model, EXPERIMENT.clean, [("z", 1, np.s_[:, 1], 0)])
    assert z.grid[1, 1] == pytest.approx(diff(logits), rel=1e-10)
    assert np.allclose(z.grid, pattern.grid, rtol=1e-10)  # a pattern of zeros gives z of zeros


def test_scores_of_zero_attend_alike_to_all_that_is_not_masked():
    model = tiny_model(seed=8)
    scores, n_tokens = ablate(model, EXPERIMENT, "scores"), len(EXPERIMENT.clean)
    uniform = np.tril(np.ones((n_tokens, n_tokens))) / np.arange(1, n_tokens + 1)[:, None]
    logits = slow_logits(model, EXPERIMENT.clean, [("pattern", 1, np.s_[0], uniform)])
    assert scores.grid[1, 0] == pytest.approx(diff(logits), rel=1e-10)


def test_means():
    model = tiny_model(seed=8)
    runs = [model.run(prompt) for prompt in OTHERS]
    here = ablate(model, EXPERIMENT, "mlp_out", by="mean", prompts=OTHERS)
    value = np.mean([run.mlp_out[1, 2] for run in runs], axis=0)
    assert here.grid[1, 2] == pytest.approx(
        diff(slow_logits(model, EXPERIMENT.clean, [("mlp_out", 1, 2, value)])), rel=1e-10
    )
    everywhere = ablate(model, EXPERIMENT, "z", by="mean", prompts=[*OTHERS[:2], [1, 2]], per_position=False)
    means = [model.run(prompt).z[1, :, 0].mean(axis=0) for prompt in [*OTHERS[:2], [1, 2]]]
    edit = ("z", 1, np.s_[:, 0], np.mean(means, axis=0))
    assert everywhere.grid[1, 0] == pytest.approx(diff(slow_logits(model, EXPERIMENT.clean, [edit])), rel=1e-10)


@given(pairs(), st.sampled_from(sorted(SITE_AXES)))
@settings(deadline=None, max_examples=40)
def test_the_mean_over_one_prompt_is_that_prompts_own_value(drawn, site):
    model, experiment, *_ = drawn
    result = ablate(model, experiment, site, by="mean", prompts=[experiment.clean])
    assert_metric(result.grid, result.baseline_clean, model, experiment)


def test_resampling_takes_one_of_the_prompts():
    model = tiny_model(seed=8)
    result = ablate(model, EXPERIMENT, "resid_post", by="resample", prompts=OTHERS, seed=1)
    for index, value in np.ndenumerate(result.grid):
        possible = [
            diff(slow_logits(model, EXPERIMENT.clean, [("resid_post", *index, model.run(other).resid_post[index])]))
            for other in OTHERS
        ]
        assert np.isclose(value, possible, rtol=1e-10).any()
    again = ablate(model, EXPERIMENT, "resid_post", by="resample", prompts=OTHERS, seed=1)
    other = ablate(model, EXPERIMENT, "resid_post", by="resample", prompts=OTHERS, seed=2)
    assert np.array_equal(result.grid, again.grid) and not np.array_equal(result.grid, other.grid)


def test_the_result_reports_the_relative_change(tmp_path):
    result = ablate(tiny_model(seed=8), EXPERIMENT, "z", metric=["logit_diff", "kl_divergence"])
    diffs, divergences = result["logit_diff"], result["kl_divergence"]
    expected = (diffs.grid - diffs.baseline_clean) / abs(diffs.baseline_clean)
    assert np.allclose(diffs.normalised, expected, rtol=1e-12) and diffs.scale == "relative change"
    assert "z replaced by zero (ablation), unnamed\nlogit_diff, relative change\n" in str(diffs)
    assert "logit_diff_relative_change" in diffs.to_rows()[0] and diffs.baseline_corrupted is None
    assert np.isnan(divergences.normalised).all() and divergences.notes[0].startswith(
        "No relative change: kl_divergence"
    )
    assert diffs.plot().images[0].cmap.name == "RdBu_r" and diffs._repr_png_()
    diffs.save(tmp_path / "a.npz")
    assert Sweep.load(tmp_path / "a.npz").header() == diffs.header()


def test_tracing_is_the_average_over_noises():
    model = tiny_model(seed=9)
    result = trace(model, EXPERIMENT, [1, 2], site="mlp_out", seeds=[3, 4])
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
    assert result.grid[1, 2] == pytest.approx(np.mean(values), rel=1e-9)
    assert result.baseline_corrupted == pytest.approx(np.mean(corrupted), rel=1e-9)
    assert (
        result.grid[:, 0] == pytest.approx(result.baseline_corrupted, rel=1e-12)
    ) and "arXiv 2309.16042" in result.notes[1]
    whole = trace(model, EXPERIMENT, [0, 1, 2, 3], axes="layer", seeds=[3])
    assert whole.grid == pytest.approx(np.full(3, whole.baseline_clean), rel=1e-9)


def test_tracing_takes_several_metrics_and_says_what_is_not_finite():
    model, metrics = tiny_model(seed=9), ["logit_diff", "probability"]
    both = trace(model, EXPERIMENT, [1, 2], "mlp_out", metric=metrics, seeds=[3])
    for name in metrics:
        assert np.array_equal(both[name].grid, trace(model, EXPERIMENT, [1, 2], "mlp_out", metric=name, seeds=[3]).grid)
    result = trace(model, EXPERIMENT, [1], seeds=[3], metric=lambda logits: np.nan)
    assert result.notes[-1].startswith("<lambda> is no finite number after 12 of the patches, the first at layer 0")


def test_the_result_knows_no_corrupted_prompt():
    model = tiny_model(seed=9)
    assert EXPERIMENT.corrupted != EXPERIMENT.clean
    for result in (ablate(model, EXPERIMENT), trace(model, EXPERIMENT, [1], seeds=[3])):
        assert result.experiment.corrupted == EXPERIMENT.clean and result.corrupted_tokens == result.clean_tokens


BAD = [
    (lambda m: ablate(m, EXPERIMENT, by="half"), "unknown ablation 'half': one of zero, mean, resample"),
    (lambda m: ablate(m, EXPERIMENT, by="mean"), 'by="mean" takes prompts to take activations from'),
    (lambda m: ablate(m, EXPERIMENT, prompts=OTHERS), 'by="zero" takes no prompts'),
    (
        lambda m: ablate(m, EXPERIMENT, by="mean", prompts=[[1, 2]]),
        "prompt 0 has 2 tokens, the clean prompt 4: .*per_position=False",
    ),
    (
        lambda m: ablate(m, EXPERIMENT, "pattern", by="resample", prompts=[[1, 2]]),
        "prompt 0 has 2 tokens, the clean prompt 4: ",
    ),
    (
        lambda m: ablate(m, EXPERIMENT, "pattern", by="mean", prompts=OTHERS, per_position=False),
        "no mean over positions",
    ),
    (lambda m: ablate(m, EXPERIMENT, "mlp_post", axes="neuron", neurons=3), "no second run to rank neurons by"),
    (lambda m: ablate(m, EXPERIMENT, by="mean", prompts="abc"), "prompts='abc': a list of prompts is expected"),
    (lambda m: ablate(m, EXPERIMENT, by="mean", prompts=[]), r"prompts=\[\]: a list of prompts is expected"),
    (lambda m: ablate(m, EXPERIMENT, per_position=False), "no per_position=False: zero is zero anywhere"),
    (lambda m: trace(m, EXPERIMENT, [1], sigma=np.nan), "sigma=nan: a number above 0 is expected"),
    (lambda m: trace(m, EXPERIMENT, 1), "noised=1 and seeds=.*: lists of whole numbers are expected"),
    (lambda m: trace(m, EXPERIMENT, [1], seeds=3), "seeds=3: lists of whole numbers are expected"),
    (lambda m: trace(m, EXPERIMENT, [4]), r"noised=\[4\]: give positions of the clean prompt, 0 to 3"),
    (lambda m: trace(m, EXPERIMENT, [1], seeds=[]), "at least one seed"),
    (lambda m: trace(m, EXPERIMENT, [1], seeds=[-1]), "seed -1: a whole number is expected, 0 or above"),
    (lambda m: ablate(m, EXPERIMENT, by="mean", prompts=3), "prompts=3: a list of prompts is expected"),
    (lambda m: ablate(m, EXPERIMENT, ["z", "q"]), r"cannot patch \['z', 'q'\]; sites are resid_pre"),
    (lambda m: ablate(m, EXPERIMENT, metric="kl_divergence", attribution_steps=1), "kl_divergence is 0 in the run"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_what_cannot_be_done(call, message):
    with pytest.raises(NanopatchError, match=message):
        call(tiny_model())


def test_ablation_prompts_get_the_same_bos():
    nano = load("nano")
    experiment = Experiment(MICHELLE.clean, MICHELLE.corrupted, " Jones", " Smith", prepend_bos=True)
    result = ablate(nano, experiment, "z", by="mean", prompts=[MICHELLE.clean])
    assert_metric(result.grid, result.baseline_clean, nano, with_ids(nano, experiment))


def with_ids(model, experiment):
    tokens = experiment.tokens(model)
    return Experiment(tokens.clean, tokens.corrupted, tokens.answer, tokens.wrong_answer)
