"""Sites and records: what the forward pass hands over, and what a run keeps of it.

A `Site` is one named array on its way through the model. A `Run` holds all of them, stacked over layers. `record`
turns a stream of sites into a run.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..errors import NanopatchError
from ..notebook import html_table, printable
from ..types import Array, Sites
from .layers import top_tokens
from .tokenizer import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .gpt2 import Model
    from .packing import AnySegment

#: Every array of one block, in the order in which the forward pass hands them over.
BLOCK_SITES = (
    *("resid_pre", "q_input", "k_input", "v_input", "q", "k", "v", "scores", "pattern", "z", "attn_out"),
    *("resid_mid", "mlp_in", "mlp_pre", "mlp_post", "mlp_out", "resid_post"),
)
#: The two arrays after the last block.
FINAL_SITES = ("ln_final", "logits")
SITES = BLOCK_SITES + FINAL_SITES
#: Arrays of queries and keys, (n_head, n_query, n_key); all others have a row for each position.
ATTENTION_SITES = ("scores", "pattern")
#: Arrays with a row for each position and, in it, one for each head: (n_tokens, n_head, d_head).
HEAD_SITES = ("q", "k", "v", "z")


class Site:
    """One named array of a forward pass, open for edits until the pass moves on.

    `site.array[...] = x`, `site.array = x` and `site.array += x` all write into that array, and the forward pass
    carries on with what it then holds. Once the pass has moved on, the array is read-only, and a late edit fails.

    Attributes
    ----------
    name : str
        One of `nanopatch.model.sites.SITES`.
    layer : int or None
        Its block; None after the last block.
    array : ndarray
        The array itself.
    segment : object
        For `scores` and `pattern`: which rows they belong to (see `nanopatch.model.packing`).
    tokens, model : ndarray and Model, or None
        The token ids of the run and its model, where `Model.steps` made it.
    positions : range or None
        In generation, the positions that the rows are of.
    """

    __slots__ = ("name", "layer", "segment", "tokens", "model", "positions", "_array")

    def __init__(self, name: str, layer: int | None, array: Array, segment: AnySegment | None = None) -> None:
        self.name, self.layer, self.segment, self._array = name, layer, segment, array
        self.tokens: Array | None = None
        self.model: Model | None = None
        self.positions: range | None = None

    @property
    def array(self) -> Array:
        if not self._array.flags.writeable:
            return self._array.view(LateArray)
        if self.positions is None:
            return self._array
        rows = self._array.view(RoundArray)
        rows.site = self
        return rows

    @array.setter
    def array(self, value: Any) -> None:
        if value is self._array:  # what `site.array += x` assigns after adding in place
            return
        if not self._array.flags.writeable:
            raise NanopatchError(f"{self}: {LateArray.why}")
        try:
            given = np.asarray(value)
        except ValueError:  # rows of unequal lengths
            given = np.array(None)
        if given.dtype.kind not in "fiub":  # None and text would be turned into numbers
            raise NanopatchError(f"{self} takes numbers of its shape, or one number; not {value!r:.60}")
        if given.ndim and given.shape != self._array.shape:  # one position's vector would be written to all
            raise NanopatchError(
                f"{self} takes an array of its own shape, not {given.shape}: for a part of it, write "
                "site.array[position] = ..."
            )
        self._array[...] = given

    def __repr__(self) -> str:
        where = "" if self.layer is None else f", layer {self.layer}"
        return f"Site({self.name}{where}, shape {self._array.shape})"


class RunArray(np.ndarray):
    """An array of a run. It is as any array, but while it is read-only an edit of it says what to do instead.

    What arithmetic makes of it, its copies and what is unpickled are plain arrays.
    """

    why = (
        "the arrays of a recorded run are read-only: edit a copy, such as run.z.copy(), or patch a new run, in a loop "
        "over model.steps(prompt)"
    )

    def __setitem__(self, key: Any, value: Any) -> None:
        if not self.flags.writeable:
            raise NanopatchError(self.why)
        super().__setitem__(key, value)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = (), **options: Any) -> Any:
        for array in out:  # array += x
            if isinstance(array, RunArray) and not array.flags.writeable:
                raise NanopatchError(array.why)
        inputs, out = (tuple(map(_plain, arrays)) for arrays in (inputs, out))
        return getattr(ufunc, method)(*inputs, **(options | {"out": out} if out else options))

    def copy(self, order: Literal["K", "A", "C", "F"] | None = "C") -> Array:
        return _plain(self).copy(order)

    def __deepcopy__(self, memo: dict[int, Any] | None, /) -> Any:
        return self.copy()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _plain(self).__reduce_ex__(protocol)

    def __repr__(self) -> str:
        return repr(_plain(self))


class LateArray(RunArray):
    """A site's array after the run has moved on."""

    why = "this array is read-only, because the run has moved on: edit it before the loop takes the next site"


