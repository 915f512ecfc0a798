"""Experiments: both prompts and both answers in a model's tokens, or an error that says how to mend it."""

import numpy as np
import pytest
from conftest import tiny_model

from nanopatch import Experiment, NanopatchError, load
from nanopatch.experiments import NAMED, answer_token


@pytest.fixture(scope="module")
def nano():
    return load("nano")


@pytest.mark.parametrize("name", NAMED)
def test_named_experiments_can_be_used(nano, name):
    tokens = NAMED[name].tokens(nano)
    assert nano.detokenize(tokens.clean) == NAMED[name].clean
    assert nano.detokenize(tokens.corrupted) == NAMED[name].corrupted
    assert nano.detokenize([tokens.answer, tokens.wrong_answer]) == NAMED[name].answer + NAMED[name].wrong_answer
    assert (len(tokens.clean) == len(tokens.corrupted)) == (name != "elon")


def test_prepend_bos(nano):
    tokens = Experiment("a b", "a c", " b", " c", prepend_bos=True).tokens(nano)
    assert tokens.clean[0] == tokens.corrupted[0] == 50256


def test_an_answer_that_is_not_one_token(nano):
    with pytest.raises(
        NanopatchError, match=r"'Musk' is 2 tokens, \['Mus', 'k'\], and must be one; .*leading space it is one: ' Musk'"
    ):
        answer_token(nano, "Musk")
    with pytest.raises(NanopatchError, match=r"' Jones Smith' is 2 tokens, \[' Jones', ' Smith'\], and must be one$"):
        answer_token(nano, " Jones Smith")
    with pytest.raises(NanopatchError, match="the answer is empty"):
        answer_token(nano, "")


def test_answers_by_id(nano):
    assert answer_token(nano, 5437) == answer_token(nano, np.int64(5437)) == answer_token(nano, " Jones")
    with pytest.raises(NanopatchError, match="token id 50257 is outside the vocabulary"):
        answer_token(nano, 50257)


@pytest.mark.parametrize("answer", [None, True, [5], np.array([5]), 1.5])
def test_what_is_no_answer(nano, answer):
    with pytest.raises(NanopatchError, match="an answer is one token, as text or as an id, not"):
        answer_token(nano, answer)


def test_equal_answers(nano):
    with pytest.raises(NanopatchError, match="answer and wrong answer are both ' b'"):
        Experiment("a b", "a c", " b", " b").tokens(nano)


def test_empty_prompt_and_batches(nano):
    with pytest.raises(NanopatchError, match="the prompt is empty"):
        Experiment("", "a c", " b", " c").tokens(nano)
    with pytest.raises(NanopatchError, match="not batches"):
        Experiment([[1, 2]], [[1, 2]], 3, 4).tokens(nano)


def test_text_for_a_model_with_another_vocabulary():
    model = tiny_model()
    with pytest.raises(NanopatchError, match="vocabulary is not GPT-2's.*give token ids, not 'a b'"):
        Experiment("a b", "a c", 1, 2).tokens(model)
    with pytest.raises(NanopatchError, match="vocabulary is not GPT-2's"):
        Experiment([1], [2], " b", 2).tokens(model)
