"""Direct logit attribution: the parts sum to the run's own logits, in clean, corrupted and patched runs.

Tolerances are relative to the largest size among the parts and the run's logits: a logit difference can be small where
both logits, and many parts, are large, and its rounding is theirs. LayerNorm divides by the standard deviation, and so
makes rounding of a stream with a large mean larger (`steepness`).
"""

import json
import pickle

import numpy as np
import pytest
from conftest import ROOT, models, steepness, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

import nanopatch
from nanopatch import NanopatchError, direct_logit_attribution, record
from nanopatch.lenses import direct
from nanopatch.model.sites import ATTENTION_SITES, SITES
from nanopatch.results.direct import DirectAttribution

ANSWERS, WRONG = [3, 11], [7]
#: Sites that add to the residual stream or come after it: an edit of one is a part of its own.
OWN_PART = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post", "ln_final", "logits")
#: float64: 1e-12. float32: its eps is 5e8 times larger, and sums are over up to six blocks.
CLOSE = {np.dtype(np.float64): 1e-12, np.dtype(np.float32): 2e-5}


def patched(model, tokens, edits, seed=0, size=1.0):
    """A record of a run that is edited at some (site, layer, position)."""
    random = np.random.default_rng(seed)

    def loop():
        for site in model.steps(tokens):
            for name, layer, position in edits:
                if site.name == name and site.layer in (layer, None):
                    row = site.array[:, position] if name in ATTENTION_SITES else site.array[position]
                    row += size * random.normal(0, 1, row.shape).astype(model.dtype)
            yield site

    return record(loop())


def own_diff(run, position=-1):
    """The run's own logit difference: the mean of the answers' logits minus that of the wrong answers'."""
    logits = run.logits[position].astype(np.float64)
    return logits[ANSWERS].mean() - logits[WRONG].mean()


def scale(run, result):
    """What rounding errors are relative to."""
    return float(max(np.abs(result.values).max(), np.abs(run.logits).max(), 1e-30) * steepness(run))


def attribution(model, run, position=-1, split=None):
    return direct_logit_attribution(model, run, ANSWERS, WRONG, position=position, split=split)


def edits_in(result):
    return {name for name in result.names if "edit" in name}


# ---- the sum --------------------------------------------------------------------------------------


@st.composite
def edited(draw):
    """A model of one to six layers, tokens, and up to five edits of any sites."""
    model = draw(models(most_layers=6))
    tokens = draw(st.lists(st.integers(0, model.n_vocab - 1), min_size=1, max_size=5))
    places = st.tuples(st.sampled_from(SITES), st.integers(0, model.n_layer - 1), st.integers(0, len(tokens) - 1))
    return model, tokens, draw(st.lists(places, max_size=5, unique=True))


@given(edited(), st.integers(0, 99), st.floats(1e-3, 1e3))
@settings(max_examples=100)
def test_the_parts_sum_to_the_runs_own_logit_difference(case, seed, size):
    model, tokens, edits = case
    run = patched(model, tokens, edits, seed, size)
    for position in range(len(tokens)):
        result = attribution(model, run, position)
        within = CLOSE[model.dtype] * scale(run, result)
        assert abs(result.total - own_diff(run, position)) <= within
        assert abs(sum(result.parts.values()) - result.total) <= within
        assert abs(list(result.cumulative.values())[-1] - result.total) <= within
        # An edit is a part of its own at its own position, and nothing else is taken for one.
        own = {(name, layer) for name, layer, at in edits if name in OWN_PART and at == position}
        found = {tuple(name.removeprefix("edit of ").split(" ")) for name in edits_in(result)}
        assert found == {(name,) if name in OWN_PART[5:] else (name, str(layer)) for name, layer in own}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("site", SITES)
def test_an_edit_of_each_site_is_a_part_or_inside_one(site, dtype):
    model, tokens = tiny_model(seed=3, dtype=dtype), [1, 2, 3, 4, 5]
    run = patched(model, tokens, [(site, 1, 4)])
    result, plain = attribution(model, run), attribution(model, model.run(tokens))
    within = CLOSE[model.dtype] * scale(run, result)
    assert abs(result.total - own_diff(run)) <= within
    assert abs(result.total - plain.total) > 10 * within or dtype == np.float32  # the edit does something
    name = f"edit of {site}" if site in ("ln_final", "logits") else f"edit of {site} 1"
    assert edits_in(result) == ({name} if site in OWN_PART else set())
    for split in ("mlp 1", "head 1.0"):
        pieces = attribution(model, run, split=split)
        assert abs(pieces.total - result.total) <= within
        assert set(plain.names) - set(pieces.names) == {split}
        of_part = sum(v for n, v in pieces.parts.items() if n not in result.parts)
        assert abs(of_part - result.parts[split]) <= within
        assert pieces.heads == pytest.approx(result.heads, abs=within)
        assert list(pieces.cumulative) == list(result.cumulative)


