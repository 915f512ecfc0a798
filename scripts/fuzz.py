"""Mutated files and command lines: each must do what it says, or end with one clear line.

    python scripts/fuzz.py                             # 1,000 cases of each part
    python scripts/fuzz.py results pairs -n 5000 --seed 1

Parts: checkpoints (config.json, weights, index), formats (files of PyTorch, minGPT, nanoGPT and llm.c), results (saved
.npz and .json), pairs (.jsonl and .csv), commands (command lines of `nanopatch`). A case is made from its seed and
number alone, so that it can be repeated: `python scripts/fuzz.py commands --only 37`. Prints how many cases ended right
and how many in an error, and every case that ended otherwise: another exception, a warning, an error of several lines,
a loaded thing that is not what the file says. The exit status is 1 if there is one.
"""

import argparse
import collections
import contextlib
import csv
import io
import json
import os
import pickle
import struct
import sys
import tempfile
import time
import traceback
import tracemalloc
import warnings
import zipfile
from pathlib import Path

import numpy as np

import nanopatch
from nanopatch import NanopatchError, cli
from nanopatch.experiments import NAMED
from nanopatch.model.backward import named_weights
from nanopatch.model.checkpoint import build, tensor_shapes

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import writers  # noqa: E402  (of the tests)

SIZES = dict(n_layer=2, n_head=2, n_embd=8, n_inner=12, n_positions=12, vocab_size=29)
CONFIG = {"model_type": "gpt2", **SIZES}
#: Values that stand where others are expected.
STRANGE = [None, True, False, 0, -1, 1, 2, 3, 1e400, -1e400, float("nan"), 1.5, 10**30, "", "a", "\0", "\ud800", "é\n"]
STRANGE += [[], {}, [[]], [0], [[0, 1]], ["a"], {"a": 1}, "layer", "z", "path", "inf", "nan", "clean", "x" * 300]


class Wrong(Exception):
    """What a case did that it must not do."""


def main():
    options = command_line()
    failed = 0
    for name in options.parts or PARTS:
        begin = time.perf_counter()
        counts, wrong = run_part(name, options.n, options.seed, options.only, options.seconds)
        failed += len(wrong)
        summary = ", ".join(f"{number} {what}" for what, number in sorted(counts.items()))
        print(f"{name}: {sum(counts.values())} cases in {time.perf_counter() - begin:.0f} s: {summary}", flush=True)
        for number, told in wrong:
            print(f"  {name} --seed {options.seed} --only {number}: {told}")
    return int(bool(failed))


def command_line():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], metavar="part", help=", ".join(PARTS))
    parser.add_argument("-n", type=int, default=1000, metavar="N", help="cases of each part")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, metavar="NUMBER", help="this case alone")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop a part after so long")
    return parser.parse_args()


def run_part(name, n, seed=0, only=None, seconds=float("inf")):
    """({how cases ended: number}, [(case, what was wrong)])."""
    counts, wrong, begin, before = collections.Counter(), [], time.perf_counter(), os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        try:
            case = PARTS[name](Path(folder))
            for number in range(n) if only is None else [only]:
                if time.perf_counter() - begin > seconds:
                    break
                how, told = run_case(case, np.random.default_rng([seed, number]))
                counts[how] += 1
                wrong += [(number, told)] if how == "wrong" else []
        finally:
            os.chdir(before)
    return counts, wrong


def run_case(case, rng):
    """(how it ended: right, refused or wrong; what was wrong)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            case(rng)
        return "right", None
    except NanopatchError as error:
        problem = not_one_line(str(error))
        return ("wrong", problem) if problem else ("refused", str(error))
    except (Exception, SystemExit) as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        told = error if isinstance(error, Wrong) else f"{type(error).__name__}: {error}"
        return "wrong", f"{str(told)[:500]!r} ({Path(where.filename).name}:{where.lineno})"


def not_one_line(text):
    """What is wrong with an error message, or None."""
    if not text or len(text.splitlines()) > 1 or len(text) > 1500 or "Traceback" in text or "\0" in text:
        return f"not one clear line: {text[:500]!r}"
    return None


# ---- mutations -----------------------------------------------------------------------------------


def pick(rng, items):
    return items[rng.integers(len(items))]


def damaged(rng, content):
    """Bytes with a few of them flipped, cut out, put in or repeated."""
    content = bytearray(content)
    for _ in range(pick(rng, [1, 1, 4])):
        where, n = int(rng.integers(len(content) + 1)), int(rng.integers(1, 30))
        how = rng.integers(5)
        if how == 0 and where < len(content):
            content[where] ^= int(rng.integers(1, 256))
        elif how == 1:
            del content[where : where + n]
        elif how == 2:
            content[where:where] = rng.integers(0, 256, n, np.uint8).tobytes()
        elif how == 3:
            content[where:where] = content[where : where + n]
        elif rng.integers(4) == 0:
            del content[where:]
    return bytes(content)


def places(value, path=()):
    """The path of every value inside a JSON value."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, item in items:
        yield from places(item, (*path, name))


