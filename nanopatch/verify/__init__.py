"""Compare a model with reference values that this library did not make.

For nano: every named array of every layer, against Hugging Face's GPT-2 in PyTorch. `data/nano_reference.npz` holds
its values; `scripts/make_reference.py` makes and describes them. For gpt2: what others published for GPT-2 small, in
the three files `data/gpt2_*.json`. Of these, this module reads those of the Transformer Explainer and of
TransformerLens; `nanopatch.verify.published` reads the third.

The tests exercise the checks of gpt2 with a stand-in. We have not run them on the real GPT-2: we could not get the
weights.

    n_layer, n_tokens, n_head, d_model, n_vocab  as in `nanopatch.model`
    batch    the eight indirect-object prompts
    n_many   the prompts that rounding errors are averaged over
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import NanopatchError
from ..experiments.experiment import Experiment
from ..experiments.patch import Patch
from ..experiments.tasks import ioi8
from ..files import read_json
from ..gradients.attribution import attribute
from ..lenses.direct import SITES as PARTS
from ..lenses.direct import direct_logit_attribution, direction
from ..model.checkpoint import load
from ..model.gpt2 import Model
from ..model.sites import SITES
from ..patching.sweep import sweep
from ..results.panels import Panels
from ..results.sweep import Sweep
from ..types import Array
from .debug_state import verify_debug_state
from .published import experiment_checks, report_picture
from .report import (
    PUBLISHED_LOGITS,
    PUBLISHED_PATTERNS,
    Check,
    Report,
    differences,
    grid_check,
    largest_value,
    published_check,
    share_check,
    worst,
)

__all__ = ["Check", "Report", "picture", "verify", "verify_debug_state"]

DATA = Path(__file__).parent.parent / "data"

#: How far float64 may be from PyTorch's float64, as a share of the largest |value| of an array. Both round at about
#: 1e-16; the rest allows for other processors and deeper models.
FLOAT64 = 1e-9
#: Our float32 error may be at most this many times PyTorch's own float32 error.
FLOAT32 = 1.5

#: The published patching grids of the eight indirect-object prompts. All denoise. In the file, all axes but the last
#: make the rows.
IOI8_GRIDS = {
    "resid_pre_layer_pos": Patch("resid_pre"),
    "attn_out_layer_pos": Patch("attn_out"),
    "mlp_out_layer_pos": Patch("mlp_out"),
    "head_z_allpos": Patch("z"),
    "head_v_allpos": Patch("v"),
    "head_pattern_allpos": Patch("pattern"),
    "head_q_allpos": Patch("q"),
    "head_k_allpos": Patch("k"),
    "head_z_by_pos_rows_layer_head": Patch("z", axes=("layer", "head", "position")),
}
#: Attribution patching of the same prompts: two keys with several grids each. The first has a row for the residual
#: stream before and in the middle of each block, and one for its end. The second has a grid for each of these sites.
IOI8_STREAM = "attrib_resid_25rows_0pre_0mid_..._final_2023"
IOI8_HEADS = ("attrib_head_out_q_k_v_pattern", ("z", "q", "k", "v", "pattern"))


def verify(name: str = "nano") -> Report:
    """Compare a model with its reference values.

    Parameters
    ----------
    name : str
        "nano" compares every array of every layer with PyTorch's. "gpt2" compares logits, attention patterns,
        patching and attribution grids, direct logit attribution, continuations and losses with published values.

    Returns
    -------
    Report
        A `Check` for each comparison; `report.ok` says whether all hold.

    Raises
    ------
    NanopatchError
        If there are no reference values for `name`, the model cannot be loaded, or nano's reference values were made
        from another model file.

    Examples
    --------
    >>> from nanopatch.verify import verify
    >>> report = verify("nano")
    >>> report.ok, len(report.checks)
    (True, 39)
    """
    if name == "nano":
        return verify_nano(DATA / "nano_reference.npz")
    if name == "gpt2":
        model = load("gpt2")
        sources = ("transformer_explainer", "transformerlens", "published")
        next_token, lens, published = (read_json(DATA / f"gpt2_{source}.json") for source in sources)
        checks = [*published_checks(model, next_token, lens), *experiment_checks(model, published)]
        return Report("gpt2", "published values of GPT-2 small", tuple(checks))
    raise NanopatchError(f"there are no reference values for {name!r}; there are some for nano and gpt2")


def picture(name: str = "gpt2") -> Panels:
    """The picture of the report that this library follows: the published patching grid, beside the model's own.

    Residual streams of "Michelle Jones" are patched into "Michelle Smith" after each block. Raises NanopatchError if
    `name` is not "gpt2", the model that the report patched, or the model cannot be loaded.
    """
    if name != "gpt2":
        raise NanopatchError(f"there is no published picture for {name!r}; there is one for gpt2")
    model = load("gpt2")
    return report_picture(model, read_json(DATA / "gpt2_published.json")["michelle"])


def verify_nano(file: Path) -> Report:
    """The `Report` on nano, with the reference values in `file`."""
    header, arrays = read_reference(file)
    rounded, exact = load("nano", np.float32), load("nano", np.float64)
    sha256 = str(rounded.source and rounded.source.sha256)
    if sha256 != header["sha256"]:
        raise NanopatchError(
            f"{file.name} has the values of another nano: it was made for SHA-256 {header['sha256'][:12]}..., and the "
            f"model here has {sha256[:12]}...; install nanopatch again, or, if you trained this nano, run: python "
            "scripts/make_reference.py nano"
        )
    checks = [*float64_checks(exact, header, arrays), *float32_checks(rounded, exact, header, arrays)]
    versions = header["versions"]
    return Report("nano", f"PyTorch {versions['torch']}, transformers {versions['transformers']}", tuple(checks))


# ---- against PyTorch, array by array --------------------------------------------------------------


def read_reference(file: Path) -> tuple[dict[str, Any], dict[str, Array]]:
    """(header, {key: array}) of a file that `scripts/make_reference.py` wrote; the script says what the keys mean."""
    try:
        with open(file, "rb") as opened, np.load(opened) as stored:
            arrays = {key: stored[key] for key in stored.files}
        header = json.loads(str(arrays.pop("header")))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise NanopatchError(f"cannot read the reference values {file}: {error}; install nanopatch again") from None
    return header, arrays


def float64_checks(model: Model, header: dict[str, Any], arrays: dict[str, Array]) -> Iterator[Check]:
    """Compare a float64 model with PyTorch's float64: a `Check` for the worst layer of every name.

    The worst layer has the largest difference relative to the largest |value| of its array.
    """
    found: dict[str, list[Check]] = {name: [] for name in SITES}
    for site in model.steps(arrays["tokens"]):
        if site.name == "logits":
            last = site.array[..., -1, :]
            found["logits"] += [
                float64_check("logits", "every position", site.array[..., arrays["columns"]], arrays["float64.logits"]),
                float64_check("logits", "last position", last, arrays["float64.logits_last"]),
            ]
        elif site.layer is None:
            found[site.name].append(float64_check(site.name, "", site.array, arrays[f"float64.{site.name}"]))
        else:
            expected = arrays[f"float64.{header['same'].get(site.name, site.name)}"][site.layer]
            found[site.name].append(float64_check(site.name, f"layer {site.layer}", site.array, expected))
    for checks in found.values():
        yield worst(checks)


def float64_check(name: str, where: str, actual: Array, expected: Array) -> Check:
    return share_check(f"float64 {name}", where, actual, expected, FLOAT64)


def float32_checks(rounded: Model, exact: Model, header: dict[str, Any], arrays: dict[str, Array]) -> Iterator[Check]:
    """A float32 model's rounding errors against PyTorch float32's own, over many prompts: a `Check` for every name.

    The error of a name in a prompt is its largest difference from float64 anywhere. It is averaged over the prompts,
    for this library and for PyTorch, and the worst layer counts. (The largest error over all prompts comes from the
    worst-conditioned prompt, where two equally good programs differ by half.) The first check compares this library's
    float64 with PyTorch's, at the last position.
    """
    tokens, columns = arrays["many_tokens"], arrays["columns"]
    found: dict[str, list[Check]] = {name: [] for name in SITES}
    for ours, truth in zip(rounded.steps(tokens), exact.steps(tokens), strict=True):
        actual, expected = ours.array, truth.array
        if truth.name == "logits":
            actual, expected = actual[..., columns], expected[..., columns]
            yield float64_check("logits, many prompts", "last position", expected[:, -1], arrays["many_logits"])
        apart = differences(actual, expected)  # (n_many, ...)
        error = float(apart.max(axis=tuple(range(1, apart.ndim))).mean())
        where = "" if truth.layer is None else f"layer {truth.layer}"
        largest = largest_value(expected)
        bound = FLOAT32 * header["pytorch_float32_errors"][truth.name]
        found[truth.name].append(Check(f"float32 {truth.name}", error, where, largest, bound))
    for checks in found.values():
        yield max(checks, key=lambda check: check.difference)


# ---- against published values ---------------------------------------------------------------------


def published_checks(model: Model, next_token: dict[str, Any], lens: dict[str, Any]) -> Iterator[Check]:
    """Checks of GPT-2 small against the files of the Transformer Explainer and of TransformerLens."""
    yield from next_token_checks(model, next_token["prompts"])
    yield from ioi8_checks(model, lens["ioi8"])
    yield from main_demo_checks(model, lens["main_demo"])


def next_token_checks(model: Model, entries: Iterable[dict[str, Any]]) -> Iterator[Check]:
    """The Transformer Explainer's prompts, without BOS: tokens, logits at the last token, every attention pattern."""
    tokens, top, every_100th, patterns = [], [], [], []
    for entry in entries:
        run = model.run(entry["prompt"], sites=("pattern", "logits"))
        logits, ids, values = run.logits[-1], *zip(*entry["top50"], strict=True)
        where = repr(entry["prompt"])
        tokens.append((where, run.tokens, entry["token_ids"]))
        # First the logits of the published tokens. Then the 50 highest logits here, which must have the same values.
        top += [(where, logits[list(ids)], values), (where, np.sort(logits)[: -len(ids) - 1 : -1], values)]
        every_100th.append((where, logits[::100], entry["logits_every_100th"]))
        patterns.append((where, run.pattern, entry["pattern"]))
    yield published_check("token ids", 0, tokens)
    yield published_check("logits, the 50 highest", PUBLISHED_LOGITS, top)
    yield published_check("logits, every 100th", PUBLISHED_LOGITS, every_100th)
    yield published_check("patterns", PUBLISHED_PATTERNS, patterns, decimals=5)


