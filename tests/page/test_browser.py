"""The page as a file, in Chromium without a network: what it shows is what the library computes.

Numbers are read back from the page. Grids and scores must be the library's to the last bit; patterns and changes lie in
the file as float16, which keeps three digits.
"""

import functools

import numpy as np
import pytest

import nanopatch
from nanopatch import sweep
from nanopatch.experiments import MICHELLE
from nanopatch.explore.pair import DRAWN
from nanopatch.lenses.change import relative_change
from nanopatch.results.edges import counts

HALF = dict(rtol=2**-10, atol=2**-14)  # float16, and the last bits of a patched run that runs in a batch with others
SINGLE = dict(rtol=1e-4, atol=1e-6)  # float32 numbers behind a softmax, from a run in a batch

#: Cells that are clicked: the site and what the grid's axes are, the cell's number, and the patch by hand.
CLICKED = {
    "resid_pre": 12,  # layer 1, position 1: the grid has 11 columns
    "z": 13,  # layer 3, head 1: 4 columns
}


@functools.cache
def nano():
    return nanopatch.load("nano")


@functools.cache
def patched_by_hand(site):
    """The run of CLICKED[site], patched by plain assignment: all its arrays."""
    model, clean = nano(), nano().run(MICHELLE.clean)
    arrays = {}
    for step in model.steps(MICHELLE.corrupted):
        if site == "resid_pre" and (step.name, step.layer) == ("resid_pre", 1):
            step.array[1] = clean.resid_pre[1, 1]
        if site == "z" and (step.name, step.layer) == ("z", 3):
            step.array[:, 1] = clean.z[3, :, 1]
        arrays.setdefault(step.name, []).append(np.array(step.array))
    finals = {name: arrays.pop(name)[0] for name in ("ln_final", "logits")}
    return nanopatch.Run({**{name: np.stack(of) for name, of in arrays.items()}, **finals}, clean_ids(), model)


def clean_ids():
    return nano().tokenize(MICHELLE.corrupted)


@functools.cache
def runs():
    """{name: run} of the runs that views show; "patched" is the clicked cell of resid_pre."""
    return {
        "clean": nano().run(MICHELLE.clean),
        "corrupted": nano().run(MICHELLE.corrupted),
        "patched": patched_by_hand("resid_pre"),
    }


def shown(number):
    """A number with six digits, as tables of the page show it."""
    return float(number.replace("−", "-").replace("∞", "inf").replace("–", "nan"))


def top_ten(logits):
    """(ids, logits, probabilities) of the ten largest of the last row. logits: (n_tokens, n_vocab)."""
    last = logits[-1].astype(np.float64)
    ids = np.argsort(-last)[:10]
    return ids, last[ids], np.exp(last[ids] - last.max()) / np.exp(last - last.max()).sum()


# ---- the heatmap ----------------------------------------------------------------------------------


@pytest.mark.parametrize("site", CLICKED)
def test_heatmap_shows_the_sweep(open_tab, file, site):
    tab, result = open_tab(file), sweep(nano(), MICHELLE, site)
    if site != "resid_pre":
        tab.choose("#site", site)
    assert tab.values("#heatmap rect[data-value]") == result.normalised.ravel().tolist()
    tab.change(tab.page.check, "#scale-raw")
    assert tab.values("#heatmap rect[data-value]") == result.grid.ravel().tolist()
    assert tab.text("#grid .title") == result.title
    names, *rows = tab.table("heatmap-table")
    np.testing.assert_allclose([[shown(cell) for cell in row[1:]] for row in rows], result.grid, rtol=1e-5)
    assert len(names) == result.grid.shape[1] + 1


def test_pointer_is_told_what_a_cell_is(open_tab, file):
    tab, result = open_tab(file), sweep(nano(), MICHELLE)
    cells = tab.page.locator("#heatmap rect[data-value]")
    cells.nth(12).hover()
    assert tab.told == [
        "layer 1",
        "position 1",
        "clean ␣Jones   corrupted ␣Smith",
        f"logit diff {round(result.grid[1, 1], 4 - len(str(int(abs(result.grid[1, 1])))))}".replace("-", "−"),
        f"normalised {float(f'{result.normalised[1, 1]:.4g}')}",
    ]
    cells.nth(0).hover()
    assert tab.told[1:3] == ["position 0", "clean Michelle   corrupted Michelle"]
    assert tab.told[-1] == "a patch here cannot change the metric"
    tab.page.mouse.move(2, 2)
    assert tab.told == []


# ---- the patch ------------------------------------------------------------------------------------


