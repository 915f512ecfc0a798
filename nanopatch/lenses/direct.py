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
from ..model.layers import affine, layer_norm, standardise
from ..model.sites import Run, check_position
from ..model.tokenizer import visible
from ..results.direct import DirectAttribution
from ..types import Array
from .given import Answer, answer_ids, answer_text, check_head, check_layer, check_run

SITES = ("resid_pre", "z", "attn_out", "resid_mid", "mlp_post", "mlp_out", "resid_post", "ln_final", "logits")
#: A product x @ weight, done in another order, differs by less than this in units of eps |x| |column of the weight|.
#: Up to 3 was measured, over three kinds of processors.
ROUNDING = 16


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
        Of one prompt: clean, corrupted or patched. It holds `nanopatch.lenses.direct.SITES`. An edit of one of these
        is a part of its own, such as `edit of resid_pre 3`: what was put in, minus what the model had computed. Other
        edits, and those of z and mlp_post, act through a head or an MLP, and are inside its part.
    answer, wrong_answer : str, int or a list of them
        Without a wrong answer, the answer's logit. Of a list, the mean of the logits.
    position : int
        Where the logits are read; by default at the last token.
    split : str, optional
        A part to take apart further: "mlp 3" into its neurons, "head 2.1" into what it moved from each position (the
        run holds pattern and v). If z was patched, `head 2.1 edit of z` is one of the pieces.

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
    ids, wrong_ids = answer_ids(model, answer, wrong_answer)
    if not ids:
        raise NanopatchError("give the answer whose logit is to be taken apart")
    towards = direction(model, run, position, ids, wrong_ids)
    names, values = [], []
    for name, part in _parts(model, run, tokens, position):
        pieces = _pieces(model, run, tokens, position, name) if name == split else [(name, part)]
        for piece, vector in pieces:  # (d_model,) each
            names.append(piece)
            values.append(float(vector.astype(np.float64) @ towards))
    for name, added in _final_parts(model, run, position, ids, wrong_ids):
        names.append(name)
        values.append(added)
    return DirectAttribution(
        tokens=tuple(model.token_strings(tokens)),
        ids=tuple(map(int, tokens)),
        position=position,
        answer=str(answer_text(model, ids)),
        wrong_answer=answer_text(model, wrong_ids),
        names=tuple(names),
        values=np.array(values),
        n_layer=model.n_layer,
        n_head=model.n_head,
        split=split,
        source=model.source or Source("unnamed"),
    )


def direction(model: Model, run: Run, position: int, ids: Sequence[int], wrong_ids: Sequence[int]) -> Array:
    """The vector (d_model,), in float64, whose product with a part of the residual stream is what the part adds.

    It is gamma * (W_U[answer] - W_U[wrong_answer]) / sigma, minus its mean: LayerNorm takes the mean out of every part.
    """
    _, sigma = standardise(run.resid_post[-1][position].astype(np.float64), model.config.layer_norm_epsilon)
    towards = model.ln_f.weight * _unembedding(model, ids, wrong_ids) / sigma
    centred: Array = towards - towards.mean()
    return centred


def _unembedding(model: Model, ids: Sequence[int], wrong_ids: Sequence[int]) -> Array:
    """W_U[answer] - W_U[wrong_answer], (d_model,), in float64."""
    return _difference(model.lm_head, ids, wrong_ids)


def _difference(of_tokens: Array, ids: Sequence[int], wrong_ids: Sequence[int]) -> Array:
    """Of an array (n_vocab, ...): the mean of the answers' rows minus that of the wrong answers', in float64."""
    difference: Array = of_tokens[list(ids)].mean(axis=0, dtype=np.float64)
    return difference - of_tokens[list(wrong_ids)].mean(axis=0, dtype=np.float64) if wrong_ids else difference


