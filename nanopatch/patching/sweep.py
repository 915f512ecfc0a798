"""Activation patching: which activation carries the difference between two prompts?

A patch copies some activations of one run into another run, and the metric says how far the prediction
moved. Denoising copies clean into corrupted: what is enough to bring the answer back. Noising copies
corrupted into clean: what is needed to keep it. (Zhang & Nanda 2023, arXiv 2309.16042; Heimersheim &
Nanda 2024, arXiv 2404.15255.)

The grid is what one gets by running the model once per patch, in a loop over `model.steps` with an
assignment in it; `nanopatch.stack` computes the same for less.
"""

import itertools
import numbers
from typing import NamedTuple

import numpy as np

from ..experiments.align import align as align_tokens
from ..model.checkpoint import Source
from ..errors import NanopatchError
from ..experiments.experiment import ExperimentTokens
from ..experiments.metrics import Target, as_metrics, measure
from ..results.sweep import Panels, Sweep
from ..model.sites import ATTENTION_SITES
from .stack import BASE_SITES, MEMORY, Edit, patched_resids

#: The run that is patched into, and the run that is patched from.
DIRECTIONS = {"denoise": ("corrupted", "clean"), "noise": ("clean", "corrupted")}

#: Along which axes a site can be patched piece by piece; the first two are what `axes=None` means.
SITE_AXES = {
    **dict.fromkeys(("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"), ("layer", "position")),
    **dict.fromkeys(("q_input", "k_input", "v_input", "mlp_in"), ("layer", "position")),
    **dict.fromkeys(("mlp_pre", "mlp_post"), ("layer", "position", "neuron")),
    **dict.fromkeys(("z", "q", "k", "v"), ("layer", "head", "position")),
    **dict.fromkeys(ATTENTION_SITES, ("layer", "head", "destination", "source")),
}

#: Sites that in block 0 depend on their own token and position alone.
BEFORE_ATTENTION = ("resid_pre", "q_input", "k_input", "v_input", "q", "k", "v")

#: The argument of `sweep` that says which entries of an axis are wanted.
CHOICES = {"layer": "layers", "position": "positions", "destination": "positions", "head": "heads", "neuron": "neurons"}


def sweep(
    model,
    experiment,
    site="resid_pre",
    axes=None,
    direction="denoise",
    metric="logit_diff",
    align=None,
    *,
    layers=None,
    positions=None,
    heads=None,
    neurons=None,
    window=1,
    memory=MEMORY,
):
    """Patch `site` piece by piece, one patched run for each piece, and measure every run: a `Sweep`.

    model: from `nanopatch.load`. experiment: an `Experiment`. site: the named array to patch. axes: what
    makes the grid, of the site's own axes (`SITE_AXES`): "layer" for all; "destination" and "source" for
    scores and pattern, "position" for the others; "head" for z, q, k, v, scores and pattern; "neuron" for
    mlp_pre and mlp_post; what is not named is patched all at once; the first two by default. direction:
    "denoise" (clean into corrupted) or "noise" (corrupted into clean). metric: a name
    (`nanopatch.metrics.METRICS`) or a function of the logits (n_tokens, n_vocab). align: None for prompts of
    one length, "diff" where lengths differ (see `nanopatch.align`). memory: bytes to compute in, besides the
    model; with less, it takes longer.

    layers, positions, heads: which of them, all by default: a list whose entries are numbers, or lists
    of numbers to be patched together (positions count columns of the aligned prompts; for scores and pattern
    they are destinations). neurons: the same; or a number n, for the n neurons whose activations differ most
    between the runs, as (layer, neuron) pairs. heads and neurons may be (layer, head) pairs, where "layer"
    is no axis. window: how many neighbouring entries of the axis "layer" are patched together, or
    {axis: how many}; entry i is the middle of its window (of an even one, the entry before the middle),
    and windows are cut off at both ends.

    Several sites, directions or metrics, as lists, give `Panels`: a dict of sweeps by name that draws
    them side by side. Several metrics are measured on the same runs.
    Raises NanopatchError for anything unknown, and for prompts or answers that cannot be used.
    """
    choices = dict(layers=layers, positions=positions, heads=heads, neurons=neurons, window=window, memory=memory)
    check_lists(site, direction)
    if isinstance(site, (list, tuple)):
        return Panels({s: sweep(model, experiment, s, axes, direction, metric, align, **choices) for s in site})
    if isinstance(direction, (list, tuple)):
        return Panels({d: sweep(model, experiment, site, axes, d, metric, align, **choices) for d in direction})
    into = DIRECTIONS[direction][0]
    kept = {name: needed_sites(site) if name == into else {site, "resid_post"} for name in ("clean", "corrupted")}
    plan = make_plan(model, experiment, site, axes, direction, metric, align, choices, kept)
    return as_result(model, experiment, plan, metric, *measure_plan(model, plan, memory))


