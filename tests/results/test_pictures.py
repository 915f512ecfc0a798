"""Pictures: nothing is cut off, text is drawn as it is, colours have signs, sizes are bounded, pyplot knows them."""

import io
import math
import os
import subprocess
import sys
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from conftest import ROOT, tiny_model

import nanopatch
from nanopatch import (
    Attention,
    Comparison,
    EdgeScores,
    Experiment,
    NanopatchError,
    Panels,
    Patch,
    Saliency,
    Sweep,
    sweep,
)
from nanopatch.experiments import CAPITAL, ELON, MICHELLE
from nanopatch.files import Source
from nanopatch.results import plot
from nanopatch.results.matrix import Matrix
from nanopatch.results.table import table

NASTY = "echo $HOME_$USER7 $$ \x00\x07\x1b[31m\n\t<&> \\frac{1}{2} ^_{ % \ud800 猫 \uffff"
#: The same, as pictures draw it.
DRAWN = r"echo $HOME_$USER7 $$ \x00\x07\x1b[31m\n\t<&> \frac{1}{2} ^_{ % \ud800 \u732b \uffff"


@pytest.fixture(scope="module")
def michelle():
    return sweep(nanopatch.load("nano"), MICHELLE)


@pytest.fixture(scope="module")
def one_of_each(michelle):
    """A result of each kind that has a picture."""
    nano = nanopatch.load("nano")
    z, edges = sweep(nano, MICHELLE, "z"), nanopatch.edge_attribution(nano, MICHELLE)
    return {
        "sweep": michelle,
        "one column": nanopatch.path_patch(nano, MICHELLE, "head", "logits"),
        "panels": Panels({"z": z, "resid_pre": michelle, "two": Panels({"a": z, "b": michelle})}),
        "comparison": Comparison(z, nanopatch.attribute(nano, MICHELLE, "z")),
        "saliency": nanopatch.saliency(nano, MICHELLE),
        "attention": nanopatch.attention(nano, nano.run(MICHELLE.clean), 1, 0),
        "all heads": nanopatch.attention(nano, nano.run(MICHELLE.clean)),
        "edges": edges,
        "faithfulness": nanopatch.faithfulness(nano, MICHELLE, edges.circuit(30)),
    }


def named(result, name):
    """A result whose model, metric, prompts and tokens all have this name."""
    if isinstance(result, Panels):
        return Panels({key: named(value, name) for key, value in result.items()})
    if isinstance(result, Comparison):
        return Comparison(named(result.exact, name), named(result.estimate, name))
    if isinstance(result, Attention):
        return replace(result, tokens=(name,) * len(result.tokens))
    changes = {"metric": name}
    if isinstance(result, Saliency):
        changes["tokens"] = (name,) * len(result.tokens)
    if isinstance(result, (Sweep, EdgeScores)):
        changes["source"] = replace(result.source, name=name)
        changes["experiment"] = replace(MICHELLE, clean=name, corrupted=name, answer=name)
    if isinstance(result, Sweep):
        changes |= {"clean_tokens": (name,) * 11, "corrupted_tokens": (name,) * 11}
    return replace(result, **changes)


def texts(figure):
    return "\n".join(text.get_text() for text in shown_texts(figure))


def shown_texts(figure):
    """The texts that are drawn: not the labels of ticks outside the axes, nor of axes that are off."""
    from matplotlib.axis import Axis
    from matplotlib.text import Text

    hidden = set()
    for axis in figure.findobj(Axis):
        drawn = {id(tick) for tick in axis._update_ticks()} if axis.axes.axison else set()
        for tick in [*axis.majorTicks, *axis.minorTicks]:
            if id(tick) not in drawn:
                hidden |= {tick.label1, tick.label2}
        if not axis.axes.axison:
            hidden |= set(axis.findobj(Text))
    return [text for text in figure.findobj(Text) if text.get_visible() and text.get_text() and text not in hidden]


