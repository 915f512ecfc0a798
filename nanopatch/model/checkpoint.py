"""From a checkpoint to a `Model`: which files it has, whose format they are in, and whether they are whole."""

from __future__ import annotations

import copyreg
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import NanopatchError
from ..files import LFS_POINTER, Source, opened, read_json, refuse_pointer
from ..types import Array, PathLike
from . import hub, llmc_file, tokenizer
from . import vocabulary as vocabularies
from .backward import named_weights
from .config import published_terms, read_config
from .gpt2 import MLP, Attention, Block, Config, Model, Weights
from .layers import BLOCK_WEIGHTS
from .layouts import published_layout
from .stored import FORMATS, Rearranged, Stored, read_safetensors
from .tokenizer import is_text
from .torch_file import read_torch

if TYPE_CHECKING:
    from numpy.typing import DTypeLike


def load(
    name_or_path: PathLike,
    dtype: DTypeLike = np.float32,
    *,
    n_head: int | None = None,
    activation_function: str | None = None,
    vocabulary: PathLike | None = None,
) -> Model:
    """Load a GPT-2. Its weights are checked against its config before anything is computed.

    Parameters
    ----------
    name_or_path : str or path
        One of:

        - "nano", which ships with the library;
        - "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl" or "distilgpt2", from `weights/<name>/` of a checkout, else
          from the Hugging Face cache, else downloaded into that cache;
        - another repository of the Hugging Face hub, as "org/name";
        - a local folder, or a file of weights in it. The weights are `model.safetensors` (or
          `model.safetensors.index.json` and the files that it lists), or `pytorch_model.bin` in the same two ways, or
          the one file of PyTorch (.pt, .pth, .ckpt, .bin) or llm.c (.bin) that is there.
    dtype : np.float32 or np.float64
        The dtype of the weights and of every activation.
    n_head : int, optional
        The number of heads, where neither `config.json` nor the file of weights says it. It cannot be told from shapes.
    activation_function : str, optional
        "gelu_new" (the tanh form), "gelu" (the exact form) or "relu", where nothing says it. If something says another,
        that is an error.
    vocabulary : str or path, optional
        "gpt2", or a file: nanoGPT's `meta.pkl`, a `tokenizer.json`, or a `vocab.json`. By default such a file beside
        the weights.

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
    **Files.** They may hold float32, float16, bfloat16 or float64. PyTorch's are read as data: nothing in them is run
    (see `nanopatch.model.unpickle`). All are read into memory, so a file may change or go without changing the model.
    Files of the Hugging Face cache are never rewritten in place. Their weights are mapped rather than copied, if format
    and position in the file allow it. The mapping is private: editing a weight in memory never changes the file.

    **Config.** `config.json` may be that of Hugging Face, minGPT or nanoGPT. Files of nanoGPT and llm.c hold their own.
    What is missing is told by the shapes of the weights; the number of heads and the GELU are not.

    **Vocabulary.** Text can be read if it is known whose vocabulary it is: a file beside the weights says so, the
    argument `vocabulary`, `"vocabulary": "gpt2"` in `config.json`, or the name or SHA-256 of a published GPT-2. llm.c's
    checkpoints of 50,257 tokens have GPT-2's. A model of another, unknown vocabulary takes token ids.

    **Keys and shapes**, for each block i, each with or without the prefixes `transformer.`, `module.`, `_orig_mod.`::

        wte.weight (vocab_size, n_embd)              wpe.weight (n_positions, n_embd)
        h.{i}.ln_1.weight, .bias (n_embd,)           h.{i}.ln_2.weight, .bias (n_embd,)
        h.{i}.attn.c_attn.weight (n_embd, 3 n_embd)  h.{i}.attn.c_attn.bias (3 n_embd,)
        h.{i}.attn.c_proj.weight (n_embd, n_embd)    h.{i}.attn.c_proj.bias (n_embd,)
        h.{i}.mlp.c_fc.weight (n_embd, n_inner)      h.{i}.mlp.c_fc.bias (n_inner,)
        h.{i}.mlp.c_proj.weight (n_inner, n_embd)    h.{i}.mlp.c_proj.bias (n_embd,)
        ln_f.weight, .bias (n_embd,)                 lm_head.weight (vocab_size, n_embd), if not tied

    All four weights of every block may be transposed instead, as minGPT, nanoGPT and llm.c store them, and all biases
    may be missing; see `nanopatch.model.layouts`, which also knows the names of TransformerLens and of minGPT before
    July 2022. Older files also hold the buffers `h.{i}.attn.bias` and `h.{i}.attn.masked_bias`, which are ignored.

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
    if activation_function is not None and not isinstance(activation_function, str):
        raise NanopatchError(f"activation_function is a name such as 'gelu_new', not {activation_function!r:.60}")
    try:
        known = dtype is not None and np.dtype(dtype) in (np.float32, np.float64)  # NumPy reads None as float64
    except Exception:  # np.dtype raises TypeError, ValueError, SyntaxError, ...
        known = False
    if not known:
        raise NanopatchError(f"dtype must be np.float32 or np.float64, not {dtype!r}")
    name, place = str(name_or_path), hub.find(str(name_or_path))
    files = hub.weight_files(place)
    folder = place if place not in files else place.parent
    source = Source(name, files)

    tensors: dict[str, Stored] = {}
    said: dict[str, Any] = {}  # what the files of weights say of the config
    for path in files:  # a tensor of the same name in two of them would be read from one, without a word
        shard, of_shard = read_weights(path)
        for twice in tensors.keys() & shard.keys():
            both = f"{tensors[twice].path.name} and {path.name}"
            raise NanopatchError(f"{folder}: {twice!r:.100} is in both {both}: keep one of the two")
        tensors |= shard
        said |= of_shard
    published = published_layout(tensors, place)
    terms = config_terms(folder, said | published.config)
    given = {"n_head": n_head, "activation_function": activation_function}
    for key, value in published_terms({k: v for k, v in given.items() if v is not None}, "load").items():
        if terms.get(key) not in (None, value):
            says = f"{place} says {key} {terms[key]!r:.40}"
            raise NanopatchError(
                f"{says}, and the argument {value!r:.40}: leave out the argument, or change config.json"
            )
        terms[key] = value
    shapes = {key: tensor.shape for key, tensor in published.tensors.items()}
    config_file = folder / "config.json"
    config = read_config(terms, shapes, config_file if config_file.is_file() else place)
    head = published.tensors.get("lm_head.weight")
    if not config.tie_word_embeddings and head is not None and published.tensors["wte.weight"] is head:
        raise NanopatchError(f"{place} lacks wte.weight, and its config says that lm_head.weight is another")
    if terms.get("bias") is True and "no biases" in published.seen:
        raise NanopatchError(f"{place} has no biases, and its config says bias true: it is not whole")
    model = build(config, published.tensors, dtype, where=place, seen=published.seen)
    source.check()
    model.source = source
    trained = read_list(folder / "trained_tokens.json", int)
    model.trained_tokens = None if trained is None else frozenset(trained)
    model.token_names = read_list(folder / "token_names.json", str)
    if model.token_names is not None and len(model.token_names) != model.n_vocab:
        raise NanopatchError(f"{folder / 'token_names.json'} must be a list of {model.n_vocab} texts, one a token")
    if vocabulary is not None:
        model.vocabulary = vocabularies.named(vocabulary, model.n_vocab)
    elif terms.get("vocabulary") == "gpt2" or (name in hub.NAMES and model.n_vocab >= tokenizer.N_VOCAB):
        model.vocabulary = vocabularies.named("gpt2", model.n_vocab)
    else:
        model.vocabulary = vocabularies.find(folder, model.n_vocab)
        # Two files alone may be the real GPT-2's: their hash says so.
        if model.vocabulary is None and model.n_vocab == tokenizer.N_VOCAB and source.sha256 in hub.SHA256:
            model.vocabulary = vocabularies.GPT2()
    return model


def read_weights(path: Path) -> tuple[dict[str, Stored], dict[str, Any]]:
    """The tensors of one file, and what it says of the config. Its first bytes tell whose format it is in."""
    try:
        with opened(path) as file:
            first = file.peek(len(LFS_POINTER))[: len(LFS_POINTER)]
    except FileNotFoundError:
        raise NanopatchError(f"{path} is missing") from None
    refuse_pointer(path, first)
    if path.suffix == ".safetensors" or (first[4:8] == b"\0\0\0\0" and first[8:9] == b"{"):  # the header's length; JSON
        return read_safetensors(path), {}
    if first.startswith((b"PK\x03\x04", b"\x80")):  # a zip; a pickle
        return read_torch(path)
    magic = int.from_bytes(first[:4], "little")
    if magic == llmc_file.MODEL_MAGIC:
        return llmc_file.read_llmc(path)
    if magic in llmc_file.OTHERS:
        raise NanopatchError(
            f"{path} begins with {magic}: it is llm.c's {llmc_file.OTHERS[magic]}, not a model; give one"
        )
    raise NanopatchError(
        f"{path} begins with {first[:8]!r}: it is no file of safetensors, PyTorch or llm.c, or not a whole one"
    )


def read_list(path: Path, kind: type) -> list[Any] | None:
    """What a JSON file holds, a list of whole numbers (int) or of texts (str); None if there is no such file."""
    try:
        found = read_json(path)
    except FileNotFoundError:
        return None
    if not isinstance(found, list) or not all(type(item) is kind and (kind is int or is_text(item)) for item in found):
        raise NanopatchError(f"{path} must be a list of {'whole numbers' if kind is int else 'texts (UTF-8)'}")
    return found


def config_terms(folder: Path, said: Mapping[str, Any]) -> dict[str, Any]:
    """The config in Hugging Face's terms: what the weights say themselves, and `config.json` if it is there.

    Raises NanopatchError if the two differ.
    """
    own = published_terms(said, "the file of weights") if said else {}
    path = folder / "config.json"
    try:
        terms = published_terms(read_json(path), path)
    except FileNotFoundError:
        return own
    for name, value in own.items():
        if None not in (value, terms.get(name)) and terms[name] != value:
            raise NanopatchError(f"{path} says {name} {terms[name]!r:.40}, and the weights say {value!r:.40}: which?")
    return own | {name: value for name, value in terms.items() if value is not None or name not in own}


def build(
    config: Config,
    tensors: Mapping[str, Array | Stored | Rearranged],
    dtype: DTypeLike = np.float32,
    where: PathLike = "the weights",
    seen: Iterable[str] = (),
) -> Model:
    """A `Model` from its config and {checkpoint key: array, or where it is stored}. `load` lists the keys and shapes.

    The keys and shapes are the published ones, without prefixes. where: what error messages call the tensors. seen:
    what `published_layout` saw, for error messages. Raises NanopatchError if a tensor is missing, unknown, of another
    shape, or not finite.
    """
    if config.n_layer > len(tensors):  # checked first, so that no list of a billion names is made
        raise NanopatchError(f"{where} holds {len(tensors)} tensors: not a whole GPT-2 of {config.n_layer} layers")
    expected = tensor_shapes(config)
    optional = {"lm_head.weight"} if config.tie_word_embeddings else set()
    missing = [name for name in expected if name not in tensors and name not in optional]
    if missing:
        found = f" (seen: {', '.join(seen)})" if seen else ""
        raise NanopatchError(f"{where} lacks {_some(missing)}: not a whole GPT-2 of {config.n_layer} layers{found}")
    extra = [name for name in tensors if name not in expected]
    if any("crossattention" in name or "ln_cross_attn" in name for name in extra):
        raise NanopatchError(f"{where} has cross-attention ({_some(map(repr, extra))}); nanopatch has none")
    if extra:
        raise NanopatchError(
            f"{where} has {_some(map(repr, extra))}, unknown in a GPT-2 of {config.n_layer} layers: check config.json"
        )

    def take(name: str) -> Array:
        tensor = tensors[name]
        if not isinstance(tensor, np.ndarray) and tensor.number_format not in FORMATS:
            raise NanopatchError(f"{where}: {name} must be in one of the number formats {', '.join(FORMATS)}")
        if tensor.shape != expected[name]:
            raise NanopatchError(
                f"{where}: {name} has shape {str(tensor.shape):.60}; config.json expects {expected[name]}"
            )
        if not isinstance(tensor, np.ndarray):
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
    names = [f"{name:.100}" for name in names]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def weights_sha256(model: Model) -> str:
    """SHA-256 of a model's config and of all its weights as they are in memory. Of GPT-2 124M it takes .2 s."""
    import hashlib  # loads OpenSSL, which is larger than this library
    from concurrent.futures import ThreadPoolExecutor

    def of_array(array: Array) -> bytes:  # in several threads: hashlib releases the lock
        return hashlib.sha256(np.ascontiguousarray(array).data.cast("B")).digest()

    weights = named_weights(model)
    with ThreadPoolExecutor() as threads:
        digests = list(threads.map(of_array, weights.values()))
    parts = zip(weights, digests, strict=True)
    return hashlib.sha256(repr((model.config, str(model.dtype), list(parts))).encode()).hexdigest()


