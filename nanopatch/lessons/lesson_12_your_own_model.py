# %% [markdown]
# # 12. Your own model, and the real GPT-2
#
# *10 minutes. You know lesson 2.*
#
# Every question of this course can be asked of any model that has GPT-2's form: one that you trained with minGPT,
# nanoGPT or llm.c, one that you wrote by hand, or the published GPT-2. `nanopatch.load` reads them, without PyTorch.

# %%
import json
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

import nanopatch
from nanopatch.experiments import MICHELLE
from nanopatch.lessons import check, hint, solution
from nanopatch.lessons.programs import and_gate

nano = nanopatch.load("nano")
prompt = MICHELLE.clean
folder = tempfile.TemporaryDirectory()

# %% [markdown]
# ## A checkpoint of another program
#
# nanoGPT stores the same weights as the published GPT-2, but the matrices lie the other way round: (n_out, n_in).
# Write `nano` in that form, as if nanoGPT had trained it:

# %%
state = {"lm_head.weight": np.ascontiguousarray(nano.lm_head)}
for name, weight in nanopatch.named_weights(nano).items():
    turned = name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight"))
    state[f"transformer.{name}"] = np.ascontiguousarray(weight.T if turned else weight)
checkpoint = Path(folder.name) / "ckpt.safetensors"
save_file(state, checkpoint)

# %% [markdown]
# The weights do not tell everything. How many heads? Which of the two GELU functions? Which vocabulary? What no file
# says is asked for, and never guessed:

# %%
try:
    nanopatch.load(checkpoint)
except nanopatch.NanopatchError as error:
    print(error)

mine = nanopatch.load(checkpoint, n_head=4, activation_function="gelu_new", vocabulary="gpt2")
assert np.array_equal(mine.run(prompt).logits, nano.run(prompt).logits)

# %% [markdown]
# Loaded with the right answers, it gives the same logits, to the last bit. Why is it so strict? Because the wrong
# answers give a model that runs:

# %%
other_gelu = nanopatch.load(checkpoint, n_head=4, activation_function="gelu", vocabulary="gpt2")
two_heads = nanopatch.load(checkpoint, n_head=2, activation_function="gelu_new", vocabulary="gpt2")

difference = np.abs(other_gelu.run(prompt).logits - nano.run(prompt).logits).max()
print(f"other GELU: logits differ by up to {difference:.4f}; it says {other_gelu.run(prompt).top(1)[0]['token']!r}")
print(f"two heads: it says {two_heads.run(prompt).top(1)[0]['token']!r}")
assert 0.0001 < difference < 0.01
assert two_heads.run(prompt).top(1)[0]["token"] != " Jones"

# %% [markdown]
# With two heads in place of four it says nonsense, and you would notice. With the other GELU the logits differ by less
# than 0.01. Nobody would notice that, and every number after it would be a little wrong.
#
# ## A folder for others
#
# `nanopatch.save_checkpoint` writes any model as transformers of Hugging Face reads it: `config.json`,
# `model.safetensors`, the vocabulary. Such a folder says everything, so nothing is asked for. The AND gate of lesson
# 3:

# %%
gate = and_gate().model
saved = nanopatch.save_checkpoint(gate, Path(folder.name) / "and-gate")
print(sorted(path.name for path in saved.iterdir()))
again = nanopatch.load(saved)
assert np.array_equal(again.run("11=").logits, gate.run("11=").logits)
assert again.detokenize([again.run("11=").logits[-1].argmax()]) == "1"

# %% [markdown]
# On the command line, `nanopatch convert` does the same, and every command takes such a folder: `nanopatch patch
# --model FOLDER ...`.
#
# ## The real GPT-2
#
# `nanopatch.load("gpt2")` reads the published weights from the Hugging Face cache, or downloads them into it (after
# `pip install "nanopatch[hub]"`). The authors of this library could not run it on the real weights. So it is compared
# with values that others have published, and these come with the library. Here is the experiment of lesson 2 on the
# real GPT-2, as its report has it: 12 layers, 11 positions, the residual stream *after* each block.

# %%
file = Path(nanopatch.__file__).parent / "data" / "gpt2_published.json"
published = json.loads(file.read_text(encoding="utf-8"))["michelle"]
low, high = published["baseline_corrupted"], published["baseline_clean"]
real = (np.array(published["resid_post"]) - low) / (high - low)  # (n_layer, n_tokens), normalised
small = nanopatch.sweep(nano, MICHELLE, "resid_post").normalised

assert real.shape == (12, 11) and small.shape == (4, 11)
for name, grid in {"GPT-2": real, "nano": small}.items():
    print(name)
    for layer, row in enumerate(grid):
        print(f"  after layer {layer:2}: surname {row[1]:5.2f}   last position {row[-1]:5.2f}")

# %% [markdown]
# The same two columns are dark, and nothing else: the surname first, then the last position. But in `nano` the move
# happens within one layer. In GPT-2 it takes several: after layer 6 the surname's position still holds 0.90, and after
# layer 10 it holds 0.13. In between, both positions hold a part.

# %%
elsewhere = np.delete(real, [1, 10], axis=1)
assert abs(elsewhere).max() < 0.05 and abs(np.delete(small, [1, 10], axis=1)).max() < 0.05
assert round(real[6, 1], 2) == 0.90 and round(real[10, 1], 2) == 0.13
assert small[0, 1] > 0.9 and small[1, 1] < 0.1
assert real[8, 1] > 0.2 and real[8, -1] > 0.2

# %% [markdown]
# If you have the weights, say so here. Then your own computer makes the grid, and it should be the published one:

# %%
where = (
    None  # "gpt2" downloads 548 MB, if they are not in the cache; or a folder with config.json and model.safetensors
)

if where is not None:
    gpt2 = nanopatch.load(where)
    grid = nanopatch.sweep(gpt2, MICHELLE, "resid_post").grid
    difference = np.abs(grid - published["resid_post"]).max()
    print("largest difference from the published grid:", difference)
    assert difference < 0.01

folder.cleanup()

# %% [markdown]
# `nanopatch verify gpt2` compares much more, and `--plot FILE` draws both pictures.
#
# ## Exercises
#
# **12.1** Between which two layers of GPT-2 does the last position first hold more than the surname's position? Give
# the number of the first layer after which it does, from `real`.

# %%
answer = None
check("12.1", answer)

# %% [markdown]
# **12.2** The published logit difference of the clean run is 4.12 (`high`). nano's is 17.1. What is the probability of
# " Jones" *against* " Smith" alone, in GPT-2: the logistic function of 4.12?

# %%
answer = None
check("12.2", answer)

# %% [markdown]
# **12.3** How many weights (numbers) does `nano` have? Count them with `nanopatch.named_weights`, in which a tied
# `lm_head` does not appear twice.

# %%
answer = None
check("12.3", answer)
