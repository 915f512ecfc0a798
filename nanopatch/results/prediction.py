"""What the unpatched clean run says next, beside the answer: whether the question makes sense to the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .matrix import number


@dataclass(frozen=True)
class Prediction:
    """What the clean run predicts, and how it rates the answer.

    answer: the answer's text; None, as are rank and probability, where the experiment has none. rank: how many tokens
    are likelier than the answer. probability: of the answer. predicted, predicted_probability: the likeliest token.
    spaced_rank: the rank of the answer with a leading space, if it is better. unread: tokens of the prompts that the
    model was not trained on, where that is known. as_text: whether a special token, such as `<|endoftext|>`, in a
    prompt was read as ordinary text. n_unpredicted: in how many pairs the answer is not predicted.
    """

    answer: str | None
    rank: int | None
    probability: float | None
    predicted: str
    predicted_probability: float
    spaced_rank: int | None = None
    unread: tuple[str, ...] = ()
    as_text: bool = False
    n_unpredicted: int = 0

    @staticmethod
    def of_pairs(predictions: Sequence[Prediction | None]) -> Prediction | None:
        """That of several pairs: of the first whose answer is not predicted, if there is one, and what all lack."""
        known = [prediction for prediction in predictions if prediction]
        if not known:
            return None
        return replace(
            next((prediction for prediction in known if prediction.rank), known[0]),
            unread=tuple(dict.fromkeys(token for prediction in known for token in prediction.unread)),
            as_text=any(prediction.as_text for prediction in known),
            n_unpredicted=sum(prediction.n_unpredicted for prediction in known),
        )

    def notes(self, model: str, n_pairs: int = 1) -> list[str]:
        """What a reader must know, as sentences; usually none."""
        notes = []
        if self.rank and self.probability is not None:
            wrong = f"In {self.n_unpredicted} of {n_pairs} pairs the clean run"
            where = "The clean run" if n_pairs == 1 else wrong
            space = "" if self.spaced_rank is None else f"; with a leading space it would have rank {self.spaced_rank}"
            notes.append(
                f"{where} does not predict the answer: {self.answer!r} has rank {self.rank:,} and probability "
                f"{number(self.probability)}{space}; {self.predicted!r} has {number(self.predicted_probability)}."
            )
        if self.unread:
            more = f" and {len(self.unread) - 5} more" if len(self.unread) > 5 else ""
            notes.append(f"{model} was not trained on {', '.join(map(repr, self.unread[:5]))}{more}.")
        if self.as_text:
            notes.append(
                "A special token in a prompt, such as <|endoftext|>, was read as text; special_tokens=True reads it as "
                "that token."
            )
        return notes
