"""One patch by hand, in a debugger: python -m pdb scripts/step_through.py (the README shows a session)."""

import nanopatch

model = nanopatch.load("nano")
clean = model.run("Michelle Jones was a top-notch student. Michelle")
model.clean = clean  # so that it can be reached at a breakpoint inside a block, where `self` is the model
jones, smith = model.tokenize(" Jones Smith")

resid = model.embed("Michelle Smith was a top-notch student. Michelle")
for layer in range(model.n_layer):
    resid = model.block(layer, resid)
logits = model.unembed(resid)[-1]
print(f"logit difference, Jones - Smith: {logits[jones] - logits[smith]:.3f}")
