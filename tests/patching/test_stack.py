"""The stack computes what the slowest obvious way computes: every site, axis, direction, metric and memory limit."""

import itertools
import json

import numpy as np
import pytest
from conftest import (
    N_TOKENS,
    TOLERANCE,
    as_lists,
    assert_close,
    assert_metric,
    diff,
    models,
    pairs,
    prompts,
    slow_logits,
    steepness,
    tiny_model,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from nanopatch import Experiment, NanopatchError, Patch, sweep
from nanopatch.experiments.patch import SITE_AXES
from nanopatch.model.sites import ATTENTION_SITES, HEAD_SITES
from nanopatch.patching.edit import Edit
from nanopatch.patching.stack import BASE_SITES, bytes_per_row, patched_resids
from nanopatch.results.sweep import DIRECTIONS


@given(pairs(), st.sampled_from(HEAD_SITES), st.sampled_from(list(DIRECTIONS)))
@settings(max_examples=60)
def test_heads(drawn, site, direction):
    model, experiment, *_ = drawn
    base, donor = prompts(experiment, direction)
    source = getattr(model.run(donor), site)
    everywhere = sweep(model, experiment, site, direction=direction)
    one_by_one = sweep(model, experiment, Patch(site, ("layer", "position", "head")), direction=direction)
    for layer, head in itertools.product(range(model.n_layer), range(model.n_head)):
        logits = slow_logits(model, base, [(site, layer, np.s_[:, head], source[layer, :, head])])
        assert_metric(everywhere.grid[layer, head], diff(logits), model, experiment)
        for position in range(N_TOKENS):
            logits = slow_logits(model, base, [(site, layer, np.s_[position, head], source[layer, position, head])])
            assert_metric(one_by_one.grid[layer, position, head], diff(logits), model, experiment)


@given(pairs(), st.sampled_from(ATTENTION_SITES), st.sampled_from(list(DIRECTIONS)))
@settings(max_examples=40)
def test_scores_and_patterns(drawn, site, direction):
    model, experiment, *_ = drawn
    base, donor = prompts(experiment, direction)
    source = getattr(model.run(donor), site)
    by_row = sweep(model, experiment, Patch(site, ("layer", "head", "query")), direction=direction)
    by_entry = sweep(model, experiment, Patch(site, ("query", "key")), direction=direction)
    for layer, head, row in itertools.product(range(model.n_layer), range(model.n_head), range(N_TOKENS)):
        logits = slow_logits(model, base, [(site, layer, np.s_[head, row], source[layer, head, row])])
        assert_metric(by_row.grid[layer, head, row], diff(logits), model, experiment)
    for row, key in itertools.product(range(N_TOKENS), repeat=2):
        every_layer = [(site, layer, np.s_[:, row, key], source[layer, :, row, key]) for layer in range(model.n_layer)]
        logits = slow_logits(model, base, every_layer)
        assert_metric(by_entry.grid[row, key], diff(logits), model, experiment)


@given(models(), st.data())
@settings(max_examples=60)
def test_any_edits_at_once(model, data):
    """Several edits a patch, at several sites and layers, with all logits read, in stacks of any size."""
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    tokens = rng.integers(0, model.n_vocab, N_TOKENS)
    base, other = model.run(tokens), model.run(rng.integers(0, model.n_vocab, N_TOKENS))
    patches, assignments = [], []
    for _ in range(data.draw(st.integers(1, 6))):
        edits, slow = [], []
        for site in data.draw(st.lists(st.sampled_from(sorted(SITE_AXES)), min_size=1, max_size=3, unique=True)):
            layer = data.draw(st.integers(0, model.n_layer - 1))
            rows = sorted(data.draw(st.sets(st.integers(0, N_TOKENS - 1), min_size=1)))
            source = getattr(other, site)[layer]
            edits.append(Edit(site, layer, source, rows))
            index = np.s_[:, rows] if site in ATTENTION_SITES else np.s_[rows]
            slow.append((site, layer, index, source[index]))
        patches.append(edits)
        assignments.append(slow)
    memory = data.draw(st.sampled_from([1, 20 * bytes_per_row(model, N_TOKENS), 2**28]))
    last_only = data.draw(st.booleans())
    seen = set()
    for number, start, resid in patched_resids(model, base, patches, last_only=last_only, memory=memory):
        seen.add(number)
        expected = slow_logits(model, tokens, assignments[number])
        # Measured against the whole run's logits: the rows compared may be small ones of it.
        worst = np.abs(model.unembed(resid) - expected[-len(resid) :]).max()
        assert worst <= TOLERANCE[model.dtype] * np.abs(expected).max()
        if not last_only:
            assert len(resid) == N_TOKENS - start
            assert (
                np.abs(base.logits[:start] - expected[:start]).max(initial=0)
                <= TOLERANCE[model.dtype] * np.abs(expected).max()
            )
    for number in set(range(len(patches))) - seen:  # left out: can change nothing that is read
        assert last_only
        assert_close(slow_logits(model, tokens, assignments[number])[-1], base.logits[-1])


@given(pairs(), st.sampled_from(list(DIRECTIONS)))
@settings(max_examples=30)
def test_cells_that_can_have_no_effect_are_the_baseline_to_the_bit(drawn, direction):
    model, experiment, first, _ = drawn
    result = sweep(model, experiment, direction=direction)
    assert (result.grid[:, :first] == result.base_value).all()
    assert result.unchanged[:, :first].all() and not result.unchanged[1:, first:].any()
    same = np.equal(*[model.tokenize(prompt) for prompt in (experiment.clean, experiment.corrupted)])
    assert result.unchanged[0].tolist() == same.tolist()  # before any attention a position knows its own token alone
    assert (result.grid[0, same] == result.base_value).all()
    assert [row["unchanged"] for row in result.to_rows()] == result.unchanged.ravel().tolist()
    by_entry = sweep(model, experiment, Patch("pattern", ("query", "key")), direction=direction)
    masked = np.triu_indices(N_TOKENS, k=1)  # a key after its query
    assert by_entry.unchanged[masked].all() and (by_entry.grid[masked] == result.base_value).all()
    late = sweep(model, experiment, site="mlp_out", direction=direction)
    assert (late.grid[-1, :-1] == late.base_value).all()  # the last block writes for its own position only


@given(pairs(), st.sampled_from(sorted(SITE_AXES)))
@settings(max_examples=30)
def test_the_memory_limit_changes_the_time_it_takes_and_nothing_else(drawn, site):
    model, experiment, *_ = drawn
    assert_metric(
        sweep(model, experiment, site=site, memory=1).grid, sweep(model, experiment, site=site).grid, model, experiment
    )


@given(pairs(), st.sampled_from(sorted(SITE_AXES)))
@settings(max_examples=30)
def test_the_same_inputs_give_the_same_bits(drawn, site):
    model, experiment, *_ = drawn
    assert np.array_equal(sweep(model, experiment, site=site).grid, sweep(model, experiment, site=site).grid)


@given(pairs())
@settings(max_examples=30)
def test_patching_every_head_of_z_is_patching_attn_out(drawn):
    model, experiment, *_ = drawn
    z = sweep(model, experiment, Patch("z", ("layer", "position")))
    attn_out = sweep(model, experiment, site="attn_out")
    assert_metric(z.grid, attn_out.grid, model, experiment)


def everything_of(run, site, layer, heads=None):
    """The edit that puts a run's whole array, or its heads, in place."""
    return Edit(site, layer, getattr(run, site)[layer], list(range(N_TOKENS)), heads)


@given(pairs())
@settings(max_examples=30)
def test_a_heads_q_k_and_v_together_are_its_z(drawn):
    model, experiment, *_ = drawn
    clean, base = model.run(experiment.clean), model.run(experiment.corrupted)
    heads = [(layer, head) for layer in range(model.n_layer) for head in range(model.n_head)]
    by_parts = [[everything_of(clean, site, layer, [head]) for site in "qkv"] for layer, head in heads]
    by_z = [[everything_of(clean, "z", layer, [head])] for layer, head in heads]
    resids = [
        {number: model.unembed(resid) for number, _, resid in patched_resids(model, base, patches)}
        for patches in (by_parts, by_z)
    ]
    assert set(resids[0]) == set(resids[1]) == set(range(len(heads)))
    for number in resids[0]:
        worst = np.abs(resids[0][number] - resids[1][number]).max()
        assert worst <= TOLERANCE[model.dtype] * np.abs(base.logits).max() * steepness(clean, base)


@given(pairs())
@settings(max_examples=30)
def test_all_that_is_written_together_gives_the_donor(drawn):
    """The embedding, and every block's attn_out and mlp_out: the residual stream is their sum."""
    model, experiment, *_ = drawn
    clean, base = model.run(experiment.clean), model.run(experiment.corrupted)
    edits = [everything_of(clean, "resid_pre", 0)]
    edits += [everything_of(clean, site, layer) for layer in range(model.n_layer) for site in ("attn_out", "mlp_out")]
    ((_, start, resid),) = patched_resids(model, base, [edits], last_only=False)
    assert start == 0
    assert_close(model.unembed(resid), clean.logits)


#: Of few different tokens, so that alignments find something to match.
PROMPTS = st.lists(st.integers(0, 3), min_size=1, max_size=8)


@given(
    models(),
    PROMPTS,
    PROMPTS,
    st.sampled_from(sorted(SITE_AXES.keys() - ATTENTION_SITES)),
    st.sampled_from(list(DIRECTIONS)),
)
@settings(max_examples=100)
def test_aligned_prompts(model, clean, corrupted, site, direction):
    """Each column is patched from its partner's position, and a column without partner is blank."""
    experiment = Experiment(clean, corrupted, 3, 7, align="diff")
    base, donor = prompts(experiment, direction)
    result = sweep(model, experiment, Patch(site, ("layer", "position")), direction=direction)
    source = getattr(model.run(donor), site)
    for layer, (column, (i, j)) in itertools.product(range(model.n_layer), enumerate(result.columns)):
        if None in (i, j):
            assert np.isnan(result.grid[layer, column])
            continue
        at_donor, at_base = (i, j) if direction == "denoise" else (j, i)
        logits = slow_logits(model, base, [(site, layer, at_base, source[layer, at_donor])])
        assert_metric(result.grid[layer, column], diff(logits), model, experiment)


def test_aligned_prompts_are_the_same_up_to_the_first_token_without_a_partner():
    clean, corrupted = [1, 2, 5, 3, 4], [1, 2, 3, 4]
    for direction in DIRECTIONS:
        result = sweep(tiny_model(), Experiment(clean, corrupted, 3, 7, align="diff"), direction=direction)
        assert result.columns == ((0, 0), (1, 1), (2, None), (3, 2), (4, 3))
        assert result.unchanged[:, :2].all() and not result.unchanged[:, 3:].any()


def test_shifted_tokens_have_no_common_positions():
    with pytest.raises(NanopatchError, match="patching pattern needs prompts .*: patch z"):
        sweep(tiny_model(), Experiment([1, 2, 3, 4], [2, 3, 4, 1], 3, 7, align="diff"), "pattern")


def test_a_base_run_needs_no_more_than_base_sites():
    model = tiny_model()
    base = model.run([1, 2, 3], sites=BASE_SITES)
    edit = Edit("z", 1, np.zeros((3, model.n_head, model.d_head)), [1], [0])
    ((number, start, resid),) = patched_resids(model, base, [[edit]])
    assert (number, start, resid.shape) == (0, 2, (1, model.d_model))


def test_windows_and_sets_are_patched_together():
    model, experiment = tiny_model(n_layer=4, seed=5), Experiment([1, 2, 3, 4, 5], [1, 9, 3, 8, 5], 3, 7)
    clean = model.run(experiment.clean)

    window = sweep(model, experiment, Patch("attn_out", window=3))
    assert as_lists(window.pieces)["layer"] == [[0, 1], [0, 1, 2], [1, 2, 3], [2, 3]]
    edits = [("attn_out", layer, 2, clean.attn_out[layer, 2]) for layer in (1, 2, 3)]
    assert_metric(window.grid[2, 2], diff(slow_logits(model, experiment.corrupted, edits)), model, experiment)

    both = sweep(model, experiment, Patch("mlp_out", window={"layer": 2, "position": 2}))
    assert as_lists(both.pieces) == {
        "layer": [[0, 1], [1, 2], [2, 3], [3]],
        "position": [[0, 1], [1, 2], [2, 3], [3, 4], [4]],
    }
    edits = [("mlp_out", layer, np.s_[2:4], clean.mlp_out[layer, 2:4]) for layer in (1, 2)]
    assert_metric(both.grid[1, 2], diff(slow_logits(model, experiment.corrupted, edits)), model, experiment)

    chosen = dict(layers=[1, 3], heads=[[0, 1], 1], positions=[[1, 3], 4])
    sets = sweep(model, experiment, Patch("z", ("head", "position"), **chosen))
    assert sets.grid.shape == (2, 2) and sets.labels("head") == ["0+1", "1"] and sets.labels("position")[1] == "#5"
    edits = [("z", layer, np.s_[[1, 3]], clean.z[layer][[1, 3]]) for layer in (1, 3)]
    assert_metric(sets.grid[0, 0], diff(slow_logits(model, experiment.corrupted, edits)), model, experiment)

    circuit = sweep(model, experiment, Patch("z", "head", heads=[[(0, 1), (2, 0)], (3, 1)]))
    edits = [("z", 0, np.s_[:, 1], clean.z[0][:, 1]), ("z", 2, np.s_[:, 0], clean.z[2][:, 0])]
    assert_metric(circuit.grid[0], diff(slow_logits(model, experiment.corrupted, edits)), model, experiment)
    assert circuit.labels("head") == ["0.1+2.0", "3.1"]


def test_a_window_over_all_layers_and_positions_gives_the_donor():
    model, experiment = tiny_model(seed=5), Experiment([1, 2, 3, 4], [5, 6, 3, 8], 3, 7)
    whole = sweep(model, experiment, Patch(axes="layer", window=3))
    assert_metric(whole.grid[1], whole.baseline_clean, model, experiment)


def test_neurons_by_number_by_list_and_the_most_different():
    model, experiment = tiny_model(seed=6), Experiment([1, 2, 3, 4], [1, 9, 3, 4], 3, 7)
    clean, corrupted = model.run(experiment.clean), model.run(experiment.corrupted)
    few = sweep(model, experiment, Patch("mlp_post", ("layer", "neuron"), neurons=[4, [7, 9]]))
    edits = [("mlp_post", 1, np.s_[:, [7, 9]], clean.mlp_post[1][:, [7, 9]])]
    assert_metric(few.grid[1, 1], diff(slow_logits(model, experiment.corrupted, edits)), model, experiment)

    top = sweep(model, experiment, Patch("mlp_post", "neuron", neurons=5))
    difference = np.abs(clean.mlp_post - corrupted.mlp_post).max(axis=1)
    chosen = [piece[0] for piece in top.pieces["neuron"]]
    assert difference[tuple(zip(*chosen, strict=True))].tolist() == np.sort(difference, axis=None)[::-1][:5].tolist()
    layer, neuron = chosen[0]
    edits = [("mlp_post", layer, np.s_[:, neuron], clean.mlp_post[layer][:, neuron])]
    assert_metric(top.grid[0], diff(slow_logits(model, experiment.corrupted, edits)), model, experiment)


def test_several_sites_directions_and_metrics_give_panels():
    model, experiment = tiny_model(seed=6), Experiment([1, 2, 3, 4], [1, 9, 3, 4], 3, 7)
    panels = sweep(model, experiment, site=("resid_pre", "attn_out", "mlp_out"))
    assert list(panels) == ["resid_pre", "attn_out", "mlp_out"] and panels["mlp_out"].site == "mlp_out"
    both = sweep(model, experiment, direction=("denoise", "noise"), metric=["logit_diff", "rank"])
    assert list(both) == list(DIRECTIONS) and list(both["noise"]) == ["logit_diff", "rank"]
    assert len(panels.plot().axes) == 6 and panels._repr_png_().startswith(
        b"\x89PNG"
    )  # three, each with its colour bar


BAD_CHOICES = [
    (dict(layers=[3]), "layer 3 does not exist: there are 0 to 2$"),
    (dict(positions=[[0, 9]]), "position 9 does not exist: there are 0 to 3$"),
    (dict(site="z", heads=[2]), "head 2 does not exist: there are 0 to 1$"),
    (
        dict(site="z", axes="head", heads=[(5, 0)]),
        r"head \(5, 0\) does not exist: there are 0 to 1 of the layers 0 to 2$",
    ),
    (dict(heads=[0]), "resid_pre has no heads to choose among; its axes are layer, position"),
    (dict(site="mlp_post", neurons=0), "neurons=0: from 1 to 60 can be chosen"),
    (dict(window=4), "window=4: the axis layer has 3 entries, so give 1 to 3"),
    (dict(window=0), "window=0"),
    (dict(window={"head": 2}), "window names 'head'; the axes of this grid are layer, position$"),
    (
        dict(site="z", axes=("head", "position"), window=3),
        "window names 'layer'; the axes of this grid are head, position$",
    ),
    (dict(window="3"), "window='3': the axis layer has 3 entries, so give 1 to 3"),
    (dict(layers=3), r"layers=3: a list is expected, such as \[0, 2\]"),
    (dict(layers="0"), "layers='0': a list is expected"),
    (dict(layers=[]), r"layers=\[\]: a list is expected"),
    (dict(positions=[[]]), r"positions: \[\] are patched together, so give at least one"),
    (dict(layers=[[1, 1]]), r"layers: \[1, 1\] are patched together, so give at least one, and each once"),
    (dict(site="z", heads=[[0, 0], 1]), r"heads: \[0, 0\] are patched together, .* and each once"),
    (dict(site="z", heads=[[2, 0], [0, 1]]), r"pairs name their layers"),
    (dict(site="z", heads=np.array([[2, 0], [0, 1]])), r"pairs name their layers"),
    (dict(layers=[True]), "layers are whole numbers, .* not True"),
    (dict(layers=[1.5]), "layers are whole numbers, .* not 1.5"),
    (dict(layers=[[1.5]]), "layers are whole numbers, .*; not 1.5"),
    (dict(layers=[(0, 1)]), r"layers are whole numbers, .*; not \(0, 1\)"),
    (dict(site="z", axes="head", heads=[(0, 1, 2)]), r"heads are whole numbers, .* pairs; not \(0, 1, 2\)"),
    (
        dict(site="z", heads=[(0, 1)]),
        r"\(layer, head\) pairs name their layers: give axes without .layer., .*; or, for heads",
    ),
    (dict(site="z", axes="head", heads=[(0, 1)], layers=[2]), r"\(layer, head\) pairs name their layers"),
    (dict(site="mlp_post", axes=("layer", "neuron"), neurons=3), r"\(layer, neuron\) pairs name their layers"),
    (dict(neurons=99), "resid_pre has no neurons to choose among"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_CHOICES)
def test_choices_that_do_not_exist(arguments, message):
    with pytest.raises(NanopatchError, match=message):
        sweep(tiny_model(), Experiment([1, 2, 3, 4], [1, 9, 3, 4], 3, 7), Patch(**arguments))


@pytest.mark.parametrize("given", [np.array, np.ndarray.tolist, lambda rows: json.loads(json.dumps(rows.tolist()))])
def test_rows_out_of_numpy_or_json_are_pairs(given):
    """`np.argwhere(grid > x)` has rows of (layer, head). They are these heads of these layers, as tuples are."""
    model, experiment = tiny_model(seed=2), Experiment([1, 2, 3, 4], [1, 9, 3, 4], 3, 7)
    rows = np.array([[2, 0], [0, 1]])
    result = sweep(model, experiment, Patch("z", "head", heads=given(rows) if given is not np.array else rows))
    expected = sweep(model, experiment, Patch("z", "head", heads=[(2, 0), (0, 1)]))
    assert np.array_equal(result.grid, expected.grid) and result.labels("head") == ["2.0", "0.1"]
    together = sweep(model, experiment, Patch("z", "head", heads=[rows.tolist()]))
    assert np.array_equal(together.grid, sweep(model, experiment, Patch("z", "head", heads=[[(2, 0), (0, 1)]])).grid)
    layers = sweep(model, experiment, Patch("z", ("layer", "head"), layers=np.arange(2), heads=[{0, 1}]))
    assert layers.grid.shape == (2, 1) and layers.labels("head") == ["0+1"]
