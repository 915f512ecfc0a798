"""A sweep's result: lossless files, tables, pictures, and errors that leave nothing half-written."""

import csv
import json
import os
import re
from dataclasses import replace

import numpy as np
import pytest
from conftest import tiny_model

import nanopatch
from nanopatch import Comparison, EdgeScores, Experiment, NanopatchError, Panels, Patch, Sweep, sweep
from nanopatch.experiments import ELON, MICHELLE
from nanopatch.model.tokenizer import visible
from nanopatch.results.plot import FORMATS


@pytest.fixture(scope="module")
def michelle():
    return sweep(nanopatch.load("nano"), MICHELLE)


@pytest.fixture(scope="module")
def elon():
    return sweep(nanopatch.load("nano"), ELON, direction="noise", metric="logit_diff")


@pytest.fixture(scope="module")
def flat():
    """No token has a partner that could be patched with effect: both prompts are the same."""
    return sweep(tiny_model(), Experiment(np.array([1, 2]), [1, 2], 3, 7))


def assert_same(a, b):
    assert np.array_equal(a.grid, b.grid, equal_nan=True) and a.grid.dtype == b.grid.dtype
    assert a.to_dict() == b.to_dict()
    assert str(a) == str(b) and repr(a) == repr(b) and a.notes == b.notes and a.columns == b.columns


@pytest.mark.parametrize("name", ["michelle", "elon", "flat"])
def test_save_and_load_is_lossless(name, request, tmp_path):
    result = request.getfixturevalue(name)
    for ending in ("npz", "json"):
        result.save(tmp_path / f"sweep.{ending}")
        assert_same(Sweep.load(tmp_path / f"sweep.{ending}"), result)
    with np.load(tmp_path / "sweep.npz") as file:
        header = json.loads(str(file["header"]))
    assert header["format"] == "nanopatch result 2" and header["source"]["sha256"] == result.source.sha256


def test_numbers_of_numpy_are_saved_too(tmp_path):
    pairs = [tuple(pair) for pair in np.argwhere(np.eye(2, dtype=int))]
    for name, choice in {"layers": dict(layers=np.arange(2)), "heads": dict(axes="head", heads=pairs)}.items():
        result = sweep(tiny_model(), Experiment([1, 2], [1, 3], 3, 7), Patch("z", **choice))
        result.save(tmp_path / f"{name}.npz")
        assert_same(Sweep.load(tmp_path / f"{name}.npz"), result)


