"""What a lens is given: a run that holds enough, a position, answers. Each is checked here."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np

from ..errors import NanopatchError
from ..experiments.experiment import answer_token
from ..model.backward import check_weights
from ..model.gpt2 import Model
from ..model.sites import Run, shapes
from ..types import Array

#: An answer: one token as text or id, or several, whose logits are averaged.
Answer = str | int | Sequence[str | int] | None


def check_run(model: Model, run: Run, sites: Sequence[str], what: str) -> Array:
    """The tokens of a run. NanopatchError unless it is of one prompt and of this model, and holds all of `sites`."""
    if not isinstance(model, Model) or not isinstance(run, Run):
        raise NanopatchError(
            f"{what} takes the model, then a run of it, as model.run(prompt) gives it; not {run!r:.60}"
        )
    if run.is_gradient:
        raise NanopatchError(f"{what} takes a run, not derivatives")
    missing = [name for name in sites if name not in run.names]
    if missing:
        raise NanopatchError(
            f"{what} needs {', '.join(missing)}, which this run does not hold: record it with sites={tuple(sites)!r}"
        )
    if run.tokens is None:
        raise NanopatchError(
            f"{what} needs the tokens of the run: record a loop over model.steps, or model.run(prompt)"
        )
    if run.tokens.ndim != 1:
        raise NanopatchError(f"{what} takes the run of one prompt, not of a batch of {len(run.tokens)}")
    check_weights(model, run)
    expected = shapes(model, len(run.tokens))
    for name in sites:
        array = getattr(run, name)
        if array.shape != expected[name] or array.dtype != model.dtype:
            raise NanopatchError(
                f"{what}: this is no run of a whole prompt by this model, whose {name} has shape {expected[name]} and "
                f"dtype {model.dtype}, not {array.shape} and {array.dtype}"
            )
    return run.tokens


def check_layer(n_layer: int, layer: Any) -> int:
    """A layer; NanopatchError if there is none."""
    return _index("layer", n_layer, layer)


def check_head(n_head: int, head: Any) -> int:
    """A head; NanopatchError if there is none."""
    return _index("head", n_head, head)


def _index(what: str, n: int, index: Any) -> int:
    if not isinstance(index, Integral) or isinstance(index, bool) or not 0 <= int(index) < n:
        raise NanopatchError(f"{what} {index!r:.40} does not exist: this model's are 0 to {n - 1}")
    return int(index)


def answer_ids(model: Model, answer: Answer, wrong_answer: Answer = None) -> tuple[list[int], list[int]]:
    """The token ids of answers and of wrong answers; [] for None.

    NanopatchError if one is not one token or is there twice, a list is empty, or there is a wrong answer alone.
    """
    ids, wrong_ids = _ids(model, answer), _ids(model, wrong_answer)
    if wrong_ids and not ids:
        raise NanopatchError("a wrong answer alone: give the answer too")
    for i, token in enumerate([*ids, *wrong_ids]):
        if token in [*ids, *wrong_ids][:i]:
            raise NanopatchError(
                f"{model.token_strings(token)[0]!r} is there twice in answer={answer!r:.60}, "
                f"wrong_answer={wrong_answer!r:.60}: give different tokens"
            )
    return ids, wrong_ids


def _ids(model: Model, answer: Answer) -> list[int]:
    if answer is None:
        return []
    if isinstance(answer, bytes):  # whose items are numbers
        raise NanopatchError(f"an answer is one token, as text or as an id, not {answer!r:.60}")
    several = [answer] if isinstance(answer, str) or not np.iterable(answer) else list(answer)
    if not several:
        raise NanopatchError("an empty list of answers: give one answer, or None")
    return [answer_token(model, one) for one in several]


def answer_text(model: Model, ids: Sequence[int]) -> str | None:
    """Answers as one text for titles; None if there are none."""
    return " / ".join(model.token_strings(list(ids))) if ids else None