@pytest.mark.parametrize("site", CLICKED)
def test_click_shows_what_model_steps_gives(open_tab, file, site, capsys):
    tab, model, result = open_tab(file), nano(), sweep(nano(), MICHELLE, site)
    if site != "resid_pre":
        tab.choose("#site", site)
    tab.click_cell(CLICKED[site])
    answer, wrong = (int(model.tokenize(text)[0]) for text in (MICHELLE.answer, MICHELLE.wrong_answer))
    for when, logits in (("before", runs()["corrupted"].logits), ("after", patched_by_hand(site).logits)):
        ids, _, probabilities = top_ten(logits)
        texts = [nanopatch_visible(text) for text in model.token_strings(ids)]
        assert tab.texts(f"#top-{when} .bar-row bdi") == texts
        np.testing.assert_allclose(tab.values(f"#top-{when} .bar-row"), probabilities, **SINGLE)
        column = 0 if when == "before" else 3
        for role, token in (("answer", answer), ("wrong answer", wrong)):
            logit, _, rank = tab.values(f'#patch tr[data-role="{role}"] td')[column : column + 3]
            np.testing.assert_allclose(logit, logits[-1, token], **SINGLE)
            assert rank == (logits[-1] > logits[-1, token]).sum()
    assert tab.values("#number-line") == [result.grid.ravel()[CLICKED[site]]]
    logits = patched_by_hand(site).logits[-1]
    np.testing.assert_allclose(tab.values("#number-line"), logits[answer] - logits[wrong], **SINGLE)

    exec(tab.text("#code"), {})  # the lines run as they stand, and print the same
    difference, *lines = capsys.readouterr().out.splitlines()
    np.testing.assert_allclose(float(difference), tab.values("#number-line")[0], **SINGLE)
    assert [line.rpartition(" ")[0] for line in lines] == [
        repr(text) for text in model.token_strings(top_ten(patched_by_hand(site).logits)[0])
    ]


def nanopatch_visible(token):
    """A token of plain text as the page shows it."""
    return token.replace(" ", "␣").replace("\n", "↵")


# ---- the views ------------------------------------------------------------------------------------


@pytest.fixture
def view_of(open_tab, file):
    """view_of(name, run) opens the page at a view of a run; the patched run is that of the clicked cell."""

    def opened(name, run, **more):
        state = {"view": name, "run": run, **({"cell": CLICKED["resid_pre"]} if run == "patched" else {}), **more}
        return open_tab(file + "#" + "&".join(f"{field}={value}" for field, value in state.items()))

    return opened


RUNS = pytest.mark.parametrize("run", ["clean", "patched"])


@RUNS
def test_attention_shows_the_patterns(view_of, run):
    tab, pattern = view_of("attention", run, layer=2, head=3), np.asarray(runs()[run].pattern)
    np.testing.assert_allclose(tab.values(".small-head"), pattern.max((2, 3)).ravel(), **HALF)
    masked = np.triu(np.ones(pattern.shape[2:], bool), 1)
    large = np.reshape(tab.values("#attention-map rect[data-value]"), masked.shape)
    np.testing.assert_allclose(large, np.where(masked, np.nan, pattern[2, 3]), **HALF)
    tab.click("#head-0-1")
    large = np.reshape(tab.values("#attention-map rect[data-value]"), masked.shape)
    np.testing.assert_allclose(large, np.where(masked, np.nan, pattern[0, 1]), **HALF)
    tab.click("#look-3")
    np.testing.assert_allclose(tab.values(".look[data-row]", "data-row"), pattern[0, 1, 3, :4], **HALF)


def test_attention_shows_the_difference_of_two_runs(view_of):
    tab = view_of("attention", "difference", layer=1, head=0, cell=CLICKED["resid_pre"])
    difference = np.asarray(runs()["patched"].pattern - runs()["corrupted"].pattern)[1, 0]
    masked = np.triu(np.ones(difference.shape, bool), 1)
    large = np.reshape(tab.values("#attention-map rect[data-value]"), masked.shape)
    np.testing.assert_allclose(large, np.where(masked, np.nan, difference), rtol=2**-9, atol=2**-11)


@RUNS
def test_lens_shows_the_logit_lens(view_of, run):
    tab, lens = view_of("lens", run), nanopatch.logit_lens(nano(), runs()[run], " Jones", " Smith")
    np.testing.assert_allclose(tab.values("#lens-map rect[data-value]"), lens.probability.ravel(), **SINGLE)
    _, *rows = tab.table("lens-table")
    assert [row[1:] for row in rows] == [[nanopatch_visible(text) for text in row] for row in lens.predicted]
    for what in ("answer_probability", "rank", "logit_diff"):
        tab.change(tab.page.check, f"#lens-shown-{what}")
        np.testing.assert_allclose(tab.values("#lens-map rect[data-value]"), getattr(lens, what).ravel(), **HALF)


