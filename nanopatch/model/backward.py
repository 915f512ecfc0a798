"""The backward pass: the derivative of a scalar made of the logits with respect to every named array.

It is the forward pass of `gpt2.py` with its lines reversed. Each line of the forward pass computes an array from
earlier arrays. The matching line here takes `d_<array>`, the derivative with respect to the computed array, and
makes the derivatives with respect to the earlier arrays. An array that is read twice gets the sum of both. For a
product `y = x @ W` the derivatives are `d_x = d_y @ W.T` and `d_W = x.T @ d_y`.

Shapes and names are those of `gpt2.py`. Any leading axes (a batch) may stand before them.
"""

from __future__ import annotations

import math
from operator import attrgetter
from typing import TYPE_CHECKING

import numpy as np

from ..errors import NanopatchError
from ..types import Array, Sites
from .layers import BLOCK_WEIGHTS, affine, by_blocks, layer_norm, normal_cdf, softmax, standardise
from .sites import BLOCK_SITES, SITES, Run, known_sites, shapes

if TYPE_CHECKING:
    from .gpt2 import Model


def backward(model: Model, run: Run, d_logits: Array, sites: Sites = None) -> Run:
    """Derivatives of the scalar `sum(d_logits * logits)` with respect to every named array.

    The derivative with respect to an array says how the scalar changes when this array alone is changed at the
    moment it is handed over, and everything after it is recomputed. `resid_pre` is read by several later steps, and
    its derivative is the sum over all of them. `q_input`, `k_input`, `v_input` and `mlp_in` are copies with one
    reader each.

    It takes about the time of one forward pass and the memory of one more record.

    Parameters
    ----------
    model : Model
        The model that made the run.
    run : Run
        A full record of a run of this model, of one prompt or a batch.
    d_logits : ndarray
        The derivative of your metric with respect to the logits, with their shape and dtype. For the logit difference
        at the last token it is 1 at `[-1, answer]`, -1 at `[-1, wrong_answer]`, and 0 elsewhere.
    sites : str or iterable of str, optional
        Names to keep, all by default.

    Returns
    -------
    Run
        Each array has the name, shape and dtype of the array it is the derivative for. So attribution patching is
        `gradients.z * (clean.z - corrupted.z)`. Masked entries of `scores` are -inf, and their derivative is 0.
        Masked entries of `pattern` have a derivative: a head would use what you write there.

    Raises
    ------
    NanopatchError
        If the record lacks arrays or belongs to another model, or if `d_logits` has another shape or dtype, or holds
        NaN or infinity.

    Notes
    -----
    The run may have been edited while it was recorded. Each step is differentiated at the arrays that it read, with
    the edits in them, and every edit counts as the addition of a constant. So the result is exact for edits that add
    (`site.array += x`). For an assignment it is exact for the assigned array and for all later ones. For earlier
    arrays it includes the effect that the assignment would have overwritten.

    References
    ----------
    Rumelhart, Hinton and Williams (1986), "Learning representations by back-propagating errors", Nature 323.

    Examples
    --------
    >>> import nanopatch
    >>> import numpy as np
    >>> model = nanopatch.load("nano")
    >>> run = model.run("Michelle Jones was a top-notch student. Michelle")
    >>> jones, smith = model.tokenize(" Jones Smith")
    >>> d_logits = np.zeros_like(run.logits)
    >>> d_logits[-1, [jones, smith]] = 1, -1  # the logit difference at the last token
    >>> gradients = model.backward(run, d_logits)
    >>> gradients.z.shape == run.z.shape == (model.n_layer, 11, model.n_head, model.d_head)
    True
    """
    keep = known_sites(sites)
    _check_run(model, run)
    is_array = isinstance(d_logits, np.ndarray)
    if not is_array or d_logits.shape != run.logits.shape or d_logits.dtype != model.dtype:
        given = f"{d_logits.shape} and {d_logits.dtype}" if is_array else f"a {type(d_logits).__name__}"
        raise NanopatchError(
            f"d_logits must be an array of the logits' shape {run.logits.shape} and dtype {model.dtype}, not {given}"
        )
    if not np.isfinite(d_logits).all():
        raise NanopatchError("d_logits holds NaN or infinity: the metric has no finite derivative at these logits")
    d_ln_final = unembedding_backward(model, d_logits)  # (n_tokens, d_model)
    # ln_final = layer_norm(resid_post of the last block)
    d_resid = layer_norm_backward(d_ln_final, run.resid_post[-1], model.ln_f.weight, model.config.layer_norm_epsilon)
    of_blocks = blocks_backward(model, run, d_resid, keep)
    gradients = {name: of_blocks[name] for name in of_blocks.names}
    for name, array in (("logits", d_logits), ("ln_final", d_ln_final)):
        if name in keep:
            gradients[name] = array.copy()
    return Run(gradients, run.tokens, model, is_gradient=True)


