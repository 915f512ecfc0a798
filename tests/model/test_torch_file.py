"""PyTorch's files: none runs anything, and each that is damaged or hostile is refused in one line, in little memory."""

import io
import os
import pickle
import re
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
import writers
from conftest import tiny_model
from writers import Call, Code, Kept, Name

import nanopatch
from nanopatch import NanopatchError
from nanopatch.model import vocabulary
from nanopatch.model.backward import named_weights

MODEL = tiny_model(dtype=np.float32)
TENSORS = {name: writers.tensor(array) for name, array in named_weights(MODEL).items()}
OPTIONS = dict(n_head=2, activation_function="gelu_new")
#: What refusing any file here may take, in bytes: a pickle of 2 MiB, and the objects of 262,144 instructions.
MEMORY = 40 * 2**20
SENTINEL = "touched"


def load(path):
    return nanopatch.load(path, **OPTIONS)


def error_of(path, content, load=load):
    """The error. Memory is measured for zips alone: that is slow, and all pickles are read by one reader."""
    path.write_bytes(content)
    is_traced = content.startswith(b"PK")
    if is_traced:
        tracemalloc.start()
    try:
        with pytest.raises(NanopatchError) as caught:
            load(path)
        assert not is_traced or tracemalloc.get_traced_memory()[1] < max(MEMORY, 2 * len(content))
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    assert len(message.splitlines()) == 1 and len(message) < 500 and message.isprintable()
    assert str(path) in message
    return message


def test_it_loads_as_it_stands(tmp_path):
    for content in (writers.torch_zip(TENSORS), writers.torch_older(TENSORS)):
        (tmp_path / "a.pt").write_bytes(content)
        assert np.array_equal(load(tmp_path / "a.pt").wte, MODEL.wte)


# ---- pickles that would run something -------------------------------------------------------------


class Reduced:
    def __reduce__(self):
        return os.system, (f"touch {SENTINEL}",)


def text(value):
    content = value.encode()
    return b"X" + struct.pack("<I", len(content)) + content