def edited(rng, value, n=3):
    """A JSON value with a few of its parts removed, replaced, renamed, repeated or swapped."""
    value = json.loads(json.dumps(value))
    for _ in range(pick(rng, [1, 1, n])):
        depth = rng.integers(1, 5)
        known = [path for path in places(value) if 0 < len(path) <= depth]
        if not known:
            break
        *path, name = pick(rng, known)
        parent = value
        for step in path:
            parent = parent[step]
        other = value
        for step in pick(rng, known):
            other = other[step]
        how = rng.integers(6)
        if how == 0:
            del parent[name]
        elif how == 1:
            parent[name] = pick(rng, STRANGE)
        elif how == 2:
            parent[name] = json.loads(json.dumps(other))
        elif how == 3 and isinstance(parent, dict):
            parent[pick(rng, [*map(str, parent), "more", name.upper()])] = parent.pop(name)
        elif how == 4 and isinstance(parent, list):
            parent.insert(name, json.loads(json.dumps(other)))
        elif isinstance(parent[name], str):
            parent[name] = damaged(rng, parent[name].encode(errors="surrogatepass")).decode(errors="replace")
        elif isinstance(parent[name], (int, float)):
            parent[name] = pick(rng, [-parent[name], parent[name] + 1, float(parent[name]), str(parent[name])])
    return value


# ---- checkpoints ---------------------------------------------------------------------------------


def checkpoints(folder):
    """Mutated checkpoints of a tiny model: what loads has the shapes of its config, and runs."""
    rng = np.random.default_rng(0)
    config = nanopatch.Config(**SIZES)
    tensors = {
        name: rng.normal(size=shape).astype(np.float32)
        for name, shape in tensor_shapes(config).items()
        if name != "lm_head.weight"
    }
    built = build(config, tensors)
    assert built.run([1, 2]).logits.shape == (2, 29)

    def file(tensors, edit=lambda header: header):
        header, start = {}, 0
        for name, array in tensors.items():
            end = start + array.nbytes
            known = {"float32": "F32", "float64": "F64", "float16": "F16", "uint16": "BF16", "int64": "I64"}
            header[name] = {"dtype": known[array.dtype.name], "shape": [*array.shape], "data_offsets": [start, end]}
            start = end
        text = json.dumps(edit(header)).encode()
        text += b" " * (-len(text) % 8)
        return struct.pack("<Q", len(text)) + text + b"".join(array.tobytes() for array in tensors.values())

    @np.errstate(all="ignore")
    def case(rng):
        place = folder / "model"
        clear(place)
        given, weights, index = CONFIG, dict(tensors), None
        for _ in range(rng.integers(0, 3)):
            name = pick(rng, [*weights])
            array = weights[name]
            how = rng.integers(6)
            if how == 0:
                weights[name] = array.astype(pick(rng, [np.float64, np.float16, np.uint16, np.int64]))
            elif how == 1:
                weights[name] = array * np.float32(10.0 ** rng.integers(-30, 30))
            elif how == 2:
                weights[name] = array.T.copy() if rng.integers(2) else array[..., :-1].copy()
            elif how == 3:
                weights[pick(rng, [f"transformer.{name}", "x", "lm_head.weight", "h.0.attn.bias"])] = array
            elif how == 4:
                del weights[name]
            elif array.size and array.dtype.kind == "f":
                weights[name] = array.copy()
                weights[name].flat[0] = float(pick(rng, [np.nan, np.inf, -np.inf, 1e19, 1e38, 1e-40]))
        part = rng.integers(4)
        if part == 0:
            given = edited(rng, given)
        content = file(weights, (lambda header: edited(rng, header)) if part == 1 else lambda header: header)
        if part == 2:
            n = pick(rng, [300, len(content)])
            content = damaged(rng, content[:n]) + content[n:]
        text = json.dumps(given).encode()
        (place / "config.json").write_bytes(damaged(rng, text) if rng.integers(8) == 0 else text)
        if part == 3 and len(weights) > 1:
            names = [*weights]
            cut = int(rng.integers(1, len(names)))
            shards = {"a.safetensors": names[:cut], "b.safetensors": names[cut - int(rng.integers(2)) :]}
            for shard, inside in shards.items():
                (place / shard).write_bytes(file({name: weights[name] for name in inside}))
            index = {"weight_map": {name: shard for shard, inside in shards.items() for name in inside}}
            index = edited(rng, index) if rng.integers(2) else index
            index_bytes = json.dumps(index).encode()
            index_bytes = damaged(rng, index_bytes) if rng.integers(4) == 0 else index_bytes
            (place / "model.safetensors.index.json").write_bytes(index_bytes)
        else:
            (place / "model.safetensors").write_bytes(content)
        model = nanopatch.load(place, pick(rng, [np.float32, np.float64]))
        expected = tensor_shapes(model.config)
        found = {"wte.weight": model.wte, "wpe.weight": model.wpe, "ln_f.bias": model.ln_f.bias}
        for name, array in found.items():
            if array.shape != expected[name] or array.dtype != model.dtype or not np.isfinite(array).all():
                raise Wrong(f"{name} has shape {array.shape}, {array.dtype}")
        if index is None and part != 2 and part != 1:  # the very numbers of the file
            stored = weights.get("wte.weight", weights.get("transformer.wte.weight"))
            if stored.dtype != np.uint16 and not np.array_equal(model.wte, stored.astype(model.dtype)):
                raise Wrong("wte has other numbers than the file")
        with np.errstate(all="ignore"):
            logits = model.run([0] * min(2, model.n_ctx)).logits
        if model.dtype == np.float32 and np.isfinite(logits).all():
            with np.errstate(all="ignore"):
                exact = nanopatch.load(place, np.float64).run([0] * min(2, model.n_ctx))
            scale = max(np.abs(getattr(exact, name)).max() for name in ("logits", "ln_final"))
            # A weight above 1e4 after the GELU makes its rounding, 1e-7, visible: no fault of the forward pass.
            steep = max(np.abs(block.mlp.c_proj.weight).max() for block in model.h) > 1e4
            far = np.abs(logits - exact.logits).max() > 0.3 * scale
            if far and not steep and np.abs(exact.resid_post).max() < 1e30:
                raise Wrong("float32 and float64 differ much")

    return case


