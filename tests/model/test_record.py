"""Sites and records: edits land in the run, late edits raise, records hold what was."""

import copy
import pickle

import numpy as np
import pytest
from conftest import assert_close, tiny_model

from nanopatch import NanopatchError, Patch, Run, Site, record
from nanopatch.model.sites import BLOCK_SITES, SITES


def test_all_three_spellings_of_an_edit_write_into_the_run():
    model = tiny_model()
    value = np.full((3, model.d_model), 0.5)

    def run_with(edit):
        for site in model.steps([1, 2, 3]):
            if site.name == "resid_pre" and site.layer == 1:
                kept = site.array
                edit(site)
                assert site.array is kept
        return site.array

    def by_index(site):
        site.array[...] = value

    def by_name(site):
        site.array = value

    def by_sum(site):
        site.array += value - site.array

    results = [run_with(edit) for edit in (by_index, by_name, by_sum)]
    assert np.array_equal(results[0], results[1])
    assert_close(results[0], results[2])
    expected = list(model.steps_from(1, value))[-1].array
    assert np.array_equal(results[0], expected)


def test_an_edit_that_comes_too_late_raises():
    model = tiny_model()
    steps = model.steps([1, 2, 3])
    first = next(steps)
    array = first.array
    next(steps)
    with pytest.raises(NanopatchError, match="resid_pre, layer 0.*the run has moved on"):
        first.array = 0
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 0
    *_, last = steps
    with pytest.raises(NanopatchError, match="read-only, because the run has moved on: edit it before the loop takes"):
        last.array[0] = 0
    with pytest.raises(NanopatchError, match="read-only, because the run has moved on"):
        last.array[0][:] = 0
    with pytest.raises(NanopatchError, match="read-only, because the run has moved on"):
        last.array += 1
    logits = model.run([1, 2, 3]).logits
    assert np.array_equal(last.array, logits) and repr(last.array) == repr(logits)  # else it is as any array
    assert type(last.array * 2) is type(np.exp(last.array)) is np.ndarray
    copied = last.array.copy()
    copied[0] = 0
    copied += 1
    assert (copied[0] == 1).all() and np.array_equal(copied[1:], logits[1:] + 1)
    assert np.array_equal(last.array, logits)


def test_a_value_that_does_not_fit_raises_and_changes_nothing():
    array = np.zeros((3, 4))
    site = Site("resid_pre", 2, array)
    for value in (None, "3", "a", 1j, [[1], [2, 3]]):
        with pytest.raises(NanopatchError, match=r"layer 2, shape \(3, 4\)\) takes numbers of its shape, or one"):
            site.array = value
    for value in (np.ones(5), np.ones(4), np.ones((1, 4)), np.ones((2, 3, 4)), []):  # np.ones(4) would go to every row
        with pytest.raises(NanopatchError, match=r"takes an array of its own shape, not .* site.array\[position\] = "):
            site.array = value
    assert not array.any()
    site.array = 2
    assert (array == 2).all()
    site.array = np.ones((3, 4), int)
    assert (array == 1).all()


def test_what_people_write_first_says_what_to_write():
    model = tiny_model()
    run = model.run([1, 2, 3])
    assert run["resid_pre"] is run.resid_pre
    with pytest.raises(NanopatchError, match="a run has no array 'resid'; the names are resid_pre, "):
        run["resid"]
    with pytest.raises(NanopatchError, match=r"a model is not called: write model.run\(prompt\)"):
        model([1, 2, 3])


@pytest.mark.parametrize("name", ["attn_scores", "blocks.0.attn.hook_attn_scores", "hook_scores"])
def test_another_librarys_name_is_told_ours(name):
    run = tiny_model().run([1, 2, 3])
    for ask in (run.__getitem__, lambda name: tiny_model().run([1, 2], sites=[name]), Patch):
        with pytest.raises(NanopatchError, match=rf"'{name}' \(here it is 'scores'\); .* are resid_pre"):
            ask(name)


