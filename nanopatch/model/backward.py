"""The backward pass: the derivative of a number made of the logits, with respect to every named array.

It is the forward pass of `model.py` with its lines reversed. Each line there computes an array from
earlier ones; the line here that answers it takes `d_<array>`, the derivative with respect to what was
computed, and makes the derivatives with respect to what it was computed from. An array read twice
gets the sum of both. For a product `y = x @ W` these are `d_x = d_y @ W.T` and `d_W = x.T @ d_y`.

Shapes and names are those of `model.py`; any leading axes (a batch) may stand before them.
"""

import math

import numpy as np

from ..errors import NanopatchError
from .layers import affine, layer_norm, softmax
from .sites import ATTENTION_SITES, BLOCK_SITES, SITES, Run, known_sites


def backward(model, run, d_logits, sites=None):
    """Derivatives of the scalar `sum(d_logits * logits)` with respect to every named array, as a `Run`.

    run: a full record of a run of this model, one prompt or a batch; d_logits: the derivative of your
    metric with respect to the logits, an array of their shape and dtype. For the logit difference at
    the last token it is 1 at [-1, answer], -1 at [-1, wrong_answer], and 0 elsewhere. sites: names to
    keep, all by default. In the `Run` that comes back each array has the name, shape and dtype of the one
    it is the derivative for, so that attribution patching is `gradients.z * (clean.z - corrupted.z)`.
    Costs about one forward pass of time and one further record of memory.

    The derivative with respect to an array is that of the scalar when this array alone is changed at
    the moment it is handed over, and everything after it is recomputed. `resid_pre` thus counts
    all its readers, while `q_input`, `k_input`, `v_input` and `mlp_in`, handed over as copies of
    their own, count the one reader each has. Masked entries of `scores`, which are -inf, get 0;
    masked entries of `pattern` do not: a head would use what you wrote there.

    A run that was edited on its way: each step's derivative is taken at the recorded, edited arrays
    that the step reads, and every edit counts as the addition of a constant. So the result is exact for edits
    that add (`site.array += x`), and for an assignment it is exact for the array assigned to and all
    that come after it; for those before it, it includes what the assignment would have overwritten.

    Raises NanopatchError for a record that lacks arrays or is not this model's, and for d_logits of
    another shape or dtype, or not finite.
    """
    keep = known_sites(sites)
    _check_run(model, run)
    if not isinstance(d_logits, np.ndarray) or d_logits.shape != run.logits.shape or d_logits.dtype != model.dtype:
        array = isinstance(d_logits, np.ndarray)
        raise NanopatchError(
            f"d_logits is an array of the logits' shape {run.logits.shape} and dtype {model.dtype}, not "
            + (f"{d_logits.shape} and {d_logits.dtype}" if array else f"a {type(d_logits).__name__}")
        )
    if not np.isfinite(d_logits).all():
        raise NanopatchError("d_logits holds NaN or infinity: the metric has no finite derivative at these logits")
    gradients = {name: np.empty(getattr(run, name).shape, model.dtype) for name in SITES if name in keep}

    # logits = ln_final @ lm_head.T. Most metrics look at a few tokens; the others' rows of lm_head then add nothing.
    used = np.flatnonzero(d_logits.any(axis=tuple(range(d_logits.ndim - 1))))
    used = used if 0 < used.size < model.n_vocab // 8 else slice(None)  # more: not worth a copy of them
    d_ln_final = affine(d_logits[..., used], model.lm_head[used])  # (n_tokens, d_model)
    # ln_final = layer_norm(resid_post of the last block)
    d_resid = layer_norm_backward(d_ln_final, run.resid_post[-1], model.ln_f.weight, model.config.layer_norm_epsilon)
    for name, array in (("logits", d_logits), ("ln_final", d_ln_final)):
        if name in keep:
            gradients[name][...] = array
    for layer in reversed(range(model.n_layer)):
        d_arrays = block_backward(model, layer, run, d_resid)
        for name in keep.intersection(BLOCK_SITES):
            gradients[name][layer] = d_arrays[name]
        d_resid = d_arrays["resid_pre"]
        del d_arrays  # before the next layer's are made
    return Run(gradients, run.tokens, model, is_gradient=True)


