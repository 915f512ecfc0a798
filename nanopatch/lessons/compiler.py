"""A compiler for causal programs: from variables and what makes them to the weights of a GPT-2, and its true edges.

A program is written as in RASP (Weiss, Goldberg & Yahav 2021, arXiv 2106.06981; compiled by Lindner et al. 2023, arXiv
2301.05062). A variable has one value at each position, such as the token there. There are two ways to make another:

    select      a head looks at the position whose key goes with its query, and takes a variable's value there
    map_        an MLP looks the value up in a table of one or more variables, with a ReLU for each entry

A variable lies in the residual stream as one slot for each of its values: 1 in the slot of its value, 0 in the others.
So a select copies slots, and an entry of a table is `relu(the sum of the slots that it reads - (their number - 1))`.

The compiler knows what every component reads and who has written that. So it knows the true edges: those that carry a
variable which depends on the tokens, on a path to the answer. Positions are the same in all prompts.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

from ..errors import NanopatchError
from ..experiments.experiment import Experiment
from ..model.gpt2 import Model
from .programs import N_HEAD, Writer

#: A power of 4, so that LayerNorm's divisor is a power of 2.
N_SLOTS = 64
N_POSITIONS = 16


class Variable(NamedTuple):
    """A variable of a program: its name, the values that it can have, and who writes it.

    writer: the component, as in the names of edges. point: of the residual stream from which on it is there, in half
    blocks. reads: (receiver, variable) of its component. varies: whether it depends on the tokens.
    """

    name: str
    values: tuple[Hashable, ...]
    writer: str
    point: int
    reads: tuple[tuple[str, Any], ...] = ()
    varies: bool = True

    @property
    def slots(self) -> list[str]:
        return [f"{self.name} {value}" for value in self.values]


class Compiled(NamedTuple):
    """A compiled program: questions about it which together need each of its edges, and the edges."""

    model: Model
    experiments: list[Experiment]
    edges: tuple[tuple[str, str], ...]


class Compiler:
    """Collects what a program does, and writes its weights.

    characters: of its vocabulary, one token each. n_tokens: of its prompts, at most; positions are 0 to n_tokens - 1.

    Examples
    --------
    Say the first letter again:

    >>> program = Compiler("ab=", n_tokens=3)
    >>> where = program.positions
    >>> first = program.select("first", lambda key, query: key == 0, where, where, program.tokens)
    >>> model, experiments, edges = program.compile("first", first, Experiment("ab=", "bb=", "a", "b"))
    >>> edges
    (('embed', 'v 0.0'), ('head 0.0', 'logits'))
    >>> model.detokenize([model.run("bab").logits[-1].argmax()])
    'b'
    """

    def __init__(self, characters: str, n_tokens: int) -> None:
        if not 1 <= n_tokens <= N_POSITIONS:
            raise NanopatchError(f"n_tokens={n_tokens!r}: from 1 to {N_POSITIONS} positions can be had")
        self.characters = characters
        self.tokens = Variable("token", tuple(characters), "embed", 0)
        self.positions = Variable("position", tuple(range(n_tokens)), "embed", 0, varies=False)
        self.variables = [self.tokens, self.positions]
        self.heads: list[tuple[int, int, Variable, Variable, Variable, Callable[[Any, Any], Any], Variable]] = []
        self.tables: list[tuple[int, Sequence[Variable], Callable[..., Hashable], Variable]] = []

    def select(
        self,
        name: str,
        predicate: Callable[[Any, Any], Any],
        keys: Variable,
        queries: Variable,
        values: Variable,
        layer: int | None = None,
    ) -> Variable:
        """The value of `values` where predicate(key, query) holds: the mean, if it holds at several positions.

        Only positions up to the query's own can be seen. If it holds nowhere, all of them count. layer: that of its
        head; by default the first that can read its inputs and has a head left.
        """
        least = -(-max(variable.point for variable in (keys, queries, values)) // 2)
        layer = least if layer is None else layer
        if layer < least:
            raise NanopatchError(f"{name} reads what layer {least} reads first: its layer cannot be {layer}")
        while sum(other == layer for other, *_ in self.heads) >= N_HEAD:
            layer += 1
        head = sum(other == layer for other, *_ in self.heads)
        reads = tuple((f"{site} {layer}.{head}", v) for site, v in zip("qkv", (queries, keys, values), strict=True))
        varies = any(variable.varies for _, variable in reads)
        made = self._new(Variable(name, values.values, f"head {layer}.{head}", 2 * layer + 1, reads, varies))
        self.heads.append((layer, head, keys, queries, values, predicate, made))
        return made

    def map_(self, name: str, function: Callable[..., Hashable], *variables: Variable) -> Variable:
        """The value of a function of variables at the same position, looked up in a table."""
        layer = (max(variable.point for variable in variables)) // 2
        entries = itertools.product(*(variable.values for variable in variables))
        values = tuple(dict.fromkeys(function(*entry) for entry in entries))
        reads = tuple((f"mlp {layer}", variable) for variable in variables)
        varies = any(variable.varies for variable in variables)
        made = self._new(Variable(name, values, f"mlp {layer}", 2 * layer + 2, reads, varies))
        self.tables.append((layer, variables, function, made))
        return made

    def _new(self, variable: Variable) -> Variable:
        if variable.name in [other.name for other in self.variables]:
            raise NanopatchError(f"two variables are named {variable.name!r}: give another name")
        self.variables.append(variable)
        return variable

    def compile(self, name: str, answer: Variable, *experiments: Experiment) -> Compiled:
        """The model that says `answer`, whose values are characters; with questions about it, and its true edges."""
        strange = [value for value in answer.values if str(value) not in self.characters]
        if strange:
            raise NanopatchError(f"{answer.name} can be {strange[0]!r}, which is no character of {self.characters!r}")
        n_layer = -(-max(variable.point for variable in self.variables) // 2)
        n_neurons = max([1, *map(self._size, range(n_layer))])
        slots = [slot for variable in self.variables for slot in variable.slots]
        writer = Writer(max(1, n_layer), self.characters, slots, n_neurons, N_SLOTS)
        for character, slot in zip(self.characters, self.tokens.slots, strict=True):
            writer.embed(character, **{slot: 1})
        for position, slot in enumerate(self.positions.slots):
            writer.position(position, **{slot: 1})
        for layer, head, keys, queries, values, predicate, made in self.heads:
            looks_at = [
                {slot: 1.0 for key, slot in zip(keys.values, keys.slots, strict=True) if predicate(key, query)}
                for query in queries.values
            ]
            writer.select(layer, head, queries.slots, looks_at, values.slots, made.slots)
        for layer, variables, function, made in self.tables:
            for entry in itertools.product(*(variable.values for variable in variables)):
                reads = {f"{variable.name} {value}": 1.0 for variable, value in zip(variables, entry, strict=True)}
                writer.neuron(layer, reads | {"one": 1 - len(entry)}, {f"{made.name} {function(*entry)}": 1})
        for value, slot in zip(answer.values, answer.slots, strict=True):
            writer.unembed(str(value), **{slot: 10})
        return Compiled(writer.model(name), list(experiments), true_edges(answer))

    def _size(self, layer: int) -> int:
        """How many neurons the tables of a layer have."""
        tables = [variables for other, variables, *_ in self.tables if other == layer]
        return sum(math.prod(len(variable.values) for variable in variables) for variables in tables)


def true_edges(answer: Variable) -> tuple[tuple[str, str], ...]:
    """(sender, receiver) of every edge that carries a variable which depends on the tokens, on a path to the answer."""
    found: dict[tuple[str, str], None] = {}

    def follow(receiver: str, variable: Variable) -> None:
        if variable.varies:
            for reader, read in variable.reads:
                follow(reader, read)
            found[variable.writer, receiver] = None

    follow("logits", answer)
    return tuple(found)


# ---- programs ---------------------------------------------------------------------------------------


def at(position: int) -> Callable[[Any, Any], bool]:
    """The predicate of a head that looks at one position, wherever it stands."""
    return lambda key, query: key == position


def _of_two(name: str, function: Callable[[str, str], str], characters: str, *prompts: tuple[str, str]) -> Compiled:
    """A function of the first two letters. prompts: (clean, corrupted) of each question."""
    program = Compiler(characters, n_tokens=3)
    tokens, positions = program.tokens, program.positions
    a = program.select("a", at(0), positions, positions, tokens)
    b = program.select("b", at(1), positions, positions, tokens)
    answer = program.map_("answer", function, a, b)
    asked = [Experiment(clean, other, function(*clean[:2]), function(*other[:2])) for clean, other in prompts]
    return program.compile(name, answer, *asked)


def xor() -> Compiled:
    """Reads two bits, and says whether they differ: "10=" goes on with "1"."""
    differ = lambda a, b: "1" if a in "01" and b in "01" and a != b else "0"  # noqa: E731
    return _of_two("XOR", differ, "01=", ("10=", "11="), ("10=", "00="))


def comparison() -> Compiled:
    """Reads two digits, and says whether the first is larger: "20=" goes on with "1"."""
    return _of_two("comparison", lambda a, b: "1" if a > b else "0", "012=", ("20=", "02="))


def first_letter() -> Compiled:
    """Says the first letter again: "abcb=" goes on with "a"."""
    program = Compiler("abc=", n_tokens=5)
    first = program.select("first", at(0), program.positions, program.positions, program.tokens)
    return program.compile("first letter", first, Experiment("abcb=", "cbcb=", "a", "c"))


def letter_before() -> Compiled:
    """Says the letter before the last: "abca" goes on with "c"."""
    program = Compiler("abc", n_tokens=4)
    before = program.select(
        "before", lambda key, query: key == query - 1, program.positions, program.positions, program.tokens
    )
    return program.compile("letter before", before, Experiment("abca", "abba", "c", "b"))


def induction() -> Compiled:
    """Says what came after the last letter when it was there before: "|acbda" goes on with "c"."""
    program = Compiler("|abcd", n_tokens=6)  # a letter that is not asked for begins, because it has none before it
    before = program.select(
        "before", lambda key, query: key == query - 1, program.positions, program.positions, program.tokens
    )
    after = program.select("after", lambda key, query: key == query, before, program.tokens, program.tokens)
    # Other values; a query for another letter; the letter at another place, which the keys tell.
    asked = [Experiment("|acbda", other, "c", "d") for other in ("|adbca", "|acbdb", "|bcada")]
    return program.compile("induction", after, *asked)


def two_steps() -> Compiled:
    """Says the letter that comes two later in the alphabet, in two tables: "a" goes on with "c", "d" with "b"."""
    program, letters = Compiler("abcd", n_tokens=3), "abcd"
    tables = program.map_("next", lambda letter: letters[(letters.index(letter) + 1) % 4], program.tokens)
    other = program.select("own", lambda key, query: key == query, program.positions, program.positions, tables)
    answer = program.map_("answer", lambda letter: letters[(letters.index(letter) + 1) % 4], other)
    return program.compile("two steps", answer, Experiment("cba", "cbd", "c", "b"))


def backup() -> Compiled:
    """Says the first letter again, which two heads of two layers fetch, and one would be enough."""
    program = Compiler("ab=", n_tokens=3)
    tokens, positions = program.tokens, program.positions
    first = program.select("first", at(0), positions, positions, tokens)
    again = program.select("again", at(0), positions, positions, tokens, layer=1)
    answer = program.map_("answer", lambda one, other: "a" if "a" in (one, other) else "b", first, again)
    return program.compile("backup", answer, Experiment("aa=", "ba=", "a", "b"))


#: Every program that the compiler makes.
PROGRAMS = (xor, comparison, first_letter, letter_before, induction, two_steps, backup)
