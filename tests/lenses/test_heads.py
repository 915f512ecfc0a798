"""Head scores: against definitions written as loops, exact on patterns made by hand, and the known heads of nano."""

import csv
import random
import re

import numpy as np
import pytest
from conftest import ROOT, models, tiny_model
from hypothesis import given
from hypothesis import strategies as st

import nanopatch
from nanopatch import (
    Experiment,
    HeadScores,
    NanopatchError,
    Panels,
    Patch,
    WeightScores,
    ablate,
    composition_scores,
    copying_scores,
    head_scores,
    sweep,
)
from nanopatch.lenses.heads import attention_scores
from nanopatch.results.heads import SCORES

PAIR = Experiment([1, 2, 3, 4], [1, 5, 3, 4], 3, 7)


@pytest.fixture(scope="module")
def nano():
    return nanopatch.load("nano")


def looking_back(distance, n_tokens):
    """A pattern (n_query, n_key) that attends only to the token `distance` before; the first ones to token 0."""
    return np.eye(n_tokens)[np.maximum(0, np.arange(n_tokens) - distance)]


def slow_scores(pattern, tokens, start=0):
    """The scores of one head, a query at a time."""
    found = {name: [] for name in SCORES}
    for i in range(max(1, start), len(tokens)):
        earlier = [j for j in range(i) if tokens[j] == tokens[i]]
        if earlier:
            found["duplicate_token"].append(sum(pattern[i, j] for j in earlier))
            found["induction"].append(sum(pattern[i, j + 1] for j in earlier))
        found["previous_token"].append(pattern[i, i - 1])
        found["first_token"].append(pattern[i, 0])
        found["current_token"].append(pattern[i, i])
    return {name: sum(map(float, values)) / len(values) if values else np.nan for name, values in found.items()}


# ---- one pattern ------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [0, 1, 3])
def test_heads_that_attend_to_one_token(before):
    n_tokens = 2 * 4 + before  # four tokens twice, perhaps something before them
    tokens = [*range(10, 10 + before), 1, 2, 3, 4, 1, 2, 3, 4]
    layer_0 = [looking_back(1, n_tokens), looking_back(4, n_tokens)]
    layer_1 = [looking_back(3, n_tokens), looking_back(0, n_tokens)]
    layer_2 = [looking_back(n_tokens, n_tokens), looking_back(2, n_tokens)]
    scores = attention_scores(np.array([layer_0, layer_1, layer_2]), tokens, n_tokens - 4)
    first = 0.25 * (before == 0)  # of the four queries of the second copy, one has the first token before it
    assert scores["previous_token"].tolist() == [[1, 0], [0, 0], [0, 0]]
    assert scores["duplicate_token"].tolist() == [[0, 1], [0, 0], [first, 0]]
    assert scores["induction"].tolist() == [[0, 0], [1, 0], [0, 0]]
    assert scores["current_token"].tolist() == [[0, 0], [0, 1], [0, 0]]
    assert scores["first_token"].tolist() == [[0, first], [0, 0], [1, 0]]


@given(st.lists(st.integers(0, 3), min_size=2, max_size=9), st.integers(0, 2**32 - 1), st.data())
def test_any_pattern_as_the_loop_over_queries_has_it(tokens, seed, data):
    n = len(tokens)
    start = data.draw(st.integers(0, n - 1))
    pattern = np.tril(np.random.default_rng(seed).random((2, 3, n, n)))
    scores = attention_scores(pattern, tokens, start)
    for layer, head in np.ndindex(2, 3):
        expected = slow_scores(pattern[layer, head], tokens, start)
        for name in SCORES:
            assert scores[name][layer, head] == pytest.approx(expected[name], rel=1e-12, nan_ok=True)


def test_a_token_twice_in_a_row_is_followed_by_itself():
    pattern = np.array([[1.0, 0.0], [0.25, 0.75]])
    scores = attention_scores(pattern, [5, 5])
    assert {name: float(value) for name, value in scores.items()} == {
        "induction": 0.75,
        "previous_token": 0.25,
        "duplicate_token": 0.25,
        "first_token": 0.25,
        "current_token": 0.75,
    }


