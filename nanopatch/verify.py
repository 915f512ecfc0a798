"""Compare a model with reference values that were not made by this library.

For `nano`: every named array in every layer, against Hugging Face's GPT-2 in PyTorch; the values are in
`data/nano_reference.npz`, made and described by `scripts/make_reference.py`. For `gpt2`: what others
published for GPT-2 small, in `data/gpt2_transformer_explainer.json` and `data/gpt2_transformerlens.json`.

    n_layer, n_tokens, n_head, d_model, n_vocab  as in `nanopatch.model`
    batch    the eight indirect-object prompts
    n_many   the prompts that rounding errors are averaged over
"""

import json
import math
import zipfile
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from .errors import NanopatchError
from .experiments.experiment import Experiment
from .experiments.pairs import average, sweep_pairs
from .experiments.tasks import ioi8
from .gradients.attribution import attribute
from .model.checkpoint import load
from .model.sites import SITES
from .patching.sweep import sweep

DATA = Path(__file__).parent / "data"

#: Of the largest |value| of an array: how far float64 may be from PyTorch's float64. Both round at about
#: 1e-16; the rest allows for other processors and deeper models.
FLOAT64 = 1e-9
#: How many times PyTorch float32's own error float32 may be off.
FLOAT32 = 1.5
#: Added to half a unit of the last published decimal, because published values were computed in float32:
#: for logits, their differences, grids of patching and of attribution patching, and direct logit attribution; and
#: for attention.
PUBLISHED_LOGITS, PUBLISHED_PATTERNS = 1e-3, 1e-4

#: The published patching grids of the eight indirect-object prompts, which all denoise: what is patched
#: together in one cell, all positions where position is no axis. An axis more makes more rows in the file.
IOI8_GRIDS = {
    "resid_pre_layer_pos": ("resid_pre", ("layer", "position")),
    "attn_out_layer_pos": ("attn_out", ("layer", "position")),
    "mlp_out_layer_pos": ("mlp_out", ("layer", "position")),
    "head_z_allpos": ("z", ("layer", "head")),
    "head_v_allpos": ("v", ("layer", "head")),
    "head_pattern_allpos": ("pattern", ("layer", "head")),
    "head_q_allpos": ("q", ("layer", "head")),
    "head_k_allpos": ("k", ("layer", "head")),
    "head_z_by_pos_rows_layer_head": ("z", ("layer", "head", "position")),
}
#: Attribution patching of the same prompts, two keys with several grids each: the residual stream before and in the
#: middle of each block and at the end, a row each; and heads, in this order.
IOI8_STREAM = "attrib_resid_25rows_0pre_0mid_..._final_2023"
IOI8_HEADS = ("attrib_head_out_q_k_v_pattern", ("z", "q", "k", "v", "pattern"))


@dataclass(frozen=True)
class Check:
    """One comparison: the largest difference and where it is, the largest |value|, and how much is allowed (bound)."""

    name: str
    difference: float
    where: str
    largest: float
    bound: float

    @property
    def ok(self):
        return self.difference <= self.bound  # False for NaN too


@dataclass(frozen=True)
class Report:
    """The comparisons of one model with one reference; `print` shows them as a table."""

    model: str
    reference: str
    checks: tuple

    @property
    def ok(self):
        """Whether every check holds."""
        return all(check.ok for check in self.checks)

    def to_json(self):
        """Its content as a dict for `json.dumps`; a number that is not finite becomes None."""
        checks = [{**asdict(check), "ok": check.ok} for check in self.checks]
        for check in checks:
            check.update({key: None for key in ("difference", "largest") if not math.isfinite(check[key])})
        return {"model": self.model, "reference": self.reference, "ok": self.ok, "checks": checks}

    def __str__(self):
        rows = [("", "difference", "allowed", "largest |value|", "at", "")]
        for check in self.checks:
            numbers = (f"{number:.3g}" for number in (check.difference, check.bound, check.largest))
            rows.append((check.name, *numbers, check.where, "ok" if check.ok else "FAIL"))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = []
        for row in rows:
            cells = [text.ljust(width) for text, width in zip(row, widths, strict=True)]
            cells[1:4] = [text.rjust(width) for text, width in zip(row[1:4], widths[1:4], strict=True)]  # the numbers
            lines.append("  ".join(cells).rstrip())
        failed = [check.name for check in self.checks if not check.ok]
        verdict = f"{len(failed)} of {len(self.checks)} checks FAIL: {', '.join(failed)}" if failed else "all ok"
        return "\n".join([f"{self.model}: {self.reference}", *lines, verdict])


