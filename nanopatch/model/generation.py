"""Continuing a prompt, one token after another, with the keys and values of earlier positions kept."""

import numbers

import numpy as np

from ..errors import NanopatchError
from .layers import softmax
from .packing import Segment


def generate(model, prompt, n_tokens=20, *, temperature=0.0, seed=0, prepend_bos=False):
    """The token ids (n_tokens,) with which the model continues a prompt.

    temperature: 0 takes the likeliest token each time; above, tokens are drawn from the softmax of
    logits / temperature, by the random generator of `seed`. Each token passes through the model once,
    against the kept keys and values of those before. Raises NanopatchError where the prompt and the
    new tokens together are longer than the model reads.
    """
    tokens = model.tokenize(prompt, prepend_bos=prepend_bos)
    if tokens.ndim != 1:
        raise NanopatchError(f"generate continues one prompt, shape (n_tokens,), not {tokens.shape}")
    if n_tokens < 0 or len(tokens) + n_tokens > model.n_ctx:
        raise NanopatchError(
            f"{len(tokens)} tokens of prompt and {n_tokens} new ones: this model reads {model.n_ctx} at most, in all"
        )
    if not temperature >= 0:
        raise NanopatchError(f"temperature is 0 or above, not {temperature}")
    random = random_generator(seed)
    nothing = np.zeros((0, model.n_head, model.d_head), model.dtype)
    keys, values = [nothing] * model.n_layer, [nothing] * model.n_layer  # of each layer, (n_past, n_head, d_head)
    generated, unseen = [], tokens
    while len(generated) < n_tokens:
        resid = model.embed(unseen, start=len(keys[0]))
        everything = slice(0, len(unseen))
        for layer in range(model.n_layer):
            part = Segment(range(1), everything, everything, keys[layer], values[layer])
            for site in model.block_steps(layer, resid, sites=("k", "v", "resid_post"), parts=[part]):
                if site.name == "k":
                    new_keys = site.array
                elif site.name == "v":
                    new_values = site.array
            resid = site.array
            keys[layer] = np.concatenate([keys[layer], new_keys])
            values[layer] = np.concatenate([values[layer], new_values])
        logits = model.unembed(resid[-1:])[-1].astype(np.float64)
        token = random.choice(model.n_vocab, p=softmax(logits / temperature)) if temperature else np.argmax(logits)
        generated.append(int(token))
        unseen = np.array([token])
    return np.array(generated, np.int64)


def random_generator(seed):
    """NumPy's random generator of a seed; NanopatchError for what is none."""
    if not isinstance(seed, numbers.Integral) or seed < 0:
        raise NanopatchError(f"seed {seed!r}: a whole number is expected, 0 or above")
    return np.random.default_rng(seed)
