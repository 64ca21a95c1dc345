"""The scan's GPU kernels: in the interpreter against the recurrence in float64, and lowered for CUDA without a GPU."""

import contextlib
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plamo2_kernels.ssd import ssd
from plamo2_kernels.ssd.pallas_gpu import ssd_pallas_gpu

# Nothing here is a size that Triton likes: tokens pad to three chunks of 16, p to two slices of 16 channels, n to 16. With two groups, the
# 9 heads of each are cut into three blocks.
B, T, H, P, N, CHUNK = 2, 37, 18, 24, 12, 16
TIMED = ("x", "dt", "B", "C")


def arguments(rng, groups=2, t=T):
    return {
        "x": rng.normal(size=(B, t, H, P)),
        "dt": np.exp(rng.uniform(np.log(1e-3), np.log(0.5), size=(B, t, H))),
        "A": -rng.uniform(0.5, 8, size=H),
        "B": rng.normal(size=(B, t, groups, N)),
        "C": rng.normal(size=(B, t, groups, N)),
        "D": rng.normal(size=H),
        "initial_state": rng.normal(size=(B, H, P, N)),
    }


def cotangents_for(rng, args, segment_ids):
    """y at padding carries no meaning, so nothing may depend on it."""
    real = (segment_ids != 0)[..., None, None]
    return rng.normal(size=args["x"].shape) * real, rng.normal(size=args["initial_state"].shape)


@functools.partial(jax.jit, static_argnames=("implementation", "chunk_size"))
def evaluate(args, segment_ids, cotangents, implementation="pallas_gpu", chunk_size=CHUNK):
    """y, the final state, and the gradient of every input."""

    def scalar(args):
        y, state = ssd(
            **args,
            segment_ids=segment_ids,
            implementation=implementation,
            chunk_size=chunk_size,
            interpret=implementation != "reference",
        )
        return jnp.sum(y * cotangents[0]) + jnp.sum(state * cotangents[1]), (y, state)

    gradients, (y, state) = jax.grad(scalar, has_aux=True)(args)
    return {"y": y, "final_state": state} | {f"d_{name}": gradient for name, gradient in gradients.items()}


def single(arrays):
    return jax.tree.map(np.float32, arrays)


def half(args):
    """x, B and C in bfloat16, the rest in float32; and the same values in float64."""
    rounded = {n: jnp.asarray(a, jnp.bfloat16 if n in ("x", "B", "C") else jnp.float32) for n, a in args.items()}
    return rounded, jax.tree.map(lambda a: np.asarray(a, np.float64), rounded)


def assert_equal_to_reference(actual, args, segment_ids, cotangents, tolerance):
    with jax.enable_x64(True):
        expected = evaluate(args, segment_ids, cotangents, "reference")
    real = True if segment_ids is None else (segment_ids != 0)[..., None, None]
    for name, value in expected.items():
        value, got = np.asarray(value), np.asarray(actual[name], np.float64)
        assert np.isfinite(got).all(), name
        if name == "y":
            value, got = value * real, got * real
        assert np.linalg.norm(got - value) <= tolerance * np.linalg.norm(value), name


def segments_from(layout, t=T):
    """Pieces of (0 for padding or 1.. for a new document, length) as segment ids of one row."""
    ids, document = [], 0
    for kind, length in layout:
        document += kind > 0
        # Kind 3 returns to an earlier id: still a document of its own.
        ids += [(1 if kind == 3 else document) if kind else 0] * length
    return np.array((ids + [0] * t)[:t], np.int32)


rows = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 20)), min_size=1, max_size=8)


@settings(max_examples=12)
@given(st.tuples(rows, rows), st.sampled_from([1, 2]), st.booleans())
def test_values_and_gradients_agree_with_the_reference(layouts, groups, from_zero):
    rng = np.random.default_rng(0)
    segment_ids = np.stack([segments_from(layout) for layout in layouts])
    args = arguments(rng, groups)
    args["initial_state"] *= not from_zero
    cotangents = cotangents_for(rng, args, segment_ids)
    actual = evaluate(single(args), segment_ids, single(cotangents))
    assert_equal_to_reference(actual, args, segment_ids, cotangents, 1e-5)


@settings(max_examples=4)
@given(st.tuples(rows, rows))
def test_bfloat16_agrees_with_the_reference(layouts):
    rng = np.random.default_rng(1)
    segment_ids = np.stack([segments_from(layout) for layout in layouts])
    rounded, args = half(arguments(rng))
    cotangents = cotangents_for(rng, args, segment_ids)
    actual = evaluate(rounded, segment_ids, single(cotangents))
    assert {n: a.dtype for n, a in actual.items() if a.dtype != jnp.float32} == dict.fromkeys(
        ("y", "d_x", "d_B", "d_C"), jnp.bfloat16
    )
    assert_equal_to_reference(actual, args, segment_ids, cotangents, 2e-2)


