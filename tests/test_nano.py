"""What the default model does, which heads do it, and what its own page says of it (weights/nano/README.md)."""

import hashlib
import re
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

import nanopatch
from nanopatch import Experiment, Patch, load, sweep, tasks
from nanopatch.experiments import CAPITAL, INDIRECT_OBJECT, JESSICA, MICHELLE, NAMED

FOLDER = ROOT / "weights/nano"
PAGE = (FOLDER / "README.md").read_text("utf-8")
RECIPE = (FOLDER / "RECIPE.md").read_text("utf-8")


@pytest.fixture(scope="module")
def nano():
    return load("nano")


def heads_above(result, threshold):
    """Which (layer, head) move the normalised metric by more than the threshold."""
    return {tuple(map(int, index)) for index in np.argwhere(result.normalised > threshold)}


@pytest.mark.parametrize("name", NAMED)
def test_it_gives_the_right_answer_in_both_named_prompts(nano, name):
    tokens = NAMED[name].tokens(nano)
    assert nano.next_logits(tokens.clean).argmax() == tokens.answer
    assert nano.next_logits(tokens.corrupted).argmax() == tokens.wrong_answer


def test_experiment_1_shows_the_textbook_picture(nano):
    """The effect is at the surname in the early layers, at the last position in the late ones, and nowhere else."""
    for direction in ("denoise", "noise"):
        effect = sweep(nano, MICHELLE, direction=direction).normalised
        assert (effect[:2, 1] > 0.9).all() and (effect[2:, -1] > 0.9).all()
        effect[:2, 1] = effect[2:, -1] = 0
        assert np.abs(effect).max() < 0.1


def test_previous_token_and_induction_heads(nano):
    """A B ... A -> B: with another token in place of the first A, what finds B again is gone.

    Previous-token heads write at B which token came before it; induction heads read that with their
    keys, and so look at B.
    """
    pairs = []
    for experiment in tasks.induction(20):
        corrupted = np.array(experiment.clean)
        first = np.flatnonzero(corrupted == corrupted[-1])[0]
        corrupted[first] = next(token for token in range(1000, 2000) if token not in corrupted)
        pairs.append(Experiment(experiment.clean, corrupted, experiment.answer, experiment.wrong_answer))
    panels = sweep(nano, pairs, ("z", "q", "k", "v", "pattern"))
    induction_heads = {(1, 0), (1, 1), (1, 2), (1, 3)}
    previous_token_heads = {(0, 1), (0, 3)}
    assert heads_above(panels["z"], 0.2) == previous_token_heads | induction_heads
    assert heads_above(panels["v"], 0.2) == previous_token_heads  # what they write
    assert heads_above(panels["k"], 0.2) == induction_heads  # what they find it by
    assert heads_above(panels["pattern"], 0.2) == induction_heads  # and then look at
    assert heads_above(panels["q"], 0.2) == set()

    after = sweep(nano, pairs, Patch("z", axes=("layer", "head", "position"))).normalised
    for layer, head in previous_token_heads:
        assert after[layer, head, first + 1] > 0.5  # they act at B, next to A


def test_heads_that_move_the_indirect_object(nano):
    """2.0 and 3.2 bring to the last position which name was repeated; their values carry it, not where they look."""
    pairs = tasks.indirect_object(20)
    panels = sweep(nano, pairs, ("z", "v", "pattern"))
    movers = {(2, 0), (3, 2)}
    assert {head for head in heads_above(panels["v"], 0.2) if head[0] > 0} == movers
    assert {head for head in heads_above(panels["z"], 0.2) if head[0] > 0} == movers
    assert heads_above(panels["pattern"], 0.2) == set()
    at = sweep(nano, pairs, Patch("z", axes=("layer", "head", "position"))).normalised
    assert all(at[layer, head, -1] > 0.2 for layer, head in movers)


def test_facts_are_recalled(nano):
    for pair in tasks.capitals(35):
        tokens = pair.tokens(nano)
        assert nano.next_logits(tokens.clean).argmax() == tokens.answer


# ---- what its page says -----------------------------------------------------------------------------


