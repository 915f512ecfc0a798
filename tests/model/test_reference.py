"""The forward pass against Hugging Face's GPT-2 in PyTorch: every named array, in every layer.

The files in `reference/` and `nanopatch/data/nano_reference.npz` were made by `scripts/make_reference.py`,
which says what is in them, and are read without PyTorch. Where torch and transformers are installed the same
comparison also runs on models and prompts that are not stored.

Tolerances are those of `nanopatch.verify`: float64 within 1e-9 of the largest |value| of a layer's array (both
round at 1e-16); float32 at most 1.5 times PyTorch float32's own error, for the logits and for every other
name: both programs do the same sums in another order, so that their errors are draws from the same
distribution, and averaged over many prompts they were measured to lie between 0.87 and 1.16 times
each other's.
"""

import importlib.util
import json
from dataclasses import replace

import numpy as np
import pytest
from conftest import REFERENCE, ROOT
from safetensors.numpy import save_file

import nanopatch
from nanopatch import verify
from nanopatch.model import tokenizer
from nanopatch.model.layers import ACTIVATIONS
from nanopatch.model.sites import BLOCK_SITES, SITES
from nanopatch.verify.report import largest_difference, largest_value

TINY = sorted(path.stem for path in REFERENCE.glob("tiny_*.npz"))

spec = importlib.util.spec_from_file_location("make_reference", ROOT / "scripts" / "make_reference.py")
make_reference = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_reference)


@pytest.fixture(scope="session")
def pytorch():
    for name in ("torch", "transformers"):
        pytest.importorskip(name, reason="`pip install torch transformers` makes this test run")


def load_both(folder, config, tensors):
    """(float32 model, float64 model), by way of a checkpoint's folder as `nanopatch.load` reads it."""
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2", **config}))
    save_file(tensors, folder / "model.safetensors")
    return nanopatch.load(folder), nanopatch.load(folder, dtype=np.float64)


@pytest.fixture(scope="module", params=TINY)
def tiny(request, tmp_path_factory):
    """(header, arrays, float32 model, float64 model) of one stored tiny model."""
    header, arrays = verify.read_reference(REFERENCE / f"{request.param}.npz")
    tensors = {key.removeprefix("weights."): array for key, array in arrays.items() if key.startswith("weights.")}
    return header, arrays, *load_both(tmp_path_factory.mktemp(request.param), header["config"], tensors)


def assert_ok(checks, names=SITES, kind="float64"):
    """Every check holds, and there is one for every name; else the worst names, with layer and figures."""
    checks = list(checks)
    assert {f"{kind} {name}" for name in names} <= {check.name for check in checks}
    failed = [check for check in checks if not check.ok]
    assert not failed, "\n".join(
        f"{check.name}, {check.where}: difference {check.difference:.3g}, allowed {check.bound:.3g}" for check in failed
    )


# ---- stored values ------------------------------------------------------------------------------


def test_float64_model_equals_pytorch_in_every_array_of_every_layer(tiny):
    header, arrays, _, exact = tiny
    assert_ok(verify.float64_checks(exact, header, arrays))


def test_float32_model_rounds_no_worse_than_pytorch(tiny):
    header, arrays, rounded, exact = tiny
    assert_ok(verify.float32_checks(rounded, exact, header, arrays), kind="float32")


def test_stored_models_turn_every_switch_both_ways():
    files = [verify.read_reference(REFERENCE / f"{name}.npz") for name in TINY]
    configs = [header["config"] for header, _ in files]

    def values(key, default):
        return {config.get(key, default) for config in configs}

    assert values("activation_function", "gelu_new") == set(ACTIVATIONS)
    for key, default in (
        ("scale_attn_weights", True),
        ("scale_attn_by_inverse_layer_idx", False),
        ("tie_word_embeddings", True),
    ):
        assert values(key, default) == {True, False}, key
    assert {1e-5} < values("layer_norm_epsilon", 1e-5)
    assert {None} < values("n_inner", None)
    assert {arrays["tokens"].ndim for _, arrays in files} == {1, 2}
    stored = {key.removeprefix("float64.") for key in files[0][1] if key.startswith("float64.")}
    assert stored | set(files[0][0]["same"]) == {*SITES, "logits_last"}


