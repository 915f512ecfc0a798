"""The live page in Chromium: what is typed is computed, and what is drawn last is what was asked last."""

import contextlib
import functools
import threading

import numpy as np
import pytest

import nanopatch
from nanopatch import Experiment, sweep, tasks
from nanopatch.experiments import CAPITAL, MICHELLE
from nanopatch.explore.answers import Answers
from nanopatch.explore.server import Server
from nanopatch.page.document import live_files


@functools.cache
def nano():
    return nanopatch.load("nano")


@contextlib.contextmanager
def serving(model, experiment):
    """A server of a page, on a free port."""
    answers = Answers(model)
    server = Server(answers, live_files(answers.start("live", experiment)), 0)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        stop(server)
        thread.join()


def stop(server):
    server.stopping = True
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def live(chromium):
    """The address of a live page about MICHELLE. (Without Chromium, no server is started.)"""
    with serving(nano(), MICHELLE) as server:
        yield server.address


@pytest.fixture
def open_live(open_tab, live):
    return lambda link="": open_tab(live + link, offline=False)


def tokens_of(tab, side="clean"):
    return tab.texts(f"#prompts .token.{side}")


def seen(prompt):
    """A plain prompt's tokens as the page shows them."""
    return [token.replace(" ", "␣") for token in nano().token_strings(nano().tokenize(prompt))]


def assert_shows(tab, experiment, site="resid_pre"):
    assert tokens_of(tab) == seen(experiment.clean)
    result = sweep(nano(), experiment, site)
    np.testing.assert_allclose(tab.values("#heatmap rect[data-value]"), result.normalised.ravel(), rtol=1e-6)


def changed(**fields):
    """MICHELLE with other fields."""
    return Experiment(**{**MICHELLE.to_dict(), **fields})


# ---- numbers --------------------------------------------------------------------------------------


def test_live_page_shows_what_model_steps_gives(open_live):
    tab, model = open_live(), nano()
    assert_shows(tab, MICHELLE)
    tab.choose("#site", "mlp_out")
    tab.click_cell(4)  # layer 0, position 4
    clean = model.run(MICHELLE.clean)
    for step in model.steps(MICHELLE.corrupted):
        if step.name == "mlp_out" and step.layer == 0:
            step.array[4] = clean.mlp_out[0, 4]
    ids = np.argsort(-step.array[-1])[:10]
    logits = step.array[-1].astype(np.float64)
    assert tab.texts("#top-after .bar-row bdi") == [text.replace(" ", "␣") for text in model.token_strings(ids)]
    np.testing.assert_allclose(
        tab.values("#top-after .bar-row"), (np.exp(logits) / np.exp(logits).sum())[ids], rtol=1e-4
    )
    for view in ("lens", "direct", "steps", "circuit"):
        tab.view(view)
    assert tab.state == {"site": "mlp_out", "cell": "4", "run": "patched", "view": "circuit"}


def test_reload_shows_the_same(open_live):
    tab = open_live("#view=lens&site=z")
    tab.change(tab.page.fill, "#type-corrupted", "Michelle Baker was a top-notch student. Michelle")
    tab.click_cell(5)
    before = [tab.values("#heatmap rect[data-value]"), tab.texts("#lens-map text"), tab.state]
    tab.change(tab.page.reload)
    assert [tab.values("#heatmap rect[data-value]"), tab.texts("#lens-map text"), tab.state] == before
    assert tab.state["corrupted"] == "Michelle Baker was a top-notch student. Michelle"


# ---- typing ---------------------------------------------------------------------------------------


def test_typing_tokenizes_and_computes_again(open_live):
    tab = open_live()
    field = tab.page.locator("#type-corrupted")
    tab.page.focus("#type-corrupted")
    tab.change(field.press_sequentially, "!")
    typed = field.input_value()
    assert tokens_of(tab, "corrupted") == seen(typed) and "!" in typed
    assert tab.evaluate("document.activeElement.id") == "type-corrupted", "who types keeps the focus"
    for name in (
        "Baker",
        "Brown",
        "Green",
        "Clark",
        "Lewis",
        "Young",
        "Davis",
        "Wilson",
    ):  # faster than the answers come
        corrupted = f"Michelle {name} was a top-notch student. Michelle"
        tab.page.fill("#type-corrupted", corrupted)
    tab.change(tab.page.fill, "#type-corrupted", MICHELLE.corrupted.replace("Smith", "Moore"))
    assert_shows(tab, changed(corrupted=MICHELLE.corrupted.replace("Smith", "Moore")))
    assert tokens_of(tab, "corrupted")[1] == "␣Moore"