def unembedding_backward(model: Model, d_logits: Array) -> Array:
    """Derivative with respect to ln_final, (n_tokens, d_model), of `logits = ln_final @ lm_head.T`."""
    # Most metrics read few tokens. The rows of lm_head for the others add nothing. Leaving them out needs a copy of the
    # other rows, which is slower if there are many.
    read = np.flatnonzero(d_logits.any(axis=tuple(range(d_logits.ndim - 1))))
    used = read if 0 < read.size < model.n_vocab // 8 else slice(None)
    return affine(d_logits[..., used], model.lm_head[used])


def blocks_backward(
    model: Model, run: Run, d_resid_post: Array, sites: Sites = None, dropped: int | None = None
) -> Run:
    """As `backward`, from the end of the last block: given the derivative with respect to what it leaves.

    d_resid_post: (n_tokens, d_model). The record needs the blocks' arrays alone. dropped: a layer whose attention and
    MLP count as constants (GradDrop): the derivative passes it by, and that of its own arrays is 0.
    """
    keep = known_sites(sites).intersection(BLOCK_SITES)
    gradients = {name: np.empty(getattr(run, name).shape, model.dtype) for name in SITES if name in keep}
    d_resid = d_resid_post
    for layer in reversed(range(model.n_layer)):
        if layer == dropped:
            for name in keep:
                gradients[name][layer] = 0
            continue
        d_arrays = block_backward(model, layer, run, d_resid)
        for name in keep:
            gradients[name][layer] = d_arrays[name]
        d_resid = d_arrays["resid_pre"]
        del d_arrays  # frees the memory before the next layer's arrays are made
    return Run(gradients, run.tokens, model, is_gradient=True)


def block_backward(model: Model, layer: int, run: Run, d_resid_post: Array) -> dict[str, Array]:
    """The backward pass of one block: {name: derivative} for its named arrays, given that for its `resid_post`."""
    block, eps = model.h[layer], model.config.layer_norm_epsilon

    # resid_post = resid_mid + mlp_out
    d_mlp_out = d_resid_post  # (n_tokens, d_model)
    # mlp_out = affine(mlp_post, *mlp.c_proj)
    d_mlp_post = affine(d_mlp_out, block.mlp.c_proj.weight.T)  # (n_tokens, d_mlp)
    # mlp_post = activation(mlp_pre)
    d_mlp_pre = d_mlp_post * by_blocks(SLOPES[model.config.activation_function], run.mlp_pre[layer])
    # mlp_pre = affine(layer_norm(mlp_in), *mlp.c_fc)
    d_mlp_normed = affine(d_mlp_pre, block.mlp.c_fc.weight.T)  # (n_tokens, d_model)
    d_mlp_in = layer_norm_backward(d_mlp_normed, run.mlp_in[layer], block.ln_2.weight, eps)
    # resid_mid is read by the residual stream and, as mlp_in, by the MLP.
    d_resid_mid = d_resid_post + d_mlp_in  # (n_tokens, d_model)

    # resid_mid = resid_pre + attn_out
    d_attn_out = d_resid_mid  # (n_tokens, d_model)
    # attn_out = affine(z, *attn.c_proj)
    d_z = affine(d_attn_out, block.attn.c_proj.weight.T).reshape(run.z[layer].shape)
    # z = pattern @ v, one product for each head. The head axis comes first, as in the forward pass.
    d_z_by_head, v_by_head = np.swapaxes(d_z, -3, -2), np.swapaxes(run.v[layer], -3, -2)
    d_pattern = d_z_by_head @ np.swapaxes(v_by_head, -2, -1)  # (n_head, n_query, n_key)
    d_v = np.empty_like(d_z)  # (n_tokens, n_head, d_head)
    np.matmul(np.swapaxes(run.pattern[layer], -2, -1), d_z_by_head, out=np.swapaxes(d_v, -3, -2))
    # pattern = softmax(scores). p_i = exp(s_i) / sum_j exp(s_j), so dp_i/ds_j = p_i (1 if i is j, else 0) - p_i p_j
    # and d_s_j = p_j (d_p_j - sum_i p_i d_p_i). At masked entries p_j is 0, and so is d_s_j.
    pattern = softmax(run.scores[layer])  # (n_head, n_query, n_key)
    d_scores = pattern * d_pattern
    pattern *= d_scores.sum(axis=-1, keepdims=True)
    d_scores -= pattern
    # scores = scale * q @ k.T + mask, one product for each head
    scale = model._attention_scale(layer)
    q_by_head, k_by_head = np.swapaxes(run.q[layer], -3, -2), np.swapaxes(run.k[layer], -3, -2)
    d_q, d_k = np.empty_like(d_z), np.empty_like(d_z)  # (n_tokens, n_head, d_head)
    np.matmul(d_scores, k_by_head * scale, out=np.swapaxes(d_q, -3, -2))
    np.matmul(np.swapaxes(d_scores, -2, -1), q_by_head * scale, out=np.swapaxes(d_k, -3, -2))

    # q, k, v = affine(layer_norm(their input), their third of attn.c_attn)
    weight_q, weight_k, weight_v = np.split(block.attn.c_attn.weight, 3, axis=-1)  # (d_model, d_model) each
    d_q_normed = affine(d_q.reshape(d_resid_post.shape), weight_q.T)  # (n_tokens, d_model)
    d_k_normed = affine(d_k.reshape(d_resid_post.shape), weight_k.T)  # (n_tokens, d_model)
    d_v_normed = affine(d_v.reshape(d_resid_post.shape), weight_v.T)  # (n_tokens, d_model)
    d_q_input = layer_norm_backward(d_q_normed, run.q_input[layer], block.ln_1.weight, eps)
    d_k_input = layer_norm_backward(d_k_normed, run.k_input[layer], block.ln_1.weight, eps)
    d_v_input = layer_norm_backward(d_v_normed, run.v_input[layer], block.ln_1.weight, eps)
    # resid_pre is read by the residual stream and, as q_input, k_input and v_input, by the heads.
    d_resid_pre = d_resid_mid + d_q_input + d_k_input + d_v_input  # (n_tokens, d_model)

    return dict(
        resid_pre=d_resid_pre, q_input=d_q_input, k_input=d_k_input, v_input=d_v_input, q=d_q, k=d_k, v=d_v,
        scores=d_scores, pattern=d_pattern, z=d_z, attn_out=d_attn_out, resid_mid=d_resid_mid, mlp_in=d_mlp_in,
        mlp_pre=d_mlp_pre, mlp_post=d_mlp_post, mlp_out=d_mlp_out, resid_post=d_resid_post,
    )