def test_an_edit_of_z_is_a_piece_of_the_head():
    model, tokens = tiny_model(), [1, 2, 3]
    run = patched(model, tokens, [("z", 1, 2)])
    assert "head 1.0 edit of z" in attribution(model, run, split="head 1.0").names
    assert not edits_in(attribution(model, run, split="head 2.0"))
    assert not edits_in(attribution(model, run, position=1, split="head 1.0"))


# ---- each part, the slowest obvious way -----------------------------------------------------------


def slow_parts(model, run, position):
    """{part: number} of an unpatched run, from sums over single numbers."""
    sigma = np.sqrt(run.resid_post[-1][position].var() + model.config.layer_norm_epsilon)

    def adds(vector):
        out = (vector - vector.mean()) / sigma * model.ln_f.weight
        return np.mean([out @ model.lm_head[a] for a in ANSWERS]) - np.mean([out @ model.lm_head[w] for w in WRONG])

    parts = {"embed": adds(model.wte[run.tokens[position]]), "pos_embed": adds(model.wpe[position])}
    for layer, block in enumerate(model.h):
        for head in range(model.n_head):
            vector = np.zeros(model.d_model)
            for i in range(model.d_head):
                vector += run.z[layer][position, head, i] * block.attn.c_proj.weight[head * model.d_head + i]
            parts[f"head {layer}.{head}"] = adds(vector)
        parts[f"attn bias {layer}"] = adds(block.attn.c_proj.bias)
        vector = np.zeros(model.d_model)
        for i in range(model.d_mlp):
            vector += run.mlp_post[layer][position, i] * block.mlp.c_proj.weight[i]
        parts[f"mlp {layer}"] = adds(vector)
        parts[f"mlp bias {layer}"] = adds(block.mlp.c_proj.bias)
    bias = model.ln_f.bias
    parts["ln_f bias"] = np.mean([bias @ model.lm_head[a] for a in ANSWERS]) - np.mean(
        [bias @ model.lm_head[w] for w in WRONG]
    )
    return parts


@given(models(most_layers=6, dtypes=[np.float64]), st.integers(0, 3))
@settings(max_examples=30)
def test_each_part_is_its_definition(model, position):
    run = model.run([1, 2, 3, 4])
    result, expected = attribution(model, run, position), slow_parts(model, run, position)
    assert list(result.parts) == list(expected)
    assert np.abs(result.values - list(expected.values())).max() <= 1e-12 * scale(run, result)
    assert result.heads[-1, -1] == result.parts[f"head {model.n_layer - 1}.{model.n_head - 1}"]


def test_the_cumulative_sum_is_the_stream_at_the_final_scale():
    model = tiny_model(seed=1)
    run = patched(model, [1, 2, 3, 4], [(site, 1, 3) for site in OWN_PART[:5]])
    result = attribution(model, run)
    sigma = np.sqrt(run.resid_post[-1][-1].var() + model.config.layer_norm_epsilon)

    def at_final_scale(stream):
        out = (stream - stream.mean()) / sigma * model.ln_f.weight
        return out @ (model.lm_head[ANSWERS].mean(axis=0) - model.lm_head[WRONG[0]])

    expected = {"embed": at_final_scale(run.resid_pre[0, -1])}
    for layer in range(model.n_layer):
        expected[f"attn {layer}"] = at_final_scale(run.resid_mid[layer, -1])
        after = run.resid_pre[layer + 1] if layer + 1 < model.n_layer else run.resid_post[layer]
        expected[f"mlp {layer}"] = at_final_scale(after[-1])
    expected["ln_f"] = own_diff(run)
    assert list(result.cumulative) == list(expected)
    assert list(result.cumulative.values()) == pytest.approx(list(expected.values()), rel=1e-11, abs=1e-11)


