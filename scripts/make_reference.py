"""Make the reference values that nanopatch is checked against, with PyTorch and Hugging Face's GPT-2.

    python scripts/make_reference.py                       everything below
    python scripts/make_reference.py tiny                  tests/reference/tiny_*.npz
    python scripts/make_reference.py patching              tests/reference/patching_*.npz
    python scripts/make_reference.py standin               tests/reference/standin_*.json
    python scripts/make_reference.py debug                 tests/reference/llmc_debug_state.bin
    python scripts/make_reference.py nano [--model FOLDER] nanopatch/data/nano_reference.npz

It needs `pip install torch transformers`; the files are read without them. Everything random is drawn from fixed
seeds, so a second run on the same machine writes the same numbers.

`tiny` and `nano` files hold, for one model:

    header          JSON: the config, the versions, SHA-256 of the model file (nano), PyTorch's own float32
                    errors by name (see `own_float32_errors`), and which names are the same array (`SAME`)
    tokens          the prompt: (n_tokens,) or (batch, n_tokens)
    float64.NAME    every array of `nanopatch.model.sites.SITES` as PyTorch computes it in float64, stacked over
                    layers. Masked scores are -inf. Arrays that are one in PyTorch's model are stored once
    float64.logits_last  the logits at the last position, of all tokens
    float64.logits  the logits at every position, of the token ids in `columns`. (All logits of nano take 4 MB.)
    columns         the token ids whose logits are kept: all of a tiny model's, every 200th of nano's
    many_tokens     (n_prompts, n_tokens): more prompts, to compare rounding errors on
    many_logits     (n_prompts, n_columns): PyTorch's float64 logits at their last position
    weights.KEY     the float32 weights under the checkpoint's keys (tiny only)

`patching` files hold what patching between two prompts does to one model, in float64, by PyTorch hooks:

    header          JSON: the config, the seed of `random_tensors` for its weights, the token ids of answer and
                    wrong answer, and the versions
    clean, corrupted                the two prompts: (n_tokens,), which differ in two positions
    logits.clean, logits.corrupted  (n_vocab,): of the unpatched runs at the last position
    DIRECTION.SITE.AXIS-AXIS...     the logit difference after each patch, an axis for each AXIS. DIRECTION is denoise
                                    (clean into corrupted) or noise (corrupted into clean). The axes of scores and
                                    pattern are called destination and source here: nanopatch's query and key

`llmc_debug_state.bin` is laid out as llm.c's `train_gpt2.py` writes a debug state; see `make_debug_state`.
"""

import argparse
import contextlib
import io
import itertools
import json
import sys
from pathlib import Path

import numpy as np

import nanopatch
from nanopatch.files import write_whole
from nanopatch.model import tokenizer
from nanopatch.model.sites import BLOCK_SITES, FINAL_SITES

ROOT = Path(__file__).resolve().parent.parent
TESTS = ROOT / "tests" / "reference"
DATA = ROOT / "nanopatch" / "data"

NANO_PROMPT = "Michelle Jones was a top-notch student. Michelle"
MOST_BYTES = 2_500_000  # of nano's file, which every user downloads

#: {name: another name of its array}. In PyTorch's GPT-2, `ln_1` has one input for queries, keys and values, and
#: `ln_2` reads the residual stream itself. nanopatch has an array of its own for each.
SAME = {"q_input": "resid_pre", "k_input": "resid_pre", "v_input": "resid_pre", "mlp_in": "resid_mid"}

#: The tiny models: what differs from SIZES and from GPT-2's config, and the shape of the prompt. Together they use
#: every option of the config.
SIZES = dict(n_layer=3, n_head=2, n_embd=16, n_positions=16, vocab_size=31)
TINY = {
    "plain": ({}, (9,)),
    "exact_gelu": (dict(activation_function="gelu", layer_norm_epsilon=1e-3, n_inner=24), (2, 8)),
    "relu_unscaled": (dict(activation_function="relu", scale_attn_weights=False, n_head=4), (2, 8)),
    "inverse_layer": (dict(scale_attn_by_inverse_layer_idx=True, tie_word_embeddings=False), (16,)),
    "everything": (
        dict(
            activation_function="gelu",
            layer_norm_epsilon=0.03,
            n_inner=10,
            n_head=1,
            scale_attn_weights=False,
            scale_attn_by_inverse_layer_idx=True,
            tie_word_embeddings=False,
        ),
        (2, 8),
    ),
}

#: The models that are patched: what differs from SIZES, and the seed of their weights.
PATCHED = {"plain": ({}, 0), "everything": ({**TINY["everything"][0], "n_head": 4}, 5)}
DIFFERENT = (2, 5)  # the positions where the two prompts differ

