"""Train the two small models of tests/reference/ in PyTorch, and store its values of every array inside them.

    python scripts/make_small_models.py

It needs `pip install torch`; the files are read without it. A minute on one core. Seeds are fixed, but PyTorch draws
and rounds differently from version to version, so a new run makes other weights.

`sorter_mingpt/` is laid out as minGPT leaves a model: `model.pt`, the state dict with biases, causal masks and an
`lm_head` of its own, and `config.json`, nested, with nulls. It reads five letters of three, then writes them sorted.

`names_nanogpt/` is laid out as nanoGPT leaves one: `ckpt.pt`, the state dict under "model", with torch.compile's prefix
and without biases, beside the sizes and the optimizer; and `meta.pkl`, the characters. It continues lines such as
"Ann has a cat."

Beside them, in `sorter_mingpt.npz` and `names_nanogpt.npz`:

    tokens  (batch, n_tokens): some prompts
    NAME    every array of `nanopatch.model.sites.SITES` that PyTorch computes, in float64, stacked over layers. Masked
            scores are -inf. `SAME` of scripts/make_reference.py names the arrays that are one in PyTorch's model
"""

from __future__ import annotations

import itertools
import json
import pickle
import random
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from nanopatch.model.sites import BLOCK_SITES

TESTS = Path(__file__).resolve().parent.parent / "tests" / "reference"

LETTERS, LENGTH = 3, 5  # of the sorter's inputs
SORTER = dict(n_layer=2, n_head=2, n_embd=12, vocab_size=LETTERS, block_size=2 * LENGTH - 1)
HAS = {"Ann": "cat", "Bob": "dog", "Cid": "hen", "Dee": "fox", "Eve": "bug"}
NAMES = dict(n_layer=2, n_head=2, n_embd=16, block_size=24, bias=False, dropout=0.0)


class Attention(nn.Module):
    def __init__(self, d, n_head, n_ctx, bias, masks):
        super().__init__()
        self.n_head = n_head
        self.c_attn = nn.Linear(d, 3 * d, bias=bias)
        self.c_proj = nn.Linear(d, d, bias=bias)
        mask = torch.ones(n_ctx, n_ctx).tril()[None, None]
        self.register_buffer("bias", mask, persistent=masks)

    def forward(self, x, keep):
        q, k, v = (a.unflatten(-1, (self.n_head, -1)) for a in self.c_attn(x).chunk(3, dim=-1))
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
        n = x.shape[1]
        scores = scores.masked_fill(self.bias[:, :, :n, :n] == 0, -torch.inf)
        pattern = scores.softmax(dim=-1)
        z = torch.einsum("bhqk,bkhd->bqhd", pattern, v)
        attn_out = self.c_proj(z.flatten(-2))
        keep(q=q, k=k, v=v, scores=scores, pattern=pattern, z=z, attn_out=attn_out)
        return attn_out


class MLP(nn.Module):
    def __init__(self, d, bias, gelu):
        super().__init__()
        self.c_fc = nn.Linear(d, 4 * d, bias=bias)
        self.c_proj = nn.Linear(4 * d, d, bias=bias)
        self.gelu = gelu  # "tanh" or "none", which is the exact form

    def forward(self, x, keep):
        mlp_pre = self.c_fc(x)
        mlp_post = F.gelu(mlp_pre, approximate=self.gelu)
        mlp_out = self.c_proj(mlp_post)
        keep(mlp_pre=mlp_pre, mlp_post=mlp_post, mlp_out=mlp_out)
        return mlp_out


class Block(nn.Module):
    def __init__(self, d, n_head, n_ctx, bias, masks, gelu):
        super().__init__()
        self.ln_1 = nn.LayerNorm(d, bias=bias)
        self.attn = Attention(d, n_head, n_ctx, bias, masks)
        self.ln_2 = nn.LayerNorm(d, bias=bias)
        self.mlp = MLP(d, bias, gelu)

    def forward(self, resid_pre, keep):
        resid_mid = resid_pre + self.attn(self.ln_1(resid_pre), keep)
        resid_post = resid_mid + self.mlp(self.ln_2(resid_mid), keep)
        keep(resid_pre=resid_pre, resid_mid=resid_mid, resid_post=resid_post)
        return resid_post


class GPT(nn.Module):
    """A GPT-2 whose state dict has the names, the layout and the extras of minGPT or nanoGPT."""

    def __init__(self, n_layer, n_head, n_embd, vocab_size, block_size, bias, tied, masks, gelu):
        super().__init__()
        blocks = [Block(n_embd, n_head, block_size, bias, masks, gelu) for _ in range(n_layer)]
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(vocab_size, n_embd),
                "wpe": nn.Embedding(block_size, n_embd),
                "h": nn.ModuleList(blocks),
                "ln_f": nn.LayerNorm(n_embd, bias=bias),
            }
        )
        self.lm_head = nn.Linear(n_embd, vocab_size, bias=False)
        for embedding in (self.transformer["wte"], self.transformer["wpe"]):
            nn.init.normal_(embedding.weight, std=0.1)
        if tied:
            self.lm_head.weight = self.transformer["wte"].weight

    def forward(self, tokens, keep=lambda **arrays: None):
        part = self.transformer
        x = part["wte"](tokens) + part["wpe"](torch.arange(tokens.shape[1]))
        for block in part["h"]:
            x = block(x, keep)
        ln_final = part["ln_f"](x)
        logits = self.lm_head(ln_final)
        keep(ln_final=ln_final, logits=logits)
        return logits


