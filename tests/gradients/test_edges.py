"""Edge attribution against central differences and attribution patching, circuits by exact identities.

Every bound that rounding decides is stated where it stands: a part of the largest logit, score or metric, so that it
has a floor where what is compared is 0.
"""

import dataclasses
import itertools
import json

import numpy as np
import pytest
from conftest import (
    TOLERANCE,
    assert_metric,
    is_after,
    make_pairs,
    pairs,
    parts,
    prompts,
    replace,
    sent,
    steepness,
    tiny_model,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from nanopatch import (
    EdgeScores,
    Experiment,
    NanopatchError,
    Patch,
    attribute,
    circuit,
    edge_attribution,
    faithfulness,
    load,
    path_patch,
    record,
    tasks,
)
from nanopatch.circuits.run import circuits_resid, kept_edges
from nanopatch.experiments import MICHELLE
from nanopatch.experiments.metrics import METRICS, Target, measure
from nanopatch.experiments.pairs import PairFile
from nanopatch.model.graph import Edge, Node, graph, node
from nanopatch.model.layers import affine, layer_norm
from nanopatch.results.base import jsonable
from nanopatch.results.graph_plot import BOX_WIDTH, layout
from nanopatch.results.sweep import DIRECTIONS

EXPERIMENT = Experiment([1, 2, 3, 4, 5], [1, 9, 3, 8, 5], 3, 7)
UNEQUAL = Experiment([1, 2, 3], [1, 2], 3, 7)
SHORTER = dataclasses.replace(UNEQUAL, align="diff")
SHIFTED = Experiment([1, 2, 3, 4], [2, 3, 4, 1], 3, 7, align="diff")


def all_edges(model):
    senders, receivers = graph(model)
    return [(sender, receiver) for sender in senders for receiver in receivers if is_after(receiver, sender)]


def random_scores(model, seed):
    """`EdgeScores` of random numbers, for random circuits."""
    scores = edge_attribution(model, EXPERIMENT)
    noise = np.random.default_rng(seed).normal(size=scores.scores.shape)
    return dataclasses.replace(scores, scores=scores.scores * 0 + noise)


def by_names(edges):
    """(sender, receiver) of each edge, as names."""
    return [(str(edge[0]), str(edge[1])) for edge in edges]


# ---- the graph ------------------------------------------------------------------------------------


def test_the_graph_has_the_edges_of_the_literature():
    """32,491 in GPT-2 small (Conmy et al. 2023, arXiv 2304.14997; Syed et al. 2023)."""
    scores = edge_attribution(tiny_model(n_layer=12, n_head=12, n_embd=24), EXPERIMENT)
    assert len(scores.edges) == 32491
    model = tiny_model()
    scores = edge_attribution(model, EXPERIMENT)
    assert [edge[:2] for edge in scores.edges] == all_edges(model)
    assert not any(edge.sender.kind == "attn" or edge.receiver.kind == "resid" for edge in scores.edges)
    assert (scores.senders, scores.receivers) == tuple(map(tuple, graph(model)))
    assert not np.isinf(scores.scores).any() and scores.scores.dtype == np.float64


# ---- scores ---------------------------------------------------------------------------------------


def logits_with_input_changed(model, tokens, receiver, change):
    """Logits of a run in which one receiver alone reads the residual stream plus `change`."""
    kind, layer, head = parts(receiver)
    for step in model.steps(tokens):
        if step.name == "q_input" and step.layer == layer:
            stream = step.array
        if kind in ("q", "k", "v") and (step.name, step.layer) == (kind, layer):
            weight, bias = model.h[layer].attn.c_attn
            third = slice("qkv".index(kind) * model.d_model, ("qkv".index(kind) + 1) * model.d_model)
            normed = layer_norm(stream + change, *model.h[layer].ln_1, model.config.layer_norm_epsilon)
            own = affine(normed, weight[:, third], bias[third]).reshape(step.array.shape)
            step.array[:, head] = own[:, head]
        if kind == "mlp" and (step.name, step.layer) == ("mlp_in", layer):
            step.array += change
        if kind == "logits" and (step.name, step.layer) == ("resid_post", model.n_layer - 1):
            step.array += change
    return step.array


SCORED = [(direction, name) for direction in DIRECTIONS for name in METRICS if METRICS[name].gradient]
SCORED.remove(("noise", "kl_divergence"))  # the clean run is its minimum: an error, below


@pytest.mark.parametrize(("direction", "metric"), SCORED)
def test_a_score_is_the_derivative_along_the_edges_difference(direction, metric):
    model = tiny_model(seed=2, n_layer=2)
    prompt, donor = prompts(EXPERIMENT, direction)
    base, other = model.run(prompt), model.run(donor)
    target = Target(3, 7, np.array(prompt), model.run(EXPERIMENT.clean).logits[-1])
    scores = edge_attribution(model, EXPERIMENT, direction=direction, metric=metric)
    values = {
        name: measure([METRICS[metric]], run.logits, target)[0]
        for name, run in zip(DIRECTIONS[direction], (base, other), strict=True)
    }
    largest = max(1, *(np.abs(run.logits).max() for run in (base, other)))
    assert abs(scores.baseline_clean - values["clean"]) <= TOLERANCE[model.dtype] * largest
    assert abs(scores.baseline_corrupted - values["corrupted"]) <= TOLERANCE[model.dtype] * largest
    slopes = np.full(scores.scores.shape, np.nan)
    for sender, receiver in all_edges(model):
        change = 1e-5 * sent(model, base, other, sender)
        up, down = (
            measure([METRICS[metric]], logits_with_input_changed(model, prompt, receiver, sign * change), target)[0]
            for sign in (1, -1)
        )
        slopes[scores.senders.index(sender), scores.receivers.index(receiver)] = (up - down) / 2e-5
    # A central difference of step h errs by about h^2 of the third derivative, and by rounding / h: 1e-9 here.
    assert np.nanmax(np.abs(scores.scores - slopes)) <= 1e-8 * max(1, np.nanmax(np.abs(slopes)))
    assert np.array_equal(np.isnan(scores.scores), np.isnan(slopes))


@given(pairs(), st.sampled_from(list(DIRECTIONS)))
@settings(max_examples=25)
def test_edges_into_a_receiver_and_out_of_a_sender_sum_to_its_attribution(drawn, direction):
    """The attribution of what is read, edges into it together; of what is written, edges out of it together."""
    model, experiment, *_ = drawn
    scores = edge_attribution(model, experiment, direction=direction)
    into, out = np.nansum(scores.scores, axis=0), np.nansum(scores.scores, axis=1)
    into = dict(zip(map(str, scores.receivers), into, strict=True))
    out = dict(zip(map(str, scores.senders), out, strict=True))
    heads, layers = range(model.n_head), range(model.n_layer)

    def effect(site, axes="layer"):
        result = attribute(model, experiment, Patch(site, axes), direction=direction)
        return result.grid - result.base_value

    # Rounding is of what is added up, the scores, and of the derivatives, which LayerNorms can make large. The largest
    # logit is the floor.
    run = model.run(experiment.corrupted)
    eps = model.config.layer_norm_epsilon
    steepest = max(1, *(1 / np.sqrt(getattr(run, s).var(axis=-1).min() + eps) for s in ("resid_pre", "resid_mid")))
    scale = steepest * np.nansum(np.abs(scores.scores)) + np.abs(run.logits).max()

    def equal(actual, expected):
        assert np.abs(np.array(actual) - expected).max() <= TOLERANCE[model.dtype] * scale

    for kind in "qkv":
        equal([sum(into[f"{kind} {layer}.{head}"] for head in heads) for layer in layers], effect(f"{kind}_input"))
    equal([into[f"mlp {layer}"] for layer in layers], effect("mlp_in"))
    equal(into["logits"], effect("resid_post")[-1])
    equal(out["embed"], effect("resid_pre")[0])
    equal([[out[f"head {layer}.{head}"] for head in heads] for layer in layers], effect("z", ("layer", "head")))
    equal([out[f"mlp {layer}"] for layer in layers], effect("mlp_out"))


def test_integrated_gradients_are_complete_and_converge():
    """Edges out of the embedding carry all of the difference, so their scores sum to it as steps grow."""
    model = tiny_model(seed=4)
    results = [edge_attribution(model, EXPERIMENT, steps=steps) for steps in (4, 16, 64, 256)]
    errors = [abs(r.scores[0].sum() - (r.baseline_clean - r.baseline_corrupted)) for r in results]
    # The midpoint rule errs by the square of the step: four times the steps, a sixteenth; half of that is asked for.
    assert errors[2] < errors[1] / 8 and errors[3] < errors[2] / 8 and errors[3] < 1e-3
    moved = [np.nanmax(np.abs(b.scores - a.scores)) for a, b in itertools.pairwise(results)]
    assert moved[1] < moved[0] / 4 and moved[2] < moved[1] / 8
    # The way is the same in both directions, and a difference has the other sign. Both round, in float64, to 1e-16 of
    # the streams, so scores are compared as a part of the largest.
    back = edge_attribution(model, EXPERIMENT, direction="noise", steps=4)
    assert np.array_equal(np.isnan(back.scores), np.isnan(results[0].scores))
    assert np.nanmax(np.abs(back.scores + results[0].scores)) <= 1e-10 * np.nanmax(np.abs(back.scores))


# ---- circuits -------------------------------------------------------------------------------------


def run_circuit(model, experiment, edges):
    kept = kept_edges(model, [edges])
    (resid,) = circuits_resid(model, model.embed(experiment.clean), model.run(experiment.corrupted), kept)
    return model.unembed(resid)


def assert_logits(actual, expected, *runs):
    """As conftest.assert_close, of the largest |logit| of all runs that went into it, and of the LayerNorms' steepness.

    A circuit adds up its residual streams in another order than a run does; where a stream hardly varies, its
    LayerNorm makes that rounding larger by |stream| / its standard deviation.
    """
    steepest = steepness(*runs)
    largest = max(np.abs(run.logits).max() for run in runs)
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= TOLERANCE[actual.dtype] * largest * steepest


@given(pairs())
@settings(max_examples=60)
def test_with_every_edge_it_is_the_clean_run_and_with_none_the_corrupted_run(drawn):
    model, experiment, *_ = drawn
    clean, corrupted = model.run(experiment.clean), model.run(experiment.corrupted)
    assert_logits(run_circuit(model, experiment, all_edges(model)), clean.logits, clean, corrupted)
    assert_logits(run_circuit(model, experiment, []), corrupted.logits, clean, corrupted)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("metric", list(METRICS))
def test_both_ends_of_faithfulness(dtype, metric):
    model = tiny_model(seed=6, dtype=dtype)
    whole, none = (faithfulness(model, EXPERIMENT, edges, metric=metric) for edges in (all_edges(model), []))
    tolerance = 100 * TOLERANCE[model.dtype]
    # The KL divergence from the clean run is 0 in it. The floor there: for float32 at most 1e-5, for float64 1e-12.
    clean, corrupted = (model.run(prompt).logits for prompt in (EXPERIMENT.clean, EXPERIMENT.corrupted))
    largest = max(np.abs(clean).max(), np.abs(corrupted).max())
    floor = 0.1 * TOLERANCE[model.dtype] * float(largest)
    assert floor <= TOLERANCE[model.dtype]
    assert whole.value == pytest.approx(whole.baseline_clean, rel=tolerance, abs=floor)
    assert none.value == pytest.approx(none.baseline_corrupted, rel=tolerance, abs=floor)
    target = Target(3, 7, np.array(EXPERIMENT.clean), clean[-1])  # all runs are measured as runs of the clean prompt
    for logits, baseline in ((clean, whole.baseline_clean), (corrupted, whole.baseline_corrupted)):
        assert baseline == pytest.approx(measure([METRICS[metric]], logits, target)[0], rel=tolerance, abs=floor)
    assert whole.normalised == pytest.approx(1, abs=tolerance)
    assert none.normalised == pytest.approx(0, abs=tolerance)
    assert (whole.n_edges, none.n_edges) == (len(all_edges(model)), 0)
    itself = Experiment(EXPERIMENT.clean, EXPERIMENT.clean, 3, 7)
    assert np.isnan(faithfulness(model, itself, [], metric=metric).normalised)


@given(pairs(), st.data())
@settings(max_examples=40)
def test_without_one_edge_it_is_noising_that_path(drawn, data):
    """Path patching does it in two runs, from a sender's output on; here every reading is added up."""
    model, experiment, *_ = drawn
    missing = data.draw(st.sampled_from(all_edges(model)))
    result = faithfulness(model, experiment, [edge for edge in all_edges(model) if edge != missing])
    path = path_patch(model, experiment, *missing, direction="noise")
    runs = [model.run(prompt) for prompt in (experiment.clean, experiment.corrupted)]
    assert_logits(np.array([result.value], model.dtype), path.grid[0].astype(model.dtype), *runs)


@given(pairs(), st.data())
@settings(max_examples=40)
def test_without_all_edges_out_of_some_nodes_it_is_patching_their_outputs(drawn, data):
    model, experiment, *_ = drawn
    cut = data.draw(st.lists(st.sampled_from(list(graph(model)[0])), min_size=1, max_size=4, unique=True))
    clean, corrupted = model.run(experiment.clean), model.run(experiment.corrupted)

    def patched():
        for step in model.steps(experiment.clean):
            for sender in cut:
                replace(step, sender, corrupted)
            yield step

    run = record(patched())
    run.model = model
    edges = [edge for edge in all_edges(model) if edge[0] not in cut]
    assert_logits(run_circuit(model, experiment, edges), run.logits, clean, corrupted, run)


@given(st.integers(0, 2**32 - 1), st.integers(1, 100))
@settings(max_examples=25)
def test_dangling_edges_carry_nothing(seed, n):
    model = tiny_model(seed=7)
    scores = random_scores(model, seed)
    edges, pruned = circuit(scores, n, prune=False), circuit(scores, n)
    assert (scores.circuit(n, prune=False), scores.circuit(n)) == (edges, pruned)
    assert edges == scores.top(n) and len(edges) == n and set(pruned) <= set(edges)
    values = [faithfulness(model, EXPERIMENT, some).value for some in (edges, pruned)]
    assert_metric(values[0], values[1], model, EXPERIMENT)
    # Each edge that is left lies on a way from the embedding to the logits.
    forward, back = {Node("embed")}, {Node("logits")}
    for _ in graph(model)[0]:
        forward |= {edge.receiver.component for edge in pruned if edge.sender in forward}
        back |= {edge.sender for edge in pruned if edge.receiver.component in back}
    assert all(edge.sender in forward and edge.receiver.component in back for edge in pruned)
    on_a_way = [edge for edge in edges if edge.sender in forward and edge.receiver.component in back]
    assert pruned == on_a_way


def test_the_largest_come_first_and_ties_in_the_order_of_the_run():
    model = tiny_model()
    scores = edge_attribution(model, EXPERIMENT)
    sizes = [abs(edge.score) for edge in scores.top(len(scores.edges))]
    assert sizes == sorted(sizes, reverse=True)
    equal = dataclasses.replace(scores, scores=scores.scores * 0 - 1)
    assert equal.top(30) == equal.edges[:30]
    assert edge_attribution(model, EXPERIMENT).edges == scores.edges  # the same bits every time
    # An edge given twice is one edge.
    once, twice = (faithfulness(model, EXPERIMENT, scores.top(9) * times) for times in (1, 2))
    assert once == twice and once.n_edges == 9


def test_names_and_nodes_mean_the_same_edges():
    model = tiny_model()
    edges = edge_attribution(model, EXPERIMENT).top(9)
    of_edges = faithfulness(model, EXPERIMENT, edges)
    names = by_names(edges)
    pairs_of_nodes = [(edge.sender, edge.receiver) for edge in edges]
    mixed = [[name, edge.receiver] for (name, _), edge in zip(names, edges, strict=True)]
    for same in (names, pairs_of_nodes, mixed, [*names, *edges], iter(edges)):
        assert faithfulness(model, EXPERIMENT, same) == of_edges
    assert of_edges.n_edges == 9
    assert [(node(sender), node(receiver)) for sender, receiver in names] == pairs_of_nodes
    components = {"head 2.1": ("q 2.1", "k 2.1", "v 2.1", "head 2.1"), "mlp 2": ("mlp 2",), "logits": ("logits",)}
    for component, receivers in components.items():
        assert all(node(receiver).component == node(component) for receiver in receivers)


# ---- averages -------------------------------------------------------------------------------------

THREE = make_pairs(3)
LENGTHS = [*make_pairs(1, 4, n_tokens=4), *make_pairs(1, 6, n_tokens=6), *make_pairs(1, 9, n_tokens=9)]
AVERAGED = pytest.mark.parametrize("experiments", [THREE, LENGTHS], ids=["one length", "lengths 4, 6 and 9"])


def assert_mean(actual, expected, singles):
    """Equal up to the order of a float64 sum: 1e-14 of the largest |number| that is averaged; NaN where NaN is."""
    actual, expected = np.array(actual), np.array(expected)
    assert actual.shape == expected.shape and np.array_equal(np.isnan(actual), np.isnan(expected))
    assert np.nanmax(np.abs(actual - expected)) <= 1e-14 * np.nanmax(np.abs(singles))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("direction", "steps"), [("denoise", 1), ("noise", 3)])