#: The axes of each site's array in one layer, after the batch; and the axes of the grids that are made for it.
RESIDUAL_SITES = (
    *("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"),
    *("q_input", "k_input", "v_input", "mlp_in"),
)
NEURON_SITES = ("mlp_pre", "mlp_post")
HEAD_SITES = ("z", "q", "k", "v")
ATTENTION_SITES = ("scores", "pattern")
ARRAY_AXES = {
    **dict.fromkeys(RESIDUAL_SITES, ("position",)),
    **dict.fromkeys(NEURON_SITES, ("position", "neuron")),
    **dict.fromkeys(HEAD_SITES, ("position", "head")),
    **dict.fromkeys(ATTENTION_SITES, ("head", "destination", "source")),
}
GRID_AXES = {
    **dict.fromkeys(RESIDUAL_SITES, [("layer", "position")]),
    **dict.fromkeys(NEURON_SITES, [("layer", "position"), ("layer", "neuron")]),
    **dict.fromkeys(HEAD_SITES, [("layer", "head"), ("layer", "position", "head")]),
    **dict.fromkeys(ATTENTION_SITES, [("layer", "head"), ("layer", "head", "destination"), ("destination", "source")]),
}

#: The stand-in for GPT-2 small: a model with its vocabulary, so small that its weights are drawn anew, not stored.
STANDIN = dict(n_layer=2, n_head=2, n_embd=12, n_positions=32, vocab_size=tokenizer.N_VOCAB)
STANDIN_SEED = 40  # of the first 250 seeds, one whose logit differences are not near 0

#: Patching grids of the eight indirect-object prompts, under the names of the published file: site and axes.
IOI8_GRIDS = {
    "resid_pre_layer_pos": ("resid_pre", ("layer", "position")),
    "attn_out_layer_pos": ("attn_out", ("layer", "position")),
    "mlp_out_layer_pos": ("mlp_out", ("layer", "position")),
    "head_z_allpos": ("z", ("layer", "head")),
    "head_v_allpos": ("v", ("layer", "head")),
    "head_pattern_allpos": ("pattern", ("layer", "head")),
    "head_q_allpos": ("q", ("layer", "head")),
    "head_k_allpos": ("k", ("layer", "head")),
    "head_z_by_pos_rows_layer_head": ("z", ("layer", "head", "position")),
}

ABOUT_STANDIN = "Of a random stand-in for GPT-2 small, laid out as the published file; see scripts/make_reference.py."

#: Weights that are drawn twice as large as the others.
LARGE = ("wte.weight", "wpe.weight", "lm_head.weight", "attn.c_attn.weight")


# ---- weights ------------------------------------------------------------------------------------


def tensor_shapes(config):
    """{checkpoint key: shape}, from a config as Hugging Face writes it; `lm_head.weight` only if it is not tied."""
    d_model = config["n_embd"]
    d_mlp = config.get("n_inner") or 4 * d_model
    shapes = {"wte.weight": (config["vocab_size"], d_model), "wpe.weight": (config["n_positions"], d_model)}
    for i in range(config["n_layer"]):
        for key, weight in {
            "ln_1": (d_model,),
            "attn.c_attn": (d_model, 3 * d_model),
            "attn.c_proj": (d_model, d_model),
            "ln_2": (d_model,),
            "mlp.c_fc": (d_model, d_mlp),
            "mlp.c_proj": (d_mlp, d_model),
        }.items():
            shapes[f"h.{i}.{key}.weight"] = weight
            shapes[f"h.{i}.{key}.bias"] = weight[-1:]
    shapes |= {"ln_f.weight": (d_model,), "ln_f.bias": (d_model,)}
    if not config.get("tie_word_embeddings", True):
        shapes["lm_head.weight"] = (config["vocab_size"], d_model)
    return shapes


def random_tensors(config, seed):
    """Random float32 weights, the same on every machine, and so large that no head attends evenly to all positions.

    They are uniform in [-s, s). s is 0.8 for `LARGE`, 0.4 for the others; LayerNorm's weights are 1 plus such a number.
    They are drawn from PCG64's raw 64-bit numbers, a stream that NumPy promises never to change, by steps that are
    exact in float32.
    """
    bits = np.random.PCG64(seed)
    tensors = {}
    for key, shape in tensor_shapes(config).items():
        raw = bits.random_raw(int(np.prod(shape))).reshape(shape)
        uniform = (raw >> np.uint64(40)).astype(np.float32) * np.float32(2**-23) - np.float32(1)  # [-1, 1)
        tensors[key] = uniform * np.float32(0.8 if key.endswith(LARGE) else 0.4)
        if "ln_" in key and key.endswith("weight"):
            tensors[key] += np.float32(1)
    return tensors


# ---- Hugging Face's model, every array inside it, and patches of them --------------------------------


