"""Several sites, directions and metrics at once: the panels, their names, and that they are the single results."""

import itertools

import numpy as np
import pytest
from conftest import as_lists, assert_metric, make_pairs, pairs, tiny_model
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
    circuit,
    edge_attribution,
    faithfulness,
    generate,
    load,
    path_patch,
    sweep,
    trace,
)
from nanopatch.cli import main
from nanopatch.experiments import MICHELLE
from nanopatch.experiments.patch import SITE_AXES
from nanopatch.results.sweep import DIRECTIONS

EXPERIMENT = Experiment([1, 2, 3, 4], [1, 9, 3, 8], 3, 7)
OTHERS = [[5, 6, 7, 8], [9, 10, 11, 12], [1, 1, 2, 2]]
SITES = ["resid_pre", Patch("z", ("layer", "position")), Paths("head", ["q", "logits"], "free"), "mlp_out"]
METRICS = ["logit_diff", "kl_divergence", "cross_entropy"]


def assert_same(a, b):
    assert np.array_equal(a.grid, b.grid, equal_nan=True) and a.to_dict() == b.to_dict() and str(a) == str(b)


@pytest.mark.parametrize("method", [sweep, attribute])
@pytest.mark.parametrize("corruption", [None, Zero(), Resample(OTHERS, 2), Noise([1, 2], seeds=[0, 1])])
def test_several_sites_and_directions_at_once_are_the_single_results_to_the_bit(method, corruption):
    model = tiny_model(seed=6)
    directions = ["noise"] if corruption and not isinstance(corruption, Noise) else ["noise", "denoise"]
    panels = method(model, EXPERIMENT, SITES, direction=directions, corruption=corruption)
    assert list(panels) == ["resid_pre", "z", "path", "mlp_out"]
    for (name, of_site), site in zip(panels.items(), SITES, strict=True):
        assert list(of_site) == directions
        for direction in directions:
            alone = method(model, EXPERIMENT, site, direction=direction, corruption=corruption)
            assert alone.site == name and alone.direction == direction
            assert_same(of_site[direction], alone)


@given(pairs(), st.sampled_from(sorted(SITE_AXES)))
@settings(max_examples=30)
def test_several_metrics_at_once_are_the_single_results(drawn, site):
    """Up to rounding: two logits are computed alone where no metric needs the others. (Tolerance: assert_metric.)"""
    model, experiment, *_ = drawn
    panels = sweep(model, experiment, site, metric=METRICS)
    assert list(panels) == METRICS
    for metric in METRICS:
        alone = sweep(model, experiment, site, metric=metric)
        assert_metric(panels[metric].grid, alone.grid, model, experiment)
        assert_metric(panels[metric].baseline_clean, alone.baseline_clean, model, experiment)
        assert_metric(panels[metric].baseline_corrupted, alone.baseline_corrupted, model, experiment)
        # A patch that leaves the last position's logits as they are may change others, which cross_entropy reads.
        assert (panels[metric].unchanged <= alone.unchanged).all()
        assert (panels[metric].metric, panels[metric].site) == (metric, site)


@pytest.mark.parametrize("experiments", [EXPERIMENT, make_pairs(3)])
def test_panels_nest_as_site_direction_metric(experiments):
    """Where one of them is not a list, its level is left out; a list of one has its level."""
    asked = {"site": ["resid_pre", "z"], "direction": ["denoise", "noise"], "metric": ["logit_diff", "rank"]}
    single = {"site": "z", "direction": "noise", "metric": "rank"}
    model = tiny_model(seed=6)
    for many in itertools.product([False, True], repeat=3):
        levels = [name for name, is_list in zip(asked, many, strict=True) if is_list]
        given = {name: asked[name] if name in levels else single[name] for name in asked}
        result = sweep(model, experiments, **given)
        for key in itertools.product(*(asked[level] for level in levels)):
            inner = result
            for level, name in zip(levels, key, strict=True):
                assert isinstance(inner, Panels) and list(inner) == asked[level]
                inner = inner[name]
            assert isinstance(inner, Sweep)
            what = {**single, **dict(zip(levels, key, strict=True))}
            assert {name: getattr(inner, name) for name in asked} == what
    one = sweep(model, experiments, ["z"], direction=["noise"], metric=["rank"])
    assert one["z"]["noise"]["rank"].site == "z" and [len(one), len(one["z"]), len(one["z"]["noise"])] == [1, 1, 1]


