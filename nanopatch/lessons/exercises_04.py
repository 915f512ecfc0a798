"""The exercises of lesson 4, from a dark cell to a head."""

from __future__ import annotations

from typing import Any

from ..experiments.experiment import MICHELLE, Experiment
from ..experiments.patch import Patch
from ..model.checkpoint import load
from ..model.sites import Run, Site
from ..patching.sweep import sweep
from .exercises import Exercise, close, michelle_with


def _two_heads(answer: set[Any]) -> str | None:
    effects = sweep(load("nano"), MICHELLE, Patch("z", axes=("layer", "head", "position"))).normalised[0, :, 1]
    right = {int(head) for head in (effects > 0.2).nonzero()[0]}
    if answer == right:
        return None
    if answer == {head + 1 for head in right}:
        return (
            "Heads 0.1 and 0.3 look back at the first name, which is equal in both prompts. "
            "(Or did you count from 1? Heads are counted from 0.)"
        )
    if not answer <= set(range(4)):
        return "The heads of a layer have the numbers 0 to 3."
    if right < answer:
        return "There is one too many: look at the sizes of the four effects."
    missing = sorted(right - answer)
    return f"{len(missing)} of the two is not among them: look at heads.normalised[0, :, 1]."


def _values(answer: float) -> str | None:
    def at_surname(site: Site, clean: Run) -> None:
        if site.name == "v" and site.layer == 1:
            site.array[1] = clean.v[1, 1]

    def one_by_one() -> float:
        return float(sweep(load("nano"), MICHELLE, "v").normalised[1].sum())

    if close(answer, michelle_with(at_surname), 1e-2):
        return None
    if close(answer, one_by_one(), 1e-2):
        return "That is the sum of the four single patches. Patch them in one run."
    if abs(answer) < 1e-3:
        return (
            "That is the corrupted run as it is: was the assignment reached, and at position 1, where the heads look?"
        )
    if abs(answer) > 2:
        return "That looks like a logit difference. The function normalised(logits) puts it on the scale."
    return "Replace site.array[1] where site.name is v and site.layer is 1: all heads at position 1."


def _blind(answer: float) -> str | None:
    def no_look(site: Site, clean: Run) -> None:
        if site.name == "pattern" and site.layer == 1:
            site.array[:, -1, 1] = 0

    def rescaled(site: Site, clean: Run) -> None:
        no_look(site, clean)
        if site.name == "pattern" and site.layer == 1:
            site.array[:, -1] /= site.array[:, -1].sum(axis=-1, keepdims=True)

    if close(answer, michelle_with(no_look), 1e-2):
        return None
    if close(answer, michelle_with(rescaled), 1e-2):
        return "You made the row sum to 1 again. Leave the other weights as they are."
    if abs(answer) < 1e-3:
        return "That is the corrupted run as it is: was the assignment reached?"
    if abs(answer) > 2:
        return "That looks like a logit difference. The function normalised(logits) puts it on the scale."
    return "pattern has the axes (n_head, n_query, n_key): all heads, the last query, key 1."


def _other_question(answer: set[Any]) -> str | None:
    experiment = Experiment("Anna Brown met Peter Young. Anna", "Anna Brown met Peter Young. Peter", " Brown", " Young")
    names = ("q", "k", "pattern", "v")
    results = {name: sweep(load("nano"), experiment, name) for name in names}
    right = {name for name in names if abs(results[name].normalised[1]).max() > 0.1}
    if answer == right:
        return None
    if not answer <= set(names):
        return 'The names are "q", "k", "pattern" and "v".'
    if "v" in answer:
        return "Both surnames stand in both prompts, so what can be taken is the same. Only the last token differs."
    if "k" in answer:
        return "Keys are what earlier tokens offer, and these are the same in both prompts."
    return f"{len(right - answer)} more: if heads ask for something else, they also look elsewhere."


EXERCISES = [
    Exercise(
        kind="a set",
        wrong_with=_two_heads,
        hint="heads.normalised has the axes layer, head, position.",
        solution="answer = {int(head) for head in (heads.normalised[0, :, 1] > 0.2).nonzero()[0]}",
        usual_mistakes={
            "answer = {1, 3}": "look back at the first name",
            "answer = {0}": "not among them",
            "answer = {0, 1, 2}": "one too many",
            "answer = {0, 4}": "0 to 3",
        },
    ),
    Exercise(
        kind="a number",
        wrong_with=_values,
        hint="v has the axes (n_tokens, n_head, d_head), so site.array[1] are the values of all heads at position 1.",
        solution="""
for site in model.steps(MICHELLE.corrupted):
    if site.name == "v" and site.layer == 1:
        site.array[1] = clean.v[1, 1]
answer = normalised(site.array)
# The same as with v patched at all positions: only this one is looked at. It is a little above 1, for the other arrays
# are those of the corrupted run, and the MLPs after it see a mixture that is in neither run. A value is not a share.
""",
        usual_mistakes={
            "answer = nanopatch.sweep(model, MICHELLE, 'v').normalised[1].sum()": "sum of the four",
            "answer = 0.0": "where the heads look",
            "answer = 18.0": "looks like a logit difference",
        },
    ),
    Exercise(
        kind="a number",
        wrong_with=_blind,
        hint="pattern has the axes (n_head, n_query, n_key).",
        solution="""
for site in model.steps(MICHELLE.corrupted):
    if site.name == "pattern" and site.layer == 1:
        site.array[:, -1, 1] = 0
answer = normalised(site.array)
# Zeros in the whole column 1, or in the whole row -1, give nearly the same: only this weight carries the surname.
""",
        usual_mistakes={
            "answer = 0.0": "as it is",
            "answer = -13.4": "looks like a logit difference",
            "answer = 0.123": "the last query, key 1",
            "answer = 0.448": "sum to 1 again",
        },
    ),
    Exercise(
        kind="a set",
        wrong_with=_other_question,
        hint="What is the same in both prompts up to the last token: what can be looked at, or what is looked for?",
        solution="""
pair = nanopatch.Experiment(
    "Anna Brown met Peter Young. Anna", "Anna Brown met Peter Young. Peter", " Brown", " Young"
)
answer = set()
for name in ("q", "k", "pattern", "v"):
    effects = nanopatch.sweep(model, pair, name).normalised[1]
    if abs(effects).max() > 0.1:
        answer.add(name)
# The query of the last token asks for another first name, so the heads look elsewhere. What they can see is the same.
""",
        usual_mistakes={
            'answer = {"v"}': "what can be taken is the same",
            'answer = {"q", "k", "pattern"}': "what earlier tokens offer",
            'answer = {"q"}': "1 more",
            "answer = {1}": "The names are",
        },
    ),
]