# ---- the weights ----------------------------------------------------------------------------------


def weight_gradients(model: Model, run: Run, gradients: Run) -> dict[str, Array]:
    """Derivatives of the scalar of `backward` with respect to every weight. Use it to train a toy model.

    The derivative with respect to a weight needs two things: what the weight's step read, which `run` holds, and the
    derivative with respect to what the step computed, which `gradients` holds. Edits of a run that was edited while
    it was recorded count as additions of constants, as in `backward`.

    Parameters
    ----------
    model : Model
        The model that made the run.
    run : Run
        A full record of a run of this model, with its `tokens`. For a batch, the derivatives are sums over its prompts.
    gradients : Run
        What `model.backward(run, d_logits)` returned, with all arrays.

    Returns
    -------
    dict of str to ndarray
        One array for each weight, under its checkpoint key (`"h.0.attn.c_attn.weight"`), with the weight's shape and
        dtype. The keys are those of `named_weights(model)`, which holds the weights themselves. A tied `lm_head` is
        `wte`, and `"wte.weight"` then holds the sum over both uses.

    Raises
    ------
    NanopatchError
        If one of the records lacks arrays or belongs to another model, or if the two belong to different runs.

    Examples
    --------
    One step of gradient ascent on one logit. To lower the cross-entropy of the next token, let `d_logits` be
    `(softmax(logits) - targets) / n_tokens`, with one-hot `targets`, and subtract the gradient.

    >>> import nanopatch
    >>> import numpy as np
    >>> model = nanopatch.load("nano")
    >>> run = model.run("Michelle Jones was a top-notch student. Michelle")
    >>> d_logits = np.zeros_like(run.logits)
    >>> d_logits[-1, model.tokenize(" Smith")] = 1
    >>> gradients = nanopatch.weight_gradients(model, run, model.backward(run, d_logits))
    >>> gradients["h.0.mlp.c_fc.weight"].shape
    (128, 512)
    >>> for name, weight in nanopatch.named_weights(model).items():
    ...     weight += 0.001 * gradients[name]
    >>> after = model.run(run.tokens)
    >>> bool((d_logits * after.logits).sum() > (d_logits * run.logits).sum())
    True
    """
    _check_run(model, run)
    _check_record(model, gradients, "the record of gradients", is_gradient=True)
    shape = run.logits.shape[:-1]
    if run.tokens is None or run.tokens.shape != shape:
        raise NanopatchError(f"the run lacks its {shape} token ids, which wte and wpe need: set run.tokens to them")
    theirs = run.tokens if gradients.tokens is None else gradients.tokens
    if gradients.logits.shape != run.logits.shape or not np.array_equal(theirs, run.tokens):
        raise NanopatchError("the gradients belong to a run on other tokens: give the run that backward was given")
    eps, grads = model.config.layer_norm_epsilon, {}

    for layer, block in enumerate(model.h):
        d_c_attn = [np.empty_like(weight) for weight in block.attn.c_attn]  # (d_model, 3 d_model), (3 d_model,)
        d_ln_1 = []
        for i, name in enumerate("qkv"):
            x = getattr(run, f"{name}_input")[layer]  # (n_tokens, d_model)
            d_out = getattr(gradients, name)[layer].reshape(x.shape)  # (n_tokens, d_model)
            third = slice(i * model.d_model, (i + 1) * model.d_model)
            d_c_attn[0][:, third], d_c_attn[1][third] = affine_weights(layer_norm(x, *block.ln_1, eps), d_out)
            d_ln_1.append(layer_norm_weights(x, affine(d_out, block.attn.c_attn.weight[:, third].T), eps))
        d_mlp_pre, mlp_in = gradients.mlp_pre[layer], run.mlp_in[layer]
        pairs = (  # (weight, bias) each, in the order of BLOCK_WEIGHTS
            [sum(parts) for parts in zip(*d_ln_1, strict=True)],
            d_c_attn,
            affine_weights(run.z[layer].reshape(mlp_in.shape), gradients.attn_out[layer]),
            layer_norm_weights(mlp_in, affine(d_mlp_pre, block.mlp.c_fc.weight.T), eps),
            affine_weights(layer_norm(mlp_in, *block.ln_2, eps), d_mlp_pre),
            affine_weights(run.mlp_post[layer], gradients.mlp_out[layer]),
        )
        for name, pair in zip(BLOCK_WEIGHTS, pairs, strict=True):
            grads[f"h.{layer}.{name}.weight"], grads[f"h.{layer}.{name}.bias"] = pair

    grads["ln_f.weight"], grads["ln_f.bias"] = layer_norm_weights(run.resid_post[-1], gradients.ln_final, eps)
    d_lm_head, _ = affine_weights(gradients.logits, run.ln_final)  # (n_vocab, d_model)

    # resid_pre = wte[tokens] + wpe[positions]: each row's derivative is added to both rows that made it.
    d_embed = gradients.resid_pre[0]  # (n_tokens, d_model)
    tied = model.lm_head is model.wte
    grads["wte.weight"] = d_lm_head if tied else np.zeros_like(model.wte)
    np.add.at(grads["wte.weight"], run.tokens, d_embed)
    grads["wpe.weight"] = np.zeros_like(model.wpe)
    grads["wpe.weight"][: d_embed.shape[-2]] = d_embed.reshape(-1, *d_embed.shape[-2:]).sum(axis=0)
    return grads if tied else grads | {"lm_head.weight": d_lm_head}


