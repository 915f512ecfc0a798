# %% [markdown]
# # 1. The forward pass at a breakpoint
#
# *12 minutes. You know Python, NumPy, and that a language model predicts the next token.*
#
# GPT-2 is a chain of array operations. In this library each of these arrays has a name, and you can stop at each one
# and look. In this lesson you follow one prompt from text to prediction. All later lessons change something on the
# way.

# %%
import numpy as np

import nanopatch
from nanopatch.lessons import check, hint, solution

model = nanopatch.load("nano")
print(model)

# %% [markdown]
# `nano` is a real GPT-2, but a small one. It has 4 *layers* (also called blocks), one after the other. Each layer has
# two parts. *Attention* moves information from one token to another; it has 4 *heads*, which do that side by side. The
# *MLP* is a small network with one hidden layer of *neurons*; it works on each token by itself.
#
# `nano` was trained on a few kinds of sentences. One kind: people with a first name and a surname. When a first name
# comes again, the surname follows. (The lessons check what they say with `assert`: no output means that it holds.)

# %%
assert (model.n_layer, model.n_head, model.d_model) == (4, 4, 128)

prompt = "Michelle Jones was a top-notch student. Michelle"
tokens = model.tokenize(prompt)  # (n_tokens,): whole numbers, one for each piece of text
print(tokens)
print(model.token_strings(tokens))

# %% [markdown]
# The prompt has 11 tokens. Most are words with the space before them: `" Jones"` is one token. `top-notch` becomes
# four.
#
# ## Every array, in order
#
# `model.steps` is the forward pass. It is a generator: it computes one array, waits for the body of your loop, and
# goes on with what the array then holds. It hands over each array as soon as it exists, as a *site*: a place in the
# model, with the array's name, its layer, and the array itself.

# %%
assert len(tokens) == 11

for site in model.steps(prompt):
    if site.layer in (0, None):  # the other three layers look the same; the last two arrays belong to no layer
        print(site.layer, site.name, site.array.shape)

# %% [markdown]
# The shapes say what an array holds: (11, 128) is one vector of 128 numbers for each token. (11, 4, 32) is 32 numbers
# for each token in each of 4 heads. (4, 11, 11) is a number for each head and each pair of tokens. (11, 512) are the
# neurons of the MLP: `mlp_pre` each one's weighted sum, `mlp_post` the same after its activation function. The last
# array, `logits`, has a number for each of the 50,257 tokens that could come next. This lesson explains the names that
# you need now. The page *What is in a run* of the documentation has them all, in one picture.
#
# ## The residual stream
#
# `model.run` keeps all these arrays, with the layer as first axis (but for the last two).

# %%
run = model.run(prompt)
assert run.resid_pre.shape == (4, 11, 128)
assert run.mlp_post.shape == (4, 11, 512)
assert run.logits.shape == (11, 50257)

# %% [markdown]
# One array is carried through the whole model: the *residual stream*, a vector for each token. Its start is looked up
# in two tables: `model.wte` has a vector for each token that exists (its *embedding*), `model.wpe` one for each
# position. The two are added. In each layer, attention adds something, and then the MLP. Nothing else ever happens to
# the stream. So `resid_pre` is the stream before a layer, `attn_out` what attention adds, `resid_mid` the stream
# between, `mlp_out` what the MLP adds, and `resid_post` the stream after the layer. Check that yourself:

# %%
start = model.wte[tokens] + model.wpe[: len(tokens)]
assert np.array_equal(run.resid_pre[0], start)

for layer in range(model.n_layer):
    assert np.array_equal(run.resid_mid[layer], run.resid_pre[layer] + run.attn_out[layer])
    assert np.array_equal(run.resid_post[layer], run.resid_mid[layer] + run.mlp_out[layer])
    if layer + 1 < model.n_layer:
        assert np.array_equal(run.resid_pre[layer + 1], run.resid_post[layer])

# %% [markdown]
# ## Attention moves information between positions
#
# Attention is the only place where a token learns of other tokens. Each head makes three vectors of each token's
# stream: a *query* (`q`: what am I looking for?), a *key* (`k`: what do I have?) and a *value* (`v`: what do I give?).
# The dot product of a token's query with another token's key says how well they match. Softmax turns these numbers
# into shares that sum to 1: the `pattern`. No token sees a later one. The result `z` is the sum of the values, each
# times its share. Each head's `z` is then multiplied by a matrix of that head; the four products and a bias, summed,
# are `attn_out`.


