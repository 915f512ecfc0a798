"""The exercises of lesson 6, induction heads."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..lenses.heads import head_scores
from ..model.checkpoint import load
from ..model.gpt2 import Model
from ..model.sites import Site
from ..types import Array
from .exercises import Exercise, close

N_REPEAT = 20


def _prompts(model: Model) -> Array:
    """Those of the lesson."""
    half = np.random.default_rng(0).choice(sorted(model.trained_tokens or ()), (16, N_REPEAT))
    return np.concatenate([half, half], axis=1)


def _accuracy(edit: Callable[[Site], None]) -> float:
    model = load("nano")
    prompts = _prompts(model)
    for site in model.steps(prompts):
        edit(site)
    return float((site.array[:, N_REPEAT:-1].argmax(axis=-1) == prompts[:, N_REPEAT + 1 :]).mean())


def _without(*heads: tuple[int, int]) -> float:
    def silence(site: Site) -> None:
        for layer, head in heads:
            if site.name == "z" and site.layer == layer:
                site.array[:, :, head] = 0

    return _accuracy(silence)


def _two(answer: float) -> str | None:
    if close(answer, _without((1, 0), (1, 2)), 1e-2):
        return None
    if close(answer, _without((1, 0)), 5e-3) or close(answer, _without((1, 2)), 5e-3):
        return "That is with one of them silenced. Give both to `without`, in one list."
    if close(answer, _without((1, 1), (1, 3)), 5e-3):
        return "Those were the other two, 1.1 and 1.3."
    if close(answer, _without((0, 1), (0, 2))) or close(answer, _without()):
        return "Heads are given as (layer, head): head 1.2 is (1, 2)."
    return "accuracy(nanopatch.record(without([...])).logits) measures it; the list holds two pairs."


def _habit(answer: str) -> str | None:
    scores = head_scores(load("nano"))
    named = {
        "induction": scores.induction,
        "previous": scores.previous_token,
        "duplicate": scores.duplicate_token,
        "first": scores.first_token,
        "current": scores.current_token,
    }
    given = answer.strip().removesuffix("_token")
    values = {name: float(grid[0, 0]) for name, grid in named.items()}
    if given not in values:
        return f"Give one of {', '.join(named)}."
    if given == max(values, key=values.__getitem__):
        return None
    return f"Its score there is {values[given]:.2f}; another one is higher."


def _keys(answer: float) -> str | None:
    model = load("nano")
    prompts = _prompts(model)
    keys = {}
    for site in model.steps(prompts):
        if site.name == "z" and site.layer == 0:
            site.array[:, :, [1, 3]] = 0
        if site.name in "qkv" and site.layer == 1:
            keys[site.name] = np.array(site.array)

    def patched(*names: str) -> Callable[[Site], None]:
        def edit(site: Site) -> None:
            if site.name in names and site.layer == 1:
                site.array = keys[site.name]

        return edit

    if abs(answer - _accuracy(patched("k"))) < 5e-3:
        return None
    if abs(answer - _accuracy(patched())) < 5e-3:
        return "That is the accuracy without any change: was the assignment reached?"
    for name in "qv":
        if abs(answer - _accuracy(patched(name))) < 5e-3:
            return f"That is what replacing {name} gives. Replace k."
    return "Set site.array to blind.k[1] where site.name is k and site.layer is 1, in a loop over model.steps(prompts)."


EXERCISES = [
    Exercise(
        kind="a number",
        wrong_with=_two,
        hint="without(heads) takes a list of (layer, head).",
        solution='answer = accuracy(nanopatch.record(without([(1, 0), (1, 2)]), sites=["logits"]).logits)',
        usual_mistakes={
            'answer = accuracy(nanopatch.record(without([(1, 0)]), sites=["logits"]).logits)': "one of them",
            'answer = accuracy(nanopatch.record(without([(1, 1), (1, 3)]), sites=["logits"]).logits)': "other two",
            "answer = 70.4": "measures it",
        },
    ),
    Exercise(
        kind="a text",
        wrong_with=_habit,
        hint="Look at the first row of the table above.",
        solution='answer = "current"  # it copies each token, so that the next layer can compare with it',
        usual_mistakes={'answer = "previous"': "higher", 'answer = "own"': "Give one of"},
    ),
    Exercise(
        kind="a number",
        wrong_with=_keys,
        hint='First: blind = nanopatch.record(without([(0, 1), (0, 3)]), sites=["k", "logits"]).',
        solution="""
blind = nanopatch.record(without([(0, 1), (0, 3)]), sites=["k", "logits"])
for site in model.steps(prompts):
    if site.name == "k" and site.layer == 1:
        site.array = blind.k[1]
answer = accuracy(site.array)
""",
        usual_mistakes={
            "answer = accuracy(run.logits)": "without any change",
            "answer = 0.5": "Set site.array to blind.k[1]",
        },
    ),
]