def place_of(source: Source) -> str:
    """What `load` finds the files of a model by, from any folder."""
    if source.name in hub.NAMES:
        return source.name
    file = source.files[0].absolute()
    return str(file if len(source.files) == 1 else file.parent)


def _pickled(model: Model) -> tuple[Any, ...]:
    """How a model is pickled: as the place to load it from, or whole if it is not what its files hold."""
    source = model.source
    if source and source.files and source.sha256 and source.is_unchanged:
        name = place_of(source)
        try:
            again = loaded_as(name, model.dtype, model.config)
        except NanopatchError:  # such as config.json gone
            again = None
        if again and _same(model, again):
            names = ("trained_tokens", "token_names")  # which the user may set
            given = {n: getattr(model, n) for n in names if not np.array_equal(getattr(model, n), getattr(again, n))}
            given["vocabulary"] = model.vocabulary
            return _load_the_same, (name, model.dtype, model.config, source.stamps, source.sha256), given
    return copyreg.__newobj__, (Model,), vars(model)  # type: ignore[attr-defined]


def _same(model: Model, other: Model) -> bool:
    ours, theirs = named_weights(model), named_weights(other)
    return (model.config, ours.keys()) == (other.config, theirs.keys()) and all(
        np.array_equal(ours[key], theirs[key]) for key in ours
    )


def loaded_as(name: str, dtype: Any, config: Config) -> Model:
    """A model, loaded with what its files do not say taken from a config."""
    try:
        return load(name, dtype)
    except NanopatchError:
        return load(name, dtype, n_head=config.n_head, activation_function=config.activation_function)


def _load_the_same(name: str, dtype: Any, config: Config, stamps: Any, sha256: str) -> Model:
    """A pickled model, loaded again. NanopatchError if its files hold another now."""
    model = loaded_as(name, dtype, config)
    source = model.source
    if model.config != config or (source and source.stamps != stamps and source.sha256 != sha256):
        raise NanopatchError(f"the files of {name} have changed since this model was pickled: pickle it again")
    return model


copyreg.pickle(Model, _pickled)
