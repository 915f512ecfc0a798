"""Each lesson runs, as a script and as a notebook; its numbers are asserted beside the text; its exercises are checked
with right answers and with the usual wrong ones."""

import json
import re
import runpy
import subprocess
import sys
from functools import cache

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

import nanopatch
from nanopatch.cli import main
from nanopatch.lessons.course import find as find_lesson
from nanopatch.lessons.course import lessons
from nanopatch.lessons.exercises import KINDS, as_kind, check, hint, of_lesson, solution, wrong_with

LESSONS = [pytest.param(lesson, id=f"{lesson.number}") for lesson in lessons()]
EXERCISES = [
    pytest.param(f"{lesson.number}.{number}", exercise, id=f"{lesson.number}.{number}")
    for lesson in lessons()
    for number, exercise in enumerate(of_lesson(lesson.number), start=1)
]


@cache
def names_of(number):
    """What a lesson has defined at its end."""
    return runpy.run_path(str(find_lesson(number).path))


def answer_of(code, exercise):
    """What `answer` is after the lesson and the code."""
    names = dict(names_of(int(exercise.partition(".")[0])))
    exec(code, names)
    return names["answer"]


# ---- the lessons ------------------------------------------------------------------------------------


def test_they_are_numbered_from_1_and_each_takes_ten_minutes():
    assert [lesson.number for lesson in lessons()] == list(range(1, 13))
    assert all(8 <= lesson.minutes <= 12 for lesson in lessons())


def test_lesson_1_names_the_line_to_stop_at():
    lines = find_lesson(1).text.splitlines()
    (stop,) = [number for number, line in enumerate(lines, start=1) if line.endswith("pass  # stop here")]
    assert f"`break {stop}`" in find_lesson(1).text