def verify(name="nano"):
    """Compare a model with its reference values: "nano" (PyTorch's) or "gpt2" (published ones). Returns a `Report`.

    Raises NanopatchError for any other name, where the model cannot be loaded, and where nano's reference
    values belong to another file than the model that is there.
    """
    if name == "nano":
        return verify_nano(DATA / "nano_reference.npz")
    if name == "gpt2":
        model = load("gpt2")
        next_token, lens = (
            json.loads((DATA / f"gpt2_{source}.json").read_text(encoding="utf-8"))
            for source in ("transformer_explainer", "transformerlens")
        )
        return Report("gpt2", "published values of GPT-2 small", tuple(published_checks(model, next_token, lens)))
    raise NanopatchError(f"there are no reference values for {name!r}; there are some for nano and gpt2")


def verify_nano(file):
    """The `Report` on nano, with the reference values in `file`."""
    header, arrays = read_reference(file)
    rounded, exact = load("nano", np.float32), load("nano", np.float64)
    if rounded.source.sha256 != header["sha256"]:
        raise NanopatchError(
            f"{file.name} has the values of another nano: it was made for SHA-256 {header['sha256'][:12]}..., and the "
            f"model here has {rounded.source.sha256[:12]}...; install nanopatch again, or, if you trained this nano, "
            "run: python scripts/make_reference.py nano"
        )
    checks = [*float64_checks(exact, header, arrays), *float32_checks(rounded, exact, header, arrays)]
    versions = header["versions"]
    return Report("nano", f"PyTorch {versions['torch']}, transformers {versions['transformers']}", tuple(checks))


# ---- against PyTorch, array by array --------------------------------------------------------------


def read_reference(file):
    """(header, {key: array}) of a file that `scripts/make_reference.py` wrote; it says what the keys are."""
    try:
        with open(file, "rb") as opened, np.load(opened) as stored:
            arrays = {key: stored[key] for key in stored.files}
        header = json.loads(str(arrays.pop("header")))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise NanopatchError(f"cannot read the reference values {file}: {error}; install nanopatch again") from None
    return header, arrays


def float64_checks(model, header, arrays):
    """A float64 model against PyTorch's float64: a `Check` for every name, that of the layer that is worst.

    A layer's difference counts relative to the largest |value| of its array.
    """
    found = {name: [] for name in SITES}
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


def float64_check(name, where, actual, expected):
    largest = largest_value(expected)
    return Check(f"float64 {name}", largest_difference(actual, expected), where, largest, FLOAT64 * largest)


def float32_checks(rounded, exact, header, arrays):
    """A float32 model's rounding errors against PyTorch float32's own, over many prompts: a `Check` for every name.

    The error of a name in a prompt is its largest difference from float64 anywhere; these are averaged over
    the prompts, on both sides, and the worst layer counts. The average, because the single worst prompt
    of many is the one that is worst conditioned, and there two equally good programs differ by half.
    What float64 is here has to agree with PyTorch's at the last position, which is the first check.
    """
    tokens, columns = arrays["many_tokens"], arrays["columns"]
    found = {name: [] for name in SITES}
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


def differences(actual, expected):
    """|actual - expected|, entry by entry: 0 where both are -inf (masked), infinite where one is, or is NaN."""
    with np.errstate(invalid="ignore"):
        apart = np.where(actual == expected, 0, np.abs(actual - expected))
    return np.where(np.isnan(apart), np.inf, apart)


