"""The documentation site builds without a warning, its links lead somewhere, and it needs no network."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from urllib.parse import unquote

import pytest
from browser import chromium  # noqa: F401  (a fixture)
from conftest import ROOT

import nanopatch
from nanopatch.lessons.course import lessons
from nanopatch.model.sites import BLOCK_SITES, FINAL_SITES


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("sphinx", reason='`pip install -e ".[docs]"` makes this test run')
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "-d", f"{folder}/doctrees"]
    done = subprocess.run([*command, ROOT / "docs", folder / "html"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "html"


class Links(HTMLParser):
    """What a page names: its ids, what it links to, and what it loads."""

    def __init__(self, page):
        super().__init__()
        self.ids, self.links, self.loaded = {""}, [], []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        self.ids |= {named[name] for name in ("id", "name") if named.get(name)}
        if tag == "a" and named.get("href"):
            self.links.append(named["href"])
        self.loaded += [named["src"]] if named.get("src") else []
        self.loaded += [named["href"]] if tag == "link" and named.get("href") else []


def test_its_links_lead_somewhere_and_nothing_is_loaded_from_elsewhere(site):
    pages = {page: Links(page) for page in site.rglob("*.html")}
    assert len(pages) > 20
    for page, found in pages.items():
        for address in found.loaded:
            assert not re.match("(https?:)?//", address), (page.name, address)
        for address in [*found.links, *found.loaded]:
            if re.match("https?:|mailto:|data:", address):
                continue
            path, _, anchor = address.partition("#")
            target = (page.parent / unquote(path.partition("?")[0])).resolve() if path else page
            assert target.exists(), (page.name, address)
            if target in pages and anchor:
                assert unquote(anchor) in pages[target].ids, (page.name, address)


def test_each_lesson_is_a_page_with_what_it_printed(site):
    for lesson in lessons():
        text = (site / "made/lessons" / lesson.path.with_suffix(".html").name).read_text(encoding="utf-8")
        assert "no answer yet" in text and "Traceback" not in text


def test_it_opens_from_disk_without_a_network(site, chromium):  # noqa: F811
    """Every page and its pictures in Chromium, silently; and its search finds a word."""
    said, asked = [], []
    context = chromium.new_context(offline=True)
    page = context.new_page()
    page.on("console", lambda message: said.append(f"{page.url}: {message.text}"))
    page.on("pageerror", lambda error: said.append(f"{page.url}: {error}"))
    page.on("request", lambda request: asked.append(request.url))
    for path in sorted(site.rglob("*.html")):
        page.goto(path.as_uri())
        broken = "[...document.images].filter((image) => !image.complete || !image.naturalWidth).map((one) => one.src)"
        assert page.evaluate(broken) == [], path.name
    page.goto(f"{(site / 'search.html').as_uri()}?q=denoising")
    page.wait_for_selector("#search-results ul.search li a")
    assert "3. Denoising and noising" in page.inner_text("#search-results")
    context.close()
    assert said == []
    assert [address for address in asked if not address.startswith(("file:", "data:"))] == []


def test_every_public_name_is_in_the_reference():
    reference = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    for name in nanopatch.__all__:
        assert len(re.findall(rf":: nanopatch\.{name}$", reference, flags=re.MULTILINE)) == 1, name


def test_every_array_is_in_the_picture_of_a_block_and_in_the_table():
    picture, table = ((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("block.svg", "arrays.md"))
    assert set(re.findall(r'class="name">(.*?)<', picture)) == set(BLOCK_SITES)
    for name in (*BLOCK_SITES, *FINAL_SITES):
        assert f"`{name}`" in table


def test_every_page_is_in_the_site():
    index = (ROOT / "docs/index.md").read_text(encoding="utf-8").splitlines()
    for page in ROOT.glob("docs/*.md"):
        assert page.stem == "index" or page.stem in index, page.name
