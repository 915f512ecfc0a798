"""Generation with kept keys and values is generation by running everything again, with edits and without."""

import re

import numpy as np
import pytest
from conftest import TOLERANCE, models, steepness, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

import nanopatch
from nanopatch import NanopatchError, generate, generate_steps
from nanopatch.model.generation import next_token
from nanopatch.model.sites import ATTENTION_SITES, BLOCK_SITES, FINAL_SITES, SITES


@given(models(), st.integers(0, 99))
@settings(max_examples=30)
def test_greedy_is_the_argmax_of_full_runs(model, seed):
    prompt = np.random.default_rng(seed).integers(0, model.n_vocab, 4)
    tokens = list(prompt)
    for token in generate(model, prompt, 5):
        logits = model.run(tokens, sites="logits").logits[-1]
        assert logits[token] >= logits.max() - 1e-5 * np.abs(logits).max()  # a tie may be broken by rounding
        tokens.append(token)


def test_sampling_follows_the_probabilities():
    model = tiny_model()
    logits = model.next_logits([1, 2, 3])
    probabilities = np.exp(logits / 2) / np.exp(logits / 2).sum()
    drawn = [generate(model, [1, 2, 3], 1, temperature=2.0, seed=seed)[0] for seed in range(2000)]
    frequencies = np.bincount(drawn, minlength=model.n_vocab) / 2000
    assert np.abs(frequencies - probabilities).max() < 4 * np.sqrt(probabilities.max() / 2000)  # four standard errors
    assert (
        generate(model, [1], 6, temperature=1.0, seed=5).tolist()
        == generate(model, [1], 6, temperature=1.0, seed=5).tolist()
    )


def test_limits():
    model = tiny_model()
    assert len(generate(model, [1] * 11, 2)) == 2 and len(generate(model, [1], 0)) == 0  # the last one is not read
    with pytest.raises(NanopatchError, match="11 prompt tokens and 3 new tokens: this model reads 12 at most"):
        generate(model, [1] * 11, 3)
    with pytest.raises(NanopatchError, match="n_tokens=-1: a whole number is expected, 0 or above"):
        generate(model, [1], -1)
    with pytest.raises(NanopatchError, match="continues one prompt"):
        generate(model, [[1], [2]], 2)
    with pytest.raises(NanopatchError, match="temperature must be 0 or above, not -1"):
        generate(model, [1], 2, temperature=-1)
    with pytest.raises(NanopatchError, match="seed -1: a whole number is expected, 0 or above"):
        generate(model, [1], 2, seed=-1)
    with pytest.raises(NanopatchError, match="positions 11 to 12 are outside this model's, 0 to 11"):
        model.embed([1, 2], start=11)
    with pytest.raises(NanopatchError, match="first the model, as nanopatch.load gives it, then the prompt"):
        generate([1], model)


# ---- edits ----------------------------------------------------------------------------------------


def row_of(array, name, row):
    """One position's part of an array: a row; of scores and pattern, what one query has."""
    return array[:, row] if name in ATTENTION_SITES else array[row]


def again(model, tokens, edits, number):
    """A run of everything, with the edits of all rounds up to this one, each at its position: [(site, array)].

    edits: (round, site, layer, position, factor, added). An array of a round has as many keys as there were then.
    """
    arrays = []
    for site in model.steps(tokens):
        for of_round, name, layer, position, factor, added in edits:
            if of_round <= number and site.name == name and site.layer in (layer, None):
                part = row_of(site.array, name, position)
                n_keys = position + 1 if name in ATTENTION_SITES else None  # all others are masked
                part[..., :n_keys] *= factor
                part[..., :n_keys] += added
        arrays.append(site)
    return arrays


