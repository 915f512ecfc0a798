"""Path patching: against the slowest obvious way, and exact identities (tolerances: test_patching.assert_metric)."""

import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_patching import assert_metric, pairs
from conftest import TOLERANCE, tiny_model

from nanopatch import Experiment, NanopatchError, Sweep, sweep
from nanopatch.experiments.metrics import METRICS, Target, measure
from nanopatch.patching.sweep import DIRECTIONS
from nanopatch.patching.paths import BETWEEN, PATH_SITES, linear_readings, path_patch, receivers_of, replace_senders, senders_of
from nanopatch.results.plot import picture, save_picture

PAIR = Experiment([1, 2, 3, 4, 5], [1, 9, 3, 8, 5], 3, 7)


def parts(name):
    """ "head 2.1" -> ("head", 2, 1); layer and head are None where there are none."""
    kind, _, place = name.partition(" ")
    layer, _, head = place.partition(".")
    return kind, int(layer) if layer else None, int(head) if head else None


def is_after(receiver, sender):
    """Whether the receiver comes later in the forward pass, from the order of the code in a block."""
    (what, to, _), (kind, layer, _) = parts(receiver), parts(sender)
    if what == "logits" or kind == "embed":
        return True
    return to > layer or (to == layer and kind in ("head", "attn") and what == "mlp")


def prompts(experiment, direction):
    """(the prompt patched into, the prompt patched from)."""
    return [getattr(experiment, name) for name in DIRECTIONS[direction]]


def replace(step, sender, other):
    """The sender's assignment, in a loop over model.steps."""
    kind, layer, head = parts(sender)
    if kind == "embed" and (step.name, step.layer) == ("resid_pre", 0):
        step.array = other.resid_pre[0]
    if kind == "head" and (step.name, step.layer) == ("z", layer):
        step.array[:, head] = other.z[layer][:, head]
    if kind in ("attn", "mlp") and (step.name, step.layer) == (f"{kind}_out", layer):
        step.array = getattr(other, step.name)[layer]


def slow_normed(model, resid, base, ln, frozen):
    """LayerNorm, or with `frozen` the one that divides by the standard deviation of `base`."""
    weight, bias = ln
    deviation = np.sqrt((base if frozen else resid).var(axis=-1, keepdims=True) + model.config.layer_norm_epsilon)
    return (resid - resid.mean(axis=-1, keepdims=True)) / deviation * weight + bias


def slow_logits(model, into, origin, sender, receivers, between, form):
    """Path patching from one sender to a group of receivers, written out; logits (n_tokens, n_vocab)."""
    base, other = model.run(into), model.run(origin)
    sends, layer, _ = parts(sender)
    layer = -1 if layer is None else layer
    streams = {}
    for step in model.steps(into):  # step 1
        if step.name == "attn_out" and between != "free" and step.layer > layer:
            step.array = base.attn_out[step.layer]
        if step.name == "mlp_out" and between == "frozen" and step.layer > layer - (sends != "mlp"):
            step.array = base.mlp_out[step.layer]
        replace(step, sender, other)
        if step.name in ("resid_pre", "resid_mid", "resid_post"):
            streams[step.name, step.layer] = step.array

    frozen, width = form == "linear", model.d_model
    for step in model.steps(into):  # step 2
        for what, to, head in map(parts, receivers):
            if what == "resid":
                last = to == model.n_layer
                place = ("resid_post", to - 1) if last else ("resid_pre", to)
                if (step.name, step.layer) == place:
                    step.array = streams[place]
            elif what == "logits" and step.name == "logits":
                final = ("resid_post", model.n_layer - 1)
                normed = slow_normed(model, streams[final], base.resid_post[-1], model.ln_f, frozen)
                step.array = normed @ model.lm_head.T
            elif what == "mlp" and (step.name, step.layer) == ("mlp_in", to) and not frozen:
                step.array = streams["resid_mid", to]
            elif what == "mlp" and (step.name, step.layer) == ("mlp_pre", to) and frozen:
                normed = slow_normed(model, streams["resid_mid", to], base.resid_mid[to], model.h[to].ln_2, True)
                step.array = normed @ model.h[to].mlp.c_fc.weight + model.h[to].mlp.c_fc.bias
            elif (step.name, step.layer) == (what, to):
                normed = slow_normed(model, streams["resid_pre", to], base.resid_pre[to], model.h[to].ln_1, frozen)
                weight, bias = model.h[to].attn.c_attn
                first = "qkv".index(what) * width + head * model.d_head
                columns = slice(first, first + model.d_head)
                step.array[:, head] = normed @ weight[:, columns] + bias[columns]
    return step.array