def test_stored_weights_are_not_special(tiny):
    """LayerNorms scale and shift, biases add, and heads attend unevenly: otherwise errors there would not show."""
    _, arrays, _, _ = tiny
    for key, array in arrays.items():
        if key.startswith("weights.") and array.ndim == 1:
            usual = 1 if "ln_" in key and key.endswith("weight") else 0
            assert np.abs(array - usual).min() > 0 and np.abs(array - usual).max() > 0.2, key
    last_query = arrays["float64.pattern"][..., -1, :]
    assert last_query.max(axis=-1).mean() > 3 / last_query.shape[-1]  # even attention: 1 / n_key


@pytest.mark.parametrize(
    ("name", "changes", "first"),
    [
        ("tiny_plain", dict(activation_function="gelu"), "mlp_post"),
        ("tiny_exact_gelu", dict(activation_function="gelu_new"), "mlp_post"),
        ("tiny_relu_unscaled", dict(activation_function="gelu_new"), "mlp_post"),
        ("tiny_exact_gelu", dict(layer_norm_epsilon=1e-5), "q"),
        ("tiny_relu_unscaled", dict(scale_attn_weights=True), "scores"),
        ("tiny_inverse_layer", dict(scale_attn_by_inverse_layer_idx=False), "scores"),
        ("tiny_everything", dict(scale_attn_by_inverse_layer_idx=False), "scores"),
    ],
)
def test_a_switch_that_is_not_honoured_is_noticed(name, changes, first, tmp_path):
    """The comparison fails, and the first array that is wrong is the one that the switch acts on."""
    header, arrays = verify.read_reference(REFERENCE / f"{name}.npz")
    tensors = {key.removeprefix("weights."): array for key, array in arrays.items() if key.startswith("weights.")}
    _, model = load_both(tmp_path, header["config"], tensors)
    model.config = replace(model.config, **changes)
    wrong = [
        (site.layer, site.name)
        for site in model.steps(arrays["tokens"])
        if site.layer is not None
        and not verify.float64_check(
            site.name, "", site.array, arrays[f"float64.{header['same'].get(site.name, site.name)}"][site.layer]
        ).ok
    ]
    inverse = "scale_attn_by_inverse_layer_idx" in changes  # layer 0's scores are divided by 1
    assert wrong[0] == (1 if inverse else 0, first)
    assert not all(check.ok for check in verify.float64_checks(model, header, arrays))


def test_a_lm_head_of_its_own_is_used(tmp_path):
    header, arrays = verify.read_reference(REFERENCE / "tiny_inverse_layer.npz")
    tensors = {key.removeprefix("weights."): array for key, array in arrays.items() if key.startswith("weights.")}
    del tensors["lm_head.weight"]
    _, model = load_both(tmp_path, {**header["config"], "tie_word_embeddings": True}, tensors)
    failed = {check.name for check in verify.float64_checks(model, header, arrays) if not check.ok}
    assert failed == {"float64 logits"}


def test_files_stay_small():
    assert sum(path.stat().st_size for path in REFERENCE.rglob("*")) < 1_500_000
    assert (verify.DATA / "nano_reference.npz").stat().st_size < 2_500_000


# ---- live, where torch is installed -----------------------------------------------------------------


def live_reference(model, config, tokens, many_tokens, columns):
    arrays = make_reference.reference(model, config, tokens, many_tokens, columns)
    return json.loads(str(arrays.pop("header"))), arrays


@pytest.mark.parametrize(
    ("changes", "shape"),
    [
        (dict(n_layer=1, n_head=1), (1,)),  # one token, one head, one layer
        (dict(n_layer=4, n_head=4, n_embd=32), (16,)),  # a whole context
        (dict(activation_function="gelu", scale_attn_by_inverse_layer_idx=True, n_inner=70), (3, 5)),
        (dict(activation_function="relu", tie_word_embeddings=False, scale_attn_weights=False), (1, 7)),
        (dict(layer_norm_epsilon=0.0), (2, 6)),
    ],
)
def test_live_random_models(pytorch, tmp_path, changes, shape):
    config = {**make_reference.SIZES, **changes}
    tensors = make_reference.random_tensors(config, seed=500)
    rng = np.random.default_rng(500)
    tokens, many_tokens = (rng.integers(0, config["vocab_size"], size) for size in (shape, (64, 10)))
    model = make_reference.pytorch_model(config, tensors)
    header, arrays = live_reference(model, config, tokens, many_tokens, np.arange(config["vocab_size"]))
    rounded, exact = load_both(tmp_path, config, tensors)
    assert_ok(verify.float64_checks(exact, header, arrays))
    assert_ok(verify.float32_checks(rounded, exact, header, arrays), kind="float32")