@st.composite
def edited(draw):
    """A model, a prompt, and edits: (round, site, layer, position, factor, what is added), in any rounds."""
    model = draw(models())
    prompt = draw(st.lists(st.integers(0, 28), min_size=1, max_size=4))
    edits = []
    for name in draw(st.lists(st.sampled_from(SITES), min_size=1, max_size=5)):
        number = draw(st.integers(0, 3))
        position = draw(st.integers(0, len(prompt) - 1)) if number == 0 else len(prompt) + number - 1
        layer = draw(st.integers(0, model.n_layer - 1))
        edits.append((number, name, layer, position, draw(st.floats(-2, 2)), draw(st.floats(-3, 3))))
    if draw(st.booleans()):  # steering: the same in every round, at every position
        name, layer, added = draw(st.sampled_from(["resid_pre", "mlp_out", "z"])), 0, draw(st.floats(-2, 2))
        edits += [(0, name, layer, position, 1, added) for position in range(len(prompt))]
        edits += [(number, name, layer, len(prompt) + number - 1, 1, added) for number in range(1, 4)]
    return model, prompt, edits


@given(edited())
@settings(max_examples=120)
def test_every_edit_equals_the_slow_loop_that_reruns_everything(case):
    """All arrays of every round, within a run's tolerance: of the largest |value|, more where LayerNorm divides."""
    model, prompt, edits = case
    for round in generate_steps(model, prompt, 4):
        sites = []
        tokens = round.tokens
        for site in round:
            for number, name, layer, position, factor, added in edits:
                if number == round.number and site.name == name and site.layer in (layer, None):
                    part = row_of(site.array, name, round.row(position))
                    n_keys = position + 1 if name in ATTENTION_SITES else None
                    part[..., :n_keys] *= factor
                    part[..., :n_keys] += added
            assert site.positions == round.positions and site.tokens is tokens and site.model is model
            sites.append(site)
        slow = again(model, tokens, edits, round.number)
        run = nanopatch.record(slow)
        steep = steepness(run) ** 2
        for ours, theirs in zip(sites, slow, strict=True):
            assert (ours.name, ours.layer) == (theirs.name, theirs.layer)
            rows = range(round.positions.start, round.positions.stop)
            if ours.name in ATTENTION_SITES:
                assert ours.array.shape == (model.n_head, len(rows), rows.stop)
            actual = np.stack([row_of(np.asarray(ours.array), ours.name, round.row(row)) for row in rows])
            expected = np.stack([row_of(np.asarray(theirs.array), theirs.name, row) for row in rows])
            masked = np.isneginf(expected)
            assert np.array_equal(np.isneginf(actual), masked)
            actual, expected = np.where(masked, 0, actual), np.where(masked, 0, expected)
            within = 20 * TOLERANCE[model.dtype] * steep * max(1, np.abs(expected).max(), np.abs(run.resid_post).max())
            assert np.abs(actual - expected).max() <= within, ours
        logits = np.asarray(slow[-1].array)[-1].astype(np.float64)
        assert logits[round.token] >= logits.max() - 2 * within  # a tie may be broken by rounding


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("number", [0, 1, 3])
def test_an_edit_of_each_site_changes_what_comes_after_it(site, number):
    """It acts on the logits of its own round, of no earlier one, and is the same if other sites are not handed over."""
    model, prompt = tiny_model(seed=4), [1, 2, 3]

    def logits_of(edit, sites=None):
        kept = []
        for round in generate_steps(model, prompt, 5, sites=sites):
            for step in round:
                if edit and round.number == number and step.name == site and step.layer in (1, None):
                    step.array[..., -1] = 2.0
                if step.name == "logits":
                    kept.append(step.array[-1].copy())
        return kept

    plain, patched = logits_of(False), logits_of(True)
    for before in range(number):
        assert np.array_equal(plain[before], patched[before])
    if not (site in ("scores", "pattern", "k", "k_input") and number == 0):
        assert not np.allclose(plain[number], patched[number])
    few = logits_of(True, sites=(site, "logits"))
    assert np.allclose(few, patched, rtol=1e-12, atol=1e-12)