def test_it_knows_the_file_its_model_came_from(michelle):
    import hashlib

    (path,) = michelle.source.files
    assert michelle.source.name == "nano"
    assert michelle.source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_what_is_not_a_saved_sweep(tmp_path, michelle):
    for name, content in {"empty.npz": b"", "text.npz": b"hello"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(NanopatchError, match=f"{name} does not hold a saved Sweep"):
            Sweep.load(tmp_path / name)
    np.savez(tmp_path / "other.npz", grid=np.zeros(3))
    with pytest.raises(NanopatchError, match="does not hold a saved Sweep"):
        Sweep.load(tmp_path / "other.npz")
    michelle.save(tmp_path / "cut.npz")
    whole = (tmp_path / "cut.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(NanopatchError, match="does not hold a saved Sweep"):
        Sweep.load(tmp_path / "cut.npz")
    with pytest.raises(NanopatchError, match="cannot read .*nowhere.npz: No such file"):
        Sweep.load(tmp_path / "nowhere.npz")


def test_csv_has_a_row_a_patch(elon, tmp_path):
    elon.to_csv(tmp_path / "elon.csv")
    with open(tmp_path / "elon.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == elon.grid.shape[0] * 15  # 16 columns, one without partner
    row = rows[15]
    assert (row["layer"], row["clean_position"], row["corrupted_position"]) == ("1", "1", "0")
    assert (row["clean_token"], row["corrupted_token"]) == ("on", "Steve")
    assert float(row["logit_diff"]) == elon.grid[1, 1] and float(row["logit_diff_normalised"]) == elon.normalised[1, 1]


def test_labels_name_both_tokens(michelle, elon):
    assert michelle.column_labels[:3] == ["Michelle", "␣Jones / ␣Smith", "␣was"]
    assert elon.column_labels[:4] == ["El / –", "on / Steve", "␣Musk / ␣Jobs", "␣co"]
    assert visible(" a\n\t") == "␣a\\n\\t"


def test_the_table_has_every_value(michelle, elon, flat):
    lines = str(michelle).splitlines()
    assert lines[0] == "resid_pre patched from clean into corrupted (denoising), nano"
    for position, line in enumerate(lines[3 : 3 + len(michelle.columns)]):
        assert line.startswith(f"{position:>3} {michelle.column_labels[position]} ")
        words = re.sub("[░▒▓█]", " ", line).split()[-4:]
        assert [word == "·" for word in words] == michelle.unchanged[:, position].tolist()
        values = [float(word.replace("·", "0")) for word in words]
        assert np.allclose(values, michelle.normalised[:, position], atol=0.00501)
    assert "·: a patch there cannot change the metric." in lines
    assert "El / –" in str(elon) and str(elon).endswith(elon.notes[-1])
    assert "Not normalised" in str(flat) and "normalised: 0" not in str(flat)


def test_a_narrow_terminal_gets_several_tables(michelle, monkeypatch):
    monkeypatch.setenv("COLUMNS", "45")
    assert str(michelle).count("layer ") == 2 and max(map(len, str(michelle).splitlines()[2:-1])) <= 45


def test_pictures(michelle, elon, flat, tmp_path):
    for file_format, start in zip(FORMATS, (b"\x89PNG", b"<?xml", b"%PDF"), strict=True):
        elon.save(tmp_path / f"picture.{file_format}")
        assert (tmp_path / f"picture.{file_format}").read_bytes().startswith(start)
    assert michelle._repr_png_().startswith(b"\x89PNG")
    assert flat._repr_png_().startswith(b"\x89PNG")


def test_the_heatmap_shows_layers_as_rows_and_tokens_as_columns(michelle, elon, flat):
    ax = michelle.plot().axes[0]
    (image,) = ax.images
    assert np.array_equal(image.get_array(), michelle.normalised)
    assert image.norm.vmin == 0 and image.norm.vmax >= 1 and image.cmap.name == "Blues"
    assert [label.get_text() for label in ax.get_xticklabels()] == michelle.column_labels
    assert "normalised" in image.colorbar.ax.get_ylabel()

    raw = michelle.plot(normalised=False).axes[0].images[0]
    assert np.array_equal(raw.get_array(), michelle.grid)
    assert (
        raw.norm.vmin == -raw.norm.vmax
        and raw.cmap.name == "RdBu_r"
        and "normalised" not in raw.colorbar.ax.get_ylabel()
    )

    assert elon.plot().axes[0].images[0].get_array().mask[:, 0].all()  # blank
    assert flat.plot().axes[0].images[0].cmap.name == "RdBu_r"  # no normalised scale


def test_plot_draws_into_axes_it_is_given(michelle):
    from matplotlib.figure import Figure

    ax = Figure().add_subplot()
    assert michelle.plot(ax) is ax.figure and len(ax.images) == 1


def test_dollar_signs_are_text_not_formulas(tmp_path):
    nano = nanopatch.load("nano")
    prompt = Experiment("It cost $5 or $x_", "It cost $6 or $x_", " a", " b")
    sweep(nano, prompt).save(tmp_path / "dollars.png")
    assert (tmp_path / "dollars.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_of_unknown_kind(michelle, tmp_path):
    with pytest.raises(NanopatchError, match=r"cannot save .*: its ending must be one of .*\.png, \.svg, \.pdf"):
        michelle.save(tmp_path / "picture.gif")
    assert not list(tmp_path.iterdir())


def test_where_nothing_can_be_written(michelle, tmp_path, monkeypatch):
    with pytest.raises(NanopatchError, match="cannot write .*: No such file"):
        michelle.save(tmp_path / "nowhere" / "a.npz")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(NanopatchError, match="cannot write .*folder.csv: it is a folder"):
        michelle.to_csv(tmp_path / "folder.csv")

    michelle.to_csv(tmp_path / "kept.csv")
    before = (tmp_path / "kept.csv").read_bytes()

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)  # the last step; everything before it has happened
    with pytest.raises(NanopatchError, match="cannot write .*kept.csv: No space left on device"):
        michelle.to_csv(tmp_path / "kept.csv")
    assert (tmp_path / "kept.csv").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.csv", "kept.csv"]


def test_an_existing_file_keeps_its_mode_and_a_link_stays(michelle, tmp_path):
    (tmp_path / "secret.csv").write_text("")
    (tmp_path / "secret.csv").chmod(0o600)
    (tmp_path / "link.csv").symlink_to("secret.csv")
    (tmp_path / "new.csv").symlink_to("made.csv")
    for name in ("secret.csv", "link.csv", "new.csv"):
        michelle.save(tmp_path / name)
        assert (tmp_path / name).read_text() == michelle.to_csv().replace("\r\n", "\n")
    assert (tmp_path / "secret.csv").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "link.csv").is_symlink() and (tmp_path / "new.csv").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.csv", "made.csv", "new.csv", "secret.csv"]


def test_paths_that_cannot_be_written_or_read(michelle, tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.npz")
    (tmp_path / "null.csv").symlink_to("/dev/null")
    (tmp_path / "loop.csv").symlink_to("loop.csv")
    for name in ("a\0.csv", "a" * 300 + ".csv", "\ud800.csv", "pipe.npz", "null.csv", "loop.csv", "pipe.npz/a.csv"):
        with pytest.raises(NanopatchError, match="^cannot write ") as caught:
            michelle.save(tmp_path / name)
        assert "\n" not in str(caught.value) and "\0" not in str(caught.value)
    assert os.path.exists("/dev/null") and not os.path.isfile("/dev/null")
    for name in ("pipe.npz", "a\0.npz", "a" * 300 + ".npz", "."):
        with pytest.raises(NanopatchError, match="^cannot read ") as caught:
            Sweep.load(tmp_path / name)
        assert "\n" not in str(caught.value) and "\0" not in str(caught.value)
    monkeypatch.setenv("HOME", str(tmp_path))
    michelle.save("~/home.npz")
    assert_same(Sweep.load("~/home.npz"), michelle)
    michelle.save(tmp_path / ("a" * 251 + ".csv"))  # 255 bytes: the longest name


@pytest.mark.parametrize("stage", ["chmod", "replace"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, OSError(28, "No space left on device")])
def test_an_interrupted_save_leaves_the_old_file_and_nothing_else(michelle, tmp_path, monkeypatch, stage, error):
    michelle.save(tmp_path / "x.npz")
    before = (tmp_path / "x.npz").read_bytes()

    def interrupted(*paths):
        raise error

    monkeypatch.setattr(os, stage, interrupted)
    with pytest.raises(NanopatchError if isinstance(error, OSError) else error):
        michelle.save(tmp_path / "x.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["x.npz"] and (tmp_path / "x.npz").read_bytes() == before


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_file_that_is_read_only_is_not_replaced(michelle, tmp_path):
    (tmp_path / "kept.csv").write_text("mine")
    (tmp_path / "kept.csv").chmod(0o400)
    with pytest.raises(NanopatchError, match="kept.csv: it is read-only"):
        michelle.save(tmp_path / "kept.csv")


def save_npz(path, contents, arrays):
    np.savez(path, **arrays, header=np.array(json.dumps(contents)))


@pytest.fixture(scope="module")
def parts(michelle, tmp_path_factory):
    """(header, arrays) of a saved sweep."""
    path = tmp_path_factory.mktemp("parts") / "x.npz"
    michelle.save(path)
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    return json.loads(str(arrays.pop("header"))), arrays


WRONG_FIELDS = {
    "site": ["resid", 3, None, ["z"]],
    "axes": [["layer"], ["layer", "head"], ["layer", "layer"], [], "layer", ["position", "layer"], [["layer"]]],
    "pieces": [{}, {"layer": [[0]], "position": [[0]]}, [], {"layer": 3}],
    "direction": ["both", None, 3],
    "metric": [None, 3, ["a"], "\ud800"],
    "experiment": [None, {}, "a", {"clean": "a"}],
    "columns": [[], [[0, 0]], [[0, 0, 0]], "a", [[None, None]] * 11, [[i, -1] for i in range(11)]],
    "clean_tokens": [[], ["a"], "abc", [1] * 11],
    "clean_ids": [[1], ["a"] * 11, [-1] * 11, [True] * 11, [1.0] * 11],
    "baseline_clean": [None, "a", True, [1.0]],
    "baseline_corrupted": [None, "a"],
    "rounding": [-1.0, None],
    "source": [None, {}, {"name": "a"}, {"name": 3, "sha256": None}, {"name": "a", "sha256": "xyz"}, "nano"],
    "corruption": [{}, {"kind": "zero"}, {"kind": "none"}, {"kind": "noise", "positions": ["a"]}, "zero"],
    "steps": [0, -1, 1.5, "1", True],
    "between": ["free", "x", 1],
    "chosen": [{"layer": [0]}, {"head": [0]}, [], {"x": []}],
    "finite_differences": [0, "no", None],
    "n_pairs": [0, -1, 2, 1.0, True],
    "skipped": [["a"], [["a"]], [["a", 3]], 3],
    "remarks": ["a", [3]],
    "more": [3],
    "grid": [3],
}
WRONG_ARRAYS = {
    "grid": [np.zeros((4, 10)), np.zeros(44), np.zeros((4, 11), np.float32), np.zeros((4, 11), bool), np.zeros(())],
    "unchanged": [np.zeros((4, 11)), np.zeros((1, 11), bool)],
    "standard_error": [np.zeros((4, 11))],
    "more": [np.zeros(3)],
    "site": [np.zeros(3)],
}


@pytest.mark.parametrize("name", WRONG_FIELDS)
def test_a_field_that_is_not_what_it_should_be(parts, tmp_path, name):
    """A file whose fields are of other types, or do not go together, is not taken for a result."""
    header, arrays = parts
    for value in WRONG_FIELDS[name]:
        save_npz(tmp_path / "x.npz", header | {name: value}, arrays)
        with pytest.raises(NanopatchError, match="x.npz does not hold a saved Sweep") as caught:
            Sweep.load(tmp_path / "x.npz")
        assert "\n" not in str(caught.value)
    if name in header:
        save_npz(tmp_path / "x.npz", {key: value for key, value in header.items() if key != name}, arrays)
        with pytest.raises(NanopatchError, match=f"'{name}' is missing"):
            Sweep.load(tmp_path / "x.npz")


@pytest.mark.parametrize("name", WRONG_ARRAYS)
def test_an_array_that_is_not_what_it_should_be(parts, tmp_path, name):
    header, arrays = parts
    header = {key: value for key, value in header.items() if key not in ("standard_error",)}
    for array in WRONG_ARRAYS[name]:
        save_npz(tmp_path / "x.npz", header, arrays | {name: array})
        with pytest.raises(NanopatchError, match="x.npz does not hold a saved Sweep"):
            Sweep.load(tmp_path / "x.npz")


def test_lists_of_json_that_are_no_arrays(michelle, tmp_path):
    whole = michelle.to_dict()
    for value in (
        [1.0, "a"],
        [1.0, True],
        [1.0, [2.0]],
        [[1.0], [1.0, 2.0]],
        "inf",
        {},
        [[{}]],
        None,
        [["nan"] * 11] * 4,
    ):
        (tmp_path / "x.json").write_text(json.dumps(whole | {"grid": value}))
        with pytest.raises(NanopatchError, match="x.json does not hold a saved Sweep"):
            Sweep.load(tmp_path / "x.json")
    (tmp_path / "x.json").write_text(json.dumps(whole)[:-1] + ', "site": "z"}')
    with pytest.raises(NanopatchError, match="the key 'site' is there twice"):
        Sweep.load(tmp_path / "x.json")
    (tmp_path / "x.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(whole).encode())
    assert_same(Sweep.load(tmp_path / "x.json"), michelle)


def test_a_file_that_unpacks_to_very_much_is_not_unpacked(tmp_path):
    np.savez_compressed(tmp_path / "x.npz", grid=np.zeros(10_000_000), header=np.array("{}"))
    with pytest.raises(NanopatchError, match="it unpacks to 80,000"):
        Sweep.load(tmp_path / "x.npz")


def test_every_result_has_the_same_manners(michelle, tmp_path):
    """plot returns a Figure; save and load keep everything; rows, CSV and JSON hold the same numbers."""
    from matplotlib.figure import Figure

    nano = nanopatch.load("nano")
    results = [
        michelle,
        sweep(nano, MICHELLE, ["z", "resid_pre"], metric=["logit_diff", "probability"]),
        Comparison(sweep(nano, MICHELLE, "z"), nanopatch.attribute(nano, MICHELLE, "z")),
        nanopatch.edge_attribution(nano, MICHELLE),
        nanopatch.faithfulness(nano, MICHELLE, [("embed", "logits")]),
        nanopatch.saliency(nano, MICHELLE),
    ]
    for result in results:
        assert isinstance(result.plot(), Figure) and result._repr_png_().startswith(b"\x89PNG") and str(result)
        for ending in ("npz", "json"):
            result.save(tmp_path / f"x.{ending}")
            assert type(result).load(tmp_path / f"x.{ending}").to_dict() == result.to_dict()
        result.save(tmp_path / "x.csv")
        with open(tmp_path / "x.csv", newline="", encoding="utf-8") as file:
            assert list(csv.DictReader(file)) == list(csv.DictReader(result.to_csv().splitlines()))
        assert len(result.to_csv().splitlines()) == 1 + len(result.to_rows())
        assert json.loads(result.to_json()) == result.to_dict()
        others = [kind for kind in (Sweep, Panels, Comparison, EdgeScores) if not isinstance(result, kind)]
        for kind in others:
            with pytest.raises(NanopatchError, match=f"it holds {result.kind}, not {kind.kind}"):
                kind.load(tmp_path / "x.npz")


def test_fields_say_what_a_result_is():
    nano = nanopatch.load("nano")
    noising = sweep(nano, MICHELLE, "z", direction="noise")
    assert (noising.base, noising.donor, noising.method) == ("clean", "corrupted", "patching")
    assert noising.scale == "normalised"
    zero = nanopatch.ablate(nano, MICHELLE, "z")
    assert (zero.base, zero.donor, zero.direction, zero.scale) == ("clean", "zero", "noise", "relative change")
    path = nanopatch.path_patch(nano, MICHELLE, "head", "logits", between="free")
    assert (path.site, path.axes, path.between) == ("path", ("sender", "receiver"), "free")
    estimate = nanopatch.attribute(nano, MICHELLE, "z", steps=2)
    assert (estimate.method, estimate.steps) == ("integrated gradients", 2)
    head = sweep(nano, MICHELLE, Patch("z", axes="position", heads=[0]))
    assert head.chosen == {"head": (0,)}
    assert "Only head 0 was patched; `head` is not an axis of this grid." in head.notes


def test_tokens_that_are_parts_of_one_character_are_told_apart(tmp_path):
    """Each is one U+FFFD as text; their bytes and their ids differ, and so does what the model makes of them."""
    nano = nanopatch.load("nano")
    pair = Experiment("I saw 猫 and", "I saw 狗 and", " a", " b")
    tokens = pair.tokens(nano)
    differing = [i for i, (a, b) in enumerate(zip(tokens.clean, tokens.corrupted, strict=True)) if a != b]
    result = sweep(nano, pair)
    for position in differing:
        ours, theirs = result.column_labels[position].split(" / ")
        assert ours != theirs and r"\x" in ours and "\ufffd" not in ours + theirs
    result.save(tmp_path / "x.csv")
    with open(tmp_path / "x.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))[: len(tokens.clean)]
    assert [int(row["clean_id"]) for row in rows] == tokens.clean.tolist() == list(result.clean_ids)
    assert [int(row["corrupted_id"]) for row in rows] == tokens.corrupted.tolist()
    mean = sweep(nano, [pair, replace(pair, clean=pair.corrupted, corrupted=pair.clean)])
    assert [t.endswith("…") for t in mean.clean_tokens] == [i in differing for i in range(len(tokens.clean))]
    assert json.loads(result.to_json())["clean_ids"] == tokens.clean.tolist()