def pytorch_model(config, tensors):
    """Hugging Face's GPT2LMHeadModel with these weights, float32, eager attention; config as its config.json has it."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    tokens = dict(bos_token_id=0, eos_token_id=0)  # its defaults are not in a tiny vocabulary
    model = GPT2LMHeadModel(GPT2Config(**tokens, **config, attn_implementation="eager")).eval()
    state = {f"transformer.{key}" if key != "lm_head.weight" else key: torch.tensor(a) for key, a in tensors.items()}
    state.setdefault("lm_head.weight", state["transformer.wte.weight"])
    model.load_state_dict(state)
    return model


def pytorch_nano(folder):
    """The checkpoint of a folder as Hugging Face loads it, in float32."""
    import torch
    from transformers import GPT2LMHeadModel

    return GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def pytorch_run(model, tokens):
    """Every named array of one run of Hugging Face's model, by hooks on its modules.

    tokens: (n_tokens,) or (batch, n_tokens). Returns {name: array}, block arrays stacked over layers as
    `nanopatch.Run` has them, in the model's number format, masked scores as -inf.
    """
    import torch

    config = model.config
    tokens = np.asarray(tokens)
    batched = tokens.ndim == 2
    block_arrays = {name: [] for name in BLOCK_SITES}
    final_arrays = {}

    def keep(name, tensor):
        block_arrays[name].append(tensor.detach().numpy().copy())

    def split_heads(tensor):
        return tensor.reshape(*tensor.shape[:-1], config.n_head, config.n_embd // config.n_head)

    def on_input(module, *names, heads=False):
        def hook(_, arguments):
            for name in names:
                keep(name, split_heads(arguments[0]) if heads else arguments[0])

        return module.register_forward_pre_hook(hook)

    def on_output(module, name):
        def hook(_, arguments, output):
            keep(name, output[0] if isinstance(output, tuple) else output)

        return module.register_forward_hook(hook)

    def on_qkv(_, arguments, output):
        for name, tensor in zip(("q", "k", "v"), output.split(config.n_embd, dim=-1), strict=True):
            keep(name, split_heads(tensor))

    softmax = torch.nn.functional.softmax

    def watched_softmax(scores, *arguments, **options):
        pattern = softmax(scores, *arguments, **options)
        masked = scores <= torch.finfo(scores.dtype).min / 2  # the mask adds the type's lowest number, not -inf
        keep("scores", scores.masked_fill(masked, -torch.inf))
        keep("pattern", pattern)
        return pattern

    with contextlib.ExitStack() as stack:
        for block in model.transformer.h:
            for handle in (
                on_input(block, "resid_pre"),
                on_input(block.ln_1, "q_input", "k_input", "v_input"),
                block.attn.c_attn.register_forward_hook(on_qkv),
                on_input(block.attn.c_proj, "z", heads=True),
                on_output(block.attn, "attn_out"),
                on_input(block.ln_2, "resid_mid", "mlp_in"),
                on_output(block.mlp.c_fc, "mlp_pre"),
                on_input(block.mlp.c_proj, "mlp_post"),
                on_output(block.mlp, "mlp_out"),
                on_output(block, "resid_post"),
            ):
                stack.callback(handle.remove)
        stack.callback(
            model.transformer.ln_f.register_forward_hook(
                lambda _, arguments, output: final_arrays.update(ln_final=output.numpy())
            ).remove
        )
        stack.callback(setattr, torch.nn.functional, "softmax", softmax)
        torch.nn.functional.softmax = watched_softmax
        ids = torch.from_numpy(tokens if batched else tokens[None])
        with torch.no_grad():
            final_arrays["logits"] = model(ids, use_cache=False).logits.numpy()

    arrays = {}
    for name, layers in block_arrays.items():
        assert len(layers) == config.n_layer, f"{name}: {len(layers)} arrays for {config.n_layer} layers"
        arrays[name] = np.stack(layers)
    arrays |= final_arrays
    if not batched:
        arrays = {name: a.squeeze(axis=0 if name in FINAL_SITES else 1) for name, a in arrays.items()}
    return arrays


def last_logits(model, tokens):
    """Logits at the last position of a batch of prompts, (batch, n_vocab)."""
    import torch

    with torch.no_grad():
        hidden = model.transformer(torch.from_numpy(tokens), use_cache=False).last_hidden_state
        return model.lm_head(hidden[:, -1]).numpy()


def patched_logits(model, tokens, edits):
    """`last_logits` of a run of Hugging Face's model in which some arrays are changed, by hooks on its modules.

    tokens: (batch, n_tokens). edits: a list of (site, layer, index, values): in that array of that layer,
    shaped (batch, ...) as in `pytorch_run`, `array[index] = values[index]`; one edit a layer of each site.
    """
    import torch

    softmax = torch.nn.functional.softmax
    attention = {(site, layer): at_and_values for site, layer, *at_and_values in edits if site in ATTENTION_SITES}
    layers = itertools.count()  # eager attention takes one softmax a block, in the order of the blocks

    def patched_softmax(scores, *arguments, **options):
        layer = next(layers)

        def assigned(site, array):
            if (site, layer) in attention:
                index, values = attention[site, layer]
                array[index] = torch.from_numpy(values)[index]
            return array

        return assigned("pattern", softmax(assigned("scores", scores), *arguments, **options))

    with contextlib.ExitStack() as stack:
        for site, layer, index, values in edits:
            if site not in ATTENTION_SITES:
                for handle in patching_hooks(model, site, layer, index, torch.from_numpy(values)):
                    stack.callback(handle.remove)
        if attention:
            stack.callback(setattr, torch.nn.functional, "softmax", softmax)
            torch.nn.functional.softmax = patched_softmax
        return last_logits(model, tokens)


def patching_hooks(model, site, layer, index, values):
    """Set the hooks that assign `array[index] = values[index]` at a site of a layer; return their handles.

    Not for ATTENTION_SITES, which are no module's input or output. values: a tensor, (batch, ...).
    """
    import torch

    block, n_head = model.transformer.h[layer], model.config.n_head

    def assigned(tensor):  # in a copy, because other modules read the same tensor
        changed = tensor.clone()
        array = changed.unflatten(-1, (n_head, -1)) if site in HEAD_SITES else changed
        array[index] = values[index]
        return changed

    def on_input(_, arguments):
        return assigned(arguments[0]), *arguments[1:]

    def on_output(_, arguments, output):
        return (assigned(output[0]), *output[1:]) if isinstance(output, tuple) else assigned(output)

    def in_place(_, arguments):
        arguments[0][index] = values[index]

    def on_qkv(_, arguments, output):
        thirds = list(output.chunk(3, dim=-1))
        which = "qkv".index(site[0])
        if site in HEAD_SITES:
            thirds[which] = assigned(thirds[which])
        else:  # .forward, because calling the modules would run their hooks again
            normed = block.ln_1.forward(assigned(read[0]))
            thirds[which] = block.attn.c_attn.forward(normed).chunk(3, dim=-1)[which]
        return torch.cat(thirds, dim=-1)

    read = []  # the residual stream that ln_1 reads
    attn, mlp = block.attn, block.mlp
    if site in ("q", "k", "v"):
        return [attn.c_attn.register_forward_hook(on_qkv)]
    if site in ("q_input", "k_input", "v_input"):
        return [
            block.ln_1.register_forward_pre_hook(lambda _, arguments: read.append(arguments[0])),
            attn.c_attn.register_forward_hook(on_qkv),
        ]
    if site == "resid_mid":  # what ln_2 reads is the tensor that the MLP's output is added to: both see the change
        return [block.ln_2.register_forward_pre_hook(in_place)]
    inputs = {"resid_pre": block, "z": attn.c_proj, "mlp_in": block.ln_2, "mlp_post": mlp.c_proj}
    if site in inputs:
        return [inputs[site].register_forward_pre_hook(on_input)]
    outputs = {"attn_out": attn, "mlp_pre": mlp.c_fc, "mlp_out": mlp, "resid_post": block}
    return [outputs[site].register_forward_hook(on_output)]


def patched_grid(model, tokens, source, site, axes, metric):
    """The metric of `patched_logits` for each patch of a grid: float64, an axis for each of `axes`.

    tokens: (batch, n_tokens), the prompts patched into, all at once. source: the arrays of the run patched from, as
    `pytorch_run` returns them. Along an axis that is not in `axes`, everything is patched at once.
    """
    config = model.config
    d_mlp = config.n_inner or 4 * config.n_embd
    sizes = {"layer": config.n_layer, "head": config.n_head, "neuron": d_mlp}
    grid = np.empty([sizes.get(axis, tokens.shape[1]) for axis in axes])
    for cell in np.ndindex(grid.shape):
        at = dict(zip(axes, cell, strict=True))
        layers = [at["layer"]] if "layer" in at else range(config.n_layer)
        index = (slice(None), *(at.get(axis, slice(None)) for axis in ARRAY_AXES[site]))
        edits = [(site, layer, index, source[site][layer]) for layer in layers]
        grid[cell] = metric(patched_logits(model, tokens, edits))
    return grid


def both_runs(model, tokens):
    """The arrays in float32 and in float64, from one model given in float32 (its weights are exact in both)."""
    float32 = pytorch_run(model.float(), tokens)
    float64 = pytorch_run(model.double(), tokens)
    model.float()
    return float32, float64


def own_float32_errors(float32, float64, columns):
    """PyTorch float32 against PyTorch float64 on a batch: {name: error}.

    The error of a name in a prompt is its largest difference anywhere. It is averaged over the prompts, and the worst
    layer counts. (The largest difference over all prompts comes from the one worst-conditioned prompt, and differs
    by half between two equally good programs; the average does not.) Only the logits in `columns` count.
    """
    errors = {}
    for name, exact in float64.items():
        rounded = float32[name].astype(np.float64)
        if name == "logits":
            rounded, exact = rounded[..., columns], exact[..., columns]
        if name in FINAL_SITES:
            rounded, exact = rounded[None], exact[None]
        with np.errstate(invalid="ignore"):
            difference = np.where(rounded == exact, 0, np.abs(rounded - exact))  # -inf equals -inf
        errors[name] = float(difference.max(axis=tuple(range(2, exact.ndim))).mean(axis=1).max())
    return errors


# ---- the files ----------------------------------------------------------------------------------


def reference(model, config, tokens, many_tokens, columns, **more):
    """The arrays of one reference file, for a float32 PyTorch model; `more` goes into the header."""
    import torch
    import transformers

    _, float64 = both_runs(model, tokens)
    many32, many64 = both_runs(model, many_tokens)
    for name, twin in SAME.items():
        assert np.array_equal(float64.pop(name), float64[twin]), f"{name} is not {twin} after all"
    logits = float64.pop("logits")
    header = {
        "config": config,
        "same": SAME,
        "pytorch_float32_errors": own_float32_errors(many32, many64, columns),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__, "numpy": np.__version__},
        **more,
    }
    return {
        "header": np.array(json.dumps(header)),
        "tokens": np.asarray(tokens),
        **{f"float64.{name}": array for name, array in float64.items()},
        "float64.logits": logits[..., columns],
        "float64.logits_last": logits[..., -1, :],
        "columns": columns,
        "many_tokens": many_tokens,
        "many_logits": many64["logits"][:, -1, columns],
    }


def make_tiny(folder=TESTS):
    """One file for each model of TINY."""
    for seed, (name, (changes, shape)) in enumerate(TINY.items()):
        config = {**SIZES, **changes}
        tensors = random_tensors(config, seed)
        rng = np.random.Generator(np.random.PCG64(1000 + seed))
        tokens, many_tokens = (rng.integers(0, config["vocab_size"], size) for size in (shape, (128, 12)))
        arrays = reference(
            pytorch_model(config, tensors), config, tokens, many_tokens, np.arange(config["vocab_size"]), seed=seed
        )
        write_npz(folder / f"tiny_{name}.npz", arrays | {f"weights.{key}": array for key, array in tensors.items()})


def make_patching(folder=TESTS):
    """One file for each model of PATCHED."""
    for name, (changes, seed) in PATCHED.items():
        write_npz(folder / f"patching_{name}.npz", patching({**SIZES, **changes}, seed))


def patching(config, seed, n_tokens=8):
    """The arrays of one `patching` file, for a random model and a random pair of prompts, `n_tokens` each."""
    import torch
    import transformers

    model = pytorch_model(config, random_tensors(config, seed)).double()
    n_vocab = config["vocab_size"]
    rng = np.random.Generator(np.random.PCG64(3000 + seed))
    clean = rng.integers(0, n_vocab, (1, n_tokens))
    corrupted = clean.copy()
    corrupted[:, DIFFERENT] = (clean[:, DIFFERENT] + rng.integers(1, n_vocab, len(DIFFERENT))) % n_vocab
    answer, wrong_answer = map(int, rng.choice(n_vocab, 2, replace=False))

    def logit_diff(logits):  # (1, n_vocab) -> a number
        return logits[0, answer] - logits[0, wrong_answer]

    grids = {}
    for direction, (origin, into) in {"denoise": (clean, corrupted), "noise": (corrupted, clean)}.items():
        source = pytorch_run(model, origin)
        for site, grids_axes in GRID_AXES.items():
            for axes in grids_axes:
                grid = patched_grid(model, into, source, site, axes, logit_diff)
                grids[f"{direction}.{site}.{'-'.join(axes)}"] = grid
    header = {
        "config": config,
        "seed": seed,
        "answer": answer,
        "wrong_answer": wrong_answer,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__, "numpy": np.__version__},
    }
    return {
        "header": np.array(json.dumps(header)),
        "clean": clean[0],
        "corrupted": corrupted[0],
        "logits.clean": last_logits(model, clean)[0],
        "logits.corrupted": last_logits(model, corrupted)[0],
        **grids,
    }


def make_nano(folder=ROOT / "weights" / "nano", file=DATA / "nano_reference.npz"):
    """The default model's file: one prompt, and 32 random prompts of 12 tokens to compare rounding errors on."""
    folder = Path(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    rng = np.random.Generator(np.random.PCG64(2000))
    arrays = reference(
        pytorch_nano(folder),
        config,
        np.array(tokenizer.encode(NANO_PROMPT)),
        rng.integers(0, config["vocab_size"], (32, 12)),
        np.arange(0, config["vocab_size"], 200),
        prompt=NANO_PROMPT,
        sha256=nanopatch.load(folder).source.sha256,
    )
    write_npz(file, arrays, MOST_BYTES)


def make_standin(folder=TESTS):
    """Values of the stand-in model in the layout of the three files of published values, made with PyTorch alone.

    It replaces GPT-2 small, because most machines that run the tests do not have its weights.
    """
    model = pytorch_model(STANDIN, random_tensors(STANDIN, STANDIN_SEED))
    published = json.loads((DATA / "gpt2_transformer_explainer.json").read_text(encoding="utf-8"))
    prompts = [standin_next_token(model, entry["prompt"]) for entry in published["prompts"][:2]]
    write_json(folder / "standin_transformer_explainer.json", {"_about": ABOUT_STANDIN, "prompts": prompts})

    published = json.loads((DATA / "gpt2_transformerlens.json").read_text(encoding="utf-8"))
    values = {
        "_about": ABOUT_STANDIN,
        "ioi8": standin_ioi8(model, published["ioi8"]),
        "main_demo": standin_main_demo(model, published["main_demo"]),
    }
    write_json(folder / "standin_transformerlens.json", values)

    published = json.loads((DATA / "gpt2_published.json").read_text(encoding="utf-8"))
    write_json(folder / "standin_published.json", standin_published(model, published))


def standin_next_token(model, prompt):
    """One prompt's entry of the Transformer Explainer file."""
    tokens = tokenizer.encode(prompt)
    arrays = pytorch_run(model, np.array(tokens))
    last = arrays["logits"][-1].astype(float)
    return {
        "prompt": prompt,
        "token_ids": tokens,
        "top50": [[int(i), last[i]] for i in np.argsort(-last)[:50]],
        "logits_every_100th": last[::100].tolist(),
        "pattern": np.round(arrays["pattern"].astype(float), 5).tolist(),
    }


def standin_ioi8(model, published):
    """The eight indirect-object prompts: logit differences, patching grids, attribution, direct logit attribution."""
    prompts, answers = published["prompts"], np.array(published["answer_tokens"])
    clean = np.array([[tokenizer.ENDOFTEXT_ID, *tokenizer.encode(prompt)] for prompt in prompts])
    corrupted = np.array([clean[i ^ 1] for i in range(len(prompts))])  # each pair swapped

    def logit_diff(last):
        return np.array([row[a] - row[b] for row, (a, b) in zip(last, answers, strict=True)], float)

    high, low = logit_diff(last_logits(model, clean)), logit_diff(last_logits(model, corrupted)).mean()
    source = pytorch_run(model, clean)
    grids = {}
    for name, (site, axes) in IOI8_GRIDS.items():
        grid = patched_grid(model, corrupted, source, site, axes, lambda last: logit_diff(last).mean())
        grids[name] = ((grid - low) / (high.mean() - low)).reshape(-1, grid.shape[-1]).tolist()
    return {
        "prompts": prompts,
        "answer_tokens": answers.tolist(),
        "per_prompt_logit_diff_3dp": np.round(high, 3).tolist(),
        "clean_4dp": round(high.mean(), 4),
        "corrupted_4dp": round(low, 4),
        **grids,
        **standin_attribution(model, clean, corrupted, answers),
        **standin_direct_attribution(model, clean, answers),
    }


def standin_main_demo(model, published):
    """One indirect-object pair: its logit differences and patching grid."""
    clean, corrupted = (
        np.array([[tokenizer.ENDOFTEXT_ID, *tokenizer.encode(published[which])]]) for which in ("clean", "corrupted")
    )
    (answer,), (other,) = map(tokenizer.encode, published["answer"])

    def logit_diff(last):
        return float(last[0, answer] - last[0, other])

    high, low = (logit_diff(last_logits(model, tokens)) for tokens in (clean, corrupted))
    grid = patched_grid(model, corrupted, pytorch_run(model, clean), "resid_pre", ("layer", "position"), logit_diff)
    texts = {key: published[key] for key in ("clean", "corrupted", "answer")}
    differences = {"clean_3dp": round(high, 3), "corrupted_3dp": round(low, 3)}
    return texts | differences | {"resid_pre_layer_pos": ((grid - low) / (high - low)).tolist()}


def standin_attribution(model, clean, corrupted, answers):
    """Attribution patching, clean into corrupted: one batch, and PyTorch's autograd of its normalised metric."""
    from make_gradient_reference import pytorch_gradients  # not above: it imports this file

    source, into = (pytorch_run(model.double(), tokens) for tokens in (clean, corrupted))
    d_mean = np.zeros_like(into["logits"])  # the derivative of the batch's mean logit difference
    rows = np.arange(len(answers))
    d_mean[rows, -1, answers[:, 0]], d_mean[rows, -1, answers[:, 1]] = 1 / len(rows), -1 / len(rows)
    span = (d_mean * (source["logits"] - into["logits"])).sum()  # the metric is 1 in the clean runs, 0 in the others
    gradients, _ = pytorch_gradients(model, corrupted, d_mean / span)
    model.float()

    def attributed(name, keep):  # keep: the axis that stays beside the layers
        effect = (source[name] - into[name]) * gradients[name]
        return effect.sum(axis=tuple(axis for axis in range(1, effect.ndim) if axis != keep))

    pre, mid, post, attn_out, mlp_out = (
        attributed(name, 2) for name in ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
    )
    stream = [row for block in zip(pre, mid, strict=True) for row in block] + [post[-1]]
    heads = [attributed(name, 3) for name in ("z", "q", "k", "v")] + [attributed("pattern", 2)]
    return {
        "attrib_resid_pre": pre.tolist(),
        "attrib_attn_out": attn_out.tolist(),
        "attrib_mlp_out": mlp_out.tolist(),
        "attrib_resid_25rows_0pre_0mid_..._final_2023": np.array(stream).tolist(),  # of 12 layers; 5 rows here
        "attrib_head_out_q_k_v_pattern": np.array(heads).tolist(),
    }


def standin_published(model, published):
    """The file of the report's experiment: likeliest tokens, patching of other vectors, continuations, losses.

    The stand-in has fewer layers and reads fewer tokens, so layers are taken modulo its own, and texts are cut.
    """
    import torch

    n_layer, n_ctx = model.config.n_layer, model.config.n_positions

    def last(prompt):
        return last_logits(model, np.array([tokenizer.encode(prompt)]))[0].astype(float)

    def probabilities(logits):
        return torch.softmax(torch.from_numpy(logits), dim=-1).numpy()

    def likeliest(entry):
        logits = last(entry["prompt"])
        p = probabilities(logits)
        top20 = [[int(i), round(p[i], 4), round(logits[i], 4)] for i in np.argsort(-logits)[:20]]
        return entry | {"top20": top20, "more_logits": [[i, round(logits[i], 4)] for i, _ in entry["more_logits"]]}

    def of_top40(entry):  # minGPT's way: all but the 40 highest logits become -inf
        logits = last(entry["prompt"])
        logits[logits < np.sort(logits)[-40]] = -np.inf
        p = probabilities(logits)
        return entry | {"top20": [[int(i), round(p[i], 4)] for i in np.argsort(-logits)[:20]]}

    def greedy(entry):
        tokens = start = tokenizer.encode(entry["prompt"])
        for _ in range(min(len(entry["continuation"]), n_ctx - len(start))):
            tokens = [*tokens, int(last_logits(model, np.array([tokens])).argmax())]
        return entry | {"continuation": tokens[len(start) :]}

    def loss(tokens, targets):  # (n_rows, n_tokens) each
        with torch.no_grad():
            logits = model(torch.from_numpy(tokens), use_cache=False).logits
        return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(targets).flatten()))

    def variant(pair, clean):
        (before,), (after,) = map(tokenizer.encode, pair["tokens"])
        return pair | {"scores": [float(row[after] - row[before]) for row in (clean, last(pair["corrupted"]))]}

    variants, ln_final, losses = published["variants"], published["ln_final"], published["losses"]
    clean = last(variants["prompt"])
    ids, shape = np.array(losses["llmc"]["token_ids"]), (2, 2, 16)
    batches = [ids[start : start + np.prod(shape)].reshape(shape) for start in (0, 1)]
    llmc_losses = [loss(*batch) for batch in zip(*batches, strict=True)]
    llmc = {"token_ids": ids[: np.prod(shape) + 1].tolist(), "shape": shape}
    hello = np.array([losses["hello_world"]["token_ids"]])
    values = pytorch_run(model, np.array(ln_final["token_ids"]))["ln_final"][0, :5].tolist()
    return {
        "_about": ABOUT_STANDIN,
        "next_token": published["next_token"] | {"prompts": [*map(likeliest, published["next_token"]["prompts"])]},
        "michelle": standin_pair(model, published["michelle"], n_layer),
        "wizard": standin_pair(model, published["wizard"], n_layer),
        "variants": variants | {"pairs": [variant(pair, clean) for pair in variants["pairs"]]},
        "top40": published["top40"] | {"prompts": [of_top40(entry) for entry in published["top40"]["prompts"][:2]]},
        "greedy": [*map(greedy, published["greedy"])],
        "greedy_float16": {"prompts": [*map(greedy, published["greedy_float16"]["prompts"])]},
        "ln_final": ln_final | {"values": values},
        "losses": {
            "llmc": losses["llmc"] | llmc | {"debug_loss": llmc_losses[0], "val_loss": float(np.mean(llmc_losses))},
            "hello_world": losses["hello_world"] | {"loss": loss(hello[:, :-1].copy(), hello[:, 1:].copy())},
        },
    }


