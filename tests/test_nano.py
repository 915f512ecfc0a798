"""What the default model does, and which heads do it: found by the library's own sweeps."""

import numpy as np
import pytest

from nanopatch import Experiment, Patch, load, sweep, tasks
from nanopatch.experiments import MICHELLE, NAMED


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
