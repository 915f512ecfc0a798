"""From a checkpoint's folder to a `Model`: reads and checks `config.json` and the safetensors files."""

from __future__ import annotations

import copyreg
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from ..errors import NanopatchError
from ..files import Source, read_json
from ..types import Array, PathLike
from . import hub, tokenizer
from .backward import named_weights
from .gpt2 import MLP, Attention, Block, Config, Model, Weights
from .layers import ACTIVATIONS, BLOCK_WEIGHTS

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

#: The number formats that can be read, by safetensors' names. NumPy has no type for BF16; see `_as_numpy`.
FORMATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}


def load(name_or_path: PathLike, dtype: DTypeLike = np.float32) -> Model:
    """Load a GPT-2. Its weights are checked against its config before anything is computed.

    Parameters
    ----------
    name_or_path : str or path
        One of:

        - "nano", which ships with the library;
        - "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl" or "distilgpt2", from `weights/<name>/` of a checkout, else
          from the Hugging Face cache, else downloaded into that cache;
        - another repository of the Hugging Face hub, as "org/name";
        - a local folder with `config.json` and `model.safetensors` (or `model.safetensors.index.json` and the files
          that it lists).
    dtype : np.float32 or np.float64
        The dtype of the weights and of every activation.

    Returns
    -------
    Model
        Its `source` says where the weights came from.

    Raises
    ------
    NanopatchError
        If the model cannot be found, downloaded or read, or if it is not a GPT-2 that nanopatch computes exactly.

    Notes
    -----
    Files may hold float32, float16, bfloat16 or float64. Float32 weights are mapped from the file rather than copied
    if their position in the file allows it. The mapping is private: editing a weight in memory never changes the file.

    Keys and shapes, each with or without the prefix `transformer.`, for each block i::

        wte.weight (vocab_size, n_embd)              wpe.weight (n_positions, n_embd)
        h.{i}.ln_1.weight, .bias (n_embd,)           h.{i}.ln_2.weight, .bias (n_embd,)
        h.{i}.attn.c_attn.weight (n_embd, 3 n_embd)  h.{i}.attn.c_attn.bias (3 n_embd,)
        h.{i}.attn.c_proj.weight (n_embd, n_embd)    h.{i}.attn.c_proj.bias (n_embd,)
        h.{i}.mlp.c_fc.weight (n_embd, n_inner)      h.{i}.mlp.c_fc.bias (n_inner,)
        h.{i}.mlp.c_proj.weight (n_inner, n_embd)    h.{i}.mlp.c_proj.bias (n_embd,)
        ln_f.weight, .bias (n_embd,)                 lm_head.weight (vocab_size, n_embd), if not tied

    Older files also hold the buffers `h.{i}.attn.bias` and `h.{i}.attn.masked_bias`, which are ignored.

    References
    ----------
    Radford et al. (2019), "Language Models are Unsupervised Multitask Learners".

    Examples
    --------
    >>> import nanopatch
    >>> model = nanopatch.load("nano")
    >>> model.n_layer, model.n_head, model.d_model
    (4, 4, 128)
    >>> model.h[3].attn.c_attn.weight.shape
    (128, 384)
    """
    try:
        known = dtype is not None and np.dtype(dtype) in (np.float32, np.float64)  # NumPy reads None as float64
    except Exception:  # np.dtype raises TypeError, ValueError, SyntaxError, ...
        known = False
    if not known:
        raise NanopatchError(f"dtype must be np.float32 or np.float64, not {dtype!r}")
    folder = hub.find(str(name_or_path))
    config = read_config(folder / "config.json")
    files = hub.weight_files(folder)
    tensors = {}
    for path in files:
        tensors.update(read_safetensors(path))
    model = build(config, tensors, dtype, where=folder)
    model.source = Source(str(name_or_path), files)
    if (folder / "trained_tokens.json").is_file():
        model.trained_tokens = frozenset(read_json(folder / "trained_tokens.json"))
    if (folder / "token_names.json").is_file():
        names = read_json(folder / "token_names.json")
        if not isinstance(names, list) or len(names) != model.n_vocab or not all(isinstance(n, str) for n in names):
            raise NanopatchError(f"{folder / 'token_names.json'} must be a list of {model.n_vocab} texts, one a token")
        model.token_names = names
    # Without tokenizer files, a vocabulary of GPT-2's size is taken to be GPT-2's.
    model.reads_text = config.vocab_size == tokenizer.N_VOCAB and (
        str(name_or_path) in hub.PUBLISHED or tokenizer.is_gpt2_vocabulary(folder) is not False
    )
    return model


