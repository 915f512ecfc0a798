"""A tensor of a file, before it is read; and the tensors of a safetensors file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..errors import NanopatchError
from ..files import opened, parse_json
from ..types import Array
from . import hub

#: The number formats that can be read, by safetensors' names. NumPy has no type for BF16; see `Stored.read`.
FORMATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}
#: The longest header of a safetensors file that is read, in bytes. That of gpt2-xl has 60,000.
MAX_HEADER = 2**21
#: How many numbers are read and converted at once: they stay in the processor's cache.
CHUNK = 2**17

_may_map: ContextVar[bool] = ContextVar("may_map", default=False)


@contextmanager
def may_map() -> Iterator[None]:
    """Inside it, files of any folder are mapped. Whoever enters it sees to it that they do not change."""
    token = _may_map.set(True)
    try:
        yield
    finally:
        _may_map.reset(token)


@dataclass(frozen=True)
class Stored:
    """One tensor of a file, before it is read: its place in bytes, its number format, its shape.

    strides: how many numbers apart its neighbours are along each axis, if they are not stored row by row.
    """

    path: Path
    start: int
    number_format: str
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None = None

    @property
    def transposed(self) -> Stored:
        """The transposed matrix, from the same place in the file."""
        strides = self.strides or (self.shape[-1], 1)
        return replace(self, shape=self.shape[::-1], strides=strides[::-1])

    def read(self, dtype: np.dtype) -> Array:
        """Its numbers as an array of `dtype`, one of FORMATS: mapped if the file never changes, else copied."""
        if self.strides is not None:
            span = 1 + sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))
            flat = replace(self, shape=(0 if 0 in self.shape else span,), strides=None).read(dtype)
            steps = [stride * flat.itemsize for stride in self.strides]
            return np.ascontiguousarray(np.lib.stride_tricks.as_strided(flat, self.shape, steps))
        stored = np.dtype(FORMATS[self.number_format])
        # NumPy's matrix product copies an array that does not start at a multiple of its item size, at every call.
        lasting = _may_map.get() or hub.is_cached(self.path)
        if stored == dtype and self.start % stored.itemsize == 0 and lasting and 0 not in self.shape:
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


@dataclass(frozen=True)
class Rearranged:
    """A tensor made of others when it is read, such as the queries', keys' and values' weights side by side."""

    parts: tuple[Stored, ...]
    how: Callable[..., Array]
    shape: tuple[int, ...]

    @property
    def number_format(self) -> str:
        """That of the parts, or the first that cannot be read."""
        formats = [part.number_format for part in self.parts]
        return next((name for name in formats if name not in FORMATS), formats[0])

    @property
    def transposed(self) -> Rearranged:
        """The transposed matrix."""
        return Rearranged(self.parts, lambda *parts: self.how(*parts).T, self.shape[::-1])

    def read(self, dtype: np.dtype) -> Array:
        """Its numbers as an array of `dtype`."""
        return np.ascontiguousarray(self.how(*(part.read(dtype) for part in self.parts)))


def read_safetensors(path: Path) -> dict[str, Stored]:
    """Every tensor of one safetensors file: where it is. No numbers are read yet.

    The library safetensors checks the file: its size, its header, and that all tensors lie inside it. Its own NumPy
    reader cannot read bfloat16.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with opened(path) as file:  # 8 bytes: the header's length; the header, JSON; then the numbers
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