def ioi8_checks(model: Model, published: dict[str, Any]) -> Iterator[Check]:
    """The eight indirect-object prompts, with BOS. The corrupted prompts are the same prompts, neighbours swapped."""
    pairs = ioi8()
    run = model.run(np.array([pair.tokens(model).clean for pair in pairs]))
    answers = np.array(published["answer_tokens"])  # (batch, 2)
    right, wrong = np.take_along_axis(run.logits[:, -1], answers, axis=-1).T  # (batch,) each
    prompts = [f"prompt {i}" for i in range(len(pairs))]
    by_prompt = list(zip(prompts, right - wrong, published["per_prompt_logit_diff_3dp"], strict=True))
    yield published_check("logit differences, IOI", PUBLISHED_LOGITS, by_prompt, decimals=3)

    sweeps: Any = sweep(model, pairs, list(IOI8_GRIDS.values()))
    yield baselines_check("their mean", sweeps["resid_pre"], published, decimals=4)
    for name, patched in zip(IOI8_GRIDS, sweeps.values(), strict=True):
        yield grid_check("IOI", patched, published[name])
    yield from attribution_checks(model, pairs, published)

    for name, values in direct_attribution(model, pairs).items():
        yield published_check(f"direct attribution, {name}", PUBLISHED_LOGITS, [("", values, published[f"dla_{name}"])])


