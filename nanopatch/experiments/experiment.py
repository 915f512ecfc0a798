"""Pairs of prompts to patch between, and the named ones."""

import numbers
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..errors import NanopatchError


class ExperimentTokens(NamedTuple):
    """An experiment in one model's tokens."""

    clean: np.ndarray  # (n_clean,)
    corrupted: np.ndarray  # (n_corrupted,)
    answer: int
    wrong_answer: int


@dataclass(frozen=True)
class Experiment:
    """A clean prompt, a corrupted one, the answer the clean one calls for, and the one the corrupted calls for.

    clean, corrupted: text, or token ids (n_tokens,). answer, wrong_answer: one token each, as text
    (usually with its leading space) or as an id. prepend_bos: put `<|endoftext|>` before both prompts.
    """

    clean: str
    corrupted: str
    answer: str
    wrong_answer: str
    prepend_bos: bool = False

    def to_dict(self):
        """Its fields as what JSON can hold: token ids as lists."""
        return {
            name: value if isinstance(value, (str, int, bool)) else np.asarray(value).tolist()
            for name, value in vars(self).items()
        }

    def tokens(self, model):
        """Both prompts and both answers as token ids of `model`, checked: an `ExperimentTokens`.

        Raises NanopatchError for a prompt the model cannot read, an answer of several tokens, or equal answers.
        """
        prompts = [model.tokenize(prompt, prepend_bos=self.prepend_bos) for prompt in (self.clean, self.corrupted)]
        if any(tokens.ndim != 1 for tokens in prompts):
            raise NanopatchError("an experiment has one clean and one corrupted prompt, not batches of them")
        answers = [answer_token(model, answer) for answer in (self.answer, self.wrong_answer)]
        if answers[0] == answers[1]:
            raise NanopatchError(f"answer and wrong answer are both {self.answer!r}: their logits cannot differ")
        return ExperimentTokens(*prompts, *answers)


def answer_token(model, answer):
    """The token id of an answer given as text or as an id; NanopatchError if it is not exactly one token."""
    if not isinstance(answer, (str, numbers.Integral)) or isinstance(answer, bool):
        raise NanopatchError(f"an answer is one token, as text or as an id, not {answer!r:.60}")
    if answer == "":
        raise NanopatchError("the answer is empty: give one token, such as ' Jones'")
    ids = model.tokenize(answer if isinstance(answer, str) else [answer])
    if len(ids) != 1:
        hint = ""
        if not answer.startswith(" ") and len(model.tokenize(" " + answer)) == 1:
            hint = f"; with a leading space it is one: {' ' + answer!r}"
        raise NanopatchError(
            f"the answer {answer!r} is {len(ids)} tokens, {model.token_strings(ids)}, and must be one{hint}"
        )
    return int(ids[0])


# 1 to 3 are the experiments of the report that this library follows. In 3 the prompts have 16 and 15
# tokens of GPT-2, so it needs align="diff".
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

#: The experiments above by the names the command line knows them by.
NAMED = {
    "michelle": MICHELLE,
    "jessica": JESSICA,
    "elon": ELON,
    "indirect-object": INDIRECT_OBJECT,
    "capital": CAPITAL,
}
