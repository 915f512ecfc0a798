"""Edge attribution against central differences and attribution patching, circuits by exact identities."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
from conftest import TOLERANCE, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from nanopatch.gradients.circuits import (
    Edge,
    circuit,
    circuit_logits,
    edge_attribution,
    faithfulness,
    graph,
)
from nanopatch.gradients.salience import saliency
from nanopatch.results.circuit_plot import BOX_WIDTH, layout, node_of
from test_patching import assert_metric, pairs
from test_paths import is_after, parts, prompts, replace, sent

from nanopatch import Experiment, NanopatchError, attribute, load, path_patch, tasks
from nanopatch.experiments import MICHELLE
from nanopatch.experiments.metrics import METRICS, measure
from nanopatch.model.layers import affine, layer_norm
from nanopatch.patching.sweep import DIRECTIONS, target_of

EXPERIMENT = Experiment([1, 2, 3, 4, 5], [1, 9, 3, 8, 5], 3, 7)


def all_edges(model):
    senders, receivers = graph(model)
    return [(sender, receiver) for sender in senders for receiver in receivers if is_after(receiver, sender)]


def random_scores(model, seed):
    """`EdgeScores` of random numbers, for random circuits."""
    scores = edge_attribution(model, EXPERIMENT)
    noise = np.random.default_rng(seed).normal(size=scores.scores.shape)
    return dataclasses.replace(scores, scores=scores.scores * 0 + noise)


# ---- the graph ------------------------------------------------------------------------------------


def test_the_graph_has_the_edges_of_the_literature():
    """32,491 in GPT-2 small (Conmy et al. 2023, arXiv 2304.14997; Syed et al. 2023)."""
    scores = edge_attribution(tiny_model(n_layer=12, n_head=12, n_embd=24), EXPERIMENT)
    assert len(scores.edges) == 32491
    model = tiny_model()
    scores = edge_attribution(model, EXPERIMENT)
    assert [edge[:2] for edge in scores.edges] == all_edges(model)
    assert not any(edge.sender.startswith("attn") or edge.receiver.startswith("resid") for edge in scores.edges)
    assert not np.isinf(scores.scores).any() and scores.scores.dtype == np.float64


# ---- scores ---------------------------------------------------------------------------------------


def logits_with_input_changed(model, tokens, receiver, change):
    """Logits of a run in which one receiver alone reads the residual stream plus `change`."""
    kind, layer, head = parts(receiver)
    for site in model.steps(tokens):
        if site.name == "q_input" and site.layer == layer:
            stream = site.array
        if kind in ("q", "k", "v") and (site.name, site.layer) == (kind, layer):
            weight, bias = model.h[layer].attn.c_attn
            third = slice("qkv".index(kind) * model.d_model, ("qkv".index(kind) + 1) * model.d_model)
            normed = layer_norm(stream + change, *model.h[layer].ln_1, model.config.layer_norm_epsilon)
            own = affine(normed, weight[:, third], bias[third]).reshape(site.array.shape)
            site.array[:, head] = own[:, head]
        if kind == "mlp" and (site.name, site.layer) == ("mlp_in", layer):
            site.array += change
        if kind == "logits" and (site.name, site.layer) == ("resid_post", model.n_layer - 1):
            site.array += change
    return site.array


SCORED = [(direction, name) for direction in DIRECTIONS for name in METRICS if METRICS[name].gradient]
SCORED.remove(("noise", "kl_divergence"))  # the clean run is its minimum: an error, below


@pytest.mark.parametrize(("direction", "metric"), SCORED)
def test_a_score_is_the_derivative_along_the_edges_difference(direction, metric):
    model = tiny_model(seed=2, n_layer=2)
    tokens = EXPERIMENT.tokens(model)
    into, origin = prompts(EXPERIMENT, direction)
    base, other = model.run(into), model.run(origin)
    target = target_of(tokens, np.array(into), model.run(tokens.clean).logits[-1])
    scores = edge_attribution(model, EXPERIMENT, direction, metric)
    slopes = np.full(scores.scores.shape, np.nan)
    for sender, receiver in all_edges(model):
        change = 1e-5 * sent(model, base, other, sender)
        up, down = (
            measure([METRICS[metric]], logits_with_input_changed(model, into, receiver, sign * change), target)[0]
            for sign in (1, -1)
        )
        slopes[scores.senders.index(sender), scores.receivers.index(receiver)] = (up - down) / 2e-5
    # A central difference of step h errs by about h^2 of the third derivative, and by rounding / h: 1e-9 here.
    assert np.nanmax(np.abs(scores.scores - slopes)) <= 1e-8 * max(1, np.nanmax(np.abs(slopes)))
    assert np.array_equal(np.isnan(scores.scores), np.isnan(slopes))


@given(pairs(), st.sampled_from(list(DIRECTIONS)))
@settings(deadline=None, max_examples=25)
def test_edges_into_a_receiver_and_out_of_a_sender_sum_to_its_attribution(drawn, direction):
    """The attribution of what is read, edges into it together; of what is written, edges out of it together."""
    model, experiment, *_ = drawn
    scores = edge_attribution(model, experiment, direction)
    into, out = np.nansum(scores.scores, axis=0), np.nansum(scores.scores, axis=1)
    into, out = dict(zip(scores.receivers, into, strict=True)), dict(zip(scores.senders, out, strict=True))
    heads, layers = range(model.n_head), range(model.n_layer)

    def effect(site, axes="layer"):
        result = attribute(model, experiment, site, axes, direction)
        return result.grid - result.baseline_into

    # Rounding is of what is added up, the scores, and of the derivatives, which LayerNorms can make large.
    run = model.run(experiment.corrupted)
    steepest = max(1, *(1 / np.sqrt(getattr(run, s).var(axis=-1).min() + 1e-5) for s in ("resid_pre", "resid_mid")))
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
    # The way is the same in both directions, and a difference has the other sign.
    back = edge_attribution(model, EXPERIMENT, "noise", steps=4)
    assert np.allclose(back.scores, -results[0].scores, rtol=1e-10, equal_nan=True)


# ---- circuits -------------------------------------------------------------------------------------


def run_circuit(model, experiment, edges):
    return circuit_logits(model, model.embed(experiment.clean), model.run(experiment.corrupted), edges)


def assert_logits(actual, expected, *runs):
    """As tiny.assert_close, of the largest |logit| of all runs that went into it, and of the LayerNorms' steepness.

    A circuit adds up its residual streams in another order than a run does; where a stream hardly varies, its
    LayerNorm makes that rounding larger by |stream| / its standard deviation.
    """
    steepest = 1
    for run in runs:
        for stream in (run.resid_pre, run.resid_mid, run.resid_post):
            steepest = max(steepest, (np.abs(stream).max(axis=-1) / np.sqrt(stream.var(axis=-1) + 1e-5)).max())
    largest = max(np.abs(run.logits).max() for run in runs)
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= TOLERANCE[actual.dtype] * largest * steepest


@given(pairs())
@settings(deadline=None, max_examples=60)
def test_with_every_edge_it_is_the_clean_run_and_with_none_the_corrupted_run(drawn):
    model, experiment, *_ = drawn
    clean, corrupted = model.run(experiment.clean), model.run(experiment.corrupted)
    assert_logits(run_circuit(model, experiment, all_edges(model)), clean.logits, clean, corrupted)
    assert_logits(run_circuit(model, experiment, []), corrupted.logits, clean, corrupted)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("metric", list(METRICS))
def test_both_ends_of_faithfulness(dtype, metric):
    model = tiny_model(seed=6, dtype=dtype)
    whole, none = (faithfulness(model, EXPERIMENT, edges, metric) for edges in (all_edges(model), []))
    assert whole.value == pytest.approx(whole.baseline_clean, rel=100 * TOLERANCE[model.dtype], abs=1e-5)
    assert whole.normalised == pytest.approx(1, abs=100 * TOLERANCE[model.dtype])
    assert none.normalised == pytest.approx(0, abs=100 * TOLERANCE[model.dtype])
    assert (whole.n_edges, none.n_edges) == (len(all_edges(model)), 0)
    itself = Experiment(EXPERIMENT.clean, EXPERIMENT.clean, 3, 7)
    assert np.isnan(faithfulness(model, itself, [], metric).normalised)


@given(pairs(), st.data())
@settings(deadline=None, max_examples=40)
def test_without_one_edge_it_is_noising_that_path(drawn, data):
    """Path patching does it in two runs, from a sender's output on; here every reading is added up."""
    model, experiment, *_ = drawn
    missing = data.draw(st.sampled_from(all_edges(model)))
    result = faithfulness(model, experiment, [edge for edge in all_edges(model) if edge != missing])
    path = path_patch(model, experiment, *missing, direction="noise")
    runs = [model.run(prompt) for prompt in (experiment.clean, experiment.corrupted)]
    assert_logits(np.array([result.value], model.dtype), path.grid[0].astype(model.dtype), *runs)


