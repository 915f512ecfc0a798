# %% [markdown]
# # 5. What each layer would say, and which part wrote the answer
#
# *10 minutes. You know lessons 1 and 4.*
#
# The residual stream is a sum of what the parts of the model have written. So it can be read before it is finished
# (the *logit lens*), and the final sum can be taken apart (*direct logit attribution*). Both look at one run, and
# patch nothing.

# %%
import numpy as np

import nanopatch
from nanopatch import Patch
from nanopatch.experiments import MICHELLE
from nanopatch.lessons import check, hint, show, solution

model = nanopatch.load("nano")
run = model.run(MICHELLE.clean)
jones, smith = model.tokenize(" Jones Smith")

# %% [markdown]
# ## The logit lens, by hand
#
# At the end, the model takes the residual stream, applies the final LayerNorm, and multiplies by `lm_head`. Do the
# same with the residual stream of an earlier layer, as if the layers after it were left out (nostalgebraist 2020):


# %%
def layer_norm(x, weight, bias):  # (..., d_model)
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-5) * weight + bias


early = layer_norm(run.resid_pre[2, -1], model.ln_f.weight, model.ln_f.bias) @ model.lm_head.T  # (n_vocab,)
print("after two of the four layers:", model.token_strings([early.argmax()]))
assert early.argmax() == jones

# %% [markdown]
# After two of the four layers, at the last position, the model would already say " Jones". `nanopatch.logit_lens`
# reads all layers and positions, before and after attention:

# %%
lens = nanopatch.logit_lens(model, run, " Jones", " Smith")
show(lens)
assert np.isclose(lens.logit_diff[4, -1], early[jones] - early[smith], rtol=1e-4)  # row 4 is resid_pre of layer 2

last = dict(zip(lens.rows, lens.logit_diff[:, -1], strict=True))
for row, value in last.items():
    print(f"{row:13} {value:6.2f}")

# %% [markdown]
# The numbers are the logit difference at the last position. Before attention of layer 1 it is below 3. After it, it is
# above 25. What lesson 4 found by patching is seen here in one run. After that, the later layers do not raise it. The
# last one lowers it, to 17.1.

# %%
assert last["resid_pre 1"] < 3 and last["resid_mid 1"] > 25
assert round(float(last["resid_post 3"]), 1) == 17.1
assert last["resid_post 3"] < last["resid_mid 3"]

# %% [markdown]
# Be careful with the early rows. The lens reads them in the language of the last layer, and an early layer need not
# speak it. Before layer 1, at the last position, the row says nothing like a name's continuation. That does not mean
# that the model knows nothing there.
#
# ## Which part wrote it? By hand
#
# The final residual stream is: embeddings + every head's output + every MLP's output + biases. The logit difference is
# a product of this sum (after LayerNorm) with one direction. If LayerNorm's division is taken as it is in this run,
# the product with the sum is the sum of the products: each part has its own share (Elhage et al. 2021). For head 1.3:

# %%
final = run.resid_post[-1, -1]  # (d_model,), at the last position
sigma = np.sqrt(final.var() + 1e-5)
direction = model.ln_f.weight * (model.lm_head[jones] - model.lm_head[smith]) / sigma  # (d_model,)
direction -= direction.mean()  # LayerNorm subtracts the mean of each part

layer, head = 1, 3
rows = slice(head * model.d_head, (head + 1) * model.d_head)
written = run.z[layer, -1, head] @ model.h[layer].attn.c_proj.weight[rows]  # (d_model,): what the head wrote
print(f"head 1.3 wrote {written @ direction:.2f} of the logit difference")

# %% [markdown]
# `nanopatch.direct_logit_attribution` does that for every part. Nothing is left over: the parts sum to the logit
# difference.

# %%
direct = nanopatch.direct_logit_attribution(model, run, " Jones", " Smith")
show(direct)
assert np.isclose(direct.parts["head 1.3"], written @ direction, rtol=1e-3)
assert np.isclose(sum(direct.parts.values()), run.logits[-1, jones] - run.logits[-1, smith], rtol=1e-4)

# %% [markdown]
# The four heads of layer 1 write most of it, between 3.2 and 3.7 each. Then comes the MLP of layer 3.

# %%
movers = [direct.parts[f"head 1.{head}"] for head in range(4)]
assert min(movers) > 3.2 and max(movers) < 3.7
assert sum(movers) > 0.7 * sum(direct.parts.values())
assert sorted(direct.parts, key=direct.parts.get)[-5] == "mlp 3"

# %% [markdown]
# ## What it does not say
#
# It counts only what a part writes *directly* for the answer at that position. A part may write something that a later
# part needs. Patching counts that too. Compare both for head 0.0:

# %%
effects = nanopatch.sweep(model, MICHELLE, Patch("z", axes=("layer", "head")))
whole = effects.baseline_clean - effects.baseline_corrupted
patched = effects.normalised[0, 0] * whole
print(f"head 0.0: patching it changes the logit difference by {patched:.1f}; it writes {direct.parts['head 0.0']:.1f}")
assert patched > 10 > 1 > direct.parts["head 0.0"]

# %% [markdown]
# Patching head 0.0 changes more than 10, but the head writes less than 1 itself. Its work is done at the surname,
# where the heads of layer 1 take it up. So: a large direct part tells who wrote the answer down, a large patch effect
# tells who was needed for it. The next lessons follow the way in between.
#
# ## Exercises
#
# **5.1** In the corrupted run (" Smith"), which head writes most *against* " Jones", that is, has the most negative
# part of the logit difference of " Jones" minus " Smith"? Give its name, such as "head 2.1".

# %%
answer = None
check("5.1", answer)

# %% [markdown]
# **5.2** By the lens of the clean run: in which row does " Jones" become the likeliest token at the last position for
# the first time? Give the row's name, as in `lens.rows`.

# %%
answer = None
check("5.2", answer)

# %% [markdown]
# **5.3** Read a patched run. Write a generator that loops over `model.steps` of the corrupted prompt, makes the patch
# of lesson 2 (`resid_pre` of layer 1 at position 1, from the clean run), and yields each site. `nanopatch.record`
# makes a run of it. What is the lens's logit difference in the row "resid_mid 1", at the last position?

# %%
answer = None
check("5.3", answer)
