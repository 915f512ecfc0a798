"""Many pairs of prompts at once: reading them from a file, and patching results averaged over them.

A data set is a list of `Experiment`, each with its own answers. One pair shows what happens in one
prompt; the mean over pairs that differ in names and places shows what belongs to the task.
"""

import csv
import io
import json
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path

import numpy as np

from .align import align as align_tokens
from .attribution import attribute
from .errors import NanopatchError
from .experiments import Experiment
from .patching import check_positions, most_different, progress, sweep
from .results import Panels
from .stack import MEMORY

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


# ---- averages ------------------------------------------------------------------------------------


def sweep_pairs(
    model,
    pairs,
    site="resid_pre",
    axes=None,
    direction="denoise",
    metric="logit_diff",
    align=None,
    *,
    layers=None,
    positions=None,
    heads=None,
    neurons=None,
    window=1,
    memory=MEMORY,
    attribution_steps=None,
):
    """`nanopatch.sweep` of every pair, with its own answers, averaged: one `Sweep`.

    pairs: a list of `Experiment`, or what `read_pairs` returns. All other arguments are those of `sweep`;
    several sites, directions or metrics give `Panels` of averages in the same way. neurons=n takes the n
    neurons that differ most on average over the pairs, the same in each. attribution_steps: None patches; a
    number averages the estimates of `nanopatch.attribute` with so many `steps` instead.

    Averaged are the raw metrics: `grid` and both baselines are means over the pairs, `normalised` is made of
    those means (so a pair with a large difference weighs more; a mean of normalised grids would be ruled
    by pairs whose baselines happen to be close). `standard_error` is the raw grid's, `n_pairs` how
    many pairs there were. Tokens shown are the first pair's, with … where other pairs have others.

    A pair that cannot be used, or whose tokens are structured otherwise than those of the first that can
    (other lengths, or another alignment), is left out and told in `skipped`: (where, reason), where is
    "line 3" of a file or "pair 2" of a list, counted from 0. Raises NanopatchError if none is left.
    """
    choices = dict(layers=layers, positions=positions, heads=heads, neurons=neurons, window=window)
    options = choices | dict(memory=memory, attribution_steps=attribution_steps)
    if not isinstance(pairs, PairFile):
        pairs = list(pairs) if not isinstance(pairs, Experiment) else [pairs]
    if isinstance(site, (list, tuple)):
        return Panels({s: sweep_pairs(model, pairs, s, axes, direction, metric, align, **options) for s in site})
    if isinstance(direction, (list, tuple)):
        return Panels({d: sweep_pairs(model, pairs, site, axes, d, metric, align, **options) for d in direction})
    used, skipped = usable_pairs(model, pairs, site, align)
    if isinstance(neurons, Integral) and site in ("mlp_pre", "mlp_post"):
        choices["neurons"] = most_different_on_average(model, used, site, align, neurons)
    metrics = metric if isinstance(metric, (list, tuple)) else [metric]
    if attribution_steps is None:
        measured, choices["memory"] = sweep, memory
    else:
        measured, choices["steps"] = attribute, attribution_steps
    sweeps = [
        measured(model, pair, site, axes, direction, metrics, align, **choices)
        for pair in progress(used, len(used), "pairs")
    ]
    averages = {name: average([of_pair[name] for of_pair in sweeps], skipped) for name in sweeps[0]}
    return Panels(averages) if isinstance(metric, (list, tuple)) else next(iter(averages.values()))


def average(sweeps, skipped=()):
    """The mean over sweeps (or ablations) that differ in their pair alone, as a `Sweep`; of one, that one.

    sweeps: their grids have one shape; only their numbers and tokens are averaged, all else is the first's.
    """
    with np.errstate(invalid="ignore"):  # of inf and -inf there is no mean, and of inf no spread: NaN
        grids = np.array([s.grid for s in sweeps])  # (n_pairs, ...)
        error = grids.std(axis=0, ddof=1) / np.sqrt(len(sweeps)) if len(sweeps) > 1 else None
        return replace(
            sweeps[0],
            grid=grids.mean(axis=0),
            clean_tokens=common_tokens([s.clean_tokens for s in sweeps]),
            corrupted_tokens=common_tokens([s.corrupted_tokens for s in sweeps]),
            baseline_clean=mean([s.baseline_clean for s in sweeps]),
            baseline_corrupted=mean([s.baseline_corrupted for s in sweeps]),
            rounding=max(s.rounding for s in sweeps),
            remarks=tuple(dict.fromkeys(remark for s in sweeps for remark in s.remarks)),
            n_pairs=len(sweeps),
            standard_error=error,
            unchanged=None if sweeps[0].unchanged is None else np.all([s.unchanged for s in sweeps], axis=0),
            skipped=tuple(skipped),
        )


