"""TransformerLens' side of scripts/benchmark.py. It runs in an environment of its own that has transformer_lens 2 or 3.

It reads lines of JSON from stdin: {"site": "resid_pre" or "z", "clean": ids, "corrupted": ids, "cells": how many, or
null for all}; lists of ids are run as one batch. It answers each with {"base": seconds of the two base runs, "sweep":
seconds of the sweep, "cell": seconds of one cell}. If fewer than all, cells are spread evenly over layers and positions
or heads. {"lens": ids} is answered with {"lens": ..., "direct": ...}, seconds of a logit lens and of direct logit
attribution of a cached run. The model has GPT-2 124M's shape and random weights, which take as long as trained ones.
"""

import itertools
import json
import sys
import time

import pandas
import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig, patching

torch.set_num_threads(int(sys.argv[1]))
torch.set_grad_enabled(False)
torch.manual_seed(0)
config = HookedTransformerConfig(
    n_layers=12, d_model=768, n_heads=12, d_head=64, d_mlp=3072, n_ctx=1024, d_vocab=50257, act_fn="gelu_new",
    normalization_type="LN", device="cpu",
)  # fmt: skip
model = HookedTransformer(config).eval()
sweeps = {"resid_pre": patching.get_act_patch_resid_pre, "z": patching.get_act_patch_attn_head_out_all_pos}
setters = {"resid_pre": patching.layer_pos_patch_setter, "z": patching.layer_head_vector_patch_setter}


def logit_diff(logits):
    return (logits[:, -1, 3] - logits[:, -1, 7]).mean()


def lens_times(ids):
    """Probabilities of all tokens at every layer and position; what each head, MLP and embedding adds at the last."""
    _, cache = model.run_with_cache(torch.tensor([ids]))
    begin = time.perf_counter()
    stream = cache.accumulated_resid(incl_mid=True, apply_ln=True)
    for logits in (layer @ model.W_U for layer in stream):
        logits.softmax(dim=-1).max(dim=-1)
    middle = time.perf_counter()
    direction = model.W_U[:, 3] - model.W_U[:, 7]
    cache.compute_head_results()
    cache.stack_head_results(pos_slice=-1, apply_ln=True) @ direction
    cache.decompose_resid(pos_slice=-1, apply_ln=True) @ direction
    return {"lens": middle - begin, "direct": time.perf_counter() - middle}


print("ready", flush=True)
for line in sys.stdin:
    job = json.loads(line)
    if "lens" in job:
        print(json.dumps(lens_times(job["lens"])), flush=True)
        continue
    clean, corrupted = (torch.atleast_2d(torch.tensor(job[name])) for name in ("clean", "corrupted"))
    begin = time.perf_counter()
    _, cache = model.run_with_cache(clean)
    model(corrupted)
    middle = time.perf_counter()
    site, width = job["site"], corrupted.shape[1] if job["site"] == "resid_pre" else config.n_heads
    cells = list(itertools.product(range(config.n_layers), range(width)))
    # TransformerLens draws its tqdm bar on stderr.
    if job["cells"] is None:
        sweeps[site](model, corrupted, cache, logit_diff)
    else:  # what these sweeps call
        step = len(cells) / job["cells"]
        cells = [cells[int((i + 0.5) * step)] for i in range(job["cells"])]
        table = pandas.DataFrame(cells, columns=["layer", "pos" if site == "resid_pre" else "head_index"])
        setter = setters[site]
        patching.generic_activation_patch(model, corrupted, cache, logit_diff, setter, site, index_df=table)
    sweep = time.perf_counter() - middle
    print(json.dumps({"base": middle - begin, "sweep": sweep, "cell": sweep / len(cells)}), flush=True)
