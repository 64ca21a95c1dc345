"""Moments of AdamW in 8 bits: their error, their shards, and what training with them comes to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from plamo2_jax.config import preset
from plamo2_jax.model.axes import map_with_axes
from plamo2_jax.model.plamo2 import Plamo2, abstract_params, logical_axes
from plamo2_jax.sharding.mesh import MeshConfig, make_mesh
from plamo2_jax.sharding.rules import param_shardings
from plamo2_jax.train.int8_moments import MEAN, MEAN_OF_SQUARES, layout_of
from plamo2_jax.train.optimizer import OptimizerConfig, make_optimizer
from plamo2_jax.train.state import TrainState, state_shardings

INT8 = OptimizerConfig(mu_dtype="int8", nu_dtype="int8")
LAYOUT = (1, 256)


@pytest.mark.parametrize(("code", "power"), [(MEAN, 1), (MEAN_OF_SQUARES, 2)])
def test_a_moment_comes_back_within_a_step_of_its_code(rng, code, power):
    moment = np.asarray(rng.standard_normal((3, 512, 8)) ** power, np.float32)
    codes, scales = code.encode(moment, LAYOUT, jnp.int32(7))
    assert (codes.dtype, codes.shape, scales.shape) == (code.dtype, moment.shape, (3, 2, 8))
    error = np.abs(np.asarray(code.decode(codes, scales, LAYOUT)) - moment).reshape(3, 2, 256, 8)
    largest = np.abs(moment.reshape(error.shape)).max(axis=2, keepdims=True)
    # The slope of c^p at the root of a value is p · root^(p - 1) / largest; convexity adds at most one more step.
    root = (np.abs(moment.reshape(error.shape)) / largest) ** (1 / code.power)
    step = code.power * (root + 1 / code.largest) ** (code.power - 1) / code.largest * largest
    assert np.all(error <= step * (1 + 1e-5))
    # Zeros and the largest value of a block are exact.
    zeros, scales = code.encode(jnp.zeros((1, 256, 1)), LAYOUT, jnp.int32(0))
    assert not np.any(zeros)
    assert not np.any(code.decode(zeros, scales, LAYOUT))


@pytest.mark.parametrize("code", [MEAN, MEAN_OF_SQUARES])
def test_rounding_is_unbiased_and_keeps_small_squares(code):
    moment = jnp.full((1, 256, 1), 0.0123).at[0, 0, 0].set(1.0).at[0, 1, 0].set(1e-14)
    encoded = [code.encode(moment, LAYOUT, jnp.int32(step)) for step in range(40)]
    decoded = np.stack([code.decode(*each, LAYOUT) for each in encoded])
    np.testing.assert_allclose(decoded[:, 0, 2:].mean(), 0.0123, rtol=2e-3)
    np.testing.assert_allclose(decoded[:, 0, 0], 1)
    if code is MEAN_OF_SQUARES:
        assert all(codes[0, 1, 0] == 1 for codes, _ in encoded)


def test_training_reaches_the_loss_of_float32_moments(rng):
    """Least squares with badly scaled inputs: the gradients of the rows of the matrix differ by three orders of magnitude."""
    inputs = jnp.asarray(rng.standard_normal((256, 64)) * np.logspace(-2, 1, 64), jnp.float32)
    targets = inputs @ jnp.asarray(rng.standard_normal((64, 16)), jnp.float32)

    def loss(params):
        return jnp.mean((inputs @ params["w"] - targets) ** 2)

    def train(config):
        optimizer = make_optimizer(config, lambda step: 3e-2, {"w": ("embed", "mlp")})

        def update(carry, _):
            params, state = carry
            value, grads = jax.value_and_grad(loss)(params)
            updates, state = optimizer.update(grads, state, params)
            return (jax.tree.map(jnp.add, params, updates), state), value

        params = {"w": jnp.zeros((64, 16))}
        return jax.jit(lambda: jax.lax.scan(update, (params, optimizer.init(params)), length=300)[1])()

    config = {"weight_decay": 0.0, "clip_norm": 1e6, "beta2": 0.999}
    single = train(OptimizerConfig(**config))
    int8 = train(OptimizerConfig(mu_dtype="int8", nu_dtype="int8", **config))
    assert single[-1] < 1e-2 * single[0]
    np.testing.assert_allclose(int8[::10], single[::10], rtol=0.1, atol=1e-3 * float(single[0]))


def test_state_has_two_bytes_per_matrix_value_and_the_shards_of_its_parameters():
    model = Plamo2(preset("plamo-2-1b", num_hidden_layers=2))
    names, params = logical_axes(model), abstract_params(model)
    optimizer = make_optimizer(INT8, lambda step: 1e-3, names)
    state = jax.eval_shape(lambda params: TrainState.create(params, optimizer, 0), params)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.opt_state))
    assert 2 < size / sum(leaf.size for leaf in jax.tree.leaves(params)) < 2.11
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
    placed = param_shardings(names, params, mesh, "fsdp_tensor")
    moments = state_shardings(state, optimizer, placed).opt_state[1][0].nu
    shapes = state.opt_state[1][0].nu

    def check(axes, values, scales, values_shape, scales_shape, parameter):
        assert values == parameter
        scales.shard_shape(scales_shape.shape)  # Raises if an axis cannot be divided.
        if layout_of(axes) is None:
            assert values_shape.dtype == jnp.float32
        elif "dt_rank" not in axes and "kv_heads" not in axes:
            # Every device holds the scales of its own values.
            assert scales.spec == parameter.spec

    map_with_axes(check, names, moments.values, moments.scales, shapes.values, shapes.scales, placed)


def test_an_update_on_a_mesh_is_the_one_on_a_device(rng):
    optimizer = make_optimizer(INT8, lambda step: 1.0, {"w": ("embed", "mlp")})
    grads = [{"w": jnp.asarray(rng.standard_normal((32, 1024)), jnp.float32)} for _ in range(3)]
    params = {"w": jnp.ones((32, 1024))}

    @jax.jit
    def updates(params, grads):
        state, found = optimizer.init(params), []
        for grad in grads:
            update, state = optimizer.update(grad, state, params)
            found.append(update["w"])
        return found, state[1][0].mu

    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("fsdp", "tensor"))
    place = NamedSharding(mesh, PartitionSpec("fsdp", "tensor"))
    (whole, moments), (divided, others) = updates(params, grads), updates(*jax.device_put((params, grads), place))
    np.testing.assert_allclose(divided, whole, rtol=1e-3, atol=1e-4)
    assert np.mean(np.asarray(moments.values["w"]) != np.asarray(others.values["w"])) < 1e-3