COMMAND = f"touch {SENTINEL}"
RUN = Call(Name("os", "system"), (COMMAND,))
PYTHON = f"__import__('pathlib').Path('{SENTINEL}').touch()"
HOSTILE = {
    "os.system": (RUN, "os.system"),
    "posix.system": (Call(Name("posix", "system"), (COMMAND,)), "posix.system"),
    "subprocess": (Call(Name("subprocess", "Popen"), ((COMMAND, True),)), "subprocess.Popen"),
    "eval": (Call(Name("builtins", "eval"), (PYTHON,)), "builtins.eval"),
    "exec": (Call(Name("builtins", "exec"), (PYTHON,)), "builtins.exec"),
    "Python 2's": (Call(Name("__builtin__", "eval"), (PYTHON,)), "__builtin__.eval"),
    "getattr": (Call(Name("builtins", "getattr"), (Name("os", "x"), "system")), "builtins.getattr"),
    "torch's own": (Call(Name("torch.hub", "load"), ("a/b", "c")), "torch.hub.load"),
    "a whole module": (Call(Name("mingpt.model", "GPT"), ()), "mingpt.model.GPT"),
    "reduced": (Code(pickle.dumps(Reduced(), 2)[2:-1]), "system"),
    "in a tuple": ((1, [{"a": (RUN,)}]), "os.system"),
    "among an OrderedDict's": (writers.ordered({"a": RUN}), "os.system"),
    "an OrderedDict of a list": (Call(Name("collections", "OrderedDict"), ([("a", 1)],)), "OrderedDict is made of"),
    "in hooks": (
        Call(Name("torch._utils", "_rebuild_tensor_v2"), (Kept(("storage",)), 0, (), (), False, RUN)),
        "a tensor's numbers|os.system",
    ),
    "as a storage": (Kept(("storage", Name("os", "system"), "0", "cpu", 1)), "os.system"),
    "as a persistent id": (Kept(RUN), "os.system"),
    "a name as a persistent id": (Kept(Name("torch", "FloatStorage")), "unknown way"),
    "a name as a key": (Kept(("storage", Name("torch", "FloatStorage"), Name("torch", "FloatStorage"), "", 1)), "key"),
    "a call of a storage": (Call(Name("torch", "FloatStorage"), (3,)), "a call of torch.FloatStorage"),
    "a call of a text": (Call("print", (3,)), "a call of str"),
    "STACK_GLOBAL": (Code(text("os") + text("system") + b"\x93" + text(COMMAND) + b"\x85R"), "os.system"),
    "STACK_GLOBAL of lists": (Code(b"]]\x93"), "a name is not a text"),
    "STACK_GLOBAL over two lines": (Code(text("os\n\0\x1b[2J") + text("system") + b"\x93"), r"holds 'os \\x00\\x1b"),
    "a long name": (Code(text("os" * 10_000) + text("system") + b"\x93"), "holds osos"),
    "INST": (Code(b"(" + text(COMMAND) + b"ios\nsystem\n"), "instruction INST"),
    "OBJ": (Code(b"(cos\nsystem\n" + text(COMMAND) + b"o"), "os.system"),
    "OBJ of a known name": (Code(b"(ccollections\nOrderedDict\no"), "instruction OBJ"),
    "NEWOBJ": (Code(b"ccollections\nOrderedDict\n)\x81"), "instruction NEWOBJ"),
    "NEWOBJ_EX": (Code(b"ccollections\nOrderedDict\n)}\x92"), "instruction NEWOBJ_EX"),
    "EXT1": (Code(b"\x82\x01"), "instruction EXT1"),
    "EXT4": (Code(b"\x84\x01\x00\x00\x00"), "instruction EXT4"),
    "PERSID": (Code(b"Pos.system\n"), "instruction PERSID"),
    "BUILD of a name": (
        Code(b"ctorch\nFloatStorage\n}" + text("__setstate__") + b"cos\nsystem\nsb"),
        "os.system",
    ),
    "BUILD of a name of its own": (Code(b"ctorch\nFloatStorage\n}b"), "attributes of a Name"),
    "BUILD of a list": (Code(b"]}b"), "attributes of a list"),
}
# Pickles that run nothing, and would hang, crash or fill the memory.
LAUGHS = b"]q\x00" + b"".join(b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) for i in range(60))  # pairs of pairs of ...
SAME_HASH = b"".join(b"\x8a\x0c" + (i * (2**61 - 1)).to_bytes(12, "little") + b"N" for i in range(1, 50_000))
COSTLY = {
    "billion laughs": (Code(LAUGHS), "nested too deeply, or uses the same"),
    "billion laughs as a key": (Code(b"}" + LAUGHS + b"Ns"), "a dict's key is a tuple"),
    "billion laughs as a name": (Code(LAUGHS + text("a") + b"\x93"), "a name is not a text"),
    "billion laughs as a persistent id": (Code(LAUGHS + b"Q"), "unknown way"),
    "billion laughs as arguments": (
        Code(b"ccollections\nOrderedDict\n" + LAUGHS + b"R"),
        "takes from 0 to 1 positional",
    ),
    "one text very often": (Code(b"]" + text("a" * 10_000) + b"q\x00" + b"ah\x00" * 1000 + b"a"), "nested too|often"),
    "lists in lists": (Code(b"]" * 100_000 + b"a" * 99_999), "nested too deeply"),
    "tuples in tuples": (Code(b")" + b"\x85" * 100_000), "nested too deeply"),
    "dicts in dicts": (Code((b"}K\x01") * 50_000 + b"}" + b"s" * 50_000), "nested too deeply"),
    "marks": (Code(b"(" * 200_000), "whole"),
    "very many lists": (Code(b"]" * 300_000), "more than 262144 instructions"),
    "a list in itself": (Code(b"]q\x00h\x00a"), "nested too deeply"),
    "a dict in itself": (Code(b"}q\x00" + text("model") + b"h\x00s"), "nested too deeply"),
    "keys of one hash": (Code(b"}(" + SAME_HASH + b"u"), "a dict's key is a int, or too large"),
    "memo of one hash": (Code(b"Np2305843009213693951\n"), "numbers its objects up to"),
    "LONG_BINPUT": (Code(b"Nr\xff\xff\xff\xff"), "numbers its objects up to"),
    "LONG4": (Code(b"\x8b" + struct.pack("<I", 2**31 - 1)), "whole pickle"),
    "LONG4 below 0": (Code(b"\x8b" + struct.pack("<I", 2**31)), "whole pickle"),
    "a long number": (Code(b"\x8b" + struct.pack("<I", 10**6) + b"\x7f" * 10**6), "more than 128 bits"),
    "a long number as text": (Code(b"I" + b"9" * 10**6 + b"\n"), "whole pickle"),
    "BINUNICODE": (Code(b"X" + struct.pack("<I", 2**32 - 1)), "whole pickle"),
    "BINUNICODE8": (Code(b"\x8d" + struct.pack("<Q", 2**40)), "whole pickle"),
    "BINUNICODE8 of all": (Code(b"\x8d" + struct.pack("<Q", 2**64 - 1)), "whole pickle"),
    "BYTEARRAY8": (Code(b"\x96" + struct.pack("<Q", 2**40)), "whole pickle|BYTEARRAY8"),
    "FRAME": (Code(b"\x95" + struct.pack("<Q", 2**62)), "whole|no state dict|no characters"),
    "an empty stack": (Code(b"00000"), "instruction POP"),
    "a text without an end": (Code(b"V" + b"a" * 3_000_000), "longer than"),
    "longer than is read": (["a" * 3_000_000], "longer than"),
    "no instruction": (Code(b"\xff"), "whole pickle"),
}