@given(pairs(), st.data(), st.sampled_from(["exact", "linear"]))
@settings(deadline=None, max_examples=150)
def test_paths_equal_the_slowest_obvious_way(drawn, data, form):
    model, experiment, *_ = drawn
    direction, between = data.draw(st.sampled_from(list(DIRECTIONS))), data.draw(st.sampled_from(list(BETWEEN)))
    senders = data.draw(st.lists(st.sampled_from(list(senders_of(model))), min_size=1, max_size=3))
    names = st.sampled_from(list(receivers_of(model)))
    receivers = data.draw(st.lists(st.one_of(names, st.lists(names, min_size=2, max_size=3)), min_size=1, max_size=3))
    groups = [[receiver] if isinstance(receiver, str) else receiver for receiver in receivers]
    reached = [[[r for r in group if is_after(r, sender)] for group in groups] for sender in senders]
    assume(any(map(any, reached)))
    metrics = ["logit_diff", "cross_entropy"]
    result = path_patch(model, experiment, senders, receivers, direction, metrics, between, form)
    into, origin = prompts(experiment, direction)
    for (i, sender), j in itertools.product(enumerate(senders), range(len(groups))):
        if not reached[i][j]:
            assert np.isnan(result["logit_diff"].grid[i, j])
            continue
        logits = slow_logits(model, into, origin, sender, reached[i][j], between, form)
        target = Target(3, 7, into, None)
        for m, sweep_of_m in result.items():
            (expected,) = measure([METRICS[m]], logits, target)
            assert_metric(sweep_of_m.grid[i, j], expected, model, experiment)


@given(pairs(), st.data(), st.sampled_from(list(DIRECTIONS)))
@settings(deadline=None, max_examples=60)
def test_to_everything_later_with_nothing_frozen_is_patching_the_sender(drawn, data, direction):
    model, experiment, *_ = drawn
    sender = data.draw(st.sampled_from(list(senders_of(model))))
    everything = [name for name in receivers_of(model) if is_after(name, sender)]
    into, origin = prompts(experiment, direction)
    other = model.run(origin)
    for step in model.steps(into):
        replace(step, sender, other)
        if (step.name, step.layer) == ("resid_post", model.n_layer - 1):
            final = step.array
    expected = float(step.array[-1, 3]) - float(step.array[-1, 7])
    result = path_patch(model, experiment, sender, [everything], direction, between="free")
    assert_metric(result.grid, expected, model, experiment)

    # Without residual streams and logits among them, what is missing is the sender's own way to the end.
    components = [name for name in everything if parts(name)[0] in ("q", "k", "v", "mlp")]
    if components:
        resid = final - sent(model, model.run(into), other, sender)
        logits = model.unembed(resid)[-1]
        result = path_patch(model, experiment, sender, [components], direction, between="free")
        assert_metric(result.grid, float(logits[3]) - float(logits[7]), model, experiment)


def sent(model, base, other, sender):
    """What the sender adds to the residual stream when replaced: (n_tokens, d_model)."""
    kind, layer, head = parts(sender)
    if kind == "embed":
        return other.resid_pre[0] - base.resid_pre[0]
    if kind == "head":
        rows = model.h[layer].attn.c_proj.weight[head * model.d_head : (head + 1) * model.d_head]
        return (other.z[layer][:, head] - base.z[layer][:, head]) @ rows
    return getattr(other, f"{kind}_out")[layer] - getattr(base, f"{kind}_out")[layer]


