"""What the unpatched clean run says next, beside the answer: whether the question makes sense to the model."""

from __future__ import annotations

from dataclasses import dataclass

from .matrix import number


@dataclass(frozen=True)
class Prediction:
    """What the clean run predicts, and how it rates the answer.

    rank: how many tokens are likelier than the answer. probability: of the answer. predicted, predicted_probability:
    the likeliest token. spaced_rank: the rank of the answer with a leading space, if it is better. unread: tokens of
    the prompts that the model was not trained on, where that is known. as_text: whether `<|endoftext|>` in a prompt
    was read as ordinary text.
    """

    rank: int
    probability: float
    predicted: str
    predicted_probability: float
    spaced_rank: int | None = None
    unread: tuple[str, ...] = ()
    as_text: bool = False

    def notes(self, answer: str | int, model: str, wrong: int = 0, n_pairs: int = 1) -> list[str]:
        """What a reader must know, as sentences; usually none. wrong: in how many of the pairs the rank is not 0."""
        notes = []
        if self.rank:
            where = "The clean run" if n_pairs == 1 else f"In {wrong} of {n_pairs} pairs the clean run"
            space = "" if self.spaced_rank is None else f"; with a leading space it would have rank {self.spaced_rank}"
            notes.append(
                f"{where} does not predict the answer: {answer!r} has rank {self.rank:,} and probability "
                f"{number(self.probability)}{space}; {self.predicted!r} has {number(self.predicted_probability)}."
            )
        if self.unread:
            more = f" and {len(self.unread) - 5} more" if len(self.unread) > 5 else ""
            notes.append(f"{model} was not trained on {', '.join(map(repr, self.unread[:5]))}{more}.")
        if self.as_text:
            notes.append("<|endoftext|> in a prompt was read as text; special_tokens=True reads it as that token.")
        return notes
