# %% [markdown]
# # 2. The first patch, by hand and as a heatmap
#
# *10 minutes. You know lesson 1.*
#
# Run the model on two prompts. Copy one array of the first run into the second run, and let the model go on. If the
# prediction of the second run becomes that of the first, the array held what makes the difference. That is *activation
# patching*.

# %%
import numpy as np

import nanopatch
from nanopatch.experiments import ELON, JESSICA, MICHELLE
from nanopatch.lessons import check, hint, show, solution

model = nanopatch.load("nano")

clean = model.run("Michelle Jones was a top-notch student. Michelle")
corrupted = model.run("Michelle Smith was a top-notch student. Michelle")

# %% [markdown]
# The first prompt is called *clean*, the second one *corrupted*. They differ in one token, the surname. One number
# says what the model predicts: the *logit difference*, the logit of " Jones" minus the logit of " Smith" at the last
# position.

# %%
jones, smith = model.tokenize(" Jones Smith")


def logit_diff(logits):  # (n_tokens, n_vocab)
    return logits[-1, jones] - logits[-1, smith]


print(f"clean {logit_diff(clean.logits):.2f}, corrupted {logit_diff(corrupted.logits):.2f}")
assert round(float(logit_diff(clean.logits)), 1) == 17.1
assert round(float(logit_diff(corrupted.logits)), 1) == -13.4

# %% [markdown]
# 17.1 for the clean run: " Jones" is far more likely. -13.4 for the corrupted run: " Smith" is.
#
# ## One patch
#
# Run the corrupted prompt. When the residual stream at the start of layer 1 is there, replace the vector of the
# surname's position by the one of the clean run. That is one assignment. The model goes on with the changed array.

# %%
for site in model.steps("Michelle Smith was a top-notch student. Michelle"):
    if site.name == "resid_pre" and site.layer == 1:
        site.array[1] = clean.resid_pre[1, 1]  # the patch: layer 1, position 1
one_patch = logit_diff(site.array)  # the last array handed over are the logits

print(f"after the patch {one_patch:.2f}")
assert round(float(one_patch), 1) == 16.3

# %% [markdown]
# 16.3. The prompt still says "Michelle Smith", but the model answers " Jones", nearly as surely as in the clean run.
# So at the start of layer 1, the surname is still kept at its own position.
#
# ## Every layer and every position
#
# Make the same patch at each layer and position, one at a time: 4 x 11 = 44 runs.

# %%
grid = np.zeros((model.n_layer, len(corrupted.tokens)))
for layer in range(model.n_layer):
    for position in range(len(corrupted.tokens)):
        for site in model.steps("Michelle Smith was a top-notch student. Michelle"):
            if site.name == "resid_pre" and site.layer == layer:
                site.array[position] = clean.resid_pre[layer, position]
        grid[layer, position] = logit_diff(site.array)

# %% [markdown]
# Such numbers are easier to compare on a scale: 0 is the run that was patched into (corrupted), 1 is the run that was
# patched from (clean). The function `nanopatch.sweep` makes the same grid, but much faster, and draws it.

# %%
low, high = logit_diff(corrupted.logits), logit_diff(clean.logits)
normalised = (grid - low) / (high - low)

result = nanopatch.sweep(model, MICHELLE)  # a named experiment: these two prompts and these two answers
assert grid.size == 44
assert np.allclose(result.grid, grid, atol=1e-3)
assert np.allclose(result.normalised, normalised, atol=1e-4)
show(result)

# %% [markdown]
# In a notebook and in the documentation this is a picture. A script prints it as a table, where a row is a position, a
# column is a layer, and the darkest sign is █.
#
# How to read it:
#
# - **A dark cell** (near 1): this one vector is enough to bring the clean answer back.
# - **A light cell** (near 0): the patch changes nothing. The difference may not be enough alone (lesson 3), or nobody
#   reads it.
# - **A dot**: the patch cannot change anything. At layer 0 the vectors of equal tokens are equal. And no token sees a
#   later one, so the first position is the same in both runs, in every layer. In later pictures also where a patch
#   cannot reach the last position.
# - A value is not a probability. It can be below 0 or above 1.
#
# What it shows: at layers 0 and 1 the surname is at its own position. From layer 2 on it is at the last position. So
# layer 1 moves it: it is attention that moves things between positions. After that, the surname's own position is not
# enough any more.

