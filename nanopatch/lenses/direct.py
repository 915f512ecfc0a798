"""Direct logit attribution: how much each part of the residual stream adds to a difference of two logits.

batch  prompts of the run, if there are several    d_model  width of the residual stream
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import NanopatchError
from ..types import Array

if TYPE_CHECKING:
    from ..model.gpt2 import Model
    from ..model.sites import Run


def direct_logit_attribution(model: Model, run: Run, answers: Array) -> dict[str, list[Any]]:
    """What each part of the residual stream at the last position adds to the logit difference; the mean over a batch.

    ln_f is taken as linear, at the scale that it has in the run. A part c then adds
    ((c - mean(c)) / sigma) . (gamma * (W_U[answer] - W_U[wrong_answer])).

    Parameters
    ----------
    model : Model
    run : Run
        A full record of a prompt, or of a batch.
    answers : token ids, (2,) or (batch, 2)
        Answer and wrong answer of each prompt.

    Returns
    -------
    dict of str to list
        `logit_lens_pre_mid`: the residual stream itself, `resid_pre` and `resid_mid` of each layer, then the end.
        `layers_embed_pos_attn_mlp`: the parts of that sum, token and position embedding, then each layer's two.
        `heads`: (n_layer, n_head), each head without its share of the value bias. TransformerLens counts that
        share as part of the attention layer's bias.

    Raises
    ------
    NanopatchError
        If the answers are not two token ids for each prompt.

    References
    ----------
    Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits".
    """
    tokens, ids = np.asarray(run.tokens), np.asarray(answers)  # (batch, n_tokens), (batch, 2)
    shape = (*tokens.shape[:-1], 2)
    if ids.dtype.kind not in "iu" or ids.shape != shape or ids.min() < 0 or ids.max() >= model.n_vocab:
        raise NanopatchError(
            f"answers are token ids of shape {shape}, answer and wrong answer of each prompt, from 0 to "
            f"{model.n_vocab - 1}; not {answers!r:.60}"
        )
    final = run.resid_post[-1][..., -1, :]  # (batch, d_model)
    sigma = np.sqrt(final.var(axis=-1, keepdims=True) + model.config.layer_norm_epsilon)
    towards = model.ln_f.weight * (model.lm_head[ids[..., 0]] - model.lm_head[ids[..., 1]]) / sigma

    def read(part: Array) -> float:  # (batch, d_model), or (d_model,) for all prompts
        return float(((part - part.mean(axis=-1, keepdims=True)) * towards).sum(axis=-1).mean())

    lens, heads = [], []
    parts = [read(model.wte[tokens[..., -1]]), read(model.wpe[tokens.shape[-1] - 1])]
    for layer, block in enumerate(model.h):
        lens += [read(run.resid_pre[layer][..., -1, :]), read(run.resid_mid[layer][..., -1, :])]
        parts += [read(run.attn_out[layer][..., -1, :]), read(run.mlp_out[layer][..., -1, :])]
        value_bias = block.attn.c_attn.bias[2 * model.d_model :].reshape(model.n_head, model.d_head)
        w_o = block.attn.c_proj.weight.reshape(model.n_head, model.d_head, model.d_model)
        z = run.z[layer][..., -1, :, :] - value_bias  # (batch, n_head, d_head)
        heads.append([read(z[..., head, :] @ w_o[head]) for head in range(model.n_head)])
    lens.append(read(final))
    return {"logit_lens_pre_mid": lens, "layers_embed_pos_attn_mlp": parts, "heads": heads}
