"""GPT-2's forward pass: the one definition that everything else in this library goes through.

It is written as a generator. Each array is handed over under its own name as soon as it exists, and
the pass carries on with whatever that array holds when it is resumed. Recording is a loop over it;
patching is an assignment inside such a loop.

Shapes are for one prompt; any leading axes (a batch) may stand before them.

    n_tokens  positions of the prompt             d_model  width of the residual stream
    n_head    attention heads of a block          d_head   width of one head, d_model / n_head
    n_query, n_key  positions that attend, and that are attended to
    d_mlp     neurons of a block's MLP            n_vocab  size of the vocabulary

Weights keep the names of the published checkpoint (`wte`, `h[3].attn.c_attn.weight`, ...),
activations the names of TransformerLens (`resid_pre`, `q`, `pattern`, `z`, `mlp_post`, ...).
"""

import math
import numbers
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from . import tokenizer
from ..errors import NanopatchError
from .layers import ACTIVATIONS, affine, layer_norm, softmax
from .packing import causal_mask, query_blocks
from .sites import BLOCK_SITES, Site, known_sites, record


@dataclass(frozen=True)
class Config:
    """What a checkpoint's `config.json` says of the model, under the names it uses there."""

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
    tie_word_embeddings: bool = True  # whether lm_head may be missing, being wte