def largest_difference(actual, expected):
    """The largest |difference|; infinite where the shapes differ."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    return float(differences(actual, expected).max()) if actual.shape == expected.shape else math.inf


def largest_value(array):
    """The largest |value| that is not masked."""
    return float(np.abs(array[np.isfinite(array)]).max())


# ---- against published values ---------------------------------------------------------------------


def published_checks(model, next_token, lens):
    """Checks of GPT-2 small against the content of the two files of published values."""
    yield from next_token_checks(model, next_token["prompts"])
    yield from ioi8_checks(model, lens["ioi8"])
    yield from main_demo_checks(model, lens["main_demo"])


def next_token_checks(model, entries):
    """The Transformer Explainer's prompts, no BOS: tokens, logits after the last token, every attention pattern."""
    tokens, top, every_100th, patterns = [], [], [], []
    for entry in entries:
        run = model.run(entry["prompt"], sites=("pattern", "logits"))
        logits, ids, values = run.logits[-1], *zip(*entry["top50"], strict=True)
        where = repr(entry["prompt"])
        tokens.append((where, run.tokens, entry["token_ids"]))
        # The tokens that were published with their logits, and the 50 highest logits here: also equal.
        top += [(where, logits[list(ids)], values), (where, np.sort(logits)[: -len(ids) - 1 : -1], values)]
        every_100th.append((where, logits[::100], entry["logits_every_100th"]))
        patterns.append((where, run.pattern, entry["pattern"]))
    yield published_check("token ids", 0, tokens)
    yield published_check("logits, the 50 highest", PUBLISHED_LOGITS, top)
    yield published_check("logits, every 100th", PUBLISHED_LOGITS, every_100th)
    yield published_check("patterns", PUBLISHED_PATTERNS, patterns, decimals=5)


def ioi8_checks(model, published):
    """The eight indirect-object prompts, BOS prepended; corrupted: each pair of neighbours swapped."""
    pairs = ioi8()
    run = model.run([pair.tokens(model).clean for pair in pairs])
    answers = np.array(published["answer_tokens"])  # (batch, 2)
    chosen = np.take_along_axis(run.logits[:, -1], answers, axis=-1)  # (batch, 2)
    by_prompt = zip(chosen[:, 0] - chosen[:, 1], published["per_prompt_logit_diff_3dp"], strict=True)
    by_prompt = [(f"prompt {i}", actual, expected) for i, (actual, expected) in enumerate(by_prompt)]
    yield published_check("logit differences, IOI", PUBLISHED_LOGITS, by_prompt, decimals=3)

    sweeps = {name: sweep_pairs(model, pairs, site, axes) for name, (site, axes) in IOI8_GRIDS.items()}
    yield baselines_check("their mean", sweeps["resid_pre_layer_pos"], published, decimals=4)
    for name, patched in sweeps.items():
        yield grid_check("IOI", patched, published[name])
    yield from attribution_checks(model, pairs, published)

    direct = direct_logit_attribution(model, run, answers)
    for name, values in direct.items():
        yield published_check(f"direct attribution, {name}", PUBLISHED_LOGITS, [("", values, published[f"dla_{name}"])])


def attribution_checks(model, pairs, published):
    """Attribution patching of the indirect-object pairs, clean into corrupted; of a head, the sum over its positions.

    Published is (clean - corrupted) * derivative, the derivative taken on the corrupted run, of the mean logit
    difference over the prompts, which is 0 in the corrupted runs and 1 in the clean ones: the mean of the
    pairs' estimates, normalised. TransformerLens' folded weights change none of these: they move arrays by constants,
    of which the difference of two runs is free, and a constant added to all values that a head reads
    adds nothing, because the differences of its pattern sum to 0 over the keys.
    """
    stream = np.array(published[IOI8_STREAM])  # (2 n_layer + 1, n_tokens)
    by_position = ("layer", "position")
    key, sites = IOI8_HEADS
    for site, axes, layers, *grids in [
        ("resid_pre", by_position, None, published["attrib_resid_pre"], stream[:-1:2]),
        ("resid_mid", by_position, None, stream[1::2]),
        ("resid_post", by_position, (model.n_layer - 1,), stream[-1:]),
        ("attn_out", by_position, None, published["attrib_attn_out"]),
        ("mlp_out", by_position, None, published["attrib_mlp_out"]),
        *((site, ("layer", "head"), None, grid) for site, grid in zip(sites, published[key], strict=True)),
    ]:
        estimated = average([attribute(model, pair, site, axes, layers=layers) for pair in pairs])
        yield grid_check("IOI", estimated, *grids, how="attributed")


