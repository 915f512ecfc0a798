"""EAP-IG's own edge scores and circuits (github.com/hannamw/EAP-IG), to compare with.

It runs in an environment of its own, which has it:

    pip install "transformer_lens<4" git+https://github.com/hannamw/EAP-IG
    python scripts/eap_ig.py reference      makes tests/reference/eap_ig.npz, which the tests read without EAP-IG
    python scripts/eap_ig.py 2              its side of `scripts/benchmark.py circuits --eap-ig PYTHON`, on 2 threads

The file holds, in float64, what EAP-IG computes on `nano` for three named pairs of prompts. NAME is the pair's:

    header                  JSON: the versions, and the names of all edges, in the order of the arrays
    NAME.eap                (n_edges,): EAP, of the logit difference, with the corrupted prompt's values
    NAME.eap.zero           the same with zero in their place
    NAME.eap.mean           with each node's mean over the prompts of `others`, position by position
    NAME.ig.N               EAP-IG with N steps ("EAP-IG-inputs")
    NAME.kept.N             (n_edges,), bool: what `Graph.apply_topn(N)` keeps of the edges, by NAME.ig.10
    NAME.run.N              the logit difference of that circuit, all else with the corrupted prompt's values
    NAME.run.N.mean, .zero  the same, with those; for zero, the circuit has all edges from the input, too. (Its zero
                            leaves the positions' embeddings, which are part of `embed` in nanopatch.)

As a server it reads lines of JSON: {"model": "nano" or "124M", "clean": ids, "corrupted": ids, "steps": 1 for EAP or
the number of steps, "weights": whether weights have gradients, "edges": how many make the circuit}. It answers with
seconds: {"scores": ..., "choose": ..., "run": ...}. Its weights at 124M's shape are random, and take as long as others.

The stored file was made with EAP-IG's functions of commits 62f83cd (attribute, utils), 81770db (evaluate) and 4fad6c6
(graph). EAP-IG puts its scores on a GPU ("cuda"). Without one, `torch.zeros` puts them on the CPU here.
"""

import importlib.metadata
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.append(str(Path(__file__).resolve().parent.parent))

import eap.attribute
import eap.evaluate
import eap.utils
from eap.graph import Graph
from hooked import hooked_transformer

import nanopatch
from nanopatch.experiments import INDIRECT_OBJECT, JESSICA, MICHELLE

ROOT = Path(__file__).resolve().parent.parent
PAIRS = {"michelle": MICHELLE, "jessica": JESSICA, "indirect-object": INDIRECT_OBJECT}
STEPS, SIZES = (5, 10), (40, 120, 300)
OPTIONS = {"use_attn_result": True, "use_split_qkv_input": True, "use_hook_mlp_in": True}


def others(clean):
    """The prompts whose mean an ablation takes: the clean one, reversed, and turned by three."""
    return [clean, clean[::-1], [*clean[3:], *clean[:3]]]


def take_ids(_, inputs, max_length=None):
    """EAP-IG's `tokenize_plus` for token ids in place of texts, which need a tokenizer from the hub."""
    tokens = torch.tensor(inputs)
    return tokens, None, torch.full((len(tokens),), tokens.shape[1]), tokens.shape[1]


def logit_diff(logits, _, lengths, label):
    """label: the ids of the answer and the wrong answer."""
    return (logits[:, -1, label[0]] - logits[:, -1, label[1]]).mean()


def on_cpu():
    """Without a GPU, `device="cuda"` is the CPU; prompts are token ids."""
    zeros = torch.zeros
    if not torch.cuda.is_available():
        torch.zeros = lambda *shape, device=None, **options: zeros(*shape, **options)
    for module in (eap.utils, eap.attribute, eap.evaluate):
        module.tokenize_plus = take_ids


def prepare(hooked, weights=False):
    """Let gradients begin at the weights, or at the embeddings alone."""
    hooked.reset_hooks(including_permanent=True)
    hooked.zero_grad()
    hooked.requires_grad_(weights)
    if not weights:
        hooked.hook_embed.add_perma_hook(
            lambda embed, hook: embed.requires_grad_() if torch.is_grad_enabled() else embed
        )
    return hooked


