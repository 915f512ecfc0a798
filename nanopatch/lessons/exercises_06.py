"""The exercises of lesson 6, induction heads."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np

from ..errors import NanopatchError
from ..lenses.heads import head_scores
from ..model.checkpoint import load
from ..model.gpt2 import Model
from ..model.sites import Site
from ..results.heads import SCORES
from ..types import Array
from .exercises import Exercise, close

N_REPEAT = 20


def _prompts(model: Model) -> Array:
    """Those of the lesson."""
    random, words = np.random.default_rng(0), sorted(model.trained_tokens or ())
    half = np.array([random.choice(words, N_REPEAT, replace=False) for _ in range(16)])
    return np.concatenate([half, half], axis=1)


def _accuracy(edit: Callable[[Site], None]) -> float:
    model = load("nano")
    prompts = _prompts(model)
    for site in model.steps(prompts):
        edit(site)
    return float((site.array[:, N_REPEAT:-1].argmax(axis=-1) == prompts[:, N_REPEAT + 1 :]).mean())


def _silenced(*heads: tuple[int, int]) -> Callable[[Site], None]:
    def edit(site: Site) -> None:
        for layer, head in heads:
            if site.name == "z" and site.layer == layer:
                site.array[..., head, :] = 0

    return edit


def _two(answer: float) -> str | None:
    def is_without(*heads: tuple[int, int]) -> bool:
        return abs(answer - _accuracy(_silenced(*heads))) < 4e-3

    if is_without((1, 0), (1, 2)):
        return None
    if not 0 <= answer <= 1:
        return "An accuracy is a number from 0 to 1."
    if is_without():
        return "That is the accuracy with no head silenced. Was the assignment reached?"
    if is_without((1, 0)) or is_without((1, 2)):
        return "That is with one of them silenced. Give both to `without`, in one list."
    if is_without((1, 1), (1, 3)):
        return "Those were the other two, 1.1 and 1.3."
    if is_without((0, 1), (2, 1)):
        return "Heads are given as (layer, head): head 1.2 is (1, 2)."
    return "accuracy(nanopatch.record(without([...])).logits) measures it; the list holds two pairs."


def _habit(answer: str) -> str | None:
    scores = head_scores(load("nano"))
    given = answer.strip().removesuffix("_token")
    values = {name.removesuffix("_token"): float(getattr(scores, name)[0, 0]) for name in SCORES}
    if given not in values:
        return f"Give one of {', '.join(values)}."
    if given == max(values, key=values.__getitem__):
        return None
    return f"Its score there is {values[given]:.2f}; another one is higher."


def _replaced(*heads: tuple[int, int]) -> Array:
    """The accuracy with q, with k, and with v of layer 1 from the run without these heads: (3,)."""
    kept: dict[str, Array] = {}

    def silence_and_keep(site: Site) -> None:
        _silenced(*heads)(site)
        if site.layer == 1 and site.name in ("q", "k", "v"):
            kept[site.name] = site.array.copy()

    def put(name: str) -> Callable[[Site], None]:
        def edit(site: Site) -> None:
            if site.layer == 1 and site.name == name:
                site.array = kept[name]

        return edit

    _accuracy(silence_and_keep)
    return np.array([_accuracy(put(name)) for name in ("q", "k", "v")])


def _three(answer: Array) -> str | None:
    right = _replaced((0, 0))
    if close(answer, right, 2e-2):
        return None
    if answer.shape != (3,):
        return f"It has the shape {answer.shape}; one number for each of q, k and v has the shape (3,)."
    if close(answer, _replaced((0, 1), (0, 3)), 2e-2):
        return "These are the numbers of the lesson, without 0.1 and 0.3. Silence head 0.0, and record q, k and v anew."
    if any(close(answer, right[list(order)], 2e-2) for order in itertools.permutations(range(3))):
        return "These are the right numbers in another order; the order is q, k, v."
    if close(answer, [right.min()] * 3, 2e-2):
        return "Replace one of the three at a time, and leave the other two as the unchanged run has them."
    if close(answer, [_accuracy(_silenced())] * 3, 5e-3):
        return "Three times the accuracy without any change: were the assignments reached?"
    return "Record q, k and v of `without([(0, 0)])`, then run the last loop of the lesson with that run."


def _own_text(answer: str) -> str | None:
    model = load("nano")
    try:
        tokens = [int(token) for token in model.tokenize(answer)]
    except NanopatchError as error:
        return f"The model cannot read this text: {str(error).rstrip('.')}."
    most = model.wpe.shape[0]
    if len(tokens) > most:
        return f"It has {len(tokens)} tokens; the model has {most} positions."
    lengths = [n for n in range(1, len(tokens)) if tokens[n:] == tokens[: len(tokens) - n]]  # those of the first copy
    if not lengths:
        return (
            "The tokens do not come again in the same order. A word without a space before it is another token: begin "
            "the text with a space too."
        )
    n = lengths[0]
    if n < 5 or len(set(tokens[:n])) < n:
        return f"The part that comes again has {n} tokens. Take at least five tokens, all different."
    if len(tokens) >= 2 * n:
        return "The second copy is complete, so no word of it is left to predict. Leave its last words out."
    following, (said,) = tokens[len(tokens) - n], model.token_strings([int(model.run(tokens).logits[-1].argmax())])
    (right,) = model.token_strings([following])
    if said != right:
        return f"After this text the model says {said!r}, not {right!r}. Try more common words, or a longer sequence."
    for site in model.steps(tokens):
        _silenced(*((1, head) for head in range(4)))(site)
    if site.array[-1].argmax() == following:
        return f"The model says {right!r} without the induction heads too. Take words that do not belong together."
    return None


EXERCISES = [
    Exercise(
        kind="a number",
        wrong_with=_two,
        hint="without(heads) takes a list of (layer, head).",
        solution='answer = accuracy(nanopatch.record(without([(1, 0), (1, 2)]), sites=["logits"]).logits)',
        usual_mistakes={
            'answer = accuracy(nanopatch.record(without([(1, 0)]), sites=["logits"]).logits)': "one of them",
            'answer = accuracy(nanopatch.record(without([(1, 1), (1, 3)]), sites=["logits"]).logits)': "other two",
            'answer = accuracy(nanopatch.record(without([(0, 1), (2, 1)]), sites=["logits"]).logits)': "(layer, head)",
            "answer = accuracy(run.logits)": "no head silenced",
            "answer = 70.4": "from 0 to 1",
        },
    ),
    Exercise(
        kind="a text",
        wrong_with=_habit,
        hint="Look at the first row of the table of scores, or at scores.induction[0, 0] and the other four.",
        solution="""