@given(pairs(), st.data())
@settings(deadline=None, max_examples=60)
def test_with_all_frozen_every_later_residual_stream_changes_by_what_the_sender_sends(drawn, data):
    model, experiment, *_ = drawn
    base, other = (model.run(prompt, sites=PATH_SITES) for prompt in prompts(experiment, "denoise"))
    group = data.draw(st.lists(st.sampled_from(list(senders_of(model))), min_size=1, max_size=3, unique=True))
    # attn_out holds its heads, so the two do not add up
    group = [name for name in group if parts(name)[0] != "head" or f"attn {parts(name)[1]}" not in group]
    readings = replace_senders(model, base, other, [senders_of(model)[name] for name in group], "frozen")
    for receiver, place in receivers_of(model).items():
        site = {"mlp": "resid_mid", "resid": place.site}.get(parts(receiver)[0])
        if site and (site, place.layer) in readings:
            change = sum(sent(model, base, other, name) for name in group if is_after(receiver, name))
            expected = getattr(base, site)[place.layer] + change
            scale = max(np.abs(getattr(run, site)).max() for run in (base, other))
            assert np.abs(readings[site, place.layer] - expected).max() <= 2 * TOLERANCE[model.dtype] * scale


@given(pairs(), st.sampled_from(list(DIRECTIONS)))
@settings(deadline=None, max_examples=40)
def test_all_direct_paths_together_and_the_embedding_with_all_free_give_the_run_patched_from(drawn, direction):
    model, experiment, *_ = drawn
    for senders, between in (
        ([("embed", "attn", "mlp")], "frozen"),
        ([("embed", "head", "mlp")], "frozen"),
        (["embed"], "free"),
    ):
        receivers = ["resid 0", f"resid {model.n_layer}", "logits"]
        result = path_patch(model, experiment, senders, receivers, direction, between=between)
        assert_metric(result.grid, result.baseline_from, model, experiment)


@given(pairs(), st.sampled_from(list(BETWEEN)))
@settings(deadline=None, max_examples=30)
def test_both_forms_agree_where_no_layer_norm_is_in_between(drawn, between):
    model, experiment, *_ = drawn
    both = path_patch(model, experiment, ["embed", "head", "attn", "mlp"], "resid", between=between, form="both")
    assert np.array_equal(both["linear"].grid, both["exact"].grid, equal_nan=True)
    assert np.nanmax(np.abs(both["linear minus exact"].grid)) == 0


def relative_errors(receiver, along):
    """Of the linear form, for differences of the last token's embedding of sizes 1e-2, 1e-4 and 1e-6.

    along: how much of the difference goes along what the receiver's LayerNorm divides by its standard deviation.
    """
    model = tiny_model(seed=8, n_embd=16)
    into = [1, 2, 3, 4]
    place = receivers_of(model)[receiver]
    run = model.run(into)
    stream = {"mlp_pre": run.resid_mid, "logits": run.resid_post}.get(place.site, run.resid_pre)
    stream = stream[-1 if place.layer is None else place.layer][-1]
    stream = (stream - stream.mean()) / np.linalg.norm(stream - stream.mean())
    across = np.random.default_rng(0).normal(size=model.d_model)
    across -= (across @ stream) * stream
    errors = []
    for size in (1e-2, 1e-4, 1e-6):
        model.wte = model.wte.copy()
        model.wte[9] = model.wte[4] + size * (across + along * stream)
        experiment = Experiment([1, 2, 3, 9], into, 3, 7)
        both = path_patch(model, experiment, "embed", receiver, form="both")
        effect = both["exact"].grid.item() - both["exact"].baseline_into
        errors.append(abs(both["linear minus exact"].grid.item() / effect))
    return errors