def direct_attribution(model: Model, pairs: Sequence[Experiment]) -> dict[str, Array]:
    """Direct logit attribution in TransformerLens' three tables, the mean over pairs.

    There the bias of ln_f is left out, and a head without the share of the value bias that it moves.
    """
    tables: dict[str, list[Any]] = {"logit_lens_pre_mid": [], "layers_embed_pos_attn_mlp": [], "heads": []}
    for pair in pairs:
        tokens = pair.tokens(model)
        run = model.run(tokens.clean, sites=PARTS)
        direct = direct_logit_attribution(model, run, tokens.answer, tokens.wrong_answer)
        *sums, _ = direct.cumulative.values()  # the last is behind ln_f
        parts, towards = direct.parts, direction(model, run, -1, *([int(i or 0)] for i in tokens[2:]))
        tables["logit_lens_pre_mid"].append(sums)
        tables["layers_embed_pos_attn_mlp"].append([parts["embed"], parts["pos_embed"], *np.diff(sums)])
        of_bias = np.zeros((model.n_layer, model.n_head))
        for layer, block in enumerate(model.h):
            bias = block.attn.c_attn.bias[2 * model.d_model :].reshape(model.n_head, 1, model.d_head)
            w_o = block.attn.c_proj.weight.reshape(model.n_head, model.d_head, model.d_model)
            of_bias[layer] = (bias @ w_o)[:, 0] @ towards
        tables["heads"].append(direct.heads - of_bias)
    return {name: np.mean(values, axis=0) for name, values in tables.items()}


