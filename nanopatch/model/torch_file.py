"""Reads a state dict that PyTorch saved (.pt, .pth, .ckpt, .bin), without PyTorch and without running the file.

Since PyTorch 1.6 such a file is a zip: `data.pkl`, a pickle of the dict in which each tensor names its storage, and a
file of plain numbers for each storage. Older files are several pickles, followed by the storages. The pickle is read as
data (see `nanopatch.model.unpickle`). The numbers stay in the file until they are needed (see `Stored`).

There is no maintained package to do this: ptloader (0.3) has no bfloat16 and needs Python 3.11 and NumPy 2; the others
need PyTorch.
"""

from __future__ import annotations

import io
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from ..errors import NanopatchError
from ..files import opened
from .stored import Stored
from .unpickle import MAX_PICKLE, Known, Name, beginning, unpickle

if TYPE_CHECKING:
    import zipfile

#: PyTorch's classes of storages: the number format by safetensors' name, and the bytes of a number.
STORAGES = {
    "torch.DoubleStorage": ("F64", 8),
    "torch.FloatStorage": ("F32", 4),
    "torch.HalfStorage": ("F16", 2),
    "torch.BFloat16Storage": ("BF16", 2),
    "torch.LongStorage": ("I64", 8),
    "torch.IntStorage": ("I32", 4),
    "torch.ShortStorage": ("I16", 2),
    "torch.CharStorage": ("I8", 1),
    "torch.ByteStorage": ("U8", 1),
    "torch.BoolStorage": ("BOOL", 1),
}
#: The first number in a file of the format before PyTorch 1.6, from `torch/serialization.py`.
MAGIC = 0x1950A86A20F9469CFC6C
#: Where training programs put the state dict, and nanoGPT its sizes.
STATE_DICTS = ("model", "state_dict", "model_state_dict")
#: No tensor of a GPT-2 has more axes (attention's mask has four).
MAX_AXES = 8
SIZES = "model_args"


@dataclass
class Storage:
    """A row of numbers of the file. `start`, its first byte, is known once the file says where it is."""

    key: str
    number_format: str
    item_size: int
    n_items: int
    start: int | None = None
    entry: zipfile.ZipInfo | None = None


class View(NamedTuple):
    """A tensor: a view of a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_torch(path: Path) -> tuple[dict[str, Stored], dict[str, Any]]:
    """The tensors of the state dict in a file, and the sizes that nanoGPT writes beside it ({} if there are none).

    The state dict is what the file holds, or stands in it under one of `STATE_DICTS`.

    Raises NanopatchError if the file is not whole, if it holds anything but tensors, dicts, lists, numbers and texts,
    or if it holds no state dict.
    """
    from zipfile import BadZipFile  # here, because it loads four compression libraries

    with opened(path) as file:
        try:
            is_zip = file.peek(4)[:4] == b"PK\x03\x04"
            bounded = Bounded(io.FileIO(file.fileno(), closefd=False))
            content = _read_zip(path, bounded) if is_zip else _read_older(path, file)
            state_dict = _state_dict(path, content)
            size = path.stat().st_size
            tensors = {name: _stored(path, name, view, size) for name, view in state_dict.items()}
            if sum(v.storage.item_size * math.prod(v.shape) for v in state_dict.values()) > 2 * size:  # lm_head is wte
                raise ValueError("many of its tensors share their numbers, which a GPT-2's do not")
            if is_zip:
                _check_sums(bounded, {view.storage.key: view.storage.entry for view in state_dict.values()})
            return tensors, _sizes(content)
        except NanopatchError:
            raise
        except (BadZipFile, zlib.error, struct.error, OSError, ValueError, OverflowError) as error:
            raise _not_whole(path, error) from None
        except (KeyError, NotImplementedError, RuntimeError, EOFError) as error:
            raise _not_whole(path, error) from None


def _not_whole(path: Path, error: Exception) -> NanopatchError:
    what = beginning(str(error)) or type(error).__name__
    return NanopatchError(f"{path} is not a whole file of PyTorch ({what}): fetch or save it again")


class Bounded(io.BufferedReader):
    """A file that `zipfile` may read. It would read a table of any length at once, and make 600 bytes of each 46."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > MAX_PICKLE:
            raise ValueError(f"the zip's table, or data.pkl, has more than {MAX_PICKLE} bytes")
        return super().read(size)


