"""Files: read them, write a file whole or not at all, hash files, and say which files a model came from.

Saved results are read and written by `nanopatch.results.base`, weights by `nanopatch.model.checkpoint`.
"""

import codecs
import contextlib
import functools
import io
import json
import os
import stat
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import NanopatchError
from .types import PathLike

#: How a pointer file of Git LFS begins. It is there in place of a file that was not fetched.
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
#: A file that was written so short a time ago (in ns) can be written again without a new time stamp.
TICK = 50_000_000


@dataclass
class Source:
    """Where a model's weights came from: the name it was loaded by, and its files. Make it before they are read."""

    name: str
    files: tuple[Path, ...] = ()
    known_sha256: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.stamps = stamps(self.files)
        self._is_fresh = any(time.time_ns() - stamp[1] < TICK for stamp in self.stamps or ())

    def to_dict(self) -> dict[str, str | None]:
        return {"name": self.name, "sha256": self.sha256}

    @property
    def is_unchanged(self) -> bool:
        """Whether the files are still those that were there when this was made."""
        return self.stamps is not None and self.stamps == stamps(self.files)

    def check(self) -> None:
        """Raise NanopatchError if the files have changed since this was made: what was read may be of two versions."""
        if not self.is_unchanged:
            raise NanopatchError(f"{self.name}: the files changed while they were read: load it again")
        if self._is_fresh:
            _ = self.sha256  # now: later on a change might not show

    @functools.cached_property
    def sha256(self) -> str | None:
        """SHA-256 of the weight files, one after the other, computed at the first use.

        None if there are no files, or if they have changed since the weights were read: the hash is then unknown.
        """
        if self.known_sha256 or not self.files or not self.is_unchanged:
            return self.known_sha256
        try:
            found = sha256(*self.files)
        except (OSError, NanopatchError):  # gone, or no longer readable
            return None
        return found if self.is_unchanged else None


def stamps(files: tuple[Path, ...]) -> tuple[tuple[int, int, int], ...] | None:
    """(size, time of the last change in ns, inode) of each file; None if one is missing."""
    try:
        return tuple((s.st_size, s.st_mtime_ns, s.st_ino) for s in map(os.stat, files))
    except (OSError, ValueError):
        return None


# ---- reading --------------------------------------------------------------------------------------


def expand(path: PathLike) -> Path:
    """A path that a user gave, with the home folder in place of `~`."""
    return Path(os.path.expanduser(path))


@contextlib.contextmanager
def opened(path: PathLike) -> Iterator[io.BufferedReader]:
    """A file, open for reading bytes.

    Raises FileNotFoundError if it is missing; NanopatchError if it cannot be read, or is a folder, a pipe or a device,
    a read of which may never end.
    """
    path = expand(path)
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise OSError(0, "it is not a regular file")
        with open(path, "rb") as file:
            yield file
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        if isinstance(error, NanopatchError):
            raise
        raise NanopatchError(f"cannot read {str(path):.200}: {getattr(error, 'strerror', None) or error}") from None


def read_bytes(path: PathLike) -> bytes:
    """The content of a file. Raises as `opened` and `refuse_pointer`."""
    with opened(path) as file:
        content = file.read()
    refuse_pointer(path, content)
    return content


def read_text(path: PathLike, errors: str = "strict") -> str:
    """The text of a file, without a byte order mark. errors: what is done with bytes that are not UTF-8.

    Raises as `read_bytes`, and NanopatchError if it is UTF-16, or not UTF-8 and `errors` is "strict".
    """
    content = read_bytes(path)
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # Excel's "Unicode text", PowerShell's `>`
        raise NanopatchError(f"cannot read {path}: it is UTF-16: save it as UTF-8 text")
    try:
        return content.decode("utf-8-sig", errors)
    except UnicodeDecodeError as error:
        raise NanopatchError(f"cannot read {path}: byte {error.start} is not UTF-8: save it as UTF-8 text") from None


def refuse_pointer(path: PathLike, content: bytes) -> None:
    """Raise NanopatchError if a file's first bytes are those of a pointer of Git LFS. To fetch it again is no help."""
    if content.startswith(LFS_POINTER):
        raise NanopatchError(
            f"{path} is not the file itself but a pointer of Git LFS: run `git lfs pull` in its folder"
        )


def read_json(path: PathLike) -> Any:
    """The content of a JSON file. Raises FileNotFoundError if it is missing, NanopatchError if it cannot be read."""
    try:
        return parse_json(read_text(path))
    except NanopatchError:
        raise
    except (ValueError, RecursionError) as error:
        raise NanopatchError(f"cannot read {path}: {error}") from None


def parse_json(text: str | bytes) -> Any:
    """What a JSON text holds. Raises ValueError or RecursionError if it is not JSON, or names a key twice."""
    return json.loads(text, object_pairs_hook=_each_once)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. Python would keep the last of two values without a word."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for i, (name, _) in enumerate(pairs) if name in dict(pairs[:i]))
        raise ValueError(f"the key {twice!r:.60} is there twice")
    return found


# ---- writing --------------------------------------------------------------------------------------


def check_writable(path: PathLike) -> Path:
    """The file that writing to `path` would make or replace: through a symbolic link, its target.

    Raises NanopatchError if it cannot be written: no such folder, read-only, not a regular file, an impossible name.
    """
    try:
        target = Path(os.path.realpath(expand(path)))
        try:
            mode = os.stat(target).st_mode
        except FileNotFoundError:
            if not target.parent.is_dir():
                raise FileNotFoundError(0, f"No such file or directory (there is no folder {target.parent})") from None
        else:
            if stat.S_ISDIR(mode):
                raise IsADirectoryError(0, "it is a folder")
            if not stat.S_ISREG(mode):
                raise OSError(0, "it is not a regular file")
            if not os.access(target, os.W_OK):
                raise PermissionError(0, "it is read-only")
        if not os.access(target.parent, os.W_OK):
            raise PermissionError(0, f"the folder {target.parent} is read-only")
    except (OSError, ValueError) as error:  # ValueError: a zero byte, or half of a surrogate pair
        raise NanopatchError(f"cannot write {str(path):.200}: {getattr(error, 'strerror', None) or error}") from None
    return target


def write_whole(path: PathLike, content: bytes | Iterable[bytes]) -> None:
    """Write bytes to a temporary file beside `path`, then rename it, so that `path` never holds half a file.

    content: in one piece, or piece by piece. An existing file keeps its mode. A symbolic link stays, and its target is
    written. Raises NanopatchError if the file cannot be written (see `check_writable`; or the disk is full, ...).
    """
    import tempfile

    target, temporary = check_writable(path), None
    try:
        mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else new_file_mode()
        descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=".nanopatch-")
        with open(descriptor, "wb") as file:
            file.writelines([content] if isinstance(content, bytes) else content)
        os.chmod(temporary, mode)
        os.replace(temporary, target)
        temporary = None
    except OSError as error:
        raise NanopatchError(f"cannot write {path}: {error.strerror or error}") from None
    finally:  # also after Ctrl-C
        if temporary:
            Path(temporary).unlink(missing_ok=True)


def new_file_mode() -> int:
    """The mode that `open` gives a new file. Temporary files, which only the owner may read, get it afterwards."""
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask


def sha256(*paths: PathLike) -> str:
    """SHA-256 of files, one after the other, in hexadecimal."""
    import hashlib  # loads OpenSSL, which is larger than this library

    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()
