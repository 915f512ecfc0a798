"""How the package is put together: which module may import which, what is public, and where the tests are."""

import ast
import re
from graphlib import TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path

import nanopatch

TESTS = Path(__file__).parent
PACKAGE = Path(nanopatch.__file__).parent

#: Each imports only from its own line and from those above it. The package itself is "".
ORDER = (
    ("errors", "files", "notebook", "progress", "types"),
    ("model",),
    ("experiments",),
    ("page",),
    ("results",),
    ("lenses",),
    ("patching",),
    ("gradients",),
    ("circuits",),
    ("explore",),
    ("",),
    ("lessons",),
    ("cli", "verify", "__main__"),
)
#: A run draws itself: `Run.plot_attention` imports, when it is called, the lens that makes the picture.
ALLOWED = ("nanopatch.model.sites", "nanopatch.lenses.attention")
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}
#: {"nanopatch.model.gpt2": its file}; a folder's own module is its __init__.py.
FILES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}


def imported(module, for_types=True):
    """The modules of the package that one of them imports, anywhere in its text.

    for_types: also those under `if TYPE_CHECKING`, which never run.
    """
    nodes = set(ast.walk(ast.parse(FILES[module].read_text(encoding="utf-8"))))
    if not for_types:
        blocks = [node for node in nodes if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
        nodes -= {node for block in blocks for node in ast.walk(block)}
    package = module if FILES[module].name == "__init__.py" else module.rpartition(".")[0]
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            start = resolve_name("." * node.level + (node.module or ""), package)
            names += [f"{start}.{alias.name}" if f"{start}.{alias.name}" in FILES else start for alias in node.names]
    return {name for name in names if name in FILES and (module, name) != ALLOWED}


def rank(module):
    return RANK[module.split(".")[1] if "." in module else ""]


def test_each_folder_imports_only_those_before_it():
    source = FILES[ALLOWED[0]].read_text(encoding="utf-8")
    assert source.count("\n        from ..lenses.attention import attention") == 1  # inside the method, and needed
    wrong = [(a, b) for a in FILES for b in imported(a) if rank(b) > rank(a)]
    assert not wrong


def test_no_modules_import_each_other_in_a_circle():
    """Imports inside functions count."""
    TopologicalSorter({module: imported(module, for_types=False) for module in FILES}).prepare()  # raises CycleError


def test_dir_shows_what_is_public_and_nothing_else():
    assert set(dir(nanopatch)) == {*nanopatch.__all__, "__version__"}
    assert all(hasattr(nanopatch, name) for name in nanopatch.__all__)


def test_tests_stand_alone_in_the_folders_of_what_they_test():
    importing = re.compile(r"^ *(from|import) +test", re.MULTILINE)
    assert not [path for path in TESTS.rglob("*.py") if importing.search(path.read_text(encoding="utf-8"))]
    folders = {path.parent.relative_to(TESTS) for path in TESTS.rglob("test_*.py")}
    assert all((PACKAGE / folder).is_dir() for folder in folders), folders
