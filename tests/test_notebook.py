"""In a notebook: the README's calls in a fresh kernel, without a browser; and what shows itself there."""

import os
import re
import subprocess
import sys
from html import unescape
from pathlib import Path

import nbformat
import numpy as np
import pytest
from conftest import tiny_model

import nanopatch
from nanopatch import Experiment, experiments
from nanopatch.notebook import html_table

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)

# Each ends in a value, which the notebook shows.
SHOWN = {
    "model": "model",
    "run": "clean",
    "experiment": "michelle",
    "sweep": "result",
    "panels": 'sweep(model, michelle, ["resid_pre", "z"])',
    "comparison": 'nanopatch.Comparison(sweep(model, michelle, "z"), attribute(model, michelle, "z"))',
    "edges": "nanopatch.edge_attribution(model, michelle)",
    "saliency": "nanopatch.saliency(model, michelle)",
    "figure": "result.plot()",
    "table": "print(result)",
    "loop": "from matplotlib import pyplot\nfor _ in range(12):\n    result.plot()",
    "after the loop": "print(pyplot.get_fignums())",
}
# 44 patches, of which each takes at least 0.03 s to measure: the bar, which waits for a second, must appear.
SLOW = """
import time
def slow(logits):
    time.sleep(0.03)
    return float(logits[-1, jones] - logits[-1, smith])
sweep(model, {what}, {site}, metric=slow)
None
"""
BARS = {
    "bar": SLOW.format(what="michelle", site='"resid_pre"'),
    "bars in a bar": SLOW.format(what="[michelle, experiments.JESSICA]", site='["resid_pre", "attn_out", "mlp_out"]'),
    "no bar": "sweep(model, michelle)\nNone",
}