# %%
def softmax(x):  # along the last axis
    exp = np.exp(x - x.max(axis=-1, keepdims=True))
    return exp / exp.sum(axis=-1, keepdims=True)


layer, head = 1, 3
q, k, v = run.q[layer, :, head], run.k[layer, :, head], run.v[layer, :, head]  # (n_tokens, d_head) each
scores = q @ k.T / np.sqrt(model.d_head)  # (n_query, n_key); the root keeps them from growing with d_head
scores[np.triu_indices(len(tokens), k=1)] = -np.inf  # above the diagonal: later tokens
pattern = run.pattern[layer, head]  # (n_query, n_key)
assert np.allclose(pattern, softmax(scores), atol=1e-5)
assert np.allclose(run.z[layer, :, head], pattern @ v, atol=1e-5)

last = pattern[-1]  # where the last token, " Michelle", looks
for token, share in zip(model.token_strings(tokens), last, strict=True):
    print(f"{token!r:12} {share:.3f}")

# %% [markdown]
# Head 1.3 (layer 1, head 3) is at the second " Michelle" and looks only at " Jones": the word that came after the
# first "Michelle". Lesson 6 shows how it finds that.
#
# ## The prediction
#
# After the last layer, a *LayerNorm* makes `ln_final` of the residual stream: it brings each vector to mean 0 and
# variance 1, and then scales and shifts its elements (exercise 1.4). Attention and the MLP of each layer read the
# stream through a LayerNorm too. The product of `ln_final` with each token's vector in `lm_head` is that token's
# *logit*. The logits of the last position say what comes next. Softmax turns them into probabilities.

# %%
assert model.token_strings([tokens[last.argmax()]]) == [" Jones"] and last.max() > 0.99
assert np.allclose(run.logits, run.ln_final @ model.lm_head.T, atol=1e-3)

logits = run.logits[-1]  # (n_vocab,)
probabilities = softmax(logits)
for token in logits.argsort()[::-1][:5]:
    print(f"{model.token_strings([token])[0]!r:12} logit {logits[token]:6.2f}  probability {probabilities[token]:.4f}")

# %% [markdown]
# The model is sure: " Jones", with a probability of 0.99.
#
# ## At a breakpoint
#
# All this can be watched while it happens. Stop at the marked line below, in a debugger (`python -m pdb
# lesson_01_forward_pass.py`, or VS Code). In pdb type `break 151`, `continue`, `site.array[-1] = 0`, `continue`.
# There, `site.array` is the array that was just made, and the model goes on with what it then holds. Without a change,
# the loop ends with the prediction from above. (In a notebook, write `breakpoint()` there instead.)

# %%
jones = tokens[1]
assert round(float(probabilities[jones]), 2) == 0.99

for site in model.steps(prompt):
    if site.name == "z" and site.layer == 1:
        pass  # stop here
prediction = site.array[-1].argmax()  # the last array handed over are the logits
print("the loop predicts", model.token_strings([prediction]))

# %% [markdown]
# ## Exercises
#
# Write your answer in place of `None`, and run it again. `hint("1.1")` and `solution("1.1")` help.
#
# **1.1** How many arrays does `model.steps(prompt)` hand over, all layers together?

# %%
answer = None
check("1.1", answer)

# %% [markdown]
# **1.2** At which token does head 3.3 look most, from the last position? Give its text.

# %%
answer = None
check("1.2", answer)

# %% [markdown]
# **1.3** How much does attention add to the residual stream in each layer, at the last position? Give the four norms
# (`np.linalg.norm`) of `attn_out` there, in an array.

# %%
answer = None
check("1.3", answer)

# %% [markdown]
# **1.4** Write a function `layer_norm(x, weight, bias)`: subtract the mean of each row, divide by the square root of
# (its variance + 1e-5), multiply by `weight`, add `bias`. With it, `model.ln_f.weight` and `model.ln_f.bias` you can
# make `run.ln_final` of `run.resid_post[-1]`. The answer is the function.

# %%
answer = None
check("1.4", answer)
