"""Generation with kept keys and values is generation by running everything again."""

import numpy as np
import pytest
from conftest import models, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

from nanopatch import NanopatchError
from nanopatch.model.generation import generate


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