@given(pairs(), st.data())
@settings(deadline=None, max_examples=40)
def test_without_all_edges_out_of_some_nodes_it_is_patching_their_outputs(drawn, data):
    model, experiment, *_ = drawn
    cut = data.draw(st.lists(st.sampled_from(list(graph(model)[0])), min_size=1, max_size=4, unique=True))
    clean, corrupted = model.run(experiment.clean), model.run(experiment.corrupted)
    for site in model.steps(experiment.clean):
        for sender in cut:
            replace(site, sender, corrupted)
    edges = [edge for edge in all_edges(model) if edge[0] not in cut]
    assert_logits(run_circuit(model, experiment, edges), site.array, clean, corrupted)


@given(st.integers(0, 2**32 - 1), st.integers(1, 100))
@settings(deadline=None, max_examples=25)
def test_dangling_edges_carry_nothing(seed, n):
    model = tiny_model(seed=7)
    scores = random_scores(model, seed)
    edges, pruned = circuit(scores, n, prune=False), circuit(scores, n)
    assert edges == scores.top(n) and len(edges) == n and set(pruned) <= set(edges)
    values = [faithfulness(model, EXPERIMENT, some).value for some in (edges, pruned)]
    assert_metric(values[0], values[1], model, EXPERIMENT)
    # Each edge that is left lies on a way from the embedding to the logits.
    forward, back = {"embed"}, {"logits"}
    for _ in graph(model)[0]:
        forward |= {node_of(edge.receiver) for edge in pruned if edge.sender in forward}
        back |= {edge.sender for edge in pruned if node_of(edge.receiver) in back}
    assert all(edge.sender in forward and node_of(edge.receiver) in back for edge in pruned)
    on_a_way = [edge for edge in edges if edge.sender in forward and node_of(edge.receiver) in back]
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
    pairs_of_edges = {edge[:2] for edge in edges}
    assert {(f"head 0.{a}", f"k 1.{b}") for a in (1, 3) for b in range(4)} <= pairs_of_edges  # found by their keys
    assert {("embed", "v 0.1"), ("embed", "v 0.3")} <= pairs_of_edges  # the previous token, written at the next
    assert {(f"head 1.{b}", "logits") for b in range(4)} <= pairs_of_edges
    assert faithfulness(nano, induction_pair(), edges).normalised > 0.9  # 0.97

    experiment = tasks.indirect_object(1)[0]
    scores = edge_attribution(nano, experiment, steps=5)
    edges = circuit(scores, 40)
    assert {("head 2.0", "logits"), ("head 3.2", "logits")} <= {edge[:2] for edge in edges}
    assert {"v 2.0", "v 3.2"} <= {edge.receiver for edge in edges}  # their values carry it
    assert faithfulness(nano, experiment, edges).normalised > 0.85  # 0.92
    others = [edge for edge in scores.edges if edge not in edges]
    assert faithfulness(nano, experiment, others).normalised < 0.3
    lot = np.random.default_rng(0).choice(len(scores.edges), 40, replace=False)
    drawn = faithfulness(nano, experiment, [scores.edges[i] for i in lot])
    assert abs(drawn.normalised) < 0.3  # as many edges drawn by lot do nothing


