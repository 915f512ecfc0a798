"""The report's own experiment, and other numbers that others published for GPT-2 small: `data/gpt2_published.json`.

The file holds, besides the numbers, where each is from and how far a model may be from it:

    next_token      the 20 likeliest tokens of four prompts, each with its probability and logit; two more logits
    michelle        the experiment of the report that this library follows: the metric of the unpatched runs, grids
                    (layer x position), patches from wrong places, mixtures. All denoise, and are logit differences
    wizard          a second experiment: the metric of the unpatched runs, and two grids
    variants        logit differences after variants of the wizard prompt
    top40           probabilities among the 40 likeliest tokens only
    greedy          the likeliest continuations; greedy_float16: the same, computed in float16
    ln_final        the final LayerNorm's first numbers at position 0
    losses          mean cross-entropy, in nats

Some numbers have a `confidence`, which says why they may not be what they are taken for. Their checks show the
difference and never fail.

The tests exercise these checks with a stand-in. We have not run them on the real GPT-2: we could not get the weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import NanopatchError
from ..experiments.experiment import Experiment
from ..experiments.metrics import log_softmax
from ..files import Source
from ..model.generation import generate
from ..model.gpt2 import Model
from ..model.sites import Run
from ..patching.edit import Edit
from ..patching.stack import patched_resids
from ..patching.sweep import sweep
from ..results.panels import Panels
from ..results.sweep import Sweep
from ..types import Array
from .report import Check, grid_check, published_check

#: What is added to the name of a check that never fails.
INFORMATION = ", for information"


def experiment_checks(model: Model, published: dict[str, Any]) -> Iterator[Check]:
    """Checks of GPT-2 small against the content of the file. Raises NanopatchError if the model has other layers."""
    check_layers(model, published["michelle"])
    yield from likeliest_checks(model, published["next_token"])
    yield from michelle_checks(model, published["michelle"])
    yield from pair_checks(model, "wizard", published["wizard"])
    yield variants_check(model, published["variants"])
    yield top40_check(model, published["top40"])
    yield greedy_check(model, "greedy continuations", 0, published["greedy"])
    yield greedy_check(model, f"the same, from float16{INFORMATION}", math.inf, published["greedy_float16"]["prompts"])
    yield ln_final_check(model, published["ln_final"])
    yield from loss_checks(model, published["losses"])


# ---- what comes next --------------------------------------------------------------------------------


def likeliest_checks(model: Model, published: dict[str, Any]) -> Iterator[Check]:
    """The 20 likeliest tokens of each prompt."""
    tokens, probabilities, logits, more = [], [], [], []
    for entry in published["prompts"]:
        where, last = repr(entry["prompt"]), model.next_logits(entry["prompt"])
        ids, p, values = zip(*entry["top20"], strict=True)
        tokens.append((where, model.tokenize(entry["prompt"]), entry["token_ids"]))
        # First the published tokens. Then the likeliest tokens here, which must have the same values.
        for chosen in (list(ids), np.argsort(-last, kind="stable")[: len(ids)]):
            probabilities.append((where, np.exp(log_softmax(last))[chosen], p))
            logits.append((where, last[chosen], values))
        ids, values = zip(*entry["more_logits"], strict=True)
        more.append((where, last[list(ids)], values))
    tolerance = published["tolerance"]
    yield published_check("token ids, four prompts", 0, tokens)
    yield published_check("probabilities, the 20 highest", tolerance["probability"], probabilities)
    yield published_check("logits, the 20 highest", tolerance["logit"], logits)
    yield published_check("logits of the answers", tolerance["logit"], more)


def variants_check(model: Model, published: dict[str, Any]) -> Check:
    """How much more likely one token is than the other, after the clean prompt and after a corrupted one."""
    clean, differences = model.next_logits(published["prompt"]), []
    for pair in published["pairs"]:
        (before,), (after,) = map(model.tokenize, pair["tokens"])
        for last, score in zip((clean, model.next_logits(pair["corrupted"])), pair["scores"], strict=True):
            differences.append((repr(pair["corrupted"]), last[after] - last[before], score))
    return published_check("variants of the wizard prompt", published["tolerance"], differences)


def top40_check(model: Model, published: dict[str, Any]) -> Check:
    """Probabilities that are shared out among the 40 likeliest tokens, of the 20 likeliest."""
    probabilities = []
    for entry in published["prompts"]:
        logs = log_softmax(model.next_logits(entry["prompt"]))
        ids, p = zip(*entry["top20"], strict=True)
        shared = np.exp(logs[list(ids)]) / np.exp(np.sort(logs)[-40:]).sum()
        probabilities.append((repr(entry["prompt"]), shared, p))
    return published_check(f"among the 40 likeliest (which prompt is inferred){INFORMATION}", math.inf, probabilities)


def greedy_check(model: Model, name: str, allowance: float, prompts: Sequence[dict[str, Any]]) -> Check:
    """The likeliest token, again and again: token ids, so the difference says only whether there is one."""
    found = []
    for entry in prompts:
        expected = entry["continuation"]
        found.append((repr(entry["prompt"]), generate(model, entry["prompt"], len(expected)), expected))
    return published_check(name, allowance, found)


# ---- patching ---------------------------------------------------------------------------------------


def michelle_checks(model: Model, published: dict[str, Any]) -> Iterator[Check]:
    """The report's experiment. Beside its grids, other vectors are put into the stream at the end of a block."""
    yield from pair_checks(model, "michelle", published)
    tokens = pair_of(published).tokens(model)
    clean, corrupted = model.run(tokens.clean), model.run(tokens.corrupted)
    # {check: [(what is said of the place, layer, position, the vector that resid_post becomes there, the metric)]}
    patches: dict[str, list[tuple[str, int, int, Array, float]]] = {}

    # resid_mid is patched, but the MLP of its block still reads the corrupted one, and so has the corrupted output.
    past_mlp = patches["resid_mid past the MLP, michelle"] = []
    for (layer, position), value in np.ndenumerate(np.array(published["resid_mid_past_mlp"])):
        vector = clean.resid_mid[layer, position] + corrupted.mlp_out[layer, position]
        past_mlp.append(("", layer, position, vector, value))

    wrong_places = patches["resid_post from wrong places, michelle"] = []
    for layer, position, from_layer, from_position, value in published["wrong_places"]:
        vector = clean.resid_post[from_layer, from_position]
        wrong_places.append((f", from layer {from_layer}, position {from_position}", layer, position, vector, value))

    mixtures = patches["resid_post mixed, michelle"] = []
    for layer, position, share, value in published["mixtures"]:
        at = layer, position
        vector = share * clean.resid_post[at] + (1 - share) * corrupted.resid_post[at]
        mixtures.append((f", {share} clean", layer, position, vector, value))

    answers = np.array([tokens.answer, tokens.wrong_answer])
    for name, cells in patches.items():
        found = stream_patches(model, corrupted, answers, [cell[1:4] for cell in cells])
        compared = [
            (f"layer {layer}, position {position}{more}", measured, value)
            for measured, (more, layer, position, _, value) in zip(found, cells, strict=True)
        ]
        yield published_check(name, published["tolerance"], compared)


