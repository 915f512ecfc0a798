"""The field's standard tasks, as lists of `Experiment` for `sweep` and `sweep_pairs`.

Each generator draws n pairs from a seed, the same ones every time. Answers are single tokens of GPT-2;
clean and corrupted prompt have the same number of tokens, and so have all prompts of one call, token for
token in the same roles, so that their results can be averaged. The words are ones that `nano` was trained
on; greater-than is beyond it, and for GPT-2 only.
"""

import itertools
import json
import random
from pathlib import Path

import numpy as np

from ..model import tokenizer
from ..errors import NanopatchError
from .experiment import Experiment
from ..model.layers import softmax

NAMES = [
    "Alan",
    "Alice",
    "Andrew",
    "Anna",
    "Brian",
    "Carol",
    "Daniel",
    "David",
    "Emily",
    "Emma",
    "Eric",
    "Helen",
    "Henry",
    "Jack",
    "Jacob",
    "James",
    "Jane",
    "Jason",
    "John",
    "Joseph",
    "Julia",
    "Karen",
    "Laura",
    "Luke",
    "Martin",
    "Mary",
    "Michael",
    "Nancy",
    "Oliver",
    "Peter",
    "Rachel",
    "Richard",
    "Robert",
    "Ruth",
    "Sam",
    "Sarah",
    "Simon",
    "Steven",
    "Tom",
    "William",
]
PLACES = [
    "store",
    "park",
    "school",
    "garden",
    "restaurant",
    "office",
    "station",
    "library",
    "hospital",
    "market",
    "museum",
    "hotel",
]
THINGS = [
    "drink",
    "book",
    "ring",
    "letter",
    "gift",
    "ball",
    "key",
    "bag",
    "hat",
    "ticket",
    "flower",
    "picture",
]

#: {first} and {second} are introduced, then one of them is the {giver}; the other is the answer. (Wang et al. 2022.)
INDIRECT_OBJECT_TEMPLATES = (
    "When {first} and {second} went to the {place}, {giver} gave a {thing} to",
    "After {first} and {second} arrived at the {place}, {giver} passed the {thing} to",
    "While {first} and {second} were working at the {place}, {giver} showed the {thing} to",
    "Then, {first} and {second} went to the {place}. {giver} gave a {thing} to",
)

CAPITALS = {
    "France": "Paris",
    "Italy": "Rome",
    "Germany": "Berlin",
    "Spain": "Madrid",
    "Portugal": "Lisbon",
    "England": "London",
    "Ireland": "Dublin",
    "Scotland": "Edinburgh",
    "Austria": "Vienna",
    "Belgium": "Brussels",
    "Netherlands": "Amsterdam",
    "Denmark": "Copenhagen",
    "Norway": "Oslo",
    "Sweden": "Stockholm",
    "Finland": "Helsinki",
    "Poland": "Warsaw",
    "Hungary": "Budapest",
    "Greece": "Athens",
    "Russia": "Moscow",
    "Turkey": "Ankara",
    "Lebanon": "Beirut",
    "Syria": "Damascus",
    "Iraq": "Baghdad",
    "Iran": "Tehran",
    "Afghanistan": "Kabul",
    "India": "Delhi",
    "Thailand": "Bangkok",
    "China": "Beijing",
    "Japan": "Tokyo",
    "Egypt": "Cairo",
    "Canada": "Ottawa",
    "Cuba": "Havana",
    "Peru": "Lima",
    "Chile": "Santiago",
    "Australia": "Canberra",
}
CAPITAL_TEMPLATES = (
    "The capital of {country} is",
    "The capital city of {country} is",
    "In {country}, the capital is",
    "The government of {country} is in",
)

EVENTS = [
    "war",
    "siege",
    "voyage",
    "expedition",
    "drought",
    "reign",
    "conflict",
    "journey",
    "project",
    "trial",
    "rebellion",
    "campaign",
    "dispute",
    "tour",
]