def test_three_levels_of_panels_show_save_and_load(tmp_path):
    asked = dict(direction=["denoise", "noise"], metric=["logit_diff", "rank"])
    panels = sweep(tiny_model(seed=6), EXPERIMENT, ["resid_pre", Patch("z", "head")], **asked)
    assert repr(panels) == "<Panels: resid_pre, z>"
    names = [
        f"{site} {direction} {metric}" for site in panels for direction in DIRECTIONS for metric in asked["metric"]
    ]
    assert list(panels.sweeps()) == names and len(panels.plot().axes) == 2 * len(names)  # each with its colour bar
    for ending in ("npz", "json"):
        panels.save(tmp_path / f"p.{ending}")
        loaded = Panels.load(tmp_path / f"p.{ending}")
        assert list(loaded.sweeps()) == names and loaded.to_dict() == panels.to_dict() and str(loaded) == str(panels)
        for name, result in loaded.sweeps().items():
            assert_same(result, panels.sweeps()[name])


def test_the_same_site_with_other_axes_has_a_panel_name_of_its_own():
    model = tiny_model(seed=6)
    sites = ["z", Patch("z", ("head", "position")), Patch("z", "layer"), "q"]
    panels = sweep(model, EXPERIMENT, sites)
    assert list(panels) == ["z", "z head,position", "z layer", "q"]
    assert [result.axes for result in panels.values()] == [
        ("layer", "head"),
        ("head", "position"),
        ("layer",),
        ("layer", "head"),
    ]
    for site, result in zip(sites, panels.values(), strict=True):
        assert_same(result, sweep(model, EXPERIMENT, site))
    with pytest.raises(NanopatchError, match="z is listed twice: each site, with its axes, at most once"):
        sweep(model, EXPERIMENT, ["z", Patch("z", ("layer", "head"), heads=[0])])


def test_short_names_take_several_at_once_too():
    model, metrics = tiny_model(seed=6), ["logit_diff", "probability"]
    ablated = ablate(model, EXPERIMENT, ["z", "mlp_out"], Mean(OTHERS), metric=metrics)
    assert_same(
        ablated["mlp_out"]["probability"],
        sweep(model, EXPERIMENT, ["z", "mlp_out"], corruption=Mean(OTHERS), metric=metrics)["mlp_out"]["probability"],
    )
    traced = trace(model, EXPERIMENT, [1], ["z", "mlp_out"], seeds=[2])
    assert_same(traced["z"], trace(model, EXPERIMENT, [1], "z", seeds=[2]))
    paths = path_patch(model, EXPERIMENT, "head", "logits", direction=["noise", "denoise"])
    assert_same(paths["denoise"], path_patch(model, EXPERIMENT, "head", "logits"))
    assert_same(paths["noise"], sweep(model, EXPERIMENT, Paths("head", "logits"), direction="noise"))


def test_the_most_different_neurons_are_those_of_each_site():
    model = tiny_model(seed=6)
    sites = [Patch("mlp_post", "neuron", neurons=3), Patch("mlp_pre", "neuron", neurons=5)]
    panels = sweep(model, EXPERIMENT, sites, direction=["denoise", "noise"])
    for site in sites:
        for direction, result in panels[site.site].items():
            assert_same(result, sweep(model, EXPERIMENT, site, direction=direction))
            assert len(as_lists(result.pieces)["neuron"]) == site.neurons


def test_an_experiment_may_be_named():
    nano = load("nano")
    assert np.array_equal(sweep(nano, "michelle", "z").grid, sweep(nano, MICHELLE, "z").grid)
    assert edge_attribution(nano, "michelle").experiment == MICHELLE
    for asked in (sweep, attribute, edge_attribution):
        with pytest.raises(NanopatchError, match="no experiment is named 'michele'; named are michelle, jessica"):
            asked(nano, "michele")


@pytest.mark.parametrize("asked", [sweep, attribute, edge_attribution, lambda a, b: faithfulness(a, b, [])])
def test_arguments_in_another_order_say_which_is_which(asked):
    model = tiny_model()
    with pytest.raises(NanopatchError, match=r"first the model, .*, then the experiment; not Experiment\("):
        asked(Experiment([1], [2], 3, 7), model)
    with pytest.raises(NanopatchError, match="an Experiment, a list of them or a name .* is expected, not 3"):
        asked(model, 3)


def test_a_metric_that_reads_no_answers_needs_none(tmp_path, capsys):
    model, pair = tiny_model(seed=2), Experiment([1, 2, 3, 4], [1, 9, 3, 8])
    with_answers = Experiment([1, 2, 3, 4], [1, 9, 3, 8], 3, 7)

    def largest(logits):
        return float(logits[-1].max())

    for metric in ("kl_divergence", "cross_entropy", largest):
        for asked in (sweep, attribute):
            result = asked(model, pair, "z", metric=metric)
            assert np.array_equal(result.grid, asked(model, with_answers, "z", metric=metric).grid)
        result.save(tmp_path / "x.npz")
        assert Sweep.load(tmp_path / "x.npz").experiment == pair and "no answers" in str(result)
        result.plot()
    assert faithfulness(model, pair, [("embed", "logits")], metric="kl_divergence").n_edges == 1
    only_answer = Experiment([1, 2, 3, 4], [1, 9, 3, 8], 3)
    for metric in ("log_probability", "probability", "rank"):  # they read no wrong answer
        assert np.array_equal(
            sweep(model, only_answer, metric=metric).grid, sweep(model, with_answers, metric=metric).grid
        )
    with pytest.raises(NanopatchError, match="logit_diff compares answers: give Experiment"):
        sweep(model, only_answer)
    for metric in ("logit_diff", "probability", "rank"):
        with pytest.raises(NanopatchError, match=f"{metric} compares answers: give Experiment"):
            sweep(model, pair, metric=metric)
    assert main(["patch", "--clean", "a b", "--corrupted", "a c", "--metric", "kl_divergence"]) == 0
    with pytest.raises(SystemExit):
        main(["patch", "--clean", "a b", "--corrupted", "a c"])
    assert "give --answer, --wrong" in capsys.readouterr().err
    assert main(["patch", "--clean", "a b", "--corrupted", "a c", "--answer", " d", "--metric", "probability"]) == 0


