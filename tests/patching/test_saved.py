"""Results that version 0.1.0 saved can be read, and say what they said.

`reference/saved_0.1.0/*.npz` were written by that version with nano. Each is compared with a fresh answer to the same
question.
"""

import json

import numpy as np
import pytest
from conftest import REFERENCE, as_lists

from nanopatch import (
    Mean,
    NanopatchError,
    Panels,
    Patch,
    Sweep,
    ablate,
    attribute,
    load,
    path_patch,
    sweep,
    tasks,
    trace,
)
from nanopatch.experiments.experiment import ELON, INDIRECT_OBJECT, MICHELLE

FOLDER = REFERENCE / "saved_0.1.0"
FRESH = {
    "sweep": lambda nano: sweep(nano, MICHELLE),
    "pattern": lambda nano: sweep(nano, MICHELLE, Patch("pattern", ("query", "key"))),
    "ablation": lambda nano: ablate(nano, MICHELLE, "z"),
    "trace": lambda nano: trace(nano, MICHELLE, [0, 1], seeds=range(2)),
    "path": lambda nano: path_patch(nano, INDIRECT_OBJECT, "head", "logits"),
    "attribution": lambda nano: attribute(nano, MICHELLE, "z", steps=3),
    "pairs": lambda nano: sweep(nano, tasks.indirect_object(3, seed=1), Patch("z", "head", heads=[(3, 0), (3, 1)])),
    "elon": lambda nano: sweep(nano, ELON, direction="noise"),
    "mean": lambda nano: attribute(nano, MICHELLE, "z", corruption=Mean([MICHELLE.clean])),
}


@pytest.fixture(scope="module")
def nano():
    return load("nano")


@pytest.fixture(scope="module", params=FRESH)
def both(request, nano):
    """(an old file's result, a fresh one)."""
    return Sweep.load(FOLDER / f"{request.param}_1.npz"), FRESH[request.param](nano)


def test_every_file_is_compared():
    assert {path.stem.removesuffix("_1") for path in FOLDER.iterdir()} == set(FRESH)


def test_the_numbers_are_those_of_today(both, nano):
    """To 1e-5 of the largest logit, in float32: it rounds at 6e-8, and a logit is the end of some thousand sums."""
    old, new = both
    tolerance = 1e-5 * np.abs(nano.run(old.experiment.clean, sites="logits").logits[-1]).max()
    assert np.array_equal(np.isnan(old.grid), np.isnan(new.grid))
    assert np.nanmax(np.abs(old.grid - new.grid)) <= tolerance
    for name in ("baseline_clean", "baseline_corrupted", "base_value", "donor_value"):
        before, today = getattr(old, name), getattr(new, name)
        assert before is today is None or abs(before - today) <= tolerance, name
    if new.standard_error is not None:
        assert np.abs(old.standard_error - new.standard_error).max() <= tolerance
    else:
        assert old.standard_error is None
    assert 0 < old.rounding <= tolerance * 100
    if old.unchanged is not None:
        assert np.array_equal(old.unchanged, new.unchanged)


def test_they_describe_the_same_question(both):
    old, new = both
    for name in ("site", "axes", "direction", "metric", "between", "steps", "n_pairs", "skipped", "columns"):
        assert getattr(old, name) == getattr(new, name), name
    for name in ("base", "donor", "method", "scale", "clean_tokens", "corrupted_tokens"):
        assert getattr(old, name) == getattr(new, name), name
    assert as_lists(old.pieces) == as_lists(new.pieces)
    assert type(old.corruption) is type(new.corruption)
    assert (old.source.name, old.source.sha256) == ("nano", new.source.sha256)
    for name in ("clean", "answer", "wrong_answer", "prepend_bos"):
        assert getattr(old.experiment, name) == getattr(new.experiment, name)
    if new.corruption is None:  # else there was no corrupted prompt, and the file has the clean one in its place
        assert old.experiment.corrupted == new.experiment.corrupted


def test_what_a_reader_must_know_is_said_once(both):
    old, new = both
    assert len(old.notes) == len(set(old.notes)) == len(new.notes)
    if not isinstance(new.corruption, Mean):  # over how many prompts is not in the file
        assert old.notes == new.notes and old.title == new.title


@pytest.mark.parametrize(
    ("remark", "now", "value"),
    [
        (
            "Blank where the receiver does not come after its sender.",
            "Cells are blank where the receiver does not come after its sender.",
            np.nan,
        ),
        (
            "logit_diff is no finite number after 1 of the patches, the first at sender head 0.0, receiver logits.",
            "logit_diff is not a finite number after 1 of the patches; "
            "the first is at sender head 0.0, receiver logits.",
            np.inf,
        ),
    ],
    ids=["blank", "not finite"],
)
def test_a_remark_that_is_made_anew_is_not_kept_besides(tmp_path, remark, now, value):
    with np.load(FOLDER / "path_1.npz") as file:
        grid, header = file["grid"], json.loads(str(file["header"]))
    grid[0], header["remarks"] = value, [remark]
    np.savez(tmp_path / "old.npz", grid=grid, header=json.dumps(header))
    assert Sweep.load(tmp_path / "old.npz").notes == [now]


def test_a_remark_that_has_no_field_is_kept(tmp_path):
    with np.load(FOLDER / "sweep_1.npz") as file:
        grid, header = file["grid"], json.loads(str(file["header"]))
    header["remarks"] = ["Of the axes that make no grid, only head 0 was patched."]
    np.savez(tmp_path / "old.npz", grid=grid, header=json.dumps(header))
    assert Sweep.load(tmp_path / "old.npz").notes == header["remarks"]


def test_they_print_draw_and_can_be_saved_again(both, tmp_path):
    old, new = both
    assert len(str(old).splitlines()) == len(str(new).splitlines()) and old.title in str(old)
    assert all(old.labels(axis) == new.labels(axis) for axis in old.axes)
    assert old.plot().axes and old._repr_png_().startswith(b"\x89PNG")
    columns = [[name for name in row if not name.endswith("_id")] for row in new.to_rows()]  # ids were not kept
    assert [list(row) for row in old.to_rows()] == columns or old.unchanged is None
    for ending in ("npz", "json"):
        old.save(tmp_path / f"again.{ending}")
        again = Sweep.load(tmp_path / f"again.{ending}")
        assert again.to_dict() == old.to_dict() and str(again) == str(old)


def test_they_are_sweeps_and_nothing_else():
    with pytest.raises(NanopatchError, match="sweep_1.npz does not hold a saved Panels"):
        Panels.load(FOLDER / "sweep_1.npz")
