"""Continuing a prompt, one token after another. The keys and values of earlier positions are kept."""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np

from ..errors import NanopatchError
from ..types import Array, Prompt
from .gpt2 import Model
from .layers import softmax
from .packing import Rows, Segment


def generate(
    model: Model,
    prompt: Prompt,
    n_tokens: int = 20,
    *,
    temperature: float = 0.0,
    seed: int = 0,
    prepend_bos: bool = False,
    special_tokens: bool = False,
    as_text: bool = False,
) -> Array | Any:
    """The token ids (n_tokens,) with which the model continues a prompt, or their text.

    Each token passes through the model once, and attends to the kept keys and values of earlier tokens.

    Parameters
    ----------
    model : Model
    prompt : str, or token ids
    n_tokens : int
        How many tokens to add.
    temperature : float
        0 takes the likeliest token each time. Above 0, tokens are drawn from the softmax of logits / temperature.
    seed : int
        The seed of the random generator that draws the tokens.
    prepend_bos : bool
        Put `<|endoftext|>` before the prompt.
    special_tokens : bool
        Read `<|endoftext|>` inside the text as that token. By default it is ordinary text.
    as_text : bool
        Return a str.

    Raises
    ------
    NanopatchError
        If the prompt and the new tokens together are longer than the model reads, or an argument is out of range.

    Examples
    --------
    >>> import nanopatch
    >>> model = nanopatch.load("nano")
    >>> nanopatch.generate(model, "The capital of France is", 1, as_text=True)
    ' Paris'
    """
    if not isinstance(model, Model):
        raise NanopatchError(f"first the model, as nanopatch.load gives it, then the prompt; not {model!r:.60}")
    tokens = model.tokenize(prompt, prepend_bos=prepend_bos, special_tokens=special_tokens)
    if tokens.ndim != 1:
        raise NanopatchError(f"generate continues one prompt, shape (n_tokens,), not {tokens.shape}")
    if not isinstance(n_tokens, numbers.Integral) or n_tokens < 0:
        raise NanopatchError(f"n_tokens={n_tokens!r}: a whole number is expected, 0 or above")
    if len(tokens) + n_tokens - 1 > model.n_ctx:  # the last new token is not read
        raise NanopatchError(
            f"{len(tokens)} prompt tokens and {n_tokens} new tokens: this model reads {model.n_ctx} at most, and does "
            "not read the last new one"
        )
    if not isinstance(temperature, numbers.Real) or not temperature >= 0:
        raise NanopatchError(f"temperature must be 0 or above, not {temperature!r:.60}")
    random = random_generator(seed)
    nothing = np.zeros((0, model.n_head, model.d_head), model.dtype)
    keys, values = [nothing] * model.n_layer, [nothing] * model.n_layer  # of each layer, (n_past, n_head, d_head)
    generated: list[int] = []
    unseen = tokens
    while len(generated) < n_tokens:
        resid = model.embed(unseen, start=len(keys[0]))
        everything = slice(0, len(unseen))
        for layer in range(model.n_layer):
            past = Segment(range(1), everything, everything, keys[layer], values[layer])
            for site in model.block_steps(layer, resid, sites=("k", "v", "resid_post"), rows=Rows(everything, [past])):
                if site.name == "k":
                    keys[layer] = np.concatenate([keys[layer], site.array])
                elif site.name == "v":
                    values[layer] = np.concatenate([values[layer], site.array])
            resid = np.asarray(site.array)
        logits = model.unembed(resid[-1:])[-1].astype(np.float64)
        # The largest logit becomes 0 before the division, which then cannot make an infinity of it.
        with np.errstate(over="ignore"):
            p = softmax((logits - logits.max()) / temperature) if temperature else None
        token = np.argmax(logits) if p is None else random.choice(model.n_vocab, p=p)
        generated.append(int(token))
        unseen = np.array([token])
    return model.detokenize(generated) if as_text else np.array(generated, np.int64)


def random_generator(seed: Any) -> np.random.Generator:
    """NumPy's random generator for a seed. NanopatchError unless the seed is a whole number of at least 0."""
    if not isinstance(seed, numbers.Integral) or seed < 0:
        raise NanopatchError(f"seed {seed!r}: a whole number is expected, 0 or above")
    return np.random.default_rng(int(seed))
