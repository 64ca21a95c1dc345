"""mergekit's own functions on the same tensors. It needs torch: `make peers` installs both."""

import functools

import numpy as np
import pytest

from plamo2_jax.surgery.merge import methods
from plamo2_jax.surgery.merge.config import MergeConfig
from plamo2_jax.surgery.merge.merge import merge_tensor

pytestmark = pytest.mark.peer

SHAPE = (40, 56)


@pytest.fixture
def tensors():
    """A base and three models near it."""
    rng = np.random.default_rng(0)
    base = rng.normal(size=SHAPE).astype(np.float32)
    return [base, *(base + 0.3 * rng.normal(size=SHAPE).astype(np.float32) for _ in range(3))]


@pytest.fixture
def torch_and_kit():
    torch = pytest.importorskip("torch", reason="torch is not installed (make peers installs it)")
    pytest.importorskip("mergekit", reason="mergekit is not installed (make peers installs it)")
    return torch


def ours(tensors, weights, **fields):
    base, *models = (tensor.copy() for tensor in tensors)
    return merge_tensor(MergeConfig(**fields), "x", weights, models, base)


def theirs(torch, monkeypatch, tensors, weights, *, method, masks=None, **parameters):
    """The sparsification, consensus and sum of mergekit's task arithmetic, with its functions."""
    from mergekit import sparsify
    from mergekit.merge_methods.generalized_task_arithmetic import get_mask

    if masks is not None:
        kept = iter(masks)
        monkeypatch.setattr(torch, "bernoulli", lambda probability: torch.as_tensor(next(kept)).to(probability.dtype))
    base, *models = map(torch.as_tensor, tensors)
    kinds = {"ties": "magnitude", "breadcrumbs": "magnitude_outliers", "dare_ties": "random", "dare_linear": "random"}
    deltas = []
    for model in models:
        delta = model - base
        if method != "task_arithmetic":
            kind = sparsify.SparsificationMethod(kinds.get(method, "della_magprune"))
            norm = sparsify.RescaleNorm.l1 if masks is not None else None
            delta = sparsify.sparsify(delta, method=kind, rescale_norm=norm, **parameters)
        deltas.append(delta)
    factors = torch.tensor(weights)[:, None, None]
    deltas = torch.stack(deltas) * factors
    if method in ("ties", "dare_ties", "della"):
        mask = get_mask(deltas, method="sum", mask_dtype=base.dtype)
        merged, divisor = (deltas * mask).sum(0), (factors * mask).sum(0)
        divisor[divisor == 0] = 1
        merged = merged / divisor if method in ("ties", "della") else merged
    else:
        merged = deltas.sum(0)
    return (base + merged).numpy()


@pytest.mark.parametrize(
    ("method", "parameters"),
    [("task_arithmetic", {}), ("ties", {"density": 0.3}), ("breadcrumbs", {"density": 0.8, "gamma": 0.05})],
)
def test_differences_that_are_not_random(torch_and_kit, monkeypatch, tensors, method, parameters):
    weights = [1.0, 0.5, 0.7]
    expected = theirs(torch_and_kit, monkeypatch, tensors, weights, method=method, **({"density": 1.0} | parameters))
    np.testing.assert_allclose(ours(tensors, weights, method=method, **parameters), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "della"])
def test_random_differences_with_the_same_draws(torch_and_kit, monkeypatch, tensors, method):
    """What we keep is what mergekit is told to keep; its rescaling to the sum of magnitudes is our rescale="norm"."""
    weights, masks = [1.0, 0.5, 0.7], []
    name = "drop_by_rank" if method == "della" else "drop_random"
    original = getattr(methods, name)

    def spy(delta, *arguments):
        thinned = original(delta, *arguments)
        masks.append((thinned != 0).astype(np.float32))
        return thinned

    monkeypatch.setattr(methods, name, spy)
    merged = ours(tensors, weights, method=method, density=0.4, rescale="norm")
    parameters = {"density": 0.4} | ({"epsilon": 0.15} if method == "della" else {})
    expected = theirs(torch_and_kit, monkeypatch, tensors, weights, method=method, masks=masks, **parameters)
    np.testing.assert_allclose(merged, expected, rtol=1e-5, atol=1e-5)


def test_the_probabilities_of_della_are_mergekits(torch_and_kit, monkeypatch, tensors):
    """Kept where probability is above a common threshold: a draw that is the same for all elements."""
    from mergekit import sparsify

    torch = torch_and_kit

    class Constant:
        def random(self, size, dtype):
            return np.full(size, 0.43, dtype)

    monkeypatch.setattr(torch, "bernoulli", lambda probability: (probability > 0.43).to(probability.dtype))
    delta = tensors[1] - tensors[0]
    expected = sparsify.della_magprune(torch.as_tensor(delta), 0.4, 0.15).numpy()
    np.testing.assert_array_equal(methods.drop_by_rank(delta.copy(), 0.4, 0.15, Constant(), "none"), expected)


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_slerp(torch_and_kit, tensors, t):
    from mergekit.merge_methods.slerp import slerp

    torch = torch_and_kit
    a, b = (torch.as_tensor(tensor)[None] for tensor in tensors[:2])
    expected = slerp(torch.tensor([t]), a, b)[0].numpy()
    np.testing.assert_allclose(methods.slerp(tensors[0].copy(), tensors[1].copy(), t), expected, rtol=1e-4, atol=1e-5)


def test_karcher(torch_and_kit, tensors):
    from mergekit.merge_methods.karcher import karcher_merge_tensors

    expected = karcher_merge_tensors([torch_and_kit.as_tensor(t) for t in tensors], [0.25] * 4).numpy()
    np.testing.assert_allclose(methods.karcher([t.copy() for t in tensors], [1] * 4), expected, rtol=1e-4, atol=1e-4)


class Entry:
    def __init__(self, tensor):
        self.tensor = tensor


class Group:
    def __init__(self, torch, base, models):
        self.base = Entry(torch.as_tensor(base.copy()))
        self.non_base = [Entry(torch.as_tensor(model.copy())) for model in models]


def test_model_stock_and_nearswap(torch_and_kit, tensors):
    from mergekit.merge_methods import model_stock, nearswap

    base, *models = tensors
    expected = model_stock.model_stock_merge_method.merge_group(Group(torch_and_kit, base, models)).numpy()
    actual = methods.model_stock(base.copy(), [model.copy() for model in models])
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
    expected = nearswap.nearswap_merge.merge_group(Group(torch_and_kit, base, models[:1]), t=0.05).numpy()
    np.testing.assert_allclose(methods.nearswap(base.copy(), models[0].copy(), 0.05), expected, rtol=1e-5, atol=1e-6)


def test_linear(torch_and_kit, tensors):
    expected = functools.reduce(np.add, (w * t for w, t in zip((1, 2, 3, 4), tensors, strict=True))) / 10
    np.testing.assert_allclose(
        methods.linear([t.copy() for t in tensors], [1, 2, 3, 4]), expected, rtol=1e-5, atol=1e-6
    )
