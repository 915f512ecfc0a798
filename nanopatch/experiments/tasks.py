"""The field's standard tasks, as lists of `Experiment`.

Each function draws n different pairs, the same ones for the same seed. Answers are single tokens of GPT-2. All prompts
of one call have the same number of tokens, and the same kind of token at each position, so that their results can be
averaged. `nano` was trained on these words; it cannot do greater-than, which is for GPT-2.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import NanopatchError
from ..model import tokenizer
from ..model.layers import softmax
from ..types import Array
from .experiment import Experiment
from .metrics import LogitsFunction, check_vocabulary

if TYPE_CHECKING:
    from random import Random

# fmt: off
NAMES = [
    "Alan", "Alice", "Andrew", "Anna", "Brian", "Carol", "Daniel", "David", "Emily", "Emma", "Eric", "Helen", "Henry",
    "Jack", "Jacob", "James", "Jane", "Jason", "John", "Joseph", "Julia", "Karen", "Laura", "Luke", "Martin", "Mary",
    "Michael", "Nancy", "Oliver", "Peter", "Rachel", "Richard", "Robert", "Ruth", "Sam", "Sarah", "Simon", "Steven",
    "Tom", "William",
]
PLACES = [
    "store", "park", "school", "garden", "restaurant", "office", "station", "library", "hospital", "market", "museum",
    "hotel",
]
THINGS = ["drink", "book", "ring", "letter", "gift", "ball", "key", "bag", "hat", "ticket", "flower", "picture"]
EVENTS = [
    "war", "siege", "voyage", "expedition", "drought", "reign", "conflict", "journey", "project", "trial", "rebellion",
    "campaign", "dispute", "tour",
]
CAPITALS = {
    "France": "Paris", "Italy": "Rome", "Germany": "Berlin", "Spain": "Madrid", "Portugal": "Lisbon",
    "England": "London", "Ireland": "Dublin", "Scotland": "Edinburgh", "Austria": "Vienna", "Belgium": "Brussels",
    "Netherlands": "Amsterdam", "Denmark": "Copenhagen", "Norway": "Oslo", "Sweden": "Stockholm",
    "Finland": "Helsinki", "Poland": "Warsaw", "Hungary": "Budapest", "Greece": "Athens", "Russia": "Moscow",
    "Turkey": "Ankara", "Lebanon": "Beirut", "Syria": "Damascus", "Iraq": "Baghdad", "Iran": "Tehran",
    "Afghanistan": "Kabul", "India": "Delhi", "Thailand": "Bangkok", "China": "Beijing", "Japan": "Tokyo",
    "Egypt": "Cairo", "Canada": "Ottawa", "Cuba": "Havana", "Peru": "Lima", "Chile": "Santiago",
    "Australia": "Canberra",
}
# fmt: on

#: {first} and {second} are introduced, then one of them is the {giver}; the other is the answer. (Wang et al. 2022.)
INDIRECT_OBJECT_TEMPLATES = (
    "When {first} and {second} went to the {place}, {giver} gave a {thing} to",
    "After {first} and {second} arrived at the {place}, {giver} passed the {thing} to",
    "While {first} and {second} were working at the {place}, {giver} showed the {thing} to",
    "Then, {first} and {second} went to the {place}. {giver} gave a {thing} to",
)
CAPITAL_TEMPLATES = (
    "The capital of {country} is",
    "The capital city of {country} is",
    "In {country}, the capital is",
    "The government of {country} is in",
)


def indirect_object(
    n: int = 20,
    order: str = "ABBA",
    corruption: str = "swap",
    template: str = INDIRECT_OBJECT_TEMPLATES[0],
    *,
    seed: int = 0,
    prepend_bos: bool = False,
) -> list[Experiment]:
    """Indirect object identification: the name that is not repeated receives the thing.

    Parameters
    ----------
    n : int
        How many pairs.
    order : "ABBA" or "BABA"
        "ABBA" names the indirect object first: "When Mary and John went ..., John gave a drink to" -> " Mary". "BABA"
        names it second: "When John and Mary went ..., John gave a drink to".
    corruption : "swap" or "ABC"
        "swap" makes the other person the giver, so the corrupted prompt's answer is the wrong answer. "ABC" puts three
        other names in the three places, so neither answer fits.
    template : str
        One of `INDIRECT_OBJECT_TEMPLATES`, or another one with {first}, {second}, {giver} and, optionally, {place}
        and {thing}.
    seed : int
    prepend_bos : bool
        Put `<|endoftext|>` before both prompts.

    Returns
    -------
    list of Experiment
        The answer is the indirect object, the wrong answer is the giver.

    Raises
    ------
    NanopatchError
        If n is below 1, the order or the corruption is unknown, or the template has other slots.

    References
    ----------
    Wang et al. 2022, arXiv 2211.00593.

    Examples
    --------
    >>> from nanopatch import tasks
    >>> pair = tasks.indirect_object(1)[0]
    >>> name, other = pair.answer.strip(), pair.wrong_answer.strip()
    >>> pair.clean.startswith(f"When {name} and {other} went to the ")
    True
    >>> pair.corrupted == pair.clean.replace(f", {other} gave", f", {name} gave")
    True
    """
    if order not in ("ABBA", "BABA"):
        raise NanopatchError(f'unknown order {order!r}: give "ABBA" (the indirect object is named first) or "BABA"')
    if corruption not in ("swap", "ABC"):
        raise NanopatchError(
            f'unknown corruption {corruption!r}: give "swap" (of the giver) or "ABC" (three other names)'
        )
    rng = _random(seed)
    roles, pairs = ("first", "second", "giver"), dict[str, Experiment]()  # each once
    words_of = {"place": PLACES, "thing": THINGS}
    n_words = math.prod(len(words) for name, words in words_of.items() if f"{{{name}}}" in template)
    n_names = math.perm(len(NAMES), 2 if corruption == "swap" else 5)
    n = _check_n(n, n_names * n_words)
    while len(pairs) < n:
        receiver, giver, *others = rng.sample(NAMES, 5)
        words = {"place": rng.choice(PLACES), "thing": rng.choice(THINGS)}
        names = [receiver, giver, giver] if order == "ABBA" else [giver, receiver, giver]
        corrupted_names = [*names[:2], receiver] if corruption == "swap" else others
        clean, corrupted = (
            _fill(template, words | dict(zip(roles, in_roles, strict=True)), roles)
            for in_roles in (names, corrupted_names)
        )
        pairs[clean + corrupted] = Experiment(clean, corrupted, f" {receiver}", f" {giver}", prepend_bos)
    return list(pairs.values())


def induction(
    n: int = 20,
    length: int = 8,
    vocabulary: Iterable[int] = range(1000, 10000),
    *,
    seed: int = 0,
    prepend_bos: bool = False,
) -> list[Experiment]:
    """Induction on repeated random tokens: `A B ... A` is continued by `B`.

    The clean prompt has `length` different random tokens, then the first half of them again, up to A. The answer is
    B, the token that followed A. The corrupted prompt has another token, C, in the place of B. C is the wrong answer.

    Parameters
    ----------
    n : int
        How many pairs.
    length : int
        How many different tokens a prompt has. Prompts have length + length // 2 tokens.
    vocabulary : iterable of int
        The token ids to draw from. The default ones are common in English text.
    seed : int
    prepend_bos : bool
        Put `<|endoftext|>` before both prompts.

    Returns
    -------
    list of Experiment
        Prompts and answers are token ids.

    Raises
    ------
    NanopatchError
        If n is below 1, or the length is below 2 or not below the size of the vocabulary.

    References
    ----------
    Olsson et al. 2022, arXiv 2209.11895.

    Examples
    --------
    >>> from nanopatch import tasks
    >>> pair = tasks.induction(1, length=4)[0]
    >>> a, b, *_ = pair.clean[1:]
    >>> pair.clean[-1] == a, pair.answer == b, len(pair.clean)
    (True, True, 6)
    """
    if not np.iterable(vocabulary) or isinstance(vocabulary, str):
        raise NanopatchError(f"vocabulary={vocabulary!r:.60}: a list of token ids is expected")
    vocabulary = sorted({int(token) for token in vocabulary})
    if not isinstance(length, Integral) or not 2 <= length < len(vocabulary):
        raise NanopatchError(f"length is {length!r}: give 2 to {len(vocabulary) - 1}, or a vocabulary of more tokens")
    rng = _random(seed)
    after = length // 2  # the position of B; A stands before it
    n, pairs = _check_n(n, math.perm(len(vocabulary), length + 1)), dict[str, Experiment]()  # each once
    while len(pairs) < n:
        *clean, wrong_answer = rng.sample(vocabulary, length + 1)
        corrupted = [*clean[:after], wrong_answer, *clean[after + 1 :]]
        repeat = clean[:after]
        pairs[str(clean + corrupted)] = Experiment(
            clean + repeat, corrupted + repeat, clean[after], wrong_answer, prepend_bos
        )
    return list(pairs.values())


def capitals(
    n: int = 20, template: str = CAPITAL_TEMPLATES[0], *, seed: int = 0, prepend_bos: bool = False
) -> list[Experiment]:
    """Country and capital: "The capital of France is" -> " Paris", corrupted by another country.

    Parameters
    ----------
    n : int
        How many pairs, at most 1190. All are different.
    template : str
        One of `CAPITAL_TEMPLATES`, or another one with {country}.
    seed : int
    prepend_bos : bool
        Put `<|endoftext|>` before both prompts.

    Returns
    -------
    list of Experiment
        The answer is the capital of the clean prompt's country, the wrong answer that of the other country.

    Raises
    ------
    NanopatchError
        If n is out of range, or the template has no {country} or other slots.

    Examples
    --------
    >>> from nanopatch import tasks
    >>> pair = tasks.capitals(1)[0]
    >>> country = pair.clean.removeprefix("The capital of ").removesuffix(" is")
    >>> pair.answer == " " + tasks.CAPITALS[country]
    True
    """
    couples = list(itertools.permutations(CAPITALS, 2))
    pairs = []
    for couple in _random(seed).sample(couples, _check_n(n, len(couples))):
        clean, corrupted = (_fill(template, {"country": country}, ("country",)) for country in couple)
        answer, wrong_answer = (f" {CAPITALS[country]}" for country in couple)
        pairs.append(Experiment(clean, corrupted, answer, wrong_answer, prepend_bos))
    return pairs


def greater_than(n: int = 20, year: int | None = None, *, seed: int = 0, prepend_bos: bool = False) -> list[Experiment]:
    """Greater-than: "The war lasted from the year 1732 to the year 17" is continued by a year above 32.

    In the corrupted prompt the first year ends in 01, after which any year is possible. Only years that GPT-2 reads
    as two tokens of two digits are used.

    After 32, the 67 answers 33 to 99 are right and the 33 answers 00 to 32 are wrong. An `Experiment` has one of
    each: the middle of the right ones and the middle of the wrong ones, "66" and "16", without a space. The metric of
    the paper counts all of them: `years_above(year)`. It needs pairs that all have that `year`.

    Parameters
    ----------
    n : int
        How many pairs.
    year : int, optional
        The last two digits of the clean prompt's first year, 2 to 98. By default each pair has its own.
    seed : int
    prepend_bos : bool
        Put `<|endoftext|>` before both prompts.

    Returns
    -------
    list of Experiment

    Raises
    ------
    NanopatchError
        If n is below 1, or the year is out of range.

    References
    ----------
    Hanna et al. 2023, arXiv 2305.00586.

    Examples
    --------
    >>> from nanopatch import tasks
    >>> pair = tasks.greater_than(1, year=32)[0]
    >>> pair.clean.split()[6][2:], pair.corrupted.split()[6][2:]
    ('32', '01')
    >>> pair.answer, pair.wrong_answer
    ('66', '16')
    """
    if year is not None and not (isinstance(year, Integral) and 2 <= year <= 98):
        raise NanopatchError(f"year is {year!r}: give the last two digits, from 2 to 98")
    rng = _random(seed)
    years = range(2, 99) if year is None else [year]
    starts = [(century, y) for century in range(11, 18) for y in years if _is_two_tokens(century, y)]
    n, pairs = _check_n(n, len(EVENTS) * len(starts)), dict[str, Experiment]()  # each once
    while len(pairs) < n:
        event, (century, start) = rng.choice(EVENTS), rng.choice(starts)
        clean, corrupted = (
            f"The {event} lasted from the year {century}{y:02} to the year {century}" for y in (start, 1)
        )
        pairs[clean + corrupted] = Experiment(
            clean, corrupted, f"{(start + 100) // 2:02}", f"{start // 2:02}", prepend_bos
        )
    return list(pairs.values())


def years_above(year: int) -> LogitsFunction:
    """The metric of greater-than: the probability of all years above `year`, minus that of the other years.

    Parameters
    ----------
    year : int
        The last two digits of the first year, 0 to 99.

    Returns
    -------
    callable
        A function of the logits, (n_tokens, n_vocab) of GPT-2's vocabulary. Its values are from -1 to 1.

    References
    ----------
    Hanna et al. 2023, arXiv 2305.00586, section 2.

    Examples
    --------
    >>> import numpy as np
    >>> from nanopatch import tasks
    >>> from nanopatch.model import tokenizer
    >>> logits = np.zeros((1, 50257))
    >>> logits[0, tokenizer.encode("66")] = 100
    >>> tasks.years_above(32)(logits), tasks.years_above(77)(logits)
    (1.0, -1.0)
    """
    if not isinstance(year, Integral) or not 0 <= year <= 99:
        raise NanopatchError(f"year is {year!r}: give the last two digits, from 0 to 99")
    tokens = [tokenizer.encode(f"{y:02}")[0] for y in range(100)]
    sign = np.where(np.arange(100) > year, 1.0, -1.0)

    def years_above_minus_below(logits: Array) -> float:
        check_vocabulary(tokens, logits)
        return float(softmax(logits[-1].astype(np.float64))[tokens] @ sign)

    return years_above_minus_below


def ioi8() -> list[Experiment]:
    """TransformerLens' eight indirect-object prompts, for which patching results of GPT-2 small are published.

    They begin with `<|endoftext|>` and have one length. Prompts 0 and 1 are each other's corrupted prompt, and so on:
    the same sentence with the other person as giver.

    Returns
    -------
    list of Experiment
        8 of them.

    References
    ----------
    TransformerLens, `Exploratory_Analysis_Demo` and `Activation_Patching_in_TL_Demo`.

    Examples
    --------
    >>> from nanopatch import tasks
    >>> tasks.ioi8()[0].clean
    'When John and Mary went to the shops, John gave the bag to'
    """
    path = Path(__file__).parent.parent / "data" / "gpt2_transformerlens.json"
    published = json.loads(path.read_text(encoding="utf-8"))["ioi8"]
    prompts = published["prompts"]
    answers = [[tokenizer.decode([token]) for token in both] for both in published["answer_tokens"]]
    return [
        Experiment(prompts[i], prompts[i ^ 1], answer, wrong_answer, prepend_bos=True)
        for i, (answer, wrong_answer) in enumerate(answers)
    ]


# ---- what they share -----------------------------------------------------------------------------


def _fill(template: str, words: Mapping[str, str], needed: Sequence[str]) -> str:
    """The template with its slots filled. NanopatchError if a needed slot is missing or a slot is unknown."""
    if not isinstance(template, str):
        raise NanopatchError(f"a template is a text, not {template!r:.80}")
    missing = [name for name in needed if f"{{{name}}}" not in template]
    if missing:
        raise NanopatchError(f"the template has no {{{missing[0]}}}: {template!r:.80}")
    try:
        return template.format(**words)
    except (KeyError, IndexError, ValueError) as error:  # ValueError: a brace that is not closed
        known = ", ".join(f"{{{name}}}" for name in words)
        raise NanopatchError(f"the template has other slots than {known} ({error}): {template!r:.80}") from None


def _check_n(n: int, most: int) -> int:
    if not isinstance(n, Integral) or not 1 <= n <= most:
        raise NanopatchError(f"n is {n!r}: give from 1 to {most}")
    return n


def _is_two_tokens(century: int, year: int) -> bool:
    """Whether GPT-2 reads the year after a space as two tokens of two digits. It does not for 1125."""
    halves = tokenizer.encode(f" {century}") + tokenizer.encode(f"{year:02}")
    return tokenizer.encode(f" {century}{year:02}") == halves


def _random(seed: int) -> Random:
    """Python's random generator for a seed."""
    if not isinstance(seed, Integral):
        raise NanopatchError(f"seed {seed!r:.60}: a whole number is expected")
    import random  # loads OpenSSL, which is larger than this library

    return random.Random(int(seed))
