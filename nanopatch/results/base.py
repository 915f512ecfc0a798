"""What all results can do: show, save and load themselves, and be averaged."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import re
import types
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from ..errors import NanopatchError
from ..experiments import corruption
from ..experiments.experiment import Experiment
from ..files import Source, parse_json, read_bytes, write_whole
from ..model.graph import Node, node
from ..notebook import printable
from ..page.document import result_page
from ..page.pack import Shown
from ..types import Array, PathLike, Prompt
from . import plot
from .prediction import Prediction

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .plot import Drawing

R = TypeVar("R", bound="Result")
#: The values of a result's fields, by name. A result inside a result is such a dict itself.
Contents = dict[str, Any]

FORMAT = "nanopatch result 2"
#: `save` does not compress. A .npz that unpacks to more than this, and to more than its own size, is not read (bytes).
MAX_UNPACKED = 2**26
#: The file endings that `Result.save` can write.
ENDINGS = (".npz", ".json", ".csv", ".html", *(f".{name}" for name in plot.FORMATS))


class Result:
    """What all results can do. Most are frozen dataclasses, whose fields are what a file holds."""

    kind: ClassVar[str]
    #: The fields that are means if there are several experiments. `standard_error` is that of the first field here.
    averaged: ClassVar[tuple[str, ...]] = ()
    #: What `to_dict` adds to the fields. `load` computes it anew.
    derived: ClassVar[tuple[str, ...]] = ()

    def plot(self) -> Figure:
        """Draw it: a matplotlib Figure, the picture that `save` writes; `figure.savefig("x.png")` writes the same.

        If pyplot is imported, `plt.show()` and `plt.savefig()` are about the last one drawn; it keeps the last ten.
        """
        return plot.for_pyplot(self._picture())

    def _picture(self) -> Figure:
        """The figure of `plot`, which pyplot does not know."""
        return plot.picture(*self._parts())

    def _parts(self) -> tuple[Drawing, list[str]]:
        """What its picture shows, and the lines below it."""
        raise NotImplementedError

    def text(self) -> str:
        """It as lines of text. `print` shows them, with what the terminal cannot write replaced."""
        raise NotImplementedError

    def __str__(self) -> str:
        return printable(self.text())

    def to_rows(self) -> list[dict[str, Any]]:
        """Its numbers, one dict for each row."""
        raise NotImplementedError

    def _repr_png_(self) -> bytes:  # how a notebook shows it
        return plot.as_bytes(self._picture())

    def page(self) -> bytes:
        """It as a page, one HTML file in UTF-8 that needs no network. Here: its picture, and its rows as a table."""
        rows = self.to_rows()
        names = list(dict.fromkeys(name for row in rows for name in row))
        cells = [[jsonable(row.get(name)) for name in names] for row in rows]
        picture = base64.b64encode(plot.as_bytes(self._picture(), "svg")).decode("ascii")
        shown = Shown({"text": self.text(), "names": names, "rows": cells, "picture": picture}, {})
        source = getattr(self, "source", None)
        return result_page(["result"], source.name if source else "", [({"view": "result"}, shown)], {})

    # ---- files ----------------------------------------------------------------------------------

    def to_csv(self, path: PathLike | None = None) -> str:
        """`to_rows()` as CSV with a header line; with a path, also written there (UTF-8)."""
        return write_text(as_csv(self.to_rows()), path)

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON can hold it: arrays as lists, NaN as None (a single number as "nan"), infinity as "inf"."""
        contents = {name: _number(value) for name, value in self._contents().items()}
        return {"format": FORMAT, "kind": self.kind, **contents}

    def to_json(self, path: PathLike | None = None) -> str:
        """`to_dict()` as JSON; with a path, also written there (UTF-8). `load` reads it."""
        return write_text(json.dumps(self.to_dict(), ensure_ascii=False, allow_nan=False), path)

    def save(self, path: PathLike) -> None:
        """Write it to `path`, whose ending says how.

        .npz and .json hold the whole result exactly, and `load` reads them; .csv holds `to_rows()`; .html is a page
        that shows it and needs no network; .png, .svg and .pdf hold its picture.
        Raises NanopatchError for another ending, or a path that cannot be written.
        """
        ending = Path(path).suffix.lower()
        if ending == ".npz":
            header, arrays = self._pack()
            text, file = json.dumps({"format": FORMAT, **header}, ensure_ascii=False), io.BytesIO()
            np.savez(file, **arrays, header=np.array(text))  # type: ignore[arg-type]
            write_whole(path, file.getvalue())
        elif ending == ".json":
            self.to_json(path)
        elif ending == ".csv":
            self.to_csv(path)
        elif ending == ".html":
            write_whole(path, self.page())
        elif ending in ENDINGS:
            write_whole(path, plot.as_bytes(self._picture(), ending[1:]))
        else:
            raise NanopatchError(f"cannot save {path}: its ending must be one of {', '.join(ENDINGS)}")

    @classmethod
    def load(cls: type[R], path: PathLike) -> R:
        """Read what `save` wrote as .npz or .json. NanopatchError if the file does not hold such a result.

        Every field is checked, so that a damaged or edited file is not taken for another result.
        """
        try:
            content = read_bytes(path)
        except FileNotFoundError as error:
            raise NanopatchError(f"cannot read {path}: {error.strerror}") from None
        try:
            is_json = Path(path).suffix.lower() == ".json"
            contents = parse_json(content.decode("utf-8-sig")) if is_json else read_npz(content)
            contents = cls._known_format(contents)
            if contents["kind"] != cls.kind:
                raise ValueError(f"it holds {contents['kind']}, not {cls.kind}")
            return cls._unpack(contents)
        except Exception as error:  # zip, JSON, NumPy and missing names each raise their own
            why = " ".join(f"{type(error).__name__}: {error}".split())
            what = f"{path} does not hold a saved {cls.__name__} ({why:.300})"
            raise NanopatchError(f"{what}: give a .npz or .json that `save` wrote") from None

    @classmethod
    def _known_format(cls, contents: Contents) -> Contents:
        """What a file holds; ValueError for another format."""
        if contents["format"] != FORMAT:
            raise ValueError("another format")
        return contents

    def _pack(self) -> tuple[Contents, dict[str, Array]]:
        """Its contents as JSON can hold them, and its arrays. Those of a result inside it are named "name/name"."""
        header: Contents = {"kind": self.kind}
        arrays: dict[str, Array] = {}
        for name, value in self._contents().items():
            if isinstance(value, Result):
                header[name], inside = value._pack()
                arrays |= {f"{name}/{key}": array for key, array in inside.items()}
            elif isinstance(value, np.ndarray):
                arrays[name] = value
            else:
                header[name] = _number(value)
        return header, arrays

    @classmethod
    def _unpack(cls: type[R], contents: Contents) -> R:
        """A result, made from its contents; ValueError if a field is missing, unknown, or not what it should be."""
        known = {"format", "kind", *cls.derived}
        result = of_class(cls, {name: value for name, value in contents.items() if name not in known})
        result._check()
        return result

    def _check(self) -> None:
        """Raise ValueError if fields of a loaded result do not go together."""

    def _shared(self: R, of: Sequence[tuple[R, R]]) -> dict[str, Any]:
        """The fields that say what several pairs share; this is the first pair's result.

        of: for each pair, or for each part of the pairs, the first pair's result and what its pairs share.
        """
        shared: dict[str, Any] = {}
        if hasattr(self, "rounding"):
            shared["rounding"] = max(common.rounding for _, common in of)  # type: ignore[attr-defined]
        if hasattr(self, "prediction"):
            shared["prediction"] = Prediction.of_pairs([common.prediction for _, common in of])  # type: ignore[attr-defined]
        return shared

    def _contents(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV with a header line."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(dict.fromkeys(key for row in rows for key in row)))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write_text(text: str, path: PathLike | None) -> str:
    """A text; with a path, also written there (UTF-8)."""
    if path is not None:
        write_whole(path, text.encode("utf-8"))
    return text


def jsonable(value: Any) -> Any:
    """A value as JSON can hold it."""
    if isinstance(value, (Experiment, Source, Result)):
        return value.to_dict()
    if isinstance(value, Node):
        return str(value)
    if isinstance(value, (*corruption.ABLATIONS, corruption.Noise)):
        return corruption.to_dict(value)
    if is_dataclass(value):
        return jsonable(vars(value))
    if isinstance(value, dict):
        return {name: jsonable(item) for name, item in value.items()}
    if isinstance(value, np.ndarray):
        return jsonable(value.tolist())
    if isinstance(value, (set, frozenset)):  # what is patched together; the order of texts differs between processes
        return [jsonable(item) for item in sorted(value, key=repr)]
    if isinstance(value, (list, tuple, range)):
        return [jsonable(item) for item in value]
    if isinstance(value, np.generic):
        return jsonable(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def check(holds: Any, name: str) -> None:
    """Raise ValueError unless a field of a loaded result goes with the others."""
    if not holds:
        raise ValueError(f"{name} does not go with the other fields")


def check_shape(array: Array | None, shape: tuple[int, ...], name: str, dtype: type) -> None:
    """Raise ValueError unless an array is None or has this shape and dtype."""
    if array is not None and (array.shape != shape or array.dtype != dtype):
        raise ValueError(f"{name} has shape {array.shape} of {array.dtype}; the other fields expect {shape}")


# ---- from a file to fields ------------------------------------------------------------------------


def of_class(kind: type, given: Any) -> Any:
    """A value of a dataclass, made from the fields that a file holds. Every field is checked by its annotation."""
    if not isinstance(given, dict):
        raise ValueError(f"{given!r:.60} is not a {kind.__name__}")
    names = [field.name for field in fields(kind)]
    for name in {*names} ^ {*given}:
        raise ValueError(f"{name!r:.60} is {'missing' if name in names else 'not known'}")
    annotations, values = get_type_hints(kind), {}
    for name in names:
        try:
            values[name] = of_type(annotations[name], given[name])
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return kind(**values)


def of_type(kind: Any, value: Any) -> Any:
    """A value of the annotated type, made from what a file holds; ValueError if it holds another."""
    origin, args = get_origin(kind), get_args(kind)
    if kind == Prompt:
        return of_type(str, value) if isinstance(value, str) else list(of_type(tuple[int, ...], value))
    if kind == Array:
        return _array(value)
    if kind is Any:
        return _plain(value)
    if kind is str and type(value) is str:
        value.encode()  # half of a surrogate pair could be loaded, but not written again
        return value
    if kind in (int, bool) and type(value) is kind:
        return value
    if kind is float and (type(value) in (int, float) or value in ["nan", "inf", "-inf"]):  # JSON has none of these
        return float(value)
    if kind is Node and type(value) is str:
        return node(value)
    if kind is Source and isinstance(value, dict) and value.keys() == {"name", "sha256"}:
        known = of_type(str | None, value["sha256"])
        if known is not None and not re.fullmatch("[0-9a-f]{64}", known):
            raise ValueError(f"{known!r:.80} is not a SHA-256")
        return Source(of_type(str, value["name"]), known_sha256=known)
    if isinstance(kind, type) and issubclass(kind, Result) and isinstance(value, dict):
        if value.get("kind") != kind.kind:
            raise ValueError(f"it holds {value.get('kind')!r:.60}, not {kind.kind}")
        return kind._unpack(value)
    if is_dataclass(kind) and kind is not Source:
        return of_class(kind, value)  # type: ignore[arg-type]
    if origin in (Union, types.UnionType):
        return _of_union(kind, value)
    if isinstance(value, list) and (origin is Sequence or (origin is tuple and args[-1] is ...)):
        return tuple(of_type(args[0], item) for item in value)
    if isinstance(value, list) and origin is tuple and len(value) == len(args):
        return tuple(map(of_type, args, value))
    if isinstance(value, dict) and origin is Mapping:
        return {of_type(args[0], name): of_type(args[1], item) for name, item in value.items()}
    raise _is_not(value, kind)


def _of_union(kind: Any, value: Any) -> Any:
    """A value of one of several types. A corruption says which one it is of."""
    choices = [choice for choice in get_args(kind) if choice is not type(None)]
    if value is None and len(choices) < len(get_args(kind)):
        return None
    if set(choices) == set(get_args(corruption.Corruption)):
        named = {choice.name: choice for choice in choices}
        if not isinstance(value, dict) or value.get("kind") not in named:
            raise _is_not(value, kind)
        return of_class(named[value["kind"]], {name: item for name, item in value.items() if name != "kind"})
    for choice in choices:
        try:
            return of_type(choice, value)
        except ValueError:
            if len(choices) == 1:
                raise
    raise _is_not(value, kind)


def _is_not(value: Any, kind: Any) -> ValueError:
    return ValueError(f"{value!r:.60} is not {_words(kind)}")


def _words(kind: Any) -> str:
    """A type's name for an error message, without the modules it is from."""
    return re.sub(r"\b(\w+\.)+", "", kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind))


def _array(value: Any) -> Array:
    """An array of float64 or of bool. In JSON it was lists, with None for NaN, and "inf"."""
    if isinstance(value, np.ndarray):
        if value.dtype not in (np.float64, bool):
            raise ValueError(f"numbers of {value.dtype} are not float64 or bool")
        return np.ascontiguousarray(value)
    items = np.array(value, object)
    kinds = set(map(type, items.flat))
    if not isinstance(value, list) or not (kinds == {bool} or kinds <= {float, int, type(None), str}):
        raise ValueError(f"{value!r:.60} is not an array of numbers")
    if kinds == {bool}:
        return items.astype(bool)
    if str in kinds and not {item for item in items.flat if isinstance(item, str)} <= {"inf", "-inf"}:
        raise ValueError(f"{value!r:.60} is not an array of numbers")
    return items.astype(np.float64)


def _plain(value: Any) -> Any:
    """A number or a text, or several: what was patched in a cell. JSON has lists where results have tuples."""
    if isinstance(value, list):
        return tuple(map(_plain, value))
    if type(value) not in (int, str):
        raise ValueError(f"{value!r:.60} is not a whole number or a text")
    return value


def read_npz(content: bytes) -> Contents:
    """What a .npz holds, as `to_dict` has it, with arrays in their places."""
    import zipfile  # loads four compression libraries

    arrays: dict[str, Array] = {}
    with zipfile.ZipFile(io.BytesIO(content)) as archive, warnings.catch_warnings():
        warnings.simplefilter("error")  # such as NumPy's on headers of Python 2
        n_bytes = sum(member.file_size for member in archive.infolist())
        if n_bytes > max(MAX_UNPACKED, len(content)):
            raise ValueError(f"it unpacks to {n_bytes:,} bytes")
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            if name in arrays or name == member.filename:
                raise ValueError(f"it holds {member.filename!r:.60}, or holds it twice")
            with archive.open(member) as packed:
                arrays[name] = np.lib.format.read_array(packed, allow_pickle=False)
    header = arrays.pop("header")
    if header.dtype.kind != "U" or header.ndim:
        raise ValueError("its header is not a text")
    contents: Contents = parse_json(str(header))
    for name, array in arrays.items():
        _put(contents, name, array)
    return contents


def _put(contents: Contents, name: str, array: Array) -> None:
    """Put an array into its place in the contents, by the name that `_pack` gave it."""
    for key, inside in contents.items():
        if isinstance(inside, dict) and name.startswith(f"{key}/"):
            return _put(inside, name.removeprefix(f"{key}/"), array)
    if name in contents:
        raise ValueError(f"{name!r:.60} is there twice")
    contents[name] = array


def _number(value: Any) -> Any:
    """A field as JSON can hold it. None has a meaning of its own there, so NaN is "nan"."""
    return "nan" if isinstance(value, float) and math.isnan(value) else jsonable(value)
