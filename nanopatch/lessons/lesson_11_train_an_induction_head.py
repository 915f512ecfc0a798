# %% [markdown]
# # 11. Train your own induction head
#
# *12 minutes. You know lessons 1 and 6.*
#
# Lesson 6 found two kinds of heads in a model that was trained before. Here you make a new model of random numbers,
# and train it. `model.backward` gives the gradients, so the training is a short loop in NumPy. You watch the loss
# fall, and both kinds of heads appear.

# %%
import numpy as np

import nanopatch
from nanopatch.lessons import check, hint, show, solution
from nanopatch.model.checkpoint import build, tensor_shapes
from nanopatch.model.vocabulary import Characters

LETTERS = "abcdefghijklmnopqrstuvwx"  # the vocabulary: 24 tokens


def new_model(n_layer=2, seed=0, dtype=np.float32):
    """A GPT-2 of random weights, whose MLPs do nothing."""
    config = nanopatch.Config(
        n_layer=n_layer, n_head=2, n_embd=64, n_positions=24, vocab_size=24,
        n_inner=1, activation_function="relu", tie_word_embeddings=False,
    )  # fmt: skip
    random, weights = np.random.default_rng(seed), {}
    for name, shape in tensor_shapes(config).items():
        if name.endswith("bias") or ".mlp." in name:
            weights[name] = np.zeros(shape)
        elif "ln_" in name:
            weights[name] = np.ones(shape)
        else:
            weights[name] = random.normal(0, 0.04, shape)
    model = build(config, weights, dtype)
    model.vocabulary = Characters({letter: token for token, letter in enumerate(LETTERS)})
    return model


model = new_model()
print(model)

# %% [markdown]
# A GPT-2 has MLPs. Here each has one neuron, whose weights are 0 and stay 0, so that it reads nothing. So attention
# does the work: two layers with two heads each.
#
# ## The task
#
# Each sequence has 12 different random letters, and then the same letters again. The second copy begins at any of
# them, and goes on with the first letter after the last. If it always began at the first letter, a head could look 11
# positions back without reading anything.


# %%
def draw(random, n_rows, anywhere=True):
    """Sequences (n_rows, 24): a piece of 12 letters, and the piece again, from any of its letters on."""
    piece = random.permuted(np.tile(np.arange(24), (n_rows, 1)), axis=1)[:, :12]  # each row in another order
    start = random.integers(0, 12, (n_rows, 1)) if anywhere else 0
    again = np.take_along_axis(piece, (start + np.tile(np.arange(12), (n_rows, 1))) % 12, axis=1)
    return np.concatenate([piece, again], axis=1)


tokens = draw(np.random.default_rng(1), 4)
for row in tokens:
    print(model.detokenize(row[:12]), model.detokenize(row[12:]))

# %% [markdown]
# ## The loss, and its gradient
#
# The loss is the *cross-entropy*: minus the logarithm of the probability of the token that really comes next. It is
# the mean over the 11 predictions that can be made inside the second copy. Its derivative with respect to the logits
# is short: the probabilities, minus 1 at the right token, divided by the number of predictions.


# %%
def loss_and_gradient(logits, tokens):  # (n_rows, n_tokens, n_vocab), (n_rows, n_tokens)
    p = np.exp(logits[:, 12:-1] - logits[:, 12:-1].max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)  # (n_rows, 11, n_vocab)
    right = tokens[:, 13:, None]  # (n_rows, 11, 1)
    p_right = np.take_along_axis(p, right, axis=-1)
    np.put_along_axis(p, right, p_right - 1, axis=-1)  # p is now the derivative, but for the division
    d_logits = np.zeros_like(logits)
    d_logits[:, 12:-1] = p / right.size
    return float(-np.log(p_right).mean()), d_logits


# %% [markdown]
# `model.backward` takes `d_logits` back through the model: it gives the derivative with respect to every array of the
# run. From these, `nanopatch.weight_gradients` makes the derivative with respect to every weight. Check one by hand:
# move the weight up and down a little, and see how the loss changes. (In float64, because the change is tiny.)

# %%
exact = new_model(dtype=np.float64)
run = exact.run(tokens)
_, d_logits = loss_and_gradient(run.logits, tokens)
gradients = nanopatch.weight_gradients(exact, run, exact.backward(run, d_logits))  # {name: array}

