"""Sites and records: what the forward pass hands over, and what a run keeps of it.

A `Site` is one named array on its way through the model; a `Run` is every one of them, stacked
over layers. `record` turns a stream of the first into one of the second.
"""

import numpy as np

from ..errors import NanopatchError

#: Every array of one block, in the order in which the forward pass hands them over.
BLOCK_SITES = (
    "resid_pre",
    "q_input",
    "k_input",
    "v_input",
    "q",
    "k",
    "v",
    "scores",
    "pattern",
    "z",
    "attn_out",
    "resid_mid",
    "mlp_in",
    "mlp_pre",
    "mlp_post",
    "mlp_out",
    "resid_post",
)
#: The two arrays after the last block.
FINAL_SITES = ("ln_final", "logits")
SITES = BLOCK_SITES + FINAL_SITES
#: Arrays of queries and keys, (n_head, n_query, n_key); all others have a row for each position.
ATTENTION_SITES = ("scores", "pattern")


class Site:
    """One named array of a forward pass, open for edits until the pass moves on.

    name: its name, one of `SITES`; layer: its block, or None after the last block; array: the array
    itself; part: for `scores` and `pattern` of packed rows, which of them (see `nanopatch.packing`).
    `site.array[...] = x`, `site.array = x` and `site.array += x` all write into that array, and the
    forward pass carries on with what it then holds. Once the pass has moved on the array is read-only:
    an edit that comes too late raises.
    """

    __slots__ = ("name", "layer", "part", "_array")

    def __init__(self, name, layer, array, part=None):
        self.name, self.layer, self.part, self._array = name, layer, part, array

    @property
    def array(self):
        return self._array

    @array.setter
    def array(self, value):
        if value is self._array:  # what `site.array += x` assigns after adding in place
            return
        if not self._array.flags.writeable:
            raise NanopatchError(
                f"{self} was handed over earlier and the run has moved on: edit it before taking the next site"
            )
        try:
            if np.asarray(value).dtype.kind not in "fiub":  # None and text would be made numbers of
                raise ValueError
            self._array[...] = value
        except ValueError:
            raise NanopatchError(
                f"{self} takes numbers of its shape, or that broadcast to it; not {value!r:.60}"
            ) from None

    def __repr__(self):
        where = "" if self.layer is None else f", layer {self.layer}"
        return f"Site({self.name}{where}, shape {self._array.shape})"


class NotRecordedError(NanopatchError, AttributeError):
    """A run was asked for an array that it does not hold; an AttributeError too, so that `hasattr` says no."""


class Run:
    """Every activation of one run, each an array attribute under its own name.

    Block arrays are stacked over layers, layer axis first: `run.resid_pre` is (n_layer, n_tokens,
    d_model), `run.pattern` (n_layer, n_head, n_query, n_key); with a batch (n_layer, batch, ...).
    `run.ln_final` (n_tokens, d_model) and `run.logits` (n_tokens, n_vocab) have no layer axis.
    `run.tokens` are the token ids that went in, and `run.model` is the model that made it, or None where
    they are not known. All arrays are read-only; only names that were recorded exist. Derivatives come in a `Run`
    too: there `run.is_gradient` is True.
    """

    def __init__(self, arrays, tokens=None, model=None, is_gradient=False):
        self.tokens, self.model, self.is_gradient = tokens, model, is_gradient
        for name, array in arrays.items():
            array.flags.writeable = False
            setattr(self, name, array)

    def of_batch(self, number):
        """One run of a recorded batch, as a `Run` of its own (views of the same arrays); NanopatchError if none is."""
        arrays = {name: getattr(self, name) for name in self.names}
        for name, array in arrays.items():
            batch = array.shape[name in BLOCK_SITES : -3 if name in (*ATTENTION_SITES, "q", "k", "v", "z") else -2]
            if len(batch) != 1 or not 0 <= number < batch[0]:
                raise NanopatchError(f"run {number} of a batch: this record holds {batch[0] if batch else 'no batch'}")
        rows = {name: array[number] if name in FINAL_SITES else array[:, number] for name, array in arrays.items()}
        return Run(rows, None if self.tokens is None else self.tokens[number], self.model, self.is_gradient)

    @property
    def names(self):
        """The names of the arrays it holds, in the order of the forward pass."""
        return tuple(name for name in SITES if name in self.__dict__)

    def __getattr__(self, name):  # called only for what is not there
        if name in SITES:
            raise NotRecordedError(f"{name} was not recorded; this run holds {', '.join(self.names) or 'nothing'}")
        raise AttributeError(f"a run has no array {name!r}; the names are {', '.join(SITES)}")

    def __repr__(self):
        what = "Run of derivatives" if self.is_gradient else "Run"
        return f"{what}({', '.join(f'{name} {getattr(self, name).shape}' for name in self.names)})"


def record(steps, sites=None):
    """Run through `steps` and keep what it handed over, as a `Run`.

    steps: any iterable of sites: `model.steps(prompt)`, or a loop of your own that edits sites and
    yields them on. sites: names to keep, all by default; a full record of 1,024 tokens of GPT-2
    124M takes 2.1 GB. Arrays are kept as they are when the forward pass has moved past them, so with
    all edits; `resid_post[l]` may therefore differ from `resid_pre[l + 1]` where the latter was
    patched. Raises NanopatchError for an unknown name, or blocks that do not start at layer 0.
    """
    keep = known_sites(sites)
    kept = {}
    for site in steps:
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
    return Run(arrays)


def known_sites(sites):
    """`sites` (one name, an iterable of names, or None for all) as a frozenset of known names."""
    if sites is None:
        return frozenset(SITES)
    if not np.iterable(sites):
        raise NanopatchError(f"sites={sites!r}: a name or a list of names is expected, of {', '.join(SITES)}")
    sites = frozenset([sites] if isinstance(sites, str) else sites)
    unknown = sites - frozenset(SITES)
    if unknown:
        raise NanopatchError(
            f"unknown site {', '.join(map(repr, sorted(map(str, unknown))))}; sites are {', '.join(SITES)}"
        )
    return sites
