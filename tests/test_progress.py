"""Where a progress bar appears. (In a notebook: tests/test_notebook.py.)"""

import re
import subprocess
import sys
import threading

import pytest

from nanopatch import progress as progress_module
from nanopatch.progress import Stopped, progress, watch

SCRIPT = """
import time
from nanopatch.progress import progress
for _ in progress(range(3), "patches"):
    time.sleep(0.6)
with progress(None, "logits", 3) as bar:
    bar.update(3)
print("done")
"""


def test_a_pipe_gets_no_bar():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("done\n", "")


@pytest.mark.skipif(sys.platform == "win32", reason="a shell closes stderr")
def test_a_program_without_stderr_goes_on():
    command = ["sh", "-c", 'exec "$0" -c "$1" 2>&-', sys.executable, SCRIPT]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    assert (done.returncode, done.stdout) == (0, "done\n")


def test_many_bars_leave_no_threads():
    list(progress(range(3), "patches"))  # the first starts the one thread with which tqdm watches all bars
    before = threading.active_count()
    for _ in range(50):
        list(progress(range(3), "patches"))
        with progress(None, "logits", 3) as bar:
            bar.update(3)
    assert threading.active_count() == before


def test_a_check_stops_the_loop_before_the_next_item():
    seen = []

    def enough():
        if len(seen) == 2:
            raise Stopped

    with watch(enough), pytest.raises(Stopped):
        for item in progress(range(5), "patches"):
            seen.append(item)
    assert seen == [0, 1]


def test_a_log_gets_a_line_each_minute(capsys, monkeypatch):
    """With the rate and the time left; a terminal gets a bar in its place."""
    monkeypatch.setattr(progress_module, "EVERY", 0.0)
    with progress_module.counting(3000, "pairs") as done:
        done(1000)
        done(500)
        done(1500)  # the last needs no line
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert re.fullmatch(r"1,000 of 3,000 pairs, \S+ a second, 0 s left", lines[0])
    assert lines[1].startswith("1,500 of 3,000 pairs, ")
    with progress_module.watch(lambda: None), progress_module.counting(10, "pairs") as done:
        done(5)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("seconds", "said"), [(7.4, "7 s"), (99, "99 s"), (150, "2 min"), (12000, "3 h 20 min")])
def test_how_much_time_is_left(seconds, said):
    assert progress_module.span_of(seconds) == said