# ---- files and pictures ---------------------------------------------------------------------------


def test_json_holds_all_that_is_known(tmp_path):
    nano = load("nano")
    scores = edge_attribution(nano, MICHELLE, "noise", "log_probability", steps=2)
    scores.save_json(tmp_path / "edges.json")
    read = json.loads((tmp_path / "edges.json").read_text(encoding="utf-8"))
    assert [Edge(**edge) for edge in read["edges"]] == scores.edges
    assert read == scores.to_dict() and Experiment(**read["experiment"]) == MICHELLE
    assert (read["model"], read["direction"], read["metric"], read["steps"]) == ("nano", "noise", "log_probability", 2)
    assert (read["baseline_clean"], read["baseline_corrupted"]) == (scores.baseline_clean, scores.baseline_corrupted)
    assert [Edge(**edge) for edge in scores.to_dict(25)["edges"]] == circuit(scores, 25)
    assert json.dumps(edge_attribution(tiny_model(), Experiment(np.array([1, 2]), (3, 2), np.int64(3), 7)).to_dict())


def test_dot_has_a_line_an_edge(tmp_path):
    scores = random_scores(tiny_model(), 1)
    scores.save_dot(tmp_path / "circuit.dot", 40)
    lines = (tmp_path / "circuit.dot").read_text().splitlines()
    edges = circuit(scores, 40)
    assert lines[0] == "digraph circuit {" and lines[-1] == "}" and len(lines) == len(edges) + 3
    for line, (sender, receiver, score) in zip(lines[2:-1], edges, strict=True):
        assert line.startswith(f'  "{sender}" -> "{node_of(receiver)}" [color="#{"b2182b" if score > 0 else "2166ac"}"')
        assert f'tooltip="{score!r}"' in line
        assert (f'label="{receiver[0]}"' in line) == (receiver[0] in "qkv")


