"""Results averaged over experiments, compared with the obvious loop."""

import json
from dataclasses import replace

import numpy as np
import pytest
from conftest import N_TOKENS, REFERENCE, TOLERANCE, as_lists, make_pairs, models, prompts, slow_logits, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

from nanopatch import (
    Experiment,
    Mean,
    NanopatchError,
    Noise,
    Panels,
    Patch,
    Paths,
    Resample,
    Sweep,
    Zero,
    ablate,
    attribute,
    sweep,
    trace,
)
from nanopatch.experiments.pairs import PairFile
from nanopatch.gradients.attribution import Estimating
from nanopatch.patching.case import generator
from nanopatch.patching.question import ask, carry_out_one
from nanopatch.patching.stack import MEMORY
from nanopatch.patching.sweep import Running
from nanopatch.results.pairs import mean_of
from nanopatch.results.plot import as_bytes
from nanopatch.results.sweep import DIRECTIONS


def assert_same(a, b):
    assert np.array_equal(a.grid, b.grid, equal_nan=True) and a.grid.dtype == b.grid.dtype
    assert a.to_dict() == b.to_dict() and str(a) == str(b) and repr(a) == repr(b) and a.notes == b.notes


# ---- averages ------------------------------------------------------------------------------------


@given(models(), st.integers(2, 4), st.integers(0, 2**32 - 1), st.sampled_from(list(DIRECTIONS)))
@settings(max_examples=15)
def test_the_average_equals_the_obvious_loop(model, n_pairs, seed, direction):
    pairs = make_pairs(n_pairs, seed)
    result = sweep(model, pairs, "attn_out", direction=direction)
    grids, bases, donors, largest = [], [], [], 0
    for pair in pairs:
        base, donor = prompts(pair, direction)

        def diff(logits, pair=pair):
            return float(logits[-1, pair.answer]) - float(logits[-1, pair.wrong_answer])

        run, unpatched = model.run(donor), model.run(base)
        bases.append(diff(unpatched.logits))
        donors.append(diff(run.logits))
        largest = max(largest, np.abs(run.logits).max(), np.abs(unpatched.logits).max())
        grid = np.empty((model.n_layer, N_TOKENS))
        for layer in range(model.n_layer):
            for position in range(N_TOKENS):
                for site in model.steps(base):
                    if (site.name, site.layer) == ("attn_out", layer):
                        site.array[position] = run.attn_out[layer, position]
                grid[layer, position] = diff(site.array)
        grids.append(grid)
    tolerance = 2 * TOLERANCE[model.dtype] * largest  # that of logits, for a difference of two
    assert result.n_pairs == n_pairs and result.skipped == ()
    assert np.abs(result.grid - np.mean(grids, axis=0)).max() <= tolerance
    assert abs(result.base_value - np.mean(bases)) <= tolerance
    assert abs(result.donor_value - np.mean(donors)) <= tolerance
    expected = np.std(grids, axis=0, ddof=1) / np.sqrt(n_pairs)
    assert np.abs(result.standard_error - expected).max() <= 2 * tolerance  # sqrt(n / (n - 1)) is at most sqrt(2)


def test_raw_metrics_are_averaged_before_they_are_normalised():
    model, pairs = tiny_model(), make_pairs(5)
    result, singles = sweep(model, pairs), [sweep(model, pair) for pair in pairs]
    assert result.rounding == max(s.rounding for s in singles) > min(s.rounding for s in singles)
    base, donor = (np.mean([getattr(s, name) for s in singles]) for name in ("baseline_corrupted", "baseline_clean"))
    expected = (np.mean([s.grid for s in singles], axis=0) - base) / (donor - base)
    assert np.allclose(result.normalised, expected, rtol=1e-12, atol=1e-12)
    assert not np.allclose(result.normalised, np.mean([s.normalised for s in singles], axis=0), rtol=0.01)


@pytest.mark.parametrize(
    ("site", "direction"),
    [
        ("resid_pre", "denoise"),
        ("z", "noise"),
        (Patch("mlp_post", ("neuron", "position"), neurons=4), "denoise"),
        (Patch("mlp_out", window=2), "denoise"),
        (Paths("head", "mlp 2"), "noise"),
    ],
)
@pytest.mark.parametrize("as_given", [list, tuple, lambda pairs: PairFile(pairs, [1], [])])
def test_the_average_over_one_pair_is_its_sweep(site, direction, as_given):
    model, pairs = tiny_model(), make_pairs(1)
    result = sweep(model, as_given(pairs), site, direction=direction)
    assert_same(result, sweep(model, pairs[0], site, direction=direction))
    assert result.standard_error is None and result.n_pairs == 1