def standin_pair(model, pair, n_layer):
    """The patches of a pair of prompts, clean into corrupted: of a vector at one position after, or inside, a block."""
    clean, corrupted = (np.array([tokenizer.encode(pair[which])]) for which in ("clean", "corrupted"))
    (answer,), (other,) = (tokenizer.encode(pair[which]) for which in ("answer", "wrong_answer"))
    source, into = (pytorch_run(model, tokens) for tokens in (clean, corrupted))

    def logit_diff(logits):
        return float(logits[0, answer]) - float(logits[0, other])

    def patched(layer, position, vector):  # resid_post becomes this vector
        values = into["resid_post"][layer].copy()
        values[:, position] = vector
        return logit_diff(patched_logits(model, corrupted, [("resid_post", layer, (slice(None), position), values)]))

    def past_mlp(layer, position):  # resid_mid is patched, and what the MLP reads is put back
        index = (slice(None), position)
        edits = [("resid_mid", layer, index, source["resid_mid"][layer])]
        edits += [("mlp_in", layer, index, into["resid_mid"][layer])]
        return logit_diff(patched_logits(model, corrupted, edits))

    found = {
        f"baseline_{w}": logit_diff(last_logits(model, t)) for w, t in (("clean", clean), ("corrupted", corrupted))
    }
    for site in ("resid_post", "attn_out"):
        found[site] = patched_grid(model, corrupted, source, site, ("layer", "position"), logit_diff).tolist()
    if "resid_mid_past_mlp" in pair:
        rows = range(n_layer)
        found["resid_mid_past_mlp"] = [[past_mlp(layer, p) for p in range(clean.shape[1])] for layer in rows]
        found["wrong_places"], found["mixtures"] = [], []
        for layer, position, from_layer, from_position, _ in pair["wrong_places"]:
            at, origin = (layer % n_layer, position), (from_layer % n_layer, from_position)
            vector = source["resid_post"][origin[0]][0, origin[1]]
            found["wrong_places"].append([*at, *origin, round(patched(*at, vector), 4)])
        for layer, position, share, _ in pair["mixtures"]:
            layer %= n_layer
            ends = (run["resid_post"][layer][0, position] for run in (source, into))
            vector = sum(weight * end for weight, end in zip((share, 1 - share), ends, strict=True))
            found["mixtures"].append([layer, position, share, round(patched(layer, position, vector), 6)])
    return pair | found