def block_backward(model, layer, run, d_resid_post):
    """The backward pass of one block: {name: derivative} of its named arrays, from that of its `resid_post`."""
    block, eps, d_model = model.h[layer], model.config.layer_norm_epsilon, model.d_model

    # resid_post = resid_mid + mlp_out
    d_mlp_out = d_resid_post  # (n_tokens, d_model)
    # mlp_out = affine(mlp_post, *mlp.c_proj)
    d_mlp_post = affine(d_mlp_out, block.mlp.c_proj.weight.T)  # (n_tokens, d_mlp)
    # mlp_post = activation(mlp_pre)
    d_mlp_pre = d_mlp_post * SLOPES[model.config.activation_function](run.mlp_pre[layer])
    # mlp_pre = affine(layer_norm(mlp_in), *mlp.c_fc)
    d_mlp_normed = affine(d_mlp_pre, block.mlp.c_fc.weight.T)  # (n_tokens, d_model)
    d_mlp_in = layer_norm_backward(d_mlp_normed, run.mlp_in[layer], block.ln_2.weight, eps)
    # resid_mid is read by the residual stream and, as mlp_in, by the MLP.
    d_resid_mid = d_resid_post + d_mlp_in  # (n_tokens, d_model)

    # resid_mid = resid_pre + attn_out
    d_attn_out = d_resid_mid  # (n_tokens, d_model)
    # attn_out = affine(z, *attn.c_proj)
    d_z = affine(d_attn_out, block.attn.c_proj.weight.T).reshape(run.z[layer].shape)
    # z = pattern @ v, one product for each head: head axis first, as in the forward pass.
    d_z_by_head, v_by_head = np.swapaxes(d_z, -3, -2), np.swapaxes(run.v[layer], -3, -2)
    d_pattern = d_z_by_head @ np.swapaxes(v_by_head, -2, -1)  # (n_head, n_query, n_key)
    d_v = np.empty_like(d_z)  # (n_tokens, n_head, d_head)
    np.matmul(np.swapaxes(run.pattern[layer], -2, -1), d_z_by_head, out=np.swapaxes(d_v, -3, -2))
    # pattern = softmax(scores). p_i = exp(s_i) / sum_j exp(s_j), so dp_i/ds_j = p_i (1 if i is j, else 0) - p_i p_j
    # and d_s_j = p_j (d_p_j - sum_i p_i d_p_i): 0 where p is, at masked entries.
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
    c_attn, rows = block.attn.c_attn.weight, d_resid_post.shape  # (d_model, 3 d_model)
    d_q_normed = affine(d_q.reshape(rows), c_attn[:, :d_model].T)  # (n_tokens, d_model)
    d_k_normed = affine(d_k.reshape(rows), c_attn[:, d_model : 2 * d_model].T)  # (n_tokens, d_model)
    d_v_normed = affine(d_v.reshape(rows), c_attn[:, 2 * d_model :].T)  # (n_tokens, d_model)
    d_q_input = layer_norm_backward(d_q_normed, run.q_input[layer], block.ln_1.weight, eps)
    d_k_input = layer_norm_backward(d_k_normed, run.k_input[layer], block.ln_1.weight, eps)
    d_v_input = layer_norm_backward(d_v_normed, run.v_input[layer], block.ln_1.weight, eps)
    # resid_pre is read by the residual stream and, as q_input, k_input and v_input, by the heads.
    d_resid_pre = d_resid_mid + d_q_input + d_k_input + d_v_input  # (n_tokens, d_model)

    return {
        **dict(resid_pre=d_resid_pre, q_input=d_q_input, k_input=d_k_input, v_input=d_v_input),
        **dict(q=d_q, k=d_k, v=d_v, scores=d_scores, pattern=d_pattern, z=d_z, attn_out=d_attn_out),
        **dict(resid_mid=d_resid_mid, mlp_in=d_mlp_in, mlp_pre=d_mlp_pre, mlp_post=d_mlp_post, mlp_out=d_mlp_out),
        **dict(resid_post=d_resid_post),
    }


# ---- the weights ----------------------------------------------------------------------------------


