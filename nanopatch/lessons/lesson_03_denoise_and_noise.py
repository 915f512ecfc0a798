# %% [markdown]
# # 3. Denoising and noising, on models whose answer is known
#
# *10 minutes. You know lesson 2.*
#
# A patch can go two ways. *Denoising* puts a clean vector into the corrupted run, and asks: is this enough to bring
# the answer back? *Noising* puts a corrupted vector into the clean run, and asks: is this needed? In lesson 2 both
# would have given nearly the same picture (try `direction="noise"`). In this lesson they give opposite ones, and you
# know why, because you know each weight.

# %%
import numpy as np

import nanopatch
from nanopatch import Patch
from nanopatch.experiments import MICHELLE
from nanopatch.lessons import check, hint, show, solution
from nanopatch.lessons.programs import and_gate, or_gate

# %% [markdown]
# ## A model written by hand
#
# `and_gate()` is a GPT-2 with one layer. Nobody trained it: each weight was written down. Its prompts are two bits and
# an equals sign. It goes on with "1" if both bits are 1, else with "0".

# %%
gate = and_gate().model

for prompt in ("00=", "01=", "10=", "11="):
    logits = gate.run(prompt).logits[-1]  # (n_vocab,): of "0", "1" and "="
    print(prompt, gate.detokenize([logits.argmax()]), logits)
    assert gate.detokenize([logits.argmax()]) == ("1" if prompt == "11=" else "0")

# %% [markdown]
# How it works: head 0.0 copies the first bit to the last position, head 0.1 the second bit. Call them a and b. The MLP
# has one neuron. It computes relu(2a + 2b - 3) (relu(x) is x above 0, else 0), which is 1 if both bits are 1, else 0.
# The logits are made of that. (`nanopatch/lessons/programs.py` writes the weights, and says how LayerNorm is kept from
# changing anything.)

# %%
run = gate.run("10=")
a, b = run.z[0, -1, 0, 0], run.z[0, -1, 1, 0]  # layer 0, last position, heads 0 and 1, their first dimension
assert (a, b) == (1, 0)
assert run.mlp_pre[0, -1, 0] == 2 * a + 2 * b - 3 == -1
assert run.mlp_post[0, -1, 0] == 0  # relu

# %% [markdown]
# ## Denoising the AND gate
#
# Clean is "11=", which answers "1". Corrupted is "00=". The answer is computed from both heads: that is certain. Now
# patch one head's output at a time, from the clean run into the corrupted run. First by hand:

# %%
clean, corrupted = gate.run("11="), gate.run("00=")
zero, one = gate.tokenize("01")

for head in (0, 1):
    for site in gate.steps("00="):
        if site.name == "z" and site.layer == 0:
            site.array[:, head] = clean.z[0, :, head]  # (n_tokens, n_head, d_head)
    print(f"head 0.{head}: logit difference {site.array[-1, one] - site.array[-1, zero]}")
    assert site.array[-1, one] - site.array[-1, zero] == -10  # as in the corrupted run

# %% [markdown]
# Nothing happens. With one bit mended, the gate sees "10" or "01", and the answer is still "0". The library agrees. In
# its pictures 0 is always the run that was patched into, and 1 the run that was patched from.

# %%
heads = Patch("z", axes=("layer", "head"))  # a patch for each layer and head, at all positions at once
experiment = and_gate().experiment  # "11=" and "00=", with the answers "1" and "0"

denoised = nanopatch.sweep(gate, experiment, heads, direction="denoise")
show(denoised)
assert np.array_equal(denoised.normalised, [[0, 0]])

# %% [markdown]
# Who only denoises concludes that no head matters. That is false.
#
# ## Noising the AND gate
#
# Now the other way: corrupted vectors go into the clean run. One wrong bit is enough to spoil the answer.

# %%
noised = nanopatch.sweep(gate, experiment, heads, direction="noise")
show(noised)
assert np.array_equal(noised.normalised, [[1, 1]])