def test_without_edits_the_arrays_are_those_of_full_runs():
    model = tiny_model()
    for round in generate_steps(model, [1, 2, 3], 5):
        run = model.run(round.tokens)
        for site in round:
            expected = run[site.name] if site.layer is None else run[site.name][site.layer]
            rows = slice(round.positions.start, None)
            expected = expected[:, rows] if site.name in ATTENTION_SITES else expected[rows]
            np.testing.assert_allclose(np.asarray(site.array), expected, rtol=1e-12, atol=1e-12)


def test_the_prompts_patch_stays_in_later_rounds():
    """An edit of the residual stream in round 0 moves all later tokens through the keys and values alone."""
    model = nanopatch.load("nano")
    italy = model.run("The capital of Italy is")
    for round in generate_steps(model, "The capital of France is", 2):
        for site in round:
            if site.name == "resid_pre" and site.layer == 1 and round.number == 0:
                site.array[3] = italy.resid_pre[1, 3]
    assert model.detokenize(round.tokens) == "The capital of France is Rome."


def test_a_round_that_is_left_early_ends_before_the_next():
    model = tiny_model()
    plain = generate(model, [1, 2, 3], 4)
    tokens = []
    for round in generate_steps(model, [1, 2, 3], 4):
        for site in round:
            if site.name == "z":
                break  # and what is left comes later
        assert round.token is None
        assert next(iter(round)).name == "attn_out"  # carries on where it was left
        tokens.append(round)
    assert [round.token for round in tokens] == plain.tolist()
    assert repr(tokens[0]) == "Round(0: positions 0 to 2)" and repr(tokens[3]) == "Round(3: positions 5)"


def test_an_edit_that_would_be_lost_is_an_error():
    model = tiny_model()
    rounds = list(generate_steps(model, [1, 2, 3], 2))  # all have been run
    with pytest.raises(NanopatchError, match="round 0 has ended, so its arrays can no longer be edited: loop over a"):
        for site in rounds[0]:
            site.array[0] = 0
    steps = generate_steps(model, [1, 2, 3], 2)
    round = next(steps)
    assert len(list(round)) == len(BLOCK_SITES) * 3 + len(FINAL_SITES) and round.token is not None
    with pytest.raises(NanopatchError, match="round 0 has ended"):
        iter(round)
    steps.close()  # nothing is left open
    late = next(iter(generate_steps(model, [1, 2, 3], 2)))
    site, *_ = late
    with pytest.raises(NanopatchError, match="read-only, because the run has moved on"):
        site.array[0] = 0


WRONG_ROWS = {
    "3": "index 3 is out of bounds for axis 0 with size 1",
    "-2": "index -2 is out of bounds for axis 0 with size 1",
    "1:3": "a slice to 3 is out of bounds for 1 rows",
    "-2:": "a slice to -2 is out of bounds for 1 rows",
    "0:4": "a slice to 4 is out of bounds for 1 rows",
    "2:, 0": "a slice to 2 is out of bounds for 1 rows",
    "[0, 2]": "index 2 is out of bounds for axis 0 with size 1",
    "np.arange(3) == 1": "boolean index did not match",
}


@pytest.mark.parametrize("index", WRONG_ROWS)
@pytest.mark.parametrize("how", ["=", "+="])
def test_a_position_that_its_round_does_not_compute(index, how):
    def loop(where, name="resid_pre"):
        for round in generate_steps(tiny_model(), [1, 2, 3], 2):
            for site in round:
                if site.name == name and site.layer == 1 and round.number == 1:
                    exec(f"site.array[{where}] {how} 0.0")

    rows = "; in this round row 0 is position 3, and round.row(position) is the row of a position"
    with pytest.raises(NanopatchError, match=re.escape(WRONG_ROWS[index]) + ".*" + re.escape(rows)) as caught:
        loop(index)
    assert str(caught.value).startswith("Site(resid_pre, layer 1, shape (1, 12)): ")
    if ":" in index:  # the queries of a pattern are its second axis; keys are of all positions so far
        with pytest.raises(NanopatchError, match="is out of bounds for 1 rows"):
            loop(f":, {index.split(',')[0]}", "pattern")
    for right in ("0, 1:3", "..., -5:", "0:1", "-1", ":", "[0]", "np.array([True])"):
        loop(right)
    loop("..., 0:4", "pattern")


