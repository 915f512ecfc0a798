"""From a checkpoint's folder to a `Model`: reads and checks `config.json` and the safetensors files."""

import functools
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from . import hub, tokenizer
from ..errors import NanopatchError
from ..files import sha256
from .layers import ACTIVATIONS
from .gpt2 import MLP, Attention, Block, Config, Model, Weights

#: safetensors' names of the number formats that can be read; BF16 has no NumPy type, see `_as_numpy`.
FORMATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}


@dataclass
class Source:
    """Where a model's weights came from: the name it was loaded by, and its files."""

    name: str
    files: tuple = ()
    known_sha256: str = field(default=None, repr=False)

    @functools.cached_property
    def sha256(self):
        """SHA-256 of the weight files, one after the other; computed when first asked for. None without files."""
        if self.known_sha256 or not self.files:
            return self.known_sha256
        return sha256(*self.files)


def load(name_or_path, dtype=np.float32):
    """Load a GPT-2, checked against its config before anything is computed.

    name_or_path: "nano" (ships with the library); "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl" or
    "distilgpt2" (from `weights/<name>/` of a checkout, else the Hugging Face cache, else downloaded);
    another repository as "org/name"; or a local folder with `config.json` and `model.safetensors` (or
    `model.safetensors.index.json` and its shards). dtype: np.float32 or np.float64, that of the weights
    and of every activation. Files hold float32 (mapped rather than copied where the file's layout
    allows; the mapping is private, so editing a weight in memory never reaches the file), float16,
    bfloat16 or float64.

    Keys and shapes, each with or without the prefix `transformer.`, per block i:

        wte.weight (vocab_size, n_embd)              wpe.weight (n_positions, n_embd)
        h.{i}.ln_1.weight, .bias (n_embd,)           h.{i}.ln_2.weight, .bias (n_embd,)
        h.{i}.attn.c_attn.weight (n_embd, 3 n_embd)  h.{i}.attn.c_attn.bias (3 n_embd,)
        h.{i}.attn.c_proj.weight (n_embd, n_embd)    h.{i}.attn.c_proj.bias (n_embd,)
        h.{i}.mlp.c_fc.weight (n_embd, n_inner)      h.{i}.mlp.c_fc.bias (n_inner,)
        h.{i}.mlp.c_proj.weight (n_inner, n_embd)    h.{i}.mlp.c_proj.bias (n_embd,)
        ln_f.weight, .bias (n_embd,)                 lm_head.weight (vocab_size, n_embd), if not tied

    `h.{i}.attn.bias` and `h.{i}.attn.masked_bias`, buffers that older files carry, are ignored.
    Raises NanopatchError where the model cannot be had, read, or computed exactly.
    """
    try:
        known = dtype is not None and np.dtype(dtype) in (np.float32, np.float64)  # NumPy takes None for float64
    except Exception:  # what np.dtype raises for what is no dtype: TypeError, ValueError, SyntaxError, ...
        known = False
    if not known:
        raise NanopatchError(f"dtype is np.float32 or np.float64, not {dtype!r}")
    folder = hub.find(str(name_or_path))
    config = read_config(folder / "config.json")
    files = hub.weight_files(folder)
    tensors = {}
    for path in files:
        tensors.update(read_safetensors(path))
    model = build(config, tensors, dtype, where=folder)
    model.source = Source(str(name_or_path), files)
    # A folder without tokenizer files is taken at its vocabulary's size.
    model.reads_text = config.vocab_size == tokenizer.N_VOCAB and (
        str(name_or_path) in hub.PUBLISHED or tokenizer.is_gpt2_vocabulary(folder) is not False
    )
    return model


def read_config(path):
    """`config.json` as a `Config`; NanopatchError where it is missing, unreadable, or asks for what GPT-2 is not."""
    try:
        given = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NanopatchError(f"{path} is missing: a checkpoint's folder needs config.json beside its weights") from None
    except (OSError, ValueError, RecursionError) as error:
        raise NanopatchError(f"cannot read {path}: {error}") from None
    if not isinstance(given, dict):
        raise NanopatchError(f"{path} does not hold a JSON object")

    def refuse(what):
        raise NanopatchError(f"{path}: {what}")

    def whole(*names):
        for name in names:
            if given.get(name) is not None:
                if not isinstance(given[name], int) or isinstance(given[name], bool) or given[name] < 1:
                    refuse(f"{name} must be a positive whole number, not {given[name]!r:.60}")
                return given[name]
        refuse(f"{names[0]} is missing")

    def switch(name, default):
        if not isinstance(given.get(name, default), bool):
            refuse(f"{name} must be true or false, not {given[name]!r:.60}")
        return given.get(name, default)

    if given.get("model_type", "gpt2") != "gpt2":
        refuse(f"model_type is {given['model_type']!r:.60}; this is a GPT-2 and computes nothing else exactly")
    if switch("add_cross_attention", False):
        refuse("add_cross_attention is true; cross-attention is not part of GPT-2's forward pass here")
    activation = given.get("activation_function", "gelu_new")
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        refuse(f"activation_function is {activation!r:.60}; known are {', '.join(ACTIVATIONS)}")
    epsilon = given.get("layer_norm_epsilon", 1e-5)
    if isinstance(epsilon, bool) or not isinstance(epsilon, (int, float)) or not 0 <= epsilon <= 1e300:
        refuse(f"layer_norm_epsilon must be a finite number from 0 up, not {epsilon!r:.60}")
    n_embd, n_head = whole("n_embd"), whole("n_head")
    if n_embd % n_head:
        refuse(f"n_embd {n_embd} is not a multiple of n_head {n_head}")
    return Config(
        n_layer=whole("n_layer"),
        n_head=n_head,
        n_embd=n_embd,
        n_positions=whole("n_positions", "n_ctx"),
        vocab_size=whole("vocab_size"),
        n_inner=4 * n_embd if given.get("n_inner") is None else whole("n_inner"),
        layer_norm_epsilon=float(epsilon),
        activation_function=activation,
        scale_attn_weights=switch("scale_attn_weights", True),
        scale_attn_by_inverse_layer_idx=switch("scale_attn_by_inverse_layer_idx", False),
        tie_word_embeddings=switch("tie_word_embeddings", True),
    )