@given(st.integers(0, 2**32 - 1), st.integers(1, 100))
@settings(deadline=None, max_examples=20)
def test_nothing_drawn_lies_upon_a_node(seed, n):
    edges = circuit(random_scores(tiny_model(), seed), n)
    ways, boxes = layout(edges)
    assert boxes.keys() == {"embed", "logits"} | {edge.sender for edge in edges} | {node_of(e.receiver) for e in edges}
    in_order = [node for node in [*graph(tiny_model())[0], "logits"] if node in boxes]
    assert (np.diff([boxes[node][1] for node in in_order]) >= 0).all()  # in the order of the run, upwards
    places = list(boxes.values())
    for i, (x, y) in enumerate(places):
        assert all(y != other_y or abs(x - other_x) > BOX_WIDTH for other_x, other_y in places[:i])
    for edge, way in zip(edges, ways, strict=True):
        assert (np.diff(way[:, 1]) > 0).all()  # always upwards
        assert abs(way[0, 0] - boxes[edge.sender][0]) < BOX_WIDTH / 2
        assert abs(way[-1, 0] - boxes[node_of(edge.receiver)][0]) < BOX_WIDTH / 2
        for x, y in way[1:-1]:
            assert all(abs(x - box_x) > BOX_WIDTH / 2 for box_x, box_y in places if abs(y - box_y) < 0.5)


def test_the_picture(tmp_path):
    scores = edge_attribution(tiny_model(), EXPERIMENT)
    ax = scores.plot(60)
    edges = circuit(scores, 60)
    shown = [text.get_text() for text in ax.texts if len(text.get_text()) > 1]
    assert sorted(shown) == sorted({"embed", "logits"} | {edge.sender for edge in edges})
    ax.figure.savefig(tmp_path / "circuit.png")
    assert (tmp_path / "circuit.png").read_bytes().startswith(b"\x89PNG")
    assert scores.plot(60, ax) is ax and scores._repr_png_().startswith(b"\x89PNG")
    nothing = dataclasses.replace(scores, scores=scores.scores * 0)
    assert circuit(nothing, 2) == [] and f"0 of {len(scores.edges)} edges;" in nothing.plot(2).get_title()
    assert repr(scores) == f"<EdgeScores: {scores.title}; {len(scores.edges)} edges>"
    best = scores.top(1)[0]
    assert str(scores).splitlines()[1] == f"{best.score:10.4f}  {best.sender} -> {best.receiver}"
    assert str(faithfulness(tiny_model(), EXPERIMENT, [])).startswith("0 edges: logit_diff")


# ---- input tokens ---------------------------------------------------------------------------------


def test_saliency_is_the_derivative_with_respect_to_the_embedding():
    model = tiny_model(seed=9)
    result = saliency(model, EXPERIMENT)

    def value(change):
        (final,) = (site.array for site in model.steps_from(0, model.embed([1, 2, 3, 4, 5]) + change, sites="logits"))
        return float(final[-1, 3] - final[-1, 7])

    assert result.value == value(0)
    for position, token in enumerate(EXPERIMENT.clean):
        change = np.zeros((5, model.d_model))
        change[position] = 1e-5 * model.wte[token]
        slope = (value(change) - value(-change)) / 2e-5
        assert result.product[position] == pytest.approx(slope, rel=1e-6, abs=1e-8)
        gradient = []
        for axis in 1e-5 * np.eye(model.d_model):
            change[position] = axis
            gradient.append((value(change) - value(-change)) / 2e-5)
        assert result.norm[position] == pytest.approx(np.linalg.norm(gradient), rel=1e-6)


