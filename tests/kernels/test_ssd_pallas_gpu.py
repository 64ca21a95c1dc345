"""The scan's GPU kernels lowered for CUDA without a GPU; what they compute is tested in test_ssd_pallas."""

import contextlib
import math
import re

import jax
import jax.numpy as jnp
import pytest

from plamo2_kernels.ssd import ssd
from plamo2_kernels.ssd.pallas_gpu import ssd_pallas_gpu
from support.scans import SIZES, arguments


def test_float64_is_refused(rng):
    with jax.enable_x64(True), pytest.raises(ValueError, match="computes in float32, but the inputs are float64"):
        ssd(**arguments(rng, SIZES["pallas_gpu"]), implementation="pallas_gpu", interpret=True)


def hopper():
    """Where jax lowers for a GPU by what it is told of it, tell it; before 0.11 it takes Hopper for granted."""
    if jax.__version_info__ < (0, 11):
        return contextlib.nullcontext()
    device = jax.sharding.AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=132, platform="cuda")
    auto = (jax.sharding.AxisType.Auto,)
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((1,), ("x",), auto, abstract_device=device))


@pytest.mark.parametrize(
    ("dtype", "t", "h", "p", "g", "n"),
    [(jnp.bfloat16, 2048, 64, 128, 1, 64), (jnp.float32, 37, 4, 8, 2, 16)],
    ids=["8B", "tiny"],
)
def test_kernels_lower_for_cuda(dtype, t, h, p, g, n):
    """In particular every primitive in them is one that Triton has, and no decay matrix a head is an array of the program."""
    shapes = {"x": (1, t, h, p), "dt": (1, t, h), "A": (h,), "B": (1, t, g, n), "C": (1, t, g, n), "D": (h,)}
    args = [jax.ShapeDtypeStruct(s, dtype if n in ("x", "B", "C") else jnp.float32) for n, s in shapes.items()]
    state = jax.ShapeDtypeStruct((1, h, p, n), jnp.float32)
    ordinals = jax.ShapeDtypeStruct((1, t), jnp.int32)

    def forward(*args):
        return ssd_pallas_gpu(*args[:6], args[7], args[6])

    def gradient(*args):
        out, pull = jax.vjp(lambda *wanted: forward(*wanted, args[7]), *args[:7])
        return pull(out)

    for function, kernels in (
        (forward, ["ssd_carry", "ssd_outputs"]),
        (gradient, ["ssd_carry", "ssd_carry", "ssd_gradients", "ssd_outputs"]),
    ):
        with hopper():
            lowered = jax.jit(function).trace(*args, state, ordinals).lower(lowering_platforms=("cuda",))
        text = lowered.as_text()
        assert sorted(re.findall(r'name = "(ssd_\w+)"', text)) == kernels
        arrays = [[int(size) for size in shape.split("x")] for shape in re.findall(r"tensor<([\dx]+)x[a-z]+\d+>", text)]
        for *batch, rows, columns in (shape for shape in arrays if len(shape) > 1):
            chunk = 64 if dtype == jnp.bfloat16 else 32
            assert (rows, columns) != (chunk, chunk) or math.prod(batch) <= math.ceil(t / chunk)