def test_record_of_an_edited_run_holds_the_edits():
    model = tiny_model()

    def patched():
        for site in model.steps([1, 2, 3]):
            if site.name == "resid_pre" and site.layer == 1:
                site.array[2] = 0
            yield site

    run, plain = record(patched()), model.run([1, 2, 3])
    assert not run.resid_pre[1, 2].any()
    assert np.array_equal(run.resid_post[0], plain.resid_post[0])  # what block 0 computed
    assert not np.array_equal(run.logits, plain.logits)
    assert run.tokens.tolist() == plain.tokens.tolist() == [1, 2, 3]


def test_an_edit_after_yielding_the_site_on_is_recorded_too():
    model = tiny_model()

    def patched():
        for site in model.steps([1, 2, 3]):
            yield site
            if site.name == "z" and site.layer == 0:
                site.array[:, 1] = 7

    assert (record(patched(), sites="z").z[0, :, 1] == 7).all()


def test_arrays_of_a_record_are_read_only():
    run = tiny_model().run([1, 2, 3])
    for name in SITES:
        with pytest.raises(ValueError, match="read-only"):
            getattr(run, name)[...] = 0


def test_an_edit_of_a_recorded_array_says_what_to_do_instead():
    model = tiny_model()
    run = model.run([1, 2, 3])
    gradients = model.backward(run, np.ones_like(run.logits))
    for kept in (run, gradients, copy.deepcopy(run), copy.copy(run), pickle.loads(pickle.dumps(run))):
        for array in (kept.resid_pre, kept.logits, kept.z[0], kept.z[1, :, 0].T, kept.tokens):
            before = array.tolist()
            with pytest.raises(NanopatchError, match=r"read-only: edit a copy, such as run.z.copy\(\), or patch"):
                array[0] = 0
            with pytest.raises(NanopatchError, match="read-only: edit a copy"):
                array += 1
            with pytest.raises(NanopatchError, match="read-only: edit a copy"):
                np.multiply(array, 2, out=array)
            assert array.tolist() == before


def test_a_recorded_array_is_else_as_any_array():
    run = tiny_model().run([1, 2, 3])
    z, plain = run.z, np.array(run.z)
    assert isinstance(z, np.ndarray) and type(plain) is type(np.asarray(z)) is np.ndarray and repr(z) == repr(plain)
    for made in (z * 2, z + z, -z, np.exp(z), z.mean(0), z[0, 0] @ z[0, 0].T, z.copy(), np.copy(z), copy.deepcopy(z)):
        assert type(made) is np.ndarray
        made[...] = 7
        assert (made == 7).all()
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert type(pickle.loads(pickle.dumps(z, protocol))) is np.ndarray
    # Memory of their own. (z[z > 0] too, but NumPy 1.26 makes it a view of that memory, and read-only.)
    for of_part in (z[[0, 1]], z.astype(np.float32), z.flatten(), np.zeros_like(z)):
        of_part[...] = 7
        of_part += 1
        assert (of_part == 8).all()
    assert z[0, 0, 0, 0] == plain[0, 0, 0, 0] and type(z.sum()) is type(z[0, 0, 0, 0]) is np.float64
    assert np.array_equal(z, plain) and z.tolist() == plain.tolist()


def test_only_names_asked_for_are_kept():
    run = tiny_model().run([1, 2, 3], sites=["z", "logits"])
    assert run.names == ("z", "logits")
    with pytest.raises(NanopatchError, match="resid_pre was not recorded; this run holds z, logits"):
        run.resid_pre  # noqa: B018
    assert not hasattr(run, "resid_pre") and hasattr(run, "z")
    with pytest.raises(AttributeError, match="no array 'residual'"):
        run.residual  # noqa: B018
    assert repr(run) == "Run(z (3, 3, 2, 6), logits (3, 29))"


