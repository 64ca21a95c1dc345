"""Merge methods: functions from one tensor of each model to the merged tensor.

To save memory, methods overwrite their arguments, and the result is one of them. Methods that depend only on lengths and angles use the
float64 Gram matrix of the tensors. It is computed in blocks, and so is elementwise work. Besides its arguments, a method allocates at
most one array of the tensor's size (for the thresholds of TIES and breadcrumbs).

linear           weighted mean (model soups, arXiv:2203.05482)
slerp            spherical interpolation of two models
karcher          Fréchet/Karcher mean of the directions of any number of models, times their mean length
task_arithmetic  base + scale * weighted sum of differences (arXiv:2212.04089)
ties             task_arithmetic of the largest differences that have the elected sign (arXiv:2306.01708)
dare_linear      task_arithmetic of randomly dropped and rescaled differences (arXiv:2311.03099)
dare_ties        dare_linear of the differences that have the elected sign
della            dare_ties with a higher drop probability for small differences (arXiv:2406.11617)
breadcrumbs      task_arithmetic without the smallest and the very largest differences (arXiv:2312.06795)
model_stock      interpolation between base and mean; the better the models agree, the closer to the mean (arXiv:2403.19522)
nearswap         the base, moved towards one model by at most t per element
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np

Rescale = Literal["probability", "norm", "none"]
"""How kept differences are rescaled: by 1 / keep probability (as in the papers), by the ratio of the sums of magnitudes before and after
(as in mergekit 0.1), or not at all."""

_BLOCK = 1 << 18


def _blocks(size: int) -> Iterator[slice]:
    return (slice(start, min(start + _BLOCK, size)) for start in range(0, size, _BLOCK))


# -- Methods that are weighted sums, with coefficients from the weights and the Gram matrix


def gram(tensors: Sequence[np.ndarray], base: np.ndarray | None = None) -> np.ndarray:
    """Return the Gram matrix [m, m] float64 of m tensors, or of their differences from `base`."""
    flat = [tensor.reshape(-1) for tensor in tensors]
    total = np.zeros((len(flat), len(flat)))
    for block in _blocks(flat[0].size):
        rows = np.stack([tensor[block].astype(np.float64) for tensor in flat])
        if base is not None:
            rows -= base.reshape(-1)[block]
        total += rows @ rows.T
    return total


def combine(tensors: Sequence[np.ndarray], coefficients: Sequence[float]) -> np.ndarray:
    """Return the sum of coefficient * tensor, in the memory of the first tensor."""
    flat = [tensor.reshape(-1) for tensor in tensors]
    for block in _blocks(flat[0].size):
        total = flat[0][block].astype(np.float64) * coefficients[0]
        for tensor, coefficient in zip(flat[1:], coefficients[1:], strict=True):
            total += coefficient * tensor[block]
        flat[0][block] = total
    return tensors[0]


def linear(tensors: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    """Return the weighted sum, divided by the sum of the weights."""
    total = sum(weights)
    return combine(tensors, [weight / total for weight in weights])


def slerp(a: np.ndarray, b: np.ndarray, t: float) -> np.ndarray:
    """Interpolate from a (t = 0) to b (t = 1) along the great circle between their directions, or linearly if they are (anti)parallel."""
    products = gram([a, b])
    norms = np.sqrt(np.diag(products))
    norms = np.where(norms > 1e-8, norms, 1.0)
    cosine = float(np.clip(products[0, 1] / norms[0] / norms[1], -1, 1))
    if abs(cosine) > 0.9995:
        return combine([a, b], [1 - t, t])
    angle = np.arccos(cosine)
    coefficients = [float(np.sin((1 - t) * angle) / np.sin(angle)), float(np.sin(t * angle) / np.sin(angle))]
    return combine([a, b], coefficients)


def karcher(tensors: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    """Return the Karcher mean of the directions times the weighted mean of the lengths.

    The mean lies in the span of the tensors, so only their coefficients are iterated. Tensors of almost no length are ignored.

    Args:
        weights: [m], nonnegative, with positive sum.
    """
    products, tolerance = gram(tensors), 1e-9
    lengths = np.sqrt(np.diag(products))
    share = np.asarray(weights, np.float64) / sum(weights)
    valid = lengths > tolerance
    if not valid.any():
        return combine(tensors, [0.0] * len(lengths))
    norms = np.where(valid, lengths, 1.0)
    cosines = products / norms[:, None] / norms[None, :]
    alphas = np.where(valid, share, 0.0)
    alphas = alphas / alphas.sum() if alphas.sum() else valid / valid.sum()
    mean = alphas.copy()
    length = np.sqrt(max(mean @ cosines @ mean, 0.0))
    mean = mean / length if length > 1e-6 else np.eye(len(lengths))[int(np.argmax(valid))]
    for _ in range(100):
        cosine = np.clip(cosines @ mean, -1.0, 1.0)
        angles = np.arccos(cosine)
        # At angle 0 the logarithm map is the identity.
        ratio = alphas * np.where(angles > 1e-7, angles / np.maximum(np.sin(angles), 1e-12), 1.0)
        tangent = ratio - (ratio @ cosine) * mean
        step = np.sqrt(max(tangent @ cosines @ tangent, 0.0))
        if step < tolerance:
            break
        mean = np.cos(step) * mean + np.sin(step) / step * tangent
        mean = mean / np.sqrt(mean @ cosines @ mean)
    return combine(tensors, list(np.where(valid, (share @ lengths) * mean / norms, 0.0)))


def model_stock(base: np.ndarray, tensors: Sequence[np.ndarray]) -> np.ndarray:
    """Return base + ratio * (mean - base).

    The ratio is k cos / (1 + (k - 1) cos) for the mean cosine between the k differences, or 0 at the pole (differences that cancel).
    """
    products, k = gram(tensors, base), len(tensors)
    norms = np.sqrt(np.diag(products))
    pairs = itertools.combinations(range(k), 2)
    cosine = np.mean([np.clip(products[i, j] / max(norms[i] * norms[j], 1e-6), -1, 1) for i, j in pairs])
    pole = 1 + (k - 1) * cosine
    ratio = float(k * cosine / pole) if abs(pole) >= 1e-6 else 0.0
    return combine([base, *tensors], [1 - ratio, *[ratio / k] * k])


def nearswap(a: np.ndarray, b: np.ndarray, t: float) -> np.ndarray:
    """Return a, with each element moved towards b by at most t."""
    flat_a, flat_b = a.reshape(-1), b.reshape(-1)
    for block in _blocks(a.size):
        difference = flat_b[block] - flat_a[block]
        share = np.clip(t / np.maximum(np.abs(difference), 1e-6), 0, 1)
        flat_a[block] += share * difference
    return a


# -- Methods on differences from a base: sparsify, elect signs, add


def add_differences(
    base: np.ndarray,
    tensors: Sequence[np.ndarray],
    weights: Sequence[float],
    *,
    sparsify: Callable[[int, np.ndarray], Any] | None = None,
    elect: bool = False,
    normalize: bool = False,
    scale: float = 1.0,
) -> np.ndarray:
    """Return base + scale * merged differences, in the memory of `base`.

    Args:
        base: [...] float32.
        tensors: One float32 tensor of the same shape per model; overwritten by its difference from the base.
        weights: One weight per model.
        sparsify: Function of a model's index and its difference that sets elements of the difference to zero in place.
        elect: Add only differences with the sign of the weighted sum, element by element (TIES).
        normalize: Divide by the sum of the weights; with `elect`, by the sum of the weights of the added differences.
        scale: Factor of the merged differences, lambda in the papers.
    """
    origin, flat = base.reshape(-1), [tensor.reshape(-1) for tensor in tensors]
    for i, tensor in enumerate(tensors):
        for block in _blocks(origin.size):
            flat[i][block] -= origin[block]
        if sparsify is not None:
            sparsify(i, tensor)
    factors = np.asarray(weights, np.float32)[:, None]
    for block in _blocks(origin.size):
        weighted = np.stack([tensor[block] for tensor in flat]) * factors
        if elect:
            majority = np.where(weighted.sum(0) >= 0, 1, -1)
            counted = np.sign(weighted) == majority
            total, divisor = (weighted * counted).sum(0), (factors * counted).sum(0)
            divisor = np.where(divisor == 0, 1, divisor)
        else:
            total, divisor = weighted.sum(0), np.float32(sum(weights))
            divisor = divisor if abs(divisor) >= 1e-8 else np.float32(1)
        origin[block] += scale * (total / divisor if normalize else total)
    return base


def keep_largest(delta: np.ndarray, density: float) -> np.ndarray:
    """Keep the share `density` of the elements, at least one, with the largest magnitudes. Set the others to zero."""
    if density >= 1:
        return delta
    return _keep_ranks(delta, delta.size - max(1, int(density * delta.size)), delta.size)


def keep_middle(delta: np.ndarray, density: float, gamma: float) -> np.ndarray:
    """Set the share `gamma` of largest magnitude to zero, and then the smallest until the share `density` is left."""
    if density >= 1:
        return delta
    kept = int(density * delta.size)
    first = max(0, delta.size - kept - int(gamma * delta.size))
    return _keep_ranks(delta, first, first + kept)


def drop_random(delta: np.ndarray, density: float, rng: np.random.Generator, rescale: Rescale) -> np.ndarray:
    """Keep each element with probability `density`."""
    if density >= 1:
        return delta
    flat, before, after = delta.reshape(-1), 0.0, 0.0
    for block in _blocks(flat.size):
        before += float(np.abs(flat[block]).sum(dtype=np.float64))
        flat[block] *= rng.random(flat[block].size, np.float32) < density
        after += float(np.abs(flat[block]).sum(dtype=np.float64))
        if rescale == "probability":
            flat[block] /= density
    if rescale == "norm" and min(before, after) >= 1e-7:
        flat *= np.float32(before / after)
    return delta


def drop_by_rank(
    delta: np.ndarray, density: float, epsilon: float, rng: np.random.Generator, rescale: Rescale
) -> np.ndarray:
    """Keep each element with a probability from density - epsilon to density + epsilon that rises with its rank by magnitude in its row.

    A row holds the elements of one index of the first axis; a vector is one row.
    """
    if density >= 1:
        return delta
    rows = delta.reshape(1 if delta.ndim < 2 else len(delta), -1)
    before = after = 0.0
    for row in rows:
        rank = np.empty(row.size, np.float32)
        rank[np.argsort(np.abs(row), kind="stable")] = np.linspace(-1, 1, row.size) if row.size > 1 else 0
        probability = density + epsilon * rank
        before += float(np.abs(row).sum(dtype=np.float64))
        row *= rng.random(row.size, np.float32) < probability
        after += float(np.abs(row).sum(dtype=np.float64))
        if rescale == "probability":
            row /= probability
    if rescale == "norm" and min(before, after) >= 1e-7:
        rows *= before / after
    return delta


def _keep_ranks(delta: np.ndarray, first: int, last: int) -> np.ndarray:
    """Keep the elements whose ascending rank by magnitude lies in [first, last); of equal elements, the earlier has the lower rank."""
    flat = delta.reshape(-1)
    if last <= first:
        flat[...] = 0
        return delta
    magnitudes = np.abs(flat)
    magnitudes.partition([first, last - 1])
    low, high = magnitudes[first], magnitudes[last - 1]
    # Ranks of the first elements equal to each threshold.
    low_rank = int(np.count_nonzero(magnitudes[:first] < low))
    high_rank = int(np.count_nonzero(magnitudes[:last] < high))
    del magnitudes
    for block in _blocks(flat.size):
        size = np.abs(flat[block])
        at_low, at_high = size == low, size == high
        keep = (size > low) & (size < high)
        low_ranks = low_rank + np.cumsum(at_low) - 1
        high_ranks = high_rank + np.cumsum(at_high) - 1
        keep |= at_low & (low_ranks >= first) & (low_ranks < last)
        keep |= at_high & (high_ranks >= first) & (high_ranks < last)
        low_rank += int(np.count_nonzero(at_low))
        high_rank += int(np.count_nonzero(at_high))
        flat[block] *= keep
    return delta
