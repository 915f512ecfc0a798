"""`nanopatch verify`: that what it compares is right, and that it fails when anything is off.

The real GPT-2's weights are not available where these tests usually run, so what is published for it is checked
only where they are (`test_published_values_of_the_real_gpt2`). The code that does so (prompts, BOS, indices,
patching, attribution, direct logit attribution, tolerances) runs here on a stand-in: a random model of two layers
with GPT-2's vocabulary, and the three files that `scripts/make_reference.py standin` made for it with PyTorch hooks,
autograd and folded weights, none of nanopatch's forward or backward pass. Not verified by that: that the
conventions of the published files are the ones described in `nanopatch/verify/`.
"""

import importlib.util
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import nanopatch
from nanopatch import NanopatchError, verify
from nanopatch.model import checkpoint, hub, tokenizer
from nanopatch.model.sites import SITES
from nanopatch.verify import Check, Report
from nanopatch.verify.report import differences, largest_difference, largest_value

ROOT = Path(__file__).parent.parent
REFERENCE = Path(__file__).parent / "reference"

spec = importlib.util.spec_from_file_location("make_reference", ROOT / "scripts" / "make_reference.py")
make_reference = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_reference)

ATTRIBUTION_CHECKS = (
    *(f"{site} attributed by layer x position, IOI" for site in ("resid_pre", "resid_mid", "resid_post")),
    *(f"{site} attributed by layer x position, IOI" for site in ("attn_out", "mlp_out")),
    *(f"{site} attributed by layer x head, IOI" for site in verify.IOI8_HEADS[1]),
)
PUBLISHED_CHECKS = (
    "token ids",
    "logits, the 50 highest",
    "logits, every 100th",
    "patterns",
    "logit differences, IOI",
    "their mean",
    "resid_pre patched by layer x position, IOI",
    "attn_out patched by layer x position, IOI",
    "mlp_out patched by layer x position, IOI",
    "z patched by layer x head, IOI",
    "v patched by layer x head, IOI",
    "pattern patched by layer x head, IOI",
    "q patched by layer x head, IOI",
    "k patched by layer x head, IOI",
    "z patched by layer x head x position, IOI",
    *ATTRIBUTION_CHECKS,
    "direct attribution, logit_lens_pre_mid",
    "direct attribution, layers_embed_pos_attn_mlp",
    "direct attribution, heads",
    "logit differences, one pair",
    "resid_pre patched by layer x position, one pair",
)
EXPERIMENT_CHECKS = (
    "token ids, four prompts",
    "probabilities, the 20 highest",
    "logits, the 20 highest",
    "logits of the answers",
    "logit differences, michelle",
    "resid_post patched by layer x position, michelle",
    "attn_out patched by layer x position, michelle",
    "resid_mid past the MLP, michelle",
    "resid_post from wrong places, michelle",
    "resid_post mixed, michelle",
    "logit differences, wizard",
    "resid_post patched by layer x position, wizard",
    "attn_out patched by layer x position, wizard",
    "variants of the wizard prompt",
    "among the 40 likeliest (which prompt is inferred), for information",
    "greedy continuations",
    "the same, from float16, for information",
    "ln_final",
    "loss, llm.c's first batch",
    "loss, llm.c's validation",
    "loss, Hello world!",
)
SOURCES = ("transformer_explainer", "transformerlens", "published")


def save(folder, config, tensors):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2", **config}))
    save_file(tensors, folder / "model.safetensors")
    return folder


# ---- nano -----------------------------------------------------------------------------------------


def test_nano_equals_pytorch():
    report = nanopatch.verify.verify("nano")
    assert report.ok, str(report)
    assert [check.name for check in report.checks] == [
        *(f"float64 {name}" for name in SITES),
        "float64 logits, many prompts",
        *(f"float32 {name}" for name in SITES),
    ]


