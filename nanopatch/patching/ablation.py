"""Corrupting without a second prompt: ablations, and noise on the embeddings.

An ablation replaces activations of a run by something that carries no information about the prompt: zero,
a mean over other prompts, or another prompt's own. It asks what is needed. Causal tracing (Meng et al.
2022, arXiv 2202.05262) corrupts the token embeddings with noise, and asks what is enough to restore
the run.
"""

import dataclasses
from numbers import Integral

import numpy as np

from ..gradients.attribution import check_steps, estimate_plan, needed_for_estimate, remarks
from ..errors import NanopatchError
from ..model.generation import random_generator
from ..experiments.metrics import as_metrics, measure
from .sweep import (
    Plan,
    as_result,
    axis_pieces,
    check_axes,
    edits_of,
    grid_of_pieces,
    measure_plan,
    needed_sites,
    target_of,
    unpatched_logits,
)
from ..model.sites import ATTENTION_SITES, record
from .stack import MEMORY

ABLATIONS = ("zero", "mean", "resample")


def ablate(
    model,
    experiment,
    site="attn_out",
    axes=None,
    by="zero",
    metric="logit_diff",
    *,
    prompts=None,
    per_position=True,
    seed=0,
    layers=None,
    positions=None,
    heads=None,
    neurons=None,
    window=1,
    memory=MEMORY,
    attribution_steps=None,
):
    """Ablate `site` piece by piece in the clean run, and measure every run: a `Sweep` of relative changes.

    by: "zero"; "mean", the mean over `prompts` (at each position, or with per_position=False over positions
    too); or "resample", for each piece the activations of one of `prompts`, drawn by `seed`. prompts: a
    list of prompts, text or ids; they must have the clean prompt's number of tokens where positions
    matter. attribution_steps: None runs every ablation; a number estimates it, as `nanopatch.attribute` with so
    many `steps` does (badly where the whole residual stream goes to zero: LayerNorm sees its direction alone, so
    nearly all of the change comes in the last step). The other arguments are those of `nanopatch.sweep`; of the
    experiment only the clean prompt and the answers are used.
    Raises NanopatchError as `sweep` does, and for prompts that are missing, not wanted, or of other lengths.
    """
    axes = check_axes(site, axes)
    if by not in ABLATIONS:
        raise NanopatchError(f"unknown ablation {by!r}: one of {', '.join(ABLATIONS)}")
    if prompts is not None:
        given, prompts = prompts, [] if isinstance(prompts, str) or not np.iterable(prompts) else list(prompts)
        if not prompts:
            raise NanopatchError(f"prompts={given!r:.60}: a list of prompts is expected, with at least one")
    if by == "zero" and not per_position:
        raise NanopatchError("ablate takes no per_position=False: zero is zero anywhere")
    if (prompts is None) != (by == "zero"):
        raise NanopatchError(f'by="{by}" takes {"no prompts" if by == "zero" else "prompts to take activations from"}')
    if isinstance(neurons, Integral):
        raise NanopatchError("an ablation has no second run to rank neurons by: give a list of neurons")
    random = random_generator(seed)
    experiment = dataclasses.replace(experiment, corrupted=experiment.clean)  # there is no corrupted prompt
    how = dict(zero="zero", mean=f"the mean over {len(prompts or ())} prompts", resample="another prompt's own")[by]
    choices = dict(layers=layers, positions=positions, heads=heads, neurons=neurons, window=window)
    direction = f"replaced by {how} (ablation)"
    plan = plan_of_clean(model, experiment, site, axes, direction, metric, choices, needed(site, attribution_steps))
    plan.baselines["corrupted"] = [None] * len(plan.metrics)
    clean = getattr(plan.runs["clean"], site)
    sources = ablated(model, site, clean, by, prompts, per_position, experiment.prepend_bos)
    rows = range(len(plan.tokens.clean))
    for piece in grid_of_pieces(plan.pieces, axes):
        plan.patches.append(edits_of(site, sources[random.integers(len(sources))], rows, piece))
    values, unchanged = measured(model, plan, memory, attribution_steps)
    notes = remarks(plan, attribution_steps)
    return as_result(model, experiment, plan, metric, values, unchanged, attribution_steps, notes)


def plan_of_clean(model, experiment, site, axes, direction, metric, choices, sites):
    """The `Plan` of an experiment whose clean prompt is its only one, still without patches. sites: what it records."""
    metrics, tokens = as_metrics(metric), experiment.tokens(model)
    clean = model.run(tokens.clean, sites=sites)
    logits = unpatched_logits(model, clean, metrics)
    target = target_of(tokens, clean.tokens, logits[-1])
    columns = [(position, position) for position in range(len(tokens.clean))]
    return Plan(
        site=site,
        axes=axes,
        direction=direction,
        metrics=metrics,
        into="clean",
        tokens=tokens,
        columns=columns,
        partners=columns,
        runs={"clean": clean},
        pieces=axis_pieces(model, site, axes, len(columns), choices),
        patches=[],
        logits={"clean": logits},
        target=target,
        baselines={"clean": measure(metrics, logits, target)},
    )


