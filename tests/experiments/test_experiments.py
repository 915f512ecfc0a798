"""Experiments: both prompts and both answers in a model's tokens, or an error that says how to mend it."""

import json

import numpy as np
import pytest
from conftest import tiny_model

from nanopatch import Experiment, NanopatchError, load
from nanopatch.experiments import ELON, MICHELLE, NAMED
from nanopatch.experiments.experiment import answer_token


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


@pytest.mark.parametrize("name", NAMED)
def test_columns_pair_every_position_of_a_named_experiment(nano, name):
    tokens, columns = NAMED[name].tokens(nano), NAMED[name].columns(nano)
    assert [i for i, _ in columns if i is not None] == list(range(len(tokens.clean)))
    assert [j for _, j in columns if j is not None] == list(range(len(tokens.corrupted)))


def test_columns_with_and_without_alignment(nano):
    assert MICHELLE.columns(nano) == [(position, position) for position in range(11)]
    assert ELON.align == "diff" and ELON.columns(nano) == [(0, None), (1, 0), *((j + 1, j) for j in range(1, 15))]
    model, tokens = tiny_model(), ([1, 2, 3, 4], [1, 9, 4], 5, 6)
    assert Experiment(*tokens, align="diff").columns(model) == [(0, 0), (1, None), (2, 1), (3, 2)]
    assert Experiment(*tokens, True, "diff").prepend_bos
    with pytest.raises(
        NanopatchError, match=r"4 and 3 tokens \(clean \['#1', '#2', .*Experiment\(..., align=\"diff\"\)"
    ):
        Experiment(*tokens).columns(model)


def test_columns_count_the_bos(nano):
    assert len(Experiment("a b", "a c", " b", " c", prepend_bos=True).columns(nano)) == 3


@pytest.mark.parametrize("align", ["left", "", True, 0])
def test_an_unknown_alignment(align):
    with pytest.raises(NanopatchError, match=f'^unknown alignment {align!r}: give align="diff"'):
        Experiment("a b", "a c", " b", " c", align=align)


def test_to_dict_and_back():
    experiment = Experiment(np.array([1, 2]), [1, 2, 3], np.int64(3), " b", align="diff")
    fields = json.loads(json.dumps(experiment.to_dict()))
    assert fields == dict(
        clean=[1, 2],
        corrupted=[1, 2, 3],
        answer=3,
        wrong_answer=" b",
        prepend_bos=False,
        align="diff",
        special_tokens=False,
        marks=None,
    )
    assert Experiment(**fields).to_dict() == fields
    assert MICHELLE.to_dict()["align"] is None and Experiment(**MICHELLE.to_dict()) == MICHELLE


def test_what_was_saved_before_there_was_align_can_be_read():
    fields = MICHELLE.to_dict()
    del fields["align"], fields["special_tokens"], fields["marks"]
    assert Experiment(**fields) == MICHELLE


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
    with pytest.raises(NanopatchError, match="vocabulary is not known.*give token ids, not 'a b'"):
        Experiment("a b", "a c", 1, 2).tokens(model)
    with pytest.raises(NanopatchError, match="vocabulary is not known"):
        Experiment([1], [2], " b", 2).tokens(model)


def test_switches_are_true_or_false_and_answers_out_of_numpy_are_ints():
    for switch in ("prepend_bos", "special_tokens"):
        with pytest.raises(NanopatchError, match=f"{switch}='no': True or False is expected"):
            Experiment("a", "b", **{switch: "no"})
    assert repr(Experiment([1], [2], np.int64(3), np.uint8(4))) == repr(Experiment([1], [2], 3, 4))
