"""Models whose circuit is known, because all their weights were written by hand.

A program is a small GPT-2 in which LayerNorm does nothing, so that each weight is a line of the program. Its residual
stream has `N_SLOTS` slots, each with a name, and holds every number twice:

    position of slot s   |  0 ...  7 | 16 ... 23   the number itself      s = 0 ... 7, 8 ... 15
                         |  8 ... 15 | 24 ... 31   the number, negated

So the mean is always 0. Slot 0 always holds `SIZE`, 2^20, beside which all other numbers are small. So the standard
deviation is always SIZE sqrt(2 / 32) = 2^18, and a LayerNorm whose weight is 2^18 gives back what it was given. (A
number x changes the deviation by the part (x / SIZE)^2 / 2, which is less than what float32 can hold.)

A head moves one number: the first dimension of its q, k, v and z is used, and the others are 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ..errors import NanopatchError
from ..experiments.experiment import Experiment
from ..files import Source
from ..model.checkpoint import build, tensor_shapes
from ..model.config import Config
from ..model.gpt2 import Model
from ..model.vocabulary import Characters
from ..types import Array

N_SLOTS = 16
N_HEAD = 2
SIZE = 2.0**20  # powers of two, so that LayerNorm makes no rounding error
LAYER_NORM_WEIGHT = SIZE / 4
#: A score so much larger than the others that float32's softmax is exactly 1 there, and 0 elsewhere.
ALL_ATTENTION = 200.0


class Program(NamedTuple):
    """A model written by hand, a question about it, and the edges through which its answer is computed.

    edges: (sender, receiver) as `nanopatch.edge_attribution` names them.
    """

    model: Model
    experiment: Experiment
    edges: tuple[tuple[str, str], ...]


def and_gate() -> Program:
    """Reads two bits and says whether both are 1: "11=" goes on with "1"; "10=", "01=" and "00=" with "0".

    Head 0.0 moves the first bit to the last position, head 0.1 the second one. The neuron computes
    relu(2 a + 2 b - 3): 1 if both are 1, else 0.

    Examples
    --------
    >>> model = and_gate().model
    >>> [model.detokenize([model.run(prompt).logits[-1].argmax()]) for prompt in ("00=", "01=", "10=", "11=")]
    ['0', '0', '0', '1']
    """
    writer = _two_bits()
    writer.neuron(0, reads={"a": 2, "b": 2, "one": -3}, writes={"both": 1})
    writer.unembed("1", both=10, one=-5)
    writer.unembed("0", both=-10, one=5)
    return _gate(writer, "AND gate")


def or_gate() -> Program:
    """Reads two bits and says whether any is 1: "00=" goes on with "0"; "10=", "01=" and "11=" with "1".

    As `and_gate`, but the neuron computes relu(1 - 2 a - 2 b): 1 if both are 0, else 0.

    Examples
    --------
    >>> model = or_gate().model
    >>> [model.detokenize([model.run(prompt).logits[-1].argmax()]) for prompt in ("00=", "01=", "10=", "11=")]
    ['0', '1', '1', '1']
    """
    writer = _two_bits()
    writer.neuron(0, reads={"a": -2, "b": -2, "one": 1}, writes={"none": 1})
    writer.unembed("1", none=-10, one=5)
    writer.unembed("0", none=10, one=-5)
    return _gate(writer, "OR gate")


def share_of_x() -> Program:
    """Tells what share of the letters so far are x: the logit of "x" is ten times that share.

    The neuron of layer 0 computes relu(2 letter - 3), which is 1 for x (letter 2), and 0 for a and b (letters 0 and 1).
    Head 1.0 looks at all positions alike, so that it takes the mean.

    Examples
    --------
    >>> model = share_of_x().model
    >>> (model.run("xaxb").logits[:, model.tokenize("x")[0]] / 10).round(4)
    array([1.    , 0.5   , 0.6667, 0.5   ], dtype=float32)
    """
    writer = Writer(n_layer=2, characters="abx", slots=("letter", "is_x", "share"))
    writer.embed("b", letter=1)
    writer.embed("x", letter=2)
    writer.neuron(0, reads={"letter": 2, "one": -3}, writes={"is_x": 1})
    writer.head(1, 0, value="is_x", output="share")
    writer.unembed("x", share=10)
    edges = (("embed", "mlp 0"), ("mlp 0", "v 1.0"), ("head 1.0", "logits"))
    return Program(writer.model("share of x"), Experiment("xaxb", "aaab", answer="x", wrong_answer="a"), edges)


def _two_bits() -> Writer:
    """What both gates begin with: the two bits, a and b, at the last position."""
    slots = ("bit", "position_0", "position_1", "a", "b", "both", "none")
    writer = Writer(n_layer=1, characters="01=", slots=slots)
    writer.embed("1", bit=1)
    writer.position(0, position_0=1)
    writer.position(1, position_1=1)
    writer.head(0, 0, looks_at="position_0", value="bit", output="a")
    writer.head(0, 1, looks_at="position_1", value="bit", output="b")
    return writer


def _gate(writer: Writer, name: str) -> Program:
    edges = (
        ("embed", "v 0.0"),
        ("embed", "v 0.1"),
        ("head 0.0", "mlp 0"),
        ("head 0.1", "mlp 0"),
        ("mlp 0", "logits"),
    )
    return Program(writer.model(name), Experiment("11=", "00=", answer="1", wrong_answer="0"), edges)


class Writer:
    """Writes the weights of a program, one head and one neuron after the other.

    slots: names of the numbers in the residual stream. Wherever something reads, `one` is the number 1. n_slots: how
    many there may be, with the size; a power of 4, so that LayerNorm's divisor, SIZE / sqrt(n_slots), is a power of 2.

    Examples
    --------
    A model that says the letter it has just read, without attention and without an MLP:

    >>> writer = Writer(n_layer=1, characters="ab", slots=("is_b",))
    >>> writer.embed("b", is_b=1)
    >>> writer.unembed("b", is_b=2, one=-1)
    >>> writer.model().run("ab").logits
    array([[ 0., -1.],
           [ 0.,  1.]], dtype=float32)
    """

    def __init__(
        self, n_layer: int, characters: str, slots: Sequence[str], n_neurons: int = 1, n_slots: int = N_SLOTS
    ) -> None:
        self.characters = characters
        self.slots = ("size", *slots)
        if len(self.slots) > n_slots:
            raise NanopatchError(f"{len(self.slots)} slots are needed, one for the size; there are {n_slots}")
        self.d_model, self.d_head = 2 * n_slots, 2 * n_slots // N_HEAD
        self.config = Config(
            n_layer=n_layer,
            n_head=N_HEAD,
            n_embd=self.d_model,
            n_positions=16,
            vocab_size=len(characters),
            n_inner=n_neurons,
            activation_function="relu",
            tie_word_embeddings=False,
        )
        self.weights = {name: np.zeros(shape, np.float32) for name, shape in tensor_shapes(self.config).items()}
        for name, weight in self.weights.items():
            if "ln_" in name and name.endswith("weight"):
                weight[:] = SIZE / n_slots**0.5
        self._n_written = [0] * n_layer  # neurons, by layer
        for character in characters:
            self.embed(character, size=SIZE)

    def embed(self, character: str, **numbers: float) -> None:
        """What a token's embedding holds: {slot: number}."""
        self._write(self.weights["wte.weight"][self.characters.index(character)], numbers)

    def position(self, position: int, **numbers: float) -> None:
        """What a position's embedding holds: {slot: number}."""
        self._write(self.weights["wpe.weight"][position], numbers)

    def head(self, layer: int, head: int, value: str, output: str, looks_at: str | None = None) -> None:
        """A head that moves the number in slot `value` into slot `output`.

        looks_at: the slot that is 1 at the one position where it looks. Without it, it looks at all alike.
        """
        at = head * self.d_head  # its first dimension, the only one that it uses
        c_attn = self.weights[f"h.{layer}.attn.c_attn.weight"]
        if looks_at is not None:
            self.weights[f"h.{layer}.attn.c_attn.bias"][at] = 1  # q is 1 everywhere
            self._read(c_attn[:, self.d_model + at], {looks_at: ALL_ATTENTION * self.d_head**0.5})  # k
        self._read(c_attn[:, 2 * self.d_model + at], {value: 1})  # v
        self._write(self.weights[f"h.{layer}.attn.c_proj.weight"][at], {output: 1})

    def select(
        self,
        layer: int,
        head: int,
        queries: Sequence[str],
        keys: Sequence[Mapping[str, float]],
        values: Sequence[str],
        outputs: Sequence[str],
    ) -> None:
        """A head that looks where query and key go together, and moves several numbers.

        queries: slots, of which one holds 1. keys: for each of them, {slot: 1} of the slots where it looks. The number
        in slot `values[i]` goes into slot `outputs[i]`.
        """
        c_attn, at = self.weights[f"h.{layer}.attn.c_attn.weight"], head * self.d_head
        for i, (query, key) in enumerate(zip(queries, keys, strict=True), start=at):
            self._read(c_attn[:, i], {query: 1})
            scaled = {slot: ALL_ATTENTION * self.d_head**0.5 * factor for slot, factor in key.items()}
            self._read(c_attn[:, self.d_model + i], scaled)
        for i, (value, output) in enumerate(zip(values, outputs, strict=True), start=at):
            self._read(c_attn[:, 2 * self.d_model + i], {value: 1})
            self._write(self.weights[f"h.{layer}.attn.c_proj.weight"][i], {output: 1})

    def neuron(self, layer: int, reads: Mapping[str, float], writes: Mapping[str, float]) -> None:
        """A neuron that writes `factor * relu(sum)` into slots. The sum is that of `factor * slot` of what it reads."""
        number = self._n_written[layer]
        self._n_written[layer] += 1
        self._read(self.weights[f"h.{layer}.mlp.c_fc.weight"][:, number], reads)
        self._write(self.weights[f"h.{layer}.mlp.c_proj.weight"][number], writes)

    def unembed(self, character: str, **factors: float) -> None:
        """A token's logit: the sum of `factor * slot`."""
        self._read(self.weights["lm_head.weight"][self.characters.index(character)], factors)

    def model(self, name: str = "program") -> Model:
        """The model. `nanopatch.save_checkpoint` makes a folder of it, as of any other. name: for titles of results."""
        model = build(self.config, {key: weight.copy() for key, weight in self.weights.items()})
        model.source = Source(name)
        model.vocabulary = Characters({character: id for id, character in enumerate(self.characters)})
        return model

    def _write(self, row: Array, numbers: Mapping[str, float]) -> None:
        """Add numbers to slots, and their negatives. row: (d_model,), a view of a weight that writes."""
        for name, number in numbers.items():
            place = self._place(name)
            row[place] += number
            row[place + 8] -= number

    def _read(self, column: Array, factors: Mapping[str, float]) -> None:
        """Read the sum of factor * slot. column: (d_model,), a view of a weight that reads."""
        for name, factor in factors.items():
            if name == "one":
                column[self._place("size")] += factor / SIZE
            else:
                column[self._place(name)] += factor

    def _place(self, name: str) -> int:
        """Where a slot's number stands; its negative stands eight places after it.

        NumPy adds up every eighth number of a row first, so that the pairs cancel exactly.
        """
        slot = self.slots.index(name)
        return slot + slot // 8 * 8
