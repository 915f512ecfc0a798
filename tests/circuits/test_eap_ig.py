"""EAP-IG's own scores, selections and circuits on `nano`, from tests/reference/eap_ig.npz (see scripts/eap_ig.py).

Both are in float64. Where its definition differs from ours, the test holds what follows from the difference.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
from conftest import ROOT

import nanopatch
from nanopatch import Mean, Zero, edge_attribution, faithfulness
from nanopatch.circuits.interchange import name_of, node_of
from nanopatch.experiments import INDIRECT_OBJECT, JESSICA, MICHELLE
from nanopatch.model.graph import all_edges, edge_table

FILE = np.load(ROOT / "tests" / "reference" / "eap_ig.npz")
NAMES = json.loads(str(FILE["header"]))["edges"]
EDGES = [tuple(node_of(end, "eap_ig.npz") for end in name.split("->")) for name in NAMES]
PAIRS = {"michelle": MICHELLE, "jessica": JESSICA, "indirect-object": INDIRECT_OBJECT}
SIZES = (40, 120, 300)


@pytest.fixture(scope="module")
def model():
    return nanopatch.load("nano", dtype="float64")


@pytest.fixture(params=PAIRS)
def pair(request):
    return request.param, PAIRS[request.param]


def ablations(model, experiment):
    clean = experiment.tokens(model).clean.tolist()
    return {"": None, ".mean": Mean([clean, clean[::-1], [*clean[3:], *clean[:3]]]), ".zero": Zero()}


def theirs(model, name):
    """Their array of edges, in the order of ours."""
    order = {edge: i for i, edge in enumerate(EDGES)}
    return FILE[name][[order[edge] for edge in all_edges(model)]]


def scored(model, experiment, **options):
    return np.array([edge.score for edge in edge_attribution(model, experiment, **options).edges])


def assert_equal(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


def test_the_edges_are_the_same(model):
    assert sorted(EDGES, key=str) == sorted(all_edges(model), key=str)


def test_eap_is_noise(model, pair):
    name, experiment = pair
    assert_equal(scored(model, experiment, direction="noise"), theirs(model, f"{name}.eap"))


@pytest.mark.parametrize("end", [".mean", ".zero"])
def test_eap_of_ablations(model, pair, end):
    """Its embedding is that of tokens alone, ours of tokens and positions. Only zero tells them apart."""
    name, experiment = pair
    same = np.array([end == ".mean" or sender.kind != "embed" for sender, _ in all_edges(model)])
    ours = scored(model, experiment, corruption=ablations(model, experiment)[end])
    expected = theirs(model, f"{name}.eap{end}")
    assert_equal(ours[same], expected[same])
    if end == ".zero":
        assert np.abs(ours - expected)[~same].max() > 0.1 * np.abs(expected).max()


def test_middles_of_steps_complete_its_ends(model, pair):
    """Its N steps have their ends, and ours their middles: together they are its 2 N steps."""
    name, experiment = pair
    ours = scored(model, experiment, direction="noise", steps=5)
    assert_equal((ours + theirs(model, f"{name}.ig.5")) / 2, theirs(model, f"{name}.ig.10"))


@pytest.mark.parametrize("size", SIZES)
def test_it_selects_and_prunes_the_same_edges(model, pair, size):
    name, experiment = pair
    scores = edge_attribution(model, experiment)
    table = np.full_like(scores.scores, np.nan)
    table[edge_table(model)] = theirs(model, f"{name}.ig.10")
    kept = {edge[:2] for edge in replace(scores, scores=table).circuit(size)}
    assert kept == {edge for edge, inside in zip(EDGES, FILE[f"{name}.kept.{size}"], strict=True) if inside}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("end", ["", ".mean", ".zero"])
def test_circuits_run_the_same(model, pair, size, end):
    """For zero, the circuit has all edges from the embedding, which differs."""
    name, experiment = pair
    kept = zip(EDGES, FILE[f"{name}.kept.{size}"], strict=True)
    edges = [edge for edge, inside in kept if inside or (end == ".zero" and edge[0].kind == "embed")]
    found = faithfulness(model, experiment, edges, corruption=ablations(model, experiment)[end])
    assert_equal(found.value, FILE[f"{name}.run.{size}{end}"])


def test_names_lead_back():
    assert ["->".join(map(name_of, edge)) for edge in EDGES] == NAMES