def test_several_sites_directions_and_metrics_are_panels_as_of_a_sweep():
    model, pairs = tiny_model(), make_pairs(3)
    result = sweep(model, pairs, ("resid_pre", "z"), direction=["denoise", "noise"], metric=["logit_diff", "rank"])
    assert isinstance(result, Panels) and list(result) == ["resid_pre", "z"]
    assert isinstance(result["z"], Panels) and list(result["z"]) == ["denoise", "noise"]
    assert list(result["z"]["noise"]) == ["logit_diff", "rank"]
    assert_same(result["z"]["noise"]["rank"], sweep(model, pairs, "z", direction="noise", metric="rank"))


def test_a_metric_of_ones_own_is_averaged():
    def last(logits):
        return logits[-1, 5]

    model, pairs = tiny_model(), make_pairs(3)
    result = sweep(model, pairs, metric=last)
    assert result.metric == "last"
    assert np.array_equal(result.grid, np.mean([sweep(model, p, metric=last).grid for p in pairs], axis=0))


def test_infinite_metrics_have_a_mean_or_none_without_a_warning():
    model = tiny_model()
    up, down = (sweep(model, make_pairs(1)[0], metric=lambda logits, value=value: value) for value in (np.inf, -np.inf))
    assert np.isnan(mean_of([up, down]).grid).all() and np.isnan(mean_of([up, down]).standard_error).all()
    assert np.isinf(mean_of([up, up]).grid).all() and np.isnan(mean_of([up, up]).standard_error).all()


def test_the_same_neurons_are_taken_in_every_pair():
    model, pairs = tiny_model(), make_pairs(3)
    result = sweep(model, pairs, Patch("mlp_post", "neuron", neurons=np.int64(5)))
    differences = [  # (n_layer, d_mlp): largest over positions
        np.abs(model.run(pair.clean).mlp_post - model.run(pair.corrupted).mlp_post).max(axis=1) for pair in pairs
    ]
    best = np.argsort(-np.mean(differences, axis=0), axis=None)[:5]
    expected = [[tuple(int(i) for i in np.unravel_index(flat, (model.n_layer, model.d_mlp)))] for flat in best]
    assert as_lists(result.pieces)["neuron"] == expected


def test_tokens_that_not_all_pairs_have_end_in_an_ellipsis(tmp_path):
    model = tiny_model()
    pairs = [Experiment([1, 2, 3], [1, 4, 3], 5, 6), Experiment([1, 7, 8], [1, 4, 8], 6, 5)]
    result = sweep(model, pairs)
    assert result.column_labels == ["#1", "#2… / #4", "#3…"]
    assert "#2… / #4" in str(result) and "mean of 2 pairs" in str(result).splitlines()[0]
    assert result.notes[0].startswith("Mean of 2 pairs")
    row = result.to_rows()[4]
    assert row["clean_token"] == "#2…" and row["logit_diff"] == result.grid[1, 1]
    assert row["logit_diff_standard_error"] == result.standard_error[1, 1] > 0
    result.to_csv(tmp_path / "mean.csv")
    assert (tmp_path / "mean.csv").read_text(encoding="utf-8").splitlines()[0].endswith(",logit_diff_standard_error")
    assert as_bytes(result.plot(), "svg").startswith(b"<?xml")


def test_a_saved_average_is_lossless(tmp_path):
    result = sweep(tiny_model(), [*make_pairs(3), *make_pairs(1, n_tokens=4)])
    result.save(tmp_path / "mean.npz")
    loaded = Sweep.load(tmp_path / "mean.npz")
    assert_same(loaded, result)
    assert np.array_equal(loaded.standard_error, result.standard_error)
    assert loaded.n_pairs == 3 and loaded.skipped == result.skipped and len(loaded.skipped) == 1


def test_a_sweep_saved_before_there_were_averages_can_be_read(tmp_path):
    path = REFERENCE / "saved_0.1.0" / "sweep_1.npz"
    with np.load(path) as file:
        grid, header = file["grid"], json.loads(str(file["header"]))
    for name in ("n_pairs", "skipped", "steps"):
        del header[name]
    np.savez(tmp_path / "old.npz", grid=grid, header=json.dumps(header))
    loaded, later = Sweep.load(tmp_path / "old.npz"), Sweep.load(path)
    assert later.unchanged is not None and loaded.unchanged is None
    assert np.array_equal(loaded.grid, later.grid) and loaded.notes == later.notes
    assert str(loaded) == str(replace(later, unchanged=None))  # without the dots of what could not change
    assert {**loaded.to_dict(), "arrays": None} == {**later.to_dict(), "arrays": None} | {"unchanged": None}