def test_reference_of_another_nano_is_refused(tmp_path, monkeypatch):
    """The reference file says which model file it was made from."""
    folder = save(tmp_path / "nano", make_reference.SIZES, make_reference.random_tensors(make_reference.SIZES, seed=0))
    monkeypatch.setattr(verify, "load", lambda name, dtype: nanopatch.load(folder, dtype))
    with np.load(REFERENCE / "tiny_plain.npz") as stored:
        arrays = dict(stored)
    header = json.loads(str(arrays["header"]))
    sha256 = nanopatch.load(folder).source.sha256

    make_reference.write_npz(tmp_path / "same.npz", {**arrays, "header": json.dumps({**header, "sha256": sha256})})
    report = verify.verify_nano(tmp_path / "same.npz")
    assert report.ok, str(report)

    other = "0" * 64
    make_reference.write_npz(tmp_path / "other.npz", {**arrays, "header": json.dumps({**header, "sha256": other})})
    with pytest.raises(NanopatchError, match=rf"other.npz .* SHA-256 0{{12}}\.\.\., .* has {sha256[:12]}\.\.\.;"):
        verify.verify_nano(tmp_path / "other.npz")


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 cut off", "half", "no header"])
def test_unreadable_reference_is_a_clear_error(tmp_path, content):
    path = tmp_path / "nano_reference.npz"
    if content == "half":
        whole = (REFERENCE / "tiny_plain.npz").read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    elif content == "no header":
        np.savez(path, tokens=np.arange(3))
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(NanopatchError, match="cannot read the reference values .*nano_reference.npz"):
        verify.read_reference(path)


# ---- the comparison array by array ----------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """(header, arrays, float32 model, float64 model) of a stored tiny model, a batch of two prompts."""
    header, arrays = verify.read_reference(REFERENCE / "tiny_relu_unscaled.npz")
    tensors = {key.removeprefix("weights."): array for key, array in arrays.items() if key.startswith("weights.")}
    folder = save(tmp_path_factory.mktemp("tiny"), header["config"], tensors)
    return header, arrays, nanopatch.load(folder), nanopatch.load(folder, dtype=np.float64)


def failed(checks):
    return {check.name for check in checks if not check.ok}


@pytest.mark.parametrize("name", sorted(set(SITES) - set(make_reference.SAME)))
def test_an_array_that_is_off_by_two_parts_in_a_billion_fails_alone(tiny, name):
    header, arrays, _, model = tiny
    key = f"float64.{name}"
    array = arrays[key].copy()
    layer = () if name in ("ln_final", "logits") else (1,)
    array[layer + (0,) * (array.ndim - len(layer))] += 2e-9 * largest_value(array)
    checks = list(verify.float64_checks(model, header, {**arrays, key: array}))
    twins = {twin for twin, of in header["same"].items() if of == name}
    assert failed(checks) == {f"float64 {site}" for site in {name} | twins}
    where = {check.name: check.where for check in checks}[f"float64 {name}"]
    assert where == {"ln_final": "", "logits": "every position"}.get(name, "layer 1")


@pytest.mark.parametrize("index", [(2, 0, 0, 0, 5), (2, 0, 0, 5, 0)])
def test_masked_entries_must_be_the_same(tiny, index):
    """A score that is masked here and not there, or the other way round."""
    header, arrays, _, model = tiny
    scores = arrays["float64.scores"].copy()
    scores[index] = 0 if np.isinf(scores[index]) else -np.inf
    checks = list(verify.float64_checks(model, header, {**arrays, "float64.scores": scores}))
    assert failed(checks) == {"float64 scores"}
    assert [check.difference for check in checks if not check.ok] == [math.inf]


def test_float32_worse_than_pytorch_fails(tiny):
    """Weights rounded to half precision are a thousand times worse than float32; half the allowance is too little."""
    header, arrays, rounded, exact = tiny
    assert failed(verify.float32_checks(rounded, exact, header, arrays)) == set()
    halved = {**header, "pytorch_float32_errors": {k: v / 2 for k, v in header["pytorch_float32_errors"].items()}}
    assert failed(verify.float32_checks(rounded, exact, halved, arrays)) == {f"float32 {name}" for name in SITES}
    coarse = checkpoint.build(
        rounded.config,
        {k.removeprefix("weights."): a.astype(np.float16) for k, a in arrays.items() if k.startswith("weights.")},
    )
    assert failed(verify.float32_checks(coarse, exact, header, arrays)) == {f"float32 {name}" for name in SITES}