def standin_direct_attribution(model, tokens, answers):
    """Direct logit attribution as TransformerLens computes it: fold and centre the weights first, then read the parts.

    LayerNorm's scale goes into the unembedding, the value bias into the attention's bias, and everything that writes
    to the residual stream is centred. The model with folded weights computes the same, but its parts differ.
    """
    arrays = {name: array.astype(float) for name, array in pytorch_run(model.double(), tokens).items()}
    weights = {key: tensor.numpy().astype(float) for key, tensor in model.double().state_dict().items()}
    model.float()
    d_model, n_head = model.config.n_embd, model.config.n_head

    def centre(writes):
        return writes - writes.mean(axis=-1, keepdims=True)

    unembed = weights["lm_head.weight"] * weights["transformer.ln_f.weight"]  # (n_vocab, d_model)
    towards = unembed[answers[:, 0]] - unembed[answers[:, 1]]  # (batch, d_model)
    final = centre(arrays["resid_post"][-1][:, -1])
    towards /= np.sqrt((final**2).mean(axis=-1, keepdims=True) + model.config.layer_norm_epsilon)

    def read(writes):  # (batch, d_model), written at the last position
        return float((writes * towards).sum(axis=-1).mean())

    embed = centre(weights["transformer.wte.weight"])[tokens[:, -1]]
    position = np.broadcast_to(centre(weights["transformer.wpe.weight"])[tokens.shape[1] - 1], embed.shape)
    stream, lens, parts, heads = embed + position, [], [read(embed), read(position)], []
    for i in range(model.config.n_layer):
        c_proj = centre(weights[f"transformer.h.{i}.attn.c_proj.weight"])
        value_bias = weights[f"transformer.h.{i}.attn.c_attn.bias"][2 * d_model :]
        bias = centre(weights[f"transformer.h.{i}.attn.c_proj.bias"]) + value_bias @ c_proj
        z = arrays["z"][i][:, -1].reshape(-1, d_model) - value_bias
        by_head = [z[:, columns] @ c_proj[columns] for columns in np.split(np.arange(d_model), n_head)]
        attn_out = sum(by_head) + bias
        mlp_weight = centre(weights[f"transformer.h.{i}.mlp.c_proj.weight"])
        mlp_out = arrays["mlp_post"][i][:, -1] @ mlp_weight + centre(weights[f"transformer.h.{i}.mlp.c_proj.bias"])
        lens += [read(stream), read(stream + attn_out)]
        parts += [read(attn_out), read(mlp_out)]
        heads.append([read(head) for head in by_head])
        stream = stream + attn_out + mlp_out
    lens.append(read(stream))
    return {"dla_logit_lens_pre_mid": lens, "dla_layers_embed_pos_attn_mlp": parts, "dla_heads": heads}


