"""The sizes and switches of a model: from `config.json`, from what a checkpoint says itself, and from its shapes.

Programs write them in different terms. Here they become those of Hugging Face's `config.json` for a GPT-2.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NoReturn

from ..errors import NanopatchError
from ..types import PathLike
from .gpt2 import Config
from .layers import ACTIVATIONS

#: Names of activation functions, as Hugging Face's, and what they are. `gelu_fast` and `gelu_pytorch_tanh` are the tanh
#: form, written in other ways; `gelu_python` is the exact form.
SAME_ACTIVATIONS = {"gelu_fast": "gelu_new", "gelu_pytorch_tanh": "gelu_new", "gelu_python": "gelu"}

#: minGPT's names of sizes: n_layer, n_head, n_embd (`mingpt/model.py`).
MINGPT_SIZES = {
    "openai-gpt": (12, 12, 768),
    "gpt2": (12, 12, 768),
    "gpt2-medium": (24, 16, 1024),
    "gpt2-large": (36, 20, 1280),
    "gpt2-xl": (48, 25, 1600),
    "gopher-44m": (8, 16, 512),
    "gpt-mini": (6, 6, 192),
    "gpt-micro": (4, 4, 128),
    "gpt-nano": (3, 3, 48),
}

#: The tensors whose shapes tell the sizes.
TOLD_BY = {"n_layer": "h.0.mlp.c_fc.weight", "n_embd": "wte.weight", "vocab_size": "wte.weight"}
TOLD_BY |= {"n_positions": "wpe.weight"}

ASK_HEADS = (
    "the weights do not say how many heads there are: give load(..., n_head=...), nanopatch convert --n-head, or "
    "n_head in config.json"
)
ASK_GELU = (
    "the weights do not say which GELU they were trained with: give load(..., activation_function=...), nanopatch "
    "convert --activation-function, or activation_function in config.json: 'gelu_new' is the tanh form (minGPT, "
    "makemore, nanoGPT before May 2023), 'gelu' the exact one (nanoGPT since, minGPT before July 2022)"
)


def published_terms(given: Any, where: PathLike) -> dict[str, Any]:
    """The content of a `config.json` of Hugging Face, minGPT or nanoGPT, in Hugging Face's terms.

    minGPT's may be nested under "model", and may name its sizes by `model_type`. Its GELU is the tanh form, and its
    `lm_head` is not `wte`. Raises NanopatchError if it is no JSON object, or not that of a GPT-2.
    """
    if not isinstance(given, dict):
        raise NanopatchError(f"{where} does not hold a JSON object")
    if isinstance(given.get("model"), dict):
        given = given["model"]
    terms = dict(given)
    model_type = given.get("model_type")
    if not isinstance(model_type, (str, type(None))):
        raise NanopatchError(f"{where}: model_type must be a text, not {model_type!r:.60}")
    is_mingpt = "model_type" in given and ("block_size" in given or model_type in set(MINGPT_SIZES) - {"gpt2"})
    if is_mingpt:
        if model_type and model_type not in MINGPT_SIZES:
            raise NanopatchError(f"{where}: model_type is {model_type!r:.60}; minGPT has {', '.join(MINGPT_SIZES)}")
        sizes = MINGPT_SIZES[model_type] if model_type else (None, None, None)
        for name, size in zip(("n_layer", "n_head", "n_embd"), sizes, strict=True):
            terms[name] = size if terms.get(name) is None else terms[name]
        terms |= {"activation_function": "gelu_new", "tie_word_embeddings": False} | {
            name: value for name, value in given.items() if name in ("activation_function", "tie_word_embeddings")
        }
    elif "model_type" in given and model_type != "gpt2":
        raise NanopatchError(f"{where}: model_type is {model_type!r:.60}; only 'gpt2' can be loaded")
    elif "block_size" not in given and {"model_type", "architectures", "n_positions", "n_ctx"} & given.keys():
        terms.setdefault("activation_function", Config.activation_function)  # Hugging Face's default
    terms.pop("model_type", None)
    activation = terms.get("activation_function")
    if isinstance(activation, str):
        terms["activation_function"] = SAME_ACTIVATIONS.get(activation, activation)
    if given.get("n_positions") not in (None, given.get("block_size")) and given.get("block_size") is not None:
        raise NanopatchError(f"{where} says both block_size and n_positions, and they differ: which?")
    if given.get("block_size") is not None:
        terms["n_positions"] = given["block_size"]
    return terms


def read_config(terms: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], where: PathLike) -> Config:
    """A `Config` from its terms; what is missing or null is told by the shapes of the tensors, where they tell it.

    terms: as `published_terms` gives them. shapes: {checkpoint key: shape}, in the published names and layout.
    Raises NanopatchError if a value is no such thing, or if neither tells the number of heads or the GELU.
    """

    def refuse(what: str) -> NoReturn:
        raise NanopatchError(f"{where}: {what}")

    def whole(*names: str, from_shapes: int | None = None) -> int:
        for name in names:
            value = terms.get(name)
            if value is not None:
                if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                    refuse(f"{name} must be a positive whole number, not {value!r:.60}")
                return value
        if from_shapes is None:
            if names[0] == "n_head":
                refuse(ASK_HEADS)
            others = [name for name in shapes if not re.match(r"(wte|wpe|h\.\d+|ln_f|lm_head)\.", name)]
            some = ", ".join(f"{name:.60}" for name in others[:3])
            if not others:
                refuse(f"no tensor tells {names[0]}: {TOLD_BY[names[0]]} is missing, or has not two axes")
            refuse(f"no tensor tells {names[0]}: names such as wte.weight and h.0.ln_1.weight are expected, not {some}")
        return from_shapes

    def switch(name: str, default: bool) -> bool:
        value = terms.get(name, default)
        if not isinstance(value, bool):
            refuse(f"{name} must be true or false, not {value!r:.60}")
        return value

    def size(name: str, axis: int) -> int | None:
        shape = shapes.get(name, ())
        return shape[axis] if len(shape) == 2 and shape[axis] else None

    if switch("add_cross_attention", False):
        refuse("add_cross_attention is true; nanopatch has no cross-attention")
    layers = {match[1] for match in (re.match(r"h\.(\d+)\.", name) for name in shapes) if match}
    fields: dict[str, Any] = {
        "n_layer": whole("n_layer", from_shapes=len(layers) or None),
        "n_embd": whole("n_embd", from_shapes=size("wte.weight", 1)),
        "vocab_size": whole("vocab_size", from_shapes=size("wte.weight", 0)),
        "n_positions": whole("n_positions", "n_ctx", from_shapes=size("wpe.weight", 0)),
    }
    fields["n_inner"] = whole("n_inner", from_shapes=size("h.0.mlp.c_fc.weight", 1) or 4 * fields["n_embd"])
    activation = terms.get("activation_function")  # asked for only now, when the tensors are those of a GPT-2
    if activation is None:
        refuse(ASK_GELU + ("; n_head is needed, too" if terms.get("n_head") is None else ""))
    if not isinstance(activation, str) or activation not in ACTIVATIONS:  # its other names are gone: `published_terms`
        refuse(
            f"activation_function is {activation!r:.60}; it must be one of {', '.join(ACTIVATIONS | SAME_ACTIVATIONS)}"
        )
    epsilon = terms.get("layer_norm_epsilon", Config.layer_norm_epsilon)
    if isinstance(epsilon, bool) or not isinstance(epsilon, (int, float)) or not 0 <= epsilon <= 1e300:
        refuse(f"layer_norm_epsilon must be a finite number of at least 0, not {epsilon!r:.60}")
    fields["n_head"] = whole("n_head")
    if fields["n_embd"] % fields["n_head"]:
        refuse(f"n_embd {fields['n_embd']} must be a multiple of n_head {fields['n_head']}")
    bos = terms.get("bos_token_id", Config.bos_token_id)
    if bos is not None and (isinstance(bos, bool) or not isinstance(bos, int)):
        refuse(f"bos_token_id must be a whole number or null, not {bos!r:.60}")
    fields["bos_token_id"] = bos
    for name in ("scale_attn_weights", "scale_attn_by_inverse_layer_idx", "tie_word_embeddings"):
        fields[name] = switch(name, getattr(Config, name))  # a dataclass keeps its defaults as class attributes
    return Config(**fields, layer_norm_epsilon=float(epsilon), activation_function=activation)