def test_saliency_of_a_prompt_asks_about_its_two_likeliest_tokens():
    nano = load("nano")
    tokens = MICHELLE.tokens(nano)
    second = np.argsort(-nano.next_logits(tokens.clean))[1]
    result = saliency(nano, MICHELLE.clean)
    assert str(result) == str(saliency(nano, dataclasses.replace(MICHELLE, wrong_answer=int(second))))
    lines = str(result).splitlines()
    assert len(lines) == len(tokens.clean) + 2 and lines[3].split()[:2] == ["1", "␣Jones"]
    assert result.norm.dtype == np.float64 and result.norm.argmax() == 1  # the surname matters most
    assert saliency(nano, tokens.clean, "probability").metric == "probability"


# ---- bad input ------------------------------------------------------------------------------------

UNEQUAL = Experiment([1, 2, 3], [1, 2], 3, 7)
N_EDGES = len(all_edges(tiny_model()))
EXISTING = "senders are embed, head 0.0 to head 2.1, mlp 0 to mlp 2; receivers are q 0.0 to q 2.1, k 0.0 to k 2.1, v "
BAD = [
    (lambda m: edge_attribution(m, UNEQUAL), "edge attribution needs prompts of one length; these have 3 and 2 tokens"),
    (lambda m: faithfulness(m, UNEQUAL, []), "faithfulness needs prompts of one length; these have 3 and 2 tokens"),
    (
        lambda m: edge_attribution(m, EXPERIMENT, "up"),
        "unknown direction 'up': ",
    ),
    (lambda m: edge_attribution(m, EXPERIMENT, steps=0), "steps=0: a whole number is needed, at least 1"),
    (lambda m: edge_attribution(m, EXPERIMENT, metric="loss"), "unknown metric 'loss'; known are logit_diff"),
    (
        lambda m: edge_attribution(m, EXPERIMENT, metric="rank"),
        "rank has no derivative: give one that has (logit_diff, log_probability, ",
    ),
    (lambda m: circuit(edge_attribution(m, EXPERIMENT), 0), f"n=0: from 1 to {N_EDGES} edges can be chosen"),
    (lambda m: circuit(edge_attribution(m, EXPERIMENT), N_EDGES + 1), f"n={N_EDGES + 1}: from 1 to {N_EDGES} edges"),
    (lambda m: edge_attribution(m, EXPERIMENT).plot(-1), f"n=-1: from 1 to {N_EDGES} edges can be chosen"),
    (lambda m: edge_attribution(m, EXPERIMENT).save_json("/nowhere/e.json"), "cannot write /nowhere/e.json"),
    (lambda m: faithfulness(m, EXPERIMENT, [("head 9.0", "logits")]), "no edge goes from 'head 9.0' to 'logits'; "),
    (lambda m: faithfulness(m, EXPERIMENT, [("attn 0", "logits")]), f"'attn 0' to 'logits'; {EXISTING}"),
    (lambda m: faithfulness(m, EXPERIMENT, [("embed", "head 1.0")]), "no edge goes from 'embed' to 'head 1.0'; "),
    (lambda m: faithfulness(m, EXPERIMENT, [("head 1.0", "q 1.1")]), "; and a receiver comes after its sender$"),
    (lambda m: edge_attribution(m, EXPERIMENT, ["noise"]), "unknown direction"),
    (lambda m: edge_attribution(m, EXPERIMENT, "noise", "kl_divergence"), "kl_divergence is 0 in the run patched into"),
    (
        lambda m: saliency(m, EXPERIMENT, "kl_divergence"),
        "and so is its derivative, which then says nothing: take more",
    ),
    (lambda m: edge_attribution(m, EXPERIMENT).top(2.5), "n=2.5: from 1 to "),
    (lambda m: faithfulness(m, EXPERIMENT, ("embed", "logits")), "pairs, as .circuit. gives them, not 'embed'"),
    (lambda m: faithfulness(m, EXPERIMENT, edge_attribution(m, EXPERIMENT)), "gives them, not <EdgeScores"),
    (lambda m: saliency(m, "text"), "vocabulary is not GPT-2's"),
    (lambda m: saliency(m, [[1, 2], [3, 4]]), "saliency is of one prompt, not of a batch"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input(call, message):
    with pytest.raises(NanopatchError, match=message.replace("(", r"\(")) as error:
        call(tiny_model())
    assert "\n" not in str(error.value)
