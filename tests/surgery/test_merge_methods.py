"""The arithmetic of merging, against results worked out by hand."""

import numpy as np
import pytest

from plamo2_jax.surgery.merge import methods
from plamo2_jax.surgery.merge.config import MergeConfig
from plamo2_jax.surgery.merge.merge import merge_tensor


def f32(*values):
    return np.array(values, np.float32)


def test_linear_divides_by_the_sum_of_weights():
    np.testing.assert_allclose(methods.linear([f32(1, 2), f32(3, 6)], [1, 3]), [2.5, 5])


def test_slerp_halfway_between_orthogonal_vectors_keeps_their_length():
    half = methods.slerp(f32(2, 0), f32(0, 2), 0.5)
    np.testing.assert_allclose(half, [2**0.5, 2**0.5], rtol=1e-6)
    # A third of 90 degrees is 30.
    np.testing.assert_allclose(methods.slerp(f32(1, 0), f32(0, 1), 1 / 3), [3**0.5 / 2, 0.5], rtol=1e-6)


def test_slerp_takes_the_line_between_parallel_vectors():
    np.testing.assert_allclose(methods.slerp(f32(1, 1), f32(3, 3), 0.25), [1.5, 1.5], rtol=1e-6)
    np.testing.assert_allclose(methods.slerp(f32(0, 0), f32(3, 3), 0.5), [1.5 * 2**0.5] * 2, rtol=1e-6)


def test_karcher_of_two_is_slerp_with_the_mean_length():
    merged = methods.karcher([f32(1, 0), f32(0, 3)], [1, 1])
    np.testing.assert_allclose(merged, [2**0.5, 2**0.5], rtol=1e-6)
    # Weighted: a quarter of 90 degrees, length 0.75 + 0.25 * 3.
    merged = methods.karcher([f32(1, 0), f32(0, 3)], [3, 1])
    np.testing.assert_allclose(merged, 1.5 * np.array([np.cos(np.pi / 8), np.sin(np.pi / 8)]), rtol=1e-6)


def test_karcher_is_where_the_logarithms_cancel(rng):
    tensors = [rng.normal(size=20).astype(np.float32) + 1 for _ in range(4)]
    units = np.stack([tensor / np.linalg.norm(tensor) for tensor in tensors]).astype(np.float64)
    length = np.mean([np.linalg.norm(tensor) for tensor in tensors])
    merged = methods.karcher(tensors, [1] * 4).astype(np.float64)
    assert np.linalg.norm(merged) == pytest.approx(length, rel=1e-6)
    mean = merged / np.linalg.norm(merged)
    cosine = units @ mean
    logarithms = (np.arccos(cosine) / np.sqrt(1 - cosine**2))[:, None] * (units - cosine[:, None] * mean)
    np.testing.assert_allclose(logarithms.sum(0), 0, atol=1e-6)


def test_task_arithmetic_adds_scaled_differences():
    merged = methods.add_differences(f32(1, 1), [f32(2, 1), f32(1, 3)], [1.0, 0.5], scale=2.0)
    np.testing.assert_allclose(merged, [3, 3])


def test_ties_by_hand():
    """Trim to the larger half, elect by the sum, average what agrees."""
    base = f32(0, 0, 0, 0)
    config = MergeConfig("ties", density=0.5)
    # Trimmed: [4, 0, 0, -3] and [-1, 0, 0, -5]: signs +, +, +, -; means 4, 0, 0, -4.
    merged = merge_tensor(config, "x", [1, 1], [f32(4, 1, 0.5, -3), f32(-1, 0.2, 0.1, -5)], base)
    np.testing.assert_allclose(merged, [4, 0, 0, -4])
    # Weights 1 and 5: 3 - 5 * 2 < 0 elects the second's sign; where both agree the mean is weighted.
    merged = merge_tensor(config, "x", [1, 5], [f32(4, 1, 0.5, -3), f32(-1, 0.2, 0.1, -5)], f32(1, 0, 0, 0))
    np.testing.assert_allclose(merged, [1 - 2, 0, 0, (-3 - 25) / 6], rtol=1e-6)


def test_equal_magnitudes_are_cut_to_the_very_number():
    assert np.count_nonzero(methods.keep_largest(np.ones(1000, np.float32), 0.3)) == 300
    assert np.count_nonzero(methods.keep_middle(np.ones(1000, np.float32), 0.3, 0.1)) == 300
    assert np.count_nonzero(methods.keep_largest(np.ones((3, 1), np.float32), 0.1)) == 1


