# %% [markdown]
# # 8. Attribution patching: an estimate of all patches at once, and where it fails
#
# *10 minutes. You know lessons 1 to 3, and what a derivative is.*
#
# A sweep runs the model once for each cell. In a large model with long prompts that is much. *Attribution patching*
# (Nanda 2023) estimates all cells from two runs and one backward pass. In this lesson you see how good the estimate
# is, where it is wrong, and how to make it better.

# %%
import numpy as np

import nanopatch
from nanopatch.experiments import INDIRECT_OBJECT
from nanopatch.lessons import check, hint, show, solution

model = nanopatch.load("nano")
tokens = INDIRECT_OBJECT.tokens(model)
print(INDIRECT_OBJECT.clean, "|", INDIRECT_OBJECT.corrupted)

# %% [markdown]
# ## Exact patching
#
# In the clean prompt John gives the drink, so it goes to Mary. In the corrupted prompt Mary gives it, so it goes to
# John. The exact grid has 4 x 14 = 56 cells, one patched run for each:

# %%
exact = nanopatch.sweep(model, INDIRECT_OBJECT)
assert exact.grid.shape == (4, 14)
show(exact)

# %% [markdown]
# ## The estimate, by hand
#
# How much would the logit difference change if one vector of the corrupted run changed a little? The derivative says
# so. A backward pass gives it for every array at once. It begins at the logits: the logit difference is `logits[-1,
# Mary] - logits[-1, John]`, so its derivative is 1 at the one, -1 at the other, and 0 elsewhere.

# %%
clean, corrupted = model.run(tokens.clean), model.run(tokens.corrupted)
d_logits = np.zeros_like(corrupted.logits)  # (n_tokens, n_vocab)
d_logits[-1, tokens.answer], d_logits[-1, tokens.wrong_answer] = 1, -1
gradients = model.backward(corrupted, d_logits)  # as a run: gradients.resid_pre, gradients.z, ...
assert gradients.resid_pre.shape == corrupted.resid_pre.shape

# %% [markdown]
# A patch changes the vector by `clean - corrupted`. Its effect is estimated as that change times the derivative,
# summed over the vector. One product for the whole grid:

# %%
change = clean.resid_pre - corrupted.resid_pre  # (n_layer, n_tokens, d_model)
effect = (gradients.resid_pre * change).sum(axis=-1)  # (n_layer, n_tokens)

# %% [markdown]
# `nanopatch.attribute` does the same. Its grid adds the corrupted run's value, so that it can be put beside the sweep.

# %%
estimate = nanopatch.attribute(model, INDIRECT_OBJECT)
assert np.allclose(estimate.grid, exact.baseline_corrupted + effect, atol=1e-3)
show(estimate)

# %% [markdown]
# ## Where it fails
#
# The same cells are dark, but not as dark. The first name that differs is at position 9. At layer 0 its patch brings
# back the whole answer (1.00). The estimate says 0.52: half of that.

# %%
assert round(exact.normalised[0, 9], 2) == 1.00
assert round(estimate.normalised[0, 9], 2) == 0.52

comparison = nanopatch.Comparison(exact, estimate)
print(comparison)
assert comparison.correlation > 0.97 and comparison.slope < 0.7

# %% [markdown]
# The order of the cells is nearly right (the correlation is above 0.97), but the sizes are not (the slope is below
# 0.7).
#
# Why? A derivative is the slope at one point: at the corrupted run. From there to the clean run is a long way, and on
# it the slope changes. LayerNorm rescales. Attention saturates: where a head already looks at one token only, the
# softmax is flat. You can see the way. Put a part t of the change into the corrupted run, for t from 0 to 1:

# %%
shares = np.linspace(0, 1, 6)
values = []
for t in shares:
    for site in model.steps(tokens.corrupted):
        if site.name == "resid_pre" and site.layer == 0:
            site.array[9] += t * change[0, 9]
    values.append(site.array[-1, tokens.answer] - site.array[-1, tokens.wrong_answer])
for t, value in zip(shares, values, strict=True):
    straight = values[0] + t * effect[0, 9]
    print(f"t = {t:.1f}: exact {value:6.2f}, on a straight line {straight:6.2f}")

slopes = np.diff(values) / np.diff(shares)
assert slopes.max() > 2 * effect[0, 9]  # on the way it is steeper than at the start

# %% [markdown]
# The estimate follows the slope at the start. Later the way is more than twice as steep.
#
# ## Integrated gradients
#
# The mend: take the slope at several points on the way, and their mean (Sundararajan et al. 2017). With `steps=2`, the
# largest error of any cell falls from 13.3 to 0.5, on a scale where the two runs are 27.7 apart. Each step costs a run
# and a backward pass.

# %%
whole = exact.baseline_clean - exact.baseline_corrupted
assert round(whole, 1) == 27.7

errors = {}
for steps in (1, 2, 4, 16):
    integrated = nanopatch.attribute(model, INDIRECT_OBJECT, steps=steps)
    errors[steps] = np.abs(integrated.grid - exact.grid).max()
    total = (integrated.grid - integrated.baseline_corrupted).sum(axis=1) / whole  # (n_layer,)
    print(f"{steps:>2} steps: largest error {errors[steps]:5.2f}; each layer's sum / the whole: {total.round(2)}")
assert round(float(errors[1]), 1) == 13.3 and round(float(errors[2]), 1) == 0.5
assert np.allclose(total, 1, atol=0.01)

# %% [markdown]
# With many steps, the estimates of a layer add up to the whole difference: that is the promise of integrated
# gradients, and it is kept. But more steps do not bring the single cells closer: with 16 the largest error is larger
# than with 2. On the way all positions change together, and exact patching changes one alone. Where positions act
# together, no number of steps mends that.

# %%
assert errors[16] > errors[2]

# %% [markdown]
# ## When to use it
#
# For finding the cells that are worth a real patch: yes. As the size of an effect: patch those cells. On this small
# model a sweep is cheap, so you can always have both.
#
# ## Exercises
#
# **8.1** The estimate at layer 2, position 10, as a normalised value: what part of the exact one is it? (A number from
# 0 to 1.)

# %%
answer = None
check("8.1", answer)

# %% [markdown]
# **8.2** Estimate the effect of each *head* by hand: the product of `gradients.z` and the change of `z`, summed over
# positions and d_head. Give an array (n_layer, n_head).

# %%
answer = None
check("8.2", answer)

# %% [markdown]
# **8.3** Estimate the other direction: the corrupted vectors go into the clean run (noising). At which run must the
# derivative be taken? Give the grid of effects for `resid_pre`, (n_layer, n_tokens), by hand.

# %%
answer = None
check("8.3", answer)

# %% [markdown]
# **8.4** Find an experiment of your own for which the estimate is good: a slope between 0.8 and 1.2 for `resid_pre`.
# The answer is the `nanopatch.Experiment`. (Try also how few tokens may differ.)

# %%
answer = None
check("8.4", answer)
