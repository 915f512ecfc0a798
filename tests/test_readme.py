"""What the README and the other pages show is what happens: their Python, their pdb sessions, their commands."""

import json
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import nanopatch
from nanopatch.cli import main, parser
from nanopatch.experiments import MICHELLE
from nanopatch.model import gpt2

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted([*ROOT.glob("docs/*.md"), *ROOT.glob("weights/*/*.md")])]


@pytest.fixture(autouse=True)
def typed_at_breakpoints(monkeypatch):
    """At `breakpoint()` the statement is typed that the page shows there."""
    (typed,) = {text for page in DOCS for text in re.findall(r"breakpoint\(\) +# type: (.*)", page.read_text("utf-8"))}
    monkeypatch.setattr(sys, "breakpointhook", lambda: exec(typed, sys._getframe(1).f_globals))


def test_its_python_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) >= 3
    names, differences = {}, []
    for block in blocks:
        exec(block, names)  # one after the other, as a reader would type them
        if "jones" in names and len(differences) < 2:
            differences.append(names["logits"][-1, names["jones"]] - names["logits"][-1, names["smith"]])
    assert np.isclose(differences[0], differences[1], rtol=1e-5)  # both loops make the same patch
    assert np.isclose(differences[0], names["result"].grid[1, 1], rtol=1e-5)  # which is a cell of the sweep
    assert str(differences[0]) in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["michelle.png"]


