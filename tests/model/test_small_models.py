"""Two small models of our own, as minGPT and nanoGPT leave theirs, against PyTorch's values of every array.

`scripts/make_small_models.py` trained them, stored the values, and says what the files hold. PyTorch is not needed.
"""

import itertools

import numpy as np
import pytest
from conftest import REFERENCE, assert_close

from nanopatch import NanopatchError, generate, load
from nanopatch.model.sites import SITES
from nanopatch.model.vocabulary import Characters

#: {array: PyTorch's name of it}: PyTorch's model has one array where nanopatch has several.
SAME = {"q_input": "resid_pre", "k_input": "resid_pre", "v_input": "resid_pre", "mlp_in": "resid_mid"}

#: The models, and what must be said of each: nothing of nanoGPT's tells the GELU.
MODELS = {"sorter_mingpt": {}, "names_nanogpt": {"activation_function": "gelu"}}


@pytest.fixture(scope="module")
def sorter():
    return load(REFERENCE / "sorter_mingpt")


@pytest.fixture(scope="module")
def names():
    return load(REFERENCE / "names_nanogpt", activation_function="gelu")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", MODELS)
def test_every_array_is_pytorchs(name, dtype):
    with np.load(REFERENCE / f"{name}.npz") as stored:
        assert {SAME.get(site, site) for site in SITES} | {"tokens"} == set(stored.files)
        run = load(REFERENCE / name, dtype, **MODELS[name]).run(stored["tokens"])
        for site in SITES:
            assert_close(getattr(run, site), stored[SAME.get(site, site)].astype(dtype))


def test_what_the_files_say_of_the_models(sorter, names):
    """minGPT's config.json and nanoGPT's checkpoint say the heads. minGPT's GELU is the tanh form."""
    config = {name: getattr(sorter.config, name) for name in ("n_layer", "n_head", "n_embd", "n_positions")}
    assert config == {"n_layer": 2, "n_head": 2, "n_embd": 12, "n_positions": 9}
    assert sorter.config.activation_function == "gelu_new" and not sorter.config.tie_word_embeddings
    assert sorter.lm_head is not sorter.wte and sorter.vocabulary is None
    assert names.lm_head is names.wte and names.n_vocab == 24
    assert isinstance(names.vocabulary, Characters)
    biases = [names.h[0].attn.c_attn.bias, names.h[1].mlp.c_proj.bias, names.ln_f.bias]
    assert not any(bias.any() for bias in biases)
    with pytest.raises(NanopatchError, match="do not say which GELU"):
        load(REFERENCE / "names_nanogpt")


def test_the_sorter_sorts_everything(sorter):
    """All 243 inputs."""
    inputs = np.array(list(itertools.product(range(3), repeat=5)))
    tokens = inputs
    for _ in range(5):
        following = sorter.run(tokens, sites="logits").logits[:, -1].argmax(axis=-1)
        tokens = np.concatenate([tokens, following[:, None]], axis=1)
    assert np.array_equal(tokens[:, 5:], np.sort(inputs, axis=1))


@pytest.mark.parametrize("line", ["Ann has a cat.\n", "Bob has a dog.\n", "Cid has a hen.\n", "Dee has a fox.\n"])
def test_the_character_model_continues_its_text(names, line):
    assert generate(names, line[:10], 5, as_text=True) == line[10:]
