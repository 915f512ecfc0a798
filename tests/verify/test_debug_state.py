"""A model against a debug state of llm.c.

`scripts/make_reference.py debug` wrote the state with PyTorch: of a tiny random model, in float32, with a padded
vocabulary. The real one, of GPT-2 small, is not available where these tests run.
"""

import importlib.util
import json

import numpy as np
import pytest
from conftest import REFERENCE, ROOT, tiny_model
from safetensors.numpy import save_file

import nanopatch
from nanopatch import NanopatchError
from nanopatch.cli import main
from nanopatch.model.backward import named_weights
from nanopatch.model.llmc_file import read_debug_state
from nanopatch.verify import debug_state, verify_debug_state

FILE = REFERENCE / "llmc_debug_state.bin"

spec = importlib.util.spec_from_file_location("make_reference", ROOT / "scripts" / "make_reference.py")
make_reference = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_reference)
SIZES = make_reference.SIZES

IN_BLOCK = ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
NAMES = (
    *("logits", "loss", "gradient of wte.weight", "gradient of wpe.weight"),
    *(f"gradient of {name}.{what}" for name in (*IN_BLOCK, "ln_f") for what in ("weight", "bias")),
)


def save(folder, **changes):
    """A folder with the model whose state it is."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2", **SIZES, **changes}))
    save_file(make_reference.random_tensors({**SIZES, **changes}, seed=0), folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def model(folder):
    return nanopatch.load(folder)


@pytest.fixture(scope="module")
def state(model):
    return read_debug_state(FILE, model.n_layer, model.d_model, model.n_vocab, model.n_ctx)


def failed(checks):
    return {check.name for check in checks if not check.ok}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_model_is_what_pytorch_computed(folder, dtype):
    """Far within the bounds: the differences are those of rounding float32 (5.3e-6 with the plainest kernel)."""
    report = verify_debug_state(nanopatch.load(folder, dtype), FILE)
    assert report.ok, str(report)
    assert report.model == str(folder) and report.reference == "the debug state llmc_debug_state.bin"
    assert tuple(check.name for check in report.checks) == NAMES
    assert all(check.difference < 2e-5 * check.largest for check in report.checks), str(report)


def test_every_weight_is_compared(model, state):
    assert state.gradients.keys() == named_weights(model).keys()


@pytest.mark.parametrize("sign", [1, -1])
def test_a_gradient_that_is_off_fails_alone(model, state, sign):
    """Each gradient in turn: its last number changed by two thousandths of its largest."""
    for key, gradient in state.gradients.items():
        wrong = gradient.copy()
        wrong[(-1,) * wrong.ndim] += sign * 2e-3 * np.abs(gradient).max()
        checks = list(debug_state.debug_state_checks(model, state._replace(gradients={**state.gradients, key: wrong})))
        name = f"gradient of {key.split('.', 2)[2] if key.startswith('h.') else key}"
        assert failed(checks) == {name}
        where = {check.name: check.where for check in checks}[name]
        assert where == (f"layer {key.split('.')[1]}" if key.startswith("h.") else "")


def test_logits_or_a_loss_that_are_off_fail_alone(model, state):
    logits = state.logits.copy()
    logits[-1, -1, -1] += 2e-4 * np.abs(logits).max()
    assert failed(debug_state.debug_state_checks(model, state._replace(logits=logits))) == {"logits"}
    wrong = state._replace(loss=state.loss * (1 + 2e-5))
    assert failed(debug_state.debug_state_checks(model, wrong)) == {"loss"}


def test_numbers_that_are_none_fail(model, state):
    nothing = {key: np.full_like(gradient, np.nan) for key, gradient in state.gradients.items()}
    wrong = state._replace(logits=np.full_like(state.logits, np.nan), loss=np.nan, gradients=nothing)
    assert failed(debug_state.debug_state_checks(model, wrong)) == set(NAMES)


def test_the_other_form_of_gelu_fails(tmp_path):
    other = nanopatch.load(save(tmp_path / "gelu", activation_function="gelu"))
    assert "logits" in failed(verify_debug_state(other, FILE).checks)


def test_a_file_that_cannot_be_used_is_a_clear_error(model, tmp_path):
    content = FILE.read_bytes()
    changed = bytearray(content)
    changed[1024 + 2 * 8 * 4 : 1028 + 2 * 8 * 4] = np.int32(SIZES["vocab_size"]).tobytes()  # the first target
    for name, data, message in (
        ("missing.bin", None, "cannot read .*missing.bin: No such file"),
        ("short.bin", content[:-4], "short.bin has another size than a debug state of this model has"),
        ("other.bin", b"not one" * 1000, "other.bin is not a debug state of llm.c"),
        ("targets.bin", bytes(changed), "targets.bin: its targets are not all token ids, 0 to 30"),
    ):
        if data is not None:
            (tmp_path / name).write_bytes(data)
        with pytest.raises(NanopatchError, match=message):
            verify_debug_state(model, tmp_path / name)


def test_models_that_llmc_has_not_are_refused(model, tmp_path):
    untied = nanopatch.load(save(tmp_path / "untied", tie_word_embeddings=False))
    for other in (untied, tiny_model()):  # the second has an MLP of another width
        with pytest.raises(NanopatchError, match="llm.c's models have a tied lm_head and an MLP of width"):
            verify_debug_state(other, FILE)
    with pytest.raises(NanopatchError, match="first the model"):
        verify_debug_state("gpt2", FILE)


def test_on_the_command_line(folder, tmp_path, capsys):
    assert main(["verify", str(folder), "--debug-state", str(FILE), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] and [check["name"] for check in report["checks"]] == list(NAMES)
    assert main(["verify", str(folder), "--debug-state", str(tmp_path / "missing.bin")]) == 1
    assert capsys.readouterr().err.startswith("nanopatch: cannot read ")
    other = save(tmp_path / "gelu", activation_function="gelu")
    assert main(["verify", str(other), "--debug-state", str(FILE)]) == 1
    assert "checks FAIL: logits" in capsys.readouterr().out


def test_live_state_is_what_pytorch_computes_now(tmp_path):
    for name in ("torch", "transformers"):
        pytest.importorskip(name, reason="`pip install torch transformers` makes this test run")
    make_reference.make_debug_state(tmp_path)
    sizes = SIZES["n_layer"], SIZES["n_embd"], SIZES["vocab_size"], SIZES["n_positions"]
    now, stored = (read_debug_state(path, *sizes) for path in (tmp_path / FILE.name, FILE))
    assert np.array_equal(now.tokens, stored.tokens) and np.array_equal(now.targets, stored.targets)
    assert abs(now.loss - stored.loss) < 1e-5
    for key, gradient in stored.gradients.items():
        np.testing.assert_allclose(now.gradients[key], gradient, rtol=0, atol=1e-5 * np.abs(gradient).max())