def test_ablations_can_be_averaged_too():
    model, pairs = tiny_model(), make_pairs(2)
    ablations = [ablate(model, pair) for pair in pairs]
    result = mean_of(ablations)
    assert_same(result, ablate(model, pairs))
    assert result.baseline_corrupted is None
    assert result.baseline_clean == np.mean([a.baseline_clean for a in ablations])
    assert np.array_equal(result.grid, np.mean([a.grid for a in ablations], axis=0))


# ---- everything that can be asked of one experiment can be asked of many ----------------------------

OTHERS = [[5, 6, 7, 8, 9, 10], [9, 10, 11, 12, 13, 14], [1, 1, 2, 2, 3, 3]]
QUESTIONS = {
    "zero": dict(site="z", corruption=Zero()),
    "mean": dict(site="mlp_out", corruption=Mean(OTHERS)),
    "mean over positions": dict(site="z", corruption=Mean([*OTHERS, [1, 2]], per_position=False)),
    "noise": dict(corruption=Noise([1, 2], seeds=[0, 5])),
    "noise, noising": dict(site="z", direction="noise", corruption=Noise([1], 1.0, [3])),
    "resample": dict(site="z", corruption=Resample(OTHERS, 3)),
    "paths": dict(site=Paths(["embed", "head"], ["q", "mlp", "logits"], "free mlps")),
    "paths, zero": dict(site=Paths("head", "logits", "free"), corruption=Zero()),
    "paths, resample": dict(site=Paths("head", ["mlp", "logits"]), corruption=Resample(OTHERS, 3)),
    "window": dict(site=Patch("attn_out", window={"layer": 2, "position": 3}), direction="noise"),
    "chosen": dict(site=Patch("z", ("head", "position"), layers=[1, 2], heads=[[0, 1], 1]), metric="kl_divergence"),
    "pattern": dict(site=Patch("pattern", ("query", "key")), metric="cross_entropy"),
}


def alone_at(number, method, model, pair, site="resid_pre", direction=None, metric="logit_diff", corruption=None):
    """The result of one pair as it is at a place in a list."""
    how = Running(MEMORY) if method is sweep else Estimating(1)
    (result,) = carry_out_one(model, pair, number, ask(site, direction, metric, corruption), how).values()
    return result


@pytest.mark.parametrize("asked", QUESTIONS)
@pytest.mark.parametrize("method", [sweep, attribute])
def test_the_mean_of_many_is_that_of_the_single_results_to_the_bit(asked, method):
    question, model, pairs = QUESTIONS[asked], tiny_model(), make_pairs(3)
    singles = [alone_at(number, method, model, pair, **question) for number, pair in enumerate(pairs)]
    if isinstance(question.get("corruption"), (Noise, Resample)):  # drawn anew for each
        assert_same(singles[0], method(model, pairs[0], **question))
    else:
        for single, pair in zip(singles, pairs, strict=True):
            assert_same(single, method(model, pair, **question))
    result = method(model, pairs, **question)
    grids = np.array([single.grid for single in singles])
    assert np.array_equal(result.grid, grids.mean(axis=0), equal_nan=True) and np.isfinite(result.grid).any()
    error = np.std(grids, axis=0, ddof=1) / np.sqrt(len(pairs))
    assert np.array_equal(result.standard_error, error, equal_nan=True) and np.nanmax(error) > 0
    for name in ("baseline_clean", "baseline_corrupted"):
        values = [getattr(single, name) for single in singles]
        assert getattr(result, name) == (None if None in values else np.mean(values))
    assert result.n_pairs == 3 and result.skipped == () and f", mean of {result.n_pairs} pairs" in result.title
    first = singles[0]
    for name in ("site", "axes", "direction", "metric", "corruption", "between", "chosen", "steps", "columns"):
        assert getattr(result, name) == getattr(first, name), name
    assert as_lists(result.pieces) == as_lists(first.pieces)
    assert_same(result, mean_of(singles))