def mean(baselines):
    """Their mean; None for those that an ablation does not have."""
    return None if None in baselines else float(np.mean(baselines))


def common_tokens(rows):
    """The tokens of the first row, with … after each that is not the same in all rows."""
    return tuple(token if len(set(column)) == 1 else f"{token}…" for token, *column in zip(rows[0], *rows, strict=True))


def usable_pairs(model, pairs, site, align):
    """Which pairs can be averaged: ([Experiment], [(where, reason)] of the others). NanopatchError if none can."""
    align_tokens((), (), align)  # an unknown alignment is no pair's fault
    if isinstance(pairs, PairFile):
        numbered = [(line, pair, None) for line, pair in zip(pairs.lines, pairs.pairs, strict=True)]
        numbered += [(line, None, reason) for line, reason in pairs.problems]
        numbered = [(f"line {line}", *rest) for line, *rest in sorted(numbered, key=lambda row: row[0])]
    else:
        numbered = [(f"pair {number}", pair, None) for number, pair in enumerate(pairs)]
    used, skipped = [], []
    structure = standard = None  # of the first that can be used, and where that is
    for where, pair, reason in numbered:
        try:
            if reason is not None:
                raise NanopatchError(reason)
            columns = pair_columns(model, pair, site, align)
            if used and columns != structure:
                raise NanopatchError(structure_reason(columns, structure, standard))
        except NanopatchError as error:
            skipped.append((where, str(error)))
            continue
        if not used:
            structure, standard = columns, where
        used.append(pair)
    if not used:
        if not skipped:
            raise NanopatchError("there are no pairs: give at least one Experiment")
        more = f" (and {len(skipped) - 1} more)" if len(skipped) > 1 else ""
        raise NanopatchError(f"no pair can be used; {skipped[0][0]}{more}: {skipped[0][1]}")
    return used, skipped


def pair_columns(model, pair, site, align):
    """The aligned columns of one pair, what averaged pairs have in common. NanopatchError if it cannot be used."""
    if not isinstance(pair, Experiment):
        raise NanopatchError(f"not an Experiment: {pair!r:.60}")
    tokens = pair.tokens(model)
    columns = align_tokens(tokens.clean, tokens.corrupted, align, show=model.token_strings)
    check_positions(site, columns)
    return columns


def structure_reason(columns, structure, standard):
    """Why a pair with these columns cannot be averaged with those of another `structure`, found at `standard`."""
    ours, theirs = [
        [sum(pair[side] is not None for pair in pairs) for side in (0, 1)] for pairs in (columns, structure)
    ]
    if ours == theirs:
        return f"its tokens are aligned otherwise than those of {standard}, so they cannot be averaged"
    return "its prompts have {} and {} tokens, those of {} have {} and {}, so they cannot be averaged".format(
        *ours, standard, *theirs
    )


def most_different_on_average(model, pairs, site, align, n):
    """The n (layer, neuron) pairs whose largest |difference| at any position is largest in the mean over pairs."""
    total = 0
    for pair in progress(pairs, len(pairs), "pairs"):
        tokens = pair.tokens(model)
        clean, corrupted = (getattr(model.run(t, sites=site), site) for t in (tokens.clean, tokens.corrupted))
        common = np.array([p for p in align_tokens(tokens.clean, tokens.corrupted, align) if None not in p]).T
        total = total + np.abs(clean[:, common[0]] - corrupted[:, common[1]]).max(axis=1, keepdims=True)
    return most_different(np.zeros_like(total), total, n)  # (n_layer, 1, d_mlp)