def main_demo_checks(model, published):
    """One pair, BOS prepended: its logit differences and residual-stream patching."""
    pair = Experiment(published["clean"], published["corrupted"], *published["answer"], prepend_bos=True)
    patched = sweep(model, pair)
    yield baselines_check("logit differences, one pair", patched, published, decimals=3)
    yield grid_check("one pair", patched, published["resid_pre_layer_pos"])


def direct_logit_attribution(model, run, answers):
    """How much each part of the residual stream at the last position adds to the logit difference; mean over a batch.

    run: a whole record of a batch; answers: (batch, 2) token ids. ln_f is taken as linear, at the scale it
    has in the run: part c adds ((c - mean(c)) / sigma) . (gamma * (W_U[answer] - W_U[other])). Returns lists
    by name: `logit_lens_pre_mid`, the stream itself before and in the middle of each block and at the end;
    `layers_embed_pos_attn_mlp`, the parts it is a sum of; `heads`, (n_layer, n_head), each without its
    share of the values' bias, because TransformerLens counts that as the attention's bias.
    """
    final = run.resid_post[-1][:, -1]  # (batch, d_model)
    sigma = np.sqrt(final.var(axis=-1, keepdims=True) + model.config.layer_norm_epsilon)
    towards = model.ln_f.weight * (model.lm_head[answers[:, 0]] - model.lm_head[answers[:, 1]]) / sigma

    def read(part):  # (batch, d_model) or (d_model,) -> a number
        return float(((part - part.mean(axis=-1, keepdims=True)) * towards).sum(axis=-1).mean())

    lens, heads = [], []
    parts = [read(model.wte[run.tokens[:, -1]]), read(model.wpe[run.tokens.shape[1] - 1])]
    for layer, block in enumerate(model.h):
        lens += [read(run.resid_pre[layer][:, -1]), read(run.resid_mid[layer][:, -1])]
        parts += [read(run.attn_out[layer][:, -1]), read(run.mlp_out[layer][:, -1])]
        value_bias = block.attn.c_attn.bias[2 * model.d_model :].reshape(model.n_head, model.d_head)
        w_o = block.attn.c_proj.weight.reshape(model.n_head, model.d_head, model.d_model)
        z = run.z[layer][:, -1] - value_bias  # (batch, n_head, d_head)
        heads.append([read(z[:, head] @ w_o[head]) for head in range(model.n_head)])
    lens.append(read(final))
    return {"logit_lens_pre_mid": lens, "layers_embed_pos_attn_mlp": parts, "heads": heads}


def baselines_check(name, patched, published, decimals):
    """The logit differences of a sweep's two unpatched runs."""
    baselines = {"clean": patched.baseline_clean, "corrupted": patched.baseline_corrupted}
    pairs = [(which, value, published[f"{which}_{decimals}dp"]) for which, value in baselines.items()]
    return published_check(name, PUBLISHED_LOGITS, pairs, decimals)


def grid_check(prompts, patched, *published, how="patched"):
    """A sweep, normalised, against one or more published grids of it; all axes but the last make their rows."""
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


def published_check(name, allowance, comparisons, decimals=None):
    """The worst of some comparisons (where, value, published value), of values published to so many decimals."""
    bound = allowance + (0.5 * 10.0**-decimals if decimals is not None else 0)
    difference, where = max(
        ((largest_difference(actual, expected), where) for where, actual, expected in comparisons),
        key=lambda comparison: comparison[0],
    )
    largest = max(float(np.abs(expected).max()) for _, _, expected in comparisons)
    return Check(name, difference, where, largest, bound)