@pytest.mark.parametrize("seed", [0, 3, 2**31, 2**40, 2**63])
def test_the_first_experiment_draws_as_the_seed_alone_does_and_each_other_anew(seed):
    draws = [generator(seed, number).normal(size=4).tolist() for number in range(3)]
    assert draws[0] == np.random.default_rng(seed).normal(size=4).tolist()
    assert not set(draws[0]) & set(draws[1]) | set(draws[1]) & set(draws[2])


def test_noise_is_drawn_anew_for_each_experiment():
    model, (pair,) = tiny_model(), make_pairs(1)
    twice = trace(model, [pair, pair], [1, 2], "mlp_out", metric="logit_diff", seeds=[4])
    clean, values, unpatched = model.run(pair.clean), [], []
    for number in range(2):
        resid = model.embed(pair.clean)
        resid[[1, 2]] += np.random.default_rng([4, number]).normal(0, 3 * float(model.wte.std()), (2, model.d_model))
        for into, restored in ((unpatched, None), (values, 2)):
            for site in model.steps_from(0, resid):
                if restored is not None and (site.name, site.layer) == ("mlp_out", 1):
                    site.array[restored] = clean.mlp_out[1, restored]
            into.append(float(site.array[-1, pair.answer] - site.array[-1, pair.wrong_answer]))
    tolerance = 2 * TOLERANCE[model.dtype] * np.abs(clean.logits).max()
    assert abs(twice.grid[1, 2] - np.mean(values)) <= tolerance
    assert abs(twice.baseline_corrupted - np.mean(unpatched)) <= tolerance
    assert abs(twice.standard_error[1, 2] - abs(values[0] - values[1]) / 2) <= tolerance
    assert abs(values[0] - values[1]) > 1000 * tolerance
    once = trace(model, pair, [1, 2], "mlp_out", metric="logit_diff", seeds=[4])
    assert abs(once.grid[1, 2] - values[0]) <= tolerance


def test_resampling_is_drawn_anew_for_each_experiment():
    model, (pair,) = tiny_model(), make_pairs(1)
    corruption, others = Resample(OTHERS, 6), [model.run(prompt) for prompt in OTHERS]
    values = np.empty((2, model.n_layer, model.n_head))
    for number in range(2):
        random = np.random.default_rng([6, number])
        for layer in range(model.n_layer):
            for head in range(model.n_head):
                other = others[random.integers(len(others))]
                edit = ("z", layer, np.s_[:, head], other.z[layer, :, head])
                logits = slow_logits(model, pair.clean, [edit])[-1]
                values[number, layer, head] = float(logits[pair.answer] - logits[pair.wrong_answer])
    tolerance = 2 * TOLERANCE[model.dtype] * np.abs(model.run(pair.clean).logits).max()
    once, twice = ablate(model, pair, "z", corruption), ablate(model, [pair, pair], "z", corruption)
    assert np.abs(once.grid - values[0]).max() <= tolerance
    assert np.abs(twice.grid - values.mean(axis=0)).max() <= tolerance
    assert np.abs(twice.standard_error - np.abs(values[0] - values[1]) / 2).max() <= tolerance
    assert np.abs(values[0] - values[1]).max() > 1000 * tolerance


# ---- pairs that cannot be used ------------------------------------------------------------------


def test_pairs_that_cannot_be_used_are_told_and_the_rest_goes_on():
    model, good = tiny_model(), make_pairs(2)
    bad = {
        0: (Experiment([1, 2, 3], [1, 2], 5, 6), "the prompts have 3 and 2 tokens"),
        2: (Experiment([1, 2, 3], [1, 4, 3], 5, 6), "its prompts have 3 and 3 tokens, those of pair 1 have 6 and 6"),
        3: (Experiment([1] * 6, [2] * 6, 5, 5), "answer and wrong answer are both 5"),
        4: (Experiment([1] * 6, [2] * 6, 5, 99), "token id 99 is outside the vocabulary"),
        5: (Experiment("text", "texts", " a", " b"), "this model's vocabulary is not known"),
        6: (Experiment([], [], 5, 6), "the prompt is empty"),
        7: ("not a pair", "not an Experiment: 'not a pair'"),
    }
    pairs = [good[0] if i == 1 else good[1] if i == 8 else bad[i][0] for i in range(9)]
    result = sweep(model, pairs)
    assert np.array_equal(result.grid, sweep(model, good).grid) and result.n_pairs == 2
    assert [where for where, _ in result.skipped] == [f"pair {i}" for i in bad]
    for (_, reason), (_, expected) in zip(result.skipped, bad.values(), strict=True):
        assert reason.startswith(expected) and "\n" not in reason
    assert "Left out: pair 0: the prompts have 3 and 2 tokens" in str(result) and "; and 6 more." in str(result)


