"""Compile the selective scan for every TPU generation at the shapes of the published models, forward and gradient.

The compiler of libtpu runs on a machine without a TPU and reports what does not fit as it would on the chip.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from plamo2_jax.plan.schedule.ssd import SsdProgram
from plamo2_kernels.ssd import ssd

pytestmark = pytest.mark.tpu
SLICES = ["v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1"]
PRESETS = ["plamo-2-1b", "plamo-2.1-2b", "plamo-2-8b", "plamo-2-31b"]
# XLA's program is the same for all heads: the smallest and the largest shape stand for it, since it takes long to compile.
SHAPES = [("pallas_tpu", name) for name in PRESETS] + [("xla", "plamo-2-1b"), ("xla", "plamo-2-31b")]
TOKENS = 2048


def program(name, implementation, direction, **options):
    chunk = 256 if implementation == "xla" else None
    return SsdProgram(name, implementation, chunk, direction, tokens=TOKENS, **options).build()


@pytest.mark.parametrize("topology", SLICES)
@pytest.mark.parametrize(("implementation", "name"), SHAPES)
def test_forward_and_gradient_compile(devices, topology, implementation, name):
    one = SingleDeviceSharding(devices(topology)[0])
    for direction, kernels in (("forward", 1), ("forward+backward", 2)):
        function, operands = program(name, implementation, direction)
        compiled = jax.jit(function, in_shardings=one, out_shardings=one).lower(*operands).compile()
        calls = compiled.as_text().count('custom_call_target="tpu_custom_call"')
        assert calls == (kernels if implementation == "pallas_tpu" else 0)


@pytest.mark.parametrize("options", [{"segments": False}, {"initial_state": True}, {"batch": 3}], ids=str)
def test_kernels_compile_with_every_kind_of_input(devices, options):
    one = SingleDeviceSharding(devices("v5p:2x2x1")[0])
    function, operands = program("plamo-2-1b", "pallas_tpu", "forward+backward", **options)
    jax.jit(function, in_shardings=one, out_shardings=one).lower(*operands).compile()


@pytest.mark.parametrize("implementation", ["pallas_tpu", "xla"])
@pytest.mark.parametrize("topology", SLICES)
def test_a_shard_of_heads_needs_no_other(devices, topology, implementation):
    """Heads are sharded over four devices: the forward pass needs no collective, the gradient only all-reduces of what heads share."""
    h, p, n, b, t = 64, 128, 64, 1, TOKENS
    mesh = Mesh(np.array(devices(topology)[:4]), ("model",))
    spec = PartitionSpec
    rows, heads, channels = spec(), spec(None, None, "model"), spec("model")
    state = spec(None, "model")
    operands = {
        "x": ((b, t, h, p), jnp.bfloat16, heads),
        "dt": ((b, t, h), jnp.float32, heads),
        "A": ((h,), jnp.float32, channels),
        "B": ((b, t, 1, n), jnp.bfloat16, rows),
        "C": ((b, t, 1, n), jnp.bfloat16, rows),
        "D": ((h,), jnp.float32, channels),
        "segment_ids": ((b, t), jnp.int32, rows),
        "dy": ((b, t, h, p), jnp.bfloat16, heads),
        "d_state": ((b, h, p, n), jnp.float32, state),
    }
    structs = [
        jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, part))
        for shape, dtype, part in operands.values()
    ]
    specs = [part for *_, part in operands.values()]

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=tuple(specs[:7]), out_specs=(heads, state), check_vma=False)
    def forward(x, dt, A, B, C, D, segment_ids):
        return ssd(x, dt, A, B, C, D, segment_ids=segment_ids, implementation=implementation, chunk_size=256)

    def gradient(*arrays):
        *inputs, segment_ids, dy, d_state = arrays
        out, vjp = jax.vjp(lambda *inputs: forward(*inputs, segment_ids), *inputs)
        return out, vjp((dy, d_state))

    alone = jax.jit(forward).lower(*structs[:7]).compile().as_text()
    assert not collectives(alone)
    both = jax.jit(gradient).lower(*structs).compile().as_text()
    assert collectives(both) <= {"all-reduce"}
    assert ("tpu_custom_call" in both) == (implementation == "pallas_tpu")


def collectives(text):
    """Return the kinds of collectives in a compiled program."""
    kinds = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")
    return {kind for kind in kinds if f" {kind}(" in text or f" {kind}-start(" in text}
