"""The selective scan: every implementation against the recurrence in float64, values and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plamo2_kernels.ssd import ssd

B, T, H, P, N = 2, 37, 4, 8, 16
NAMES = ("x", "dt", "A", "B", "C", "D", "initial_state")


def arguments(rng, groups=1, t=T):
    return {
        "x": rng.normal(size=(B, t, H, P)),
        "dt": np.exp(rng.uniform(np.log(1e-3), np.log(0.5), size=(B, t, H))),
        "A": -np.arange(1.0, H + 1),
        "B": rng.normal(size=(B, t, groups, N)),
        "C": rng.normal(size=(B, t, groups, N)),
        "D": rng.normal(size=H),
        "initial_state": rng.normal(size=(B, H, P, N)),
    }


def by_hand(x, dt, A, B, C, D, initial_state, segment_ids):
    """The recurrence in plain numpy, one state a row, with its own idea of what a boundary is."""
    y, states = np.zeros_like(x), initial_state.copy()
    for b in range(x.shape[0]):
        alive = next((s for s in segment_ids[b] if s), 0)
        for t in range(x.shape[1]):
            if segment_ids[b, t] == 0:
                continue
            if segment_ids[b, t] != alive:
                states[b], alive = 0, segment_ids[b, t]
            for h in range(x.shape[2]):
                group = h // (x.shape[2] // B.shape[2])
                states[b, h] = np.exp(dt[b, t, h] * A[h]) * states[b, h] + dt[b, t, h] * np.outer(
                    x[b, t, h], B[b, t, group]
                )
                y[b, t, h] = states[b, h] @ C[b, t, group] + D[h] * x[b, t, h]
    return y, states


@functools.partial(jax.jit, static_argnames=("implementation", "chunk_size"))
def run(arrays, segment_ids, implementation, chunk_size=None):
    return ssd(**arrays, segment_ids=segment_ids, implementation=implementation, chunk_size=chunk_size)


@functools.partial(jax.jit, static_argnames=("implementation", "chunk_size"))
def gradients(arrays, segment_ids, cotangents, implementation, chunk_size=None):
    def scalar(arrays):
        y, state = ssd(**arrays, segment_ids=segment_ids, implementation=implementation, chunk_size=chunk_size)
        return jnp.sum(y * cotangents[0]) + jnp.sum(state * cotangents[1])

    return jax.grad(scalar)(arrays)


def error(actual, expected):
    expected = np.asarray(expected, np.float64)
    return np.linalg.norm(np.asarray(actual, np.float64) - expected) / max(np.linalg.norm(expected), 1e-30)


rows = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 15)), min_size=1, max_size=8)


def segments_from(layout, t=T):
    """Pieces of (0 for padding or 1.. for a new document, length) as segment ids of one row."""
    ids, document = [], 0
    for kind, length in layout:
        document += kind > 0
        # Kind 3 returns to an earlier id: still a document of its own.
        ids += [(1 if kind == 3 else document) if kind else 0] * length
    return np.array((ids + [0] * t)[:t], np.int32)


@given(st.tuples(rows, rows), st.sampled_from([1, 2, 4]), st.sampled_from(["reference", "xla"]))
def test_every_implementation_follows_the_recurrence(layouts, groups, implementation):
    segment_ids = np.stack([segments_from(layout) for layout in layouts])
    args = arguments(np.random.default_rng(1), groups)
    expected, expected_state = by_hand(**args, segment_ids=segment_ids)
    with jax.enable_x64(True):
        y, state = run(args, segment_ids, implementation, 8)
    real = segment_ids != 0
    np.testing.assert_allclose(np.asarray(y)[real], expected[real], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(state, expected_state, rtol=1e-9, atol=1e-9)


@given(st.tuples(rows, rows), st.sampled_from([1, 2]))
def test_gradients_of_every_input_agree_with_the_reference(layouts, groups):
    rng = np.random.default_rng(2)
    segment_ids = np.stack([segments_from(layout) for layout in layouts])
    args = arguments(rng, groups)
    real = segment_ids != 0
    cotangents = (rng.normal(size=args["x"].shape) * real[..., None, None], rng.normal(size=(B, H, P, N)))
    with jax.enable_x64(True):
        expected = gradients(args, segment_ids, cotangents, "reference")
        actual = gradients(args, segment_ids, cotangents, "xla", 8)
        for name in NAMES:
            np.testing.assert_allclose(actual[name], expected[name], rtol=1e-8, atol=1e-8, err_msg=name)
    single = jax.tree.map(np.float32, (args, cotangents))
    actual = gradients(single[0], segment_ids, single[1], "xla", 8)
    for name in NAMES:
        assert error(actual[name], expected[name]) < 1e-5, name


def test_the_chunk_size_changes_nothing_but_rounding(rng):
    args = jax.tree.map(np.float32, arguments(rng))
    segment_ids = np.stack([segments_from([(1, 10), (1, 9), (0, 3), (1, 30)]), segments_from([(0, 4), (1, 33)])])
    expected = run(args, segment_ids, "reference")
    for chunk_size in (1, 5, 16, 37, 64):
        for actual, value in zip(run(args, segment_ids, "xla", chunk_size), expected, strict=True):
            assert error(actual, value) < 1e-5, chunk_size


@pytest.mark.parametrize("implementation", ["reference", "xla"])
def test_nothing_crosses_a_segment_boundary(rng, implementation):
    args = jax.tree.map(np.float32, arguments(rng))
    segment_ids = np.tile(segments_from([(1, 9), (1, 1), (0, 2), (1, 20)]), (B, 1))

    def leak(document, other):
        weights = (segment_ids == document)[..., None, None].astype(np.float32)
        grads = gradients(args, segment_ids, (weights, np.zeros((B, H, P, N), np.float32)), implementation, 16)
        inside = [np.abs(np.asarray(grads[n])[segment_ids == document]).max() for n in ("x", "dt", "B", "C")]
        outside = [np.abs(np.asarray(grads[n])[segment_ids == other]).max() for n in ("x", "dt", "B", "C")]
        return min(inside), max(outside)

    for document in (1, 2, 3):
        for other in {0, 1, 2, 3} - {document}:
            inside, outside = leak(document, other)
            assert inside > 0
            assert outside == 0.0


def test_two_halves_with_the_state_passed_on_are_the_whole(rng):
    args = jax.tree.map(np.float32, arguments(rng))
    whole, last = ssd(**args)
    for cut in (1, 13, T - 1):
        timed = {n: args[n] for n in ("x", "dt", "B", "C")}
        first = {**args, **{n: a[:, :cut] for n, a in timed.items()}}
        y1, state = ssd(**first)
        y2, state = ssd(**{**args, **{n: a[:, cut:] for n, a in timed.items()}, "initial_state": state})
        assert error(np.concatenate([y1, y2], 1), whole) < 1e-5
        assert error(state, last) < 1e-5


@pytest.mark.parametrize(("dt", "decay"), [(1e-6, 1e-3), (1e-6, 64.0), (20.0, 1e-3), (20.0, 64.0)])
def test_extreme_steps_and_decays_stay_finite_and_right(rng, dt, decay):
    args = arguments(rng)
    args["dt"] = np.full_like(args["dt"], dt)
    args["A"] = np.full_like(args["A"], -decay)
    segment_ids = np.stack([segments_from([(1, 1), (1, 1), (1, 18)]), np.zeros(T, np.int32)])
    expected = by_hand(**args, segment_ids=segment_ids)
    y, state = run(jax.tree.map(np.float32, args), segment_ids, "xla", 16)
    assert np.isfinite(y).all()
    assert error(np.asarray(y)[:1, :20], expected[0][:1, :20]) < 1e-4
    assert error(state, expected[1]) < 1e-4


def test_a_long_fast_decaying_document_before_a_short_one_in_a_chunk_stays_finite(rng):
    """Log-decays of the two differ by far more than float32's exponent holds."""
    args = jax.tree.map(np.float32, {**arguments(rng), "dt": np.full((B, T, H), 5.0), "A": np.full(H, -30.0)})
    segment_ids = np.tile(segments_from([(1, 30), (1, 2), (0, 1), (1, 4)]), (B, 1))
    cotangents = (np.ones((B, T, H, P), np.float32), np.ones((B, H, P, N), np.float32))
    grads = gradients(args, segment_ids, cotangents, "xla", 64)
    expected = gradients(args, segment_ids, cotangents, "reference")
    for name in NAMES:
        assert np.isfinite(grads[name]).all(), name
        np.testing.assert_allclose(grads[name], expected[name], rtol=1e-4, atol=1e-4, err_msg=name)


