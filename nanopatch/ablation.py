"""Corrupting without a second prompt: ablations, and noise on the embeddings.

An ablation replaces activations of a run by something that carries no information about the prompt: zero,
a mean over other prompts, or another prompt's own. It asks what is needed. Causal tracing (Meng et al.
2022, arXiv 2202.05262) corrupts the token embeddings with noise, and asks what is enough to restore
the run.
"""

import dataclasses
from numbers import Integral

import numpy as np

from .attribution import check_steps, estimate_all, needed_for_estimate, remarks
from .errors import NanopatchError
from .metrics import as_metrics, measure
from .patching import (
    axis_pieces,
    check_axes,
    edits_of,
    grid_of_pieces,
    measure_all,
    needed_sites,
    not_finite,
    of_prompts,
    rounding,
    target_of,
    unpatched_logits,
)
from .results import Panels, Sweep
from .sites import ATTENTION_SITES, record
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
    if isinstance(prompts, str) or prompts is not None and not len(prompts):
        raise NanopatchError(f"prompts={prompts!r:.60}: a list of prompts is expected, with at least one")
    if isinstance(site, (list, tuple)) or (by == "zero" and not per_position):
        what = "one site at a time" if by != "zero" or per_position else "no per_position=False: zero is zero anywhere"
        raise NanopatchError(f"ablate takes {what}")
    if (prompts is None) != (by == "zero"):
        raise NanopatchError(f'by="{by}" takes {"no prompts" if by == "zero" else "prompts to take activations from"}')
    if isinstance(neurons, int):
        raise NanopatchError("an ablation has no second run to rank neurons by: give a list of neurons")
    metrics = as_metrics(metric)
    experiment = dataclasses.replace(experiment, corrupted=experiment.clean)  # there is no corrupted prompt
    tokens = experiment.tokens(model)
    clean = model.run(tokens.clean, sites=needed(site, attribution_steps))
    sources = ablated(model, site, getattr(clean, site), by, prompts, per_position, experiment.prepend_bos)

    choices = dict(layers=layers, positions=positions, heads=heads, neurons=neurons, window=window)
    n_tokens = len(tokens.clean)
    pieces = axis_pieces(model, site, axes, n_tokens, choices)
    random = np.random.default_rng(seed)
    patches = [
        edits_of(site, sources[random.integers(len(sources))], range(n_tokens), piece)
        for piece in grid_of_pieces(pieces, axes)
    ]
    logits = unpatched_logits(model, clean, metrics)
    target = target_of(tokens, clean.tokens, logits[-1])
    baseline = measure(metrics, logits, target)
    values, unchanged = measured(model, clean, logits, patches, metrics, target, baseline, memory, attribution_steps)
    shape = tuple(len(pieces[axis]) for axis in axes)
    values = values.reshape(*shape, len(metrics))
    columns = [(position, position) for position in range(n_tokens)]
    how = {"zero": "zero", "mean": f"the mean over {len(prompts or ())} prompts", "resample": "another prompt's own"}[
        by
    ]
    sweeps = {
        m.name: Sweep(
            grid=np.ascontiguousarray(values[..., i]),
            unchanged=unchanged.reshape(shape),
            site=site,
            axes=axes,
            pieces={axis: pieces[axis] for axis in axes},
            direction=f"replaced by {how} (ablation)",
            metric=m.name,
            **of_prompts(model, experiment, tokens, columns),
            baseline_clean=baseline[i],
            baseline_corrupted=None,
            rounding=rounding(model, logits),
            remarks=(*estimated(metrics, attribution_steps), *not_finite(m.name, values[..., i], axes, pieces)),
        )
        for i, m in enumerate(metrics)
    }
    return Panels(sweeps) if isinstance(metric, (list, tuple)) else sweeps[metrics[0].name]


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
    experiment = dataclasses.replace(experiment, corrupted=experiment.clean)  # there is no corrupted prompt
    if not all(np.iterable(numbers) and all(isinstance(n, Integral) for n in numbers) for numbers in (seeds, noised)):
        raise NanopatchError(f"noised={noised!r} and seeds={seeds!r}: lists of whole numbers are expected")
    if not 0 < sigma < np.inf:
        raise NanopatchError(f"sigma={sigma}: a number above 0 is expected")
    seeds, noised = list(seeds), sorted(set(noised))
    metrics = as_metrics(metric)
    if len(metrics) != 1:
        raise NanopatchError("trace measures one metric at a time")
    if not seeds:
        raise NanopatchError("trace needs at least one seed")
    tokens = experiment.tokens(model)
    n_tokens = len(tokens.clean)
    if not noised or not 0 <= noised[0] <= noised[-1] < n_tokens:
        raise NanopatchError(f"noised={noised}: give positions of the clean prompt, 0 to {n_tokens - 1}")
    clean = model.run(tokens.clean, sites=needed_sites(site))
    logits = unpatched_logits(model, clean, metrics)
    target = target_of(tokens, clean.tokens, logits[-1])
    pieces = axis_pieces(
        model, site, axes, n_tokens, dict(window=window, layers=None, positions=None, heads=None, neurons=None)
    )
    rows = [position if position >= noised[0] else None for position in range(n_tokens)]
    own_rows = [position if position in noised else None for position in range(n_tokens)]
    patches = [edits_of(site, getattr(clean, site), rows, piece, own_rows) for piece in grid_of_pieces(pieces, axes)]

    total, corrupted = np.zeros(len(patches)), 0.0
    for seed in seeds:
        resid = clean.resid_pre[0].copy()
        noise = np.random.default_rng(seed).normal(0, sigma * float(model.wte.std()), (len(noised), model.d_model))
        resid[noised] += noise.astype(model.dtype)
        kept = needed(site, attribution_steps)
        run = record(model.steps_from(0, resid, sites=kept), sites=kept)
        noisy_logits = unpatched_logits(model, run, metrics)
        baseline = measure(metrics, noisy_logits, target)
        values, unchanged = measured(
            model, run, noisy_logits, patches, metrics, target, baseline, memory, attribution_steps
        )
        total, corrupted = total + values[:, 0], corrupted + baseline[0]

    shape = tuple(len(pieces[axis]) for axis in axes)
    return Sweep(
        grid=(total / len(seeds)).reshape(shape),
        unchanged=unchanged.reshape(shape),
        site=site,
        axes=axes,
        pieces={axis: pieces[axis] for axis in axes},
        direction="denoise",
        metric=metrics[0].name,
        **of_prompts(model, experiment, tokens, [(position, position) for position in range(n_tokens)]),
        baseline_clean=measure(metrics, logits, target)[0],
        baseline_corrupted=corrupted / len(seeds),
        rounding=rounding(model, logits),
        remarks=(
            *estimated(metrics, attribution_steps),
            f"Corrupted by Gaussian noise of {sigma:g} standard deviations on the embeddings of positions "
            f"{', '.join(map(str, noised))}, averaged over {len(seeds)} seeds.",
            "Noise takes a model to activations that no prompt gives it, and the picture depends on its size; another "
            "prompt is the safer corruption (Zhang & Nanda 2023, arXiv 2309.16042).",
        ),
    )


# ---- patches that are run, or estimated -------------------------------------------------------------


def needed(site, attribution_steps):
    """What the run patched into must record, to run patches of `site` or, given steps, to estimate them."""
    if attribution_steps is None:
        return needed_sites(site)
    check_steps(attribution_steps)
    return needed_for_estimate([site], attribution_steps)


def measured(model, base, base_logits, patches, metrics, target, baseline, memory, attribution_steps):
    """As `patching.measure_all`; given steps, as `attribution.estimate_all`."""
    if attribution_steps is None:
        return measure_all(model, base, base_logits, patches, metrics, target, baseline, memory)
    return estimate_all(model, base, patches, metrics, target, baseline, attribution_steps)


def estimated(metrics, attribution_steps):
    """What a result says of its having been estimated, if it was."""
    return () if attribution_steps is None else remarks(metrics, attribution_steps)
