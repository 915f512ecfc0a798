"""What a result says where the question makes no sense to the model."""

from dataclasses import replace

import numpy as np
import pytest

from nanopatch import Experiment, Sweep, Zero, attribute, edge_attribution, load, sweep, tasks
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
    assert any("<|endoftext|> in a prompt was read as text" in note for note in sweep(nano, pair).notes)
    as_token = sweep(nano, replace(pair, special_tokens=True))
    assert not as_token.notes and len(as_token.clean_tokens) == len(sweep(nano, MICHELLE).clean_tokens) + 1
    assert np.array_equal(as_token.grid, sweep(nano, replace(MICHELLE, prepend_bos=True)).grid)


def test_of_many_pairs_it_is_said_in_how_many(nano, tmp_path):
    swapped = replace(MICHELLE, answer=" Smith", wrong_answer=" Jones")
    result = sweep(nano, [MICHELLE, swapped, MICHELLE], "z")
    assert (result.n_unpredicted, result.prediction.predicted) == (1, " Jones")
    assert "In 1 of 3 pairs the clean run does not predict the answer: " in result.notes[-1]
    for ending in ("npz", "json"):
        result.save(tmp_path / f"x.{ending}")
        assert Sweep.load(tmp_path / f"x.{ending}").prediction == result.prediction
