# %% [markdown]
# # 6. Induction heads, and the previous-token heads they need
#
# *10 minutes. You know lessons 1 and 4.*
#
# Give the model a sequence of random tokens, and then the same sequence again. The second copy can be predicted,
# though there is no meaning in it. The model does that with two kinds of heads that work one after the other (Elhage
# et al. 2021; Olsson et al. 2022). You find both kinds, and show that the second kind needs the first.

# %%
import numpy as np

import nanopatch
from nanopatch.lessons import check, show

model = nanopatch.load("nano")

n_repeat = 20
words = sorted(model.trained_tokens)  # ids of the tokens that were in nano's training data
half = np.random.default_rng(0).choice(words, (16, n_repeat))  # 16 sequences of 20 tokens
prompts = np.concatenate([half, half], axis=1)  # (16, 40): each sequence twice
run = model.run(prompts)  # a batch: one more axis, after that of layers
assert run.pattern.shape == (4, 16, 4, 40, 40)  # (n_layer, batch, n_head, n_query, n_key)


def accuracy(logits):  # (batch, n_tokens, n_vocab)
    """How often the next token is the likeliest one, in the second copy."""
    return float((logits[:, n_repeat:-1].argmax(axis=-1) == prompts[:, n_repeat + 1 :]).mean())


print(f"predicted in the second copy: {accuracy(run.logits):.2f}")
assert accuracy(run.logits) > 0.95

# %% [markdown]
# In the second copy, more than 0.95 of the tokens are predicted.
#
# ## Where must a head look?
#
# Say the sequence is `A B C ... A B C ...`, and the model is at the second A. It should predict B. So some head should
# look at B, the token after the first A. That is 19 positions back, always: 20 minus 1. Take the mean of these entries
# of each pattern:

# %%
offset = n_repeat - 1
queries = np.arange(n_repeat, 2 * n_repeat)
induction = run.pattern[:, :, :, queries, queries - offset].mean(axis=(1, 3))  # (n_layer, n_head)
print(induction.round(2))
assert induction[1].min() > 0.8
assert np.delete(induction, 1, axis=0).max() < 0.1

# %% [markdown]
# All four heads of layer 1 look there, with more than 0.8 of their attention. No other head does. These are the
# *induction heads* of this model.
#
# ## How do they know where B is?
#
# The head at the second A has to find a position whose *previous* token was A. But a position holds its own token. So
# somebody must have written there what came before: a *previous-token head* in an earlier layer. It looks one position
# back:

# %%
queries = np.arange(1, 2 * n_repeat)
previous = run.pattern[:, :, :, queries, queries - 1].mean(axis=(1, 3))  # (n_layer, n_head)
print(previous.round(2))
assert min(previous[0, 1], previous[0, 3]) > 0.6
others = previous.copy()
others[0, [1, 3]] = 0
assert others.max() < 0.3

# %% [markdown]
# Heads 0.1 and 0.3 look one position back, with more than 0.6 of their attention. `nanopatch.head_scores` measures all
# such habits at once, on random tokens of its own:

# %%
show(nanopatch.head_scores(model))

# %% [markdown]
# ## Silence them
#
# A habit is not yet a use. So set the output of heads to zero, and see whether the model can still do it:


# %%
def without(heads, prompts=prompts):
    """The forward pass with z of these heads set to zero: [(layer, head), ...]."""
    for site in model.steps(prompts):
        for layer, head in heads:
            if site.name == "z" and site.layer == layer:
                site.array[:, :, head] = 0  # (batch, n_tokens, n_head, d_head)
        yield site


for name, heads in {
    "one induction head": [(1, 0)],
    "all four induction heads": [(1, 0), (1, 1), (1, 2), (1, 3)],
    "all heads of layer 2": [(2, 0), (2, 1), (2, 2), (2, 3)],
    "all heads of layer 3": [(3, 0), (3, 1), (3, 2), (3, 3)],
}.items():
    value = accuracy(nanopatch.record(without(heads), sites=["logits"]).logits)
    print(f"without {name}: {value:.2f}")
    assert value < 0.05 if name.startswith("all four") else value > 0.9

# %% [markdown]
# Without the four induction heads it cannot do it at all. Without one of them, or without all heads of a later layer,
# it can: still more than 0.9. Now silence the previous-token heads of layer 0, and look at what the induction heads of
# layer 1 do then:

# %%
blind = nanopatch.record(without([(0, 1), (0, 3)]), sites=["pattern", "logits"])
queries = np.arange(n_repeat, 2 * n_repeat)
looks = blind.pattern[1][:, :, queries, queries - offset].mean(axis=(0, 2))  # (n_head,)
print(f"their attention to the right token: {looks.round(2)}; accuracy {accuracy(blind.logits):.2f}")
assert looks.max() < 0.2
assert accuracy(blind.logits) < 0.2

# %% [markdown]
# The induction heads were not touched. But they no longer find the right token: less than 0.2 of their attention goes
# there, and the predictions are lost. So they need what the previous-token heads wrote. That is called *composition*:
# the output of one head is part of what another head reads, here through its keys (K-composition).
#
# How these heads came about, honestly: two heads of `nano` (head 0.0 and head 1.0) were given a start before training
# (see weights/nano/RECIPE.md). The previous-token heads and the other three induction heads formed by themselves. In
# lesson 11 you train a model in which all of it forms from nothing.
#
# ## Exercises
#
# **6.1** Two of the induction heads, 1.0 and 1.2, are silenced together. What is the accuracy?

# %%
answer = None
check("6.1", answer)

# %% [markdown]
# **6.2** Silence head 0.0 alone. The accuracy falls to 0, but head 0.0 is no previous-token head. Which of its scores
# in `nanopatch.head_scores(model)` is the highest? Give the name: "induction", "previous", "duplicate", "first" or
# "current".

# %%
answer = None
check("6.2", answer)

# %% [markdown]
# **6.3** The composition through keys, made directly: run the prompts, and in layer 1 replace only `k` by that of the
# run `blind` (record it with `sites=["k", "logits"]`). What is the accuracy?

# %%
answer = None
check("6.3", answer)
