"""Compare a model with reference values that this library did not make.

For nano: every named array of every layer, against Hugging Face's GPT-2 in PyTorch. `data/nano_reference.npz` holds
its values; `scripts/make_reference.py` makes and describes them. For gpt2: what others published for GPT-2 small, in
`data/gpt2_transformer_explainer.json` and `data/gpt2_transformerlens.json`.

    n_layer, n_tokens, n_head, d_model, n_vocab  as in `nanopatch.model`
    batch    the eight indirect-object prompts
    n_many   the prompts that rounding errors are averaged over
"""

from __future__ import annotations

import json
import math
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .errors import NanopatchError
from .experiments.experiment import Experiment
from .experiments.patch import Patch
from .experiments.tasks import ioi8
from .files import read_json
from .gradients.attribution import attribute
from .lenses.direct import direct_logit_attribution
from .model.checkpoint import load
from .model.gpt2 import Model
from .model.sites import SITES
from .patching.sweep import sweep
from .results.base import jsonable, write_text
from .results.sweep import Sweep
from .types import Array, PathLike

DATA = Path(__file__).parent / "data"

#: How far float64 may be from PyTorch's float64, as a share of the largest |value| of an array. Both round at about
#: 1e-16; the rest allows for other processors and deeper models.
FLOAT64 = 1e-9
#: Our float32 error may be at most this many times PyTorch's own float32 error.
FLOAT32 = 1.5
#: Published values were computed in float32, so this much is allowed beyond half a unit of their last decimal: for
#: logits and everything made of them (differences, grids, direct logit attribution), and for attention.
PUBLISHED_LOGITS, PUBLISHED_PATTERNS = 1e-3, 1e-4

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


@dataclass(frozen=True)
class Check:
    """One comparison: the largest difference, where it is, the largest |value|, and the largest difference allowed."""

    name: str
    difference: float
    where: str
    largest: float
    bound: float

    @property
    def ok(self) -> bool:
        return self.difference <= self.bound  # False for NaN too


@dataclass(frozen=True)
class Report:
    """The comparisons of one model with one reference; `print` shows them as a table.

    Attributes
    ----------
    model : str
        The name of the model.
    reference : str
        What it was compared with.
    checks : tuple of Check
    """

    model: str
    reference: str
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether every check holds."""
        return all(check.ok for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """The whole report as JSON can hold it: NaN as None, infinity as "inf"."""
        checks = [{**asdict(check), "ok": check.ok} for check in self.checks]
        return jsonable({"model": self.model, "reference": self.reference, "ok": self.ok, "checks": checks})

    def to_json(self, path: PathLike | None = None) -> str:
        """`to_dict()` as JSON; with a path, also written there (UTF-8)."""
        return write_text(json.dumps(self.to_dict(), ensure_ascii=False, allow_nan=False), path)

    def __str__(self) -> str:
        rows = [["", "difference", "allowed", "largest |value|", "at", ""]]
        for check in self.checks:
            numbers = (f"{number:.3g}" for number in (check.difference, check.bound, check.largest))
            rows.append([check.name, *numbers, check.where, "ok" if check.ok else "FAIL"])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        line = "  ".join(f"{{:{side}{width}}}" for side, width in zip("<>>><<", widths, strict=True))  # numbers right
        lines = [line.format(*row).rstrip() for row in rows]
        failed = [check.name for check in self.checks if not check.ok]
        verdict = f"{len(failed)} of {len(self.checks)} checks FAIL: {', '.join(failed)}" if failed else "all ok"
        return "\n".join([f"{self.model}: {self.reference}", *lines, verdict])


def verify(name: str = "nano") -> Report:
    """Compare a model with its reference values.

    Parameters
    ----------
    name : str
        "nano" compares every array of every layer with PyTorch's. "gpt2" compares logits, attention patterns,
        patching and attribution grids, and direct logit attribution with published values.

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
        next_token, lens = (read_json(DATA / f"gpt2_{s}.json") for s in ("transformer_explainer", "transformerlens"))
        return Report("gpt2", "published values of GPT-2 small", tuple(published_checks(model, next_token, lens)))
    raise NanopatchError(f"there are no reference values for {name!r}; there are some for nano and gpt2")


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
        yield max(checks, key=lambda check: check.difference / check.bound)


def float64_check(name: str, where: str, actual: Array, expected: Array) -> Check:
    largest = largest_value(expected)
    return Check(f"float64 {name}", largest_difference(actual, expected), where, largest, FLOAT64 * largest)


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


def differences(actual: Array, expected: Array) -> Array:
    """|actual - expected|, entry by entry: 0 where both are -inf (masked), infinite where one is -inf or NaN."""
    with np.errstate(invalid="ignore"):
        apart = np.where(actual == expected, 0, np.abs(actual - expected))
    return np.where(np.isnan(apart), np.inf, apart)


def largest_difference(actual: Any, expected: Any) -> float:
    """The largest |difference|; infinite where the shapes differ."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    return float(differences(actual, expected).max()) if actual.shape == expected.shape else math.inf


def largest_value(array: Array) -> float:
    """The largest |value| that is not masked."""
    return float(np.abs(array[np.isfinite(array)]).max())


# ---- against published values ---------------------------------------------------------------------


def published_checks(model: Model, next_token: dict[str, Any], lens: dict[str, Any]) -> Iterator[Check]:
    """Checks of GPT-2 small against the content of the two files of published values."""
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

    direct = direct_logit_attribution(model, run, answers)
    for name, values in direct.items():
        yield published_check(f"direct attribution, {name}", PUBLISHED_LOGITS, [("", values, published[f"dla_{name}"])])


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


def grid_check(prompts: str, patched: Sweep, *published: Any, how: str = "patched") -> Check:
    """Compare a normalised sweep with one or more published grids, whose rows are all axes but the last."""
    name = f"{patched.site} {how} by {' x '.join(patched.axes)}, {prompts}"
    grid, cells = patched.normalised, []
    for expected in map(np.array, published):
        if expected.shape != (math.prod(grid.shape[:-1]), grid.shape[-1]):
            return Check(name, math.inf, f"shape {grid.shape}", 1.0, PUBLISHED_LOGITS)
        for index, value in np.ndenumerate(expected.reshape(grid.shape)):
            pieces = ((axis, patched.pieces[axis][i]) for axis, i in zip(patched.axes, index, strict=True))
            where = ", ".join(f"{axis} {number}" for axis, (number,) in pieces)
            cells.append((where, grid[index], value))
    return published_check(name, PUBLISHED_LOGITS, cells)


def published_check(
    name: str, allowance: float, comparisons: Sequence[tuple[str, Any, Any]], decimals: int | None = None
) -> Check:
    """The worst of the comparisons (where, value, published value). decimals: of the published values, if rounded."""
    bound = allowance + (0.5 * 10.0**-decimals if decimals is not None else 0)
    difference, where = max(
        ((largest_difference(actual, expected), where) for where, actual, expected in comparisons),
        key=lambda comparison: comparison[0],
    )
    largest = max(float(np.abs(expected).max()) for _, _, expected in comparisons)
    return Check(name, difference, where, largest, bound)
