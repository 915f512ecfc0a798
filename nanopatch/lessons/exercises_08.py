"""The exercises of lesson 8, attribution patching."""

from __future__ import annotations

from ..errors import NanopatchError
from ..experiments.experiment import INDIRECT_OBJECT, NAMED, Experiment
from ..experiments.patch import Patch
from ..gradients.attribution import attribute
from ..model.checkpoint import load
from ..patching.sweep import sweep
from ..results.comparison import Comparison
from ..types import Array
from .exercises import Exercise, close


def _effects(site: str | Patch, direction: str = "denoise") -> Array:
    """What `attribute` adds to the base run's value."""
    result = attribute(load("nano"), INDIRECT_OBJECT, site, direction=direction)
    effects: Array = result.grid - result.base_value
    return effects


def _part(answer: float) -> str | None:
    model = load("nano")
    exact = sweep(model, INDIRECT_OBJECT).normalised[2, 10]
    estimate = attribute(model, INDIRECT_OBJECT).normalised[2, 10]
    if close(answer, estimate / exact, 1e-2):
        return None
    if close(answer, exact / estimate, 1e-2):
        return "That is the exact value divided by the estimate. The other way round."
    if close(answer, estimate, 1e-2) or close(answer, exact, 1e-2):
        return "That is one of the two values. Divide the estimate by the exact value."
    if close(answer, exact - estimate, 1e-2):
        return "That is their difference. What part of the exact value is the estimate?"
    return "Take `normalised` of both results, not `grid`: 0 is then no effect. The cell is [2, 10]."


def _heads(answer: Array) -> str | None:
    right = _effects(Patch("z", axes=("layer", "head")))
    if close(answer, right):
        return None
    if answer.shape != right.shape:
        return f"It has the shape {answer.shape}. Sum over the axes of positions and of d_head: (4, 4) remains."
    if close(answer, -right):
        return "The sign is wrong: the change is clean minus corrupted."
    if close(answer, attribute(load("nano"), INDIRECT_OBJECT, Patch("z", axes=("layer", "head"))).grid):
        return "That is the grid of attribute, to which the corrupted run's value was added. The effect is without it."
    if close(answer, sweep(load("nano"), INDIRECT_OBJECT, Patch("z", axes=("layer", "head"))).grid):
        return "That is the exact grid. The estimate is a product of two arrays, and needs no patched run."
    return "Take (gradients.z * (clean.z - corrupted.z)), and sum over the axes 1 and 3."


def _noising(answer: Array) -> str | None:
    right = _effects("resid_pre", "noise")
    if close(answer, right):
        return None
    if answer.shape != right.shape:
        return f"It has the shape {answer.shape}. Sum over the last axis only: (4, 14) remains."
    if close(answer, -right):
        return "The sign is wrong: now the change is corrupted minus clean."
    denoised = _effects("resid_pre")
    if close(answer, denoised) or close(answer, -denoised):
        return "That derivative was taken at the corrupted run. It belongs at the run that is patched into."
    return "Run model.backward on the clean run, with the same d_logits, and multiply with corrupted minus clean."


def _good(answer: Experiment) -> str | None:
    if answer in NAMED.values():
        return "That is one of the named experiments. Make one of your own."
    try:
        model = load("nano")
        exact = sweep(model, answer)
        comparison = Comparison(exact, attribute(model, answer))
    except NanopatchError as error:
        return f"The library refuses it: {error}"
    low, high = exact.baseline_corrupted, exact.baseline_clean
    assert low is not None and high is not None
    if not abs(high - low) > 5:
        return f"Its two runs differ by only {high - low:.1f}: the patches have nearly nothing to bring back."
    if not 0.8 < comparison.slope < 1.2:
        return f"Its slope is {comparison.slope:.2f}. Try other names, or other kinds of sentences."
    return None


EXERCISES = [
    Exercise(
        kind="a number",
        wrong_with=_part,
        hint="Both results have an array `normalised`.",
        solution="answer = estimate.normalised[2, 10] / exact.normalised[2, 10]",
        usual_mistakes={
            "answer = exact.normalised[2, 10] / estimate.normalised[2, 10]": "other way round",
            "answer = estimate.normalised[2, 10]": "Divide the estimate",
            "answer = estimate.grid[2, 10] / exact.grid[2, 10]": "not `grid`",
        },
    ),
    Exercise(
        kind="an array of numbers",
        wrong_with=_heads,
        hint="z has the axes (n_layer, n_tokens, n_head, d_head). Which two must remain?",
        solution="answer = (gradients.z * (clean.z - corrupted.z)).sum(axis=(1, 3))",
        usual_mistakes={
            "answer = (gradients.z * (clean.z - corrupted.z)).sum(axis=-1)": "the shape (4, 14, 4)",
            "answer = (gradients.z * (corrupted.z - clean.z)).sum(axis=(1, 3))": "sign",
            "answer = nanopatch.attribute(model, INDIRECT_OBJECT, 'z').grid": "without it",
        },
    ),
    Exercise(
        kind="an array of numbers",
        wrong_with=_noising,
        hint="A derivative says what happens to the run in which it is taken. Which run is patched into?",
        solution="""
gradients_of_clean = model.backward(clean, d_logits)
answer = (gradients_of_clean.resid_pre * (corrupted.resid_pre - clean.resid_pre)).sum(axis=-1)
""",
        usual_mistakes={
            "answer = (gradients.resid_pre * (corrupted.resid_pre - clean.resid_pre)).sum(axis=-1)": "corrupted run",
            "answer = (model.backward(clean, d_logits).resid_pre * change).sum(axis=-1)": "sign",
            "answer = model.backward(clean, d_logits).resid_pre * change": "the shape (4, 14, 128)",
        },
    ),
    Exercise(
        kind="an Experiment",
        wrong_with=_good,
        hint="nanopatch.Comparison(nanopatch.sweep(model, e), nanopatch.attribute(model, e)).slope; try surnames.",
        solution="""
answer = nanopatch.Experiment(
    clean="Daniel Lewis was a top-notch student. Daniel",
    corrupted="Daniel Hall was a top-notch student. Daniel",
    answer=" Lewis",
    wrong_answer=" Hall",
)
""",
        usual_mistakes={
            "answer = INDIRECT_OBJECT": "named experiments",
            "answer = nanopatch.Experiment('The capital of Cuba is', 'The capital of Peru is', ' Havana', ' Lima')": (
                "Its slope is"
            ),
            "answer = nanopatch.Experiment('Daniel Lewis', 'Daniel Hall', ' Lewis', ' Hall')": "differ by only",
        },
    ),
]
