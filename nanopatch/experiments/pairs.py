"""Files of pairs of prompts: a data set in JSON Lines or CSV, each line an `Experiment` with its own answers."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import NanopatchError
from ..files import parse_json, read_text
from ..model.tokenizer import is_text
from ..types import PathLike
from .align import ALIGNMENTS
from .experiment import Experiment

#: The fields of a pair, in files as in `Experiment`. The first four are required.
KEYS = ("clean", "corrupted", "answer", "wrong_answer", "prepend_bos", "align", "special_tokens", "marks")
#: Columns of the circuit benchmarks' files (EAP-IG: Hanna, Pezzelle & Belinkov 2024, arXiv 2403.17806), which hold
#: token ids; and columns that say nothing of a pair.
BENCHMARK = {"correct_idx": "answer", "incorrect_idx": "wrong_answer"}
NOT_READ = ("", "corrupted_hard")


@dataclass(frozen=True)
class PairFile:
    """The content of a file of pairs.

    Attributes
    ----------
    pairs : list of Experiment
        The pairs of the good lines.
    lines : list of int
        The line on which each pair begins, from 1.
    problems : list of (int, str)
        The other lines: (line, what is wrong with it).
    """

    pairs: list[Experiment]
    lines: list[int]
    problems: list[tuple[int, str]]

    @property
    def numbered(self) -> list[tuple[str, Experiment | None, str | None]]:
        """Every line in the file's order: ("line 3", its pair or None, what is wrong with it or None)."""
        good = [(line, pair, None) for line, pair in zip(self.lines, self.pairs, strict=True)]
        bad = [(line, None, problem) for line, problem in self.problems]
        rows = sorted([*good, *bad], key=lambda row: row[0])
        return [(f"line {line}", pair, problem) for line, pair, problem in rows]


def read_pairs(path: PathLike, columns: Mapping[str, str] | None = None) -> PairFile:
    """Read pairs of prompts from a CSV file (if its name ends in .csv) or else from JSON Lines, in UTF-8.

    A line that cannot be used is listed in `problems`, and the other lines are read. Whether a model can use a pair
    is checked where the pair is used. Blank lines are skipped.

    Parameters
    ----------
    path : str or path
        JSON Lines: one object per line, with the keys `clean`, `corrupted`, `answer`, `wrong_answer` and, optionally,
        `prepend_bos` and `special_tokens` (true or false), `align` ("diff" or null) and `marks` (an object).
        Prompts are text or lists of token ids. Answers
        are text, an id, or a list of one id.
        CSV: the first line has the same names, in any order. A cell that is a JSON list of whole numbers holds token
        ids. Any other cell is text, spaces included. An empty `prepend_bos` or `align` stands for its default.
        The circuit benchmarks' files are read as they are: those with `correct_idx` and `incorrect_idx` (token ids),
        and greater-than's, whose `label` is the year's last two digits; its answers are those of `tasks.greater_than`.
    columns : dict, optional
        Other names: {"clean": "prompt", "answer": "target"} reads the column prompt as clean, and so on. Columns that
        are not named by it, or by a pair's own names, are then not read.

    Returns
    -------
    PairFile

    Raises
    ------
    NanopatchError
        If the file cannot be read.

    Examples
    --------
    >>> import nanopatch, pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "pairs.csv")
    >>> _ = path.write_text('''clean,corrupted,answer,wrong_answer
    ... The capital of France is,The capital of Italy is, Paris, Rome
    ... The capital of Spain is,The capital of Japan is, Madrid
    ... ''')
    >>> file = nanopatch.read_pairs(path)
    >>> file.pairs[0].clean, file.lines, file.problems
    ('The capital of France is', [2], [(3, '3 cells, and the header has 4')])
    """
    try:
        # A byte that is not UTF-8 becomes a lone surrogate, so that only its line is lost.
        text = read_text(path, errors="surrogateescape")
    except FileNotFoundError as error:
        raise NanopatchError(f"cannot read {path}: {error.strerror}") from None
    is_csv = Path(path).suffix.lower() == ".csv"
    file = PairFile([], [], [])
    check_columns(columns)
    for line, record in _csv_records(text, columns) if is_csv else _json_records(text):
        try:
            file.pairs.append(_experiment(record if is_csv else renamed(record, columns)))
            file.lines.append(line)
        except NanopatchError as error:
            file.problems.append((line, str(error)))
    if not file.pairs and not file.problems:
        expected = f"{'rows' if is_csv else 'lines'} with {', '.join(KEYS[:4])}"
        file.problems.append((1, f"the file has no pairs: give {expected}"))
    return file


def _json_records(text: str) -> Iterator[tuple[int, Any]]:
    """Each line that is not blank: (its number, what it holds, or a NanopatchError)."""
    for line, content in enumerate(text.split("\n"), start=1):  # splitlines would cut at U+2028 too, inside a string
        if content.strip():
            try:
                yield line, parse_json(content)
            except (ValueError, RecursionError) as error:
                yield line, NanopatchError(f"not JSON ({error})")


def check_columns(columns: Any) -> None:
    if columns is None:
        return
    if not isinstance(columns, Mapping) or not all(isinstance(name, str) for both in columns.items() for name in both):
        raise NanopatchError(f'columns={columns!r:.60}: a dict such as {{"clean": "prompt"}} is expected')
    unknown = [repr(name) for name in columns if name not in KEYS]
    if unknown:
        raise NanopatchError(f"columns: {', '.join(unknown)} is not known; a pair has {', '.join(KEYS)}")