def assert_nothing_is_cut_off(figure):
    figure.savefig(io.BytesIO(), format="png")
    for text in shown_texts(figure):
        box = text.get_window_extent()
        inside = box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
        assert inside, (text.get_text(), box, figure.bbox)


KINDS = ["sweep", "one column", "panels", "comparison", "saliency", "attention", "all heads", "edges", "faithfulness"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [None, NASTY, "/home/a user/" + "W" * 250 + "/model", "many short words 猫" * 30])
def test_nothing_is_cut_off(kind, name, one_of_each):
    result = one_of_each[kind] if name is None else named(one_of_each[kind], name)
    figure = result.plot()
    assert_nothing_is_cut_off(figure)
    assert max(figure.get_size_inches()) <= 24


@pytest.mark.parametrize("kind", KINDS)
def test_text_is_drawn_as_it_is(kind, one_of_each, tmp_path):
    """A dollar sign starts no formula, and a control character does not make an SVG that is no XML."""
    result = named(one_of_each[kind], NASTY)
    assert DRAWN.split()[1] in texts(result.plot())
    for file_format in plot.FORMATS:
        result.save(tmp_path / f"x.{file_format}")
    ElementTree.parse(tmp_path / "x.svg")
    if kind == "sweep":
        shown = texts(result.plot()).replace("\n", " ")
        assert f"clean: {DRAWN}" in shown and f"nano {DRAWN}" not in shown
        assert f"patched from clean into corrupted (denoising), {DRAWN}" in shown


def test_a_formula_in_every_label_of_rows_columns_and_panels(michelle):
    matrix = michelle.matrix()
    matrix = matrix._replace(rows=["$a$"] * 4, columns=["$b_$"] * 11, rows_title="$r", columns_title="$c$", unit="$u$")
    figure = plot.panels([[matrix._replace(title="$t$ $")]], ["$f$ $"])
    for text in ("$a$", "$b_$", "$r", "$c$", "$u$", "$t$ $", "$f$ $"):
        assert text in texts(figure).splitlines()
    assert all(not text.get_parse_math() for text in shown_texts(figure) if "$" in text.get_text())
    assert_nothing_is_cut_off(figure)


def test_long_text_is_left_out_in_its_middle():
    assert plot.shortened("abc", 40) == "abc"
    short = plot.shortened("a" * 100 + "b" * 100, 40)
    assert len(short) == 40 and short.startswith("a" * 20) and short.endswith("b" * 19) and "…" in short
    long = plot.shortened("a" * 5000, 400)
    assert len(long) == 400 and "… (4600 characters more) …" in long


# ---- colours ----------------------------------------------------------------------------------------


def matrix_of(values, **fields):
    values = np.array(values, float)
    rows, columns = ([str(i) for i in range(n)] for n in values.shape)
    fields = {"signed": False, "largest": 1.0, **fields}
    return Matrix(values, rows, "layer", columns, "head", "title", "unit", **fields)


def colours(matrix):
    (image,) = plot.panels([[matrix]], []).axes[0].images
    return image.cmap.name, image.norm.vmin, image.norm.vmax, image.cmap(image.norm(matrix.values))


def test_values_below_0_do_not_look_like_0():
    name, low, high, rgba = colours(matrix_of([[0.97, -0.62, 0.0, 0.62]]))
    assert (name, low, high) == ("RdBu_r", -1, 1)
    negative, zero, positive = rgba[0, 1:]
    assert np.abs(negative - zero).max() > 0.4 and np.abs(positive - negative).max() > 0.4
    assert negative[2] > negative[0] and positive[0] > positive[2]  # blue and red
    shown = [text.get_text() for text in plot.panels([[matrix_of([[0.97, -0.62]])]], []).axes[0].texts]
    assert shown == ["0.97", "-0.62"]
    assert "▒-0.62" in table(matrix_of([[0.97, -0.62]]))[1].replace(" ", "")


