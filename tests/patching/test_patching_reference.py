"""`sweep` against the same patches done with PyTorch hooks on Hugging Face's GPT-2, at every site.

The files `reference/patching_*.npz` were made by `scripts/make_reference.py patching`, which says what is in them,
and are read without PyTorch; the weights they belong to are drawn anew from their seed. Where torch and
transformers are installed, one more model is compared live.

Tolerance: of the largest |logit| of the two unpatched runs, 1e-12 in float64 and 1e-5 in float32: they
round at 1e-16 and 6e-8, and a logit is the end of some hundred sums.
"""

import importlib.util
import json

import numpy as np
import pytest
from conftest import REFERENCE, ROOT

from nanopatch import Config, Experiment, Patch, sweep
from nanopatch.experiments.patch import SITE_AXES
from nanopatch.model.checkpoint import build
from nanopatch.model.layers import ACTIVATIONS
from nanopatch.model.sites import ATTENTION_SITES
from nanopatch.verify import read_reference

FILES = sorted(path.stem for path in REFERENCE.glob("patching_*.npz"))
TOLERANCE = {np.float64: 1e-12, np.float32: 1e-5}
# Of the largest |logit|: differences between grids larger than this are no rounding of float32.
VISIBLE = 1e-4
#: The names that axes of scores and pattern had when the files were made.
RENAMED = {"destination": "query", "source": "key"}

spec = importlib.util.spec_from_file_location("make_reference", ROOT / "scripts" / "make_reference.py")
make_reference = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_reference)


def largest_logit(arrays):
    return max(np.abs(arrays["logits.clean"]).max(), np.abs(arrays["logits.corrupted"]).max())


def grid_keys(arrays):
    return [key for key in arrays if key.startswith(("denoise.", "noise."))]


def split(key):
    """A grid's direction, site and axes."""
    direction, site, axes = key.split(".")
    return direction, site, tuple(RENAMED.get(axis, axis) for axis in axes.split("-"))


def random_model(header, dtype):
    """The random model that a file belongs to."""
    config = header["config"]
    tensors = make_reference.random_tensors(config, header["seed"])
    config = {"n_inner": 4 * config["n_embd"], **config}
    model = build(Config(**config), tensors, dtype)
    return model


def swept(model, header, arrays, key):
    """The `Sweep` that a stored grid is compared with."""
    experiment = Experiment(arrays["clean"], arrays["corrupted"], header["answer"], header["wrong_answer"])
    direction, site, axes = split(key)
    return sweep(model, experiment, Patch(site, axes), direction=direction)


def wrong_grids(model, header, arrays):
    """{key: largest difference} of the stored grids that are not what `sweep` computes, to the dtype's tolerance."""
    bound = TOLERANCE[model.dtype.type] * largest_logit(arrays)
    wrong = {}
    for key in grid_keys(arrays):
        grid = swept(model, header, arrays, key).grid
        assert grid.shape == arrays[key].shape, key
        difference = np.abs(grid - arrays[key]).max()
        if not difference <= bound:
            wrong[key] = float(difference)
    return wrong


@pytest.fixture(scope="module", params=FILES)
def stored(request):
    """(header, arrays) of one file."""
    return read_reference(REFERENCE / f"{request.param}.npz")


# ---- stored grids -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_every_grid_is_what_pytorch_hooks_give(stored, dtype):
    header, arrays = stored
    assert wrong_grids(random_model(header, dtype), header, arrays) == {}


def test_the_runs_that_are_not_patched(stored):
    header, arrays = stored
    result = swept(random_model(header, np.float64), header, arrays, "denoise.resid_pre.layer-position")
    answers = [header["answer"], header["wrong_answer"]]
    for side in ("clean", "corrupted"):
        answer, wrong_answer = arrays[f"logits.{side}"][answers]
        difference = getattr(result, f"baseline_{side}") - (answer - wrong_answer)
        assert abs(difference) <= 1e-12 * largest_logit(arrays)


def test_every_site_is_stored_in_both_directions(stored):
    """Each with all axes along which it is usually cut."""
    _, arrays = stored
    expected = set()
    for site, axes in SITE_AXES.items():
        grids = {
            ("layer", "position"): ["layer position"],
            ("layer", "position", "neuron"): ["layer position", "layer neuron"],
            ("layer", "head", "position"): ["layer head", "layer position head"],
            ("layer", "head", "query", "key"): ["layer head", "layer head query", "query key"],
        }[axes]
        expected |= {(direction, site, tuple(grid.split())) for direction in ("denoise", "noise") for grid in grids}
    assert len(grid_keys(arrays)) == len(expected)
    assert set(map(split, grid_keys(arrays))) == expected