class Weights(NamedTuple):
    """Weight and bias of one LayerNorm or one affine map."""

    weight: np.ndarray
    bias: np.ndarray


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

    `steps` (all named arrays, one by one), `run` (all of them, recorded), `embed` / `block` /
    `unembed` (the residual stream in between, for a loop of one's own), `block_steps` (the named
    arrays of one block). Prompts are text, a list of token ids, or an array of ids of shape
    (n_tokens,) or (batch, n_tokens). Made by `nanopatch.load`.

    config: the `Config`; wte (n_vocab, d_model), wpe (n_ctx, d_model), h (a tuple of `Block`), ln_f,
    lm_head (n_vocab, d_model; the same array as wte where tied): the weights; dtype: theirs, and that
    of every activation; source: where the weights came from; reads_text: whether the vocabulary is
    GPT-2's, so that prompts may be text.
    """

    def __init__(self, config, wte, wpe, h, ln_f, lm_head, source=None, reads_text=True):
        self.config, self.source, self.reads_text = config, source, reads_text
        self.wte, self.wpe, self.h, self.ln_f, self.lm_head = wte, wpe, h, ln_f, lm_head
        self.dtype = wte.dtype
        self.n_layer, self.n_head, self.d_model = config.n_layer, config.n_head, config.n_embd
        self.d_head, self.d_mlp = config.n_embd // config.n_head, config.n_inner
        self.n_ctx, self.n_vocab = config.n_positions, config.vocab_size

    def __repr__(self):
        name = self.source.name if self.source else "unnamed"
        return (
            f"Model({name}: {self.n_layer} layers, {self.n_head} heads, d_model {self.d_model}, "
            f"{self.n_ctx} positions, {self.n_vocab} tokens, {self.dtype})"
        )

    # ---- the forward pass -----------------------------------------------------------------------

    def steps(self, prompt, *, prepend_bos=False, sites=None):
        """Run the model on a prompt, handing over each named array as a `Site`.

        prompt: text or token ids. prepend_bos: put `<|endoftext|>` before it. sites: names to hand
        over, all by default, of which the last is `logits`, (n_tokens, n_vocab). Asking for fewer
        costs less: what nobody asked for need not be kept apart, and without `ln_final` and `logits`
        the unembedding is left out.
        """
        sites = known_sites(sites)
        resid = self.embed(self.tokenize(prompt, prepend_bos=prepend_bos))
        yield from self.steps_from(0, resid, sites=sites)

    def steps_from(self, layer, resid, *, sites=None):
        """The rest of a run, from the start of block `layer` on, where the residual stream is `resid`.

        layer: 0 to n_layer; n_layer means that only ln_f and the unembedding are left. resid:
        (n_tokens, d_model), never written into. sites: as for `steps`.
        """
        sites = known_sites(sites)
        if layer != self.n_layer:
            self._check_layer(layer)
        for later in range(layer, self.n_layer):
            resid = yield from self.block_steps(later, resid, sites=sites)
        if sites & {"ln_final", "logits"}:
            yield from self._unembed_steps(resid, sites)

    def block_steps(self, layer, resid, *, sites=None, parts=None, queries=None):
        """One block, handing over each named array; returns (as a generator does) `resid_post`.

        layer: 0 to n_layer - 1. resid: the residual stream entering the block, (n_tokens, d_model);
        never written into. sites: names to hand over, all by default. parts: which rows attend to
        which, for rows of several runs packed into one matrix and for runs whose first positions are
        known already (see `nanopatch.packing`); by default every row to itself and those before it.
        queries: the rows whose output anyone will read, all by default; from `q_input` on, only they
        are computed.
        """
        sites = known_sites(sites)
        self._check_layer(layer)
        block, eps, d_model = self.h[layer], self.config.layer_norm_epsilon, self.d_model

        resid_pre = self._check_resid(resid).copy()  # (n_tokens, d_model)
        yield from hand_over("resid_pre", layer, resid_pre, sites)

        # Queries, keys and values each read the residual stream: the same array, unless somebody
        # asked for one of the three readings, to patch it alone.
        resid_read = resid_pre if queries is None else resid_pre[..., queries, :]  # (n_query, d_model)
        q_input, k_input, v_input = resid_read, resid_pre, resid_pre
        if sites & {"q_input", "k_input", "v_input"}:
            q_input, k_input, v_input = resid_read.copy(), resid_pre.copy(), resid_pre.copy()
        yield from hand_over("q_input", layer, q_input, sites)
        yield from hand_over("k_input", layer, k_input, sites)
        yield from hand_over("v_input", layer, v_input, sites)

        q_normed = layer_norm(q_input, *block.ln_1, eps)  # (n_tokens, d_model)
        k_normed = q_normed if k_input is q_input else layer_norm(k_input, *block.ln_1, eps)
        v_normed = k_normed if v_input is k_input else layer_norm(v_input, *block.ln_1, eps)
        c_attn, bias = block.attn.c_attn  # (d_model, 3 d_model)
        q = self._split_heads(affine(q_normed, c_attn[:, :d_model], bias[:d_model]))
        yield from hand_over("q", layer, q, sites)  # (n_tokens, n_head, d_head)
        k = self._split_heads(affine(k_normed, c_attn[:, d_model : 2 * d_model], bias[d_model : 2 * d_model]))
        yield from hand_over("k", layer, k, sites)  # (n_tokens, n_head, d_head)
        v = self._split_heads(affine(v_normed, c_attn[:, 2 * d_model :], bias[2 * d_model :]))
        yield from hand_over("v", layer, v, sites)  # (n_tokens, n_head, d_head)

        z = np.empty_like(q)  # filled below, part by part                         # (n_tokens, n_head, d_head)
        if parts is None:  # one part; several, which is faster when long, if nobody looks inside
            n_query, n_key = q.shape[-3], k.shape[-3]
            parts = query_blocks(n_query, n_key, size=n_query if sites & {"scores", "pattern"} else 128)
        for part in parts:
            # Head axis first, so that each head's matrices stand together; views, not copies.
            part_q = np.swapaxes(part.queries(q), -3, -2)  # (n_head, n_query, d_head)
            part_k = np.swapaxes(part.keys(k), -3, -2)  # (n_head, n_key, d_head)
            part_v = np.swapaxes(part.values(v), -3, -2)  # (n_head, n_key, d_head)

            scores = (part_q * self._attention_scale(layer)) @ np.swapaxes(part_k, -2, -1)
            scores += causal_mask(*scores.shape[-2:], self.dtype)  # (n_head, n_query, n_key)
            yield from hand_over("scores", layer, scores, sites, part)

            pattern = softmax(scores, out=None if "scores" in sites else scores)  # (n_head, n_query, n_key)
            yield from hand_over("pattern", layer, pattern, sites, part)

            np.matmul(pattern, part_v, out=np.swapaxes(part.queries(z), -3, -2))
        yield from hand_over("z", layer, z, sites)

        attn_out = affine(z.reshape(resid_read.shape), *block.attn.c_proj)  # (n_tokens, d_model)
        yield from hand_over("attn_out", layer, attn_out, sites)

        resid_mid = resid_read + attn_out  # (n_tokens, d_model)
        yield from hand_over("resid_mid", layer, resid_mid, sites)

        mlp_in = resid_mid.copy() if "mlp_in" in sites else resid_mid  # (n_tokens, d_model)
        yield from hand_over("mlp_in", layer, mlp_in, sites)

        mlp_pre = affine(layer_norm(mlp_in, *block.ln_2, eps), *block.mlp.c_fc)  # (n_tokens, d_mlp)
        yield from hand_over("mlp_pre", layer, mlp_pre, sites)

        activation = ACTIVATIONS[self.config.activation_function]
        mlp_post = activation(mlp_pre, out=None if "mlp_pre" in sites else mlp_pre)
        yield from hand_over("mlp_post", layer, mlp_post, sites)  # (n_tokens, d_mlp)

        mlp_out = affine(mlp_post, *block.mlp.c_proj)  # (n_tokens, d_model)
        yield from hand_over("mlp_out", layer, mlp_out, sites)

        resid_post = resid_mid + mlp_out  # (n_tokens, d_model)
        yield from hand_over("resid_post", layer, resid_post, sites)
        return resid_post

    def _unembed_steps(self, resid, sites, tokens=None):
        """What follows the last block: the final LayerNorm, and the unembedding, of all tokens or of those named."""
        ln_final = layer_norm(self._check_resid(resid), *self.ln_f, self.config.layer_norm_epsilon)
        yield from hand_over("ln_final", None, ln_final, sites)  # (n_tokens, d_model)

        lm_head = self.lm_head if tokens is None else self.lm_head[tokens]
        logits = affine(ln_final, lm_head.T)  # (n_tokens, n_vocab)
        yield from hand_over("logits", None, logits, sites)
        return logits

    # ---- the same in larger pieces --------------------------------------------------------------

    def run(self, prompt, *, prepend_bos=False, sites=None):
        """Run the model and record every named array, or those named in `sites`: a `Run`."""
        tokens = self.tokenize(prompt, prepend_bos=prepend_bos)
        kept = known_sites(sites)
        run = record(self.steps(tokens, sites=kept), sites=kept)
        run.tokens, run.model = tokens, self
        run.tokens.flags.writeable = False
        return run

    def backward(self, run, d_logits, *, sites=None):
        """Derivatives of `sum(d_logits * logits)` with respect to every named array, or those in `sites`, as a `Run`.

        run: a full record of a run of this model; d_logits: an array shaped as its logits. What exactly
        is computed: `nanopatch.backward.backward`.
        """
        from .backward import backward

        return backward(self, run, d_logits, sites)

    def embed(self, prompt, start=0):
        """The residual stream entering block 0, `wte[tokens] + wpe[positions]`: (n_tokens, d_model).

        start: the position of the first token, where the prompt goes on from an earlier one.
        """
        tokens = self.tokenize(prompt)
        end = start + tokens.shape[-1]
        if start < 0 or end > self.n_ctx:
            raise NanopatchError(f"positions {start} to {end - 1} are outside this model's, 0 to {self.n_ctx - 1}")
        return self.wte[tokens] + self.wpe[start:end]

    def block(self, layer, resid):
        """One block: residual stream in, residual stream out, both (n_tokens, d_model); the input is not changed."""
        # As in `steps`, each array is its own and can be edited at a breakpoint inside; the result stays open.
        return _result(self.block_steps(layer, resid, sites=set(BLOCK_SITES) - {"resid_post"}))

    def unembed(self, resid, tokens=None):
        """Logits (n_tokens, n_vocab) of the residual stream after the last block, (n_tokens, d_model).

        tokens: ids whose logits are wanted, in their order; the whole vocabulary by default.
        """
        if tokens is not None:
            tokens = self._in_vocabulary(np.array(_one_prompt(tokens), np.int64))
        return _result(self._unembed_steps(resid, frozenset(), tokens))

    def next_logits(self, prompt, *, prepend_bos=False):
        """Logits (n_vocab,) of the token that follows the prompt: `run(prompt).logits[-1]`, computing no others."""
        resid = self.embed(self.tokenize(prompt, prepend_bos=prepend_bos))
        for layer in range(self.n_layer):
            last_only = slice(-1, None) if layer == self.n_layer - 1 else None
            resid = _result(self.block_steps(layer, resid, sites=(), queries=last_only))
        return self.unembed(resid)[..., -1, :]

    # ---- tokens ---------------------------------------------------------------------------------

    def tokenize(self, prompt, *, prepend_bos=False, special_tokens=False):
        """Token ids of a prompt, checked: an int64 array (n_tokens,), or (batch, n_tokens) if so given.

        prompt: text, or ids already. prepend_bos: put `<|endoftext|>` first. special_tokens: read
        `<|endoftext|>` inside the text as that token rather than as ordinary text. Raises
        NanopatchError for an empty prompt, one longer than n_ctx, an id outside the vocabulary, or
        text where the vocabulary is not GPT-2's.
        """
        if isinstance(prompt, str):
            self._check_reads_text(prompt)
            tokens = np.array(tokenizer.encode(prompt, special_tokens), dtype=np.int64)
        else:
            try:
                tokens = np.asarray(prompt)
            except ValueError:  # rows of unequal lengths
                raise NanopatchError("a batch of prompts needs rows of one length: run others one by one") from None
            if tokens.size and tokens.dtype.kind not in "iu":
                raise NanopatchError(f"a prompt is text or whole-number token ids, not {prompt!r:.60}")
            if tokens.ndim not in (1, 2):
                raise NanopatchError(f"token ids have shape (n_tokens,) or (batch, n_tokens), not {tokens.shape}")
            tokens = tokens.astype(np.int64)
        if prepend_bos:
            bos = np.full((*tokens.shape[:-1], 1), tokenizer.ENDOFTEXT_ID)
            tokens = np.concatenate([bos, tokens], axis=-1)
        if tokens.size == 0:
            raise NanopatchError(
                "the prompt is empty: give it at least one token (or <|endoftext|>: prepend_bos=True, --bos)"
            )
        if tokens.shape[-1] > self.n_ctx:
            raise NanopatchError(
                f"the prompt has {tokens.shape[-1]} tokens, and this model reads {self.n_ctx} at most: shorten it"
            )
        return self._in_vocabulary(tokens)

    def detokenize(self, tokens):
        """Text of one prompt's token ids (n_tokens,). Bytes that are only part of a character become U+FFFD."""
        self._check_reads_text("token ids")
        return tokenizer.decode(_one_prompt(tokens))

    def token_strings(self, tokens):
        """Each token of (n_tokens,) ids as text of its own, for labels; `#id` where the vocabulary is not GPT-2's."""
        return [tokenizer.decode([token]) if self.reads_text else f"#{token}" for token in _one_prompt(tokens)]

    # ---- small helpers --------------------------------------------------------------------------

    def _split_heads(self, rows):
        return rows.reshape(*rows.shape[:-1], self.n_head, self.d_head)  # (n_tokens, n_head, d_head)

    def _attention_scale(self, layer):
        scale = 1 / math.sqrt(self.d_head) if self.config.scale_attn_weights else 1.0
        return scale / (layer + 1) if self.config.scale_attn_by_inverse_layer_idx else scale

    def _in_vocabulary(self, tokens):
        outside = tokens[(tokens < 0) | (tokens >= self.n_vocab)]
        if outside.size:
            raise NanopatchError(f"token id {outside[0]} is outside the vocabulary, 0 to {self.n_vocab - 1}")
        return tokens

    def _check_layer(self, layer):
        if not isinstance(layer, numbers.Integral) or not 0 <= layer < self.n_layer:
            raise NanopatchError(f"layer {layer} does not exist: this model's layers are 0 to {self.n_layer - 1}")

    def _check_resid(self, resid):
        shape, dtype = np.shape(resid), getattr(resid, "dtype", type(resid).__name__)
        if len(shape) < 2 or shape[-1] != self.d_model or 0 in shape or dtype != self.dtype:
            raise NanopatchError(
                f"a residual stream is (n_tokens, {self.d_model}) of dtype {self.dtype}, not {shape} and {dtype}"
            )
        return resid

    def _check_reads_text(self, prompt):
        if not self.reads_text:
            raise NanopatchError(
                f"this model's vocabulary is not GPT-2's, so text cannot be turned into its tokens: give token ids, "
                f"not {prompt!r:.60}"
            )


def hand_over(name, layer, array, sites, part=None):
    """Yield `array` as a `Site` if its name is among `sites`; once resumed, lock it, so that no edit comes too late."""
    if name in sites:
        yield Site(name, layer, array, part)
        array.flags.writeable = False


def _one_prompt(tokens):
    """Token ids of an array (n_tokens,), a list, or one id alone, as a list of int."""
    try:
        ids = np.atleast_1d(tokens)
    except ValueError:  # rows of unequal lengths
        ids = np.empty((0, 0))
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
        raise NanopatchError(f"one prompt's token ids are whole numbers of shape (n_tokens,), not {tokens!r:.60}")
    return ids.astype(np.int64).tolist()


def _result(steps):
    """Run a generator to its end; what it returns."""
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            return stop.value
