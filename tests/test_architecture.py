"""How the package is put together: which module may import which, what is public, and where the tests are."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import nanopatch

TESTS = Path(__file__).parent
PACKAGE = Path(nanopatch.__file__).parent

#: From the bottom up: each imports only from its own line and from those above it.
ORDER = [
    ("errors", "files", "types"),
    ("model",),
    ("experiments",),
    ("results",),
    ("lenses",),
    ("patching",),
    ("gradients",),
    ("cli", "verify"),
    ("__init__", "__main__"),
]
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}


def module_files():
    """The package's modules, by their parts inside it: {("model", "gpt2"): path}; a folder's own is ("model",)."""
    files = {path.relative_to(PACKAGE).with_suffix("").parts: path for path in PACKAGE.rglob("*.py")}
    return {parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts: path for parts, path in files.items()}


FILES = module_files()


def imported(parts):
    """The modules of the package that one imports anywhere in its text: in functions, and for type checkers only, too.

    Every import in the package is relative.
    """
    folder = parts if FILES[parts].name == "__init__.py" and parts != ("__init__",) else parts[:-1]
    for node in ast.walk(ast.parse(FILES[parts].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert not any(alias.name.split(".")[0] == "nanopatch" for alias in node.names), f"{parts}: {node.lineno}"
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            assert node.module.split(".")[0] != "nanopatch", f"{parts}: line {node.lineno}"
        elif isinstance(node, ast.ImportFrom):
            base = (*folder[: len(folder) - node.level + 1], *(node.module or "").split("."))
            base = tuple(filter(None, base))
            for alias in node.names:
                yield (*base, alias.name) if (*base, alias.name) in FILES else base or ("__init__",)


def test_each_folder_imports_only_those_before_it():
    wrong = [(a, b) for a in FILES for b in imported(a) if RANK[b[0]] > RANK[a[0]]]
    assert not wrong


def test_no_modules_import_each_other_in_a_circle():
    TopologicalSorter({a: {b for b in imported(a) if b != a} for a in FILES}).prepare()  # raises CycleError


def test_dir_shows_what_is_public_and_nothing_else():
    assert set(dir(nanopatch)) == {*nanopatch.__all__, "__version__"}
    assert all(hasattr(nanopatch, name) for name in nanopatch.__all__)


def test_tests_stand_alone_in_the_folders_of_what_they_test():
    for path in TESTS.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.startswith("test") for name in names), f"{path}: line {node.lineno}"
    folders = {path.parent.relative_to(TESTS) for path in TESTS.rglob("test_*.py")}
    assert all((PACKAGE / folder).is_dir() for folder in folders), folders