# ---- the reference --------------------------------------------------------------------------------


def reference(path):
    from make_reference import write_npz

    model = nanopatch.load("nano", dtype="float64")
    hooked = prepare(hooked_transformer(model, **OPTIONS))
    graph = Graph.from_model(hooked)
    places = tuple(np.transpose([edge.matrix_index for edge in graph.edges.values()]))
    arrays = {}
    for name, pair in PAIRS.items():
        tokens = pair.tokens(model)
        clean, corrupted = tokens.clean.tolist(), tokens.corrupted.tolist()
        batch = [([clean], [corrupted], [tokens.answer, tokens.wrong_answer])]
        mean = {"intervention": "mean-positional", "intervention_dataloader": [(others(clean), None, None)]}
        ablations = {"": {}, ".mean": mean, ".zero": {"intervention": "zero"}}
        for end, options in ablations.items():
            scores = eap.attribute.get_scores_eap(hooked, graph, batch, logit_diff, quiet=True, **options)
            arrays[f"{name}.eap{end}"] = scores.numpy()[places]
        for steps in STEPS:
            scores = eap.attribute.get_scores_eap_ig(hooked, graph, batch, logit_diff, steps=steps, quiet=True)
            arrays[f"{name}.ig.{steps}"] = scores.numpy()[places]
        graph.scores = scores
        for size in SIZES:
            graph.apply_topn(size)
            arrays[f"{name}.kept.{size}"] = graph.in_graph.numpy()[places]
            for end, options in ablations.items():
                if end == ".zero":
                    graph.in_graph[0] = graph.real_edge_mask[0]
                    graph.nodes_in_graph[:] = True  # edges to and from those without any are pruned again
                found = eap.evaluate.evaluate_graph(hooked, graph, batch, logit_diff, quiet=True, **options)
                arrays[f"{name}.run.{size}{end}"] = found.numpy()
    header = {
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformer_lens")},
        "edges": list(graph.edges),
    }
    write_npz(path, {"header": json.dumps(header), **arrays})


# ---- the benchmark's other side -------------------------------------------------------------------


def timed(function, *arguments, **options):
    begin = time.perf_counter()
    function(*arguments, **options)
    return time.perf_counter() - begin


def serve(threads):
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    config = HookedTransformerConfig(
        n_layers=12, d_model=768, n_heads=12, d_head=64, d_mlp=3072, n_ctx=1024, d_vocab=50257, act_fn="gelu_new",
        normalization_type="LN", device="cpu", **OPTIONS,
    )  # fmt: skip
    models = {"nano": hooked_transformer(nanopatch.load("nano"), **OPTIONS), "124M": HookedTransformer(config).eval()}
    print("ready", flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        hooked = prepare(models[job["model"]], job["weights"])
        graph, batch = Graph.from_model(hooked), [([job["clean"]], [job["corrupted"]], [3, 7])]
        method = {"method": "EAP"} if job["steps"] == 1 else {"method": "EAP-IG-inputs", "ig_steps": job["steps"]}
        times = {"scores": timed(eap.attribute.attribute, hooked, graph, batch, logit_diff, quiet=True, **method)}
        if job["edges"]:
            times["choose"] = timed(graph.apply_topn, job["edges"])
            times["run"] = timed(eap.evaluate.evaluate_graph, hooked, graph, batch, logit_diff, quiet=True)
        print(json.dumps(times), flush=True)


if __name__ == "__main__":
    on_cpu()
    if sys.argv[1:] == ["reference"]:
        reference(ROOT / "tests" / "reference" / "eap_ig.npz")
    elif len(sys.argv) == 2 and sys.argv[1].isdecimal():
        serve(int(sys.argv[1]))
    else:
        raise SystemExit("eap_ig: give `reference`, or the number of threads")