# ---- from the arguments to a list of patches, and from their values to a result ----------------------


class Plan(NamedTuple):
    """What is to be patched, and what is known before the first patch. Dicts are by "clean" and "corrupted"."""

    site: str
    axes: tuple
    direction: str
    metrics: list
    into: str  # which run is patched into
    tokens: ExperimentTokens
    columns: list  # (position in clean, position in corrupted) pairs
    partners: list  # (position in the run patched into, position in the other) pairs
    runs: dict  # recorded runs
    pieces: dict  # {axis: [[number, ...], ...]}
    patches: list  # for each cell of the grid, a list of `Edit`
    logits: dict  # of the unpatched runs
    target: Target
    baselines: dict  # [value of each metric]


def make_plan(model, experiment, site, axes, direction, metric, align, choices, sites, runs=None):
    """Check the arguments of a sweep, run both prompts, and list the patches: a `Plan`.

    sites: {"clean": what that run records, "corrupted": ...}; runs: both, if they have been run already.
    """
    axes = check_axes(site, axes)
    metrics = as_metrics(metric)
    tokens = experiment.tokens(model)
    columns = align_tokens(tokens.clean, tokens.corrupted, align, show=model.token_strings)
    check_positions(site, columns)
    runs = runs or run_both(model, tokens, sites)
    into, origin = DIRECTIONS[direction]
    partners = [pair[::-1] if direction == "denoise" else pair for pair in columns]
    source = transplant(getattr(runs[into], site), getattr(runs[origin], site), partners, site)
    rows, own_rows = differing_rows(runs[into].tokens, runs[origin].tokens, partners)
    if isinstance(choices["neurons"], numbers.Integral) and "neuron" in SITE_AXES[site]:
        choices = choices | {"neurons": most_different(getattr(runs[into], site), source, choices["neurons"])}
    pieces = axis_pieces(model, site, axes, len(columns), choices)
    # Of the unpatched runs too, no more logits are computed than some metric needs.
    answers_only = all(m.needs == "answers" for m in metrics)
    if answers_only:
        answers = [tokens.answer, tokens.wrong_answer]
        logits = {name: model.unembed(run.resid_post[-1][-1:], answers) for name, run in runs.items()}
    else:
        logits = {name: unpatched_logits(model, run, metrics) for name, run in runs.items()}
    # Every run is measured as the run patched into is: a metric that looks at the prompt looks at its tokens.
    target = target_of(tokens, runs[into].tokens, None if answers_only else logits["clean"][-1])
    if any(m.needs == "all" for m in metrics) and len(tokens.clean) != len(tokens.corrupted):
        raise NanopatchError(
            "a metric of all positions needs prompts of one length: these have "
            f"{len(tokens.clean)} and {len(tokens.corrupted)} tokens"
        )
    return Plan(
        site=site,
        axes=axes,
        direction=direction,
        metrics=metrics,
        into=into,
        tokens=tokens,
        columns=columns,
        partners=partners,
        runs=runs,
        pieces=pieces,
        patches=[edits_of(site, source, rows, piece, own_rows) for piece in grid_of_pieces(pieces, axes)],
        logits=logits,
        target=target,
        baselines={name: measure(metrics, logits[name], target, answers_only) for name in runs},
    )