def named_weights(model: Model) -> dict[str, Array]:
    """{checkpoint key: array} of a model's weights, the arrays themselves. `lm_head.weight` only if it is not tied."""
    weights = {"wte.weight": model.wte, "wpe.weight": model.wpe}
    for layer, block in enumerate(model.h):
        for name in BLOCK_WEIGHTS:
            weights[f"h.{layer}.{name}.weight"], weights[f"h.{layer}.{name}.bias"] = attrgetter(name)(block)
    weights["ln_f.weight"], weights["ln_f.bias"] = model.ln_f
    return weights if model.lm_head is model.wte else weights | {"lm_head.weight": model.lm_head}


# ---- backwards of the functions of layers.py --------------------------------------------------------


def affine_weights(x: Array, d_y: Array) -> tuple[Array, Array]:
    """Derivatives with respect to weight and bias of `y = x @ weight + bias`, summed over all rows."""
    x, d_y = x.reshape(-1, x.shape[-1]), d_y.reshape(-1, d_y.shape[-1])
    return x.T @ d_y, d_y.sum(axis=0)


def layer_norm_backward(d_y: Array, x: Array, weight: Array, eps: float) -> Array:
    """Derivative with respect to x of `y = layer_norm(x, weight, bias, eps)`."""
    # y = weight n + bias, n = (x - mean(x)) / sigma, sigma^2 = mean((x - mean(x))^2) + eps. A change dx moves n in
    # three ways: directly by dx / sigma; through mean(x) by -mean(dx) / sigma; and through sigma, which changes by
    # mean(n dx), by -n mean(n dx) / sigma. All three are symmetric maps. So with d_n = weight d_y:
    # d_x = (d_n - mean(d_n) - n mean(n d_n)) / sigma.
    normed, sigma = standardise(x, eps)
    d_normed = d_y * weight
    d_x = d_normed - d_normed.mean(axis=-1, keepdims=True)
    d_normed *= normed
    d_x -= normed * d_normed.mean(axis=-1, keepdims=True)
    d_x /= sigma
    return d_x


