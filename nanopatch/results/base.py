"""What all results can do: show, save and load themselves, and be averaged."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
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

    from .plot import Drawing

R = TypeVar("R", bound="Result")
#: The values of a result's fields, by name. A result inside a result is such a dict itself.
Contents = dict[str, Any]

FORMAT = "nanopatch result 2"
#: The file endings that `Result.save` can write.
ENDINGS = (".npz", ".json", ".csv", *(f".{name}" for name in plot.FORMATS))


class Result:
    """What all results can do. Most are frozen dataclasses, whose fields are what a file holds."""

    kind: ClassVar[str]
    #: The fields that are means if there are several experiments. `standard_error` is that of the first field here.
    averaged: ClassVar[tuple[str, ...]] = ()

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

    def to_rows(self) -> list[dict[str, Any]]:
        """Its numbers, one dict for each row."""
        raise NotImplementedError

    def _repr_png_(self) -> bytes:  # how a notebook shows it
        return plot.as_bytes(self._picture())

    # ---- files ----------------------------------------------------------------------------------

    def to_csv(self, path: PathLike | None = None) -> str:
        """`to_rows()` as CSV with a header line; with a path, also written there (UTF-8)."""
        rows, text = self.to_rows(), io.StringIO(newline="")
        writer = csv.DictWriter(text, fieldnames=list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)
        return write_text(text.getvalue(), path)

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON can hold it: arrays as lists, NaN as None (a single number as "nan"), infinity as "inf"."""
        contents = {name: _number(value) for name, value in self._contents().items()}
        return {"format": FORMAT, "kind": self.kind, **contents}

    def to_json(self, path: PathLike | None = None) -> str:
        """`to_dict()` as JSON; with a path, also written there (UTF-8). `load` reads it."""
        return write_text(json.dumps(self.to_dict(), ensure_ascii=False, allow_nan=False), path)

    def save(self, path: PathLike) -> None:
        """Write it to `path`, whose ending says how.

        .npz and .json hold the whole result exactly, and `load` reads them; .csv holds `to_rows()`; .png, .svg and
        .pdf hold its picture. Raises NanopatchError for another ending, or a path that cannot be written.
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
        elif ending in ENDINGS:
            write_whole(path, plot.as_bytes(self._picture(), ending[1:]))
        else:
            raise NanopatchError(f"cannot save {path}: its ending must be one of {', '.join(ENDINGS)}")

    @classmethod
    def load(cls: type[R], path: PathLike) -> R:
        """Read what `save` wrote as .npz or .json. NanopatchError if the file does not hold such a result."""
        try:
            if Path(path).suffix.lower() == ".json":
                contents = json.loads(Path(path).read_text(encoding="utf-8"))
            else:
                with open(path, "rb") as content, np.load(content, allow_pickle=False) as file:
                    arrays = {name: file[name] for name in file.files}
                contents = json.loads(str(arrays.pop("header")))
                for name, array in arrays.items():
                    _put(contents, name, array)
            contents = cls._known_format(contents)
            if contents["kind"] != cls.kind:
                raise ValueError(f"it holds {contents['kind']}, not {cls.kind}")
            return cls._unpack(contents)
        except OSError as error:
            raise NanopatchError(f"cannot read {path}: {error.strerror or error}") from None
        except Exception as error:  # zip, JSON, NumPy and missing names each raise their own
            why = "" if "pickle" in str(error) else f" ({type(error).__name__}: {error})"  # what NumPy says of any text
            what = f"{path} does not hold a saved {cls.__name__}{why}"
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
        """A result, made from its contents."""
        known = [field for field in fields(cls) if field.name in contents]  # type: ignore[arg-type]
        return cls(**{field.name: of_field(str(field.type), contents[field.name]) for field in known})

    def _mean(self: R, results: Sequence[R]) -> dict[str, Any]:
        """The fields of the mean over `results`; this is the first. `mean_of` adds the fields that all results have."""
        means = {}
        for name in self.averaged:
            values = [getattr(result, name) for result in results]
            mean = None if values[0] is None else np.mean(values, axis=0)
            means[name] = float(mean) if mean is not None and not mean.ndim else mean
        if hasattr(self, "rounding"):
            means["rounding"] = max(result.rounding for result in results)  # type: ignore[attr-defined]
        return means

    def _contents(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]


def mean_of(results: Sequence[R], skipped: Sequence[tuple[str, str]] = ()) -> R:
    """The mean over results that differ only in their experiment, with its standard error; for one result, itself.

    The raw metrics are averaged, and `normalised` is made of the means. So a pair with a large difference counts more.
    A mean of normalised grids would depend mostly on the pairs whose baselines happen to be close.
    """
    first, n = results[0], len(results)
    with np.errstate(invalid="ignore"):  # inf and -inf have no mean, and inf has no spread: NaN
        means = first._mean(results)
        values = np.array([getattr(result, first.averaged[0]) for result in results])  # (n_pairs, ...)
        error = values.std(axis=0, ddof=1) / np.sqrt(n) if n > 1 else None
    return replace(first, **means, standard_error=error, n_pairs=n, skipped=tuple(skipped))  # type: ignore[type-var]


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


def of_field(annotation: str, value: Any) -> Any:
    """A field's value, made from what a file holds."""
    readers: dict[str, Any] = {
        "Array": _array,
        "float": float,  # "nan" and "inf" too
        "Experiment": lambda fields: Experiment(**fields),
        "Source": lambda source: Source(source["name"], known_sha256=source["sha256"]),
        "Corruption": corruption.from_dict,
        "tuple[Node, ...]": lambda names: tuple(map(node, names)),
    }
    if value is None:
        return None
    kinds = {kind.kind: kind for kind in Result.__subclasses__()}
    if isinstance(value, dict) and value.get("kind") in kinds:
        return kinds[value["kind"]]._unpack(value)
    return readers.get(annotation.removesuffix(" | None"), _tuples)(value)


def _array(value: Any) -> Array:
    """An array of float64 or of bool. In JSON it was lists, with None for NaN, and "inf"."""
    array = np.asarray(value)
    return array if array.dtype == bool else np.asarray(value, np.float64)


def _put(contents: Contents, name: str, array: Array) -> None:
    """Put an array into its place in the contents, by the name that `_pack` gave it."""
    for key, inside in contents.items():
        if isinstance(inside, dict) and name.startswith(f"{key}/"):
            return _put(inside, name.removeprefix(f"{key}/"), array)
    contents[name] = array


def _number(value: Any) -> Any:
    """A field as JSON can hold it. None has a meaning of its own there, so NaN is "nan"."""
    return "nan" if isinstance(value, float) and math.isnan(value) else jsonable(value)


def _tuples(value: Any) -> Any:
    """JSON has lists where results have tuples."""
    if isinstance(value, dict):
        return {name: _tuples(item) for name, item in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def visible(token: str) -> str:
    """A token's text with invisible characters made visible: a space as ␣, control characters escaped."""
    return "".join("␣" if c == " " else c if c.isprintable() else c.encode("unicode_escape").decode() for c in token)
