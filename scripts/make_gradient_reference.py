"""Make the reference gradients that `nanopatch/model/backward.py` is checked against, with PyTorch's autograd.

    python scripts/make_gradient_reference.py            tests/reference_gradients/*.npz
    python scripts/make_gradient_reference.py tiny       the tiny models of make_reference.py alone
    python scripts/make_gradient_reference.py nano [--model FOLDER]

It needs `pip install torch transformers`; the files are read without them. The derivatives are those of
`sum(d_logits * logits)`, in float64. Each file holds, for one model:

    header           JSON: the config, the versions, SHA-256 of the model file (nano)
    tokens           the prompt; a tiny model's is that of tests/reference/tiny_*.npz, which has its weights too
    d_logits         random numbers (tiny only)
    columns          the two token ids at which d_logits is 1 and -1, at the last position (nano only)
    array.NAME       the derivative with respect to every array of `nanopatch.model.sites.SITES`, stacked over layers.
                     Two arrays with the same derivative are stored once: see `SAME`
    weight.KEY       the derivative with respect to every weight (tiny only)
    sample.KEY       some entries of the derivative with respect to every weight, see `sample` (nano only). In `wte`
                     only the rows of the prompt's tokens and of `columns` are sampled; the others are 0
    norm.KEY         the Euclidean norm of the whole derivative (nano only)
"""

import argparse
import contextlib
import json
from pathlib import Path

import numpy as np
from make_reference import ROOT, SIZES, TINY, pytorch_model, pytorch_nano, random_tensors, write_npz

import nanopatch
from nanopatch.model import tokenizer
from nanopatch.model.sites import FINAL_SITES

FOLDER = ROOT / "tests" / "reference_gradients"
NANO_PROMPT = " Michelle Jones. Michelle"
NANO_ANSWERS = (" Jones", " Smith")

#: Names with the same derivative as another name: both terms of a sum have the derivative of the sum.
SAME = {"mlp_out": "resid_post", "attn_out": "resid_mid"}