def stream_patches(model: Model, base: Run, answers: Array, patches: Sequence[tuple[int, int, Array]]) -> list[float]:
    """The logit difference of each run in which resid_post is a given vector: patches of (layer, position, vector)."""
    shape = base.resid_post.shape[1:]  # (n_tokens, d_model)
    edits = [[Edit("resid_post", layer, np.broadcast_to(v, shape), [position])] for layer, position, v in patches]
    found = [float(base.logits[-1, answers[0]]) - float(base.logits[-1, answers[1]])] * len(patches)
    for number, _, resid in patched_resids(model, base, edits):  # those that can change something
        right, wrong = model.unembed(resid[-1:], answers)[-1]
        found[number] = float(right) - float(wrong)
    return found


def pair_checks(model: Model, name: str, published: dict[str, Any]) -> Iterator[Check]:
    """The metric of the unpatched runs, and the grids of resid_post and attn_out."""
    patched: Any = sweep(model, pair_of(published), ["resid_post", "attn_out"])
    baselines = [
        (which, getattr(patched["resid_post"], f"baseline_{which}"), published[f"baseline_{which}"])
        for which in ("clean", "corrupted")
    ]
    allowance = published["tolerance"]
    yield published_check(f"logit differences, {name}", allowance, baselines)
    for site, grid in patched.items():
        yield grid_check(name, grid, published[site], normalised=False, allowance=allowance)