def test_a_long_row_of_extreme_steps_stays_finite_and_right(rng):
    """32,768 tokens, each nearly forgetting everything or nothing; nothing is lost along the way."""
    t, h, p, n = 32768, 2, 4, 4
    normal = {name: rng.normal(size=(1, t, *shape)) for name, shape in {"x": (h, p), "B": (1, n), "C": (1, n)}.items()}
    steps = {"dt": rng.choice([1e-6, 1e-3, 20.0], size=(1, t, h), p=[0.5, 0.49, 0.01]), "A": np.array([-1e-3, -64.0])}
    args = {**normal, **steps, "D": rng.normal(size=h), "initial_state": rng.normal(size=(1, h, p, n))}
    segment_ids = segments_from([(1, 20000), (0, 7), (1, 1), (1, 12000)], t)[None]
    cotangents = (rng.normal(size=args["x"].shape) * (segment_ids != 0)[..., None, None], rng.normal(size=(1, h, p, n)))
    with jax.enable_x64(True):
        expected = run(args, segment_ids, "reference"), gradients(args, segment_ids, cotangents, "reference")
    args, cotangents = jax.tree.map(np.float32, (args, cotangents))
    actual = run(args, segment_ids, "xla"), gradients(args, segment_ids, cotangents, "xla")
    real = segment_ids != 0
    # Log-decays add up to thousands in a chunk, and float32 holds such a sum to 3e-4: a relative error of what decays by it.
    assert error(np.asarray(actual[0][0])[real], np.asarray(expected[0][0])[real]) < 1e-3
    assert error(actual[0][1], expected[0][1]) < 1e-3
    for name in NAMES:
        assert np.isfinite(actual[1][name]).all(), name
        assert error(actual[1][name], expected[1][name]) < 1e-3, name


