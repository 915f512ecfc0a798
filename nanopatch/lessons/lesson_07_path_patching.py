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
from nanopatch.lessons import check, hint, show, solution

model = nanopatch.load("nano")
tokens = INDIRECT_OBJECT.tokens(model)
clean, corrupted = model.run(tokens.clean), model.run(tokens.corrupted)
print(INDIRECT_OBJECT.clean, "|", INDIRECT_OBJECT.corrupted)


def normalised(logits):  # (n_tokens, n_vocab)
    mary, john = tokens.answer, tokens.wrong_answer
    low, high, value = (x[-1, mary] - x[-1, john] for x in (corrupted.logits, clean.logits, logits))
    return float((value - low) / (high - low))


# %% [markdown]
# In the clean prompt John gives the drink, and it goes to Mary. In the corrupted one Mary gives it to John. The
# corrupted run is the *base*, which is patched into, and the clean run is the *donor*. Which heads matter?

# %%
total = nanopatch.sweep(model, INDIRECT_OBJECT, Patch("z", axes=("layer", "head")))
show(total)
assert total.normalised[2, 0] == total.normalised.max() and total.normalised[2, 0] > 0.55
assert total.normalised[0, [0, 1, 3]].min() > 0.2

# %% [markdown]
# These are *total* effects. Head 2.0 has the largest, more than 0.55. Three heads of layer 0 matter too: 0.0, 0.1 and
# 0.3, more than 0.2 each. Each of them may act on the logits itself, or through later heads and MLPs.
#
# ## Who writes the answer down? From the heads to the logits
#
# The first question: what does each head send *directly* to the logits? On that path no other head and no MLP takes
# part: they keep what they had in the base run ("frozen").

# %%
direct = nanopatch.path_patch(model, INDIRECT_OBJECT, "head", "logits")  # (n_senders, 1)
effect = dict(zip(direct.labels("sender"), direct.normalised[:, 0], strict=True))
for name in ("head 0.0", "head 0.1", "head 0.3", "head 2.0", "head 3.2"):
    print(f"{name}: directly {effect[name]:.2f}")
assert all(abs(effect[f"head 0.{head}"]) < 0.01 for head in range(4))
assert sorted(effect, key=effect.get)[-2:] == ["head 3.2", "head 2.0"]
assert 0.2 < effect["head 3.2"] < effect["head 2.0"] < 0.4
assert sorted(effect.values())[-3] < 0.1

# %% [markdown]
# Only two heads send much directly: 2.0 and 3.2, from 0.2 to 0.4; every other head sends less than 0.1. The heads of
# layer 0 send nothing (below 0.01). All that they do goes through other parts. The next sections find which.
#
# ## One path by hand
#
# Take the path from head 0.1, the sender, to the *values* of head 2.0, the receiver. It needs two runs of the
# corrupted prompt. In the first, head 0.1 gets its clean output. All other heads and all MLPs are held at what they
# are in the base run. Keep what v of head 2.0 then is, and discard the rest.

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
# In the second run nothing is held. Only head 2.0 gets these values, and all that comes after it is computed from
# them:

# %%
for site in model.steps(tokens.corrupted):
    if site.name == "v" and site.layer == 2:
        site.array[:, 0] = v_of_receiver
by_hand = normalised(site.array)
print(f"head 0.1 -> v of head 2.0: {by_hand:.2f}")

result = nanopatch.path_patch(model, INDIRECT_OBJECT, "head 0.1", "v 2.0")
assert abs(result.normalised[0, 0] - by_hand) < 1e-4
assert round(by_hand, 2) == 0.25

# %% [markdown]
# 0.25 of the whole difference goes from head 0.1, through the values of head 2.0, to the answer.
# `nanopatch.path_patch` gives the same.
#
# ## Through q, k or v?
#
# A head reads the residual stream in three ways: as q, k and v. Here are all paths from layer 0 to the two heads that
# write the answer:

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
# Three paths carry it, with more than 0.1 each: 0.1 and 0.3 to the values of head 2.0, and 0.0 to the values of head
# 3.2. All go through *values*, and none through q or k (below 0.02). So heads 2.0 and 3.2 should look at the same
# place in both runs, and take another thing from there. Look at their patterns, from the last position:

# %%
for run in (clean, corrupted):
    assert run.pattern[2, 0, -1, 10] > 0.95 and run.pattern[3, 2, -1, 9] > 0.95
    assert run.pattern[0, [1, 3], 10, 9].min() > 0.85  # heads 0.1 and 0.3, from the verb to the name before it

for layer, head, position in ((2, 0, 10), (3, 2, 9)):
    texts = [model.token_strings(prompt)[position] for prompt in (tokens.clean, tokens.corrupted)]
    print(f"head {layer}.{head} looks at position {position}: {texts[0]!r} or {texts[1]!r}")

# %% [markdown]
# It is so: with more than 0.95 of its attention, head 2.0 looks at the verb after the giver's name, and head 3.2 at
# the giver's name. Heads 0.1 and 0.3 have moved the name to the verb: they are the previous-token heads of lesson 6,
# and look there from the verb with more than 0.85. (In the real GPT-2, the heads that write the name are steered
# through their queries: Wang et al. 2022. This small model does it another way.)
#
# ## Frozen or free: from the direct to the total effect
#
# Other paths may lead from a sender to a receiver, through MLPs and heads between them. `between="free mlps"` computes
# the MLPs anew in the first run, as Wang et al. did, and holds only the heads. `between="free"` holds nothing. The
# more is free, the more paths count. With all free, the paths to the logits are all paths there are, so that is the
# total effect:

# %%
to_logits = {}
for between in ("frozen", "free mlps", "free"):
    result = nanopatch.path_patch(model, INDIRECT_OBJECT, "head", "logits", between=between)
    to_logits[between] = result.normalised[:, 0].reshape(4, 4)  # (n_layer, n_head)
    print(f"{between:10} head 0.0: {to_logits[between][0, 0]:5.2f}   head 2.0: {to_logits[between][2, 0]:5.2f}")
assert abs(to_logits["free"] - total.normalised).max() < 1e-4
assert abs(to_logits["free mlps"][0]).max() < 0.01
assert abs(to_logits["frozen"][2, 0] - 0.35) < 0.01 and abs(to_logits["free mlps"][2, 0] - 0.56) < 0.01
assert abs(to_logits["free"][2, 0] - 0.59) < 0.01

# %% [markdown]
# The difference between the total and the direct effect is what goes through other parts. The two heads differ. Head
# 0.0 sends nothing even with the MLPs free (below 0.01): all that it does needs a later head. Head 2.0 sends 0.35
# directly, 0.56 with the MLPs free, and 0.59 in all. So most of its rest goes through MLPs, and only a little through
# later heads. Which of them, its paths to layer 3 show:

# %%
later = nanopatch.path_patch(model, INDIRECT_OBJECT, "head 2.0", ["q 3", "k 3", "v 3", "mlp 2", "mlp 3"])
sent = dict(zip(later.labels("receiver"), later.normalised[0], strict=True))
largest = sorted(sent, key=lambda name: abs(sent[name]))
print({name: round(float(sent[name]), 2) for name in largest[-3:]})
assert largest[-1] == "mlp 3" and sent["mlp 3"] > 0.15
assert abs(sent[largest[-2]]) < 0.05

# %% [markdown]
# The MLP of layer 3 gets more than 0.15, and each other receiver less than 0.05. Do not expect that such parts sum to
# the whole exactly: LayerNorm, softmax and GELU are not linear.
#
# ## Exercises
#
# **7.1** How much of head 2.0's effect is *not* direct? Give its total effect minus the direct one.

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
# MLP? Compare the total effect and the direct one of the four heads. Give the head's number.

# %%
answer = None
check("7.3", answer)

# %% [markdown]
# **7.4** An experiment of your own: write a `nanopatch.Experiment` of two sentences like these, with other names, so
# that each prompt has its own answer on top. More than 0.1 should go from head 0.1 to the values of head 2.0. The
# answer is the Experiment.

# %%
answer = None
check("7.4", answer)