def layer_norm_weights(x: Array, d_y: Array, eps: float) -> tuple[Array, Array]:
    """Derivatives with respect to weight and bias of `y = layer_norm(x, weight, bias, eps)`, summed over all rows."""
    normed, _ = standardise(x, eps)
    over_rows = tuple(range(x.ndim - 1))
    return (normed * d_y).sum(axis=over_rows), d_y.sum(axis=over_rows)


def gelu_new_slope(x: Array) -> Array:
    """dy/dx of y = x (1 + t) / 2, where t = tanh(u) and u = a (x + b x^3)."""
    # The product rule: (1 + t) / 2 + x t' / 2, where t' = (1 - t^2) u' and u' = a (1 + 3 b x^2).
    a, b = math.sqrt(2 / math.pi), 0.044715
    squared = x * x
    t = np.tanh(a * x * (1 + b * squared))
    return 0.5 * (1 + t) + 0.5 * a * x * (1 - t * t) * (1 + 3 * b * squared)


def gelu_slope(x: Array) -> Array:
    """dy/dx of y = x Phi(x): Phi(x) + x phi(x). Phi is the normal distribution function, phi its density."""
    slope = np.clip(x, -40, 40)  # beyond, x phi(x) is 0, and infinity times 0 would be NaN
    slope *= np.exp(-0.5 * slope * slope)
    slope *= 1 / math.sqrt(2 * math.pi)
    slope += normal_cdf(x)
    return slope


def relu_slope(x: Array) -> Array:
    """dy/dx of y = max(x, 0): 1 above 0, else 0. At 0 there is no derivative; 0 is used there, as in PyTorch."""
    return (x > 0).astype(x.dtype)


SLOPES = {"gelu_new": gelu_new_slope, "gelu": gelu_slope, "relu": relu_slope}


# ---- checks ---------------------------------------------------------------------------------------


def _check_run(model: Model, run: Run) -> None:
    """Raise NanopatchError unless `run` is a full record of this model, not of another one with the same shapes."""
    _check_record(model, run, "the run", is_gradient=False)
    check_weights(model, run)


def check_weights(model: Model, run: Run) -> None:
    """Raise NanopatchError if `run` was recorded from another model, unless the two have the same weights."""
    if run.model is None or run.model is model:  # None: the run was unpickled, say
        return
    ours, theirs = named_weights(model), named_weights(run.model)
    if ours.keys() != theirs.keys() or not all(np.array_equal(ours[key], theirs[key]) for key in ours):
        raise NanopatchError(f"the run is of another model, {run.model!r}, with other weights: record it with this one")


def _check_record(model: Model, record: Run, what: str, is_gradient: bool) -> None:
    """Raise NanopatchError unless `record` holds every named array, with this model's shapes and dtype."""
    if not isinstance(record, Run):
        raise NanopatchError(f"{what} must be a record as model.run(prompt) returns it, not {type(record).__name__}")
    if record.is_gradient != is_gradient:
        kinds = ("arrays of a run", "derivatives")
        raise NanopatchError(f"{what} must hold {kinds[is_gradient]}, not {kinds[record.is_gradient]}")
    missing = [name for name in SITES if name not in record.names]
    if missing:
        raise NanopatchError(f"{what} lacks {', '.join(missing)}: record every array, with sites=None")
    *batch, n_tokens, _ = record.logits.shape
    for name, shape in shapes(model, n_tokens, tuple(batch)).items():
        array = getattr(record, name)
        if array.shape != shape or array.dtype != model.dtype:
            raise NanopatchError(
                f"{what} is not of this model: its {name} has shape {array.shape} and dtype {array.dtype}, "
                f"but this model makes {shape} and {model.dtype}"
            )
