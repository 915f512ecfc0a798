"""The live page: a server for the user of this computer alone.

It listens on the loopback address only. Its address holds a random token, so that no other program finds it by trying
ports, and requests are answered only if they name this server as their host (a site elsewhere may let its own name lead
to 127.0.0.1) and, where they ask for a computation, as their origin. It reads no files: what it can send is in memory.

One computation runs at a time. A page's newer request stops its older one, and so does a browser that is closed.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import secrets
import selectors
import socket
import socketserver
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol

from ..errors import one_line
from ..files import parse_json
from ..page.pack import key_of, pack
from ..progress import Stopped, watch

HOST = "127.0.0.1"
PORT = 8137
#: What the page may do: load its own files, ask its own server, draw its own pictures. Nothing may frame it.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
#: Bounds: bytes of a request, questions in it, characters and token ids of a prompt.
MOST_BYTES, MOST_QUESTIONS, MOST_CHARACTERS, MOST_IDS = 2**16, 100, 20_000, 5_000
#: Connections at once; further ones wait. Pages whose newest request is remembered.
MOST_CONNECTIONS, MOST_PAGES = 128, 1000
#: Seconds: to send a request, and to take a part of the answer.
READING, WRITING = 10.0, 30.0
#: Seconds between two looks at whether an answer is still wanted.
PAUSE = 0.02
#: Seconds that connections have to end when the server stops. Those of open pages, which wait, do not.
ENDING = 0.3

#: {name: (content type, content)}; "" is the page itself.
Files = Mapping[str, tuple[str, bytes]]


class Answering(Protocol):
    """What the server asks: see `nanopatch.explore.answers.Answers`."""

    def reply(self, experiment: Mapping[str, Any], question: Mapping[str, Any], /) -> bytes: ...


class Server(ThreadingHTTPServer):
    """The server of one page. `port`: the port it listens on; another free one, if that is taken."""

    daemon_threads = True
    block_on_close = False  # a computation that is stopped may take a moment to notice
    allow_reuse_address = sys.platform != "win32"  # there it would let two servers share a port
    request_queue_size = 256

    def __init__(self, answers: Answering, files: Files, port: int = PORT) -> None:
        self.answers, self.files = answers, files
        self.token = secrets.token_urlsafe(18)
        self.stopping = False
        self.computing = threading.Lock()
        self.connections = threading.BoundedSemaphore(MOST_CONNECTIONS)
        self._newest: OrderedDict[str, int] = OrderedDict()
        self._pages = threading.Lock()
        try:
            super().__init__((HOST, port), Handler)
        except OSError:  # taken, or not for us
            super().__init__((HOST, 0), Handler)

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # http.server's own asks for the name of the host, which may take long
        self.server_name, self.server_port = HOST, int(self.server_address[1])

    @property
    def address(self) -> str:
        """The address of the page."""
        return f"http://{HOST}:{self.server_port}/{self.token}/"

    def is_newest(self, page: str, number: int) -> bool:
        """Whether a page has asked nothing after its request of this number."""
        with self._pages:
            return self._newest.get(page, number) == number

    def register(self, page: str, number: int) -> bool:
        """Remember the request as a page's newest. False if it is not."""
        with self._pages:
            if number <= self._newest.get(page, -1):
                return False
            self._newest[page] = number
            self._newest.move_to_end(page)
            while len(self._newest) > MOST_PAGES:
                self._newest.popitem(last=False)
            return True

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.acquire()
        try:
            super().process_request(request, client_address)
        except Exception:  # no thread began. After Ctrl-C one may have, and that one gives the place back
            self.connections.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.connections.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, (OSError, Stopped)):  # a client that is gone is no error of ours
            complain(error)


