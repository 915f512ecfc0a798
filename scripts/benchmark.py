"""Measure how fast nanopatch is. Most figures are ratios: its time beside that of a program that does the same work.

    python scripts/benchmark.py                       # everything that can run here
    python scripts/benchmark.py forward sweep         # some parts
    python scripts/benchmark.py sweep --transformer-lens /path/to/python
    python scripts/benchmark.py --json

Machines are shared and noisy. So the two sides of a ratio run alternately, in one process or in two that wait for each
other, and the printed ratio is the median of several. The number of threads is fixed, two by default. Models have the
shape of GPT-2 and random weights, which take as long as trained ones. Some parts need PyTorch and transformers, or
TransformerLens, or Chromium. If these are missing, such a part is left out, and a line says so. What a user waits for
(the parts demo and page) is measured in seconds or milliseconds.
"""

import argparse
import contextlib
import functools
import itertools
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SCRIPTS = Path(__file__).parent
SHAPES = {  # n_layer, n_head, n_embd
    "124M": (12, 12, 768),
    "medium": (24, 16, 1024),
    "large": (36, 20, 1280),
    "XL": (48, 25, 1600),
    "narrow": (12, 2, 16),
}


def main():
    options = command_line()
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        if os.environ.get(variable) != str(options.threads):  # NumPy reads it when it is imported
            os.environ.update(
                dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(options.threads))
            )
            os.execv(sys.executable, [sys.executable, *sys.argv])
    rows = []
    for name in options.parts or PARTS:
        for row in PARTS[name](options):
            rows.append({"part": name, **row})
            if not options.json:
                print(show(rows[-1]), flush=True)
    if options.json:
        print(json.dumps({"machine": machine(options), "rows": rows}))
    else:
        print(machine(options))
    return any(row.get("ok") is False for row in rows)