def test_nothing_of_pairs_a_head_is_kept_between_the_passes():
    """Inputs and the states entering the chunks are; one [q,q] matrix a head and chunk would be more than all bounds here."""
    t, q = 2048, 64
    args = {name: np.float32(a) for name, a in arguments(np.random.default_rng(0), t=t).items()}
    pairs = 4 * B * H * t * q
    _, pullback = jax.eval_shape(lambda args: jax.vjp(lambda a: run(a, None, "xla", q), args), args)
    kept = sum(np.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(pullback))
    assert kept < pairs / 2
    y, state = jax.eval_shape(lambda a: run(a, None, "xla", q), args)
    analysis = gradients.lower(args, None, (y, state), "xla", q).compile().memory_analysis()
    assert analysis.temp_size_in_bytes < pairs


def test_bfloat16_inputs_keep_a_float32_state(rng):
    args = arguments(rng)
    half = {**args, **{n: jnp.asarray(args[n], jnp.bfloat16) for n in ("x", "B", "C")}}
    half = {n: a if a.dtype == jnp.bfloat16 else np.float32(a) for n, a in half.items()}
    y, state = run(half, None, "xla")
    assert (y.dtype, state.dtype) == (jnp.bfloat16, jnp.float32)
    expected, expected_state = by_hand(**args, segment_ids=np.ones((B, T), np.int32))
    assert error(y, expected) < 2e-2
    assert error(state, expected_state) < 2e-2


def test_shapes_that_do_not_fit_are_named(rng, unchecked_shapes):
    args = jax.tree.map(np.float32, arguments(rng))
    with pytest.raises(ValueError, match=r"ssd: dt has shape \(2, 36, 4\).*must be \(2, 37, 4\)"):
        ssd(**{**args, "dt": args["dt"][:, 1:]})
    with pytest.raises(ValueError, match="g dividing h=4"):
        ssd(**{**args, "B": np.zeros((B, T, 3, N), np.float32)})
    with pytest.raises(ValueError, match="implementation='triton' must be one of auto"):
        ssd(**args, implementation="triton")


@pytest.mark.parametrize("groups", [1, 2])
def test_one_token_equals_the_recurrence_where_rows_go_on_and_where_they_do_not(rng, groups):
    arrays = arguments(rng, groups, t=1)
    state = np.stack([arrays["initial_state"][0], np.zeros((H, P, N))])
    expected = by_hand(**{**arrays, "initial_state": state}, segment_ids=np.ones((B, 1), np.int32))
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    for implementation in ("auto", "reference"):
        found = ssd(**arrays, continues=np.array([True, False]), implementation=implementation)
        for ours, theirs in zip(found, expected, strict=True):
            assert error(ours, theirs) < 1e-6