def test_pieces_are_neurons_and_source_positions():
    model = tiny_model(seed=2)
    run = model.run([1, 2, 3, 4])
    whole = attribution(model, run, 2)
    towards = direct.direction(model, run, 2, ANSWERS, WRONG)
    head, mlp = (attribution(model, run, 2, split=split) for split in ("head 1.1", "mlp 2"))
    rows = model.h[1].attn.c_proj.weight[model.d_head :]
    for key, token in enumerate(("#1", "#2", "#3")):  # position 3 is not seen from position 2
        moved = run.pattern[1, 1, 2, key] * run.v[1, key, 1] @ rows @ towards
        assert head.parts[f"head 1.1 from {key} {token}"] == pytest.approx(moved, rel=1e-10)
    assert len(head.names) == len(whole.names) + 2
    for neuron in range(model.d_mlp):
        added = run.mlp_post[2, 2, neuron] * model.h[2].mlp.c_proj.weight[neuron] @ towards
        assert mlp.parts[f"neuron 2.{neuron}"] == pytest.approx(added, rel=1e-10, abs=1e-12)


# ---- rounding is no edit --------------------------------------------------------------------------


@given(models(most_layers=6), st.integers(0, 2**32 - 1))
@settings(max_examples=40)
def test_an_unpatched_run_has_no_edits(model, seed):
    tokens = np.random.default_rng(seed).integers(0, model.n_vocab, 12)
    run = model.run(tokens)
    for position in (0, 5, 11):
        assert not edits_in(attribution(model, run, position, split="head 0.0"))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nano_has_no_edits(dtype):
    model = nanopatch.load("nano", dtype=dtype)
    tokens = np.random.default_rng(0).integers(0, 50000, 60).tolist()
    run = model.run(tokens)
    for position in (0, 1, 30, 59):
        for split in (f"head {layer}.{head}" for layer in range(4) for head in range(4)):
            assert not edits_in(direct_logit_attribution(model, run, " Paris", " Rome", position, split))


@pytest.mark.parametrize("site", OWN_PART)
def test_a_small_edit_is_found(site):
    """Sums are found to the last digit. Products round by about eps of their size, and what is far above is found."""
    model, tokens = nanopatch.load("nano"), "The capital of France is"
    plain = model.run(tokens)
    clean = getattr(plain, site)[-1] if site in ("ln_final", "logits") else getattr(plain, site)[1, -1]
    index = model.tokenize(" Paris")[0] if site == "logits" else int(np.abs(clean).argmax())
    value = clean[index]

    def loop(to):
        for step in model.steps(tokens):
            if step.name == site and step.layer in (1, None):
                step.array[-1, index] = to
            yield step

    smallest = value + 1e-4 * np.abs(clean).max()
    if site in ("resid_pre", "resid_mid", "resid_post"):
        smallest = np.nextafter(value, np.float32(np.inf))
    result = direct_logit_attribution(model, record(loop(smallest)), " Paris", " Rome")
    assert {name.split(" ")[2] for name in edits_in(result)} == {site}
    assert not edits_in(direct_logit_attribution(model, record(loop(value)), " Paris", " Rome"))  # nothing was changed


# ---- values of PyTorch ----------------------------------------------------------------------------


def reference(path):
    with np.load(path) as stored:
        return {key.removeprefix("float64."): stored[key] for key in stored.files}


def test_nano_against_arrays_of_pytorch():
    """The stored arrays are PyTorch's, in float64. What the parts add is computed from these alone and the weights."""
    model = nanopatch.load("nano", dtype=np.float64)
    theirs = reference(ROOT / "nanopatch" / "data" / "nano_reference.npz")
    jones, smith = model.tokenize(" Jones Smith")
    result = direct_logit_attribution(model, model.run(theirs["tokens"]), " Jones", " Smith")
    final = theirs["resid_post"][-1, -1]
    jacobian = (np.eye(128) - 1 / 128) / np.sqrt(final.var() + 1e-5) * model.ln_f.weight  # of LayerNorm, sigma held
    towards = jacobian @ (model.wte[jones] - model.wte[smith])
    logits = theirs["logits_last"]
    assert result.total == pytest.approx(logits[jones] - logits[smith], rel=1e-9)
    cumulative = [theirs["resid_pre"][0, -1] @ towards]
    for layer in range(4):
        cumulative += [theirs["resid_mid"][layer, -1] @ towards, theirs["resid_post"][layer, -1] @ towards]
        by_head = theirs["z"][layer, -1][:, None] @ model.h[layer].attn.c_proj.weight.reshape(4, 32, 128)
        assert result.heads[layer] == pytest.approx(by_head[:, 0] @ towards, rel=1e-9)
        bias = model.h[layer].mlp.c_proj.bias
        assert result.parts[f"mlp {layer}"] == pytest.approx((theirs["mlp_out"][layer, -1] - bias) @ towards, rel=1e-9)
    assert list(result.cumulative.values())[:-1] == pytest.approx(cumulative, rel=1e-9)


