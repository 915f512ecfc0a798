# %% [markdown]
# # 9. Circuits, and how to know whether one is right
#
# *10 minutes. You know lessons 3, 7 and 8.*
#
# A *circuit* is the part of a model that computes an answer: some heads and MLPs, and the edges between them. An edge
# is scored by an estimate, and the best edges are kept. How good are such scores? Usually nobody knows. Here you hold
# them against models whose circuit is known, and only then look at a trained model.

# %%
import nanopatch
from nanopatch.experiments import INDIRECT_OBJECT
from nanopatch.lessons import check, hint, solution
from nanopatch.lessons.programs import and_gate, share_of_x

# %% [markdown]
# ## A program with three edges
#
# `share_of_x()` is a GPT-2 of two layers, written by hand. It says what share of the letters so far are x. The MLP of
# layer 0 marks each x. Head 1.0 takes the mean over all positions. The logit of "x" is ten times that mean.

# %%
program = share_of_x()
model, experiment = program.model, program.experiment
print(experiment.clean, model.run(experiment.clean).logits[-1])  # of "a", "b" and "x"
print(experiment.corrupted, model.run(experiment.corrupted).logits[-1])

assert (experiment.clean, experiment.corrupted) == ("xaxb", "aaab")
assert model.run("xaxb").logits[-1].tolist() == [0, 0, 5]  # half of the letters
assert model.run("aaab").logits[-1].tolist() == [0, 0, 0]
print(program.edges)

# %% [markdown]
# Its circuit has three edges. The embedding is read by the MLP. The MLP's output is read by head 1.0, as its value.
# The head's output is read by the logits. All other edges do nothing. The library has an edge for each pair that could
# be connected: an *edge score* is the derivative of what the receiver reads, times the change of what the sender
# writes (edge attribution patching: Syed et al. 2023). It is lesson 8 for edges.

# %%
scores = nanopatch.edge_attribution(model, experiment)
print(len(scores.edges), "edges")
for edge in scores.top(4):
    print(f"{edge.score:5.2f}  {edge.sender} -> {edge.receiver}")


def found(scores):
    """The edges whose score is not 0, as (sender, receiver)."""
    return {(str(edge.sender), str(edge.receiver)) for edge in scores.edges if abs(edge.score) > 1e-4}


# %% [markdown]
# Two of the three edges are found. The first one, from the embedding to the MLP, has the score 0, though it is
# certainly there.

# %%
assert len(found(scores)) == 2
assert set(program.edges) - found(scores) == {("embed", "mlp 0")}

# %% [markdown]
# ## Why it is missed
#
# The neuron computes relu(2 letter - 3): the letter x has the number 2. In the corrupted run there is no x. At each
# position the sum is below 0, where a ReLU is flat. Its slope is 0 there, so every estimate that multiplies with this
# slope is 0. Look at the neuron:

# %%
run = model.run("aaab")
print("before the relu:", run.mlp_pre[0, :, 0])
assert (run.mlp_pre[0, :, 0] < 0).all()
assert (run.mlp_post[0, :, 0] == 0).all()

# %% [markdown]
# The mend is that of lesson 8: several steps on the way from the corrupted to the clean run (EAP-IG: Hanna et al.
# 2024). On that way the neuron switches on, and five steps see it. Now exactly the true edges are found:

# %%
scores = nanopatch.edge_attribution(model, experiment, steps=5)
for edge in scores.top(4):
    print(f"{edge.score:5.2f}  {edge.sender} -> {edge.receiver}")
assert found(scores) == set(program.edges)

# %% [markdown]
# The AND gate of lesson 3 is worse off: with one step, one of its five edges is found. With five steps all are.

# %%
gate = and_gate()
one_step = nanopatch.edge_attribution(gate.model, gate.experiment)
five_steps = nanopatch.edge_attribution(gate.model, gate.experiment, steps=5)
assert len(gate.edges) == 5
assert found(one_step) == {("mlp 0", "logits")}
assert found(five_steps) == set(gate.edges)

# %% [markdown]
# ## Is the circuit enough? Faithfulness
#
# A score is an estimate. Whether a circuit is right is tested by running it: all edges outside of it carry what they
# carry in the corrupted run, and those inside carry what their senders now write. If the answer comes out as in the
# clean run, the circuit is *faithful*: 1 is the clean run, 0 the corrupted one.

# %%
circuit = nanopatch.circuit(scores, 3)
for edge in circuit:
    print(edge.sender, "->", edge.receiver)
result = nanopatch.faithfulness(model, experiment, circuit)
print(f"with these {len(circuit)} edges: {result.normalised:.2f}")
assert round(result.normalised, 4) == 1

for left_out in circuit:
    others = [edge for edge in circuit if edge != left_out]
    result = nanopatch.faithfulness(model, experiment, others)
    print(f"without {left_out.sender} -> {left_out.receiver}: {result.normalised:.2f}")
    assert round(result.normalised, 4) == 0

# %% [markdown]
# Three edges give the whole answer. Leave any one away, and nothing is left. So the circuit is *complete* (enough for
# the whole answer) and *minimal* (no edge in it is too much).
#
# ## A trained model
#
# In `nano` nobody knows the true edges. But you can do the same: score all 479, keep the best n, and run them. This is
# the experiment of lesson 8, where John or Mary gives the drink.

# %%
nano = nanopatch.load("nano")
scores = nanopatch.edge_attribution(nano, INDIRECT_OBJECT, steps=5)
assert len(scores.edges) == 479

curve = {}
for n in (5, 10, 20, 40, 479):
    kept = nanopatch.circuit(scores, n)  # edges that are on no path from the embedding to the logits are left out
    curve[n] = nanopatch.faithfulness(nano, INDIRECT_OBJECT, kept).normalised
    print(f"best {n:3}: {len(kept):3} on a path, faithfulness {curve[n]:.2f}")

# %% [markdown]
# The best 5 edges are no path at all: 0. The best 20, of 479, give more than 0.9 of the difference. With 40 it is a
# little above 1: the edges that are left out, all together, work against the answer. All edges together are the model
# itself: 1.

# %%
assert curve[5] == 0
assert 0.9 < curve[20] < 1 < curve[40] < 1.1
assert round(curve[479], 4) == 1

for edge in scores.top(5):
    print(f"{edge.score:6.2f}  {edge.sender} -> {edge.receiver}")

# %% [markdown]
# `scores.plot()` draws the circuit. What such a circuit does not say: that it is the only one, that it holds for other
# prompts, or what its heads compute. For that there are the attention pictures, the other direction, and many prompts.
#
# ## Exercises
#
# **9.1** Score the edges of `share_of_x()` by one step again, but in the other direction: `direction="noise"`. How
# many edges are found now? Say why, before you look.

# %%
answer = None
check("9.1", answer)

# %% [markdown]
# **9.2** How many of the best edges of `nano` (with `steps=5`, as above) are needed for a faithfulness of at least
# 0.5? Give the smallest n.

# %%
answer = None
check("9.2", answer)

# %% [markdown]
# **9.3** Write XOR: a program that says "1" if exactly one of two bits is 1. Use `nanopatch.lessons.programs.Writer`
# with `n_neurons=2`, and look at how `_two_bits` and `and_gate` are written. XOR is relu(a + b) - 2 relu(a + b - 1).
# The answer is the model: `writer.model()`. Its tokens are "0", "1" and "=".

# %%
answer = None
check("9.3", answer)