def clear(place):
    """An empty folder."""
    place.mkdir(exist_ok=True)
    for path in place.iterdir():
        path.unlink()


# ---- formats -------------------------------------------------------------------------------------


#: What reading a small file may take, in bytes; a larger one, twice its size.
MEMORY = 8 * 2**20
KNOWN_NAMES = {("collections", "OrderedDict"), ("torch._utils", "_rebuild_tensor_v2")}
KNOWN_NAMES |= {("torch._utils", "_rebuild_parameter"), *(("torch", name) for name in writers.STORAGES.values())}
RUN = writers.Call(writers.Name("os", "system"), ("touch touched",))
EVIL = [
    RUN,
    writers.Kept(RUN),
    writers.Code(b"(X\x0d\x00\x00\x00touch touchedios\nsystem\n"),
    writers.Code(b"\x82\x01"),
]
EVIL += [writers.Call(writers.Name("builtins", "eval"), ("open('touched', 'w')",)), writers.Code(b"]" * 10_000)]
EVIL += [
    writers.Code(b"\x8d" + b"\xff" * 7 + b"\x00"),
    writers.Code(b"X\xff\xff\xff\xff"),
    writers.Code(b"\x8b\xff\xff\xff\x7f"),
]
EVIL += [
    writers.Code(b"]q\x00" + b"".join(b"h%c\x86q%c" % (i, i + 1) for i in range(60))),
    writers.Code(b"Nr\xff\xff\xff\xff"),
]
PATHS = [
    "../touched",
    "/tmp/touched",
    "a/../../touched",
    "archive/data/../touched",
    "data.pkl",
    "b/data.pkl",
    "a\n",
    "x" * 9000,
]


