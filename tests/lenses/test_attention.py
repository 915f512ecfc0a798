"""Attention: the run's own patterns, weighted by what is moved; pictures of one head and of many; `Run.top`."""

import csv
import pickle

import numpy as np
import pytest
from conftest import assert_close, models, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

import nanopatch
from nanopatch import Attention, NanopatchError, Panels
from nanopatch.experiments import ELON, MICHELLE
from nanopatch.results.view import Difference


@pytest.fixture(scope="module")
def nano():
    return nanopatch.load("nano")


@pytest.fixture(scope="module")
def clean(nano):
    return nano.run(MICHELLE.clean)


@pytest.fixture(scope="module")
def corrupted(nano):
    return nano.run(MICHELLE.corrupted)


def patched(model):
    """A loop of one's own, with an edit of a pattern, as a run."""

    def steps():
        for site in model.steps([1, 2, 3, 4]):
            if site.name == "pattern" and site.layer == 1:
                site.array[0] = [[0, 0, 0, 1], [1, 0, 0, 0], [0.5, 0.5, 0, 0], [0.25] * 4]
            yield site

    return nanopatch.record(steps())


@settings(max_examples=20)
@given(models(), st.integers(0, 99))
def test_values_are_the_pattern_times_the_norm_of_what_each_key_gives(model, seed):
    run = model.run(np.random.default_rng(seed).integers(0, model.n_vocab, 5))
    raw, weighted = nanopatch.attention(model, run), nanopatch.attention(model, run, weighted=True)
    assert raw.heads == tuple((layer, head) for layer in range(model.n_layer) for head in range(model.n_head))
    for number, (layer, head) in enumerate(raw.heads):
        attn = model.h[layer].attn
        rows = attn.c_proj.weight[head * model.d_head : (head + 1) * model.d_head].astype(np.float64)
        for query in range(5):
            for key in range(5):
                value, size = raw.values[number, query, key], weighted.values[number, query, key]
                if key > query:
                    assert np.isnan(value) and np.isnan(size)
                    continue
                moved = [float(run.v[layer, key, head].astype(np.float64) @ rows[:, i]) for i in range(model.d_model)]
                assert value == run.pattern[layer, head, query, key]
                assert np.isclose(size, value * np.sqrt(np.sum(np.square(moved))), rtol=1e-12, atol=0)
    one = nanopatch.attention(model, run, model.n_layer - 1, 0)
    assert np.array_equal(one.values[0], raw.values[-model.n_head], equal_nan=True)
    layer = nanopatch.attention(model, run, layer=0)
    assert np.array_equal(layer.values, raw.values[: model.n_head], equal_nan=True)


def test_what_a_head_moves_is_what_the_weights_bound():
    """With all attention on one key, z @ W_O is what was moved, so its norm is the weighted attention."""
    model = tiny_model(seed=5)
    run = model.run([4, 1, 2])
    weighted = nanopatch.attention(model, run, 2, 1, weighted=True)
    rows = model.h[2].attn.c_proj.weight.reshape(2, 6, 12)[1]
    assert_close(weighted.values[0, 0, 0], np.linalg.norm(run.z[2, 0, 1] @ rows))  # the first token sees itself alone


def test_an_edited_pattern_is_shown_as_it_is_also_behind_the_mask():
    model = tiny_model()
    result = nanopatch.attention(model, patched(model), 1, 0)
    assert np.array_equal(result.values[0, 0], [0, np.nan, np.nan, 1], equal_nan=True)
    assert result.values[0, 3].tolist() == [0.25] * 4
    behind = [row for row in result.to_rows() if row["key"] > row["query"]]
    assert [(row["query"], row["key"], row["value"]) for row in behind] == [(0, 3, 1.0)]


def test_a_head_of_nano_looks_at_the_surname(nano, clean):
    """As weights/nano/README.md has it: the induction heads bind the surname to the first name."""
    result = nanopatch.attention(nano, clean, 1, 1)
    last = dict(zip(result.tokens, result.values[0, -1], strict=True))
    assert max(last, key=last.get) == " Jones"
    assert "10 ␣Michelle" in result.text() and "1 ␣Jones" in result.text()


# ---- results ----------------------------------------------------------------------------------------


def results(nano, clean, corrupted):
    one, other = (nanopatch.attention(nano, run, 1, 1) for run in (clean, corrupted))
    layer, other_layer = (nanopatch.attention(nano, run, 1, weighted=True) for run in (clean, corrupted))
    every = nanopatch.attention(nano, clean)
    return {
        "one": one,
        "difference": one - other,
        "layer": layer,
        "layer difference": layer - other_layer,
        "every": every,
        "panels": Panels({"clean": one, "two": Panels({"corrupted": other, "difference": one - other}), "all": layer}),
    }


