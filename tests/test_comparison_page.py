"""docs/comparison.md: each call of TransformerLens gives the numbers of the call of ours that stands beside it.

Tolerance: 1e-4 of the largest value, as both sum in float32, in another order.
"""

import re
import sys

import numpy as np
import pytest
from conftest import ROOT

import nanopatch
from nanopatch.experiments import MICHELLE

sys.path.append(str(ROOT / "scripts"))
from hooked import hooked_transformer  # noqa: E402

PAGE = (ROOT / "docs/comparison.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```py\n(.*?)```", PAGE, flags=re.DOTALL)
ROWS = re.findall(r"^\| `(.*?)` \| `(.*?)` \|$", PAGE, flags=re.MULTILINE)


def ours():
    """What the right side begins with."""
    names = {"nanopatch": nanopatch, "model": nanopatch.load("nano")}
    names |= {"text": MICHELLE.clean, "other_text": MICHELLE.corrupted}
    exec(BLOCKS[1], names)
    return names


@pytest.mark.parametrize(("theirs", "call"), ROWS, ids=[call for _, call in ROWS])
def test_ours_runs(theirs, call):
    assert theirs.startswith(("hooked", "cache", "patching"))
    assert eval(call, ours()) is not None


def test_the_loop_is_the_patch():
    names = ours()
    exec(BLOCKS[3], names)
    cell = nanopatch.sweep(names["model"], names["experiment"]).grid[1, 1]
    patched, jones, smith = (names[name] for name in ("patched", "jones", "smith"))
    assert patched[-1, jones] - patched[-1, smith] == pytest.approx(cell, rel=1e-5)


@pytest.fixture(scope="module")
def hooked():
    """nano as a HookedTransformer, with GPT-2's tokens."""
    reason = "`pip install torch 'transformer_lens<4'` makes this test run"
    pytest.importorskip("transformer_lens", reason=reason)
    import torch

    model = nanopatch.load("nano")
    hooked = hooked_transformer(model)

    def to_tokens(text, prepend_bos=True):  # the tokenizer of the hub is not here
        return torch.tensor(model.tokenize(text, prepend_bos=prepend_bos))[None]

    hooked.to_tokens = to_tokens
    hooked.to_str_tokens = lambda text, prepend_bos=True: model.token_strings(to_tokens(text, prepend_bos)[0].tolist())
    hooked.to_single_token = lambda text: int(model.tokenize(text)[0])
    torch.set_grad_enabled(False)
    yield hooked
    torch.set_grad_enabled(True)


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="TransformerLens needs an older Python")
@pytest.mark.filterwarnings("ignore")
def test_theirs_gives_the_same(hooked, capsys):
    from transformer_lens import patching

    theirs = {"hooked": hooked, "patching": patching, "text": MICHELLE.clean, "other_text": MICHELLE.corrupted}
    exec(BLOCKS[0], theirs)
    mine = ours()
    for left, right in ROWS:
        expected, actual = eval(left, theirs), eval(right, mine)
        if isinstance(actual, list):
            assert list(expected) == actual, left
            continue
        expected, actual = np.asarray(expected), np.asarray(actual)
        expected = expected.reshape(actual.shape)  # theirs has an axis of one prompt
        finite = np.isfinite(expected)
        worst = np.abs(expected - actual)[finite].max()
        assert worst <= 1e-4 * np.abs(expected[finite]).max(), (left, worst)
    exec(BLOCKS[2], theirs)
    exec(BLOCKS[3], mine)
    patched = np.asarray(theirs["patched"])[0]
    assert np.abs(patched - mine["patched"]).max() <= 1e-4 * np.abs(patched).max()