SESSIONS = [
    pytest.param(session, id=f"{page.name}-{number}")
    for page in DOCS
    for number, session in enumerate(
        re.findall(r"```\n\$ python -m pdb (.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    )
]


@pytest.mark.parametrize("session", SESSIONS)
def test_a_pdb_session_is_what_pdb_shows(session):
    script, *lines = session.splitlines()
    typed = [line.removeprefix("(Pdb) ") for line in lines if line.startswith("(Pdb) ")]
    shown = [line for line in lines if not line.startswith("(Pdb) ")]
    done = subprocess.run(
        [sys.executable, "-m", "pdb", script],
        input="\n".join([*typed, "quit"]),
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert shown and all(line in done.stdout for line in shown), done.stdout


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_a_breakpoint_is_where_its_array_is_handed_over(page):
    """The line numbers of sessions, which change whenever something above them in `gpt2.py` does."""
    lines = Path(gpt2.__file__).read_text(encoding="utf-8").splitlines()
    for number, array in re.findall(r"gpt2\.py:(\d+),.*?\(Pdb\) !?(\w+)\[", page.read_text("utf-8"), flags=re.DOTALL):
        (right,) = [n for n, line in enumerate(lines, 1) if f'yield from hand_over("{array}"' in line]
        assert int(number) == right, f"{page.name}: write gpt2.py:{right} for {array}"


def test_the_loop_with_a_breakpoint_makes_the_patch_of_the_session():
    (loop,) = [b for b in re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL) if "breakpoint()" in b]
    model = nanopatch.load("nano")
    names = {"model": model, "clean": model.run(MICHELLE.clean)}
    exec(loop, names)
    jones, smith = model.tokenize(" Jones Smith")
    (shown,) = re.findall(r"logit difference, Jones - Smith: (.*)", README)
    assert names["site"].array[-1, jones] - names["site"].array[-1, smith] == pytest.approx(float(shown), abs=1e-3)


def test_its_commands_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lines = README.replace("\\\n", " ").splitlines()
    commands = [shlex.split(line) for line in lines if line.startswith("    nanopatch ") and "gpt2" not in line]
    commands.remove(["nanopatch", "explore"])  # a server, until Ctrl-C; tests/explore starts it
    assert len(commands) >= 3
    for command in commands:
        assert main(command[1:]) == 0, command
    assert (tmp_path / "michelle.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "michelle.html").read_bytes().startswith(b"<!doctype html>")


#: Code in the text of all pages, and commands that stand alone in a line: `nanopatch top "..."`.
SPANS = sorted(
    {
        (page.name, " ".join(code.split()))
        for page in DOCS
        for code in re.findall(
            r"(?<!`)`([^`]+)`(?!`)|^    (nanopatch .*|pip .*)$",
            re.sub(r"(?ms)^```.*?^```$", "", page.read_text("utf-8").replace("\\\n", " ")),
            flags=re.MULTILINE,
        )
        for code in code
        if code
    }
)


def options():
    """{command: its options}, of the command line."""
    (choices,) = [action.choices for action in parser()._actions if action.choices and "patch" in action.choices]
    return {
        name: {option for action in command._actions for option in action.option_strings}
        for name, command in choices.items()
    }


@pytest.mark.parametrize(("page", "code"), [span for span in SPANS if re.match(r"nanopatch [a-z]|--?[a-z]", span[1])])
def test_a_command_in_the_text_exists(page, code):
    """With its options. Those that stand alone are of some command."""
    known = options()
    words = shlex.split(code.partition(" && ")[0])
    flags = {word for word in words if re.match(r"--?[a-z]", word)}
    if words[0] == "nanopatch":
        assert words[1] in known or words[1] == "COMMAND", page
        assert flags <= known.get(words[1], set.union(*known.values()) | {"--version"}), page
    else:
        assert flags <= set.union(*known.values()), page


def test_what_is_installed_exists():
    """Extras are those of setup.cfg, scripts are in scripts/."""
    extras = set(
        re.findall(r"^(\w+) =$", (ROOT / "setup.cfg").read_text("utf-8").partition("extras_require]")[2], re.M)
    )
    texts = [path.read_text("utf-8") for path in [*DOCS, *ROOT.glob("nanopatch/**/*.py")]]
    named = {extra for text in texts for extra in re.findall(r"(?:nanopatch|\.)\[(\w+(?:,\w+)*)\]\\?[\"']", text)}
    assert {"hub", "lessons", "test", "tokenizers"} <= {one for extra in named for one in extra.split(",")} <= extras
    scripts = {name for text in texts for name in re.findall(r"python (?:-m pdb )?(scripts/\w+\.py)", text)}
    assert scripts and all((ROOT / name).exists() for name in scripts)


def test_commands_of_the_teachers_page_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    commands = [code for page, code in SPANS if page == "teaching.md" and code.startswith("nanopatch ")]
    for unfinished in ("nanopatch explore", "nanopatch tokens"):  # a server; a name
        commands.remove(unfinished)
    assert len(commands) >= 5
    for command in commands:
        assert main(shlex.split(command)[1:]) == 0, command
    assert {path.name for path in tmp_path.iterdir()} == {"lesson_02_first_patch.ipynb", "michelle.html"}


def write_pairs(path):
    pairs = [vars(pair) for pair in nanopatch.tasks.capitals(3)]
    names = ("clean", "corrupted", "answer", "wrong_answer")
    path.write_text("".join(json.dumps({name: pair[name] for name in names}) + "\n" for pair in pairs), "utf-8")


def test_commands_of_the_page_on_many_pairs_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_pairs(tmp_path / "pairs.jsonl")
    page = (ROOT / "docs/many.md").read_text(encoding="utf-8")
    whole, merge, share = re.findall(r"^    (nanopatch .*)$", page, flags=re.MULTILINE)
    for command in (share, whole, merge):
        assert main(shlex.split(command)[1:]) == 0, command
    assert (tmp_path / "z.png").exists() and "from the mean)  The capital of" in capsys.readouterr().out
    (with_workers,) = re.findall(r"```py\n(.*?)```", page, flags=re.DOTALL)
    names = {"nanopatch": nanopatch, "model": nanopatch.load("nano"), "pairs": nanopatch.tasks.capitals(8)}
    exec(with_workers, names)
    assert names["result"].n_pairs == 8


def test_python_of_the_other_pages_runs(tmp_path, monkeypatch, capsys):
    """And prints what stands in the block below it, if there is one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    for page in DOCS[1:]:
        names = {}
        blocks = r"```python\n(.*?)```\n(?:\n```\n(?!\$)(.*?)```)?"
        for block, printed in re.findall(blocks, page.read_text(encoding="utf-8"), flags=re.DOTALL):
            capsys.readouterr()
            exec(block, names)
            assert printed in ("", capsys.readouterr().out), page.name


def test_what_the_teachers_page_says_of_nano_is_so():
    page = (ROOT / "docs/teaching.md").read_text(encoding="utf-8")
    model = nanopatch.load("nano")
    known, unknown = (
        re.findall(r"^\| ([^|]+) \| (\S+) \|$", part, flags=re.MULTILINE)
        for part in page.partition("## An experiment of one's own")[2].split("And these it does not")
    )
    assert len(known) >= 12 and len(unknown) >= 8
    for prompt, token in known + unknown:
        (likeliest,) = model.run(prompt).top(1)
        assert likeliest["token"] == token.replace("␣", " "), prompt
        assert likeliest["probability"] > 0.5 or (prompt, token) in unknown, prompt


def test_files_named_in_the_text_are_there():
    named = {
        (page, code) for page, code in SPANS if re.fullmatch(r"(nanopatch|tests|scripts|docs|weights)/[\w./-]+", code)
    }
    assert len(named) > 25
    for page, code in named:
        file = code.replace("_NN_name", "_01_forward_pass").replace("_NN", "_01").replace("/name.js", "/main.js")
        assert (ROOT / file).exists(), (page, code)


def test_what_they_link_to_is_there():
    for page in DOCS:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert target.startswith("https://") or (page.parent / target).exists(), (page.name, target)


def test_every_view_of_a_run_is_named_and_has_its_picture(tmp_path):
    """And the pictures can be made again."""
    questions = (ROOT / "docs/questions.md").read_text(encoding="utf-8")
    for name in ("logit_lens", "direct_logit_attribution", "plot_attention", "head_scores", "generate_steps"):
        assert name in README and name in questions
    runpy.run_path(str(ROOT / "scripts" / "make_pictures.py"))["main"](tmp_path)
    made = {path.name for path in tmp_path.iterdir()}
    assert made == {"lens.png", "direct.png", "attention.png", "heads.png", "michelle.png", "curves.png"}
    circuits = (ROOT / "docs/circuits.md").read_text(encoding="utf-8")
    for name in made:
        assert f"]({name})" in questions + circuits or f"](docs/{name})" in README
        assert (ROOT / "docs" / name).stat().st_size < 80_000


def test_the_page_has_its_pictures(tmp_path, monkeypatch):
    """And they can be made again, where there is Chromium."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from chromium import Missing

    page = (ROOT / "docs/page.md").read_text(encoding="utf-8")
    names = {"page.png", "page-steps.png", "page-circuit.png"}
    for name in names:
        assert f"]({name})" in page
        assert (ROOT / "docs" / name).stat().st_size < 250_000
    assert "](docs/page.png)" in README
    try:
        runpy.run_path(str(ROOT / "scripts" / "make_pictures.py"))["screenshots"](tmp_path)
    except Missing as error:
        pytest.skip(str(error))
    assert {path.name for path in tmp_path.iterdir()} == names
