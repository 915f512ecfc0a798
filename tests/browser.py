"""Chromium for tests of the page: its tabs, what they show, and all that they say and ask for.

Where Chromium is missing, the tests that need it are skipped. Nothing here waits for a time to pass: each wait is for
something that the page shows.
"""

import math
import shutil
from urllib.parse import parse_qsl, urlsplit

import pytest

import nanopatch
from nanopatch.experiments import MICHELLE

try:
    from playwright.sync_api import TimeoutError as TIMED_OUT
    from playwright.sync_api import sync_playwright
except ImportError:  # its tests are skipped
    sync_playwright = None

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
#: The page has drawn its state, and computes nothing.
DRAWN = 'html[data-drawn]:not(:has([aria-busy="true"]))'
SECONDS = 40  # the longest wait: a machine may be slow


@pytest.fixture(scope="module")
def chromium():
    """A browser for the tests of one module. It ends with them: while it runs, its thread can start no event loop."""
    if CHROMIUM is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    if sync_playwright is None:
        pytest.skip("no Playwright here: pip install playwright")
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])  # root has no sandbox
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def file(tmp_path_factory):
    """The address of a page about MICHELLE, with grids of resid_pre and z."""
    path = tmp_path_factory.mktemp("page") / "michelle.html"
    nanopatch.make_page(nanopatch.load("nano"), MICHELLE, ["resid_pre", "z"]).save(path)
    return path.as_uri()


@pytest.fixture
def open_tab(chromium):
    """open_tab(url) opens it in a `Tab`. No tab of a test may say anything on the console, or ask for another place."""
    tabs = []

    def opened(url, width=1280, height=900, offline=True, **options):
        context = chromium.new_context(viewport={"width": width, "height": height}, offline=offline, **options)
        context.set_default_timeout(1000 * SECONDS)
        tabs.append(Tab(context.new_page(), url))
        return tabs[-1]

    yield opened
    for tab in tabs:
        tab.evaluate("0")  # what was said before this has arrived after it
        tab.page.context.close()
    for tab in tabs:
        assert tab.said == []
        own = (tab.place, "blob:")  # a blob is in the page's own memory: what it saves
        assert not [url for url in tab.requests if not url.startswith(own)], "the page asks for another place"


class Tab:
    """A tab that shows one address."""

    def __init__(self, page, url):
        self.page, self.said, self.requests = page, [], []
        self.place = url.partition("#")[0]
        page.on("console", lambda message: self.said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: self.said.append(f"error: {error}"))
        page.on("dialog", self._dialog)
        page.on("request", lambda request: self.requests.append(request.url))
        page.goto(url)
        self.settle()

    def _dialog(self, dialog):
        self.said.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    # ---- doing ----------------------------------------------------------------------------------

    def settle(self):
        """Wait until the page has drawn its state. What the page says meanwhile is a mistake, and ends the wait."""
        for _ in range(SECONDS):
            try:
                self.page.wait_for_selector(DRAWN, state="attached", timeout=1000)
                return
            except TIMED_OUT:
                assert not self.said, self.said
        raise AssertionError(f"the page has not drawn its state in {SECONDS} s")

    def change(self, action, *args, **options):
        """Do something that changes the state, and wait until the new one is drawn."""
        self.evaluate("delete document.documentElement.dataset.drawn")
        action(*args, **options)
        self.settle()

    def click(self, selector, **options):
        self.change(self.page.click, selector, **options)

    def choose(self, selector, value):
        self.change(self.page.select_option, selector, value)

    def press(self, key):
        """A key that changes the state."""
        self.change(self.page.keyboard.press, key)

    def view(self, name):
        self.click(f"#tab-{name}")

    def click_cell(self, number):
        """A click on a cell of the heatmap, by its number in C order."""
        self.change(self.page.locator("#heatmap rect[data-value]").nth(number).click)

    def save(self, selector):
        """The file that a button saves: its name, and its bytes."""
        with self.page.expect_download() as started:
            self.page.click(selector)
        with open(started.value.path(), "rb") as file:
            return started.value.suggested_filename, file.read()

    # ---- reading --------------------------------------------------------------------------------

    def evaluate(self, code, *args):
        return self.page.evaluate(code, *args)

    def values(self, selector, name="data-value"):
        """The numbers that elements stand for, exactly as JavaScript has them."""
        return [math.nan if said is None else float(said) for said in self.attributes(selector, name)]

    def attributes(self, selector, name):
        return self.evaluate(
            "([selector, name]) => [...document.querySelectorAll(selector)].map((one) => one.getAttribute(name))",
            [selector, name],
        )

    def texts(self, selector):
        return self.evaluate(
            "(selector) => [...document.querySelectorAll(selector)].map((one) => one.textContent)", selector
        )

    def text(self, selector):
        (text,) = self.texts(selector)
        return text

    def table(self, identity):
        """The texts of a table that is folded away, a list for each row; the first has the names."""
        self.evaluate("(id) => (document.getElementById(id).open = true)", identity)
        self.page.wait_for_selector(f"#{identity} td", state="attached")
        return self.evaluate(
            """(id) => [...document.querySelectorAll(`#${id} tr`)].map(
              ({ cells }) => [...cells].map((cell) => cell.textContent))""",
            identity,
        )

    @property
    def state(self):
        """What the address says of the state."""
        return dict(parse_qsl(urlsplit(self.evaluate("location.href")).fragment, keep_blank_values=True))

    @property
    def told(self):
        """The lines of the box beside the pointer; none if it is not there."""
        return self.texts("#tooltip:not([hidden]) > *")

    @property
    def spoken(self):
        """What a screen reader was told last."""
        return self.text("#spoken")
