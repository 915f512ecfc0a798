"""Circuits in batches, under ablations, as curves, pruned exactly, verified, and in files."""

import dataclasses
import json

import numpy as np
import pytest
from conftest import TOLERANCE, assert_metric, is_after, make_pairs, pairs, sent, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

import nanopatch
from nanopatch import (
    CircuitCurves,
    Experiment,
    Mean,
    NanopatchError,
    Noise,
    Resample,
    VerifiedEdges,
    Zero,
    acdc,
    attribute,
    circuit_curves,
    complement,
    edge_attribution,
    faithfulness,
    path_patch,
    read_circuit,
    save_circuit,
    verify_edges,
    without_each,
)
from nanopatch.circuits import acdc as acdc_module
from nanopatch.circuits import run as run_module
from nanopatch.circuits.curves import FRACTIONS
from nanopatch.cli import main
from nanopatch.experiments import MICHELLE
from nanopatch.model.graph import Edge, Node, graph
from nanopatch.model.layers import ACTIVATIONS, affine, layer_norm, softmax
from nanopatch.results.edges import connected

EXPERIMENT = Experiment([1, 2, 3, 4, 5], [1, 9, 3, 8, 5], 3, 7)
OTHERS = ([2, 8, 4, 7, 1], [5, 5, 6, 2, 9])
ABLATIONS = {
    "zero": Zero(),
    "mean": Mean(OTHERS),
    "mean over positions": Mean(OTHERS, per_position=False),
    "resample": Resample(OTHERS, seed=1),
}


def all_edges(model):
    senders, receivers = graph(model)
    return [(sender, receiver) for sender in senders for receiver in receivers if is_after(receiver, sender)]


def random_circuits(model, seed, n=5):
    random, edges = np.random.default_rng(seed), all_edges(model)
    return [[edge for edge in edges if random.random() < share] for share in random.random(n)]


# ---- in batches -----------------------------------------------------------------------------------


@given(pairs(), st.integers(0, 2**32 - 1))
@settings(max_examples=25)
def test_a_batch_of_circuits_is_each_of_them_alone(drawn, seed):
    model, experiment, *_ = drawn
    circuits = random_circuits(model, seed)
    together = faithfulness(model, experiment, {str(i): edges for i, edges in enumerate(circuits)})
    assert list(together) == ["0", "1", "2", "3", "4"]
    for edges, found in zip(circuits, together.values(), strict=True):
        assert_metric(found.value, faithfulness(model, experiment, edges).value, model, experiment)
        assert found.n_edges == len(edges)


def test_little_memory_makes_several_batches(monkeypatch):
    model = tiny_model(seed=3)
    named = {str(i): edges for i, edges in enumerate(random_circuits(model, 1))}
    expected = faithfulness(model, EXPERIMENT, named)
    monkeypatch.setattr(run_module, "MEMORY", 1)
    for found, one in zip(faithfulness(model, EXPERIMENT, named).values(), expected.values(), strict=True):
        assert_metric(found.value, one.value, model, EXPERIMENT)


def test_many_circuits_over_pairs_in_a_folder(tmp_path):
    model = tiny_model(seed=3)
    named = {"a": all_edges(model)[:40], "b": all_edges(model)[::2]}
    several = make_pairs(3)
    expected = faithfulness(model, several, named)
    found = faithfulness(model, several, named, folder=tmp_path / "run")
    for name in named:
        assert found[name].to_json() == expected[name].to_json()
        alone = [faithfulness(model, one, named[name]).value for one in several]
        assert np.allclose(expected[name].pairs.values, alone, rtol=0, atol=1e-10 * np.abs(alone).max())
        assert expected[name].standard_error == pytest.approx(np.std(alone, ddof=1) / np.sqrt(3))
    with pytest.raises(NanopatchError, match="circuits"):
        faithfulness(model, several, {"a": named["a"], "b": named["b"][1:]}, folder=tmp_path / "run")


# ---- ablations ------------------------------------------------------------------------------------


