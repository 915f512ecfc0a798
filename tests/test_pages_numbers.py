"""Numbers in sentences and tables of README.md and docs/ are what is computed."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

import nanopatch
from nanopatch.cli import main
from nanopatch.experiments import ELON, MICHELLE
from nanopatch.experiments.patch import SITE_AXES
from nanopatch.explore import answers
from nanopatch.explore.server import Server
from nanopatch.lessons.course import lessons
from nanopatch.page.document import file_page
from nanopatch.results import attention
from nanopatch.results.edges import counts
from nanopatch.verify import FLOAT32, FLOAT64

MODEL = nanopatch.load("nano")
#: Of a page in a sentence, words may stand on two lines.
PAGES = {path.name: " ".join(path.read_text("utf-8").split()) for path in [ROOT / "README.md", *ROOT.glob("docs/*.md")]}


def unpatched():
    return f"{nanopatch.sweep(MODEL, MICHELLE).baseline_corrupted:.3f}"


def pythons():
    setup = (ROOT / "setup.cfg").read_text("utf-8")
    versions = re.findall(r"Python :: (3\.\d+)$", setup, flags=re.MULTILINE)
    assert f"python_requires = >={versions[0]}" in setup
    return f"{versions[0]} to {versions[-1]}"


def numpys():
    (least,) = re.findall(r"numpy>=([\d.]+)", (ROOT / "setup.cfg").read_text("utf-8"))
    return least


def line_of_loop():
    lines = (ROOT / "scripts/step_through.py").read_text("utf-8").splitlines()
    return lines.index("    resid = model.block(layer, resid)") + 1


def minutes():
    return {10: "ten"}[round(float(np.mean([lesson.minutes for lesson in lessons()])))]


def pieces_of_code():
    section = (ROOT / "README.md").read_text("utf-8").partition("## A patch is an assignment")[2].partition("\n## ")[0]
    return {3: "three"}[section.count("```python")]


def empty_page():
    return round(len(file_page({}, [])) / 1e3)


def bits():
    server = Server(answers.Answers(MODEL), 0)
    server.server_close()
    return 6 * len(server.token)  # a character of base64 is six bits


#: (page, what it says with {} for the number, what the number is). `docs/speed.md`'s times are of scripts/benchmark.py.
SAID = [
    ("README.md", "a real GPT-2 of {} layers", lambda: MODEL.n_layer),
    ("README.md", "layers and {} heads", lambda: MODEL.n_head),
    ("README.md", "Without the assignment the same script prints {}.", unpatched),
    ("README.md", "lists the lessons, about {} minutes each", minutes),
    ("README.md", "Python {}, NumPy", pythons),
    ("README.md", ", NumPy {} and 2.", numpys),
    ("index.md", "the idea in {} pieces of code", pieces_of_code),
    ("index.md", "take the lessons, each about {} minutes", minutes),
    ("debugger.md", "works with Python {}.", pythons),
    ("debugger.md", "Line {} is `resid = model.block(layer, resid)`", line_of_loop),
    ("debugger.md", "Without the assignment the same script prints {}.", unpatched),
    ("page.md", "drawn in at most {} columns", lambda: answers.MOST_COLUMNS),
    ("page.md", "So are patterns of more than {} tokens", lambda: attention.MOST_TOKENS),
    ("page.md", "circuits of {}, ... and all edges", lambda: ", ".join(map(str, counts(21)[:3]))),
    ("page.md", "a random token of {} bits", bits),
    ("page.md", "The page weighs {} KB without data", empty_page),
    (
        "verified.md",
        "In float64 each may differ by {} of its largest value",
        lambda: f"{FLOAT64:.0e}".replace("e-0", "e-"),
    ),
    ("verified.md", "in float32 by {} times the rounding error", lambda: FLOAT32),
    ("speed.md", "`resid_pre` sweep, {} patches", lambda: 12 * len(MODEL.tokenize(MICHELLE.clean))),
    ("speed.md", "`z` sweep, {} heads", lambda: 12 * 12),
    ("speed.md", "the prompt has {} tokens", lambda: len(MODEL.tokenize(MICHELLE.clean))),
    ("speed.md", "attribution of all {} sites", lambda: len(SITE_AXES)),
    ("speed.md", "| the page without data | {} KB |", empty_page),
]


@pytest.mark.parametrize(("page", "said", "number"), SAID, ids=[f"{page}: {said}" for page, said, _ in SAID])
def test_a_number_is_what_is_computed(page, said, number):
    assert said.format(number()) in PAGES[page], said.format(number())


def test_a_page_is_as_large_as_said():
    """Within four hundredths: what is packed depends on how the processor rounds (OpenBLAS kernels differ by 3)."""
    (few, all_sites) = re.search(r"every site \| (\S+) / (\S+) MB", PAGES["speed.md"]).groups()
    for said, sites in ((few, ["resid_pre", "z", "mlp_out"]), (all_sites, list(SITE_AXES))):
        assert len(nanopatch.make_page(MODEL, MICHELLE, sites).html) / 1e6 == pytest.approx(float(said), rel=0.04)


def test_what_is_said_of_heads_and_of_normalised_values():
    """questions.md: 0.0 looks at the current token and matters most. teaching.md: ELON has values beyond 0 and 1."""
    assert "0.0 looks at the current token only, and matters most" in PAGES["questions.md"]
    scores, effect = nanopatch.head_scores(MODEL), nanopatch.ablate(MODEL, MICHELLE, "z").normalised
    assert scores.current_token[0, 0] > 0.9 and np.abs(effect).argmax() == 0
    assert "one above 1 and one below 0: `ELON` in lesson 2" in PAGES["teaching.md"]
    shown = nanopatch.sweep(MODEL, ELON).normalised
    assert np.nanmax(shown) > 1 and np.nanmin(shown) < 0


def test_shapes_of_arrays_are_those_of_the_table():
    run, n_tokens = MODEL.run(MICHELLE.clean), 11
    sizes = dict(n_layer=4, n_tokens=n_tokens, n_query=n_tokens, n_key=n_tokens, n_head=4, d_head=32)
    sizes |= dict(d_model=128, d_mlp=512, n_vocab=50257)
    rows = re.findall(r"^\| (`.*?) \| (\(.*?) \| ", (ROOT / "docs/arrays.md").read_text("utf-8"), flags=re.MULTILINE)
    seen = set()
    for names, shapes in rows:
        names, shapes = re.findall(r"`(\w+)`", names), re.findall(r"\((.*?)\)", shapes)
        for i, name in enumerate(names):
            shape = shapes[i if len(shapes) > 1 else 0]
            assert run[name].shape == tuple(sizes[axis] for axis in shape.split(", ")), name
            seen.add(name)
    assert seen == set(run.names)


def test_calls_in_the_table_of_questions_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pair = {"clean": MICHELLE.clean, "corrupted": MICHELLE.corrupted, "answer": " Jones", "wrong_answer": " Smith"}
    Path("pairs.jsonl").write_text(json.dumps(pair) + "\n", "utf-8")
    page = (ROOT / "docs/questions.md").read_text("utf-8")
    names = {"nanopatch": nanopatch, "sweep": nanopatch.sweep, "metrics": nanopatch.metrics, "model": MODEL}
    names |= {"michelle": MICHELLE, "run": MODEL.run(MICHELLE.clean), "layer": 1, "head": 0}
    names |= {"prompt": MICHELLE.clean, "n_tokens": 2}
    calls = re.findall(r"`((?:nanopatch|run|metrics)\.\w+\(.*?\))`", page.partition("| to ask |")[2])
    assert len(calls) >= 14
    for call in calls:
        assert eval(call, names) is not None, call


def test_the_pdb_stop_that_needs_no_line_number():
    """docs/debugger.md: `break model.block_steps`, typed after a stop in the script."""
    typed = [f"break {line_of_loop()}", "continue", "break model.block_steps", "continue", "quit"]
    command = [sys.executable, "-m", "pdb", "scripts/step_through.py"]
    done = subprocess.run(command, input="\n".join(typed), capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert "block_steps()" in done.stdout and "break model.block_steps" in PAGES["debugger.md"]


def test_the_programs_of_models_md_run(tmp_path, monkeypatch):
    """Its indented blocks, on a nanoGPT checkpoint of ours, whose characters are fewer than Shakespeare's."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "data/shakespeare_char").mkdir(parents=True)
    names = ROOT / "tests/reference/names_nanogpt"
    shutil.copy(names / "ckpt.pt", "out/ckpt.pt")
    shutil.copy(names / "meta.pkl", "data/shakespeare_char/meta.pkl")
    blocks = re.findall(r"(?<=\n\n)(?:    .+\n)+", (ROOT / "docs/models.md").read_text("utf-8"))
    load, vocab, commands = ([line.strip() for line in block.splitlines()] for block in blocks)
    scope = {"nanopatch": nanopatch, "text": "abcde", "json": json, "Path": Path}
    exec("\n".join([*load, *vocab]), scope)
    assert scope["model"].n_layer == 2 and (tmp_path / "out/vocab.json").exists()
    convert, top = (command.split() for command in commands)
    assert main(convert[1:]) == 0
    assert top[:4] == ["nanopatch", "top", "--model", "my-model"]
    assert main(["top", "--model", "my-model", "ab"]) == 0
