"""GPT-2's forward pass: the one definition that everything else in this library goes through.

It is written as a generator. Each array is handed over under its own name as soon as it exists, and
the pass carries on with whatever that array holds when it is resumed. Recording is a loop over it;
patching is an assignment inside such a loop.

Shapes are for one prompt; any leading axes (a batch) may stand before them.

    n_tokens  positions of the prompt             d_model  width of the residual stream
    n_head    attention heads of a block          d_head   width of one head, d_model / n_head
    n_query, n_key  positions that attend, and positions that are attended to
    d_mlp     neurons of a block's MLP            n_vocab  size of the vocabulary

Weights keep the names of the published checkpoint (`wte`, `h[3].attn.c_attn.weight`, ...),
activations the names of TransformerLens (`resid_pre`, `q`, `pattern`, `z`, `mlp_post`, ...).
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from ..errors import NanopatchError
from ..files import Source
from ..notebook import html_table
from ..types import Array, Prompt, Sites
from . import tokenizer
from .backward import backward, named_weights
from .layers import ACTIVATIONS, affine, causal_mask, layer_norm, softmax
from .packing import AnySegment, Rows, last_row, one_run
from .sites import Run, RunArray, Site, known_sites, record
from .vocabulary import Vocabulary

T = TypeVar("T")


@dataclass(frozen=True)
class Config:
    """What a checkpoint's `config.json` says about the model, under the same names."""

    n_layer: int
    n_head: int
    n_embd: int  # d_model
    n_positions: int  # longest prompt, in tokens
    vocab_size: int
    n_inner: int  # d_mlp
    layer_norm_epsilon: float = 1e-5
    activation_function: str = "gelu_new"
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    bos_token_id: int | None = tokenizer.ENDOFTEXT_ID  # what prepend_bos puts before a prompt
    tie_word_embeddings: bool = True  # whether lm_head may be missing, because it is wte


class Weights(NamedTuple):
    """Weight and bias of one LayerNorm or one affine map."""

    weight: Array
    bias: Array


class Attention(NamedTuple):
    c_attn: Weights  # (d_model, 3 d_model): queries, keys and values side by side
    c_proj: Weights  # (d_model, d_model)


class MLP(NamedTuple):
    c_fc: Weights  # (d_model, d_mlp)
    c_proj: Weights  # (d_mlp, d_model)


class Block(NamedTuple):
    ln_1: Weights
    attn: Attention
    ln_2: Weights
    mlp: MLP