def formats(folder):
    """Mutated files of other programs: what loads has the numbers that Python's own readers find in the file."""
    rng = np.random.default_rng(0)
    sizes = SIZES | {"n_inner": 32}
    shapes = tensor_shapes(nanopatch.Config(**sizes))
    weights = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    del weights["lm_head.weight"]
    no_biases = {name: array for name, array in weights.items() if not name.endswith("bias")}
    args = {"n_layer": 2, "n_head": 2, "n_embd": 8, "block_size": 12, "bias": False, "vocab_size": 29, "dropout": 0.0}
    ways = ["plain", "transposed", "sliced", "offset", "parameter"]

    def state_dict(rng):
        """Tensors as minGPT or nanoGPT name them, some of them with something wrong."""
        linear = writers.in_layout(weights if rng.integers(2) else no_biases, "linear", 2)
        prefix = pick(rng, ["", "transformer.", "_orig_mod.transformer."])
        found = {prefix + name: writers.tensor(array, how=pick(rng, ways)) for name, array in linear.items()}
        for _ in range(rng.integers(0, 3)):
            name, other = pick(rng, [*found]), pick(rng, [*found])
            one = found[name]
            if not isinstance(one, writers.Tensor) or not isinstance(found[other], writers.Tensor):
                continue
            n = pick(rng, [-1, 0, 1, 2, 7, 8, 9, 10**3, 2**31, 2**63, 2**70])
            axis = int(rng.integers(len(one.shape)))
            how = rng.integers(12)
            if how == 0:
                found[name] = one._replace(offset=n)
            elif how == 1:
                found[name] = one._replace(shape=(*one.shape[:axis], n, *one.shape[axis + 1 :]))
            elif how == 2:
                found[name] = one._replace(strides=(*one.strides[:axis], n, *one.strides[axis + 1 :]))
            elif how == 3:
                found[name] = one._replace(shape=one.shape[::-1], strides=one.strides[::-1])
            elif how == 4:
                found[name], found[other] = found[other], one
            elif how == 5:
                del found[name]
            elif how == 6:
                found[name] = pick(rng, [*EVIL, 3, None, "a", [], {}, (1,), 2**80])
            elif how == 7:
                found[pick(rng, ["x", "h.0.attn.bias", "lm_head.weight", "module." + name, "\ud800\n", "y" * 500])] = (
                    one
                )
            elif how == 8:
                found[name] = one._replace(number_format=pick(rng, [*writers.STORAGES]))
            elif how == 9:
                found[name] = one._replace(storage=one.storage[: int(rng.integers(one.storage.size + 1))])
            elif how == 10:
                found[name] = one._replace(shape=one.shape * 40, strides=one.strides * 40)
            else:
                found[name] = one._replace(shape=tuple(map(float, one.shape)))
        return found

    def zip_entries(rng, entries):
        """The entries of a zip, some of them renamed, swapped, left out, cut or of other content."""
        names = [*entries]
        name, other = pick(rng, names), pick(rng, names)
        how = rng.integers(6)
        if how == 0:
            entries[pick(rng, PATHS)] = entries.pop(name)
        elif how == 1:
            entries[name], entries[other] = entries[other], entries[name]
        elif how == 2:
            del entries[name]
        elif how == 3:
            entries[name] = damaged(rng, entries[name])
        elif how == 4:
            entries[pick(rng, PATHS)] = b"x"
        else:
            entries[name] = entries[name] + bytes(int(rng.integers(1, 9)))
        return entries

    def torch_file(rng):
        found = state_dict(rng)
        content = pick(rng, [writers.ordered, dict])(found)
        if rng.integers(2):
            given = dict(args)
            if rng.integers(4) == 0:
                given[pick(rng, [*given])] = pick(rng, [-1, 0, 3, 2**31, 2**100, None, "a", [1], 1.5, True, *EVIL])
            content = {pick(rng, ["model", "state_dict"]): content, "model_args": given, "iter_num": 3, "optimizer": {}}
            if rng.integers(4) == 0:
                content[pick(rng, ["config", "model", "optimizer", "x"])] = pick(
                    rng, [*EVIL, None, 3, {}, {"model": {}}]
                )
        if rng.integers(2):
            return writers.torch_older(content)
        made = writers.torch_zip(content, edit=(lambda e: zip_entries(rng, e)) if rng.integers(3) == 0 else None)
        if rng.integers(8) == 0:  # compressed, or a bomb
            with zipfile.ZipFile(io.BytesIO(made)) as archive:
                entries = {name: archive.read(name) for name in archive.namelist()}
            if rng.integers(2):
                entries[pick(rng, [*entries])] = bytes(10 * 2**20)
            made = writers.zipped(entries, zipfile.ZIP_DEFLATED)
        return made

    def llmc_file(rng):
        header = {}
        for _ in range(rng.integers(0, 2)):
            values = [-1, 0, 1, 2, 3, 5, 8, 12, 29, 30, 2**31 - 1, -(2**31), 20240327]
            header[f"n{rng.integers(9)}"] = pick(rng, values)
        return writers.llmc(weights, 2, pick(rng, ["F32", "BF16"]), int(rng.integers(3)), **header)

    def safetensors_file(rng):
        names = writers.in_layout(weights, pick(rng, writers.LAYOUTS), 2)
        number_format = pick(rng, ["F32", "F16", "BF16", "F64"])
        return writers.safetensors({name: (array, number_format) for name, array in names.items()})

    @np.errstate(all="ignore")
    def case(rng):
        place = folder / "model"
        clear(place)
        os.chdir(place)
        kind = pick(rng, [torch_file, torch_file, torch_file, llmc_file, safetensors_file])
        content = kind(rng)
        if rng.integers(3) == 0:
            n = pick(rng, [64, 1100, 4000, len(content)])
            at = int(pick(rng, [0, 0, len(content) - n]))
            content = content[: max(at, 0)] + damaged(rng, content[max(at, 0) :][:n]) + content[max(at, 0) + n :]
        ending = {llmc_file: ".bin", safetensors_file: ".safetensors"}.get(
            kind, pick(rng, [".pt", ".pth", ".ckpt", ".bin"])
        )
        path = place / f"model{ending}"
        path.write_bytes(content)
        known = {path.name}
        if rng.integers(8) == 0:
            known.add("config.json")
            terms = pick(rng, [args, {"model": {**args, "model_type": None}}, {**sizes, "model_type": "gpt2"}])
            Path("config.json").write_text(json.dumps(edited(rng, terms)))
        if rng.integers(8) == 0:
            known.add("meta.pkl")
            ids = {chr(97 + i): i for i in range(26)}
            if rng.integers(2):
                ids[pick(rng, ["a", "ab", "é"])] = pick(rng, [*EVIL, -1, 29, 2**70, 1.5, None, [[]]])
            meta = writers.pickled({"stoi": ids, "itos": {i: c for c, i in ids.items() if type(i) is int}})
            Path("meta.pkl").write_bytes(damaged(rng, meta) if rng.integers(2) else meta)
        traced, begin = rng.integers(10) == 0, time.perf_counter()
        if traced:
            tracemalloc.start()
        try:
            dtype = pick(rng, [np.float32, np.float64])
            model = nanopatch.load(path, dtype, n_head=2, activation_function=pick(rng, ["gelu", "gelu_new"]))
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            if {file.name for file in place.iterdir()} != known:
                raise Wrong("it ran something: there are new files")
            if peak > max(MEMORY, 2 * len(content)):
                raise Wrong(f"it took {peak:,} bytes for a file of {len(content):,}")
            if time.perf_counter() - begin > 20:
                raise Wrong("it took very long")
        check_numbers(model, plain_tensors(content), dtype)
        if isinstance(model.vocabulary, nanopatch.model.vocabulary.Characters):
            ids = PlainUnpickler(io.BytesIO(Path("meta.pkl").read_bytes())).load()["stoi"]
            if ids != model.vocabulary.ids:
                raise Wrong("another vocabulary than the file's")

    return case


