"""Rows in shards through the TPU compiler, at the shape of the 8B model's mixers and 32,768 tokens: kernels, memory, what travels."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from plamo2_jax.config import LayerKind, preset
from plamo2_jax.model.attention import Attention
from plamo2_jax.model.axes import DATA, FSDP, SEQUENCE, TENSOR
from plamo2_jax.model.cache import make_context
from plamo2_jax.model.mamba import Mamba
from plamo2_jax.plan.compiler import libtpu_version

pytestmark = pytest.mark.tpu
CONFIG = preset("plamo-2-8b")
T, MiB = 32768, 2**20


def compile_gradient(devices, mixer, t, shape):
    """Forward and gradients, by parameters too, of a mixer with a row of t tokens over a mesh."""
    mesh = Mesh(np.array(devices("v5p:2x2x1")).reshape(shape), (DATA, FSDP, SEQUENCE, TENSOR))
    mixer = mixer(mesh=mesh)

    def forward(params, u, segment_ids):
        return mixer.apply({"params": params}, u, make_context(segment_ids, segment_ids, None, None), None)[0]

    @jax.jit
    def step(params, u, segment_ids, dy):
        y, vjp = jax.vjp(lambda params, u: forward(params, u, segment_ids), params, u)
        return y, vjp(dy)

    def struct(spec, a):
        return jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=NamedSharding(mesh, spec))

    def initial(key):
        ids = jnp.ones((1, 1), jnp.int32)
        u = jnp.zeros((1, 1, CONFIG.hidden_size), jnp.bfloat16)
        return mixer.clone(mesh=None).init(key, u, make_context(ids, ids, None, None), None)["params"]

    params = jax.tree.map(
        functools.partial(struct, PartitionSpec()), nn.meta.unbox(jax.eval_shape(initial, jax.random.key(0)))
    )
    rows = PartitionSpec((DATA, FSDP), SEQUENCE)
    u = struct(rows, jax.ShapeDtypeStruct((1, t, CONFIG.hidden_size), jnp.bfloat16))
    return step.lower(params, u, struct(rows, jax.ShapeDtypeStruct((1, t), jnp.int32)), u).compile()


# Kernels of both passes.
MIXERS = {
    "scan": (functools.partial(Mamba, CONFIG, "pallas_tpu"), 2),
    "window": (functools.partial(Attention, CONFIG, LayerKind.WINDOW, "splash"), 3),
    "full": (functools.partial(Attention, CONFIG, LayerKind.FULL, "splash"), 3),
}
# Bounds of a chip's temporary MiB, 5 % above what was found: with jax 0.10.2 1017, 372 and 455, with jax 0.12.0.1 1325, 627 and 714 ("full"
# before chips exchanged halves of their queries: 368 with jax 0.10.2).
# The newer program needs no more at once (the arrays of "window" that live at its peak, results among them, are 564 and 561 MiB), but
# libtpu 0.0.50 packs them less tightly: 0.0.42 puts temporaries where results that are not written yet will be.
MOST = {
    "0.0.42": {"scan": 1070, "window": 390, "full": 480},
    "0.0.50": {"scan": 1390, "window": 660, "full": 750},
}


@pytest.mark.parametrize("name", MIXERS)
def test_a_row_over_four_chips(devices, name, record_property):
    mixer, kernels = MIXERS[name]
    libtpu = ".".join(libtpu_version().split(".")[:3])
    if libtpu not in MOST:
        pytest.fail(f"no bounds for libtpu {libtpu}: add those of what it takes")
    compiled = compile_gradient(devices, mixer, T, (1, 1, 4, 1))
    used = compiled.memory_analysis().temp_size_in_bytes / MiB
    record_property("temp_MiB", used)
    print(f"{name}: {used:.0f} MiB of temporaries a chip")
    assert used < MOST[libtpu][name]
    text = compiled.as_text()
    assert text.count("tpu_custom_call") == kernels
    moved = {dims for dims in re.findall(r"\[([\d,]+)\][^=]*? collective-permute-start\(", text)}
    gathered = " all-gather(" in text
    assert gathered == (name == "full")
    if name == "scan":
        assert {"1,3,64,128", "1,64,128,64"} <= moved
        assert not any(str(T // 4) in dims.split(",") for dims in moved)
    if name == "window":
        assert "1,2048,4,128" in moved
