"""Continuing a prompt, one token after another. The keys and values of earlier positions are kept.

Generation is a loop over rounds, each a loop over the sites of the positions that it computes: all of the prompt in the
first round, the newest token alone in each later one. So an edit is the same assignment as everywhere.
"""

from __future__ import annotations

import numbers
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..errors import NanopatchError
from ..types import Array, Prompt, Sites
from .gpt2 import Model
from .layers import softmax
from .packing import Continued, Rows
from .sites import FINAL_SITES, Site, known_sites


class Round:
    """One round of generation: a loop over it hands over the sites of its positions, and then its token is known.

    Attributes
    ----------
    number : int
        0 for the round that reads the prompt.
    positions : range
        What it computes. Row i of an array is position `positions[i]`; `scores` and `pattern` have these as queries,
        and all positions so far as keys.
    tokens : ndarray, (n_tokens,)
        The prompt and what was generated, this round's token included once it is chosen.
    token : int or None
        The token that follows; None until the loop over the round has ended.

    A round runs once. A second loop over it carries on where the first was left, and is an error once the round has
    ended.
    """

    def __init__(self, number: int, positions: range, tokens: Array, sites: Iterator[Site]) -> None:
        self.number, self.positions, self.tokens = number, positions, tokens
        self.token: int | None = None
        self._sites = sites

    def __iter__(self) -> Iterator[Site]:
        if self.token is not None:
            raise NanopatchError(
                f"round {self.number} has ended, so its arrays can no longer be edited: loop over a round's sites "
                "before the next round, and once"
            )
        return self._sites

    def row(self, position: int) -> int:
        """The row of a position in this round's arrays. NanopatchError if the round does not compute it."""
        n_tokens = self.positions.stop
        at = position + n_tokens if isinstance(position, numbers.Integral) and position < 0 else position
        if at not in self.positions:
            raise NanopatchError(
                f"position {position!r:.40} is not computed in this round, which computes {_span(self.positions)}: "
                "edit it in the round that does"
            )
        return int(at) - self.positions.start

    def __repr__(self) -> str:
        return f"Round({self.number}: positions {_span(self.positions)})"


def generate_steps(
    model: Model,
    prompt: Prompt,
    n_tokens: int = 20,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    stop: Any = None,
    seed: int = 0,
    prepend_bos: bool = False,
    special_tokens: bool = False,
    sites: Sites = None,
) -> Iterator[Round]:
    """Continue a prompt, round by round, so that arrays can be edited on the way.

    An edit reaches the positions of its own round from there on, and all later rounds: keys and values are kept as the
    edited arrays give them. It does not reach positions of earlier rounds, which are not computed again. So an edit in
    round 0 patches the prompt, and an edit in every round (steering) acts at all positions.

    Parameters
    ----------
    model : Model
    prompt, n_tokens, temperature, top_k, top_p, stop, seed, prepend_bos, special_tokens
        As for `generate`.
    sites : str or iterable of str, optional
        Names to hand over, all by default. Without `ln_final` and `logits` only the last position is unembedded.

    Yields
    ------
    Round
        One for each new token. What is left of a loop over its sites is done before the next round.

    Raises
    ------
    NanopatchError
        As `generate`; and where an edit is of a position that its round does not compute.

    References
    ----------
    Steering: Turner et al. 2023, "Activation Addition", arXiv 2308.10248.

    Examples
    --------
    >>> import nanopatch
    >>> model = nanopatch.load("nano")
    >>> italy = model.run("The capital of Italy is")
    >>> for round in nanopatch.generate_steps(model, "The capital of France is", 2):
    ...     for site in round:
    ...         if site.name == "resid_pre" and site.layer == 1 and round.number == 0:
    ...             site.array[3] = italy.resid_pre[1, 3]  # the patch
    >>> model.detokenize(round.tokens)
    'The capital of France is Rome.'
    """
    if not isinstance(model, Model):
        raise NanopatchError(f"first the model, as nanopatch.load gives it, then the prompt; not {model!r:.60}")
    names = known_sites(sites)
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
    check_drawing(temperature, top_k, top_p)
    stops = _stop_tokens(model, stop)
    return _rounds(model, tokens, int(n_tokens), temperature, top_k, top_p, stops, random_generator(seed), names)