def run_both(model, tokens, sites):
    """The unpatched runs, {"clean": `Run`, "corrupted": `Run`}. sites: of `make_plan`.

    Short prompts of one length run as a batch, which reads the weights once; long ones one after the other, so that
    no more is kept of each than `sites` says.
    """
    if len(tokens.clean) != len(tokens.corrupted) or len(tokens.clean) > 32:
        return {name: model.run(getattr(tokens, name), sites=sites[name]) for name in ("clean", "corrupted")}
    batch = model.run(np.stack([tokens.clean, tokens.corrupted]), sites={*sites["clean"], *sites["corrupted"]})
    return {"clean": batch.of_batch(0), "corrupted": batch.of_batch(1)}


def as_result(model, experiment, plan, metric, values, unchanged, steps=None, remarks=()):
    """The `Sweep` of the values of all patches, (n_patches, n_metrics); `Panels` where `metric` lists several."""
    remarks = (*remarks, *chosen_besides(model, plan))
    axes, pieces = plan.axes, plan.pieces
    shape = tuple(len(pieces[axis]) for axis in axes)
    values = values.reshape(*shape, len(plan.metrics))
    strange = [not_finite(m.name, values[..., i], axes, pieces) for i, m in enumerate(plan.metrics)]
    if "position" in axes:  # blank where nothing of a piece has a partner
        blank = [all(None in plan.partners[column] for column in piece) for piece in pieces["position"]]
        np.moveaxis(values, axes.index("position"), 0)[blank] = np.nan
    sweeps = {
        m.name: Sweep(
            grid=np.ascontiguousarray(values[..., i]),
            unchanged=unchanged.reshape(shape),
            site=plan.site,
            axes=axes,
            pieces={axis: pieces[axis] for axis in axes},
            direction=plan.direction,
            metric=m.name,
            **of_prompts(model, experiment, plan.tokens, plan.columns),
            baseline_clean=plan.baselines["clean"][i],
            baseline_corrupted=plan.baselines["corrupted"][i],
            rounding=rounding(model, *plan.logits.values()),
            remarks=(*remarks, *strange[i]),
            steps=steps,
        )
        for i, m in enumerate(plan.metrics)
    }
    return Panels(sweeps) if isinstance(metric, (list, tuple)) else sweeps[plan.metrics[0].name]


def chosen_besides(model, plan):
    """A remark, in a tuple, on what was chosen of axes that make no grid; () if all of them was patched."""
    n_columns = len(plan.columns)
    sizes = dict(layer=model.n_layer, head=model.n_head, neuron=model.d_mlp, position=n_columns, destination=n_columns)
    some = []
    for axis in sizes.keys() & plan.pieces.keys() - set(plan.axes):
        numbers = sum(plan.pieces[axis], [])
        if set(numbers) != set(range(sizes[axis])):
            names = [".".join(map(str, i)) if isinstance(i, tuple) else str(i) for i in numbers]
            some.append(f"{axis} {'+'.join(names)}")
    return (f"Of the axes that make no grid, only {', '.join(sorted(some))} was patched.",) if some else ()


# ---- what is copied ------------------------------------------------------------------------------


def transplant(into, origin, partners, site):
    """What a patch copies, shaped as `into`: at each position that has a partner, what `origin` holds there.

    into, origin: one site's arrays of both runs, layer axis first. partners: (position into, position
    from), either of them None.
    """
    if site in ATTENTION_SITES or all(i == j for i, j in partners):
        return origin
    source = into.copy()
    for into_position, origin_position in partners:
        if into_position is not None and origin_position is not None:
            source[:, into_position] = origin[:, origin_position]
    return source


def first_difference(into_tokens, origin_tokens, partners):
    """The first position whose activations may differ from its partner's: another token, or another position."""
    for column, (i, j) in enumerate(partners):
        if i != j or into_tokens[i] != origin_tokens[j]:
            return sum(into_position is not None for into_position, _ in partners[:column])
    return len(into_tokens)