def put_in(model, experiment, corruption, site):
    """What an ablation puts in at a site: (n_layer, ...), by its definition."""
    own = getattr(model.run(experiment.clean), site)
    runs = [getattr(model.run(list(prompt)), site) for prompt in OTHERS]
    if isinstance(corruption, Zero):
        return np.zeros_like(own)
    if isinstance(corruption, Resample):
        return runs[int(np.random.default_rng([corruption.seed, 0]).integers(len(runs)))]
    mean = np.mean(runs, axis=0)
    return mean if corruption.per_position else np.broadcast_to(mean.mean(axis=1, keepdims=True), own.shape)


def slow_circuit(model, experiment, edges, corruption):
    """The logits of a circuit's run, receiver by receiver: each reads the sum of what all senders carry to it."""
    edges, eps = {(str(s), str(r)) for s, r in edges}, model.config.layer_norm_epsilon
    others = {site: put_in(model, experiment, corruption, site) for site in ("resid_pre", "z", "mlp_out")}
    inside, outside = {"embed": model.embed(experiment.clean)}, {"embed": others["resid_pre"][0]}
    bias = 0

    def read(receiver):
        return bias + sum(inside[s] if (s, receiver) in edges else outside[s] for s in inside)

    for layer, block in enumerate(model.h):
        weight, b = block.attn.c_attn
        z = []
        for head in range(model.n_head):
            made = []
            for i, kind in enumerate("qkv"):
                columns = slice(i * model.d_model + head * model.d_head, i * model.d_model + (head + 1) * model.d_head)
                x = layer_norm(read(f"{kind} {layer}.{head}"), *block.ln_1, eps)
                made.append(affine(x, weight[:, columns], b[columns]))
            q, k, v = made
            scores = model._attention_scale(layer) * q @ k.T
            scores[np.triu_indices(len(q), 1)] = -np.inf
            z.append(softmax(scores) @ v)
        for head in range(model.n_head):
            rows = block.attn.c_proj.weight[head * model.d_head : (head + 1) * model.d_head]
            inside[f"head {layer}.{head}"] = z[head] @ rows
            outside[f"head {layer}.{head}"] = others["z"][layer][:, head] @ rows
        bias = bias + block.attn.c_proj.bias
        x = affine(layer_norm(read(f"mlp {layer}"), *block.ln_2, eps), *block.mlp.c_fc)
        inside[f"mlp {layer}"] = affine(ACTIVATIONS[model.config.activation_function](x), *block.mlp.c_proj)
        outside[f"mlp {layer}"] = others["mlp_out"][layer]
    return model.unembed(read("logits"))


@pytest.mark.parametrize("name", list(ABLATIONS))
@pytest.mark.parametrize("seed", range(3))
def test_an_ablated_circuit_is_the_loop_over_its_receivers(name, seed):
    model = tiny_model(seed=seed)
    for edges in random_circuits(model, seed, 4):
        logits = slow_circuit(model, EXPERIMENT, edges, ABLATIONS[name])
        found = faithfulness(model, EXPERIMENT, edges, corruption=ABLATIONS[name])
        assert abs(found.value - (logits[-1, 3] - logits[-1, 7])) <= 1e-10 * np.abs(logits).max()
        assert found.corruption == ABLATIONS[name]


@pytest.mark.parametrize("name", list(ABLATIONS))
def test_both_ends_of_an_ablated_circuit(name):
    model = tiny_model(seed=6)
    some = {"all": all_edges(model), "none": [], "some": all_edges(model)[::3]}
    found = faithfulness(model, EXPERIMENT, some, corruption=ABLATIONS[name])
    assert found["all"].normalised == pytest.approx(1, abs=1e-9)
    assert found["none"].value == found["none"].baseline_corrupted == found["some"].baseline_corrupted
    logits = slow_circuit(model, EXPERIMENT, [], ABLATIONS[name])
    assert abs(found["none"].value - (logits[-1, 3] - logits[-1, 7])) <= 1e-10 * np.abs(logits).max()
    assert found["none"].n_edges == 0 and "all replaced by" in found["none"].text()
    labels = [label.get_text() for label in found["some"].plot().axes[0].get_yticklabels()]
    assert labels[:2] == ["clean", "circuit"] and labels[2].startswith("all replaced by")


