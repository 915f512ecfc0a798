# %% [markdown]
# # 10. Generating with a patch, and steering
#
# *10 minutes. You know lessons 1 and 2.*
#
# A model writes a text one token at a time: it predicts, appends the likeliest token, and predicts again. A patch can
# stay in that loop. So you see not only which token it changes, but what the model goes on to write.

# %%
import numpy as np

import nanopatch
from nanopatch.lessons import check, hint, solution

model = nanopatch.load("nano")

# %% [markdown]
# ## Writing
#
# By hand: run, take the likeliest token, append, run again. `nanopatch.generate` does the same, but it keeps the keys
# and values of earlier positions, so that each token costs one position only.

# %%
prompt = "Michelle Smith was a top-notch student. Michelle"
tokens = list(model.tokenize(prompt))
for _ in range(5):
    logits = model.run(tokens).logits[-1]
    tokens.append(int(logits.argmax()))
print(model.detokenize(tokens))

written = nanopatch.generate(model, prompt, 5)  # (n_tokens,): the new tokens
assert list(written) == tokens[-5:]
assert model.detokenize(written).startswith(" Smith was")
assert nanopatch.generate(model, "Michelle Jones was a top-notch student. Michelle", 1, as_text=True) == " Jones"

# %% [markdown]
# ## Writing with a patch
#
# `nanopatch.generate_steps` hands over one round for each new token, and a round is a loop over arrays as always. In
# round 0 the arrays have all positions of the prompt. In later rounds they have one position, the new one. Here is the
# patch of lesson 2, made in round 0:

# %%
clean = model.run("Michelle Jones was a top-notch student. Michelle")
for this_round in nanopatch.generate_steps(model, prompt, 5):
    for site in this_round:
        if this_round.number == 0 and site.name == "resid_pre" and site.layer == 1:
            site.array[1] = clean.resid_pre[1, 1]
print(model.detokenize(this_round.tokens))

# %% [markdown]
# It writes " Jones was ..." after "Michelle Smith". Check it once by the slow way: run the whole prompt again for each
# token, with the same assignment each time.

# %%
slow = list(model.tokenize(prompt))
for _ in range(5):
    for site in model.steps(slow):
        if site.name == "resid_pre" and site.layer == 1:
            site.array[1] = clean.resid_pre[1, 1]
    slow.append(int(site.array[-1].argmax()))
assert list(this_round.tokens) == slow
assert " Jones was" in model.detokenize(this_round.tokens)

# %% [markdown]
# ## A direction instead of a copy
#
# *Steering* (Turner et al. 2023) adds a vector, and does not need a second run for each prompt. Make one that means
# "Italy": the residual stream at the country's position, for Italy, minus the mean over other countries.

# %%
layer = 1


def at_country(country):
    """The residual stream of layer 1 at the country's position."""
    return model.run(f"The capital of {country} is").resid_pre[layer, 3]


others = ["France", "Spain", "Germany", "Poland", "Egypt", "Peru"]
italy = at_country("Italy") - np.mean([at_country(country) for country in others], axis=0)  # (d_model,)

# %% [markdown]
# Add it, times a strength, in the prompt about Japan. Japan was in none of the prompts that made the vector.

# %%
tokyo, rome = model.tokenize(" Tokyo Rome")
probability, difference = {}, {}
for strength in (0, 0.5, 1, 2, 4):
    for site in model.steps("The capital of Japan is"):
        if site.name == "resid_pre" and site.layer == layer:
            site.array[3] += strength * italy
    logits = site.array[-1].astype(np.float64)  # (n_vocab,)
    after = np.exp(logits - logits.max())
    after /= after.sum()
    probability[strength], difference[strength] = after[rome], logits[rome] - logits[tokyo]
    print(f"{strength:3}: Tokyo {after[tokyo]:.3f}  Rome {after[rome]:.3f}  difference {difference[strength]:6.2f}")
assert probability[0.5] < 0.01 and probability[1] < 0.1 and probability[2] > 0.9
assert difference[0.5] - difference[0] > 5 and difference[1] - difference[0.5] > 5 and difference[2] > 0
assert list(difference.values()) == sorted(difference.values())

# %% [markdown]
# In probabilities it looks like a switch. At strength 0.5 " Rome" has less than 0.01: too weak, and no word changes.
# At strength 1 it has less than 0.1, at strength 2 more than 0.9. But the logit difference, Rome minus Tokyo, rises
# all the way: by more than 5 for each half step up to 1. Softmax makes the switch, where the difference passes 0. So a
# vector that changes no word has an effect too: measure it with logits.
#
# ## In the prompt only, or at every position
#
# An edit in round 0 changes the prompt. An edit in every round changes also what the model writes about its own words.
# With the vector at the country only, in round 0:


# %%
def steered(strength, everywhere):
    for this_round in nanopatch.generate_steps(model, "The capital of Japan is", 8):
        for site in this_round:
            if site.name == "resid_pre" and site.layer == layer:
                if everywhere:
                    site.array += strength * italy  # all positions of this round
                elif this_round.number == 0:
                    site.array[3] += strength * italy
    return model.detokenize(this_round.tokens)


for strength in (0, 2):
    print(strength, repr(steered(strength, everywhere=False)))
assert "is Tokyo." in steered(0, everywhere=False)
assert "is Rome." in steered(2, everywhere=False)

# %% [markdown]
# And at every position of every round:

# %%
for strength in (0, 1, 2, 64):
    print(strength, repr(steered(strength, everywhere=True)))
assert "is Tokyo." in steered(1, everywhere=True)
assert steered(1, everywhere=True).endswith("The capital of Italy is")
assert not steered(0, everywhere=True).endswith("The capital of Italy is")
assert steered(2, everywhere=True).endswith(" Italy" * 8)
assert " Italy" not in steered(64, everywhere=True) and " Rome" not in steered(64, everywhere=True)

# %% [markdown]
# At strength 1 the answer is still Tokyo, but the next sentence that the model writes is about Italy. At strength 2
# nothing is left but " Italy", again and again: the vector was made at a country, and now it is added where no country
# stands. At 64 it is not even that. Too strong breaks the text. At the country alone, strength 2 did what we wanted.
# So when you steer, look for the range in between, and measure it. There may be none.
#
# ## Exercises
#
# **10.1** Find the smallest strength, in steps of 0.1, at which " Rome" is the likeliest token for Japan (the vector
# at the country's position, one run).

# %%
answer = None
check("10.1", answer)

# %% [markdown]
# **10.2** What does the model write if you patch the *last* position of `resid_pre` at layer 3 in round 0, from the
# clean Jones run into the Smith prompt? Give the first new token's text.

# %%
answer = None
check("10.2", answer)

# %% [markdown]
# **10.3** Make a vector that means "Greece" in the same way (with the same `others`), add it with strength 4 in "The
# capital of Spain is", and give the likeliest next token's text.

# %%
answer = None
check("10.3", answer)

# %% [markdown]
# **10.4** An experiment with two countries of your own: a prompt about the first, and a vector for the second (again
# with the same `others`, added at layer 1 at the country). Which is the smallest strength, 1, 2, 3, ..., at which the
# model says the capital of the second? Give a list such as `["Japan", "Italy", 2]`, but with other countries.

# %%
answer = None
check("10.4", answer)
