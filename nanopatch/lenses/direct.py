"""Direct logit attribution: how much each part of the residual stream adds to a logit, or to a difference of logits.

d_model, n_head, d_head  as in `nanopatch.model.gpt2`
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np

from ..errors import NanopatchError
from ..files import Source
from ..model.gpt2 import Model
from ..model.layers import affine
from ..model.sites import Run, check_position
from ..model.tokenizer import visible
from ..results.direct import DirectAttribution
from ..types import Array
from .given import Answer, answer_ids, answer_text, check_head, check_layer, check_run

SITES = ("resid_pre", "z", "attn_out", "resid_mid", "mlp_out", "resid_post")
#: Two arrays that differ by more than this, as a share of their largest |value|, in units of their dtype's eps, differ
#: by an edit. A product of matrices, done in another order, is this close.
ROUNDING = 1000


def direct_logit_attribution(
    model: Model,
    run: Run,
    answer: Answer,
    wrong_answer: Answer = None,
    position: int = -1,
    split: str | None = None,
) -> DirectAttribution:
    """A logit, or a difference of two, as a sum over the embeddings, every head, every MLP and every bias.

    The final LayerNorm is taken as linear, at the scale sigma that it has in this run: a part c of the residual stream
    adds ((c - mean(c)) / sigma) . (gamma * (W_U[answer] - W_U[wrong_answer])). Its own bias is a part too. So the parts
    sum to the logit difference exactly. Nothing is left out, and there is no remainder.

    Parameters
    ----------
    model : Model
    run : Run
        Of one prompt: clean, corrupted or patched. It holds resid_pre, z, attn_out, resid_mid, mlp_out, resid_post. If
        it was patched there, each edit is a part of its own, such as `edit of resid_pre 3`: what was put in, minus what
        the parts before it had written.
    answer, wrong_answer : str, int or a list of them
        Without a wrong answer, the answer's logit. Of a list, the mean of the logits.
    position : int
        Where the logits are read; by default at the last token.
    split : str, optional
        A part to take apart further: "mlp 3" into its neurons (the run holds mlp_post), "head 2.1" into what it moved
        from each position (the run holds pattern and v).

    Returns
    -------
    DirectAttribution
        `parts` maps each part's name to its number.

    Raises
    ------
    NanopatchError
        If the run does not hold these arrays (it says which sites to record), or if an answer, the position or the
        part to split does not exist.

    References
    ----------
    Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits".

    Examples
    --------
    >>> import nanopatch
    >>> model = nanopatch.load("nano")
    >>> run = model.run("The capital of France is")
    >>> result = nanopatch.direct_logit_attribution(model, run, " Paris", " Rome")
    >>> max(result.parts, key=result.parts.get)
    'head 1.3'
    """
    tokens = check_run(model, run, (*SITES, *_sites_of(model, split)), "direct_logit_attribution")
    position = check_position(len(tokens), position)
    ids, wrong_ids = answer_ids(model, answer), answer_ids(model, wrong_answer)
    if not ids:
        raise NanopatchError("give the answer whose logit is to be taken apart")
    towards = direction(model, run, position, ids, wrong_ids)
    names, values = [], []
    for name, part in _parts(model, run, tokens, position):
        pieces = _pieces(model, run, tokens, position, name) if name == split else [(name, part)]
        for piece, vector in pieces:  # (d_model,) each
            names.append(piece)
            values.append(float(vector.astype(np.float64) @ towards))
    ln_f_bias = model.ln_f.bias.astype(np.float64)
    return DirectAttribution(
        tokens=tuple(model.token_strings(tokens)),
        ids=tuple(map(int, tokens)),
        position=position,
        answer=str(answer_text(model, ids)),
        wrong_answer=answer_text(model, wrong_ids),
        names=(*names, "ln_f bias"),
        values=np.array([*values, float(ln_f_bias @ _unembedding(model, ids, wrong_ids))]),
        n_layer=model.n_layer,
        n_head=model.n_head,
        split=split,
        source=model.source or Source("unnamed"),
    )


def direction(model: Model, run: Run, position: int, ids: Sequence[int], wrong_ids: Sequence[int]) -> Array:
    """The vector (d_model,), in float64, whose product with a part of the residual stream is what the part adds.

    It is gamma * (W_U[answer] - W_U[wrong_answer]) / sigma, minus its mean: LayerNorm takes the mean out of every part.
    """
    final = run.resid_post[-1][position].astype(np.float64)
    sigma = np.sqrt(final.var() + model.config.layer_norm_epsilon)
    towards = model.ln_f.weight * _unembedding(model, ids, wrong_ids) / sigma
    centred: Array = towards - towards.mean()
    return centred


def _unembedding(model: Model, ids: Sequence[int], wrong_ids: Sequence[int]) -> Array:
    """W_U[answer] - W_U[wrong_answer], (d_model,), in float64."""
    rows = model.lm_head.astype(np.float64, copy=False) if model.dtype == np.float64 else model.lm_head
    difference: Array = rows[list(ids)].mean(axis=0, dtype=np.float64)
    return difference - rows[list(wrong_ids)].mean(axis=0, dtype=np.float64) if wrong_ids else difference


def _parts(model: Model, run: Run, tokens: Array, position: int) -> Iterator[tuple[str, Array]]:
    """(name, vector) of everything that is added to the residual stream at a position, in order; (d_model,) each.

    An edit is what was recorded, minus what the forward pass had made of the arrays before it.
    """
    embed, pos_embed = model.wte[tokens[position]], model.wpe[position]
    yield "embed", embed
    yield "pos_embed", pos_embed
    before, knows_neurons = embed + pos_embed, "mlp_post" in run.names
    for layer, block in enumerate(model.h):
        resid_pre, resid_mid = run.resid_pre[layer][position], run.resid_mid[layer][position]
        attn_out, mlp_out = run.attn_out[layer][position], run.mlp_out[layer][position]
        yield from _edit(f"edit of resid_pre {layer}", resid_pre, before)

        for head in range(model.n_head):
            yield f"head {layer}.{head}", run.z[layer][position, head] @ w_o(model, layer, head)
        yield f"attn bias {layer}", block.attn.c_proj.bias
        written = affine(run.z[layer][position].reshape(1, -1), *block.attn.c_proj)[0]
        yield from _edit(f"edit of attn_out {layer}", attn_out, written)
        yield from _edit(f"edit of resid_mid {layer}", resid_mid, resid_pre + attn_out)

        bias = block.mlp.c_proj.bias
        written = (
            affine(run.mlp_post[layer][position][None], block.mlp.c_proj.weight, bias)[0] if knows_neurons else mlp_out
        )
        yield f"mlp {layer}", written - bias
        yield f"mlp bias {layer}", bias
        yield from _edit(f"edit of mlp_out {layer}", mlp_out, written)
        before = run.resid_post[layer][position]
        yield from _edit(f"edit of resid_post {layer}", before, resid_mid + mlp_out)


def _edit(name: str, recorded: Array, made: Array) -> Iterator[tuple[str, Array]]:
    """What an edit added, if there was one."""
    size = max(float(np.abs(recorded).max()), float(np.abs(made).max()))
    if np.abs(recorded - made).max() > ROUNDING * np.finfo(recorded.dtype).eps * size:
        yield name, recorded.astype(np.float64) - made


def w_o(model: Model, layer: int, head: int) -> Array:
    """A head's rows of c_proj, (d_head, d_model)."""
    rows: Array = model.h[layer].attn.c_proj.weight.reshape(model.n_head, model.d_head, model.d_model)[head]
    return rows


