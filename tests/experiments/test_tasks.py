"""The standard tasks: single-token answers, one token structure for all prompts of a call, reproducible draws."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

import nanopatch
from nanopatch import NanopatchError, sweep, tasks
from nanopatch.model import tokenizer
from nanopatch.model.hub import find
from nanopatch.model.vocabulary import GPT2

IOI = [
    dict(order=order, corruption=corruption, template=template)
    for order in ("ABBA", "BABA")
    for corruption in ("swap", "ABC")
    for template in tasks.INDIRECT_OBJECT_TEMPLATES
]
CALLS = [
    *((tasks.indirect_object, arguments) for arguments in IOI),
    (tasks.induction, {}),
    (tasks.induction, dict(length=2)),
    (tasks.induction, dict(length=21, prepend_bos=True)),
    *((tasks.capitals, dict(template=template)) for template in tasks.CAPITAL_TEMPLATES),
    (tasks.greater_than, {}),
    (tasks.greater_than, dict(year=32, prepend_bos=True)),
]


@pytest.fixture(scope="module")
def model():
    """Random weights, GPT-2's vocabulary: for what does not depend on what a model knows."""
    model = tiny_model(vocab_size=tokenizer.N_VOCAB, n_positions=40, n_layer=1)
    model.vocabulary = GPT2()
    return model


def differing(clean, corrupted):
    return np.flatnonzero(clean != corrupted).tolist()


@pytest.mark.parametrize(("task", "arguments"), CALLS)
def test_answers_are_one_token_and_all_prompts_have_one_structure(model, task, arguments):
    pairs = task(30, **arguments)
    tokens = [pair.tokens(model) for pair in pairs]  # which refuses answers of several tokens, and equal ones
    assert len(pairs) == 30
    assert {len(t.clean) for t in tokens} == {len(t.corrupted) for t in tokens} == {len(tokens[0].clean)}
    # The clean prompts have the same tokens except where a slot is, and only slots are corrupted.
    clean = np.array([t.clean for t in tokens])
    slots = np.flatnonzero((clean != clean[0]).any(axis=0)).tolist()
    if "year" in arguments:  # the one slot that is the same in all clean prompts
        slots.append(8)
    for t in tokens:
        assert differing(t.clean, t.corrupted) and set(differing(t.clean, t.corrupted)) <= set(slots)
    assert {pair.prepend_bos for pair in pairs} == {arguments.get("prepend_bos", False)}
    assert (clean[0, 0] == tokenizer.ENDOFTEXT_ID) == arguments.get("prepend_bos", False)


@pytest.mark.parametrize(("task", "arguments"), CALLS)
def test_seeds_reproduce_and_differ(task, arguments):
    assert task(20, **arguments) == task(20, seed=0, **arguments) != task(20, seed=1, **arguments)
    assert len(set(map(str, task(20, **arguments)))) > 15


@pytest.mark.parametrize("arguments", IOI)
def test_indirect_object_has_the_names_where_the_order_says(model, arguments):
    for pair in tasks.indirect_object(20, **arguments):
        clean, corrupted, answer, wrong = pair.tokens(model)
        (receiver,), (first, second) = np.flatnonzero(clean == answer), np.flatnonzero(clean == wrong)
        assert (receiver < first < second) if arguments["order"] == "ABBA" else (first < receiver < second)
        if arguments["corruption"] == "swap":
            assert differing(clean, corrupted) == [second] and corrupted[second] == answer
        else:
            assert differing(clean, corrupted) == sorted([receiver, first, second])
            assert len({answer, wrong, *corrupted[[receiver, first, second]]}) == 5


def test_indirect_object_reads_as_in_the_paper():
    abba = tasks.indirect_object(1)[0]
    names = abba.answer.strip(), abba.wrong_answer.strip()
    assert abba.clean.startswith("When {} and {} went to the ".format(*names)) and f", {names[1]} gave a " in abba.clean
    assert abba.corrupted == abba.clean.replace(f", {names[1]}", f", {names[0]}")


@given(st.integers(2, 20), st.integers(0, 1000))
@settings(deadline=None, max_examples=30)
def test_induction_is_a_b_a_and_a_c_a(length, seed):
    for pair in tasks.induction(5, length, range(length + 1), seed=seed):
        a, b = length // 2 - 1, length // 2
        assert pair.clean[-1] == pair.clean[a] == pair.corrupted[a] == pair.corrupted[-1]  # A
        assert pair.clean[b] == pair.answer and pair.corrupted[b] == pair.wrong_answer
        assert differing(np.array(pair.clean), np.array(pair.corrupted)) == [b]
        assert pair.clean[length:] == pair.clean[:b] and len(set(pair.clean)) == length  # repeated once, else different
        assert pair.wrong_answer not in pair.clean and pair.answer not in pair.clean[length:]