def test_float64_beside_which_float32_is_measured_is_itself_checked(tiny):
    header, arrays, rounded, exact = tiny
    many_logits = arrays["many_logits"].copy()
    many_logits[-1, -1] += 1e-7
    checks = verify.float32_checks(rounded, exact, header, {**arrays, "many_logits": many_logits})
    assert failed(checks) == {"float64 logits, many prompts"}


def test_differences():
    inf, nan = np.inf, np.nan
    actual, expected = np.array([1.0, -inf, -inf, 0.0, nan, nan]), np.array([1.5, -inf, 0.0, -inf, 0.0, nan])
    np.testing.assert_array_equal(differences(actual, expected), [0.5, 0, inf, inf, inf, inf])
    assert largest_difference([1, 2], [1, 5]) == 3
    assert largest_difference([1, 2], [[1, 2]]) == inf


# ---- gpt2, by way of the stand-in -------------------------------------------------------------------


@pytest.fixture(scope="module")
def standin(tmp_path_factory):
    tensors = make_reference.random_tensors(make_reference.STANDIN, make_reference.STANDIN_SEED)
    return nanopatch.load(save(tmp_path_factory.mktemp("standin"), make_reference.STANDIN, tensors), vocabulary="gpt2")


@pytest.fixture
def published():
    """The stand-in's files of the Transformer Explainer and of TransformerLens, to be changed at will."""
    return standin_files()[:2]


@pytest.fixture
def of_experiment():
    """The stand-in's file of the report's experiment, to be changed at will."""
    return standin_files()[2]


def standin_files():
    return [json.loads((REFERENCE / f"standin_{source}.json").read_text(encoding="utf-8")) for source in SOURCES]


def test_gpt2_is_compared_with_the_three_files(standin, tmp_path, monkeypatch):
    for source, content in zip(SOURCES, standin_files(), strict=True):
        (tmp_path / f"gpt2_{source}.json").write_text(json.dumps(content))
    loaded = []
    monkeypatch.setattr(verify, "DATA", tmp_path)
    monkeypatch.setattr(verify, "load", lambda name: loaded.append(name) or standin)
    report = verify.verify("gpt2")
    assert report.ok, str(report)
    assert loaded == ["gpt2"] and report.model == "gpt2"
    assert tuple(check.name for check in report.checks) == PUBLISHED_CHECKS + EXPERIMENT_CHECKS


def change(values, index, by):
    """Add `by` to a nested list's entry."""
    for i in index[:-1]:
        values = values[i]
    values[index[-1]] += by


def attribution_grids(ioi8):
    """Where the published grids of attribution patching are: the index of each in the file's part on the prompts."""
    for name in sorted(name for name in ioi8 if name.startswith("attrib_")):
        if np.ndim(ioi8[name]) == 2:
            yield (name,)
        else:
            yield from ((name, i) for i in range(len(ioi8[name])))


@pytest.mark.parametrize(
    ("pick", "cell", "prompt", "mean"),
    [
        (0, dict(layer=0, head=0, position=0), "prompt 0", "clean"),
        (-1, dict(layer=1, head=1, position=14), "prompt 7", "corrupted"),
    ],
)
def test_every_published_value_is_compared(standin, published, pick, cell, prompt, mean):
    """The first, or the last, entry of everything is changed by more than its tolerance: each check fails."""
    explainer, lens = published
    entry, ioi8, main_demo = explainer["prompts"][pick], lens["ioi8"], lens["main_demo"]
    change(entry["token_ids"], (pick,), 1)
    change(entry["top50"], (pick, 1), 0.0015)
    change(entry["logits_every_100th"], (pick,), 0.0015)
    change(entry["pattern"], (pick, pick, -1, pick), 0.00015)
    change(ioi8["per_prompt_logit_diff_3dp"], (pick,), 0.0025)
    change(ioi8, (f"{mean}_4dp",), 0.0015)
    for name in verify.IOI8_GRIDS:
        change(ioi8[name], (pick, pick), 0.0015)
    for index in attribution_grids(ioi8):
        change(ioi8, (*index, pick, pick), 0.0015)
    for row in (1, -1):  # resid_mid's, and the final one
        change(ioi8, (verify.IOI8_STREAM, row, pick), 0.0015)
    change(ioi8["dla_logit_lens_pre_mid"], (pick,), 0.0015)
    change(ioi8["dla_layers_embed_pos_attn_mlp"], (pick,), 0.0015)
    change(ioi8["dla_heads"], (pick, pick), 0.0015)
    change(main_demo, (f"{mean}_3dp",), 0.0025)
    change(main_demo["resid_pre_layer_pos"], (pick, pick), 0.0015)
    checks = {check.name: check for check in verify.published_checks(standin, explainer, lens)}
    assert tuple(checks) == PUBLISHED_CHECKS
    assert failed(checks.values()) == set(PUBLISHED_CHECKS)
    for patch in verify.IOI8_GRIDS.values():
        where = ", ".join(f"{axis} {cell[axis]}" for axis in patch.axes)
        assert checks[f"{patch.site} patched by {' x '.join(patch.axes)}, IOI"].where == where
    assert checks["logit differences, IOI"].where == prompt
    assert checks["their mean"].where == checks["logit differences, one pair"].where == mean
    assert checks["patterns"].where == repr(entry["prompt"])