@RUNS
def test_direct_shows_the_direct_logit_attribution(view_of, run):
    tab, direct = view_of("direct", run), nanopatch.direct_logit_attribution(nano(), runs()[run], " Jones", " Smith")
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    parts = dict(zip(tab.texts("#direct-parts .bar-row bdi"), tab.values("#direct-parts .bar-row"), strict=True))
    own = {name: value for name, value in parts.items() if name in direct.parts}
    assert len(own) >= 24
    close([*own.values()], [direct.parts[name] for name in own])
    close(sum(parts.values()), direct.total)
    close(tab.values("#direct-total"), direct.total)
    close(tab.values("#direct-heads rect[data-value]"), direct.heads.ravel())
    assert tab.texts("#direct-cumulative .bar-row bdi") == [*direct.cumulative]
    close(tab.values("#direct-cumulative .bar-row"), [*direct.cumulative.values()])


def test_steps_show_how_a_patch_spreads(view_of):
    tab, model = view_of("steps", "patched", step=20), nano()
    base, patched = runs()["corrupted"], runs()["patched"]
    cells = tab.evaluate("""[...document.querySelectorAll(".spread-cell")].map(
        ({ dataset }) => [dataset.name, dataset.layer ?? "", Number(dataset.position), Number(dataset.value)])""")
    changes = {name: relative_change(base, patched, name) for name in (*DRAWN, "ln_final", "logits")}
    expected = [changes[name][int(layer)][at] if layer else changes[name][at] for name, layer, at, _ in cells]
    np.testing.assert_allclose([value for *_, value in cells], expected, rtol=2**-9, atol=1e-6)
    n_tokens = len(base.tokens)
    assert len(cells) == n_tokens * (len(DRAWN) * model.n_layer + 1) + 1
    unreached = [value for name, layer, at, value in cells if at == 0 or layer == "0"]
    assert not any(unreached) and all(tab.values('.spread-cell[data-name="logits"]'))
    assert tab.attributes(".spread-patched", "data-name") == ["resid_pre"]


def test_steps_show_the_arrays(view_of):
    tab, run = view_of("steps", "clean", step=DRAWN.index("resid_mid") + len(DRAWN)), runs()["clean"]
    assert tab.attributes(".closeup", "data-name") == ["resid_mid"] and tab.attributes(".closeup", "data-layer") == [
        "1"
    ]
    _, *rows = tab.table("closeup-table")
    np.testing.assert_allclose([[shown(cell) for cell in row[1:]] for row in rows], run.resid_mid[1], **HALF)
    tab.view("steps")
    tab.page.keyboard.press("Escape")
    tab.page.evaluate("document.activeElement.blur()")
    tab.press("ArrowLeft")
    assert tab.attributes(".closeup", "data-name") == ["attn_out"] and tab.state["step"] == "20"
    assert tab.spoken.startswith("layer 1, attn_out. ")
    _, *rows = tab.table("closeup-table")
    np.testing.assert_allclose([[shown(cell) for cell in row[1:]] for row in rows], run.attn_out[1], **HALF)
    tab.click("#strip-pattern")
    _, *rows = tab.table("closeup-table")
    flat = np.reshape([[shown(cell) for cell in row[1:]] for row in rows], run.pattern[1].shape)
    np.testing.assert_allclose(np.nan_to_num(flat), run.pattern[1], **HALF)
    for key, name in (("End", "logits"), ("ArrowLeft", "ln_final"), ("Home", "resid_pre"), ("ArrowRight", "q")):
        tab.press(key)
        assert tab.attributes(".closeup", "data-name") == [name]


def test_circuit_shows_the_edges_and_their_faithfulness(view_of):
    tab, scores = view_of("circuit", "clean"), nanopatch.edge_attribution(nano(), MICHELLE, steps=5)
    stops = counts(len(scores.edges))
    for n in (min(stops, key=lambda n: abs(n - 40)), stops[3]):
        if n == stops[3]:
            tab.change(tab.page.locator("#circuit-n").press, "Home")
            for _ in range(3):
                tab.change(tab.page.locator("#circuit-n").press, "ArrowRight")
        circuit = sorted(scores.circuit(n), key=lambda edge: -abs(edge.score))
        edges = zip(
            *(tab.attributes(".circuit-edge", f"data-{name}")[::-1] for name in ("sender", "receiver", "value")),
            strict=True,
        )
        assert [(sender, receiver, float(score)) for sender, receiver, score in edges] == [
            (str(edge.sender), str(edge.receiver), edge.score) for edge in circuit
        ]
        kept = nanopatch.faithfulness(nano(), MICHELLE, circuit)
        np.testing.assert_allclose(tab.values("#circuit-faithfulness"), kept.value, rtol=1e-5)
        np.testing.assert_allclose(tab.values("#circuit-faithfulness", "data-normalised"), kept.normalised, rtol=1e-5)
