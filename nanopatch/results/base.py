"""What all results can do: show, save and load themselves."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np

from ..errors import NanopatchError
from ..files import write_whole
from ..types import Array, PathLike
from . import plot

if TYPE_CHECKING:
    from matplotlib.figure import Figure

R = TypeVar("R", bound="Result")
Header = dict[str, Any]
Arrays = dict[str, Array]

FORMAT = "nanopatch result 2"
#: How a file's ending says what `Result.save` writes.
ENDINGS = (".npz", ".json", ".csv", *(f".{name}" for name in plot.FORMATS))


class Result:
    """The manners of all results.

    A class of results says how it is packed: `_pack` gives a header, which JSON can hold, and arrays by name;
    `_unpack` makes a result of the two.
    """

    kind: ClassVar[str]

    def plot(self) -> Figure:
        """Draw it: a matplotlib Figure, which belongs to no window; `figure.savefig("x.png")` writes it."""
        raise NotImplementedError

    def to_rows(self) -> list[dict[str, Any]]:
        """Its numbers as one dict a row."""
        raise NotImplementedError

    def _pack(self) -> tuple[Header, Arrays]:
        raise NotImplementedError

    @classmethod
    def _unpack(cls: type[R], header: Header, arrays: Arrays) -> R:
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
        """All of it as what JSON can hold: NaN as None, infinity as "inf" or "-inf"."""
        header, arrays = self._pack()
        return _jsonable({"format": FORMAT, "kind": self.kind, **header, "arrays": arrays})

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
            header, arrays = self._pack()
            file = io.BytesIO()
            top = {"format": FORMAT, "kind": self.kind, **header}
            np.savez(file, **arrays, header=json.dumps(_jsonable(top), ensure_ascii=False))  # type: ignore[arg-type]
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
                header = json.loads(Path(path).read_text(encoding="utf-8"))
                arrays = {name: _as_array(name, values) for name, values in header.pop("arrays").items()}
            else:
                with open(path, "rb") as content, np.load(content, allow_pickle=False) as file:
                    arrays = {name: file[name] for name in file.files}
                header = json.loads(str(arrays.pop("header")))
            written = header.pop("format")
            kind = header.pop("kind", "sweep") if written == FORMAT else {"nanopatch sweep 1": "sweep 1"}[written]
            if kind.removesuffix(" 1") != cls.kind:
                raise ValueError(f"it holds {kind}, not {cls.kind}")
            return cls._unpack(header | {"format": written}, arrays)
        except OSError as error:
            raise NanopatchError(f"cannot read {path}: {error.strerror or error}") from None
        except Exception as error:  # zip, JSON, NumPy and missing names each raise their own
            raise NanopatchError(
                f"{path} does not hold a saved {cls.__name__} ({type(error).__name__}: {error})"
            ) from None


def _written(text: str, path: PathLike | None) -> str:
    if path is not None:
        write_whole(path, text.encode("utf-8"))
    return text


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _jsonable(item) for name, item in value.items()}
    if isinstance(value, np.ndarray):
        return _jsonable(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def _as_array(name: str, values: list[Any]) -> Array:
    return np.array(values, bool if name.rpartition("/")[2] == "unchanged" else np.float64)


def visible(token: str) -> str:
    """A token's text with what would not be seen made visible: a space as ␣, control characters escaped."""
    return "".join("␣" if c == " " else c if c.isprintable() else c.encode("unicode_escape").decode() for c in token)
