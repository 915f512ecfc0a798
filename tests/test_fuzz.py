"""A small sample of `scripts/fuzz.py`: mutated files and command lines end right, or with one clear line."""

import importlib.util

import pytest
from conftest import ROOT

SCRIPT = importlib.util.spec_from_file_location("fuzz", ROOT / "scripts" / "fuzz.py")
fuzz = importlib.util.module_from_spec(SCRIPT)
SCRIPT.loader.exec_module(fuzz)


@pytest.mark.parametrize("part", fuzz.PARTS)
def test_a_sample_of_mutated_cases(part):
    counts, wrong = fuzz.run_part(part, 150)
    assert not wrong
    assert counts["right"] and counts["refused"]


def test_it_sees_what_is_wrong(tmp_path, monkeypatch):
    """A case that ends in another error, in several lines, or as something else, is not counted as right."""

    def case(rng):
        [lambda: {}["a"], lambda: "", fuzz_wrong][next(kinds)]()

    def fuzz_wrong():
        raise fuzz.Wrong("another")

    kinds = iter([0, 1, 2])
    monkeypatch.setitem(fuzz.PARTS, "pairs", lambda folder: case)
    counts, wrong = fuzz.run_part("pairs", 3)
    assert counts == {"right": 1, "wrong": 2} and [number for number, _ in wrong] == [0, 2]