def test_capitals():
    for pair in tasks.capitals(30):
        country, other = (prompt.split()[3] for prompt in (pair.clean, pair.corrupted))
        assert pair.clean == f"The capital of {country} is" and country != other
        assert (pair.answer, pair.wrong_answer) == (f" {tasks.CAPITALS[country]}", f" {tasks.CAPITALS[other]}")
    every = len(tasks.CAPITALS) * (len(tasks.CAPITALS) - 1)
    assert len(set(map(str, tasks.capitals(every)))) == every
    assert len(set(tasks.CAPITALS.values())) == len(tasks.CAPITALS)


@pytest.mark.parametrize("year", [None, *range(2, 99)])
def test_greater_than_has_years_of_two_tokens(year):
    for pair in tasks.greater_than(10, year):
        first, last = pair.clean.split()[6], pair.clean.split()[-1]
        assert first[:2] == last and (year is None or int(first[2:]) == year)
        assert tokenizer.encode(f" {first}") == [tokenizer.encode(f" {last}")[0], tokenizer.encode(first[2:])[0]]
        assert 0 <= int(pair.wrong_answer) <= int(first[2:]) < int(pair.answer) <= 99
        assert pair.corrupted == pair.clean.replace(first, f"{last}01")


def test_the_examples_of_the_docstring():
    (pair,) = tasks.greater_than(1, year=32)
    assert (pair.answer, pair.wrong_answer) == ("66", "16")
    assert tasks._is_two_tokens(17, 32) and not tasks._is_two_tokens(11, 25)


def test_years_above_is_the_probability_above_minus_that_below(model):
    tokens = [tokenizer.encode(f"{y:02}")[0] for y in range(100)]
    logits = np.full((3, tokenizer.N_VOCAB), -np.inf, dtype=np.float32)
    logits[-1, tokens] = 0.0  # every year 1/100
    assert tasks.years_above(32)(logits) == pytest.approx(67 / 100 - 33 / 100)
    logits[-1, 1000] = np.log(100)  # half of it all elsewhere
    assert tasks.years_above(32)(logits) == pytest.approx(0.17)
    assert tasks.years_above(99)(logits) == pytest.approx(-0.5)
    result = sweep(model, tasks.greater_than(3, year=32), metric=tasks.years_above(32))
    assert result.metric == "years_above_minus_below" and result.n_pairs == 3 and not result.skipped


def test_ioi8_is_the_published_data_set(model):
    folder = Path(nanopatch.__file__).parent / "data"
    published = json.loads((folder / "gpt2_transformerlens.json").read_text(encoding="utf-8"))["ioi8"]
    pairs = tasks.ioi8()
    assert [pair.clean for pair in pairs] == published["prompts"]
    tokens = [pair.tokens(model) for pair in pairs]
    assert [[t.answer, t.wrong_answer] for t in tokens] == published["answer_tokens"]
    clean, corrupted = np.array([t.clean for t in tokens]), np.array([t.corrupted for t in tokens])
    assert clean.shape == (8, 15) and (clean[:, 0] == tokenizer.ENDOFTEXT_ID).all()
    assert np.array_equal(corrupted, clean[[1, 0, 3, 2, 5, 4, 7, 6]])
    assert all(differing(t.clean, t.corrupted) == [10] for t in tokens)  # the second mention of the giver
    result = sweep(model, pairs)
    # Swapped within pairs, so the corrupted mean is the clean one with its sign turned.
    assert result.baseline_corrupted == pytest.approx(-result.baseline_clean, rel=1e-9)


