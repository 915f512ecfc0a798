"""What a user types, for type checkers: `mypy --strict` and basedpyright accept it, in any folder. It also runs.

An annotation on the left is the type that an editor should know. The wrong calls at the end must be errors: to a
checker that does not find nanopatch's types, their `ignore` is unused, which is an error too.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import nanopatch
from nanopatch import (
    Experiment,
    Mean,
    Noise,
    Panels,
    Patch,
    Paths,
    Resample,
    Run,
    Site,
    Sweep,
    Zero,
    experiments,
    tasks,
)

# ---- a run, and patches by hand -------------------------------------------------------------------

model: nanopatch.Model = nanopatch.load("nano")
in_float64: nanopatch.Model = nanopatch.load("nano", dtype=np.float64)
clean: Run = model.run("Michelle Jones was a top-notch student. Michelle")
pattern: np.ndarray = clean.pattern
some_arrays: Run = model.run([1, 2, 3], sites=["z", "logits"], prepend_bos=True)
batch: Run = model.run(np.array([[1, 2, 3], [4, 5, 6]]))
model.clean = clean  # for a breakpoint inside a block
logits: np.ndarray = clean.logits
tokens: np.ndarray = model.tokenize(" Jones Smith")
text: str = model.detokenize(tokens)
jones, smith = tokens

for site in model.steps("Michelle Smith was a top-notch student. Michelle"):
    if site.name == "resid_pre" and site.layer == 1:
        site.array[1] = clean.resid_pre[1, 1]
    elif site.name == "mlp_out":
        site.array += 0.0
    elif site.name == "attn_out":
        site.array = clean.attn_out[0]
    logits = site.array

resid: np.ndarray = model.embed("The capital of France is")
for layer in range(model.n_layer):
    for site in model.block_steps(layer, resid, sites=["z"]):
        z: np.ndarray = site.array
    resid = model.block(layer, resid)
logits = model.unembed(resid)
next_token: str = model.detokenize(int(logits[-1].argmax()))


def without_head(layer: int, head: int) -> Iterator[Site]:
    for site in model.steps("Michelle Jones was a top-notch student. Michelle"):
        if site.name == "z" and site.layer == layer:
            site.array[:, head] = 0
        yield site


patched: Run = nanopatch.record(without_head(1, 0), sites=("z", "logits"))

d_logits = np.zeros_like(clean.logits)
d_logits[-1, jones], d_logits[-1, smith] = 1, -1
gradient: Run = model.backward(clean, d_logits)
of_heads: np.ndarray = (clean.z * gradient.z).sum(axis=-1)
continued: np.ndarray = nanopatch.generate(model, "The capital of France is", 2, temperature=0.5, seed=1)
texts = nanopatch.generate(model, "The capital", 2, temperature=1, top_k=5, n_samples=2, as_text=True)
for round in nanopatch.generate_steps(model, "The capital of France is", 2, stop=["."], sites="z"):
    for site in round:
        site.array[round.row(-1)] *= 0.5
    token: int | None = round.token

lens: nanopatch.LogitLens = nanopatch.logit_lens(model, clean, " Jones", [" Smith", int(jones) + 1])
change: np.ndarray = (lens.show("rank") - nanopatch.logit_lens(model, clean, " Jones").show("rank")).values
direct: nanopatch.DirectAttribution = nanopatch.direct_logit_attribution(model, clean, " Jones", split="head 1.2")
parts: dict[str, float] = direct.parts

best: str = clean.top(1)[0]["token"]
one_head: nanopatch.Attention = nanopatch.attention(model, clean, layer=1, head=0)
of_heads = nanopatch.attention(model, clean, 1, weighted=True).values
figure_of_head: Figure = patched.plot_attention(1, 0) if "pattern" in patched.names else clean.plot_attention(1)
both = Panels({"one": one_head, "difference": one_head - one_head})

# ---- questions ------------------------------------------------------------------------------------

michelle: Experiment = experiments.MICHELLE
france = Experiment("The capital of France is", "The capital of Italy is", " Paris", " Rome")
pairs: list[Experiment] = tasks.capitals(4)


def entropy(logits: np.ndarray) -> float:
    p = np.exp(logits[-1] - logits[-1].max())
    p /= p.sum()
    return float(-(p * np.log(p + 1e-30)).sum())


result: Sweep = nanopatch.sweep(model, michelle)
result = nanopatch.sweep(model, michelle, "z", direction="noise", metric="probability")
result = nanopatch.sweep(model, michelle, Patch("z", axes=("layer", "head", "position"), layers=[1, [2, 3]]))
result = nanopatch.sweep(model, michelle, Patch("mlp_post", axes="neuron", neurons=10))
result = nanopatch.sweep(model, michelle, Patch("resid_pre", window=3), metric=entropy)
result = nanopatch.sweep(model, michelle, Paths("head 3", "logits"))
result = nanopatch.sweep(model, michelle, "z", direction="noise", corruption=Mean([michelle.corrupted]))
result = nanopatch.sweep(model, michelle, corruption=Noise([0, 1], seeds=[0]))
panels = nanopatch.sweep(model, michelle, ["z", "attn_out"], metric=["logit_diff", "rank"])
assert isinstance(panels, Panels)
means: Sweep = nanopatch.sweep(model, pairs, "resid_pre")
estimate: Sweep = nanopatch.attribute(model, [france, *pairs], "z", steps=2)
result = nanopatch.ablate(model, michelle, "z", Resample([michelle.corrupted], seed=1))
result = nanopatch.ablate(model, michelle, "attn_out", by=Zero())
result = nanopatch.trace(model, michelle, noised=[1], seeds=range(2))
result = nanopatch.path_patch(model, michelle, senders="head", receivers=["q 3", "logits"], between="free mlps")
comparison = nanopatch.Comparison(nanopatch.sweep(model, michelle, "z"), nanopatch.attribute(model, michelle, "z"))
correlation: float = comparison.correlation

scores: nanopatch.EdgeScores = nanopatch.edge_attribution(model, michelle, steps=2)
edges = nanopatch.circuit(scores, 20)
strongest: float = edges[0].score
share: float = nanopatch.faithfulness(model, michelle, edges).normalised
saliency: nanopatch.Saliency = nanopatch.saliency(model, michelle)

heads: nanopatch.HeadScores = nanopatch.head_scores(model, n_tokens=10, seeds=[0])
heads = nanopatch.head_scores(model, ["a b a", "c d c"], beside=[nanopatch.ablate(model, michelle, "z")])
induction: np.ndarray = heads.induction
spread: np.ndarray = heads.spread["induction"]
copying: nanopatch.WeightScores = nanopatch.copying_scores(model)
keys: np.ndarray = nanopatch.composition_scores(model, "K").values

# ---- results --------------------------------------------------------------------------------------

grid: np.ndarray = result.grid
normalised: np.ndarray = result.normalised
error: np.ndarray | None = means.standard_error
notes: list[str] = result.notes
figure: Figure = result.plot()

with tempfile.TemporaryDirectory() as folder:
    for one in (result, panels, comparison, scores, saliency, heads, copying, lens, direct):
        one.save(Path(folder, "result.npz"))
        figure = one.plot()
        rows: list[dict[str, object]] = one.to_rows()
        csv: str = one.to_csv()
        json: str = one.to_json(Path(folder, "result.json"))
        one.save(Path(folder, "result.html"))
    result.save(f"{folder}/sweep.npz")
    page: nanopatch.Page = nanopatch.make_page(model, michelle, "z", direction=["denoise", "noise"], metric="rank")
    page.save(Path(folder, "page.html"))
    html: bytes = page.html
    loaded: Sweep = Sweep.load(f"{folder}/sweep.npz")

    pair_file = Path(folder, "pairs.csv")
    pair_file.write_text(
        "clean,corrupted,answer,wrong_answer\nThe capital of Spain is,The capital of Italy is, Madrid, Rome"
    )
    means = nanopatch.sweep(model, nanopatch.read_pairs(pair_file))

# ---- wrong calls ----------------------------------------------------------------------------------


def never_called() -> None:
    nanopatch.load(["nano"])  # type: ignore[arg-type]
    nanopatch.sweep(model, michelle, "z", donor="clean")  # type: ignore[call-arg]
    print(clean.resid_pree)  # type: ignore[attr-defined]
    Patch("z", layers=1)  # type: ignore[arg-type]