# ---- arguments and files --------------------------------------------------------------------------


def test_one_answer_is_its_logit():
    model = tiny_model()
    run = model.run([1, 2, 3])
    assert direct_logit_attribution(model, run, 5).total == pytest.approx(run.logits[-1, 5], rel=1e-12)
    assert direct_logit_attribution(model, run, 5, position=0).total == pytest.approx(run.logits[0, 5], rel=1e-12)


def test_what_cannot_be_taken_apart():
    model = tiny_model()
    run = model.run([1, 2, 3])
    errors = [
        (dict(answer=None), "give the answer whose logit is to be taken apart"),
        (dict(answer=None, wrong_answer=3), "a wrong answer alone: give the answer too"),
        (dict(answer=[]), "an empty list of answers"),
        (dict(answer=3.5), "an answer is one token, as text or as an id, not 3.5"),
        (dict(answer=[[3]]), r"an answer is one token, as text or as an id, not \[3\]"),
        (dict(answer=29), "token id 29 is outside the vocabulary, 0 to 28"),
        (dict(answer=[3, 4], wrong_answer=4), r"'#4' is there twice in answer=\[3, 4\], wrong_answer=4"),
        (dict(position=3), "position 3: this run has positions 0 to 2, or -1 for the last"),
        (dict(position="x"), "position 'x': this run has positions"),
        (dict(split="mlp 3"), "layer 3 does not exist: this model's are 0 to 2"),
        (dict(split="head 0.2"), "head 2 does not exist: this model's are 0 to 1"),
        (dict(split="embed"), "split takes an MLP or a head, such as 'mlp 3' or 'head 2.1', not 'embed'"),
    ]
    for given_, message in errors:
        with pytest.raises(NanopatchError, match=message):
            direct_logit_attribution(model, run, **{"answer": 3, **given_})


def test_runs_that_do_not_fit():
    model = tiny_model()
    run = model.run([1, 2, 3])
    missing = model.run([1, 2, 3], sites=("resid_pre", "z"))
    errors = [
        (
            missing,
            "needs attn_out, .*, which this run does not hold: record it with sites=.'resid_pre', 'z', 'attn_out'",
        ),
        (model.run([[1, 2, 3]]), "takes the run of one prompt, not of a batch of 1"),
        (model.backward(run, np.ones_like(run.logits)), "takes a run, not derivatives"),
        (record(model.steps_from(0, model.embed([1, 2, 3]))), "needs the tokens of the run"),
        ([1, 2, 3], "takes the model, then a run of it"),
        (tiny_model(seed=1).run([1, 2, 3]), "the run is of another model"),
        (record(tiny_model(seed=1).steps([1, 2, 3])), "the run is of another model"),
        (pickle.loads(pickle.dumps(tiny_model(n_head=3).run([1, 2, 3]))), "no run of a whole prompt by this model"),
        (pickle.loads(pickle.dumps(tiny_model(dtype=np.float32).run([1, 2, 3]))), "float64, not .* and float32"),
        (record(list(nanopatch.generate_steps(model, [1, 2], 2))[1]._sites), "needs resid_pre"),
    ]
    for wrong, message in errors:
        with pytest.raises(NanopatchError, match=message):
            direct_logit_attribution(model, wrong, 3)
    for round in nanopatch.generate_steps(model, [1, 2, 3], 2):
        of_round = record(round)
        if round.number:
            with pytest.raises(NanopatchError, match=r"no run of a whole prompt by this model, whose resid_pre has"):
                direct_logit_attribution(model, of_round, 3)
        else:
            assert direct_logit_attribution(model, of_round, 3).values == pytest.approx(
                direct_logit_attribution(model, run, 3).values
            )


@pytest.mark.parametrize("ending", ["npz", "json"])
def test_a_saved_result_is_the_same(tmp_path, ending):
    model = tiny_model()
    result = attribution(model, patched(model, [1, 2, 3], [("mlp_out", 1, 2)]), split="mlp 0")
    result.save(tmp_path / f"a.{ending}")
    back = DirectAttribution.load(tmp_path / f"a.{ending}")
    assert back.parts == result.parts and back.title == result.title and back.split == "mlp 0"
    assert json.loads(result.to_json())["total"] == result.total
    assert result.to_rows()[0] == {"part": "embed", "value": result.parts["embed"]}


@pytest.mark.parametrize("kind", ["bars", "heads", "cumulative"])
def test_it_is_drawn(kind):
    pytest.importorskip("matplotlib")
    model = tiny_model()
    assert attribution(model, model.run([1, 2])).plot(kind).axes