@pytest.mark.parametrize("name", list(ABLATIONS))
def test_scores_of_ablated_edges_add_up_to_the_ablation_of_a_head(name):
    model = tiny_model(seed=2)
    scores = edge_attribution(model, EXPERIMENT, corruption=ABLATIONS[name])
    assert scores.direction == "noise" and scores.baseline_corrupted is None
    one = attribute(model, EXPERIMENT, "z", corruption=ABLATIONS[name])
    if name == "resample":  # there each cell draws its own prompt
        own = attribute(model, EXPERIMENT, "z", corruption=Resample([OTHERS[drawn(1)]]))
        one = dataclasses.replace(own, corruption=ABLATIONS[name])
    effects = one.grid - one.baseline_clean
    nodes = scores.nodes
    for layer in range(model.n_layer):
        for head in range(model.n_head):
            assert abs(nodes[Node("head", layer, head)] - effects[layer, head]) <= 1e-9 * np.abs(effects).max()


def drawn(seed):
    return int(np.random.default_rng([seed, 0]).integers(len(OTHERS)))


def test_sizes_may_be_taken_before_the_mean():
    model, several = tiny_model(seed=2), make_pairs(3)
    each = [edge_attribution(model, one).scores for one in several]
    sizes = edge_attribution(model, several, absolute=True)
    assert np.allclose(sizes.scores, np.mean(np.abs(each), axis=0), rtol=1e-12, equal_nan=True) and sizes.absolute
    assert np.allclose(
        edge_attribution(model, several).scores, np.mean(each, axis=0), rtol=1e-9, atol=1e-12, equal_nan=True
    )
    with pytest.raises(NanopatchError, match="absolute values"):
        sizes.circuit(5, by="signed")
    assert "means of sizes over 3 pairs" in sizes.title


# ---- AtP* -----------------------------------------------------------------------------------------


def logit_difference(logits):
    return logits[-1, 3] - logits[-1, 7]


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_the_qk_fix_takes_the_pattern_exactly_and_the_rest_to_first_order(direction):
    model = tiny_model(seed=2)
    plain, fixed = (edge_attribution(model, EXPERIMENT, direction=direction, qk_fix=fix) for fix in (False, True))
    runs = [model.run(EXPERIMENT.corrupted), model.run(EXPERIMENT.clean)]
    base, other = runs if direction == "denoise" else runs[::-1]
    d_logits = np.zeros_like(base.logits)
    d_logits[-1, [3, 7]] = 1, -1
    slope = model.backward(base, d_logits, sites="pattern").pattern
    largest, seen = np.nanmax(np.abs(plain.scores)), 0
    for i, sender in enumerate(fixed.senders):
        change = sent(model, base, other, str(sender))
        for j, receiver in enumerate(fixed.receivers):
            if receiver.kind not in ("q", "k"):
                assert np.array_equal(fixed.scores[i, j], plain.scores[i, j], equal_nan=True)
            elif np.isfinite(fixed.scores[i, j]):
                patterns = {}
                for step in model.steps(EXPERIMENT.corrupted if direction == "denoise" else EXPERIMENT.clean):
                    if (step.name, step.layer) == (f"{receiver.kind}_input", receiver.layer):
                        step.array += change
                    if (step.name, step.layer) == ("pattern", receiver.layer):
                        patterns = step.array[receiver.head] - base.pattern[receiver.layer, receiver.head]
                        break
                expected = (patterns * slope[receiver.layer, receiver.head]).sum()
                assert abs(fixed.scores[i, j] - expected) <= 1e-10 * largest
                seen += abs(expected - plain.scores[i, j]) > 1e-4 * largest
    assert seen and fixed.method == "EAP with QK fix"


