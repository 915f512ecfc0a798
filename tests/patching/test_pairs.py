"""Results averaged over pairs, compared with the obvious loop."""

import json

import numpy as np
import pytest
from conftest import TOLERANCE, models, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from nanopatch.patching.ablation import ablate

from nanopatch import Experiment, NanopatchError, Sweep, sweep
from nanopatch.experiments.pairs import PairFile
from nanopatch.patching.average import average, sweep_pairs
from nanopatch.results.plot import as_bytes, picture
from nanopatch.results.sweep import Panels

N_TOKENS = 6


def make_pairs(n, seed=0, n_tokens=N_TOKENS):
    """Pairs that differ in all tokens but the first and last, each with answers of its own."""
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(n):
        clean, corrupted = rng.integers(0, 29, (2, n_tokens)).tolist()
        corrupted[0], corrupted[-1] = clean[0], clean[-1]
        pairs.append(Experiment(clean, corrupted, *rng.choice(29, 2, replace=False).tolist()))
    return pairs


def assert_same(a, b):
    assert np.array_equal(a.grid, b.grid, equal_nan=True) and a.grid.dtype == b.grid.dtype
    assert a.header() == b.header() and str(a) == str(b) and repr(a) == repr(b) and a.notes == b.notes


# ---- averages ------------------------------------------------------------------------------------


@given(models(), st.integers(2, 4), st.integers(0, 2**32 - 1), st.sampled_from(["denoise", "noise"]))
@settings(deadline=None, max_examples=15)
def test_the_average_equals_the_obvious_loop(model, n_pairs, seed, direction):
    pairs = make_pairs(n_pairs, seed)
    result = sweep_pairs(model, pairs, "attn_out", direction=direction)
    grids, intos, froms, largest = [], [], [], 0
    for pair in pairs:
        source, into = (pair.clean, pair.corrupted) if direction == "denoise" else (pair.corrupted, pair.clean)

        def diff(logits, pair=pair):
            return float(logits[-1, pair.answer]) - float(logits[-1, pair.wrong_answer])

        run, unpatched = model.run(source), model.run(into)
        intos.append(diff(unpatched.logits))
        froms.append(diff(run.logits))
        largest = max(largest, np.abs(run.logits).max(), np.abs(unpatched.logits).max())
        grid = np.empty((model.n_layer, N_TOKENS))
        for layer in range(model.n_layer):
            for position in range(N_TOKENS):
                for site in model.steps(into):
                    if (site.name, site.layer) == ("attn_out", layer):
                        site.array[position] = run.attn_out[layer, position]
                grid[layer, position] = diff(site.array)
        grids.append(grid)
    tolerance = 2 * TOLERANCE[model.dtype] * largest  # that of logits, for a difference of two
    assert result.n_pairs == n_pairs and result.skipped == ()
    assert np.abs(result.grid - np.mean(grids, axis=0)).max() <= tolerance
    assert abs(result.baseline_into - np.mean(intos)) <= tolerance
    assert abs(result.baseline_from - np.mean(froms)) <= tolerance
    expected = np.std(grids, axis=0, ddof=1) / np.sqrt(n_pairs)
    assert np.abs(result.standard_error - expected).max() <= 2 * tolerance  # sqrt(n / (n - 1)) is at most sqrt(2)


def test_raw_metrics_are_averaged_before_they_are_normalised():
    model, pairs = tiny_model(), make_pairs(5)
    result, singles = sweep_pairs(model, pairs), [sweep(model, pair) for pair in pairs]
    assert result.rounding == max(s.rounding for s in singles) > min(s.rounding for s in singles)
    into, origin = (np.mean([getattr(s, name) for s in singles]) for name in ("baseline_corrupted", "baseline_clean"))
    expected = (np.mean([s.grid for s in singles], axis=0) - into) / (origin - into)
    assert np.allclose(result.normalised, expected, rtol=1e-12, atol=1e-12)
    assert not np.allclose(result.normalised, np.mean([s.normalised for s in singles], axis=0), rtol=0.01)


@pytest.mark.parametrize("arguments", [{}, {"site": "z", "direction": "noise"}, {"site": "mlp_post", "neurons": 4}])
def test_the_average_over_one_pair_is_its_sweep(arguments):
    model, (pair,) = tiny_model(), make_pairs(1)
    if "neurons" in arguments:
        arguments = arguments | {"axes": ("neuron", "position")}
    result = sweep_pairs(model, [pair], **arguments)
    assert_same(result, sweep(model, pair, **arguments))
    assert result.standard_error is None and result.n_pairs == 1