def test_rounding_below_0_makes_no_other_colours():
    assert colours(matrix_of([[1.0, -0.019, 0.5]]))[:3] == ("Blues", 0, 1)
    assert colours(matrix_of([[1.0, -0.021, 0.5]]))[:3] == ("RdBu_r", -1, 1)


def test_signs_can_be_seen_without_colours_and_numbers():
    values = np.where(np.arange(400).reshape(20, 20) % 2, 0.8, -0.8)
    ax = plot.panels([[matrix_of(values)]], []).axes[0]
    (marks,) = ax.lines
    assert not ax.texts and len(marks.get_xdata()) == 200
    assert all(values[int(y), int(x)] < 0 for x, y in marks.get_xydata())


def test_small_effects_can_be_seen_and_are_said_to_be_small():
    small = matrix_of([[0.02, -0.01, 0.001]])
    assert small.scale == (-0.02, 0.02)
    said = "All effects are small: the darkest colour is 0.02, not 1.00."
    assert said in texts(plot.panels([[small]], [])) and said in table(small)
    assert "█" in table(small)[1]
    assert matrix_of([[1e-7, 0.0]], noise=1e-6).scale == (0, 1)  # rounding is no effect
    assert matrix_of([[0.26, 0.0]]).scale == (0, 1)
    assert matrix_of([[0.0, 0.0]]).scale == (0, 1) and matrix_of([[np.nan]]).scale == (0, 1)


def test_panels_of_one_unit_have_one_scale():
    shown = Matrix.of_one_scale([matrix_of([[1.2, 0]]), matrix_of([[0.01, -0.5]]), matrix_of([[3]])._replace(unit="b")])
    assert [matrix.scale for matrix in shown] == [(-1.2, 1.2), (-1.2, 1.2), (0, 3)]


def test_the_examples_of_the_documentation_show_something():
    nano = nanopatch.load("nano")
    knockout = sweep(nano, MICHELLE, Patch("pattern", axes=("query", "key"), layers=[1]), corruption=nanopatch.Zero())
    assert knockout.normalised[10, 1] < -0.9 and knockout.unchanged.sum() == 55  # from the name to its surname
    neurons = sweep(nano, CAPITAL, Patch("mlp_post", axes="neuron", neurons=10)).matrix()
    assert neurons.scale[1] == np.abs(neurons.values).max() < 0.03


# ---- values that are not usual -----------------------------------------------------------------------


def test_huge_values_are_short_and_can_be_drawn(michelle, tmp_path):
    huge = replace(michelle, grid=np.where(michelle.grid > 15, 1.7e308, -1.7e308), unchanged=None)
    figure = huge.plot(normalised=False)
    assert_nothing_is_cut_off(figure)
    assert np.isfinite(figure.axes[0].images[0].get_clim()).all()
    assert max(map(len, str(huge).splitlines())) < 120
    shown = table(matrix_of([[1e300, -439870.0], [0.5, 7.0]]))
    assert shown[1].split("█")[1].split()[0] == "1.0e+300"
    assert len(shown[1]) == len(shown[0]) == len(shown[2])  # columns stand below their names
    assert replace(michelle, baseline_clean=1e300).plot().get_supxlabel().count("logit_diff 1e+300") == 1


@pytest.mark.parametrize("clean, corrupted", [(np.inf, 0.0), (np.nan, 1.0), (np.inf, np.inf), (1.0, -np.inf)])
def test_unpatched_runs_without_a_finite_metric_give_no_scale(clean, corrupted, michelle):
    result = replace(michelle, baseline_clean=clean, baseline_corrupted=corrupted)
    assert np.isnan(result.normalised).all()
    foot = result.plot().get_supxlabel().replace("\n", " ")
    assert "Not normalised: logit_diff is" in foot and "so there is no scale." in foot
    assert "normalised: 0 is" not in foot and "darkest" not in foot
    assert np.isfinite(result.matrix().scale).all()


