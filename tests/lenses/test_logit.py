"""The logit lens: its definition, and what must hold of it exactly."""

import numpy as np
import pytest
from conftest import ROOT, TOLERANCE, models, steepness, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

import nanopatch
from nanopatch import NanopatchError, logit_lens, record
from nanopatch.lenses import logit
from nanopatch.results.lens import LogitLens
from nanopatch.results.view import Difference

ANSWERS, WRONG = [3, 11], [7]


def stream_of(run, n_layer):
    """What the rows of a lens read."""
    for layer in range(n_layer):
        yield f"resid_pre {layer}", run.resid_pre[layer]
        yield f"resid_mid {layer}", run.resid_mid[layer]
    yield f"resid_post {n_layer - 1}", run.resid_post[n_layer - 1]


def slow_logits(model, vector):
    """ln_f and the unembedding of one vector, in float64, one token after the other."""
    vector = vector.astype(np.float64)
    normed = (vector - vector.mean()) / np.sqrt(vector.var() + model.config.layer_norm_epsilon)
    normed = normed * model.ln_f.weight + model.ln_f.bias
    return np.array([normed @ model.lm_head[token].astype(np.float64) for token in range(model.n_vocab)])


@given(models(most_layers=6), st.integers(0, 99), st.booleans())
@settings(max_examples=40)
def test_each_cell_is_its_definition(model, seed, patched):
    """Clean runs and patched ones. Of logits the tolerance is that of runs; of probabilities, twice its exponent."""
    random = np.random.default_rng(seed)

    def loop():
        for site in model.steps(random.integers(0, 29, 4)):
            if patched and site.name in ("resid_pre", "resid_mid", "resid_post", "mlp_out", "pattern"):
                site.array += random.normal(0, 1, site.array.shape)
            yield site

    run = record(loop())
    lens = logit_lens(model, run, ANSWERS, WRONG)
    assert lens.logit_diff.shape == (2 * model.n_layer + 1, 4)
    for i, (name, stream) in enumerate(stream_of(run, model.n_layer)):
        assert lens.rows[i] == name
        for position in range(4):
            logits = slow_logits(model, stream[position])
            within = 5 * TOLERANCE[model.dtype] * np.abs(logits).max() * steepness(run)
            p = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
            best = lens.predicted_ids[i][position]
            assert logits[best] >= logits.max() - within and lens.predicted[i][position] == f"#{best}"
            assert abs(lens.probability[i, position] / p[best] - 1) <= 3 * within
            assert abs(lens.answer_probability[i, position] / p[ANSWERS].sum() - 1) <= 3 * within
            answer = logits[ANSWERS].max()
            likelier = [np.sum(logits > answer + 2 * within), np.sum(logits >= answer - 2 * within)]
            assert likelier[0] <= lens.rank[i, position] <= likelier[1]
            expected = logits[ANSWERS].mean() - logits[WRONG].mean()
            assert abs(lens.logit_diff[i, position] - expected) <= 2 * within


def test_the_last_row_is_the_prediction_of_the_run():
    model = tiny_model()
    run = model.run([1, 2, 3, 4])
    lens = logit_lens(model, run, 3, 7)
    assert lens.predicted_ids[-1] == tuple(run.logits.argmax(axis=-1))
    assert lens.logit_diff[-1] == pytest.approx(run.logits[:, 3] - run.logits[:, 7], rel=1e-12)
    p = np.exp(run.logits) / np.exp(run.logits).sum(axis=-1, keepdims=True)
    assert lens.probability[-1] == pytest.approx(p.max(axis=-1), rel=1e-12)
    assert lens.answer_probability[-1] == pytest.approx(p[:, 3], rel=1e-12)
    assert lens.rank[-1].tolist() == (run.logits > run.logits[:, [3]]).sum(axis=-1).tolist()


@pytest.mark.parametrize("memory", [1, 1000, 2**25])
def test_how_many_rows_at_once_changes_nothing(monkeypatch, memory):
    model, expected = tiny_model(), logit_lens(tiny_model(), tiny_model().run([1, 2, 3]), 3, 7)
    monkeypatch.setattr(logit, "MEMORY", memory)
    lens = logit_lens(model, model.run([1, 2, 3]), 3, 7)
    for name in ("probability", "answer_probability", "rank", "logit_diff"):
        assert getattr(lens, name) == pytest.approx(getattr(expected, name), rel=1e-12)
    assert lens.predicted_ids == expected.predicted_ids