def weight_gradients(model, run, gradients):
    """Derivatives of the same scalar with respect to every weight: {checkpoint key: array}, keys as `named_weights`.

    run and gradients: a record and what `backward` made of it. The two hold all that is needed: the
    derivative with respect to a weight is made of what the weight's step read, and of the derivative with
    respect to what it computed. A tied `lm_head` is `wte`, so `wte.weight` then holds the sum over both uses.
    Of a run edited on its way, the edits count as additions of constants, as in `backward`.
    """
    _check_run(model, run)
    _check_record(model, gradients, "the record of gradients", is_gradient=True)
    if run.tokens is None or run.tokens.shape != run.logits.shape[:-1]:
        raise NanopatchError("the run does not know its tokens, which wte and wpe need: set run.tokens to their ids")
    if gradients.logits.shape != run.logits.shape:
        raise NanopatchError(
            f"the gradients are of a run whose logits have shape {gradients.logits.shape}, not {run.logits.shape}"
        )
    if gradients.tokens is not None and not np.array_equal(gradients.tokens, run.tokens):
        raise NanopatchError("the gradients are of a run on other tokens: give the run that backward was given")
    eps, d_model, grads = model.config.layer_norm_epsilon, model.d_model, {}

    for layer, block in enumerate(model.h):
        attn, mlp = block.attn, block.mlp
        d_c_attn = [np.empty_like(weight) for weight in attn.c_attn]  # (d_model, 3 d_model), (3 d_model,)
        d_ln_1 = []
        for i, name in enumerate("qkv"):
            x = getattr(run, f"{name}_input")[layer]  # (n_tokens, d_model)
            d_out = getattr(gradients, name)[layer].reshape(x.shape)  # (n_tokens, d_model)
            third = slice(i * d_model, (i + 1) * d_model)
            d_c_attn[0][:, third], d_c_attn[1][third] = affine_weights(layer_norm(x, *block.ln_1, eps), d_out)
            d_ln_1.append(layer_norm_weights(x, affine(d_out, attn.c_attn.weight[:, third].T), eps))
        d_mlp_pre, mlp_in = gradients.mlp_pre[layer], run.mlp_in[layer]
        for name, pair in {
            "ln_1": [sum(parts) for parts in zip(*d_ln_1, strict=True)],
            "attn.c_attn": d_c_attn,
            "attn.c_proj": affine_weights(run.z[layer].reshape(mlp_in.shape), gradients.attn_out[layer]),
            "ln_2": layer_norm_weights(mlp_in, affine(d_mlp_pre, mlp.c_fc.weight.T), eps),
            "mlp.c_fc": affine_weights(layer_norm(mlp_in, *block.ln_2, eps), d_mlp_pre),
            "mlp.c_proj": affine_weights(run.mlp_post[layer], gradients.mlp_out[layer]),
        }.items():
            grads[f"h.{layer}.{name}.weight"], grads[f"h.{layer}.{name}.bias"] = pair

    grads["ln_f.weight"], grads["ln_f.bias"] = layer_norm_weights(run.resid_post[-1], gradients.ln_final, eps)
    d_lm_head, _ = affine_weights(gradients.logits, run.ln_final)  # (n_vocab, d_model)

    # wte[tokens] + wpe[positions]: each row adds to the rows it was made of.
    d_embed = gradients.resid_pre[0]  # (n_tokens, d_model)
    tied = model.lm_head is model.wte
    grads["wte.weight"] = d_lm_head if tied else np.zeros_like(model.wte)
    np.add.at(grads["wte.weight"], run.tokens, d_embed)
    grads["wpe.weight"] = np.zeros_like(model.wpe)
    grads["wpe.weight"][: d_embed.shape[-2]] = d_embed.reshape(-1, *d_embed.shape[-2:]).sum(axis=0)
    return grads if tied else grads | {"lm_head.weight": d_lm_head}


def named_weights(model):
    """{checkpoint key: array} of a model's weights, the arrays themselves; `lm_head.weight` only if it is not tied."""
    weights = {"wte.weight": model.wte, "wpe.weight": model.wpe}
    for layer, block in enumerate(model.h):
        for name, pair in {
            "ln_1": block.ln_1,
            "attn.c_attn": block.attn.c_attn,
            "attn.c_proj": block.attn.c_proj,
            "ln_2": block.ln_2,
            "mlp.c_fc": block.mlp.c_fc,
            "mlp.c_proj": block.mlp.c_proj,
        }.items():
            weights[f"h.{layer}.{name}.weight"], weights[f"h.{layer}.{name}.bias"] = pair
    weights["ln_f.weight"], weights["ln_f.bias"] = model.ln_f
    return weights if model.lm_head is model.wte else weights | {"lm_head.weight": model.lm_head}


# ---- backwards of the functions of layers.py --------------------------------------------------------


def affine_weights(x, d_y):
    """Derivatives with respect to weight and bias of `y = x @ weight + bias`, summed over all rows."""
    x, d_y = x.reshape(-1, x.shape[-1]), d_y.reshape(-1, d_y.shape[-1])
    return x.T @ d_y, d_y.sum(axis=0)