@pytest.mark.parametrize("receiver", ["q 0.1", "k 1.0", "v 0.0", "q 2.1", "mlp 0", "mlp 2", "logits"])
def test_the_linear_form_of_small_differences(receiver):
    """Across the stream it has a LayerNorm's derivative: its relative error falls with the difference.

    Along the stream it has not, for the standard deviation that it holds would change: a part of the effect stays.
    """
    errors = relative_errors(receiver, along=0)
    assert 0 < errors[0] < 0.5 and errors[1] < errors[0] / 50 and errors[2] < errors[1] / 50
    errors = relative_errors(receiver, along=1)
    assert errors[2] > 1e-3 and errors[2] == pytest.approx(errors[1], rel=1e-2)


@given(pairs(), st.data(), st.sampled_from(list(BETWEEN)))
@settings(deadline=None, max_examples=30)
def test_what_the_forms_read_differs_by_the_ratio_of_standard_deviations_and_nothing_else(drawn, data, between):
    model, experiment, *_ = drawn
    base, other = (model.run(prompt, sites=PATH_SITES) for prompt in prompts(experiment, "denoise"))
    sender = senders_of(model)[data.draw(st.sampled_from(list(senders_of(model))))]
    exact = replace_senders(model, base, other, [sender], between)
    logits = model.unembed(base.resid_post[-1])
    exact["logits", None] = model.unembed(exact["resid_post", model.n_layer - 1])
    linear = linear_readings(model, base, logits, exact)

    def assert_scaled(reading, stream, into, constant):
        """reading - constant is proportional to the normalised stream."""
        ratio = np.sqrt((stream.var(axis=-1) + 1e-5) / (into.var(axis=-1) + 1e-5))  # (n_tokens,)
        expected = (exact[reading] - constant).reshape(len(ratio), -1) * ratio[:, None]
        actual = (linear[reading] - constant).reshape(len(ratio), -1)
        # Where the stream hardly varies, its rounding is made larger by 1 / its standard deviation.
        steepest = max(1, (np.abs(into).max() / np.sqrt(into.var(axis=-1) + 1e-5)).max())
        assert np.abs(actual - expected).max() <= TOLERANCE[model.dtype] * steepest * max(1, np.abs(expected).max())

    for layer in range(sender.layer, model.n_layer):
        h = model.h[layer]
        qkv = h.ln_1.bias @ h.attn.c_attn.weight + h.attn.c_attn.bias
        for site, constant in zip("qkv", np.split(qkv.reshape(-1, model.d_head), 3), strict=True):
            assert_scaled((site, layer), exact["resid_pre", layer], base.resid_pre[layer], constant)
        constant = h.ln_2.bias @ h.mlp.c_fc.weight + h.mlp.c_fc.bias
        assert_scaled(("mlp_pre", layer), exact["resid_mid", layer], base.resid_mid[layer], constant)
    final = exact["resid_post", model.n_layer - 1]
    assert_scaled(("logits", None), final, base.resid_post[-1], model.lm_head @ model.ln_f.bias)


@given(pairs(), st.sampled_from(list(METRICS)), st.sampled_from(list(DIRECTIONS)), st.data())
@settings(deadline=None, max_examples=60)
def test_every_metric(drawn, metric, direction, data):
    model, experiment, *_ = drawn
    receiver = data.draw(st.sampled_from(["q 1.0", "mlp 1", "logits"] if model.n_layer > 1 else ["logits"]))
    result = path_patch(model, experiment, "mlp 0", receiver, direction, metric)
    into, origin = prompts(experiment, direction)
    logits = slow_logits(model, into, origin, "mlp 0", [receiver], "frozen", "exact")
    target = Target(3, 7, into, model.run(experiment.clean, sites="logits").logits[-1])
    (expected,) = measure([METRICS[metric]], logits, target)
    if metric == "rank":  # ties may go either way by rounding
        assert abs(result.grid[0, 0] - expected) <= 1
    else:
        assert_metric(result.grid, expected, model, experiment)


