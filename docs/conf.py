"""The documentation site: python -m sphinx -W -b html docs site (after pip install -e ".[docs]").

Its sources are the pages of this folder, the README and others beside it, the lessons, and the docstrings. What is not
in this folder is copied into `made/`, where Sphinx can read it, with links that hold there.

Sphinx, because it reads docstrings as they stand, makes plain HTML that opens from disk, and treats each warning as an
error. MyST, because the pages are Markdown that is also read where it lies. Each lesson is executed by MyST-NB.
"""

import os
import re
from pathlib import Path

import nanopatch
from nanopatch.lessons.course import lessons

DOCS = Path(__file__).parent
ROOT = DOCS.parent
MADE = DOCS / "made"  # not in git

project, author, copyright = "nanopatch", "the authors of nanopatch", "the authors of nanopatch, MIT licence"
version = release = nanopatch.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

html_theme = "furo"  # plain, readable on a telephone, light and dark, and no file of it comes from a network
html_title = "nanopatch"
html_show_sourcelink = False
html_show_search_summary = False  # summaries are fetched, which a browser refuses to pages on disk

myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_output_stderr = "error"

default_role = "code"  # a word in `backticks` in a docstring
autodoc_typehints = "none"  # the docstrings say what the parameters are
autodoc_member_order = "bysource"
napoleon_numpy_docstring, napoleon_google_docstring = True, False
napoleon_use_rtype = False

#: What is copied: {the file: the page that it becomes}.
COPIED = {
    ROOT / "README.md": MADE / "readme.md",
    ROOT / "CHANGELOG.md": MADE / "changelog.md",
    ROOT / "CONTRIBUTING.md": MADE / "contributing.md",
    ROOT / "weights/nano/README.md": MADE / "nano.md",
    ROOT / "weights/nano/RECIPE.md": MADE / "nano-recipe.md",
}
LESSONS = {lesson.path: MADE / "lessons" / lesson.path.with_suffix(".ipynb").name for lesson in lessons()}


def relinked(text: str, source: Path, page: Path) -> str:
    """The text of `source` with links that hold where `page` is."""

    def link(found: re.Match[str]) -> str:
        target = (source.parent / found[1]).resolve()
        if target.is_dir():
            target /= "__init__.py" if (target / "__init__.py").exists() else "index.html"
        target = (COPIED | LESSONS).get(target, target)
        return f"]({Path(os.path.relpath(target, page.parent)).as_posix()}{found[2] or ''})"

    return re.sub(r"\]\(([\w./-]+)(#[\w-]+)?\)", link, text)


def copy_pages(*_) -> None:
    """Before Sphinx looks for its sources."""
    (MADE / "lessons").mkdir(parents=True, exist_ok=True)
    for source, page in COPIED.items():
        page.write_text(relinked(source.read_text("utf-8"), source, page), "utf-8")
    for lesson in lessons():
        LESSONS[lesson.path].write_text(lesson.notebook(), "utf-8")


def relink_page(app, name, source) -> None:
    """The pages of this folder link to what is copied, as they are also read where they are."""
    page = DOCS / f"{name}.md"
    if page.exists() and page not in COPIED.values():
        source[0] = relinked(source[0], page, page)


def setup(app) -> None:
    app.connect("config-inited", copy_pages)
    app.connect("source-read", relink_page)
