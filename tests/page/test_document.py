"""The page's files, and the one file that holds them all."""

import base64
import gzip
import hashlib
import json
import re
from pathlib import Path

import pytest

import nanopatch
from nanopatch import NanopatchError
from nanopatch.page import document
from nanopatch.page.document import FOLDER, file_page, live_files
from nanopatch.page.pack import pack, unpack

MODULES = sorted(FOLDER.glob("*.js"))


def start_of(html):
    return json.loads(re.search(r'<script type="application/json" id="start">(.*?)</script>', html, re.DOTALL)[1])


def replies_of(html):
    """{key: unpacked reply} of a file page."""
    texts = re.findall(r'<script type="application/octet-stream" class="chunk">(.*?)</script>', html)
    index, *chunks = (gzip.decompress(base64.b64decode(text)) for text in texts)
    return {key: unpack(chunks[i - 1][at : at + n]) for key, (i, at, n) in json.loads(index).items()}


def test_the_page_without_data_is_small():
    assert len(file_page({}, [])) <= 250_000


def test_a_file_holds_every_reply_under_its_key():
    chunks = [
        {"a": pack("a", {"x": 1}), "b": pack("b", {"x": "</script><script>alert(1)"})},
        {"c": pack("c", {"x": "é😀"})},
    ]
    html = file_page({"text": "</script><!--", "n": 1}, chunks).decode("utf-8")
    assert start_of(html) == {"text": "</script><!--", "n": 1}
    assert {key: reply["x"] for key, reply in replies_of(html).items()} == {
        "a": 1,
        "b": "</script><script>alert(1)",
        "c": "é😀",
    }
    assert "alert(1" not in html


def test_a_file_can_run_its_own_script_only_and_request_nothing():
    html = file_page({}, []).decode("utf-8")
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)[1]
    script = re.search(r'<script type="module">(.*?)</script>', html, re.DOTALL)[1]
    style = re.search(r"<style>(.*?)</style>", html, re.DOTALL)[1]
    for what, text in (("script-src", script), ("style-src", style)):
        digest = base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode()
        assert f"{what} 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'") and "connect-src" not in policy and "http" not in policy
    assert html.index("Content-Security-Policy") < html.index("<style>")
    assert not re.search(r'(src|href)="', html.replace('href="data:', "")), "it names another file"
    assert "\nimport " not in script and "\nexport " not in script


def test_every_module_and_style_is_part_of_the_page():
    files = live_files({})
    assert {path.name for path in FOLDER.iterdir() if path.suffix in (".js", ".css")} == {*files} - {""}
    page = files[""][1].decode("utf-8")
    for name in document.STYLES:
        assert f'<link rel="stylesheet" href="{name}">' in page


def test_no_two_modules_give_one_name_to_different_things():
    """They become one script in a file."""
    seen = {}
    declared = re.compile(
        r"^(?:export )?(?:async )?(?:function\*?|const|let|class) (\{[^}]*\}|\[[^\]]*\]|\w+)", re.MULTILINE
    )
    for path in MODULES:
        for names in declared.findall(path.read_text(encoding="utf-8")):
            for name in re.findall(r"\w+", names):
                assert name not in seen, f"{name} in {path.name} and {seen[name]}"
                seen[name] = path.name
    assert len(seen) > 50


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_modules_are_as_the_document_expects(path):
    text = path.read_text(encoding="utf-8")
    assert text.startswith("// "), "a module opens with what it is for"
    for line in re.findall(r"^.*\bimport\b.*$", text, re.MULTILINE):
        assert document.IMPORT.fullmatch(f"{line}\n") or line.lstrip().startswith(("//", "*")), line
    assert not re.search(r"^export (?!(async )?function\*? |const |class )", text, re.MULTILINE)
    assert "</script" not in text and not re.search(
        r"\b(innerHTML|outerHTML|insertAdjacentHTML|eval|document\.write)\b", text
    )
    assert max(map(len, text.splitlines())) <= 200


def test_results_save_themselves_as_pages(tmp_path):
    model, michelle = nanopatch.load("nano"), nanopatch.experiments.MICHELLE
    run, edges = model.run(michelle.clean), nanopatch.edge_attribution(model, michelle)
    results = {
        "grid": nanopatch.sweep(model, michelle),
        "attention": nanopatch.attention(model, run),
        "lens": nanopatch.logit_lens(model, run, " Jones"),
        "direct": nanopatch.direct_logit_attribution(model, run, " Jones", " Smith"),
        "circuit": edges,
        "result": nanopatch.sweep(model, michelle, ["z", "q"]),
    }
    for view, result in results.items():
        result.save(tmp_path / "x.html")
        html = (tmp_path / "x.html").read_text(encoding="utf-8")
        start = start_of(html)
        assert view in start["views"] and start["model"]["name"] in ("nano", "")
        assert all("error" not in reply for reply in replies_of(html).values())
    averaged = nanopatch.sweep(model, nanopatch.tasks.capitals(3))
    averaged.save(tmp_path / "mean.html")
    (grid,) = (
        r for key, r in replies_of((tmp_path / "mean.html").read_text(encoding="utf-8")).items() if "sweep" in key
    )
    assert grid["values"].tolist() == averaged.grid.tolist()


def test_a_page_holds_what_its_menus_offer(tmp_path):
    model = nanopatch.load("nano")
    page = nanopatch.make_page(
        model, "capital", ["resid_pre", "z"], direction=["denoise", "noise"], metric=["logit_diff", "rank"]
    )
    page.save(tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    start, replies = start_of(html), replies_of(html)
    menu = start["menu"]
    assert menu["sites"] == ["resid_pre", "z"] and menu["metrics"] == ["logit_diff", "rank"]
    assert not [reply["error"] for reply in replies.values() if "error" in reply]
    views = [json.loads(key)["view"] for key in replies]
    assert views.count("sweep") == 2 * 2 * 2
    cells = 2 * (4 * 5 + 4 * 4)  # both directions; layers by positions, and by heads
    assert views.count("patch") == cells and views.count("lens") == cells + 2
    assert page._repr_html_().startswith("<iframe") and "<script" not in page._repr_html_()


def test_a_page_is_the_same_each_time():
    model = nanopatch.load("nano")
    assert nanopatch.make_page(model, "capital", "z").html == nanopatch.make_page(model, "capital", "z").html


def test_a_page_of_what_cannot_be_is_an_error(tmp_path):
    model = nanopatch.load("nano")
    unanswered = nanopatch.Experiment("The capital of France is", "The capital of Italy is")
    wrong_ones = [("nobody",), ([nanopatch.experiments.CAPITAL],), ("capital", "nowhere"), ("capital", ["z", "z"])]
    for wrong in [*wrong_ones, ("elon", "pattern"), (unanswered,), ("capital", [])]:
        with pytest.raises(NanopatchError):
            nanopatch.make_page(model, *wrong)
    with pytest.raises(NanopatchError, match="html"):
        nanopatch.make_page(model, "capital", "z").save(tmp_path / "page.htm")
    assert not list(Path(tmp_path).iterdir())