def read_safetensors(path):
    """Every tensor of one safetensors file: {name: array}, mapped from the file, in the file's number format.

    The library safetensors checks the file (its size, its header, that tensors lie inside it) and the
    map is NumPy's: safetensors' own NumPy side copies, and cannot read bfloat16.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            names = file.keys()
        with open(path, "rb") as file:  # 8 bytes: the header's length; the header, JSON; then the numbers
            start = 8 + int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(start - 8))
        numbers = np.memmap(path, np.uint8, mode="c", offset=0)[start:]
        return {name: _as_numpy(numbers, header[name]) for name in names}
    except (SafetensorError, OSError, ValueError) as error:
        what = " ".join(str(error).split())
        raise NanopatchError(f"{path} is not a whole safetensors file ({what}): fetch it again") from None


def build(config, tensors, dtype=np.float32, where="the weights"):
    """A `Model` from its config and {checkpoint key: array}; keys and shapes as `load` lists them.

    Checks that nothing is missing, left over, wrongly shaped, or not finite; NanopatchError names what is.
    """
    given, tensors = tensors, {name.removeprefix("transformer."): array for name, array in tensors.items()}
    if len(tensors) < len(given):
        raise NanopatchError(f"{where} has tensors both with and without the prefix transformer.: two models in one")
    if config.n_layer > len(tensors):  # said at once, not after listing a billion names
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
        raise NanopatchError(
            f"{where} has cross-attention ({_some(map(repr, extra))}), which is not part of GPT-2's forward pass here"
        )
    if extra:
        raise NanopatchError(
            f"{where} has {_some(map(repr, extra))}, which a GPT-2 of {config.n_layer} layers has no use for"
        )

    def take(name):
        array = tensors[name]
        if array is None:
            raise NanopatchError(f"{where}: {name} is in a number format other than {', '.join(FORMATS)}")
        if array.shape != expected[name]:
            raise NanopatchError(f"{where}: {name} has shape {array.shape}; config.json makes it {expected[name]}")
        # NumPy's matrix product copies an array that does not start at a multiple of its item size, on
        # every call: better once, here.
        with np.errstate(over="ignore", invalid="ignore"):  # what becomes infinite or NaN is refused next
            array = np.require(array.astype(dtype, copy=False), requirements=["A", "C"])
        if not _all_finite(array):
            raise NanopatchError(
                f"{where}: {name} holds NaN or infinity (as {array.dtype}): fetch the file again, or train more gently"
            )
        return array

    def pair(name):
        return Weights(take(f"{name}.weight"), take(f"{name}.bias"))

    wte = take("wte.weight")
    lm_head = wte
    if "lm_head.weight" in tensors:
        separate = take("lm_head.weight")
        lm_head = wte if np.array_equal(separate, wte) else separate
    blocks = tuple(
        Block(
            ln_1=pair(f"h.{i}.ln_1"),
            attn=Attention(c_attn=pair(f"h.{i}.attn.c_attn"), c_proj=pair(f"h.{i}.attn.c_proj")),
            ln_2=pair(f"h.{i}.ln_2"),
            mlp=MLP(c_fc=pair(f"h.{i}.mlp.c_fc"), c_proj=pair(f"h.{i}.mlp.c_proj")),
        )
        for i in range(config.n_layer)
    )
    return Model(config, wte, take("wpe.weight"), blocks, pair("ln_f"), lm_head)


def tensor_shapes(config):
    """{checkpoint key: shape} of every tensor of a GPT-2, without the prefix `transformer.`."""
    d_model, d_mlp = config.n_embd, config.n_inner
    shapes = {"wte.weight": (config.vocab_size, d_model), "wpe.weight": (config.n_positions, d_model)}
    for i in range(config.n_layer):
        for name, weight in (
            ("ln_1", (d_model,)),
            ("attn.c_attn", (d_model, 3 * d_model)),
            ("attn.c_proj", (d_model, d_model)),
            ("ln_2", (d_model,)),
            ("mlp.c_fc", (d_model, d_mlp)),
            ("mlp.c_proj", (d_mlp, d_model)),
        ):
            shapes[f"h.{i}.{name}.weight"] = weight
            shapes[f"h.{i}.{name}.bias"] = weight[-1:]
    return shapes | {"ln_f.weight": (d_model,), "ln_f.bias": (d_model,), "lm_head.weight": (config.vocab_size, d_model)}


def _as_numpy(numbers, entry):
    """One tensor as an array, from the file's numbers (bytes) and the tensor's entry in the header.

    None for an integer buffer, or a format unknown here: an error only if it is needed.
    """
    if entry["dtype"] not in FORMATS:
        return None
    begin, end = entry["data_offsets"]
    values = numbers[begin:end].view(np.ndarray).view(FORMATS[entry["dtype"]])
    if entry["dtype"] == "BF16":  # the upper half of a float32: widened to one, exactly
        values = (values.astype(np.uint32) << 16).view(np.float32)
    return values.reshape(entry["shape"])


def _all_finite(array):
    # One product says yes for nearly every array (NaN and infinity survive it), at the speed of memory
    # and without a temporary; a large but finite array may overflow it, and is then looked at in full.
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(np.vdot(array, array))) or bool(np.isfinite(array).all())


def _some(names):
    names = list(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
