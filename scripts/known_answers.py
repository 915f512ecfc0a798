"""Every method of finding edges against models whose edges are known: `python scripts/known_answers.py`, some seconds.

    python scripts/known_answers.py --csv areas.csv --plot roc.png

The models are written by hand and by a compiler (nanopatch/lessons/programs.py and compiler.py), so the edges through
which the answer goes are known. A method ranks all edges of a model by the size of what it says of each. The area under
its ROC curve is the chance that a true edge ranks above another one, ties counting one half: 1 is a perfect ranking, .5
a blind one.

Where a method fails, the reason can be seen at a breakpoint. In the AND gate the neuron is off in the corrupted run
("00"), below the bend of its ReLU, so the derivative there is 0, and so are all scores of `direction="denoise"` before
it. One edge alone that carries the clean run leaves it off, too: both bits are needed. In the clean run ("11") the
neuron is on, and `direction="noise"` sees all edges. In the OR gate it is the other way round: in the clean run either
bit is enough, so no single edge is needed, and pruning (ACDC) takes one of the two paths away and keeps the other. On
the line between the two runs the neurons bend at 3/4 (AND) and 1/4 (OR) of the way. Two steps of integrated gradients
lie just there, and see no slope; of five, one does.
"""

import argparse
import csv
import sys
from functools import partial

import numpy as np

import nanopatch
from nanopatch.lessons.compiler import PROGRAMS
from nanopatch.lessons.programs import and_gate, or_gate, share_of_x

MODELS = [*(make() for make in (and_gate, or_gate, share_of_x)), *(make() for make in PROGRAMS)]
#: Of ACDC: an edge ranks by the largest of these thresholds that keeps it, in units of the logit difference.
THRESHOLDS = [1e-4, 1e-3, 1e-2, 1e-1, 1]


def scored(model, pair, **how):
    return nanopatch.edge_attribution(model, pair, **how).scores


def exact(model, pair, direction):
    """The effect of each edge alone: `path_patch(..., between="frozen")` of all of them."""
    scores = nanopatch.edge_attribution(model, pair, direction=direction)
    return as_table(scores, nanopatch.verify_edges(model, pair, scores, len(scores.edges)).edges)


def pruned(model, pair):
    """ACDC: the largest threshold at which an edge is kept."""
    scores = nanopatch.edge_attribution(model, pair, direction="noise")
    found = np.zeros_like(scores.scores)
    for threshold in THRESHOLDS:
        edges = nanopatch.acdc(model, pair, threshold, metric="logit_diff")
        found[np.nan_to_num(as_table(scores, edges)) != 0] = threshold
    return found + scores.scores * 0


def with_drops(model, pair):
    """GradDrop; a model of one layer has no other to drop."""
    if model.n_layer < 2:
        return None
    return scored(model, pair, direction="noise", grad_drop=True)


def random(model, pair):
    return nanopatch.edge_attribution(model, pair, direction="noise").shuffled(0).scores


def as_table(scores, edges):
    """The scores of edges, shaped as `scores.scores`; 0 for other edges, NaN where there is none."""
    table = scores.scores * 0
    for sender, receiver, score in edges:
        table[scores.senders.index(sender), scores.receivers.index(receiver)] = score
    return table


METHODS = {
    "EAP, on the corrupted run": partial(scored, direction="denoise"),
    "EAP, on the clean run": partial(scored, direction="noise"),
    "EAP-IG, 2 steps": partial(scored, steps=2),
    "EAP-IG, 5 steps": partial(scored, steps=5),
    "EAP with QK fix, clean run": partial(scored, direction="noise", qk_fix=True),
    "EAP with GradDrop, clean run": with_drops,
    "one edge alone, into the corrupted run": partial(exact, direction="denoise"),
    "one edge alone, into the clean run": partial(exact, direction="noise"),
    "ACDC": pruned,
    "random": random,
}


def area(sizes, true):
    """The area under the ROC curve of a ranking by size. sizes: (n_edges,). true: (n_edges,), bool."""
    sizes = np.where(sizes > 1e-6 * max(sizes.max(), 1e-300), sizes, 0)  # rounding ranks nothing
    above = (sizes[true][:, None] > sizes[~true]).mean()
    equal = (sizes[true][:, None] == sizes[~true]).mean()
    return above + equal / 2


def roc(sizes, true):
    """The curve: (share of other edges, share of true edges) above each size."""
    sizes = np.where(sizes > 1e-6 * max(sizes.max(), 1e-300), sizes, 0)
    cuts = [np.inf, *sorted(set(sizes.tolist()), reverse=True)]
    return [[(sizes[which] >= cut).mean() for cut in cuts] for which in (~true, true)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--csv", metavar="FILE", help="also write the areas there")
    parser.add_argument("--plot", metavar="FILE", help="also draw the ROC curves there")
    options = parser.parse_args()
    areas, curves = {}, {}
    names = [model.source.name for model, *_ in MODELS]
    for program, (model, pair, edges) in zip(names, MODELS, strict=True):
        graph = nanopatch.edge_attribution(model, pair, direction="noise")
        there = np.isfinite(graph.scores)
        true = np.array([[(str(s), str(r)) in edges for r in graph.receivers] for s in graph.senders])[there]
        for method, rank in METHODS.items():
            found = rank(model, pair)
            if found is None:
                areas[method, program] = np.nan
                continue
            sizes = np.abs(found)[there]
            areas[method, program], curves[method, program] = area(sizes, true), roc(sizes, true)
    rows = [[method, *(areas[method, program] for program in names)] for method in METHODS]
    print(f"{'area under the ROC curve':40}" + "".join(f"{program:>15}" for program in [*names, "mean"]))
    for method, *values in rows:
        print(f"{method:40}" + "".join(f"{value:15.3f}" for value in [*values, np.nanmean(values)]))
    if options.csv:
        with open(options.csv, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([["method", *names], *rows])
    if options.plot:
        draw(curves, names, options.plot)
    return 0


def draw(curves, names, path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 5), layout="constrained")
    axes = figure.subplots(2, 5, sharey=True, sharex=True)
    for ax, program in zip(axes.flat, names, strict=True):
        for number, method in enumerate(METHODS):
            others, true = curves.get((method, program), ([], []))  # empty: it stands in the legend alone
            ax.plot(others, true, linewidth=3 - 0.2 * number, alpha=0.8, label=method)
        ax.set_title(program, fontsize=10)
    figure.supxlabel("share of other edges", fontsize=9)
    figure.supylabel("share of true edges", fontsize=9)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    sys.exit(main())
