"""What a result says where the question makes no sense to the model."""

from dataclasses import replace

import numpy as np
import pytest

from nanopatch import (
    Comparison,
    Experiment,
    NanopatchError,
    Sweep,
    Zero,
    attribute,
    edge_attribution,
    faithfulness,
    load,
    saliency,
    sweep,
    tasks,
    trace,
)
from nanopatch.cli import main
from nanopatch.experiments import MICHELLE, NAMED


@pytest.fixture(scope="module")
def nano():
    return load("nano")


@pytest.mark.parametrize("name", NAMED)
def test_nothing_is_said_of_a_question_that_makes_sense(nano, name):
    result = sweep(nano, NAMED[name], "z")
    assert result.prediction.rank == 0 and not result.prediction.unread
    assert not [note for note in result.notes if "predict" in note or "trained" in note]


def test_the_answer_of_the_clean_run_is_rated_as_its_logits_say(nano):
    swapped = replace(MICHELLE, answer=" Smith", wrong_answer=" Jones")
    logits = nano.next_logits(MICHELLE.clean).astype(float)
    (smith,) = nano.tokenize(" Smith")
    for result in (sweep(nano, swapped), attribute(nano, swapped, "z"), sweep(nano, swapped, "z", corruption=Zero())):
        prediction = result.prediction
        assert prediction.rank == (logits > logits[smith]).sum() > 0
        p = np.exp(logits - logits.max())
        assert prediction.probability == pytest.approx(p[smith] / p.sum(), rel=1e-3)
        assert prediction.predicted == " Jones" and prediction.predicted_probability > 0.9
        (note,) = [note for note in result.notes if "does not predict" in note]
        assert f"' Smith' has rank {prediction.rank:,}" in note and note in str(result)


def test_edges_say_it_too(nano, capsys):
    swapped = replace(MICHELLE, answer=" Smith", wrong_answer=" Jones")
    scores = edge_attribution(nano, swapped)
    assert scores.prediction == sweep(nano, swapped).prediction and scores.notes[0] in str(scores)
    texts = ["--clean", MICHELLE.clean, "--corrupted", MICHELLE.corrupted, "--answer", " Smith", "--wrong", " Jones"]
    assert main(["edges", *texts]) == 0
    assert "' Smith' has rank" in capsys.readouterr().out


def test_swapped_prompts_and_answers_without_their_space_are_told(nano):
    prompts = replace(MICHELLE, clean=MICHELLE.corrupted, corrupted=MICHELLE.clean)
    assert sweep(nano, prompts).prediction.predicted == " Smith"
    bare = sweep(nano, replace(MICHELLE, answer="Jones", wrong_answer="Smith"))
    assert bare.prediction.rank == 14746 and bare.prediction.spaced_rank == 0
    assert "with a leading space it would have rank 0" in bare.notes[-1]


def test_tokens_that_nano_was_not_trained_on_are_named(nano):
    result = sweep(
        nano, Experiment("The Eiffel tower is in", "The Leaning tower is in", " Paris", " Rome", align="diff")
    )
    assert " tower" in result.prediction.unread
    assert any(note.startswith("nano was not trained on ") and "' tower'" in note for note in result.notes)
    assert not sweep(nano, tasks.induction(1)[0]).prediction.unread  # random ids are no text


def test_endoftext_that_was_read_as_text_is_told(nano):
    pair = replace(MICHELLE, clean="<|endoftext|>" + MICHELLE.clean, corrupted="<|endoftext|>" + MICHELLE.corrupted)
    assert any("<|endoftext|>, was read as text" in note for note in sweep(nano, pair).notes)
    as_token = sweep(nano, replace(pair, special_tokens=True))
    assert not as_token.notes and len(as_token.clean_tokens) == len(sweep(nano, MICHELLE).clean_tokens) + 1
    assert np.array_equal(as_token.grid, sweep(nano, replace(MICHELLE, prepend_bos=True)).grid)


def test_of_many_pairs_it_is_said_in_how_many(nano, tmp_path):
    swapped = replace(MICHELLE, answer=" Smith", wrong_answer=" Jones")
    result = sweep(nano, [MICHELLE, swapped, MICHELLE], "z")
    assert (result.prediction.n_unpredicted, result.prediction.predicted) == (1, " Jones")
    assert "In 1 of 3 pairs the clean run does not predict the answer: ' Smith' has rank " in result.notes[-1]
    for ending in ("npz", "json"):
        result.save(tmp_path / f"x.{ending}")
        assert Sweep.load(tmp_path / f"x.{ending}").prediction == result.prediction


@pytest.mark.parametrize("pairs", [1, 3])
def test_every_result_says_it(nano, pairs, tmp_path):
    """Of many pairs, it is about the pair whose answer is not predicted, and not about the first."""
    swapped = replace(MICHELLE, answer=" Smith", wrong_answer=" Jones")
    asked = swapped if pairs == 1 else [MICHELLE, swapped, MICHELLE]
    expected = sweep(nano, asked, "z").notes[-1]
    assert ("In 1 of 3 pairs" in expected) == (pairs == 3) and "' Smith' has rank 6,5" in expected
    edges = [("embed", "logits")]
    results = [edge_attribution(nano, asked), faithfulness(nano, asked, edges), trace(nano, asked, [1], seeds=[0, 1])]
    results.append(Comparison(sweep(nano, asked, "z"), attribute(nano, asked, "z")))
    results += [saliency(nano, swapped)] * (pairs == 1)
    for result in results:
        assert expected in result.text().splitlines() and any(expected in line for line in result._parts()[1]), result
        result.save(tmp_path / "x.json")
        assert type(result).load(tmp_path / "x.json").text() == result.text()


def test_what_was_left_out_of_a_mean_is_said_by_every_result(nano):
    asked = [MICHELLE, 3, MICHELLE]
    for result in (edge_attribution(nano, asked), faithfulness(nano, asked, [("embed", "logits")])):
        assert "Left out: pair 1: not an Experiment: 3." in result.text()


def test_tokens_and_endoftext_are_told_of_every_pair_and_without_answers(nano, capsys):
    tower = Experiment("The tower of France is", "The tower of Italy is")
    text = Experiment("<|endoftext|>A", "<|endoftext|>B")
    for result in (sweep(nano, tower, "z", metric="kl_divergence"), saliency(nano, tower.clean)):
        assert "nano was not trained on ' tower'." in result.text()
    both = sweep(nano, [Experiment("The capital of France is", "The capital of Italy is"), tower], "z", metric=top)
    assert both.prediction.answer is None and "nano was not trained on ' tower'." in both.notes
    assert any("was read as text" in note for note in saliency(nano, text).notes)
    assert main(["top", "The tower", "--json"]) == 0
    assert "nano was not trained on ' tower'." in capsys.readouterr().err


def top(logits):
    return logits[-1].max()


def test_an_answer_of_id_0_has_its_text(nano):
    note = sweep(nano, replace(MICHELLE, answer=0, wrong_answer=1), "z").notes[-1]
    assert "does not predict the answer: '!' has rank " in note


def test_saliency_takes_the_name_of_an_experiment_and_needs_the_answers_that_its_metric_reads(nano):
    assert saliency(nano, "michelle").text() == saliency(nano, MICHELLE).text()
    with pytest.raises(NanopatchError, match="^first the model, as nanopatch.load gives it"):
        saliency(MICHELLE, nano)
    with pytest.raises(NanopatchError, match="^logit_diff compares answers: give "):
        saliency(nano, replace(MICHELLE, wrong_answer=None))