def test_the_stored_models_and_prompts():
    """One model as GPT-2 is, one with every switch of its config turned; prompts that differ in two positions."""
    files = {name: read_reference(REFERENCE / f"{name}.npz") for name in FILES}
    assert list(files) == ["patching_everything", "patching_plain"]
    plain, everything = (files[name][0]["config"] for name in ("patching_plain", "patching_everything"))
    assert plain == make_reference.SIZES
    usual = Config(**plain, n_inner=None)
    changed = {key for key, value in everything.items() if key not in plain and value != getattr(usual, key)}
    assert changed == set(Config.__dataclass_fields__) - set(plain) - {"bos_token_id"}
    assert everything["activation_function"] in ACTIVATIONS and everything["n_head"] > 2
    for header, arrays in files.values():
        assert len(arrays["clean"]) == len(arrays["corrupted"]) == 8
        assert np.flatnonzero(arrays["clean"] != arrays["corrupted"]).tolist() == [2, 5]
        assert header["answer"] != header["wrong_answer"]


def test_one_wrong_value_is_noticed(stored):
    """In each grid one value, another one every time, is off by three times what is allowed: that grid alone fails."""
    header, arrays = stored
    model = random_model(header, np.float64)
    changed = dict(arrays)
    for i, key in enumerate(grid_keys(arrays)[::5]):
        changed[key] = arrays[key].copy()
        changed[key].flat[7 * i % arrays[key].size] += 3e-12 * largest_logit(arrays)
    assert list(wrong_grids(model, header, changed)) == grid_keys(arrays)[::5]


def test_only_what_must_be_equal_is(stored):
    """Of the stored grids of one shape, those are equal where one site's patched part makes the other's alone.

    That is position by position, but for scores, whose softmax takes all keys of a query.
    All others differ visibly: one site, direction or axis taken for another would show.
    """
    _, arrays = stored
    equal = ({"resid_mid", "resid_post"}, {"mlp_in", "mlp_pre", "mlp_post", "mlp_out"}, set(ATTENTION_SITES))
    keys, largest = grid_keys(arrays), largest_logit(arrays)
    for i, key in enumerate(keys):
        direction, site, axes = split(key)
        assert np.ptp(arrays[key]) > VISIBLE * largest, key
        for other in keys[:i]:
            if arrays[key].shape != arrays[other].shape:
                continue
            difference = np.abs(arrays[key] - arrays[other]).max()
            other_direction, other_site, other_axes = split(other)
            alike = "key" not in axes and any({site, other_site} <= sites for sites in equal)
            if (other_direction, other_axes) == (direction, axes) and alike:
                assert difference <= 1e-12 * largest, (key, other)
            else:
                assert difference > VISIBLE * largest, (key, other)


# ---- live, where torch is installed -----------------------------------------------------------------

LIVE = dict(
    activation_function="relu",
    n_layer=2,
    n_head=3,
    n_embd=12,
    n_inner=20,
    scale_attn_by_inverse_layer_idx=True,
)


@pytest.fixture(scope="module")
def live():
    """(header, arrays) as a file has them, of one more random model."""
    for name in ("torch", "transformers"):
        pytest.importorskip(name, reason="`pip install torch transformers` makes this test run")
    arrays = make_reference.patching({**make_reference.SIZES, **LIVE}, seed=504, n_tokens=6)
    return json.loads(str(arrays.pop("header"))), arrays


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_live_random_model(live, dtype):
    header, arrays = live
    assert len(grid_keys(arrays)) == 2 * (9 + 2 * 2 + 4 * 2 + 2 * 3)
    assert wrong_grids(random_model(header, dtype), header, arrays) == {}


def test_live_hooks_leave_no_trace(live):
    """After every kind of patch the model computes what it computed before, and torch has its own softmax."""
    import torch

    softmax = torch.nn.functional.softmax
    header, arrays = live
    model = make_reference.pytorch_model(
        header["config"], make_reference.random_tensors(header["config"], header["seed"])
    ).double()
    clean, corrupted = arrays["clean"][None], arrays["corrupted"][None]
    source = make_reference.pytorch_run(model, clean)
    for site in SITE_AXES:
        edits = [(site, 0, np.s_[:], source[site][0])]
        patched = make_reference.patched_logits(model, corrupted, edits)[0]
        assert np.abs(patched - arrays["logits.corrupted"]).max() > VISIBLE, site
        np.testing.assert_array_equal(make_reference.last_logits(model, corrupted)[0], arrays["logits.corrupted"])
        assert torch.nn.functional.softmax is softmax
