"""The page in Chromium as it is used: by keyboard and by link, saved and printed, in any light, width and script."""

import base64
import csv
import io
import json
from xml.etree import ElementTree

import matplotlib.image
import numpy as np
import pytest
from conftest import tiny_model

import nanopatch
from nanopatch import Experiment, sweep
from nanopatch.experiments import MICHELLE
from nanopatch.page.document import FOLDER
from nanopatch.page.pack import TYPES, pack

VIEWS = ("attention", "lens", "direct", "steps", "circuit")
CELL = 12  # of resid_pre: layer 1, position 1
PATCHED = f"#cell={CELL}&run=patched"


def test_nothing_is_asked_for_but_the_file(open_tab, file):
    tab = open_tab(file)
    tab.choose("#site", "z")
    tab.click_cell(13)
    tab.change(tab.page.check, "#scale-raw")
    for view in VIEWS:
        tab.view(view)
    assert tab.requests == [file] and tab.said == []


# ---- keyboard and screen reader -------------------------------------------------------------------

#: What can have the focus by Tab: of radio buttons, the chosen one.
REACHABLE = """() => {
  const kinds = "a[href], button, select, input, textarea, summary, [tabindex]";
  const tabbed = (one) => one.tabIndex >= 0 && !one.disabled && !(one.type === "radio" && !one.checked);
  return [...document.querySelectorAll(kinds)].filter((one) => tabbed(one) && one.getClientRects().length)
    .map((one) => one.id || one.outerHTML.slice(0, 80));
}"""
FOCUSED = """() => {
  const one = document.activeElement;
  return one === document.body ? null : one.id || one.outerHTML.slice(0, 80);
}"""
#: The roles of what must have a name for screen readers.
NAMED = {
    "button",
    "combobox",
    "textbox",
    "radio",
    "checkbox",
    "slider",
    "tab",
    "application",
    "image",
    "tablist",
    "region",
}


def test_tab_key_reaches_everything(open_tab, file):
    tab = open_tab(file + PATCHED)
    for view in VIEWS:
        tab.view(view)
        tab.evaluate("document.activeElement.blur()")
        tab.page.mouse.click(1, 1)  # the next Tab begins at the top
        wanted, reached = tab.evaluate(REACHABLE), []
        while not reached or reached[-1] is not None:
            tab.page.keyboard.press("Tab")
            reached.append(tab.evaluate(FOCUSED))
            assert len(reached) < 2 * len(wanted) + 20, "the focus never leaves the page"
        assert [name for name in reached if name in wanted] == wanted, "all of them, in the order of the document"


def test_everything_has_a_name(open_tab, file):
    tab = open_tab(file + PATCHED)
    session = tab.page.context.new_cdp_session(tab.page)
    for view in VIEWS:
        tab.view(view)
        tree = [node for node in session.send("Accessibility.getFullAXTree")["nodes"] if not node["ignored"]]
        nodes = [(node["role"]["value"], node.get("name", {}).get("value")) for node in tree]
        assert {"button", "combobox", "radio", "tab", "application"} <= {role for role, _ in nodes}
        assert not [role for role, name in nodes if role in NAMED and not name], view
        identities = tab.attributes("[id]", "id")
        assert len(identities) == len({*identities})
        references = tab.attributes("[for]", "for") + tab.attributes("[aria-controls]", "aria-controls")
        assert {*references} <= {*identities}


def test_arrow_keys_walk_the_heatmap_and_enter_patches(open_tab, file):
    tab, result = open_tab(file), sweep(nanopatch.load("nano"), MICHELLE)
    tab.page.focus("#heatmap")
    for key in (
        "ArrowDown",
        "ArrowDown",
        "ArrowRight",
        "ArrowUp",
        "ArrowDown",
        "ArrowUp",
    ):  # the first one shows where it is
        tab.page.keyboard.press(key)
    assert tab.spoken == ", ".join(tab.told)
    assert tab.spoken.startswith("layer 0, position 1, clean ␣Jones")
    tab.page.keyboard.press("ArrowDown")
    tab.press("Enter")
    assert tab.state == {"cell": str(CELL), "run": "patched"}
    assert tab.values("#number-line") == [result.grid[1, 1]]
    assert tab.evaluate("document.activeElement.id") == "heatmap", "the focus stays"
    tab.page.keyboard.press("End")
    assert "position 10" in tab.spoken
    tab.press(" ")
    assert tab.state["cell"] == "21"


