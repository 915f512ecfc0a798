"""Head scores: what each head attends to, and what its weights alone say.

d_model, n_head, d_head, n_vocab  as in `nanopatch.model.gpt2`
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np

from ..errors import NanopatchError
from ..experiments.corruption import ABLATIONS
from ..files import Source
from ..model.gpt2 import Model
from ..results.heads import SCORES, HeadScores, WeightScores
from ..results.panels import Panels
from ..results.sweep import Sweep
from ..types import Array, Prompt

#: Of the random tokens, where no prompts are given.
N_TOKENS, SEEDS = 25, (0, 1, 2)
#: Rows of the vocabulary that are turned into float64 at once.
CHUNK = 4096


# ---- what a head attends to -------------------------------------------------------------------------


def head_scores(
    model: Model,
    prompts: Prompt | Sequence[Prompt] | None = None,
    *,
    n_tokens: int = N_TOKENS,
    seeds: Sequence[int] = SEEDS,
    prepend_bos: bool = False,
    special_tokens: bool = False,
    beside: Sweep | Panels | Sequence[Sweep | Panels] = (),
) -> HeadScores:
    """How much each head attends to the previous token, to a duplicate token, to the token after a duplicate, ...

    `attention_scores` says which attention counts for each score. Without prompts, `n_tokens` different random tokens
    are drawn from the whole vocabulary for each seed, and repeated once. There, only the queries of the second copy
    count. To draw from other tokens, give prompts of token ids; then all queries count.

    Parameters
    ----------
    model : Model
    prompts : str, token ids, or a list of them, optional
        Each prompt is scored alone, so they may differ in length.
    n_tokens : int
        The number of random tokens that are repeated, at least 2.
    seeds : sequence of int
        One draw of random tokens for each.
    prepend_bos : bool
        Put `<|endoftext|>` before each prompt and before random tokens, which never contain it.
    special_tokens : bool
        Read `<|endoftext|>` inside the text as that token.
    beside : Sweep, Panels or a list of them
        What patching or ablating each head does, over the axes layer and head. A score says what a head looks like, an
        effect what it does: the two need not agree.

    Returns
    -------
    HeadScores
        `induction`, `previous_token`, `duplicate_token`, `first_token` and `current_token`, (n_layer, n_head) each:
        means over the prompts. `spread` has their standard deviations over the prompts.

    Raises
    ------
    NanopatchError
        If a prompt has fewer than two tokens, the random tokens do not fit into the model, or a sweep is not over all
        layers and heads of this model.

    References
    ----------
    Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits" (previous-token and induction heads).
    Olsson et al. 2022, arXiv 2209.11895 (the scores on repeated random tokens). Wang et al. 2022, arXiv 2211.00593
    (duplicate-token heads).

    Examples
    --------
    >>> import nanopatch
    >>> model, michelle = nanopatch.load("nano"), nanopatch.experiments.MICHELLE
    >>> scores = nanopatch.head_scores(model)
    >>> (scores.induction > 0.5).nonzero()
    (array([1, 1, 1, 1]), array([0, 1, 2, 3]))
    >>> effects = [nanopatch.ablate(model, michelle, "z"), nanopatch.sweep(model, michelle, "z")]
    >>> list(nanopatch.head_scores(model, beside=effects).effects)
    ['z zero-ablated', 'z denoising']
    """
    if not isinstance(model, Model):
        raise NanopatchError(
            f"head_scores takes a model, not {type(model).__name__}; nanopatch.lenses.heads.attention_scores takes a "
            "pattern"
        )
    if prompts is None:
        seeds = _seeds(seeds)
        given = [_repeated(model, n_tokens, seed, prepend_bos) for seed in seeds]
    else:
        if n_tokens is not N_TOKENS or seeds is not SEEDS:
            raise NanopatchError("n_tokens and seeds are about random tokens: leave them out where prompts are given")
        given = _prompts(model, prompts, prepend_bos, special_tokens)
    values: dict[str, list[Array]] = {name: [] for name in SCORES}  # (n_layer, n_head) for each prompt that counts
    for tokens in given:
        start = len(tokens) - n_tokens if prompts is None else 0
        counted = [name for name, keys in _targets(tokens, start).items() if keys.any()]
        layers = [attention_scores(s.array, tokens, start) for s in model.steps(tokens, sites="pattern")]
        for name in counted:
            values[name].append(np.array([layer[name] for layer in layers]))
    unknown = np.full((model.n_layer, model.n_head), np.nan)
    return HeadScores(
        **{name: np.mean(v, axis=0) if v else unknown for name, v in values.items()},
        spread={name: np.std(v, axis=0, ddof=1) if len(v) > 1 else unknown for name, v in values.items()},
        prompts=tuple(tuple(map(int, tokens)) for tokens in given),
        seeds=tuple(map(int, seeds)) if prompts is None else None,
        source=model.source or Source("unnamed"),
        effects=_named(beside),
    )


def attention_scores(pattern: Array, tokens: Sequence[int] | Array, start: int = 0) -> dict[str, Array]:
    """The scores of one pattern: for each, a mean over queries of the attention to certain keys.

    Parameters
    ----------
    pattern : ndarray, (..., n_query, n_key)
        As a run of one prompt has it: (n_layer, n_head, n_tokens, n_tokens).
    tokens : sequence of int
        The prompt's token ids, (n_tokens,).
    start : int
        Queries before this position do not count. Query 0 never counts, because it can attend only to itself.

    Returns
    -------
    dict of str to ndarray, float64 (...) each
        `induction`: attention to the positions j + 1, where j is an earlier position with the query's token. Queries
        without such a j do not count. (Where a token stands twice in a row, j + 1 is the query itself.)
        `previous_token`: attention to the position before the query.
        `duplicate_token`: attention to the positions j.
        `first_token`: attention to position 0.
        `current_token`: attention to the query itself.
        NaN where no query counts.

    Raises
    ------
    NanopatchError
        If it is not a pattern of these tokens, or no query is left.

    Examples
    --------
    >>> import nanopatch
    >>> from nanopatch.lenses.heads import attention_scores
    >>> run = nanopatch.load("nano").run("Michelle Jones. Jones")
    >>> attention_scores(run.pattern, run.tokens)["duplicate_token"].shape
    (4, 4)
    """
    if not isinstance(pattern, np.ndarray) or pattern.ndim < 2 or pattern.min(initial=0) < 0:  # scores have -inf
        raise NanopatchError(f"a run's pattern is expected, (n_layer, n_head, n_query, n_key), not {pattern!r:.60}")
    shape = np.shape(tokens)
    if pattern.shape[-2:] != (*shape, *shape):
        raise NanopatchError(
            f"the pattern is {pattern.shape[-2]} x {pattern.shape[-1]} and the tokens have shape {shape}: give the "
            "pattern and the tokens of a run of one prompt"
        )
    if not isinstance(start, Integral) or not 0 <= start < shape[0] or shape[0] < 2:
        raise NanopatchError(
            f"start is {start!r:.40} and there are {shape[0]} tokens: give at least 2 tokens, and a start that leaves "
            "a query"
        )
    scores = {}
    for name, keys in _targets(np.asarray(tokens), int(start)).items():
        n_queries = keys.any(axis=-1).sum()
        total = np.einsum("...qk,qk->...", pattern, keys, dtype=np.float64)
        scores[name] = total / n_queries if n_queries else np.full(pattern.shape[:-2], np.nan)
    return scores


def _targets(tokens: Array, start: int) -> dict[str, Array]:
    """The keys that count for each score, bool (n_query, n_key); a query without such keys does not count."""
    n = len(tokens)
    same = np.tril(tokens[:, None] == tokens, k=-1)
    after = np.zeros_like(same)
    after[:, 1:] = same[:, :-1]
    position = np.arange(n)
    targets = {
        "induction": after,
        "previous_token": position[:, None] == position + 1,
        "duplicate_token": same,
        "first_token": np.broadcast_to(position == 0, (n, n)),
        "current_token": position[:, None] == position,
    }
    counts = (position >= max(start, 1))[:, None]
    return {name: targets[name] & counts for name in SCORES}


def _seeds(seeds: Any) -> tuple[int, ...]:
    known = tuple(seeds) if isinstance(seeds, Iterable) and not isinstance(seeds, str) else ()
    whole = all(isinstance(seed, Integral) and not isinstance(seed, bool) and int(seed) >= 0 for seed in known)
    if not known or not whole or len(set(known)) < len(known):
        raise NanopatchError(f"seeds={seeds!r:.60}: different whole numbers of at least 0 are expected, at least one")
    return known


def _repeated(model: Model, n_tokens: Any, seed: int, prepend_bos: bool) -> Array:
    """Different random tokens, twice over."""
    others = np.arange(model.n_vocab)
    others = others[others != model.config.bos_token_id]
    most = min((model.n_ctx - bool(prepend_bos)) // 2, len(others))
    if not isinstance(n_tokens, Integral) or isinstance(n_tokens, bool) or not 2 <= int(n_tokens) <= most:
        raise NanopatchError(
            f"n_tokens={n_tokens!r:.40}: this model has {model.n_ctx} positions and {model.n_vocab} tokens, so give 2 "
            f"to {most}, to be repeated; or give prompts"
        )
    drawn = np.random.default_rng(seed).choice(others, int(n_tokens), replace=False)
    return model.tokenize(np.tile(drawn, 2), prepend_bos=prepend_bos)


def _prompts(model: Model, prompts: Any, prepend_bos: bool, special_tokens: bool) -> list[Array]:
    """The tokens of each prompt."""
    if not isinstance(prompts, Iterable):
        raise NanopatchError(f"prompts={prompts!r:.60}: a prompt, or a list of prompts, is expected")
    prompts = prompts if isinstance(prompts, str) else list(prompts)
    one = isinstance(prompts, str) or (len(prompts) > 0 and all(isinstance(item, Integral) for item in prompts))
    several = [prompts] if one else prompts
    if not several:
        raise NanopatchError("there are no prompts: give at least one, or none for random tokens")
    found = [model.tokenize(p, prepend_bos=prepend_bos, special_tokens=special_tokens) for p in several]
    for prompt, tokens in zip(several, found, strict=True):
        if tokens.ndim != 1 or len(tokens) < 2:
            raise NanopatchError(
                f"the prompt {prompt!r:.60} has tokens of shape {tokens.shape}: head scores need prompts of at least 2 "
                "tokens, (n_tokens,) each"
            )
    return found


def _named(beside: Any) -> Mapping[str, Sweep]:
    """The sweeps by name: the names that `Panels` give them, or what was done. Of the same name, the metric too."""
    items = [beside] if isinstance(beside, (Sweep, Panels)) else beside
    if not isinstance(items, (list, tuple)):
        raise NanopatchError(f"beside={beside!r:.60}: a sweep over layer and head is expected, or a list of sweeps")
    pairs: list[tuple[str, Any]] = []
    for item in items:
        pairs += item.sweeps().items() if isinstance(item, Panels) else [(_what(item), item)]
    names = [name for name, _ in pairs]
    longer = [(name if names.count(name) == 1 else f"{name}, {s.metric}", s) for name, s in pairs]
    named: dict[str, Sweep] = {}
    for name, s in longer:
        named[name if name not in named else f"{name} ({len(named) + 1})"] = s
    return named


def _what(effect: Any) -> str:
    """What a sweep did, in a few words."""
    if not isinstance(effect, Sweep):
        raise NanopatchError(
            f"beside the scores stand sweeps, such as sweep(model, experiment, 'z'); not {effect!r:.60}"
        )
    if isinstance(effect.corruption, ABLATIONS):
        done = f"{effect.corruption.name}-ablated"
    else:
        done = "denoising" if effect.base == "corrupted" else "noising"
    return f"{effect.site} {done}" + ("" if effect.method == "patching" else f", {effect.method}")


# ---- what the weights alone say ---------------------------------------------------------------------
# LayerNorm subtracts the mean, divides by sigma, and multiplies by its gain. The first and the last are linear, so they
# are folded into the weights that read its output. sigma is a positive number of each position: it is left out, and the
# scores, which are ratios, do not depend on one factor for all positions. Biases are left out too: they do not depend
# on the input.


def copying_scores(model: Model) -> WeightScores:
    """How much each head copies: whether, through its OV circuit, a token raises the logit of the same token.

    The OV circuit of a head is the (n_vocab, n_vocab) matrix W_E W_V W_O W_U: what attending to each token adds to each
    logit. The score is the sum of its eigenvalues over the sum of their sizes: 1 for a head that copies, -1 for one
    that lowers the logits of what it attends to. The eigenvalues that are not 0 are those of a product of d_head x
    d_head.

    The gains of ln_1 and ln_f are folded in, and so are the means that they subtract: all that reads the residual
    stream reads it through them. The unembedding is centred over the vocabulary, because softmax does not depend on
    what is added to all logits. The embedding is wte alone: what earlier blocks make of a token is not in it.

    Returns
    -------
    WeightScores
        `values` is (n_layer, n_head), from -1 to 1; NaN for a head whose circuit is 0.

    References
    ----------
    Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits", section "Summarizing OV/QK
    Matrices".

    Examples
    --------
    >>> import nanopatch
    >>> nanopatch.copying_scores(nanopatch.load("nano")).values.shape
    (4, 4)
    """
    _check_model(model, "copying_scores")
    scores = np.full((model.n_layer, model.n_head), np.nan)
    with np.errstate(invalid="ignore", over="ignore"):  # of weights that are not finite, or nearly: NaN
        unembed_embed = np.zeros((model.d_model, model.d_model))  # W_U W_E, summed over the vocabulary
        mean_unembedding = model.lm_head.mean(axis=0, dtype=np.float64)
        for first in range(0, model.n_vocab, CHUNK):
            rows = slice(first, first + CHUNK)
            unembed_embed += (model.lm_head[rows] - mean_unembedding).T @ model.wte[rows].astype(np.float64)
        unembed_embed *= model.ln_f.weight[:, None]
        for layer in range(model.n_layer):
            *_, w_v, w_o = _head_weights(model, layer)
            circuits = w_o @ unembed_embed @ w_v  # (n_head, d_head, d_head)
            finite = np.isfinite(circuits).all(axis=(-2, -1), keepdims=True)  # others have no eigenvalues: NaN
            eigenvalues = np.linalg.eigvals(np.where(finite, circuits, 0))  # (n_head, d_head)
            sizes = np.abs(eigenvalues).sum(axis=-1)
            np.divide(eigenvalues.real.sum(axis=-1), sizes, out=scores[layer], where=sizes > 0)
    return WeightScores("OV copying", scores, model.source or Source("unnamed"))


def composition_scores(model: Model, kind: str) -> WeightScores:
    """How much of what one head writes a later head reads: by its queries, its keys or its values.

    The score is ||A B|| / (||A|| ||B||), with Frobenius norms: A = W_V W_O is the OV circuit of the earlier head, and B
    that of the later one: W_Q W_K^T for "Q", W_K W_Q^T for "K", W_V W_O for "V". Two random matrices have a score
    above 0 too: compare pairs of heads with each other.

    The gain of ln_1 is folded into W_Q, W_K and W_V, and what it subtracts, the mean, is taken out of the weights.

    Parameters
    ----------
    model : Model
        Of at least two layers.
    kind : str
        "Q", "K" or "V".

    Returns
    -------
    WeightScores
        `values` is (n_layer, n_head, n_layer, n_head), the earlier head first; NaN where the second head is not in a
        later layer, or one of the circuits is 0.

    References
    ----------
    Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits", section "Two-Layer Attention-Only
    Transformers".

    Examples
    --------
    >>> import nanopatch
    >>> scores = nanopatch.composition_scores(nanopatch.load("nano"), "K").values
    >>> bool(scores[0, [1, 3], 1].mean() > scores[0, [0, 2], 1].mean())  # what the previous-token heads wrote
    True
    """
    _check_model(model, "composition_scores")
    if not isinstance(kind, str) or kind not in ("Q", "K", "V"):
        raise NanopatchError(f'composition is by "Q", "K" or "V" of the later head, not {kind!r:.60}')
    if model.n_layer < 2:
        raise NanopatchError("a head composes with a head of a later layer, and this model has one layer")
    scores = np.full((model.n_layer, model.n_head, model.n_layer, model.n_head), np.nan)
    with np.errstate(invalid="ignore", over="ignore"):  # of weights that are not finite, or nearly: NaN
        # ||X Y|| = ||R Y|| where X = Q R, so that all products but one are of d_head x d_head.
        circuits = [_circuits(*_head_weights(model, layer), kind) for layer in range(model.n_layer)]
        for later, (*_, reads, r_later, norm_later) in enumerate(circuits):
            for earlier, (r_v, w_o, norm_ov, *_) in enumerate(circuits[:later]):
                inner = np.tensordot(w_o, reads, (2, 1)).swapaxes(1, 2)  # (n_head, n_head, d_head, d_head)
                product = r_v[:, None] @ inner @ np.swapaxes(r_later, -1, -2)
                norms = norm_ov[:, None] * norm_later  # (n_head, n_head): earlier, later
                np.divide(_norm(product), norms, out=scores[earlier, :, later], where=norms > 0)
    return WeightScores(f"{kind}-composition", scores, model.source or Source("unnamed"))


def _circuits(w_q: Array, w_k: Array, w_v: Array, w_o: Array, kind: str) -> tuple[Array, ...]:
    """Of each head of a layer: R of W_V, W_O, the norm of W_V W_O; and of what `kind` reads: W, R of the rest, norm."""
    r_v, r_o = _r(w_v), _r(np.swapaxes(w_o, -1, -2))
    reads, rest = {"Q": (w_q, _r(w_k)), "K": (w_k, _r(w_q)), "V": (w_v, r_o)}[kind]
    norm_ov, norm_reads = _norm(r_v @ np.swapaxes(r_o, -1, -2)), _norm(_r(reads) @ np.swapaxes(rest, -1, -2))
    return r_v, w_o, norm_ov, reads, rest, norm_reads


def _head_weights(model: Model, layer: int) -> tuple[Array, Array, Array, Array]:
    """W_Q, W_K, W_V, (n_head, d_model, d_head) each, and W_O, (n_head, d_head, d_model), in float64; see above."""
    block = model.h[layer]
    c_attn = block.ln_1.weight.astype(np.float64)[:, None] * block.attn.c_attn.weight  # (d_model, 3 d_model)
    by_head = c_attn.reshape(model.d_model, 3, model.n_head, model.d_head).transpose(1, 2, 0, 3)
    w_q, w_k, w_v = _centred(by_head)
    w_o = block.attn.c_proj.weight.astype(np.float64).reshape(model.n_head, model.d_head, model.d_model)
    return w_q, w_k, w_v, w_o - w_o.mean(axis=-1, keepdims=True)


def _centred(weight: Array) -> Array:
    """Weights that read a vector whose mean is subtracted: (..., d_model, n_out)."""
    centred: Array = weight - weight.mean(axis=-2, keepdims=True)
    return centred


def _r(weight: Array) -> Array:
    """R of weight = Q R, (..., d_head, d_head)."""
    return np.linalg.qr(weight, mode="r")  # type: ignore[return-value]  # for a stack, NumPy's types say otherwise


def _norm(matrices: Array) -> Array:
    norms: Array = np.linalg.norm(matrices, axis=(-2, -1))
    return norms


def _check_model(model: Any, what: str) -> None:
    if not isinstance(model, Model):
        raise NanopatchError(f"{what} takes a model, not {model!r:.60}")