def test_the_foot_speaks_of_normalised_values_only_where_they_are_shown(michelle, one_of_each):
    said = "normalised: 0 is the run patched into"
    assert said in michelle.plot().get_supxlabel() and said in Panels({"a": michelle}).plot().get_supxlabel()
    assert said not in michelle.plot(normalised=False).get_supxlabel()
    assert said not in Panels({"a": michelle}).plot(normalised=False).get_supxlabel()
    assert said not in one_of_each["comparison"].plot().get_supxlabel()


def test_bars_say_which_values_are_missing(one_of_each):
    figure = replace(one_of_each["faithfulness"], value=np.nan).plot()
    assert "No bar where the value is not a finite number: circuit (nan)." in texts(figure)
    assert "no faithfulness: the metric is nan in the circuit's run" in texts(figure).replace("\n", " ")
    product = np.array([np.inf, *[1.7e308] * 9, -np.inf])
    figure = replace(one_of_each["saliency"], product=product).plot()
    assert "a finite number: 0 Michelle (inf), and 1 more." in texts(figure)
    assert_nothing_is_cut_off(figure)
    assert math.isnan(replace(one_of_each["faithfulness"], baseline_clean=np.inf).normalised)


def test_a_circuit_of_no_edges_says_so(one_of_each):
    figure = one_of_each["edges"].plot(1)
    assert "None of the best edges is on a path from embed to logits" in texts(figure)
    width, height = figure.axes[0].get_window_extent().size
    (left, right), (low, high) = figure.axes[0].get_xlim(), figure.axes[0].get_ylim()
    assert width / (right - left) == pytest.approx(height / (high - low), rel=0.2)  # boxes are not stretched
    for n in (None, "3", 1.5):
        with pytest.raises(NanopatchError):
            one_of_each["edges"].plot(n)


def test_numbers_of_points_do_not_overlap(one_of_each):
    ax = one_of_each["comparison"].plot().axes[0]
    boxes = [text.get_window_extent() for text in ax.texts]
    assert len(boxes) == 3 and not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_panels_of_nothing_or_of_something_else(michelle, one_of_each, tmp_path):
    for empty in (Panels({}), Panels({"a": Panels({})})):
        for ask in (
            empty.plot,
            empty.text,
            empty.to_rows,
            empty._repr_png_,
            lambda e=empty: e.save(tmp_path / "x.npz"),
        ):
            with pytest.raises(NanopatchError, match="there are no panels: put sweeps in"):
                ask()
    for other in (one_of_each["edges"], 3, None):
        with pytest.raises(NanopatchError, match="panels are sweeps, lenses, .* or Panels, by name"):
            Panels({"a": michelle, "b": other}).plot()
    with pytest.raises(NanopatchError, match="panels are sweeps, lenses, .* or Panels, by name"):
        Panels({1: michelle}).save(tmp_path / "x.json")
    with pytest.raises(NanopatchError, match="normalised is True or False"):
        Panels({"a": michelle}).plot(michelle.plot().axes[0])
    assert not list(tmp_path.iterdir())


# ---- styles -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_latex_is_never_needed(kind, one_of_each, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    from matplotlib import rc_context

    with rc_context({"text.usetex": True}):
        figure = one_of_each[kind].plot()
        figure.set_size_inches(20, 15)  # which needs new numbers on the axes
        assert_nothing_is_cut_off(figure)
        for file_format in plot.FORMATS:
            one_of_each[kind].save(tmp_path / f"x.{file_format}")


@pytest.mark.parametrize("style", ["figure.autolayout", "figure.constrained_layout.use"])
def test_a_layout_that_rcparams_ask_for_moves_nothing(style, michelle):
    from matplotlib import rc_context

    with rc_context({style: True}):
        figure, files = michelle.plot(), [io.BytesIO(), io.BytesIO()]
        for file in files:
            figure.savefig(file)
        figure.canvas.draw()
    assert files[0].getvalue() == files[1].getvalue() == michelle._repr_png_()


