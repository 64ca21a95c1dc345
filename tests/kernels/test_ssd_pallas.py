"""The Pallas scans in the interpreter against the recurrence in float64: values and the gradient of every input."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.scans import (
    SIZES,
    TIMED,
    arguments,
    assert_equal_to_reference,
    cotangents_for,
    evaluate,
    half,
    rows,
    segments_from,
    single,
)

each = pytest.mark.parametrize("name", SIZES)


@functools.cache
def layouts(name):
    return st.tuples(rows(SIZES[name]), rows(SIZES[name]))


def run(name, args, segment_ids, cotangents):
    return evaluate(args, segment_ids, cotangents, name, SIZES[name].chunk)


@each
@settings(max_examples=12)
@given(data=st.data(), groups=st.sampled_from([1, 2]), from_zero=st.booleans())
def test_values_and_gradients_agree_with_the_reference(name, data, groups, from_zero):
    rng, size = np.random.default_rng(0), SIZES[name]
    segment_ids = np.stack([segments_from(layout, size.t) for layout in data.draw(layouts(name))])
    args = arguments(rng, size, groups)
    args["initial_state"] *= not from_zero
    cotangents = cotangents_for(rng, args, segment_ids)
    actual = run(name, single(args), segment_ids, single(cotangents))
    assert_equal_to_reference(actual, args, segment_ids, cotangents, 1e-5)


@each
@settings(max_examples=4)
@given(data=st.data())
def test_bfloat16_agrees_with_the_reference(name, data):
    rng, size = np.random.default_rng(1), SIZES[name]
    segment_ids = np.stack([segments_from(layout, size.t) for layout in data.draw(layouts(name))])
    rounded, args = half(arguments(rng, size))
    cotangents = cotangents_for(rng, args, segment_ids)
    actual = run(name, rounded, segment_ids, single(cotangents))
    assert {n: a.dtype for n, a in actual.items() if a.dtype != jnp.float32} == dict.fromkeys(
        ("y", "d_x", "d_B", "d_C"), jnp.bfloat16
    )
    assert_equal_to_reference(actual, args, segment_ids, cotangents, 2e-2)


@pytest.mark.parametrize(
    ("name", "t", "chunk_size"),
    [
        ("pallas_gpu", 1, None),
        ("pallas_gpu", 37, None),
        ("pallas_gpu", 16, 1),
        ("pallas_tpu", 1, None),
        ("pallas_tpu", 300, 256),
    ],
)
def test_lengths_and_chunk_sizes_without_segments(rng, name, t, chunk_size):
    args = arguments(rng, SIZES[name]._replace(t=t))
    cotangents = cotangents_for(rng, args, np.ones(args["x"].shape[:2]))
    actual = evaluate(single(args), None, single(cotangents), name, chunk_size)
    assert_equal_to_reference(actual, args, None, cotangents, 1e-5)


@each
def test_nothing_crosses_a_segment_boundary(rng, name):
    size = SIZES[name]
    args = single(arguments(rng, size))
    row = segments_from([(1, size.t // 4), (1, 1), (0, 2), (1, size.t // 3), (1, size.t)], size.t)
    segment_ids = np.tile(row, (size.b, 1))
    no_state = np.zeros_like(args["initial_state"])
    for document in (1, 2, 3, 4):
        inside = segment_ids == document
        weights = np.broadcast_to(inside[..., None, None].astype(np.float32), args["x"].shape)
        gradients = run(name, args, segment_ids, (weights, no_state))
        for timed in TIMED:
            gradient = np.asarray(gradients[f"d_{timed}"])
            assert np.abs(gradient[inside]).max() > 0, timed
            assert np.abs(gradient[~inside]).max() == 0, timed
        assert (np.abs(gradients["d_initial_state"]).max() == 0) == (document > 1)


@each
@pytest.mark.parametrize(("dt", "decay"), [(1e-6, 1e-3), (1e-6, 64.0), (20.0, 1e-3), (20.0, 64.0)])
def test_extreme_steps_and_decays_stay_finite_and_right(rng, name, dt, decay):
    size = SIZES[name]
    args = arguments(rng, size)
    args["dt"] = np.full_like(args["dt"], dt)
    args["A"] = np.full_like(args["A"], -decay)
    # Documents of one token, a long one that decays fast before a short one in a chunk, and a row of padding.
    row = segments_from([(1, 1), (1, 1), (1, size.t // 3), (1, 2), (1, size.t // 2)], size.t)
    segment_ids = np.stack([row, np.zeros(size.t, np.int32)])
    cotangents = cotangents_for(rng, args, segment_ids)
    actual = run(name, single(args), segment_ids, single(cotangents))
    assert_equal_to_reference(actual, args, segment_ids, cotangents, 1e-5)
