"""The train step on a small real model: the loss, its gradient, accumulation and learning."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plamo2_jax.config import preset
from plamo2_jax.model.loss import cross_entropy, predict
from plamo2_jax.model.plamo2 import Plamo2, init_params, logical_axes
from plamo2_jax.train.optimizer import OptimizerConfig, make_optimizer
from plamo2_jax.train.pretraining import next_token
from plamo2_jax.train.state import TrainState
from plamo2_jax.train.step import make_step

VOCAB, ROWS, LENGTH = 320, 4, 24
MODEL = Plamo2(
    preset("tiny", hidden_size=64, num_hidden_layers=2, vocab_size=VOCAB, attention_window_size=8), dtype=jnp.float32
)
INPUTS = ("tokens", "segment_ids", "positions")
BYTE_LENGTHS = jnp.arange(VOCAB, dtype=jnp.int32) % 5


def make_batch(seed=0, rows=ROWS, length=LENGTH):
    """Two documents and some padding in each row; rows differ in how much of it."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, VOCAB, (rows, length + 1)).astype(np.int32)
    segment_ids, positions = np.zeros((2, rows, length), np.int32)
    for row in range(rows):
        first, second = 6 + row, length - 5 * row
        segment_ids[row, :first], segment_ids[row, first:second] = 1, 2
        positions[row, :first], positions[row, first:second] = np.arange(first), np.arange(second - first)
    weights = (segment_ids > 0).astype(np.float32)
    return {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "segment_ids": segment_ids,
        "positions": positions,
        "loss_weights": weights,
    }


@pytest.fixture(scope="module")
def params():
    return jax.jit(lambda: init_params(MODEL, jax.random.key(0)))()


@functools.cache
def apply():
    """The jitted forward pass."""
    return jax.jit(lambda params, batch: MODEL.apply({"params": params}, *map(batch.get, INPUTS))[0])


@functools.cache
def objective():
    """The jitted objective."""
    return jax.jit(next_token(MODEL, BYTE_LENGTHS, z_loss=1e-3))


@functools.cache
def make(accumulation=1, learning_rate=1e-3, **optimizer):
    optimizer = make_optimizer(OptimizerConfig(**optimizer), lambda step: learning_rate, logical_axes(MODEL))
    step = jax.jit(make_step(objective(), optimizer, lambda step: learning_rate, accumulation))
    return step, lambda params: TrainState.create(params, optimizer, seed=0)


def test_the_first_loss_is_that_of_a_uniform_guess(params):
    _, metrics = objective()(params, make_batch(), jax.random.key(0))
    np.testing.assert_allclose(metrics["nats"] / metrics["tokens"], np.log(VOCAB), rtol=0.02)


def test_metrics_are_sums_over_the_weighted_targets(params):
    batch = make_batch()
    _, metrics = objective()(params, batch, jax.random.key(0))
    counted = batch["loss_weights"] > 0
    assert metrics["tokens"] == metrics["weight"] == counted.sum()
    assert metrics["bytes"] == np.asarray(BYTE_LENGTHS)[batch["targets"]][counted].sum()
    logits = apply()(params, batch)
    assert metrics["correct"] == (np.argmax(logits, -1) == batch["targets"])[counted].sum()