def read_config(path: PathLike) -> Config:
    """`config.json` as a `Config`. Raises NanopatchError if it is missing, unreadable, or not that of a GPT-2."""
    try:
        given = read_json(Path(path))
    except FileNotFoundError:
        raise NanopatchError(f"{path} is missing: a checkpoint's folder needs config.json beside its weights") from None
    if not isinstance(given, dict):
        raise NanopatchError(f"{path} does not hold a JSON object")

    def refuse(what: str) -> NoReturn:
        raise NanopatchError(f"{path}: {what}")

    def whole(*names: str) -> int:
        for name in names:
            value = given.get(name)
            if value is not None:
                if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                    refuse(f"{name} must be a positive whole number, not {value!r:.60}")
                return value
        refuse(f"{names[0]} is missing")

    def switch(name: str, default: bool) -> bool:
        value = given.get(name, default)
        if not isinstance(value, bool):
            refuse(f"{name} must be true or false, not {value!r:.60}")
        return value

    if given.get("model_type", "gpt2") != "gpt2":
        refuse(f"model_type is {given['model_type']!r:.60}; only 'gpt2' can be loaded")
    if switch("add_cross_attention", False):
        refuse("add_cross_attention is true; nanopatch has no cross-attention")
    activation = given.get("activation_function", Config.activation_function)
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        refuse(f"activation_function is {activation!r:.60}; it must be one of {', '.join(ACTIVATIONS)}")
    epsilon = given.get("layer_norm_epsilon", Config.layer_norm_epsilon)
    if isinstance(epsilon, bool) or not isinstance(epsilon, (int, float)) or not 0 <= epsilon <= 1e300:
        refuse(f"layer_norm_epsilon must be a finite number of at least 0, not {epsilon!r:.60}")
    fields: dict[str, Any] = {name: whole(name) for name in ("n_layer", "n_head", "n_embd", "vocab_size")}
    fields["n_positions"] = whole("n_positions", "n_ctx")
    fields["n_inner"] = 4 * fields["n_embd"] if given.get("n_inner") is None else whole("n_inner")
    if fields["n_embd"] % fields["n_head"]:
        refuse(f"n_embd {fields['n_embd']} must be a multiple of n_head {fields['n_head']}")
    bos = given.get("bos_token_id", Config.bos_token_id)
    if bos is not None and (isinstance(bos, bool) or not isinstance(bos, int)):
        refuse(f"bos_token_id must be a whole number or null, not {bos!r:.60}")
    fields["bos_token_id"] = bos
    for name in ("scale_attn_weights", "scale_attn_by_inverse_layer_idx", "tie_word_embeddings"):
        fields[name] = switch(name, getattr(Config, name))  # a dataclass keeps its defaults as class attributes
    return Config(**fields, layer_norm_epsilon=float(epsilon), activation_function=activation)