def differing_rows(into_tokens, origin_tokens, partners):
    """The position patched into at each column, or None where both runs hold the same: (anywhere, before attention).

    Attention looks backwards only, so before the first difference nothing differs. And before the attention of
    block 0 a position knows of its own token alone, so there nothing differs but where that does.
    """
    first = first_difference(into_tokens, origin_tokens, partners)
    rows = [i if None not in (i, j) and i >= first else None for i, j in partners]
    own_rows = [
        i if i is not None and (i != j or into_tokens[i] != origin_tokens[j]) else None
        for i, (_, j) in zip(rows, partners, strict=True)
    ]
    return rows, own_rows


def most_different(into, source, n):
    """The n (layer, neuron) pairs that differ most at any position. into, source: (n_layer, n_tokens, d_mlp)."""
    if not 1 <= n <= into.shape[0] * into.shape[2]:
        raise NanopatchError(f"neurons={n}: from 1 to {into.shape[0] * into.shape[2]} can be chosen")
    difference = np.abs(source - into).max(axis=1)  # (n_layer, d_mlp)
    best = np.argsort(-difference, axis=None, kind="stable")[:n]
    return [tuple(map(int, np.unravel_index(i, difference.shape))) for i in best]


# ---- the pieces that make the grid ---------------------------------------------------------------


def check_axes(site, axes):
    """The axes of a sweep over `site` as a tuple of names; NanopatchError if it has no such axes."""
    if not isinstance(site, str) or site not in SITE_AXES:
        raise NanopatchError(f"cannot patch {site!r}; sites are {', '.join(SITE_AXES)}")
    known = SITE_AXES[site]
    axes = known[:2] if axes is None else (axes,) if isinstance(axes, str) else tuple(axes)
    if not axes or len(set(axes)) < len(axes) or not set(axes) <= set(known):
        asked = ", ".join(map(repr, axes)) or "none"
        raise NanopatchError(f"{site} has the axes {', '.join(known)}, each at most once; not {asked}")
    return axes


def check_direction(direction):
    """NanopatchError unless it is the name of one direction."""
    if not isinstance(direction, str) or direction not in DIRECTIONS:
        raise NanopatchError(f'unknown direction {direction!r}: "denoise" (clean into corrupted) or "noise"')


def check_positions(site, columns):
    """NanopatchError for scores and pattern where a position of one prompt is another position of the other."""
    if site in ATTENTION_SITES and any(i != j for i, j in columns):
        raise NanopatchError(f"{site} of prompts whose tokens are shifted has no common positions: patch z instead")


def equal_length_tokens(model, experiment, what):
    """The experiment's tokens; NanopatchError unless both prompts have as many."""
    tokens = experiment.tokens(model)
    n_clean, n_corrupted = len(tokens.clean), len(tokens.corrupted)
    if n_clean != n_corrupted:
        raise NanopatchError(f"{what} needs prompts of one length; these have {n_clean} and {n_corrupted} tokens")
    return tokens


def check_lists(site, direction):
    """NanopatchError unless each is a name, or a list of names, at least one and each once, and directions exist."""
    for argument in (site, direction):
        names = argument if isinstance(argument, (list, tuple)) else [argument]
        if not names or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
            raise NanopatchError(f"a site or direction is a name, or a list of names, each once; not {argument!r:.60}")
    for name in names:  # of the directions
        check_direction(name)


