"""The tables: what each strategy divides, how small a device's share is, and what is refused."""

import itertools
import math

import jax
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from plamo2_jax.config import preset
from plamo2_jax.model import axes
from plamo2_jax.sharding.mesh import AXES, MeshConfig, make_mesh
from plamo2_jax.sharding.rules import RULES, ShardingError, batch_sharding, param_shardings, process_part
from plamo2_jax.train.optimizer import OptimizerConfig, make_optimizer
from plamo2_jax.train.state import TrainState, state_shardings
from support.meshes import CONFIG, by_name, described, shardings_on

FACTORS = [shape for shape in itertools.product((1, 2, 4, 8), repeat=4) if math.prod(shape) == 8]

OVER_TENSOR = {axes.VOCAB, axes.MLP, axes.HEADS, axes.KV_HEADS, axes.MAMBA_HEADS}


def share(sharding, leaf):
    """The part of a parameter that one device holds."""
    return math.prod(sharding.shard_shape(leaf.shape)) / math.prod(leaf.shape)


@pytest.mark.parametrize("shape", FACTORS, ids=lambda shape: "x".join(map(str, shape)))
def test_every_matrix_is_divided_over_every_axis_that_can(shape):
    mesh = make_mesh(MeshConfig(*shape))
    _, fsdp, sequence, tensor = shape
    names, shapes = described()
    names = dict(zip(by_name(shapes), jax.tree.leaves(names, is_leaf=axes.is_axes), strict=True))
    shapes = by_name(shapes)
    for path, sharding in by_name(shardings_on(mesh)).items():
        kv_is_whole = axes.KV_HEADS in names[path] and tensor > CONFIG.num_key_value_heads
        over_tensor = 1 if kv_is_whole or not OVER_TENSOR & set(names[path]) else tensor
        # dt_up has neither the width nor a head's channels.
        over_width = fsdp * sequence if axes.is_matrix(names[path]) and not path.endswith("dt_up") else 1
        assert share(sharding, shapes[path]) == 1 / (over_tensor * over_width), path


@pytest.mark.parametrize("name", ["plamo-2-1b", "plamo-2-8b", "plamo-2-31b"])
@pytest.mark.parametrize("strategy", list(RULES))
def test_no_large_parameter_of_a_published_shape_is_whole_anywhere(name, strategy):
    """On 64 devices that do not exist: a device's share of all, and of the largest parameter that is not divided."""
    sizes, parts = {
        "fsdp": ((1, 64, 1, 1), 64),
        "zero1": ((1, 64, 1, 1), 64),
        "zero2": ((1, 64, 1, 1), 64),
        "fsdp_tensor": ((1, 16, 1, 4), 64),
        "tensor": ((1, 16, 1, 4), 4),
    }[strategy]
    mesh, config = jax.sharding.AbstractMesh(sizes, AXES), preset(name)
    shapes, places = by_name(described(config)[1]), by_name(shardings_on(mesh, strategy, config))
    total = config.parameter_count()
    held = sum(math.prod(place.shard_shape(shapes[path].shape)) for path, place in places.items())
    assert held < 1.1 * total / parts
    whole = [shapes[path].size for path, place in places.items() if share(place, shapes[path]) == 1]
    # The largest is a 1B's k_proj over tensor, whose one head every device reads.
    assert max(whole) < total / 500


def test_an_axis_that_does_not_divide_is_named_with_parameter_and_mesh():
    names = {"mlp": {"down": (axes.LAYERS, axes.MLP, axes.EMBED)}}
    shapes = {"mlp": {"down": jax.ShapeDtypeStruct((2, 20, 64), np.float32)}}
    message = (
        r"parameter mlp/down: axis 'mlp' of size 20 is not divisible by tensor=8 of the mesh "
        r"\(data=1, fsdp=1, sequence=1, tensor=8\)"
    )
    mesh = make_mesh(MeshConfig(fsdp=1, tensor=8))
    with pytest.raises(ShardingError, match=message):
        param_shardings(names, shapes, mesh, "fsdp_tensor")


def test_a_strategy_that_leaves_devices_idle_is_refused(cube):
    with pytest.raises(ShardingError, match=r"'fsdp' divides nothing over tensor=2. Use fsdp_tensor"):
        shardings_on(cube, "fsdp")


def test_a_batch_that_does_not_divide_is_named():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, sequence=2))
    assert batch_sharding(mesh, (8, 6)).spec == PartitionSpec(("data", "fsdp"), "sequence")
    with pytest.raises(ShardingError, match=r"b / accumulation = 2 is not divisible by data=2 × fsdp=2"):
        batch_sharding(mesh, (8, 6), accumulation=4)
    with pytest.raises(ShardingError, match=r"t = 7 is not divisible by sequence=2"):
        batch_sharding(mesh, (8, 7))


def test_one_process_supplies_all_rows(cube):
    assert process_part(batch_sharding(cube, (8, 6)), (8, 6)) == (0, 1)


@pytest.mark.parametrize("dtypes", [("float32", "float32"), ("bfloat16", "bfloat16")])
def test_optimizer_state_lies_where_its_parameter_does(cube, dtypes):
    mu_dtype, nu_dtype = dtypes
    logical_axes, params = described()
    config = OptimizerConfig(mu_dtype=mu_dtype, nu_dtype=nu_dtype)
    optimizer = make_optimizer(config, lambda step: 1e-3, logical_axes)
    shapes = jax.eval_shape(lambda params: TrainState.create(params, optimizer, 0), params)
    places = shardings_on(cube)
    state = state_shardings(shapes, optimizer, places)
    assert jax.tree.structure(state) == jax.tree.structure(shapes)
    expected = by_name(places)
    for moment, dtype in (("mu", mu_dtype), ("nu", nu_dtype)):
        (held,) = optax.tree.get_all_with_path(state.opt_state, moment)
        assert by_name(held[1]) == expected
        (moments,) = optax.tree.get_all_with_path(shapes.opt_state, moment)
        assert {leaf.dtype for leaf in jax.tree.leaves(moments[1])} == {np.dtype(dtype)}
    assert state.step.spec == state.rng.spec == PartitionSpec()