def read_safetensors(path: PathLike) -> dict[str, Array | None]:
    """Every tensor of one safetensors file: {name: array}, mapped from the file, in the file's number format.

    The library safetensors checks the file: its size, its header, and that all tensors lie inside it. NumPy maps it,
    because safetensors' own NumPy reader copies and cannot read bfloat16. None stands for a tensor in another format.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as checked:
            names = checked.keys()
        with open(path, "rb") as file:  # 8 bytes: the header's length; the header, JSON; then the numbers
            start = 8 + int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(start - 8))
        numbers = np.memmap(path, np.uint8, mode="c", offset=0)[start:]
        return {name: _as_numpy(numbers, header[name]) for name in names}
    except (SafetensorError, OSError, ValueError) as error:
        what = " ".join(str(error).split())
        raise NanopatchError(f"{path} is not a whole safetensors file ({what}): fetch it again") from None


def build(
    config: Config, tensors: Mapping[str, Array | None], dtype: DTypeLike = np.float32, where: PathLike = "the weights"
) -> Model:
    """A `Model` from its config and {checkpoint key: array}. `load` lists the keys and shapes.

    where: what error messages call the tensors. Raises NanopatchError if a tensor is missing, unknown, of another
    shape, or not finite.
    """
    given, tensors = tensors, {name.removeprefix("transformer."): array for name, array in tensors.items()}
    if len(tensors) < len(given):
        raise NanopatchError(f"{where} has tensors both with and without the prefix transformer.: keep one of the two")
    if config.n_layer > len(tensors):  # checked first, so that no list of a billion names is made
        raise NanopatchError(f"{where} holds {len(tensors)} tensors: not a whole GPT-2 of {config.n_layer} layers")
    buffers = {f"h.{i}.attn.{name}" for i in range(config.n_layer) for name in ("bias", "masked_bias")}
    tensors = {name: array for name, array in tensors.items() if name not in buffers}
    expected = tensor_shapes(config)
    optional = {"lm_head.weight"} if config.tie_word_embeddings else set()
    missing = [name for name in expected if name not in tensors and name not in optional]
    if missing:
        raise NanopatchError(f"{where} lacks {_some(missing)}: not a whole GPT-2 of {config.n_layer} layers")
    extra = [name for name in tensors if name not in expected]
    if any("crossattention" in name or "ln_cross_attn" in name for name in extra):
        raise NanopatchError(f"{where} has cross-attention ({_some(map(repr, extra))}); nanopatch has none")
    if extra:
        raise NanopatchError(
            f"{where} has {_some(map(repr, extra))}, unknown in a GPT-2 of {config.n_layer} layers: check config.json"
        )

    def take(name: str) -> Array:
        array = tensors[name]
        if array is None:
            raise NanopatchError(f"{where}: {name} must be in one of the number formats {', '.join(FORMATS)}")
        if array.shape != expected[name]:
            raise NanopatchError(f"{where}: {name} has shape {array.shape}; config.json expects {expected[name]}")
        # NumPy's matrix product copies an array that does not start at a multiple of its item size, at every call.
        # One copy here is better.
        with np.errstate(over="ignore", invalid="ignore"):  # the next check refuses infinity and NaN
            array = np.require(array.astype(dtype, copy=False), requirements=["A", "C"])
        if not _all_finite(array):
            raise NanopatchError(
                f"{where}: {name} holds NaN or infinity (as {array.dtype}): fetch it again, or lower the learning rate"
            )
        return array

    def pair(name: str) -> Weights:
        return Weights(take(f"{name}.weight"), take(f"{name}.bias"))

    def block(i: int) -> Block:
        ln_1, c_attn, attn_proj, ln_2, c_fc, mlp_proj = (pair(f"h.{i}.{name}") for name in BLOCK_WEIGHTS)
        return Block(ln_1, Attention(c_attn, attn_proj), ln_2, MLP(c_fc, mlp_proj))

    wte = lm_head = take("wte.weight")
    if "lm_head.weight" in tensors and not np.array_equal(separate := take("lm_head.weight"), wte):
        lm_head = separate
    blocks = tuple(block(i) for i in range(config.n_layer))
    return Model(config, wte, take("wpe.weight"), blocks, pair("ln_f"), lm_head)


def tensor_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """{checkpoint key: shape} of every tensor of a GPT-2, without the prefix `transformer.`."""
    d, d_mlp, n_vocab = config.n_embd, config.n_inner, config.vocab_size
    of_block = ((d,), (d, 3 * d), (d, d), (d,), (d, d_mlp), (d_mlp, d))  # of the weights, in the order of BLOCK_WEIGHTS
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (n_vocab, d), "wpe.weight": (config.n_positions, d)}
    for i in range(config.n_layer):
        for name, shape in zip(BLOCK_WEIGHTS, of_block, strict=True):
            shapes[f"h.{i}.{name}.weight"], shapes[f"h.{i}.{name}.bias"] = shape, shape[-1:]
    return shapes | {"ln_f.weight": (d,), "ln_f.bias": (d,), "lm_head.weight": (n_vocab, d)}


def _as_numpy(numbers: Array, entry: dict[str, Any]) -> Array | None:
    """One tensor as an array, from the file's numbers (bytes) and the tensor's entry in the header.

    None for integers and unknown formats. They are an error only if the model needs the tensor.
    """
    if entry["dtype"] not in FORMATS:
        return None
    begin, end = entry["data_offsets"]
    values = numbers[begin:end].view(np.ndarray).view(FORMATS[entry["dtype"]])
    if entry["dtype"] == "BF16":  # a bfloat16 is the upper half of a float32, so this is exact
        values = (values.astype(np.uint32) << 16).view(np.float32)
    return values.reshape(entry["shape"])


def _all_finite(array: Array) -> bool:
    """Whether no element is NaN or infinite."""
    # A product of the array with itself keeps NaN and infinity. It is as fast as reading the array, and needs no
    # temporary array. The product of large finite numbers may overflow. Only then is each element checked.
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(np.vdot(array, array))) or bool(np.isfinite(array).all())


def _some(names: Iterable[str]) -> str:
    """The first three names, and how many more there are."""
    names = list(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _pickled(model: Model) -> tuple[Any, ...]:
    """How a model is pickled: as the place to load it from, or whole if its weights are not those of its files."""
    if model.source and model.source.files:
        name = model.source.name
        again = load(name if name in hub.NAMES else model.source.files[0].parent.absolute(), model.dtype)
        ours, theirs = named_weights(model), named_weights(again)
        if all(np.array_equal(ours[key], theirs[key]) for key in ours) and model.reads_text == again.reads_text:
            return load, (again.source.name if again.source else name, model.dtype)
    return copyreg.__newobj__, (Model,), vars(model)  # type: ignore[attr-defined]


copyreg.pickle(Model, _pickled)