def test_grad_drop_is_the_mean_size_with_each_layer_held_in_turn():
    model, step = tiny_model(seed=2), 1e-5
    found = edge_attribution(model, EXPERIMENT, grad_drop=True)
    base, other = model.run(EXPERIMENT.corrupted), model.run(EXPERIMENT.clean)

    def metric(receiver, change, held):  # the outputs of layer `held` stay what they are in the base run
        for site in model.steps(EXPERIMENT.corrupted):
            if (site.name, site.layer) == (receiver, 1):
                site.array += change
            if site.name in ("attn_out", "mlp_out") and site.layer == held:
                site.array[...] = getattr(base, site.name)[held]
        return logit_difference(site.array)

    for i, sender in enumerate(found.senders[:3]):
        change = step * sent(model, base, other, str(sender))
        slopes = [
            (metric("mlp_in", change, held) - metric("mlp_in", -change, held)) / (2 * step)
            for held in range(model.n_layer)
        ]
        expected = np.abs(slopes).sum() / (model.n_layer - 1)  # held with its own layer, it has none
        assert found.scores[i, found.receivers.index(Node("mlp", 1))] == pytest.approx(expected, rel=1e-6, abs=1e-10)
    to_logits = found.receivers.index(Node("logits"))
    plain = edge_attribution(model, EXPERIMENT)
    assert found.scores[:, to_logits] == pytest.approx(np.abs(plain.scores[:, to_logits]), rel=1e-9)
    assert found.absolute and found.method == "EAP with GradDrop"


# ---- selection ------------------------------------------------------------------------------------


def test_signed_edges_raise_the_metric_of_the_clean_run():
    model = tiny_model(seed=2)
    for direction, sign in (("denoise", 1), ("noise", -1)):
        scores = edge_attribution(model, EXPERIMENT, direction=direction)
        best = [sign * edge.score for edge in scores.top(20, "signed")]
        assert best == sorted(best, reverse=True) and best[0] == np.nanmax(sign * scores.scores)
        n = int((sign * scores.scores > 0.01).sum())
        assert scores.above(0.01, "signed") == scores.top(n, "signed")
    assert scores.above(np.inf) == []
    for wrong in ("sign", None):
        with pytest.raises(NanopatchError, match="'size' or 'signed'"):
            scores.top(3, wrong)


def test_pictures_and_files_are_of_what_was_chosen(tmp_path, capsys):
    scores = edge_attribution(nanopatch.load("nano"), MICHELLE)
    for by in ("size", "signed"):
        scores.save(tmp_path / f"{by}.dot", 40, by)
        lines = [line for line in (tmp_path / f"{by}.dot").read_text().splitlines() if "->" in line]
        edges = scores.circuit(40, by=by)
        assert [line.split(" [")[0].strip() for line in lines] == [
            f'"{edge.sender}" -> "{edge.receiver.component}"' for edge in edges
        ]
        assert main(["edges", "--experiment", "michelle", "-n", "40", "--by", by, "-o", str(tmp_path / "cli.dot")]) == 0
        assert (tmp_path / "cli.dot").read_text() == (tmp_path / f"{by}.dot").read_text()
        assert f"{len(edges)} of the best 40 edges" in capsys.readouterr().out
        scores.save(tmp_path / f"{by}.png", 40, by)
    assert (tmp_path / "size.png").read_bytes() != (tmp_path / "signed.png").read_bytes()


def test_a_circuit_of_nodes_has_all_edges_between_them():
    model = tiny_model(seed=2)
    scores = edge_attribution(model, EXPERIMENT)
    edges = scores.node_circuit(3)
    inside = {Node("embed"), Node("logits")}
    inside |= set(sorted((n for n in scores.nodes if n != Node("embed")), key=lambda n: -abs(scores.nodes[n]))[:3])
    expected = {(s, r) for s, r in all_edges(model) if s in inside and r.component in inside}
    assert {edge[:2] for edge in edges} == expected
    n_nodes = len(scores.senders) - 1
    assert len(scores.node_circuit(n_nodes)) == len(all_edges(model))
    with pytest.raises(NanopatchError, match=f"from 1 to {n_nodes}"):
        scores.node_circuit(n_nodes + 1)


