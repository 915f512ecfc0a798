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
from nanopatch.lessons import check, hint, show, solution

model = nanopatch.load("nano")

n_repeat = 20
random = np.random.default_rng(0)
words = sorted(model.trained_tokens)  # ids of the tokens that were in nano's training data
half = np.array([random.choice(words, n_repeat, replace=False) for _ in range(16)])  # 16 rows of 20 different tokens
prompts = np.concatenate([half, half], axis=1)  # (16, 40): each row twice
run = model.run(prompts)  # a batch: one more axis, after that of layers
assert run.pattern.shape == (4, 16, 4, 40, 40)  # (n_layer, batch, n_head, n_query, n_key)


def accuracy(logits, copy=2):  # (batch, n_tokens, n_vocab)
    """How often the next token is the likeliest one, in the first or the second copy."""
    at = np.arange(n_repeat - 1) + (copy - 1) * n_repeat
    return float((logits[:, at].argmax(axis=-1) == prompts[:, at + 1]).mean())


print(f"predicted: first copy {accuracy(run.logits, copy=1):.2f}, second copy {accuracy(run.logits):.2f}")
assert accuracy(run.logits, copy=1) < 0.05 and accuracy(run.logits) > 0.95

# %% [markdown]
# In the first copy nothing can be known: less than 0.05 is predicted. In the second copy it is more than 0.95.
#
# ## Where must a head look?
#
# Say the sequence is `A B C ... A B C ...`, and the model is at the second A. It should predict B. So some head should
# look at B, the token after the first A. That is always 19 positions back: 20 minus 1. These entries of the pattern
# lie on a diagonal. Take their mean:

# %%
offset = n_repeat - 1
second = np.arange(n_repeat, 2 * n_repeat)  # the queries of the second copy
induction = run.pattern[:, :, :, second, second - offset].mean(axis=(1, 3))  # (n_layer, n_head)
print(induction.round(2))
assert induction[1].min() > 0.8
assert np.delete(induction, 1, axis=0).max() < 0.1

# %% [markdown]
# All four heads of layer 1 look there, with more than 0.8 of their attention. In every other head it is less than 0.1.
# These four are the *induction heads* of this model. See the diagonal of one of them, on six words, twice:

# %%
six_words = " lamp river seven tree blue table"
small = model.run(six_words + six_words)
show(nanopatch.attention(model, small, layer=1, head=1))
assert (small.pattern[1, 1, 6:].argmax(axis=-1) == [1, 2, 3, 4, 5, 6]).all()  # 6 queries, each looks 5 back

# %% [markdown]
# ## How do they know where B is?
#
# The head at the second A has to find a position whose *previous* token was A. But at first a position holds only its
# own token. So another head must have written there what came before: a *previous-token head* in an earlier layer. It
# looks one position back:

# %%
queries = np.arange(1, 2 * n_repeat)
previous = run.pattern[:, :, :, queries, queries - 1].mean(axis=(1, 3))  # (n_layer, n_head)
print(previous.round(2))
assert min(previous[0, 1], previous[0, 3]) > 0.6
others = previous.copy()
others[0, [1, 3]] = 0
assert others.max() < 0.3

# %% [markdown]
# Heads 0.1 and 0.3 look one position back, with more than 0.6 of their attention; every other head with less than 0.3.
# `nanopatch.head_scores` measures these habits, and three more. On the same prompts it gives the same numbers:

# %%
scores = nanopatch.head_scores(model, list(prompts))
show(scores)
assert np.allclose(scores.induction, induction, atol=1e-4)
assert np.allclose(scores.previous_token, previous, atol=1e-4)

# %% [markdown]
# ## Silence them
#
# A habit is not yet a use. So set the output of some heads to zero (an *ablation*), and see whether the model can
# still do it:


# %%
def without(heads, by_mean=False):
    """The forward pass with z of these heads set to zero, or to its mean: [(layer, head), ...]."""
    for site in model.steps(prompts):
        for layer, head in heads:
            if site.name == "z" and site.layer == layer:
                mean = run.z[layer][:, :, head].mean(axis=(0, 1))  # over prompts and positions
                site.array[:, :, head] = mean if by_mean else 0  # (batch, n_tokens, n_head, d_head)
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
# Without the four induction heads the model cannot do it: less than 0.05. Without one of them, or without all four
# heads of a later layer, it can: still more than 0.9.
#
# But zero is a value that a head never gives. Part of what is lost may come from that, and not from what the head does
# here. So try the head's mean as well:

# %%
for heads in ([(1, 0), (1, 1), (1, 2), (1, 3)], [(1, 0), (1, 2)], [(0, 2)]):
    zero = accuracy(nanopatch.record(without(heads), sites=["logits"]).logits)
    mean = accuracy(nanopatch.record(without(heads, by_mean=True), sites=["logits"]).logits)
    print(f"without {heads}: zero {zero:.2f}, mean {mean:.2f}")
    if heads == [(0, 2)]:
        assert mean - zero > 0.05
    elif len(heads) == 2:
        assert zero - mean > 0.03
    else:
        assert max(zero, mean) < 0.05

# %% [markdown]
# Without the four induction heads nothing is left, either way. Where a part is left, the two disagree, once in each
# direction. So a number in the middle says less than it seems to: give the value that was put in along with it.
#
# ## The second kind needs the first
#
# Now silence the previous-token heads of layer 0, and look at what the induction heads of layer 1 do. Silence head 0.2
# for comparison:

# %%
for heads in ([(0, 2)], [(0, 1), (0, 3)]):
    blind = nanopatch.record(without(heads), sites=["q", "k", "v", "pattern", "logits"])
    looks = blind.pattern[1][:, :, second, second - offset].mean(axis=(0, 2))  # (n_head,)
    print(f"without {heads}: attention to the right token {looks.round(2)}, accuracy {accuracy(blind.logits):.2f}")
    assert looks.min() > 0.8 if heads == [(0, 2)] else looks.max() < 0.1
assert accuracy(blind.logits) < 0.05  # blind is now the run without 0.1 and 0.3

# %% [markdown]
# The induction heads were not touched. Without head 0.2 they still look at the right token, with more than 0.8.
# Without the previous-token heads it is less than 0.1, and the predictions are lost. The output of one head is a part
# of what another head reads. That is called *composition*. A head reads through q, k and v. To see through which, run
# the model unchanged, and give layer 1 only one of the three from the run `blind`:

# %%
for name in ("q", "k", "v"):
    for site in model.steps(prompts):
        if site.name == name and site.layer == 1:
            site.array = blind[name][1]
    value = accuracy(site.array)  # the last array handed over are the logits
    print(f"{name} of layer 1 as without the previous-token heads: {value:.2f}")
    assert value < 0.05 if name == "k" else value > 0.95

# %% [markdown]
# Only the keys matter: the previous-token heads write at each position which token came before, and the induction
# heads find it there through their keys (*K-composition*). With q or v replaced, the accuracy stays above 0.95.
#
# How these heads came about: a part of nano's training data was random tokens, repeated, so it was trained for this
# very task. And heads 0.0 and 1.0 were given a start before training. Without it, the model had learned almost nothing
# of the task when that trial was stopped (weights/nano/RECIPE.md). The previous-token heads and the other three
# induction heads formed by themselves. Olsson et al. found such heads in models that were trained on text. In lesson
# 11 you train a small model in which they form from nothing.
#
# ## Exercises
#
# **6.1** Guess first, then measure: what is the accuracy if two of the induction heads, 1.0 and 1.2, are silenced
# together?

# %%
answer = None
check("6.1", answer)

# %% [markdown]
# **6.2** Silence head 0.0 alone. The predictions are lost too, but head 0.0 is no previous-token head. Which of its
# scores in `scores` is the highest? Give the name: "induction", "previous", "duplicate", "first" or "current".

# %%
answer = None
check("6.2", answer)

# %% [markdown]
# **6.3** Through which of q, k and v does layer 1 need what head 0.0 writes? Repeat the last experiment with a run
# without head 0.0 in place of `blind`. Give the three accuracies in an array, in the order q, k, v.

# %%
answer = None
check("6.3", answer)

# %% [markdown]
# **6.4** An experiment of your own: write a text of words that do not belong together. The words come once, then
# again, and the text ends in the middle of the second copy. The model should predict the next word, and should fail
# when the four induction heads are silenced. The answer is the text.

# %%
answer = None
check("6.4", answer)