def test_a_function_of_the_logits_is_a_metric():
    model = tiny_model()
    result = path_patch(model, PAIR, "head 0.1", ["v 1.0", "logits"], metric=lambda logits: logits[2, 4])
    for j, receiver in enumerate(["v 1.0", "logits"]):
        logits = slow_logits(model, PAIR.corrupted, PAIR.clean, "head 0.1", [receiver], "frozen", "exact")
        assert result.grid[0, j] == pytest.approx(logits[2, 4], rel=1e-10)


@given(pairs(), st.sampled_from(list(BETWEEN)))
@settings(deadline=None, max_examples=30)
def test_a_run_patched_into_itself_stays_as_it_is(drawn, between):
    model, experiment, *_ = drawn
    itself = Experiment(experiment.clean, experiment.clean, 3, 7)
    receivers = ["resid", "mlp", "q", "logits"]
    both = path_patch(model, itself, ["embed", "head", "mlp"], receivers, between=between, form="both")
    for result in (both["exact"], both["linear"]):
        values = result.grid[np.isfinite(result.grid)]
        assert_metric(values, result.baseline_clean, model, itself)
        assert np.isnan(result.normalised).all() and "Not normalised" in result.notes[-1]


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
    assert alone.grid.shape == (1, 1) and alone.grid[0, 0] == pytest.approx(result.grid[1, 6], rel=1e-12)
    assert result.notes == ["Blank where the receiver does not come after its sender."] and not alone.notes
    assert path_patch(tiny_model(n_layer=12, n_positions=8), PAIR, "mlp 1", "logits").labels("sender") == ["mlp 1"]


def test_blank_is_what_does_not_come_after_its_sender_and_nothing_else():
    model = tiny_model(n_layer=2)
    senders, receivers = list(senders_of(model)), list(receivers_of(model))
    finite = np.isfinite(path_patch(model, PAIR, senders, receivers).grid)
    assert finite.tolist() == [[is_after(receiver, sender) for receiver in receivers] for sender in senders]


def test_directions_and_metrics_in_lists_give_panels():
    model = tiny_model()
    panels = path_patch(model, PAIR, "attn", "logits", ["denoise", "noise"], ["logit_diff", "rank"], form="both")
    assert list(panels) == ["denoise", "noise"] and list(panels["noise"]) == ["logit_diff", "rank"]
    assert list(panels["noise"]["rank"]) == ["exact", "linear", "linear minus exact"]
    exact, linear, difference = panels["noise"]["logit_diff"].values()
    assert np.array_equal(difference.grid, linear.grid - exact.grid)
    assert (difference.baseline_into, difference.baseline_from) == (0, exact.baseline_from - exact.baseline_into)
    assert np.allclose(difference.normalised, linear.normalised - exact.normalised, rtol=1e-9, atol=1e-12)
    largest = difference.grid[np.abs(difference.grid).argmax(axis=0)[0], 0]
    assert f"Largest difference: {largest:.3g}, attn" in difference.notes[0] and "to logits" in difference.notes[0]


def test_the_result_is_a_sweep_with_files_table_and_picture(tmp_path):
    model = tiny_model()
    result = path_patch(model, PAIR, ["embed", "head", "mlp"], ["q", "mlp", "logits"], between="free mlps")
    result.save(tmp_path / "paths.npz")
    loaded = Sweep.load(tmp_path / "paths.npz")
    assert np.array_equal(loaded.grid, result.grid, equal_nan=True) and loaded.header() == result.header()
    assert result.title.startswith("exact path (free mlps between) patched from clean into corrupted (denoising), ")
    assert repr(result) == f"<Sweep: {result.title}; logit_diff, 10 senders x 10 receivers>"

    lines = str(result).splitlines()
    assert [line[:9].strip() for line in lines[3:13]] == result.labels("sender")  # a line a sender
    assert lines[2].split()[:5] == ["receiver", "q", "0.0", "q", "0.1"]
    matrix, rows, _, columns, _ = result.as_matrix(result.grid)
    assert rows == result.labels("sender") and columns == result.labels("receiver")
    assert matrix.shape == (10, 10) and np.array_equal(matrix, result.grid, equal_nan=True)

    ax = result.plot()
    assert [label.get_text() for label in ax.get_yticklabels()] == result.labels("sender")
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("receiver", "sender")
    save_picture(picture(result), tmp_path / "paths.png")
    assert path_patch(model, PAIR, "mlp", "mlp", form="both")._repr_png_().startswith(b"\x89PNG")
    result.to_csv(tmp_path / "paths.csv")
    assert (tmp_path / "paths.csv").read_text().splitlines()[1].startswith("embed,q 0.0,")


