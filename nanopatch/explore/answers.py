"""The questions of the page, answered by a model. Each function makes the reply to one view.

n_names  the arrays in `nanopatch.explore.pair.DRAWN`          n_layer, n_tokens, n_head  as in `nanopatch.model.gpt2`
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import NanopatchError
from ..experiments import tasks
from ..experiments.experiment import MICHELLE, NAMED, Experiment, answer_token, spaced_token
from ..experiments.metrics import METRICS
from ..experiments.patch import SITE_AXES
from ..lenses.attention import attention
from ..lenses.change import relative_change
from ..model.gpt2 import Model
from ..model.sites import ATTENTION_SITES, FINAL_SITES, HEAD_SITES, Run
from ..model.tokenizer import visible
from ..page.document import STATE
from ..page.pack import Question, Shown, half, key_of, pack, pooled
from ..results.edges import counts
from ..results.prediction import Prediction
from ..results.sweep import DIRECTIONS
from .code import by_hand
from .pair import DRAWN, Pair, What

#: One sentence on each array, with its shape in one run.
ARRAYS = {
    "resid_pre": (
        "(n_tokens, d_model)",
        "The residual stream as it enters the block: the sum of all that was written before.",
    ),
    "q": ("(n_tokens, n_head, d_head)", "Each head's queries: what a position looks for."),
    "k": ("(n_tokens, n_head, d_head)", "Each head's keys: what a position can be found by."),
    "v": ("(n_tokens, n_head, d_head)", "Each head's values: what is moved from a position that is attended to."),
    "scores": ("(n_head, n_query, n_key)", "Each query times each key, scaled; later positions are masked."),
    "pattern": (
        "(n_head, n_query, n_key)",
        "The softmax of the scores: what share of its look a position gives to each other.",
    ),
    "z": ("(n_tokens, n_head, d_head)", "What each head moved to a position: its values, weighted by its pattern."),
    "attn_out": ("(n_tokens, d_model)", "What the heads together add to the residual stream."),
    "resid_mid": ("(n_tokens, d_model)", "The residual stream after attention."),
    "mlp_pre": ("(n_tokens, d_mlp)", "The neurons of the MLP before the activation function."),
    "mlp_post": ("(n_tokens, d_mlp)", "The neurons after the activation function."),
    "mlp_out": ("(n_tokens, d_model)", "What the MLP adds to the residual stream."),
    "resid_post": ("(n_tokens, d_model)", "The residual stream as it leaves the block."),
    "ln_final": ("(n_tokens, d_model)", "The residual stream after the last block and the last LayerNorm."),
    "logits": ("(n_tokens, n_vocab)", "A number for each token of the vocabulary; their softmax is the prediction."),
}
#: At most so many columns of an array are drawn: each is then the largest of a few neighbours.
MOST_COLUMNS = 128
#: At most so many cells in a grid that a menu offers.
MOST_CELLS = 4096
#: The tasks that the live page draws pairs from.
TASKS: dict[str, Callable[..., list[Experiment]]] = {
    "indirect_object": tasks.indirect_object,
    "capitals": tasks.capitals,
    "greater_than": tasks.greater_than,
    "induction": tasks.induction,
}
#: How many different experiments are kept.
MOST_PAIRS = 2


class Answers:
    """Answers the page's questions about one model. It keeps the runs of the last experiments."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self._pairs: dict[str, Pair] = {}

    def start(self, form: str, experiment: Experiment, menu: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """What the page knows before it asks. form: "live" or "file". menu: what can be chosen; all by default."""
        model = self.model
        sizes = ("n_layer", "n_head", "d_model", "d_head", "d_mlp", "n_ctx", "n_vocab", "reads_text")
        menu = menu or self.menu()
        site = menu["sites"][0]
        return {
            "form": form,
            "model": {
                "name": model.source.name if model.source else "unnamed",
                "repr": repr(model),
                **{name: getattr(model, name) for name in sizes},
            },
            "experiment": experiment.to_dict(),
            "sites": {name: {"axes": list(axes), "default": list(axes[:2])} for name, axes in SITE_AXES.items()},
            "arrays": {name: {"shape": shape, "what": what} for name, (shape, what) in ARRAYS.items()},
            "metrics": list(METRICS),
            "directions": {name: list(runs) for name, runs in DIRECTIONS.items()},
            "named": {name: named.to_dict() for name, named in NAMED.items()} if model.reads_text else {},
            "tasks": [name for name in TASKS if name == "induction" or model.reads_text],
            "menu": menu,
            "views": ["prompts", "grid", "patch", "attention", "lens", "direct", "steps", "circuit"],
            "runs": ["clean", "corrupted", "patched"],
            "state": {
                **STATE,
                **{"site": site, "axes": menu["axes"][site][0]},
                **{"direction": menu["directions"][0], "metric": menu["metrics"][0]},
                **{"view": "attention", "n": min(menu["counts"], key=lambda n: abs(n - 40))},
            },
        }

    def menu(self) -> dict[str, Any]:
        """Everything that can be chosen in the live page."""
        model = self.model
        sizes = {"layer": model.n_layer, "head": model.n_head, "neuron": model.d_mlp}
        axes = {}
        for site, known in SITE_AXES.items():
            grids = [known[:2], *itertools.combinations(known, 2), *itertools.combinations(known, 3)]
            axes[site] = [
                list(grid)
                for grid in dict.fromkeys(grids)
                if np.prod([sizes.get(axis, min(model.n_ctx, 64)) for axis in grid]) <= MOST_CELLS or grid == known[:2]
            ]
        return {
            "sites": list(SITE_AXES),
            "axes": axes,
            "directions": list(DIRECTIONS),
            "metrics": list(METRICS),
            "windows": list(range(1, model.n_layer + 1)),
            "counts": counts(n_edges(model)),
        }

    def pair(self, experiment: Experiment | Mapping[str, Any]) -> Pair:
        """The runs of an experiment, made now or before."""
        asked = experiment if isinstance(experiment, Experiment) else Experiment(**experiment)
        name = key_of(asked.to_dict())
        found = self._pairs.pop(name, None) or Pair(self.model, asked)
        self._pairs[name] = found  # the last one used is the last one here
        for old in list(self._pairs)[:-MOST_PAIRS]:
            del self._pairs[old]
        return found

    def reply(self, experiment: Experiment | Mapping[str, Any], question: Question) -> bytes:
        """The packed reply to a question about an experiment. A mistake in either is a reply that says so."""
        key = key_of(question)
        try:
            view = check_question(question)
            if view == "task":
                return pack(key, drawn(self.model, question["task"], question["seed"]))
            values, arrays = VIEWS[view](self.pair(experiment), question)
            return pack(key, values, arrays)
        except NanopatchError as error:
            return pack(key, {"error": str(error)})


# ---- questions ------------------------------------------------------------------------------------

#: The fields of a question about each view, besides "view".
FIELDS = {
    "prompts": (),
    "sweep": ("site", "axes", "window", "direction", "metric"),
    "patch": What._fields,
    "attention": ("run",),
    "head": ("run", "layer", "head"),
    "lens": ("run",),
    "direct": ("run",),
    "arrays": ("run", "layer"),
    "circuit": ("metric", "n"),
    "task": ("task", "seed"),
}
NUMBERS = ("window", "cell", "layer", "head", "n", "seed")


def check_question(question: Question) -> str:
    """The view that a question is about. NanopatchError if it is none, or has other fields than such a question has."""
    view, run = question.get("view"), question.get("run")
    if not isinstance(view, str) or view not in FIELDS:
        raise NanopatchError(f"view={view!r:.40}: one of {', '.join(FIELDS)} is expected")
    wanted = {"view", *FIELDS[view], *(What._fields if run == "patched" else ())}
    if {*question} != wanted:
        raise NanopatchError(f"a question about {view} has the fields {', '.join(sorted(wanted))}")
    for name, value in question.items():
        if name in NUMBERS:
            right = type(value) is int and value >= 0
        elif name == "axes":
            right = type(value) is list and all(type(axis) is str for axis in value)
        else:
            right = type(value) is str
        if not right:
            raise NanopatchError(f"{name}={value!r:.40} in a question about {view}: another kind of value is expected")
    if "run" in FIELDS[view] and run not in ("clean", "corrupted", "patched"):
        raise NanopatchError(f"run={run!r:.40}: clean, corrupted or patched is expected")
    return view


def what_of(question: Question) -> What:
    """What is patched, as a question says it."""
    site, axes, window, direction, cell = (question[name] for name in What._fields)
    return What(site, tuple(axes), window, direction, cell)


def which_of(question: Question) -> What | str:
    """The run that a question is about."""
    return what_of(question) if question["run"] == "patched" else str(question["run"])


def known_metric(question: Question) -> str:
    """The metric that a question names."""
    if question["metric"] not in METRICS:
        raise NanopatchError(f"unknown metric {question['metric']!r:.40}; known are {', '.join(METRICS)}")
    return str(question["metric"])


# ---- views ----------------------------------------------------------------------------------------


def prompts(pair: Pair, question: Question) -> Shown:
    """The tokens of both prompts, and what both runs predict; or the first mistake, with the changes that mend it."""
    model, experiment = pair.model, pair.experiment
    values: dict[str, Any] = {}
    try:
        for name in ("clean", "corrupted"):
            try:
                ids = experiment.tokenize(model, getattr(experiment, name))
            except NanopatchError as error:
                raise NanopatchError(f"{name} prompt: {error}") from None
            values[name] = {"tokens": model.token_strings(ids), "ids": ids.tolist()}
        tokens = experiment.tokens(model)
        values["columns"] = [list(pair_) for pair_ in experiment.columns(model)]
        prediction = pair.runs().prediction
    except NanopatchError as error:
        return Shown({**values, "error": str(error), "mends": mends(model, experiment)}, {})
    values["answers"] = rated(pair, ("clean", "corrupted"), ("clean", "corrupted"))
    values["top"] = {name: pair.top(name) for name in ("clean", "corrupted")}
    values["notes"] = prediction.notes(model.source.name if model.source else "the model")
    values["mends"] = mends(model, experiment, prediction)
    answers = [token is not None for token in (tokens.answer, tokens.wrong_answer)]
    values["metrics"] = [
        name
        for name, metric in METRICS.items()
        if not metric.reads_answers or all(answers if metric.needs == "answers" else answers[:1])
    ]
    return Shown(values, {})


def mends(model: Model, experiment: Experiment, prediction: Prediction | None = None) -> list[dict[str, Any]]:
    """What would mend an experiment: a label, and the fields to change."""
    found = []
    for name in ("answer", "wrong_answer"):
        text = getattr(experiment, name)
        if not isinstance(text, str) or text == "" or spaced_token(model, text) is None:
            continue
        if not _is_one(model, text) or (name == "answer" and prediction and prediction.spaced_rank is not None):
            found.append({"label": f"write {f' {text}'!r}, with its leading space", "change": {name: f" {text}"}})
    if experiment.align is None:
        try:
            lengths = {len(experiment.tokenize(model, prompt)) for prompt in (experiment.clean, experiment.corrupted)}
        except NanopatchError:
            lengths = set()
        if len(lengths) > 1:
            found.append({"label": "align the prompts by their tokens", "change": {"align": "diff"}})
    if experiment.answer is not None and experiment.answer == experiment.wrong_answer:
        found.append({"label": "leave out the wrong answer", "change": {"wrong_answer": None}})
    return found


def _is_one(model: Model, answer: str) -> bool:
    try:
        answer_token(model, answer)
    except NanopatchError:
        return False
    return True


def grid(pair: Pair, question: Question) -> Shown:
    """A sweep."""
    return pair.sweep(what_of({**question, "cell": 0}), known_metric(question)).reply()


def patch(pair: Pair, question: Question) -> Shown:
    """One cell: what the patched run predicts, the patch in Python, and how far it spreads."""
    model, what = pair.model, what_of(question)
    case, edits = pair.cells(what)[0], pair.edits(what)
    base_name = DIRECTIONS[what.direction][0]
    base, run = pair.run(base_name), pair.run(what)
    values = {
        "label": label(pair, what),
        "top": {"before": pair.top(base_name), "after": pair.top(what)},
        "answers": rated(pair, ("before", "after"), (base_name, what)),
        "code": by_hand(model, case, what.patch, what.cell),
        "edits": [
            {
                "site": edit.site,
                "layer": edit.layer,
                **{name: _listed(getattr(edit, name)) for name in ("positions", "within", "keys")},
            }
            for edit in edits
        ],
        "tokens": texts_of(base),
        "names": list(DRAWN),
    }
    change = np.array([relative_change(base, run, name) for name in DRAWN])  # (n_names, n_layer, n_tokens)
    final = np.array([relative_change(base, run, name) for name in FINAL_SITES])  # (2, n_tokens)
    final[1, :-1] = 0  # only the last token's logits are known
    return Shown(values, {"change": half(change), "change_final": half(final)})


def label(pair: Pair, what: What) -> str:
    """What is patched in a cell, in one line."""
    case, cells = pair.cells(what)
    shape = [len(cells.pieces[axis]) for axis in what.axes]
    tokens = texts_of(case.base)
    parts = []
    for axis, i in zip(what.axes, np.unravel_index(what.cell, shape), strict=True):
        items = cells.pieces[axis][int(i)]
        text = "+".join(map(str, items))
        if axis == "position":
            text = "+".join(_column(pair, item) for item in items)
        elif axis in ("query", "key"):
            text = "+".join(f"{item} {visible(tokens[item])}" for item in items)
        parts.append(f"{axis} {text}")
    base, donor = DIRECTIONS[what.direction]
    return f"{what.site}, {', '.join(parts)}: {donor} patched into {base}"


def _column(pair: Pair, column: int) -> str:
    """A position of the aligned prompts with its tokens, as the heatmap's columns show them."""
    runs = pair.runs()
    texts = []
    for position, ids in zip(runs.columns[column], runs.tokens[:2], strict=True):
        texts.append("–" if position is None else visible(pair.model.token_strings(int(ids[position]))[0]))
    return f"{column} {texts[0] if texts[0] == texts[1] else ' / '.join(texts)}"


def attended(pair: Pair, question: Question) -> Shown:
    """Where every head looks."""
    return attention(pair.model, pair.run(which_of(question))).reply()


def head(pair: Pair, question: Question) -> Shown:
    """Where one head looks, in full."""
    result = attention(pair.model, pair.run(which_of(question)), question["layer"], question["head"])
    return Shown({"tokens": list(result.tokens)}, {"values": half(result.values[0])})


def lens(pair: Pair, question: Question) -> Shown:
    """What every layer would predict."""
    return pair.lenses([which_of(question)])[0].reply()


def direct(pair: Pair, question: Question) -> Shown:
    """Which part wrote the answer."""
    return pair.direct(which_of(question)).reply()


def arrays(pair: Pair, question: Question) -> Shown:
    """The arrays of one layer, small enough to be drawn; after the last layer, what ln_f makes."""
    model, run, layer = pair.model, pair.run(which_of(question)), question["layer"]
    if layer > model.n_layer:
        raise NanopatchError(f"layer {layer}: this model has the layers 0 to {model.n_layer - 1}, then ln_final")
    drawn_arrays, shapes, neighbours = {}, {}, {}
    for name in ("ln_final",) if layer == model.n_layer else DRAWN:
        array = np.asarray(run[name] if name in FINAL_SITES else run[name][layer])
        shapes[name] = list(array.shape)
        most = MOST_COLUMNS // model.n_head if name in HEAD_SITES else MOST_COLUMNS
        small, n = pooled(array, max(1, most)) if name not in ATTENTION_SITES else (array, 1)
        drawn_arrays[name], neighbours[name] = half(small), n
    values = {
        "tokens": texts_of(run),
        "shapes": shapes,
        "pooled": neighbours,
    }
    return Shown(values, drawn_arrays)


def wired(pair: Pair, question: Question) -> Shown:
    """The circuit of the best edges, and how much of the model's difference it carries."""
    metric = known_metric(question)
    scores = pair.scores(metric)
    n = min(question["n"], len(scores.edges))
    return scores.reply(n, pair.faithfulness(metric, n))


VIEWS = {
    "prompts": prompts,
    "sweep": grid,
    "patch": patch,
    "attention": attended,
    "head": head,
    "lens": lens,
    "direct": direct,
    "arrays": arrays,
    "circuit": wired,
}


# ---- what views share -----------------------------------------------------------------------------


def rated(pair: Pair, names: Sequence[str], which: Sequence[What | str]) -> list[dict[str, Any]]:
    """How runs rate the experiment's answers, the runs under `names`."""
    tokens, rows = pair.runs().tokens, []
    for role, token in (("answer", tokens.answer), ("wrong answer", tokens.wrong_answer)):
        if token is not None:
            text = pair.model.token_strings(token)[0]
            of_runs = {name: pair.rating(run, token) for name, run in zip(names, which, strict=True)}
            rows.append({"role": role, "text": text, "id": token, **of_runs})
    return rows


def texts_of(run: Run) -> list[str]:
    """The texts of a run's tokens."""
    assert run.model is not None and run.tokens is not None
    return run.model.token_strings(run.tokens)


def _listed(items: Sequence[int] | None) -> list[int] | None:
    return None if items is None else list(map(int, items))


def drawn(model: Model, task: str, seed: int) -> dict[str, Any]:
    """A pair of a task."""
    if task not in TASKS:
        raise NanopatchError(f"task={task!r:.40}: one of {', '.join(TASKS)} is expected")
    if task != "induction":
        return {"experiment": TASKS[task](1, seed=seed)[0].to_dict()}
    length = max(2, min(8, model.n_ctx // 2, model.n_vocab - 1))
    few = model.n_vocab < 10000  # the default vocabulary is GPT-2's
    vocabulary = range(model.n_vocab) if few else range(1000, 10000)
    return {"experiment": tasks.induction(1, length, vocabulary, seed=seed)[0].to_dict()}


def first_experiment(model: Model) -> Experiment:
    """What the page shows before anything is asked: the report's experiment, or one that this model can read."""
    try:
        MICHELLE.columns(model)
        return MICHELLE
    except NanopatchError:
        return Experiment(**drawn(model, "induction", 0)["experiment"])


def n_edges(model: Model) -> int:
    """How many edges `edge_attribution` scores: one from each sender to each later input of a block, or to logits."""
    before = [1 + layer * (model.n_head + 1) for layer in range(model.n_layer + 1)]  # senders before each block
    return sum(3 * model.n_head * n + n + model.n_head for n in before[:-1]) + before[-1]