def test_what_is_no_pattern_or_not_of_these_tokens():
    run = tiny_model().run([1, 2, 3, 1, 2, 3])
    for wrong in (run.scores, run, [[1.0]]):
        with pytest.raises(NanopatchError, match="a run's pattern is expected"):
            attention_scores(wrong, [1, 2, 3, 1, 2, 3])
    for tokens in ([1, 2, 3], [[1, 2, 3, 1, 2, 3]], 6):
        with pytest.raises(NanopatchError, match="^the pattern is 6 x 6 and the tokens have shape .* of one prompt$"):
            attention_scores(run.pattern, tokens)
    for start in (-1, 6, 2.5, None):
        with pytest.raises(NanopatchError, match="^start is .* and there are 6 tokens: give "):
            attention_scores(run.pattern, run.tokens, start)
    with pytest.raises(NanopatchError, match="there are 1 tokens: give at least 2"):
        attention_scores(np.ones((1, 1)), [3])


# ---- a model ----------------------------------------------------------------------------------------


@given(models(), st.lists(st.lists(st.integers(0, 4), min_size=2, max_size=12), min_size=1, max_size=4))
def test_any_prompts_as_the_loop_has_them(model, prompts):
    result = head_scores(model, prompts)
    assert result.prompts == tuple(map(tuple, prompts)) and result.seeds is None
    runs = [model.run(prompt) for prompt in prompts]
    for layer, head in np.ndindex(model.n_layer, model.n_head):
        each = [slow_scores(r.pattern[layer, head], p) for r, p in zip(runs, prompts, strict=True)]
        for name in SCORES:
            known = [scores[name] for scores in each if not np.isnan(scores[name])]
            mean = np.mean(known) if known else np.nan
            spread = np.std(known, ddof=1) if len(known) > 1 else np.nan
            assert getattr(result, name)[layer, head] == pytest.approx(mean, rel=1e-6, nan_ok=True)
            assert result.spread[name][layer, head] == pytest.approx(spread, rel=1e-6, abs=1e-7, nan_ok=True)
    unused = sum(len(set(prompt)) == len(prompt) for prompt in prompts)
    assert result.notes == (
        [
            f"No token is there twice in {unused} of {len(prompts)} prompts: they do not count for induction and "
            "duplicate_token."
        ]
        if unused
        else []
    )


@pytest.mark.parametrize("bos", [False, True])
def test_random_tokens_are_different_and_stand_twice(bos):
    model = tiny_model(bos_token_id=7)
    result = head_scores(model, n_tokens=5, seeds=[3, 1], prepend_bos=bos)
    assert result.seeds == (3, 1) and result.prompts[0] != result.prompts[1]
    for tokens in result.prompts:
        drawn = tokens[bos:]
        assert tokens[:bos] == (7,) * bos and 7 not in drawn
        assert drawn[:5] == drawn[5:] and len(set(drawn)) == 5
    each = [attention_scores(model.run(tokens).pattern, tokens, len(tokens) - 5) for tokens in result.prompts]
    for name, values in result.scores.items():
        assert np.array_equal(values, np.mean([scores[name] for scores in each], axis=0))
        assert np.array_equal(result.spread[name], np.std([scores[name] for scores in each], axis=0, ddof=1))
    first = " after a first token" if bos else ""
    assert result.title == f"attention of each head of unnamed, mean over 5 random tokens, repeated{first} (seeds 3, 1)"
    assert head_scores(model, n_tokens=5, seeds=[3], prepend_bos=bos).prompts == result.prompts[:1]


