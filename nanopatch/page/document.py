"""The page as files for the live server, or as one file that holds everything."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from .pack import Question, Shown, key_of, pack

FOLDER = Path(__file__).parent
STYLES = ("style.css", "views.css", "steps.css")
#: One line of an ES module that brings in names of another one.
IMPORT = re.compile(r'^import \{[^}]*\} from "\./([a-z]+\.js)";\n', re.MULTILINE)
#: What a file page may do: run its own script, use its own style, draw its own pictures. It can request nothing.
FILE_POLICY = (
    "default-src 'none'; script-src '{script}'; style-src '{style}'; img-src data: blob:; "
    "base-uri 'none'; form-action 'none'"
)

#: {key of a question: its packed reply}.
Replies = Mapping[str, bytes]
#: What a page shows at first, unless it says otherwise (see state.js).
STATE: dict[str, Any] = {
    **{"site": "", "axes": [], "window": 1, "direction": "denoise", "metric": "", "scale": "normalised", "cell": None},
    **{"view": "", "run": "clean", "layer": 0, "head": 0, "token": None, "shown": "prediction", "step": 0, "n": 0},
}


def live_files(start: Mapping[str, Any]) -> dict[str, tuple[str, bytes]]:
    """{name: (content type, content)} of the live page. "" is the page itself, which holds the start data."""
    page = _text("index.html").replace('id="start">', f'id="start">{_data(start)}')
    files = {"": ("text/html; charset=utf-8", page.encode("utf-8"))}
    for name in STYLES:
        files[name] = ("text/css; charset=utf-8", _text(name).encode("utf-8"))
    for name in _modules():
        files[name] = ("text/javascript; charset=utf-8", _text(name).encode("utf-8"))
    return files


def result_page(
    views: Sequence[str], model: str, replies: Sequence[tuple[Question, Shown]], state: Mapping[str, Any]
) -> bytes:
    """The page of one result: the views that show it, and nothing that can be computed.

    views: their names. model: its name. replies: (question, what is shown). state: what the questions are about.
    """
    state = {**STATE, "view": views[-1], **state}
    menu = {
        "sites": [state["site"]],
        "axes": {state["site"]: [state["axes"]]},
        **{"directions": [state["direction"]], "metrics": [state["metric"]], "windows": [1], "counts": [state["n"]]},
    }
    start = {
        "form": "file",
        "views": views,
        "runs": [state["run"]],
        "model": {"name": model},
        "menu": menu,
        "state": state,
    }
    return file_page(start, [{key_of(question): pack(key_of(question), *shown) for question, shown in replies}])


def file_page(start: Mapping[str, Any], chunks: Sequence[Replies]) -> bytes:
    """The page as one file, UTF-8: style, script, start data, and all replies.

    chunks: replies that are read together lie in one chunk. Each is compressed by gzip, and unpacked when a reply in it
    is asked for.
    """
    import gzip
    from base64 import b64encode

    index, packed = {}, []
    for number, replies in enumerate(chunks, start=1):
        at = 0
        for key, reply in replies.items():
            index[key] = [number, at, len(reply)]
            at += len(reply)
        packed.append(b"".join(replies.values()))
    packed.insert(0, json.dumps(index, separators=(",", ":"), ensure_ascii=False).encode("utf-8"))
    texts = [b64encode(gzip.compress(chunk, 9, mtime=0)).decode("ascii") for chunk in packed]
    data = "\n".join(f'<script type="application/octet-stream" class="chunk">{text}</script>' for text in texts)
    style, script = "".join(map(_text, STYLES)), _script()
    policy = FILE_POLICY.format(script=_hash(script), style=_hash(style))
    page = _text("index.html")
    for name in STYLES:
        page = page.replace(f'<link rel="stylesheet" href="{name}">\n', "")
    page = page.replace(
        "<title>", f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n<style>{style}</style>\n<title>'
    )
    page = page.replace('id="start">', f'id="start">{_data(start)}')
    page = page.replace(
        '<script type="module" src="main.js"></script>', f'{data}\n<script type="module">{script}</script>'
    )
    return page.encode("utf-8")


@functools.cache
def _script() -> str:
    """All modules as one, each after those it imports. No two of them give the same name to different things."""
    return "".join(re.sub(r"^export ", "", IMPORT.sub("", _text(name)), flags=re.MULTILINE) for name in _modules())


@functools.cache
def _modules() -> tuple[str, ...]:
    """The names of all modules that the page needs, each after those it imports."""
    imports: dict[str, list[str]] = {}
    wanted = ["main.js"]
    while wanted:
        name = wanted.pop()
        if name not in imports:
            imports[name] = IMPORT.findall(_text(name))
            wanted += imports[name]
    return tuple(TopologicalSorter({name: sorted(of) for name, of in sorted(imports.items())}).static_order())


def _text(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def _data(value: Any) -> str:
    """JSON that can stand inside a script element: nothing in it ends the element."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")


def _hash(text: str) -> str:
    """What a content security policy calls an inline script or style by."""
    import hashlib
    from base64 import b64encode

    return f"sha256-{b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode()}"