def test_a_published_attribution_that_is_off_fails_alone(standin, published, monkeypatch):
    """The first and the last value of every grid in turn, and of every row of the residual stream's."""
    ioi8, pairs = published[1]["ioi8"], nanopatch.tasks.ioi8()
    estimated, attribute = [], verify.attribute

    def once(*asked):  # always the same estimates
        if not estimated:
            estimated.append(attribute(*asked))
        return estimated[0]

    monkeypatch.setattr(verify, "attribute", once)
    assert not failed(verify.attribution_checks(standin, pairs, ioi8))
    cases = [((f"attrib_{site}",), site) for site in ("resid_pre", "attn_out", "mlp_out")]
    cases += [((verify.IOI8_HEADS[0], i), site) for i, site in enumerate(("z", "q", "k", "v", "pattern"))]
    corners = [((*grid, -layer, -layer), site, layer) for grid, site in cases for layer in (0, 1)]
    rows = [("resid_pre", 0), ("resid_mid", 0), ("resid_pre", 1), ("resid_mid", 1), ("resid_post", 1)]
    corners += [((verify.IOI8_STREAM, row, i), *of) for row, of in enumerate(rows) for i in (0, -1)]
    for index, site, layer in corners:
        column = index[-1] % (2 if index[0] == verify.IOI8_HEADS[0] else 15)
        for by in (0.0011, -0.0011):
            change(ioi8, index, by)
            wrong = [check for check in verify.attribution_checks(standin, pairs, ioi8) if not check.ok]
            change(ioi8, index, -by)
            assert [check.name.split()[0] for check in wrong] == [site], index
            assert re.fullmatch(f"layer {layer}, (head|position) {column}", wrong[0].where), index


def test_values_of_another_shape_fail_rather_than_crash(standin, published):
    """A model with other layers or heads than the published one."""
    explainer, lens = published
    for entry in explainer["prompts"]:
        entry["pattern"] = entry["pattern"][:1]
    lens["ioi8"]["resid_pre_layer_pos"].append([0] * 15)
    lens["ioi8"]["head_q_allpos"] = [[*row, 0] for row in lens["ioi8"]["head_q_allpos"]]
    lens["ioi8"]["head_z_by_pos_rows_layer_head"] = [lens["ioi8"]["head_z_by_pos_rows_layer_head"]]
    lens["ioi8"]["attrib_attn_out"].append([0] * 15)
    lens["ioi8"][verify.IOI8_STREAM].append([0] * 15)
    lens["ioi8"]["dla_heads"].append([0, 0])
    checks = verify.published_checks(standin, explainer, lens)
    assert failed(checks) == {
        "patterns",
        "resid_pre patched by layer x position, IOI",
        "q patched by layer x head, IOI",
        "z patched by layer x head x position, IOI",
        *ATTRIBUTION_CHECKS[:4],
        "direct attribution, heads",
    }


def test_every_published_grid_is_compared(published):
    """Every grid of activation patching and of attribution patching; what begins with dla_ is direct attribution."""
    file = json.loads((verify.DATA / "gpt2_transformerlens.json").read_text(encoding="utf-8"))["ioi8"]
    grids = {name for name in file if name.startswith("head_") or name.endswith("_layer_pos")}
    assert grids == set(verify.IOI8_GRIDS) == set(make_reference.IOI8_GRIDS)
    # Above, the first and the last value of each of the stand-in's is changed.
    assert list(attribution_grids(file)) == list(attribution_grids(published[1]["ioi8"]))


