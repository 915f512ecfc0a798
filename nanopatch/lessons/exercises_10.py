"""The exercises of lesson 10, generating with a patch, and steering."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import NanopatchError
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
    if answer.strip().startswith(right.strip()):
        return "Give only the first new token."
    return f"With that patch it writes something else than {answer!r:.40} first."


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
    return "Use at_country('Greece') minus the same mean, times 4."


def _own(answer: Any) -> str | None:
    if len(answer) != 3 or not all(isinstance(name, str) for name in answer[:2]):
        return 'Give two names and a number, such as ["Japan", "Italy", 2].'
    of, to, strength = answer
    if not isinstance(strength, (int, np.integer)) or isinstance(strength, bool) or not 1 <= strength <= 100:
        return "The strength is a whole number from 1 to 100."
    strength = int(strength)
    if (of, to) in (("Japan", "Italy"), ("Spain", "Greece")):
        return "These two were in the lesson. Take other countries."
    model = load("nano")
    known = model.trained_tokens or frozenset()
    for name in (of, to):
        try:
            tokens = model.tokenize(f"The capital of {name} is")
        except NanopatchError as error:
            return f"{name!r:.40} cannot be read: {error}."
        if len(tokens) != 5 or int(tokens[COUNTRY]) not in known:
            return f"{name!r:.40} must be a country that is one token, and that nano was trained on."
    vector, nothing = _vector(to), np.zeros(model.d_model, np.float32)
    wanted, before = _said(to, nothing, 0), _said(of, nothing, 0)
    if wanted == before:
        return f"Without the vector the model says {before!r} for both. Take two with different capitals."
    said = _said(of, vector, strength)
    if said != wanted:
        return f"At {strength:g} the model says {said!r}; for {to} itself it says {wanted!r}."
    if _said(of, vector, strength - 1) == wanted:
        return f"At {strength:g} it does, but at {strength - 1:g} too."
    return None


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
    Exercise(
        kind="a list",
        wrong_with=_own,
        hint="The loop of 10.3, inside a loop over strengths. First look what the model says without a vector.",
        solution="""
egypt = at_country("Egypt") - np.mean([at_country(country) for country in others], axis=0)
cairo = model.run("The capital of Egypt is").logits[-1].argmax()
for strength in range(1, 20):
    for site in model.steps("The capital of Japan is"):
        if site.name == "resid_pre" and site.layer == layer:
            site.array[3] += strength * egypt
    if site.array[-1].argmax() == cairo:
        break
answer = ["Japan", "Egypt", strength]
""",
        usual_mistakes={
            'answer = ["Japan", "Egypt", 1]': "At 1 the model says",
            'answer = ["Japan", "Egypt", 5]': "but at 4 too",
            'answer = ["Japan", "Italy", 2]': "in the lesson",
            'answer = ["Japan", "Liechtenstein", 2]': "one token",
            'answer = ["Japan", "Japan", 1]': "different capitals",
        },
    ),
]