# %%
surname, last = result.normalised[:, 1], result.normalised[:, -1]
assert surname[:2].min() > 0.9 and abs(surname[2:]).max() < 0.1
assert last[2:].min() > 0.9 and abs(last[:2]).max() < 0.1
between = result.normalised[:, 2:-1]
assert abs(between).max() < 0.01

# %% [markdown]
# ## Two more experiments
#
# In the next pair three tokens differ: both first names and the surname. Which of them matters?

# %%
print(JESSICA.clean, "|", JESSICA.corrupted)
jessica = nanopatch.sweep(model, JESSICA)
show(jessica)

# %% [markdown]
# Again the surname's position is dark, and then the last one. The first names differ too, and their cells at layer 0
# are not dark. They are even a little below 0. (If values are below 0, the picture has two colours: red is above 0,
# blue is below.) A difference between the prompts is not yet a difference that the answer is made of. Here the model
# takes the only surname there is.

# %%
assert jessica.normalised[0, 1] > 0.9 and jessica.normalised[2, -1] > 0.8
assert -0.3 < jessica.normalised[0, 0] < 0 and -0.3 < jessica.normalised[0, -1] < 0

# %% [markdown]
# In the third pair, the prompts do not even have the same number of tokens: "Elon" at the start is two tokens, "Steve"
# is one. Then it is not clear which vector replaces which. With `align="diff"`, which this experiment has, the library
# pairs equal tokens, as `diff` does with lines. Of unequal tokens between them, it pairs the last ones, and leaves out
# what has no partner.

# %%
print(ELON.clean, "|", ELON.corrupted)
elon = nanopatch.sweep(model, ELON)
show(elon)
assert (len(model.tokenize(ELON.clean)), len(model.tokenize(ELON.corrupted))) == (16, 15)
assert np.isnan(elon.normalised[:, 0]).all()  # the column without a partner
assert elon.normalised[1, 2] > 0.9 and elon.normalised[2, -1] > 0.9
assert np.nanmin(elon.normalised[0]).round(2) == -0.62 and elon.normalised[0, -1].round(2) == 0.28
last = [model.run(prompt).resid_pre[0, -1] for prompt in (ELON.clean, ELON.corrupted)]
assert np.allclose(last[0] - model.wpe[15], last[1] - model.wpe[14], atol=1e-5)  # the same token

# %% [markdown]
# From layer 1 on the picture is the same once more: the surname first, then the last position, and attention in layer
# 1 in between. At layer 0 the words before the surnames count too: -0.62. And 0.28 at the last position, where both
# prompts have " Elon": the patch carries the position embedding of position 15 to position 14. Three prompts of nearly
# one form are a reason to try others. The next lessons look at what in layer 1 does it.
#
# ## Exercises
#
# **2.1** Patch `resid_pre` of layer 2 at the last position, from the clean into the corrupted run. What is the logit
# difference then?

# %%
answer = None
check("2.1", answer)

# %% [markdown]
# **2.2** Patch `resid_pre` of layer 2 at *all* positions at once. Say first what you expect. What is the logit
# difference?

# %%
answer = None
check("2.2", answer)

# %% [markdown]
# **2.3** How many cells of `result` have a dot: a patch that cannot change anything? (`result.unchanged` has them.)
# Count them by looking before you let NumPy count.

# %%
answer = None
check("2.3", answer)

# %% [markdown]
# **2.4** Patch `attn_out` (what attention adds to the residual stream) instead of `resid_pre`. (That is the third
# argument of `nanopatch.sweep`.) At which layer is the largest effect at the last position? Give its number.

# %%
answer = None
check("2.4", answer)

# %% [markdown]
# **2.5** Make an experiment of your own: `nanopatch.Experiment(clean, corrupted, answer, wrong_answer)`, with other
# names than these. It should give a logit difference above 5 for the clean run, and below -5 for the corrupted one.
# The answer is the experiment.

# %%
answer = None
check("2.5", answer)