def rows(text):
    """The rows of its tables: [(the first cell, the numbers after it), ...]."""
    split = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    numeric = [row for row in split if all(re.fullmatch(r"-?\d*\.?\d*", cell) for cell in row[1:]) and any(row[1:])]
    return [(first, [float(cell) for cell in rest if cell]) for first, *rest in numeric]


def test_its_size_and_its_file(nano):
    file = FOLDER / "model.safetensors"
    n_parameters = sum(array.size for name, array in nanopatch.named_weights(nano).items() if name != "lm_head.weight")
    for page in (PAGE, RECIPE):
        text = " ".join(page.split())
        assert f"{n_parameters / 1e6:.2f} million" in text and f"{file.stat().st_size / 1e6:.1f} MB" in text
    assert hashlib.sha256(file.read_bytes()).hexdigest() in RECIPE
    assert f"({len(nano.trained_tokens):,} with the capitalised words" in " ".join(PAGE.split())


def test_the_named_pairs(nano):
    said = rows(PAGE.partition("| named pair |")[2].partition("## Where to look")[0])
    assert len(said) == len(NAMED) == 5
    for experiment, (_, numbers) in zip(NAMED.values(), said, strict=True):
        tokens = experiment.tokens(nano)
        found = []
        for prompt, says in ((tokens.clean, tokens.answer), (tokens.corrupted, tokens.wrong_answer)):
            logits = nano.next_logits(prompt).astype(np.float64)
            difference = logits[tokens.answer] - logits[tokens.wrong_answer]
            found += [difference, np.exp(logits[says] - logits.max()) / np.exp(logits - logits.max()).sum()]
        assert numbers == pytest.approx(found, abs=0.0051), experiment


def test_where_to_look(nano):
    section = PAGE.partition("## Where to look")[2].partition("Heads: ")[0]
    said = rows(section)
    experiments = (MICHELLE, JESSICA, INDIRECT_OBJECT, CAPITAL)
    assert [first for first, _ in said] == ["0", "1", "2", "3", "final"] * len(experiments)
    for number, experiment in enumerate(experiments):
        found = sweep(nano, experiment).normalised
        for layer, (_, numbers) in enumerate(said[5 * number : 5 * number + 4]):
            assert numbers == pytest.approx(list(found[layer]), abs=0.0051), (experiment, layer)
        last = said[5 * number + 4][1]
        assert last == pytest.approx(list(sweep(nano, experiment, "resid_post").normalised[-1]), abs=0.0051)


def test_what_it_says_of_facts(nano):
    text = " ".join(PAGE.split())
    attention, mlp = (sweep(nano, CAPITAL, site).normalised for site in ("attn_out", "mlp_out"))
    assert f"{attention[0, 3]:.2f}".lstrip("0") == ".68" and mlp[:, 3].max() < 0.055
    assert "has .68 of the effect of France / Italy, the MLPs there .05 or less in each layer" in text
    last = attention[:, -1]
    assert f"({last.min():.2f} to {last.max():.2f})".replace("0.", ".") in text


def test_its_tables_are_what_the_script_measures():
    """Through transformers: 30 s."""
    for module in ("torch", "transformers"):
        pytest.importorskip(module, reason="`pip install torch transformers` makes this test run")
    command = [sys.executable, "scripts/train_nano.py", "--evaluate"]
    measured = rows(subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout)
    said = rows(PAGE)
    assert len(said) > 50 and [first for first, _ in said] == [first for first, _ in measured]
    for (first, numbers), (_, found) in zip(said, measured, strict=True):
        assert numbers == pytest.approx(found, abs=0.0101), first


def test_its_data_are_what_is_said(monkeypatch):
    for module in ("torch", "transformers"):
        pytest.importorskip(module, reason="`pip install torch transformers` makes this test run")
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import train_nano as script

    text, page = " ".join(RECIPE.split()), " ".join(PAGE.split())
    assert f"made of {len(script.Text(0).corpus):,} different tokens" in page
    assert f"{len(script.FIRST)} first names, {len(script.LAST)} surnames" in text
    assert f"{len(script.PREDICATES)} predicates, {len(script.INDIRECT_OBJECT)} indirect-object templates" in text
    for words, what in ((script.HELD_OUT_FIRST, "first names"), (script.HELD_OUT_LAST, "surnames")):
        assert f"{len(words)} {what}" in text
