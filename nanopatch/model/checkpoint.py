"""From a checkpoint's folder to a `Model`: reads and checks `config.json` and the safetensors files."""

from __future__ import annotations

import copyreg
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from ..errors import NanopatchError
from ..files import LFS_POINTER, Source, opened, parse_json, read_json, refuse_pointer
from ..types import Array, PathLike
from . import hub, tokenizer
from .backward import named_weights
from .gpt2 import MLP, Attention, Block, Config, Model, Weights
from .layers import ACTIVATIONS, BLOCK_WEIGHTS
from .tokenizer import is_text

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

#: The number formats that can be read, by safetensors' names. NumPy has no type for BF16; see `Stored.read`.
FORMATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}
#: The longest header of a safetensors file that is read, in bytes. That of gpt2-xl has 60,000.
MAX_HEADER = 2**21
#: How many numbers are read and converted at once: they stay in the processor's cache.
CHUNK = 2**17


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
    Files may hold float32, float16, bfloat16 or float64. They are read into memory, so a file may change or go without
    changing the model. Files of the Hugging Face cache are never rewritten in place. Their weights are mapped rather
    than copied, if format and position in the file allow it. The mapping is private: editing a weight in memory never
    changes the file.

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
    source = Source(str(name_or_path), files)
    tensors: dict[str, Stored] = {}
    for path in files:  # a tensor of the same name in two of them would be read from one, without a word
        shard = read_safetensors(path)
        for name in tensors.keys() & shard.keys():
            both = f"{tensors[name].path.name} and {path.name}"
            raise NanopatchError(f"{folder}: {name!r:.100} is in both {both}: keep one of the two")
        tensors |= shard
    model = build(config, tensors, dtype, where=folder)
    source.check()
    model.source = source
    trained = read_list(folder / "trained_tokens.json", int)
    model.trained_tokens = None if trained is None else frozenset(trained)
    model.token_names = read_list(folder / "token_names.json", str)
    if model.token_names is not None and len(model.token_names) != model.n_vocab:
        raise NanopatchError(f"{folder / 'token_names.json'} must be a list of {model.n_vocab} texts, one a token")
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


def read_list(path: Path, kind: type) -> list[Any] | None:
    """What a JSON file holds, a list of whole numbers (int) or of texts (str); None if there is no such file."""
    try:
        found = read_json(path)
    except FileNotFoundError:
        return None
    if not isinstance(found, list) or not all(type(item) is kind and (kind is int or is_text(item)) for item in found):
        raise NanopatchError(f"{path} must be a list of {'whole numbers' if kind is int else 'texts (UTF-8)'}")
    return found


@dataclass(frozen=True)
class Stored:
    """One tensor of a safetensors file, before it is read: its place in bytes, its number format, its shape."""

    path: Path
    start: int
    number_format: str
    shape: tuple[int, ...]

    def read(self, dtype: np.dtype) -> Array:
        """Its numbers as an array of `dtype`, one of FORMATS: mapped if the file never changes, else copied."""
        stored = np.dtype(FORMATS[self.number_format])
        # NumPy's matrix product copies an array that does not start at a multiple of its item size, at every call.
        if stored == dtype and self.start % stored.itemsize == 0 and hub.is_cached(self.path) and 0 not in self.shape:
            return np.memmap(self.path, stored, mode="c", offset=self.start, shape=self.shape).view(np.ndarray)
        array = np.empty(self.shape, dtype)
        numbers = array.reshape(-1)
        with opened(self.path) as file, np.errstate(over="ignore", invalid="ignore"):  # `build` refuses infinity
            file.seek(self.start)
            if stored == dtype:
                n_read = file.readinto(numbers.view(np.uint8).data) // stored.itemsize
            else:  # piece by piece, so that little more than the array itself is in memory
                n_read = 0
                while n_read < numbers.size:
                    piece = np.frombuffer(file.read(min(CHUNK, numbers.size - n_read) * stored.itemsize), stored)
                    if not piece.size:
                        break
                    if self.number_format == "BF16":  # a bfloat16 is the upper half of a float32, so this is exact
                        piece = (piece.astype(np.uint32) << 16).view(np.float32)
                    numbers[n_read : n_read + piece.size] = piece
                    n_read += piece.size
        if n_read < numbers.size:
            raise NanopatchError(f"{self.path} became shorter while it was read: load it again")
        return array