@AVERAGED
def test_average_scores_are_the_means_of_single_ones(experiments, direction, steps, dtype):
    model, asked = tiny_model(seed=3, dtype=dtype), dict(direction=direction, metric="log_probability", steps=steps)
    singles = [edge_attribution(model, experiment, **asked) for experiment in experiments]
    scores = np.array([single.scores for single in singles])
    result = edge_attribution(model, experiments, **asked)
    assert_mean(result.scores, scores.sum(axis=0) / 3, scores)
    assert_mean(result.standard_error, np.std(scores, axis=0, ddof=1) / np.sqrt(3), scores)
    assert result.scores.dtype == result.standard_error.dtype == np.float64
    for name in ("baseline_clean", "baseline_corrupted"):
        of_singles = [getattr(single, name) for single in singles]
        assert_mean(getattr(result, name), sum(of_singles) / 3, of_singles)
    for name in ("senders", "receivers", "direction", "metric", "steps", "source"):
        assert getattr(result, name) == getattr(singles[0], name)
    assert (result.n_pairs, result.skipped) == (3, ())
    assert [(single.n_pairs, single.standard_error) for single in singles] == [(1, None)] * 3
    assert result.title == f"{singles[0].title}, mean of 3 pairs" and result.title in str(result)
    largest = result.top(1)[0]
    assert abs(largest.score) == np.nanmax(np.abs(result.scores))  # edges are ranked by the mean


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@AVERAGED
def test_average_faithfulness_is_the_mean_of_single_values(experiments, dtype):
    model = tiny_model(seed=3, dtype=dtype)
    edges = circuit(edge_attribution(model, experiments), 40)
    singles = [faithfulness(model, experiment, edges) for experiment in experiments]
    result = faithfulness(model, experiments, edges)
    for name in ("value", "baseline_clean", "baseline_corrupted"):
        of_singles = [getattr(single, name) for single in singles]
        assert_mean(getattr(result, name), sum(of_singles) / 3, of_singles)
    values = [single.value for single in singles]
    assert_mean(result.standard_error, np.std(values, ddof=1) / np.sqrt(3), values)
    span = result.baseline_clean - result.baseline_corrupted
    assert result.normalised == (result.value - result.baseline_corrupted) / span  # of the means
    assert result.rounding == max(single.rounding for single in singles) > 0
    assert (result.n_pairs, result.skipped, result.n_edges) == (3, (), len(edges))
    assert [(single.n_pairs, single.standard_error) for single in singles] == [(1, None)] * 3
    assert "mean of 3 pairs" in str(result) and "mean" not in str(singles[0])
    fields = {name: value for name, value in result.to_dict().items() if name not in ("format", "kind")}
    assert fields == jsonable({**vars(result), "normalised": result.normalised})