def test_rows_of_positions():
    rounds = generate_steps(tiny_model(), [1, 2, 3], 2)
    first, second = next(rounds), next(rounds)
    assert [first.row(position) for position in (0, 2, -1, -3)] == [0, 2, 2, 0]
    assert second.row(3) == second.row(-1) == 0
    for round, position, computes in ((first, 3, "0 to 2"), (second, 2, "3"), (second, -2, "3"), (second, 1.0, "3")):
        with pytest.raises(NanopatchError, match=f"position {position} is not computed in this round, .* {computes}: "):
            round.row(position)


# ---- drawing --------------------------------------------------------------------------------------


def frequencies(logits, draws=4000, **how):
    how = {"temperature": 1.0, "top_k": None, "top_p": 1.0, **how}
    random = np.random.default_rng(0)
    drawn = [next_token(np.asarray(logits), random=random, **how) for _ in range(draws)]
    return np.bincount(drawn, minlength=len(logits)) / draws


def slow_probabilities(logits, temperature, top_k, top_p):
    """Sort, keep the k likeliest, keep the fewest that reach top_p, share what is left."""
    p = np.exp(np.array(logits) / temperature)
    p /= p.sum()
    order = sorted(range(len(p)), key=lambda token: -p[token])[:top_k]
    total, kept, reached = sum(p[token] for token in order), [], 0.0
    for token in order:
        if reached < top_p * total:
            kept.append(token)
        reached += p[token]
    return np.array([p[token] / sum(p[kept]) if token in kept else 0 for token in range(len(p))])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize(("top_k", "top_p"), [(None, 1.0), (2, 1.0), (99, 1.0), (None, 0.6), (3, 0.7), (1, 0.01)])
def test_tokens_are_drawn_with_their_probabilities(temperature, top_k, top_p):
    logits = [0.3, 2.0, -1.0, 1.1, 0.0]
    expected = slow_probabilities(logits, temperature, top_k, top_p)
    found = frequencies(logits, temperature=temperature, top_k=top_k, top_p=top_p)
    assert np.abs(found - expected).max() < 4.5 * np.sqrt(0.25 / 4000)  # more than four standard errors
    assert not found[expected == 0].any()


def test_the_borders_of_top_p():
    """Probabilities 1/2, 1/4, 1/8, 1/8, whose sums are exact."""
    logits = np.log([4, 2, 1, 1])
    for top_p, kept in ((0.5, 1), (0.51, 2), (0.75, 2), (0.76, 3), (1.0, 4)):
        assert np.count_nonzero(frequencies(logits, 300, top_p=top_p)) == kept
    for top_k, kept in ((1, 1), (3, 3), (4, 4)):  # of two equally likely tokens, the first
        assert np.flatnonzero(frequencies(logits, 300, top_k=top_k)).tolist() == list(range(kept))


def test_samples_are_single_draws_with_seeds_that_follow():
    model = tiny_model()
    samples = generate(model, [1, 2], 5, temperature=1.5, n_samples=3, seed=np.uint8(254))
    for i, sample in enumerate(samples):
        assert sample.tolist() == generate(model, [1, 2], 5, temperature=1.5, seed=254 + i).tolist()
    assert len({tuple(sample) for sample in samples}) == 3
    assert generate(model, [1], 3, temperature=1e-9).tolist() == generate(model, [1], 3).tolist()
    assert generate(model, [1], 3, temperature=2.0, top_k=1).tolist() == generate(model, [1], 3).tolist()
    assert [sample.tolist() for sample in generate(model, [1], 3, n_samples=1)] == [generate(model, [1], 3).tolist()]
    nano = nanopatch.load("nano")
    texts = generate(nano, "The capital of France is", 2, n_samples=2, temperature=1e-3, as_text=True)
    assert texts == [" Paris."] * 2
    assert generate(nano, "The capital", 0, as_text=True) == "" and generate(nano, "The capital", 0).shape == (0,)


