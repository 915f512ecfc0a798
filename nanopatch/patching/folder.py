"""A folder that remembers a run over many experiments: what was asked, and each part that is done.

    manifest.json    what was asked: the model, the task and the experiments, each with a hash
    pairs.jsonl      the experiments, one on each line: pair 0 is the first
    parts/00012.npz  the results of part 12, written whole

Whoever has the same question may add parts, at any time, from any computer: a part is the same to the bit whoever
computes it. No time is read, and nothing but files passes between the writers.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import NanopatchError, count
from ..files import Source, expand, read_bytes, read_json, write_whole
from ..model.checkpoint import weights_sha256
from ..model.gpt2 import Model
from ..results.base import jsonable, read_npz
from ..results.direct import DirectAttribution
from ..results.edges import EdgeScores, Faithfulness
from ..results.pairs import Gathered
from ..results.sweep import Sweep
from ..types import PathLike
from .average import Given, Key, Part, Task, arranged, means_of_parts, part_size

FORMAT = "nanopatch run 1"
#: What a part can hold.
KINDS: dict[str, Any] = {kind.kind: kind for kind in (Sweep, EdgeScores, Faithfulness, DirectAttribution)}


class RunFolder:
    """A folder of a run. `open` makes it, or goes on with it."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path, self.manifest = path, manifest

    @property
    def n_parts(self) -> int:
        pairs = self.manifest["pairs"]
        return -(-int(pairs["n"]) // int(pairs["part_size"]))

    @functools.cached_property
    def identity(self) -> str:
        """What the parts of this run are told by."""
        import hashlib  # loads OpenSSL, which is larger than this library

        return hashlib.sha256(json.dumps(self.manifest, sort_keys=True).encode()).hexdigest()

    def file(self, number: int) -> Path:
        return self.path / "parts" / f"{number:05}.npz"

    def missing(self) -> list[int]:
        """The parts that are not there, or are no whole file (after a power cut, say)."""
        import zipfile  # loads four compression libraries

        return [number for number in range(self.n_parts) if not zipfile.is_zipfile(self.file(number))]

    def prompts(self, number: int) -> dict[str, Any]:
        """One of the experiments, as JSON holds it."""
        with open(self.path / "pairs.jsonl", encoding="utf-8") as lines:
            found: dict[str, Any] = json.loads(next(itertools.islice(lines, number, None)))
        return found

    @property
    def progress(self) -> str:
        """How much is done, in words."""
        done = self.n_parts - len(self.missing())
        return f"{done} of {count(self.n_parts, 'part')} are kept in {self.path}; the same command goes on"

    @classmethod
    def open(cls, path: PathLike, model: Model, task: Task, given: Sequence[Given]) -> RunFolder:
        """The folder of a question, made if it is not there. NanopatchError if it is of another question."""
        folder = expand(path)
        asked = question(model, task, given)
        file = folder / "manifest.json"
        try:
            (folder / "parts").mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
            raise NanopatchError(f"cannot write {folder}: {getattr(error, 'strerror', None) or error}") from None
        if not file.exists():
            if any((folder / "parts").iterdir()):
                raise NanopatchError(f"{folder} has parts, but no manifest.json: give another folder")
            lines = ({"problem": one.reason} if one.experiment is None else jsonable(one.experiment) for one in given)
            write_whole(folder / "pairs.jsonl", (f"{json.dumps(line)}\n".encode() for line in lines))
            write_once(file, json.dumps(asked, indent=1).encode())
        there = cls.at(folder)
        for name, mine in flat(asked).items():
            other = flat(there.manifest).get(name)
            if mine != other:
                raise NanopatchError(
                    f"{folder} is of another run: {name} is {other!r:.70} there, {mine!r:.70} here; give another folder"
                )
        return there

    @classmethod
    def at(cls, path: PathLike) -> RunFolder:
        """A folder that is there. NanopatchError if it is none."""
        folder = expand(path)
        try:
            manifest = read_json(folder / "manifest.json")
        except FileNotFoundError:
            raise NanopatchError(f"{folder} is no folder of a run: it has no manifest.json") from None
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise NanopatchError(
                f"{folder} is no folder of a run that this version knows: manifest.json has another format"
            )
        return cls(folder, manifest)

    @contextlib.contextmanager
    def lock(self, share: str) -> Iterator[None]:
        """Keep others from computing the same share of the parts at once. The system releases it if we are killed."""
        try:
            import fcntl
        except ImportError:  # Windows: two runs at once compute the same, and the last one's files stay
            yield
            return
        try:
            opened = open(self.path / f"lock-{share}", "w")  # noqa: SIM115 (the next line closes it)
        except OSError as error:
            raise NanopatchError(f"cannot write in {self.path}: {error.strerror or error}") from None
        with opened as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise NanopatchError(f"another run is at work in {self.path}: wait for it, or stop it") from None
            except OSError:  # a file system without locks
                pass
            yield

    # ---- parts ----------------------------------------------------------------------------------

    def write(self, number: int, part: Part) -> None:
        """Write a part, whole or not at all."""
        header: dict[str, Any] = {"run": self.identity, "number": number, "skipped": part.skipped, "results": {}}
        arrays: dict[str, Any] = {}
        for i, (key, gathered) in enumerate(part.results.items()):
            inside: dict[str, Any] = {"key": key, "values": {}}
            for name in ("first", "common"):
                inside[name], packed = getattr(gathered, name)._pack()
                arrays |= {f"results/{i}/{name}/{field}": array for field, array in packed.items()}
            arrays |= {f"results/{i}/values/{name}": array for name, array in gathered.values.items()}
            arrays[f"results/{i}/numbers"] = gathered.numbers
            header["results"][str(i)] = inside
        text, file = json.dumps(header, ensure_ascii=False), io.BytesIO()
        np.savez(file, **arrays, header=np.array(text))
        write_whole(self.file(number), file.getvalue())

    def read(self, number: int) -> Part:
        """Read a part. NanopatchError if it is missing or damaged."""
        file = self.file(number)
        try:
            contents = read_npz(read_bytes(file))
            if (contents["run"], contents["number"]) != (self.identity, number):
                raise ValueError("it is a part of another run, or another part")
            results: dict[Key, Gathered[Any]] = {}
            for inside in contents["results"].values():
                kind = KINDS[inside["first"]["kind"]]
                first, common = kind._unpack(inside["first"]), kind._unpack(inside["common"])
                results[tuple(inside["key"])] = Gathered(first, common, inside["numbers"], inside["values"])
            return Part(results, [(where, reason) for where, reason in contents["skipped"]])
        except FileNotFoundError:
            raise NanopatchError(f"{file} is missing") from None
        except Exception as error:  # zip, JSON, NumPy and missing names each raise their own
            why = " ".join(f"{type(error).__name__}: {error}".split())
            raise NanopatchError(f"{file} cannot be used ({why:.200}): remove it, and run again") from None

    def result(self, source: Source | None = None) -> Any:
        """The means over all parts. NanopatchError if some are missing."""
        missing = self.missing()
        if missing:
            raise NanopatchError(f"the run is not finished: {self.progress}")
        parts = map(self.read, range(self.n_parts))
        means = means_of_parts(parts, self.manifest["pairs"]["n"], source, self.path)
        return arranged(self.manifest["names"], self.manifest["lists"], means)


def merge(folder: PathLike) -> Any:
    """The result of a run whose parts are all in a folder: a `Sweep`, `Panels`, `EdgeScores` or `Faithfulness`.

    `nanopatch.sweep(..., folder=)` fills such a folder, and so does `nanopatch patch --folder`, in one piece or in
    shares (`--shard 3/100`). It is the same result to the bit, in whatever order the parts were computed.

    Raises NanopatchError if parts are missing or damaged.
    """
    return RunFolder.at(folder).result()


# ---- what was asked ---------------------------------------------------------------------------------


def question(model: Model, task: Task, given: Sequence[Given]) -> dict[str, Any]:
    """All that decides the result, as JSON holds it."""
    asked = {
        "format": FORMAT,
        "model": {"weights": weights_sha256(model)},  # no name: the same weights may have others elsewhere
        "task": task.to_dict(),
        "names": task.names,
        "lists": task.lists,
        "pairs": {"n": len(given), "sha256": pairs_sha256(given), "part_size": part_size(len(given))},
    }
    found: dict[str, Any] = json.loads(json.dumps(jsonable(asked)))
    return found


def pairs_sha256(given: Sequence[Given]) -> str:
    import hashlib

    digest = hashlib.sha256()
    for one in given:
        digest.update(json.dumps([one.where, jsonable(one.experiment), one.reason]).encode() + b"\n")
    return digest.hexdigest()


def flat(nested: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """{"pairs.n": 8, ...}: a nested object with one name for each value."""
    found: dict[str, Any] = {}
    for name, value in nested.items():
        found |= flat(value, f"{before}{name}.") if isinstance(value, Mapping) else {f"{before}{name}": value}
    return found


def write_once(path: Path, content: bytes) -> None:
    """Write a file whole, unless it is there: of two who try at once, one writes it."""
    temporary = path.with_name(f".{path.name}-{os.getpid()}-{os.urandom(4).hex()}")
    write_whole(temporary, content)
    try:
        os.link(temporary, path)  # fails if it is there; a rename would replace it
    except FileExistsError:
        pass
    except OSError:  # a file system without links
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