def command_line():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], metavar="part", help=", ".join(PARTS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--transformer-lens", metavar="PYTHON", help="a Python whose environment has transformer_lens")
    parser.add_argument("--eap-ig", metavar="PYTHON", help="part circuits: a Python whose environment has EAP-IG")
    parser.add_argument(
        "--plot", metavar="FILE", help="part lengths: also draw the cost of a cell as the prompt grows; many: memory"
    )
    parser.add_argument("--pairs", type=int, default=20_000, help="part many: the most pairs (%(default)s)")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


# ---- the parts -----------------------------------------------------------------------------------


def imports(options):
    """`import nanopatch` beside `import numpy`: time and memory of a process that does only that."""
    code = "import time; t = time.perf_counter(); import {}; t = time.perf_counter() - t; " + (
        "import resource; print(t, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )

    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}

    def importing(module):  # with the compiled modules that the warm-up leaves, as users have them
        command = [sys.executable, "-c", code.format(module)]
        out = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        return [float(word) for word in out.split()]

    importing("nanopatch")

    ours, theirs = [], []
    for _ in range(3 * options.repeats):
        theirs.append(importing("numpy"))
        ours.append(importing("nanopatch"))
    pairs = list(zip(ours, theirs, strict=True))
    yield row("import nanopatch / import numpy, time", [a / b for (a, _), (b, _) in pairs], 1.3)
    yield row("import nanopatch / import numpy, memory", [a / b for (_, a), (_, b) in pairs], 1.3)


def demo(options):
    """`nanopatch demo` from start to finish, in seconds. It is no ratio, because users wait for it."""
    seconds = []
    for _ in range(options.repeats):
        with tempfile.TemporaryDirectory() as folder:
            begin = time.perf_counter()
            subprocess.run(
                [sys.executable, "-m", "nanopatch", "demo"], cwd=folder, stdout=subprocess.DEVNULL, check=True
            )
            seconds.append(time.perf_counter() - begin)
    yield row("nanopatch demo, seconds", seconds, 4.0)


def forward(options):
    """One forward pass beside Hugging Face's model."""
    try:
        import torch
        from transformers import GPT2Config, GPT2LMHeadModel
    except ImportError:
        yield {"what": "one forward pass: left out, it needs torch and transformers"}
        return
    import numpy as np

    from nanopatch.model.checkpoint import build

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    theirs = GPT2LMHeadModel(GPT2Config(attn_implementation="sdpa")).eval()
    tensors = {name.removeprefix("transformer."): tensor.numpy() for name, tensor in theirs.state_dict().items()}
    model = build(shape_config("124M"), {name: tensors[name] for name in tensors if not name.endswith(".attn.bias")})
    for n_tokens, whole_bound, last_bound in ((11, 1.0, 0.8), (64, 1.0, 0.8), (256, None, 1.0), (1024, None, 1.2)):
        ids = np.random.default_rng(0).integers(0, 50257, n_tokens)
        batch = torch.tensor(ids)[None]

        def torch_logits(keep, batch=batch):
            with torch.inference_mode():
                return theirs(batch, use_cache=False, logits_to_keep=keep).logits[0]

        def all_logits(ids=ids):
            return model.run(ids, sites="logits").logits

        repeats = options.repeats if n_tokens > 64 else 3 * options.repeats
        if whole_bound:
            assert_close(all_logits(), torch_logits(0).numpy())
            ratios = alternate(all_logits, lambda: torch_logits(0), repeats)
            yield row(f"forward, {n_tokens} tokens, all logits: nanopatch / Hugging Face", ratios, whole_bound)
        assert_close(model.next_logits(ids), torch_logits(1)[0].numpy())
        ratios = alternate(lambda ids=ids: model.next_logits(ids), lambda: torch_logits(1), repeats)
        yield row(f"forward, {n_tokens} tokens, last logits: nanopatch / Hugging Face", ratios, last_bound)


def gelu(options):
    """The exact GELU beside the tanh form, and its share of a forward and a backward pass at 124M's shape."""
    import numpy as np

    from nanopatch.model.backward import gelu_slope
    from nanopatch.model.layers import by_blocks, gelu, gelu_new

    def all_of(function, arrays):
        for x in arrays:  # a list would hold the results, and so hinder the allocator
            function(x)

    rng, repeats = np.random.default_rng(0), 3 * options.repeats
    for n_tokens in (11, 64):
        x = [rng.standard_normal((n_tokens, 3072), dtype=np.float32)] * 10
        ratios = alternate(lambda x=x: all_of(gelu, x), lambda x=x: all_of(gelu_new, x), repeats)
        yield row(f"GELU of {n_tokens} tokens: exact form / tanh form", ratios, 8)
    model = random_model("124M", "gelu")
    run = model.run(rng.integers(0, model.n_vocab, 11))
    d_logits = np.zeros_like(run.logits)
    d_logits[-1, [3, 7]] = 1, -1
    ratios = alternate(lambda: all_of(gelu, run.mlp_pre), lambda: model.run(run.tokens), repeats)
    yield row("exact GELU of all layers, 11 tokens / one forward pass", ratios, 0.08)
    ratios = alternate(
        lambda: all_of(lambda x: by_blocks(gelu_slope, x), run.mlp_pre), lambda: model.backward(run, d_logits), repeats
    )
    yield row("its slope in all layers / one backward pass", ratios, 0.08)


def sweeps(options):
    """The sweep of resid_pre at 124M's shape, 12 x 11 patches: for README's prompts, and for a pair that needs all."""
    model = random_model("124M")
    with contextlib.ExitStack() as stack:
        lens = stack.enter_context(TransformerLens(options)) if options.transformer_lens else None
        yield from sweeps_of_pair(options, model, nanopatch().experiments.MICHELLE, "resid_pre sweep", lens, 20)
        apart = random_experiment(model, 11)
        yield from sweeps_of_pair(options, model, apart, "resid_pre sweep, first tokens differ", lens, None)
    if not lens:
        yield {"what": "TransformerLens: left out, it needs --transformer-lens PYTHON"}


def sweeps_of_pair(options, model, experiment, name, lens, bound_with_base):
    """The sweep of one pair of prompts beside the plain loop, its own matrix products, and TransformerLens."""
    from nanopatch.patching.stack import MEMORY
    from nanopatch.patching.sweep import Running

    tokens, few = experiment.tokens(model), max(3, options.repeats // 2)
    case, cells = case_of(model, experiment)

    def whole():
        return nanopatch().sweep(model, experiment)

    def patches_only():  # all that a sweep does after the base runs
        return Running(MEMORY).values(case, [cells])

    def naive_patches_only():
        return naive_loop(model, tokens, case.runs.clean)

    def naive():
        return model.run(tokens.corrupted), naive_loop(model, tokens, model.run(tokens.clean))

    assert_close(whole().grid, naive_patches_only())
    ratios = alternate(naive_patches_only, patches_only, few)
    yield row(f"{name}: naive NumPy loop / nanopatch", ratios, 20, least=True)
    yield row(f"{name}: the same, base runs included", alternate(naive, whole, few), bound_with_base, least=True)
    ratios = alternate(patches_only, bare_products(model, case, cells), options.repeats)
    yield row(f"{name}: nanopatch / bare matrix products of its shapes", ratios, 1.35)
    if not lens:
        return
    alone, with_base, heads = [], [], []
    for _ in range(few):
        theirs = lens.time("resid_pre", tokens)
        alone.append(theirs["sweep"] / timed(patches_only))
        with_base.append((theirs["base"] + theirs["sweep"]) / timed(whole))
        theirs = lens.time("z", tokens)
        ours = timed(lambda: nanopatch().sweep(model, experiment, site="z"))
        heads.append((theirs["base"] + theirs["sweep"]) / ours)
    yield row(f"{name}: TransformerLens / nanopatch", alone, 30, least=True)
    yield row(f"{name}: the same, base runs included", with_base, 20, least=True)
    yield row(f"{name.replace('resid_pre', 'z')}, 144 heads: the same, base runs included", heads, 15, least=True)


def pairs(options):
    """Many pairs of 15 tokens at 124M's shape: two workers beside one process, and beside TransformerLens' batch."""
    from nanopatch.patching.workers import pool

    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        nanopatch().save_checkpoint(random_model("124M"), folder)
        model = nanopatch().load(folder)
        executor = stack.enter_context(pool(2))
        lens = stack.enter_context(TransformerLens(options)) if options.transformer_lens else None
        apart = [random_pairs(model, 2, 15, 1), random_pairs(model, 2, 15, 10)]
        for few in apart:  # both workers start, and load the model
            nanopatch().sweep(model, few, executor=executor)
        bound = {(1, "resid_pre"): 12, (10, "z"): 13}
        for n in (8, 64):
            for position, site in ((1, "resid_pre"), (1, "z"), (10, "resid_pre"), (10, "z")):
                experiments = random_pairs(model, n, 15, position)
                name = f"{n} pairs, {site}, token {position + 1} differs"

                def serial(experiments=experiments, site=site):
                    return nanopatch().sweep(model, experiments, site)

                def two(experiments=experiments, site=site):
                    return nanopatch().sweep(model, experiments, site, executor=executor)

                few = 3 if n == 8 else 1
                ones, twos, theirs = [], [], []
                for _ in range(few):
                    ones.append(timed(serial))
                    twos.append(timed(two))
                    if lens:
                        theirs.append(lens.batch(site, experiments, cells=24 if n == 8 else 8))
                if (position, site) == (1, "resid_pre") and n == 8:
                    assert_close(two().grid, serial().grid)
                ratios = [one / other for one, other in zip(ones, twos, strict=True)]
                least = 1.2 if (position, site) == (1, "resid_pre") else None
                yield row(f"{name}: one process of {options.threads} threads / two workers", ratios, least, least=True)
                if lens:
                    for ours, of in ((ones, "one process"), (twos, "two workers")):
                        ratios = [their / our for their, our in zip(theirs, ours, strict=True)]
                        least = bound.get((position, site)) if of == "two workers" else None
                        yield row(f"{name}: TransformerLens' batch / nanopatch, {of}", ratios, least, least=True)
    if not options.transformer_lens:
        yield {"what": "TransformerLens: left out, it needs --transformer-lens PYTHON"}


def random_pairs(model, n, n_tokens, position):
    """Pairs whose prompts differ at one position."""
    import numpy as np

    rng, found = np.random.default_rng(2), []
    for _ in range(n):
        clean = rng.integers(0, model.n_vocab, n_tokens)
        corrupted = clean.copy()
        corrupted[position] = (corrupted[position] + 1) % model.n_vocab
        found.append(nanopatch().Experiment(clean, corrupted, 3, 7))
    return found


def many(options):
    """Pairs a second on nano, and the memory as they grow; a Dask cluster of two processes beside the pool."""
    import numpy as np

    model, counts = nanopatch().load("nano"), (1000, 10_000, options.pairs)
    points = {}
    for n in sorted(set(counts)):
        code = (
            "import sys, time, json, nanopatch\n"
            "sys.path.insert(0, sys.argv[2]); import benchmark\n"
            "if __name__ == '__main__':\n"
            "    n = int(sys.argv[1]); model = nanopatch.load('nano')\n"
            "    pairs = nanopatch.tasks.induction(n)\n"
            "    before = benchmark.peak_memory(); begin = time.perf_counter()\n"
            "    nanopatch.sweep(model, pairs, workers=2, folder='run')\n"
            "    print(json.dumps([time.perf_counter() - begin, before, benchmark.peak_memory()]))\n"
        )
        with tempfile.TemporaryDirectory() as folder:
            script = Path(folder, "many.py")
            script.write_text(code)
            command = [sys.executable, str(script), str(n), str(SCRIPTS)]
            done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=True)
        seconds, before, after = json.loads(done.stdout)
        points[n] = before / 1e6, after / 1e6
        yield {"what": f"nano, {n:,} pairs, two workers and a folder: pairs a second", "value": n / seconds}
        yield {"what": f"nano, {n:,} pairs: the parent's memory, in MB; with the pairs alone", "value": after / 1e6,
               "spread": [before / 1e6, after / 1e6]}  # fmt: skip
    if options.plot:
        plot_memory(points, options.plot)
    try:
        import distributed
    except ImportError:
        yield {"what": "Dask: left out, it needs distributed"}
        return
    from nanopatch.patching.workers import pool

    pairs = nanopatch().tasks.induction(6400)  # parts of 50; with few pairs, parts are small and Dask's share larger
    settings = dict(n_workers=2, threads_per_worker=1, dashboard_address=None)
    # The pool comes first: it sets the environment to one thread each, which Dask's workers inherit.
    with pool(2) as executor, distributed.LocalCluster(**settings) as cluster, distributed.Client(cluster) as client:
        ours, theirs = (
            lambda e=e: nanopatch().sweep(model, pairs, executor=e) for e in (executor, client.get_executor())
        )
        assert np.array_equal(ours().grid, theirs().grid)
        yield row("nano, 6,400 pairs: Dask's cluster / the process pool", alternate(theirs, ours, 3), 1.1)


def gradients(options):
    """Attribution of every site from two runs and one backward pass, and that pass itself, at 124M's shape."""
    import numpy as np

    from nanopatch.experiments.patch import SITE_AXES

    model, few = random_model("124M"), max(3, options.repeats // 2)
    experiment = random_experiment(model, 11)

    def all_sites():
        return nanopatch().attribute(model, experiment, list(SITE_AXES))

    def one_forward():
        return model.run(experiment.corrupted, sites="logits").logits

    ratios = alternate(all_sites, one_forward, options.repeats)
    yield row(f"attribution of all {len(SITE_AXES)} sites, 11 tokens / one forward pass", ratios, 4)
    ratios = alternate(lambda: nanopatch().sweep(model, experiment), all_sites, few)
    yield row("exact resid_pre sweep / attribution of every site", ratios)
    try:
        import torch
        from transformers import GPT2Config, GPT2LMHeadModel
    except ImportError:
        yield {"what": "forward and backward: left out, they need torch and transformers"}
        return
    torch.set_num_threads(options.threads)
    theirs = GPT2LMHeadModel(GPT2Config(attn_implementation="sdpa")).eval().requires_grad_(False)
    for n_tokens in (11, 64):
        tokens = random_experiment(model, n_tokens).corrupted
        d_logits = np.zeros((n_tokens, model.n_vocab), np.float32)
        d_logits[-1, [3, 7]] = 1, -1
        embed = theirs.transformer.wte(torch.tensor(tokens))[None].detach()

        def autograd(embed=embed):
            inputs = embed.clone().requires_grad_(True)
            logits = theirs(inputs_embeds=inputs, use_cache=False).logits
            (logits[0, -1, 3] - logits[0, -1, 7]).backward()
            return inputs.grad

        def ours(tokens=tokens, d_logits=d_logits):
            return model.backward(model.run(tokens), d_logits)

        ratios = alternate(ours, autograd, 2 * options.repeats)
        yield row(f"forward and backward, {n_tokens} tokens: nanopatch / PyTorch autograd", ratios, 1)


def circuits(options):
    """Edge scores, circuits and path patching, each beside one forward pass; on nano and at 124M's shape."""
    from nanopatch.gradients.edges import edge_case
    from nanopatch.model.backward import blocks_backward

    for name, n_tokens in (("nano", 11), ("124M", 11), ("124M", 256)):
        model = nanopatch().load("nano") if name == "nano" else random_model("124M")
        pair = nanopatch().experiments.MICHELLE if name == "nano" else random_experiment(model, n_tokens)
        what = f"{name}, {n_tokens} tokens:"
        repeats = options.repeats if n_tokens < 50 else max(3, options.repeats // 3)

        def forward(model=model, pair=pair):
            return model.run(pair.corrupted, sites="logits").logits

        def beside(label, function, each=1, forward=forward, what=what, repeats=repeats):
            ratios = [ratio / each for ratio in alternate(function, forward, repeats)]
            return row(f"{what} {label} / one forward pass", ratios)

        case = edge_case(model, pair, 0, "denoise", "logit_diff")
        d_resid = case.base.resid_post[-1] * 0 + 1

        def least(model=model, pair=pair, case=case, d_resid=d_resid):
            edge_case(model, pair, 0, "denoise", "logit_diff")
            blocks_backward(model, case.base, d_resid, "q")

        score = functools.partial(nanopatch().edge_attribution, model, pair)
        yield beside("two recorded runs and one backward pass", least)
        yield beside("scores of all edges", score)
        yield beside("the same, 5 steps", functools.partial(score, steps=5))
        if options.eap_ig:
            with Peer(options.eap_ig, "eap_ig.py", options) as theirs:
                yield from beside_eap_ig(theirs, name, model, pair, repeats)
        if n_tokens > 50:
            continue
        scores = score(steps=2)
        several = twenty_circuits(scores)
        run = functools.partial(nanopatch().faithfulness, model, pair)
        yield beside("a circuit of the best 400 edges", functools.partial(run, scores.circuit(400)))
        yield beside("20 circuits of one pair, 5% to all edges, each", functools.partial(run, several), each=20)
        heads = functools.partial(nanopatch().path_patch, model, pair, "head", "logits")
        yield beside("every head to the logits, frozen", heads)
        yield beside("every head to the logits, MLPs free", functools.partial(heads, between="free mlps"))
        times = [timed(functools.partial(scores.top, 400)) * 1e3 for _ in range(options.repeats)]
        yield row(f"{what} choosing the best 400 edges, in ms", times)
    if not options.eap_ig:
        yield {"what": "EAP-IG: left out, it needs --eap-ig PYTHON"}


def twenty_circuits(scores):
    """Circuits of 5% to all of the edges, by names."""
    return {str(i): scores.circuit((i + 1) * len(scores.edges) // 20) for i in range(20)}


def beside_eap_ig(theirs, name, model, pair, repeats):
    """EAP-IG's time / ours: scores, with the gradients of its weights (as it is used) and without; circuits."""
    tokens = pair.tokens(model)
    job = {"model": name, "clean": tokens.clean.tolist(), "corrupted": tokens.corrupted.tolist()}
    n_tokens = len(tokens.clean)
    what = f"{name}, {n_tokens} tokens: EAP-IG / nanopatch,"
    for steps in (1, 5) if n_tokens < 50 else (1,):  # five take it minutes at 256 tokens
        score = functools.partial(nanopatch().edge_attribution, model, pair, direction="noise", steps=steps)
        for weights, told in ((True, ""), (False, ", its gradients of weights off")):
            asked = {**job, "steps": steps, "weights": weights, "edges": None}
            theirs.ask(**asked), score()
            ratios = [theirs.ask(**asked)["scores"] / timed(score) for _ in range(repeats)]
            yield row(f"{what} scores, {steps} step{'s' * (steps > 1)}{told}", ratios)
    if n_tokens > 50:
        return
    scores, faithfulness = score(), functools.partial(nanopatch().faithfulness, model, pair)
    for label, kind, each, ours in (
        ("choosing 400 edges", "choose", 1, functools.partial(scores.top, 400)),
        ("a circuit of 400 edges", "run", 1, functools.partial(faithfulness, scores.circuit(400))),
        ("each of 20 circuits", "run", 20, functools.partial(faithfulness, twenty_circuits(scores))),
    ):
        asked = {**job, "steps": 1, "weights": False, "edges": 400}
        theirs.ask(**asked), ours()
        yield row(f"{what} {label}", [each * theirs.ask(**asked)[kind] / timed(ours) for _ in range(repeats)])


def lengths(options):
    """The cost of a cell as the prompt grows, and at the larger shapes, beside one forward pass of the same model."""
    points = {}
    with contextlib.ExitStack() as stack:
        lens = stack.enter_context(TransformerLens(options)) if options.transformer_lens else None
        for shape, n_tokens in (("124M", 11), ("124M", 64), ("124M", 256), ("medium", 11), ("large", 11), ("XL", 11)):
            yield from cost_of_cells(shape, n_tokens, lens, points)
    yield {"what": "peak memory of this process, GB", "value": peak_memory() / 1e9}
    if options.plot:
        plot_lengths(points, options.plot)


def cost_of_cells(shape, n_tokens, lens, points):
    """The rows of one model. {(site, shape, n_tokens): cell / forward pass} of each is added to `points`."""
    model = random_model(shape)
    experiment = random_experiment(model, n_tokens)
    sites = ("resid_pre", "z") if shape == "124M" else ("resid_pre",)
    for site in sites:
        # The cost of a cell is proportional to the number of layers from its own on. So two layers in the middle stand
        # for all 12, which would take minutes.
        layers = [5, 6] if site == "resid_pre" and n_tokens == 256 else None
        n_cells = len(layers or range(model.n_layer)) * (n_tokens if site == "resid_pre" else model.n_head)
        patch = nanopatch().Patch(site, layers=layers)

        def one_cell(patch=patch, n_cells=n_cells):
            return timed(lambda: nanopatch().sweep(model, experiment, patch)) / n_cells

        to_forward, to_theirs = [], []
        if n_tokens == 11:
            one_cell()  # a warm-up
        for _ in range(3 if n_tokens < 256 else 1):
            cell = one_cell()
            to_forward.append(cell / timed(lambda: model.next_logits(experiment.corrupted)))
            if lens and shape == "124M":
                to_theirs.append(lens.time(site, experiment.tokens(model), cells=24)["cell"] / cell)
        points[site, shape, n_tokens] = statistics.median(to_forward)
        what = f"{site} sweep, {shape}, {n_tokens} tokens"
        yield row(f"{what}: one of {n_cells} cells / one forward pass", to_forward)
        if to_theirs:
            yield row(f"{what}: a cell of TransformerLens (of 24) / of nanopatch", to_theirs)


def memory(options):
    """Peak memory at 124M's shape, each in a process of its own."""
    begin = f"import sys; sys.path.insert(0, {str(SCRIPTS)!r}); import benchmark as b; model = b.random_model('124M'); "
    begin += "experiment = b.random_experiment(model, int(sys.argv[1])); "

    def printed(code, n_tokens):
        command = [sys.executable, "-c", begin + code, str(n_tokens)]
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    code = "weights = sum(a.nbytes for a in b.weights_of(model)); b.nanopatch().sweep(model, experiment); "
    code += "print(b.peak_memory() - weights)"
    for n_tokens in (11, 64):
        what = f"resid_pre sweep, 124M, {n_tokens} tokens: peak memory besides the weights, MB"
        yield row(what, [printed(code, n_tokens) / 1e6], 400)
    yield row(
        "attribution of every site, 64 tokens: peak memory in records",
        [printed("print(b.records(model, experiment))", 64)],
        3,
    )


def lenses(options):
    """Logit lens, direct logit attribution and all patterns of one run, at 124M's shape and 64 tokens."""
    import numpy as np

    from nanopatch.lenses import logit

    model = random_model("124M")
    ids = random_experiment(model, 64).clean
    run = model.run(ids)
    layers = [layer for pair in zip(run.resid_pre, run.resid_mid, strict=True) for layer in pair]
    rows = np.concatenate([*layers, run.resid_post[-1]])
    size = logit.MEMORY // (model.n_vocab * model.dtype.itemsize)

    def forward():
        return model.run(ids, sites="logits")

    def lens():
        return nanopatch().logit_lens(model, run, 3, 7)

    def product():  # the rows that the lens unembeds, so many at once
        for first in range(0, len(rows), size):
            rows[first : first + size] @ model.lm_head.T

    def direct():
        return nanopatch().direct_logit_attribution(model, run, 3, 7)

    def patterns():
        return model.run(ids, sites="pattern")

    whole, rest, of_product, theirs = [], [], [], []
    lens(), product(), forward()
    with contextlib.ExitStack() as stack:
        other = stack.enter_context(TransformerLens(options)) if options.transformer_lens else None
        for _ in range(options.repeats):
            seconds, of_rows, of_run = timed(lens), timed(product), timed(forward)
            whole.append(seconds / of_run)
            rest.append((seconds - of_rows) / of_run)
            of_product.append(of_rows / of_run)
            if other:
                times = other.ask(lens=ids.tolist())
                theirs.append([times["lens"] / timed(lens), times["direct"] / timed(direct)])
    yield row(f"logit lens, {len(rows)} cells, 64 tokens / one forward pass", whole)
    yield row("the same: its matrix product alone / one forward pass", of_product)
    yield row("the same: all but its matrix product / one forward pass", rest, 1)
    ratios = alternate(direct, forward, options.repeats)
    yield row("direct logit attribution, 64 tokens / one forward pass", ratios, 1)
    ratios = alternate(patterns, forward, options.repeats)
    yield row("a run that keeps all patterns, 64 tokens / one forward pass", ratios, 2)
    if not other:
        yield {"what": "TransformerLens: left out, it needs --transformer-lens PYTHON"}
        return
    for i, name in enumerate(("logit lens", "direct logit attribution")):
        yield row(f"{name}: TransformerLens / nanopatch, from a recorded run", [ratios[i] for ratios in theirs])


def page(options):
    """The interactive page: building a file, sizes, and what a reader waits for in Chromium."""
    from chromium import Missing, chromium

    from nanopatch.experiments import MICHELLE
    from nanopatch.experiments.patch import SITE_AXES
    from nanopatch.page.document import file_page

    nano = nanopatch().load("nano")
    with tempfile.TemporaryDirectory() as folder:
        path, wide = Path(folder) / "michelle.html", Path(folder) / "wide.html"
        nanopatch().make_page(nano, MICHELLE).save(path)  # the warm-up
        narrow = random_model("narrow")  # the same number of cells as 124M, and hovering reads no model
        nanopatch().sweep(narrow, random_experiment(narrow, 64)).save(wide)
        try:
            with chromium() as browser:
                yield row("the live page, nano: from a key to the new heatmap, ms", typing(browser, options), 150)
                yield row("the file page, nano: from open to drawn, ms", opening(browser, path, options), 500)
                yield row("hover over 12 x 64 cells: from the pointer to the tooltip, ms", hovering(browser, wide), 16)
        except Missing as error:
            yield {"what": f"the page in a browser: left out, {error}"}
        seconds = [timed(lambda: nanopatch().make_page(nano, MICHELLE)) for _ in range(options.repeats)]
        yield row("nanopatch.make_page of nano, seconds", seconds, 2)
        command = [sys.executable, "-m", "nanopatch", "page", "--experiment", "michelle", "-o", str(path)]
        seconds = [timed(lambda: subprocess.run(command, stdout=subprocess.DEVNULL, check=True)) for _ in range(3)]
        yield row("nanopatch page of nano, the whole process, seconds", seconds)
    yield row("size of the page without data, KB", [len(file_page({}, [])) / 1e3], 250)
    every = nanopatch().make_page(nano, MICHELLE, list(SITE_AXES)).html
    yield row(f"size of the page of nano, all {len(SITE_AXES)} sites, MB", [len(every) / 1e6], 2)
    large = nanopatch().make_page(random_model("124M"), MICHELLE, "resid_pre").html
    yield row("size of the page of 124M's shape, resid_pre, 12 x 11 cells, MB", [len(large) / 1e6], 8)


# A frame is drawn after the script that prepares it; a message that the script posts arrives after the frame.
AFTER_FRAME = """
const afterFrame = (told) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => told(performance.now());
    port2.postMessage(null);
};
"""


def opening(browser, path, options):
    """Milliseconds from the beginning of the navigation to a file until everything in it is drawn."""
    from chromium import DRAWN

    watch = """
    window.opened = new Promise((told) => {
        new MutationObserver((_, observer) => {
            if (document.querySelector(DRAWN)) observer.disconnect(), afterFrame(told);
        }).observe(document, { subtree: true, attributes: true, attributeFilter: ["data-drawn"] });
    });
    """
    times = []
    for _ in range(options.repeats + 1):
        with browser.new_context(viewport=dict(width=1280, height=900)) as context:
            tab = context.new_page()
            tab.add_init_script(AFTER_FRAME + watch.replace("DRAWN", json.dumps(DRAWN)))
            tab.goto(path.as_uri())
            times.append(tab.evaluate("opened"))
    return times[1:]  # the first opens a cold browser


def hovering(browser, path):
    """Milliseconds from a pointer event until the tooltip has its new text and its place: script, style and layout."""
    watch = """() => {
        let begin = null;
        window.hovers = [];
        addEventListener("pointermove", () => (begin = performance.now()), true);
        new MutationObserver(() => begin !== null && (hovers.push(performance.now() - begin), (begin = null)))
            .observe(document.getElementById("tooltip"), { childList: true, attributes: true });
    }"""
    from chromium import DRAWN

    with browser.new_context(viewport=dict(width=1280, height=900)) as context:
        tab = context.new_page()
        tab.goto(path.as_uri())
        tab.wait_for_selector(DRAWN, state="attached")
        tab.locator("#heatmap").scroll_into_view_if_needed()
        cells = tab.locator("#heatmap rect[data-value]")
        places = [cells.nth(number).bounding_box() for number in range(0, 12 * 64, 13)]
        tab.evaluate(watch)
        for place in places:
            tab.mouse.move(place["x"] + place["width"] / 2, place["y"] + place["height"] / 2)
        return tab.evaluate("hovers")


def typing(browser, options):
    """Milliseconds from a key in the clean prompt until the heatmap of the new prompt is drawn.

    The last letter is another one each time, so no reply is known from before.
    """
    from chromium import DRAWN, explored

    from nanopatch.experiments import MICHELLE

    watch = """
        addEventListener("keydown", ({ timeStamp }) => {
            window.drawn = new Promise((told) => {
                new MutationObserver((_, observer) => {
                    observer.disconnect();
                    afterFrame((now) => told(now - timeStamp));
                }).observe(document.getElementById("grid"), { childList: true });
            });
        }, true);
    """
    times = []
    with explored() as url, browser.new_context(viewport=dict(width=1280, height=900)) as context:
        tab = context.new_page()
        tab.add_init_script(AFTER_FRAME + watch)
        tab.goto(url)
        tab.wait_for_selector(DRAWN, state="attached")
        tab.fill("#type-clean", MICHELLE.clean.removesuffix("Michelle"))
        tab.press("#type-clean", "Control+End")
        for letter in "abcdefghijklmnopqrstuvwxyz"[: options.repeats + 1]:
            for key in (letter.upper(), "Backspace"):
                tab.wait_for_selector(DRAWN, state="attached")
                tab.keyboard.press(key)
                milliseconds = tab.evaluate("drawn")
                if key != "Backspace":  # that leads back to a heatmap that is known
                    times.append(milliseconds)
    return times[1:]


def records(model, experiment):
    """The peak of what Python and NumPy allocate in an attribution of every site, in sizes of one full record."""
    import tracemalloc

    from nanopatch.experiments.patch import SITE_AXES

    run = model.run(experiment.corrupted)
    size = sum(getattr(run, name).nbytes for name in run.names)
    del run
    nanopatch().attribute(model, experiment, list(SITE_AXES))  # so that imports on first use are not counted
    tracemalloc.start()
    nanopatch().attribute(model, experiment, list(SITE_AXES))
    return tracemalloc.get_traced_memory()[1] / size


def loading(options):
    """Loading 124M from a float32 file, checks included, beside reading the file; both from a warm cache.

    A file of the Hugging Face cache is mapped. Any other file is read into memory, as it may change under the model.
    """
    import numpy as np
    from safetensors.numpy import save_file

    from nanopatch.model.checkpoint import tensor_shapes

    config = shape_config("124M")
    rng = np.random.default_rng(0)
    names = [name for name in tensor_shapes(config) if name != "lm_head.weight"]
    with tempfile.TemporaryDirectory() as top:
        for name, bound in (("blobs", 0.6), ("mine", 0.6)):  # `blobs` is what the cache calls the folder of its files
            folder = Path(top) / name
            folder.mkdir()
            path = folder / "model.safetensors"
            save_file({n: rng.standard_normal(tensor_shapes(config)[n], dtype=np.float32) for n in names}, path)
            (folder / "config.json").write_text(json.dumps({"model_type": "gpt2", **vars(config)}))
            ratios = alternate(lambda: nanopatch().load(folder), lambda: path.read_bytes(), options.repeats)  # noqa: B023
            where = "the Hugging Face cache" if name == "blobs" else "a folder"
            yield row(f"loading 124M from {where} / reading the file", ratios, bound)
            path.unlink()


PARTS = {
    "import": imports,
    "demo": demo,
    "forward": forward,
    "gelu": gelu,
    "sweep": sweeps,
    "pairs": pairs,
    "many": many,
    "memory": memory,
    "load": loading,
    "gradients": gradients,
    "circuits": circuits,
    "lengths": lengths,
    "lenses": lenses,
    "page": page,
}


# ---- what the parts share ------------------------------------------------------------------------


def nanopatch():
    import nanopatch

    return nanopatch


def shape_config(shape, activation="gelu_new"):
    from nanopatch.model.gpt2 import Config

    n_layer, n_head, n_embd = SHAPES[shape]
    sizes = dict(n_positions=1024, vocab_size=50257, n_inner=4 * n_embd)
    return Config(n_layer, n_head, n_embd, **sizes, activation_function=activation)


def random_model(shape, activation="gelu_new"):
    import numpy as np

    from nanopatch.model.checkpoint import build, tensor_shapes
    from nanopatch.model.vocabulary import GPT2

    config, rng = shape_config(shape, activation), np.random.default_rng(0)
    tensors = {}
    for name, size in tensor_shapes(config).items():
        if name != "lm_head.weight":
            tensors[name] = rng.standard_normal(size, dtype=np.float32)
            tensors[name] *= 0.02
            if name.endswith(".weight") and len(size) == 1:
                tensors[name] += 1
    model = build(config, tensors)
    model.vocabulary = GPT2()
    return model


def weights_of(model):
    def arrays(value):
        return [value] if hasattr(value, "nbytes") else [array for item in value for array in arrays(item)]

    return arrays([model.wte, model.wpe, model.h, model.ln_f])


def random_experiment(model, n_tokens):
    """Prompts that differ in their first token, so that every cell has to be run."""
    import numpy as np

    clean = np.random.default_rng(1).integers(0, model.n_vocab, n_tokens)
    corrupted = clean.copy()
    corrupted[0] = (corrupted[0] + 1) % model.n_vocab
    return nanopatch().Experiment(clean, corrupted, 3, 7)


def case_of(model, experiment):
    """What `nanopatch.sweep` makes before the first patch, base runs included: the case and the cells of its grid."""
    from nanopatch.experiments.metrics import as_metrics
    from nanopatch.patching.case import make_case, run_both
    from nanopatch.patching.cells import cells_of_patch
    from nanopatch.patching.stack import BASE_SITES

    sites = dict.fromkeys(("clean", "corrupted"), (*BASE_SITES, "resid_post"))
    (runs,) = run_both(model, experiment, 0, None, sites)
    case = make_case(runs, "denoise", as_metrics("logit_diff"))
    return case, cells_of_patch(nanopatch().Patch("resid_pre"), case)


def naive_loop(model, tokens, clean):
    """The same grid by the README's loop over `model.steps`, a whole run for each patch."""
    import numpy as np

    n_tokens = len(tokens.corrupted)
    grid = np.zeros((model.n_layer, n_tokens))
    for layer in range(model.n_layer):
        for position in range(n_tokens):
            for site in model.steps(tokens.corrupted):
                if site.name == "resid_pre" and site.layer == layer:
                    site.array[position] = clean.resid_pre[layer, position]
            logits = site.array[-1].astype(np.float64)
            grid[layer, position] = logits[tokens.answer] - logits[tokens.wrong_answer]
    return grid


def bare_products(model, case, cells):
    """A sweep's matrix products with the weights, in its shapes, and nothing else: a lower bound."""
    import numpy as np

    from nanopatch.patching.reach import reach

    n_tokens, starts = case.n_tokens, []  # starts: (layer, position) of each patch that is run
    for edits in itertools.chain.from_iterable(cells.batches):
        edits, start = reach(model, edits, n_tokens, last_only=True)
        starts += [(edit.layer, start) for edit in edits]
    n_rows = [sum(n_tokens - start for first, start in starts if first <= layer) for layer in range(model.n_layer)]
    rng = np.random.default_rng(2)
    rows = rng.standard_normal((n_rows[-1], model.d_model), dtype=np.float32)
    neurons = rng.standard_normal((n_rows[-1], model.d_mlp), dtype=np.float32)

    def run():
        for layer, n in enumerate(n_rows):
            attends = n if layer < model.n_layer - 1 else len(starts)  # the last block: last positions only
            attn, mlp, d = model.h[layer].attn, model.h[layer].mlp, model.d_model
            rows[:attends] @ attn.c_attn.weight[:, :d]
            rows[:n] @ attn.c_attn.weight[:, d : 2 * d]
            rows[:n] @ attn.c_attn.weight[:, 2 * d :]
            rows[:attends] @ attn.c_proj.weight
            rows[:attends] @ mlp.c_fc.weight
            neurons[:attends] @ mlp.c_proj.weight

    return run


class Peer:
    """Another library in another environment's Python. It does one job at a time, while this process waits."""

    def __init__(self, python, script, options):
        self.ended = f"benchmark: scripts/{script} ended: run it with {python} to see why"
        command = [python, SCRIPTS / script, str(options.threads)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        try:
            self.process = subprocess.Popen(command, **pipes, text=True)
        except OSError as error:
            raise SystemExit(f"benchmark: cannot run {python}: {error.strerror}") from None

    def __enter__(self):
        while (line := self.process.stdout.readline()) != "ready\n":
            if not line:
                raise SystemExit(self.ended)
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait()

    def ask(self, **job):
        print(json.dumps(job), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(self.ended)
        return json.loads(line)


class TransformerLens(Peer):
    """Sweeps of TransformerLens."""

    def __init__(self, options):
        super().__init__(options.transformer_lens, "transformer_lens_sweep.py", options)

    def time(self, site, tokens, cells=None):
        clean, corrupted = tokens.clean.tolist(), tokens.corrupted.tolist()
        return self.ask(site=site, clean=clean, corrupted=corrupted, cells=cells)

    def batch(self, site, experiments, cells):
        """Seconds of a sweep of all pairs in one batch, base runs included; of all cells, by those that were timed."""
        prompts = {name: [getattr(one, name).tolist() for one in experiments] for name in ("clean", "corrupted")}
        found = self.ask(site=site, cells=cells, **prompts)
        n_cells = 12 * (len(prompts["clean"][0]) if site == "resid_pre" else 12)
        return found["base"] + n_cells * found["cell"]


def peak_memory():
    """The most memory this process has had, in bytes."""
    try:  # getrusage may give the memory of the process that started this one
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def timed(run):
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def alternate(first, second, repeats):
    """Ratios first / second, each of two runs one after the other, after a warm-up of both."""
    first(), second()
    return [timed(first) / timed(second) for _ in range(repeats)]


def assert_close(actual, expected):
    import numpy as np

    assert np.abs(actual - expected).max() <= 1e-5 * max(1, np.abs(expected).max()), (
        "the two sides do not compute the same"
    )


def row(what, values, bound=None, least=False):
    """One line of the table. bound: the most the value may be or, with `least`, the least it must be."""
    value = statistics.median(values)
    result = {"what": what, "value": value, "spread": [min(values), max(values)]}
    if bound is not None:
        result |= {"bound": bound, "ok": value >= bound if least else value <= bound, "least": least}
    return result


def show(row):
    if "value" not in row:
        return f"{row['what']}"
    spread = "({:.3g} to {:.3g})".format(*row["spread"]) if "spread" in row else ""
    target = ""
    if "bound" in row:
        target = f"{'at least' if row['least'] else 'at most'} {row['bound']:g}  {'ok' if row['ok'] else 'MISSED'}"
    return f"{row['what']:<84}{row['value']:>8.3g}  {spread:<20} {target}".rstrip()


def machine(options):
    import numpy as np

    return (
        f"Python {platform.python_version()}, NumPy {np.__version__}, {options.threads} threads, {platform.machine()}"
    )


def plot_memory(points, path):
    from matplotlib.figure import Figure

    ax = Figure(figsize=(5, 3.5), layout="constrained").add_subplot()
    ax.plot([*points], [run for _, run in points.values()], "o-", label="after the run")
    ax.plot([*points], [pairs for pairs, _ in points.values()], "o--", label="with the list of pairs, before it")
    ax.legend()
    ax.set_xlim(0)
    ax.set_xlabel("pairs")
    ax.set_ylabel("the parent's memory at its peak, MB")
    ax.set_ylim(0)
    ax.set_title("memory of a run over many pairs, nano", fontsize=10)
    ax.figure.savefig(path, dpi=150)


def plot_lengths(points, path):
    from matplotlib.figure import Figure

    ax = Figure(figsize=(5, 3.5), layout="constrained").add_subplot()
    for site in ("resid_pre", "z"):
        line = sorted(
            (n_tokens, value) for (s, shape, n_tokens), value in points.items() if (s, shape) == (site, "124M")
        )
        ax.plot(*zip(*line, strict=True), "o-", label=site)
    ax.set_xscale("log")
    ax.set_xticks([11, 64, 256], ["11", "64", "256"])
    ax.set_xlabel("tokens of the prompt")
    ax.set_ylabel("one cell / one forward pass")
    ax.set_ylim(0)
    ax.set_title("cost of a cell of a sweep, GPT-2 124M", fontsize=10)
    ax.legend()
    ax.figure.savefig(path, dpi=150)


if __name__ == "__main__":
    raise SystemExit(main())