@pytest.mark.parametrize("value, message", COSTLY.values(), ids=COSTLY)
@pytest.mark.parametrize("kind", ["zip", "older", "meta.pkl"])
def test_a_costly_pickle_is_refused_at_once(tmp_path, monkeypatch, kind, value, message):
    test_a_hostile_pickle_is_refused_and_runs_nothing(tmp_path, monkeypatch, kind, value, message)


@pytest.mark.parametrize("value, message", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("kind", ["zip", "older", "state dict", "meta.pkl"])
def test_a_hostile_pickle_is_refused_and_runs_nothing(tmp_path, monkeypatch, kind, value, message):
    monkeypatch.chdir(tmp_path)
    if kind == "meta.pkl":
        error = error_of(
            tmp_path / "meta.pkl", writers.pickled({"stoi": {"a": value}}), lambda path: vocabulary.read(path, 29)
        )
    else:
        content = {"model": {**TENSORS, "x": value}} if kind == "state dict" else value
        error = error_of(tmp_path / "a.pt", (writers.torch_older if kind == "older" else writers.torch_zip)(content))
    if kind in ("zip", "older"):
        assert re.search(message, error), error
    assert os.listdir(tmp_path) == ["meta.pkl" if kind == "meta.pkl" else "a.pt"]


def test_the_hostile_pickles_are_hostile(tmp_path, monkeypatch):
    """Python's own unpickler runs them."""
    monkeypatch.chdir(tmp_path)
    for name in ("os.system", "eval", "STACK_GLOBAL", "INST", "reduced"):
        pickle.loads(writers.pickled(HOSTILE[name][0]))
        (tmp_path / SENTINEL).unlink()


def test_what_a_person_who_saved_the_whole_model_is_told(tmp_path):
    value = Call(Name("mingpt.model", "GPT"), ())
    assert error_of(tmp_path / "a.pt", writers.torch_zip(value)) == (
        f"{tmp_path / 'a.pt'} holds mingpt.model.GPT, which could run code: it is not read; save a state dict of "
        "tensors alone (model.state_dict())"
    )


def test_what_a_person_whose_characters_are_not_read_is_told(tmp_path):
    content = writers.pickled({"stoi": RUN})
    assert error_of(tmp_path / "meta.pkl", content, lambda path: vocabulary.read(path, 29)) == (
        f"{tmp_path / 'meta.pkl'} holds os.system, which could run code: it is not read; save texts and numbers alone"
    )


def test_a_pointer_of_git_lfs(tmp_path):
    for name in ("a.pt", "a.bin"):
        pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 548105171\n"
        assert "a pointer of Git LFS: run `git lfs pull`" in error_of(tmp_path / name, pointer)


# ---- what is in them ------------------------------------------------------------------------------


FOUR = ("storage", Name("torch", "FloatStorage"), "0", "cpu", 4)


def rebuilt(*arguments, kept=FOUR):
    return Call(Name("torch._utils", "_rebuild_tensor_v2"), (Kept(kept), *arguments, False, writers.NO_HOOKS))


CONTENTS = {
    "nothing": ({}, "holds no state dict"),
    "a list": ([1], r"holds no state dict \(list\)"),
    "a number": (3, r"holds no state dict \(int\)"),
    "one tensor": (writers.tensor(np.zeros(3, np.float32)), r"holds no state dict \(one tensor\)"),
    "no tensors": ({"model": {"a": 1}, "b": 2}, r"holds no state dict \('a'\)"),
    "not a tensor": (TENSORS | {"x": 3}, "'x' of the state dict is not a tensor"),
    "no sizes": ({"model": TENSORS, "model_args": {"n_head": [2]}}, "model_args holds other things than sizes"),
    "a huge size": ({"model": TENSORS, "model_args": {"n_layer": 2**100}}, "not a whole GPT-2"),
    "a negative size": ({"model": TENSORS, "model_args": {"n_layer": -1}}, "n_layer must be a positive"),
    "beyond": (TENSORS | {"x": rebuilt(1, (4,), (1,))}, "'x' reaches beyond its storage"),
    "far beyond": (TENSORS | {"x": rebuilt(2**120, (4,), (1,))}, "'x' reaches beyond its storage"),
    "a huge shape": (TENSORS | {"x": rebuilt(0, (2**120,), (1,))}, "'x' reaches beyond its storage"),
    "a huge shape without numbers": (TENSORS | {"x": rebuilt(0, (0, 2**120), (1, 1))}, "'x' reaches beyond"),
    "before": (TENSORS | {"x": rebuilt(-1, (2,), (1,))}, "'x' has a negative shape or place"),
    "backwards": (TENSORS | {"x": rebuilt(3, (4,), (-1,))}, "'x' has a negative shape or place"),
    "repeated": (TENSORS | {"x": rebuilt(0, (4, 9), (1, 0))}, r"'x' repeats its numbers: save a copy"),
    "axes without strides": (TENSORS | {"x": rebuilt(0, (2, 2), (1,))}, "described by other things than numbers"),
    "a shape of texts": (TENSORS | {"x": rebuilt(0, ("a",), (1,))}, "described by other things than numbers"),
    "a shape of switches": (TENSORS | {"x": rebuilt(0, (True,), (1,))}, "described by other things than numbers"),
    "many axes": (TENSORS | {"x": rebuilt(0, (1,) * 99, (1,) * 99)}, "a tensor has 99 axes"),
    "two descriptions": (
        TENSORS | {"x": rebuilt(0, (1,), (1,), kept=("storage", Name("torch", "HalfStorage"), "0", "cpu", 4))},
        "described in two ways",
    ),
    "fewer than none": (
        TENSORS | {"x": rebuilt(0, (1,), (1,), kept=("storage", Name("torch", "HalfStorage"), "0", "cpu", -4))},
        "key or size is no such thing",
    ),
    "a view of a storage": (
        TENSORS | {"x": rebuilt(0, (1,), (1,), kept=("storage", Name("torch", "HalfStorage"), "0", "cpu", 4, (1, 2)))},
        "kept in an unknown way",
    ),
    "another storage": (
        TENSORS | {"x": rebuilt(0, (1,), (1,), kept=("storage", Name("torch", "UntypedStorage"), "0", "cpu", 4))},
        r"holds torch\.UntypedStorage",
    ),
}


@pytest.mark.parametrize("content, message", CONTENTS.values(), ids=CONTENTS)
def test_what_a_file_must_hold(tmp_path, content, message):
    if isinstance(content, dict) and isinstance(content.get("x"), Call) and "two" not in message:
        content = {"x": content["x"]} | {"y": writers.tensor(np.arange(4.0))}
    assert re.search(message, error_of(tmp_path / "a.pt", writers.torch_zip(content)))


def test_tensors_that_share_their_numbers_many_times(tmp_path):
    one = writers.tensor(np.ones(30_000))
    content = writers.torch_zip({f"h.{i}": one for i in range(100)})
    assert "share their numbers" in error_of(tmp_path / "a.pt", content)


# ---- zips -----------------------------------------------------------------------------------------


def raw_zip(edit):
    return writers.torch_zip(TENSORS, edit=edit)


def compressed(only):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive, zipfile.ZipFile(io.BytesIO(writers.torch_zip(TENSORS))) as source:
        for name in source.namelist():
            archive.writestr(name, source.read(name), zipfile.ZIP_DEFLATED if name == only else zipfile.ZIP_STORED)
    return file.getvalue()


def with_bomb(name):
    file = io.BytesIO(writers.torch_zip(TENSORS, edit=lambda entries: {k: v for k, v in entries.items() if k != name}))
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, bytes(100 * 2**20))
    return file.getvalue()