def test_loss_weights_weigh(params):
    batch = make_batch()
    weights = batch["loss_weights"] * np.random.default_rng(1).uniform(0.2, 2, (ROWS, LENGTH)).astype(np.float32)
    logits = apply()(params, batch)
    logits = np.asarray(logits, np.float64)
    log_z = np.log(np.exp(logits).sum(-1))
    nats = log_z - np.take_along_axis(logits, batch["targets"][..., None], -1)[..., 0]
    expected = (weights * (nats + 1e-3 * log_z**2)).sum() / weights.sum()
    loss, _ = objective()(params, batch | {"loss_weights": weights}, jax.random.key(0))
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_packing_and_padding_change_no_loss(params):
    """The documents of a packed batch, each alone in a row that ends in padding, cost the same nats, token by token."""
    batch = make_batch()
    packed_loss, packed = objective()(params, batch, jax.random.key(0))
    documents = [
        {name: array[row][batch["segment_ids"][row] == segment] for name, array in batch.items()}
        for row in range(ROWS)
        for segment in (1, 2)
    ]
    apart = {
        name: np.stack([np.pad(document[name], (0, LENGTH - len(document[name]))) for document in documents])
        for name in batch
    }
    apart["segment_ids"] = (apart["segment_ids"] > 0).astype(np.int32)
    # Padding may hold anything.
    apart["tokens"][apart["segment_ids"] == 0] = 7
    apart["targets"][apart["segment_ids"] == 0] = 9
    loss, sums = objective()(params, apart, jax.random.key(0))
    np.testing.assert_allclose(loss, packed_loss, rtol=1e-6)
    np.testing.assert_allclose(sums["nats"], packed["nats"], rtol=1e-6)
    for name in ("tokens", "bytes", "correct", "weight"):
        assert sums[name] == packed[name], name


def test_z_loss_gradient_by_finite_differences():
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((2, 3, 11)).astype(np.float32) * 3
    targets = rng.integers(0, 11, (2, 3)).astype(np.int32)
    weights = np.array([[1, 0.5, 0], [2, 1, 1]], np.float32)

    def loss_of(logits):
        """In float64 by hand: the sum over positions of weight * (nats + 0.3 log(Z)^2), over the weights."""
        log_z = np.log(np.exp(logits).sum(-1))
        nats = log_z - np.take_along_axis(logits, targets[..., None], -1)[..., 0]
        return (weights * (nats + 0.3 * log_z**2)).sum() / weights.sum()

    gradient = jax.grad(lambda logits: cross_entropy(predict(logits, targets), weights, 0.3)[0])(logits)
    exact = logits.astype(np.float64)
    for index in np.ndindex(logits.shape):
        bump = np.zeros_like(exact)
        bump[index] = 1e-5
        numeric = (loss_of(exact + bump) - loss_of(exact - bump)) / 2e-5
        np.testing.assert_allclose(gradient[index], numeric, atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize("accumulation", [2, 4])
def test_accumulation_is_the_big_batch(params, accumulation):
    """Micro-batches hold unequal numbers of targets here: plain averaging of their means would fail."""
    big, create = make(epsilon=1.0)
    small, _ = make(accumulation, epsilon=1.0)
    expected, expected_metrics = big(create(params), make_batch())
    state, metrics = small(create(params), make_batch())
    for name in expected_metrics:
        np.testing.assert_allclose(metrics[name], expected_metrics[name], rtol=1e-6, err_msg=name)
    jax.tree.map(
        lambda left, right: np.testing.assert_allclose(left, right, rtol=1e-6, atol=1e-6), state.params, expected.params
    )
    moments = jax.tree.leaves(state.opt_state), jax.tree.leaves(expected.opt_state)
    assert all(np.abs(left - right).max() <= 1e-6 for left, right in zip(*moments, strict=True))


def test_a_micro_batch_of_padding_only_is_nothing(params):
    batch = make_batch()
    for array in batch.values():
        array[1::2] = 0
    whole, create = make(epsilon=1.0)
    expected, _ = whole(create(params), {name: array[::2] for name, array in batch.items()})
    state, metrics = make(2, epsilon=1.0)[0](create(params), batch)
    assert np.isfinite(metrics["loss"])
    jax.tree.map(lambda left, right: np.testing.assert_allclose(left, right, atol=2e-6), state.params, expected.params)


def test_accumulation_must_divide_the_batch(params):
    step, create = make(3)
    with pytest.raises(ValueError, match="accumulation=3 is not allowed: it must divide the batch size 4"):
        step(create(params), make_batch())


def test_one_batch_can_be_learnt_by_heart(params):
    step, create = make(learning_rate=3e-3, weight_decay=0.0)
    state, batch = create(params), make_batch()
    for _ in range(150):
        state, metrics = step(state, batch)
    assert metrics["nats"] / metrics["tokens"] < 0.05
    assert state.step == 150
