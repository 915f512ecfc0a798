"""The exercises of lesson 9, circuits."""

from __future__ import annotations

import numpy as np

from ..circuits.run import faithfulness
from ..experiments.experiment import INDIRECT_OBJECT
from ..gradients.edges import circuit, edge_attribution
from ..model.checkpoint import load
from ..model.gpt2 import Model
from ..results.edges import EdgeScores
from .exercises import Exercise
from .programs import share_of_x

N_STEPS = 5
ENOUGH = 0.5


def _n_found(scores: EdgeScores) -> int:
    return sum(abs(edge.score) > 1e-4 for edge in scores.edges)


def _noised(answer: int) -> str | None:
    model, experiment, edges = share_of_x()
    right, other_way, of_all = (
        _n_found(edge_attribution(model, experiment, direction="noise")),
        _n_found(edge_attribution(model, experiment)),
        len(edge_attribution(model, experiment).edges),
    )
    if answer == right:
        return None
    if answer == other_way:
        return (
            "That is how many denoising finds. Now the derivative is taken at the clean run: there are letters x in it."
        )
    if answer == of_all:
        return "That is how many edges there are. Count those whose score is not 0: found(scores)."
    return f"The program has {len(edges)} edges, and no others have a score."


def _smallest(answer: int) -> str | None:
    model = load("nano")
    scores = edge_attribution(model, INDIRECT_OBJECT, steps=N_STEPS)
    if not 1 <= answer <= len(scores.edges):
        return f"There are {len(scores.edges)} edges."

    def value(n: int) -> float:
        return float(faithfulness(model, INDIRECT_OBJECT, circuit(scores, n)).normalised)

    if value(int(answer)) < ENOUGH:
        return f"With {answer} edges the faithfulness is {value(int(answer)):.2f}."
    if answer > 1 and value(int(answer) - 1) >= ENOUGH:
        return f"With {answer} it is enough, but fewer are enough too."
    return None


def _xor(answer: Model) -> str | None:
    try:
        for a, b in np.ndindex(2, 2):
            tokens = answer.tokenize(f"{a}{b}=")
            said = answer.token_strings([int(answer.run(tokens).logits[-1].argmax())])[0]
            if said != str(a ^ b):
                return f'To "{a}{b}=" it says "{said}", not "{a ^ b}".'
    except ValueError as error:
        return f"It cannot be run on prompts such as 01=: {error}"
    return None


EXERCISES = [
    Exercise(
        kind="a whole number",
        wrong_with=_noised,
        hint="Noising patches into the clean run, so the slopes are taken there. Is the neuron on at an x?",
        solution="""
program = share_of_x()
answer = len(found(nanopatch.edge_attribution(program.model, program.experiment, direction="noise")))
""",
        usual_mistakes={
            "answer = len(found(nanopatch.edge_attribution(model, experiment)))": "how many denoising finds",
            "answer = len(nanopatch.edge_attribution(model, experiment).edges)": "how many edges there are",
            "answer = 1": "The program has 3 edges",
        },
    ),
    Exercise(
        kind="a whole number",
        wrong_with=_smallest,
        hint="Make a loop over n from 1 on, with the two lines of the curve in it.",
        solution="""
for n in range(1, 480):
    kept = nanopatch.circuit(scores, n)
    if kept and nanopatch.faithfulness(nano, INDIRECT_OBJECT, kept).normalised >= 0.5:
        break
answer = n
""",
        usual_mistakes={
            "answer = 5": "the faithfulness is 0.00",
            "answer = 20": "fewer are enough",
            "answer = 1000": "There are 479 edges",
        },
    ),
    Exercise(
        kind="a model",
        wrong_with=_xor,
        hint="The first neuron reads a and b and writes xor=1; the second reads a, b and one=-1 and writes xor=-2.",
        solution="""
from nanopatch.lessons.programs import Writer

writer = Writer(n_layer=1, characters="01=", slots=("bit", "position_0", "position_1", "a", "b", "xor"), n_neurons=2)
writer.embed("1", bit=1)
writer.position(0, position_0=1)
writer.position(1, position_1=1)
writer.head(0, 0, looks_at="position_0", value="bit", output="a")
writer.head(0, 1, looks_at="position_1", value="bit", output="b")
writer.neuron(0, reads={"a": 1, "b": 1}, writes={"xor": 1})
writer.neuron(0, reads={"a": 1, "b": 1, "one": -1}, writes={"xor": -2})
writer.unembed("1", xor=10, one=-5)
writer.unembed("0", xor=-10, one=5)
answer = writer.model()
""",
        usual_mistakes={
            "answer = gate.model": 'To "01=" it says "0"',
            "from nanopatch.lessons.programs import or_gate\nanswer = or_gate().model": 'To "11=" it says "1"',
            "answer = nano": "it says",
        },
    ),
]