@pytest.mark.parametrize("as_given", [list, tuple, iter, lambda pairs: PairFile(pairs, [1], [])])
def test_the_average_over_one_pair_is_its_own_result(as_given):
    model, (pair,) = tiny_model(), make_pairs(1)
    alone, listed = edge_attribution(model, pair), edge_attribution(model, as_given([pair]))
    assert listed.to_dict() == alone.to_dict() and listed.standard_error is None
    edges = alone.top(20)
    assert faithfulness(model, as_given([pair]), edges) == faithfulness(model, pair, edges)


def test_experiments_that_cannot_be_used_are_left_out_and_listed():
    model, (first, second) = tiny_model(), make_pairs(2)
    strange = [UNEQUAL, "text", Experiment([1, 2], [1, 99], 3, 7), Experiment([1, 2], [1, 3], 5, 5), SHORTER, SHIFTED]
    reasons = ["same number", "not an Experiment: 'text'", "99", "both 5", *["same number"] * 2]
    given = [strange[0], first, *strange[1:], second]
    both = edge_attribution(model, [first, second])
    results = [edge_attribution(model, given), faithfulness(model, given, both.top(20))]
    means = [both, faithfulness(model, [first, second], both.top(20))]
    for result, mean in zip(results, means, strict=True):
        assert [where for where, _ in result.skipped] == [f"pair {number}" for number in (0, 2, 3, 4, 5, 6)]
        assert all(part in reason for part, (_, reason) in zip(reasons, result.skipped, strict=True))
        ours, theirs = ({**one.to_dict(), "skipped": ()} for one in (result, mean))
        assert ours["pairs"].pop("numbers") == [1, 7] and theirs["pairs"].pop("numbers") == [0, 1]
        assert ours == theirs and result.n_pairs == 2
    file = PairFile([first, UNEQUAL, second], [1, 2, 4], [(3, "not JSON")])
    for result in (edge_attribution(model, file), faithfulness(model, file, both.top(20))):
        assert [where for where, _ in result.skipped] == ["line 2", "line 3"]
        assert result.skipped[1] == ("line 3", "not JSON") and result.n_pairs == 2