def test_names_of_nodes_can_be_read_in_every_style(one_of_each):
    from matplotlib import style

    with style.context("dark_background"):
        (ax,) = one_of_each["edges"].plot().axes
    names = [text for text in ax.texts if text.get_text() == "embed"]
    assert names[0].get_color() == "black" and all(box.get_facecolor()[:3] == (1, 1, 1) for box in ax.patches[-5:])


# ---- what cannot change -----------------------------------------------------------------------------


def test_what_cannot_change_is_a_dot(michelle):
    assert michelle.unchanged.sum() == 13  # the first token; and in block 0, all that do not differ
    ax = michelle.plot().axes[0]
    (dots,) = ax.lines
    assert {(int(y), int(x)) for x, y in dots.get_xydata()} == set(map(tuple, np.argwhere(michelle.unchanged).tolist()))
    assert len(ax.texts) == 44 - 13
    said = "·: a patch there cannot change the metric."
    assert said in texts(michelle.plot()) and said in str(michelle).splitlines() and str(michelle).count("·") == 13 + 1
    assert "·" not in str(replace(michelle, unchanged=None)) + texts(replace(michelle, unchanged=None).plot())


def test_what_cannot_change_is_grey_where_dots_would_be_too_many():
    matrix = matrix_of(np.ones((100, 100)))._replace(unchanged=np.eye(100) < 1)
    figure = plot.panels([[matrix]], [])
    shade = figure.axes[0].images[1].get_array()
    assert (shade.mask == np.eye(100, dtype=bool)).all() and not figure.axes[0].lines
    assert "grey: a patch there cannot change the metric." in texts(figure)


# ---- size -------------------------------------------------------------------------------------------


def big(michelle, n_layers, n_heads, n_tokens):
    """A sweep over long prompts that nobody had to compute."""
    tokens = [michelle.clean_tokens[i % 11] for i in range(n_tokens)]
    sizes = {"layer": n_layers, "head": n_heads, "position": n_tokens}
    axes = tuple(axis for axis, n in sizes.items() if n)
    return replace(
        michelle,
        grid=np.random.default_rng(0).normal(0, 9, [sizes[axis] for axis in axes]),
        axes=axes,
        pieces={axis: [(i,) for i in range(sizes[axis])] for axis in axes},
        columns=tuple((i, i) for i in range(n_tokens)),
        clean_tokens=tuple(tokens),
        corrupted_tokens=tuple(tokens),
        experiment=replace(MICHELLE, clean="".join(tokens), corrupted="".join(tokens)),
        unchanged=None,
    )


@pytest.mark.parametrize("n_layers, n_heads, n_tokens", [(12, 0, 900), (48, 25, 1024), (4, 0, 60)])
def test_long_prompts(michelle, n_layers, n_heads, n_tokens):
    result = big(michelle, n_layers, n_heads, n_tokens)
    figure = result.plot()
    assert max(figure.get_size_inches()) <= 24 and max(figure.canvas.get_width_height()) <= 3600
    assert_nothing_is_cut_off(figure)
    assert len(figure.axes[0].texts) <= 320 and len(shown_texts(figure)) < 700
    if n_tokens > 60:
        assert "There are" in texts(figure) and "is labelled." in texts(figure) and "characters more" in texts(figure)
    boxes = [text.get_window_extent() for text in figure.axes[0].get_yticklabels()]
    assert all(a.y0 >= b.y1 - 2 for a, b in zip(boxes, boxes[1:], strict=False))  # no label is over another


def test_many_neurons(michelle):
    grid = np.zeros(22528)
    grid[12345], grid[54] = -40, 90
    neurons = {"neuron": [(divmod(i, 512),) for i in range(22528)]}
    figure = replace(michelle, grid=grid, axes=("neuron",), pieces=neurons, unchanged=None).plot()
    assert max(figure.get_size_inches()) <= 24
    shown = figure.axes[0].images[0].get_array()
    normalised = (grid - michelle.base_value) / (michelle.donor_value - michelle.base_value)
    assert shown.shape[1] <= 600 and shown.max() == normalised.max() and shown.min() == normalised.min()
    assert "There are 22528 columns, too many to see: each column here is up to 38" in texts(figure).replace("\n", " ")