def test_the_same_inputs_give_the_same_bits_in_any_memory():
    model = tiny_model()
    arguments = (model, PAIR, ["embed", "head", "mlp"], ["q", "mlp", "resid", "logits"])
    first, again, slowly = path_patch(*arguments), path_patch(*arguments), path_patch(*arguments, memory=1)
    assert np.array_equal(first.grid, again.grid, equal_nan=True)
    assert np.allclose(first.grid, slowly.grid, rtol=0, atol=1e-11, equal_nan=True)


def test_embedding_to_the_first_residual_stream_is_a_sweeps_cell():
    model = tiny_model()
    path = path_patch(model, PAIR, ["embed"], ["resid 0"])
    patch = sweep(model, PAIR, axes="layer")
    assert path.grid[0, 0] == pytest.approx(patch.grid[0], rel=1e-12)


AFTER = "after head 1.1 come mlp 1 to mlp 2, resid 2 to resid 3, q 2.0 to q 2.1, k 2.0 to k 2.1, v 2.0 to v 2.1, log"
SENDERS = "senders are embed, head 0.0 to head 2.1, attn 0 to attn 2, mlp 0 to mlp 2$"
RECEIVERS = "receivers are resid 0 to resid 3, q 0.0 to q 2.1, k 0.0 to k 2.1, v 0.0 to v 2.1, mlp 0 to mlp 2, logits$"
BAD = [
    (dict(senders="head 3.0"), f"unknown sender 'head 3.0'; {SENDERS}"),
    (dict(senders=["embed", "logits"]), f"unknown sender 'logits'; {SENDERS}"),
    (dict(senders=3), f"unknown sender 3; {SENDERS}"),
    (dict(senders=""), f"unknown sender ''; {SENDERS}"),
    (dict(senders=[]), f"no sender was given; {SENDERS}"),
    (dict(receivers="embed"), f"unknown receiver 'embed'; {RECEIVERS}"),
    (dict(receivers=[("q 1.0", "z 1.0")]), f"unknown receiver 'z 1.0'; {RECEIVERS}"),
    (dict(receivers=["q", ()]), f"no receiver was given; {RECEIVERS}"),
    (dict(receivers="q 1.0"), f"q 1.0 does not come after head 1.1; {AFTER}"),
    (dict(receivers=["resid 1", "mlp 0"]), f"resid 1 does not come after head 1.1; {AFTER}"),
    (dict(receivers=[("q 1.0", "mlp 0")]), rf"q 1.0\+mlp 0 does not come after head 1.1; {AFTER}"),
    (dict(between="thawed"), "unknown between 'thawed': one of 'frozen', 'free mlps', 'free'$"),
    (dict(between=["free"]), r"unknown between \['free'\]: one of 'frozen'"),
    (dict(form="quadratic"), "unknown form 'quadratic': one of 'exact', 'linear', 'both'$"),
    (dict(direction="up"), "unknown direction 'up': one of 'denoise', 'noise'$"),
    (dict(metric="loss"), "unknown metric 'loss'; known are logit_diff"),
    (dict(experiment=Experiment([1, 2, 3], [1, 2], 3, 7)), "needs prompts of one length; these have 3 and 2 tokens$"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_input_says_what_exists(arguments, message):
    usual = dict(experiment=PAIR, senders="head 1.1", receivers="logits")
    with pytest.raises(NanopatchError, match=message) as error:
        path_patch(tiny_model(), **{**usual, **arguments})
    assert "\n" not in str(error.value)