def test_prompts_may_be_texts_ids_or_a_batch(nano):
    text = "Mary and John. Mary"
    ids = nano.tokenize(text)
    for prompts in (text, [text], ids, ids.tolist(), [ids], ids[None]):
        result = head_scores(nano, prompts)
        assert result.prompts == (tuple(ids),) and result.title == "attention of each head of nano, mean over 1 prompt"
        assert np.isnan(result.spread["first_token"]).all()
    assert len(head_scores(nano, text, prepend_bos=True).prompts[0]) == len(ids) + 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(n_tokens=1), "n_tokens=1: this model has 12 positions and 29 tokens, so give 2 to 6"),
        (dict(), "n_tokens=25: .* give 2 to 6, to be repeated; or give prompts"),
        (dict(n_tokens=6, prepend_bos=True), "n_tokens=6: .* give 2 to 5"),
        (dict(n_tokens=3.0), "n_tokens=3.0: "),
        (dict(n_tokens=3, seeds=[]), r"seeds=\[\]: different whole numbers"),
        (dict(n_tokens=3, seeds=[1, 1]), "seeds=.*: different whole numbers"),
        (dict(n_tokens=3, seeds=[-1]), "seeds=.*: different whole numbers"),
        (dict(n_tokens=3, seeds=5), "seeds=5: different whole numbers"),
        (dict(prompts=[[1, 2]], seeds=[1]), "n_tokens and seeds are about random tokens: leave them out"),
        (dict(prompts=[[1, 2]], n_tokens=3), "n_tokens and seeds are about random tokens: leave them out"),
        (dict(prompts=[[1, 2], [1]]), r"the prompt \[1\] has tokens of shape \(1,\): .* at least 2 tokens"),
        (dict(prompts=[[[1, 2], [3, 4]]]), r"the prompt .* has tokens of shape \(2, 2\)"),
        (dict(prompts=[]), "there are no prompts: give at least one"),
        (dict(prompts=5), "prompts=5: a prompt, or a list of prompts, is expected"),
        (dict(prompts=[[1, 99]]), "token id 99 is outside the vocabulary"),
        (dict(n_tokens=3, beside="z"), "beside='z': a sweep over layer and head is expected"),
        (dict(n_tokens=3, beside=[5]), "beside the scores stand sweeps, .*; not 5"),
    ],
)
def test_what_cannot_be_scored(given, message):
    with pytest.raises(NanopatchError, match=f"^{message}"):
        head_scores(tiny_model(bos_token_id=7), **given)


def test_a_pattern_is_no_model():
    with pytest.raises(NanopatchError, match=r"takes a model, not ndarray; .*\.attention_scores takes a pattern"):
        head_scores(np.ones((1, 1, 4, 4)))


# ---- beside what the heads do -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def beside():
    model = tiny_model()
    effects = ablate(model, PAIR, "z"), sweep(model, PAIR, "z"), sweep(model, PAIR, "v", direction="noise")
    return effects, head_scores(model, n_tokens=4, beside=effects)


def test_effects_stand_beside_the_scores(beside):
    effects, result = beside
    assert dict(result.effects) == dict(zip(("z zero-ablated", "z denoising", "v noising"), effects, strict=True))
    row = result.to_rows()[2 * 1 + 1]
    assert (row["layer"], row["head"]) == (1, 1)
    assert row["induction"] == result.induction[1, 1] and row["induction_spread"] == result.spread["induction"][1, 1]
    assert row["z zero-ablated: logit_diff"] == effects[0].grid[1, 1]
    assert row["z zero-ablated: logit_diff_relative_change"] == effects[0].normalised[1, 1]
    assert row["v noising: logit_diff_normalised"] == effects[2].normalised[1, 1]