def test_of_several_neighbours_the_strongest_is_shown():
    values = np.array([[1.0, np.nan], [-3, np.nan], [2, 5], [np.nan, -4], [0.5, np.nan]])
    matrix = matrix_of(values)._replace(unchanged=np.isin(values, [1, -3]))
    fewer = matrix.strongest(3)
    assert np.array_equal(fewer.values, [[-3, np.nan], [2, 5], [0.5, np.nan]], equal_nan=True)
    assert fewer.rows == ["0", "2", "4"] and fewer.still.tolist() == [[True, False], [False, False], [False, False]]
    assert np.array_equal(matrix.strongest(5).values, values, equal_nan=True)


def test_other_long_results(one_of_each):
    n = 900
    saliency = Saliency(("token",) * n, "logit_diff", 1.0, np.ones(n), np.linspace(-1, 1, n), Source("nano"))
    figure = saliency.plot()
    assert max(figure.get_size_inches()) <= 24 and "is labelled." in texts(figure)
    assert_nothing_is_cut_off(figure)
    figure = one_of_each["edges"].plot(len(one_of_each["edges"].edges))
    assert max(figure.get_size_inches()) <= 24 and "Only the 200 widest edges are drawn." in texts(figure)
    assert_nothing_is_cut_off(figure)


def test_panels_wrap(michelle):
    """A notebook's column is about 1,600 pixels wide at most."""
    nano = nanopatch.load("nano")
    heads = [Patch(site, axes=("layer", "head")) for site in ("z", "q", "k", "v", "pattern")]
    for result, n in [
        (sweep(nano, MICHELLE, ["resid_pre", "attn_out", "mlp_out"]), 3),
        (sweep(nano, MICHELLE, heads), 5),
        (Panels({str(i): big(michelle, 12, 12, 900) for i in range(3)}), 3),
    ]:
        figure = result.plot()
        assert figure.canvas.get_width_height()[0] <= 1650 and figure.get_size_inches()[1] <= 24
        maps = [ax for ax in figure.axes if ax.images and ax.get_xlabel()]
        assert len(maps) == n and len({round(ax.get_position().y1, 3) for ax in maps}) > 1  # not all side by side
        boxes = [ax.get_tightbbox() for ax in maps]
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
        assert_nothing_is_cut_off(figure)


def test_more_panels_than_a_picture_can_hold(michelle):
    figure = Panels({f"panel {i}": michelle for i in range(100)}).plot()
    assert max(figure.get_size_inches()) <= 24
    n = sum(ax.get_title().startswith("panel ") for ax in figure.axes)
    assert 12 < n < 100 and f"{100 - n} panels are left out: they do not fit into one picture." in texts(figure)


# ---- the foot ---------------------------------------------------------------------------------------


def test_the_foot_of_an_average_tells_means_from_the_first_pair():
    model = tiny_model()
    pairs = [Experiment([1, 2, 3], [1, 4, 3], 5, 6), Experiment([1, 7, 8], [1, 4, 8], 6, 5)]
    mean, first = sweep(model, pairs), sweep(model, pairs[0])
    foot = mean.plot().get_supxlabel().replace("\n", " ")
    assert f"mean of 2 pairs: clean logit_diff {mean.baseline_clean:.2f}; corrupted logit_diff" in foot
    assert "first pair, clean: token ids [1, 2, 3] first pair, corrupted: token ids [1, 4, 3] mean" in foot
    assert "the first pair's answer 5, wrong answer 6" in foot and "the first pair's answer 5" in str(mean)
    assert f"clean: token ids [1, 2, 3]   logit_diff {first.baseline_clean:.2f}" in first.plot().get_supxlabel()
    assert "first pair" not in first.plot().get_supxlabel() + str(first)
    edges = nanopatch.edge_attribution(model, pairs)
    assert f"mean of 2 pairs: clean logit_diff {edges.baseline_clean:.2f}" in edges.plot().get_supxlabel()


