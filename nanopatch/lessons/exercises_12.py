"""The exercises of lesson 12, your own model and the real GPT-2."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from ..model.backward import named_weights
from ..model.checkpoint import load
from ..types import Array
from .exercises import Exercise, close

PUBLISHED = Path(__file__).parent.parent / "data" / "gpt2_published.json"


def _real() -> tuple[Array, float]:
    """The published grid, normalised, and the clean run's logit difference."""
    published = json.loads(PUBLISHED.read_text(encoding="utf-8"))["michelle"]
    low, high = published["baseline_corrupted"], published["baseline_clean"]
    return (np.array(published["resid_post"]) - low) / (high - low), high


def _crossing(answer: int) -> str | None:
    real, _ = _real()
    if not 0 <= answer < len(real):
        return f"The layers have the numbers 0 to {len(real) - 1}."
    if real[answer, -1] <= real[answer, 1]:
        return f"After layer {answer} the surname's position holds {real[answer, 1]:.2f}, the last one less."
    if answer > 0 and real[answer - 1, -1] > real[answer - 1, 1]:
        return "It does there, but not for the first time."
    return None


def _against(answer: float) -> str | None:
    _, high = _real()
    if abs(answer - 1 / (1 + np.exp(-high))) < 2e-3:
        return None
    if abs(answer - 1 / (1 + np.exp(high))) < 2e-3:
        return "That is the probability of the other one. The sign in the exponent is negative."
    if close(answer, np.exp(high), 1e-2):
        return "That is how many times likelier it is. The probability is that, divided by 1 plus that."
    if not 0 <= answer <= 1:
        return "A probability is between 0 and 1."
    return "The logistic function of x is 1 / (1 + exp(-x))."


def _count(answer: int) -> str | None:
    model = load("nano")
    right = sum(weight.size for weight in named_weights(model).values())
    if answer == right:
        return None
    if answer == right + model.lm_head.size:
        return "You counted lm_head too, which is wte here."
    if answer == right - model.wte.size:
        return "The token embeddings, wte, are weights too."
    if answer == len(named_weights(model)):
        return "That is how many arrays there are. Add up their sizes."
    return "Add up weight.size over named_weights(nano).values()."


EXERCISES = [
    Exercise(
        kind="a whole number",
        wrong_with=_crossing,
        hint="Compare the columns real[:, 1] and real[:, -1].",
        solution="answer = int((real[:, -1] > real[:, 1]).argmax())",
        usual_mistakes={
            "answer = 9": "the last one less",
            "answer = 11": "not for the first time",
            "answer = 12": "0 to 11",
        },
    ),
    Exercise(
        kind="a number",
        wrong_with=_against,
        hint="The logistic function of x is 1 / (1 + exp(-x)).",
        solution="answer = 1 / (1 + np.exp(-high))",
        usual_mistakes={
            "answer = 1 / (1 + np.exp(high))": "the other one",
            "answer = np.exp(high)": "times likelier",
            "answer = 4.12": "between 0 and 1",
        },
    ),
    Exercise(
        kind="a whole number",
        wrong_with=_count,
        hint="An array has a size.",
        solution="answer = sum(weight.size for weight in nanopatch.named_weights(nano).values())",
        usual_mistakes={
            "answer = len(nanopatch.named_weights(nano))": "how many arrays",
            "answer = sum(w.size for w in nanopatch.named_weights(nano).values()) + nano.lm_head.size": "lm_head too",
            "answer = 124_000_000": "Add up weight.size",
        },
    ),
]
