"""Reads the files of llm.c: a checkpoint (`gpt2_124M.bin`), and the debug state that its tests compare with.

Both begin with 256 int32. Both formats are those of `write_model` and `write_state` in llm.c's `train_gpt2.py`.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import NanopatchError
from ..files import opened
from ..types import Array
from .stored import Stored
from .tokenizer import N_VOCAB

MODEL_MAGIC, STATE_MAGIC = 20240326, 20240327
#: The first numbers of its other files, and what they are. They too end in .bin.
OTHERS = {STATE_MAGIC: "debug state", 20240328: "tokenizer", 20240520: "tokens", 20240527: "state of training"}
HEADER = 256  # numbers
#: Versions of a checkpoint: their number format and the bytes of a number. 1 and 2 were before padded vocabularies.
VERSIONS = {3: ("F32", 4), 5: ("BF16", 2)}
#: More layers than any GPT-2 has: blocks of one number each would need far more memory than the file.
MAX_LAYERS = 1000
STATE_VERSION = 2


class DebugState(NamedTuple):
    """What PyTorch computed for one batch. llm.c pads the gradient of wte as it pads wte.

    tokens, targets: (batch, n_tokens). logits: (batch, n_tokens, n_vocab). loss: mean cross-entropy in nats.
    gradients: {checkpoint key: the loss's derivative with respect to it}, in GPT-2's names and layout.
    """

    tokens: Array
    targets: Array
    logits: Array
    loss: float
    gradients: dict[str, Array]


def tensor_order(n_layer: int, d: int, n_vocab: int, n_ctx: int) -> list[tuple[str, tuple[int, ...]]]:
    """(checkpoint key, shape) of every tensor, in the order of the file. `{i}` stands for all blocks, one by one.

    Linear weights are stored (out, in), as nn.Linear has them.
    """
    return [
        ("wte.weight", (n_vocab, d)),
        ("wpe.weight", (n_ctx, d)),
        ("h.{i}.ln_1.weight", (d,)),
        ("h.{i}.ln_1.bias", (d,)),
        ("h.{i}.attn.c_attn.weight", (3 * d, d)),
        ("h.{i}.attn.c_attn.bias", (3 * d,)),
        ("h.{i}.attn.c_proj.weight", (d, d)),
        ("h.{i}.attn.c_proj.bias", (d,)),
        ("h.{i}.ln_2.weight", (d,)),
        ("h.{i}.ln_2.bias", (d,)),
        ("h.{i}.mlp.c_fc.weight", (4 * d, d)),
        ("h.{i}.mlp.c_fc.bias", (4 * d,)),
        ("h.{i}.mlp.c_proj.weight", (d, 4 * d)),
        ("h.{i}.mlp.c_proj.bias", (d,)),
        ("ln_f.weight", (d,)),
        ("ln_f.bias", (d,)),
    ]


def read_llmc(path: Path) -> tuple[dict[str, Stored], dict[str, Any]]:
    """The tensors of a checkpoint of llm.c, and what its header says, in the terms of GPT-2's config.json.

    llm.c pads its vocabulary with rows of zeros that it never reads; they are left out here.

    Raises NanopatchError if the file is not whole, or of a version that is unknown.
    """
    header = _header(path, MODEL_MAGIC)
    version, n_ctx, n_vocab, n_layer, n_head, d, padded = map(int, header[1:8])
    if version not in VERSIONS:
        raise NanopatchError(f"{path} is a checkpoint of llm.c of version {version}; versions 3 and 5 can be read")
    sizes = dict(n_positions=n_ctx, vocab_size=n_vocab, n_layer=n_layer, n_head=n_head, n_embd=d)
    if min(*sizes.values(), padded) < 1 or padded < n_vocab or n_layer > MAX_LAYERS:
        raise NanopatchError(f"{path}: its header has sizes that cannot be ({sizes}, padded to {padded})")
    number_format, item_size = VERSIONS[version]
    start, size = 4 * HEADER, path.stat().st_size
    order = tensor_order(n_layer, d, padded, n_ctx)
    n_blocks = {name: n_layer if "{i}" in name else 1 for name, _ in order}
    expected = start + item_size * sum(n_blocks[name] * math.prod(shape) for name, shape in order)
    if size != expected:  # checked first, so that no list of a billion names is made
        raise NanopatchError(f"{path} has {size:,} bytes, and its header says {expected:,}: fetch it again")
    tensors = {}
    for name, shape in order:
        for i in range(n_blocks[name]):
            tensors[name.format(i=i)] = Stored(path, start, number_format, shape)
            start += item_size * math.prod(shape)
    wte = tensors["wte.weight"]
    tensors["wte.weight"] = Stored(path, wte.start, number_format, (n_vocab, d))
    said: dict[str, Any] = {**sizes, "activation_function": "gelu_new", "tie_word_embeddings": True}
    if n_vocab == N_VOCAB:  # llm.c has no other tokenizer of this size
        said["vocabulary"] = "gpt2"
    return tensors, said


def read_debug_state(path: Path, n_layer: int, d: int, n_vocab: int, n_ctx: int) -> DebugState:
    """The debug state of a model of these sizes. Raises NanopatchError if the file is not whole or of another model."""
    header = _header(path, STATE_MAGIC)
    version, batch, n_tokens = map(int, header[1:4])
    if version != STATE_VERSION:
        raise NanopatchError(
            f"{path} is a debug state of llm.c of version {version}; version {STATE_VERSION} can be read"
        )
    n_numbers = (path.stat().st_size - 4 * HEADER) / 4
    n_batch = batch * n_tokens
    rest = sum((n_layer if "{i}" in name else 1) * math.prod(s) for name, s in tensor_order(n_layer, d, 0, n_ctx))
    padded = (n_numbers - 2 * n_batch - n_batch * n_vocab - 1 - rest) / d
    if min(batch, n_tokens) < 1 or padded != int(padded) or padded < n_vocab:
        raise NanopatchError(f"{path} has another size than a debug state of this model has")
    with opened(path) as file:
        file.seek(4 * HEADER)

        def take(dtype: Any, *shape: int) -> Array:
            return np.frombuffer(file.read(4 * math.prod(shape)), dtype).reshape(shape)

        tokens, targets = take("<i4", batch, n_tokens), take("<i4", batch, n_tokens)
        logits, loss = take("<f4", batch, n_tokens, n_vocab), float(take("<f4", 1)[0])
        gradients = {}
        for name, shape in tensor_order(n_layer, d, int(padded), n_ctx):
            for i in range(n_layer if "{i}" in name else 1):
                gradient = take("<f4", *shape)
                is_linear = len(shape) == 2 and "{i}" in name
                gradients[name.format(i=i)] = gradient.T if is_linear else gradient
        gradients["wte.weight"] = gradients["wte.weight"][:n_vocab]
    return DebugState(tokens, targets, logits, loss, gradients)


def _header(path: Path, magic: int) -> Array:
    with opened(path) as file:
        content = file.read(4 * HEADER)
    header = np.frombuffer(content, "<i4", count=len(content) // 4)
    if len(header) < HEADER or header[0] != magic:
        what = "checkpoint" if magic == MODEL_MAGIC else "debug state"
        raise NanopatchError(f"{path} is not a {what} of llm.c: it does not begin with {magic}")
    return header
