"""Path patching: along which path does the difference between two prompts travel?

Activation patching replaces what a component writes, for everybody who reads it. Path patching replaces it
for one reader only: from a *sender* to a *receiver*. (Goldowsky-Dill et al. 2023, arXiv 2304.05969; Wang et
al. 2022, arXiv 2211.00593, section 3.1 and appendix B.) It takes two runs:

1. Run the prompt patched into with the sender's output replaced by that of the other run, and what is in
   between held as stated. Keep what the receiver then reads; throw the rest away.
2. Run it again with only the receiver's reading replaced, everything else free, and measure.

Components meet in the residual stream, which is numbered here by half blocks: point 2 l is what enters
block l (its attention reads there), point 2 l + 1 is between attention and MLP, and point 2 n_layer is the
end. A receiver comes after a sender if it reads at, or after, the first point that the sender has written to.

    senders    embed     resid_pre of block 0     receivers  q 2.1, k 2.1, v 2.1  one of them, of a head
               head 2.1  z of layer 2, head 1                mlp 2     what the MLP of layer 2 reads
               attn 2    attn_out of layer 2                 resid 3   the residual stream entering block 3
               mlp 2     mlp_out of layer 2                            (resid n_layer: after the last block)
                                                             logits    what ln_f and the unembedding read
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from ..errors import NanopatchError
from ..model.layers import affine
from ..experiments.metrics import as_metrics, measure
from .sweep import (
    DIRECTIONS,
    equal_length_tokens,
    first_difference,
    measure_patches,
    of_prompts,
    progress,
    rounding,
    target_of,
    unpatched_logits,
)
from ..results.sweep import Panels, Sweep
from .stack import MEMORY, Edit

#: What is held at the values of the run patched into while the sender's change travels.
BETWEEN = {"frozen": {"z", "mlp_out"}, "free mlps": {"z"}, "free": set()}
FORMS = ("exact", "linear", "both")
#: Where senders write, and what receivers read: all that a path may change, or that is held.
PATH_SITES = ("resid_pre", "q", "k", "v", "z", "attn_out", "resid_mid", "mlp_pre", "mlp_out", "resid_post")


class Place(NamedTuple):
    """A sender or a receiver: the array it writes or reads, and the point of the residual stream it does so at."""

    site: str
    layer: int  # None for logits
    head: int  # None for all but z, q, k and v
    point: int


def senders_of(model):
    """Everything that can send, {name: Place}; point is the first at which the residual stream holds what it writes."""
    places = {"embed": Place("resid_pre", 0, None, 0)}
    for layer in range(model.n_layer):
        places |= {f"head {layer}.{head}": Place("z", layer, head, 2 * layer + 1) for head in range(model.n_head)}
        places[f"attn {layer}"] = Place("attn_out", layer, None, 2 * layer + 1)
        places[f"mlp {layer}"] = Place("mlp_out", layer, None, 2 * layer + 2)
    return places


def receivers_of(model):
    """Everything that can receive, {name: Place}; point is where it reads the residual stream."""
    places = {}
    for layer in range(model.n_layer):
        places[f"resid {layer}"] = Place("resid_pre", layer, None, 2 * layer)
        for site in "qkv":
            places |= {f"{site} {layer}.{head}": Place(site, layer, head, 2 * layer) for head in range(model.n_head)}
        places[f"mlp {layer}"] = Place("mlp_pre", layer, None, 2 * layer + 1)
    places[f"resid {model.n_layer}"] = Place("resid_post", model.n_layer - 1, None, 2 * model.n_layer)
    places["logits"] = Place("logits", None, None, 2 * model.n_layer)
    return places


def path_patch(
    model,
    experiment,
    senders,
    receivers,
    direction="denoise",
    metric="logit_diff",
    between="frozen",
    form="exact",
    *,
    memory=MEMORY,
):
    """Patch every path from one of `senders` to one of `receivers`, and measure: a `Sweep`, sender x receiver.

    senders, receivers: a name ("head 2.1", "logits"; see the module's table), the beginning of names, which
    means each of them ("head", "head 2", "q 3"), or a list of such. A list or tuple in the list is a group:
    its members are replaced together, and it is one row or column. (In a group, a residual stream or the logits
    overwrite what earlier members do.) All positions are patched. The prompts need one length. direction,
    metric, memory: as for `nanopatch.sweep`; lists of directions or metrics give `Panels`.

    between: what happens to everything else in step 1. "frozen": attention heads and MLPs keep the values
    of the run patched into, so only the direct path through the residual stream counts; "free mlps": heads
    keep theirs, MLPs are computed anew (Wang et al.); "free": nothing is held.
    form: "exact": the receiver's LayerNorm is computed anew from what step 1 gives; "linear": the change of
    the residual stream goes through that LayerNorm with the standard deviation of the run patched into, so
    that q, k, v, mlp_pre or logits change linearly (as in TransformerLens before 4.3). That is no derivative:
    a change along the stream itself would change the standard deviation too, however small it is.
    "both": `Panels` of "exact", "linear" and "linear minus exact".

    A receiver that does not come after its sender is NaN. Raises NanopatchError if none does, for unknown
    names or arguments, and for prompts that cannot be used.
    """
    if isinstance(direction, (list, tuple)):
        rest = dict(metric=metric, between=between, form=form, memory=memory)
        return Panels({d: path_patch(model, experiment, senders, receivers, d, **rest) for d in direction})
    choices = {"direction": (direction, DIRECTIONS), "between": (between, BETWEEN), "form": (form, FORMS)}
    for name, (value, known) in choices.items():
        if value not in list(known):
            raise NanopatchError(f"unknown {name} {value!r}: one of {', '.join(map(repr, known))}")
    rows = chosen(senders, senders_of(model), "sender")
    columns = chosen(receivers, receivers_of(model), "receiver")
    after = [[[place for place in places if comes_after(place, group)] for _, places in columns] for _, group in rows]
    if not any(places for row in after for places in row):
        later = [name for name, place in receivers_of(model).items() if comes_after(place, rows[0][1])]
        sender, receiver = "+".join(rows[0][0]), "+".join(columns[0][0])
        raise NanopatchError(f"{receiver} does not come after {sender}; after {sender} come {listing(later)}")
    metrics = as_metrics(metric)
    tokens = equal_length_tokens(model, experiment, "path patching")
    n_tokens = len(tokens.clean)

    runs = {name: model.run(getattr(tokens, name), sites=PATH_SITES) for name in ("clean", "corrupted")}
    into, origin = (runs[name] for name in DIRECTIONS[direction])
    logits = {name: unpatched_logits(model, run, metrics) for name, run in runs.items()}
    target = target_of(tokens, into.tokens, logits["clean"][-1])  # every run is measured as the one patched into
    baselines = {name: measure(metrics, logits[name], target) for name in runs}
    base_logits, baseline = (of[DIRECTIONS[direction][0]] for of in (logits, baselines))
    columns_of_prompts = tuple((position, position) for position in range(n_tokens))
    # Before the first difference both runs are the same.
    positions = list(range(first_difference(into.tokens, origin.tokens, columns_of_prompts), n_tokens))

    forms = ("exact", "linear") if form == "both" else (form,)
    values = {f: np.full((len(rows), len(columns), len(metrics)), np.nan) for f in forms}
    for i, (_, group) in enumerate(progress(rows, len(rows), "senders")):
        exact = replace_senders(model, into, origin, group, between)
        exact["logits", None] = model.unembed(exact["resid_post", model.n_layer - 1][-len(base_logits) :])
        for f in forms:
            readings = exact if f == "exact" else linear_readings(model, into, base_logits, exact)
            patches = edits_of_receivers(readings, after[i], positions)
            reached = [bool(places) for places in after[i]]
            values[f][i, reached] = baseline  # what a patch that can change nothing leaves
            edits = list(patches.values())
            for number, measured in measure_patches(model, into, base_logits, edits, metrics, target, memory):
                values[f][i, list(patches)[number]] = measured
            for j, places in enumerate(after[i]):
                if any(place.site == "logits" for place in places):  # nothing runs on from there
                    values[f][i, j] = measure(metrics, readings["logits", None], target)

    blank = any(not places for row in after for places in row)
    results = {}
    for n, m in enumerate(metrics):
        sweeps = {
            f: Sweep(
                grid=np.ascontiguousarray(values[f][..., n]),
                site=f"{f} path ({between} between)",
                axes=("sender", "receiver"),
                pieces={"sender": [names for names, _ in rows], "receiver": [names for names, _ in columns]},
                direction=direction,
                metric=m.name,
                **of_prompts(model, experiment, tokens, columns_of_prompts),
                baseline_clean=baselines["clean"][n],
                baseline_corrupted=baselines["corrupted"][n],
                rounding=rounding(model, *logits.values()),
                remarks=("Blank where the receiver does not come after its sender.",) if blank else (),
            )
            for f in forms
        }
        results[m.name] = difference_of_forms(sweeps) if form == "both" else sweeps[form]
    return Panels(results) if isinstance(metric, (list, tuple)) else results[metrics[0].name]


# ---- the two steps, and the linear form ----------------------------------------------------------


def replace_senders(model, into, origin, senders, between):
    """Step 1: the run patched into, with the senders' outputs those of the other: {(site, layer): array}.

    into, origin: records of `PATH_SITES`. senders: a list of `Place`. The arrays have the shapes of those
    in the records, and begin at the earliest sender's layer; what comes before is as in `into`.
    """
    first = min(sender.layer for sender in senders)
    readings = {}
    for site in model.steps_from(first, into.resid_pre[first], sites=PATH_SITES):
        if site.name in BETWEEN[between]:
            site.array = getattr(into, site.name)[site.layer]
        for sender in senders:
            if (site.name, site.layer) == (sender.site, sender.layer):
                heads = slice(None) if sender.head is None else np.s_[:, sender.head]
                site.array[heads] = getattr(origin, site.name)[site.layer][heads]
        readings[site.name, site.layer] = site.array
    return readings


def edits_of_receivers(readings, columns, positions):
    """Step 2: what to replace, {column: [Edit, ...]}. Columns without receivers, or with logits, need no second run."""
    return {
        column: [
            Edit(site, layer, readings[site, layer], positions, None if head is None else [head])
            for site, layer, head, _ in places
        ]
        for column, places in enumerate(columns)
        if places and all(place.site != "logits" for place in places)
    }


def linear_readings(model, into, base_logits, exact):
    """What receivers read of step 1 if their LayerNorms keep the standard deviations of the run patched into.

    exact: of `replace_senders`; the result is shaped alike. base_logits: logits of the run patched into,
    of all its tokens or of the last ones.
    """
    eps, last = model.config.layer_norm_epsilon, model.n_layer - 1
    linear = {}
    for layer in range(min(layer for _, layer in exact if layer is not None), model.n_layer):
        block = model.h[layer]
        linear["resid_pre", layer] = exact["resid_pre", layer]
        change = exact["resid_pre", layer] - into.resid_pre[layer]  # (n_tokens, d_model)
        normed = frozen_layer_norm(change, into.resid_pre[layer], block.ln_1.weight, eps)
        qkv = affine(normed, block.attn.c_attn.weight)  # (n_tokens, 3 d_model)
        for site, part in zip("qkv", np.split(qkv, 3, axis=-1), strict=True):
            base = getattr(into, site)[layer]  # (n_tokens, n_head, d_head)
            linear[site, layer] = base + part.reshape(base.shape)

        change = exact["resid_mid", layer] - into.resid_mid[layer]  # (n_tokens, d_model)
        normed = frozen_layer_norm(change, into.resid_mid[layer], block.ln_2.weight, eps)
        linear["mlp_pre", layer] = into.mlp_pre[layer] + affine(normed, block.mlp.c_fc.weight)  # (n_tokens, d_mlp)

    linear["resid_post", last] = exact["resid_post", last]
    rows = slice(-len(base_logits), None)
    change = exact["resid_post", last][rows] - into.resid_post[last][rows]  # (n_rows, d_model)
    normed = frozen_layer_norm(change, into.resid_post[last][rows], model.ln_f.weight, eps)
    linear["logits", None] = base_logits + affine(normed, model.lm_head.T)  # (n_rows, n_vocab)
    return linear


def frozen_layer_norm(change, resid, weight, eps):
    """The change of LayerNorm's output for a change of `resid`, its standard deviation held: (..., d_model)."""
    deviation = np.sqrt(resid.var(axis=-1, keepdims=True) + eps)
    return (change - change.mean(axis=-1, keepdims=True)) / deviation * weight


def difference_of_forms(sweeps):
    """`Panels` of both forms and a third Sweep, "linear minus exact": differences of the metric, its baselines' too."""
    exact, linear = sweeps["exact"], sweeps["linear"]
    grid = linear.grid - exact.grid
    i, j = np.unravel_index(np.argmax(np.nan_to_num(np.abs(grid))), grid.shape)
    where = f"{exact.labels('sender')[i]} to {exact.labels('receiver')[j]}"
    difference = dataclasses.replace(
        exact,
        grid=grid,
        site=exact.site.replace("exact", "linear minus exact"),
        baseline_clean=exact.baseline_clean - exact.baseline_into,
        baseline_corrupted=exact.baseline_corrupted - exact.baseline_into,
        remarks=(f"Largest difference: {grid[i, j]:.3g}, {where}. Baselines are differences too.", *exact.remarks),
    )
    return Panels({**sweeps, "linear minus exact": difference})


# ---- names ---------------------------------------------------------------------------------------


def chosen(asked, known, kind):
    """What was asked for, entry by entry: [([name, ...], [Place, ...])]. known: {name: Place}; kind: for the error."""
    entries = []
    for item in asked if isinstance(asked, (list, tuple)) else [asked]:
        if isinstance(item, (list, tuple)):
            entries.append((list(item), [known[name] for part in item for name in names(part, known, kind)]))
        else:
            entries += [([name], [known[name]]) for name in names(item, known, kind)]
    if not entries or not all(places for _, places in entries):
        raise NanopatchError(f"no {kind} was given; {kind}s are {listing(known)}")
    return entries


def names(asked, known, kind):
    """The known names that are, or begin with, what was asked: "q 3" is "q 3.0", "q 3.1", and so on."""
    found = [name for name in known if name == asked or name.startswith((f"{asked} ", f"{asked}."))]
    if not found:
        raise NanopatchError(f"unknown {kind} {asked!r}; {kind}s are {listing(known)}")
    return found


def listing(known):
    """Names as a short line of text: the first and the last of each sort."""
    sorts = {}
    for name in known:
        sorts.setdefault(name.split()[0], []).append(name)
    return ", ".join(some[0] if len(some) == 1 else f"{some[0]} to {some[-1]}" for some in sorts.values())


def comes_after(receiver, senders):
    """Whether the receiver reads where one of the senders, or a change of it, has arrived."""
    return receiver.point >= min(sender.point for sender in senders)