def test_the_foot_of_different_questions_tells_them_apart(michelle):
    foot = Panels({"a": michelle, "b": michelle, "c": sweep(nanopatch.load("nano"), ELON)}).plot().get_supxlabel()
    lines = foot.splitlines()
    assert lines[0] == "a, b:" and lines[1].startswith("clean: Michelle Jones")
    assert lines[4] == "c:" and lines[5].startswith("clean: Elon Musk")


def test_a_foot_of_many_lines_is_bounded(michelle):
    def asked(i):
        return replace(michelle, experiment=replace(MICHELLE, clean=f"{i} " + "a long prompt " * 40))

    panels = Panels({f"panel {i}": asked(i) for i in range(20)}).plot()
    # Two or three stand side by side: the numbers at a colour bar differ between versions of NumPy.
    assert sum(ax.get_title().startswith("panel ") for ax in panels.axes) >= 14
    remarks = tuple(f"remark {i} " + "word " * 60 for i in range(300))
    for figure in (panels, replace(michelle, remarks=remarks).plot()):
        assert max(figure.get_size_inches()) <= 24
        assert len(figure.get_supxlabel().splitlines()) <= plot.MOST_FOOT_LINES
        assert "more lines are left out here" in figure.get_supxlabel()
        assert_nothing_is_cut_off(figure)


def test_a_long_name_of_a_metric_makes_no_wide_picture(one_of_each):
    for kind in ("sweep", "comparison"):
        assert max(named(one_of_each[kind], "W" * 3000).plot().get_size_inches()) <= 24