# %% [markdown]
# Each head alone changes everything: each is *needed*. Neither is *enough*.
#
# ## The OR gate is the opposite
#
# `or_gate()` answers "1" if any bit is 1. One mended bit is enough, and no single bit is needed.

# %%
or_model, or_experiment = or_gate().model, or_gate().experiment
denoised = nanopatch.sweep(or_model, or_experiment, heads, direction="denoise")
noised = nanopatch.sweep(or_model, or_experiment, heads, direction="noise")
print("OR gate, denoised", denoised.normalised, "noised", noised.normalised + 0.0)
assert np.array_equal(denoised.normalised, [[1, 1]])
assert np.array_equal(noised.normalised, [[0, 0]])

# %% [markdown]
# | | denoising: is it enough? | noising: is it needed? |
# |---|---|---|
# | AND: all parts together | nothing found | each part found |
# | OR: each part can stand in for the others | each part found | nothing found |
#
# Redundant heads, which do the same work, are like an OR gate. Steps that come one after the other are neither:
# mending one mends what follows, and breaking one breaks it, so that both directions find each.
#
# Enough and needed are said of a pair, in its order. Exchange clean and corrupted, and the table turns over, with the
# same weights: "0" comes out if *any* bit is 0, so for the answer "0" the AND gate is an OR gate.

# %%
exchanged = nanopatch.Experiment("00=", "11=", "0", "1")
assert np.array_equal(nanopatch.sweep(gate, exchanged, heads, direction="denoise").normalised, [[1, 1]])
assert np.array_equal(nanopatch.sweep(gate, exchanged, heads, direction="noise").normalised, [[0, 0]])

# %% [markdown]
# ## In a trained model
#
# In `nano` several heads of layer 1 look at the surname. Patch each of them, both ways, on the experiment of lesson 2:

# %%
nano = nanopatch.load("nano")
denoised = nanopatch.sweep(nano, MICHELLE, heads, direction="denoise").normalised  # (n_layer, n_head)
noised = nanopatch.sweep(nano, MICHELLE, heads, direction="noise").normalised
for head in range(nano.n_head):
    print(f"head 1.{head}: denoised {denoised[1, head]:5.2f}  noised {noised[1, head]:5.2f}")

# %% [markdown]
# No head of layer 1 is enough: none brings back more than a quarter of the difference. None is needed alone: without
# one, more than half of the difference stays. Both directions find each of them. So they are neither gate: they share
# one step of the work, and each adds a part.

# %%
assert denoised[1].min() > 0.15 and denoised[1].max() < 0.25
assert noised[1].max() < 0.5
assert 0.7 < denoised[1].sum() < 1
assert noised[1].min() > 0.15

# %% [markdown]
# So always say which direction a picture shows, and look at both before you say that a part does not matter.
# (Heimersheim and Nanda 2024 discuss this and other traps.)
#
# ## Exercises
#
# **3.1** In the AND gate, patch *both* heads at once, from "11=" into "00=". What is the logit difference of "1" and
# "0"?

# %%
answer = None
check("3.1", answer)

# %% [markdown]
# **3.2** Take the AND gate with clean "11=" and corrupted "01=": only the first bit differs. What are the normalised
# values of heads 0.0 and 0.1 when you denoise? Give an array of two numbers.

# %%
answer = None
check("3.2", answer)

# %% [markdown]
# **3.3** A model that you did not write has two heads. Denoising one of them gives 0.9, and noising the same one gives
# 0.1. What do the two heads resemble: "AND", "OR", or "SHARED" work, as in `nano`?

# %%
answer = None
check("3.3", answer)

# %% [markdown]
# **3.4** In `nano` on MICHELLE: put all four heads of layer 1 into the corrupted run at once (at all positions). What
# is the normalised value? Guess before you run it: they gave about 0.2 each.

# %%
answer = None
check("3.4", answer)