weight = nanopatch.named_weights(exact)["h.0.attn.c_attn.weight"]  # (64, 192): the array itself, not a copy
before_it, moved = weight[3, 150], []
for step in (1e-5, -1e-5):
    weight[3, 150] = before_it + step
    moved.append(loss_and_gradient(exact.run(tokens).logits, tokens)[0])
by_hand, by_library = (moved[0] - moved[1]) / 2e-5, gradients["h.0.attn.c_attn.weight"][3, 150]
print(f"by hand {by_hand:.8f}, by weight_gradients {by_library:.8f}")
assert np.isclose(by_hand, by_library, rtol=1e-3, atol=1e-9)

# %% [markdown]
# ## What to measure on the way
#
# The two habits of lesson 6. A previous-token head must know what came before when the letters come for the first
# time, so measure it in the first copy. An induction head works in the second copy. For measuring, the second copy
# begins at the first letter, so that the right place is 11 back.

# %%
tests = draw(np.random.default_rng(2), 32, anywhere=False)  # (32, 24)
first, second = np.arange(1, 12), np.arange(12, 24)


def habits(run):
    """Of each head: attention to the token before, and to the token after the same letter. (n_layer, n_head) each."""
    previous = run.pattern[:, :, :, first, first - 1].mean(axis=(1, 3))
    induction = run.pattern[:, :, :, second, second - 11].mean(axis=(1, 3))
    return previous, induction


def accuracy(run):
    """How often the right letter is the likeliest one, in the second copy."""
    return float((run.logits[:, 12:-1].argmax(axis=-1) == tests[:, 13:]).mean())


before = model.run(tests)
previous, induction = habits(before)
print(f"previous {previous.max():.2f}, induction {induction.max():.2f}, accuracy {accuracy(before):.2f}")
assert np.allclose(previous, np.mean(1 / np.arange(2, 13)), atol=0.1)  # a query at position n looks at n + 1 tokens
assert previous.max() < 0.3 and induction.max() < 0.15 and accuracy(before) < 0.15

# %% [markdown]
# The new model has neither habit: less than 0.3 of any head's attention goes to the token before, which is what a head
# gives that looks everywhere alike. Less than 0.15 goes to the right place, and less than 0.15 of the letters are
# right.
#
# ## Training
#
# Each step: new sequences, a run, the gradients, and a small change of every weight against its gradient. *Adam*
# (Kingma and Ba 2014) sets the size of the change: the mean of recent gradients, divided by their usual size.


# %%
def train(model, n_steps=200, seed=0, rate=0.003, anywhere=True):
    """Train a model in place; returns the loss of each step."""
    random, losses = np.random.default_rng(seed), []
    weights = nanopatch.named_weights(model)
    mean = {name: np.zeros_like(weight) for name, weight in weights.items()}
    square = {name: np.zeros_like(weight) for name, weight in weights.items()}
    for step in range(1, n_steps + 1):
        tokens = draw(random, 32, anywhere)
        run = model.run(tokens)
        loss, d_logits = loss_and_gradient(run.logits, tokens)
        gradients = nanopatch.weight_gradients(model, run, model.backward(run, d_logits))
        for name, weight in weights.items():
            mean[name] += 0.1 * (gradients[name] - mean[name])
            square[name] += 0.01 * (gradients[name] ** 2 - square[name])
            usual = np.sqrt(square[name] / (1 - 0.99**step)) + 1e-8
            weight -= rate * mean[name] / (1 - 0.9**step) / usual  # in place: the model has changed
        losses.append(loss)
        if step % 20 == 0:
            previous, induction = habits(model.run(tests, sites="pattern"))
            best = f"previous {previous[0].max():.2f}, induction {induction[-1].max():.2f}"
            print(f"step {step:3}  loss {np.mean(losses[-5:]):.2f}  best head: {best}")
    return losses


losses = train(model)

# %% [markdown]
# Read the table from top to bottom. At first the loss is 3.2: each of the 24 letters is equally likely. Then it falls
# slowly (exercises 11.1 and 11.3 say what is learned there). After 40 steps it is still above 2.5. After 140 it is
# below 0.5, and between the two both habits rise. Olsson et al. (2022) saw such a sudden fall in language models, when
# induction heads form, and call it a *phase change*.