class RoundArray(RunArray):
    """A site's array in generation. An index of a row that it does not have is of another round, and the error says so.

    NumPy shortens slices that reach too far, and an edit of positions that are computed in another round would be lost.
    """

    site: Site | None = None

    def __getitem__(self, key: Any) -> Any:
        self._check(key)
        try:
            return super().__getitem__(key)
        except IndexError as error:
            raise self._another_round(error) from None

    def __setitem__(self, key: Any, value: Any) -> None:
        self._check(key)
        try:
            super().__setitem__(key, value)
        except NanopatchError:  # NumPy looks an index up by __getitem__
            raise
        except (IndexError, ValueError) as error:
            raise self._another_round(error) from None

    def _check(self, key: Any) -> None:
        """NanopatchError if a slice of the axis of positions begins or ends outside it."""
        keys = list(key) if isinstance(key, tuple) else [key]
        if self.site is None or any(one is None or isinstance(one, np.ndarray) and one.ndim > 1 for one in keys):
            return  # a part of the array, or an index whose entries are not those of the axes
        for i in [i for i, one in enumerate(keys) if one is Ellipsis]:
            keys[i : i + 1] = [slice(None)] * (self.ndim - len(keys) + 1)
        axis = 1 if self.site.name in ATTENTION_SITES else 0
        rows = keys[axis] if axis < len(keys) else None
        if isinstance(rows, slice):
            n_rows = self.shape[axis]
            for end in (rows.start, rows.stop):
                if end is not None and not -n_rows <= end <= n_rows:
                    raise self._another_round(f"a slice to {end} is out of bounds for {n_rows} rows")

    def _another_round(self, error: object) -> NanopatchError:
        if self.site is None or not self.site.positions:
            return NanopatchError(f"part of a site's array: {error}")
        first, last = self.site.positions[0], self.site.positions[-1]
        rows = f"row 0 is position {first}" if first == last else f"rows 0 to {last - first} are {first} to {last}"
        return NanopatchError(
            f"{self.site}: {error}; in this round {rows}, and round.row(position) is the row of a position"
        )


def _plain(array: Any) -> Any:
    return array.view(np.ndarray) if isinstance(array, RunArray) else array


class NotRecordedError(NanopatchError, AttributeError):
    """A run was asked for an array that it does not hold. It is an AttributeError too, so that `hasattr` says no."""


