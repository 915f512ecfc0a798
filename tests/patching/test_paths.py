"""Path patching: against the slowest obvious way, and exact identities (tolerances: conftest.assert_metric)."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import (
    TOLERANCE,
    as_lists,
    assert_metric,
    diff,
    is_after,
    notes_of,
    pairs,
    parts,
    prompts,
    replace,
    sent,
    tiny_model,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from nanopatch import Experiment, NanopatchError, Patch, Paths, Resample, Sweep, Zero, path_patch, sweep
from nanopatch.experiments.metrics import METRICS, Target, as_metrics, measure
from nanopatch.experiments.patch import BETWEEN
from nanopatch.model.graph import Node, receivers_of, senders_of
from nanopatch.patching.case import make_case, run_both
from nanopatch.patching.paths import PATH_SITES, replace_senders
from nanopatch.results.sweep import DIRECTIONS

PAIR = Experiment([1, 2, 3, 4, 5], [1, 9, 3, 8, 5], 3, 7)


def slow_path(model, prompt, donor, sender, receivers, between):
    """Path patching from one sender to a group of receivers, written out; logits (n_tokens, n_vocab).

    prompt: the one patched into. donor: the run patched from, or what has its arrays.
    """
    base = model.run(prompt)
    sends, layer, _ = parts(sender)
    layer = -1 if layer is None else layer
    streams = {}
    for step in model.steps(prompt):  # step 1
        if step.name == "attn_out" and between != "free" and step.layer > layer:
            step.array = base.attn_out[step.layer]
        if step.name == "mlp_out" and between == "frozen" and step.layer > layer - (sends != "mlp"):
            step.array = base.mlp_out[step.layer]
        replace(step, sender, donor)
        if step.name in ("resid_pre", "resid_mid", "resid_post"):
            streams[step.name, step.layer] = step.array

    for step in model.steps(prompt):  # step 2
        for what, to, head in map(parts, receivers):
            if what == "resid":
                last = to == model.n_layer
                place = ("resid_post", to - 1) if last else ("resid_pre", to)
                if (step.name, step.layer) == place:
                    step.array = streams[place]
            elif what == "logits" and step.name == "logits":
                step.array = model.unembed(streams["resid_post", model.n_layer - 1])
            elif what == "mlp" and (step.name, step.layer) == ("mlp_in", to):
                step.array = streams["resid_mid", to]
            elif (step.name, step.layer) == (what, to):
                normed = normalised(model, streams["resid_pre", to], model.h[to].ln_1)
                weight, bias = model.h[to].attn.c_attn
                first = "qkv".index(what) * model.d_model + head * model.d_head
                columns = slice(first, first + model.d_head)
                step.array[:, head] = normed @ weight[:, columns] + bias[columns]
    return step.array


def normalised(model, resid, ln):
    """LayerNorm, written out."""
    deviation = np.sqrt(resid.var(axis=-1, keepdims=True) + model.config.layer_norm_epsilon)
    return (resid - resid.mean(axis=-1, keepdims=True)) / deviation * ln.weight + ln.bias


@given(pairs(), st.data(), st.sampled_from([None, Zero()]))
@settings(max_examples=200)
def test_paths_equal_the_slowest_obvious_way(drawn, data, corruption):
    model, experiment, *_ = drawn
    direction = "noise" if corruption else data.draw(st.sampled_from(list(DIRECTIONS)))
    between = data.draw(st.sampled_from(list(BETWEEN)))
    senders = data.draw(st.lists(st.sampled_from(list(senders_of(model))), min_size=1, max_size=3))
    names = st.sampled_from(list(receivers_of(model)))
    receivers = data.draw(st.lists(st.one_of(names, st.lists(names, min_size=2, max_size=3)), min_size=1, max_size=3))
    groups = [[receiver] if isinstance(receiver, Node) else receiver for receiver in receivers]
    reached = [[[r for r in group if is_after(r, sender)] for group in groups] for sender in senders]
    assume(any(map(any, reached)))
    paths, metrics = Paths(senders, receivers, between), ["logit_diff", "cross_entropy"]
    result = sweep(model, experiment, paths, direction=direction, metric=metrics, corruption=corruption)
    base, other = prompts(experiment, direction)
    donor = zeros_like(model.run(base)) if corruption else model.run(other)
    for (i, sender), j in itertools.product(enumerate(senders), range(len(groups))):
        if not reached[i][j]:
            assert np.isnan(result["logit_diff"].grid[i, j])
            continue
        logits = slow_path(model, base, donor, sender, reached[i][j], between)
        target = Target(3, 7, base, None)
        for m, sweep_of_m in result.items():
            (expected,) = measure([METRICS[m]], logits, target)
            assert_metric(sweep_of_m.grid[i, j], expected, model, experiment)


def zeros_like(run):
    """Zero for everything that a sender writes."""
    sites = ("resid_pre", "z", "attn_out", "mlp_out")
    return SimpleNamespace(**{site: np.zeros_like(getattr(run, site)) for site in sites})


def test_resampling_draws_a_prompt_for_each_sender():
    model, others = tiny_model(), [[5, 6, 7, 8, 9], [9, 10, 11, 12, 13], [1, 1, 2, 2, 3]]
    paths, senders = Paths(["embed", "head", "mlp"], ["q 2.1", "logits"], "free mlps"), 10
    result = sweep(model, PAIR, paths, corruption=Resample(others, seed=3))
    random = np.random.default_rng(3)
    draws = [int(random.integers(len(others))) for _ in range(senders)]
    assert result.grid.shape == (senders, 2) and set(draws) == {0, 1, 2}
    for (i, sender), (j, receiver) in itertools.product(
        enumerate(result.labels("sender")), enumerate(result.labels("receiver"))
    ):
        if is_after(receiver, sender):
            logits = slow_path(model, PAIR.clean, model.run(others[draws[i]]), sender, [receiver], "free mlps")
            assert_metric(result.grid[i, j], diff(logits), model, PAIR)


@given(pairs(), st.data(), st.sampled_from(list(DIRECTIONS)))
@settings(max_examples=60)
def test_to_everything_later_with_nothing_frozen_is_patching_the_sender(drawn, data, direction):
    model, experiment, *_ = drawn
    sender = data.draw(st.sampled_from(list(senders_of(model))))
    everything = [name for name in receivers_of(model) if is_after(name, sender)]
    base, donor = prompts(experiment, direction)
    other = model.run(donor)
    for step in model.steps(base):
        replace(step, sender, other)
        if (step.name, step.layer) == ("resid_post", model.n_layer - 1):
            final = step.array
    result = path_patch(model, experiment, sender, [everything], direction=direction, between="free")
    assert_metric(result.grid, diff(step.array), model, experiment)

    # Without residual streams and logits among them, what is missing is the sender's own way to the end.
    components = [name for name in everything if parts(name)[0] in ("q", "k", "v", "mlp")]
    if components:
        resid = final - sent(model, model.run(base), other, sender)
        result = path_patch(model, experiment, sender, [components], direction=direction, between="free")
        assert_metric(result.grid, diff(model.unembed(resid)), model, experiment)


@given(pairs(), st.data())
@settings(max_examples=60)
def test_with_all_frozen_every_later_residual_stream_changes_by_what_the_sender_sends(drawn, data):
    model, experiment, *_ = drawn
    (runs,) = run_both(model, experiment, 0, None, dict.fromkeys(("clean", "corrupted"), PATH_SITES))
    base, donor = runs.corrupted, runs.clean
    case = make_case(runs, "denoise", as_metrics("logit_diff"))
    group = data.draw(st.lists(st.sampled_from(list(senders_of(model))), min_size=1, max_size=3, unique=True))
    # attn_out holds its heads, so the two do not add up
    group = [name for name in group if name.kind != "head" or Node("attn", name.layer) not in group]
    every = {(site, layer) for site in PATH_SITES for layer in range(model.n_layer)}
    (readings,) = replace_senders(case, [[senders_of(model)[name] for name in group]], [0], "frozen", every)
    for receiver, place in receivers_of(model).items():
        site = {"mlp": "resid_mid", "resid": place.site}.get(parts(receiver)[0])
        if site and (site, place.layer) in readings:
            change = sum(sent(model, base, donor, name) for name in group if is_after(receiver, name))
            expected = getattr(base, site)[place.layer] + change
            scale = max(np.abs(getattr(run, site)).max() for run in (base, donor))
            assert np.abs(readings[site, place.layer] - expected).max() <= 2 * TOLERANCE[model.dtype] * scale


@given(pairs(), st.sampled_from(list(DIRECTIONS)))
@settings(max_examples=40)
def test_all_direct_paths_together_and_the_embedding_with_all_free_give_the_donor(drawn, direction):
    model, experiment, *_ = drawn
    for senders, between in (
        ([("embed", "attn", "mlp")], "frozen"),
        ([("embed", "head", "mlp")], "frozen"),
        (["embed"], "free"),
    ):
        receivers = ["resid 0", f"resid {model.n_layer}", "logits"]
        result = path_patch(model, experiment, senders, receivers, direction=direction, between=between)
        assert_metric(result.grid, result.donor_value, model, experiment)


@given(pairs(), st.sampled_from(list(METRICS)), st.sampled_from(list(DIRECTIONS)), st.data())
@settings(max_examples=60)
def test_every_metric(drawn, metric, direction, data):
    model, experiment, *_ = drawn
    receiver = data.draw(st.sampled_from(["q 1.0", "mlp 1", "logits"] if model.n_layer > 1 else ["logits"]))
    result = path_patch(model, experiment, "mlp 0", receiver, direction=direction, metric=metric)
    base, donor = prompts(experiment, direction)
    logits = slow_path(model, base, model.run(donor), "mlp 0", [receiver], "frozen")
    target = Target(3, 7, base, model.run(experiment.clean, sites="logits").logits[-1])
    (expected,) = measure([METRICS[metric]], logits, target)
    if metric == "rank":  # ties may go either way by rounding
        assert abs(result.grid[0, 0] - expected) <= 1
    else:
        assert_metric(result.grid, expected, model, experiment)


def test_a_function_of_the_logits_is_a_metric():
    model = tiny_model()
    result = path_patch(model, PAIR, "head 0.1", ["v 1.0", "logits"], metric=lambda logits: logits[2, 4])
    for j, receiver in enumerate(["v 1.0", "logits"]):
        logits = slow_path(model, PAIR.corrupted, model.run(PAIR.clean), "head 0.1", [receiver], "frozen")
        assert_metric(result.grid[0, j], logits[2, 4], model, PAIR)


@given(pairs(), st.sampled_from(list(BETWEEN)))
@settings(max_examples=30)
def test_a_run_patched_into_itself_stays_as_it_is(drawn, between):
    model, experiment, *_ = drawn
    itself = Experiment(experiment.clean, experiment.clean, 3, 7)
    receivers = ["resid", "mlp", "q", "logits"]
    result = path_patch(model, itself, ["embed", "head", "mlp"], receivers, between=between)
    values = result.grid[np.isfinite(result.grid)]
    assert_metric(values, result.baseline_clean, model, itself)
    assert np.isnan(result.normalised).all() and "Not normalised" in notes_of(result)[-1]


def test_beginnings_of_names_groups_and_blanks():
    model = tiny_model()  # 3 layers, 2 heads
    result = path_patch(model, PAIR, ["head 1", ("head 0", "mlp 1"), "mlp 2"], ["k", ("q 1", "v 2.1"), "logits"])
    assert result.axes == ("sender", "receiver") and result.grid.shape == (4, 8)
    assert result.labels("sender") == ["head 1.0", "head 1.1", "head 0+mlp 1", "mlp 2"]
    assert result.labels("receiver")[4:] == ["k 2.0", "k 2.1", "q 1+v 2.1", "logits"]
    finite = np.isfinite(result.grid)
    assert finite.tolist() == [[False] * 4 + [True] * 4] * 2 + [[False] * 2 + [True] * 6, [False] * 7 + [True]]
    # v 2.1 is all of the group that comes after head 1.1
    alone = path_patch(model, PAIR, "head 1.1", "v 2.1")
    assert alone.grid.shape == (1, 1)
    assert_metric(alone.grid[0, 0], result.grid[1, 6], model, PAIR)
    assert notes_of(result) == ["Cells are blank where the receiver does not come after its sender."]
    assert not notes_of(alone)
    assert path_patch(tiny_model(n_layer=12, n_positions=8), PAIR, "mlp 1", "logits").labels("sender") == ["mlp 1"]


def test_blank_is_what_does_not_come_after_its_sender_and_nothing_else():
    model = tiny_model(n_layer=2)
    senders, receivers = list(senders_of(model)), list(receivers_of(model))
    finite = np.isfinite(path_patch(model, PAIR, senders, receivers).grid)
    assert finite.tolist() == [[is_after(receiver, sender) for receiver in receivers] for sender in senders]


def test_directions_and_metrics_in_lists_give_panels():
    model = tiny_model()
    metrics = ["logit_diff", "rank"]
    panels = path_patch(model, PAIR, "attn", "logits", direction=["denoise", "noise"], metric=metrics)
    assert list(panels) == ["denoise", "noise"] and list(panels["noise"]) == metrics
    result = panels["noise"]["rank"]
    assert (result.site, result.direction, result.metric, result.between) == ("path", "noise", "rank", "frozen")


def test_a_name_and_its_node_are_the_same():
    model = tiny_model()
    by_name = path_patch(model, PAIR, ["embed", "head 0.1"], [("q 1.0", "mlp 2"), "logits"])
    nodes = [(Node("q", 1, 0), Node("mlp", 2)), Node("logits")]
    by_node = path_patch(model, PAIR, [Node("embed"), Node("head", 0, 1)], nodes)
    assert np.array_equal(by_name.grid, by_node.grid)
    expected = {"sender": [["embed"], ["head 0.1"]], "receiver": [["q 1.0", "mlp 2"], ["logits"]]}
    assert as_lists(by_name.pieces) == as_lists(by_node.pieces) == expected


def test_the_result_is_a_sweep_with_files_table_and_picture(tmp_path):
    model = tiny_model()
    result = path_patch(model, PAIR, ["embed", "head", "mlp"], ["q", "mlp", "logits"], between="free mlps")
    result.save(tmp_path / "paths.npz")
    loaded = Sweep.load(tmp_path / "paths.npz")
    assert np.array_equal(loaded.grid, result.grid, equal_nan=True) and loaded.to_dict() == result.to_dict()
    assert result.title.startswith("path (free mlps between) patched from clean into corrupted (denoising), ")
    assert repr(result) == f"<Sweep: {result.title}; logit_diff, 10 senders x 10 receivers>"

    lines = str(result).splitlines()
    assert [line[:9].strip() for line in lines[3:13]] == result.labels("sender")  # a line a sender
    assert lines[2].split()[:5] == ["receiver", "q", "0.0", "q", "0.1"]
    matrix = result.matrix(normalised=False)
    assert (matrix.rows, matrix.columns) == (result.labels("sender"), result.labels("receiver"))
    assert matrix.values.shape == (10, 10) and np.array_equal(matrix.values, result.grid, equal_nan=True)

    figure = result.plot()
    ax = figure.axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == result.labels("sender")
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("receiver", "sender")
    result.save(tmp_path / "paths.png")
    panels = path_patch(model, PAIR, "mlp", "mlp", direction=["denoise", "noise"])
    assert panels._repr_png_().startswith(b"\x89PNG")
    result.to_csv(tmp_path / "paths.csv")
    assert (tmp_path / "paths.csv").read_text().splitlines()[1].startswith("embed,q 0.0,")


def test_the_same_inputs_give_the_same_bits_in_any_memory():
    model, paths = tiny_model(), Paths(["embed", "head", "mlp"], ["q", "mlp", "resid", "logits"])
    first, again, slowly = sweep(model, PAIR, paths), sweep(model, PAIR, paths), sweep(model, PAIR, paths, memory=1)
    assert np.array_equal(first.grid, again.grid, equal_nan=True)
    finite = np.isfinite(first.grid)
    assert np.array_equal(np.isfinite(slowly.grid), finite)
    assert_metric(first.grid[finite], slowly.grid[finite], model, PAIR)


def test_embedding_to_the_first_residual_stream_is_a_sweeps_cell():
    model = tiny_model()
    path = path_patch(model, PAIR, ["embed"], ["resid 0"])
    patch = sweep(model, PAIR, Patch(axes="layer"))
    assert_metric(path.grid[0, 0], patch.grid[0], model, PAIR)


AFTER = "receivers after head 1.1 are mlp 1 to mlp 2, resid 2 to resid 3, "
AFTER += "q 2.0 to q 2.1, k 2.0 to k 2.1, v 2.0 to v 2.1, log"
SENDERS = "senders are embed, head 0.0 to head 2.1, attn 0 to attn 2, mlp 0 to mlp 2$"
RECEIVERS = "receivers are resid 0 to resid 3, q 0.0 to q 2.1, k 0.0 to k 2.1, v 0.0 to v 2.1, mlp 0 to mlp 2, logits$"
BAD = [
    (dict(senders="head 3.0"), f"unknown sender 'head 3.0'; {SENDERS}"),
    (dict(senders=["embed", "logits"]), f"unknown sender 'logits'; {SENDERS}"),
    (dict(senders=3), f"unknown sender '3'; {SENDERS}"),
    (dict(senders=""), f"unknown sender ''; {SENDERS}"),
    (dict(senders=[]), f"no sender was given; {SENDERS}"),
    (dict(receivers="embed"), f"unknown receiver 'embed'; {RECEIVERS}"),
    (dict(receivers=[("q 1.0", "z 1.0")]), f"unknown receiver 'z 1.0'; {RECEIVERS}"),
    (dict(receivers=["q", ()]), f"no receiver was given; {RECEIVERS}"),
    (dict(receivers="q 1.0"), f"q 1.0 does not come after head 1.1; {AFTER}"),
    (dict(receivers=["resid 1", "mlp 0"]), f"resid 1 does not come after head 1.1; {AFTER}"),
    (dict(receivers=[("q 1.0", "mlp 0")]), rf"q 1.0\+mlp 0 does not come after head 1.1; {AFTER}"),
    (dict(between="thawed"), "unknown between 'thawed': give one of 'frozen', 'free mlps', 'free'$"),
    (dict(between=["free"]), r"unknown between \['free'\]: give one of 'frozen'"),
    (dict(direction="up"), "unknown direction 'up': \"denoise\""),
    (dict(metric="loss"), "unknown metric 'loss'; known are logit_diff"),
    (
        dict(experiments=Experiment([1, 2, 3], [1, 2], 3, 7)),
        "path patching needs prompts with the same number of tokens, .*; these have 3 and 2 tokens$",
    ),
    (
        dict(experiments=Experiment([1, 2, 3], [1, 2], 3, 7, align="diff")),
        "needs prompts with the same number of tokens, .*; these have 3 and 2 tokens$",
    ),
    (
        dict(experiments=Experiment([1, 2, 3, 4], [2, 3, 4, 1], 3, 7, align="diff")),
        "needs prompts with the same number of tokens, .*; these have 4 and 4 tokens$",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_input_says_what_exists(arguments, message):
    usual = dict(experiments=PAIR, senders="head 1.1", receivers="logits")
    with pytest.raises(NanopatchError, match=message) as error:
        path_patch(tiny_model(), **{**usual, **arguments})
    assert "\n" not in str(error.value)