WHOLE = writers.torch_zip(TENSORS)


def changed(marker, offset, new):
    """The file with bytes replaced in the header (PK 3 4) or the table's line (PK 1 2) of the first weights."""
    content = bytearray(WHOLE)
    name = content.index(b"archive/data/0") if marker == b"PK\x03\x04" else content.rindex(b"archive/data/0")
    start = content.rindex(marker, 0, name)
    content[start + offset : start + offset + len(new)] = new
    return bytes(content)


def shorter(n):
    return WHOLE[:-n]


def many_entries():
    line = b"PK\x01\x02" + bytes(42)
    table = line * 100_000
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 65535, 65535, len(table), len(WHOLE), 0)
    return WHOLE + table + end


def twice():
    file = io.BytesIO(WHOLE)
    with zipfile.ZipFile(file, "a") as archive, pytest.warns(UserWarning):
        archive.writestr("archive/data/0", b"other")
    return file.getvalue()


LOCAL, TABLE = b"PK\x03\x04", b"PK\x01\x02"
ZIPS = {
    "numbers compressed": (compressed("archive/data/0"), "missing or compressed"),
    "pickle compressed": (compressed("archive/data.pkl"), r"data\.pkl is compressed"),
    "a bomb of numbers": (with_bomb("archive/data/0"), "missing or compressed"),
    "a bomb of a pickle": (with_bomb("archive/data.pkl"), r"data\.pkl is compressed"),
    "a bomb of a byte order": (with_bomb("archive/byteorder"), "byteorder is compressed"),
    "an entry twice": (twice(), "is in it twice"),
    "no pickle": (raw_zip(lambda e: {k: v for k, v in e.items() if "pkl" not in k}), r"data\.pkl is missing"),
    "two pickles": (raw_zip(lambda e: e | {"b/data.pkl": e["archive/data.pkl"]}), r"data\.pkl is missing|two"),
    "no numbers": (raw_zip(lambda e: {k: v for k, v in e.items() if not k.endswith("/3")}), "missing or compressed"),
    "fewer numbers": (raw_zip(lambda e: e | {"archive/data/0": b"1234"}), "reaches beyond its storage"),
    "big-endian": (raw_zip(lambda e: e | {"archive/byteorder": b"big"}), "not little-endian"),
    "encrypted": (changed(TABLE, 8, b"\x01"), "missing or compressed"),
    "wrong sum": (changed(TABLE, 16, b"abcd"), "CRC-32"),
    "header elsewhere": (changed(TABLE, 42, struct.pack("<I", 7)), "not where the zip's table says|Overlapped"),
    "header far away": (changed(TABLE, 42, b"\xff\xff\xff\x7f"), "not where the zip's table says|Overlapped"),
    "another header": (changed(LOCAL, 30, b"archive/data/9"), "differ"),
    "header's name longer": (changed(LOCAL, 26, b"\xff\xff"), "whole|differ"),
    "size in zip64 without it": (changed(TABLE, 20, b"\xff" * 8), "whole|compressed"),
    "overlapping": (changed(TABLE, 20, struct.pack("<II", 20_000, 20_000)), "CRC-32|Overlapped|overlap|whole"),
    "very many entries": (many_entries(), "more than 2097152 bytes"),
    "cut in its table": (shorter(100), "File is not a zip file"),
    "cut in half": (WHOLE[: len(WHOLE) // 2], "File is not a zip file"),
    "nothing but its start": (b"PK\x03\x04", "File is not a zip file"),
    "older, cut": (writers.torch_older(TENSORS)[:-40], "reaches beyond its storage"),
    "older, cut in its pickle": (writers.torch_older(TENSORS)[:1000], "not a whole pickle"),
    "older, big-endian": (writers.torch_older(TENSORS).replace(b"\x88", b"\x89", 1), "not little-endian"),
    "a pickle that is no file of PyTorch": (pickle.dumps([1, 2]), "does not begin as a file of PyTorch does"),
}


@pytest.mark.parametrize("content, message", ZIPS.values(), ids=ZIPS)
def test_a_damaged_zip_is_refused(tmp_path, content, message):
    error = error_of(tmp_path / "a.pt", content)
    assert re.search(message, error), error
    assert os.listdir(tmp_path) == ["a.pt"]


@pytest.mark.parametrize(
    "name", ["../a", "/etc/passwd", "a/../../b", "C:\\a", "archive/data/../../x", "a\nb", "data.pkl"]
)
def test_path_names_in_a_zip_lead_nowhere(tmp_path, name):
    """An entry is looked up by its name in the zip. No path is made of it."""
    path = tmp_path / "a.pt"
    path.write_bytes(raw_zip(lambda entries: entries | {name: b"x"}))
    assert np.array_equal(load(path).wte, MODEL.wte)
    assert os.listdir(tmp_path) == ["a.pt"]
    kept = ("storage", Name("torch", "FloatStorage"), name, "cpu", 4)
    error = error_of(path, writers.torch_zip({"x": rebuilt(0, (4,), (1,), kept=kept)}))
    assert "its numbers are missing or compressed" in error and os.listdir(tmp_path) == ["a.pt"]


def test_a_zip64_loads(tmp_path, monkeypatch):
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)
    content = writers.torch_zip(TENSORS)
    monkeypatch.undo()
    assert b"PK\x06\x06" in content  # the end of a zip64
    (tmp_path / "a.pt").write_bytes(content)
    assert np.array_equal(load(tmp_path / "a.pt").wte, MODEL.wte)


@pytest.mark.parametrize("writer, how", [(writers.torch_older, "plain"), (writers.torch_zip, "transposed")])
def test_reading_takes_at_most_twice_the_size_of_the_file(tmp_path, writer, how):
    weights = named_weights(MODEL) | {name: np.ones((60_000, 12), np.float32) for name in ("wte.weight", "wpe.weight")}
    linear = writers.in_layout(weights, "linear", 2)
    path = tmp_path / "a.pt"
    path.write_bytes(writer({name: writers.tensor(array, how=how) for name, array in linear.items()}))
    load(path)
    tracemalloc.start()
    load(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * path.stat().st_size
