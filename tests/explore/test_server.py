"""The live page's server: what it answers, what it refuses, and that it goes on after whatever a client does.

Most tests ask a server of this process with answers of their own, which wait for an event where a computation must
last.
"""

import http.client
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

import nanopatch
from nanopatch.explore import server as server_module
from nanopatch.explore.answers import Answers
from nanopatch.explore.server import HEADERS, MOST_BYTES, MOST_CONNECTIONS, Server
from nanopatch.page.pack import key_of, pack, unpack
from nanopatch.progress import Stopped, look, watch

MICHELLE = nanopatch.experiments.MICHELLE
FILES = {"": ("text/html; charset=utf-8", b"<p>page"), "main.js": ("text/javascript; charset=utf-8", b"1")}
NUMBERS = itertools.count(10**6)
SECONDS = 30  # the longest wait: a machine may be slow
GRID = {
    "view": "sweep",
    "site": "z",
    "axes": ["layer", "head"],
    "window": 1,
    "direction": "denoise",
    "metric": "logit_diff",
}


class Fake:
    """Answers without a model. That about "slow" waits until `go` is set, and looks whether it is still wanted."""

    def __init__(self):
        self.go, self.began, self.stopped = threading.Event(), threading.Event(), threading.Event()
        self.lock, self.at_once, self.most_at_once = threading.Lock(), 0, 0

    def reply(self, experiment, question):
        with self.lock:
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            if question["view"] == "broken":
                raise ValueError("of\nno use")
            if question["view"] == "slow":
                self.began.set()
                while not self.go.wait(0.01):
                    look()
        except Stopped:
            self.stopped.set()
            raise
        finally:
            with self.lock:
                self.at_once -= 1
        return pack(key_of(question), {"clean": experiment["clean"]})


@contextmanager
def running(answers, files=FILES):
    """A server of this process."""
    server = Server(answers, files, port=0)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.stopping = True
        server.shutdown()
        server.server_close()
        thread.join(SECONDS)


@pytest.fixture
def fake():
    answers = Fake()
    with running(answers) as server:
        yield server
        answers.go.set()


def body_of(questions=({"view": "quick"},), page="a", number=0, **experiment):
    fields = MICHELLE.to_dict() | experiment
    return {"page": page, "number": number, "experiment": fields, "questions": list(questions)}