# ---- curves ---------------------------------------------------------------------------------------


def test_curves_are_the_faithfulness_of_each_circuit_and_their_areas(tmp_path):
    model = nanopatch.load("nano")
    scores = {"one": edge_attribution(model, MICHELLE), "two": edge_attribution(model, MICHELLE, steps=2)}
    curves = circuit_curves(model, MICHELLE, scores, by=["size", "signed"], n_random=2)
    assert curves.names == ("one, size", "one, signed", "two, size", "two, signed", "random")
    assert tuple(curves.fractions) == FRACTIONS
    for row, (name, by) in enumerate([("one", "size"), ("one", "signed"), ("two", "size"), ("two", "signed")]):
        for column, fraction in enumerate(FRACTIONS):
            n = int(fraction * 479)
            edges = scores[name].circuit(n, by=by) if n else []
            alone = faithfulness(model, MICHELLE, edges)
            assert curves.normalised[row, column] == pytest.approx(alone.normalised, abs=1e-4)
            assert curves.n_edges[row, column] == len(edges)
    heights = curves.normalised[0]
    area = sum(
        (b - a) * (x + y) / 2 for a, b, x, y in zip(FRACTIONS, FRACTIONS[1:], heights, heights[1:], strict=False)
    )
    assert curves.cpr["one, size"] == pytest.approx(area)
    distances = np.abs(1 - heights)
    area = sum(
        (b - a) * (x + y) / 2 for a, b, x, y in zip(FRACTIONS, FRACTIONS[1:], distances, distances[1:], strict=False)
    )
    assert curves.cmd["one, size"] == pytest.approx(area)
    assert (curves.normalised[:, -1] - 1 < 1e-4).all() and curves.cpr["random"] < curves.cpr["one, size"] / 2
    random = [
        faithfulness(model, MICHELLE, scores["one"].shuffled(seed).circuit(int(0.5 * 479))).value for seed in (0, 1)
    ]
    assert curves.values[-1, -2] == pytest.approx(np.mean(random), abs=1e-3)
    for ending in ("npz", "json"):
        curves.save(tmp_path / f"curves.{ending}")
        assert CircuitCurves.load(tmp_path / f"curves.{ending}").to_json() == curves.to_json()
    for ending in ("png", "csv", "html"):
        curves.save(tmp_path / f"curves.{ending}")
    assert len(curves.to_rows()) == 50 and "CPR" in curves.text()


def test_more_steps_rank_nano_better_than_one():
    """What the documentation of `steps` says."""
    model = nanopatch.load("nano")
    curves = circuit_curves(model, MICHELLE, {str(n): edge_attribution(model, MICHELLE, steps=n) for n in (1, 2, 20)})
    assert curves.cpr["2"] > curves.cpr["1"] + 0.02 and abs(curves.cpr["2"] - curves.cpr["20"]) < 0.02
    assert curves.cmd["2"] < curves.cmd["1"] - 0.01


def test_each_edge_left_out_and_the_complement():
    model = tiny_model(seed=2)
    edges = edge_attribution(model, EXPERIMENT).circuit(12)
    left_out = without_each(edges)
    assert [set(edge[:2] for edge in edges) - set(some) for some in left_out.values()] == [{e[:2]} for e in edges]
    assert list(left_out)[0] == f"without {edges[0].sender} -> {edges[0].receiver}"
    rest = complement(model, edges)
    assert set(rest) | {edge[:2] for edge in edges} == set(all_edges(model)) and len(rest) == len(
        all_edges(model)
    ) - len(edges)
    found = faithfulness(
        model, EXPERIMENT, {"rest": complement(model, []), "none": complement(model, all_edges(model))}
    )
    assert found["rest"].normalised == pytest.approx(1) and found["none"].n_edges == 0


# ---- exact pruning and verified edges -------------------------------------------------------------


