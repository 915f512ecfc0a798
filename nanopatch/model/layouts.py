"""From the tensors of any program's GPT-2 to those of the published one: its names, and its layout of linear weights.

d_model, n_head, d_head  as in `nanopatch.model.gpt2`
linear   the layout of PyTorch's nn.Linear, (n_out, n_in): minGPT, nanoGPT, makemore, llm.c
Conv1D   the layout of the published checkpoints, (n_in, n_out): OpenAI, Hugging Face
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ..errors import NanopatchError
from ..types import Array, PathLike
from .stored import FORMATS, Rearranged, Stored

Tensors = Mapping[str, "Stored | Rearranged | Array"]

#: What wrappers put before the names, in any order: Hugging Face and nanoGPT; DataParallel; torch.compile.
PREFIXES = ("transformer.", "module.", "_orig_mod.")
#: The longest name of a tensor, with room for several prefixes.
MAX_NAME = 200
#: The weights of a block that are stored in one of the two layouts.
LINEAR = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")

#: minGPT's names before July 2022 (its commit 3ed14b2), whose queries, keys and values are three nn.Linear.
OLD_MINGPT = {
    "tok_emb.weight": "wte.weight",
    "head.weight": "lm_head.weight",
    r"blocks.(\d+).ln1.": r"h.\1.ln_1.",
    r"blocks.(\d+).ln2.": r"h.\1.ln_2.",
    r"blocks.(\d+).attn.proj.": r"h.\1.attn.c_proj.",
    r"blocks.(\d+).mlp.0.": r"h.\1.mlp.c_fc.",
    r"blocks.(\d+).mlp.2.": r"h.\1.mlp.c_proj.",
}
#: TransformerLens' names of what needs no more than another name. Its linear weights are stored (n_in, n_out).
TRANSFORMER_LENS = {
    "embed.W_E": "wte.weight",
    "pos_embed.W_pos": "wpe.weight",
    "ln_final.w": "ln_f.weight",
    "ln_final.b": "ln_f.bias",
    r"blocks.(\d+).ln1.w": r"h.\1.ln_1.weight",
    r"blocks.(\d+).ln1.b": r"h.\1.ln_1.bias",
    r"blocks.(\d+).ln2.w": r"h.\1.ln_2.weight",
    r"blocks.(\d+).ln2.b": r"h.\1.ln_2.bias",
    r"blocks.(\d+).attn.b_O": r"h.\1.attn.c_proj.bias",
    r"blocks.(\d+).mlp.W_in": r"h.\1.mlp.c_fc.weight",
    r"blocks.(\d+).mlp.b_in": r"h.\1.mlp.c_fc.bias",
    r"blocks.(\d+).mlp.W_out": r"h.\1.mlp.c_proj.weight",
    r"blocks.(\d+).mlp.b_out": r"h.\1.mlp.c_proj.bias",
}
#: Buffers, which are no weights: causal masks, and what masked scores were set to.
BUFFERS = r"(h\.\d+\.attn\.(bias|masked_bias)|blocks\.\d+\.attn\.(mask|IGNORE))"


class Published(NamedTuple):
    """Tensors in the published names and layout, what the names themselves tell of the config, and what was seen."""

    tensors: dict[str, Stored | Rearranged | Array]
    config: dict[str, Any]
    seen: tuple[str, ...]


def published_layout(given: Tensors, where: PathLike) -> Published:
    """A state dict in the names and the layout of the published GPT-2.

    The names may have the prefixes of `PREFIXES`, in any order. The names may be those of Hugging Face, minGPT,
    nanoGPT and llm.c, of minGPT before July 2022, or of TransformerLens (unfolded). The layout is told by c_attn:
    (3 d_model, d_model) is linear. If there is no bias at all, all biases become 0. Buffers are left out.

    Raises NanopatchError if two tensors get the same name, or if layouts are mixed.
    """
    seen: list[str] = []
    tensors: dict[str, Any] = {}
    for name, tensor in given.items():
        if len(name) > MAX_NAME:
            raise NanopatchError(f"{where} has a tensor whose name has {len(name)} characters: not a GPT-2")
        short = name
        while prefix := next((p for p in PREFIXES if short.startswith(p)), None):
            short = short.removeprefix(prefix)
        if short in tensors:
            raise NanopatchError(
                f"{where} has two tensors {short!r:.100}, with and without a prefix: keep one of the two"
            )
        tensors[short] = tensor
    prefixes = {match for name in given for match in re.findall(r"module\.|_orig_mod\.", name)}
    seen += [f"keys with {prefix!r}" for prefix in sorted(prefixes)]
    tensors = {name: tensor for name, tensor in tensors.items() if not re.fullmatch(BUFFERS, name)}

    config: dict[str, Any] = {}
    if any(re.match(r"blocks\.\d+\.attn\.W_Q$", name) for name in tensors):
        seen.append("TransformerLens' names")
        tensors, config = _from_transformer_lens(tensors, where)
    elif any(re.match(r"blocks\.\d+\.attn\.query\.weight$", name) for name in tensors):
        seen.append("minGPT's old names")
        tensors = _from_old_mingpt(tensors, where)

    _check_prefixes(tensors, where)
    if "wte.weight" not in tensors and "lm_head.weight" in tensors:
        tensors["wte.weight"] = tensors["lm_head.weight"]  # tied, and stored once
    if _is_linear(tensors, where):
        seen.append("linear weights stored (n_out, n_in)")
        for name in tensors:
            if name.removesuffix(".weight").endswith(LINEAR) and name.endswith(".weight"):
                tensors[name] = transposed(tensors[name])
    if not any(name.endswith(".bias") for name in tensors):
        seen.append("no biases")
        biases = {
            name.removesuffix("weight") + "bias": tensor.shape[-1:]
            for name, tensor in tensors.items()
            if re.fullmatch(r"(h\.\d+\.\w+(\.\w+)?|ln_f)\.weight", name) and 0 not in tensor.shape
        }
        tensors |= {name: np.broadcast_to(np.float32(0), shape) for name, shape in biases.items()}  # takes no memory
    return Published(tensors, config, tuple(seen))


def _check_prefixes(tensors: Tensors, where: PathLike) -> None:
    """Raise NanopatchError if there are names of a GPT-2, but only after a prefix that is unknown."""
    known = r"(wte\.weight|wpe\.weight|h\.\d+\.ln_1\.weight|blocks\.\d+\.ln1\.w(eight)?)"
    if any(re.fullmatch(known, name) for name in tensors):
        return
    for name in tensors:
        if match := re.fullmatch(r"(.*?\.)(transformer\.)?" + known, name):
            raise NanopatchError(
                f"{where}: its keys start with {match[1]!r:.60}, such as {name!r:.100}: rename them; the prefixes that "
                f"are known are {', '.join(PREFIXES)}"
            )


def transposed(tensor: Stored | Rearranged | Array) -> Stored | Rearranged | Array:
    """The transposed matrix."""
    return tensor.T if isinstance(tensor, np.ndarray) else tensor.transposed


def _is_linear(tensors: Tensors, where: PathLike) -> bool:
    """Whether the linear weights are stored (n_out, n_in).

    Only c_attn tells: attn.c_proj is square, and the MLP's inner width is free. The MLP's must agree with it.
    """
    layouts: dict[bool, str] = {}  # {whether it is linear: the first name that says so}
    for name, tensor in tensors.items():
        match = re.fullmatch(r"h\.\d+\.(attn\.c_attn|mlp\.c_fc|mlp\.c_proj)\.weight", name)
        embedding = tensors.get("wte.weight")
        if match is None or embedding is None or len(tensor.shape) != 2 or len(embedding.shape) != 2:
            continue
        n_in, n_out = tensor.shape
        d = embedding.shape[-1]
        if match[1] == "attn.c_attn" and {n_in, n_out} == {d, 3 * d}:
            layouts.setdefault(n_out == d, name)
        elif match[1] != "attn.c_attn" and n_in != n_out and d in (n_in, n_out):
            layouts.setdefault((n_out == d) == (match[1] == "mlp.c_fc"), name)
    if len(layouts) == 2:
        raise NanopatchError(
            f"{where} mixes two layouts: {layouts[True]} is stored (n_out, n_in), the other way round than "
            f"{layouts[False]}; give the state dict as it was saved, or transpose all four weights of each block "
            "(attn.c_proj too, which is square) or none"
        )
    return True in layouts


def _renamed(tensors: dict[str, Any], names: Mapping[str, str], where: PathLike) -> dict[str, Any]:
    """Tensors under other names, by a table of regular expressions; the others keep theirs."""
    found: dict[str, Any] = {}
    for name, tensor in tensors.items():
        new = name
        for old, published in names.items():
            new, n = re.subn("^" + old.replace(".", r"\.") + ("" if old.endswith(".") else "$"), published, name)
            if n:
                break
        if new in found or (new != name and new in tensors):
            raise NanopatchError(f"{where} mixes two layouts: {name!r:.100} is {new!r:.100}, which is there too")
        found[new] = tensor
    return found


def _layers(tensors: Tensors, part: str) -> list[str]:
    return [m[1] for m in (re.fullmatch(rf"blocks\.(\d+)\.{re.escape(part)}", name) for name in tensors) if m]


def _from_old_mingpt(tensors: dict[str, Any], where: PathLike) -> dict[str, Any]:
    tensors = _renamed(tensors, OLD_MINGPT, where)
    if "pos_emb" in tensors:
        (positions,) = _taken(tensors, ["pos_emb"], 3, where)  # (1, n_positions, d_model)
        if positions.shape[0] != 1:
            raise NanopatchError(f"{where}: pos_emb has shape {positions.shape}; its first axis must be 1")
        tensors["wpe.weight"] = Rearranged((positions,), lambda p: p[0], positions.shape[1:])
    for kind in ("weight", "bias"):
        for i in _layers(tensors, f"attn.query.{kind}"):
            names = [f"blocks.{i}.attn.{which}.{kind}" for which in ("query", "key", "value")]
            parts = _taken(tensors, names, 2 if kind == "weight" else 1, where)
            n_out, *n_in = parts[0].shape
            shape = (3 * n_out, *n_in)
            tensors[f"h.{i}.attn.c_attn.{kind}"] = Rearranged(parts, lambda *rows: np.concatenate(rows), shape)
    return tensors


def _from_transformer_lens(tensors: dict[str, Any], where: PathLike) -> tuple[dict[str, Any], dict[str, Any]]:
    """Weights of heads are apart there: W_Q, W_K, W_V (n_head, d_model, d_head) and W_O (n_head, d_head, d_model)."""
    tensors = _renamed(tensors, TRANSFORMER_LENS, where)
    n_head = 0
    for i in _layers(tensors, "attn.W_Q"):
        weights = _taken(tensors, [f"blocks.{i}.attn.W_{name}" for name in "QKV"], 3, where)
        biases = _taken(tensors, [f"blocks.{i}.attn.b_{name}" for name in "QKV"], 2, where)
        (out,) = _taken(tensors, [f"blocks.{i}.attn.W_O"], 3, where)
        heads, d, d_head = weights[0].shape
        if biases[0].shape != (heads, d_head) or out.shape != (heads, d_head, d) or n_head not in (0, heads):
            raise NanopatchError(
                f"{where}: blocks.{i}.attn has W_Q {weights[0].shape}, b_Q {biases[0].shape} and W_O {out.shape}: not "
                "(n_head, d_model, d_head), (n_head, d_head) and (n_head, d_head, d_model) of one number of heads"
            )
        n_head = heads
        width = n_head * d_head
        tensors[f"h.{i}.attn.c_attn.weight"] = Rearranged(weights, _side_by_side, (d, 3 * width))
        tensors[f"h.{i}.attn.c_attn.bias"] = Rearranged(
            biases, lambda *b: np.concatenate([x.ravel() for x in b]), (3 * width,)
        )
        tensors[f"h.{i}.attn.c_proj.weight"] = Rearranged((out,), lambda o: o.reshape(-1, o.shape[-1]), (width, d))
    if "unembed.W_U" in tensors:
        (unembed,) = _taken(tensors, ["unembed.W_U"], 2, where)
        tensors["lm_head.weight"] = transposed(unembed)
    if "unembed.b_U" in tensors:
        (bias,) = _taken(tensors, ["unembed.b_U"], 1, where)
        if bias.number_format not in FORMATS or np.any(bias.read(np.dtype(np.float32))):
            raise NanopatchError(
                f"{where}: unembed.b_U is not 0; save the model without processing (from_pretrained_no_processing)"
            )
    if "ln_f.weight" not in tensors:
        raise NanopatchError(
            f"{where} lacks ln_final.w: its LayerNorms are folded into the weights; save the model without processing "
            "(from_pretrained_no_processing)"
        )
    return tensors, {"n_head": n_head}


def _side_by_side(*weights: Array) -> Array:
    """(n_head, d_model, d_head) each to (d_model, 3 n_head d_head)."""
    return np.concatenate([w.transpose(1, 0, 2).reshape(w.shape[1], -1) for w in weights], axis=1)


def _taken(tensors: dict[str, Any], names: list[str], n_axes: int, where: PathLike) -> tuple[Any, ...]:
    """Take tensors out of the state dict. NanopatchError if one is missing, or has another shape than the first."""
    missing = [name for name in names if name not in tensors]
    if missing:
        raise NanopatchError(f"{where} lacks {', '.join(missing)}: not a whole GPT-2")
    parts = tuple(tensors.pop(name) for name in names)
    shapes = list(dict.fromkeys(part.shape for part in parts))
    if len(shapes) > 1:
        raise NanopatchError(f"{where}: {', '.join(names)} have different shapes ({str(shapes)[1:-1]})")
    if len(shapes[0]) != n_axes:
        raise NanopatchError(f"{where}: {names[0]} has shape {shapes[0]}; it must have {n_axes} axes")
    return parts