def attribution_checks(model: Model, pairs: Sequence[Experiment], published: dict[str, Any]) -> Iterator[Check]:
    """Attribution patching of the indirect-object pairs, clean into corrupted; for a head, the sum over positions.

    The published value is (clean - corrupted) * derivative. The derivative is that of the mean logit difference,
    scaled to 0 in the corrupted runs and 1 in the clean ones, and is taken on the corrupted run. So it is the mean
    of the pairs' estimates, normalised. TransformerLens folds weights into others, which changes none of these
    values. It moves arrays by constants, which cancel in the difference of two runs. A constant added to all values
    that a head reads adds nothing, because the differences of its pattern sum to 0 over the keys.
    """
    stream = np.array(published[IOI8_STREAM])  # (2 n_layer + 1, n_tokens)
    grids = {
        "resid_pre": [published["attrib_resid_pre"], stream[:-1:2]],
        "resid_mid": [stream[1::2]],
        "resid_post": [stream[-1:]],
        "attn_out": [published["attrib_attn_out"]],
        "mlp_out": [published["attrib_mlp_out"]],
        **{site: [grid] for site, grid in zip(IOI8_HEADS[1], published[IOI8_HEADS[0]], strict=True)},
    }
    last = {"resid_post": [model.n_layer - 1]}
    estimates: Any = attribute(model, pairs, [Patch(site, layers=last.get(site)) for site in grids])
    for site, estimate in estimates.items():
        yield grid_check("IOI", estimate, *grids[site], how="attributed")


def main_demo_checks(model: Model, published: dict[str, Any]) -> Iterator[Check]:
    """One pair, with BOS: its logit differences and residual-stream patching."""
    answers = published["answer"]
    pair = Experiment(published["clean"], published["corrupted"], answers[0], answers[1], prepend_bos=True)
    patched = sweep(model, pair)
    yield baselines_check("logit differences, one pair", patched, published, decimals=3)
    yield grid_check("one pair", patched, published["resid_pre_layer_pos"])


def baselines_check(name: str, patched: Sweep, published: dict[str, Any], decimals: int) -> Check:
    """The logit differences of a sweep's two unpatched runs."""
    baselines = {"clean": patched.baseline_clean, "corrupted": patched.baseline_corrupted}
    pairs = [(which, value, published[f"{which}_{decimals}dp"]) for which, value in baselines.items()]
    return published_check(name, PUBLISHED_LOGITS, pairs, decimals)
