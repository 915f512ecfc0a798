"""docs/comparison.md: each call of TransformerLens gives the numbers of the call of ours that stands beside it.

Tolerance: 1e-4 of the largest value, as both sum in float32, in another order.
"""

import re
import sys

import numpy as np
import pytest
from conftest import ROOT
from writers import transformer_lens

import nanopatch
from nanopatch.experiments import MICHELLE

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
    lens = pytest.importorskip("transformer_lens", reason=reason)
    import torch

    model = nanopatch.load("nano")
    config = lens.HookedTransformerConfig(
        n_layers=model.n_layer,
        d_model=model.d_model,
        n_heads=model.n_head,
        d_head=model.d_head,
        d_mlp=model.config.n_inner,
        n_ctx=model.config.n_positions,
        d_vocab=model.n_vocab,
        act_fn="gelu_new",
        normalization_type="LN",
        device="cpu",
    )
    hooked = lens.HookedTransformer(config)
    weights = transformer_lens(nanopatch.named_weights(model), model.n_head)
    weights.setdefault("unembed.W_U", model.lm_head.T)
    weights.setdefault("unembed.b_U", np.zeros(model.n_vocab, np.float32))
    state = {name: torch.tensor(np.ascontiguousarray(array)) for name, array in weights.items()}
    hooked.load_state_dict(hooked.state_dict() | state)
    hooked.eval()

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
