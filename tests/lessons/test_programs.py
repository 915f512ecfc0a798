"""The programs compute what they say, to the last digit, and each method of the library is held against their edges."""

import itertools

import numpy as np
import pytest

import nanopatch
from nanopatch import Experiment
from nanopatch.lessons.programs import LAYER_NORM_WEIGHT, Writer, and_gate, or_gate, share_of_x
from nanopatch.model.layers import layer_norm

PROGRAMS = pytest.mark.parametrize("make", [and_gate, or_gate, share_of_x])
DIRECTIONS = pytest.mark.parametrize("direction", ["denoise", "noise"])


@pytest.mark.parametrize(("make", "gate"), [(and_gate, lambda a, b: a & b), (or_gate, lambda a, b: a | b)])
@pytest.mark.parametrize(("a", "b"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_gates(make, gate, a, b):
    logits = make().model.run(f"{a}{b}=").logits[-1]
    assert logits.tolist() == ([-5, 5, 0] if gate(a, b) else [5, -5, 0])


def test_share_of_x():
    model = share_of_x().model
    for letters in itertools.product("abx", repeat=4):
        text = "".join(letters)
        for n, logit in enumerate(model.run(text).logits[:, 2], start=1):
            assert logit == pytest.approx(10 * text[:n].count("x") / n, rel=1e-6)


@PROGRAMS
def test_layer_norm_does_nothing(make):
    model, experiment, _ = make()
    run = model.run(experiment.clean)
    for resid in (*run.resid_pre, *run.resid_mid, *run.resid_post):
        weight, bias = np.full(model.d_model, LAYER_NORM_WEIGHT, np.float32), np.zeros(model.d_model, np.float32)
        assert np.array_equal(layer_norm(resid, weight, bias, model.config.layer_norm_epsilon), resid)


@PROGRAMS
def test_they_are_real_checkpoints(make, tmp_path):
    model, experiment, _ = make()
    again = nanopatch.load(nanopatch.save_checkpoint(model, tmp_path / "program"))
    assert np.array_equal(again.run(experiment.clean).logits, model.run(experiment.clean).logits)
    assert again.tokenize(experiment.clean).tolist() == model.tokenize(experiment.clean).tolist()


def found(scores):
    """The edges with a score that is not 0, to rounding."""
    least = 1e-4 * np.nanmax(np.abs(scores.scores))
    return {names(edge) for edge in scores.edges if abs(edge.score) > least}


def names(edge):
    return str(edge.sender), str(edge.receiver)


@PROGRAMS
@DIRECTIONS
def test_five_steps_of_integrated_gradients_find_the_true_edges(make, direction):
    model, experiment, edges = make()
    assert found(nanopatch.edge_attribution(model, experiment, steps=5, direction=direction)) == set(edges)


@pytest.mark.parametrize(
    ("make", "direction", "n_found"),
    [
        (and_gate, "denoise", 1),
        (and_gate, "noise", 5),
        (or_gate, "denoise", 5),
        (or_gate, "noise", 1),
        (share_of_x, "denoise", 2),
        (share_of_x, "noise", 3),
    ],
)
def test_one_step_misses_edges_where_a_relu_is_flat(make, direction, n_found):
    """A gradient is taken at the base run. Where the neuron is off there, nothing before it has one."""
    model, experiment, edges = make()
    scored = found(nanopatch.edge_attribution(model, experiment, direction=direction))
    assert scored < set(edges) if n_found < len(edges) else scored == set(edges)
    assert len(scored) == n_found


@PROGRAMS
def test_the_true_edges_alone_give_the_whole_answer(make):
    model, experiment, edges = make()
    true = [edge for edge in nanopatch.edge_attribution(model, experiment).edges if names(edge) in edges]
    assert len(true) == len(edges)
    assert nanopatch.faithfulness(model, experiment, true).normalised == pytest.approx(1, abs=1e-6)


def test_the_and_gate_needs_each_edge_and_the_or_gate_one_path():
    for make, without_one in ((and_gate, 0), (or_gate, 1)):
        model, experiment, edges = make()
        true = [edge for edge in nanopatch.edge_attribution(model, experiment).edges if names(edge) in edges]
        for edge in true[:4]:  # those to the heads and to the neuron
            kept = [other for other in true if other != edge]
            value = nanopatch.faithfulness(model, experiment, kept).normalised
            assert value == pytest.approx(without_one if str(edge.receiver) != "logits" else 0, abs=1e-6)


ONE_BIT = {and_gate: ("11=", "01="), or_gate: ("10=", "00="), share_of_x: ("xaxb", "aaab")}


@PROGRAMS
@DIRECTIONS
def test_exact_path_patching_finds_the_true_edges(make, direction):
    """Of the path that one bit takes, as a bit alone need not change a gate."""
    model, _, edges = make()
    clean, corrupted = ONE_BIT[make]
    experiment = Experiment(clean, corrupted, make().experiment.answer, make().experiment.wrong_answer)
    scores = nanopatch.edge_attribution(model, experiment)
    receivers = [str(receiver) for receiver in scores.receivers if receiver.kind != "resid"]
    result = nanopatch.path_patch(model, experiment, ["embed", "head", "mlp"], receivers, direction=direction)
    changed = np.abs(np.nan_to_num(result.normalised)) > 1e-6
    found = {(result.pieces["sender"][i][0], result.pieces["receiver"][j][0]) for i, j in np.argwhere(changed)}
    other_bit = {("embed", "v 0.1"), ("head 0.1", "mlp 0")}
    assert found == set(edges) - (set() if make is share_of_x else other_bit)


@PROGRAMS
def test_heads_that_do_nothing_have_no_effect(make):
    model, experiment, edges = make()
    result = nanopatch.sweep(model, experiment, nanopatch.Patch("z", axes=("layer", "head")))
    writing = {sender for sender, _ in edges if sender.startswith("head")}
    for layer, head in itertools.product(range(model.n_layer), range(model.n_head)):
        if f"head {layer}.{head}" not in writing:
            assert result.grid[layer, head] == result.baseline_corrupted


def test_a_program_of_ones_own():
    """XOR takes two neurons."""
    writer = Writer(1, "01=", slots=("bit", "position_0", "position_1", "a", "b", "xor"), n_neurons=2)
    writer.embed("1", bit=1)
    writer.position(0, position_0=1)
    writer.position(1, position_1=1)
    writer.head(0, 0, looks_at="position_0", value="bit", output="a")
    writer.head(0, 1, looks_at="position_1", value="bit", output="b")
    writer.neuron(0, reads={"a": 1, "b": 1}, writes={"xor": 1})
    writer.neuron(0, reads={"a": 1, "b": 1, "one": -1}, writes={"xor": -2})
    writer.unembed("1", xor=10, one=-5)
    model = writer.model()
    assert [model.run(f"{a}{b}=").logits[-1, 1] for a in (0, 1) for b in (0, 1)] == [-5, 5, 5, -5]


# ---- every method against the known edges -----------------------------------------------------------


def heads_of(edges):
    """The heads that write, and the MLPs: [(layer, head), ...], [layer, ...]."""
    senders = {sender for sender, _ in edges}
    heads = {tuple(map(int, name.removeprefix("head ").split("."))) for name in senders if name.startswith("head")}
    return heads, {int(name.removeprefix("mlp ")) for name in senders if name.startswith("mlp")}


def above(values):
    return {tuple(map(int, index)) for index in np.argwhere(np.abs(np.nan_to_num(values)) > 1e-4)}


HEADS = nanopatch.Patch("z", axes=("layer", "head"))


@pytest.mark.parametrize(
    ("make", "direction", "found"),
    [
        (and_gate, "denoise", set()),  # one bit mended is not enough
        (and_gate, "noise", {(0, 0), (0, 1)}),
        (or_gate, "denoise", {(0, 0), (0, 1)}),
        (or_gate, "noise", set()),  # the other bit stands in
        (share_of_x, "denoise", {(1, 0)}),
        (share_of_x, "noise", {(1, 0)}),
    ],
)
def test_a_sweep_finds_the_heads_that_alone_change_the_answer(make, direction, found):
    model, experiment, _ = make()
    assert above(nanopatch.sweep(model, experiment, HEADS, direction=direction).normalised) == found


@PROGRAMS
@DIRECTIONS
def test_integrated_gradients_find_all_heads_and_mlps(make, direction):
    """`attribute` with steps: whichever way, each part of the circuit and nothing else."""
    model, experiment, edges = make()
    heads, mlps = heads_of(edges)
    options = {"direction": direction, "steps": 5}
    assert above(nanopatch.attribute(model, experiment, HEADS, **options).normalised) == heads
    layers = nanopatch.Patch("mlp_out", axes=("layer",))
    assert above(nanopatch.attribute(model, experiment, layers, **options).normalised) == {(mlp,) for mlp in mlps}


@PROGRAMS
@pytest.mark.parametrize("by", ["zero", "mean", "resample"])
def test_an_ablation_finds_what_the_answer_needs(make, by):
    """Of the clean run: the AND gate needs both heads, the OR gate neither, the share of x its one head."""
    model, experiment, edges = make()
    by = {
        "zero": nanopatch.Zero(),
        "mean": nanopatch.Mean([experiment.clean, experiment.corrupted]),
        "resample": nanopatch.Resample([experiment.corrupted]),
    }[by]
    needed = set() if make is or_gate else heads_of(edges)[0]
    assert above(nanopatch.ablate(model, experiment, HEADS, by=by).normalised) == needed


@PROGRAMS
def test_direct_attribution_names_what_writes_the_answer(make):
    """What differs between the two prompts comes from what has an edge to the logits, and from nothing else."""
    model, experiment, edges = make()
    clean, corrupted = (
        nanopatch.direct_logit_attribution(model, model.run(prompt), experiment.answer, experiment.wrong_answer).parts
        for prompt in (experiment.clean, experiment.corrupted)
    )
    differs = {name for name in clean if abs(clean[name] - corrupted[name]) > 1e-4}
    assert differs == {sender for sender, receiver in edges if receiver == "logits"}


@PROGRAMS
def test_the_lens_shows_the_answer_where_it_is_written(make):
    """The last row is the run's own; before the part that writes the answer, clean and corrupted do not differ."""
    model, experiment, edges = make()
    lenses = [
        nanopatch.logit_lens(model, model.run(prompt), experiment.answer, experiment.wrong_answer)
        for prompt in (experiment.clean, experiment.corrupted)
    ]
    differs = {
        row
        for row, a, b in zip(lenses[0].rows, *(lens.logit_diff[:, -1] for lens in lenses), strict=True)
        if abs(a - b) > 1e-4
    }
    expected = {"resid_mid 1", "resid_post 1"} if make is share_of_x else {"resid_post 0"}
    assert differs == expected


def test_saliency_is_larger_where_a_neuron_is_on():
    """It is of all directions of an embedding, also of those that no token uses. At "11=" the neuron of OR is off."""
    norms = {make: nanopatch.saliency(make().model, make().experiment).norm for make in (and_gate, or_gate, share_of_x)}
    assert norms[and_gate][:2].min() > 1 and norms[or_gate][:2].max() == 0
    is_x = np.array([letter == "x" for letter in "xaxb"])[:3]  # the last position is also read by the logits
    assert norms[share_of_x][:3][is_x].min() > norms[share_of_x][:3][~is_x].max()
