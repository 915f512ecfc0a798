# %% [markdown]
# # 4. From a dark cell to a head, and to what it looks at
#
# *10 minutes. You know lessons 2 and 3.*
#
# The heatmap of lesson 2 says where the surname is kept, and that something in layer 1 moves it. In this lesson you
# ask what does it: first which kind of part, then which heads, then what about these heads.

# %%
import nanopatch
from nanopatch import Patch
from nanopatch.experiments import MICHELLE
from nanopatch.lessons import check, hint, show, solution

model = nanopatch.load("nano")
clean, corrupted = model.run(MICHELLE.clean), model.run(MICHELLE.corrupted)
jones, smith = model.tokenize(" Jones Smith")


def normalised(logits):  # (n_tokens, n_vocab); 0 is the corrupted run, 1 the clean one
    low, high, value = (x[-1, jones] - x[-1, smith] for x in (corrupted.logits, clean.logits, logits))
    return float((value - low) / (high - low))


# %% [markdown]
# ## Attention or MLP?
#
# The residual stream is a sum. In each layer attention adds `attn_out` to it, and the MLP adds `mlp_out`. So patch
# what is added, instead of the whole sum:

# %%
attention = nanopatch.sweep(model, MICHELLE, "attn_out")
mlp = nanopatch.sweep(model, MICHELLE, "mlp_out")
show(attention)
print(f"largest effect of any MLP: {mlp.normalised.max():.2f}")

# %% [markdown]
# Two cells are dark. Attention of layer 0, at the surname: two of its heads look at the surname itself (exercise 4.1),
# and what they add is enough. And attention of layer 1, at the last position: that is the move. No MLP is enough. But
# noised, the MLP of layer 3 takes away a fifth at the last position, so it does have a part.

# %%
assert attention.normalised[0, 1] > 0.9 and attention.normalised[1, -1] > 0.9
others = attention.normalised.copy()
others[0, 1] = others[1, -1] = 0
assert abs(others).max() < 0.1 and abs(mlp.normalised).max() < 0.1

noised = nanopatch.sweep(model, MICHELLE, "mlp_out", direction="noise").normalised
assert 0.18 < noised[3, -1] < 0.22
assert (clean.pattern[0, :, 1, 1] > 0.95).sum() == 2  # from the surname to itself

# %% [markdown]
# ## Which head?
#
# `attn_out` is a sum over the heads. What a head moved is in `z`. Patch it for one head, first by hand:

# %%
for site in model.steps(MICHELLE.corrupted):
    if site.name == "z" and site.layer == 1:
        site.array[-1, 0] = clean.z[1, -1, 0]  # (n_tokens, n_head, d_head): last position, head 0
by_hand = normalised(site.array)

heads = nanopatch.sweep(model, MICHELLE, Patch("z", axes=("layer", "head", "position")))
assert heads.grid.shape == (4, 4, 11)
assert abs(heads.normalised[1, 0, -1] - by_hand) < 1e-4
print("heads of layer 1, at the last position:", heads.normalised[1, :, -1].round(2))

# %% [markdown]
# Each of the four heads of layer 1 brings back about a fifth: from 0.19 to 0.23. No head alone does it. So put them in
# together, one more each time:

# %%
together = []
for n in (1, 2, 3, 4):
    for site in model.steps(MICHELLE.corrupted):
        if site.name == "z" and site.layer == 1:
            site.array[-1, :n] = clean.z[1, -1, :n]
    together.append(normalised(site.array))
print([round(value, 2) for value in together])
at_last = heads.normalised[1, :, -1]
assert (round(float(at_last.min()), 2), round(float(at_last.max()), 2)) == (0.19, 0.23)
assert all(later - earlier > 0.15 for earlier, later in zip(together, together[1:], strict=False))
assert together[-1] > 0.9

# %% [markdown]
# Each adds its share (single effects need not sum to the joint one: the model is not linear), and all four together
# bring back 0.94. In this model one step of the work is shared by four heads. Who looks for *the* head may overlook
# the others.
#
# ## Looking elsewhere, or moving something else?
#
# A head does two things. Its *pattern* says where it looks, and that is made of q and k. Its *values*, v, are what it
# takes from there. Patch each of them, at all positions, in one head at a time:

# %%
assert round(together[-1], 2) == 0.94
for name in ("q", "k", "pattern", "v"):
    effects = nanopatch.sweep(model, MICHELLE, name).normalised  # (n_layer, n_head)
    print(f"{name:8} layer 1: {effects[1].round(2)}")
    if name == "v":
        assert effects[1].min() > 0.18
    else:
        assert abs(effects[1]).max() < 0.1

# %% [markdown]
# For this pair, in layer 1, only the values matter: it differs in what is moved, not in where to look. So the heads
# look at the same place in both runs, and take another thing from there: the surname. The picture of one of them
# confirms it. A row is a query, a column is a key:

# %%
show(nanopatch.attention(model, clean, layer=1, head=1))

for run in (clean, corrupted):
    looks = run.pattern[1, :, -1]  # (n_head, n_key), from the last position
    assert (looks.argmax(axis=1) == 1).all()  # at the surname, position 1
    assert looks[:, 1].min() > 0.7

# %% [markdown]
# From the last position, all four heads look at the surname, in both runs, with at least 0.7 of their attention. How
# do they know where it is? It is the token after the first "Michelle", and they are at the second one. That is lesson
# 6.
#
# A warning: an attention picture alone proves nothing. A head may look at a token and take nothing from it that is
# used. Here the patches came first, and the picture explains them.
#
# ## Exercises
#
# **4.1** Two heads of layer 0 matter at the surname, position 1. Which? Give their numbers as a set, such as `{1, 3}`.

# %%
answer = None
check("4.1", answer)

# %% [markdown]
# **4.2** Patch `v` of all four heads of layer 1 together, at position 1 only. What is the normalised value?

# %%
answer = None
check("4.2", answer)

# %% [markdown]
# **4.3** In the corrupted run, let no head of layer 1 look at the surname from the last position: in `pattern`, set
# that weight to 0 for all four heads. What is the normalised value? Leave the other weights as they are. (Above 0
# means less of " Smith". A logit difference of 0 lies at 0.44.)

# %%
answer = None
check("4.3", answer)

# %% [markdown]
# **4.4** Now a pair that asks about two people: `"Anna Brown met Peter Young. Anna"` is clean, and `"Anna Brown met
# Peter Young. Peter"` corrupted, with the answers `" Brown"` and `" Young"`. Which of `"q"`, `"k"`, `"pattern"` and
# `"v"` have an effect in layer 1 now? Guess first. Give a set of names.

# %%
answer = None
check("4.4", answer)
