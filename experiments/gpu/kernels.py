"""Are the kernels right on this GPU? Values and gradients of scan, convolution and attention against float64.

    python experiments/gpu/kernels.py --output kernels.json

The expected values are computed in float64 on the CPU: the scan as a recurrence over tokens, the convolution as a sum over taps,
attention as a dense softmax. Inputs are rounded to the dtype of the kernel first. Rows have several documents, and padding at the end.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from part import Record, command, jax_device, parse

from plamo2_kernels.attention import attention
from plamo2_kernels.conv1d import causal_conv1d
from plamo2_kernels.errors import ImplementationError
from plamo2_kernels.ssd import ssd

# Largest allowed relative L2 error. TF32 products, which must not occur for float32, have an error of about 3e-4.
BOUNDS = {"float32": 5e-5, "bfloat16": 2e-2}
# Rows, tokens, heads, features, state.
SCANS = {"1B": (1, 512, 32, 128, 64), "8B": (1, 512, 64, 128, 64), "demo": (2, 512, 8, 64, 64)}
# Rows, tokens, query heads, key heads, features, window.
ATTENTIONS = {"1B": (1, 1024, 16, 1, 128, 512), "8B": (1, 1024, 32, 4, 128, 512)}
# Rows, tokens, channels, taps.
CONVOLUTIONS = {"8B": (1, 1024, 64 * 128, 4)}
TINY = ({"tiny": (1, 40, 4, 16, 16)}, {"tiny": (1, 40, 4, 2, 8, 6)}, {"tiny": (1, 40, 8, 4)})

Arrays = dict[str, np.ndarray]


def segments(b: int, t: int) -> np.ndarray:
    """Return documents that end inside chunks, and padding: [b, t] i32."""
    ids = np.zeros((b, t), np.int32)
    ends = [0, t // 5, t // 2 + 3, t - t // 16]
    for document, (start, end) in enumerate(itertools.pairwise(ends), 1):
        ids[:, start:end] = document
    return ids


def scan_case(size: Sequence[int], rng: np.random.Generator) -> tuple[Arrays, tuple[str, ...]]:
    """Return the inputs of a scan in float64, and the names of those that the kernel gets in its dtype."""
    b, t, h, p, n = size
    arrays = {
        "x": rng.normal(size=(b, t, h, p)),
        "dt": np.exp(rng.uniform(np.log(1e-3), np.log(1e-1), size=(b, t, h))),
        "A": -np.arange(1.0, h + 1),
        "B": rng.normal(size=(b, t, 1, n)),
        "C": rng.normal(size=(b, t, 1, n)),
        "D": np.ones(h),
    }
    return arrays, ("x", "B", "C")


def dense_attention(q, k, v, segment_ids, window):
    """Return attention as one softmax over all pairs of tokens."""
    t, groups = q.shape[1], q.shape[2] // k.shape[2]
    k, v = (jnp.repeat(each, groups, axis=2) for each in (k, v))
    distance = jnp.arange(t)[:, None] - jnp.arange(t)
    seen = (distance >= 0) & (distance <= window) & (segment_ids[:, :, None] == segment_ids[:, None, :])
    scores = jnp.einsum("bihp,bjhp->bhij", q, k) * q.shape[-1] ** -0.5
    weights = jax.nn.softmax(jnp.where(seen[:, None], scores, -jnp.inf), axis=-1)
    return jnp.einsum("bhij,bjhp->bihp", weights, v)


def sum_of_taps(x, weight, segment_ids):
    """Return silu of the causal convolution, as a sum over taps."""
    taps, t = weight.shape[-1], x.shape[1]
    total = jnp.zeros_like(x)
    for back in range(taps):
        shifted = jnp.pad(x, ((0, 0), (back, 0), (0, 0)))[:, :t]
        same = jnp.pad(segment_ids, ((0, 0), (back, 0)), constant_values=-1)[:, :t] == segment_ids
        total += jnp.where(same[..., None], shifted, 0) * weight[:, taps - 1 - back]
    return jax.nn.silu(total)


Case = tuple[str, str, str, Arrays, tuple[str, ...], np.ndarray, Callable, dict[str, Callable]]
"""Kernel, shape, dtype, inputs, names of the inputs in that dtype, segments, reference, and implementations by name."""


def cases(dry_run: bool) -> Iterator[Case]:
    """Yield what to check. The important ones come first."""
    scans, attentions, convolutions = TINY if dry_run else (SCANS, ATTENTIONS, CONVOLUTIONS)
    rng = np.random.default_rng(0)
    for name, size in scans.items():
        arrays, rounded = scan_case(size, rng)
        ids = segments(*size[:2])

        def scan(implementation, arrays, ids=ids):
            interpret = dry_run and implementation == "pallas_gpu"
            return ssd(**arrays, segment_ids=ids, implementation=implementation, interpret=interpret)[0]

        implementations = {each: functools.partial(scan, each) for each in ("xla", "pallas_gpu")}
        for dtype in ("bfloat16",) if name == "8B" else ("bfloat16", "float32"):
            yield "scan", name, dtype, arrays, rounded, ids, functools.partial(scan, "reference"), implementations
    for name, (b, t, h, g, p, window) in attentions.items():
        arrays = {each: rng.normal(size=(b, t, heads, p)) for each, heads in (("q", h), ("k", g), ("v", g))}
        ids = segments(b, t)

        def attend(implementation, arrays, ids=ids, window=window):
            return attention(**arrays, segment_ids=ids, window=window, implementation=implementation)

        def dense(arrays, ids=ids, window=window):
            return dense_attention(**arrays, segment_ids=ids, window=window)

        for dtype, names in (("bfloat16", ("xla", "cudnn")), ("float32", ("xla",))):
            implementations = {each: functools.partial(attend, each) for each in names}
            yield "attention", name, dtype, arrays, tuple(arrays), ids, dense, implementations
    for name, (b, t, channels, taps) in convolutions.items():
        arrays = {"x": rng.normal(size=(b, t, channels)), "weight": rng.uniform(-0.5, 0.5, size=(channels, taps))}
        ids = segments(b, t)

        def convolve(arrays, ids=ids):
            return causal_conv1d(**arrays, segment_ids=ids, activation="silu")[0]

        def by_taps(arrays, ids=ids):
            return sum_of_taps(**arrays, segment_ids=ids)

        for dtype in ("bfloat16", "float32"):
            yield "convolution", name, dtype, arrays, ("x",), ids, by_taps, {"xla": convolve}


def evaluate(function: Callable, arrays: dict, dy: jax.Array) -> dict[str, jax.Array]:
    """Return y and the gradient of every input."""

    def both(arrays, dy):
        y, pull = jax.vjp(function, arrays)
        return y, pull(dy.astype(y.dtype))[0]

    y, gradients = jax.jit(both)(arrays, dy)
    return {"y": y, **{f"d_{name}": each for name, each in gradients.items()}}


def error(actual: jax.Array, expected: np.ndarray) -> float:
    """Return the relative error in L2."""
    actual = np.asarray(actual, np.float64)
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def main(argv: Sequence[str] | None = None) -> int:
    """Check all cases. Return 1 if an error is above its bound, or a kernel failed."""
    options = parse(__doc__, argv)
    device = jax_device(options.dry_run)
    record = Record(options.output, command(__file__, options), options.dry_run, device.device_kind)
    failed = False
    for kernel, shape, dtype, arrays, rounded, ids, reference, implementations in cases(options.dry_run):
        given = {k: jnp.asarray(a, dtype if k in rounded else jnp.float32) for k, a in arrays.items()}
        real = (ids != 0).reshape(*ids.shape, *[1] * (next(iter(arrays.values())).ndim - 2))
        # y has no meaning at padding, so nothing may depend on it there.
        dy = np.asarray(jnp.asarray(np.random.default_rng(1).normal(size=next(iter(arrays.values())).shape), dtype))
        dy = np.asarray(dy, np.float64) * real
        with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
            exact = {k: jnp.asarray(np.asarray(a, np.float64)) for k, a in given.items()}
            expected = {k: np.asarray(a) for k, a in evaluate(reference, exact, jnp.asarray(dy)).items()}
        for name, function in implementations.items():
            figure = {"kernel": kernel, "shape": shape, "dtype": dtype, "implementation": name, "bound": BOUNDS[dtype]}
            try:
                found = evaluate(function, given, jnp.asarray(dy, jnp.float32))
                found["y"] = found["y"] * real
                errors = {
                    k: float(f"{error(each, expected[k] * (real if k == 'y' else 1)):.2e}") for k, each in found.items()
                }
                # NaN is not within any bound.
                passed = all(each <= BOUNDS[dtype] for each in errors.values())
                record.add(**figure, passed=passed, errors=errors)
            except ImplementationError as reason:
                record.add(**figure, passed=None, reason=str(reason))
                continue
            except Exception as reason:  # A kernel that does not compile must not hide the others.
                passed = False
                record.add(**figure, passed=False, reason=f"{type(reason).__name__}: {str(reason)[:400]}")
            failed |= not passed
    record.finish()
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