def pytorch_gradients(model, tokens, d_logits):
    """Derivatives of sum(d_logits * logits) by PyTorch's autograd: ({name: array}, {checkpoint key: array}).

    model: Hugging Face's, with eager attention; tokens: (n_tokens,) or (batch, n_tokens); d_logits:
    (..., n_tokens, n_vocab), in the model's number format. Arrays are shaped as `nanopatch.Run` has them.
    """
    import torch

    config, d_model = model.config, model.config.n_embd
    kept = {name: [] for name in ("resid_pre", "qkv", "scores", "pattern", "z", "attn_out", "resid_mid")}
    kept |= {name: [] for name in ("mlp_pre", "mlp_post", "mlp_out", "resid_post", "ln_final")}

    def on_input(module, name):
        return module.register_forward_pre_hook(lambda _, arguments: kept[name].append(arguments[0]))

    def on_output(module, name):
        def hook(_, arguments, output):
            kept[name].append(output[0] if isinstance(output, tuple) else output)

        return module.register_forward_hook(hook)

    softmax = torch.nn.functional.softmax

    def watched_softmax(scores, *arguments, **options):
        kept["scores"].append(scores)
        kept["pattern"].append(softmax(scores, *arguments, **options))
        return kept["pattern"][-1]

    batched = np.ndim(tokens) == 2
    ids, d_logits = (torch.from_numpy(a if batched else a[None]) for a in (np.asarray(tokens), d_logits))
    blocks = model.transformer.h
    with contextlib.ExitStack() as stack:
        handles = [on_output(model.transformer.ln_f, "ln_final")]
        for block in blocks:
            handles += [
                on_input(block, "resid_pre"),
                on_output(block.attn.c_attn, "qkv"),
                on_input(block.attn.c_proj, "z"),
                on_output(block.attn, "attn_out"),
                on_input(block.ln_2, "resid_mid"),
                on_output(block.mlp.c_fc, "mlp_pre"),
                on_input(block.mlp.c_proj, "mlp_post"),
                on_output(block.mlp, "mlp_out"),
                on_output(block, "resid_post"),
            ]
        for handle in handles:
            stack.callback(handle.remove)
        stack.callback(setattr, torch.nn.functional, "softmax", softmax)
        torch.nn.functional.softmax = watched_softmax
        kept["logits"] = [model(ids, use_cache=False).logits]

    parameters = dict(model.named_parameters())
    tensors = [tensor for layers in kept.values() for tensor in layers]
    results = iter(torch.autograd.grad(kept["logits"], [*tensors, *parameters.values()], d_logits))
    gradients = {name: [next(results) for _ in layers] for name, layers in kept.items()}
    weights = {key.removeprefix("transformer."): next(results).numpy() for key in parameters}

    # In PyTorch's GPT-2, queries, keys and values read one array, and the MLP reads the residual stream itself. So each
    # reader's own derivative is computed here, from the derivative of its output, back through its LayerNorm alone.
    def through(reader, x, d_output):
        x = x.detach().requires_grad_()
        return torch.autograd.grad(reader(x), x, d_output)[0]

    for i, name in enumerate(("q", "k", "v")):
        gradients[f"{name}_input"] = []
        for block, x, d_qkv in zip(blocks, kept["resid_pre"], gradients["qkv"], strict=True):
            own = torch.zeros_like(d_qkv)
            own[..., i * d_model : (i + 1) * d_model] = d_qkv[..., i * d_model : (i + 1) * d_model]
            gradients[f"{name}_input"].append(through(lambda x, b=block: b.attn.c_attn(b.ln_1(x)), x, own))
        gradients[name] = [d_qkv.split(d_model, dim=-1)[i] for d_qkv in gradients["qkv"]]
    gradients["mlp_in"] = [
        through(lambda x, b=block: b.mlp.c_fc(b.ln_2(x)), x, d_mlp_pre)
        for block, x, d_mlp_pre in zip(blocks, kept["resid_mid"], gradients["mlp_pre"], strict=True)
    ]
    del gradients["qkv"]

    arrays = {}
    for name, layers in gradients.items():
        array = np.stack([layer.numpy() for layer in layers])
        if name in ("q", "k", "v", "z"):
            array = array.reshape(*array.shape[:-1], config.n_head, d_model // config.n_head)
        array = array if batched else array[:, 0]
        arrays[name] = array[0] if name in FINAL_SITES else array
    return arrays, weights


def random_d_logits(tokens, n_vocab, seed):
    """A derivative for each logit, float64, from fixed random numbers in [-1, 1): (..., n_tokens, n_vocab)."""
    raw = np.random.PCG64(seed).random_raw(tokens.size * n_vocab).reshape(*tokens.shape, n_vocab)
    return (raw >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1


def sample(key, gradient, rows):
    """About 500 entries of a weight's derivative, evenly spread; in `wte` only in the given rows."""
    flat = (gradient[rows] if key == "wte.weight" else gradient).ravel()
    return flat[:: max(1, flat.size // 500)]


def reference(model, tokens, d_logits, **header):
    """What the files of both kinds hold, and the derivatives with respect to the weights."""
    import torch
    import transformers

    arrays, weights = pytorch_gradients(model.double(), tokens, d_logits)
    for name, twin in SAME.items():
        assert np.array_equal(arrays.pop(name), arrays[twin]), f"the derivative for {name} is not that for {twin}"
    assert np.array_equal(arrays.pop("logits"), d_logits)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "numpy": np.__version__}
    stored = {"header": np.array(json.dumps({"versions": versions, **header})), "tokens": tokens}
    return stored | {f"array.{name}": array for name, array in arrays.items()}, weights


def make_tiny():
    """One file for each tiny model of make_reference.py, with its weights and its prompt."""
    for seed, (name, (changes, _)) in enumerate(TINY.items()):
        config = {**SIZES, **changes}
        with np.load(ROOT / "tests" / "reference" / f"tiny_{name}.npz") as file:
            tokens = file["tokens"]
        d_logits = random_d_logits(tokens, config["vocab_size"], 3000 + seed)
        model = pytorch_model(config, random_tensors(config, seed))
        stored, weights = reference(model, tokens, d_logits, config=config)
        stored |= {f"weight.{key}": array for key, array in weights.items()}
        write_npz(FOLDER / f"tiny_{name}.npz", stored | {"d_logits": d_logits})


def make_nano(folder):
    """The default model's file: the logit difference of two surnames after a short prompt."""
    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    tokens = np.array(tokenizer.encode(NANO_PROMPT))
    columns = np.array([tokenizer.encode(answer) for answer in NANO_ANSWERS])[:, 0]
    d_logits = np.zeros((tokens.size, config["vocab_size"]))
    d_logits[-1, columns] = 1, -1
    header = dict(config=config, prompt=NANO_PROMPT, sha256=nanopatch.load(folder).source.sha256)
    stored, weights = reference(pytorch_nano(folder), tokens, d_logits, **header)
    rows = np.unique([*tokens, *columns])
    assert not np.delete(weights["wte.weight"], rows, axis=0).any()
    stored |= {f"sample.{key}": sample(key, array, rows) for key, array in weights.items()}
    stored |= {f"norm.{key}": np.linalg.norm(array) for key, array in weights.items()}
    write_npz(FOLDER / "nano.npz", stored | {"columns": columns})


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", help="tiny, nano; both by default")
    parser.add_argument("--model", type=Path, default=ROOT / "weights" / "nano", help="folder of nano's checkpoint")
    arguments = parser.parse_args()
    makers = {"tiny": make_tiny, "nano": lambda: make_nano(arguments.model)}
    for what in arguments.what or makers:
        if what not in makers:
            parser.error(f"unknown {what!r}: give any of {', '.join(makers)}")
        makers[what]()


if __name__ == "__main__":
    main()
