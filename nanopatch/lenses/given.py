"""What a lens is given: a run that holds enough, a position, answers. Each is checked here."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np

from ..errors import NanopatchError
from ..experiments.experiment import answer_token
from ..model.gpt2 import Model
from ..model.sites import ATTENTION_SITES, HEAD_SITES, Run
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
    for name in sites:
        array = getattr(run, name)
        sizes = {"resid": model.d_model, "logits": model.n_vocab, "ln_final": model.d_model}
        sizes |= dict.fromkeys(HEAD_SITES, model.d_head)
        width = sizes.get(name.split("_")[0] if name.startswith("resid") else name, array.shape[-1])
        layers = model.n_layer if array.ndim > 2 else len(array)
        heads = array.shape[1 if name in ATTENTION_SITES else 2] if array.ndim == 4 else model.n_head
        fits = array.shape[-1] == width and len(array) == layers and heads == model.n_head
        if not fits or (run.model is not None and run.model is not model):
            raise NanopatchError(f"{what}: this is a run of another model")
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


def answer_ids(model: Model, answer: Answer) -> list[int]:
    """The token ids of an answer; [] for None. NanopatchError if one is not one token, or if there are none."""
    if answer is None:
        return []
    several = [answer] if isinstance(answer, (str, Integral)) else list(np.asarray(answer, object))
    if not several:
        raise NanopatchError("an empty list of answers: give one answer, or None")
    ids = [answer_token(model, one) for one in several]
    if len(set(ids)) < len(ids):
        raise NanopatchError(f"an answer is there twice in {answer!r:.60}")
    return ids


def answer_text(model: Model, ids: Sequence[int]) -> str | None:
    """Answers as one text for titles; None if there are none."""
    return " / ".join(model.token_strings(list(ids))) if ids else None