# ---- on nano --------------------------------------------------------------------------------------


def induction_pair():
    """A B ... A -> B, and with another token in place of the first A (as in test_nano)."""
    experiment = tasks.induction(1)[0]
    corrupted = np.array(experiment.clean)
    first = np.flatnonzero(corrupted == corrupted[-1])[0]
    corrupted[first] = next(token for token in range(1000, 2000) if token not in corrupted)
    return dataclasses.replace(experiment, corrupted=corrupted)


def test_small_circuits_of_nano_are_faithful_and_hold_its_known_heads():
    """40 edges of 479; the heads are those that test_nano finds by patching."""
    nano = load("nano")
    edges = circuit(edge_attribution(nano, induction_pair(), steps=5), 40)
    pairs_of_edges = set(by_names(edges))
    assert {(f"head 0.{a}", f"k 1.{b}") for a in (1, 3) for b in range(4)} <= pairs_of_edges  # found by their keys
    assert {("embed", "v 0.1"), ("embed", "v 0.3")} <= pairs_of_edges  # the previous token, written at the next
    assert {(f"head 1.{b}", "logits") for b in range(4)} <= pairs_of_edges
    assert faithfulness(nano, induction_pair(), edges).normalised > 0.9  # 0.97

    experiment = tasks.indirect_object(1)[0]
    scores = edge_attribution(nano, experiment, steps=5)
    edges = circuit(scores, 40)
    assert {("head 2.0", "logits"), ("head 3.2", "logits")} <= set(by_names(edges))
    assert {"v 2.0", "v 3.2"} <= {str(edge.receiver) for edge in edges}  # their values carry it
    assert faithfulness(nano, experiment, edges).normalised > 0.85  # 0.92
    others = [edge for edge in scores.edges if edge not in edges]
    assert faithfulness(nano, experiment, others).normalised < 0.3
    lot = np.random.default_rng(0).choice(len(scores.edges), 40, replace=False)
    drawn = faithfulness(nano, experiment, [scores.edges[i] for i in lot])
    assert abs(drawn.normalised) < 0.3  # as many edges drawn by lot do nothing


