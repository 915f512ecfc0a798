"""Writes tiny checkpoints as other programs do: safetensors, PyTorch's two formats, llm.c; in every layout of names.

It shares no code with the readers, and needs no PyTorch. `scripts/fuzz.py` uses it, too.

weights: {checkpoint key: array} in the published names and layout.
"""

import io
import json
import math
import struct
import zipfile
from typing import Any, NamedTuple

import numpy as np

LINEAR = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
LAYOUTS = ("published", "linear", "old minGPT", "TransformerLens")
STORAGES = {"F64": "DoubleStorage", "F32": "FloatStorage", "F16": "HalfStorage", "BF16": "BFloat16Storage"}
STORAGES |= {"U8": "ByteStorage", "BOOL": "BoolStorage", "I64": "LongStorage"}
NUMPY = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "U8": np.uint8, "BOOL": np.bool_, "I64": np.int64}


# ---- numbers --------------------------------------------------------------------------------------


def rounded(array, number_format):
    """The numbers that a format can hold, as float64."""
    if number_format == "BF16":
        return (np.asarray(array, np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32).astype(np.float64)
    return np.asarray(array).astype(NUMPY[number_format]).astype(np.float64)


def encoded(array, number_format):
    """An array of the numbers of a file; a bfloat16 is the upper half of a float32."""
    if number_format == "BF16":
        return (np.asarray(array, np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return np.asarray(array).astype(NUMPY[number_format])


# ---- layouts --------------------------------------------------------------------------------------


def in_layout(weights, layout, n_head):
    """A state dict in one of LAYOUTS."""
    if layout == "published":
        return dict(weights)
    if layout == "linear":
        return {name: array.T if name.endswith(LINEAR) else array for name, array in weights.items()}
    return (old_mingpt if layout == "old minGPT" else transformer_lens)(weights, n_head)


def old_mingpt(weights, n_head):
    names = {"attn.c_proj": "attn.proj", "mlp.c_fc": "mlp.0", "mlp.c_proj": "mlp.2", "ln_1": "ln1", "ln_2": "ln2"}
    others = {"wte.weight": "tok_emb.weight", "lm_head.weight": "head.weight"}
    found = {}
    for name, array in in_layout(weights, "linear", n_head).items():
        if name == "wpe.weight":
            found["pos_emb"] = array[None]
        elif name.startswith("h."):
            _, i, *middle, kind = name.split(".")
            part = ".".join(middle)
            if part == "attn.c_attn":
                for which, rows in zip(("query", "key", "value"), np.split(array, 3), strict=True):
                    found[f"blocks.{i}.attn.{which}.{kind}"] = rows
            else:
                found[f"blocks.{i}.{names[part]}.{kind}"] = array
        else:
            found[others.get(name, name)] = array
    return found


def transformer_lens(weights, n_head):
    names = {"ln_1.weight": "ln1.w", "ln_1.bias": "ln1.b", "ln_2.weight": "ln2.w", "ln_2.bias": "ln2.b"}
    names |= {"mlp.c_fc.weight": "mlp.W_in", "mlp.c_fc.bias": "mlp.b_in", "attn.c_proj.bias": "attn.b_O"}
    names |= {"mlp.c_proj.weight": "mlp.W_out", "mlp.c_proj.bias": "mlp.b_out"}
    others = {"wte.weight": "embed.W_E", "wpe.weight": "pos_embed.W_pos", "ln_f.weight": "ln_final.w"}
    others |= {"ln_f.bias": "ln_final.b"}
    found = {}
    for name, array in weights.items():
        _, i, part = name.split(".", 2) if name.startswith("h.") else ("", "", "")
        if part == "attn.c_attn.weight":
            for which, w in zip("QKV", np.split(array, 3, axis=1), strict=True):
                found[f"blocks.{i}.attn.W_{which}"] = np.stack(np.split(w, n_head, axis=1))
        elif part == "attn.c_attn.bias":
            for which, b in zip("QKV", np.split(array, 3), strict=True):
                found[f"blocks.{i}.attn.b_{which}"] = b.reshape(n_head, -1)
        elif part == "attn.c_proj.weight":
            found[f"blocks.{i}.attn.W_O"] = array.reshape(n_head, -1, array.shape[1])
        elif part:
            found[f"blocks.{i}.{names[part]}"] = array
        elif name == "lm_head.weight":
            found["unembed.W_U"], found["unembed.b_U"] = array.T, np.zeros(len(array))
        else:
            found[others[name]] = array
    return found


# ---- pickles, instruction by instruction ----------------------------------------------------------


class Name(NamedTuple):
    module: str
    name: str


class Call(NamedTuple):
    """A call of something, and the items of the dict that it gives."""

    what: Any
    arguments: tuple
    items: dict = {}  # noqa: RUF012


class Kept(NamedTuple):
    """An object that the pickle keeps elsewhere, by its id."""

    id: Any


class Code(NamedTuple):
    """Instructions, as they stand."""

    code: bytes


class Tensor(NamedTuple):
    """A view of a storage."""

    storage: np.ndarray
    number_format: str
    offset: int
    shape: tuple
    strides: tuple
    is_parameter: bool = False


NO_HOOKS = Call(Name("collections", "OrderedDict"), ())


def pickled(value):
    return b"\x80\x02" + code(value, {}) + b"."


def code(value, memo):
    """The instructions that put a value on the stack. memo: {text or name: its number}, as PyTorch's have one."""
    if isinstance(value, (str, Name)):
        if value in memo:
            return b"j" + struct.pack("<I", memo[value])
        memo[value] = number = len(memo)
        if isinstance(value, Name):
            made = f"c{value.module}\n{value.name}\n".encode()
        else:
            content = value.encode("utf-8", "surrogatepass")
            made = b"X" + struct.pack("<I", len(content)) + content
        return made + (b"q" + bytes([number]) if number < 256 else b"r" + struct.pack("<I", number))
    if isinstance(value, Call):
        made = code(value.what, memo) + code(value.arguments, memo) + b"R"
        return made + _items(value.items, memo)
    if isinstance(value, Kept):
        return code(value.id, memo) + b"Q"
    if isinstance(value, Code):
        return value.code
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, int):
        if 0 <= value < 256:
            return b"K" + bytes([value])
        if -(2**31) <= value < 2**31:
            return b"J" + struct.pack("<i", value)
        content = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
        return b"\x8a" + bytes([len(content)]) + content
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, tuple):
        return b"(" + b"".join(code(item, memo) for item in value) + b"t"
    if isinstance(value, list):
        return b"](" + b"".join(code(item, memo) for item in value) + b"e"
    return b"}" + _items(value, memo)


def _items(items, memo):
    return b"(" + b"".join(code(item, memo) for pair in items.items() for item in pair) + b"u" if items else b""


# ---- PyTorch's files ------------------------------------------------------------------------------


def tensor(array, number_format="F32", how="plain", rng=None):
    """A tensor of these numbers. how: plain, transposed, sliced, offset, or parameter."""
    array = encoded(array, number_format)
    by_rows = tuple(math.prod(array.shape[i + 1 :]) for i in range(array.ndim))
    if how == "transposed":
        strides = tuple(math.prod(array.shape[:i]) for i in range(array.ndim))
        return Tensor(array.T.ravel(), number_format, 0, array.shape, strides)
    if how == "sliced":
        storage = np.zeros(3 + 2 * array.size, array.dtype)
        storage[3 : 3 + 2 * array.size : 2] = array.ravel()
        return Tensor(storage, number_format, 3, array.shape, tuple(2 * n for n in by_rows))
    if how == "offset":
        storage = np.concatenate([np.ones(5, array.dtype), array.ravel(), np.ones(2, array.dtype)])
        return Tensor(storage, number_format, 5, array.shape, by_rows)
    return Tensor(array.ravel(), number_format, 0, array.shape, by_rows, how == "parameter")


def described(value, storages, older):
    """A value with its tensors as PyTorch describes them. storages: the storages so far, to be added to."""
    if isinstance(value, Tensor):
        number = next((i for i, t in enumerate(storages) if t.storage is value.storage), len(storages))
        if number == len(storages):
            storages.append(value)
        kind = Name("torch", STORAGES[value.number_format])
        kept = ("storage", kind, str(number), "cpu", value.storage.size, *([None] if older else []))
        arguments = (Kept(kept), value.offset, tuple(value.shape), tuple(value.strides), False, NO_HOOKS)
        made = Call(Name("torch._utils", "_rebuild_tensor_v2"), arguments)
        return Call(Name("torch._utils", "_rebuild_parameter"), (made, True, NO_HOOKS)) if value.is_parameter else made
    if isinstance(value, Call):
        return value._replace(items=described(value.items, storages, older))
    if type(value) is dict:
        return {key: described(item, storages, older) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(described(item, storages, older) for item in value)
    return value


def ordered(state_dict):
    """A state dict, as nn.Module gives it: an OrderedDict."""
    return Call(Name("collections", "OrderedDict"), (), state_dict)


def torch_zip(content, root="archive", edit=None):
    """The bytes of a file in PyTorch's format. edit: changes {name in the zip: bytes} first."""
    storages: list[Tensor] = []
    data = pickled(described(content, storages, False))
    entries = {f"{root}/data.pkl": data, f"{root}/byteorder": b"little"}
    entries |= {f"{root}/data/{i}": t.storage.tobytes() for i, t in enumerate(storages)}
    entries[f"{root}/version"] = b"3\n"
    return zipped(edit(entries) if edit else entries)


def zipped(entries, compression=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(zipfile.ZipInfo(name), data, compression)
    return file.getvalue()


def torch_older(content):
    """The bytes of a file in PyTorch's format before 1.6."""
    storages: list[Tensor] = []
    data = pickled(described(content, storages, True))
    machine = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    pickles = [pickled(0x1950A86A20F9469CFC6C), pickled(1001), pickled(machine), data]
    pickles.append(pickled([str(i) for i in range(len(storages))]))
    numbers = [struct.pack("<q", t.storage.size) + t.storage.tobytes() for t in storages]
    return b"".join(pickles + numbers)


# ---- other files ----------------------------------------------------------------------------------


def safetensors(tensors):
    """The bytes of a safetensors file. tensors: {name: (array, number format)}."""
    header, content = {}, b""
    for name, (array, number_format) in tensors.items():
        numbers = encoded(array, number_format)
        offsets = [len(content), len(content) + numbers.nbytes]
        header[name] = {"dtype": number_format, "shape": list(numbers.shape), "data_offsets": offsets}
        content += numbers.tobytes()
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content


def llmc(weights, n_head, number_format="F32", n_padding=0, **header):
    """The bytes of a checkpoint of llm.c. header: {index of its number, as "n3": another value}."""
    wte, wpe = weights["wte.weight"], weights["wpe.weight"]
    n_layer = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("h."))
    version = {"F32": 3, "BF16": 5}[number_format]
    sizes = [len(wpe), len(wte), n_layer, n_head, wte.shape[1], len(wte) + n_padding]
    numbers = np.zeros(256, np.int32)
    numbers[:8] = 20240326, version, *sizes
    for name, value in header.items():
        numbers[int(name[1:])] = value
    order = [np.concatenate([wte, np.zeros((n_padding, wte.shape[1]))]), wpe]
    parts = ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
    for part in parts:
        for kind in ("weight", "bias"):
            for i in range(n_layer):
                array = weights[f"h.{i}.{part}.{kind}"]
                order.append(array.T if array.ndim == 2 else array)
    order += [weights["ln_f.weight"], weights["ln_f.bias"]]
    return numbers.astype("<i4").tobytes() + b"".join(encoded(array, number_format).tobytes() for array in order)