@pytest.mark.parametrize("lesson", LESSONS)
def test_it_runs_as_a_script(lesson, tmp_path):
    done = subprocess.run([sys.executable, lesson.path], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    asked = re.findall(r"^Exercise (\S+): no answer yet", done.stdout, flags=re.MULTILINE)
    assert asked == [f"{lesson.number}.{n}" for n in range(1, len(of_lesson(lesson.number)) + 1)]
    assert not list(tmp_path.iterdir()), "a lesson leaves no files behind"


@pytest.mark.parametrize("lesson", LESSONS)
def test_it_runs_as_a_notebook(lesson, tmp_path):
    notebook = nbformat.reads(lesson.notebook(), as_version=4)
    nbformat.validate(notebook)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    said = [output for cell in notebook.cells for output in cell.get("outputs", ()) if output.get("name") == "stderr"]
    assert not said


#: What is no claim: code, links, the numbers of heads, exercises and papers, the years of papers, headings.
NO_CLAIM = (
    r"`[^`]*`",
    r"\[[^\]]*\]\([^)]*\)",
    r"\bheads? \d+\.\d+((, \d+\.\d+)* (and|or) \d+\.\d+)?",
    r"arXiv \d+\.\d+",
    r"\b(19|20)\d\d\b",
    r"(?m)^#.*$",
)
#: With a point, with commas between thousands, or of three digits or more.
NUMBER = r"(?<![\w.,])(?:\d+\.\d+|\d{1,3}(?:,\d{3})+|\d{3,})(?!\w)"


@pytest.mark.parametrize("lesson", LESSONS)
def test_its_numbers_are_asserted_beside_the_text(lesson):
    """All but small whole numbers. The text is that before the exercises."""
    cells = nbformat.reads(lesson.notebook(), as_version=4).cells
    text, code = (
        "\n".join(cell.source for cell in cells if cell.cell_type == kind).partition("## Exercises")[0]
        for kind in ("markdown", "code")
    )
    for pattern in NO_CLAIM:
        text = re.sub(pattern, "", text, flags=re.IGNORECASE)
    code = re.sub(r"(?<=\d)_(?=\d)", "", code)
    for number in re.findall(NUMBER, text):
        assert number.replace(",", "") in code, f"no line of code holds {number}"


def test_a_notebook_is_the_same_each_time():
    (lesson, *_) = lessons()
    assert lesson.notebook() == lesson.notebook()
    assert json.loads(lesson.notebook())["metadata"]["kernelspec"]["name"] == "python3"


# ---- the exercises ----------------------------------------------------------------------------------


@pytest.mark.parametrize("lesson", LESSONS)
def test_it_has_three_to_five_exercises(lesson):
    exercises = of_lesson(lesson.number)
    assert 3 <= len(exercises) <= 5
    stated = re.findall(rf"^# \*\*({lesson.number}\.\d)\*\* ", lesson.text, flags=re.MULTILINE)
    assert stated == [f"{lesson.number}.{n}" for n in range(1, len(exercises) + 1)]
    assert re.findall(r'^check\("(.*)", answer\)', lesson.text, flags=re.MULTILINE) == stated


@pytest.mark.parametrize(("name", "exercise"), EXERCISES)
def test_the_solution_is_right(name, exercise, capsys):
    answer = answer_of(exercise.solution, name)
    assert wrong_with(name, answer) is None
    check(name, answer)
    assert capsys.readouterr().out.splitlines()[-1] == f"Exercise {name}: right."


@pytest.mark.parametrize(("name", "exercise"), EXERCISES)
def test_what_is_wrong_with_the_usual_mistakes_is_said(name, exercise):
    assert len(exercise.usual_mistakes) >= 2
    for code, words in exercise.usual_mistakes.items():
        said = wrong_with(name, answer_of(code, name))
        assert said is not None, code
        assert words in said, (code, said)


@pytest.mark.parametrize(("name", "exercise"), EXERCISES)
def test_an_answer_of_another_kind_is_told_what_is_expected(name, exercise):
    others = [1.5, "a text", [1, "a"], {1}, len, {"a": 1}]
    for other in others:
        if not KINDS[exercise.kind](as_kind(exercise.kind, other)):
            assert wrong_with(name, other).startswith(f"The answer is {exercise.kind}; this is ")


@pytest.mark.parametrize(("name", "exercise"), EXERCISES)
def test_any_answer_of_its_kind_gets_a_sentence(name, exercise):
    """Whatever is given, nothing is raised."""
    strange = [0, -1, 10**9, float("nan"), float("inf"), "", "\x00", [], [None], [["a"]], (), set(), {None}, print]
    strange += [np.zeros(0), np.zeros((2, 3)), np.array("a"), np.array([None]), lambda: 1, lambda *given: given]
    for answer in strange:
        said = wrong_with(name, answer)
        assert said is None or said.strip(), answer


def test_a_list_stands_for_an_array_or_a_set():
    norms = answer_of(of_lesson(1)[2].solution, "1.3")
    assert wrong_with("1.3", norms.tolist()) is None and "shape (1,)" in wrong_with("1.3", (1.0,))
    assert wrong_with("4.1", [0, 2]) is None and wrong_with("4.1", np.array([0, 2])) is None
    assert wrong_with("4.1", [[0], [2]]).startswith("The answer is a set; this is [[0], [2]] (list)")
    assert wrong_with("1.3", [[1], [1, 2]]).startswith("The answer is an array of numbers; ")


def test_hints_and_solutions_are_printed(capsys):
    hint("1.1")
    solution("1.1")
    out = capsys.readouterr().out
    assert out.startswith("Exercise 1.1: Count") and "answer = len(" in out


@pytest.mark.parametrize("name", ["1.9", "99.1", "1", "a", "", "1.a", "-1.1", "1.0", None, 1.7])
def test_an_unknown_exercise_is_one_line(name):
    with pytest.raises(nanopatch.NanopatchError, match="exercise"):
        check(name, None)


# ---- the command ------------------------------------------------------------------------------------


def test_the_command_lists_the_lessons(capsys):
    assert main(["lessons"]) == 0
    out = capsys.readouterr().out
    for lesson in lessons():
        assert re.search(rf"^ +{lesson.number} +{lesson.minutes} min +{re.escape(lesson.title)}$", out, re.MULTILINE)
    assert main(["lessons", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [lesson["number"] for lesson in listed] == [lesson.number for lesson in lessons()]


def test_the_command_writes_a_lesson_and_never_over_somebodys_answers(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lesson = find_lesson(2)
    script = tmp_path / lesson.path.name
    assert main(["lessons", "2"]) == 0
    assert script.read_text(encoding="utf-8") == lesson.text
    script.write_text("answer = 1")
    assert main(["lessons", "2"]) == 1
    assert script.read_text() == "answer = 1"
    assert main(["lessons", "2", "--notebook", "-o", "mine.ipynb"]) == 0
    assert (tmp_path / "mine.ipynb").read_text(encoding="utf-8") == lesson.notebook()
    out, err = capsys.readouterr()
    assert "wrote mine.ipynb" in out and err == (
        f"nanopatch: {script.name} is there already: give another name with -o, or remove it first\n"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["99"], "there is no lesson 99: they are 1 to "),
        (["0"], "there is no lesson 0: "),
        (["two"], "argument N: invalid int value"),
        (["--notebook"], "which lesson? Give its number"),
        (["1", "-o", "a.txt"], "the file name must end in one of .py"),
        (["1", "--notebook", "-o", "a.py"], "the file name must end in one of .ipynb"),
        (["1", "-o", "no/such/folder/a.py"], "no/such/folder"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    try:
        status = main(["lessons", *arguments])
    except SystemExit as ended:
        status = ended.code
    out, err = capsys.readouterr()
    assert status != 0 and out == "" and said in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_without_jupytext_it_is_said_what_to_install(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "jupytext", None)
    assert main(["lessons", "1", "--notebook"]) == 1
    assert capsys.readouterr().err == 'nanopatch: a notebook is made by jupytext: pip install "nanopatch[lessons]"\n'
    assert not list(tmp_path.iterdir())
