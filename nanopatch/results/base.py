"""What all results can do: show, save and load themselves."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np

from ..errors import NanopatchError
from ..experiments import corruption
from ..experiments.experiment import Experiment
from ..files import Source, write_whole
from ..model.graph import Node, node
from ..types import Array, PathLike
from . import plot

if TYPE_CHECKING:
    from matplotlib.figure import Figure

R = TypeVar("R", bound="Result")
Header = dict[str, Any]
Arrays = dict[str, Array]

FORMAT = "nanopatch result 2"
#: The fields that are arrays.
ARRAYS = ("grid", "unchanged", "standard_error", "scores", "norm", "product")
#: The fields that are single numbers, and may be "nan", "inf" or "-inf" in a file.
FLOATS = ("value", "baseline_clean", "baseline_corrupted", "rounding")
#: How a file's ending says what `Result.save` writes.
ENDINGS = (".npz", ".json", ".csv", *(f".{name}" for name in plot.FORMATS))


class Result:
    """The manners of all results. Most are frozen dataclasses, whose fields are what a file holds."""

    kind: ClassVar[str]

    def plot(self) -> Figure:
        """Draw it: a matplotlib Figure, which belongs to no window; `figure.savefig("x.png")` writes it."""
        raise NotImplementedError

    def to_rows(self) -> list[dict[str, Any]]:
        """Its numbers as one dict a row."""
        raise NotImplementedError

    def _repr_png_(self) -> bytes:  # how a notebook shows it
        return plot.as_bytes(self.plot())

    # ---- files ----------------------------------------------------------------------------------

    def to_csv(self, path: PathLike | None = None) -> str:
        """`to_rows()` as CSV with a header line; with a path, also written there (UTF-8)."""
        rows, text = self.to_rows(), io.StringIO(newline="")
        writer = csv.DictWriter(text, fieldnames=list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)
        return _written(text.getvalue(), path)

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON can hold it: arrays as lists, NaN as None (a single number as "nan"), infinity as "inf"."""
        contents = {name: _number(value) for name, value in self._contents().items()}
        return {"format": FORMAT, "kind": self.kind, **contents}

    def to_json(self, path: PathLike | None = None) -> str:
        """`to_dict()` as JSON; with a path, also written there (UTF-8). `load` reads it."""
        return _written(json.dumps(self.to_dict(), ensure_ascii=False, allow_nan=False), path)

    def save(self, path: PathLike) -> None:
        """Write it to `path`, whose ending says how.

        .npz and .json hold all of it, to the bit, and `load` reads them; .csv holds `to_rows()`; .png, .svg and
        .pdf hold its picture. Raises NanopatchError for another ending, or a path that cannot be written.
        """
        ending = Path(path).suffix.lower()
        if ending == ".npz":
            (header, arrays), file = self._pack(), io.BytesIO()
            text = np.array(json.dumps({"format": FORMAT, **header}, ensure_ascii=False))
            np.savez(file, **arrays, header=text)  # type: ignore[arg-type]
            write_whole(path, file.getvalue())
        elif ending == ".json":
            self.to_json(path)
        elif ending == ".csv":
            self.to_csv(path)
        elif ending in ENDINGS:
            write_whole(path, plot.as_bytes(self.plot(), ending[1:]))
        else:
            raise NanopatchError(f"cannot save {path}: its ending must be one of {', '.join(ENDINGS)}")

    @classmethod
    def load(cls: type[R], path: PathLike) -> R:
        """Read what `save` wrote as .npz or .json. NanopatchError if the file does not hold such a result."""
        try:
            if Path(path).suffix.lower() == ".json":
                header, arrays = _split(json.loads(Path(path).read_text(encoding="utf-8")))
            else:
                with open(path, "rb") as content, np.load(content, allow_pickle=False) as file:
                    arrays = {name: file[name] for name in file.files}
                header = json.loads(str(arrays.pop("header")))
            header = cls._known_format(header)
            if header["kind"] != cls.kind:
                raise ValueError(f"it holds {header['kind']}, not {cls.kind}")
            return cls._unpack(header, arrays)
        except OSError as error:
            raise NanopatchError(f"cannot read {path}: {error.strerror or error}") from None
        except Exception as error:  # zip, JSON, NumPy and missing names each raise their own
            raise NanopatchError(
                f"{path} does not hold a saved {cls.__name__} ({type(error).__name__}: {error})"
            ) from None

    @classmethod
    def _known_format(cls, header: Header) -> Header:
        """A file's header without its format; ValueError for another format."""
        if header.pop("format") != FORMAT:
            raise ValueError("another format")
        return header

    def _pack(self) -> tuple[Header, Arrays]:
        """Its kind and fields as JSON can hold them, and its arrays by name; those of a result in it as "name/name"."""
        header: Header = {"kind": self.kind}
        arrays: Arrays = {}
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
    def _unpack(cls: type[R], header: Header, arrays: Arrays) -> R:
        """A result of what `_pack` gave."""
        names = {field.name for field in fields(cls)}  # type: ignore[arg-type]
        return cls(**{name: _field(name, value) for name, value in header.items() if name in names}, **arrays)

    def _contents(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]


def inside(name: str, arrays: Arrays) -> Arrays:
    """The arrays of the result that is packed under `name`."""
    return {key.removeprefix(f"{name}/"): array for key, array in arrays.items() if key.startswith(f"{name}/")}


def _written(text: str, path: PathLike | None) -> str:
    if path is not None:
        write_whole(path, text.encode("utf-8"))
    return text


def jsonable(value: Any) -> Any:
    """A value as JSON can hold it."""
    if isinstance(value, (Experiment, Source, Result)):
        return value.to_dict()
    if isinstance(value, Node):
        return str(value)
    if is_dataclass(value):
        return corruption.to_dict(value)
    if isinstance(value, dict):
        return {name: jsonable(item) for name, item in value.items()}
    if isinstance(value, np.ndarray):
        return jsonable(value.tolist())
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def _field(name: str, value: Any) -> Any:
    """A field's value, of what JSON held."""
    if name == "experiment":
        return Experiment(**value)
    if name == "source":
        return Source(value["name"], known_sha256=value["sha256"])
    if name == "corruption":
        return corruption.from_dict(value)
    if name in ("senders", "receivers"):
        return tuple(map(node, value))
    if name in FLOATS and isinstance(value, str):
        return float(value)
    return _tuples(value)


def _number(value: Any) -> Any:
    """A field as JSON can hold it. None has a meaning of its own there, so NaN is "nan"."""
    return "nan" if isinstance(value, float) and math.isnan(value) else jsonable(value)


def _tuples(value: Any) -> Any:
    """JSON has lists where results have tuples."""
    if isinstance(value, dict):
        return {name: _tuples(item) for name, item in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _split(contents: dict[str, Any]) -> tuple[Header, Arrays]:
    """What `to_dict` gave, as `_pack` has it: arrays apart."""
    header: Header = {}
    arrays: Arrays = {}
    for name, value in contents.items():
        if isinstance(value, dict) and "kind" in value and "format" in value:
            header[name], within = _split(value)
            arrays |= {f"{name}/{key}": array for key, array in within.items()}
        elif name in ARRAYS and value is not None:
            arrays[name] = np.array(value, bool if name == "unchanged" else np.float64)
        else:
            header[name] = value
    return header, arrays


def visible(token: str) -> str:
    """A token's text with what would not be seen made visible: a space as ␣, control characters escaped."""
    return "".join("␣" if c == " " else c if c.isprintable() else c.encode("unicode_escape").decode() for c in token)
