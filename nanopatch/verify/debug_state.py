"""Compare a model with a debug state of llm.c: PyTorch's logits, loss and weight gradients for one batch."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from ..errors import NanopatchError
from ..experiments.metrics import log_softmax
from ..files import expand
from ..model.backward import backward, weight_gradients
from ..model.gpt2 import Model
from ..model.layers import softmax
from ..model.llmc_file import DebugState, read_debug_state
from ..patching.average import check_model
from ..types import PathLike
from .report import Check, Report, share_check, worst

#: How far a model may be from PyTorch's float32 on another machine, as a share of the largest |value| of an array. On
#: nano, float32 and float64 differ by 8e-7, 2e-8 and 2e-6; the other form of GELU changes 6e-4, 3e-5 and 2e-3. llm.c
#: itself allows an absolute 1e-2 for all three, which is 2e-4 of the real GPT-2's largest logits and 2e-3 of its loss.
LOGITS, LOSS, GRADIENTS = 1e-4, 1e-5, 1e-3


def verify_debug_state(model: Model, file: PathLike) -> Report:
    """Compare a model with a debug state that llm.c's `train_gpt2.py` wrote for it.

    Parameters
    ----------
    model : Model
        The model whose state it is, such as `nanopatch.load("gpt2")` for `gpt2_124M_debug_state.bin`.
    file : path
        The file. It holds one batch of tokens and targets, and what PyTorch computed for it in float32.

    Returns
    -------
    Report
        A `Check` of the logits, one of the loss (mean cross-entropy, in nats), and one of the gradients of each kind
        of weight, of the layer that is worst.

    Raises
    ------
    NanopatchError
        If the file cannot be read, or is the state of a model of other sizes.

    Notes
    -----
    Tested with a tiny model, whose state PyTorch computed. We have not run it on the real GPT-2: we could not get the
    weights or the file.
    """
    check_model(model)
    path = expand(file)
    if model.lm_head is not model.wte or model.d_mlp != 4 * model.d_model:
        raise NanopatchError(
            f"llm.c's models have a tied lm_head and an MLP of width {4 * model.d_model}, and {model} has not: give "
            "the model that the state is of"
        )
    try:
        state = read_debug_state(path, model.n_layer, model.d_model, model.n_vocab, model.n_ctx)
    except FileNotFoundError as error:
        raise NanopatchError(f"cannot read {path}: {error.strerror}") from None
    if state.targets.min() < 0 or state.targets.max() >= model.n_vocab:
        raise NanopatchError(f"{path}: its targets are not all token ids, 0 to {model.n_vocab - 1}: fetch it again")
    name = model.source.name if model.source else "the model"
    return Report(name, f"the debug state {path.name}", tuple(debug_state_checks(model, state)))


def debug_state_checks(model: Model, state: DebugState) -> Iterator[Check]:
    """The checks of `verify_debug_state`."""
    run = model.run(state.tokens)
    logits, targets = run.logits.reshape(-1, model.n_vocab), state.targets.ravel()  # a row for each target
    yield share_check("logits", "", run.logits, state.logits, LOGITS)
    loss = -np.mean([log_softmax(row)[target] for row, target in zip(logits, targets, strict=True)])
    yield share_check("loss", "", loss, np.array(state.loss), LOSS)

    # The loss is the mean of -log softmax(logits)[target], so its derivative is (softmax - one-hot targets) / n.
    d_logits = softmax(logits)
    d_logits[np.arange(len(targets)), targets] -= 1
    d_logits /= len(targets)
    gradients = weight_gradients(model, run, backward(model, run, d_logits.reshape(run.logits.shape)))
    found: dict[str, list[Check]] = {}
    for key, expected in state.gradients.items():
        in_block = re.match(r"h\.(\d+)\.", key)
        name, where = (key[in_block.end() :], f"layer {in_block[1]}") if in_block else (key, "")
        check = share_check(f"gradient of {name}", where, gradients[key], expected, GRADIENTS)
        found.setdefault(name, []).append(check)
    for checks in found.values():
        yield worst(checks)