def test_published_attribution_is_what_it_is_taken_for():
    """What holds between the published grids whatever the model: which site each is of, and that heads add up."""
    ioi8 = json.loads((verify.DATA / "gpt2_transformerlens.json").read_text(encoding="utf-8"))["ioi8"]
    stream, heads = np.array(ioi8[verify.IOI8_STREAM]), np.array(ioi8[verify.IOI8_HEADS[0]])
    np.testing.assert_allclose(stream[:-1:2], ioi8["attrib_resid_pre"], atol=1e-5)  # two versions of the notebook
    assert not stream[-2:, :-1].any() and (np.abs(stream[-2:, -1] - 1) < 0.02).all()  # the last position alone is read
    # A head's output is a term of the attention's, which is linear in it: summed over heads, over positions.
    np.testing.assert_allclose(heads[0].sum(axis=1), np.sum(ioi8["attrib_attn_out"], axis=1), atol=1e-6)
    # In the last block little is left to be nonlinear: each grid is nearest to the exact one of its own site.
    exact = [ioi8[f"head_{site}_allpos"][-1] for site in verify.IOI8_HEADS[1]]
    apart = [[np.abs(grid[-1] - other).max() for other in exact] for grid in heads]
    assert np.argmin(apart, axis=1).tolist() == [0, 1, 2, 3, 4]
    for site in ("attn_out", "mlp_out"):
        np.testing.assert_allclose(ioi8[f"attrib_{site}"][-1], ioi8[f"{site}_layer_pos"][-1], atol=0.01)


def test_standin_has_something_to_find(published):
    """Its grids and attributions are not all 0, nor 0 and 1, so that a wrong index would show."""
    lens = published[1]
    for grid in (lens["ioi8"]["resid_pre_layer_pos"], lens["main_demo"]["resid_pre_layer_pos"]):
        assert grid[0].count(1.0) == 1 and sum(abs(cell) > 0.005 for cell in grid[1]) >= 3
    grids = {name: np.array(lens["ioi8"][name]) for name in verify.IOI8_GRIDS}
    for name, grid in grids.items():
        values = np.unique(grid[np.abs(grid) > 0.005])
        assert values.size >= 3 and np.diff(values).min() > 0.001, name
        others = [other for key, other in grids.items() if key != name and other.shape == grid.shape]
        assert all(np.abs(grid - other).max() > 0.1 for other in others), name
    grids = {}
    for key, *index in attribution_grids(lens["ioi8"]):
        grid = np.array(lens["ioi8"][key][index[0]] if index else lens["ioi8"][key])
        grids[(key, *index)] = grid
        values = np.unique(grid[np.abs(grid) > 0.005])
        assert values.size >= 3 and np.diff(values).min() > 0.001, (key, index)
    for key, grid in grids.items():
        others = [other for name, other in grids.items() if name != key and other.shape == grid.shape]
        assert all(np.abs(grid - other).max() > 0.02 for other in others), key
    for key in ("dla_logit_lens_pre_mid", "dla_layers_embed_pos_attn_mlp", "dla_heads"):
        values = np.unique(np.array(lens["ioi8"][key]))
        assert np.diff(values).min() > 0.001 and values.size == np.size(lens["ioi8"][key])


def test_published_files_are_laid_out_as_the_standin_is():
    """Same keys, same nesting, in the parts that are compared; so the code that ran above runs on the real ones."""
    for ours, source in zip(standin_files(), SOURCES, strict=True):
        theirs = json.loads((verify.DATA / f"gpt2_{source}.json").read_text(encoding="utf-8"))

        def assert_same_layout(a, b, path=source):
            assert isinstance(b, type(a)) or {type(a), type(b)} == {int, float}, path
            if isinstance(a, dict):
                assert set(a) <= set(b), path
                for key in a:
                    assert_same_layout(a[key], b[key], f"{path}/{key}")
            elif isinstance(a, list):
                assert_same_layout(a[0], b[0], f"{path}[0]")

        assert_same_layout(ours, theirs)


