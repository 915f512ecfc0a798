"""The exercises of lesson 2, the first patch."""

from __future__ import annotations

import re

import numpy as np

from ..errors import NanopatchError
from ..experiments.experiment import MICHELLE, Experiment
from ..model.checkpoint import load
from ..patching.sweep import sweep
from ..results.sweep import Sweep
from .exercises import Exercise, close


def _resid() -> Sweep:
    return sweep(load("nano"), MICHELLE)


def _late_patch(answer: float) -> str | None:
    result = _resid()
    if close(answer, result.grid[2, -1], 3e-3):  # 15.3 is right too
        return None
    if close(answer, result.normalised[2, -1], 1e-2):
        return "That is the normalised value. Give the logit difference itself."
    if close(answer, sweep(load("nano"), MICHELLE, direction="noise").grid[2, -1]):
        return "You patched the corrupted vector into the clean run. Here the clean one goes into the corrupted run."
    if close(answer, result.baseline_corrupted):
        return "That is the corrupted run as it is: was the assignment reached?"
    if close(answer, result.baseline_clean):
        return "That is the clean run. Did you patch all positions at once?"
    for layer, position in np.ndindex(result.grid.shape):
        if close(answer, result.grid[layer, position]):
            return f"That is what a patch at layer {layer}, position {position} gives."
    return "No patch of resid_pre gives that. Compare your loop with that of the lesson, one line after the other."


def _whole_layer(answer: float) -> str | None:
    result = _resid()
    if close(answer, result.baseline_clean, 3e-3):  # 17.1 is right too
        return None
    if close(answer, result.baseline_corrupted):
        return "That is the corrupted run: nothing was patched. Is the assignment reached, and is it at layer 2?"
    if close(answer, 1.0):
        return "That is the normalised value. Give the logit difference itself."
    if close(answer, result.grid[2].sum()) or close(answer, result.normalised[2].sum(), 1e-2):
        return "Effects of single patches do not add up. Make one run with all positions patched together."
    return (
        "All that the layers from 2 on read is then as in the clean run. So what can the logits be? "
        "Compare your number with that."
    )


def _dots(answer: int) -> str | None:
    unchanged = np.asarray(_resid().unchanged)
    right = int(unchanged.sum())
    if answer == right:
        return None
    if answer in (unchanged[0].sum(), unchanged[:, 0].sum()):
        return "You counted only the first layer, or only the first position."
    if answer == unchanged[0].sum() + unchanged[:, 0].sum():
        return "You counted the cell of layer 0 and position 0 twice."
    if answer == unchanged.size - right:
        return "You counted the cells without a dot."
    return (
        "A dot stands where the vectors are equal, or where the patch cannot reach the answer. A light cell is no dot."
    )


def _attention(answer: int) -> str | None:
    effects = sweep(load("nano"), MICHELLE, "attn_out").normalised[:, -1]
    if not 0 <= answer < len(effects):
        return f"The layers have the numbers 0 to {len(effects) - 1}."
    if answer == effects.argmax():
        return None
    if answer == _resid().normalised[:, -1].argmax():
        return 'That is the largest effect of resid_pre there. Give the third argument of sweep: "attn_out".'
    if answer == 0:
        return "In layer 0 the large effect is at the surname. Look at the last position."
    return f"The effect there is {effects[answer]:.2f}; another layer has more."


def _own(answer: Experiment) -> str | None:
    model = load("nano")
    names = ("Michelle", "Jones", "Smith", "Jessica", "Elon", "Steve")
    used = [name for name in names if name in re.findall(r"\w+", f"{answer.clean} {answer.corrupted}")]
    if used:
        return f"{' and '.join(used)} stood in the lesson. Take other names."
    unspaced = [text for text in (answer.answer, answer.wrong_answer) if isinstance(text, str) and text[:1] != " "]
    if unspaced:
        return f"{unspaced[0]!r} lacks its leading space: the model would say {f' {unspaced[0]}'!r}."
    try:
        result = sweep(model, answer)
    except NanopatchError as error:
        return f"The library refuses it: {error}"
    clean, corrupted = result.baseline_clean, result.baseline_corrupted
    assert clean is not None and corrupted is not None
    if not clean > 5:
        if clean < -5 and corrupted > 5:
            return "The answers are the wrong way round: `answer` is that of the clean prompt."
        return f"The clean run's logit difference is {clean:.1f}: the model does not answer it as you expect."
    if not corrupted < -5:
        return f"The corrupted run's logit difference is {corrupted:.1f}: its own answer should win there."
    return None


