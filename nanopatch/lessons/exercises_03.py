"""The exercises of lesson 3, denoising and noising."""

from __future__ import annotations

import numpy as np

from ..experiments.experiment import MICHELLE, Experiment
from ..experiments.patch import Patch
from ..model.checkpoint import load
from ..model.sites import Run, Site
from ..patching.sweep import sweep
from .exercises import Exercise, close, michelle_with
from .programs import and_gate

HEADS = Patch("z", axes=("layer", "head"))


def _both_heads(answer: float) -> str | None:
    if close(answer, 10):
        return None
    if close(answer, -10):
        return "That is the corrupted run's value: are both heads patched in the same run?"
    if close(answer, 1):
        return "That is the normalised value. Give the logit difference itself."
    if close(answer, -20) or close(answer, 20):
        return "Two runs with one patch each are not one run with both. Patches do not add up."
    if close(answer, 5):
        return 'That is the logit of "1" alone. Subtract that of "0".'
    return "Write both assignments into one loop, and compare with the two runs without a patch: 10 and -10."


def _one_bit(answer: np.ndarray) -> str | None:
    right = sweep(and_gate().model, Experiment("11=", "01=", "1", "0"), HEADS).normalised[0]
    if close(answer, right, 1e-6):
        return None
    if answer.shape == (1, 2):
        return "The values of one layer are a row of that: [0]."
    if answer.shape != (2,):
        return f"Two numbers have the shape (2,); this has {answer.shape}."
    if close(answer, [0, 1], 1e-6):
        return "Which head copies the first bit? Heads are counted from 0."
    if close(answer, [0, 0], 1e-6):
        return "That holds if both bits differ. Here the second bit is 1 in both prompts."
    if close(answer, [1, 1], 1e-6):
        return "One of the two bits is the same in both prompts, so its head writes the same in both runs."
    if not np.isfinite(answer).all():
        return "There is no scale if both prompts give the same. Is this the AND gate?"
    return "Look at what each head copies in both prompts, and what the neuron then computes."


def _which_gate(answer: str) -> str | None:
    said = set(answer.upper().replace(",", " ").split()) & {"AND", "OR", "SHARED"}
    if said == {"OR"}:
        return None
    if said == {"SHARED"}:
        return "With shared work each part brings back only a part. Here one is enough, and it is not needed."
    if said == {"AND"}:
        return "In an AND gate one mended part is not enough, so that denoising gives 0. Here it gives nearly 1."
    return 'Answer one of "AND", "OR" and "SHARED".'


def _four_heads(answer: float) -> str | None:
    denoised = sweep(load("nano"), MICHELLE, HEADS).normalised[1]
    if close(answer, michelle_with(_together), 1e-2):
        return None
    if close(answer, denoised.sum(), 1e-2):
        return "That is the sum of the four patches made one at a time. Make one run with all of them."
    if close(answer, denoised.mean(), 1e-2):
        return "That is the mean of the four single patches. Make one run with all of them."
    if close(answer, michelle_with(_together, direction="noise"), 1e-2):
        return "You put the corrupted run's heads into the clean run: that is noising."
    if abs(answer) > 2:
        return "That looks like a logit difference: subtract the corrupted run's, and divide by clean minus corrupted."
    return "Replace site.array as a whole where site.name is z and site.layer is 1, and normalise the result."


def _together(site: Site, donor: Run) -> None:
    if site.name == "z" and site.layer == 1:
        site.array[:] = donor.z[1]


EXERCISES = [
    Exercise(
        kind="a number",
        wrong_with=_both_heads,
        hint="site.array[:] replaces all heads of z at once.",
        solution="""
for site in gate.steps("00="):
    if site.name == "z" and site.layer == 0:
        site.array[:] = clean.z[0]
answer = site.array[-1, one] - site.array[-1, zero]
""",
        usual_mistakes={
            "answer = -10": "corrupted run's value",
            "answer = 1.0": "normalised",
            "answer = 5": "alone",
            "answer = -20": "do not add up",
        },
    ),
    Exercise(
        kind="an array of numbers",
        wrong_with=_one_bit,
        hint='nanopatch.Experiment("11=", "01=", "1", "0") is the experiment; `heads` says what to patch.',
        solution="""
one_bit = nanopatch.Experiment("11=", "01=", "1", "0")
answer = nanopatch.sweep(gate, one_bit, heads).normalised[0]
""",
        usual_mistakes={
            "answer = np.array([0, 0])": "both bits differ",
            "answer = np.array([0, 1])": "counted from 0",
            "answer = np.array([1, 1])": "the same in both prompts",
            "answer = np.array([[1, 0]])": "[0]",
            'answer = np.array(["one", "zero"])': "an array of numbers",
        },
    ),
    Exercise(
        kind="a text",
        wrong_with=_which_gate,
        hint="Is the head enough? Is it needed? Then find the row of the table.",
        solution='answer = "OR"  # enough (0.9), but not needed (0.1): the other head stands in for it',
        usual_mistakes={
            'answer = "AND"': "not enough",
            'answer = "SHARED"': "one is enough",
            'answer = "both"': "Answer one of",
            'answer = "OR, but also AND"': "Answer one of",
        },
    ),
    Exercise(
        kind="a number",
        wrong_with=_four_heads,
        hint="Record both runs, replace z of layer 1 as a whole, and normalise as in lesson 2.",
        solution="""
runs = {name: nano.run(getattr(MICHELLE, name)) for name in ("clean", "corrupted")}
for site in nano.steps(MICHELLE.corrupted):
    if site.name == "z" and site.layer == 1:
        site.array[:] = runs["clean"].z[1]
jones, smith = nano.tokenize(" Jones Smith")
value, low, high = (
    logits[-1, jones] - logits[-1, smith] for logits in (site.array, runs["corrupted"].logits, runs["clean"].logits)
)
answer = (value - low) / (high - low)
# More than the sum. What the heads write does add up. But then the last LayerNorm divides by the size of the vector,
# and a vector that holds both surnames is larger. And the MLP of layer 3, like any MLP, does not add up.
""",
        usual_mistakes={
            "answer = denoised[1].sum()": "one at a time",
            "answer = denoised[1].mean()": "mean of the four",
            "answer = 15.4": "divide by",
        },
    ),
]