def slow_acdc(model, experiments, threshold, metric, sign):
    """Conmy et al. 2023, with one run for each edge."""
    senders, receivers = graph(model)
    kept, found = all_edges(model), {}

    def loss(edges):
        return sign * np.mean([faithfulness(model, one, edges, metric=metric).value for one in experiments])

    now = loss(kept)
    for receiver in reversed(list(receivers)):
        for sender in reversed(list(senders)):
            if (sender, receiver) in kept:
                without = [edge for edge in kept if edge != (sender, receiver)]
                after = loss(without)
                if after - now < threshold:
                    kept, now = without, after
                else:
                    found[sender, receiver] = after - now
    return found


@pytest.mark.parametrize(("metric", "sign"), [("kl_divergence", 1), ("logit_diff", -1)])
@pytest.mark.parametrize("at_once", [1, 7])
def test_exact_pruning_is_the_serial_loop(metric, sign, at_once, monkeypatch):
    monkeypatch.setattr(acdc_module, "AT_ONCE", at_once)
    model, several = tiny_model(seed=5, n_layer=2), make_pairs(2)
    for threshold in (1e-4, 1e-2):
        expected = slow_acdc(model, several, threshold, metric, sign)
        found = acdc(model, several, threshold, metric=metric, prune=False)
        assert [edge[:2] for edge in found] == list(expected)
        assert [edge.score for edge in found] == pytest.approx(list(expected.values()), abs=1e-9)
        assert acdc(model, several, threshold, metric=metric) == connected(found)
    assert 0 < len(found) < len(all_edges(model))


@given(pairs(), st.sampled_from(["denoise", "noise"]))
@settings(max_examples=15)
def test_verified_edges_are_path_patches_of_frozen_paths(drawn, direction):
    model, experiment, *_ = drawn
    scores = edge_attribution(model, experiment, direction=direction)
    verified = verify_edges(model, experiment, scores, 12)
    for edge in verified.edges:
        path = path_patch(model, experiment, str(edge.sender), str(edge.receiver), direction=direction)
        base = path.baseline_corrupted if direction == "denoise" else path.baseline_clean
        assert_metric(edge.score + base, float(path.grid[0, 0]), model, experiment)
    assert list(verified.estimates) == [edge.score for edge in scores.top(len(verified.edges))]
    assert verified.worst == np.abs(verified.estimates - verified.exact).max()


def test_verified_edges_over_pairs_and_within_a_time(tmp_path):
    model, several = tiny_model(seed=2), make_pairs(3)
    scores = edge_attribution(model, several)
    whole = verify_edges(model, several, scores, 40)
    assert len(whole.edges) == whole.n_asked == 40 and whole.n_pairs == 3
    alone = [verify_edges(model, one, scores, 40).exact for one in several]
    assert np.allclose(whole.exact, np.mean(alone, axis=0), rtol=0, atol=1e-10)
    hurried = verify_edges(model, several, scores, 40, seconds=1e-9)
    assert 1 <= len(hurried.edges) < hurried.n_asked == 40 and "of 40 edges" in hurried.text()
    assert list(hurried.exact) == pytest.approx(list(whole.exact[: len(hurried.exact)]))
    whole.save(tmp_path / "verified.npz")
    assert VerifiedEdges.load(tmp_path / "verified.npz").to_json() == whole.to_json()
    whole.save(tmp_path / "verified.png")


def test_verified_edges_of_an_ablation():
    model = tiny_model(seed=2)
    scores = edge_attribution(model, EXPERIMENT, corruption=Zero())
    verified = verify_edges(model, EXPERIMENT, scores, 10)
    assert "edges replaced by zero" in verified.title and "corrupted" not in verified.title
    for edge in verified.edges:
        without = [other for other in all_edges(model) if other != edge[:2]]
        found = faithfulness(model, EXPERIMENT, without, corruption=Zero())
        assert abs(found.value - found.baseline_clean - edge.score) <= 1e-9