# ---- files and pictures ---------------------------------------------------------------------------


def test_json_holds_all_that_is_known(tmp_path):
    nano = load("nano")
    scores = edge_attribution(nano, MICHELLE, direction="noise", metric="log_probability", steps=2)
    scores.save(tmp_path / "edges.json")
    read = json.loads((tmp_path / "edges.json").read_text(encoding="utf-8"))
    rows = [Edge(node(row["sender"]), node(row["receiver"]), row["score"]) for row in read["edges"]]
    assert rows == scores.edges and read["edges"] == scores.to_rows()
    assert read == scores.to_dict() and Experiment(**read["experiment"]) == MICHELLE
    assert read["source"] == {"name": "nano", "sha256": nano.source.sha256} and len(nano.source.sha256) == 64
    assert (read["direction"], read["metric"], read["steps"]) == ("noise", "log_probability", 2)
    assert (read["baseline_clean"], read["baseline_corrupted"]) == (scores.baseline_clean, scores.baseline_corrupted)
    arrays = Experiment(np.array([1, 2]), (3, 2), np.int64(3), 7)
    assert json.dumps(edge_attribution(tiny_model(), arrays).to_dict(), allow_nan=False)


@pytest.mark.parametrize("ending", ["npz", "json"])
@pytest.mark.parametrize("experiments", [EXPERIMENT, [UNEQUAL, *THREE, *LENGTHS]], ids=["one", "several"])
def test_a_saved_file_gives_everything_back_to_the_bit(experiments, ending, tmp_path):
    scores = edge_attribution(tiny_model(seed=5, dtype=np.float32), experiments, direction="noise", steps=2)
    scores.save(tmp_path / f"edges.{ending}")
    loaded = EdgeScores.load(tmp_path / f"edges.{ending}")
    assert (scores.standard_error is None) == (not scores.skipped) == (scores.n_pairs == 1)
    for field in dataclasses.fields(EdgeScores):
        before, after = getattr(scores, field.name), getattr(loaded, field.name)
        assert type(before) is type(after)
        if isinstance(before, np.ndarray):
            assert before.dtype == after.dtype == np.float64 and before.shape == after.shape
            there = ~np.isnan(scores.scores)
            assert before[there].tobytes() == after[there].tobytes()
            assert np.array_equal(np.isnan(before), ~there) and np.array_equal(np.isnan(after), ~there)
        elif field.name in ("source", "pairs") and before is not None:
            assert before.to_dict() == after.to_dict()
        else:
            assert before == after
    assert all(isinstance(one, Node) for one in (*loaded.senders, *loaded.receivers))
    assert loaded.edges == scores.edges and circuit(loaded, 40) == circuit(scores, 40)
    assert loaded.to_dict() == scores.to_dict() and (str(loaded), repr(loaded)) == (str(scores), repr(scores))
    assert loaded.to_dot() == scores.to_dot()