def axis_pieces(model, site, axes, n_columns, choices):
    """{axis: [[number, ...], ...]} for each axis of the site: what is patched together at each entry of the axis.

    axes: those that make the grid; choices: the arguments `layers`, `positions`, `heads`, `neurons` and
    `window` of `sweep`. Heads or neurons that make no axis and among which none are chosen are left out: all of
    them, then. Raises NanopatchError for what does not exist, or would have no effect.
    """
    known = SITE_AXES[site]
    sizes = dict(layer=model.n_layer, head=model.n_head, neuron=model.d_mlp)
    sizes |= dict.fromkeys(("position", "destination", "source"), n_columns)
    pieces = {axis: [[number] for number in range(sizes[axis])] for axis in known}
    for axis, choice in CHOICES.items():
        if axis in known and choices[choice] is not None:
            pieces[axis] = [_piece(item, axis, choice, sizes) for item in _items(choices[choice], choice)]
        elif choices[choice] is not None and not any(CHOICES.get(other) == choice for other in known):
            raise NanopatchError(f"{site} has no {choice} to choose among; its axes are {', '.join(known)}")
    for axis in {"head", "neuron"} & set(known):
        pairs = any(isinstance(number, tuple) for piece in pieces[axis] for number in piece)
        if pairs and ("layer" in axes or choices["layers"] is not None):
            raise NanopatchError(f"(layer, {axis}) pairs name their layers: give neither the axis layer nor layers=")

    window = choices["window"]
    window = window if isinstance(window, dict) else {"layer": window} if window != 1 else {}
    for axis, width in window.items():
        if axis not in axes:
            raise NanopatchError(
                f"window names {axis!r}, which is no axis of this grid; its axes are {', '.join(axes)}"
            )
        n_entries = len(pieces[axis])
        if not isinstance(width, numbers.Integral) or not 1 <= width <= n_entries:
            raise NanopatchError(f"window of {width!r} {axis}s: from 1 to {n_entries} stand side by side here")
        before = (width - 1) // 2  # entry i is the middle one; of an even number, the one before the middle
        pieces[axis] = [sum(pieces[axis][max(0, i - before) : i - before + width], []) for i in range(n_entries)]
    whole = [axis for axis in ("head", "neuron") if axis not in axes and choices[CHOICES[axis]] is None]
    return {axis: items for axis, items in pieces.items() if axis not in whole}


def _items(chosen, choice):
    """The entries of a choice, as a list with at least one."""
    if isinstance(chosen, (str, dict, numbers.Number)) or not np.iterable(chosen) or not len(list(chosen)):
        raise NanopatchError(f"{choice}={chosen!r}: a list is expected, such as [0, 2] or, patched together, [[0, 2]]")
    return list(chosen)


def _piece(item, axis, choice, sizes):
    """One entry of an axis as a list of int, or of (layer, head) or (layer, neuron) pairs of int."""
    items = [item] if isinstance(item, (numbers.Integral, tuple)) else _items(item, choice)
    for i in items:
        pair = isinstance(i, tuple) and axis in ("head", "neuron")
        if not all(isinstance(n, numbers.Integral) for n in (i if pair else [i])) or (pair and len(i) != 2):
            raise NanopatchError(
                f"{choice} are whole numbers, or for heads and neurons (layer, number) pairs; not {i!r}"
            )
        layer, number = i if pair else (0, i)
        if not 0 <= number < sizes[axis] or not 0 <= layer < sizes["layer"]:
            layers = f" of the layers 0 to {sizes['layer'] - 1}" if pair else ""
            raise NanopatchError(f"{axis} {i} does not exist: there are 0 to {sizes[axis] - 1}{layers}")
    return [tuple(map(int, i)) if isinstance(i, tuple) else int(i) for i in items]


def grid_of_pieces(pieces, axes):
    """Each cell's pieces, {axis: [number, ...]}, in the order of the grid; axes that make no grid are taken whole."""
    whole = {axis: sum(items, []) for axis, items in pieces.items()}
    for items in itertools.product(*(pieces[axis] for axis in axes)):
        yield whole | dict(zip(axes, items, strict=True))


def edits_of(site, source, rows, piece, own_rows=None):
    """One cell's patch, a list of `Edit`. source: what is copied, (n_layer, ...); rows: each column's position.

    own_rows: the same before the attention of block 0, where that is fewer (see `differing_rows`).
    """
    columns = piece["destination" if site in ATTENTION_SITES else "position"]
    parts = piece.get("head", piece.get("neuron"))  # heads or neurons; None for all, or where the site has neither
    keys = sorted(set(piece["source"])) if site in ATTENTION_SITES else None
    edits = []
    for layer in dict.fromkeys(piece["layer"]):
        rows_here = own_rows if own_rows and layer == 0 and site in BEFORE_ATTENTION else rows
        positions = sorted({rows_here[column] for column in columns} - {None})
        here = None
        if parts is not None:
            everywhere = {part for part in parts if not isinstance(part, tuple)}
            here = sorted(everywhere | {part[1] for part in parts if isinstance(part, tuple) and part[0] == layer})
        if here != []:
            edits.append(Edit(site, layer, source[layer], positions, here, keys))
    return edits