def _rounds(
    model: Model,
    tokens: Array,
    n_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float,
    stops: frozenset[int],
    random: np.random.Generator,
    names: frozenset[str],
) -> Iterator[Round]:
    nothing = np.zeros((0, model.n_head, model.d_head), model.dtype)
    keys, values = [nothing] * model.n_layer, [nothing] * model.n_layer  # of each layer, (n_past, n_head, d_head)

    def sites_of(round: Round) -> Iterator[Site]:
        """The sites of a round, in the order of the forward pass; then its token is chosen."""
        start, unseen = round.positions.start, round.tokens[round.positions.start :]
        resid = model.embed(unseen, start=start)
        for layer in range(model.n_layer):
            rows = Rows(slice(None), [Continued(keys[layer], values[layer])])
            steps = model.block_steps(layer, resid, sites=names | {"k", "v", "resid_post"}, rows=rows)
            for site in steps:
                if site.name in names:
                    site.tokens, site.model, site.positions = round.tokens, model, round.positions
                    yield site
                if site.name == "k":  # as it is after the edits
                    keys[layer] = np.concatenate([keys[layer], np.asarray(site.array)])
                elif site.name == "v":
                    values[layer] = np.concatenate([values[layer], np.asarray(site.array)])
            resid = np.asarray(site.array)
        last = resid if names & set(FINAL_SITES) else resid[-1:]
        for site in model.steps_from(model.n_layer, last, sites=names | {"logits"}):
            if site.name in names:
                site.tokens, site.model, site.positions = round.tokens, model, round.positions
                yield site
        round.token = next_token(np.asarray(site.array)[-1], temperature, top_k, top_p, random)
        round.tokens = np.append(round.tokens, round.token)

    start = 0
    for number in range(n_tokens):
        round = Round(number, range(start, len(tokens)), tokens, iter(()))
        round._sites = sites_of(round)
        yield round
        token = _finished(round)  # what the caller has left of it
        start, tokens = len(tokens), round.tokens
        if token in stops:
            return