# ---- one call, and pyplot ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_plot_is_the_picture_that_save_writes(kind, one_of_each, tmp_path):
    result = one_of_each[kind]
    result.plot().savefig(tmp_path / "a.png")
    result.save(tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes() == result._repr_png_()
    assert result.plot()._repr_png_() == result._repr_png_()


@pytest.fixture
def pyplot(monkeypatch):
    from matplotlib import pyplot

    pyplot.switch_backend("agg")
    pyplot.close("all")
    yield pyplot
    pyplot.close("all")


def test_what_users_of_pyplot_do(michelle, pyplot, tmp_path):
    figure = michelle.plot()
    assert pyplot.gcf() is figure
    pyplot.savefig(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == michelle._repr_png_()
    pyplot.figure()
    shown = [michelle.plot() for _ in range(12)]
    assert len(pyplot.get_fignums()) == 11  # ten of ours, and the user's
    assert [pyplot.figure(n) for n in pyplot.get_fignums()][1:] == shown[2:]
    figure.savefig(tmp_path / "b.png")  # a figure that pyplot has closed
    assert (tmp_path / "b.png").read_bytes() == (tmp_path / "a.png").read_bytes()
    before = pyplot.get_fignums()
    michelle.save(tmp_path / "c.png")
    michelle._repr_png_()
    assert pyplot.get_fignums() == before


def test_what_pyplot_changes_is_the_heatmap_not_its_colour_bar(michelle, pyplot):
    figure = michelle.plot()
    pyplot.title("my title")
    assert figure.axes[0].get_title() == "my title" and pyplot.gca() is figure.axes[0]


def test_axes_of_a_user(one_of_each, pyplot):
    figure, axes = pyplot.subplots(1, 4, figsize=(16, 4), layout="tight")
    kinds = ("sweep", "comparison", "saliency", "edges")
    for ax, kind in zip(axes, kinds, strict=True):
        assert one_of_each[kind].plot(ax=ax) is figure and ax.get_title()
    assert pyplot.get_fignums() == [1] and not figure.get_supxlabel()


@pytest.mark.parametrize("projection", ["polar", "3d"])
def test_axes_that_are_not_plain_are_refused(projection, one_of_each, pyplot):
    ax = pyplot.figure().add_subplot(projection=projection)
    for kind in ("sweep", "comparison", "saliency", "edges", "faithfulness"):
        with pytest.raises(NanopatchError, match="plot draws into plain matplotlib Axes, not into <"):
            one_of_each[kind].plot(ax=ax)


def test_tight_layout_neither_warns_nor_moves(michelle, pyplot, recwarn):
    figure = michelle.plot()
    pyplot.tight_layout(pad=2)
    assert figure._repr_png_() == michelle._repr_png_() and not recwarn


def test_without_pyplot_nothing_is_kept(michelle):
    code = (
        "import sys, gc, weakref, nanopatch; from nanopatch import sweep; from nanopatch.experiments import MICHELLE\n"
        "result = sweep(nanopatch.load('nano'), MICHELLE); figure = weakref.ref(result.plot()); gc.collect()\n"
        "print(figure(), 'matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.split() == ["None", "False"], done.stderr


def test_a_backend_that_cannot_be_used(tmp_path):
    def run(code, backend):
        environment = {**os.environ, "MPLBACKEND": backend, "DISPLAY": ""}
        return subprocess.run(
            [sys.executable, *code], capture_output=True, text=True, cwd=ROOT, env=environment, encoding="utf-8"
        )

    patch = ["-m", "nanopatch", "patch", "--experiment", "michelle"]
    for more in (["-o", str(tmp_path / "x.png")], ["--plot"]):
        done = run([*patch, *more], "nosuch")
        assert done.returncode == 1 and done.stderr.splitlines() == [
            "nanopatch: no picture can be drawn: MPLBACKEND='nosuch' is not a backend of matplotlib; unset it, or set "
            "it to agg"
        ]
        assert not done.stdout and not list(tmp_path.iterdir())
    code = "from matplotlib import pyplot; import nanopatch as n; "
    code += "n.sweep(n.load('nano'), n.experiments.MICHELLE).plot().savefig(r'" + str(tmp_path / "x.png") + "')"
    done = run(["-c", code], "module://nosuch")
    assert done.returncode == 0 and (tmp_path / "x.png").exists(), done.stderr


def test_a_notebook_shows_a_figure_once(michelle, pyplot, monkeypatch):
    import matplotlib

    figure = michelle.plot()
    with pytest.raises(NotImplementedError):  # IPython then goes on
        figure._ipython_display_()
    assert pyplot.get_fignums() == [1]  # a terminal: the window stays
    monkeypatch.setattr(matplotlib, "get_backend", lambda: "module://matplotlib_inline.backend_inline")
    own, ax = pyplot.subplots()
    michelle.plot(ax)
    for shown in (figure, own):
        with pytest.raises(NotImplementedError):
            shown._ipython_display_()
    assert pyplot.get_fignums() == []  # nothing is left to be shown at the end of the cell


def test_a_file_name_given_to_plot_says_to_save(tmp_path):
    nano = nanopatch.load("nano")
    results = [
        sweep(nano, "michelle"),
        sweep(nano, "michelle", ["z", "q"]),
        nanopatch.edge_attribution(nano, "michelle"),
        nanopatch.saliency(nano, MICHELLE),
    ]
    for result in results:
        for name in ("x.png", tmp_path / "x.png"):
            with pytest.raises(NanopatchError, match="plot draws, and writes no file: write result.save"):
                result.plot(name)
    with pytest.raises(NanopatchError, match="plot draws into plain matplotlib Axes, not into 3"):
        results[0].plot(3)


def test_panels_have_names(michelle):
    with pytest.raises(NanopatchError, match=r'panels have names: write Panels\({"a name": result}\), not \[<Sweep'):
        Panels([michelle])
    assert Panels() == {} and Panels({"a": michelle})["a"] is michelle