# ---- running and measuring -----------------------------------------------------------------------


def of_prompts(model, experiment, tokens, columns):
    """What a `Sweep` holds of its model and prompts. columns: (position in clean, position in corrupted) pairs."""
    return dict(
        experiment=experiment,
        columns=tuple(columns),
        clean_tokens=tuple(model.token_strings(tokens.clean)),
        corrupted_tokens=tuple(model.token_strings(tokens.corrupted)),
        source=model.source or Source("unnamed"),
    )


def needed_sites(site):
    """The sites that a record must hold to be patched into, or from, at `site`."""
    return {site, "resid_post", *BASE_SITES}


def unpatched_logits(model, run, metrics):
    """Logits of a recorded run: of its last token, (1, n_vocab), or of all where a metric needs them."""
    resid = run.resid_post[-1]
    return model.unembed(resid if any(m.needs == "all" for m in metrics) else resid[-1:])


def target_of(tokens, running, clean_logits):
    """The `Target` of a run on the tokens `running`."""
    return Target(tokens.answer, tokens.wrong_answer, running, clean_logits)


def rounding(model, *logits):
    """How far apart metrics of such logits may be by rounding alone: baselines closer than this are equal."""
    return float(np.finfo(model.dtype).eps * 100 * max(np.abs(array[-1]).max() for array in logits))


def measure_plan(model, plan, memory=MEMORY):
    """Run and measure every patch of a plan: (n_patches, n_metrics), and which can change nothing, (n_patches,).

    What can change nothing is not run: it leaves the metrics of the run patched into.
    """
    base, base_logits, baseline = (of[plan.into] for of in (plan.runs, plan.logits, plan.baselines))
    values, unchanged = np.tile(baseline, (len(plan.patches), 1)), np.ones(len(plan.patches), bool)
    steps = measure_patches(model, base, base_logits, plan.patches, plan.metrics, plan.target, memory)
    for number, measured in steps:
        values[number], unchanged[number] = measured, False
    return values, unchanged


def measure_patches(model, base, base_logits, patches, metrics, target, memory=MEMORY):
    """Run every patch and measure it: yields (number of the patch, [value of each metric]).

    base: the run patched into, a record of `stack.BASE_SITES`; base_logits: its logits, (n_tokens, n_vocab), or
    (1, n_vocab) of the last token where no metric needs more. patches: lists of `stack.Edit`. Only the
    logits that some metric needs are computed: all, those of the last token, or two of those.
    """
    needs = {metric.needs for metric in metrics}
    tokens = [target.answer, target.wrong_answer] if needs == {"answers"} else None
    last_only = "all" not in needs
    runs = patched_resids(model, base, patches, last_only=last_only, memory=memory)
    runs = progress(runs, len(patches), "patches")
    while some := list(itertools.islice(runs, 64 if last_only else 1)):  # the vocabulary is read once for all of them
        numbers, starts, resids = zip(*some, strict=True)
        logits = model.unembed(np.concatenate(resids), tokens)
        if last_only:
            for number, row in zip(numbers, logits, strict=True):
                yield number, measure(metrics, row[None], target, answers_only=tokens is not None)
        else:  # before `start` nothing has changed
            yield numbers[0], measure(metrics, np.concatenate([base_logits[: starts[0]], logits]), target)


def not_finite(name, values, axes, pieces):
    """A remark, in a tuple, on the patches after which a metric gave no finite number; () if it always did."""
    places = np.argwhere(~np.isfinite(values))
    if not len(places):
        return ()
    where = ", ".join(f"{axis} {'+'.join(map(str, pieces[axis][i]))}" for axis, i in zip(axes, places[0], strict=True))
    return (f"{name} is no finite number after {len(places)} of the patches, the first at {where}.",)


def progress(iterable, total, unit):
    """A progress bar on stderr, only on a terminal and only for what takes over a second."""
    from tqdm import tqdm

    return iter(tqdm(iterable, total=total, unit=f" {unit}", disable=None, delay=1, leave=False))