def test_live_standin_is_what_pytorch_computes_now(tmp_path, monkeypatch):
    for name in ("torch", "transformers"):
        pytest.importorskip(name, reason="`pip install torch transformers` makes this test run")
    monkeypatch.syspath_prepend(ROOT / "scripts")  # one script there imports the other
    make_reference.make_standin(tmp_path)

    def assert_near(a, b, path):
        if isinstance(a, float):
            assert abs(a - b) < 2e-4, path  # float32, and one unit of a rounded value's last decimal is 1e-4 at least
        elif isinstance(a, dict):
            assert a.keys() == b.keys(), path
            for key in a:
                assert_near(a[key], b[key], f"{path}/{key}")
        elif isinstance(a, list):
            assert len(a) == len(b), path
            for i, (one, other) in enumerate(zip(a, b, strict=True)):
                assert_near(one, other, f"{path}[{i}]")
        else:
            assert a == b, path

    for ours, source in zip(standin_files(), SOURCES, strict=True):
        made = json.loads((tmp_path / f"standin_{source}.json").read_text(encoding="utf-8"))
        assert_near(made, ours, source)


def real_gpt2_is_here():
    if (hub.weights_folder() / "gpt2" / "model.safetensors").is_file():
        return True
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return False
    published = hub.PUBLISHED["gpt2"]
    return any(
        isinstance(try_to_load_from_cache(repo, "model.safetensors", revision=published.revision), str)
        for repo in (published.repo, "gpt2")
    )


# ---- the report's experiment, by way of the stand-in --------------------------------------------------

#: Of each check, where one of its numbers is in the file, and by how much more than its tolerance it is changed.
#: Two are its first and its last number.
CHANGES = {
    "token ids, four prompts": [(("next_token", "prompts", i, "token_ids", i), 1) for i in (0, -1)],
    "probabilities, the 20 highest": [(("next_token", "prompts", i, "top20", i, 1), 0.0003) for i in (0, -1)],
    "logits, the 20 highest": [(("next_token", "prompts", i, "top20", i, 2), 0.002) for i in (0, -1)],
    "logits of the answers": [(("next_token", "prompts", i, "more_logits", i, 1), 0.002) for i in (0, -1)],
    **{
        name: [((*index, i, i), 0.002) for i in (0, -1)]
        for name, index in (
            ("resid_post patched by layer x position, michelle", ("michelle", "resid_post")),
            ("attn_out patched by layer x position, michelle", ("michelle", "attn_out")),
            ("resid_mid past the MLP, michelle", ("michelle", "resid_mid_past_mlp")),
            ("resid_post patched by layer x position, wizard", ("wizard", "resid_post")),
            ("attn_out patched by layer x position, wizard", ("wizard", "attn_out")),
        )
    },
    "resid_post from wrong places, michelle": [(("michelle", "wrong_places", i, -1), 0.002) for i in (0, -1)],
    "resid_post mixed, michelle": [(("michelle", "mixtures", i, -1), 0.002) for i in (0, -1)],
    "logit differences, michelle": [(("michelle", f"baseline_{w}"), 0.002) for w in ("clean", "corrupted")],
    "logit differences, wizard": [(("wizard", f"baseline_{w}"), 0.002) for w in ("clean", "corrupted")],
    "variants of the wizard prompt": [(("variants", "pairs", i, "scores", i), 0.002) for i in (0, -1)],
    "greedy continuations": [(("greedy", i, "continuation", i), 1) for i in (0, -1)],
    "ln_final": [(("ln_final", "values", i), 0.011) for i in (0, -1)],
    "loss, llm.c's first batch": [(("losses", "llmc", "debug_loss"), 3e-5)],
    "loss, llm.c's validation": [(("losses", "llmc", "val_loss"), 3e-5)],
    "loss, Hello world!": [(("losses", "hello_world", "loss"), 6e-5)],
}
FOR_INFORMATION = {
    EXPERIMENT_CHECKS[14]: (("top40", "prompts", -1, "top20", -1, 1), 0.25),
    EXPERIMENT_CHECKS[16]: (("greedy_float16", "prompts", -1, "continuation", -1), 1),
}


def test_every_check_of_the_experiment_has_a_number_that_is_changed():
    assert {*CHANGES, *FOR_INFORMATION} == set(EXPERIMENT_CHECKS)