class Refused(Exception):
    """A request that is not answered: the status, and one line that says why."""

    def __init__(self, status: HTTPStatus, why: str) -> None:
        super().__init__(why)
        self.status, self.why = status, why


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Server
    server_version, sys_version = "nanopatch", ""

    def setup(self) -> None:
        super().setup()
        self.rfile = io.BufferedReader(Reader(self.connection, time.monotonic() + READING))

    def log_message(self, *_: Any) -> None:
        """Nothing: the terminal is the user's."""

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        self.refuse(Refused(HTTPStatus(code), message or HTTPStatus(code).phrase))

    def refuse(self, refused: Refused) -> None:
        content = f"{one_line(refused.why)}\n".encode()
        self.begin(refused.status, "text/plain; charset=utf-8", len(content))
        if self.command != "HEAD":
            self.wfile.write(content)

    def begin(self, status: HTTPStatus, content_type: str, length: int | None = None) -> None:
        """The status line and the headers."""
        self.connection.settimeout(WRITING)
        self.close_connection = True
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        if length is not None:
            self.send_header("Content-Length", str(length))
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()

    def do_GET(self) -> None:
        try:
            content_type, content = self.find_file()
        except Refused as refused:
            self.refuse(refused)
            return
        self.begin(HTTPStatus.OK, content_type, len(content))
        if self.command == "GET":
            self.wfile.write(content)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        try:
            if self.name() != "ask":
                raise Refused(HTTPStatus.NOT_FOUND, "there is nothing here")
            self.check_origin()
            asked = read_question(self.read_body())
            if not self.server.register(asked["page"], asked["number"]):
                raise Refused(HTTPStatus.CONFLICT, "this page has asked something newer")
        except Refused as refused:
            self.refuse(refused)
            return
        with contextlib.suppress(Stopped), watch(functools.partial(self.check_wanted, asked, [0.0])):
            self.answer(asked)

    # ---- what is let in -------------------------------------------------------------------------

    def name(self) -> str:
        """The part of the path after the token. Refused for another host, or another token."""
        port = self.server.server_port
        if self.headers.get_all("Host") not in ([f"{HOST}:{port}"], [f"localhost:{port}"]):
            raise Refused(HTTPStatus.FORBIDDEN, "this server answers its own page only")
        before, token, name = [*self.path.split("/", 2), "", ""][:3]
        if before or self.path.count("/") < 2 or not secrets.compare_digest(token.encode(), self.server.token.encode()):
            raise Refused(
                HTTPStatus.NOT_FOUND, "there is nothing here: open the address that nanopatch explore printed"
            )
        return name

    def find_file(self) -> tuple[str, bytes]:
        name = self.name()
        if name not in self.server.files:
            raise Refused(HTTPStatus.NOT_FOUND, "there is nothing here")
        return self.server.files[name]

    def check_origin(self) -> None:
        """Refuse what another page asks. A browser says on every POST which page it comes from."""
        own = f"http://{self.headers['Host']}"
        if (
            self.headers.get_all("Origin") != [own]
            or self.headers.get("Sec-Fetch-Site", "same-origin") != "same-origin"
        ):
            raise Refused(HTTPStatus.FORBIDDEN, "this server answers its own page only")
        if self.headers.get_content_type() != "application/json":
            raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "a question is application/json")

    def read_body(self) -> bytes:
        lengths = self.headers.get_all("Content-Length") or []
        if (
            len(lengths) != 1
            or not lengths[0].isascii()
            or not lengths[0].isdigit()
            or "Transfer-Encoding" in self.headers
        ):
            raise Refused(HTTPStatus.LENGTH_REQUIRED, "a question says its length")
        if len(lengths[0]) > 9 or int(lengths[0]) > MOST_BYTES:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a question has {MOST_BYTES:,} bytes at most")
        body = self.rfile.read(int(lengths[0]))
        if len(body) < int(lengths[0]):
            raise Refused(HTTPStatus.BAD_REQUEST, "the question ends too early")
        return body

    # ---- answers --------------------------------------------------------------------------------

    def answer(self, asked: dict[str, Any]) -> None:
        """Send the reply to each question as soon as it is there."""
        self.begin(HTTPStatus.OK, "application/octet-stream")
        for question in asked["questions"]:
            with self.turn(asked):
                reply = self.reply(asked["experiment"], question)
            self.wfile.write(len(reply).to_bytes(4, "little") + reply)

    @contextlib.contextmanager
    def turn(self, asked: dict[str, Any]) -> Iterator[None]:
        """Wait until no other computation runs, as long as the answer is wanted."""
        while not self.server.computing.acquire(timeout=PAUSE):
            self.check_wanted(asked, [0.0])
        try:
            yield
        finally:
            self.server.computing.release()

    def reply(self, experiment: Mapping[str, Any], question: Mapping[str, Any]) -> bytes:
        """The reply; an error that nobody expected is told in it, and the server goes on."""
        try:
            return self.server.answers.reply(experiment, question)
        except Stopped:
            raise
        except Exception as error:
            complain(error)
            return pack(key_of(question), {"error": f"this went wrong: {type(error).__name__}: {one_line(str(error))}"})

    def check_wanted(self, asked: dict[str, Any], last: list[float]) -> None:
        """Raise Stopped if nobody waits for the answer any more. last: [when this was looked at before]."""
        now = time.monotonic()
        if now - last[0] < PAUSE:
            return
        last[0] = now
        if (
            self.server.stopping
            or not self.server.is_newest(asked["page"], asked["number"])
            or is_closed(self.connection)
        ):
            raise Stopped


class Reader(io.RawIOBase):
    """What a client sends, until a point in time (of `time.monotonic`): half a request does not keep a thread."""

    def __init__(self, connection: socket.socket, end: float) -> None:
        self.connection, self.end = connection, end

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self.end - time.monotonic()
        if left <= 0:
            raise TimeoutError("the request took too long")
        self.connection.settimeout(left)
        return self.connection.recv_into(buffer)


