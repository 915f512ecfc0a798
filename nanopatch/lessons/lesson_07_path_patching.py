# %% [markdown]
# # 7. Path patching: which way the information takes
#
# *10 minutes. You know lessons 4 and 6.*
#
# If you patch a head's output, everything that reads it sees the change. So you learn that the head matters, but not
# for whom. *Path patching* sends the change to one reader only (Wang et al. 2022; Goldowsky-Dill et al. 2023): from a
# *sender* to a *receiver*.

# %%
import nanopatch
from nanopatch import Patch
from nanopatch.experiments import INDIRECT_OBJECT
from nanopatch.lessons import check, show

model = nanopatch.load("nano")
tokens = INDIRECT_OBJECT.tokens(model)
clean, corrupted = model.run(tokens.clean), model.run(tokens.corrupted)
print(INDIRECT_OBJECT.clean, "|", INDIRECT_OBJECT.corrupted)


def normalised(logits):  # (n_tokens, n_vocab)
    mary, john = tokens.answer, tokens.wrong_answer
    low, high, value = (x[-1, mary] - x[-1, john] for x in (corrupted.logits, clean.logits, logits))
    return float((value - low) / (high - low))


# %% [markdown]
# In the clean prompt John gives the drink, and it goes to Mary. In the corrupted one Mary gives it. Which heads
# matter?

# %%
total = nanopatch.sweep(model, INDIRECT_OBJECT, Patch("z", axes=("layer", "head")))
show(total)
assert total.normalised[2, 0] == total.normalised.max() and total.normalised[2, 0] > 0.55
assert total.normalised[0, [0, 1, 3]].min() > 0.2

# %% [markdown]
# Head 2.0 has the largest effect, more than 0.55. Three heads of layer 0 matter too: 0.0, 0.1 and 0.3, more than 0.2
# each. But a head of layer 0 cannot know yet who gets the drink. It writes something for later heads. For which?
#
# ## Who writes the answer down? To the logits
#
# The first question: what does each head send *directly* to the logits? In that path no other head and no MLP takes
# part: they keep what they had in the corrupted run ("frozen").

# %%
direct = nanopatch.path_patch(model, INDIRECT_OBJECT, "head", "logits")  # (n_senders, 1)
effect = dict(zip(direct.labels("sender"), direct.normalised[:, 0], strict=True))
for name in ("head 0.0", "head 0.1", "head 0.3", "head 2.0", "head 3.2"):
    print(f"{name}: directly {effect[name]:.2f}")
assert all(abs(effect[f"head 0.{head}"]) < 0.01 for head in range(4))
assert sorted(effect, key=effect.get)[-2:] == ["head 3.2", "head 2.0"]
assert 0.2 < effect["head 3.2"] < effect["head 2.0"] < 0.4

# %% [markdown]
# Only two heads send much directly: 2.0 and 3.2, from 0.2 to 0.4. The heads of layer 0 send nothing (below 0.01). All
# that they do goes through others. And head 2.0 sends less directly than its whole effect: the rest goes through layer
# 3.
#
# ## One path by hand
#
# Take the path from head 0.1 to the *values* of head 2.0. It needs two runs of the corrupted prompt. In the first,
# head 0.1 gets its clean output. All other heads and all MLPs are held at what they are in the corrupted run. Then see
# what v of head 2.0 would be.

# %%
for site in model.steps(tokens.corrupted):
    if site.name == "z":
        site.array = corrupted.z[site.layer]  # all heads as they were ...
        if site.layer == 0:
            site.array[:, 1] = clean.z[0, :, 1]  # ... but head 0.1
    if site.name == "mlp_out":
        site.array = corrupted.mlp_out[site.layer]
    if site.name == "v" and site.layer == 2:
        v_of_receiver = site.array[:, 0].copy()  # (n_tokens, d_head), of head 2.0

# %% [markdown]
# In the second run nothing is held. Only head 2.0 gets these values:

# %%
for site in model.steps(tokens.corrupted):
    if site.name == "v" and site.layer == 2:
        site.array[:, 0] = v_of_receiver
by_hand = normalised(site.array)
print(f"head 0.1 -> v of head 2.0: {by_hand:.2f}")

result = nanopatch.path_patch(model, INDIRECT_OBJECT, ["head 0.1"], ["v 2.0"])
assert abs(result.normalised[0, 0] - by_hand) < 1e-4
assert round(by_hand, 2) == 0.25

# %% [markdown]
# 0.25 of the whole difference goes from head 0.1, through the values of head 2.0, to the answer.
# `nanopatch.path_patch` gives the same.
#
# ## Through q, k or v?
#
# A head reads three things: the query, the key and the value. All paths from layer 0 to the two heads that write the
# answer:

# %%
senders = [f"head 0.{head}" for head in range(4)]
receivers = ["q 2.0", "k 2.0", "v 2.0", "q 3.2", "k 3.2", "v 3.2"]
paths = nanopatch.path_patch(model, INDIRECT_OBJECT, senders, receivers)
show(paths)

value = {
    (sender, receiver): paths.normalised[i, j]
    for i, sender in enumerate(senders)
    for j, receiver in enumerate(receivers)
}
large = {path for path in value if value[path] > 0.1}
assert large == {("head 0.1", "v 2.0"), ("head 0.3", "v 2.0"), ("head 0.0", "v 3.2")}
assert max(abs(value[path]) for path in value if path[1][0] in "qk") < 0.02

# %% [markdown]
# Three paths carry it: 0.1 and 0.3 to the values of head 2.0, and 0.0 to the values of head 3.2. All go through
# *values*, and none through q or k (below 0.02). So heads 2.0 and 3.2 look at the same tokens in both runs, and take
# from there who gives the drink. (In the real GPT-2, the heads that write the name are steered through their queries:
# Wang et al. 2022. This small model does it another way.)
#
# ## What "frozen" leaves out
#
# Between a sender and a receiver there may be MLPs. `between="free mlps"` lets them be computed anew, and
# `between="free"` also the heads. The more is free, the more ways count as this path. For head 0.1 to v of head 2.0 it
# makes a difference:

# %%
for between in ("frozen", "free mlps", "free"):
    result = nanopatch.path_patch(model, INDIRECT_OBJECT, "head 0.1", "v 2.0", between=between)
    print(f"{between:10} {result.normalised[0, 0]:.2f}")

# %% [markdown]
# ## Exercises
#
# **7.1** How much of head 2.0's effect is *not* direct? Give its whole effect minus the direct one.

# %%
answer = None
check("7.1", answer)

# %% [markdown]
# **7.2** Change the path by hand: from head 0.3 to the values of head 2.0. What is the normalised value?

# %%
answer = None
check("7.2", answer)

# %% [markdown]
# **7.3** After a head of layer 3 comes no other head, but one MLP. For which head of layer 3 does most go through that
# MLP? Compare the whole effect and the direct one of the four heads. Give the head's number.

# %%
answer = None
check("7.3", answer)
