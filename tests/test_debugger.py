"""Stepping through: a real pdb session that patches by hand, and what a breakpoint inside a block shows."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_model

import nanopatch
from nanopatch import sweep
from nanopatch.experiments import MICHELLE
from nanopatch.model import gpt2
from nanopatch.model.sites import BLOCK_SITES

SCRIPT = Path(__file__).parent.parent / "scripts" / "step_through.py"


def pdb(*commands):
    done = subprocess.run(
        [sys.executable, "-m", "pdb", SCRIPT], input="\n".join(commands), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def logit_difference(output):
    (line,) = [line for line in output.splitlines() if "logit difference, Jones - Smith:" in line]
    return float(line.split()[-1])


@pytest.fixture(scope="module")
def loop_line():
    lines = SCRIPT.read_text().splitlines()
    return lines.index("    resid = model.block(layer, resid)") + 1


def test_a_patch_typed_into_pdb_is_the_patch_of_the_sweep(loop_line):
    """The session of the README: stop in the loop at layer 1, look, assign, carry on."""
    result = nanopatch.sweep(nanopatch.load("nano"), MICHELLE)
    output = pdb(
        f"break {loop_line}, layer == 1",
        "continue",
        "p resid.shape",
        "resid[1] = clean.resid_pre[1, 1]",
        "clear 1",
        "continue",
        "quit",
    )
    assert f"({len(result.columns)}, 128)" in output
    assert logit_difference(output) == pytest.approx(result.grid[1, 1], abs=0.001)
    assert abs(result.grid[1, 1] - result.baseline_corrupted) > 0.1  # the patch is one that matters


def test_without_the_assignment_it_is_the_corrupted_run():
    result = nanopatch.sweep(nanopatch.load("nano"), MICHELLE)
    assert logit_difference(pdb("continue", "quit")) == pytest.approx(result.baseline_corrupted, abs=0.001)


def test_a_breakpoint_inside_a_block_shows_each_array_and_edits_it_alone(loop_line):
    """Stopped in `model.block`, where `v_input` is handed over: an edit there is an edit of what values read."""
    source = Path(gpt2.__file__)
    line = next(i for i, text in enumerate(source.read_text().splitlines(), 1) if 'hand_over("v_input"' in text)
    output = pdb(
        f"break {loop_line}",
        "continue",
        "clear 1",
        f"break {source}:{line}, layer == 1",
        "continue",
        "v_input[1] = 0",
        "p v_input is resid_pre or v_input is k_input or not resid_pre[1].any()",
        "clear 2",
        "continue",
        "quit",
    )
    nano = nanopatch.load("nano")
    for site in nano.steps(MICHELLE.corrupted):
        if site.name == "v_input" and site.layer == 1:
            site.array[1] = 0
    jones, smith = nano.tokenize(" Jones Smith")
    assert "(Pdb) False\n" in output and "(Pdb) True" not in output
    expected = site.array[-1, jones] - site.array[-1, smith]
    assert logit_difference(output) == pytest.approx(expected, abs=0.001)
    assert abs(expected - sweep(nano, MICHELLE).baseline_corrupted) > 1  # an edit that matters


def test_block_keeps_every_array_apart():
    model = tiny_model()
    frame = model.block_steps(0, model.embed([1, 2, 3]), sites=set(BLOCK_SITES) - {"resid_post"})
    arrays = {site.name: site.array for site in frame}
    assert len({id(array) for array in arrays.values()}) == len(BLOCK_SITES) - 1


def test_every_array_of_a_block_is_a_local_of_one_frame():
    model = tiny_model()
    steps = model.block_steps(0, model.embed([1, 2, 3]))
    for name, site in zip(BLOCK_SITES, steps, strict=True):
        there = steps.gi_frame.f_locals
        assert site.name == name and there[name] is site.array
        earlier = BLOCK_SITES[: BLOCK_SITES.index(name)]
        assert all(isinstance(there[other], np.ndarray) for other in earlier)