def _parts(model: Model, run: Run, tokens: Array, position: int) -> Iterator[tuple[str, Array]]:
    """(name, vector) of everything that is added to the residual stream at a position, in order; (d_model,) each."""
    embed, pos_embed = model.wte[tokens[position]], model.wpe[position]
    yield "embed", embed
    yield "pos_embed", pos_embed
    stream = embed + pos_embed
    for layer, block in enumerate(model.h):
        arrays = (run.resid_pre, run.attn_out, run.resid_mid, run.mlp_out, run.resid_post)
        resid_pre, attn_out, resid_mid, mlp_out, resid_post = (np.asarray(array[layer][position]) for array in arrays)
        z, mlp_post = np.asarray(run.z[layer][position]), np.asarray(run.mlp_post[layer][position])
        yield from _edit(f"edit of resid_pre {layer}", resid_pre, stream)

        for head in range(model.n_head):
            yield f"head {layer}.{head}", z[head] @ w_o(model, layer, head)
        yield f"attn bias {layer}", block.attn.c_proj.bias
        yield from _edit(f"edit of attn_out {layer}", attn_out, *_product(z.reshape(-1), *block.attn.c_proj))
        yield from _edit(f"edit of resid_mid {layer}", resid_mid, resid_pre + attn_out)

        yield f"mlp {layer}", mlp_post @ block.mlp.c_proj.weight
        yield f"mlp bias {layer}", block.mlp.c_proj.bias
        yield from _edit(f"edit of mlp_out {layer}", mlp_out, *_product(mlp_post, *block.mlp.c_proj))
        yield from _edit(f"edit of resid_post {layer}", resid_post, resid_mid + mlp_out)
        stream = resid_post


def _final_parts(
    model: Model, run: Run, position: int, ids: Sequence[int], wrong_ids: Sequence[int]
) -> Iterator[tuple[str, float]]:
    """(name, number) of what comes after the residual stream: the final LayerNorm's bias, and edits there."""
    unembedding, final = _unembedding(model, ids, wrong_ids), run.resid_post[-1][position]
    yield "ln_f bias", float(model.ln_f.bias @ unembedding)

    ln_final, logits = np.asarray(run.ln_final[position]), np.asarray(run.logits[position])
    eps, answers = model.config.layer_norm_epsilon, [*ids, *wrong_ids]
    made = layer_norm(final, *model.ln_f, eps)
    size = np.abs(made) + np.abs(model.ln_f.weight) * np.abs(final).max() / standardise(final, eps)[1]
    for name, added in _edit("edit of ln_final", ln_final, made, size):
        yield name, float(added @ unembedding)
    for name, added in _edit("edit of logits", logits[answers], *_product(ln_final, model.lm_head[answers].T)):
        right, wrong = np.split(added, [len(ids)])
        yield name, float(right.mean() - (wrong.mean() if wrong_ids else 0))


def _product(x: Array, weight: Array, bias: Array | None = None) -> tuple[Array, Array]:
    """`x @ weight + bias` of one row, and the size that its rounding errors are measured in; (n_out,) each."""
    norms = np.sqrt(np.einsum("ij,ij->j", weight, weight)) * np.linalg.norm(x)
    return affine(x[None], weight, bias)[0], norms if bias is None else norms + np.abs(bias)


def _edit(name: str, recorded: Array, made: Array, size: Array | float = 0.0) -> Iterator[tuple[str, Array]]:
    """What an edit added, if there was one: what was recorded, minus what the model made of the arrays before it.

    size: see `_product`. A sum of two arrays is the same whenever it is computed, so there an edit of any size counts.
    """
    tolerance = ROUNDING * np.finfo(recorded.dtype).eps * size
    added = recorded.astype(np.float64) - made
    same = (np.abs(added) <= tolerance) | (recorded == made) | (np.isnan(recorded) & np.isnan(made))
    if not same.all():
        yield name, added


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
    return () if _split(model, split)[0] == "mlp" else ("pattern", "v")


def _pieces(model: Model, run: Run, tokens: Array, position: int, split: str) -> Iterator[tuple[str, Array]]:
    """(name, vector) of the neurons of an MLP, or of what a head moved from each position. They sum to the part."""
    kind, layer, head = _split(model, split)
    if kind == "mlp":
        sizes = run.mlp_post[layer][position]  # (d_mlp,)
        for neuron, (size, row) in enumerate(zip(sizes, model.h[layer].mlp.c_proj.weight, strict=True)):
            yield f"neuron {layer}.{neuron}", size * row
        return
    weights, values = run.pattern[layer, head, position], run.v[layer][:, head]  # (n_key,), (n_key, d_head)
    for key in range(position + 1):
        name = f"head {layer}.{head} from {key} {visible(model.token_strings(tokens[key])[0])}"
        yield name, weights[key] * values[key] @ w_o(model, layer, head)
    size = np.linalg.norm(weights) * np.linalg.norm(values, axis=0)
    for name, vector in _edit(f"head {layer}.{head} edit of z", run.z[layer][position, head], weights @ values, size):
        yield name, vector @ w_o(model, layer, head)