def ablated(model, site, clean, by, prompts, per_position, prepend_bos):
    """What an ablation may put in place of `clean`, one site's array (n_layer, ...): a list of arrays like it."""
    if by == "zero":
        return [np.where(np.isneginf(clean), clean, np.zeros_like(clean))]  # what is masked in scores stays masked
    runs = [getattr(model.run(prompt, prepend_bos=prepend_bos, sites=site), site) for prompt in prompts]
    if by == "mean" and not per_position:
        if site in ATTENTION_SITES:
            raise NanopatchError(f"{site} has no mean over positions: use per_position=True")
        mean = np.mean([run.mean(axis=1) for run in runs], axis=0, dtype=np.float64)  # (n_layer, ...) without positions
        return [np.broadcast_to(mean[:, None], clean.shape).astype(model.dtype)]
    for number, run in enumerate(runs):
        if run.shape != clean.shape:
            n_tokens, wanted = (array.shape[3 if site in ATTENTION_SITES else 1] for array in (run, clean))
            hint = ", or per_position=False" if by == "mean" else ""
            raise NanopatchError(
                f"prompt {number} has {n_tokens} tokens, the clean prompt {wanted}: use prompts of its length{hint}"
            )
    return runs if by == "resample" else [np.mean(runs, axis=0, dtype=np.float64).astype(model.dtype)]


def trace(
    model,
    experiment,
    noised,
    site="resid_pre",
    axes=None,
    metric="probability",
    *,
    sigma=3.0,
    seeds=range(10),
    window=1,
    memory=MEMORY,
    attribution_steps=None,
):
    """Causal tracing: noise on token embeddings, `site` restored piece by piece, averaged over seeds: a `Sweep`.

    noised: the positions whose embeddings get noise. sigma: its standard deviation, in standard
    deviations of the entries of wte. seeds: one noise each. attribution_steps: as for `ablate`. The other
    arguments are those of `nanopatch.sweep`; of the experiment only the clean prompt and the answers are used.
    Meng et al. 2022, arXiv 2202.05262; the result says what later work warns about.
    """
    axes = check_axes(site, axes)
    if not all(np.iterable(numbers) and all(isinstance(n, Integral) for n in numbers) for numbers in (seeds, noised)):
        raise NanopatchError(f"noised={noised!r} and seeds={seeds!r}: lists of whole numbers are expected")
    if not 0 < sigma < np.inf:
        raise NanopatchError(f"sigma={sigma}: a number above 0 is expected")
    randoms, noised = [random_generator(seed) for seed in seeds], sorted(set(noised))
    kept = needed(site, attribution_steps)
    if not randoms:
        raise NanopatchError("trace needs at least one seed")
    experiment = dataclasses.replace(experiment, corrupted=experiment.clean)  # there is no corrupted prompt
    choices = dict(window=window, layers=None, positions=None, heads=None, neurons=None)
    plan = plan_of_clean(model, experiment, site, axes, "denoise", metric, choices, needed_sites(site))
    plan = plan._replace(into="corrupted")
    clean, n_tokens = plan.runs["clean"], len(plan.tokens.clean)
    if not noised or not 0 <= noised[0] <= noised[-1] < n_tokens:
        raise NanopatchError(f"noised={noised}: give positions of the clean prompt, 0 to {n_tokens - 1}")
    rows = [position if position >= noised[0] else None for position in range(n_tokens)]
    own_rows = [position if position in noised else None for position in range(n_tokens)]
    for piece in grid_of_pieces(plan.pieces, axes):
        plan.patches.append(edits_of(site, getattr(clean, site), rows, piece, own_rows))
    total, corrupted = 0, 0
    for random in randoms:
        resid = clean.resid_pre[0].copy()
        noise = random.normal(0, sigma * float(model.wte.std()), (len(noised), model.d_model))
        resid[noised] += noise.astype(model.dtype)
        run = record(model.steps_from(0, resid, sites=kept), sites=kept)
        logits = unpatched_logits(model, run, plan.metrics)
        baseline = measure(plan.metrics, logits, plan.target)
        noisy = dict(runs={"corrupted": run}, logits={"corrupted": logits}, baselines={"corrupted": baseline})
        values, unchanged = measured(model, plan._replace(**noisy), memory, attribution_steps)
        total, corrupted = total + values, corrupted + np.array(baseline)

    plan.baselines["corrupted"] = (corrupted / len(randoms)).tolist()
    notes = (
        *remarks(plan, attribution_steps),
        f"Corrupted by Gaussian noise of {sigma:g} standard deviations on the embeddings of positions "
        f"{', '.join(map(str, noised))}, averaged over {len(randoms)} seeds.",
        "Noise takes a model to activations that no prompt gives it, and the picture depends on its size; another "
        "prompt is the safer corruption (Zhang & Nanda 2023, arXiv 2309.16042).",
    )
    return as_result(model, experiment, plan, metric, total / len(randoms), unchanged, attribution_steps, notes)


# ---- patches that are run, or estimated -------------------------------------------------------------


def needed(site, attribution_steps):
    """What the run patched into must record, to run patches of `site` or, given steps, to estimate them."""
    if attribution_steps is None:
        return needed_sites(site)
    check_steps(attribution_steps)
    return needed_for_estimate([site], attribution_steps)


def measured(model, plan, memory, attribution_steps):
    """The values of a plan's patches: run, or given steps estimated."""
    if attribution_steps is None:
        return measure_plan(model, plan, memory)
    return estimate_plan(model, plan, attribution_steps)
