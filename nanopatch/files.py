"""Files: read JSON, write a file whole or not at all, hash files, and say which files a model came from.

Saved results are read and written by `nanopatch.results.base`, weights by `nanopatch.model.checkpoint`.
"""

import functools
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import NanopatchError
from .types import PathLike


@dataclass
class Source:
    """Where a model's weights came from: the name it was loaded by, and its files."""

    name: str
    files: tuple[Path, ...] = ()
    known_sha256: str | None = field(default=None, repr=False)

    def to_dict(self) -> dict[str, str | None]:
        return {"name": self.name, "sha256": self.sha256}

    @functools.cached_property
    def sha256(self) -> str | None:
        """SHA-256 of the weight files, one after the other, computed at the first use. None if there are no files."""
        return self.known_sha256 or (sha256(*self.files) if self.files else None)


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises FileNotFoundError if it is missing, NanopatchError if it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise NanopatchError(f"cannot read {path}: {error}") from None


def write_whole(path: PathLike, content: bytes) -> None:
    """Write bytes to a temporary file beside `path`, then rename it, so that `path` never holds half a file.

    Raises NanopatchError if the file cannot be written (no such folder, read-only, disk full, ...).
    """
    import tempfile

    path = Path(path)
    temporary = None
    try:
        if path.is_dir():
            raise IsADirectoryError(0, "it is a folder")
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with open(descriptor, "wb") as file:
            file.write(content)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp lets only the owner read it
        os.replace(temporary, path)
    except OSError as error:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)
        raise NanopatchError(f"cannot write {path}: {error.strerror or error}") from None


def sha256(*paths: PathLike) -> str:
    """SHA-256 of files, one after the other, in hexadecimal."""
    import hashlib  # loads OpenSSL, which is larger than this library

    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while chunk := file.read(1 << 24):
                digest.update(chunk)
    return digest.hexdigest()