@pytest.mark.parametrize("by", [1, -1])
@pytest.mark.parametrize("last", [0, 1])
def test_a_number_of_the_experiment_that_is_off_fails_its_check(standin, of_experiment, by, last):
    """The first number of each check, or the last, changed by more than its tolerance: each check fails."""
    for index, step in (changes[-1 if last else 0] for changes in CHANGES.values()):
        change(of_experiment, index, by * step)
    checks = {check.name: check for check in verify.experiment_checks(standin, of_experiment)}
    assert tuple(checks) == EXPERIMENT_CHECKS
    assert failed(checks.values()) == set(CHANGES)
    layer, position = (1, -1) if last else (0, 0)
    for name in CHANGES:
        if " patched by " in name or "past the MLP" in name:
            n_tokens = 21 if name.endswith("wizard") else 11
            assert checks[name].where == f"layer {layer}, position {position % n_tokens}"


@pytest.mark.parametrize("name", CHANGES)
def test_a_number_of_the_experiment_that_is_off_fails_alone(standin, of_experiment, name):
    (index, step), *_ = CHANGES[name]
    change(of_experiment, index, step)
    assert failed(verify.experiment_checks(standin, of_experiment)) == {name}


def test_numbers_of_doubtful_origin_are_shown_and_never_fail(standin, of_experiment):
    right = {check.name: check.difference for check in verify.experiment_checks(standin, of_experiment)}
    for name, (index, step) in FOR_INFORMATION.items():
        assert right[name] < 1.5e-4
        change(of_experiment, index, step)
    wrong = {check.name: check for check in verify.experiment_checks(standin, of_experiment)}
    for name, (_, step) in FOR_INFORMATION.items():
        assert wrong[name].ok and wrong[name].difference > 0.9 * step


def test_a_likelier_token_that_is_not_published_fails(standin, of_experiment):
    """The published tokens have the right values, and the likeliest of them is left out."""
    of_experiment["next_token"]["prompts"][0]["top20"].pop(0)
    names = {"probabilities, the 20 highest", "logits, the 20 highest"}
    assert failed(verify.experiment_checks(standin, of_experiment)) == names


def test_experiment_of_a_model_with_other_layers_is_refused(standin, of_experiment):
    of_experiment["michelle"]["resid_post"].append([0] * 11)
    for check in (
        lambda: list(verify.experiment_checks(standin, of_experiment)),
        lambda: verify.report_picture(standin, of_experiment["michelle"]),
    ):
        with pytest.raises(NanopatchError, match="GPT-2 small, which has 3 layers, and .* has 2: download gpt2 again"):
            check()


def test_standins_experiment_has_something_to_find(of_experiment):
    """Its grids are not all of one value, nor alike, so that a wrong index, site or layer would show."""
    grids = [np.array(of_experiment["michelle"][site]) for site in ("resid_post", "attn_out", "resid_mid_past_mlp")]
    grids += [np.array(of_experiment["wizard"][site]) for site in ("resid_post", "attn_out")]
    for grid in grids:
        assert np.unique(np.round(grid, 2)).size >= 5
        assert all(
            np.abs(grid - other).max() > 0.02 for other in grids if other is not grid and other.shape == grid.shape
        )
    values = sorted(row[-1] for key in ("wrong_places", "mixtures") for row in of_experiment["michelle"][key])
    assert len(np.unique(np.round(values, 3))) >= 12


def test_published_experiment_is_what_it_is_taken_for():
    """What holds between the published numbers whatever the model."""
    file = json.loads((verify.DATA / "gpt2_published.json").read_text(encoding="utf-8"))
    prompts = {entry["prompt"]: entry for entry in file["next_token"]["prompts"]}
    for name in ("michelle", "wizard"):
        pair = file[name]
        answers = [tokenizer.encode(pair[which])[0] for which in ("answer", "wrong_answer")]
        for which in ("clean", "corrupted"):
            logits = dict(prompts[pair[which]]["more_logits"])
            difference = logits[answers[0]] - logits[answers[1]]
            assert abs(difference - pair[f"baseline_{which}"]) < 2e-4
        # At the last position, the last block's resid_post is all that the logits read.
        assert abs(pair["resid_post"][-1][-1] - pair["baseline_clean"]) < 1e-3
        assert np.shape(pair["resid_post"]) == np.shape(pair["attn_out"])
    michelle = file["michelle"]
    assert michelle["clean"] == nanopatch.experiments.MICHELLE.clean
    # In the last block the MLP's output at the last position is the only difference between the two patches.
    np.testing.assert_allclose(
        np.array(michelle["resid_mid_past_mlp"])[-1, :-1], michelle["baseline_corrupted"], atol=1e-3
    )
    for entry in prompts.values():
        assert tokenizer.encode(entry["prompt"]) == entry["token_ids"]
    for entry in [*prompts.values(), *file["top40"]["prompts"]]:
        values = [row[1] for row in entry["top20"]]
        assert len(values) == 20 and values == sorted(values, reverse=True)
    llmc = file["losses"]["llmc"]
    assert len(llmc["token_ids"]) == np.prod(llmc["shape"]) + 1