EXERCISES = [
    Exercise(
        kind="a number",
        wrong_with=_late_patch,
        hint="Take the loop of the first patch, and change the layer and the position in it: -1 is the last one.",
        solution="""
for site in model.steps(MICHELLE.corrupted):
    if site.name == "resid_pre" and site.layer == 2:
        site.array[-1] = clean.resid_pre[2, -1]
answer = logit_diff(site.array)
""",
        usual_mistakes={
            "answer = result.normalised[2, -1]": "normalised value",
            "answer = result.grid[1, -1]": "layer 1, position 10",
            "answer = logit_diff(corrupted.logits)": "was the assignment reached",
            "answer = logit_diff(clean.logits)": "all positions at once",
            "answer = nanopatch.sweep(model, MICHELLE, direction='noise').grid[2, -1]": "into the clean run",
            "answer = 12345.0": "No patch of resid_pre",
        },
    ),
    Exercise(
        kind="a number",
        wrong_with=_whole_layer,
        hint="site.array[:] = ... replaces all rows. What do the layers from 2 on get to read then?",
        solution="""
for site in model.steps(MICHELLE.corrupted):
    if site.name == "resid_pre" and site.layer == 2:
        site.array[:] = clean.resid_pre[2]
answer = logit_diff(site.array)  # the clean run's: everything after layer 2 is computed from clean vectors
""",
        usual_mistakes={
            "answer = logit_diff(corrupted.logits)": "nothing was patched",
            "answer = 1.0": "normalised value",
            "answer = result.grid[2].sum()": "do not add up",
        },
    ),
    Exercise(
        kind="a whole number",
        wrong_with=_dots,
        hint="All of layer 0 but the surname, and all of position 0. One cell is in both.",
        solution="answer = int(np.sum(result.unchanged))",
        usual_mistakes={
            "answer = int(np.sum(result.unchanged[0]))": "only the first layer",
            "answer = int(np.sum(result.unchanged[0]) + np.sum(result.unchanged[:, 0]))": "twice",
            "answer = int((abs(result.normalised) < 0.1).sum())": "is no dot",
        },
    ),
    Exercise(
        kind="a whole number",
        wrong_with=_attention,
        hint='nanopatch.sweep(model, MICHELLE, "attn_out").normalised has the axes layer and position.',
        solution='answer = int(nanopatch.sweep(model, MICHELLE, "attn_out").normalised[:, -1].argmax())',
        usual_mistakes={
            "answer = 0": "at the surname",
            "answer = int(result.normalised[:, -1].argmax())": "largest effect of resid_pre",
            "answer = 10": "0 to 3",
        },
    ),
    Exercise(
        kind="an Experiment",
        wrong_with=_own,
        hint="Keep the form of the sentence; change the first name and both surnames. An answer begins with a space, "
        "and is one token: model.token_strings(model.tokenize(text)) shows the tokens of a text.",
        solution="""
answer = nanopatch.Experiment(
    clean="Daniel Cooper was a top-notch student. Daniel",
    corrupted="Daniel Miller was a top-notch student. Daniel",
    answer=" Cooper",
    wrong_answer=" Miller",
)
""",
        usual_mistakes={
            "answer = MICHELLE": "Take other names",
            "answer = JESSICA": "Take other names",
            "answer = nanopatch.Experiment('Daniel Cooper was a top-notch student. Daniel', "
            "'Daniel Miller was a top-notch student. Daniel', 'Cooper', 'Miller')": "lacks its leading space",
            "answer = nanopatch.Experiment('Daniel Cooper was a top-notch student. Daniel', "
            "'Daniel Miller was a top-notch student. Daniel', ' Miller', ' Cooper')": "wrong way round",
            "answer = nanopatch.Experiment('The sky is', 'The sea is', ' blue', ' wet')": "logit difference is",
        },
    ),
]