def test_it_stops_at_a_token():
    nano, prompt = nanopatch.load("nano"), "The capital of France is"
    whole = generate(nano, prompt, 6).tolist()  # " Paris", ".", ...
    dot = nano.tokenize(".")[0]
    assert whole[1] == dot
    for stop in (".", int(dot), np.int64(dot), [dot], ["x", "."], {"."}, np.array([5, dot])):
        assert generate(nano, prompt, 6, stop=stop).tolist() == whole[:2]
    assert generate(nano, prompt, 6, stop=[]).tolist() == generate(nano, prompt, 6, stop=" is").tolist() == whole
    end = generate(nano, prompt, 6, stop="<|endoftext|>").tolist()
    assert end == (whole[: whole.index(50256) + 1] if 50256 in whole else whole)
    assert [round.token for round in list(generate_steps(nano, prompt, 6, stop="."))] == whole[:2]
    model = tiny_model()
    last = generate(model, [1, 2], 4).tolist()
    assert generate(model, [1, 2], 4, stop=last[0]).tolist() == last[:1]


def test_what_cannot_be_generated():
    model, nano = tiny_model(), nanopatch.load("nano")
    errors = [
        (dict(top_p=0), "top_p must be above 0 and at most 1, not 0"),
        (dict(top_p=1.1, temperature=1), "top_p must be above 0 and at most 1, not 1.1"),
        (dict(top_p=float("nan"), temperature=1), "top_p must be above 0 and at most 1, not nan"),
        (dict(top_k=0, temperature=1), "top_k must be a whole number of 1 or more, not 0"),
        (dict(top_k=2.5, temperature=1), "top_k must be a whole number of 1 or more, not 2.5"),
        (dict(top_k=3), "top_k and top_p say what is drawn from, and temperature 0 draws nothing"),
        (dict(top_p=0.5), "top_k and top_p say what is drawn from, and temperature 0 draws nothing"),
        (dict(temperature=float("inf")), "temperature must be 0 or above, not inf"),
        (dict(temperature="1"), "temperature must be 0 or above, not '1'"),
        (dict(n_samples=2), "at temperature 0 all samples are the same: give a temperature above 0"),
        (dict(n_samples=0), "n_samples=0: a whole number of 1 or more is expected"),
        (dict(n_tokens=2.0), "n_tokens=2.0: a whole number is expected, 0 or above"),
        (dict(stop=29), "token id 29 is outside the vocabulary, 0 to 28"),
        (dict(stop=[3, -1]), "token id -1 is outside the vocabulary, 0 to 28"),
        (dict(stop=3.5), "stop=3.5: a token is expected, as text or as an id, or a list of them"),
        (dict(stop=[[3]]), r"stop=\[3\]: a token is expected, as text or as an id, or a list of them"),
        (dict(stop="."), "vocabulary is not known"),
    ]
    for given_, message in errors:
        with pytest.raises(NanopatchError, match=message) as caught:
            generate(model, [1, 2], **{"n_tokens": 2, **given_})
        assert "\n" not in str(caught.value)
    with pytest.raises(
        NanopatchError, match=r"stop='Paris, France' is 3 tokens, \['Paris', ',', ' France'\], and must be"
    ):
        generate(nano, "x", 2, stop="Paris, France")
    with pytest.raises(NanopatchError, match="stop='' is no token"):
        generate(nano, "x", 2, stop="")
    with pytest.raises(NanopatchError, match="unknown site 'resid'"):
        generate_steps(model, [1, 2], 2, sites="resid")
