"""Alignment of two token sequences."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanopatch import NanopatchError
from nanopatch.experiments import ELON
from nanopatch.experiments.align import align
from nanopatch.model import tokenizer

SEQUENCES = st.lists(st.integers(0, 3), min_size=1, max_size=12)


def test_equal_lengths_pair_equal_positions():
    assert align([5, 6, 7], [5, 9, 7]) == [(0, 0), (1, 1), (2, 2)]


def test_unequal_lengths_are_an_error_that_shows_both():
    with pytest.raises(
        NanopatchError,
        match=r'3 and 2 tokens \(clean \[1, 2, 3\]; corrupted \[1, 3\]\).*Experiment\(..., align="diff"\) \(--align',
    ) as caught:
        align([1, 2, 3], [1, 3])
    assert "\n" not in str(caught.value)


def test_musk_meets_jobs():
    clean, corrupted = tokenizer.encode(ELON.clean), tokenizer.encode(ELON.corrupted)
    assert (len(clean), len(corrupted)) == (16, 15)
    pairs = align(clean, corrupted, "diff")
    assert pairs == [(0, None), (1, 0), (2, 1)] + [(j + 1, j) for j in range(2, 15)]
    assert tokenizer.decode([clean[2]]) == " Musk" and tokenizer.decode([corrupted[1]]) == " Jobs"


def test_a_surplus_may_be_on_either_side():
    assert align([1, 2], [1, 7, 2], "diff") == [(0, 0), (None, 1), (1, 2)]
    assert align([1, 7, 2], [1, 2], "diff") == [(0, 0), (1, None), (2, 1)]
    assert align([5], [6, 7], "diff") == [(None, 0), (0, 1)]


@given(SEQUENCES, SEQUENCES)
def test_every_position_occurs_once_and_in_order(clean, corrupted):
    pairs = align(clean, corrupted, "diff")
    assert [i for i, _ in pairs if i is not None] == list(range(len(clean)))
    assert [j for _, j in pairs if j is not None] == list(range(len(corrupted)))
    assert (None, None) not in pairs


@given(SEQUENCES)
def test_a_sequence_is_aligned_with_itself_position_by_position(tokens):
    assert align(tokens, tokens, "diff") == align(tokens, tokens)
