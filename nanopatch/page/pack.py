"""Replies of the page as bytes: a JSON header, and arrays as they lie in memory. `unpack.js` reads them.

A reply is the header's length (4 bytes, little-endian), the header, and the arrays one after the other. Each part
begins at a multiple of 8 bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ..types import Array

#: What a question of the page is: a flat JSON object.
Question = Mapping[str, Any]


class Shown(NamedTuple):
    """What a reply shows: values that JSON can hold, and arrays by name."""

    values: Mapping[str, Any]
    arrays: Mapping[str, Array]


#: The dtypes that `unpack.js` knows.
TYPES = {name: np.dtype(f"<{name}") for name in ("f2", "f4", "f8", "u1", "u2", "i4")}
#: Larger numbers than this have no float16.
MOST_HALF = 65504


def key_of(question: Question) -> str:
    """The text that names a question: its JSON, with sorted keys and without spaces.

    Examples
    --------
    >>> key_of({"view": "lens", "run": "clean"})
    '{"run":"clean","view":"lens"}'
    """
    return json.dumps(question, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def pack(key: str, values: Mapping[str, Any], arrays: Mapping[str, Array] | None = None) -> bytes:
    """A reply as bytes.

    key: of its question. values: what JSON can hold; numbers that are not finite become null. arrays: of any shape, of
    one of `TYPES` (bool becomes u1, int64 i4).

    Examples
    --------
    >>> import numpy as np
    >>> unpack(pack("a", {"n": 2, "x": np.inf}, {"grid": np.eye(2, dtype=np.float32)}))["grid"]
    array([[1., 0.],
           [0., 1.]], dtype=float32)
    """
    typed = {name: _typed(array) for name, array in (arrays or {}).items()}
    about = {name: [array.dtype.str[1:], list(array.shape)] for name, array in typed.items()}
    header = {"key": key, **values, "arrays": about}
    text = json.dumps(_finite(header), separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode("utf-8")
    parts = [len(text).to_bytes(4, "little") + text, *(array.tobytes() for array in typed.values())]
    return b"".join(part.ljust(-(-len(part) // 8) * 8, b"\0") for part in parts)


def unpack(reply: bytes) -> dict[str, Any]:
    """What a reply holds: the header's values, and each array under its name."""
    at = 4 + int.from_bytes(reply[:4], "little")
    header: dict[str, Any] = json.loads(reply[4:at])
    for name, (kind, shape) in header.pop("arrays").items():
        at = -(-at // 8) * 8
        size = math.prod(shape)
        header[name] = np.frombuffer(reply, TYPES[kind], size, at).reshape(shape)
        at += size * TYPES[kind].itemsize
    return header


def half(array: Array) -> Array:
    """An array as float16, which keeps three digits; as float32 if a number is too large for that."""
    largest = np.abs(array[np.isfinite(array)]).max(initial=0)
    return array.astype(np.float16 if largest < MOST_HALF else np.float32)


def pooled(array: Array, most: int, axis: int = -1) -> tuple[Array, int]:
    """At most `most` entries along an axis, each the one of largest size among n neighbours; and n.

    Examples
    --------
    >>> import numpy as np
    >>> pooled(np.array([1, -3, 2, 0, 5]), 3)
    (array([-3,  2,  5]), 2)
    """
    array = np.moveaxis(array, axis, -1)
    n = -(-array.shape[-1] // most)
    if n > 1:
        missing = -array.shape[-1] % n
        groups = np.concatenate([array, np.repeat(array[..., -1:], missing, -1)], -1)
        groups = groups.reshape(*array.shape[:-1], -1, n)
        sizes = np.where(np.isfinite(groups), np.abs(groups), -1)  # what is masked stands only where all of them are
        array = np.take_along_axis(groups, sizes.argmax(-1)[..., None], -1)[..., 0]
    return np.moveaxis(array, -1, axis), n


def _typed(array: Array) -> Array:
    array = np.asarray(array)
    if array.dtype == bool:
        array = array.astype(np.uint8)
    elif array.dtype.kind == "i":
        array = array.astype(np.int32)
    array = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)
    assert array.dtype in TYPES.values(), f"no rule for {array.dtype}: write one here and in unpack.js"
    return array


def _finite(value: Any) -> Any:
    """JSON's values, with null in place of numbers that are not finite."""
    if value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, dict):
        return {str(name): _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