def indirect_object(
    n=20, order="ABBA", corruption="swap", template=INDIRECT_OBJECT_TEMPLATES[0], *, seed=0, prepend_bos=False
):
    """Indirect object identification: who is not repeated receives the thing. (Wang et al. 2022, arXiv 2211.00593.)

    order: "ABBA" names the indirect object first ("When Mary and John went ..., John gave a drink to" ->
    " Mary"), "BABA" second ("When John and Mary went ..., John gave ..."). corruption: "swap" makes the
    other one the giver, so that the corrupted prompt calls for the wrong answer; "ABC" puts three other names
    in the three places, so that it calls for neither. template: one of `INDIRECT_OBJECT_TEMPLATES`, or
    another with {first}, {second}, {giver} and, if wanted, {place} and {thing}.
    Returns n `Experiment`s; answer: the indirect object, wrong answer: the giver. Raises NanopatchError for
    another order or corruption, or a template without those slots.
    """
    if order not in ("ABBA", "BABA"):
        raise NanopatchError(f'unknown order {order!r}: "ABBA" (the indirect object is named first) or "BABA"')
    if corruption not in ("swap", "ABC"):
        raise NanopatchError(f'unknown corruption {corruption!r}: "swap" (of the giver) or "ABC" (three other names)')
    rng = random.Random(seed)
    pairs = []
    for _ in range(check_n(n)):
        receiver, giver, *others = rng.sample(NAMES, 5)
        words = {"place": rng.choice(PLACES), "thing": rng.choice(THINGS)}
        first, second = (receiver, giver) if order == "ABBA" else (giver, receiver)
        clean = words | {"first": first, "second": second, "giver": giver}
        if corruption == "swap":
            corrupted = clean | {"giver": receiver}
        else:
            corrupted = words | dict(zip(("first", "second", "giver"), others, strict=True))
        prompts = [fill(template, slots, ("first", "second", "giver")) for slots in (clean, corrupted)]
        pairs.append(Experiment(*prompts, f" {receiver}", f" {giver}", prepend_bos))
    return pairs


def induction(n=20, length=8, vocabulary=range(1000, 10000), *, seed=0, prepend_bos=False):
    """Induction: `A B ... A` is continued by `B`. (Olsson et al. 2022, arXiv 2209.11895: repeated random tokens.)

    The clean prompt is `length` different random tokens, and the first half of them once more, up to A; the
    answer is B, the token that followed A. In the corrupted one B is another token, C, which is
    the wrong answer: the prompts differ at that one position. vocabulary: the token ids to draw from (the
    default: tokens that are common in English text).
    Returns n `Experiment`s of token ids, prompts of length + length // 2 tokens. Raises NanopatchError for a
    length under 2 or a vocabulary that is not larger.
    """
    vocabulary = sorted({int(token) for token in vocabulary})
    if not 2 <= length < len(vocabulary):
        raise NanopatchError(f"length is {length}: from 2 to {len(vocabulary) - 1}, one less than there are tokens")
    rng = random.Random(seed)
    after = length // 2  # the position of B; A stands before it
    pairs = []
    for _ in range(check_n(n)):
        *clean, wrong_answer = rng.sample(vocabulary, length + 1)
        corrupted = [*clean[:after], wrong_answer, *clean[after + 1 :]]
        repeat = clean[:after]
        pairs.append(Experiment(clean + repeat, corrupted + repeat, clean[after], wrong_answer, prepend_bos))
    return pairs


def capitals(n=20, template=CAPITAL_TEMPLATES[0], *, seed=0, prepend_bos=False):
    """Country and capital: "The capital of France is" -> " Paris", corrupted by another country.

    template: one of `CAPITAL_TEMPLATES`, or another with {country}. Returns n `Experiment`s, all different.
    Raises NanopatchError for a template without {country}, or for more pairs than there are.
    """
    couples = list(itertools.permutations(CAPITALS, 2))
    pairs = []
    for clean, corrupted in random.Random(seed).sample(couples, check_n(n, len(couples))):
        prompts = [fill(template, {"country": country}, ("country",)) for country in (clean, corrupted)]
        pairs.append(Experiment(*prompts, f" {CAPITALS[clean]}", f" {CAPITALS[corrupted]}", prepend_bos))
    return pairs