@pytest.mark.parametrize("ending", ["npz", "json"])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_a_number_that_is_not_finite_is_kept_too(value, ending, tmp_path):
    scores = dataclasses.replace(edge_attribution(tiny_model(), EXPERIMENT), baseline_corrupted=value)
    scores.save(tmp_path / f"edges.{ending}")
    loaded = EdgeScores.load(tmp_path / f"edges.{ending}")
    assert loaded.baseline_corrupted == pytest.approx(value, nan_ok=True)
    assert loaded.baseline_clean == scores.baseline_clean and loaded.edges == scores.edges


def test_rows_and_csv_have_every_edge(tmp_path):
    scores = edge_attribution(tiny_model(), EXPERIMENT)
    scores.save(tmp_path / "edges.csv")
    lines = (tmp_path / "edges.csv").read_text(encoding="utf-8").splitlines()
    assert lines == ["sender,receiver,score", *(f"{e.sender},{e.receiver},{e.score!r}" for e in scores.edges)]
    assert scores.to_rows() == [dict(sender=str(s), receiver=str(r), score=score) for s, r, score in scores.edges]


def test_dot_has_a_line_an_edge(tmp_path):
    scores = random_scores(tiny_model(), 1)
    scores.save(tmp_path / "circuit.dot", 40)
    assert (tmp_path / "circuit.dot").read_text() == scores.to_dot(40)
    lines = (tmp_path / "circuit.dot").read_text().splitlines()
    edges = circuit(scores, 40)
    assert lines[0] == "digraph circuit {" and lines[-1] == "}" and len(lines) == len(edges) + 3
    for line, (sender, receiver, score) in zip(lines[2:-1], edges, strict=True):
        colour = "b2182b" if score > 0 else "2166ac"
        assert line.startswith(f'  "{sender}" -> "{receiver.component}" [color="#{colour}"')
        assert f'tooltip="{score!r}"' in line
        assert (f'label="{receiver.kind}"' in line) == ("label=" in line) == (receiver.kind in ("q", "k", "v"))
    scores.save(tmp_path / "usual.dot")
    assert (tmp_path / "usual.dot").read_text() == scores.to_dot() == scores.to_dot(30)


