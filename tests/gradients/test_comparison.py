"""Exact patching and its estimate side by side, as a result: what it says, and how it is kept."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import tiny_model

from nanopatch import (
    Comparison,
    EdgeScores,
    Experiment,
    NanopatchError,
    Panels,
    Patch,
    Paths,
    Resample,
    Saliency,
    Sweep,
    attribute,
    edge_attribution,
    saliency,
    sweep,
)
from nanopatch.files import Source

EXPERIMENT = Experiment([1, 2, 3, 4, 5], [1, 9, 3, 8, 5], 3, 7)
OTHERS = [[1, 2, 3, 4, 6], [7, 2, 8, 4, 5], [3, 3, 1, 8, 5]]


def compare(model, experiments, site="resid_pre", steps=1, **asked):
    exact = sweep(model, experiments, site, **asked)
    return Comparison(exact, attribute(model, experiments, site, steps=steps, **asked))


SEVERAL = [EXPERIMENT, Experiment([1, 2, 6, 4, 5], [1, 2, 7, 4, 5], 3, 7), Experiment([1], [2], 3, 7)]


def test_comparison_with_exact_patching():
    model = tiny_model(seed=5)
    comparison = compare(model, EXPERIMENT)
    x, y = sweep(model, EXPERIMENT).grid.ravel(), attribute(model, EXPERIMENT).grid.ravel()
    assert comparison.correlation == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-12)
    (label, exact, estimate), *_ = comparison.worst()
    worst = np.abs(x - y).argmax()
    assert (exact, estimate) == (x[worst], y[worst])
    layer, position = divmod(worst, 5)
    assert label == f"layer {layer}, position {comparison.exact.column_labels[position]}"
    assert f"correlation with exact patching {comparison.correlation:.3f}" in str(comparison)
    assert comparison._repr_png_().startswith(b"\x89PNG")
    (ax,) = comparison.plot().axes
    points = ax.collections[0].get_offsets()
    assert np.allclose(points, np.column_stack([x, y]))
    assert [text.get_text() for text in ax.texts] == ["1", "2", "3"]
    foot = comparison.plot().get_supxlabel()
    assert f"worst cells:\n1  {label}\n" in foot and "normalised" not in foot
    assert ax.get_title().startswith(f"attribution:\n{comparison.exact.title}\ncorrelation ")
    assert comparison.slope == pytest.approx(np.cov(x, y)[0, 1] / np.var(x, ddof=1), rel=1e-9, abs=1e-12)
    line = ax.lines[0].get_xydata()
    assert (line[:, 0] == line[:, 1]).all()  # the identity
    with pytest.raises(NanopatchError, match="exact and estimate differ in site: 'attn_out' and 'mlp_out'"):
        Comparison(sweep(model, EXPERIMENT, "attn_out"), attribute(model, EXPERIMENT, "mlp_out"))
    with pytest.raises(NanopatchError, match="a comparison takes two sweeps, of one site, direction and metric"):
        compare(model, EXPERIMENT, ["z", "q"])


@pytest.mark.parametrize("ending", ["npz", "json"])
@pytest.mark.parametrize(
    ("experiments", "asked"),
    [
        (EXPERIMENT, dict(site="z", metric="log_probability", direction="noise", steps=2)),
        (Experiment([9, 8, 1, 5, 6], [7, 2, 5, 6], 3, 7, align="diff"), dict(site="resid_pre")),  # blank cells
        (SEVERAL, dict(site="attn_out", corruption=Resample(OTHERS, seed=1))),
    ],
    ids=["one pair", "aligned", "several"],
)
def test_a_saved_comparison_gives_everything_back_to_the_bit(experiments, asked, ending, tmp_path):
    comparison = compare(tiny_model(seed=5, dtype=np.float32), experiments, **asked)
    comparison.save(tmp_path / f"comparison.{ending}")
    loaded = Comparison.load(tmp_path / f"comparison.{ending}")
    for name in ("exact", "estimate"):
        before, after = getattr(comparison, name), getattr(loaded, name)
        for field in ("grid", "unchanged", "standard_error"):
            was, array = getattr(before, field), getattr(after, field)
            assert (was is None) == (array is None)
            if was is not None:
                there = ~np.isnan(was)
                assert was.dtype == array.dtype and np.array_equal(np.isnan(array), ~there)
                assert was[there].tobytes() == array[there].tobytes()
        assert after.to_dict() == before.to_dict() and after.title == before.title
    assert (loaded.correlation, loaded.slope) == (comparison.correlation, comparison.slope)
    assert loaded.worst(9) == comparison.worst(9) and np.array_equal(loaded.cells, comparison.cells)
    assert loaded.to_dict() == comparison.to_dict() and loaded.to_rows() == comparison.to_rows()
    assert (str(loaded), repr(loaded)) == (str(comparison), repr(comparison))


def test_rows_and_text_of_a_comparison(tmp_path):
    comparison = compare(tiny_model(seed=5), EXPERIMENT, "z")
    rows = comparison.to_rows()
    assert [{name: row[name] for name in row if name != "estimate"} for row in rows] == comparison.exact.to_rows()
    assert [row["logit_diff"] for row in rows] == comparison.exact.grid.ravel().tolist()
    assert [row["estimate"] for row in rows] == comparison.estimate.grid.ravel().tolist()
    comparison.save(tmp_path / "comparison.csv")
    lines = (tmp_path / "comparison.csv").read_text(encoding="utf-8").splitlines()
    assert lines == comparison.to_csv().splitlines() and lines[0] == ",".join(rows[0]) and len(lines) == 1 + len(rows)
    assert str(comparison).splitlines()[0] == comparison.estimate.title
    assert repr(comparison).startswith(f"<Comparison: {comparison.estimate.title}; correlation ")
    assert comparison.to_dict()["estimate"] == comparison.estimate.to_dict()
    for ending, start in (("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")):
        comparison.save(tmp_path / f"comparison.{ending}")
        assert (tmp_path / f"comparison.{ending}").read_bytes().startswith(start)


KINDS = {
    "sweep": (Sweep, lambda model: sweep(model, EXPERIMENT)),
    "panels": (Panels, lambda model: sweep(model, EXPERIMENT, ["z"])),
    "comparison": (Comparison, lambda model: compare(model, EXPERIMENT)),
    "edges": (EdgeScores, lambda model: edge_attribution(model, EXPERIMENT)),
    "saliency": (Saliency, lambda model: saliency(model, EXPERIMENT)),
}


@pytest.mark.parametrize("ending", ["npz", "json"])
@pytest.mark.parametrize("name", KINDS)
def test_a_file_of_another_kind_of_result_is_refused_by_name(name, ending, tmp_path):
    kind, make = KINDS[name]
    result, path = make(tiny_model()), tmp_path / f"x.{ending}"
    result.save(path)
    assert kind.load(path).to_dict() == result.to_dict()
    for other, (other_kind, _) in KINDS.items():
        if other != name:
            message = f"does not hold a saved {other_kind.__name__} .*it holds {name}, not {other}"
            with pytest.raises(NanopatchError, match=message) as error:
                other_kind.load(path)
            assert "\n" not in str(error.value)


def test_a_comparison_is_of_a_sweep_and_then_of_its_own_estimate():
    model = tiny_model(seed=5)
    exact, estimate = sweep(model, EXPERIMENT, "z"), attribute(model, EXPERIMENT, "z")
    for pair in ((estimate, exact), (exact, exact)):
        with pytest.raises(NanopatchError, match="first the result of sweep, then that of attribute, are expected"):
            Comparison(*pair)
    one, other = (Patch("z", axes="layer", heads=[head]) for head in (0, 1))
    with pytest.raises(NanopatchError, match="exact and estimate differ in chosen"):
        Comparison(sweep(model, EXPERIMENT, one), attribute(model, EXPERIMENT, other))
    free = Paths("head", "logits", "free")
    with pytest.raises(NanopatchError, match="exact and estimate differ in between"):
        Comparison(sweep(model, EXPERIMENT, Paths("head", "logits")), attribute(model, EXPERIMENT, free))
    with pytest.raises(NanopatchError, match="exact and estimate differ in source"):
        Comparison(exact, replace(estimate, source=Source("another")))
    assert Comparison(exact, estimate).worst(-1) == []


def test_rows_of_different_questions_are_not_put_into_one():
    """Their columns have one name, and the last would win."""
    model = tiny_model(seed=5)
    paths = sweep(model, EXPERIMENT, [Paths("head 0", "logits"), Paths("head 0", "logits", "free")])
    pairs = Panels(a=sweep(model, EXPERIMENT), b=sweep(model, SEVERAL[1]))
    for panels in (paths, pairs):
        assert [row["logit_diff"] for row in panels.to_rows()] == [v for s in panels.values() for v in s.grid.ravel()]


def test_what_are_no_panels():
    for panels, message in [(Panels(), "there are no panels"), (Panels(a=3), "panels are sweeps, .*not 3 by 'a'")]:
        for use in (panels.text, panels.plot, panels.to_csv):
            with pytest.raises(NanopatchError, match=message):
                use()