def test_record_refuses_blocks_that_do_not_start_at_layer_0():
    model = tiny_model()
    resid = model.embed([1, 2])
    with pytest.raises(NanopatchError, match="every block once, from layer 0 on.*came from layers 1, 2"):
        record(model.steps_from(1, resid))
    twice = [*model.steps([1, 2], sites="logits"), *model.steps([1, 2], sites="logits")]
    with pytest.raises(NanopatchError, match="record needs one run"):
        record(twice)
    with pytest.raises(NanopatchError, match="unknown site 'zz'"):
        record(model.steps([1, 2]), sites="zz")


def test_one_run_of_a_batch_is_an_index_after_the_layer_axis():
    model = tiny_model()
    batch = model.run([[1, 2, 3], [4, 5, 6]])
    for number, tokens in enumerate(([1, 2, 3], [4, 5, 6])):
        alone = model.run(tokens)
        assert batch.tokens[number].tolist() == tokens and batch.names == alone.names
        for name in batch.names:
            array = getattr(batch, name)
            assert_close(array[:, number] if name in BLOCK_SITES else array[number], getattr(alone, name))


def test_the_tokens_of_a_run_are_read_only():
    given = np.array([1, 2])
    run = tiny_model().run(given)
    with pytest.raises(ValueError, match="read-only"):
        run.tokens[0] = 3
    given[0] = 3  # the caller's own array is left as it was
    assert run.tokens.tolist() == [1, 2]


def test_run_is_made_of_arrays_by_name():
    run = Run({"logits": np.zeros((2, 3))}, tokens=[1, 2])
    assert run.names == ("logits",) and run.tokens == [1, 2]


# ---- pickled records ----------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("sites", [None, ("z", "logits")])
def test_a_pickled_run_comes_back_equal_and_read_only_and_without_its_model(sites, protocol):
    model = tiny_model(dtype=np.float32)
    run = model.run([[1, 2, 3], [4, 5, 6]], sites=sites)
    back = pickle.loads(pickle.dumps(run, protocol))
    assert run.model is model and back.model is None
    assert type(back) is Run and back.names == run.names and not back.is_gradient
    for name in run.names:
        before, after = getattr(run, name), getattr(back, name)
        assert np.array_equal(after, before) and after.dtype == before.dtype
        with pytest.raises(ValueError, match="read-only"):
            after[...] = 0
    assert np.array_equal(back.tokens, run.tokens)
    assert repr(back) == repr(run)
    assert hasattr(back, "resid_mid") == hasattr(run, "resid_mid") == (sites is None)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_the_tokens_of_a_pickled_run_are_read_only(protocol):
    back = pickle.loads(pickle.dumps(tiny_model().run([1, 2]), protocol))
    with pytest.raises(ValueError, match="read-only"):
        back.tokens[0] = 3


def test_a_pickled_run_is_as_large_as_its_arrays():
    """Names, shapes and dtypes of 19 arrays come to some 2 KB. The weights of this model alone would be 4 MB."""
    model = tiny_model(n_embd=240, n_inner=960, vocab_size=500)
    run = model.run([1, 2, 3])
    for kept in (run, model.backward(run, np.ones_like(run.logits)), model.run([1, 2, 3], sites="z")):
        n_bytes = kept.tokens.nbytes + sum(getattr(kept, name).nbytes for name in kept.names)
        assert n_bytes < len(pickle.dumps(kept)) < n_bytes + 4096


def test_a_pickled_run_can_be_used_like_one():
    model = tiny_model()
    run = model.run([1, 2, 3])
    back = pickle.loads(pickle.dumps(run))
    d_logits = np.ones_like(run.logits)
    gradients, expected = model.backward(back, d_logits), model.backward(run, d_logits)
    again = pickle.loads(pickle.dumps(gradients))
    assert again.is_gradient and repr(again) == repr(expected)
    assert all(np.array_equal(getattr(again, name), getattr(expected, name)) for name in SITES)