def _read_zip(path: Path, file: Bounded) -> Any:
    from zipfile import ZIP_STORED, ZipFile

    with ZipFile(file) as archive:
        entries: dict[str, zipfile.ZipInfo] = {}
        for entry in archive.infolist():
            if entry.filename in entries:
                raise ValueError(f"{entry.filename!r:.100} is in it twice")
            entries[entry.filename] = entry
        pickles = [name for name in entries if name.split("/")[1:] == ["data.pkl"]]
        if len(pickles) != 1:
            raise ValueError("data.pkl is missing")
        root = pickles[0].removesuffix("data.pkl")

        def content(name: str) -> bytes:
            entry = entries[root + name]
            if entry.compress_type != ZIP_STORED or entry.file_size > MAX_PICKLE:
                raise ValueError(f"{name} is compressed, or longer than {MAX_PICKLE} bytes")
            return archive.read(entry)

        if root + "byteorder" in entries and content("byteorder") != b"little":
            raise ValueError("its numbers are not little-endian")
        storages: dict[str, Storage] = {}
        found = unpickle(io.BytesIO(content("data.pkl")), path, KNOWN, lambda id: _storage(id, storages))
        for storage in storages.values():
            storage.entry = entries.get(f"{root}data/{storage.key}")
            if storage.entry is not None:
                storage.start = _first_byte(file, storage.entry)
        return found


def _first_byte(file: IO[bytes], entry: zipfile.ZipInfo) -> int | None:
    """Where the content of an entry begins in the file; None if it is compressed. PyTorch compresses none."""
    from zipfile import ZIP_STORED

    if entry.compress_type != ZIP_STORED or entry.flag_bits & 1 or entry.compress_size != entry.file_size:
        return None
    file.seek(entry.header_offset)  # 30 bytes, then the name and extra fields, whose lengths are in the last four
    header = file.read(30)
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise ValueError(f"{entry.filename!r:.100} is not where the zip's table says")
    return entry.header_offset + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:], "little")


def _check_sums(file: Bounded, used: dict[str, zipfile.ZipInfo | None]) -> None:
    """Raise BadZipFile if the numbers of an entry do not have the check sum that the zip says."""
    from zipfile import ZipFile

    with ZipFile(file) as archive:
        for entry in used.values():
            if entry is not None:
                with archive.open(entry) as content:
                    while content.read(2**20):
                        pass


def _read_older(path: Path, file: IO[bytes]) -> Any:
    """The format before PyTorch 1.6: pickles of a magic number, version, machine, content and keys; the numbers."""
    storages: dict[str, Storage] = {}

    def next_pickle() -> Any:
        return unpickle(file, path, KNOWN, lambda id: _storage(id, storages))

    if next_pickle() != MAGIC:
        raise ValueError("it does not begin as a file of PyTorch does")
    next_pickle()
    machine = next_pickle()
    if type(machine) is not dict or machine.get("little_endian") is not True:
        raise ValueError("its numbers are not little-endian")
    found, keys = next_pickle(), next_pickle()
    if type(keys) is not list or any(type(key) is not str for key in keys) or sorted(keys) != sorted(storages):
        raise ValueError("its list of storages is not that of its tensors")
    for key in keys:
        storage, n_items = storages[key], int.from_bytes(file.read(8), "little")
        if n_items != storage.n_items:
            raise ValueError(f"the storage {key!r:.50} has {n_items} numbers, not {storage.n_items}")
        storage.start = file.tell()
        file.seek(storage.start + n_items * storage.item_size)
    return found


# ---- what stands for PyTorch's objects ------------------------------------------------------------