def post(server, body, **headers):
    """A connection whose question is sent."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=SECONDS)
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    origin = f"http://127.0.0.1:{server.server_port}"
    own = {"Content-Type": "application/json", "Origin": origin, **{k.replace("_", "-"): v for k, v in headers.items()}}
    connection.request(
        "POST", f"/{server.token}/ask", content, {name: value for name, value in own.items() if value is not None}
    )
    return connection


def replies_in(content):
    """The replies of an answer."""
    found = []
    while content:
        length = int.from_bytes(content[:4], "little")
        found.append(unpack(content[4 : 4 + length]))
        content = content[4 + length :]
    return found


def ask(server, body, **headers):
    """(status, replies, or the line that says why not)."""
    with closing(post(server, body, **headers)) as connection:
        response = connection.getresponse()
        content = response.read()
        return response.status, replies_in(content) if response.status == 200 else content.decode()


def head_of(server):
    """The first lines of a question, up to its length."""
    own = f"127.0.0.1:{server.server_port}"
    lines = [f"POST /{server.token}/ask HTTP/1.1", f"Host: {own}", f"Origin: http://{own}"]
    return "\r\n".join([*lines, "Content-Type: application/json", ""])


def raw(server, content, answered=True):
    """Send bytes, and return what comes back."""
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=SECONDS) as connection:
        connection.sendall(content)
        received = b""
        try:
            while answered and (part := connection.recv(65536)):
                received += part
        except ConnectionResetError:  # it closed without reading all that was sent
            pass
        return received


def works(server):
    """Whether the next question, of a new page, is answered rightly."""
    status, replies = ask(server, body_of(page=f"page {next(NUMBERS)}", clean="next"))
    return status == 200 and [reply["clean"] for reply in replies] == ["next"]


# ---- what it answers --------------------------------------------------------------------------------


def test_it_sends_its_files_and_nothing_else(fake):
    host = f"Host: 127.0.0.1:{fake.server_port}\r\n\r\n"
    for name, (kind, content) in FILES.items():
        answer = raw(fake, f"GET /{fake.token}/{name} HTTP/1.1\r\n{host}".encode())
        head, _, received = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.0 200 ") and received == content and f"Content-Type: {kind}".encode() in head
        assert raw(fake, f"HEAD /{fake.token}/{name} HTTP/1.1\r\n{host}".encode()).endswith(b"\r\n\r\n")
    token = fake.token
    for path in [
        *(
            "/",
            "//",
            "/main.js",
            f"/{token}",
            f"/{token}/other",
            f"/{token}/ask",
            f"/{token}/main.js?x",
            f"/{token}//main.js",
        ),
        *(
            f"/{token}/../main.js",
            f"/{token}/..",
            f"/{token}/%2e%2e/setup.cfg",
            f"/{token}/..\\..\\setup.cfg",
            f"/{token}/\0",
        ),
        *(
            f"/{token[:-1]}/",
            f"/{token}x/",
            f"/{token.swapcase()}/",
            f"/x/{token}/",
            f"http://127.0.0.1:{fake.server_port}/{token}/",
        ),
        *("/etc/passwd", "/../../etc/passwd", f"/{token}/" + "a" * 5000, "/é/", f"/{token}/é"),
    ]:
        answer = raw(fake, f"GET {path} HTTP/1.1\r\n{host}".encode())
        assert re.match(rb"HTTP/1.0 40[04] ", answer), path
    assert works(fake)


def test_every_answer_says_what_a_browser_may_do(fake):
    host = f"Host: 127.0.0.1:{fake.server_port}\r\n"
    for request in [
        f"GET /{fake.token}/ HTTP/1.1\r\n{host}\r\n",
        f"GET / HTTP/1.1\r\n{host}\r\n",
        f"GET /{fake.token}/ HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        f"PUT /{fake.token}/ HTTP/1.1\r\n{host}\r\n",
        f"OPTIONS /{fake.token}/ask HTTP/1.1\r\n{host}\r\n",
        f"GET /{fake.token}/ HTTP/1.1\r\n{host}" + "A: b\r\n" * 200 + "\r\n",
    ]:
        answer = raw(fake, request.encode())
        for name, value in HEADERS.items():
            assert f"{name}: {value}\r\n".encode() in answer, request
        assert b"Access-Control-Allow" not in answer
    policy = HEADERS["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'") and "connect-src 'self'" in policy and "unsafe" not in policy
    assert works(fake)


def test_it_listens_on_this_computer_alone(fake):
    assert fake.server_address[0] == "127.0.0.1" and len(fake.token) >= 20
    with running(Fake()) as other:
        assert other.token != fake.token


def test_a_taken_port_gives_another(fake):
    with running(Fake()) as first:
        other = Server(Fake(), FILES, first.server_port)
        try:
            assert other.server_port not in (0, first.server_port)
        finally:
            other.server_close()


def test_replies_arrive_one_after_the_other(fake):
    connection = post(fake, body_of([{"view": "quick"}, {"view": "slow"}, {"view": "quick"}]))
    with closing(connection):
        response = connection.getresponse()
        length = int.from_bytes(response.read(4), "little")
        assert unpack(response.read(length))["key"] == '{"view":"quick"}'  # while the second is computed
        assert not fake.answers.go.is_set()
        fake.answers.go.set()
        assert len(replies_in(response.read())) == 2


def test_the_replies_are_the_models_own():
    model = nanopatch.load("nano")
    answers = Answers(model)
    with running(answers) as server:
        status, (grid, lens) = ask(server, body_of([GRID, {"view": "lens", "run": "clean"}]))
    assert status == 200
    np.testing.assert_array_equal(grid["values"], nanopatch.sweep(model, MICHELLE, "z").grid)
    assert grid["key"] == key_of(GRID) and lens["tokens"] == model.token_strings(model.tokenize(MICHELLE.clean))


def test_what_goes_wrong_is_a_reply_and_a_line_and_the_server_goes_on(fake, capsys):
    status, (broken, quick) = ask(fake, body_of([{"view": "broken"}, {"view": "quick"}]))
    assert status == 200 and broken["error"] == "this went wrong: ValueError: of\\nno use" and "error" not in quick
    assert capsys.readouterr().err == "nanopatch: ValueError: of\\nno use\n"
    assert works(fake)


# ---- what it refuses --------------------------------------------------------------------------------


def test_another_host_is_refused(fake):
    """A site whose name leads to 127.0.0.1 is another origin to a browser, but its requests arrive here."""
    port, ask_path = fake.server_port, f"/{fake.token}/ask"
    for hosts in [
        [],
        ["evil.example"],
        [f"evil.example:{port}"],
        ["127.0.0.1"],
        [f"127.0.0.1:{port}.evil.example"],
        [f"127.0.0.1:{port}"] * 2,
        [f"127.0.0.2:{port}"],
        ["localhost"],
    ]:
        lines = "".join(f"Host: {host}\r\n" for host in hosts)
        for request in (f"GET /{fake.token}/", f"POST {ask_path}"):
            answer = raw(fake, f"{request} HTTP/1.1\r\n{lines}Content-Length: 0\r\n\r\n".encode())
            assert answer.startswith(b"HTTP/1.0 403 "), hosts
    answer = raw(fake, f"GET /{fake.token}/ HTTP/1.1\r\nHost: localhost:{port}\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.0 200 ")


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (403, {"Origin": "http://evil.example"}),
        (403, {"Origin": "null"}),
        (403, {"Origin": None}),
        (403, {"Origin": "http://localhost:1"}),
        (403, {"Sec_Fetch_Site": "cross-site"}),
        (403, {"Sec_Fetch_Site": "same-site"}),
        (415, {"Content_Type": "text/plain"}),
        (415, {"Content_Type": "application/x-www-form-urlencoded"}),
        (415, {"Content_Type": None}),
        (200, {"Sec_Fetch_Site": "same-origin"}),
        (200, {"Content_Type": "application/json; charset=utf-8"}),
    ],
)
def test_a_question_of_another_page_is_refused(fake, status, headers):
    assert ask(fake, body_of(), **headers)[0] == status
    assert works(fake)


def test_the_page_may_be_called_localhost(fake):
    local = f"localhost:{fake.server_port}"
    assert ask(fake, body_of(), Host=local, Origin=f"http://{local}")[0] == 200
    assert ask(fake, body_of(number=1), Host=local)[0] == 403  # of another origin than the host


WRONG = [
    b"",
    b"{}",
    b"[]",
    b"null",
    b"\xff{}",
    b'{"page": "a", "page": "b"}',
    b"[" * 60000,
    b"1" * 5000,
    *[
        json.dumps(body_of() | changes).encode()
        for changes in [
            *({"page": page} for page in ("", "a" * 101, 1, None, ["a"])),
            *({"number": number} for number in (-1, 1.0, "1", None, True, 10**30, float("nan"), 2**53)),
            *(
                {"questions": questions}
                for questions in (None, {}, [1], [{"view": {}}], [{"view": [["a"]]}], [{"view": "a" * 101}])
            ),
            *(
                {"questions": questions}
                for questions in ([{"view": 1.5}], [{"view": "x"}] * 101, [{"axes": ["a"] * 21}])
            ),
            *({"experiment": experiment} for experiment in (None, [], {}, MICHELLE.to_dict() | {"more": 1})),
            {"more": 1},
        ]
    ],
    *[
        json.dumps(body_of(**changes)).encode()
        for changes in [
            *({"clean": prompt} for prompt in (None, 1, "a" * 20001, [1] * 5001, ["a"], [1.0], [True], [2**40], {})),
            *({"answer": answer} for answer in (1.5, [1], "a" * 1001, True, 2**40)),
            *({"prepend_bos": 1}, {"special_tokens": None}, {"align": "other"}, {"align": ["diff"]}, {"align": {}}),
            {"corrupted": "\ud800"},
        ]
    ],
]


@pytest.mark.parametrize("body", WRONG, ids=range(len(WRONG)))
def test_what_no_page_asks_is_refused_in_one_line(fake, body):
    status, why = ask(fake, body)
    assert status == 400 and why.count("\n") == 1, why
    assert works(fake)


@pytest.mark.parametrize(
    ("status", "lines"),
    [
        (411, ""),
        (411, "Transfer-Encoding: chunked\r\n"),
        (411, "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n"),
        (411, "Content-Length: -1\r\n"),
        (411, "Content-Length: 2\r\nContent-Length: 3\r\n"),
        (411, "Content-Length: two\r\n"),
        (411, "Content-Length: \xb2\r\n"),
        (413, f"Content-Length: {MOST_BYTES + 1}\r\n"),
        (413, "Content-Length: 1000000000\r\n"),
        (413, f"Content-Length: {'9' * 5000}\r\n"),
    ],
)
def test_a_question_of_no_or_too_great_a_length_is_not_read(fake, status, lines):
    assert raw(fake, f"{head_of(fake)}{lines}\r\n".encode("latin-1")).startswith(f"HTTP/1.0 {status} ".encode())
    assert works(fake)


# ---- one computation at a time ----------------------------------------------------------------------


def test_a_newer_question_of_a_page_stops_the_older_one(fake):
    with closing(post(fake, body_of([{"view": "slow"}], number=1))) as older:
        assert fake.answers.began.wait(SECONDS)
        assert ask(fake, body_of(number=2))[0] == 200
        assert fake.answers.stopped.is_set()
        assert older.getresponse().read() == b""
    for number in (0, 1, 2):
        assert ask(fake, body_of(number=number))[0] == 409
    assert ask(fake, body_of(number=3))[0] == 200 and fake.answers.most_at_once == 1


def test_another_page_waits_for_its_turn(fake):
    with closing(post(fake, body_of([{"view": "slow"}], page="one"))) as first:
        assert fake.answers.began.wait(SECONDS)
        with closing(post(fake, body_of([{"view": "slow"}], page="two"))) as second:
            fake.answers.go.set()
            for connection in (first, second):
                assert len(replies_in(connection.getresponse().read())) == 1
    assert fake.answers.most_at_once == 1


def test_a_browser_that_is_closed_stops_its_computation(fake):
    post(fake, body_of([{"view": "slow"}])).close()
    assert fake.answers.began.wait(SECONDS) and fake.answers.stopped.wait(SECONDS)
    assert works(fake)


def test_a_real_sweep_is_stopped_in_the_middle_and_is_right_the_next_time():
    model = nanopatch.load("nano")
    expected = nanopatch.sweep(model, MICHELLE, "z").grid
    looked = []

    def check():
        looked.append(1)
        if len(looked) == 3:
            raise Stopped

    with watch(check), pytest.raises(Stopped):
        nanopatch.sweep(model, MICHELLE, "z")
    assert len(looked) == 3
    np.testing.assert_array_equal(nanopatch.sweep(model, MICHELLE, "z").grid, expected)
    with watch(check), pytest.raises(Stopped):
        looked.clear()
        Answers(model).reply(
            MICHELLE, {"view": "patch", "cell": 5} | {k: v for k, v in GRID.items() if k not in ("view", "metric")}
        )


def test_the_newest_of_many_pages_are_known(fake, monkeypatch):
    monkeypatch.setattr(server_module, "MOST_PAGES", 3)
    for page in "abcd":
        assert fake.register(page, 5)
    assert not fake.register("d", 5) and fake.register("a", 0)  # a was forgotten
    assert fake.is_newest("d", 5) and not fake.is_newest("d", 4)


# ---- load and faults --------------------------------------------------------------------------------


def test_two_hundred_requests_at_once_half_of_them_cancelled(fake):
    answered = []

    def client(i):
        connection = post(fake, body_of(page=f"page {i}", clean=f"prompt {i}"))
        if i % 2:
            connection.close()
            return
        with closing(connection):
            answered.append((i, [reply["clean"] for reply in replies_in(connection.getresponse().read())]))

    clients = [threading.Thread(target=client, args=[i]) for i in range(200)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join(SECONDS)
    assert sorted(answered) == [(i, [f"prompt {i}"]) for i in range(0, 200, 2)]
    assert works(fake) and fake.answers.most_at_once == 1


def test_half_a_request_keeps_nothing_for_long(fake, monkeypatch):
    monkeypatch.setattr(server_module, "READING", 0.3)
    before = threading.active_count()
    for content in (b"", b"GE", b"GET / HTTP/1.1\r\nHo", f"{head_of(fake)}Content-Length: 100\r\n\r\n{{".encode()):
        with socket.create_connection(("127.0.0.1", fake.server_port), timeout=SECONDS) as connection:
            connection.sendall(content)
            assert works(fake)  # while it waits
            while connection.recv(1000):  # until the server gives up
                pass
    wait_for(lambda: threading.active_count() <= before)
    assert works(fake)


def test_a_request_that_trickles_in_is_given_up(fake, monkeypatch):
    """Each byte comes in time, but the whole does not."""
    monkeypatch.setattr(server_module, "READING", 0.3)
    with (
        socket.create_connection(("127.0.0.1", fake.server_port), timeout=SECONDS) as connection,
        pytest.raises(OSError),
    ):
        for _ in range(1000):
            connection.sendall(b"G")
            time.sleep(0.02)
    assert works(fake)


def test_more_connections_than_there_are_places_wait(monkeypatch):
    monkeypatch.setattr(server_module, "MOST_CONNECTIONS", 2)
    monkeypatch.setattr(server_module, "READING", 1.0)
    with running(Fake()) as server:
        idle = [socket.create_connection(("127.0.0.1", server.server_port)) for _ in range(4)]
        assert works(server)  # after those that say nothing were given up
        for connection in idle:
            connection.close()


def test_ctrl_c_between_two_threads_gives_a_place_back_once(monkeypatch):
    """Ctrl-C may come when a connection has its thread, and the server's own has not gone on yet."""
    complaints, begun = [], ThreadingHTTPServer.process_request

    def interrupted(*arguments):
        begun(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(ThreadingHTTPServer, "process_request", interrupted)
    monkeypatch.setattr(threading, "excepthook", complaints.append)
    with Server(Fake(), FILES, port=0) as server, socket.create_connection(("127.0.0.1", server.server_port)):
        with pytest.raises(KeyboardInterrupt):
            server.handle_request()
        wait_for(lambda: not any(thread.name.endswith("(process_request_thread)") for thread in threading.enumerate()))
        taken = [server.connections.acquire(blocking=False) for _ in range(MOST_CONNECTIONS + 1)]
    assert (complaints, taken.count(True)) == ([], MOST_CONNECTIONS)


def wait_for(holds):
    """Wait until something holds."""
    end = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


# ---- the command ------------------------------------------------------------------------------------


@contextmanager
def command(*options, **environment):
    """`nanopatch explore` in a process of its own, and the address that it prints."""
    arguments = [sys.executable, "-m", "nanopatch", "explore", *options]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", **environment}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # What a script starts in the background ignores Ctrl-C, and so does all that it starts: these tests may be there.
    heard = None if sys.platform == "win32" else partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(arguments, env=environment, preexec_fn=heard, **pipes)
    try:
        yield (
            process,
            re.match(r"http://127\.0\.0\.1:(\d+)/([\w-]+)/  \(Ctrl-C stops it\)\n", process.stdout.readline()),
        )
    finally:
        process.kill()
        process.communicate()


class Remote:
    """A server in another process, as the functions above know one."""

    def __init__(self, address):
        self.server_port, self.token = int(address[1]), address[2]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals to a process: run this on Linux or macOS")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("busy", [False, True])
def test_ctrl_c_stops_it_in_the_middle_of_a_computation_too(number, busy):
    with command("--no-browser", "--port", "0") as (process, address):
        if busy:
            grids = [GRID | {"site": site, "axes": ["layer", "head", "position"]} for site in "zqkv"] * 20
            asking = post(Remote(address), body_of(grids))
            asking.sock.recv(1000)  # it computes
        process.send_signal(number)
        out, err = process.communicate(timeout=SECONDS)
        if busy:
            asking.close()
        assert (process.returncode, out, err) == (0, "", "")


def test_it_opens_a_browser_only_if_it_may(tmp_path):
    opener = tmp_path / "browser"
    opener.write_text(f'#!/bin/sh\necho "$1" >{tmp_path}/opened\n')
    opener.chmod(0o755)
    with command("--port", "0", BROWSER=f"{opener} %s") as (_, address):
        wait_for((tmp_path / "opened").exists)
        wait_for(lambda: (tmp_path / "opened").read_text().strip() == address[0].split()[0])
    (tmp_path / "opened").unlink()
    with command("--no-browser", "--port", "0", BROWSER=f"{opener} %s") as (_, address):
        assert ask(Remote(address), body_of([{"view": "prompts"}]))[0] == 200
    assert not (tmp_path / "opened").exists()


def test_a_port_that_is_taken_or_impossible_is_told():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with command("--no-browser", "--port", port) as (process, address):
            assert address[1] != port
            assert process.stderr.readline() == f"nanopatch: port {port} is taken; this is another one\n"
    for port in ("65536", "-1", "x"):
        done = subprocess.run(
            [sys.executable, "-m", "nanopatch", "explore", "--port", port], capture_output=True, text=True
        )
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and not done.stdout


def test_a_prompt_that_the_model_cannot_read_is_told_before_it_serves():
    options = ["--clean", "a", "--corrupted", "b", "--answer", " c"]
    done = subprocess.run([sys.executable, "-m", "nanopatch", "explore", *options], capture_output=True, text=True)
    assert done.returncode == 2 and "--wrong" in done.stderr


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc: run this on Linux")
def test_its_memory_returns():
    """After a gigabyte that is sent, and after many questions about many prompts, of which half are given up."""
    with command("--no-browser", "--port", "0") as (process, address):
        server = Remote(address)

        def memory():  # bytes in RAM
            return int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

        def question(i):
            cell = {
                "site": "resid_pre",
                "axes": ["layer", "position"],
                "window": 1,
                "direction": "denoise",
                "cell": i % 40,
            }
            views = [{"view": "patch", **cell}, {"view": "lens", "run": "patched", **cell}, {"view": "prompts"}]
            year = 1800 + i % 100
            return body_of(
                views,
                number=i,
                clean=f"In {year}, Mary and John went to the war. Mary",
                corrupted=f"In {year}, Anna and John went to the war. Mary",
                answer=" John",
                wrong_answer=" Mary",
            )

        for i in range(20):
            assert ask(server, question(i))[0] == 200
        before = memory()
        for i in range(20, 60):
            connection = post(server, question(i))
            if i % 2:
                connection.close()
            else:
                with closing(connection):
                    assert connection.getresponse().status == 200
        with (
            socket.create_connection(("127.0.0.1", server.server_port), timeout=SECONDS) as sending,
            pytest.raises(OSError),
        ):
            sending.sendall(f"{head_of(server)}Content-Length: 1000000000\r\n\r\n".encode())
            for _ in range(1000):
                sending.sendall(b"x" * 10**6)
        assert ask(server, question(60))[0] == 200
        assert memory() < before + 60e6  # a run of nano has half a megabyte
