"""llm.c's files: what a header may say, and what is refused. `test_layouts` has the property of all models."""

import re
import struct

import numpy as np
import pytest
import writers
from conftest import tiny_model
from writers import rounded

import nanopatch
from nanopatch import NanopatchError
from nanopatch.model.backward import named_weights
from nanopatch.model.llmc_file import read_debug_state, tensor_order

MODEL = tiny_model(dtype=np.float32, n_inner=48)
WEIGHTS = named_weights(MODEL)
WHOLE = writers.llmc(WEIGHTS, 2, n_padding=3)


def load(path, content):
    path.write_bytes(content)
    return nanopatch.load(path)


def test_the_rows_of_padding_are_left_out(tmp_path):
    model = load(tmp_path / "a.bin", WHOLE)
    assert model.wte.shape == (29, 12) and model.lm_head is model.wte and model.config == MODEL.config
    assert model.wte.tobytes() == WEIGHTS["wte.weight"].tobytes()


def test_bfloat16(tmp_path):
    model = load(tmp_path / "a.bin", writers.llmc(WEIGHTS, 2, "BF16", 3))
    for name, array in named_weights(model).items():
        assert array.tobytes() == rounded(WEIGHTS[name], "BF16").astype(np.float32).tobytes()


HEADERS = {
    "version 1": (dict(n1=1), "version 1; versions 3 and 5 can be read"),
    "version 0": (dict(n1=0), "version 0; versions 3 and 5"),
    "version below 0": (dict(n1=-3), "version -3; versions 3 and 5"),
    "bfloat16 by its version": (dict(n1=5), r"has [\d,]+ bytes, and its header says"),
    "another magic": (dict(n0=20240329), "begins with"),
    "a debug state": (dict(n0=20240327), r"begins with 20240327: it is llm\.c's debug state, not a model; give one"),
    "a tokenizer": (dict(n0=20240328), r"it is llm\.c's tokenizer, not a model"),
    "no positions": (dict(n2=0), "sizes that cannot be"),
    "layers below 0": (dict(n4=-1), "sizes that cannot be"),
    "no heads": (dict(n5=0), "sizes that cannot be"),
    "heads that do not divide": (dict(n5=5), "n_embd 12 must be a multiple of n_head 5"),
    "padded to fewer": (dict(n7=28), "sizes that cannot be"),
    "all huge": ({f"n{i}": 2**31 - 1 for i in range(2, 8)}, "sizes that cannot be"),
    "a huge width": (dict(n6=2**31 - 1), "bytes, and its header says"),
    "a huge vocabulary": (dict(n3=2**31 - 1, n7=2**31 - 1), "bytes, and its header says"),
    "one layer more": (dict(n4=4), "bytes, and its header says"),
    "one layer fewer": (dict(n4=2), "bytes, and its header says"),
    "less padding": (dict(n7=30), "bytes, and its header says"),
}


@pytest.mark.parametrize("header, message", HEADERS.values(), ids=HEADERS)
def test_a_header_that_cannot_be(tmp_path, header, message):
    with pytest.raises(NanopatchError, match=message) as caught:
        load(tmp_path / "a.bin", writers.llmc(WEIGHTS, 2, n_padding=3, **header))
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [WHOLE[:-1], WHOLE[:-4], WHOLE + b"\0", WHOLE + bytes(48), WHOLE[:1024], WHOLE[:1023], WHOLE[:4], WHOLE[:40]],
)
def test_a_file_that_is_shorter_or_longer(tmp_path, content):
    with pytest.raises(NanopatchError, match="bytes, and its header says|is not a checkpoint of llm.c|begins with"):
        load(tmp_path / "a.bin", content)


def test_layers_of_almost_nothing_take_no_memory(tmp_path):
    """A block of one number a vector takes 50 bytes of the file, and would take 3,000 of the memory."""
    n_layer = 2000
    sizes = np.zeros(256, "<i4")
    sizes[:8] = 20240326, 5, 1, 1, n_layer, 1, 1, 1
    n_numbers = sum((n_layer if "{i}" in name else 1) * int(np.prod(s)) for name, s in tensor_order(n_layer, 1, 1, 1))
    with pytest.raises(NanopatchError, match="sizes that cannot be"):
        load(tmp_path / "a.bin", sizes.tobytes() + bytes(2 * n_numbers))


# ---- the debug state ------------------------------------------------------------------------------


def state(n_padding=3, **header):
    """A debug state of one batch of (2, 4) tokens, with gradients of the model's shapes, and what it holds."""
    rng = np.random.default_rng(0)
    tokens, targets = rng.integers(0, 29, (2, 2, 4)).astype(np.int32)
    logits, loss = rng.normal(size=(2, 4, 29)).astype(np.float32), np.float32(3.5)
    gradients = {name: rng.normal(size=array.shape).astype(np.float32) for name, array in WEIGHTS.items()}
    numbers = np.zeros(256, "<i4")
    numbers[:4] = 20240327, 2, 2, 4
    for name, value in header.items():
        numbers[int(name[1:])] = value
    parts = [numbers, tokens, targets, logits, loss]
    content = b"".join(part.tobytes() for part in parts) + writers.llmc(gradients, 2, n_padding=n_padding)[1024:]
    return content, tokens, targets, logits, loss, gradients


@pytest.mark.parametrize("n_padding", [0, 3])
def test_a_debug_state(tmp_path, n_padding):
    content, tokens, targets, logits, loss, gradients = state(n_padding)
    (tmp_path / "a.bin").write_bytes(content)
    found = read_debug_state(tmp_path / "a.bin", 3, 12, 29, 12)
    for ours, expected in zip(found[:4], (tokens, targets, logits, loss), strict=True):
        np.testing.assert_array_equal(ours, expected)
    assert found.gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        np.testing.assert_array_equal(found.gradients[name], gradient)


@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda c: c[:-1], "another size"),
        (lambda c: c[:-4], "another size"),
        (lambda c: c[: -48 * 40], "another size"),
        (lambda c: c[:100], "does not begin with 20240327"),
        (lambda c: WHOLE, "does not begin with 20240327"),
        (lambda c: c[:4] + struct.pack("<i", 1) + c[8:], "version 1; version 2 can be read"),
        (lambda c: c[:8] + struct.pack("<i", 0) + c[12:], "another size"),
        (lambda c: c[:8] + struct.pack("<i", -2) + c[12:], "another size"),
        (lambda c: c[:8] + struct.pack("<ii", 2**31 - 1, 2**31 - 1) + c[16:], "another size"),
    ],
)
def test_a_debug_state_that_is_not_whole(tmp_path, edit, message):
    (tmp_path / "a.bin").write_bytes(edit(state()[0]))
    with pytest.raises(NanopatchError, match=re.escape(message)):
        read_debug_state(tmp_path / "a.bin", 3, 12, 29, 12)