def test_the_table_has_a_line_for_each_head(beside, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    _, result = beside
    assert repr(result) == f"<HeadScores: {result.title}; 3 layers x 2 heads>"
    lines = re.sub("[░▒▓█]", " ", result.text()).splitlines()
    assert lines[0] == result.title and lines[1] == "z zero-ablated: logit diff, relative change"
    names = ["induction", "previous", "duplicate", "first", "current", *" ".join(result.effects).split()]
    assert lines[4].split() == names
    for line, (layer, head) in zip(lines[5:11], np.ndindex(3, 2), strict=True):
        label, *values = line.split()
        expected = [*result.scores.values(), *(effect.normalised for effect in result.effects.values())]
        assert label == f"{layer}.{head}"
        assert np.allclose([*map(float, values)], [grid[layer, head] for grid in expected], atol=0.00501)
    worst = max(values.max() for values in result.spread.values())
    assert lines[11] == f"standard deviation over seeds: at most {worst:.2g}"
    assert all(note in lines for note in result.notes)


def test_the_picture_has_a_panel_for_each_score_and_effect(beside):
    effects, result = beside
    panels = [ax for ax in result.plot().axes if ax.images and len(ax.images[0].get_array().shape) == 2]
    titles = [ax.get_title(loc="center") for ax in panels]
    assert titles == [*(name.replace("_", " ") for name in SCORES), *result.effects]
    grids = [*result.scores.values(), *(effect.normalised for effect in effects)]
    assert all(np.array_equal(ax.images[0].get_array(), grid) for ax, grid in zip(panels, grids, strict=True))
    assert {ax.images[0].get_clim() for ax in panels[:5]} == {panels[0].images[0].get_clim()}


@pytest.mark.parametrize("ending", ["npz", "json"])
def test_it_is_saved_and_loaded_whole(beside, tmp_path, ending):
    _, with_effects = beside
    for result in (with_effects, head_scores(tiny_model(), [[1, 2, 3], [4, 5]])):  # the second has NaN
        result.save(tmp_path / f"heads.{ending}")
        loaded = HeadScores.load(tmp_path / f"heads.{ending}")
        assert loaded.to_json() == result.to_json() and loaded.text() == result.text()
        for name in SCORES:
            assert np.array_equal(getattr(loaded, name), getattr(result, name), equal_nan=True)
    result.save(tmp_path / "heads.csv")
    with open(tmp_path / "heads.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6 and float(rows[-1]["first_token"]) == result.first_token[-1, -1]


def test_a_file_whose_fields_do_not_go_together(beside, tmp_path):
    text = beside[1].to_json()
    for old, new in (
        ('"seeds": [0, 1, 2]', '"seeds": [0, 1]'),
        ('"spread": {"induction"', '"spread": {"other"'),
        ('"site": "z", "axes": ["layer", "head"]', '"site": "z", "axes": ["head", "layer"]'),
    ):
        assert old in text
        (tmp_path / "heads.json").write_text(text.replace(old, new, 1), encoding="utf-8")
        with pytest.raises(NanopatchError, match="does not hold a saved HeadScores"):
            HeadScores.load(tmp_path / "heads.json")


def test_sweeps_that_are_not_over_the_heads_of_this_model():
    model, other = tiny_model(), tiny_model(n_layer=2)
    for what in ("resid_pre", Patch("z", axes=("head", "layer")), Patch("z", axes=("layer", "head"), heads=[0])):
        with pytest.raises(NanopatchError, match="sweeps of every layer and head, 3 x 2, one by one, such as Patch"):
            head_scores(model, n_tokens=4, beside=sweep(model, PAIR, what))
    with pytest.raises(NanopatchError, match="sweeps of every layer and head, 3 x 2"):
        head_scores(model, n_tokens=4, beside=sweep(other, PAIR, "z"))
    other = tiny_model()
    other.source = nanopatch.files.Source("other")
    with pytest.raises(NanopatchError, match="is of another model than the scores, which are of unnamed"):
        head_scores(model, n_tokens=4, beside=sweep(other, PAIR, "z"))


def test_effects_of_one_name_are_told_apart():
    model = tiny_model()
    panels = sweep(model, PAIR, "z", metric=["logit_diff", "probability"])
    assert isinstance(panels, Panels)
    names = head_scores(model, n_tokens=4, beside=[*panels.values()]).effects
    assert list(names) == ["z denoising, logit_diff", "z denoising, probability"]
    assert list(head_scores(model, n_tokens=4, beside=panels).effects) == list(panels)  # their own names
    again = [panels["logit_diff"], panels["logit_diff"], nanopatch.attribute(model, PAIR, "z")]
    names = head_scores(model, n_tokens=4, beside=again).effects
    assert list(names) == ["z denoising, logit_diff", "z denoising, logit_diff (2)", "z denoising, attribution"]


# ---- nano -------------------------------------------------------------------------------------------


def readme():
    """(the heads that nano's README names as previous-token heads, its induction heads, its table of heads)."""
    text = (ROOT / "weights" / "nano" / "README.md").read_text(encoding="utf-8")
    named = re.search(r"\*\*Previous token:\*\* (\d)\.(\d) and (\d)\.(\d) ", text)
    layer = re.search(r"\*\*Binding and induction:\*\* all four heads of layer (\d)\.", text)
    previous = [tuple(map(int, named.groups()[:2])), tuple(map(int, named.groups()[2:]))]
    rows = re.findall(r"^\| \d\.\d \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|", text, re.MULTILINE)
    names = ("previous_token", "duplicate_token", "induction")
    columns = zip(names, np.array(rows, float).T.reshape(3, 4, 4), strict=True)
    return previous, [(int(layer[1]), head) for head in range(4)], dict(columns)


def test_the_heads_of_nano_are_those_of_its_readme(nano):
    previous, induction, _ = readme()
    for bos in (False, True):
        scores = head_scores(nano, prepend_bos=bos)
        assert [tuple(at) for at in np.argwhere(scores.previous_token > 0.5).tolist()] == previous
        assert [tuple(at) for at in np.argwhere(scores.induction > 0.5).tolist()] == induction
        assert scores.duplicate_token.max() < 0.1


def test_the_table_of_nanos_readme(nano):
    """The same draws as in `scripts/train_nano.py`, whose table has two decimals."""
    draw = random.Random(5)
    prompts = [draw.sample(range(50256), 25) * 2 for _ in range(50)]
    each = [attention_scores(nano.run(tokens, sites="pattern").pattern, tokens, 25) for tokens in prompts]
    for name, expected in readme()[2].items():
        actual = np.mean([scores[name] for scores in each], axis=0)
        assert actual == pytest.approx(expected, abs=0.0051)  # rounded, and of float32 in another program


def test_what_the_heads_of_nano_look_like_in_their_weights(nano):
    """Its induction heads copy, and of all heads of layer 0 their keys read what the previous-token heads write."""
    previous, induction, _ = readme()
    copying = copying_scores(nano).values
    assert all(copying[head] > 0.8 for head in induction)
    keys = composition_scores(nano, "K").values[0]  # of the heads of layer 0, (n_head, n_layer, n_head)
    for layer, head in induction:
        assert [(0, earlier) for earlier in np.flatnonzero(keys[:, layer, head] > 0.1)] == previous


# ---- the weights alone ------------------------------------------------------------------------------


def full(model, layer, head):
    """W_Q, W_K, W_V (d_model, d_head) and W_O (d_head, d_model) of one head, with the linear part of ln_1 in front."""
    block, d, dh = model.h[layer], model.d_model, model.d_head
    centre = np.eye(d) - 1 / d
    c_attn = block.attn.c_attn.weight.astype(np.float64)
    own = slice(head * dh, (head + 1) * dh)
    reads = [centre @ np.diag(block.ln_1.weight) @ c_attn[:, i * d : (i + 1) * d][:, own] for i in range(3)]
    return *reads, block.attn.c_proj.weight.astype(np.float64)[own] @ centre


@given(models())
def test_copying_as_the_eigenvalues_of_the_whole_circuit(model):
    result = copying_scores(model)
    assert result.values.shape == (model.n_layer, model.n_head)
    w_e, w_u = model.wte.astype(np.float64), model.lm_head.astype(np.float64).T
    w_u = np.diag(model.ln_f.weight) @ (w_u - w_u.mean(axis=1, keepdims=True))  # (d_model, n_vocab)
    for layer, head in np.ndindex(result.values.shape):
        *_, w_v, w_o = full(model, layer, head)
        eigenvalues = np.linalg.eigvals(w_e @ w_v @ w_o @ w_u)  # of (n_vocab, n_vocab)
        expected = eigenvalues.sum().real / np.abs(eigenvalues).sum()
        assert result.values[layer, head] == pytest.approx(expected, abs=1e-5)  # its zeros are not exact


@pytest.mark.parametrize("sign", [1, -1])
def test_a_head_that_passes_its_input_on_copies(sign):
    model = tiny_model(n_head=1, n_layer=1)
    attn = model.h[0].attn
    attn.c_attn.weight[:, 2 * model.d_model :] = np.eye(model.d_model)
    attn.c_proj.weight[...] = sign * np.eye(model.d_model)
    for norm in (model.h[0].ln_1, model.ln_f):
        norm.weight[...] = 1
    assert copying_scores(model).values == pytest.approx(np.array([[sign]]), abs=1e-12)
    attn.c_proj.weight[...] = 0
    assert np.isnan(copying_scores(model).values).all()


@pytest.mark.parametrize("untied", [False, True])
def test_copying_reads_the_unembedding_of_its_own(untied):
    model = tiny_model()
    if untied:
        model.lm_head = -model.wte
    assert copying_scores(model).values == pytest.approx(copying_scores(tiny_model()).values * (-1) ** untied)


@given(models().filter(lambda model: model.n_layer > 1), st.sampled_from("QKV"))
def test_composition_as_the_norms_of_whole_matrices(model, kind):
    values = composition_scores(model, kind).values
    shape = model.n_layer, model.n_head
    assert values.shape == shape * 2
    for l1, h1, l2, h2 in np.ndindex(values.shape):
        *_, w_v, w_o = full(model, l1, h1)
        q, k, v, o = full(model, l2, h2)
        later = {"Q": q @ k.T, "K": k @ q.T, "V": v @ o}[kind]
        expected = np.linalg.norm(w_v @ w_o @ later) / np.linalg.norm(w_v @ w_o) / np.linalg.norm(later)
        assert values[l1, h1, l2, h2] == pytest.approx(expected if l2 > l1 else np.nan, rel=1e-9, nan_ok=True)


def test_weights_that_are_not_finite_or_zero_give_no_number():
    model = tiny_model()
    model.h[1].attn.c_attn.weight[0, 0] = np.nan  # of W_Q, head 0
    model.h[0].attn.c_proj.weight[:6] = 0  # of W_O, head 0
    q = composition_scores(model, "Q").values
    assert np.isnan(q[0, 0]).all() and np.isnan(q[0, :, 1, 0]).all() and np.isfinite(q[0, 1, 1, 1])
    model.h[2].attn.c_attn.weight[0, 24] = np.inf  # of W_V, head 0
    assert np.isnan(copying_scores(model).values).tolist() == [[True, False], [False, False], [True, False]]


def test_the_scores_of_weights_are_shown_and_kept(nano, tmp_path):
    for result in (copying_scores(nano), composition_scores(nano, "V")):
        for ending in ("npz", "json"):
            result.save(tmp_path / f"weights.{ending}")
            loaded = WeightScores.load(tmp_path / f"weights.{ending}")
            assert np.array_equal(loaded.values, result.values, equal_nan=True) and loaded.text() == result.text()
    assert result.text().startswith("V-composition, nano, from the weights alone\n(ratio of norms)\n later head")
    matrix = result.matrix()
    assert matrix.rows == [f"{layer}.{head}" for layer in range(3) for head in range(4)]
    assert matrix.columns == [f"{layer}.{head}" for layer in range(1, 4) for head in range(4)]
    assert matrix.values[4 * 1 + 2, 4 * 2 + 3] == result.values[1, 2, 3, 3]
    assert result.plot().axes[0].get_xlabel() == "later head"
    assert not (result - result).matrix().values[0].any()


def test_what_has_no_composition():
    with pytest.raises(NanopatchError, match='^composition is by "Q", "K" or "V" of the later head, not '):
        composition_scores(tiny_model(), "k")
    with pytest.raises(NanopatchError, match="^a head composes with a head of a later layer, and this model has one"):
        composition_scores(tiny_model(n_layer=1), "K")
    for function, more in ((copying_scores, ()), (composition_scores, ("K",))):
        with pytest.raises(NanopatchError, match=f"^{function.__name__} takes a model, not 5"):
            function(5, *more)