class PlainUnpickler(pickle.Unpickler):
    """Python's own, and nothing to call but what stands for PyTorch's. A tensor: (storage, offset, shape, strides)."""

    def __init__(self, file):
        super().__init__(file)
        self.kinds = {}

    def find_class(self, module, name):
        if (module, name) not in KNOWN_NAMES:
            raise ValueError(name)
        calls = {"OrderedDict": collections.OrderedDict, "_rebuild_parameter": lambda tensor, *_: tensor}
        return calls.get(name, (lambda *arguments: arguments[:4]) if name == "_rebuild_tensor_v2" else name)

    def persistent_load(self, id):
        _, kind, key, *_ = id
        self.kinds[key] = kind
        return kind, key


def plain_tensors(content):
    """{name: array} of a file, by Python's own zipfile and pickle, or straight from the bytes."""
    if content[4:9] == b"\0\0\0\0{":
        (length,) = struct.unpack("<Q", content[:8])
        numbers, found = content[8 + length :], {}
        for name, entry in json.loads(content[8 : 8 + length]).items():
            begin, end = entry["data_offsets"]
            found[name] = plain_numbers(numbers[begin:end], entry["dtype"]).reshape(entry["shape"])
        return found
    if content[:4] == b"PK\x03\x04":
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            root = next(name for name in archive.namelist() if name.split("/")[1:] == ["data.pkl"])[: -len("data.pkl")]
            unpickler = PlainUnpickler(io.BytesIO(archive.read(f"{root}data.pkl")))
            found = plain_state_dict(unpickler.load())
            numbers = {key: archive.read(f"{root}data/{key}") for (_, key), *_ in found.values()}
    elif content[:1] == b"\x80":
        file = io.BytesIO(content)
        for _ in range(3):
            PlainUnpickler(file).load()
        unpickler = PlainUnpickler(file)
        found, numbers = plain_state_dict(unpickler.load()), {}
        for key in PlainUnpickler(file).load():
            numbers[key] = file.read(struct.unpack("<q", file.read(8))[0] * plain_dtype(unpickler.kinds[key]).itemsize)
    else:
        return plain_llmc(content)
    tensors = {}
    for name, ((kind, key), offset, shape, strides) in found.items():
        places = np.full(shape, offset)
        for axis, (n, stride) in enumerate(zip(shape, strides, strict=True)):
            places += (np.arange(n) * stride).reshape([-1] + [1] * (len(shape) - axis - 1))
        whole = len(numbers[key]) // plain_dtype(kind).itemsize * plain_dtype(kind).itemsize
        tensors[name] = plain_numbers(numbers[key][:whole], kind)[places]
    return tensors


def plain_state_dict(found):
    for _ in range(3):
        known = [name for name in ("model", "state_dict", "model_state_dict") if isinstance(found.get(name), dict)]
        found = found[known[0]] if known else found
    return found


def plain_dtype(kind):
    """The dtype of a number format, by safetensors' or PyTorch's name."""
    kind = {storage: name for name, storage in writers.STORAGES.items()}.get(kind, kind)
    return np.dtype("<u2" if kind == "BF16" else writers.NUMPY[kind])


def plain_numbers(content, kind):
    array = np.frombuffer(content, plain_dtype(kind))
    return (array.astype(np.uint32) << 16).view(np.float32) if kind in ("BF16", "BFloat16Storage") else array


def plain_llmc(content):
    _, version, n_ctx, n_vocab, n_layer, _, d, padded = np.frombuffer(content[:32], "<i4").tolist()
    numbers = plain_numbers(content[1024:], "F32" if version == 3 else "BF16")
    found, at = {}, 0
    parts = {"ln_1": (d,), "attn.c_attn": (3 * d, d), "attn.c_proj": (d, d), "ln_2": (d,)}
    parts |= {"mlp.c_fc": (4 * d, d), "mlp.c_proj": (d, 4 * d)}
    names = [("wte.weight", (padded, d)), ("wpe.weight", (n_ctx, d))]
    for part, shape in parts.items():
        names += [(f"h.{i}.{part}.weight", shape) for i in range(n_layer)]
        names += [(f"h.{i}.{part}.bias", shape[:1]) for i in range(n_layer)]
    for name, shape in [*names, ("ln_f.weight", (d,)), ("ln_f.bias", (d,))]:
        n = int(np.prod(shape))
        found[name], at = numbers[at : at + n].reshape(shape), at + n
    return found | {"wte.weight": found["wte.weight"][:n_vocab]}


