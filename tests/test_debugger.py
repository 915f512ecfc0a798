"""Patches by hand in real debuggers, pdb and debugpy (VS Code's), and what a breakpoint inside a block shows."""

import contextlib
import itertools
import json
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, tiny_model

import nanopatch
from nanopatch import sweep
from nanopatch.experiments import MICHELLE
from nanopatch.lessons.course import find as find_lesson
from nanopatch.model import gpt2
from nanopatch.model.sites import BLOCK_SITES

SCRIPT = ROOT / "scripts" / "step_through.py"
PATCH = "z[-1] = self.clean.z[layer, -1]"
#: True in the patched run only: the script sets the attribute after the clean run.
SECOND_RUN = 'layer == 1 and hasattr(self, "clean")'


def pdb(*commands, script=SCRIPT):
    done = subprocess.run(
        [sys.executable, "-m", "pdb", script], input="\n".join(commands), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def logit_difference(output):
    (line,) = [line for line in output.splitlines() if "logit difference, Jones - Smith:" in line]
    return float(line.split()[-1])


def line_of(text):
    """The number of the one line of `gpt2.py` that has this text."""
    lines = Path(gpt2.__file__).read_text(encoding="utf-8").splitlines()
    (number,) = [number for number, line in enumerate(lines, 1) if text in line]
    return number


@pytest.fixture(scope="module")
def patched():
    """The logit difference with the clean run's z at layer 1 and the last position."""
    nano = nanopatch.load("nano")
    clean = nano.run(MICHELLE.clean)
    for site in nano.steps(MICHELLE.corrupted):
        if site.name == "z" and site.layer == 1:
            site.array[-1] = clean.z[1, -1]
    jones, smith = nano.tokenize(" Jones Smith")
    difference = site.array[-1, jones] - site.array[-1, smith]
    assert abs(difference - sweep(nano, MICHELLE).baseline_corrupted) > 1  # a patch that matters
    return pytest.approx(difference, abs=0.001)


@pytest.fixture(scope="module")
def loop_line():
    lines = SCRIPT.read_text().splitlines()
    return lines.index("    resid = model.block(layer, resid)") + 1


def test_a_patch_typed_into_pdb_is_the_patch_of_the_sweep(loop_line):
    """The session of the README: stop in the loop at layer 1, look, assign, carry on."""
    result = nanopatch.sweep(nanopatch.load("nano"), MICHELLE)
    output = pdb(
        f"break {loop_line}, layer == 1",
        "continue",
        "p resid.shape",
        "resid[1] = clean.resid_pre[1, 1]",
        "clear 1",
        "continue",
        "quit",
    )
    assert f"({len(result.columns)}, 128)" in output
    assert logit_difference(output) == pytest.approx(result.grid[1, 1], abs=0.001)
    assert abs(result.grid[1, 1] - result.baseline_corrupted) > 0.1  # the patch is one that matters


def test_without_the_assignment_it_is_the_corrupted_run():
    result = nanopatch.sweep(nanopatch.load("nano"), MICHELLE)
    assert logit_difference(pdb("continue", "quit")) == pytest.approx(result.baseline_corrupted, abs=0.001)


def test_a_breakpoint_inside_a_block_shows_each_array_and_edits_it_alone(loop_line):
    """Stopped in `model.block`, where `v_input` is handed over: an edit there is an edit of what values read."""
    source, line = gpt2.__file__, line_of('hand_over("v_input"')
    output = pdb(
        f"break {loop_line}",
        "continue",
        "clear 1",
        f"break {source}:{line}, layer == 1",
        "continue",
        "v_input[1] = 0",
        "p v_input is resid_pre or v_input is k_input or not resid_pre[1].any()",
        "clear 2",
        "continue",
        "quit",
    )
    nano = nanopatch.load("nano")
    for site in nano.steps(MICHELLE.corrupted):
        if site.name == "v_input" and site.layer == 1:
            site.array[1] = 0
    jones, smith = nano.tokenize(" Jones Smith")
    assert "(Pdb) False\n" in output and "(Pdb) True" not in output
    expected = site.array[-1, jones] - site.array[-1, smith]
    assert logit_difference(output) == pytest.approx(expected, abs=0.001)
    assert abs(expected - sweep(nano, MICHELLE).baseline_corrupted) > 1  # an edit that matters


def test_inside_a_block_another_run_is_an_attribute_of_the_model(patched):
    """From the start of the session on: the clean run passes the line too, and does not stop."""
    line = line_of('hand_over("z", z)')
    output = pdb(f"break nanopatch/model/gpt2.py:{line}, {SECOND_RUN}", "continue", PATCH, "continue", "quit")
    assert output.count("block_steps()") == 1
    assert logit_difference(output) == patched


def test_an_exclamation_mark_tells_q_from_pdbs_command():
    line = line_of('hand_over("q", q)')
    output = pdb(
        f"break nanopatch/model/gpt2.py:{line}, {SECOND_RUN}", "continue", "!q[:, 0] = 0", "p q[:, 0].any()", "quit"
    )
    assert "False" in output.split("block_steps()")[1]


def test_in_a_loop_over_the_sites_a_breakpoint_is_in_reach_of_everything(tmp_path, patched):
    script = tmp_path / "loop.py"
    script.write_text(f"""
import nanopatch
model = nanopatch.load("nano")
clean = model.run({MICHELLE.clean!r})
for site in model.steps({MICHELLE.corrupted!r}):
    if site.name == "z" and site.layer == 1:
        breakpoint()
jones, smith = model.tokenize(" Jones Smith")
print("logit difference, Jones - Smith:", site.array[-1, jones] - site.array[-1, smith])
""")
    typed = "site.array[-1] = clean.z[1, -1]\ncontinue\n"
    done = subprocess.run([sys.executable, script], input=typed, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert logit_difference(done.stdout) == patched


def test_four_steps_of_pdb_lead_into_a_block(loop_line):
    """Two of them are the calls, at which pdb stops too."""
    output = pdb(f"break {loop_line}", "continue", *["step"] * 4, "next", "quit")
    stops = re.findall(r"^(?:\(Pdb\) )?> .*\((\d+)\)(\w+)\(\)", output, flags=re.MULTILINE)
    assert [name for _, name in stops[-4:]] == ["block", "block_steps", "block_steps", "block_steps"]


# ---- the debug adapter protocol ---------------------------------------------------------------------


class Client:
    """An editor's side of the debug adapter protocol: https://microsoft.github.io/debug-adapter-protocol."""

    def __init__(self, port):
        for _ in range(600):
            with contextlib.suppress(ConnectionRefusedError):
                self.socket = socket.create_connection(("127.0.0.1", port), timeout=60)
                break
            time.sleep(0.1)  # debugpy is starting
        self.stream = self.socket.makefile("rb")
        self.sent, self.received = 0, []

    def send(self, command, **arguments):
        self.sent += 1
        content = json.dumps({"seq": self.sent, "type": "request", "command": command, "arguments": arguments}).encode()
        self.socket.sendall(b"Content-Length: %d\r\n\r\n%s" % (len(content), content))
        return self.sent

    def wait(self, **fields):
        """The first message, not yet waited for, that has these fields."""
        while True:
            for number, message in enumerate(self.received):
                if all(message.get(name) == value for name, value in fields.items()):
                    return self.received.pop(number)
            length = 0
            while line := self.stream.readline().strip():
                length = int(line.removeprefix(b"Content-Length:"))
            self.received.append(json.loads(self.stream.read(length)))

    def ask(self, command, **arguments):
        answer = self.wait(type="response", request_seq=self.send(command, **arguments))
        assert answer["success"], answer
        return answer.get("body")

    def stopped(self):
        """(the thread that stopped, its innermost frame)."""
        thread = self.wait(type="event", event="stopped")["body"]["threadId"]
        return thread, self.ask("stackTrace", threadId=thread, levels=1)["stackFrames"][0]

    def close(self):
        self.stream.close()
        self.socket.close()


@contextlib.contextmanager
def debugged(path, line, condition, script=SCRIPT):
    """The script in debugpy, with a breakpoint: (client, process)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "debugpy", "--listen", f"127.0.0.1:{port}", "--wait-for-client", script]
    # `-m` puts the folder it is run in on the path. In the checkout it would find another nanopatch than the tests do.
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=SCRIPT.parent)
    client = Client(port)
    try:
        client.ask("initialize", adapterID="debugpy", pathFormat="path", linesStartAt1=True, columnsStartAt1=True)
        client.send("attach", justMyCode=LAUNCH[0]["justMyCode"])
        client.wait(type="event", event="initialized")
        breakpoints = [{"line": line, "condition": condition}]
        (made,) = client.ask("setBreakpoints", source={"path": str(path)}, breakpoints=breakpoints)["breakpoints"]
        assert made["verified"] and made["line"] == line
        client.ask("configurationDone")
        yield client, process
    finally:
        client.close()
        process.kill()
        process.communicate()


LAUNCH = json.loads((ROOT / ".vscode" / "launch.json").read_text(encoding="utf-8"))["configurations"]


def test_the_configurations_of_vs_code_stop_in_an_installed_package():
    assert [launch["justMyCode"] for launch in LAUNCH] == [False, False]
    assert {launch["type"] for launch in LAUNCH} == {"debugpy"}
    assert Path(LAUNCH[0]["program"].replace("${workspaceFolder}", str(ROOT))) == SCRIPT


def test_a_patch_typed_into_an_editor_inside_a_block_is_that_patch(patched):
    with debugged(gpt2.__file__, line_of('hand_over("z", z)'), SECOND_RUN) as (client, process):
        thread, frame = client.stopped()
        assert frame["name"].endswith("block_steps")
        shape = client.ask("evaluate", expression="z.shape, layer", frameId=frame["id"], context="watch")
        assert shape["result"] == "((11, 4, 32), 1)"
        client.ask("evaluate", expression=PATCH, frameId=frame["id"], context="repl")
        client.ask("continue", threadId=thread)
        client.wait(type="event", event="terminated")  # it did not stop again
        assert logit_difference(process.stdout.readline()) == patched


@pytest.mark.parametrize(
    ("number", "text", "typed", "shape", "line_after"),
    [
        (1, "pass  # stop here", "site.array[-1] = 0", "('z', 1, (11, 4, 32))", "the loop predicts [' Owens']\n"),
        (1, "pass  # stop here", "None", "('z', 1, (11, 4, 32))", "the loop predicts [' Jones']\n"),
        (2, "site.array[1] = clean", "None", "('resid_pre', 1, (11, 128))", "after the patch 16.29\n"),
    ],
)
def test_a_lesson_in_an_editor(number, text, typed, shape, line_after):
    path = find_lesson(number).path
    (line,) = [n for n, code in enumerate(path.read_text(encoding="utf-8").splitlines(), 1) if text in code]
    assert f"(Pdb) break {line}\n" in (ROOT / "docs/debugger.md").read_text(encoding="utf-8")
    with debugged(path, line, "True", script=path) as (client, process):
        thread, frame = client.stopped()
        seen = "site.name, site.layer, site.array.shape"
        assert client.ask("evaluate", expression=seen, frameId=frame["id"], context="watch")["result"] == shape
        client.ask("evaluate", expression=typed, frameId=frame["id"], context="repl")
        client.ask("continue", threadId=thread)
        client.wait(type="event", event="terminated")
        said = list(itertools.takewhile(lambda line: not line.startswith("Exercise"), process.stdout))
        assert line_after in said


def test_two_steps_of_an_editor_lead_into_a_block(loop_line):
    with debugged(SCRIPT, loop_line, "layer == 1") as (client, _):
        names = []
        for _ in range(2):
            thread, frame = client.stopped()
            client.ask("stepIn", threadId=thread)
            names.append(frame["name"])
        _, frame = client.stopped()
        assert frame["name"].endswith("block_steps"), [*names, frame["name"]]


# ---- what a breakpoint sees -------------------------------------------------------------------------


def test_what_block_returns_is_the_callers():
    model = tiny_model()
    resid = model.embed([1, 2, 3])
    before, out = resid.copy(), model.block(0, resid)
    assert out.flags.writeable and np.array_equal(resid, before)
    assert np.array_equal(out, model.run([1, 2, 3]).resid_post[0])


def test_block_keeps_every_array_apart():
    model = tiny_model()
    frame = model.block_steps(0, model.embed([1, 2, 3]), sites=set(BLOCK_SITES) - {"resid_post"})
    arrays = {site.name: site.array for site in frame}
    assert len({id(array) for array in arrays.values()}) == len(BLOCK_SITES) - 1


def test_every_array_of_a_block_is_a_local_of_one_frame():
    model = tiny_model()
    steps = model.block_steps(0, model.embed([1, 2, 3]))
    for name, site in zip(BLOCK_SITES, steps, strict=True):
        there = steps.gi_frame.f_locals
        assert site.name == name and there[name] is site.array
        earlier = BLOCK_SITES[: BLOCK_SITES.index(name)]
        assert all(isinstance(there[other], np.ndarray) for other in earlier)