def _storage(persistent_id: Any, storages: dict[str, Storage]) -> Storage:
    """The storage that a tensor names: ("storage", class, key, device, number of items[, None])."""
    if type(persistent_id) is not tuple or len(persistent_id) not in (5, 6) or persistent_id[5:] not in ((), (None,)):
        raise ValueError("a tensor's numbers are kept in an unknown way")
    what, kind, key, _, n_items = persistent_id[:5]
    if what != "storage" or not isinstance(kind, Name) or kind.name not in STORAGES:
        raise ValueError("a tensor's numbers are of an unknown kind")
    if type(key) is not str or type(n_items) is not int or n_items < 0:
        raise ValueError("a storage's key or size is no such thing")
    number_format, item_size = STORAGES[kind.name]
    new = Storage(key, number_format, item_size, n_items)
    storage = storages.setdefault(key, new)
    if (storage.number_format, storage.n_items) != (number_format, n_items):
        raise ValueError(f"the storage {key!r:.50} is described in two ways")
    return storage


def _rebuild_tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, requires_grad: Any, hooks: Any, metadata: Any = None
) -> View:
    """A tensor, as the pickle describes it. Gradients and hooks are left out."""
    numbers = [offset, *shape, *strides]
    if not isinstance(storage, Storage) or len(shape) != len(strides) or any(type(n) is not int for n in numbers):
        raise ValueError("a tensor is described by other things than numbers")
    if len(shape) > MAX_AXES:
        raise ValueError(f"a tensor has {len(shape)} axes")
    return View(storage, offset, tuple(shape), tuple(strides))


def _ordered_dict(items: Any = ()) -> dict[str, Any]:
    if items:
        raise ValueError("an OrderedDict is made of a list")
    return {}


KNOWN: Known = {
    "collections.OrderedDict": _ordered_dict,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": lambda data, requires_grad, hooks: data,
    **dict.fromkeys(STORAGES),
}


def _state_dict(path: Path, content: Any) -> dict[str, View]:
    """The state dict of what a file holds: that itself, or nested in it."""
    found = content
    for _ in STATE_DICTS:
        nested = [key for key in STATE_DICTS if type(found) is dict and type(found.get(key)) is dict]
        if nested:
            found = found[nested[0]]
    if type(found) is not dict or not any(isinstance(value, View) for value in found.values()):
        keys = "one tensor" if isinstance(found, View) else type(found).__name__
        if type(found) is dict:
            keys = ", ".join(f"{key!r:.30}" for key in list(found)[:5])
        raise NanopatchError(
            f"{path} holds no state dict ({keys}): save model.state_dict(), or a dict with it under "
            f"{', '.join(map(repr, STATE_DICTS))}"
        )
    others = [name for name, value in found.items() if not isinstance(value, View)]
    if others:
        raise NanopatchError(f"{path}: {others[0]!r:.100} of the state dict is not a tensor")
    return found


def _sizes(content: Any) -> dict[str, Any]:
    """nanoGPT's sizes. ValueError if they are other things than numbers, texts and switches."""
    sizes = content.get(SIZES)
    if sizes is None:
        return {}
    if type(sizes) is not dict or not all(type(v) in (int, float, str, bool, type(None)) for v in sizes.values()):
        raise ValueError(f"{SIZES} holds other things than sizes")
    return sizes


def _stored(path: Path, name: str, view: View, size: int) -> Stored:
    """Where the numbers of a tensor are in the file. ValueError if they are not all inside its storage."""
    storage, offset, shape, strides = view
    where = f"the tensor {name!r:.100}"
    if storage.start is None:
        raise ValueError(f"{where}: its numbers are missing or compressed")
    if offset < 0 or min(shape, default=0) < 0 or min(strides, default=0) < 0:
        raise ValueError(f"{where} has a negative shape or place")
    n = math.prod(shape)
    span = n and 1 + sum((n_items - 1) * stride for n_items, stride in zip(shape, strides, strict=True))
    if n > span:
        raise ValueError(f"{where} repeats its numbers: save a copy of it (.contiguous())")
    end = storage.n_items if storage.entry is None else storage.entry.file_size // storage.item_size
    if (
        max(shape, default=0) > size
        or offset + span > min(end, storage.n_items)
        or storage.start + (offset + span) * storage.item_size > size
    ):
        raise ValueError(f"{where} reaches beyond its storage")
    by_rows = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
    plain = all(n_items <= 1 or stride == row for n_items, stride, row in zip(shape, strides, by_rows, strict=True))
    start = storage.start + offset * storage.item_size
    return Stored(path, start, storage.number_format, shape, None if plain or n == 0 else strides)
