"""The script that holds every method against known edges: it prints what the documentation says."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent.parent
SCRIPT = ROOT / "scripts" / "known_answers.py"


def test_the_table_of_the_documentation(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(
        sys, "argv", ["known_answers.py", "--csv", str(tmp_path / "a.csv"), "--plot", str(tmp_path / "a.png")]
    )
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert left.value.code == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split("curve")[1].split()[:4] == ["AND", "gate", "OR", "gate"]
    page = (ROOT / "docs/circuits.md").read_text(encoding="utf-8")
    assert len(rows) == 10
    for row in rows:
        method, values = row[:40].strip(), row[40:].split()
        values = [values[i] for i in (0, 1, 2, 7, 10)]  # both gates, share of x, induction, and the mean
        assert f"| {method} | {' | '.join(values)} |" in page, row
    assert len((tmp_path / "a.csv").read_text().splitlines()) == 11 and (tmp_path / "a.png").stat().st_size > 10_000


def test_the_area_is_that_under_the_curve():
    names = runpy.run_path(str(SCRIPT))
    random = np.random.default_rng(0)
    for _ in range(20):
        sizes, true = random.integers(0, 5, 30).astype(float), random.random(30) < 0.4
        others, found = map(np.array, names["roc"](sizes, true))
        under = ((found[1:] + found[:-1]) / 2 * np.diff(others)).sum()
        assert names["area"](sizes, true) == pytest.approx(under)
    assert names["area"](np.array([3.0, 2, 1]), np.array([True, False, False])) == 1
