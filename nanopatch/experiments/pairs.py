"""Many pairs of prompts at once: reading them from a file, and patching results averaged over them.

A data set is a list of `Experiment`, each with its own answers. One pair shows what happens in one
prompt; the mean over pairs that differ in names and places shows what belongs to the task.
"""

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path

from ..errors import NanopatchError
from .experiment import Experiment

#: The names of a pair's parts, in files as in `Experiment`; only the last may be left out.
KEYS = ("clean", "corrupted", "answer", "wrong_answer", "prepend_bos")


# ---- files ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PairFile:
    """What a file of pairs holds.

    pairs: the `Experiment`s of its good lines; lines: the line each began on, from 1; problems: (line,
    what is wrong with it) of the others.
    """

    pairs: list
    lines: list
    problems: list


def read_pairs(path):
    """Read pairs from JSON Lines, or from CSV if the file's name ends in .csv: a `PairFile`.

    JSON Lines: one object a line, with `clean`, `corrupted`, `answer`, `wrong_answer` and, if wanted,
    `prepend_bos` (true or false). Prompts are text or lists of token ids, answers text, an id, or a list
    of one. CSV: a first line with the same names in any order; a cell that is a JSON list of whole numbers
    is token ids, any other is text, spaces included. UTF-8; blank lines are passed over.

    A line that cannot be used is told in `problems` and the rest is read. Raises NanopatchError for a
    file that cannot be read at all. Whether a model can use a pair (answers of one token, prompts of
    one length) is `sweep_pairs`'s to say.
    """
    try:
        # A byte that is no UTF-8 becomes a lone surrogate, so that only its line is lost.
        text = Path(path).read_bytes().decode("utf-8-sig", errors="surrogateescape")
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
        raise NanopatchError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    is_csv = Path(path).suffix.lower() == ".csv"
    pairs, lines, problems = [], [], []
    for line, record in csv_records(text) if is_csv else json_records(text):
        try:
            pairs.append(as_experiment(record))
            lines.append(line)
        except NanopatchError as error:
            problems.append((line, str(error)))
    if not pairs and not problems:
        problems = [(1, f"the file has no pairs: give {'rows' if is_csv else 'lines'} with {', '.join(KEYS[:4])}")]
    return PairFile(pairs, lines, problems)


def json_records(text):
    """Each line of JSON Lines that is not blank: (line number, what it holds, or a NanopatchError)."""
    for line, content in enumerate(text.split("\n"), start=1):  # splitlines would cut at U+2028 too, inside a string
        if content.strip():
            try:
                yield line, json.loads(checked_utf8(content))
            except NanopatchError as error:
                yield line, error
            except (ValueError, RecursionError) as error:
                yield line, NanopatchError(f"not JSON ({error})")


def csv_records(text):
    """Each row of a CSV file: (line number it begins on, a dict by the names of the first row, or a NanopatchError)."""
    reader = csv.reader(io.StringIO(text, newline=""))
    names = None
    while True:
        line = reader.line_num + 1
        try:
            row = [checked_utf8(cell) for cell in next(reader)]
        except StopIteration:
            return
        except csv.Error as error:
            yield line, NanopatchError(f"not CSV ({error})")
            continue
        except NanopatchError as error:
            yield line, error
            if names is None:
                return
            continue
        if not row:
            continue
        if names is None:
            names = [name.strip() for name in row]
            try:
                check_names(names)
            except NanopatchError as error:  # no row can be understood
                yield line, NanopatchError(f"header: {error}")
                return
        elif len(row) != len(names):
            yield line, NanopatchError(f"{len(row)} cells, and the header has {len(names)}")
        else:
            yield line, {name: csv_value(name, cell) for name, cell in zip(names, row, strict=True)}


def csv_value(name, cell):
    """What a cell of CSV means, as JSON would hold it."""
    if name == "prepend_bos":
        return {"true": True, "1": True, "false": False, "0": False, "": False}.get(cell.strip().lower(), cell)
    if cell.startswith("["):
        try:
            value = json.loads(cell)
        except (ValueError, RecursionError):
            return cell
        return value if is_ids(value) else cell
    return cell


def as_experiment(record):
    """An `Experiment` of what one line holds. NanopatchError for unknown or missing names and wrong types."""
    if isinstance(record, NanopatchError):
        raise record
    if not isinstance(record, dict):
        raise NanopatchError(f"a pair is an object with {', '.join(KEYS[:4])}, not {json.dumps(record):.60}")
    check_names(list(record))
    for name, value in record.items():
        if name == "prepend_bos":
            good, expected = isinstance(value, bool), "true or false"
        elif name in ("clean", "corrupted"):
            good, expected = isinstance(value, str) or is_ids(value), "text or a list of token ids"
        else:
            if is_ids(value) and len(value) == 1:
                value = value[0]
            good, expected = isinstance(value, str) or type(value) is int, "text or one token id"
            record = record | {name: value}
        if not good:
            raise NanopatchError(f"{name} is {json.dumps(value):.60}, and must be {expected}")
    return Experiment(**record)


def check_names(names):
    """NanopatchError unless these are the names of a pair's parts, each once."""
    unknown = [name for name in names if name not in KEYS]
    if unknown:
        raise NanopatchError(f"{', '.join(map(repr, unknown))} is not known; a pair has {', '.join(KEYS)}")
    missing = [name for name in KEYS[:4] if name not in names]
    if missing:
        raise NanopatchError(f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing")
    if len(set(names)) < len(names):
        raise NanopatchError(f"a name is there twice: {', '.join(names)}")


def is_ids(value):
    """Whether a value out of JSON is a list of whole numbers (true and false are none)."""
    return isinstance(value, list) and all(type(item) is int for item in value)


def checked_utf8(text):
    if any("\udc80" <= character <= "\udcff" for character in text):
        raise NanopatchError("not UTF-8")
    return text
