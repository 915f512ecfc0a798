"""The exercises of lesson 10, generating with a patch, and steering."""

from __future__ import annotations

import numpy as np

from ..model.checkpoint import load
from ..types import Array
from .exercises import Exercise

LAYER, COUNTRY = 1, 3
OTHERS = ("France", "Spain", "Germany", "Poland", "Egypt", "Peru")


def _vector(country: str) -> Array:
    model = load("nano")

    def at(name: str) -> Array:
        array: Array = model.run(f"The capital of {name} is").resid_pre[LAYER, COUNTRY]
        return array

    vector: Array = at(country) - np.mean([at(name) for name in OTHERS], axis=0)
    return vector


def _said(of: str, vector: Array, strength: float) -> str:
    """The likeliest next token with the vector added."""
    model = load("nano")
    for site in model.steps(f"The capital of {of} is"):
        if site.name == "resid_pre" and site.layer == LAYER:
            site.array[COUNTRY] += np.float32(strength) * vector
    return model.token_strings([int(site.array[-1].argmax())])[0]


def _strength(answer: float) -> str | None:
    italy = _vector("Italy")
    if not 0 <= answer <= 100:
        return "It is between 0 and 2."
    if abs(answer * 10 - round(answer * 10)) > 1e-6:
        return "Give it in steps of 0.1."
    if _said("Japan", italy, answer) != " Rome":
        return f"At {answer:g} the likeliest token is {_said('Japan', italy, answer)!r}."
    if answer >= 0.1 and _said("Japan", italy, answer - 0.1) == " Rome":
        return f"At {answer:g} it is, but at {answer - 0.1:.1f} too."
    return None


def _late(answer: str) -> str | None:
    model = load("nano")
    clean = model.run("Michelle Jones was a top-notch student. Michelle")
    for site in model.steps("Michelle Smith was a top-notch student. Michelle"):
        if site.name == "resid_pre" and site.layer == 3:
            site.array[-1] = clean.resid_pre[3, -1]
    right = model.token_strings([int(site.array[-1].argmax())])[0]
    if answer == right:
        return None
    if answer.strip() == right.strip():
        return f"The token has a space before it: {right!r}."
    if answer.strip() == "Smith":
        return "That is what it writes without the patch. Is the edit made in round 0, at layer 3, at position -1?"
    return "Give only the first new token."


def _greece(answer: str) -> str | None:
    right = _said("Spain", _vector("Greece"), 4)
    if answer == right:
        return None
    if answer.strip() == right.strip():
        return f"The token has a space before it: {right!r}."
    if answer == _said("Spain", _vector("Italy"), 4):
        return "That is with the vector for Italy."
    if answer == _said("Spain", _vector("Greece"), 0):
        return "That is without the vector. Is it added at layer 1, at position 3?"
    if answer == _said("Spain", _vector("Greece"), 1):
        return "That is with strength 1."
    return "Use at_country('Greece') minus the same mean, times 4."


EXERCISES = [
    Exercise(
        kind="a number",
        wrong_with=_strength,
        hint="A loop over np.arange(0, 2.1, 0.1), with the inner loop of the lesson.",
        solution="""
for strength in np.arange(0, 2.1, 0.1):
    for site in model.steps("The capital of Japan is"):
        if site.name == "resid_pre" and site.layer == layer:
            site.array[3] += np.float32(strength) * italy
    if site.array[-1].argmax() == rome:
        break
answer = round(float(strength), 1)
""",
        usual_mistakes={
            "answer = 1.0": "likeliest token is ' Tokyo'",
            "answer = 2.0": "too",
            "answer = 1.55": "steps of 0.1",
        },
    ),
    Exercise(
        kind="a text",
        wrong_with=_late,
        hint="Take the loop with the patch, and change layer and position. model.token_strings gives texts.",
        solution="""
for this_round in nanopatch.generate_steps(model, prompt, 1):
    for site in this_round:
        if this_round.number == 0 and site.name == "resid_pre" and site.layer == 3:
            site.array[-1] = clean.resid_pre[3, -1]
answer = model.token_strings([this_round.tokens[-1]])[0]
""",
        usual_mistakes={
            'answer = " Smith"': "without the patch",
            'answer = "Jones"': "space before",
            'answer = " Jones was"': "first new token",
        },
    ),
    Exercise(
        kind="a text",
        wrong_with=_greece,
        hint="Only one word of the line that makes `italy` changes.",
        solution="""
greece = at_country("Greece") - np.mean([at_country(country) for country in others], axis=0)
for site in model.steps("The capital of Spain is"):
    if site.name == "resid_pre" and site.layer == layer:
        site.array[3] += 4 * greece
answer = model.token_strings([site.array[-1].argmax()])[0]
""",
        usual_mistakes={
            'answer = " Madrid"': "without the vector",
            'answer = " Rome"': "vector for Italy",
            'answer = "Athens"': "space before",
        },
    ),
]