BAD = [
    (tasks.indirect_object, dict(order="ABAB"), "unknown order 'ABAB'"),
    (tasks.indirect_object, dict(corruption="zero"), "unknown corruption 'zero'"),
    (tasks.indirect_object, dict(template="{first} and {second} to"), "the template has no {giver}: "),
    (tasks.indirect_object, dict(template="{first} {second} {giver} {x}"), "the template has other slots than {place}"),
    (tasks.indirect_object, dict(template="{first} {second} {giver} {"), "the template has other slots than {place}"),
    (tasks.indirect_object, dict(template="{first} {second} {giver} {}"), "the template has other slots than {place}"),
    (tasks.indirect_object, dict(n=0), "n is 0: give from 1 to 224640"),
    (tasks.capitals, dict(n=10_000), "n is 10000: give from 1 to 1190"),
    (tasks.capitals, dict(template="The capital is"), "the template has no {country}: 'The capital is'"),
    (tasks.induction, dict(length=1), "length is 1: give 2 to 8999"),
    (tasks.induction, dict(length=3, vocabulary=[1, 2, 3, 3]), "length is 3: give 2 to 2"),
    (tasks.greater_than, dict(year=1), "year is 1: give the last two digits, from 2 to 98"),
    (tasks.greater_than, dict(n=-1), "n is -1: give from 1 to "),
]


@pytest.mark.parametrize(("task", "arguments", "message"), BAD)
def test_wrong_arguments(task, arguments, message):
    with pytest.raises(NanopatchError) as error:
        task(**arguments)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


# ---- what nano makes of them --------------------------------------------------------------------


@pytest.fixture(scope="module")
def nano():
    if not (find("nano") / "model.safetensors").is_file():
        pytest.skip("weights/nano is not there")
    return nanopatch.load("nano")


@pytest.mark.parametrize(
    ("task", "arguments"),
    [
        *((tasks.indirect_object, arguments) for arguments in IOI if arguments["corruption"] == "swap"),
        (tasks.induction, {}),
        (tasks.induction, dict(length=20, prepend_bos=True)),
        *((tasks.capitals, dict(template=template)) for template in tasks.CAPITAL_TEMPLATES),
    ],
)
def test_nano_can_do_it(nano, task, arguments):
    """In nine of ten pairs or more the answer is preferred in the clean prompt, the wrong one in the corrupted."""
    tokens = [pair.tokens(nano) for pair in task(50, **arguments)]
    answers, wrong = np.array([(t.answer, t.wrong_answer) for t in tokens]).T[:, :, None]  # (n_pairs, 1) each
    for name, sign in (("clean", 1), ("corrupted", -1)):
        logits = nano.next_logits(np.array([getattr(t, name) for t in tokens]))  # (n_pairs, n_vocab)
        difference = np.take_along_axis(logits, answers, axis=1) - np.take_along_axis(logits, wrong, axis=1)
        assert np.mean(sign * difference > 0) >= 0.9


@pytest.mark.parametrize("n", ["3", 2.5, 0, None])
def test_how_many_is_a_whole_number(n):
    for task in (tasks.indirect_object, tasks.induction, tasks.capitals, tasks.greater_than):
        with pytest.raises(NanopatchError, match="n is "):
            task(n)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tasks.capitals(2, template=3), "a template is a text, not 3"),
        (lambda: tasks.capitals(2, seed=[1]), r"seed \[1\]: a whole number is expected"),
        (lambda: tasks.induction(2, vocabulary=3), "vocabulary=3: a list of token ids is expected"),
        (lambda: tasks.induction(2, length="a"), "length is 'a': give 2 to"),
        (lambda: tasks.greater_than(2, year=32.5), "year is 32.5: give the last two digits"),
    ],
)
def test_arguments_of_wrong_types(call, message):
    with pytest.raises(NanopatchError, match=message):
        call()


@pytest.mark.parametrize(
    ("task", "arguments", "n"),
    [
        (tasks.indirect_object, dict(), 3000),
        (tasks.indirect_object, dict(template="{first} and {second} met. {giver} smiled at"), 1560),
        (tasks.indirect_object, dict(corruption="ABC"), 500),
        (tasks.induction, dict(length=2, vocabulary=range(5)), 60),
        (tasks.capitals, dict(), 1190),
        (tasks.greater_than, dict(), 2000),
        (tasks.greater_than, dict(year=32), 70),
    ],
)
def test_as_many_different_pairs_as_there_are(task, arguments, n):
    pairs = task(n, **arguments)
    assert len({(str(pair.clean), str(pair.corrupted)) for pair in pairs}) == n
    assert [pair.clean for pair in task(n, **arguments)] == [pair.clean for pair in pairs]
    assert [pair.clean for pair in task(5, **arguments)] == [pair.clean for pair in pairs][:5] or task is tasks.capitals
    with pytest.raises(NanopatchError, match="give from 1 to "):
        task(10**12, **arguments)