def greater_than(n=20, year=None, *, seed=0, prepend_bos=False):
    """Greater-than: "The war lasted from the year 1732 to the year 17" is continued by a year after 32.

    Corrupted, as in Hanna et al. 2023, arXiv 2305.00586: the first year ends in 01, after which any year is
    possible. Only years that GPT-2 reads as two tokens of two digits are used. year: the two last digits
    of the clean first year in every pair, 2 to 98; drawn anew for each by default.

    There is no one right answer: 33 to 99 are right, 00 to 32 wrong. As an `Experiment` has one of each, they
    are representatives, the middle of those above and of those below ("66" and "16"; no space before them);
    `years_above(year)` is the metric of the paper, over all of them, for pairs of that one `year`.
    Returns n `Experiment`s. Raises NanopatchError for a year out of range.
    """
    if year is not None and not 2 <= year <= 98:
        raise NanopatchError(f"year is {year}: the two last digits, from 2 to 98")
    rng = random.Random(seed)
    years = range(2, 99) if year is None else [year]
    starts = [(century, y) for century in range(11, 18) for y in years if is_two_tokens(century, y)]
    pairs = []
    for _ in range(check_n(n)):
        event, (century, start) = rng.choice(EVENTS), rng.choice(starts)
        clean, corrupted = [
            f"The {event} lasted from the year {century}{y:02} to the year {century}" for y in (start, 1)
        ]
        pairs.append(Experiment(clean, corrupted, f"{(start + 100) // 2:02}", f"{start // 2:02}", prepend_bos))
    return pairs


def years_above(year):
    """The metric of greater-than: probability of the two-digit tokens above `year`, minus that of the others.

    year: 0 to 99. Returns a function of the logits, (n_tokens, n_vocab) of GPT-2's vocabulary, from -1 to 1, for
    `sweep(..., metric=years_above(32))`. (Hanna et al. 2023, arXiv 2305.00586, section 2.)
    """
    tokens = [tokenizer.encode(f"{y:02}")[0] for y in range(100)]
    sign = np.where(np.arange(100) > year, 1.0, -1.0)

    def years_above_minus_below(logits):
        return float(softmax(logits[-1].astype(np.float64))[tokens] @ sign)

    return years_above_minus_below


def ioi8():
    """TransformerLens' eight indirect-object prompts, for which patching results of GPT-2 small are published.

    `<|endoftext|>` before each; corrupted: the other prompt of each neighbouring two, in which the other name
    is the giver. From its `Exploratory_Analysis_Demo` and `Activation_Patching_in_TL_Demo`. The same length
    for all. Returns 8 `Experiment`s.
    """
    path = Path(__file__).parent.parent / "data" / "gpt2_transformerlens.json"
    published = json.loads(path.read_text(encoding="utf-8"))["ioi8"]
    prompts = published["prompts"]
    answers = [[tokenizer.decode([token]) for token in both] for both in published["answer_tokens"]]
    return [Experiment(prompts[i], prompts[i ^ 1], *answers[i], prepend_bos=True) for i in range(len(prompts))]


# ---- what they share -----------------------------------------------------------------------------


def fill(template, words, needed):
    """The template with its slots filled. NanopatchError if a needed slot is not there, or an unknown one is."""
    missing = [name for name in needed if f"{{{name}}}" not in template]
    if missing:
        raise NanopatchError(f"the template has no {{{missing[0]}}}: {template!r:.80}")
    try:
        return template.format(**words)
    except (KeyError, IndexError, ValueError) as error:  # ValueError: a brace that is not closed
        known = ", ".join(f"{{{name}}}" for name in words)
        raise NanopatchError(f"the template has other slots than {known} ({error}): {template!r:.80}") from None


def check_n(n, most=None):
    if n < 1 or (most is not None and n > most):
        raise NanopatchError(f"n is {n}: {'at least 1' if most is None else f'from 1 to {most}'}")
    return n


def is_two_tokens(century, year):
    """Whether GPT-2 reads the year after a space as two tokens of two digits, as it does not read 1125."""
    halves = tokenizer.encode(f" {century}") + tokenizer.encode(f"{year:02}")
    return tokenizer.encode(f" {century}{year:02}") == halves