def generate(
    model: Model,
    prompt: Prompt,
    n_tokens: int = 20,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    stop: Any = None,
    n_samples: int | None = None,
    seed: int = 0,
    prepend_bos: bool = False,
    special_tokens: bool = False,
    as_text: bool = False,
) -> Array | Any:
    """The token ids (n_tokens,) with which the model continues a prompt, or their text.

    Each token passes through the model once, and attends to the kept keys and values of earlier tokens.
    `generate_steps` does the same with its arrays in your hands.

    Parameters
    ----------
    model : Model
    prompt : str, or token ids
    n_tokens : int
        How many tokens to add.
    temperature : float
        0 takes the likeliest token each time. Above 0, tokens are drawn from the softmax of logits / temperature.
    top_k : int, optional
        Draw from the k likeliest tokens only (Fan et al. 2018, arXiv 1805.04833).
    top_p : float
        Draw from the fewest likeliest tokens whose probabilities add up to at least this, in (0, 1] (nucleus sampling;
        Holtzman et al. 2020, arXiv 1904.09751). After top_k.
    stop : int, str or a list of them, optional
        Tokens after which to stop. The one that came is the last of the result.
    n_samples : int, optional
        Return a list of so many continuations, with the seeds `seed`, `seed + 1`, ...
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
    if n_samples is not None and (not isinstance(n_samples, numbers.Integral) or n_samples < 1):
        raise NanopatchError(f"n_samples={n_samples!r}: a whole number of 1 or more is expected")
    if n_samples is not None and n_samples > 1 and not temperature:
        raise NanopatchError("at temperature 0 all samples are the same: give a temperature above 0")
    random_generator(seed)  # its check
    samples = []
    for sample in range(n_samples or 1):
        rounds = generate_steps(
            model,
            prompt,
            n_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            stop=stop,
            seed=int(seed) + sample,
            prepend_bos=prepend_bos,
            special_tokens=special_tokens,
            sites=(),
        )
        ids = [_finished(round) for round in rounds]
        samples.append(model.detokenize(ids) if as_text else np.array(ids, np.int64))
    return samples[0] if n_samples is None else samples


def _finished(round: Round) -> int:
    """Run a round to its end; its token."""
    for _ in round._sites:
        pass
    assert round.token is not None
    return round.token


def next_token(logits: Array, temperature: float, top_k: int | None, top_p: float, random: np.random.Generator) -> int:
    """The token that follows logits (n_vocab,): the likeliest one at temperature 0, else one drawn."""
    logits = logits.astype(np.float64)
    if not temperature:
        return int(np.argmax(logits))
    # The largest logit becomes 0 before the division, which then cannot make an infinity of it.
    with np.errstate(over="ignore"):
        p = softmax((logits - logits.max()) / temperature)
    if top_k is not None or top_p < 1:
        best = np.argsort(-p, kind="stable")[:top_k]  # of equally likely ones, the first
        sums = np.cumsum(p[best])
        best = best[: 1 + np.count_nonzero(sums[:-1] < top_p * sums[-1])]  # until the sum is at least top_p
        kept = np.zeros_like(p)
        kept[best] = p[best] / p[best].sum()
        p = kept
    return int(random.choice(len(p), p=p))


def check_drawing(temperature: Any, top_k: Any, top_p: Any) -> None:
    """Raise NanopatchError if a number that says how tokens are drawn is out of range, or would be ignored."""
    if not isinstance(temperature, numbers.Real) or not 0 <= float(temperature) < np.inf:
        raise NanopatchError(f"temperature must be 0 or above, not {temperature!r:.60}")
    if top_k is not None and (not isinstance(top_k, numbers.Integral) or isinstance(top_k, bool) or top_k < 1):
        raise NanopatchError(f"top_k must be a whole number of 1 or more, not {top_k!r:.60}")
    if not isinstance(top_p, numbers.Real) or not 0 < float(top_p) <= 1:
        raise NanopatchError(f"top_p must be above 0 and at most 1, not {top_p!r:.60}")
    if not temperature and (top_k is not None or top_p < 1):
        raise NanopatchError(
            "top_k and top_p say what is drawn from, and temperature 0 draws nothing: give one above 0"
        )


def _stop_tokens(model: Model, stop: Any) -> frozenset[int]:
    """Token ids of the tokens to stop after, given as ids, texts of one token, or a list of them."""
    if stop is None:
        return frozenset()
    found = set()
    for one in [stop] if isinstance(stop, (str, bytes)) or not np.iterable(stop) else list(stop):
        if not isinstance(one, (str, numbers.Integral)) or isinstance(one, bool):
            raise NanopatchError(f"stop={one!r:.60}: a token is expected, as text or as an id, or a list of them")
        # <|endoftext|> is what people stop at, and here it is meant as the token.
        if one == "":
            raise NanopatchError("stop='' is no token: give one, as text or as an id")
        ids = model.tokenize(one if isinstance(one, str) else [int(one)], special_tokens=True).tolist()
        if len(ids) != 1:
            raise NanopatchError(f"stop={one!r:.60} is {len(ids)} tokens, {model.token_strings(ids)}, and must be one")
        found.add(ids[0])
    return frozenset(found)


def _span(positions: range) -> str:
    return str(positions.start) if len(positions) == 1 else f"{positions.start} to {positions.stop - 1}"


def random_generator(seed: Any) -> np.random.Generator:
    """NumPy's random generator for a seed. NanopatchError unless the seed is a whole number of at least 0."""
    if not isinstance(seed, numbers.Integral) or seed < 0:
        raise NanopatchError(f"seed {seed!r}: a whole number is expected, 0 or above")
    return np.random.default_rng(int(seed))
