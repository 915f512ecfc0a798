"""The exercises of lesson 1, the forward pass at a breakpoint."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..model.checkpoint import load
from ..model.sites import Run
from .exercises import Exercise, close

PROMPT = "Michelle Jones was a top-notch student. Michelle"


def _run() -> Run:
    return load("nano").run(PROMPT)


def _arrays(answer: int) -> str | None:
    right = sum(1 for _ in load("nano").steps(PROMPT))
    if answer == right:
        return None
    if answer == right - 2:
        return "You counted those of the layers. Two more come after the last layer."
    if answer == (right - 2) // 4:
        return "That is one layer, and there are four. Two more arrays come after the last layer."
    if answer in (19, 4 * 19):
        return "19 is what the lesson's loop printed: layer 0 and the last two. Each layer has 17, and two come after."
    return f"{answer} is not what a loop counts."


def _looks_at(answer: str) -> str | None:
    model = load("nano")
    pattern, texts = model.run(PROMPT).pattern[3, 3, -1], model.token_strings(model.tokenize(PROMPT))
    right = texts[int(pattern.argmax())]
    if answer == right:
        return None
    if answer.strip() == right.strip():
        return f"The token has a space before it: {right!r}."
    if answer not in texts:
        return f"{answer!r} is not a token of the prompt; the tokens are {', '.join(map(repr, texts))}."
    return f"It looks at {answer!r} with {pattern[texts.index(answer)]:.3f}, but more at another token."


def _norms(answer: np.ndarray) -> str | None:
    run = _run()
    right = np.linalg.norm(run.attn_out[:, -1], axis=-1)
    if close(answer, right, 3e-3):  # one decimal is enough
        return None
    if answer.shape != right.shape:
        return f"It has the shape {answer.shape}; one number for each of the four layers has the shape (4,)."
    for name in ("mlp_out", "resid_mid", "z"):
        other = getattr(run, name)[:, -1]
        if close(answer, np.linalg.norm(other.reshape(4, -1), axis=-1)):
            return f"These are the norms of {name}."
    if close(answer, np.linalg.norm(run.attn_out[:, 0], axis=-1)):
        return "These are the norms at the first position. The last one has the number -1."
    if close(answer, np.linalg.norm(run.attn_out, axis=(1, 2))):
        return "These are norms over all positions. Take only the last position, attn_out[:, -1]."
    return "These are not the norms of attn_out[:, -1], along its last axis."


def _layer_norm(answer: Any) -> str | None:
    rng = np.random.default_rng(0)
    x, weight, bias = rng.normal(0, 3, (5, 8)), rng.normal(1, 0.2, 8), rng.normal(0, 0.2, 8)
    try:
        returned = answer(x.copy(), weight, bias)
        if returned is None:
            return "It returns None: is `return` missing?"
        made = np.asarray(returned)
    except Exception as error:  # whatever the reader's function raises is what is wrong with it
        return f"On an x of shape (5, 8) it raises {type(error).__name__}: {error}"
    centred = x - x.mean(axis=-1, keepdims=True)
    normed = centred / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-5)
    if close(made, normed * weight + bias, 1e-6):
        return None
    if made.shape != x.shape:
        return (
            f"For an x of shape (5, 8) it returns the shape {made.shape}. Take each row by itself, with keepdims=True."
        )
    if close(made, normed * weight, 1e-6) or close(made, normed, 1e-6):
        return "The standardised rows are right. Multiply them by weight, and add bias."
    if close(made, centred / (x.var(axis=-1, keepdims=True) + 1e-5) * weight + bias, 1e-6):
        return "Divide by the square root of the variance, not by the variance."
    if close(made, x / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-5) * weight + bias, 1e-6):
        return "Subtract the mean of each row first."
    if close(made, (x - x.mean()) / np.sqrt(x.var() + 1e-5) * weight + bias, 1e-6):
        return "The mean and the variance are those of each row, not of the whole array: axis=-1, keepdims=True."
    if close(made, centred / np.sqrt(x.var(axis=-1, ddof=1, keepdims=True) + 1e-5) * weight + bias, 1e-6):
        return "The variance divides by the number of elements, not by one less: leave ddof away."
    for deviation in (x.std(axis=-1, keepdims=True), x.std(axis=-1, keepdims=True) + 1e-5):
        if close(made, centred / deviation * weight + bias, 1e-6):
            return "1e-5 is added to the variance, inside the square root."
    return "For random rows it gives other numbers than LayerNorm."


EXERCISES = [
    Exercise(
        kind="a whole number",
        wrong_with=_arrays,
        hint="Count in the loop, or make a list of the steps and take its length.",
        solution="answer = len(list(model.steps(prompt)))",
        usual_mistakes={
            "answer = 17": "one layer",
            "answer = 4 * 17": "Two more",
            "answer = 11": "not what a loop counts",
        },
    ),
    Exercise(
        kind="a text",
        wrong_with=_looks_at,
        hint="run.pattern[3, 3, -1] holds a number for each token; argmax() finds the largest.",
        solution="answer = model.token_strings([tokens[run.pattern[3, 3, -1].argmax()]])[0]",
        usual_mistakes={
            'answer = "Jones"': "space before",
            "answer = model.token_strings([tokens[run.pattern[3, 2, -1].argmax()]])[0]": "more at another",
            'answer = " Smith"': "not a token of the prompt",
        },
    ),
    Exercise(
        kind="an array of numbers",
        wrong_with=_norms,
        hint="run.attn_out has the shape (4, 11, 128): layers, tokens, d_model. np.linalg.norm takes an axis.",
        solution="answer = np.linalg.norm(run.attn_out[:, -1], axis=-1)",
        usual_mistakes={
            "answer = np.linalg.norm(run.attn_out, axis=-1)": "the shape (4, 11)",
            "answer = np.linalg.norm(run.mlp_out[:, -1], axis=-1)": "norms of mlp_out",
            "answer = np.linalg.norm(run.attn_out[:, 0], axis=-1)": "first position",
            "answer = np.linalg.norm(run.attn_out, axis=(1, 2))": "all positions",
        },
    ),
    Exercise(
        kind="a function",
        wrong_with=_layer_norm,
        hint="x.mean(axis=-1, keepdims=True) has the shape (n, 1), so that it can be subtracted from each row.",
        solution="""
def answer(x, weight, bias):
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-5) * weight + bias

assert np.allclose(answer(run.resid_post[-1], model.ln_f.weight, model.ln_f.bias), run.ln_final, atol=1e-4)
""",
        usual_mistakes={
            "answer = lambda x, weight, bias: (x - x.mean()) / np.sqrt(x.var() + 1e-5) * weight + bias": "each row",
            "answer = lambda x, weight, bias: ((x.T - x.mean(-1)) / np.sqrt(x.var(-1) + 1e-5)).T": "Multiply them by",
            "answer = lambda x, weight, bias: (x - x.mean(-1)) / x.std(-1)": "raises ValueError",
            "answer = lambda x, weight, bias: x / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * weight + bias": (
                "Subtract the mean"
            ),
            "answer = lambda x, weight, bias: x.mean(-1)": "keepdims=True",
        },
    ),
]