class Run:
    """Every activation of one run, each an array attribute under its own name.

    Block arrays are stacked over layers, layer axis first: `run.resid_pre` is (n_layer, n_tokens, d_model),
    `run.pattern` is (n_layer, n_head, n_query, n_key). A batch adds one axis after the layer axis.
    `run.ln_final` (n_tokens, d_model) and `run.logits` (n_tokens, n_vocab) have no layer axis. All arrays are
    read-only (`RunArray`). Only names that were recorded exist. Derivatives come in a `Run` too.

    Attributes
    ----------
    tokens : ndarray or None
        The token ids that went in, (n_tokens,) or (batch, n_tokens); None where they are not known.
    model : Model or None
        The model that made it; None where it is not known. A pickled run carries no model.
    is_gradient : bool
        Whether the arrays are derivatives.
    """

    resid_pre: Array
    q_input: Array
    k_input: Array
    v_input: Array
    q: Array
    k: Array
    v: Array
    scores: Array
    pattern: Array
    z: Array
    attn_out: Array
    resid_mid: Array
    mlp_in: Array
    mlp_pre: Array
    mlp_post: Array
    mlp_out: Array
    resid_post: Array
    ln_final: Array
    logits: Array

    def __init__(
        self,
        arrays: dict[str, Array],
        tokens: Array | None = None,
        model: Model | None = None,
        is_gradient: bool = False,
    ) -> None:
        self.tokens, self.model, self.is_gradient = tokens, model, is_gradient
        for name, array in arrays.items():
            array.flags.writeable = False
            setattr(self, name, array.view(RunArray))

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the arrays it holds, in the order of the forward pass."""
        return tuple(name for name in SITES if name in self.__dict__)

    def __getitem__(self, name: str) -> Array:
        """`run["resid_pre"]` is `run.resid_pre`."""
        if not isinstance(name, str) or name not in SITES:
            raise NanopatchError(f"a run has no array {quoted(name)}; the names are {', '.join(SITES)}")
        array: Array = getattr(self, name)
        return array

    if not TYPE_CHECKING:  # otherwise a type checker would accept every misspelt name as an array

        def __getattr__(self, name):  # called only if there is no such attribute
            if name in SITES:
                raise NotRecordedError(f"{name} was not recorded; this run holds {', '.join(self.names) or 'nothing'}")
            raise AttributeError(f"a run has no array {quoted(name)}; the names are {', '.join(SITES)}")

    def top(self, k: int = 10, position: int = -1) -> list[dict[str, Any]]:
        """The k likeliest next tokens after a position, likeliest first: dicts of "id", "token" and "probability".

        The token's text is `#id` where the model is not known. NanopatchError if the run has no logits, is of a batch,
        or has no such position.

        Examples
        --------
        >>> import nanopatch
        >>> run = nanopatch.load("nano").run("The capital of France is")
        >>> [row["token"] for row in run.top(2)]
        [' Paris', ' Ottawa']
        """
        if self.is_gradient:
            raise NanopatchError("derivatives predict no tokens: ask the run that they are of")
        if "logits" not in self.names:
            raise NanopatchError("top needs logits, which this run does not hold: record it with sites=('logits',)")
        if self.logits.ndim != 2:
            raise NanopatchError(f"top takes the run of one prompt, not of a batch of {len(self.logits)}")
        found = top_tokens(self.logits[check_position(len(self.logits), position)], k)
        texts = self._texts([token for token, _ in found])
        return [{"id": token, "token": t, "probability": p} for (token, p), t in zip(found, texts, strict=True)]

    def plot_attention(
        self, layer: int | None = None, head: int | None = None, weighted: bool = False, ax: Axes | None = None
    ) -> Figure:
        """Draw the attention of one head, of all heads of a layer, or of all heads; returns the matplotlib Figure.

        As `nanopatch.attention(model, run, layer, head, weighted).plot(ax)`.
        """
        from ..lenses.attention import attention  # the one import of a later folder: a run draws itself

        if self.model is None:
            raise NanopatchError(
                "this run does not know its model, whose tokens are the labels: draw it by "
                "nanopatch.attention(model, run).plot()"
            )
        return attention(self.model, self, layer, head, weighted).plot(ax)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"model": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            if isinstance(value, np.ndarray):  # pickle makes writable arrays
                value.flags.writeable = False
                value = value.view(RunArray)
            setattr(self, name, value)

    def __repr__(self) -> str:
        what = "Run of derivatives" if self.is_gradient else "Run"
        return f"{what}({', '.join(f'{name} {getattr(self, name).shape}' for name in self.names)})"

    def __str__(self) -> str:
        rows = [*self._described_prompts(), *self._described_shapes()]
        return printable("\n".join([self._title(), *(f"{name}: {value}" for name, value in rows)]))

    def _repr_html_(self) -> str:  # how a notebook shows it
        return html_table(self._title(), [*self._described_prompts(), *self._described_shapes()])

    def _title(self) -> str:
        what = "Run of derivatives" if self.is_gradient else "Run"
        return f"{what} of {self.model.source.name}" if self.model and self.model.source else what

    def _described_prompts(self, most: int = 4) -> list[tuple[str, str]]:
        """The tokens and the likeliest next tokens, of the first prompts of a batch."""
        prompts = None if self.tokens is None else np.atleast_2d(self.tokens)
        has_logits = "logits" in self.names and not self.is_gradient
        last = np.atleast_2d(self.logits[..., -1, :]).astype(np.float64) if has_logits else None
        n_prompts = max(0 if array is None else len(array) for array in (prompts, last))
        rows = []
        for i in range(min(n_prompts, most)):
            of = f" of prompt {i}" if n_prompts > 1 else ""
            if prompts is not None:
                rows.append((f"tokens{of}", _shortened([f"{n} {t}" for n, t in enumerate(self._labels(prompts[i]))])))
            if last is not None:
                best, p = zip(*top_tokens(last[i], 5), strict=True)
                likeliest = [f"{t} {share:.1%}" for t, share in zip(self._labels(best), p, strict=True)]
                rows.append((f"likeliest next tokens{of}", "  ".join(likeliest)))
        return rows + ([("prompts", f"{n_prompts} in all")] if n_prompts > most else [])

    def _described_shapes(self) -> list[tuple[str, str]]:
        """(names, shape), for each shape."""
        names_of: dict[tuple[int, ...], list[str]] = {}
        for name in self.names:
            names_of.setdefault(getattr(self, name).shape, []).append(name)
        return [(", ".join(names), str(shape)) for shape, names in names_of.items()]

    def _labels(self, tokens: Sequence[int] | Array) -> list[str]:
        return [visible(text) for text in self._texts(tokens)]

    def _texts(self, tokens: Sequence[int] | Array) -> list[str]:
        return self.model.token_strings(tokens) if self.model else [f"#{token}" for token in tokens]


def record(steps: Iterable[Site], sites: Sites = None) -> Run:
    """Run through `steps` and keep what it hands over, as a `Run`.

    Parameters
    ----------
    steps : iterable of Site
        `model.steps(prompt)`, or a loop of your own that edits sites and yields them on.
    sites : str or iterable of str, optional
        Names to keep, all by default. A full record of 1,024 tokens of GPT-2 124M takes 2.1 GB.

    Returns
    -------
    Run
        Each array as it is after the forward pass has moved on, with all edits: `resid_post[l]` differs from
        `resid_pre[l + 1]` where the latter was patched.

    Raises
    ------
    NanopatchError
        If a name is unknown, or the blocks are not each handed over once, from layer 0 on.

    Examples
    --------
    >>> import nanopatch
    >>> model = nanopatch.load("nano")
    >>> def without_head(layer, head):
    ...     for site in model.steps("Michelle Jones was a top-notch student. Michelle"):
    ...         if site.name == "z" and site.layer == layer:
    ...             site.array[:, head] = 0
    ...         yield site
    >>> run = nanopatch.record(without_head(1, 2), sites=["z", "logits"])
    >>> run.z.shape, bool(run.z[1, :, 2].any())
    ((4, 11, 4, 32), False)
    """
    keep = known_sites(sites)
    kept: dict[str, list[tuple[int | None, Array]]] = {}
    tokens = model = None
    for site in steps:
        tokens, model = site.tokens, site.model
        if site.name in keep:
            kept.setdefault(site.name, []).append((site.layer, site.array))
    arrays = {}
    for name in list(kept):
        layers, values = zip(*kept.pop(name), strict=True)
        if name in FINAL_SITES and len(values) == 1:
            arrays[name] = values[0].copy()
        elif layers == tuple(range(len(layers))):
            arrays[name] = np.stack(values)
        else:
            raise NanopatchError(
                f"record needs one run, every block once, from layer 0 on, so that array[l] is layer l; {name} came "
                f"from layers {', '.join(map(str, layers))}"
            )
    return Run(arrays, tokens, model)


def shapes(model: Model, n_tokens: int, batch: tuple[int, ...] = ()) -> dict[str, tuple[int, ...]]:
    """The shape that each array of a run of this model has in a `Run`."""
    last = dict.fromkeys(HEAD_SITES, (n_tokens, model.n_head, model.d_head))
    last |= dict.fromkeys(ATTENTION_SITES, (model.n_head, n_tokens, n_tokens))
    widths = dict.fromkeys(("mlp_pre", "mlp_post"), model.d_mlp) | {"logits": model.n_vocab}
    return {
        name: (
            *((model.n_layer,) if name in BLOCK_SITES else ()),
            *batch,
            *last.get(name, (n_tokens, widths.get(name, model.d_model))),
        )
        for name in SITES
    }


def _shortened(texts: list[str], most: int = 40) -> str:
    """Texts in a line; of many, the first and the last."""
    if len(texts) > most:
        half = most // 2
        texts = [*texts[:half], f"… {len(texts) - 2 * half} more …", *texts[-half:]]
    return "  ".join(texts)


def check_position(n_tokens: int, position: Any) -> int:
    """A position of a run as 0 or above; NanopatchError if there is none."""
    if not isinstance(position, Integral) or isinstance(position, bool) or not -n_tokens <= int(position) < n_tokens:
        raise NanopatchError(
            f"position {position!r:.40}: this run has positions 0 to {n_tokens - 1}, or -1 for the last"
        )
    return int(position) % n_tokens


def known_sites(sites: Sites) -> frozenset[str]:
    """`sites` (one name, an iterable of names, or None for all) as a frozenset of known names."""
    if sites is None:
        return frozenset(SITES)
    if not np.iterable(sites):
        raise NanopatchError(f"sites={sites!r}: a name or a list of names is expected, of {', '.join(SITES)}")
    names = frozenset([sites] if isinstance(sites, str) else sites)
    unknown = names - frozenset(SITES)
    if unknown:
        raise NanopatchError(
            f"unknown site {', '.join(map(quoted, sorted(map(str, unknown))))}; sites are {', '.join(SITES)}"
        )
    return names


#: TransformerLens' names of arrays that have another one here, without "blocks.0.attn.hook_" and the like.
ELSEWHERE = {"attn_scores": "scores", "pre": "mlp_pre", "post": "mlp_post"}


def quoted(name: object) -> str:
    """A name that is no site, as an error quotes it; with the name that it has here, if it is TransformerLens'.

    Examples
    --------
    >>> print(quoted("blocks.1.attn.hook_attn_scores"))
    'blocks.1.attn.hook_attn_scores' (here it is 'scores')
    """
    last = str(name).rpartition(".")[2].removeprefix("hook_")
    ours = ELSEWHERE.get(last, last)
    return f"{name!r:.60} (here it is {ours!r})" if ours in SITES and ours != name else f"{name!r:.60}"