def test_the_published_picture_stands_beside_the_models_own(standin, of_experiment, tmp_path, monkeypatch):
    (tmp_path / "gpt2_published.json").write_text(json.dumps(of_experiment))
    monkeypatch.setattr(verify, "DATA", tmp_path)
    monkeypatch.setattr(verify, "load", lambda name: standin)
    panels = verify.picture("gpt2")
    assert list(panels) == ["published", "computed here"]
    theirs, ours = panels.values()
    assert theirs.grid.tolist() == of_experiment["michelle"]["resid_post"]
    np.testing.assert_allclose(theirs.grid, ours.grid, atol=1e-3)
    assert theirs.baseline_clean == of_experiment["michelle"]["baseline_clean"]
    assert "cacs2-ua" in theirs.source.name and "cacs2-ua" in panels._picture().texts[-1].get_text()
    panels.save(tmp_path / "both.png")
    assert (tmp_path / "both.png").read_bytes().startswith(b"\x89PNG")


def test_published_values_of_the_real_gpt2():
    if not real_gpt2_is_here():
        pytest.skip("the real GPT-2 is not here: `nanopatch download gpt2` makes this test run")
    report = verify.verify("gpt2")
    assert report.ok, str(report)


# ---- the report -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["distilgpt2", "some/model", ""])
def test_a_model_without_reference_values(name):
    with pytest.raises(NanopatchError) as caught:
        verify.verify(name)
    assert str(caught.value) == f"there are no reference values for {name!r}; there are some for nano and gpt2"


REPORT = Report(
    "toy",
    "PyTorch 2",
    (Check("float64 q", 2e-15, "layer 1", 1.5, 1.5e-9), Check("logits", math.inf, "", 120.0, 0.001)),
)


def test_report_prints_as_a_table():
    assert str(REPORT) == "\n".join(
        [
            "toy: PyTorch 2",
            "           difference  allowed  largest |value|  at",
            "float64 q       2e-15  1.5e-09              1.5  layer 1  ok",
            "logits            inf    0.001              120           FAIL",
            "1 of 2 checks FAIL: logits",
        ]
    )
    assert str(Report("toy", "PyTorch 2", REPORT.checks[:1])).splitlines()[-1] == "all ok"


def test_report_as_json(tmp_path):
    q = dict(name="float64 q", difference=2e-15, where="layer 1", largest=1.5, bound=1.5e-9, ok=True)
    logits = dict(name="logits", difference="inf", where="", largest=120.0, bound=0.001, ok=False)
    content = {"model": "toy", "reference": "PyTorch 2", "ok": False, "checks": [q, logits]}
    assert REPORT.to_dict() == content
    text = REPORT.to_json(tmp_path / "report.json")
    assert (tmp_path / "report.json").read_text(encoding="utf-8") == text
    assert json.loads(text, parse_constant=pytest.fail) == content
    undefined = Report("toy", "PyTorch 2", (Check("logits", math.nan, "", 120.0, 0.001),))
    assert undefined.to_dict()["checks"][0]["difference"] is None


@pytest.mark.parametrize(
    ("difference", "ok"), [(0.0, True), (1.0, True), (1.1, False), (math.inf, False), (math.nan, False)]
)
def test_a_check_holds_up_to_its_bound(difference, ok):
    check = Check("x", difference, "", 1.0, 1.0)
    assert check.ok is ok
    assert Report("m", "r", (check,)).ok is ok