# ---- one part in pieces ---------------------------------------------------------------------------


def _split(model: Model, split: str) -> tuple[str, int, int]:
    """("mlp", layer, 0) or ("head", layer, head) of a part to split; NanopatchError for another."""
    match = re.fullmatch(r"mlp (\d+)|head (\d+)\.(\d+)", split) if isinstance(split, str) else None
    if match is None:
        raise NanopatchError(f"split takes an MLP or a head, such as 'mlp 3' or 'head 2.1', not {split!r:.60}")
    if match[1] is not None:
        return "mlp", check_layer(model.n_layer, int(match[1])), 0
    return "head", check_layer(model.n_layer, int(match[2])), check_head(model.n_head, int(match[3]))


def _sites_of(model: Model, split: str | None) -> tuple[str, ...]:
    """The arrays that the pieces of a part need."""
    if split is None:
        return ()
    return ("mlp_post",) if _split(model, split)[0] == "mlp" else ("pattern", "v")


def _pieces(model: Model, run: Run, tokens: Array, position: int, split: str) -> Iterator[tuple[str, Array]]:
    """(name, vector) of the neurons of an MLP, or of what a head moved from each position. They sum to the part."""
    kind, layer, head = _split(model, split)
    if kind == "mlp":
        mlp = model.h[layer].mlp
        neurons = run.mlp_post[layer][position]  # (d_mlp,)
        for neuron, (size, row) in enumerate(zip(neurons, mlp.c_proj.weight, strict=True)):
            yield f"neuron {layer}.{neuron}", size * row
        return
    weights, values = run.pattern[layer, head, position], run.v[layer][:, head]  # (n_key,), (n_key, d_head)
    for key in range(position + 1):
        name = f"head {layer}.{head} from {key} {visible(model.token_strings(tokens[key])[0])}"
        yield name, weights[key] * values[key] @ w_o(model, layer, head)
    z, made = run.z[layer][position, head], weights @ values
    yield from ((name, part @ w_o(model, layer, head)) for name, part in _edit(f"edit of z {layer}", z, made))