def is_closed(connection: socket.socket) -> bool:
    """Whether the other side has closed a connection: there is something to read, and it is the end."""
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(connection, selectors.EVENT_READ)
            return bool(selector.select(0)) and connection.recv(1, socket.MSG_PEEK) == b""
    except (OSError, ValueError):
        return True


def complain(error: BaseException | None) -> None:
    """One line on stderr."""
    if sys.stderr is not None:
        print(f"nanopatch: {type(error).__name__}: {one_line(str(error))}", file=sys.stderr, flush=True)


# ---- questions ------------------------------------------------------------------------------------


def read_question(body: bytes) -> dict[str, Any]:
    """What a page asks, checked. Refused if it is anything else than a page sends."""
    try:
        asked = parse_json(body.decode("utf-8"))
        json.dumps(asked, ensure_ascii=False, allow_nan=False).encode("utf-8")  # no half of a surrogate pair, no NaN
    except (ValueError, RecursionError):  # ValueError: not UTF-8, not JSON, or a key twice
        raise Refused(HTTPStatus.BAD_REQUEST, "the question is no JSON") from None
    wanted = {"page", "number", "experiment", "questions"}
    check(isinstance(asked, dict) and {*asked} == wanted, f"a request has {', '.join(sorted(wanted))}")
    page, number, questions = asked["page"], asked["number"], asked["questions"]
    check(isinstance(page, str) and 0 < len(page) <= 100, "page is a text of at most 100 characters")
    check(type(number) is int and 0 <= number < 2**53, "number is a whole number")
    check(isinstance(questions, list) and len(questions) <= MOST_QUESTIONS, f"at most {MOST_QUESTIONS} questions")
    for question in questions:
        check(isinstance(question, dict) and all(map(is_field, question.values())), "a question is flat")
    check_experiment(asked["experiment"])
    return dict(asked)


def check_experiment(experiment: Any) -> None:
    """Refused unless it has the fields of an `Experiment`, of bounded size."""
    prompts, answers, switches = ("clean", "corrupted"), ("answer", "wrong_answer"), ("prepend_bos", "special_tokens")
    names = {*prompts, *answers, *switches, "align"}
    whole = isinstance(experiment, dict) and {*experiment} - {"marks"} == names and experiment.get("marks") is None
    check(whole, f"an experiment has {', '.join(sorted(names))}")
    for name in prompts:
        prompt = experiment[name]
        ids = isinstance(prompt, list) and len(prompt) <= MOST_IDS and all(map(is_id, prompt))
        text = isinstance(prompt, str) and len(prompt) <= MOST_CHARACTERS
        check(ids or text, f"{name} is a text of at most {MOST_CHARACTERS:,} characters, or {MOST_IDS:,} token ids")
    for name in answers:
        answer = experiment[name]
        check(
            answer is None or is_id(answer) or (isinstance(answer, str) and len(answer) <= 1000), f"{name} is one token"
        )
    for name in switches:
        check(isinstance(experiment[name], bool), f"{name} is true or false")
    check(experiment["align"] in (None, "diff"), 'align is null or "diff"')


def is_id(value: Any) -> bool:
    return type(value) is int and -1 <= value < 2**31


def is_field(value: Any) -> bool:
    """Whether a field of a question can be one: a text, a number, null, or a list of texts and numbers."""
    if isinstance(value, list):
        return len(value) <= 20 and all(is_field(item) and not isinstance(item, list) for item in value)
    return value is None or is_id(value) or (isinstance(value, str) and len(value) <= 100)


def check(holds: bool, what: str) -> None:
    if not holds:
        raise Refused(HTTPStatus.BAD_REQUEST, what)


# ---- the command ----------------------------------------------------------------------------------


def serve(server: Server, open_browser: bool) -> None:
    """Serve until Ctrl-C. Prints the address, and opens it."""
    import signal
    import webbrowser

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    try:
        print(f"{server.address}  (Ctrl-C stops it)", flush=True)
        if open_browser:
            threading.Thread(target=webbrowser.open, args=[server.address], daemon=True).start()
        server.serve_forever(poll_interval=0.1)
    except KeyboardInterrupt:
        pass
    finally:
        server.stopping = True  # stops what is computed, at its next look
        server.computing.acquire()  # for a Python that ends while one of its threads is inside NumPy may abort
        server.server_close()
        end = time.monotonic() + ENDING
        for _ in range(MOST_CONNECTIONS):  # a thread that is cut off in its last steps may complain
            server.connections.acquire(timeout=max(0.0, end - time.monotonic()))
