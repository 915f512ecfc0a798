"""Pairs of prompts to patch between, and the named ones."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..errors import NanopatchError
from ..notebook import html_table
from ..types import Array, Prompt
from .align import Columns, align, check_alignment

if TYPE_CHECKING:
    from ..model.gpt2 import Model


class ExperimentTokens(NamedTuple):
    """An experiment in one model's tokens."""

    clean: Array  # (n_clean,)
    corrupted: Array  # (n_corrupted,)
    answer: int | None  # None where the experiment has none
    wrong_answer: int | None


@dataclass(frozen=True)
class Experiment:
    """A pair of prompts to patch between, and the answer to each.

    Attributes
    ----------
    clean, corrupted : str, or token ids (n_tokens,)
        The two prompts.
    answer, wrong_answer : str or int
        The answer to the clean prompt and the answer to the corrupted one. Each is one token: a text, usually with
        its leading space, or a token id.
    prepend_bos : bool
        Put `<|endoftext|>` before both prompts.
    align : None or "diff"
        How positions of the two prompts are paired. None pairs equal positions, and both prompts need the same number
        of tokens. "diff" also takes prompts of different lengths (see `nanopatch.experiments.align`).
    special_tokens : bool
        Read `<|endoftext|>` inside the prompts as that token. By default it is ordinary text, of seven tokens.
    marks : dict, optional
        Names of places in the clean prompt, for a mean over prompts of different lengths: {"subject": "Space Needle"}.
        A text that occurs once there, or a list of positions. See `nanopatch.experiments.ground`.

    Raises
    ------
    NanopatchError
        If `align` is neither None nor "diff", or a switch is neither True nor False.

    Examples
    --------
    >>> import nanopatch
    >>> model = nanopatch.load("nano")
    >>> pair = nanopatch.Experiment("The capital of France is", "The capital of Italy is", " Paris", " Rome")
    >>> pair.tokens(model).answer, pair.columns(model)
    (6342, [(0, 0), (1, 1), (2, 2), (3, 3), (4, 4)])
    """

    clean: Prompt
    corrupted: Prompt
    answer: str | int | None = None
    wrong_answer: str | int | None = None
    prepend_bos: bool = False
    align: str | None = None
    special_tokens: bool = False
    marks: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        check_alignment(self.align)
        for name in ("prepend_bos", "special_tokens"):
            if not isinstance(getattr(self, name), (bool, np.bool_)):
                raise NanopatchError(f"{name}={getattr(self, name)!r:.60}: True or False is expected")
        marks = self.marks
        if marks is not None and not (
            isinstance(marks, Mapping) and all(isinstance(k, str) and np.iterable(v) for k, v in marks.items())
        ):
            raise NanopatchError(f'marks={marks!r:.60}: a dict such as {{"subject": "Space Needle"}} is expected')
        for name in ("answer", "wrong_answer"):
            if isinstance(getattr(self, name), np.integer):  # which would be shown as np.int64(3)
                object.__setattr__(self, name, int(getattr(self, name)))

    def _repr_html_(self) -> str:  # how a notebook shows it; quotes show where a text begins and ends
        return html_table("Experiment", [(name, repr(value)) for name, value in self.to_dict().items()])

    def to_dict(self) -> dict[str, Any]:
        """Its fields as JSON can hold them: token ids as lists. `Experiment(**fields)` makes it again."""
        return {
            name: value if isinstance(value, str) else np.asarray(value).tolist() for name, value in vars(self).items()
        }

    def tokenize(self, model: Model, prompt: Prompt) -> Array:
        """Token ids of a prompt, read as this experiment's prompts are."""
        return model.tokenize(prompt, prepend_bos=self.prepend_bos, special_tokens=self.special_tokens)

    def tokens(self, model: Model) -> ExperimentTokens:
        """Both prompts and both answers as token ids of `model`, checked.

        Raises NanopatchError if the model cannot read a prompt, an answer is not one token, or the answers are equal.
        """
        clean, corrupted = (self.tokenize(model, prompt) for prompt in (self.clean, self.corrupted))
        if clean.ndim != 1 or corrupted.ndim != 1:
            raise NanopatchError("one clean and one corrupted prompt are expected, not batches")
        answers = (self.answer, self.wrong_answer)
        answer, wrong_answer = (None if given is None else answer_token(model, given) for given in answers)
        if answer is not None and answer == wrong_answer:
            raise NanopatchError(f"answer and wrong answer are both {self.answer!r}: give two different tokens")
        return ExperimentTokens(clean, corrupted, answer, wrong_answer)

    def columns(self, model: Model) -> Columns:
        """The aligned pairs (position in clean, position in corrupted), in reading order; None for no partner.

        Raises NanopatchError as `tokens` does, and for prompts of different lengths if `align` is None.
        """
        tokens = self.tokens(model)
        return align(tokens.clean, tokens.corrupted, self.align, show=model.token_strings)


def answer_token(model: Model, answer: str | int) -> int:
    """The token id of an answer, given as a text or as an id. Raises NanopatchError if it is not one token."""
    if not isinstance(answer, (str, numbers.Integral)) or isinstance(answer, bool):
        raise NanopatchError(f"an answer is one token, as text or as an id, not {answer!r:.60}")
    if answer == "":
        raise NanopatchError("the answer is empty: give one token, such as ' Jones'")
    ids = model.tokenize(answer if isinstance(answer, str) else [answer])
    if len(ids) != 1:
        spaced = spaced_token(model, str(answer))
        hint = "" if spaced is None else f"; with a leading space it is one: {f' {answer}'!r}"
        raise NanopatchError(
            f"the answer {answer!r} is {len(ids)} tokens, {model.token_strings(ids)}, and must be one{hint}"
        )
    return int(ids[0])


def spaced_token(model: Model, answer: str) -> int | None:
    """The token id of an answer with a leading space; None if that is not one token."""
    try:
        ids = model.tokenize(f" {answer}")
    except NanopatchError:  # such as a vocabulary without a space
        return None
    return int(ids[0]) if len(ids) == 1 else None


# The first three are the experiments of the report that this library follows.
MICHELLE = Experiment(
    clean="Michelle Jones was a top-notch student. Michelle",
    corrupted="Michelle Smith was a top-notch student. Michelle",
    answer=" Jones",
    wrong_answer=" Smith",
)
JESSICA = Experiment(
    clean="Jessica Jones was a top-notch student. Michelle",
    corrupted="Michelle Smith was a top-notch student. Jessica",
    answer=" Jones",
    wrong_answer=" Smith",
)
ELON = Experiment(
    clean="Elon Musk co-founded Tesla and revolutionized the electric car industry. Elon",
    corrupted="Steve Jobs co-founded Tesla and revolutionized the electric car industry. Elon",
    answer=" Musk",
    wrong_answer=" Jobs",
    align="diff",  # 16 and 15 tokens of GPT-2
)
# Wang et al. 2022, arXiv 2211.00593: the name that is not repeated receives the drink.
INDIRECT_OBJECT = Experiment(
    clean="When Mary and John went to the store, John gave a drink to",
    corrupted="When Mary and John went to the store, Mary gave a drink to",
    answer=" Mary",
    wrong_answer=" John",
)
CAPITAL = Experiment(
    clean="The capital of France is",
    corrupted="The capital of Italy is",
    answer=" Paris",
    wrong_answer=" Rome",
)

#: The experiments above, under their names on the command line.
NAMED = {
    "michelle": MICHELLE,
    "jessica": JESSICA,
    "elon": ELON,
    "indirect-object": INDIRECT_OBJECT,
    "capital": CAPITAL,
}