def test_they_have_the_manners_of_all_results(nano, clean, corrupted, tmp_path):
    for result in results(nano, clean, corrupted).values():
        for ending in ("npz", "json"):
            result.save(tmp_path / f"x.{ending}")
            assert type(result).load(tmp_path / f"x.{ending}").to_dict() == result.to_dict()
        result.save(tmp_path / "x.csv")
        with open(tmp_path / "x.csv", newline="", encoding="utf-8") as file:
            assert len(list(csv.DictReader(file))) == len(result.to_rows())
        assert result._repr_png_().startswith(b"\x89PNG") and str(result)
        assert max(result.plot().get_size_inches()) <= 24


def test_rows_are_the_causal_half(nano, clean):
    rows = nanopatch.attention(nano, clean, 1).to_rows()
    assert len(rows) == 4 * 11 * 12 / 2
    assert all(row["value"] == clean.pattern[1, row["head"], row["query"], row["key"]] for row in rows)
    assert (rows[1]["query_token"], rows[1]["query_id"], rows[1]["key_token"]) == (" Jones", 5437, "Michelle")


def test_differences_of_one_head_and_of_many(nano, clean, corrupted):
    ours, theirs = (nanopatch.attention(nano, run, 1) for run in (clean, corrupted))
    difference = ours - theirs
    assert np.array_equal(difference.values, ours.values - theirs.values, equal_nan=True)
    assert difference.panels == ("head 1.0", "head 1.1", "head 1.2", "head 1.3")
    assert difference.rows[:2] == ("0 Michelle", "1 ␣Jones / ␣Smith")
    (one,) = (nanopatch.attention(nano, clean, 1, 2) - nanopatch.attention(nano, corrupted, 1, 2)).matrices().values()
    assert np.array_equal(one.values, difference.values[2], equal_nan=True)
    elon = nano.run(ELON.clean)
    wrong = [
        nanopatch.attention(nano, clean, 1, weighted=True),  # another unit
        nanopatch.attention(nano, clean, 2),  # other heads
        nanopatch.attention(nano, elon, 1),  # other lengths
        nanopatch.logit_lens(nano, clean),
    ]
    for other in wrong:
        with pytest.raises(NanopatchError, match="cannot be subtracted"):
            ours - other
    with pytest.raises(NanopatchError, match="only two results of one kind"):
        ours - 3


def test_a_damaged_file_is_no_attention(nano, clean, tmp_path):
    nanopatch.attention(nano, clean, 1).save(tmp_path / "x.json")
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    for old, new in (("[[1, 0], ", "["), ("[1, 0]", "[1, 1]"), ('"weighted": false', '"weighted": 0')):
        assert old in text
        (tmp_path / "x.json").write_text(text.replace(old, new, 1), encoding="utf-8")
        with pytest.raises(NanopatchError, match="does not hold a saved Attention"):
            Attention.load(tmp_path / "x.json")
    (nanopatch.attention(nano, clean, 1) - nanopatch.attention(nano, clean, 1)).save(tmp_path / "d.json")
    text = (tmp_path / "d.json").read_text(encoding="utf-8")
    (tmp_path / "d.json").write_text(text.replace('"head 1.0", ', "", 1), encoding="utf-8")
    with pytest.raises(NanopatchError, match="does not hold a saved Difference"):
        Difference.load(tmp_path / "d.json")


# ---- pictures ---------------------------------------------------------------------------------------


def test_one_head_has_its_values_in_its_cells_and_nothing_behind_the_mask(clean, corrupted, nano):
    ax = clean.plot_attention(1, 1).axes[0]
    assert len(ax.texts) == 11 * 12 / 2 and ax.texts[0].get_text() == "1.00"
    assert [tick.get_text() for tick in ax.get_xticklabels()][1] == "1 ␣Jones"
    long = nano.run(list(range(1000, 1060))).plot_attention(0, 0).axes[0]
    assert not long.texts  # they would not fit


def test_all_heads_are_lines_of_layers(clean):
    figure = clean.plot_attention()
    ax, bar = figure.axes  # one colour bar for all
    assert len(ax.images) == 16
    corners = np.array([image.get_extent()[::3] for image in ax.images]).reshape(4, 4, 2)  # (layer, head, (left, top))
    assert np.ptp(corners[:, :, 0], axis=0).max() == 0 == np.ptp(corners[:, :, 1], axis=1).max()
    assert [text.get_text() for text in ax.texts] == [f"head {i}.{j}" for i in range(4) for j in range(4)]
    assert {image.get_clim() for image in ax.images} == {(0.0, 1.0)}
    assert np.array_equal(np.asarray(ax.images[5].get_array()[10]), clean.pattern[1, 1, 10].astype(np.float64))


def test_very_many_heads_and_tokens_stay_one_picture():
    model = tiny_model(n_layer=40, n_head=20, n_embd=20, n_positions=16)
    figure = model.run([1, 2, 3]).plot_attention()
    assert max(figure.get_size_inches()) <= 24
    foot = figure.get_supxlabel()
    n_shown = len(figure.axes[0].images)
    assert n_shown % 20 == 0 and f"{800 - n_shown} of the 800 heatmaps are left out" in foot
    text = nanopatch.attention(model, model.run([1, 2, 3])).text()
    assert text.endswith("764 more are left out here; `to_rows` and files have them all.")
    long = tiny_model(n_positions=1024, n_layer=1)
    run = long.run(np.arange(900) % 29)
    assert "There are 900 rows, too many to see" in run.plot_attention().get_supxlabel()
    shown = nanopatch.attention(long, run, 0, 0).text()
    assert "There are 900 columns, too many to see: each column here is up to 9 of them" in shown