def check_numbers(model, tensors, dtype):
    """Raise Wrong if a model has other numbers than a state dict in one of the layouts."""
    found = {}
    for name, array in tensors.items():
        while prefix := next((p for p in ("transformer.", "module.", "_orig_mod.") if name.startswith(p)), ""):
            name = name[len(prefix) :]
        found[name] = array
    layout = {"embed.W_E": "TransformerLens", "pos_emb": "old minGPT"}
    layout = next((layout[name] for name in layout if name in found), "published")
    if found.get("h.0.attn.c_attn.weight", np.zeros(0)).shape == (3 * model.d_model, model.d_model):
        layout = "linear"
    weights = named_weights(model) | {"lm_head.weight": model.lm_head}
    for name, array in writers.in_layout(weights, layout, model.n_head).items():
        told = found.get(name)
        if told is None and name in ("wte.weight", "lm_head.weight", "head.weight", "unembed.W_U", "unembed.b_U"):
            told = found.get({"wte.weight": "lm_head.weight"}.get(name, "wte.weight"), array)
        if told is None and name.endswith("bias") and not array.any():
            continue
        if told is None or not np.array_equal(told.astype(dtype), array):
            raise Wrong(f"{name} has other numbers than the file")


# ---- saved results -------------------------------------------------------------------------------


def results(folder):
    """Mutated saved results: what loads says what the file says, and can be shown and saved again."""
    model = nanopatch.load("nano")
    pair = NAMED["michelle"]
    tiny = nanopatch.Experiment("The capital of France is", "The capital of Italy is", " Paris", " Rome")
    kinds = [
        nanopatch.sweep(model, pair),
        nanopatch.sweep(model, NAMED["elon"], "z", direction="noise"),
        nanopatch.sweep(model, tiny, nanopatch.Patch("pattern", ("query", "key"), heads=[(3, 0)])),
        nanopatch.ablate(model, tiny, "z"),
        nanopatch.trace(model, tiny, [3], seeds=range(2)),
        nanopatch.sweep(model, [tiny, tiny], nanopatch.Patch("z", "head", heads=[(3, 0), (3, 1)])),
        nanopatch.attribute(model, tiny, "mlp_post", steps=2),
        nanopatch.path_patch(model, tiny, "head", "logits"),
        nanopatch.sweep(model, tiny, ["z", "resid_pre"], metric=["logit_diff", "probability"]),
        nanopatch.Comparison(nanopatch.sweep(model, tiny, "z"), nanopatch.attribute(model, tiny, "z")),
        nanopatch.edge_attribution(model, tiny),
        nanopatch.faithfulness(model, tiny, [("embed", "logits")]),
        nanopatch.saliency(model, tiny),
    ]
    saved = []
    for number, result in enumerate(kinds):
        for ending in ("npz", "json"):
            result.save(folder / f"{number}.{ending}")
            saved.append((result, ending, (folder / f"{number}.{ending}").read_bytes()))

    def case(rng):
        result, ending, content = pick(rng, saved)
        path = folder / f"x.{ending}"
        if rng.integers(4) == 0:
            content = damaged(rng, content)
        elif ending == "json":
            content = json.dumps(edited(rng, json.loads(content))).encode()
        else:
            with np.load(io.BytesIO(content)) as file:
                arrays = {name: file[name] for name in file.files}
            header = json.loads(str(arrays.pop("header")))
            if rng.integers(2):
                header = edited(rng, header)
            else:
                arrays = edited_arrays(rng, arrays)
            packed = io.BytesIO()
            np.savez(packed, **arrays, header=np.array(json.dumps(header)))
            content = packed.getvalue()
        path.write_bytes(content)
        check_result(type(result).load(path), path)

    return case


@np.errstate(all="ignore")
def edited_arrays(rng, arrays):
    """Some arrays of another shape, dtype or name, more of them, or fewer."""
    arrays = dict(arrays)
    name = pick(rng, [*arrays] or ["grid"])
    array = arrays.get(name, np.zeros(3))
    choices = [
        lambda: arrays.pop(name, None),
        lambda: arrays.update({name: array[..., :-1]}),
        lambda: arrays.update({name: array.T}),
        lambda: arrays.update({name: array.reshape(-1)}),
        lambda: arrays.update({name: array.astype(pick(rng, [np.float32, bool, np.int64, complex, "U3", "S2"]))}),
        lambda: arrays.update({name: np.array(3.0)}),
        lambda: arrays.update({pick(rng, ["more", "site", "axes", "a/b", "standard_error", "grid"]): array}),
        lambda: arrays.update({name: np.zeros((0, *array.shape))}),
    ]
    pick(rng, choices)()
    return arrays


