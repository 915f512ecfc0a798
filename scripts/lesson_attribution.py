"""Attribution patching in ten minutes: exact, estimated, where the estimate fails, and what mends it.

Read it from top to bottom and run it: python scripts/lesson_attribution.py (seconds, on the default model).
"""

import numpy as np

import nanopatch
from nanopatch.gradients.attribution import compare
from nanopatch.experiments import INDIRECT_OBJECT

model = nanopatch.load("nano")
tokens = INDIRECT_OBJECT.tokens(model)

# 1. Exact patching. "When Mary and John went to the store, John gave a drink to" should go on with Mary; where the
#    second name is Mary, with John. Copy one vector of the first run into the second, carry on, measure; 56 times.
exact = nanopatch.sweep(model, INDIRECT_OBJECT)
print("1. Exact\n")
print(exact, "\n")

# 2. The estimate, by hand. How much would the logit difference change if this vector changed a little? That is its
#    derivative, and one backward pass of the corrupted run has it for every vector at once. The logit difference
#    is logits[-1, Mary] - logits[-1, John], so its own derivative is 1 there, -1 there, and 0 elsewhere.
clean, corrupted = model.run(tokens.clean), model.run(tokens.corrupted)
d_logits = np.zeros_like(corrupted.logits)
d_logits[-1, tokens.answer], d_logits[-1, tokens.wrong_answer] = 1, -1
gradients = model.backward(corrupted, d_logits)  # the same record as a run: gradients.resid_pre, gradients.z, ...
attribution = (gradients.resid_pre * (clean.resid_pre - corrupted.resid_pre)).sum(axis=-1)  # (n_layer, n_tokens)

#    The library does the same; its grid adds what the corrupted run gave, so that it compares with the sweep.
estimate = nanopatch.attribute(model, INDIRECT_OBJECT)
assert np.allclose(estimate.grid, exact.baseline_corrupted + attribution, rtol=1e-4)
print("2. Estimated, from two runs and one backward pass\n")
print(estimate, "\n")

# 3. Where it fails. A derivative knows the slope here, not the way to the clean run. Along that way LayerNorm
#    rescales and attention saturates. In the residual stream of layer 0 another token stands at the second name: a
#    long step, with every layer still to come. The estimate finds half of its effect. The order of the cells
#    survives better than their size: correlation near 1, with a slope below it.
print("3. How far off\n")
for site in ("resid_pre", "attn_out", "mlp_out", "z"):
    print(compare(model, INDIRECT_OBJECT, site))
print()

# 4. What mends it. Take the slope at several points of the way and average: integrated gradients. Over all
#    positions of a layer the averages add up to the whole difference, the better the more steps. A small error
#    stays in single cells: on that way all positions move together, while exact patching moves one alone.
print("4. Integrated gradients\n")
whole = exact.baseline_clean - exact.baseline_corrupted
for steps in (1, 2, 4, 16):
    integrated = nanopatch.attribute(model, INDIRECT_OBJECT, steps=steps)
    error = np.abs(integrated.grid - exact.grid).max()
    total = (integrated.grid - integrated.baseline_corrupted).sum(axis=1)
    shares = "  ".join(f"{share:.2f}" for share in total / whole)
    print(f"{steps:>2} steps: largest error {error:5.2f}; each layer's total, of the whole difference: {shares}")
print()

# 5. From vectors to edges. The same derivative, taken where one component reads what another wrote, scores every
#    connection. The best of them make a circuit, once those are left out that are on no way from the embedding to
#    the logits; running the model with no others says how good it is.
print("5. Edges\n")
scores = nanopatch.edge_attribution(model, INDIRECT_OBJECT, steps=4)
for edge in scores.top(5):
    print(f"{edge.score:7.2f}  {edge.sender} -> {edge.receiver}")
for n in (10, 20, 40):
    kept = nanopatch.circuit(scores, n)
    value = nanopatch.faithfulness(model, INDIRECT_OBJECT, kept).normalised
    print(f"the best {n}, of which {len(kept)} of {len(scores.edges)} edges count: {value:.2f} of the difference")