def test_pairs_aligned_otherwise_than_the_first_are_left_out():
    model = tiny_model()
    pairs = [
        Experiment([9, 8, 1, 5, 6], [7, 2, 5, 6], 3, 7, align="diff"),  # 9 stands alone
        Experiment([1, 5, 9, 9, 6], [2, 5, 8, 6], 3, 7, align="diff"),  # one of the 9s does
        Experiment([3, 4, 2, 7, 6], [1, 8, 7, 6], 3, 7, align="diff"),
        Experiment([3, 4, 2, 7, 6], [1, 8, 0, 7, 6], 3, 7, align="diff"),
    ]
    result = sweep(model, pairs)
    assert result.n_pairs == 2 and np.isnan(result.grid[:, 0]).all() and np.isnan(result.standard_error[:, 0]).all()
    expected = np.mean([sweep(model, pairs[i]).grid for i in (0, 2)], axis=0)
    assert np.array_equal(result.grid, expected, equal_nan=True)
    assert result.skipped[0] == (
        "pair 1",
        "its tokens are aligned differently from those of pair 0, so they cannot be averaged",
    )
    assert result.skipped[1][1].startswith("its prompts have 5 and 5 tokens, those of pair 0 have 5 and 4")
    patterns = sweep(model, pairs, "pattern")
    assert patterns.n_pairs == 1 and patterns.skipped[0][1].startswith(
        "patching pattern needs prompts with the same number of tokens"
    )


def test_no_pair_that_can_be_used_is_an_error():
    model = tiny_model()
    with pytest.raises(NanopatchError, match="^there are no pairs: give at least one Experiment$"):
        sweep(model, [])
    with pytest.raises(NanopatchError, match=r"^no pair can be used; pair 0 \(and 1 more\): the prompts have 1 and"):
        sweep(model, [Experiment([1], [1, 2], 5, 6)] * 2)
    with pytest.raises(NanopatchError, match="^no pair can be used; line 3: not JSON$"):
        sweep(model, PairFile([], [], [(3, "not JSON")]))


BAD = [
    (lambda: dict(site="resid"), "cannot patch 'resid'; sites are resid_pre, "),
    (lambda: dict(site=Patch(axes=("layer", "head"))), "resid_pre has the axes layer, position"),
    (lambda: dict(direction="both"), "unknown direction 'both'"),
    (lambda: dict(metric="loss"), "unknown metric 'loss'"),
    (lambda: dict(site=Patch(positions=[7])), "position 7 does not exist"),
    (lambda: dict(site=Patch(window=4)), "window=4"),
    (lambda: dict(site=Patch(neurons=3)), "resid_pre has no neurons"),
    (lambda: dict(corruption="zero"), "corruption='zero': "),
    (lambda: dict(corruption=Noise([7])), r"noise at positions \[7\]: "),
    (lambda: dict(corruption=Mean([[1, 2]])), "prompt 0 has 2 tokens, the clean prompt 6"),
    (lambda: dict(site=Paths("head 9", "logits")), "unknown sender 'head 9'"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_wrong_arguments_are_errors_not_reasons_to_leave_pairs_out(arguments, message):
    with pytest.raises(NanopatchError, match=f"^{message}"):
        sweep(tiny_model(), make_pairs(2), **arguments())


def test_an_unknown_alignment_is_an_error_where_the_pair_is_made():
    with pytest.raises(NanopatchError, match="^unknown alignment 'left'"):
        Experiment([1, 2], [1, 3], 3, 7, align="left")


def test_lines_of_a_file_that_are_not_pairs_are_left_out_too():
    pairs, file_problems = make_pairs(2), [(2, "not JSON"), (3, "wrong_answer is missing")]
    result = sweep(tiny_model(), PairFile(pairs, [1, 4], file_problems))
    assert result.n_pairs == 2 and result.skipped == (("line 2", "not JSON"), ("line 3", "wrong_answer is missing"))


def test_a_cell_is_unchanged_only_if_it_is_in_every_pair():
    model = tiny_model()
    pairs = [Experiment([1, 2, 3, 4, 5], [1, 2, 3, 4, 6], 3, 7), Experiment([1, 2, 3, 4, 5], [1, 9, 3, 4, 5], 3, 7)]
    assert sweep(model, pairs).unchanged[:, :2].tolist() == [[True, False]] * model.n_layer