def test_names_of_tokens_are_labels():
    model = tiny_model()
    assert sweep(model, EXPERIMENT).column_labels[0] == "#1"
    model.token_names = [f"<{i}>" for i in range(model.n_vocab)]
    assert sweep(model, EXPERIMENT).column_labels == ["<1>", "<2> / <9>", "<3>", "<4> / <8>"]


def heads_of(heads):
    return sweep(tiny_model(seed=7), Experiment([1, 2, 3], [1, 9, 3], 3, 7), Patch("z", axes="head", heads=heads))


def test_pairs_may_come_from_nonzero_and_from_what_can_be_read_only_once():
    pairs = [(0, 1), (1, 0), (2, 1)]
    mask = np.zeros((3, 2), bool)
    mask[tuple(zip(*pairs, strict=True))] = True
    expected = heads_of(pairs)
    for chosen in (mask.nonzero(), np.argwhere(mask), iter(pairs), zip([0, 1, 2], [1, 0, 1], strict=True)):
        result = heads_of(chosen)
        assert result.labels("head") == ["0.1", "1.0", "2.1"] and np.array_equal(result.grid, expected.grid)
    positions = Patch("resid_pre", positions=np.array([True, False, True]).nonzero())
    assert sweep(tiny_model(), Experiment([1, 2, 3], [1, 9, 3], 3, 7), positions).grid.shape == (3, 2)


@pytest.mark.parametrize("choice", [dict(positions=np.array([[0, 1], [1, 2]])), dict(layers=np.array([[0, 1]]))])
def test_rows_of_an_array_are_not_read_as_groups(choice):
    with pytest.raises(NanopatchError, match=r"an array of shape \(\d, 2\) is not a list of numbers; give lists"):
        sweep(tiny_model(), Experiment([1, 2, 3], [1, 9, 3], 3, 7), Patch("resid_pre", **choice))


def test_arguments_of_wrong_types():
    model, pair = tiny_model(seed=7), Experiment([1, 2, 3], [1, 9, 3], 3, 7)
    for call, message in [
        (lambda: heads_of(np.array([[0, 1, 2]])), r"heads: an array of shape \(1, 3\) is not .* rows of .layer, head"),
        (lambda: Patch("z", axes=3), "axes=3: names are expected, of layer, head, position"),
        (lambda: Patch("z", axes=[["layer"]]), "z has the axes layer, head, position, each at most once"),
        (lambda: sweep(model, pair, memory="1G"), "memory='1G': a number of bytes is expected"),
        (lambda: circuit(sweep(model, pair), 3), "a circuit is made of the scores of edge_attribution"),
        (lambda: generate("nano", [1]), "first the model"),
        (lambda: generate(model, [1], 2, temperature="hot"), "temperature must be 0 or above, not 'hot'"),
    ]:
        with pytest.raises(NanopatchError, match=message):
            call()
    assert len(generate(model, [1], 2, temperature=1e-320)) == 2


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.filterwarnings("error")
def test_baselines_that_are_no_finite_numbers_make_no_scale(value):
    model, pair = tiny_model(seed=7), Experiment([1, 2, 3], [1, 9, 3], 3, 7)
    clean = model.run(pair.clean).logits[-1]

    def broken(logits):
        return value if np.allclose(logits[-1], clean, atol=1e-9) else float(logits[-1, 5])

    for result in (sweep(model, pair, "z", metric=broken), sweep(model, pair, "z", metric=broken, direction="noise")):
        assert np.isnan(result.normalised).all() and "so there is no scale" in result.text()
        assert f"Not normalised: broken is {value} in the clean run and " in result.text()
        assert result._repr_png_() and result.matrix().scale[1] < np.inf
    assert f"broken of the unpatched run is {value}." in ablate(model, pair, "z", metric=broken).text()
    kept = faithfulness(model, pair, [("embed", "logits")], metric=broken)
    assert np.isnan(kept.normalised) and f"no faithfulness: it is {value} in the clean run and" in str(kept)
