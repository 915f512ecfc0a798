"""Compiled programs compute what they say on every input, and their true edges are what the answer needs."""

import itertools

import numpy as np
import pytest

import nanopatch
from nanopatch import Experiment, NanopatchError
from nanopatch.lessons import compiler
from nanopatch.lessons.compiler import Compiler

#: {program: (the letters of a prompt, one string for each position; what a plain function says)}
PLAIN = {
    "xor": (["01", "01", "="], lambda p: str(int(p[0] != p[1]))),
    "comparison": (["012", "012", "="], lambda p: str(int(p[0] > p[1]))),
    "first_letter": (["abc", "abc", "abc", "abc", "="], lambda p: p[0]),
    "letter_before": (["abc"] * 4, lambda p: p[-2]),
    "induction": (["|", *["abcd"] * 5], lambda p: p[p.index(p[-1]) + 1]),
    "two_steps": (["abcd"] * 3, lambda p: "abcd"[("abcd".index(p[-1]) + 2) % 4]),
    "backup": (["ab", "ab", "="], lambda p: p[0]),
}
MADE = pytest.mark.parametrize("make", compiler.PROGRAMS, ids=lambda make: make.__name__)


def said(model, prompt):
    return model.detokenize([int(model.run(prompt).logits[-1].argmax())])


def test_there_are_ten_models_with_known_edges():
    assert {make.__name__ for make in compiler.PROGRAMS} == set(PLAIN) and len(PLAIN) + 3 == 10


@MADE
def test_it_says_what_the_plain_function_says(make):
    model, experiments, _ = make()
    letters, plain = PLAIN[make.__name__]
    for prompt in map("".join, itertools.product(*letters)):
        if make.__name__ == "induction" and prompt[:-1].count(prompt[-1]) != 1:
            continue  # the letter was not there before, or twice: the head sees several positions alike
        assert said(model, prompt) == plain(prompt), prompt
    for one in experiments:
        assert (said(model, one.clean), said(model, one.corrupted)) == (one.answer, one.wrong_answer)


@MADE
def test_numbers_are_exact_and_it_is_a_real_checkpoint(make, tmp_path):
    model, experiments, _ = make()
    run = model.run(experiments[0].clean)
    assert set(np.unique(run.logits[-1])) <= {0, 10}
    nanopatch.save_checkpoint(model, tmp_path)
    assert np.array_equal(nanopatch.load(tmp_path).run(run.tokens).logits, run.logits)


@MADE
def test_the_true_edges_are_enough_and_each_is_needed(make):
    model, experiments, edges = make()
    for one in experiments:
        assert nanopatch.faithfulness(model, one, edges).normalised == pytest.approx(1, abs=1e-6)
    left_out = nanopatch.faithfulness(model, experiments, nanopatch.without_each(edges))
    needed = {name for name, found in left_out.items() if found.normalised < 0.99}
    if make is compiler.backup:  # that is what it is for
        assert needed == {"without mlp 1 -> logits"}
    else:
        assert len(needed) == len(edges)


def test_an_edge_that_carries_positions_alone_is_not_a_true_edge():
    _, _, edges = compiler.first_letter()
    assert edges == (("embed", "v 0.0"), ("head 0.0", "logits"))
    _, _, edges = compiler.induction()
    assert set(edges) == {
        ("embed", "v 0.0"), ("head 0.0", "k 1.0"), ("embed", "q 1.0"), ("embed", "v 1.0"), ("head 1.0", "logits")
    }  # fmt: skip


def test_what_cannot_be_compiled_is_one_clear_line():
    program, pair = Compiler("ab", n_tokens=2), Experiment("ab", "bb", "a", "b")
    where = program.positions
    with pytest.raises(NanopatchError, match="two variables are named 'token'"):
        program.map_("token", str.upper, program.tokens)
    program = Compiler("ab", n_tokens=2)
    upper = program.map_("upper", str.upper, program.tokens)
    with pytest.raises(NanopatchError, match="upper can be 'A', which is no character of 'ab'"):
        program.compile("upper", upper, pair)
    with pytest.raises(NanopatchError, match="its layer cannot be 0"):
        program.select("late", lambda key, query: True, where, where, upper, layer=0)
    with pytest.raises(NanopatchError, match="from 1 to 16 positions"):
        Compiler("ab", n_tokens=17)
    wide = Compiler("abcdefghijklmnopqrstuvwxyz", n_tokens=16)
    copy = wide.map_("copy", lambda letter: letter, wide.tokens)
    with pytest.raises(NanopatchError, match="69 slots are needed"):
        wide.compile("copy", copy, pair)
