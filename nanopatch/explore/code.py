"""A cell of a grid as Python that a reader can run: the patch by hand."""

from __future__ import annotations

from typing import Any

from ..experiments.patch import Item, Patch, cells
from ..model.gpt2 import Model
from ..model.sites import ATTENTION_SITES
from ..patching.case import Case
from ..results.sweep import DIRECTIONS


def by_hand(model: Model, case: Case, patch: Patch, cell: int) -> str:
    """A whole program that makes the patch of one cell in a loop over `model.steps`, and prints what comes out."""
    experiment, tokens = case.runs.experiment, case.runs.tokens
    base, donor = DIRECTIONS[case.direction]
    pieces = patch.pieces(model, len(case.partners))
    piece = list(cells(pieces, tuple(patch.axes or ())))[cell]
    layers = list(dict.fromkeys(piece["layer"]))
    where, layer = (f"== {layers[0]}", str(layers[0])) if len(layers) == 1 else (f"in {tuple(layers)}", "site.layer")
    into, out = indices(model, patch.site, piece, case)
    options = "".join(f", {name}=True" for name in ("prepend_bos", "special_tokens") if getattr(experiment, name))
    prompts = {name: repr(_plain(getattr(experiment, name))) for name in ("clean", "corrupted")}
    lines = [
        "import nanopatch",
        "",
        f"model = nanopatch.load({model.source.name if model.source else 'unnamed'!r})",
        f"{donor} = model.run({prompts[donor]}{options})",
        f"for site in model.steps({prompts[base]}{options}):",
        f'    if site.name == "{patch.site}" and site.layer {where}:',
        f"        site.array[{into}] = {donor}.{patch.site}[{layer}, {out}]  # the patch",
        "logits = site.array[-1]  # (n_vocab,): what the last token predicts",
    ]
    if tokens.answer is not None and tokens.wrong_answer is not None:
        names = " - ".join(map(repr, model.token_strings([tokens.answer, tokens.wrong_answer])))
        lines.append(f"print(logits[{tokens.answer}] - logits[{tokens.wrong_answer}])  # {names}")
    lines.append("for token in logits.argsort()[:-11:-1]:")
    lines.append("    print(repr(model.token_strings(token)[0]), logits[token])")
    return "\n".join(lines) + "\n"


def indices(model: Model, site: str, piece: dict[str, list[Item]], case: Case) -> tuple[str, str]:
    """What stands in the brackets of the base run's array and, after the layer, of the donor's."""
    n_tokens = case.n_tokens
    if site in ATTENTION_SITES:
        sizes = {"head": model.n_head, "query": n_tokens, "key": n_tokens}
        both = _joined([_index(piece.get(axis), n) for axis, n in sizes.items()])
        return both, both
    pairs = [case.partners[column] for column in sorted(set(piece["position"]))]
    rows = [(into, out) for into, out in pairs if into is not None and out is not None]
    into, out = ([pair[side] for pair in rows] for side in (0, 1))
    parts = piece.get("head", piece.get("neuron"))
    inside = _index(parts, model.n_head if "head" in piece else model.d_mlp)
    whole = into == out == list(range(n_tokens))
    return tuple(_joined([":" if whole else _listed(of), inside]) for of in (into, out))  # type: ignore[return-value]


def _index(items: list[Item] | None, n: int) -> str:
    """One axis of an index: all, one, or a list."""
    chosen = None if items is None else sorted(set(items))
    return ":" if chosen is None or chosen == list(range(n)) else _listed(chosen)


def _listed(items: list[Any]) -> str:
    return str(items[0]) if len(items) == 1 else str(items)


def _joined(axes: list[str]) -> str:
    while len(axes) > 1 and axes[-1] == ":":
        axes = axes[:-1]
    return ", ".join(axes)


def _plain(prompt: Any) -> Any:
    return prompt if isinstance(prompt, str) else [int(token) for token in prompt]