def check_layers(model: Model, published: dict[str, Any]) -> None:
    """NanopatchError if the model has not as many layers as the published grid."""
    n_layer = len(published["resid_post"])
    if model.n_layer != n_layer:
        raise NanopatchError(
            f"the published values are of GPT-2 small, which has {n_layer} layers, and {model} has {model.n_layer}: "
            "download gpt2 again"
        )


def pair_of(published: dict[str, Any]) -> Experiment:
    return Experiment(*(published[name] for name in ("clean", "corrupted", "answer", "wrong_answer")))


def report_picture(model: Model, published: dict[str, Any]) -> Panels:
    """The published grid of resid_post beside the model's own, both with baselines of their own.

    Raises NanopatchError if the model has other layers.
    """
    check_layers(model, published)
    ours: Sweep = sweep(model, pair_of(published), "resid_post")
    theirs = replace(
        ours,
        grid=np.array(published["resid_post"]),
        baseline_clean=published["baseline_clean"],
        baseline_corrupted=published["baseline_corrupted"],
        source=Source("GPT-2 small, " + published["sources"]["resid_post"].split("@")[0]),
        prediction=None,
    )
    return Panels({"published": theirs, "computed here": ours})


# ---- inside, and losses -------------------------------------------------------------------------------


def ln_final_check(model: Model, published: dict[str, Any]) -> Check:
    """The final LayerNorm's first numbers at position 0."""
    values = model.run(published["token_ids"], sites="ln_final").ln_final[0]
    expected = published["values"]
    return published_check("ln_final", published["tolerance"], [("position 0", values[: len(expected)], expected)])


def loss_checks(model: Model, published: dict[str, Any]) -> Iterator[Check]:
    """llm.c's two losses, of batches of rows that are prompts of their own; TransformerLens' loss of one text."""
    llmc, hello = published["llmc"], published["hello_world"]
    n_batches, n_rows, n_tokens = llmc["shape"]
    ids, size = np.array(llmc["token_ids"]), n_batches * n_rows * n_tokens
    tokens, targets = (ids[start : start + size].reshape(llmc["shape"]) for start in (0, 1))
    losses = [mean_cross_entropy(model, *batch) for batch in zip(tokens, targets, strict=True)]
    yield published_check("loss, llm.c's first batch", llmc["tolerance"], [("", losses[0], llmc["debug_loss"])])
    yield published_check("loss, llm.c's validation", llmc["tolerance"], [("", np.mean(losses), llmc["val_loss"])])
    ids = np.array([hello["token_ids"]])
    loss = mean_cross_entropy(model, ids[:, :-1], ids[:, 1:])
    yield published_check("loss, Hello world!", hello["tolerance"], [("", loss, hello["loss"])])


def mean_cross_entropy(model: Model, tokens: Array, targets: Array) -> float:
    """The mean of -log p(target), in nats. tokens, targets: (n_rows, n_tokens)."""
    logs = [
        log_softmax(logits)[target]
        for row, row_targets in zip(tokens, targets, strict=True)
        for logits, target in zip(model.run(row, sites="logits").logits, row_targets, strict=True)
    ]
    return -float(np.mean(logs))
