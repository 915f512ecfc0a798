"""The exercises of lesson 7, path patching."""

from __future__ import annotations

from ..errors import NanopatchError
from ..experiments.experiment import INDIRECT_OBJECT, Experiment
from ..experiments.patch import Patch
from ..model.checkpoint import load
from ..patching.sweep import path_patch, sweep
from ..types import Array
from .exercises import Exercise, close


def _total() -> Array:
    """(n_layer, n_head)"""
    values: Array = sweep(load("nano"), INDIRECT_OBJECT, Patch("z", axes=("layer", "head"))).normalised
    return values


def _direct() -> Array:
    """(n_layer, n_head)"""
    values: Array = path_patch(load("nano"), INDIRECT_OBJECT, "head", "logits").normalised.reshape(4, 4)
    return values


def _not_direct(answer: float) -> str | None:
    total, direct = _total()[2, 0], _direct()[2, 0]
    if close(answer, total - direct, 2e-2):
        return None
    if close(answer, direct - total, 2e-2):
        return "The sign is wrong: the direct effect is subtracted from the total one."
    if close(answer, total, 1e-2):
        return "That is the total effect. Subtract what is direct."
    if close(answer, direct, 1e-2):
        return "That is the direct effect. Subtract it from the total one."
    mlps_free = path_patch(load("nano"), INDIRECT_OBJECT, "head 2.0", "logits", between="free mlps").normalised[0, 0]
    if close(answer, total - mlps_free, 2e-2):
        return 'That is the rest with the MLPs free. Direct is between="frozen".'
    return "Both are normalised values: total.normalised[2, 0], and effect of head 2.0."


def _other_path(answer: float) -> str | None:
    model = load("nano")
    if close(answer, path_patch(model, INDIRECT_OBJECT, "head 0.3", "v 2.0").normalised[0, 0], 1e-2):
        return None
    for sender in ("head 0.1", "head 0.0", "head 0.2"):
        if close(answer, path_patch(model, INDIRECT_OBJECT, sender, "v 2.0").normalised[0, 0], 3e-3):
            return f"That is the path from {sender}."
    if close(answer, _total()[0, 3], 1e-2):
        return "That is the total effect of head 0.3, for all who read it."
    for between, what in (("free mlps", "the MLPs are"), ("free", "the other heads and the MLPs are")):
        freed = path_patch(model, INDIRECT_OBJECT, "head 0.3", "v 2.0", between=between).normalised[0, 0]
        if close(answer, freed, 3e-3):
            return f"In your first run {what} not held at the corrupted run's values."
    if close(answer, path_patch(model, INDIRECT_OBJECT, "head 0.3", "v 2").normalised[0, 0], 1e-2):
        return "That is the path to the values of all heads of layer 2."
    return "Change only the head that is not held, from 1 to 3, and compare with path_patch."


def _through_mlp(answer: int) -> str | None:
    through = abs(_total()[3] - _direct()[3])
    if not 0 <= answer < len(through):
        return "Heads have the numbers 0 to 3."
    if through[answer] == through.max():
        return None
    return f"For head 3.{answer} it is {through[answer]:.3f}; for another one it is more."


def _own(answer: Experiment) -> str | None:
    model = load("nano")
    try:
        tokens = answer.tokens(model)
        for name, prompt, best in (
            ("clean", tokens.clean, tokens.answer),
            ("corrupted", tokens.corrupted, tokens.wrong_answer),
        ):
            if best is None:
                return "Give both an answer and a wrong_answer."
            said, right = model.token_strings([int(model.run(prompt).logits[-1].argmax()), best])
            if said != right:
                return f"After the {name} prompt the model says {said!r}, not {right!r}."
        if {tokens.answer, tokens.wrong_answer} == set(model.tokenize(" Mary John").tolist()):
            return "These are the names of the lesson. Take two other names."
        carried = float(path_patch(model, answer, "head 0.1", "v 2.0").normalised[0, 0])
    except NanopatchError as error:
        return f"It cannot be patched: {str(error).rstrip('.')}."
    except Exception as error:  # fields of any kind are an Experiment too
        return f"It cannot be run: {type(error).__name__}: {str(error).rstrip('.')}."
    if carried > 0.1:
        return None
    return f"From head 0.1 to v of head 2.0 it is {carried:.2f}. Keep the form: the giver is named twice."


EXERCISES = [
    Exercise(
        kind="a number",
        wrong_with=_not_direct,
        hint='`total` has the total effects; effect["head 2.0"] is the direct one.',
        solution='answer = total.normalised[2, 0] - effect["head 2.0"]',
        usual_mistakes={
            'answer = effect["head 2.0"] - total.normalised[2, 0]': "sign",
            "answer = total.normalised[2, 0]": "total effect",
            'answer = effect["head 2.0"]': "direct effect",
            'answer = total.normalised[2, 0] - to_logits["free mlps"][2, 0]': "with the MLPs free",
        },
    ),
    Exercise(
        kind="a number",
        wrong_with=_other_path,
        hint="In the first run only one head is not held. Which line says so?",
        solution="""
for site in model.steps(tokens.corrupted):
    if site.name == "z":
        site.array = corrupted.z[site.layer]
        if site.layer == 0:
            site.array[:, 3] = clean.z[0, :, 3]
    if site.name == "mlp_out":
        site.array = corrupted.mlp_out[site.layer]
    if site.name == "v" and site.layer == 2:
        v_of_receiver = site.array[:, 0].copy()
for site in model.steps(tokens.corrupted):
    if site.name == "v" and site.layer == 2:
        site.array[:, 0] = v_of_receiver
answer = normalised(site.array)
""",
        usual_mistakes={
            "answer = by_hand": "from head 0.1",
            "answer = total.normalised[0, 3]": "for all who read it",
            'freed = nanopatch.path_patch(model, INDIRECT_OBJECT, "head 0.3", "v 2.0", between="free")\n'
            "answer = freed.normalised[0, 0]": "the other heads and the MLPs are not held",
            'freed = nanopatch.path_patch(model, INDIRECT_OBJECT, "head 0.3", "v 2.0", between="free mlps")\n'
            "answer = freed.normalised[0, 0]": "run the MLPs are not held",
            "answer = 0.5": "Change only the head",
        },
    ),
    Exercise(
        kind="a whole number",
        wrong_with=_through_mlp,
        hint="total.normalised[3] and the values of effect for head 3.0 to head 3.3.",
        solution="""
through = [abs(total.normalised[3, head] - effect[f"head 3.{head}"]) for head in range(4)]
answer = through.index(max(through))
""",
        usual_mistakes={"answer = 0": "for another one", "answer = 4": "0 to 3"},
    ),
    Exercise(
        kind="an Experiment",
        wrong_with=_own,
        hint="nanopatch.Experiment(clean, corrupted, answer, wrong_answer); the answers begin with a space.",
        solution="""
answer = nanopatch.Experiment(
    "When Tom and James went to the park, James gave a ball to",
    "When Tom and James went to the park, Tom gave a ball to",
    " Tom",
    " James",
)
""",
        usual_mistakes={
            "answer = INDIRECT_OBJECT": "names of the lesson",
            "from nanopatch.experiments import MICHELLE\nanswer = MICHELLE": "Keep the form",
            'answer = nanopatch.Experiment("Tom gave a ball to", "James gave a ball to", " Tom", " Ann")': "model says",
            'answer = nanopatch.Experiment("Tom gave a ball to", "James gave a ball to")': "Give both",
        },
    ),
]
