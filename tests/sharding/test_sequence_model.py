"""The network over every mesh of eight devices against the network on one: logits and gradients."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from plamo2_jax.config import preset
from plamo2_jax.model import Plamo2, axes, init_params

AXES = (axes.DATA, axes.FSDP, axes.SEQUENCE, axes.TENSOR)
# The parameters are on every device here, so `data` and `fsdp` both split the rows only. Each way of splitting rows, tokens and heads over
# 1, 2, 4 and 8 devices is here once, and each pair of them.
MESHES = [
    (2, 4, 1, 1),
    (1, 1, 8, 1),
    (1, 1, 1, 8),
    (1, 2, 4, 1),
    (1, 1, 2, 4),
    (2, 2, 1, 2),
    (1, 2, 2, 2),
]
B, T = 8, 32
# The window reaches over three shards of eight; key heads divide by 2 devices of `tensor`, not by 4 or 8.
CONFIG = preset(
    "tiny",
    hidden_size=16,
    num_hidden_layers=2,
    intermediate_size=24,
    num_attention_heads=8,
    num_key_value_heads=2,
    hidden_size_per_head=8,
    mamba_num_heads=8,
    mamba_d_state=4,
    attention_window_size=9,
    vocab_size=31,
    initializer_range=0.1,
)
LAYOUTS = [
    [(1, 32)],
    [(1, 10), (2, 22)],
    [(0, 5), (1, 9), (2, 1), (3, 14), (0, 3)],
    [(1, 3), (0, 9), (2, 20)],
]
SEGMENTS = np.array([[i for i, length in layout for _ in range(length)] for layout in LAYOUTS * 2], np.int32)
REAL = (SEGMENTS != 0)[..., None]


def tokens():
    return np.random.default_rng(0).integers(0, CONFIG.vocab_size, size=(B, T)).astype(np.int32)


@functools.cache
def compiler_options():
    """Without XLA's newer code generator for CPUs a mesh compiles in half the time, 2 s of 4; {} where that cannot be chosen."""
    options = {"xla_cpu_use_fusion_emitters": False}
    try:
        jax.jit(jnp.sin, compiler_options=options).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return options


def with_gradients(model):
    """Jitted: logits, and the gradient of every parameter."""

    def scalar(params, tokens, segment_ids):
        logits, _ = model.apply({"params": params}, tokens, segment_ids)
        weights = jnp.cos(jnp.arange(logits.size, dtype=jnp.float32)).reshape(logits.shape)
        return jnp.sum(jnp.where(REAL, logits * weights, 0)), logits

    return jax.jit(jax.grad(scalar, has_aux=True), compiler_options=compiler_options())


@functools.cache
def params(config):
    return jax.jit(functools.partial(init_params, Plamo2(config)))(jax.random.key(0))


@functools.cache
def expected(config):
    return jax.device_get(with_gradients(Plamo2(config))(params(config), tokens(), SEGMENTS))


def assert_equal(actual, expected):
    def compare(path, got, wanted):
        got = np.asarray(got)
        if got.shape[:2] == (B, T):
            got, wanted = got * REAL, wanted * REAL
        assert np.linalg.norm(got - wanted) <= 1e-5 * np.linalg.norm(wanted), jax.tree_util.keystr(path)

    jax.tree_util.tree_map_with_path(compare, actual, expected)


def assert_mesh_equals_one_device(config, shape):
    mesh = Mesh(np.array(jax.devices()).reshape(shape), AXES)
    # Parameters on every device, batches cut as the mixers cut them.
    everywhere, rows = (
        NamedSharding(mesh, spec) for spec in (PartitionSpec(), PartitionSpec((axes.DATA, axes.FSDP), axes.SEQUENCE))
    )
    arguments = jax.device_put((params(config), tokens(), SEGMENTS), (everywhere, rows, rows))
    assert_equal(with_gradients(Plamo2(config, mesh=mesh))(*arguments), expected(config))


@pytest.mark.parametrize("shape", MESHES, ids=lambda shape: "x".join(map(str, shape)))
def test_meshes_of_eight_devices_equal_one_device(shape):
    assert_mesh_equals_one_device(CONFIG, shape)


@pytest.mark.parametrize(
    "shape", [(1, 1, 8, 1), (1, 2, 2, 2), (1, 1, 2, 4)], ids=lambda shape: "x".join(map(str, shape))
)
def test_full_attention_over_a_mesh_equals_one_device(shape):
    assert_mesh_equals_one_device(dataclasses.replace(CONFIG, full_attention_idx=(1,)), shape)


def test_a_cache_and_new_parameters_need_no_whole_mesh():
    """One row of seven tokens, on a mesh that would cut both."""
    mesh = Mesh(np.array(jax.devices()).reshape(2, 2, 2, 1), AXES)
    row, model = tokens()[:1, :7], Plamo2(CONFIG, mesh=mesh)
    jax.eval_shape(functools.partial(init_params, model), jax.random.key(0))
    apply = functools.partial(jax.jit, compiler_options=compiler_options())
    logits, _ = apply(model.apply)({"params": params(CONFIG)}, row, cache=model.init_cache(1, 16))
    wanted, _ = apply(Plamo2(CONFIG).apply)({"params": params(CONFIG)}, row)
    assert np.linalg.norm(logits - wanted) <= 1e-5 * np.linalg.norm(wanted)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 32), r"b=3 must be a multiple of the mesh's data=2 × fsdp=2"),
        ((4, 31), r"t=31 must be a multiple of the mesh's sequence=2"),
    ],
)
def test_what_does_not_divide_is_named(shape, message):
    model = Plamo2(CONFIG, mesh=Mesh(np.array(jax.devices()).reshape(2, 2, 2, 1), AXES))
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(model.apply, {"params": params(CONFIG)}, np.zeros(shape, np.int32))


def test_heads_that_do_not_divide_are_computed_on_every_device():
    """Three key heads for six query heads over two devices, each of which reads one and a half; five state-space heads."""
    heads = {"num_attention_heads": 6, "num_key_value_heads": 3, "mamba_num_heads": 5}
    assert_mesh_equals_one_device(dataclasses.replace(CONFIG, **heads), (2, 1, 2, 2))