def test_several_sites_directions_and_metrics_are_panels_as_of_a_sweep():
    model, pairs = tiny_model(), make_pairs(3)
    result = sweep_pairs(model, pairs, ("resid_pre", "z"), None, ["denoise", "noise"], ["logit_diff", "rank"])
    assert isinstance(result, Panels) and list(result) == ["resid_pre", "z"]
    assert isinstance(result["z"], Panels) and list(result["z"]) == ["denoise", "noise"]
    assert list(result["z"]["noise"]) == ["logit_diff", "rank"]
    assert_same(result["z"]["noise"]["rank"], sweep_pairs(model, pairs, "z", direction="noise", metric="rank"))


def test_a_metric_of_ones_own_is_averaged():
    def last(logits):
        return logits[-1, 5]

    model, pairs = tiny_model(), make_pairs(3)
    result = sweep_pairs(model, pairs, metric=last)
    assert result.metric == "last"
    assert np.allclose(result.grid, np.mean([sweep(model, p, metric=last).grid for p in pairs], axis=0), rtol=1e-12)


def test_infinite_metrics_have_a_mean_or_none_without_a_warning():
    model = tiny_model()
    up, down = (sweep(model, make_pairs(1)[0], metric=lambda logits, value=value: value) for value in (np.inf, -np.inf))
    assert np.isnan(average([up, down]).grid).all() and np.isnan(average([up, down]).standard_error).all()
    assert np.isinf(average([up, up]).grid).all() and np.isnan(average([up, up]).standard_error).all()


def test_the_same_neurons_are_taken_in_every_pair():
    model, pairs = tiny_model(), make_pairs(3)
    result = sweep_pairs(model, pairs, "mlp_post", axes="neuron", neurons=np.int64(5))
    differences = [  # (n_layer, d_mlp): largest over positions
        np.abs(model.run(pair.clean).mlp_post - model.run(pair.corrupted).mlp_post).max(axis=1) for pair in pairs
    ]
    best = np.argsort(-np.mean(differences, axis=0), axis=None)[:5]
    expected = [[tuple(int(i) for i in np.unravel_index(flat, (model.n_layer, model.d_mlp)))] for flat in best]
    assert result.pieces["neuron"] == expected


def test_tokens_that_not_all_pairs_have_end_in_an_ellipsis(tmp_path):
    model = tiny_model()
    pairs = [Experiment([1, 2, 3], [1, 4, 3], 5, 6), Experiment([1, 7, 8], [1, 4, 8], 6, 5)]
    result = sweep_pairs(model, pairs)
    assert result.column_labels == ["#1", "#2… / #4", "#3…"]
    assert "#2… / #4" in str(result) and "mean of 2 pairs" in str(result).splitlines()[0]
    assert result.notes[0].startswith("Mean of 2 pairs")
    row = result.to_rows()[4]
    assert row["clean_token"] == "#2…" and row["logit_diff"] == result.grid[1, 1]
    assert row["logit_diff_standard_error"] == result.standard_error[1, 1] > 0
    result.to_csv(tmp_path / "mean.csv")
    assert (tmp_path / "mean.csv").read_text(encoding="utf-8").splitlines()[0].endswith(",logit_diff_standard_error")
    assert as_bytes(picture(result), "svg").startswith(b"<?xml")


def test_a_saved_average_is_lossless(tmp_path):
    result = sweep_pairs(tiny_model(), [*make_pairs(3), *make_pairs(1, n_tokens=4)])
    result.save(tmp_path / "mean.npz")
    loaded = Sweep.load(tmp_path / "mean.npz")
    assert_same(loaded, result)
    assert np.array_equal(loaded.standard_error, result.standard_error)
    assert loaded.n_pairs == 3 and loaded.skipped == result.skipped and len(loaded.skipped) == 1


def test_a_sweep_saved_before_there_were_averages_can_be_read(tmp_path):
    result = sweep(tiny_model(), make_pairs(1)[0])
    result.save(tmp_path / "new.npz")
    header = {name: value for name, value in result.header().items() if name not in ("n_pairs", "skipped")}
    np.savez(tmp_path / "old.npz", grid=result.grid, header=json.dumps(header))
    assert_same(Sweep.load(tmp_path / "old.npz"), result)


def test_ablations_can_be_averaged_too():
    model, pairs = tiny_model(), make_pairs(2)
    ablations = [ablate(model, pair) for pair in pairs]
    result = average(ablations)
    assert result.baseline_corrupted is None
    assert result.baseline_clean == np.mean([a.baseline_clean for a in ablations])
    assert np.array_equal(result.grid, np.mean([a.grid for a in ablations], axis=0))


# ---- pairs that cannot be used ------------------------------------------------------------------