def test_edges_and_paths_at_positions(tmp_path):
    model, n_tokens = tiny_model(seed=2), 5
    whole = edge_attribution(model, EXPERIMENT)
    parts = [edge_attribution(model, EXPERIMENT, positions=[position]) for position in range(n_tokens)]
    assert np.allclose(sum(part.scores for part in parts), whole.scores, rtol=0, atol=1e-12, equal_nan=True)
    last = edge_attribution(model, EXPERIMENT, positions=[-1])
    assert np.array_equal(last.scores, parts[-1].scores, equal_nan=True) and "at position -1" in last.title
    assert not parts[0].scores[0].any()  # the first tokens are equal
    verified = verify_edges(model, EXPERIMENT, last, 10)
    for edge in verified.edges:
        path = path_patch(model, EXPERIMENT, str(edge.sender), str(edge.receiver), positions=[-1])
        assert abs(path.grid[0, 0] - path.baseline_corrupted - edge.score) <= 1e-9
    into_logits = (path_patch(model, EXPERIMENT, "head", "logits", positions=at) for at in ([-1], None))
    assert np.allclose(*(found.grid for found in into_logits), rtol=0, atol=1e-12)  # only the last position is measured
    chosen = path_patch(model, EXPERIMENT, "head 0", "v 1", positions=[4, -2])
    assert chosen.chosen == {"position": (4, "-2")} and "position 4+-2" in chosen.text()
    for result in (chosen, last):
        result.save(tmp_path / "result.npz")
        assert type(result).load(tmp_path / "result.npz").to_json() == result.to_json()
    with pytest.raises(NanopatchError, match="position 5 does not exist"):
        path_patch(model, EXPERIMENT, "head 0", "v 1", positions=[5])
    with pytest.raises(NanopatchError, match="position -6 does not exist"):
        edge_attribution(model, EXPERIMENT, positions=[-6])
    for wrong in ([], 3, "a", [1.5]):
        with pytest.raises(NanopatchError, match="whole numbers"):
            edge_attribution(model, EXPERIMENT, positions=wrong)


# ---- files ----------------------------------------------------------------------------------------


def test_a_circuit_in_the_files_of_eap_ig(tmp_path):
    model = tiny_model(seed=2)
    edges = edge_attribution(model, EXPERIMENT).circuit(20)
    file = tmp_path / "circuit.json"
    save_circuit(edges, file, model)
    assert set(read_circuit(file, model)) == set(edges)
    contents = json.loads(file.read_text())
    assert len(contents["edges"]) == len(all_edges(model)) == len(read_circuit(file, model, every=True))
    assert {"input", "logits", "m0", "a0.h1"} <= set(contents["nodes"]) and "input->a0.h1<q>" in contents["edges"]
    assert contents["edges"]["input->logits"].keys() == {"score", "in_graph"}
    used = {name for name, about in contents["nodes"].items() if about["in_graph"]}
    assert len(used) == len({n.component for edge in edges for n in edge[:2]} | {Node("embed"), Node("logits")})
    contents["nodes"] = {name: True for name in contents["nodes"]}  # as older files have it
    file.write_text(json.dumps(contents))
    assert set(read_circuit(file, model)) == set(edges)
    save_circuit([("embed", "mlp 0"), ("mlp 0", "logits")], file, model)
    assert read_circuit(file, model) == [
        Edge(Node("embed"), Node("mlp", 0), 0.0),
        Edge(Node("mlp", 0), Node("logits"), 0.0),
    ]


# ---- bad input ------------------------------------------------------------------------------------