@given(st.integers(0, 2**32 - 1), st.integers(1, 100))
@settings(max_examples=20)
def test_nothing_drawn_lies_upon_a_node(seed, n):
    edges = circuit(random_scores(tiny_model(), seed), n)
    paths, boxes = layout(edges)
    ends = {Node("embed"), Node("logits")}
    assert boxes.keys() == ends | {edge.sender for edge in edges} | {edge.receiver.component for edge in edges}
    in_order = [one for one in [*graph(tiny_model())[0], Node("logits")] if one in boxes]
    assert (np.diff([boxes[one][1] for one in in_order]) >= 0).all()  # in the order of the run, upwards
    places = list(boxes.values())
    for i, (x, y) in enumerate(places):
        assert all(y != other_y or abs(x - other_x) > BOX_WIDTH for other_x, other_y in places[:i])
    for edge, path in zip(edges, paths, strict=True):
        assert (np.diff(path[:, 1]) > 0).all()  # always upwards
        assert abs(path[0, 0] - boxes[edge.sender][0]) < BOX_WIDTH / 2
        assert abs(path[-1, 0] - boxes[edge.receiver.component][0]) < BOX_WIDTH / 2
        for x, y in path[1:-1]:
            assert all(abs(x - box_x) > BOX_WIDTH / 2 for box_x, box_y in places if abs(y - box_y) < 0.5)


def test_the_picture(tmp_path):
    scores = edge_attribution(tiny_model(), EXPERIMENT)
    figure = scores.plot(60)
    ax = figure.axes[0]
    edges = circuit(scores, 60)
    shown = [text.get_text() for text in ax.texts if len(text.get_text()) > 1]
    assert sorted(shown) == sorted({"embed", "logits"} | {str(edge.sender) for edge in edges})
    assert ax.get_title().splitlines()[0] == scores.title
    figure.savefig(tmp_path / "figure.png")
    scores.save(tmp_path / "circuit.png", 60)
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "circuit.png").read_bytes().startswith(b"\x89PNG")
    for ending, start in (("svg", b"<?xml"), ("pdf", b"%PDF")):
        scores.save(tmp_path / f"circuit.{ending}", 60)
        assert (tmp_path / f"circuit.{ending}").read_bytes().startswith(start)
    assert scores.plot(60, ax) is figure and figure.axes == [ax] and scores._repr_png_().startswith(b"\x89PNG")
    nothing = dataclasses.replace(scores, scores=scores.scores * 0)
    assert circuit(nothing, 2) == [] and f"0 of {len(scores.edges)} edges;" in nothing.plot(2).axes[0].get_title()
    assert repr(scores) == f"<EdgeScores: {scores.title}; {len(scores.edges)} edges>"
    best = scores.top(1)[0]
    assert str(scores).splitlines()[1] == f"{best.score:10.4f}  {best.sender} -> {best.receiver}"
    assert str(faithfulness(tiny_model(), EXPERIMENT, [])).startswith("0 edges: logit_diff")


# ---- bad input ------------------------------------------------------------------------------------

