"""Inputs for the Pallas scans, and the reference in float64 to hold their values and gradients to."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from plamo2_kernels.ssd import ssd


class Size(NamedTuple):
    """Of one test's inputs."""

    t: int
    h: int
    p: int
    n: int
    chunk: int
    b: int = 2


SIZES = {
    # Nothing here is a size that Triton likes: tokens pad to three chunks of 16, p to two slices of 16 channels, n to 16. With two groups,
    # the 9 heads of each are cut into three blocks.
    "pallas_gpu": Size(t=37, h=18, p=24, n=12, chunk=16),
    # Two chunks, the second ragged; p and n fill no register.
    "pallas_tpu": Size(t=150, h=4, p=24, n=12, chunk=128),
}
TIMED = ("x", "dt", "B", "C")


def arguments(rng, size, groups=2):
    """Of `ssd`, in float64."""
    b, t, h, p, n = size.b, size.t, size.h, size.p, size.n
    return {
        "x": rng.normal(size=(b, t, h, p)),
        "dt": np.exp(rng.uniform(np.log(1e-3), np.log(0.5), size=(b, t, h))),
        "A": -rng.uniform(0.5, 8, size=h),
        "B": rng.normal(size=(b, t, groups, n)),
        "C": rng.normal(size=(b, t, groups, n)),
        "D": rng.normal(size=h),
        "initial_state": rng.normal(size=(b, h, p, n)),
    }


def cotangents_for(rng, args, segment_ids):
    """y at padding carries no meaning, so nothing may depend on it."""
    real = (segment_ids != 0)[..., None, None]
    return rng.normal(size=args["x"].shape) * real, rng.normal(size=args["initial_state"].shape)


@functools.partial(jax.jit, static_argnames=("implementation", "chunk_size", "interpret"))
def evaluate(args, segment_ids, cotangents, implementation, chunk_size=None, interpret=True):
    """y, the final state, and the gradient of every input."""

    def scalar(args):
        y, state = ssd(
            **args,
            segment_ids=segment_ids,
            implementation=implementation,
            chunk_size=chunk_size,
            interpret=interpret if implementation.startswith("pallas") else False,
        )
        return jnp.sum(y * cotangents[0]) + jnp.sum(state * cotangents[1]), (y, state)

    gradients, (y, state) = jax.grad(scalar, has_aux=True)(args)
    return {"y": y, "final_state": state} | {f"d_{name}": gradient for name, gradient in gradients.items()}


def single(arrays):
    """In float32."""
    return jax.tree.map(np.float32, arrays)


def half(args):
    """x, B and C in bfloat16, the rest in float32; and the same values in float64."""
    rounded = {n: jnp.asarray(a, jnp.bfloat16 if n in ("x", "B", "C") else jnp.float32) for n, a in args.items()}
    return rounded, jax.tree.map(lambda a: np.asarray(a, np.float64), rounded)


def assert_equal_to_reference(actual, args, segment_ids, cotangents, tolerance):
    """Relative L2 of the values at tokens that are not padding, and of every gradient, against the recurrence in float64."""
    with jax.enable_x64(True):
        expected = evaluate(args, segment_ids, cotangents, "reference")
    real = True if segment_ids is None else (segment_ids != 0)[..., None, None]
    for name, value in expected.items():
        value, got = np.asarray(value), np.asarray(actual[name], np.float64)
        assert np.isfinite(got).all(), name
        if name == "y":
            value, got = value * real, got * real
        assert np.linalg.norm(got - value) <= tolerance * np.linalg.norm(value), name


def segments_from(layout, t):
    """Pieces of (0 for padding or 1.. for a new document, length) as segment ids of one row."""
    ids, document = [], 0
    for kind, length in layout:
        document += kind > 0
        # Kind 3 returns to an earlier id: still a document of its own.
        ids += [(1 if kind == 3 else document) if kind else 0] * length
    return np.array((ids + [0] * t)[:t], np.int32)


def rows(size):
    """Layouts for `segments_from`: up to eight pieces, of a token or up to more than a chunk."""
    return st.lists(st.tuples(st.integers(0, 3), st.integers(1, size.chunk + 10)), min_size=1, max_size=8)