def layer_norm_backward(d_y, x, weight, eps):
    """Derivative with respect to x of `y = layer_norm(x, weight, bias, eps)`."""
    # y = weight n + bias, n = (x - mean(x)) / sigma, sigma^2 = mean((x - mean(x))^2) + eps. A change dx moves n by
    # dx / sigma, through mean(x) by -mean(dx) / sigma, and through sigma, which dx moves by mean(n dx), by
    # -n mean(n dx) / sigma. All three are symmetric maps, so with d_n = weight d_y:
    # d_x = (d_n - mean(d_n) - n mean(n d_n)) / sigma.
    normed, sigma = _standardise(x, eps)
    d_normed = d_y * weight
    d_x = d_normed - d_normed.mean(axis=-1, keepdims=True)
    d_normed *= normed
    normed *= d_normed.mean(axis=-1, keepdims=True)
    d_x -= normed
    d_x /= sigma
    return d_x


def layer_norm_weights(x, d_y, eps):
    """Derivatives with respect to weight and bias of `y = layer_norm(x, weight, bias, eps)`, summed over all rows."""
    normed, _ = _standardise(x, eps)
    over_rows = tuple(range(x.ndim - 1))
    return (normed * d_y).sum(axis=over_rows), d_y.sum(axis=over_rows)


def _standardise(x, eps):
    normed = x - x.mean(axis=-1, keepdims=True)
    sigma = np.sqrt((normed * normed).mean(axis=-1, keepdims=True) + eps)
    normed /= sigma
    return normed, sigma


def gelu_new_slope(x):
    """dy/dx of y = x (1 + t) / 2, t = tanh(u), u = a (x + b x^3)."""
    # The product rule: (1 + t) / 2 + x t' / 2, where t' = (1 - t^2) u' and u' = a (1 + 3 b x^2).
    a, b = math.sqrt(2 / math.pi), 0.044715
    squared = x * x
    t = np.tanh(a * x * (1 + b * squared))
    return 0.5 * (1 + t) + 0.5 * a * x * (1 - t * t) * (1 + 3 * b * squared)


def gelu_slope(x):
    """dy/dx of y = x Phi(x): Phi(x) + x phi(x), the normal distribution's and, as its derivative, its density."""
    erf = np.frompyfunc(math.erf, 1, 1)(x * math.sqrt(0.5)).astype(x.dtype)
    return 0.5 * (1 + erf) + x * np.exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi))


def relu_slope(x):
    """dy/dx of y = max(x, 0): 1 above 0, else 0; at 0 itself, where there is none, 0 as in PyTorch."""
    return (x > 0).astype(x.dtype)


SLOPES = {"gelu_new": gelu_new_slope, "gelu": gelu_slope, "relu": relu_slope}


# ---- checks ---------------------------------------------------------------------------------------


def _check_run(model, run):
    """NanopatchError unless `run` is a full record of this model, and not of another one of its shape."""
    _check_record(model, run, "the run", is_gradient=False)
    if run.model in (None, model):  # None: recorded from a loop of one's own, which does not say
        return
    ours, theirs = named_weights(model), named_weights(run.model)
    if ours.keys() != theirs.keys() or not all(np.array_equal(ours[key], theirs[key]) for key in ours):
        raise NanopatchError(f"the run is of another model, {run.model!r}, with other weights: record it with this one")


def _check_record(model, record, what, is_gradient):
    """NanopatchError unless `record` holds every named array, in the shapes and the dtype that `model` gives them."""
    if not isinstance(record, Run):
        raise NanopatchError(f"{what} must be a record as model.run(prompt) returns it, not {type(record).__name__}")
    if record.is_gradient != is_gradient:
        kinds = ("arrays of a run", "derivatives")
        raise NanopatchError(f"{what} holds {kinds[record.is_gradient]}, not {kinds[is_gradient]}")
    missing = [name for name in SITES if name not in record.names]
    if missing:
        raise NanopatchError(f"{what} lacks {', '.join(missing)}: record every array, with sites=None")
    *batch, n_tokens, _ = record.logits.shape
    heads, square = (n_tokens, model.n_head, model.d_head), (model.n_head, n_tokens, n_tokens)
    last = dict.fromkeys(("q", "k", "v", "z"), heads) | dict.fromkeys(ATTENTION_SITES, square)
    last |= dict.fromkeys(("mlp_pre", "mlp_post"), (n_tokens, model.d_mlp)) | {"logits": (n_tokens, model.n_vocab)}
    for name in SITES:
        array, layers = getattr(record, name), (model.n_layer,) if name in BLOCK_SITES else ()
        shape = (*layers, *batch, *last.get(name, (n_tokens, model.d_model)))
        if array.shape != shape or array.dtype != model.dtype:
            raise NanopatchError(
                f"{what} is not of this model: its {name} has shape {array.shape} and dtype {array.dtype}, "
                f"where this model makes {shape} and {model.dtype}"
            )