def test_live_nano(pytorch):
    prompts = ("When John and Mary went to the shops, John gave the bag to", "The capital of France is the city of")
    tokens = [tokenizer.encode(prompt) for prompt in prompts]
    n_tokens = min(map(len, tokens))
    model = make_reference.pytorch_nano(ROOT / "weights" / "nano")
    many_tokens = np.random.default_rng(501).integers(0, tokenizer.N_VOCAB, (32, 12))
    header, arrays = live_reference(
        model, {}, np.array([row[:n_tokens] for row in tokens]), many_tokens, np.arange(0, tokenizer.N_VOCAB, 100)
    )
    rounded, exact = nanopatch.load("nano"), nanopatch.load("nano", dtype=np.float64)
    assert_ok(verify.float64_checks(exact, header, arrays))
    assert_ok(verify.float32_checks(rounded, exact, header, arrays), kind="float32")


@pytest.mark.parametrize("name", TINY)
def test_live_stored_values_are_what_pytorch_computes_now(pytorch, name):
    """In float64, to 1e-12: another version of PyTorch, or another processor, may round otherwise, but no more."""
    header, arrays = verify.read_reference(REFERENCE / f"{name}.npz")
    tensors = make_reference.random_tensors(header["config"], header["seed"])
    assert {f"weights.{key}" for key in tensors} == {key for key in arrays if key.startswith("weights.")}
    for key, tensor in tensors.items():
        np.testing.assert_array_equal(tensor, arrays[f"weights.{key}"])
    model = make_reference.pytorch_model(header["config"], tensors).double()
    for site, array in make_reference.pytorch_run(model, arrays["tokens"]).items():
        stored = arrays[f"float64.{header['same'].get(site, site)}"]
        difference = largest_difference(array, stored)
        assert difference <= 1e-12 * largest_value(stored), f"{site}: {difference:.3g}"


@pytest.mark.parametrize("number_format", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("shards", [False, True])
@pytest.mark.parametrize("tied", [True, False])
def test_live_checkpoints_that_hugging_face_saves(pytorch, tmp_path, number_format, shards, tied):
    """save_pretrained, then nanopatch.load: the logits are those of the model that was saved, to 1e-9."""
    import torch

    config = {**make_reference.SIZES, "tie_word_embeddings": tied}
    model = make_reference.pytorch_model(config, make_reference.random_tensors(config, seed=502))
    model = model.to(getattr(torch, number_format))
    model.save_pretrained(tmp_path, **(dict(max_shard_size="10KB") if shards else {}))
    assert len(list(tmp_path.glob("*.safetensors"))) > 1 if shards else (tmp_path / "model.safetensors").is_file()
    tokens = np.arange(20, 30)
    expected = make_reference.pytorch_run(model.double(), tokens)["logits"]
    actual = nanopatch.load(tmp_path, dtype=np.float64).run(tokens).logits
    assert np.abs(actual - expected).max() <= 1e-9 * np.abs(expected).max()


def test_live_hooks_leave_no_trace(pytorch):
    """Reading a model's arrays changes neither the model nor torch: a second run finds the same."""
    import torch

    softmax = torch.nn.functional.softmax
    config = make_reference.SIZES
    model = make_reference.pytorch_model(config, make_reference.random_tensors(config, seed=503))
    first, second = (make_reference.pytorch_run(model, np.arange(8)) for _ in range(2))
    assert torch.nn.functional.softmax is softmax
    assert list(first) == [*BLOCK_SITES, "ln_final", "logits"]
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])
    with torch.no_grad():
        np.testing.assert_array_equal(model(torch.arange(8)[None]).logits[0].numpy(), first["logits"])
