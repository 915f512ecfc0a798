"""Replies as bytes, and the page as a document."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from nanopatch.page.pack import TYPES, half, key_of, pack, pooled, unpack

ANY = arrays.arrays(st.sampled_from([*TYPES.values()]), arrays.array_shapes(min_dims=0, max_dims=3, min_side=0))


@given(st.dictionaries(st.text(min_size=1), st.text(), max_size=3), st.lists(ANY, max_size=4))
def test_what_is_unpacked_is_what_was_packed(values, given_arrays):
    values = {
        f"v{name}": value for name, value in values.items() if not any(0xD800 <= ord(c) < 0xE000 for c in name + value)
    }
    named = {f"a{i}": array for i, array in enumerate(given_arrays)}
    reply = pack("the key", values, named)
    found = unpack(reply)
    assert found.keys() == {"key", *values, *named} and len(reply) % 8 == 0
    for name, array in named.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
    assert {name: found[name] for name in values} == values


def test_what_json_cannot_hold_becomes_null():
    found = unpack(pack("k", {"a": np.float32("nan"), "b": [np.inf, 1.5], "c": np.int64(3), "d": (1, {"e": -np.inf})}))
    assert found == {"key": "k", "a": None, "b": [None, 1.5], "c": 3, "d": [1, {"e": None}]}


def test_bool_and_int64_become_what_the_page_reads():
    found = unpack(pack("k", {}, {"a": np.array([True, False]), "b": np.array([2**31 - 1, -1])}))
    assert found["a"].dtype == np.uint8 and found["b"].dtype == np.int32 and found["b"].tolist() == [2**31 - 1, -1]
    with pytest.raises(AssertionError, match="no rule"):
        pack("k", {}, {"a": np.array([1j])})


def test_a_key_is_canonical_json():
    assert key_of({"view": "é", "axes": ["b", "a"], "n": None}) == '{"axes":["b","a"],"n":null,"view":"é"}'
    assert json.loads(key_of({"b": 1, "a": 2})) == {"a": 2, "b": 1}


def test_half_keeps_three_digits_and_whatever_is_too_large_for_it():
    assert half(np.array([1.0, np.inf, np.nan])).dtype == np.float16
    assert half(np.array([1.0, 7e4])).dtype == np.float32
    values = np.random.default_rng(0).normal(size=1000) * 100
    np.testing.assert_allclose(half(values).astype(float), values, rtol=1e-3)


@given(
    arrays.arrays(np.float64, arrays.array_shapes(min_dims=1, max_dims=3), elements=st.floats(-9, 9)), st.integers(1, 5)
)
def test_pooled_keeps_the_entry_of_largest_size(array, most):
    small, n = pooled(array, most)
    assert small.shape[:-1] == array.shape[:-1] and small.shape[-1] <= most
    for i in range(small.shape[-1]):
        group = array[..., n * i : n * (i + 1)]
        np.testing.assert_array_equal(np.abs(small[..., i]), np.abs(group).max(-1))
        assert (group == small[..., i, None]).any(-1).all()


def test_pooled_keeps_a_mask_only_where_all_is_masked():
    small, n = pooled(np.array([-np.inf, 0.1, -np.inf, -np.inf, np.nan, 0.0]), 3)
    assert n == 2 and small.tolist() == [0.1, -np.inf, 0.0]