N_EDGES = len(all_edges(tiny_model()))
EXISTING = "senders are embed, head 0.0 to head 2.1, mlp 0 to mlp 2; receivers are q 0.0 to q 2.1, k 0.0 to k 2.1, v "
BAD = [
    (
        lambda m: edge_attribution(m, UNEQUAL),
        "edge attribution needs prompts with the same number of tokens, .*; these have 3 and 2",
    ),
    (
        lambda m: faithfulness(m, UNEQUAL, []),
        "faithfulness needs prompts with the same number of tokens, .*; these have 3 and 2 tokens",
    ),
    (
        lambda m: edge_attribution(m, SHORTER),
        "edge attribution needs prompts with the same number of tokens, .*; these have 3 and 2",
    ),
    (
        lambda m: faithfulness(m, SHORTER, []),
        "faithfulness needs prompts with the same number of tokens, .*; these have 3 and 2 tokens",
    ),
    (lambda m: edge_attribution(m, SHIFTED), "edge attribution needs prompts with the same number of tokens"),
    (lambda m: faithfulness(m, SHIFTED, []), "faithfulness needs prompts with the same number of tokens"),
    (lambda m: edge_attribution(m, []), "there are no pairs: give at least one Experiment"),
    (lambda m: faithfulness(m, [], []), "there are no pairs: give at least one Experiment"),
    (
        lambda m: edge_attribution(m, [UNEQUAL] * 3),
        "no pair can be used; pair 0 .and 2 more.: .* these have 3 ",
    ),
    (lambda m: edge_attribution(m, EXPERIMENT, direction="up"), "unknown direction 'up': "),
    (lambda m: edge_attribution(m, EXPERIMENT, steps=0), "steps=0: a whole number is needed, at least 1"),
    (lambda m: edge_attribution(m, EXPERIMENT, metric="loss"), "unknown metric 'loss'; known are logit_diff"),
    (
        lambda m: edge_attribution(m, EXPERIMENT, metric="rank"),
        r"rank has no derivative: give a metric that has one \(logit_diff, log_probability, ",
    ),
    (lambda m: circuit(edge_attribution(m, EXPERIMENT), 0), f"n=0: from 1 to {N_EDGES} edges can be chosen"),
    (lambda m: circuit(edge_attribution(m, EXPERIMENT), N_EDGES + 1), f"n={N_EDGES + 1}: from 1 to {N_EDGES} edges"),
    (lambda m: edge_attribution(m, EXPERIMENT).plot(-1), f"n=-1: from 1 to {N_EDGES} edges can be chosen"),
    (lambda m: edge_attribution(m, EXPERIMENT).to_dot(0), f"n=0: from 1 to {N_EDGES} edges can be chosen"),
    (lambda m: edge_attribution(m, EXPERIMENT).save("/nowhere/e.json"), "cannot write /nowhere/e.json"),
    (lambda m: edge_attribution(m, EXPERIMENT).save("/nowhere/e.dot"), "cannot write /nowhere/e.dot"),
    (lambda m: edge_attribution(m, EXPERIMENT).save("e.gif"), "cannot save e.gif: its ending must be one of .npz, "),
    (lambda m: faithfulness(m, EXPERIMENT, [("head 9.0", "logits")]), "no edge goes from 'head 9.0' to 'logits'; "),
    (lambda m: faithfulness(m, EXPERIMENT, [("attn 0", "logits")]), f"'attn 0' to 'logits'; {EXISTING}"),
    (lambda m: faithfulness(m, EXPERIMENT, [("embed", "head 1.0")]), "no edge goes from 'embed' to 'head 1.0'; "),
    (lambda m: faithfulness(m, EXPERIMENT, [("head 1.0", "q 1.1")]), "; and a receiver comes after its sender$"),
    (lambda m: faithfulness(m, EXPERIMENT, [(Node("head", 9, 0), Node("logits"))]), "from 'head 9.0' to 'logits'; "),
    (
        lambda m: faithfulness(m, EXPERIMENT, [("embed", "z 1.0")]),
        '\'z 1.0\' is not a node; nodes are "embed", "head 2.1", ',
    ),
    (lambda m: edge_attribution(m, EXPERIMENT, direction=["noise"]), "unknown direction"),
    (
        lambda m: edge_attribution(m, EXPERIMENT, direction="noise", metric="kl_divergence"),
        "kl_divergence and its derivative are 0 in the run patched into",
    ),
    (lambda m: edge_attribution(m, EXPERIMENT).top(2.5), "n=2.5: from 1 to "),
    (lambda m: faithfulness(m, EXPERIMENT, ("embed", "logits")), "pairs, as .circuit. gives them, not 'embed'"),
    (lambda m: faithfulness(m, EXPERIMENT, [Node("embed")]), "pairs, as .circuit. gives them, not Node"),
    (lambda m: faithfulness(m, EXPERIMENT, edge_attribution(m, EXPERIMENT)), "gives them, not <EdgeScores"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input(call, message):
    with pytest.raises(NanopatchError, match=message) as error:
        call(tiny_model())
    assert "\n" not in str(error.value)
