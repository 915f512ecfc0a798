"""The package as installed: light to import, whole in a wheel's layout, and with one version."""

import configparser
import doctest
import importlib
import os
import pkgutil
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import nanopatch

ROOT = Path(__file__).parent.parent


def python(code, **options):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def checkout():
    """The folder that holds setup.cfg and the package's source."""
    if not (ROOT / "nanopatch").is_dir():
        pytest.skip("the tests stand alone here: run them in a checkout")
    return ROOT


def test_import_brings_in_numpy_and_nothing_heavier():
    """Of what NumPy has not loaded itself."""
    loaded = set(
        python("import sys, numpy; before = {*sys.modules}; import nanopatch; print(*{*sys.modules} - before)").split()
    )
    heavy = {"matplotlib", "tiktoken", "safetensors", "tqdm", "huggingface_hub", "regex", "torch", "transformers"}
    heavy |= {"asyncio", "hashlib", "http", "multiprocessing", "ssl", "tempfile", "urllib.request"}
    assert "nanopatch.model.gpt2" in loaded and not heavy & loaded


def test_the_packages_of_the_wheel_are_the_folders_of_the_checkout(checkout):
    config = configparser.ConfigParser()
    config.read(checkout / "setup.cfg", encoding="utf-8")
    modules = (path.parent for path in (checkout / "nanopatch").rglob("*.py"))
    folders = {".".join(path.relative_to(checkout).parts) for path in modules}
    listed = config["options"]["packages"].split()
    assert sorted(listed) == sorted(folders | {"nanopatch.data", "nanopatch.weights.nano"})


def test_the_default_model_is_found_in_the_layout_of_a_wheel(checkout, tmp_path):
    """In a wheel `weights/nano` is inside the package, in a checkout beside it."""
    shutil.copytree(checkout / "nanopatch", tmp_path / "nanopatch", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(checkout / "weights" / "nano", tmp_path / "nanopatch" / "weights" / "nano")
    code = "import nanopatch; model = nanopatch.load('nano'); print(nanopatch.__file__, *model.source.files, sep='\\n')"
    package, file = python(code, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)}).splitlines()
    assert Path(package).parent == tmp_path / "nanopatch"
    assert Path(file) == tmp_path / "nanopatch" / "weights" / "nano" / "model.safetensors"


def test_the_default_model_is_small_enough_for_git():
    assert (ROOT / "weights" / "nano" / "model.safetensors").stat().st_size <= 16e6


def test_a_run_leaves_no_files_behind(tmp_path):
    """Loading, running and tokenizing write nothing, neither here nor in a cache folder."""
    code = "import nanopatch; nanopatch.load('nano').run('Hello there')"
    environment = {**os.environ, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    python(code, cwd=tmp_path, env=environment)
    assert list(tmp_path.iterdir()) == []


def test_there_is_one_version():
    assert nanopatch.__version__ == version("nanopatch")


def test_type_checkers_are_told_that_it_has_types():
    assert (Path(nanopatch.__file__).parent / "py.typed").read_bytes() == b""


def test_no_function_of_the_package_has_the_name_of_a_module_of_it():
    """Else importing the module would put it in the function's place."""
    folder = Path(nanopatch.__file__).parent
    modules = {path.stem for path in folder.glob("*.py")} | {path.name for path in folder.iterdir() if path.is_dir()}
    assert modules & set(nanopatch.__all__) <= {"experiments", "tasks"}


#: But for the lessons, which are scripts: tests/lessons runs them.
MODULES = [
    module.name for module in pkgutil.walk_packages(nanopatch.__path__, "nanopatch.") if ".lesson_" not in module.name
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_show_what_happens(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0