class Model:
    """A GPT-2: its weights, and its forward pass in pieces of several sizes.

    `steps` (all named arrays, one by one), `run` (all of them, recorded), `embed` / `block` / `unembed` (the residual
    stream in between, for a loop of your own), `block_steps` (the named arrays of one block). Prompts are text, a
    list of token ids, or an array of ids of shape (n_tokens,) or (batch, n_tokens). `nanopatch.load` makes it.

    Attributes
    ----------
    config : Config
        What its `config.json` says.
    wte, wpe, h, ln_f, lm_head
        The weights: wte (n_vocab, d_model), wpe (n_ctx, d_model), h a tuple of `Block`, lm_head (n_vocab, d_model).
        If they are tied, lm_head is the same array as wte.
    dtype : numpy.dtype
        The dtype of the weights and of every activation.
    source : Source or None
        Where the weights came from.
    trained_tokens : frozenset of int, or None
        The tokens that it was trained on, where a file `trained_tokens.json` beside the weights says so.
    token_names : sequence of str, or None
        Names for all tokens, which labels use: of a toy's tokens, say. You may set it; a file `token_names.json` beside
        the weights, a list of texts, sets it too.
    vocabulary : Vocabulary or None
        What turns text into token ids: GPT-2's byte-pair encoding, characters, another. None if it is not known.
    reads_text : bool
        Whether the vocabulary is known, so that prompts may be text.

    Notes
    -----
    You may set attributes of your own, such as `model.clean = clean`. The model does not use them, and a pickled model
    may lack them. They are what a breakpoint inside the forward pass can reach: there `self` is the model, so
    `z[-1] = self.clean.z[layer, -1]` is a patch (see docs/debugger.md).
    """

    if TYPE_CHECKING:  # so that a type checker accepts attributes of your own

        def __setattr__(self, name: str, value: Any) -> None: ...

    def __init__(
        self,
        config: Config,
        wte: Array,
        wpe: Array,
        h: tuple[Block, ...],
        ln_f: Weights,
        lm_head: Array,
        source: Source | None = None,
        vocabulary: Vocabulary | None = None,
    ) -> None:
        self.config, self.source, self.vocabulary = config, source, vocabulary
        self.wte, self.wpe, self.h, self.ln_f, self.lm_head = wte, wpe, h, ln_f, lm_head
        self.trained_tokens: frozenset[int] | None = None
        self.token_names: Sequence[str] | None = None
        self.dtype = wte.dtype
        self.n_layer, self.n_head, self.d_model = config.n_layer, config.n_head, config.n_embd
        self.d_head, self.d_mlp = config.n_embd // config.n_head, config.n_inner
        self.n_ctx, self.n_vocab = config.n_positions, config.vocab_size

    @property
    def reads_text(self) -> bool:
        return self.vocabulary is not None

    def __repr__(self) -> str:
        name = self.source.name if self.source else "unnamed"
        return (
            f"Model({name}: {self.n_layer} layers, {self.n_head} heads, d_model {self.d_model}, "
            f"{self.n_ctx} positions, {self.n_vocab} tokens, {self.dtype})"
        )

    def __call__(self, prompt: Any) -> Any:
        raise NanopatchError("a model is not called: write model.run(prompt), or model.next_logits(prompt)")

    def _repr_html_(self) -> str:  # how a notebook shows it
        sizes = ("n_layer", "n_head", "d_model", "d_head", "d_mlp", "n_ctx", "n_vocab", "dtype")
        n_weights = sum(weight.size for weight in named_weights(self).values())
        return html_table(
            f"Model {self.source.name if self.source else 'unnamed'}",
            [*((name, getattr(self, name)) for name in sizes), ("weights", f"{n_weights:,}")],
        )

    # ---- the forward pass -----------------------------------------------------------------------

    def steps(
        self, prompt: Prompt, *, prepend_bos: bool = False, special_tokens: bool = False, sites: Sites = None
    ) -> Iterator[Site]:
        """Run the model on a prompt, handing over each named array as a `Site`.

        Parameters
        ----------
        prompt : str, or token ids
        prepend_bos : bool
            Put `<|endoftext|>` before it.
        special_tokens : bool
            Read `<|endoftext|>` inside the text as that token. By default it is ordinary text.
        sites : str or iterable of str, optional
            Names to hand over, all by default; the last is then `logits`, (n_tokens, n_vocab). Fewer names take less
            time: without `ln_final` and `logits` the unembedding is left out.

        Raises
        ------
        NanopatchError
            If the prompt cannot be used (see `tokenize`), or a name is unknown.

        Examples
        --------
        >>> import nanopatch
        >>> model = nanopatch.load("nano")
        >>> clean = model.run("Michelle Jones was a top-notch student. Michelle")
        >>> for site in model.steps("Michelle Smith was a top-notch student. Michelle"):
        ...     if site.name == "resid_pre" and site.layer == 1:
        ...         site.array[1] = clean.resid_pre[1, 1]  # the patch
        >>> model.detokenize(site.array[-1].argmax())
        ' Jones'
        """
        sites = known_sites(sites)
        tokens = self.tokenize(prompt, prepend_bos=prepend_bos, special_tokens=special_tokens)
        for site in self.steps_from(0, self.embed(tokens), sites=sites):
            site.tokens, site.model = tokens, self  # so that `record` knows them
            yield site

    def steps_from(
        self, layer: int, resid: Array, *, sites: Sites = None
    ) -> Iterator[Site]:
        """The rest of a run, from the start of block `layer` on, where the residual stream is `resid`.

        layer: 0 to n_layer; n_layer means that only ln_f and the unembedding are left. resid: (n_tokens, d_model),
        never written into. sites: as for `steps`.
        """
        sites = known_sites(sites)
        if layer != self.n_layer:
            self._check_layer(layer)
        for later in range(layer, self.n_layer):
            resid = yield from self.block_steps(later, resid, sites=sites)
        if sites & {"ln_final", "logits"}:
            yield from self._unembed_steps(resid, sites)

    def block_steps(
        self, layer: int, resid: Array, *, sites: Sites = None, rows: Rows | None = None
    ) -> Generator[Site, None, Array]:
        """One block, handing over each named array; returns (as a generator does) `resid_post`.

        layer: 0 to n_layer - 1. resid: the residual stream entering the block, (n_tokens, d_model); never written
        into. sites: names to hand over, all by default. rows: which rows attend to which, for packed rows of
        several runs and for runs whose first positions are known (see `nanopatch.model.packing`); by default each
        row attends to itself and to those before it.
        """
        sites = known_sites(sites)
        self._check_layer(layer)
        block, eps = self.h[layer], self.config.layer_norm_epsilon

        def hand_over(name: str, array: Array, segment: AnySegment | None = None) -> Iterator[Site]:
            if name in sites:
                yield Site(name, layer, array, segment)
                array.flags.writeable = False  # from here on an edit would come too late

        resid_pre = self._check_resid(resid).copy()  # (n_tokens, d_model)
        yield from hand_over("resid_pre", resid_pre)

        # Queries, keys and values each read the residual stream. Each can be given another input.
        rows = rows or one_run(resid_pre.shape[-2], in_blocks=not sites & {"scores", "pattern"})
        resid_read = resid_pre[..., rows.that_attend, :]  # (n_query, d_model): usually all rows
        q_input, k_input, v_input = resid_read.copy(), resid_pre.copy(), resid_pre.copy()
        yield from hand_over("q_input", q_input)
        yield from hand_over("k_input", k_input)
        yield from hand_over("v_input", v_input)

        weight_q, weight_k, weight_v = np.split(block.attn.c_attn.weight, 3, axis=-1)  # (d_model, d_model) each
        bias_q, bias_k, bias_v = np.split(block.attn.c_attn.bias, 3)
        q = self._split_heads(affine(layer_norm(q_input, *block.ln_1, eps), weight_q, bias_q))
        yield from hand_over("q", q)  # (n_tokens, n_head, d_head)
        k = self._split_heads(affine(layer_norm(k_input, *block.ln_1, eps), weight_k, bias_k))
        yield from hand_over("k", k)  # (n_tokens, n_head, d_head)
        v = self._split_heads(affine(layer_norm(v_input, *block.ln_1, eps), weight_v, bias_v))
        yield from hand_over("v", v)  # (n_tokens, n_head, d_head)

        # Usually there is one segment. In a sweep a segment has many runs, whose axis stands before n_head.
        z = np.zeros_like(q)  # (n_tokens, n_head, d_head), filled segment by segment
        for segment in rows.segments:
            q_by_head, k_by_head, v_by_head = segment.by_head(q, k, v)  # (n_head, n_query or n_key, d_head) each
            scores = q_by_head * self._attention_scale(layer) @ np.swapaxes(k_by_head, -2, -1)
            scores += causal_mask(scores.shape[-2], scores.shape[-1], self.dtype)  # (n_head, n_query, n_key)
            yield from hand_over("scores", scores, segment)

            pattern = softmax(scores)  # (n_head, n_query, n_key)
            yield from hand_over("pattern", pattern, segment)

            segment.assign(z, pattern @ v_by_head)
        yield from hand_over("z", z)

        attn_out = affine(z.reshape(resid_read.shape), *block.attn.c_proj)  # (n_tokens, d_model)
        yield from hand_over("attn_out", attn_out)

        resid_mid = resid_read + attn_out  # (n_tokens, d_model)
        yield from hand_over("resid_mid", resid_mid)

        mlp_in = resid_mid.copy()  # (n_tokens, d_model): what the MLP reads
        yield from hand_over("mlp_in", mlp_in)

        mlp_pre = affine(layer_norm(mlp_in, *block.ln_2, eps), *block.mlp.c_fc)  # (n_tokens, d_mlp)
        yield from hand_over("mlp_pre", mlp_pre)

        activation = ACTIVATIONS[self.config.activation_function]
        if "mlp_pre" in sites:
            mlp_post = activation(mlp_pre)  # (n_tokens, d_mlp)
        else:  # in the same memory: a tenth faster for long prompts. mlp_pre is deleted, so that no edit of it is lost
            mlp_post = activation(mlp_pre, out=mlp_pre)
            del mlp_pre
        yield from hand_over("mlp_post", mlp_post)

        mlp_out = affine(mlp_post, *block.mlp.c_proj)  # (n_tokens, d_model)
        yield from hand_over("mlp_out", mlp_out)

        resid_post = resid_mid + mlp_out  # (n_tokens, d_model)
        yield from hand_over("resid_post", resid_post)
        return resid_post

    def _unembed_steps(
        self, resid: Array, sites: frozenset[str], tokens: list[int] | None = None
    ) -> Generator[Site, None, Array]:
        """What follows the last block: the final LayerNorm, and the logits of all tokens or of some."""
        ln_final = layer_norm(self._check_resid(resid), *self.ln_f, self.config.layer_norm_epsilon)
        if "ln_final" in sites:
            yield Site("ln_final", None, ln_final)  # (n_tokens, d_model)
            ln_final.flags.writeable = False

        logits = affine(ln_final, self.lm_head.T if tokens is None else self.lm_head[tokens].T)
        if "logits" in sites:
            yield Site("logits", None, logits)  # (n_tokens, n_vocab)
            logits.flags.writeable = False
        return logits

    # ---- the same in larger pieces --------------------------------------------------------------

    def run(
        self, prompt: Prompt, *, prepend_bos: bool = False, special_tokens: bool = False, sites: Sites = None
    ) -> Run:
        """Run the model and record every named array, or those named in `sites`: a `Run`.

        The arguments are those of `steps`.

        Examples
        --------
        >>> import nanopatch
        >>> run = nanopatch.load("nano").run("Michelle Jones was a top-notch student. Michelle")
        >>> run.resid_pre.shape, run.pattern.shape, run.logits.shape
        ((4, 11, 128), (4, 4, 11, 11), (11, 50257))
        """
        tokens = self.tokenize(prompt, prepend_bos=prepend_bos, special_tokens=special_tokens)
        kept = known_sites(sites)
        run = record(self.steps(tokens, sites=kept), sites=kept)
        tokens.flags.writeable = False
        run.tokens, run.model = tokens.view(RunArray), self
        return run

    def backward(self, run: Run, d_logits: Array, *, sites: Sites = None) -> Run:
        """Derivatives of `sum(d_logits * logits)` with respect to every named array, or those in `sites`, as a `Run`.

        run: a full record of a run of this model. d_logits: an array of the shape of its logits.
        `nanopatch.model.backward.backward` says what exactly is computed.
        """
        return backward(self, run, d_logits, sites)

    def embed(self, prompt: Prompt, start: int = 0) -> Array:
        """The residual stream entering block 0, `wte[tokens] + wpe[positions]`: (n_tokens, d_model).

        start: the position of the first token, if the prompt continues an earlier one.
        """
        tokens = self.tokenize(prompt)
        end = start + tokens.shape[-1]
        if start < 0 or end > self.n_ctx:
            raise NanopatchError(f"positions {start} to {end - 1} are outside this model's, 0 to {self.n_ctx - 1}")
        embedded: Array = self.wte[tokens] + self.wpe[start:end]
        return embedded

    def block(self, layer: int, resid: Array) -> Array:
        """One block: residual stream in, residual stream out, both (n_tokens, d_model); the input is not changed."""
        # Every array is handed over, so that each can be edited at a breakpoint inside. The generator is unpacked
        # without a function in between, so that a debugger that steps in is in `block_steps` at once.
        *_, last = self.block_steps(layer, resid)
        resid_post = last._array  # not `last.array`, which is a view to be read, now that the block is done
        resid_post.flags.writeable = True  # it is the caller's
        return resid_post

    def unembed(self, resid: Array, tokens: Prompt | None = None) -> Array:
        """Logits (n_tokens, n_vocab) of the residual stream after the last block, (n_tokens, d_model).

        tokens: the ids to compute logits of, in this order; the whole vocabulary by default.
        """
        ids = None if tokens is None else self._ids(tokens)
        return _result(self._unembed_steps(resid, frozenset(), ids))

    def next_logits(self, prompt: Prompt, *, prepend_bos: bool = False, special_tokens: bool = False) -> Array:
        """Logits (n_vocab,) of the token that follows the prompt: `run(prompt).logits[-1]`, and no others."""
        resid = self.embed(self.tokenize(prompt, prepend_bos=prepend_bos, special_tokens=special_tokens))
        for layer in range(self.n_layer):
            last = layer == self.n_layer - 1
            resid = _result(self.block_steps(layer, resid, sites=(), rows=last_row(resid.shape[-2]) if last else None))
        logits: Array = self.unembed(resid)[..., -1, :]
        return logits

    # ---- tokens ---------------------------------------------------------------------------------

    def tokenize(self, prompt: Prompt, *, prepend_bos: bool = False, special_tokens: bool = False) -> Array:
        """Token ids of a prompt, checked: an int64 array (n_tokens,), or (batch, n_tokens) for a batch.

        Parameters
        ----------
        prompt : str, or token ids
        prepend_bos : bool
            Put the checkpoint's `bos_token_id` first, which is GPT-2's `<|endoftext|>`.
        special_tokens : bool
            Read `<|endoftext|>` inside the text as that token. By default it is ordinary text.

        Raises
        ------
        NanopatchError
            If the prompt is empty or longer than n_ctx, an id is outside the vocabulary, or text is given where the
            vocabulary is not GPT-2's.

        Examples
        --------
        >>> import nanopatch
        >>> nanopatch.load("nano").tokenize("Michelle Jones")
        array([48736,  5437])
        """
        if isinstance(prompt, str):
            tokens = np.array(self._known_vocabulary(prompt).encode(prompt, special_tokens), dtype=np.int64)
        else:
            try:
                tokens = np.asarray(prompt)
            except ValueError:  # rows of unequal lengths
                raise NanopatchError("a batch needs prompts of one length: run the others one by one") from None
            if tokens.dtype.kind == "U":
                raise NanopatchError(f"one text at a time: run each of these {tokens.size} prompts alone")
            if tokens.size and tokens.dtype.kind not in "iu":
                raise NanopatchError(f"a prompt is text or whole-number token ids, not {prompt!r:.60}")
            if tokens.ndim not in (1, 2):
                raise NanopatchError(f"token ids have shape (n_tokens,) or (batch, n_tokens), not {tokens.shape}")
            tokens = tokens.astype(np.int64)
        if prepend_bos:
            bos = self.config.bos_token_id
            if bos is None or not 0 <= bos < self.n_vocab:
                raise NanopatchError(
                    f"this model has no token to put before a prompt: its config.json has bos_token_id {bos}, its "
                    f"vocabulary 0 to {self.n_vocab - 1}; leave out prepend_bos (--bos)"
                )
            tokens = np.concatenate([np.full((*tokens.shape[:-1], 1), bos), tokens], axis=-1)
        if tokens.size == 0:
            raise NanopatchError(
                "the prompt is empty: give it at least one token (or <|endoftext|>: prepend_bos=True, --bos)"
            )
        if tokens.shape[-1] > self.n_ctx:
            raise NanopatchError(
                f"the prompt has {tokens.shape[-1]} tokens, and this model reads {self.n_ctx} at most: shorten it"
            )
        return self._in_vocabulary(tokens)

    def detokenize(self, tokens: Prompt | int) -> str:
        """Text of one prompt's token ids (n_tokens,). Bytes that are only part of a character become U+FFFD."""
        return self._known_vocabulary("token ids").decode(self._ids(tokens))

    def token_strings(self, tokens: Prompt | int) -> list[str]:
        r"""Each token of (n_tokens,) ids as a text of its own, for labels; `#id` if the vocabulary is not GPT-2's.

        Different tokens have different texts: bytes that are only part of a character stand as `\xf0`.
        """
        ids = self._ids(tokens)
        if self.token_names is not None:
            return [self.token_names[token] for token in ids]
        return [self.vocabulary.token_text(token) if self.vocabulary else f"#{token}" for token in ids]

    # ---- small helpers --------------------------------------------------------------------------

    def _split_heads(self, rows: Array) -> Array:
        return rows.reshape(*rows.shape[:-1], self.n_head, self.d_head)  # (n_tokens, n_head, d_head)

    def _attention_scale(self, layer: int) -> float:
        scale = 1 / math.sqrt(self.d_head) if self.config.scale_attn_weights else 1.0
        return scale / (layer + 1) if self.config.scale_attn_by_inverse_layer_idx else scale

    def _in_vocabulary(self, tokens: Array) -> Array:
        outside = tokens[(tokens < 0) | (tokens >= self.n_vocab)]
        if outside.size:
            raise NanopatchError(f"token id {outside[0]} is outside the vocabulary, 0 to {self.n_vocab - 1}")
        return tokens

    def _ids(self, tokens: Any) -> list[int]:
        """Token ids of one prompt, checked."""
        ids: list[int] = self._in_vocabulary(np.array(_one_prompt(tokens))).tolist()
        return ids

    def _check_layer(self, layer: Any) -> None:
        if not isinstance(layer, numbers.Integral) or not 0 <= int(layer) < self.n_layer:
            raise NanopatchError(f"layer {layer} does not exist: this model's layers are 0 to {self.n_layer - 1}")

    def _check_resid(self, resid: Array) -> Array:
        shape, dtype = np.shape(resid), getattr(resid, "dtype", type(resid).__name__)
        if len(shape) < 2 or shape[-1] != self.d_model or 0 in shape or dtype != self.dtype:
            raise NanopatchError(
                f"a residual stream is (n_tokens, {self.d_model}) of dtype {self.dtype}, not {shape} and {dtype}"
            )
        return resid

    def _known_vocabulary(self, prompt: str) -> Vocabulary:
        if self.vocabulary is None:
            raise NanopatchError(
                f"this model's vocabulary is not known, so text cannot be turned into its tokens: give token ids, not "
                f"{prompt!r:.60}, or say whose it is by load(..., vocabulary=...), which is 'gpt2' or a file (a "
                'tokenizer.json needs pip install "nanopatch[tokenizers]")'
            )
        return self.vocabulary


def _one_prompt(tokens: Any) -> list[int]:
    """Token ids of an array (n_tokens,), a list, or one id alone, as a list of int."""
    try:
        ids = np.atleast_1d(tokens)
    except ValueError:  # rows of unequal lengths
        ids = np.empty((0, 0))
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
        raise NanopatchError(f"one prompt's token ids are whole numbers of shape (n_tokens,), not {tokens!r:.60}")
    return [int(token) for token in ids]


def _result(steps: Generator[Any, None, T]) -> T:
    """Run a generator to its end, and return what it returns."""
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            result: T = stop.value
            return result