def test_arrow_keys_choose(open_tab, file):
    tab = open_tab(file)
    tab.page.focus("#scale-normalised")
    tab.press("ArrowRight")
    assert tab.state == {"scale": "raw"} and tab.evaluate("document.activeElement.id") == "scale-raw"
    tab.page.focus("#tab-attention")
    for view in (*VIEWS[1:], "attention"):
        tab.press("ArrowRight")
        assert tab.evaluate("document.activeElement.id") == f"tab-{view}"
        assert tab.page.is_visible(f"#{view}")
    tab.page.focus("#head-0-0")
    tab.press("ArrowDown")
    assert tab.state["layer"] == "1" and tab.evaluate("document.activeElement.id") == "head-1-0"


# ---- links ----------------------------------------------------------------------------------------

#: What the eye sees of a page.
LOOK = """() => JSON.stringify([
  ...[...document.querySelectorAll(".view:not([hidden])")].map((view) => view.outerHTML),
  ...[...document.querySelectorAll(".view:not([hidden]) canvas")].map((canvas) => canvas.toDataURL()),
  ...[...document.querySelectorAll(".view:not([hidden]) :is(input, select)")].map((one) => [one.value, one.checked]),
])"""


def test_link_shows_the_same(open_tab, file):
    first = open_tab(file)
    first.choose("#site", "z")
    first.click_cell(13)
    first.change(first.page.check, "#scale-raw")
    first.view("attention")
    first.click("#head-2-1")
    first.view("steps")
    first.click("#steps-forward")
    second = open_tab(first.evaluate("location.href"))
    assert second.state == first.state
    for view in ("steps", "attention"):
        for tab in (first, second):
            tab.change(tab.evaluate, "location.hash = location.hash.replace(/view=\\w+/, '') + '&view=" + view + "'")
        assert second.evaluate(LOOK) == first.evaluate(LOOK)


LINKS = {
    "site=nowhere": "no site nowhere",
    "site=constructor": "no site constructor",
    "site=z&axes=layer,neuron": "no grid of z by layer,neuron",
    "direction=sideways&metric=beauty": "no metric beauty",
    "view=television": "no view television",
    "run=marathon&scale=richter": "no scale richter",
    "window=3": "no window 3",
    "cell=-1": "cell cannot be read",
    "constructor=1": "constructor cannot be read",
    "__proto__=1&toString=2": "toString cannot be read",
    "clean=Hello": "one experiment",
    "site=%00%ff%E0%A4%A&&==&%00": "no site",
    f"site={'x' * 50_000}&{'y' * 50_000}": "no site xxx",
    "layer=1&<script>alert(1)</script>": "cannot be read",
}


def test_link_to_what_is_not_there_says_so(open_tab, file):
    tab = open_tab(file)
    default = tab.values("#heatmap rect[data-value]")
    for link, sentence in LINKS.items():
        tab.change(tab.evaluate, "(link) => (location.hash = link)", link)
        assert sentence in tab.text("#page > .error") and len(tab.text("#page > .error")) < 400
        assert tab.page.is_visible("#page > .error")
        assert link.startswith("site=z") or tab.values("#heatmap rect[data-value]") == default
    tab.change(tab.page.check, "#scale-raw")
    assert not tab.page.is_visible("#page > .error"), "it is said until something is chosen"
    fresh = open_tab(f"{file}#site=%00nowhere&axes=a,b,c&cell=7&view=lens")
    assert "no site" in fresh.text("#page > .error") and fresh.values("#heatmap rect[data-value]") == default


def test_link_to_numbers_that_no_file_holds_says_so(open_tab, file):
    tab = open_tab(f"{file}#cell=99999&run=patched&layer=77&head=88&step=9999&token=5555&n=123456&shown=nothing")
    assert "nanopatch explore" in tab.text("#patch")
    for view in VIEWS:
        tab.view(view)
        assert "nanopatch explore" in tab.text(f"#{view}") or view == "steps"
    tab.view("lens")
    tab.change(tab.page.check, "#lens-run-clean")
    assert "no nothing" in tab.text("#lens")


# ---- files that are saved -------------------------------------------------------------------------


