"""Direct logit attribution: what the parts add up to."""

import numpy as np
import pytest
from conftest import tiny_model

from nanopatch import NanopatchError
from nanopatch.lenses.direct import direct_logit_attribution

TOKENS = [[1, 2, 3, 4], [5, 9, 3, 4], [7, 7, 2, 0]]
ANSWERS = np.array([[3, 7], [8, 1], [28, 0]])


@pytest.fixture(scope="module")
def direct():
    model = tiny_model(seed=3)
    run = model.run(TOKENS)
    return model, run, direct_logit_attribution(model, run, ANSWERS)


def approx(expected):
    return pytest.approx(np.asarray(expected), rel=1e-10, abs=1e-10)  # float64


def test_the_last_stream_is_the_logit_difference_without_ln_fs_bias(direct):
    model, run, values = direct
    logits = np.take_along_axis(run.logits[:, -1], ANSWERS, axis=-1)  # (batch, 2)
    bias = (model.lm_head[ANSWERS[:, 0]] - model.lm_head[ANSWERS[:, 1]]) @ model.ln_f.bias
    assert values["logit_lens_pre_mid"][-1] == approx((logits[:, 0] - logits[:, 1] - bias).mean())


def test_the_parts_add_up_to_the_stream_everywhere(direct):
    model, _, values = direct
    assert len(values["layers_embed_pos_attn_mlp"]) == 2 + 2 * model.n_layer
    # Behind embedding and position, behind each attn_out and each mlp_out: resid_pre, resid_mid, ..., the end.
    assert np.cumsum(values["layers_embed_pos_attn_mlp"])[1:] == approx(values["logit_lens_pre_mid"])


def test_heads_and_both_biases_add_up_to_the_attention_layers(direct):
    model, run, values = direct
    assert np.shape(values["heads"]) == (model.n_layer, model.n_head)
    final = run.resid_post[-1][:, -1]
    sigma = np.sqrt(final.var(axis=-1, keepdims=True) + model.config.layer_norm_epsilon)
    towards = ((model.lm_head[ANSWERS[:, 0]] - model.lm_head[ANSWERS[:, 1]]) * model.ln_f.weight / sigma).mean(axis=0)
    for layer, block in enumerate(model.h):
        value_bias = block.attn.c_attn.bias[2 * model.d_model :]
        bias = value_bias @ block.attn.c_proj.weight + block.attn.c_proj.bias  # (d_model,)
        expected = values["layers_embed_pos_attn_mlp"][2 + 2 * layer] - (bias - bias.mean()) @ towards
        assert sum(values["heads"][layer]) == approx(expected)


def test_the_mean_over_a_batch(direct):
    model, _, values = direct
    alone = [
        direct_logit_attribution(model, model.run([tokens]), ANSWERS[i : i + 1]) for i, tokens in enumerate(TOKENS)
    ]
    for name in values:
        assert np.array(values[name]) == approx(np.mean([one[name] for one in alone], axis=0))


def test_one_prompt_is_a_batch_of_one():
    model = tiny_model(seed=3)
    alone = direct_logit_attribution(model, model.run([1, 2, 3, 4]), [5, 7])
    batch = direct_logit_attribution(model, model.run([[1, 2, 3, 4]]), [[5, 7]])
    for name, values in alone.items():
        assert np.allclose(values, batch[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("answers", [[[5, 7]], [" a", " b"], [5, -1], [5, 29], [5], None], ids=repr)
def test_answers_that_are_not_two_ids_of_each_prompt(answers):
    model = tiny_model(seed=3)
    with pytest.raises(NanopatchError, match=r"answers are token ids of shape \(2,\), .* from 0 to 28; not "):
        direct_logit_attribution(model, model.run([1, 2, 3, 4]), answers)
