"""The exercises of lesson 5, logit lens and direct logit attribution."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ..experiments.experiment import MICHELLE
from ..lenses.direct import direct_logit_attribution
from ..lenses.logit import logit_lens
from ..model.checkpoint import load
from ..model.sites import Site, record
from .exercises import Exercise, close


def _against(answer: str) -> str | None:
    model = load("nano")
    parts = direct_logit_attribution(model, model.run(MICHELLE.corrupted), " Jones", " Smith").parts
    heads = {name: value for name, value in parts.items() if name.startswith("head")}
    if answer == min(heads, key=heads.__getitem__):
        return None
    clean = direct_logit_attribution(model, model.run(MICHELLE.clean), " Jones", " Smith").parts
    if answer == max(heads, key=lambda name: clean[name]):
        return "That head writes most in the clean run. Read the corrupted one."
    if answer in heads:
        return f"Its part is {heads[answer]:.2f}; another head's is more negative."
    if answer in parts:
        return f"That is no head; its part is {parts[answer]:.2f}."
    if re.fullmatch(r"\d\.\d", answer.strip()):
        return f'Give the name as in `parts`: "head {answer.strip()}".'
    return 'Give a name from `parts`, such as "head 2.1".'


def _first(answer: str) -> str | None:
    model = load("nano")
    lens = logit_lens(model, model.run(MICHELLE.clean), " Jones", " Smith")
    names = list(lens.rows)
    said = [row[-1] == " Jones" for row in lens.predicted]
    if answer not in names:
        return f"The rows are {', '.join(names)}."
    at = names.index(answer)
    if not said[at]:
        return f"In that row, the likeliest token at the last position is {lens.predicted[at][-1]!r}."
    if any(said[:at]):
        return "It is the likeliest there, but not for the first time."
    return None


def _patched_lens(answer: float) -> str | None:
    model = load("nano")
    clean = model.run(MICHELLE.clean)

    def patched() -> Iterator[Site]:
        for site in model.steps(MICHELLE.corrupted):
            if site.name == "resid_pre" and site.layer == 1:
                site.array[1] = clean.resid_pre[1, 1]
            yield site

    values = logit_lens(model, record(patched()), " Jones", " Smith").logit_diff
    assert values is not None
    if close(answer, values[3, -1]):
        return None
    for name, run in (("clean", clean), ("corrupted", model.run(MICHELLE.corrupted))):
        other = logit_lens(model, run, " Jones", " Smith").logit_diff
        assert other is not None
        if close(answer, other[3, -1]):
            return f"That is the {name} run's. Is the patched run recorded, and the assignment before the yield?"
    if close(answer, values[-1, -1]):
        return "That is the last row. The row of resid_mid 1 has the number 3."
    if close(answer, values[3, 1]):
        return "That is at the surname's position. The last position has the number -1."
    return "Compare with the lesson: lens.rows.index('resid_mid 1') is the row, -1 the column."


EXERCISES = [
    Exercise(
        kind="a text",
        wrong_with=_against,
        hint="The `parts` of the corrupted run are a dict; look for its minimum among the heads.",
        solution="""
of_corrupted = nanopatch.direct_logit_attribution(model, model.run(MICHELLE.corrupted), " Jones", " Smith")
heads = {name: value for name, value in of_corrupted.parts.items() if name.startswith("head")}
answer = min(heads, key=heads.get)
""",
        usual_mistakes={
            "answer = max(direct.parts, key=direct.parts.get)": "Read the corrupted",
            'answer = "head 3.1"': "more negative",
            'answer = "1.0"': "as in `parts`",
            'answer = "mlp 3"': "no head",
        },
    ),
    Exercise(
        kind="a text",
        wrong_with=_first,
        hint="lens.predicted has a row for each of lens.rows; its last item is the token at the last position.",
        solution="""
answer = next(row for row, tokens in zip(lens.rows, lens.predicted) if tokens[-1] == " Jones")
""",
        usual_mistakes={
            'answer = "resid_pre 1"': "likeliest token at the last position is",
            'answer = "resid_post 3"': "not for the first time",
            'answer = "layer 2"': "The rows are",
        },
    ),
    Exercise(
        kind="a number",
        wrong_with=_patched_lens,
        hint="def patched(): for site in model.steps(...): ...; yield site. Then nanopatch.record(patched()).",
        solution="""
def patched():
    for site in model.steps(MICHELLE.corrupted):
        if site.name == "resid_pre" and site.layer == 1:
            site.array[1] = run.resid_pre[1, 1]
        yield site

of_patched = nanopatch.logit_lens(model, nanopatch.record(patched()), " Jones", " Smith")
answer = of_patched.logit_diff[list(of_patched.rows).index("resid_mid 1"), -1]
""",
        usual_mistakes={
            "answer = lens.logit_diff[3, -1]": "the clean run's",
            "smith_run = model.run(MICHELLE.corrupted)\n"
            "answer = nanopatch.logit_lens(model, smith_run, ' Jones', ' Smith').logit_diff[3, -1]": "corrupted run's",
            "answer = 0.5": "is the row",
        },
    ),
]