def train(model, batch, steps, rate=1e-2):
    """Adam, with a learning rate that goes down to 0. batch: makes (tokens, targets), -1 where there is no target."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        tokens, targets = batch()
        loss = F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten(), ignore_index=-1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return loss.detach()


def save_arrays(path, model, tokens):
    """PyTorch's float64 values of every array."""
    kept = {}

    def keep(**arrays):
        for name, array in arrays.items():
            kept.setdefault(name, []).append(array.numpy().copy())

    with torch.no_grad():
        model.double()(torch.tensor(tokens), keep)
    model.float()
    arrays = {name: np.stack(layers) if name in BLOCK_SITES else layers[0] for name, layers in kept.items()}
    np.savez_compressed(path, tokens=np.array(tokens), **arrays)


def sorter():
    """minGPT's layout. Of nine tokens, the first five are the letters; from the fifth on the next one is sorted."""
    inputs = torch.tensor(list(itertools.product(range(LETTERS), repeat=LENGTH)))
    whole = torch.cat([inputs, inputs.sort(dim=1).values], dim=1)
    targets = whole[:, 1:].clone()
    targets[:, : LENGTH - 1] = -1
    model = GPT(**SORTER, bias=True, tied=False, masks=True, gelu="tanh")
    loss = train(model, lambda: (whole[:, :-1], targets), 600)
    with torch.no_grad():
        right = (model(whole[:, :-1]).argmax(-1) == targets)[:, LENGTH - 1 :].all(dim=1)
    print(f"sorter: loss {loss:.2g}, sorts {int(right.sum())} of {len(right)}")

    folder = TESTS / "sorter_mingpt"
    folder.mkdir(exist_ok=True)
    torch.save(model.state_dict(), folder / "model.pt")
    sizes = {**SORTER, "vocab_size": None, "block_size": None}  # which minGPT fills in after it has written the file
    dropout = dict(embd_pdrop=0.1, resid_pdrop=0.1, attn_pdrop=0.1)
    config = {
        "system": {"seed": 3407, "work_dir": "./out/sorter"},
        "model": {"model_type": None, **sizes, **dropout},
        "trainer": {"device": "auto", "max_iters": 600, "batch_size": len(inputs), "betas": [0.9, 0.95]},
    }
    (folder / "config.json").write_text(json.dumps(config, indent=4), encoding="utf-8")
    save_arrays(TESTS / "sorter_mingpt.npz", model, whole[[19, 200], :LENGTH].tolist())


def names():
    """nanoGPT's layout."""
    draw = random.Random(12)
    text = "".join(f"{name} has a {HAS[name]}.\n" for name in draw.choices(list(HAS), k=400))
    characters = sorted(set(text))
    stoi = {character: i for i, character in enumerate(characters)}
    data, n = torch.tensor([stoi[character] for character in text]), NAMES["block_size"]
    sizes = {name: size for name, size in NAMES.items() if name != "dropout"}
    model = GPT(**sizes, vocab_size=len(characters), tied=True, masks=False, gelu="none")

    def batch():
        begin = [draw.randrange(len(data) - n) for _ in range(48)]
        return torch.stack([data[i : i + n] for i in begin]), torch.stack([data[i + 1 : i + n + 1] for i in begin])

    loss = train(model, batch, 800)
    print(f"names: loss {loss:.2g}, {len(characters)} characters")

    folder = TESTS / "names_nanogpt"
    folder.mkdir(exist_ok=True)
    checkpoint = {
        "model": {f"_orig_mod.{key}": tensor for key, tensor in model.state_dict().items()},
        "optimizer": torch.optim.AdamW(model.parameters()).state_dict(),  # before its first step: no moments
        "model_args": {**NAMES, "vocab_size": len(characters)},
        "iter_num": 800,
        "best_val_loss": loss,
        "config": {"out_dir": "out-names", "dataset": "names", "learning_rate": 1e-2, "compile": True},
    }
    torch.save(checkpoint, folder / "ckpt.pt")
    meta = {"vocab_size": len(characters), "itos": dict(enumerate(characters)), "stoi": stoi}
    (folder / "meta.pkl").write_bytes(pickle.dumps(meta))
    save_arrays(TESTS / "names_nanogpt.npz", model, [[stoi[character] for character in "Bob has a"]])


if __name__ == "__main__":
    torch.manual_seed(7)
    torch.set_num_threads(1)
    sorter()
    names()