def make_debug_state(folder=TESTS):
    """The debug state of a random model of SIZES: 256 int32, tokens, targets, logits, the loss, and all gradients.

    As in llm.c's `write_state` and `write_tensors`, linear weights are (out, in), each kind of weight has all blocks
    one after the other, and the vocabulary of wte's gradient is padded.
    """
    import torch

    model = pytorch_model(SIZES, random_tensors(SIZES, seed=0))
    batch, n_tokens, padded = 2, 8, 64
    ids = torch.from_numpy(np.random.Generator(np.random.PCG64(4000)).integers(0, SIZES["vocab_size"], (batch, 9)))
    tokens, targets = ids[:, :n_tokens], ids[:, 1:]
    logits = model(tokens, use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    loss.backward()

    header = np.zeros(256, "<i4")
    header[:4] = 20240327, 2, batch, n_tokens
    transformer = model.transformer
    d_wte = np.zeros((padded, SIZES["n_embd"]), "<f4")
    d_wte[: SIZES["vocab_size"]] = transformer.wte.weight.grad
    gradients = [d_wte, transformer.wpe.weight.grad]
    for kind in ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"):
        modules = [block.get_submodule(kind) for block in transformer.h]
        gradients += [module.weight.grad.numpy().T for module in modules] + [module.bias.grad for module in modules]
    gradients += [transformer.ln_f.weight.grad, transformer.ln_f.bias.grad]
    values = (logits.detach(), loss.detach(), *gradients)
    content = [header, *(np.asarray(ids, "<i4") for ids in (tokens, targets)), *(np.asarray(a, "<f4") for a in values)]
    write(folder / "llmc_debug_state.bin", b"".join(array.tobytes() for array in content))


def write_npz(path, arrays, most_bytes=None):
    """A compressed .npz with these arrays; the same bytes for the same arrays."""
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    if most_bytes and content.tell() > most_bytes:
        raise SystemExit(
            f"{path} would take {content.tell():,} bytes, and {most_bytes:,} are allowed: keep fewer columns"
        )
    write(path, content.getvalue())


def write_json(path, content):
    write(path, (json.dumps(content, separators=(",", ":")) + "\n").encode())


def write(path, content):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content)
    print(f"{path}  {len(content):,} bytes", file=sys.stderr)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", help="tiny, patching, standin, debug, nano; all by default")
    parser.add_argument("--model", type=Path, default=ROOT / "weights" / "nano", help="folder of nano's checkpoint")
    parser.add_argument("-o", "--output", type=Path, default=DATA / "nano_reference.npz", help="nano's reference file")
    arguments = parser.parse_args()
    makers = {
        "tiny": make_tiny,
        "patching": make_patching,
        "standin": make_standin,
        "debug": make_debug_state,
        "nano": lambda: make_nano(arguments.model, arguments.output),
    }
    for what in arguments.what or makers:
        if what not in makers:
            parser.error(f"unknown {what!r}: give any of {', '.join(makers)}")
        makers[what]()


if __name__ == "__main__":
    main()