def test_heatmap_is_saved(open_tab, file, tmp_path):
    tab, result = open_tab(file), sweep(nanopatch.load("nano"), MICHELLE)
    button = "#save-nanopatch-logit_diff-resid_pre-"
    name, png = tab.save(f"{button}PNG")
    width, height = tab.evaluate("[heatmap.viewBox.baseVal.width, heatmap.viewBox.baseVal.height]")
    pixels = matplotlib.image.imread(io.BytesIO(png), format="png")
    assert name == "nanopatch-logit_diff-resid_pre.png" and pixels.shape[:2] == (int(2 * height), int(2 * width))
    assert len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0)) > 20, "cells have colours"

    name, svg = tab.save(f"{button}SVG")
    drawing = ElementTree.fromstring(svg)
    rects = [one for one in drawing.iter("{http://www.w3.org/2000/svg}rect") if one.get("data-value") is not None]
    assert [float(rect.get("data-value")) for rect in rects] == result.normalised.ravel().tolist()
    shown = tab.evaluate(
        """[...document.querySelectorAll("#heatmap rect[data-value]")].map((one) => getComputedStyle(one).fill)"""
    )
    assert [rect.get("fill") for rect in rects] == shown
    assert all(one.get("class") is None and "var(" not in str(one.attrib) for one in drawing.iter())
    assert "".join(drawing.itertext()).count("␣Jones / ␣Smith") == 1
    (tmp_path / "heatmap.svg").write_bytes(svg)
    alone = tab.page.context.new_page()  # it draws without the page's style sheet
    alone.goto((tmp_path / "heatmap.svg").as_uri())
    assert alone.locator("rect").nth(1).bounding_box()["width"] > 5

    name, text = tab.save(f"{button}CSV")
    rows = [*csv.DictReader(io.StringIO(text.decode("utf-8"), newline=""))]
    assert [float(row["logit_diff"]) for row in rows] == result.grid.ravel().tolist()
    assert [float(row["normalised"]) for row in rows] == result.normalised.ravel().tolist()
    assert [(row["layer"], row["position"]) for row in rows] == [(str(i), str(j)) for i in range(4) for j in range(11)]

    name, text = tab.save(f"{button}JSON")
    saved = json.loads(text)
    assert saved["values"] == result.grid.tolist() and saved["normalised"] == result.normalised.tolist()
    assert saved["base_value"] == result.base_value and saved["title"] == result.title


def test_program_is_saved(open_tab, file, capsys):
    tab = open_tab(f"{file}{PATCHED}")
    name, program = tab.save("#save-nanopatch-patch-Python")
    assert name == "nanopatch-patch.py" and program.decode("utf-8") == tab.text("#code")
    exec(compile(program, name, "exec"), {})
    difference = float(capsys.readouterr().out.splitlines()[0])
    np.testing.assert_allclose(difference, tab.values("#number-line")[0], rtol=1e-4)


def test_views_are_saved(open_tab, file):
    tab = open_tab(file)
    for view in ("attention", "lens", "direct", "circuit"):
        tab.view(view)
        check_downloads(tab, view)


def check_downloads(tab, view):
    buttons = [name for name in tab.attributes(f"#{view} .downloads button", "id")]
    saved = {button.rpartition("-")[2]: tab.save(f'[id="{button}"]')[1] for button in buttons}
    assert {"CSV", "JSON"} <= {*saved}
    names, *rows = csv.reader(io.StringIO(saved["CSV"].decode("utf-8"), newline=""))
    assert rows and all(len(row) == len(names) for row in rows)
    assert isinstance(json.loads(saved["JSON"]), dict)
    for kind in {"SVG", "PNG"} & {*saved}:
        if kind == "SVG":
            ElementTree.fromstring(saved[kind])
        else:
            assert matplotlib.image.imread(io.BytesIO(saved[kind]), format="png").size


# ---- looks ----------------------------------------------------------------------------------------