def test_logits_that_overflow_exp():
    model = tiny_model()
    model.lm_head = model.lm_head * 1e5
    lens = logit_lens(model, model.run([1, 2]), 3, 7)
    assert np.isfinite(lens.probability).all() and (lens.probability == 1).any()
    assert (lens.answer_probability == 0).any()


def test_nano_against_arrays_of_pytorch():
    """PyTorch's residual stream, in float64, read here by another formula: ln_f folded into the unembedding."""
    model = nanopatch.load("nano", dtype=np.float64)
    with np.load(ROOT / "nanopatch" / "data" / "nano_reference.npz") as stored:
        tokens, logits = stored["tokens"], stored["float64.logits_last"]
        pre, mid, post = (stored[f"float64.resid_{which}"] for which in ("pre", "mid", "post"))
    stream = np.concatenate([*zip(pre, mid, strict=True)] + [post[-1:]]).reshape(9, 11, 128)
    normed = (stream - stream.mean(axis=-1, keepdims=True)) / np.sqrt(stream.var(axis=-1, keepdims=True) + 1e-5)
    theirs = normed @ (model.wte * model.ln_f.weight).T + model.wte @ model.ln_f.bias  # (9, 11, n_vocab)
    jones, smith = model.tokenize(" Jones Smith")
    lens = logit_lens(model, model.run(tokens), " Jones", " Smith")
    assert lens.logit_diff == pytest.approx(theirs[..., jones] - theirs[..., smith], rel=1e-9, abs=1e-9)
    assert lens.logit_diff[-1, -1] == pytest.approx(logits[jones] - logits[smith], rel=1e-9)
    assert np.array_equal(lens.predicted_ids, theirs.argmax(axis=-1))
    assert np.array_equal(lens.rank, (theirs > theirs[..., [jones]]).sum(axis=-1))
    p = np.exp(theirs - theirs.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    assert lens.probability == pytest.approx(p.max(axis=-1), rel=1e-9)
    assert lens.answer_probability == pytest.approx(p[..., jones], rel=1e-9)


def test_what_it_shows_and_what_is_refused():
    model = tiny_model()
    run = model.run([1, 2, 3])
    lens = logit_lens(model, run)
    assert lens.rank is lens.answer is lens.logit_diff is None
    with pytest.raises(NanopatchError, match="this lens has no rank: make it by logit_lens.model, run, answer=..."):
        lens.show("rank")
    with pytest.raises(NanopatchError, match="a lens shows one of prediction, .*, not 'x'"):
        lens.show("x")
    with pytest.raises(NanopatchError, match="a wrong answer alone: give the answer too"):
        logit_lens(model, run, wrong_answer=7)
    with pytest.raises(NanopatchError, match="'#3' is there twice in answer=3, wrong_answer=3"):
        logit_lens(model, run, 3, 3)
    with pytest.raises(NanopatchError, match="needs resid_mid, which this run does not hold: record it with sites="):
        logit_lens(model, model.run([1, 2, 3], sites=("resid_pre", "resid_post")))
    with pytest.raises(NanopatchError, match="the run is of another model"):
        logit_lens(model, tiny_model(seed=1).run([1, 2, 3]))
    both = logit_lens(model, run, [3, 4], 7)
    assert both.answer == "#3 / #4" and both.show("logit_diff").matrix().signed
    text = str(logit_lens(model, run, 3, 7).show("rank"))
    assert "rank of #3" in text and text.count("\n") == 9  # title, unit, heading, 7 rows


def test_the_difference_of_two_lenses(tmp_path):
    model = tiny_model()
    one, other = (logit_lens(model, model.run(tokens), 3, 7) for tokens in ([1, 2, 3], [1, 5, 3]))
    apart = one.show("logit_diff") - other.show("logit_diff")
    assert np.array_equal(apart.values, one.logit_diff - other.logit_diff)
    assert apart.columns == ("0 #1", "1 #2 / #5", "2 #3") and apart.texts is None
    predictions = one - other  # each cell names both tokens
    for i, row in enumerate(predictions.texts):
        for position, text in enumerate(row):
            pair = one.predicted[i][position], other.predicted[i][position]
            assert text == (pair[0] if pair[0] == pair[1] else " / ".join(pair))
    for ending in ("npz", "json"):
        predictions.save(tmp_path / f"d.{ending}")
        assert Difference.load(tmp_path / f"d.{ending}").texts == predictions.texts
    assert predictions.to_rows()[-1] == {
        "read from": "resid_post 2",
        "position": "2 #3",
        "value": one.probability[-1, -1] - other.probability[-1, -1],
        "text": predictions.texts[-1][-1],
    }
    title = (one.show("rank") - logit_lens(model, model.run([1, 2, 3]), 7).show("rank")).title
    assert title == "logit lens: rank of #3, minus logit lens: rank of #7"
    message = "cannot be subtracted: .* differ in rows, columns or units"
    with pytest.raises(NanopatchError, match=message):
        one - other.show("rank")
    assert apart.plot().get_supxlabel().splitlines() == [
        "this: prompt: #1 #2 #3   model unnamed",
        "other: prompt: #1 #5 #3   model unnamed",
    ]
    assert apart.plot().axes[0].get_xlabel() == "token (this / other where they differ)"
    with pytest.raises(NanopatchError, match="only two results of one kind can be subtracted, not 3"):
        one - 3


@pytest.mark.parametrize("ending", ["npz", "json"])
def test_a_saved_lens_is_the_same(tmp_path, ending):
    model = tiny_model()
    lens = logit_lens(model, model.run([1, 2, 3]), 3, 7).show("rank")
    lens.save(tmp_path / f"lens.{ending}")
    back = LogitLens.load(tmp_path / f"lens.{ending}")
    assert back.text() == lens.text() and back.predicted == lens.predicted and back.to_rows() == lens.to_rows()
    assert np.array_equal(back.probability, lens.probability)


def test_it_is_drawn():
    pytest.importorskip("matplotlib")
    model = tiny_model()
    lens = logit_lens(model, model.run([1, 2, 3]), 3, 7)
    for what in ("prediction", "answer_probability", "rank", "logit_diff"):
        assert lens.show(what).plot().axes


@pytest.mark.parametrize("n_tokens, written", [(3, True), (60, True), (124, False)])
def test_tokens_are_in_the_cells_or_are_said_to_be_left_out(n_tokens, written):
    model = nanopatch.load("nano")
    figure = logit_lens(model, model.run([262] * n_tokens)).plot()
    ax = figure.axes[0]
    assert len(ax.texts) == (9 * n_tokens if written else 0)
    assert ("The tokens of the cells are left out" in figure.get_supxlabel()) is not written
    figure.canvas.draw()
    cell = ax.get_window_extent().width / n_tokens
    two = nanopatch.Panels(dict.fromkeys("ab", logit_lens(model, model.run([262] * n_tokens)))).plot()
    assert [len(own.texts) for own in two.axes[::2]] == [len(ax.texts)] * 2
    assert all(text.get_window_extent().width < cell for text in ax.texts)


def test_ranks_are_whole_numbers():
    model = nanopatch.load("nano")
    lens = logit_lens(model, model.run("The capital of France is"), " Paris").show("rank")
    ranks = [[lens.matrix().cell(*at) for at in np.ndindex(1, 5)], lens.matrix().cell(8, 4)]
    assert ranks == [["29293", "41426", "3947", "3", "2898"], "0"]


def test_the_foot_names_prompt_and_model():
    model = nanopatch.load("nano")
    run = model.run("The capital of France is")
    said = "prompt: The capital of France is   model nano"
    direct = nanopatch.direct_logit_attribution(model, run, " Paris")
    lens, attention = logit_lens(model, run), nanopatch.attention(model, run, 1)
    for figure in (lens.plot(), attention.plot(), *map(direct.plot, ("bars", "heads", "cumulative"))):
        assert said in figure.get_supxlabel().splitlines()
    assert str(direct).splitlines()[1] == said
    panels = nanopatch.Panels({"clean": lens, "look": attention}).plot()
    assert {f"clean: {said}", f"look: {said}"} <= {*panels.get_supxlabel().splitlines()}


def test_bytes_are_no_list_of_ids():
    model = tiny_model()
    for ask in (logit_lens, nanopatch.direct_logit_attribution):
        with pytest.raises(NanopatchError, match="an answer is one token, as text or as an id, not b'x'"):
            ask(model, model.run([1, 2, 3]), b"x")