def test_axes_of_a_user(clean, nano):
    plt = pytest.importorskip("matplotlib.pyplot")
    figure, (left, right) = plt.subplots(1, 2)
    assert clean.plot_attention(1, 1, ax=left) is figure and left.images
    assert nanopatch.attention(nano, clean, 1).plot(right) is figure and len(right.images) == 4
    plt.close(figure)


def test_panels_of_one_unit_have_one_scale_and_say_whose_they_are(nano, clean, corrupted):
    panels = results(nano, clean, corrupted)["panels"]
    figure = panels.plot()
    titles = [ax.get_title().replace("\n", " ") for ax in figure.axes if ax.get_title()]
    assert titles[0] == "clean: attention of head 1.1" and titles[1] == "two corrupted: attention of head 1.1"
    assert list(panels.results()) == ["clean", "two corrupted", "two difference", "all"] and not panels.sweeps()
    mixed = Panels({"lens": nanopatch.logit_lens(nano, clean), "sweep": nanopatch.sweep(nano, MICHELLE)})
    assert mixed.plot() and list(mixed.sweeps()) == ["sweep"]
    assert {row["panel"] for row in mixed.to_rows()} == {"lens", "sweep"}
    assert "lens: logit lens" in mixed.text()


# ---- what a run says --------------------------------------------------------------------------------


def test_the_likeliest_next_tokens(nano, clean):
    best = clean.top(3)
    p = np.exp(clean.logits[-1].astype(np.float64))
    assert [row["id"] for row in best] == np.argsort(-p)[:3].tolist()
    assert np.allclose([row["probability"] for row in best], np.sort(p)[:-4:-1] / p.sum(), rtol=1e-12)
    assert best[0]["token"] == " Jones" and len(clean.top()) == 10
    assert clean.top(1, position=0) == clean.top(1, -11) != best[:1]
    assert pickle.loads(pickle.dumps(clean)).top(1)[0]["token"] == "#5437"


def test_a_recorded_loop_knows_its_model(nano):
    run = nanopatch.record(nano.steps(MICHELLE.clean))
    assert run.model is nano and run.top(1)[0]["token"] == " Jones"
    assert run.plot_attention(1, 1).axes
    assert nanopatch.record(nano.steps_from(3, run.resid_pre[3], sites="logits")).model is None


def test_what_cannot_be_shown_is_said(nano, clean):
    gradient = nano.backward(clean, np.zeros_like(clean.logits))
    batch, short = nano.run([[1, 2], [3, 4]]), nano.run("a b", sites=("v", "logits"))
    other = tiny_model(n_head=3, n_embd=12)
    lost = pickle.loads(pickle.dumps(tiny_model().run([1, 2])))
    assert lost.model is None
    for ask, message in (
        (lambda: short.plot_attention(), r"attention needs pattern, .*: record it with sites=\('pattern',\)"),
        (lambda: nanopatch.attention(nano, nano.run("a", sites="pattern"), weighted=True), "attention needs v, "),
        (lambda: clean.plot_attention(4), "layer 4 does not exist: this model's are 0 to 3"),
        (lambda: clean.plot_attention(1, -1), "head -1 does not exist"),
        (lambda: clean.plot_attention(1.5), "layer 1.5 does not exist"),
        (lambda: clean.plot_attention(head=1), "head 1 of which layer"),
        (lambda: gradient.plot_attention(), "takes a run, not derivatives"),
        (lambda: batch.plot_attention(), "one prompt, not of a batch of 2"),
        (
            lambda: nanopatch.attention(other, clean),
            "the run is of another model|no run of a whole prompt by this model",
        ),
        (
            lambda: nanopatch.attention(other, lost),
            "the run is of another model|no run of a whole prompt by this model",
        ),
        (lambda: nanopatch.attention(clean, nano), "takes the model, then a run"),
        (lambda: lost.plot_attention(), "this run does not know its model"),
        (lambda: clean.plot_attention(1, 1, ax="x.png"), "plot draws, and writes no file"),
        (lambda: gradient.top(), "derivatives predict no tokens"),
        (lambda: batch.top(), "one prompt, not of a batch of 2"),
        (lambda: nano.run("a", sites="z").top(), r"top needs logits, .*sites=\('logits',\)"),
        (lambda: clean.top(0), "k of at least 1"),
        (lambda: clean.top(3, 11), "position 11: this run has positions 0 to 10"),
        (lambda: clean.top(3, "last"), "position 'last'"),
    ):
        with pytest.raises(NanopatchError, match=message) as caught:
            ask()
        assert "\n" not in str(caught.value)
