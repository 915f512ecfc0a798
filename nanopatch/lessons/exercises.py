"""Exercises: what is asked in a lesson, how an answer is checked, a hint, and a solution.

The exercises of lesson 2 are in `exercises_02.py`, in a list `EXERCISES`: the first one is exercise 2.1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from numbers import Real
from typing import Any, NamedTuple

import numpy as np

from ..errors import NanopatchError
from ..experiments.experiment import MICHELLE, Experiment
from ..model.checkpoint import load
from ..model.gpt2 import Model
from ..model.sites import Run, Site

#: What an answer can be. The name stands in the message about one that is something else.
KINDS: dict[str, Callable[[Any], bool]] = {
    "a number": lambda answer: isinstance(answer, Real) and not isinstance(answer, bool),
    "a whole number": lambda answer: isinstance(answer, (int, np.integer)) and not isinstance(answer, bool),
    "a text": lambda answer: isinstance(answer, str),
    "a list": lambda answer: isinstance(answer, (list, tuple)),
    "a set": lambda answer: isinstance(answer, (set, frozenset)),
    "an array of numbers": lambda answer: isinstance(answer, np.ndarray) and np.issubdtype(answer.dtype, np.number),
    "a function": callable,
    "a model": lambda answer: isinstance(answer, Model),
    "an Experiment": lambda answer: isinstance(answer, Experiment),
}


class Exercise(NamedTuple):
    """One exercise of a lesson, whose text is in the lesson.

    kind: one of `KINDS`. wrong_with: what is wrong with an answer of this kind, in a sentence, or None if it is right.
    solution: Python that sets `answer`; it comes after the lesson's own. usual_mistakes: {Python that sets a wrong
    `answer`: words of what is said about it}, for the tests.
    """

    kind: str
    wrong_with: Callable[[Any], str | None]
    hint: str
    solution: str
    usual_mistakes: dict[str, str]


def check(exercise: str, answer: object) -> None:
    """Say whether an answer is right and, if it is not, what is wrong with it. None is no answer yet.

    Examples
    --------
    >>> check("1.1", None)
    Exercise 1.1: no answer yet. hint("1.1") helps, and solution("1.1") shows one.
    >>> check("1.1", "eleven")
    Exercise 1.1: not yet. The answer is a whole number; this is 'eleven' (str).
    """
    if answer is None:
        said = f'no answer yet. hint("{exercise}") helps, and solution("{exercise}") shows one.'
        find(exercise)  # its error, if there is no such exercise
    else:
        wrong = wrong_with(exercise, answer)
        said = "right." if wrong is None else f"not yet. {wrong}"
    print(f"Exercise {exercise}: {said}")


def hint(exercise: str) -> None:
    """Print a hint."""
    print(f"Exercise {exercise}: {find(exercise).hint}")


def solution(exercise: str) -> None:
    """Print one solution: Python that sets `answer`."""
    print(find(exercise).solution)


def wrong_with(exercise: str, answer: object) -> str | None:
    """What is wrong with an answer, or None if it is right."""
    found = find(exercise)
    given = as_kind(found.kind, answer)
    if not KINDS[found.kind](given):
        return f"The answer is {found.kind}; this is {answer!r:.60} ({type(answer).__name__})."
    return found.wrong_with(given)


def as_kind(kind: str, answer: object) -> object:
    """A list in place of an array or of a set, as what it stands for; anything else as it is."""
    try:
        if kind == "an array of numbers" and isinstance(answer, (list, tuple)):
            return np.array(answer)
        if kind == "a set" and isinstance(answer, (list, tuple, np.ndarray)):
            return set(answer)
    except (TypeError, ValueError):  # lists of unequal lengths; elements that no set holds
        pass
    return answer


def find(exercise: str) -> Exercise:
    """The exercise of a name such as "2.1"; NanopatchError if there is none."""
    lesson, _, number = str(exercise).partition(".")
    if lesson.isdecimal() and number.isdecimal():
        exercises = of_lesson(int(lesson))
        if 1 <= int(number) <= len(exercises):
            return exercises[int(number) - 1]
        if exercises:
            last = len(exercises)
            raise NanopatchError(f"lesson {int(lesson)} has the exercises {int(lesson)}.1 to {int(lesson)}.{last}")
    raise NanopatchError(f'{exercise!r:.40} is no exercise: they are named "1.1", "1.2" and so on')


def of_lesson(lesson: int) -> Sequence[Exercise]:
    """The exercises of a lesson; none if there is no such lesson."""
    try:
        module = import_module(f"{__package__}.exercises_{lesson:02d}")
    except ModuleNotFoundError:
        return ()
    exercises: Sequence[Exercise] = module.EXERCISES
    return exercises


# ---- what several checks share ----------------------------------------------------------------------


def close(answer: Any, right: Any, relative: float = 1e-3) -> bool:
    """Whether numbers are equal, but for rounding when they were copied from a screen; False for what is no numbers."""
    try:
        given = np.asarray(answer, np.float64)
    except (TypeError, ValueError):
        return False
    right = np.asarray(right, np.float64)
    size = float(np.abs(right).max(initial=0)) or 1.0
    return given.shape == right.shape and bool(np.allclose(given, right, rtol=0, atol=relative * size))


def michelle_with(edit: Callable[[Site, Run], None], direction: str = "denoise") -> float:
    """The normalised value of MICHELLE in nano with an edit of each array: edit(site, donor run)."""
    model = load("nano")
    tokens = MICHELLE.tokens(model)
    prompts = (tokens.corrupted, tokens.clean) if direction == "denoise" else (tokens.clean, tokens.corrupted)
    base, donor = map(model.run, prompts)
    for site in model.steps(prompts[0]):
        edit(site, donor)
    low, high, value = (
        float(logits[-1, tokens.answer] - logits[-1, tokens.wrong_answer])
        for logits in (base.logits, donor.logits, site.array)
    )
    return (value - low) / (high - low)