EXECUTE = """
import sys, nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], as_version=4)
NotebookClient(notebook, kernel_name="python3", timeout=300).execute()
nbformat.write(notebook, sys.argv[1])
"""


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """{name: [output, ...]} of each cell of a notebook that was executed in a fresh kernel."""
    folder = tmp_path_factory.mktemp("notebook")
    cells = {f"README {number}": block for number, block in enumerate(BLOCKS)} | SHOWN | BARS
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in cells.values()])
    nbformat.write(notebook, folder / "readme.ipynb")
    folders = {name: str(folder) for name in ("HOME", "IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR")}
    done = subprocess.run(
        [sys.executable, "-c", EXECUTE, "readme.ipynb"],
        cwd=folder,
        env=os.environ | folders | {"PYTHONBREAKPOINT": "0"},  # nobody is there to type at a breakpoint
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    executed = nbformat.read(folder / "readme.ipynb", as_version=4)
    return {name: cell.outputs for name, cell in zip(cells, executed.cells, strict=True)}


def shown(outputs):
    """What the last output of a cell is, by MIME type."""
    return outputs[-1]["data"]


def written(outputs, stream):
    streams = [output for output in outputs if output["output_type"] == "stream"]
    return "".join(output["text"] for output in streams if output["name"] == stream)


def text_of(html):
    return re.sub(r" +", " ", unescape(re.sub(r"<[^>]*>", " ", html)))


def test_the_calls_of_the_readme_run_without_a_word_on_stderr(outputs):
    for name in outputs:
        if name not in BARS:
            said = re.sub(r"\r[^\r\n]*", "", written(outputs[name], "stderr"))  # a bar, if the machine was slow
            assert said == "", name


@pytest.mark.parametrize("name", ["sweep", "panels", "comparison", "edges", "saliency", "figure"])
def test_results_are_pictures(outputs, name):
    assert shown(outputs[name])["image/png"].startswith("iVBORw0KGgo")  # base64 of PNG's first bytes
    assert "text/plain" in shown(outputs[name])


def test_a_loop_shows_every_picture_and_keeps_none(outputs):
    assert [output["data"]["image/png"][:11] for output in outputs["loop"]] == ["iVBORw0KGgo"] * 12
    assert written(outputs["after the loop"], "stdout") == "[]\n"


def test_a_printed_result_is_a_table(outputs):
    lines = written(outputs["table"], "stdout").splitlines()
    assert any("␣Jones" in line for line in lines)
    assert len(lines) > 11  # a row for each position


def test_a_model_shows_its_sizes(outputs):
    assert " ".join(text_of(shown(outputs["model"])["text/html"]).split()) == (
        "Model nano n_layer 4 n_head 4 d_model 128 d_head 32 d_mlp 512 n_ctx 128 n_vocab 50257 dtype float32 "
        "weights 7,242,624"
    )


def test_a_run_shows_its_tokens_the_likeliest_next_tokens_and_its_shapes(outputs):
    text = text_of(shown(outputs["run"])["text/html"])
    assert "Run of nano" in text
    assert "0 Michelle 1 ␣Jones 2 ␣was 3 ␣a 4 ␣top 5 - 6 not 7 ch 8 ␣student 9 . 10 ␣Michelle" in text
    assert "likeliest next tokens ␣Jones 99.0%" in text
    assert "q, k, v, z (4, 11, 4, 32)" in text and "logits (11, 50257)" in text


def test_an_experiment_shows_its_prompts_and_answers(outputs):
    text = text_of(shown(outputs["experiment"])["text/html"])
    assert "clean 'Michelle Jones was a top-notch student. Michelle'" in text
    assert "wrong_answer ' Smith'" in text


def test_what_takes_over_a_second_has_a_progress_bar_as_text(outputs):
    bar = written(outputs["bar"], "stderr")
    assert re.search(r"\r *\d+%\|.*\| \d+/44 \[.* patches/s\]", bar)
    assert all(output["output_type"] == "stream" for output in outputs["bar"])  # no widget
    assert bar.endswith("\r")  # in the end the line is empty
    assert outputs["no bar"] == []


def test_bars_inside_a_bar_take_one_line(outputs):
    bars = written(outputs["bars in a bar"], "stderr")
    assert "pairs" in bars and "patches" in bars
    assert "\n" not in bars and "\x1b" not in bars


# ---- HTML -------------------------------------------------------------------------------------------


def test_text_is_not_read_as_html_nor_as_a_formula():
    html = html_table("a < b", [("<b>", "<script>alert('$x$ & &amp;')</script>")])
    assert "<script" not in html and "<b>" not in html
    assert " ".join(text_of(html).split()) == "a < b <b> <script>alert('$x$ & &amp;')</script>"
    assert "mathjax_ignore" in html and "tex2jax_ignore" in html  # what MathJax 3 and 2 leave alone


def test_spaces_of_an_answer_are_seen():
    html = Experiment("a  b", [1, 2], " Jones", 7)._repr_html_()
    assert "'a  b'" in unescape(html) and "' Jones'" in unescape(html) and "white-space: pre-wrap" in html
    assert "corrupted [1, 2] answer" in text_of(html)


def test_tokens_that_are_markup_or_part_of_a_character_are_shown_as_they_are():
    run = nanopatch.load("nano").run("<b> & 😀\n", sites="z")
    html = run._repr_html_()
    assert "<b>" not in html
    assert r"0 < 1 b 2 > 3 ␣& 4 ␣\xf0\x9f\x98 5 \x80 6 \n" in text_of(html)
    assert "likeliest" not in html  # logits were not recorded


def test_a_batch_and_a_long_prompt_are_shown_in_part():
    model = tiny_model(n_positions=100)
    text = text_of(model.run(np.arange(600).reshape(6, 100) % 29)._repr_html_())
    assert "tokens of prompt 3 " in text and "tokens of prompt 4 " not in text and "prompts 6 in all" in text
    assert "19 #19 … 60 more … 80 #" in text
    assert text.count("likeliest next tokens of prompt") == 4


def test_runs_that_lack_something_show_the_rest():
    model = nanopatch.load("nano")
    run = model.run(experiments.MICHELLE.clean)
    gradient = text_of(model.backward(run, np.ones_like(run.logits))._repr_html_())
    assert "Run of derivatives" in gradient and "likeliest" not in gradient
    by_hand = model.steps_from(0, model.embed("Michelle Jones"))  # which knows neither tokens nor model
    recorded = text_of(nanopatch.record(by_hand, sites=["z", "logits"])._repr_html_())
    assert "tokens" not in recorded.replace("likeliest next tokens", "") and "z (4, 2, 4, 32)" in recorded
    assert re.search(r"likeliest next tokens #\d+ \d", recorded)  # no model, so no texts
    assert str(nanopatch.record(model.steps("Michelle Jones"), sites=["z", "ln_final"])).splitlines() == [
        "Run of nano",
        "tokens: 0 Michelle  1 ␣Jones",
        "z: (4, 2, 4, 32)",
        "ln_final: (2, 128)",
    ]
    assert "\nlikeliest next tokens: ␣Jones" in str(run) and str(run).count("\n") == 8
    loop = text_of(nanopatch.record(model.steps("Michelle Jones"), sites="z")._repr_html_())
    assert "Run of nano tokens 0 Michelle 1 ␣Jones" in loop