def renamed(record: Any, columns: Mapping[str, str] | None) -> Any:
    """A record under a pair's own names, if it has others: those of `columns`, or a benchmark's."""
    if not isinstance(record, dict):
        return record
    if columns is not None:
        names = {name: columns.get(name, name) for name in KEYS}
        missing = [theirs for theirs in columns.values() if theirs not in record]
        if missing:
            return NanopatchError(f"it has no {', '.join(map(repr, missing))}; it has {', '.join(map(repr, record))}")
        return {name: record[theirs] for name, theirs in names.items() if theirs in record}
    if {"answer", "wrong_answer"} & record.keys() or not {"correct_idx", "label"} & record.keys():
        return record
    found = {name: value for name, value in record.items() if name not in (*NOT_READ, *BENCHMARK, "label")}
    for theirs, name in BENCHMARK.items():
        if theirs in record:
            found[name] = _whole_number(record[theirs], theirs)
    if "label" in record:
        year = _whole_number(record["label"], "label")
        found |= {"answer": f"{(year + 100) // 2:02}", "wrong_answer": f"{year // 2:02}"}
    return found


def _whole_number(value: Any, name: str) -> int:
    if type(value) is int or (isinstance(value, str) and value.strip().isdecimal()):
        return int(value)
    raise NanopatchError(f"{name} is {value!r:.60}, and must be a whole number")


def _csv_records(text: str, columns: Mapping[str, str] | None = None) -> Iterator[tuple[int, Any]]:
    """Each row after the header: (the line it begins on, its cells by name, or a NanopatchError)."""
    reader, next_line = csv.reader(io.StringIO(text, newline="")), 1
    names: list[str] = []
    try:
        for cells in reader:
            line, next_line = next_line, reader.line_num + 1
            if not names:
                names = [name.strip() for name in cells]
                if names:
                    if len(set(names)) < len(names):
                        _check_names(names)
                    of_pair = renamed(dict.fromkeys(names, "0"), columns)
                    if isinstance(of_pair, NanopatchError):
                        raise of_pair
                    _check_names([*of_pair])
            elif cells and len(cells) != len(names):
                yield line, NanopatchError(f"{len(cells)} cells, and the header has {len(names)}")
            elif cells:
                yield line, _csv_record(names, cells, columns)
    except csv.Error as error:
        yield next_line, NanopatchError(f"not CSV ({error}): the file was not read any further")
    except NanopatchError as error:
        yield line, NanopatchError(f"header: {error}")


def _csv_record(names: list[str], cells: list[str], columns: Mapping[str, str] | None) -> Any:
    """A row under a pair's own names, each cell as JSON would hold it."""
    try:
        record = renamed(dict(zip(names, cells, strict=True)), columns)
        return {name: _csv_value(name, cell) if isinstance(cell, str) else cell for name, cell in record.items()}
    except NanopatchError as error:
        return error
    except (ValueError, RecursionError) as error:
        return NanopatchError(f"marks is not JSON ({error})")


def _csv_value(name: str, cell: str) -> Any:
    """What a cell means, as JSON would hold it."""
    if name == "align":
        return cell.strip()
    if name == "marks":
        return parse_json(cell) if cell.strip() else None
    if name in ("prepend_bos", "special_tokens"):
        return {"true": True, "1": True, "false": False, "0": False, "": False}.get(cell.strip().lower(), cell)
    if cell.startswith("["):
        try:
            value = json.loads(cell)
        except (ValueError, RecursionError):
            return cell
        return value if _is_ids(value) else cell
    return cell


def _experiment(record: Any) -> Experiment:
    """The pair that one line holds. Raises NanopatchError for unknown or missing names and for wrong types."""
    if isinstance(record, NanopatchError):
        raise record
    if not isinstance(record, dict):
        raise NanopatchError(f"a pair is an object with {', '.join(KEYS[:4])}, not {json.dumps(record):.60}")
    _check_names(list(record))
    values = dict(record)
    for name, value in record.items():
        if name in ("prepend_bos", "special_tokens"):
            good, expected = isinstance(value, bool), "true or false"
        elif name == "marks":
            good, expected = value is None or isinstance(value, dict), 'an object such as {"subject": "Space Needle"}'
        elif name == "align":
            values[name] = None if value == "" else value
            good, expected = values[name] in ALIGNMENTS, '"diff", or null'
        elif name in ("clean", "corrupted"):
            good, expected = is_text(value) or _is_ids(value), "text (UTF-8) or a list of token ids"
        else:
            values[name] = value[0] if _is_ids(value) and len(value) == 1 else value
            good, expected = is_text(values[name]) or type(values[name]) is int, "text (UTF-8) or one token id"
        if not good:
            raise NanopatchError(f"{name} is {json.dumps(value):.60}, and must be {expected}")
    return Experiment(**values)


def _check_names(names: list[str]) -> None:
    """NanopatchError unless `names` are fields of a pair, without repeats, and include all required ones."""
    unknown = [repr(name) for name in names if name not in KEYS]
    if unknown:
        raise NanopatchError(f"{', '.join(unknown)} is not known; a pair has {', '.join(KEYS)}")
    missing = [name for name in KEYS[:4] if name not in names]
    if missing:
        raise NanopatchError(f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing")
    if len(set(names)) < len(names):
        raise NanopatchError(f"a name occurs twice: {', '.join(names)}")


def _is_ids(value: Any) -> bool:
    """Whether a value out of JSON is a list of whole numbers (true and false are not)."""
    return isinstance(value, list) and all(type(item) is int for item in value)