def test_breadcrumbs_leaves_out_both_ends():
    delta = f32(*range(1, 11))
    np.testing.assert_array_equal(methods.keep_middle(delta, 0.5, 0.2), [0, 0, 0, 4, 5, 6, 7, 8, 0, 0])


@pytest.mark.parametrize("rescale", ["probability", "norm", "none"])
def test_dare_keeps_what_it_says_and_makes_up_for_the_rest(rescale):
    delta = methods.drop_random(np.ones((500, 400), np.float32), 0.25, np.random.default_rng(0), rescale)
    kept = delta[delta != 0]
    assert kept.size / delta.size == pytest.approx(0.25, abs=0.005)
    if rescale == "none":
        assert np.all(kept == 1)
    else:
        assert delta.mean() == pytest.approx(1, abs=0.02 if rescale == "probability" else 1e-4)


def test_della_keeps_large_differences_rather():
    row = np.arange(1, 10001, dtype=np.float32)
    kept = methods.drop_by_rank(row.copy(), 0.5, 0.2, np.random.default_rng(0), "none") != 0
    assert kept[:1000].mean() == pytest.approx(0.32, abs=0.05)
    assert kept[-1000:].mean() == pytest.approx(0.68, abs=0.05)
    unbiased = methods.drop_by_rank(row.copy(), 0.5, 0.2, np.random.default_rng(0), "probability")
    assert unbiased.sum() == pytest.approx(row.sum(), rel=0.05)
    # A row of one element has no rank to go by.
    assert np.isfinite(
        methods.drop_by_rank(np.ones((4, 1), np.float32), 0.5, 0.2, np.random.default_rng(0), "none")
    ).all()


def test_model_stock_by_hand():
    # Differences at 60 degrees: ratio 2 * 0.5 / (1 + 0.5) = 2/3.
    a, b = f32(1, 0), f32(0.5, 3**0.5 / 2)
    np.testing.assert_allclose(methods.model_stock(f32(0, 0), [a, b]), 2 / 3 * f32(0.75, 3**0.5 / 4), rtol=1e-6)
    # Orthogonal ones say nothing to each other: the base is left.
    np.testing.assert_allclose(methods.model_stock(f32(1, 1), [f32(2, 1), f32(1, 2)]), [1, 1], atol=1e-6)


def test_nearswap_moves_by_at_most_t():
    np.testing.assert_allclose(methods.nearswap(f32(0, 0, 0), f32(1, -1, 0.01), 0.1), [0.1, -0.1, 0.01], rtol=1e-6)


def test_density_one_changes_nothing_and_seeds_decide(rng):
    base, model = rng.normal(size=(2, 30, 40)).astype(np.float32)

    def merged(**fields):
        return merge_tensor(MergeConfig(**fields), "x", [1.0], [model.copy()], base.copy())

    for method in ("ties", "dare_ties", "dare_linear", "della", "breadcrumbs", "task_arithmetic"):
        np.testing.assert_allclose(merged(method=method, density=1.0), model, rtol=1e-5, atol=1e-6)
    first = merged(method="dare_linear", seed=1)
    np.testing.assert_array_equal(first, merged(method="dare_linear", seed=1))
    assert np.any(first != merged(method="dare_linear", seed=2))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "linear", "scale": 0.5}, "--lambda is not allowed with linear"),
        ({"method": "linear", "normalize": False}, "--normalize is not allowed with linear"),
        ({"method": "task_arithmetic", "density": 0.5}, "--density is not allowed with task_arithmetic"),
        ({"method": "ties", "t": 0.1}, "--t is not allowed with ties"),
        ({"method": "model_stock", "weights": (1.0, 2.0)}, "--weight is not allowed with model_stock"),
    ],
)
def test_an_option_that_the_method_does_not_use_is_refused(fields, message):
    config = MergeConfig(**fields)
    with pytest.raises(ValueError, match=message):
        config.check(2, base=config.method != "linear")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "mean"}, "must be one of linear"),
        ({"method": "ties", "density": 0.0}, r"density=0.0 .* in \(0, 1\]"),
        ({"method": "della", "density": 0.1, "epsilon": 0.2}, "epsilon=0.2"),
        ({"method": "linear", "weights_for": (("(", (1.0,)),)}, "not a regular expression"),
        ({"method": "linear", "weights": (float("nan"),)}, "finite"),
    ],
)
def test_a_setting_out_of_range_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        MergeConfig(**fields)
