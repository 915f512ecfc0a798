"""The exercises of lesson 11, train your own induction head."""

from __future__ import annotations

from typing import Any

import numpy as np

from .exercises import Exercise, close

N_LETTERS, N_PIECE = 24, 12


def _guess(answer: float) -> str | None:
    right = np.log(N_PIECE)
    if abs(answer - right) < 0.01:
        return None
    if close(answer, -right):
        return "The logarithm of a probability is negative, and the loss is minus that."
    if close(answer, np.log(N_LETTERS), 0.005):
        return "That is the loss if all 24 letters are equally likely. Here 12 of them are."
    if close(answer, np.log2(N_PIECE), 0.005):
        return "That is in bits, with the logarithm to base 2. The loss has the natural one, np.log."
    if close(answer, 1 / N_PIECE, 0.005):
        return "That is the probability of the right letter. The loss is minus its logarithm."
    return "The loss is minus the natural logarithm of the probability that the right letter has."


def _gradient(answer: Any) -> str | None:
    logits, right = np.random.default_rng(0).normal(0, 2, 7), 4
    try:
        made = np.asarray(answer(logits.copy(), right))
    except Exception as error:  # whatever the reader's function raises is what is wrong with it
        return f"On logits of shape (7,) and right = 4 it raises {type(error).__name__}: {error}."
    p = np.exp(logits - logits.max())
    p /= p.sum()
    one_hot = np.eye(7)[right]
    if close(made, p - one_hot, 1e-6):
        return None
    if made.shape != logits.shape:
        return f"For logits of shape (7,) it returns the shape {made.shape}. There is one derivative for each logit."
    if close(made, p, 1e-6):
        return "These are the probabilities. At the right token, 1 is missing."
    if close(made, one_hot - p, 1e-6):
        return "The sign is wrong: a higher logit of the right token makes the loss smaller."
    if close(made, logits - one_hot, 1e-6):
        return "Turn the logits into probabilities first, with softmax."
    if close(made, np.log(p), 1e-6) or close(made, -np.log(p), 1e-6):
        return "That is the loss for each possible right token, not its derivative."
    return "For random logits it gives other numbers than the change of the loss when one logit is moved a little."


def _one_layer(answer: float) -> str | None:
    if 1.9 < answer < 2.9:
        return None
    if 0 <= answer < 1.9:
        return "That is too good for one layer. Is it the loss of a model with n_layer=1, made anew?"
    if 2.9 <= answer < 3.5:
        return "That is the loss of the first steps. Take the mean of the last 20 of 200 steps: losses[-20:]."
    return "The losses are what train returns, a list of 200 numbers. Give the mean of its last 20."


def _fixed(answer: float) -> str | None:
    if 0 <= answer < 0.4:
        return None
    if 0.9 < answer <= 1:
        return (
            "So often it is right where the second copy begins at the first letter, as in training. Or is this the "
            "lesson's own model? Run the new one on draw(np.random.default_rng(3), 64)."
        )
    if 1 < answer <= 100:
        return "Give it as a share, between 0 and 1."
    return "Count only positions 12 to 22, which predict the tokens 13 to 23, and compare with exactly these."


EXERCISES = [
    Exercise(
        kind="a number",
        wrong_with=_guess,
        hint="The right letter has the probability 1 / 12.",
        solution="answer = float(-np.log(1 / 12))  # the loss of a model that knows the letters, but not their order",
        usual_mistakes={
            "answer = np.log(24)": "all 24 letters",
            "answer = np.log(1 / 12)": "is negative",
            "answer = np.log2(12)": "base 2",
            "answer = 1 / 12": "minus its logarithm",
        },
    ),
    Exercise(
        kind="a function",
        wrong_with=_gradient,
        hint="Softmax of the logits; then one of the numbers gets smaller.",
        solution="""
def answer(logits, right):
    p = np.exp(logits - logits.max())
    p /= p.sum()
    p[right] -= 1
    return p
""",
        usual_mistakes={
            "answer = lambda logits, right: np.exp(logits) / np.exp(logits).sum()": "1 is missing",
            "answer = lambda logits, right: np.eye(len(logits))[right] - np.exp(logits) / np.exp(logits).sum()": "sign",
            "answer = lambda logits, right: logits - np.eye(len(logits))[right]": "softmax",
            "answer = lambda logits, right: -np.log((np.exp(logits) / np.exp(logits).sum())[right])": "the shape ()",
        },
    ),
    Exercise(
        kind="a number",
        wrong_with=_one_layer,
        hint="train(...) returns the losses. Compare the answer with that of 11.1.",
        solution="""
answer = float(np.mean(train(new_model(n_layer=1))[-20:]))
# It is near the loss of 11.1: one layer learns which letters come again, but an induction head needs a layer before it
# (Elhage et al. 2021).
""",
        usual_mistakes={
            "answer = np.mean(losses[-20:])": "too good for one layer",
            "answer = losses[0]": "first steps",
            "answer = sum(losses)": "mean of its last 20",
        },
    ),
    Exercise(
        kind="a number",
        wrong_with=_fixed,
        hint="The lesson's function accuracy compares with `tests`. Here you need the same line with other tokens.",
        solution="""
counting = new_model()
train(counting, anywhere=False)
others = draw(np.random.default_rng(3), 64)
answer = float((counting.run(others).logits[:, 12:-1].argmax(axis=-1) == others[:, 13:]).mean())
print(habits(counting.run(tests))[1].round(2))  # it is layer 0 that looks 11 back: it counts, and reads no letters
""",
        usual_mistakes={
            "answer = accuracy(after)": "as in training",
            "answer = 100 * accuracy(after)": "between 0 and 1",
            "answer = -1": "positions 12 to 22",
        },
    ),
]