names = ["induction", "previous_token", "duplicate_token", "first_token", "current_token"]
answer = max(names, key=lambda name: getattr(scores, name)[0, 0])  # it reads the query's own token: "current"
""",
        usual_mistakes={'answer = "previous"': "higher", 'answer = "own"': "Give one of"},
    ),
    Exercise(
        kind="an array of numbers",
        wrong_with=_three,
        hint='First: deaf = nanopatch.record(without([(0, 0)]), sites=["q", "k", "v", "logits"]).',
        solution="""
deaf = nanopatch.record(without([(0, 0)]), sites=["q", "k", "v", "logits"])
answer = np.zeros(3)
for i, name in enumerate(("q", "k", "v")):
    for site in model.steps(prompts):
        if site.name == name and site.layer == 1:
            site.array = deaf[name][1]
    answer[i] = accuracy(site.array)  # with q it is lost: the query must say which token it is at; v tells what to copy
""",
        usual_mistakes={
            "answer = np.array([accuracy(run.logits), accuracy(blind.logits), accuracy(run.logits)])": "of the lesson",
            'deaf = nanopatch.record(without([(0, 0)]), sites=["logits"])\n'
            "answer = np.full(3, accuracy(deaf.logits))": "one of the three at a time",
            "answer = np.full(3, accuracy(run.logits))": "without any change",
            "answer = np.zeros((3, 4))": "the shape (3, 4)",
        },
    ),
    Exercise(
        kind="a text",
        wrong_with=_own_text,
        hint="Begin with a space, so that each word is the same token both times. model.token_strings shows them.",
        solution='answer = six_words + " lamp river seven"',
        usual_mistakes={
            'answer = "lamp river seven tree blue table lamp river"': "begin the text with a space",
            "answer = six_words + six_words": "second copy is complete",
            'answer = " lamp lamp lamp lamp lamp lamp"': "all different",
            'answer = " lamp river seven tree blue table"': "do not come again",
        },
    ),
]
