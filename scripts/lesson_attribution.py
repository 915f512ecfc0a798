"""Attribution patching in ten minutes: exact patching, its estimate, where it fails, and how to improve it.

Read it from top to bottom, and run it: python scripts/lesson_attribution.py (some seconds, on the default model).
"""

import numpy as np

import nanopatch
from nanopatch.experiments import INDIRECT_OBJECT

model = nanopatch.load("nano")
tokens = INDIRECT_OBJECT.tokens(model)

# 1. Exact patching. "When Mary and John went to the store, John gave a drink to" should go on with Mary. Where Mary
#    gave the drink, it should go on with John. Copy one vector of the first run into the second run, carry on, and
#    measure. Do that for each layer and position: 56 times.
exact = nanopatch.sweep(model, INDIRECT_OBJECT)
print("1. Exact\n")
print(exact, "\n")

# 2. The estimate, by hand. How much would the logit difference change if this vector changed a little? The derivative
#    says so, and one backward pass of the corrupted run gives it for every vector at once. The logit difference is
#    logits[-1, Mary] - logits[-1, John]. So its derivative with respect to the logits is 1 and -1 at these two, and 0
#    elsewhere.
clean, corrupted = model.run(tokens.clean), model.run(tokens.corrupted)
d_logits = np.zeros_like(corrupted.logits)
d_logits[-1, tokens.answer], d_logits[-1, tokens.wrong_answer] = 1, -1
gradients = model.backward(corrupted, d_logits)  # the same record as a run: gradients.resid_pre, gradients.z, ...
attribution = (gradients.resid_pre * (clean.resid_pre - corrupted.resid_pre)).sum(axis=-1)  # (n_layer, n_tokens)

#    The library does the same. Its grid adds the corrupted run's value, so that it can be compared with the sweep.
estimate = nanopatch.attribute(model, INDIRECT_OBJECT)
assert np.allclose(estimate.grid, exact.baseline_corrupted + attribution, rtol=1e-4)
print("2. Estimated, from two runs and one backward pass\n")
print(estimate, "\n")

# 3. Where it fails. A derivative is the slope at the corrupted run. On the line from there to the clean run the slope
#    changes: LayerNorm rescales, and attention saturates. In the residual stream of layer 0, the vector of the second
#    name changes from one token's to another's. That is a long step, and every layer comes after it. The estimate
#    finds half of its effect. The order of the cells is estimated better than their size: the correlation is near 1,
#    and the slope is below 1.
print("3. How far off\n")
for site in ("resid_pre", "attn_out", "mlp_out", "z"):
    both = (method(model, INDIRECT_OBJECT, site) for method in (nanopatch.sweep, nanopatch.attribute))
    print(nanopatch.Comparison(*both))
print()

# 4. How to improve it. Take the mean slope at several points on that line: integrated gradients. Over all positions
#    of a layer the estimates then add up to the whole difference, and more steps make that more exact. Single cells
#    keep a small error: on the line all positions change together, and exact patching changes one alone.
print("4. Integrated gradients\n")
whole = exact.baseline_clean - exact.baseline_corrupted
for steps in (1, 2, 4, 16):
    integrated = nanopatch.attribute(model, INDIRECT_OBJECT, steps=steps)
    error = np.abs(integrated.grid - exact.grid).max()
    total = (integrated.grid - integrated.baseline_corrupted).sum(axis=1)
    shares = "  ".join(f"{share:.2f}" for share in total / whole)
    print(f"{steps:>2} steps: largest error {error:5.2f}; each layer's total / the whole difference: {shares}")
print()

# 5. From vectors to edges. Take the same derivative where one component reads what another wrote: it scores this
#    edge. The edges with the largest scores make a circuit. (Those on no path from the embedding to the logits
#    are left out.) Run the model with these edges alone, and the logit difference shows how good the circuit is.
print("5. Edges\n")
scores = nanopatch.edge_attribution(model, INDIRECT_OBJECT, steps=4)
for edge in scores.top(5):
    print(f"{edge.score:7.2f}  {edge.sender} -> {edge.receiver}")
for n in (10, 20, 40):
    kept = nanopatch.circuit(scores, n)
    value = nanopatch.faithfulness(model, INDIRECT_OBJECT, kept).normalised
    print(f"the best {n} of {len(scores.edges)} edges, {len(kept)} of them on a path: {value:.2f} of the difference")