def check_result(result, path):
    """Whether a loaded result says what its file says, and can be shown and saved."""
    loaded = json.loads(result.to_json())
    if path.suffix == ".json":
        for where, item in unequal(json.loads(path.read_text(encoding="utf-8-sig")), loaded):
            raise Wrong(f"{where} is {item} in the file")
    else:
        with np.load(path) as file:
            header = json.loads(str(file["header"]))
            arrays = {name: file[name] for name in file.files if name != "header"}
        for where, item in unequal(header, loaded):
            raise Wrong(f"{where} is {item} in the file")
        for name, array in arrays.items():
            ours = result
            for step in name.split("/"):
                ours = ours[step] if isinstance(ours, dict) else getattr(ours, step)
            if not np.array_equal(ours, array, equal_nan=array.dtype == float) or ours.dtype != array.dtype:
                raise Wrong(f"{name} is another array in the file")
    str(result), repr(result), result.to_csv()
    again = path.with_name("again.npz")
    result.save(again)
    if type(result).load(again).to_dict() != result.to_dict():
        raise Wrong("saved and loaded again, it is another")
    if hash(path.read_bytes()) % 40 == 0:  # slow
        result.plot()


def unequal(told, ours, where=""):
    """What a file says otherwise than a result; what is computed from the fields is left out."""
    if isinstance(told, dict) and isinstance(ours, dict):
        for name, item in told.items():
            if name not in ("normalised", "notes", "edges", "format"):
                yield from unequal(item, ours.get(name, "nothing"), f"{where}/{name}")
    elif isinstance(told, list) and isinstance(ours, list) and len(told) == len(ours):
        for number, (one, other) in enumerate(zip(told, ours, strict=True)):
            yield from unequal(one, other, f"{where}/{number}")
    elif not same(told, ours):
        yield where, f"{told!r:.60}, not {ours!r:.60}, as loaded,"


def same(told, ours):
    """Whether two single values of JSON are the same."""
    if type(told) is int and type(ours) is float:
        return float(told) == ours
    return told == ours or (told != told and ours in (None, "nan")) or str(told) == str(ours)


# ---- files of pairs ------------------------------------------------------------------------------


def pairs(folder):
    """Mutated files of pairs: every line is a pair or a problem, and a pair is what its line says."""
    model = nanopatch.load("nano")
    good = [
        dict(
            clean="The capital of France is", corrupted="The capital of Italy is", answer=" Paris", wrong_answer=" Rome"
        ),
        dict(clean=[464, 3139], corrupted=[464, 3140], answer=3, wrong_answer=[7], prepend_bos=True, align="diff"),
        dict(clean="a\u2028b", corrupted="c d", answer=" x", wrong_answer=" y", align=None),
    ]

    def case(rng):
        rows = [pick(rng, good) for _ in range(rng.integers(1, 4))]
        rows = [edited(rng, row) if rng.integers(2) else row for row in rows]
        is_csv = rng.integers(2)
        if is_csv:
            text = io.StringIO(newline="")
            names = list(dict.fromkeys(name for row in rows if isinstance(row, dict) for name in row))
            table = csv.writer(text, escapechar="\\")  # before Python 3.11, a zero byte must be escaped
            table.writerow(names)
            for row in rows:
                cells = row if isinstance(row, list) else [row.get(name, "") for name in names]
                table.writerow([json.dumps(c) if isinstance(c, (list, bool)) else c for c in cells])
            content = text.getvalue().encode(errors="surrogatepass")
        else:
            content = "\n".join(json.dumps(row) for row in rows).encode()
        content = damaged(rng, content) if rng.integers(2) else content
        path = folder / ("x.csv" if is_csv else "x.jsonl")
        path.write_bytes(pick(rng, [b"", b"\xef\xbb\xbf"]) + content)
        file = nanopatch.read_pairs(path)
        if not file.pairs and not file.problems:
            raise Wrong("neither pairs nor problems")
        for _, problem in file.problems:
            if wrong := not_one_line(problem):
                raise Wrong(wrong)
        for pair in file.pairs:
            for name in ("clean", "corrupted"):
                if not isinstance(getattr(pair, name), (str, list)):
                    raise Wrong(f"{name} is {getattr(pair, name)!r:.60}")
        if rng.integers(20) == 0:
            nanopatch.sweep(model, file, "attn_out").to_csv()

    return case


# ---- command lines -------------------------------------------------------------------------------

