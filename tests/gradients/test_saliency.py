"""Saliency: derivatives with respect to token embeddings against central differences, and how the result is kept."""

import dataclasses

import numpy as np
import pytest
from conftest import tiny_model

from nanopatch import Experiment, NanopatchError, Saliency, load, saliency
from nanopatch.experiments import MICHELLE

EXPERIMENT = Experiment([1, 2, 3, 4, 5], [1, 9, 3, 8, 5], 3, 7)


def test_saliency_is_the_derivative_with_respect_to_the_embedding():
    model = tiny_model(seed=9)
    result = saliency(model, EXPERIMENT)
    # A central difference of step 1e-5 rounds, in float64, to 1e-11 of the logits, which is the floor where it is 0.
    floor = 1e-9 * float(np.abs(model.run(EXPERIMENT.clean).logits).max())
    assert floor <= 1e-8

    def value(change):
        (final,) = (step.array for step in model.steps_from(0, model.embed([1, 2, 3, 4, 5]) + change, sites="logits"))
        return float(final[-1, 3] - final[-1, 7])

    assert result.value == value(0)
    for position, token in enumerate(EXPERIMENT.clean):
        change = np.zeros((5, model.d_model))
        change[position] = 1e-5 * model.wte[token]
        slope = (value(change) - value(-change)) / 2e-5
        assert result.product[position] == pytest.approx(slope, rel=1e-6, abs=floor)
        gradient = []
        for axis in 1e-5 * np.eye(model.d_model):
            change[position] = axis
            gradient.append((value(change) - value(-change)) / 2e-5)
        assert result.norm[position] == pytest.approx(np.linalg.norm(gradient), rel=1e-6, abs=floor)


def test_saliency_of_a_prompt_asks_about_its_two_likeliest_tokens():
    nano = load("nano")
    tokens = MICHELLE.tokens(nano)
    second = np.argsort(-nano.next_logits(tokens.clean))[1]
    result = saliency(nano, MICHELLE.clean)
    assert str(result) == str(saliency(nano, dataclasses.replace(MICHELLE, wrong_answer=int(second))))
    lines = str(result).splitlines()
    assert len(lines) == len(tokens.clean) + 2 and lines[3].split()[:2] == ["1", "␣Jones"]
    assert result.norm.dtype == np.float64 and result.norm.argmax() == 1  # the surname matters most
    assert saliency(nano, tokens.clean, metric="probability").metric == "probability"


def test_of_a_metric_it_is_the_gradient_of_the_first_residual_stream():
    model = tiny_model(seed=9)
    result = saliency(model, EXPERIMENT, metric=answer_logit)
    run = model.run(EXPERIMENT.clean)
    d_logits = np.zeros_like(run.logits)
    d_logits[-1, 3] = 1
    gradient = model.backward(run, d_logits).resid_pre[0]
    # `answer_logit` is differentiated by differences: of 1e-8 of it, as the metrics' own tests allow.
    floor = 1e-8 * np.abs(gradient).max()
    assert result.metric == "answer_logit" and result.value == run.logits[-1, 3]
    assert np.abs(result.norm - np.linalg.norm(gradient, axis=-1)).max() <= floor * np.sqrt(model.d_model)
    expected = (gradient * model.wte[list(EXPERIMENT.clean)]).sum(axis=-1)
    assert np.abs(result.product - expected).max() <= floor * np.abs(model.wte).sum(axis=-1).max()


def answer_logit(logits):
    return logits[-1, 3]


# ---- how it is shown and kept ---------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["npz", "json"])
def test_a_saved_file_gives_everything_back_to_the_bit(ending, tmp_path):
    result = saliency(tiny_model(seed=9, dtype=np.float32), EXPERIMENT, metric="log_probability")
    product = np.array([-0.0, np.inf, np.nan, 5e-324, 1 / 3])
    strange = dataclasses.replace(result, tokens=(" a", "\n", "é", '"', "\x00"), product=product)
    for saved in (result, strange):
        saved.save(tmp_path / f"saliency.{ending}")
        loaded = Saliency.load(tmp_path / f"saliency.{ending}")
        assert (loaded.tokens, loaded.metric, loaded.value) == (saved.tokens, saved.metric, saved.value)
        for name in ("norm", "product"):
            before, after = getattr(saved, name), getattr(loaded, name)
            assert before.dtype == after.dtype == np.float64 and before.tobytes() == after.tobytes()
        assert loaded.to_dict() == saved.to_dict() and (str(loaded), repr(loaded)) == (str(saved), repr(saved))


@pytest.mark.parametrize("ending", ["npz", "json"])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_a_value_that_is_no_finite_number_is_kept_too(value, ending, tmp_path):
    saved = dataclasses.replace(saliency(tiny_model(), EXPERIMENT), value=value)
    saved.save(tmp_path / f"saliency.{ending}")
    assert Saliency.load(tmp_path / f"saliency.{ending}").value == pytest.approx(value, nan_ok=True)


def test_rows_text_and_picture(tmp_path):
    result = saliency(load("nano"), MICHELLE)
    rows = result.to_rows()
    assert [row["position"] for row in rows] == list(range(len(result.tokens)))
    assert tuple(row["token"] for row in rows) == result.tokens
    assert [row["norm"] for row in rows] == result.norm.tolist()
    assert [row["product"] for row in rows] == result.product.tolist()
    lines = result.to_csv().splitlines()
    assert lines[0] == "position,token,id,norm,product" and len(lines) == 1 + len(rows)
    assert lines[2] == f"1, Jones,5437,{rows[1]['norm']!r},{rows[1]['product']!r}"
    assert str(result).splitlines()[0] == f"logit_diff {result.value:.3f}"
    assert repr(result) == f"<Saliency: logit_diff {result.value:.3f}, {len(rows)} tokens>"
    figure = result.plot()
    (ax,) = figure.axes
    bars = [bar.get_width() or bar.get_height() for bar in ax.patches]
    assert sorted(bars) == sorted(result.product.tolist())
    assert ax.get_title() == f"logit_diff {result.value:.3f}: gradient x embedding of each token"
    assert result.plot(ax) is figure and result._repr_png_().startswith(b"\x89PNG")
    for ending, start in (("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")):
        result.save(tmp_path / f"saliency.{ending}")
        assert (tmp_path / f"saliency.{ending}").read_bytes().startswith(start)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda m: saliency(m, EXPERIMENT, metric="kl_divergence"),
            "and its derivative are 0 in the run patched into, so nothing can be estimated: take more",
        ),
        (lambda m: saliency(m, EXPERIMENT, metric="rank"), "rank has no derivative"),
        (lambda m: saliency(m, "text"), "vocabulary is not known"),
        (lambda m: saliency(m, [[1, 2], [3, 4]]), "one corrupted prompt are expected, not batches"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(NanopatchError, match=message) as error:
        call(tiny_model())
    assert "\n" not in str(error.value)