def test_bad_input_is_one_clear_line(tmp_path):
    model, scores = tiny_model(seed=2), edge_attribution(tiny_model(seed=2), EXPERIMENT)
    other = tiny_model(n_layer=1)
    for text, wrong in {
        "no circuit": {"edges": {}},
        "of a model of 9 layers and 2 heads": {"edges": {}, "cfg": {"n_layers": 9, "n_heads": 2}},
        "is no node": {"edges": {"x->m0": {"score": 1, "in_graph": True}}, "cfg": cfg(model)},
        "has no score": {"edges": {"input->m0": True}, "cfg": cfg(model)},
        "no edge goes from 'mlp 1' to 'mlp 0'": {
            "edges": {"m1->m0": {"score": 1, "in_graph": True}},
            "cfg": cfg(model),
        },
    }.items():
        (tmp_path / "wrong.json").write_text(json.dumps(wrong))
        with pytest.raises(NanopatchError, match=text):
            read_circuit(tmp_path / "wrong.json", model)
    for text, call in {
        "no edge goes from 'mlp 1'": lambda: faithfulness(model, EXPERIMENT, {"a": [("mlp 1", "mlp 0")]}),
        "at least one circuit": lambda: faithfulness(model, EXPERIMENT, {}),
        "Zero.., Mean": lambda: faithfulness(model, EXPERIMENT, [], corruption="zero"),
        "expected for edges": lambda: edge_attribution(model, EXPERIMENT, corruption=Noise([1])),
        "give steps=1": lambda: edge_attribution(model, EXPERIMENT, qk_fix=True, steps=2),
        "at least two": lambda: edge_attribution(other, EXPERIMENT, grad_drop=True),
        "an ablation changes the clean run": lambda: edge_attribution(
            model, EXPERIMENT, corruption=Zero(), direction="denoise"
        ),
        "of another model": lambda: circuit_curves(other, EXPERIMENT, scores),
        "the scores are of another model": lambda: verify_edges(other, EXPERIMENT, scores),
        "fractions": lambda: circuit_curves(model, EXPERIMENT, scores, fractions=[0]),
        "n_random": lambda: circuit_curves(model, EXPERIMENT, scores, n_random=-1),
        "edge_attribution gives": lambda: circuit_curves(model, EXPERIMENT, {}),
        "not 3": lambda: verify_edges(model, EXPERIMENT, 3),
        "seconds=0": lambda: verify_edges(model, EXPERIMENT, scores, seconds=0),
        "k=0": lambda: verify_edges(model, EXPERIMENT, scores, 0),
        "absolute values": lambda: verify_edges(model, EXPERIMENT, edge_attribution(model, EXPERIMENT, absolute=True)),
        "by=3": lambda: circuit_curves(model, EXPERIMENT, scores, by=3),
        "by=\\[\\]": lambda: circuit_curves(model, EXPERIMENT, scores, by=[]),
        "fractions=\\[\\]": lambda: circuit_curves(model, EXPERIMENT, scores, fractions=[]),
        "two circuits have one name: 1, 1": lambda: faithfulness(model, EXPERIMENT, {1: [], "1": []}),
        "cannot read .*none.json": lambda: read_circuit(tmp_path / "none.json", model),
        "not 5$": lambda: save_circuit(5, tmp_path / "x.json", model),
        "seed 'a'": lambda: scores.shuffled("a"),
        "not 'm' as the model": lambda: complement("m", []),
        "not 'n' as the model": lambda: verify_edges("n", EXPERIMENT, scores),
        "not 'o' as the model": lambda: circuit_curves("o", EXPERIMENT, scores),
        "threshold=0": lambda: acdc(model, EXPERIMENT, 0),
        "threshold='a'": lambda: scores.above("a"),
        "saved as .json": lambda: save_circuit([], tmp_path / "x.txt", model),
        "no edge goes": lambda: save_circuit([("mlp 9", "logits")], tmp_path / "x.json", model),
        "no edge goes from 'x'|is not a node": lambda: complement(model, [("x", "logits")]),
    }.items():
        with pytest.raises(NanopatchError, match=text) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "x.json").exists()


def cfg(model):
    return {"n_layers": model.n_layer, "n_heads": model.n_head}


def test_dtype_of_scores_and_of_circuits_follows_the_model():
    for dtype in (np.float32, np.float64):
        model = tiny_model(seed=2, dtype=dtype)
        exact = tiny_model(seed=2, dtype=np.float64)
        ours, theirs = (edge_attribution(one, EXPERIMENT, steps=3).scores for one in (model, exact))
        bound = 10 * TOLERANCE[np.dtype(dtype)] * np.nanmax(np.abs(theirs))
        assert np.nanmax(np.abs(ours - theirs)) <= bound