#: Texts that can be seen and whose contrast, as WCAG 2.2 defines it, is below 4.5. (The circuit's lie on its wires.)
CONTRASTS = """() => {
  const parse = (said) => (said.match(/[\\d.]+/g) ?? [0, 0, 0, 0]).map(Number).concat(1).slice(0, 4);
  const over = ([r, g, b, a], below) => [r, g, b].map((channel, i) => a * channel + (1 - a) * below[i]);
  const linear = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const ground = (one) => {
    if (!one) return parse(getComputedStyle(document.body).backgroundColor).slice(0, 3);
    const own = parse(getComputedStyle(one).backgroundColor);
    return own[3] === 1 ? own.slice(0, 3) : over(own, ground(one.parentElement));
  };
  const behind = (text) => {
    const holds = ({ baseVal: { value: at } }, { baseVal: { value: size } }, of) => at <= of && of <= at + size;
    const [x, y] = [Number(text.getAttribute("x")), Number(text.getAttribute("y")) - 4];
    const cells = [...text.ownerSVGElement.querySelectorAll("rect[data-value]")];
    const cell = cells.find((rect) => holds(rect.x, rect.width, x) && holds(rect.y, rect.height, y));
    return parse(getComputedStyle(cell).fill).slice(0, 3);
  };
  const found = [];
  for (const one of document.querySelectorAll("body *")) {
    const text = [...one.childNodes].filter((node) => node.nodeType === 3).map((node) => node.data).join("").trim();
    if (!text || !one.checkVisibility()) continue;
    if (one.closest(".unseen, script, style, option, .circuit-graph, label:has(:disabled)")) continue;
    const style = getComputedStyle(one), drawn = one instanceof SVGElement;
    const below = one.matches(".inside") ? behind(one) : ground(drawn ? one.ownerSVGElement.parentElement : one);
    const ink = light(over(parse(drawn ? style.fill : style.color), below)), paper = light(below);
    const contrast = (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
    if (contrast < 4.5) found.push(`${contrast.toFixed(2)} ${one.tagName} ${one.getAttribute("class")} ${text}`);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(open_tab, file, scheme):
    tab = open_tab(file + PATCHED, color_scheme=scheme)
    paper = tab.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert max(paper) < 60 if scheme == "dark" else min(paper) > 240
    for view in VIEWS:
        tab.view(view)
        assert tab.evaluate(CONTRASTS) == [], view


def test_another_scheme_is_followed_at_once(open_tab, file):
    tab = open_tab(file, color_scheme="light")
    colours = "[...document.querySelectorAll('#heatmap rect[data-value]')].map((one) => one.getAttribute('fill'))"
    before = tab.evaluate(colours)
    tab.change(tab.page.emulate_media, color_scheme="dark")
    assert tab.evaluate(colours) != before


#: What is cut off: wider than the window, and in no box that scrolls.
CUT_OFF = """() => [...document.querySelectorAll("#page *")].filter((one) => {
  if (!one.checkVisibility() || one.closest(".unseen")) return false;
  const scrolls = (box) => box !== null && (getComputedStyle(box).overflowX === "auto" || scrolls(box.parentElement));
  const { left, right, width } = one.getBoundingClientRect();
  return width > 0 && (right > innerWidth + 1 || left < -1) && !scrolls(one.parentElement);
}).map((one) => `${one.tagName} ${one.id} ${one.getAttribute("class")}`)"""


@pytest.mark.parametrize("width", [360, 1280, 2560])
def test_page_fits_its_window(open_tab, file, width):
    tab = open_tab(f"{file}{PATCHED}", width=width)
    for view in VIEWS:
        tab.view(view)
        assert tab.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), view
        assert tab.evaluate(CUT_OFF) == [], view


def test_print_is_light_and_whole(open_tab, file):
    tab = open_tab(f"{file}{PATCHED}", color_scheme="dark")
    assert tab.page.pdf().startswith(b"%PDF")
    tab.page.emulate_media(media="print", color_scheme="dark")
    tab.change(tab.evaluate, "dispatchEvent(new Event('beforeprint'))")
    paper, ink = (tab.evaluate(f"getComputedStyle(document.body).{name}") for name in ("backgroundColor", "color"))
    assert (paper, ink) == ("rgb(255, 255, 255)", "rgb(0, 0, 0)")
    assert not tab.page.is_visible("#site") and tab.page.is_visible("#heatmap")
    assert tab.evaluate(CONTRASTS) == []


# ---- odd text and sizes ---------------------------------------------------------------------------

ODD = "<script>alert(1)</script><!-- $x$ \"quoted\" 'so' <b>&amp; ${z} ``"
ODD += " 👩‍👧 مرحبا שלום\n\tone\u00a0two\u200bthree\u202efour"


def test_text_is_only_text(open_tab, tmp_path, capsys):
    model = nanopatch.load("nano")
    experiment = Experiment(f"{ODD} Jones", f"{ODD} Smith", " Jones", " Smith")
    nanopatch.make_page(model, experiment, "z").save(tmp_path / "odd.html")
    tab = open_tab((tmp_path / "odd.html").as_uri() + PATCHED)
    assert tab.texts("#prompts .token.clean") == [
        seen(token) for token in model.token_strings(model.tokenize(experiment.clean))
    ]
    for view in ("attention", "lens", "steps"):  # those that show tokens
        tab.view(view)
        assert len(tab.text(f"#{view}")) > 50
    assert tab.evaluate("document.querySelectorAll('script:not(.chunk)').length") == 2  # the data, and the page's own
    exec(tab.text("#code"), {})
    difference = float(capsys.readouterr().out.splitlines()[0])
    np.testing.assert_allclose(difference, tab.values("#number-line")[0], rtol=1e-3)


def seen(token):
    """A token as the page shows it: what cannot be seen is made visible."""
    marks = {" ": "␣", "\n": "↵", "\t": "⇥"}
    return "".join(marks.get(c, c if c.isprintable() else f"\\u{{{ord(c):x}}}") for c in token)


def test_prompt_of_900_tokens(open_tab, tmp_path):
    model = tiny_model(n_layer=1, n_head=1, n_positions=1024, dtype=np.float32)
    clean, corrupted = np.random.default_rng(0).integers(0, 29, (2, 900))
    corrupted[:890] = clean[:890]
    experiment = Experiment(clean, corrupted, 3, 7)
    nanopatch.make_page(model, experiment, "z").save(tmp_path / "long.html")
    tab = open_tab((tmp_path / "long.html").as_uri() + "#cell=0&run=patched")
    assert len(tab.texts("#prompts .token.clean")) == 900
    for view in ("lens", "steps"):  # attention was first
        tab.view(view)
        assert tab.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), view
    tab.view("lens")
    tab.page.locator("#lens-map").hover(position={"x": 300, "y": 40})
    assert tab.told
    tab.page.keyboard.press("Escape")
    result = sweep(model, experiment)
    result.save(tmp_path / "sweep.html")
    tab = open_tab((tmp_path / "sweep.html").as_uri())
    tab.page.focus("#heatmap")
    for key in ("ArrowDown", "ArrowDown", "End"):
        tab.page.keyboard.press(key)
    assert "position 899" in tab.spoken
    assert np.isfinite(result.grid).all()


def test_heatmap_of_12_layers_and_64_positions(open_tab, tmp_path):
    model = tiny_model(n_layer=12, n_positions=64)
    clean, corrupted = np.random.default_rng(0).integers(0, 29, (2, 64))
    result = sweep(model, Experiment(clean, corrupted, 3, 7))
    result.save(tmp_path / "wide.html")
    tab = open_tab((tmp_path / "wide.html").as_uri())
    assert tab.values("#heatmap rect[data-value]") == result.normalised.ravel().tolist()
    tab.page.locator("#heatmap rect[data-value]").nth(12 * 64 - 1).hover()
    assert tab.told[:2] == ["layer 11", "position 63"]


# ---- replies as bytes -----------------------------------------------------------------------------


def test_unpack_reads_what_pack_writes(chromium):
    everything = np.arange(2**16, dtype=np.uint16)  # every float16 there is
    arrays = {"f2": everything.view(np.float16).reshape(256, 256)}
    for name, dtype in TYPES.items():
        if name != "f2":
            arrays[name] = (
                np.random.default_rng(0).integers(0, 256, (3, 5, dtype.itemsize), np.uint8).view(dtype)[..., 0]
            )
    arrays |= {
        "odd": np.array([np.nan, np.inf, -np.inf, -0.0, 5e-324, 0.1]),
        "none": np.zeros((0, 3)),
        "one": np.array(1.5),
    }
    reply = pack("the key", {"text": "é😀</script>", "n": 3, "nothing": None}, arrays)
    module = (FOLDER / "unpack.js").read_text(encoding="utf-8")
    page = chromium.new_context(offline=True).new_page()
    found = page.evaluate(  # long lists are slow to hand over, texts are not
        """async ([module, bytes]) => {
          const { unpack } = await import(`data:text/javascript,${encodeURIComponent(module)}`);
          const reply = unpack(Uint8Array.from(atob(bytes), (mark) => mark.charCodeAt(0)));
          const said = (value) => (Object.is(value, -0) ? "-0" : String(value));
          return JSON.stringify(Object.fromEntries(Object.entries(reply).map(([name, value]) =>
            [name, value?.data ? { shape: value.shape, data: [...value.data].map(said) } : value])));
        }""",
        [module, base64.b64encode(reply).decode()],
    )
    found = json.loads(found)
    page.context.close()
    assert {name: found.pop(name) for name in ("key", "text", "n", "nothing")} == {
        **{"key": "the key", "text": "é😀</script>", "n": 3, "nothing": None}
    }
    assert {*found} == {*arrays}
    for name, array in arrays.items():
        assert found[name]["shape"] == [*array.shape]
        values = np.array([float(said.replace("Infinity", "inf")) for said in found[name]["data"]])
        np.testing.assert_array_equal(values, array.ravel().astype(np.float64))
        np.testing.assert_array_equal(np.signbit(values), np.signbit(array.ravel()) & ~np.isnan(values))