@pytest.mark.parametrize(("t", "chunk_size"), [(1, None), (T, None), (16, 1)])
def test_lengths_and_chunk_sizes_without_segments(rng, t, chunk_size):
    args = arguments(rng, t=t)
    cotangents = cotangents_for(rng, args, np.ones((B, t)))
    actual = evaluate(single(args), None, single(cotangents), chunk_size=chunk_size)
    assert_equal_to_reference(actual, args, None, cotangents, 1e-5)


def test_nothing_crosses_a_segment_boundary(rng):
    args = single(arguments(rng))
    segment_ids = np.tile(segments_from([(1, 9), (1, 1), (0, 2), (1, 25)]), (B, 1))
    no_state = np.zeros_like(args["initial_state"])
    for document in (1, 2, 3):
        inside = segment_ids == document
        weights = np.broadcast_to(inside[..., None, None].astype(np.float32), args["x"].shape)
        gradients = evaluate(args, segment_ids, (weights, no_state))
        for name in TIMED:
            gradient = np.asarray(gradients[f"d_{name}"])
            assert np.abs(gradient[inside]).max() > 0, name
            assert np.abs(gradient[~inside]).max() == 0, name
        assert (np.abs(gradients["d_initial_state"]).max() == 0) == (document > 1)


@pytest.mark.parametrize(("dt", "decay"), [(1e-6, 1e-3), (1e-6, 64.0), (20.0, 1e-3), (20.0, 64.0)])
def test_extreme_steps_and_decays_stay_finite_and_right(rng, dt, decay):
    args = arguments(rng)
    args["dt"] = np.full_like(args["dt"], dt)
    args["A"] = np.full_like(args["A"], -decay)
    # Documents of one token, a long one that decays fast before a short one in a chunk, and a row of padding.
    segment_ids = np.stack([segments_from([(1, 1), (1, 1), (1, 9), (1, 2), (1, 18)]), np.zeros(T, np.int32)])
    cotangents = cotangents_for(rng, args, segment_ids)
    actual = evaluate(single(args), segment_ids, single(cotangents))
    assert_equal_to_reference(actual, args, segment_ids, cotangents, 1e-5)


def test_float64_is_refused(rng):
    with jax.enable_x64(True), pytest.raises(ValueError, match="computes in float32, the inputs are float64"):
        ssd(**arguments(rng), implementation="pallas_gpu", interpret=True)


def hopper():
    """Where jax lowers for a GPU by what it is told of it, tell it; before 0.11 it takes Hopper for granted."""
    if jax.__version_info__ < (0, 11):
        return contextlib.nullcontext()
    device = jax.sharding.AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=132, platform="cuda")
    auto = (jax.sharding.AxisType.Auto,)
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((1,), ("x",), auto, abstract_device=device))


@pytest.mark.parametrize(
    ("dtype", "t", "h", "p", "g", "n"),
    [(jnp.bfloat16, 2048, 64, 128, 1, 64), (jnp.float32, 37, 4, 8, 2, 16)],
    ids=["8B", "tiny"],
)
def test_kernels_lower_for_cuda(dtype, t, h, p, g, n):
    """In particular every primitive in them is one that Triton has, and no decay matrix a head is an array of the program."""
    shapes = {"x": (1, t, h, p), "dt": (1, t, h), "A": (h,), "B": (1, t, g, n), "C": (1, t, g, n), "D": (h,)}
    args = [jax.ShapeDtypeStruct(s, dtype if n in ("x", "B", "C") else jnp.float32) for n, s in shapes.items()]
    state = jax.ShapeDtypeStruct((1, h, p, n), jnp.float32)
    ordinals = jax.ShapeDtypeStruct((1, t), jnp.int32)

    def forward(*args):
        return ssd_pallas_gpu(*args[:6], args[7], args[6])

    def gradient(*args):
        out, pull = jax.vjp(lambda *wanted: forward(*wanted, args[7]), *args[:7])
        return pull(out)

    for function, kernels in (
        (forward, ["ssd_carry", "ssd_outputs"]),
        (gradient, ["ssd_carry", "ssd_carry", "ssd_gradients", "ssd_outputs"]),
    ):
        with hopper():
            lowered = jax.jit(function).trace(*args, state, ordinals).lower(lowering_platforms=("cuda",))
        text = lowered.as_text()
        assert sorted(re.findall(r'name = "(ssd_\w+)"', text)) == kernels
        arrays = [[int(size) for size in shape.split("x")] for shape in re.findall(r"tensor<([\dx]+)x[a-z]+\d+>", text)]
        for *batch, rows, columns in (shape for shape in arrays if len(shape) > 1):
            chunk = 64 if dtype == jnp.bfloat16 else 32
            assert (rows, columns) != (chunk, chunk) or math.prod(batch) <= math.ceil(t / chunk)