def test_pairs_that_cannot_be_used_are_told_and_the_rest_goes_on():
    model, good = tiny_model(), make_pairs(2)
    bad = {
        0: (Experiment([1, 2, 3], [1, 2], 5, 6), "the prompts have 3 and 2 tokens"),
        2: (Experiment([1, 2, 3], [1, 4, 3], 5, 6), "its prompts have 3 and 3 tokens, those of pair 1 have 6 and 6"),
        3: (Experiment([1] * 6, [2] * 6, 5, 5), "answer and wrong answer are both 5"),
        4: (Experiment([1] * 6, [2] * 6, 5, 99), "token id 99 is outside the vocabulary"),
        5: (Experiment("text", "texts", " a", " b"), "this model's vocabulary is not GPT-2's"),
        6: (Experiment([], [], 5, 6), "the prompt is empty"),
        7: ("not a pair", "not an Experiment: 'not a pair'"),
    }
    pairs = [good[0] if i == 1 else good[1] if i == 8 else bad[i][0] for i in range(9)]
    result = sweep_pairs(model, pairs)
    assert np.array_equal(result.grid, sweep_pairs(model, good).grid) and result.n_pairs == 2
    assert [where for where, _ in result.skipped] == [f"pair {i}" for i in bad]
    for (_, reason), (_, expected) in zip(result.skipped, bad.values(), strict=True):
        assert reason.startswith(expected) and "\n" not in reason
    assert "Left out: pair 0: the prompts have 3 and 2 tokens" in str(result) and "; and 6 more." in str(result)


def test_pairs_aligned_otherwise_than_the_first_are_left_out():
    model = tiny_model()
    pairs = [
        Experiment([9, 8, 1, 5, 6], [7, 2, 5, 6], 3, 7),  # 9 stands alone
        Experiment([1, 5, 9, 9, 6], [2, 5, 8, 6], 3, 7),  # one of the 9s does
        Experiment([3, 4, 2, 7, 6], [1, 8, 7, 6], 3, 7),
        Experiment([3, 4, 2, 7, 6], [1, 8, 0, 7, 6], 3, 7),
    ]
    result = sweep_pairs(model, pairs, align="diff")
    assert result.n_pairs == 2 and np.isnan(result.grid[:, 0]).all() and np.isnan(result.standard_error[:, 0]).all()
    expected = np.mean([sweep(model, pairs[i], align="diff").grid for i in (0, 2)], axis=0)
    assert np.array_equal(result.grid, expected, equal_nan=True)
    assert result.skipped[0] == (
        "pair 1",
        "its tokens are aligned otherwise than those of pair 0, so they cannot be averaged",
    )
    assert result.skipped[1][1].startswith("its prompts have 5 and 5 tokens, those of pair 0 have 5 and 4")
    patterns = sweep_pairs(model, pairs, "pattern", align="diff")
    assert patterns.n_pairs == 1 and patterns.skipped[0][1].startswith("pattern of prompts whose tokens are shifted")


def test_no_pair_that_can_be_used_is_an_error():
    model = tiny_model()
    with pytest.raises(NanopatchError, match="^there are no pairs: give at least one Experiment$"):
        sweep_pairs(model, [])
    with pytest.raises(NanopatchError, match=r"^no pair can be used; pair 0 \(and 1 more\): the prompts have 1 and"):
        sweep_pairs(model, [Experiment([1], [1, 2], 5, 6)] * 2)
    with pytest.raises(NanopatchError, match="^no pair can be used; line 3: not JSON$"):
        sweep_pairs(model, PairFile([], [], [(3, "not JSON")]))


BAD = [
    (dict(site="resid"), "cannot patch 'resid'; sites are resid_pre, "),
    (dict(axes=("layer", "head")), "resid_pre has the axes layer, position"),
    (dict(direction="both"), "unknown direction 'both'"),
    (dict(metric="loss"), "unknown metric 'loss'"),
    (dict(align="left"), "unknown alignment 'left'"),
    (dict(positions=[7]), "position 7 does not exist"),
    (dict(window=4), "window of 4 layers"),
    (dict(neurons=3), "resid_pre has no neurons"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_wrong_arguments_are_errors_not_reasons_to_leave_pairs_out(arguments, message):
    with pytest.raises(NanopatchError, match=f"^{message}"):
        sweep_pairs(tiny_model(), make_pairs(2), **arguments)


def test_lines_of_a_file_that_are_not_pairs_are_left_out_too():
    pairs, file_problems = make_pairs(2), [(2, "not JSON"), (3, "wrong_answer is missing")]
    result = sweep_pairs(tiny_model(), PairFile(pairs, [1, 4], file_problems))
    assert result.n_pairs == 2 and result.skipped == (("line 2", "not JSON"), ("line 3", "wrong_answer is missing"))


def test_a_cell_is_unchanged_only_if_it_is_in_every_pair():
    model = tiny_model()
    pairs = [Experiment([1, 2, 3, 4, 5], [1, 2, 3, 4, 6], 3, 7), Experiment([1, 2, 3, 4, 5], [1, 9, 3, 4, 5], 3, 7)]
    assert sweep_pairs(model, pairs).unchanged[:, :2].tolist() == [[True, False]] * model.n_layer