def test_mistake_is_told_in_place_and_mended_by_its_button(open_live):
    tab = open_live()
    drawn = tab.values("#heatmap rect[data-value]")
    tab.change(tab.page.fill, "#type-answer", "Baker")  # with its leading space it is one token
    assert "Baker" in tab.text("#prompts > .error")
    assert tab.values("#heatmap rect[data-value]") == drawn, "what was drawn stays"
    tab.page.wait_for_selector("#grid.stale")  # in grey, after a moment
    tab.click("#mend-0")
    assert tab.page.input_value("#type-answer") == " Baker" and tab.texts("#prompts > .error") == []
    assert_shows(tab, changed(answer=" Baker"))

    longer = "Michelle van der Smith was a top-notch student. Michelle"
    tab.change(tab.page.fill, "#type-corrupted", longer)
    assert len(tab.texts("#prompts > .error")) == 1
    tab.page.get_by_role("button", name="align the prompts by their tokens").wait_for()
    tab.click("#prompts .mends button:has-text('align')")
    assert tab.page.is_checked("#type-align") and tab.texts("#prompts > .error") == []
    result = sweep(nano(), changed(answer=" Baker", corrupted=longer, align="diff"))
    np.testing.assert_allclose(
        tab.values("#heatmap rect[data-value]"), result.normalised.ravel(), rtol=1e-6, equal_nan=True
    )


def test_prompt_that_is_too_long_is_told_in_one_line(open_live):
    tab = open_live()
    tab.change(tab.page.fill, "#type-clean", "word " * 900)
    (said,) = tab.texts("#prompts > .error")
    assert "clean prompt" in said and "128" in said and "\n" not in said and len(said) < 200
    tab.page.wait_for_selector("#grid.stale")  # in grey, after a moment
    tab.change(tab.page.fill, "#type-clean", MICHELLE.clean)
    assert_shows(tab, MICHELLE)


def test_menu_starts_from_named_experiments_and_tasks(open_live):
    tab = open_live()
    tab.choose("#named", "capital")
    assert_shows(tab, CAPITAL)
    tab.page.click("#task-greater_than")
    (drawn,) = tasks.greater_than(1, seed=0)
    last = seen(drawn.clean)[-1]
    tab.page.wait_for_selector(f"#prompts .token.clean >> text={last}")
    tab.settle()
    assert tokens_of(tab) == seen(drawn.clean) and tab.page.input_value("#type-clean") == drawn.clean


# ---- server and browser that go away --------------------------------------------------------------


def test_page_without_its_server_says_so_and_keeps_its_drawing(open_tab, chromium):
    with serving(nano(), MICHELLE) as server:
        tab = open_tab(server.address, offline=False)
        drawn = tab.values("#heatmap rect[data-value]")
        stop(server)
        tab.page.select_option("#site", "z")
        tab.page.wait_for_selector("#page > .error:not([hidden])")
        assert "does not answer" in tab.text("#page > .error")
        assert tab.values("#heatmap rect[data-value]") == drawn
        tab.said = [said for said in tab.said if "ERR_CONNECTION_REFUSED" not in said]  # which Chromium says itself


def test_browser_that_closes_lets_others_go_on(open_live, chromium, live):
    context = chromium.new_context()
    page = context.new_page()
    page.goto(f"{live}#site=pattern&axes=layer,head,query&view=circuit")
    page.wait_for_selector("#prompts .token")  # the first answer is there, the long ones are not
    context.close()
    tab = open_live("#site=z&axes=layer,head")
    assert_shows(tab, MICHELLE, "z")
