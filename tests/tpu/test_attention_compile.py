"""Splash attention through the TPU compiler at the shape of the 8B model: it compiles, its memory is linear, it needs no collectives.

The compiler of libtpu runs on a machine without a TPU and reports what does not fit as it would on the chip.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from plamo2_kernels.attention import attention

pytestmark = pytest.mark.tpu
H, G, P, WINDOW = 32, 4, 128, 2048
HEADS, ROWS = PartitionSpec("data", None, "model"), PartitionSpec("data")


def compile_gradient(t, window, rows, heads, b=1, wrap=lambda f: f, dtype=jnp.bfloat16, h=H, g=G, p=P):
    """Forward and gradient of `b` rows, compiled for where the shardings of rows [b, t] and of heads [b, t, h, p] lie."""

    @wrap
    def forward(q, k, v, segment_ids):
        return attention(q, k, v, segment_ids=segment_ids, window=window, implementation="splash")

    @jax.jit
    def step(q, k, v, segment_ids, dy):
        y, vjp = jax.vjp(lambda q, k, v: forward(q, k, v, segment_ids), q, k, v)
        return y, vjp(dy)

    q, k, v, dy = (jax.ShapeDtypeStruct((b, t, n, p), dtype, sharding=heads) for n in (h, g, g, h))
    return step.lower(q, k, v, jax.ShapeDtypeStruct((b, t), jnp.int32, sharding=rows), dy).compile()


@pytest.mark.parametrize("window", [WINDOW, None], ids=["window", "full"])
@pytest.mark.parametrize("name", ["v5p:2x2x1", "v6e:2x2"])
def test_it_compiles(devices, name, window):
    one = SingleDeviceSharding(devices(name)[0])
    compiled = compile_gradient(8192, window, one, one)
    assert compiled.as_text().count("tpu_custom_call") == 3


@pytest.mark.parametrize(("dtype", "p"), [(jnp.bfloat16, 16), (jnp.bfloat16, 64), (jnp.float32, P), (jnp.float32, 256)])
def test_blocks_fit_the_least_vmem_for_other_heads(devices, dtype, p):
    one = SingleDeviceSharding(devices("v5e:2x2")[0])
    compile_gradient(4096, WINDOW, one, one, dtype=dtype, h=4, g=1, p=p)


@pytest.mark.parametrize("window", [WINDOW, None], ids=["window", "full"])
def test_memory_is_linear_in_the_row(devices, window):
    one = SingleDeviceSharding(devices("v5p:2x2x1")[0])
    used = [compile_gradient(t, window, one, one).memory_analysis().temp_size_in_bytes for t in (8192, 16384, 32768)]
    assert used[1] < 2.05 * used[0]
    assert used[2] < 2.05 * used[1]


def test_inside_shard_map_it_needs_no_collective_and_without_it_does_not_compile(devices):
    mesh = Mesh(np.array(devices("v5p:2x2x1")).reshape(2, 2), ("data", "model"))
    rows, heads = NamedSharding(mesh, ROWS), NamedSharding(mesh, HEADS)
    specs = {"in_specs": (HEADS, HEADS, HEADS, ROWS), "out_specs": HEADS}
    shard = functools.partial(jax.shard_map, mesh=mesh, **specs, check_vma=False)
    text = compile_gradient(4096, WINDOW, rows, heads, b=2, wrap=shard).as_text()
    assert text.count("tpu_custom_call") == 3
    assert not any(f" {op}(" in text for op in ("all-reduce", "all-gather", "all-to-all", "collective-permute"))
    with pytest.raises(NotImplementedError, match="wrap the call in a shard_map"):
        compile_gradient(4096, WINDOW, rows, heads, b=2)