# %%
after = model.run(tests)
previous, induction = habits(after)
print(f"layer 0, previous token: {previous[0].round(2)}")
print(f"layer 1, induction:      {induction[1].round(2)}")
print(f"accuracy: {accuracy(after):.2f}")
assert abs(losses[0] - np.log(24)) < 0.1 and round(float(np.log(24)), 1) == 3.2
assert np.mean(losses[35:40]) > 2.5 and np.mean(losses[135:140]) < 0.5
assert previous[0].max() > 0.5 and previous[1].max() < 0.35
assert induction[1].max() > 0.7 and induction[0].max() < 0.2
assert accuracy(after) > 0.9
mlp_weights = [w for name, w in nanopatch.named_weights(model).items() if ".mlp." in name and name.endswith("weight")]
assert len(mlp_weights) == 4 and not any(weight.any() for weight in mlp_weights)

# %% [markdown]
# Layer 0 has a previous-token head: more than 0.5 of its attention. Layer 1 has an induction head, with more than 0.7.
# Neither kind is in the other layer. Nobody put them there. The library's scores say the same: on all queries of the
# first copy, and on all queries of both copies that have seen their letter before.

# %%
assert np.allclose(nanopatch.head_scores(model, tests[:, :12]).previous_token, previous, atol=1e-4)
assert np.allclose(nanopatch.head_scores(model, tests).induction, induction, atol=1e-4)

head = int(induction[1].argmax())
one = model.run(tests[0])
show(nanopatch.attention(model, one, 1, head))
assert (one.pattern[1, head, 12:23].argmax(axis=-1) == np.arange(1, 12)).mean() > 0.7

elsewhere = draw(np.random.default_rng(3), 64)  # the second copy begins at any letter
right = model.run(elsewhere).logits[:, 12:-1].argmax(axis=-1) == elsewhere[:, 13:]
print(f"accuracy where the second copy begins anywhere: {right.mean():.2f}")
assert right.mean() > 0.8

# %% [markdown]
# The picture has a line in its lower half: from most letters of the second copy, the head looks 11 back. It reads the
# letters, and does not count: where the second copy begins anywhere, more than 0.8 of the letters are right too.
#
# ## Does it need both?
#
# Silence one layer's heads, and then the other's, as in lesson 6.


# %%
def without(layer):
    for site in model.steps(tests):
        if site.name == "z" and site.layer == layer:
            site.array[:] = 0  # (n_rows, n_tokens, n_head, d_head)
        yield site


for layer in (0, 1):
    silenced = nanopatch.record(without(layer))
    looks = habits(silenced)[1][1].max()
    print(f"without layer {layer}: accuracy {accuracy(silenced):.2f}, best induction head {looks:.2f}")
    assert accuracy(silenced) < 0.3
    assert looks < 0.3 if layer == 0 else looks > 0.7

# %% [markdown]
# Without either, less than 0.3 of the letters are right. And without layer 0, the heads of layer 1 do not find their
# place any more: less than 0.3 of their attention goes there. So the two layers are one circuit, and it came from
# random numbers in 200 steps.
#
# ## Exercises
#
# **11.1** A model gives 12 of the 24 letters the same probability, and the other 12 none. The right letter is always
# among the first. What is its loss?

# %%
answer = None
check("11.1", answer)

# %% [markdown]
# **11.2** Write a function `gradient(logits, right)` for one prediction: the derivative of the cross-entropy with
# respect to the logits (n_vocab,), where `right` is the id of the right token. The answer is the function.

# %%
answer = None
check("11.2", answer)

# %% [markdown]
# **11.3** Can one layer do it? Train `new_model(n_layer=1)` for 200 steps. Give the mean loss of the last 20.

# %%
answer = None
check("11.3", answer)

# %% [markdown]
# **11.4** An experiment: train another new model with `anywhere=False`, so that the second copy always begins at the
# first letter. Its loss falls fast. Then run it on `draw(np.random.default_rng(3), 64)`. How often is the right letter
# the likeliest one there, in the second copy? Explain it by `habits(...)` of this model.

# %%
answer = None
check("11.4", answer)