def read_safetensors(path: PathLike) -> dict[str, Stored]:
    """Every tensor of one safetensors file: where it is. No numbers are read yet.

    The library safetensors checks the file: its size, its header, and that all tensors lie inside it. Its own NumPy
    reader cannot read bfloat16.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    try:
        with opened(path) as file:  # 8 bytes: the header's length; the header, JSON; then the numbers
            refuse_pointer(path, file.peek(len(LFS_POINTER)))
            start = 8 + int.from_bytes(file.read(8), "little")
            if MAX_HEADER < start <= path.stat().st_size:
                raise ValueError(f"its header has {start - 8} bytes, more than a GPT-2 needs")
            with safe_open(path, framework="np"):
                pass
            header = parse_json(file.read(start - 8))
        return {
            name: Stored(path, start + entry["data_offsets"][0], entry["dtype"], tuple(entry["shape"]))
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except NanopatchError:
        raise
    except (SafetensorError, OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        what = " ".join(str(error).split())
        raise NanopatchError(f"{path} is not a whole safetensors file ({what}): fetch it again") from None


def build(
    config: Config,
    tensors: Mapping[str, Array | Stored],
    dtype: DTypeLike = np.float32,
    where: PathLike = "the weights",
) -> Model:
    """A `Model` from its config and {checkpoint key: array, or where it is stored}. `load` lists the keys and shapes.

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
        tensor = tensors[name]
        if isinstance(tensor, Stored) and tensor.number_format not in FORMATS:
            raise NanopatchError(f"{where}: {name} must be in one of the number formats {', '.join(FORMATS)}")
        if tensor.shape != expected[name]:
            raise NanopatchError(f"{where}: {name} has shape {tensor.shape}; config.json expects {expected[name]}")
        if isinstance(tensor, Stored):
            array = tensor.read(np.dtype(dtype))
        else:
            with np.errstate(over="ignore", invalid="ignore"):  # the next check refuses infinity and NaN
                array = np.require(tensor.astype(dtype, copy=False), requirements=["A", "C"])
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
    """How a model is pickled: as the place to load it from, or whole if it is not what its files hold."""
    source = model.source
    if source and source.files and source.sha256 and source.is_unchanged:
        name = source.name if source.name in hub.NAMES else str(source.files[0].parent.absolute())
        try:
            again = load(name, model.dtype)
        except NanopatchError:  # such as config.json gone
            again = None
        if again and _same(model, again):
            names = ("trained_tokens", "token_names")  # which the user may set
            given = {n: getattr(model, n) for n in names if not np.array_equal(getattr(model, n), getattr(again, n))}
            return _load_the_same, (name, model.dtype, model.config, source.stamps, source.sha256), given
    return copyreg.__newobj__, (Model,), vars(model)  # type: ignore[attr-defined]


def _same(model: Model, other: Model) -> bool:
    ours, theirs = named_weights(model), named_weights(other)
    return (model.config, model.reads_text, ours.keys()) == (other.config, other.reads_text, theirs.keys()) and all(
        np.array_equal(ours[key], theirs[key]) for key in ours
    )


def _load_the_same(name: str, dtype: Any, config: Config, stamps: Any, sha256: str) -> Model:
    """A pickled model, loaded again. NanopatchError if its files hold another now."""
    model = load(name, dtype)
    source = model.source
    if model.config != config or (source and source.stamps != stamps and source.sha256 != sha256):
        raise NanopatchError(f"the files of {name} have changed since this model was pickled: pickle it again")
    return model


copyreg.pickle(Model, _pickled)