TEXTS = ["The capital of France is", "The capital of Italy is", " Paris", " Rome", "Paris", "", "\0", "é\n", "\ud800"]
TEXTS += ["a" * 300, "日本", "😀", "$x_$", "<|endoftext|>", "-", "0", "-1", "1e9", "nan", "~", "/", ".", "3.1", "0+0"]
NAMES = [
    "resid_pre",
    "z",
    "q",
    "pattern",
    "mlp_post",
    "attn_out",
    "z,resid_pre",
    "logits",
    "head",
    "head 2",
    "head 2.1",
]
NAMES += [
    "embed",
    "mlp",
    "q 3",
    "layer",
    "position",
    "layer,head",
    "query,key",
    "neuron",
    "0,1",
    "0+1",
    "9",
    "3.0",
    ",",
]
FILES = [
    "x.png",
    "x.csv",
    "x.json",
    "x.npz",
    "x.svg",
    "x.gif",
    "x",
    "no/x.png",
    "folder.png",
    "a" * 300 + ".png",
    "\0.csv",
]
FILES += [
    "good.jsonl",
    "bad.jsonl",
    "bom.txt",
    "pipe",
    "~/nothing.csv",
    "link.csv",
    "loop.csv",
    "empty",
    "/dev/full",
    ".",
]
OPTIONS = {
    "--experiment": [*NAMED, "none"],
    "--clean": TEXTS,
    "--corrupted": TEXTS,
    "--answer": TEXTS,
    "--wrong": TEXTS,
    "--align": ["diff", "none"],
    "--bos": None,
    "--pairs": FILES,
    "--model": ["nano", "tiny", "none", "folder.png", "good.jsonl", "~", "", "\0", "a" * 300],
    "--direction": ["denoise", "noise", "both", "none"],
    "--metric": ["logit_diff", "probability", "rank", "kl_divergence", "logit_diff,probability", "none", ""],
    "-o": FILES,
    "--site": NAMES,
    "--axes": NAMES,
    "--window": TEXTS,
    "--layers": NAMES,
    "--positions": NAMES,
    "--heads": NAMES,
    "--neurons": TEXTS,
    "--corrupt": ["zero", "mean", "resample", "noise", "none"],
    "--prompts": FILES,
    "--noise-at": NAMES,
    "--steps": TEXTS,
    "--against-exact": FILES,
    "--senders": NAMES,
    "--receivers": NAMES,
    "--between": ["frozen", "free mlps", "free", "none"],
    "-n": TEXTS,
    "-k": TEXTS,
    "--show": ["prediction", "rank", "logit_diff", "none"],
    "--of": ["clean", "corrupted", "difference", "clean,difference", "none", ""],
    "--layer": TEXTS,
    "--head": TEXTS,
    "--weighted": None,
    "--position": TEXTS,
    "--split": [*NAMES, "mlp 3", "head 9.9"],
    "--kind": ["bars", "heads", "cumulative", "none"],
    "--ids": None,
    "--special-tokens": None,
    "--json": None,
    "--nothing": None,
}
COMMANDS = ["patch", "attribute", "heads", "path", "edges", "lens", "attention", "direct", "top", "tokens", "none", ""]


def commands(folder):
    """Command lines, in this process: the status, and what they write to both streams and to files."""
    os.chdir(folder)
    (folder / "good.jsonl").write_text(json.dumps(dict(zip(GOOD, TEXTS, strict=False))) + "\n")
    (folder / "bad.jsonl").write_bytes(b'{"clean": 3}\n\xff\n[]\n')
    (folder / "bom.txt").write_bytes(b"\xef\xbb\xbfThe capital of Spain is\n")
    (folder / "empty").write_bytes(b"")
    (folder / "folder.png").mkdir()
    (folder / "tiny").mkdir()
    if hasattr(os, "mkfifo"):
        os.mkfifo(folder / "pipe")
    (folder / "link.csv").symlink_to("x.csv")
    (folder / "loop.csv").symlink_to("loop.csv")
    known = {path.name for path in folder.iterdir()}

    def case(rng):
        name = pick(rng, COMMANDS)
        line = [name]
        if name in ("top", "tokens"):
            line += [pick(rng, TEXTS) for _ in range(rng.integers(0, 3))]
        elif rng.integers(3):
            line += pick(rng, [["--experiment", pick(rng, [*NAMED])], ["--pairs", "good.jsonl"], QUESTION])
        for _ in range(rng.integers(0, 3)):
            option = pick(rng, [*OPTIONS])
            line += [option] if OPTIONS[option] is None else [option, pick(rng, OPTIONS[option])]
        run_command(line)
        for path in folder.iterdir():
            if path.name not in known:
                if path.name.startswith(".nanopatch"):
                    raise Wrong(f"{line}: {path.name} was left")
                path.unlink()

    return case


GOOD = ("clean", "corrupted", "answer", "wrong_answer")
QUESTION = [
    item for pair in zip(("--clean", "--corrupted", "--answer", "--wrong"), TEXTS, strict=False) for item in pair
]


def run_command(line):
    """Run one command line. `Wrong` unless it ends right, or with one line on stderr; NanopatchError for the latter."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="strict") for _ in range(2))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = cli.main(line)
        except SystemExit as stop:
            status = stop.code
        except BaseException as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            raise Wrong(f"{line}: {type(error).__name__}: {error} ({where.filename}:{where.lineno})") from None
    for stream in (out, err):
        stream.flush()
    told, printed = (s.buffer.getvalue().decode() for s in (err, out))
    lines = [text for text in told.splitlines() if "%|" not in text and not text.startswith("wrote ")]
    if status not in (0, 1, 2) or "Traceback" in told or (status and not told):
        raise Wrong(f"{line}: status {status}: {told[-500:]!r}")
    if status:
        if len([text for text in lines if text.strip()]) > 2 or not_one_line(lines[-1]):
            raise Wrong(f"{line}: {told[-500:]!r}")
        if printed.strip():
            raise Wrong(f"{line}: an error, and on stdout {printed[:100]!r}")
        raise NanopatchError(lines[-1])
    if "--json" in line and "--help" not in line:
        json.loads(printed, parse_constant=lambda name: (_ for _ in ()).throw(Wrong(f"{line}: {name} in JSON")))


PARTS = {"checkpoints": checkpoints, "formats": formats, "results": results, "pairs": pairs, "commands": commands}

if __name__ == "__main__":
    sys.exit(main())
