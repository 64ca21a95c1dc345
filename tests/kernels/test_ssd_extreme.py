"""Steps so long that a token forgets everything: every implementation clamps their log-decays alike, and loses nothing of the others.

The oracle is the recurrence without a clamp, in float64, differentiated by JAX.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from plamo2_kernels.sequence import sharded_ssd
from plamo2_kernels.ssd import ssd
from plamo2_kernels.ssd.decay import LEAST_LOG_DECAY

B, T, H, G, P, N = 2, 160, 4, 2, 8, 8
SEGMENTS = np.stack([np.repeat([1, 2, 0, 3], [70, 40, 10, 40]), np.repeat([1], [T])]).astype(np.int32)


def arguments(rng):
    """In float64, and which steps are extreme: a tenth of them, the first and the last among them, some right behind each other."""
    args = {
        "x": rng.normal(size=(B, T, H, P)),
        "dt": np.exp(rng.uniform(np.log(1e-3), np.log(0.5), size=(B, T, H))),
        "A": -np.array([0.25, 1.0, 4.0, 16.0]),
        "B": rng.normal(size=(B, T, G, N)),
        "C": rng.normal(size=(B, T, G, N)),
        "D": rng.normal(size=H),
        "initial_state": rng.normal(size=(B, H, P, N)),
    }
    extreme = rng.random((B, T, H)) < 0.1
    extreme[:, [1, 20, 21, 22, -1]] = True
    extreme[:, 0] = [[False], [True]]
    # From a little beyond the clamp to a million times as far.
    beyond = -LEAST_LOG_DECAY * np.exp(rng.uniform(np.log(1.01), np.log(1e6), size=(B, T, H)))
    args["dt"] = np.where(extreme, beyond / -args["A"], args["dt"])
    # The inputs of a long step are small, so that what it adds to the state does not hide all else.
    args["x"] = np.where(extreme[..., None], args["x"] / args["dt"][..., None], args["x"])
    return args, extreme


def oracle(x, dt, A, B, C, D, initial_state):
    """The recurrence as it is defined, with no clamp."""
    B, C = (jnp.repeat(v, H // G, axis=2) for v in (B, C))
    starts = np.zeros((2, T), bool)
    starts[0, [70, 120]] = True
    steps = jnp.where((SEGMENTS != 0)[..., None], dt, 0)

    def step(state, token):
        x, dt, B, C, starts = token
        state = jnp.where(starts[:, None, None, None], 0, jnp.exp(dt * A)[..., None, None] * state)
        state += jnp.einsum("bh,bhp,bhn->bhpn", dt, x, B)
        return state, jnp.einsum("bhpn,bhn->bhp", state, C) + D[:, None] * x

    tokens = tuple(jnp.moveaxis(v, 1, 0) for v in (x, steps, B, C, jnp.asarray(starts)))
    state, y = jax.lax.scan(step, initial_state, tokens)
    return jnp.moveaxis(y, 0, 1), state


def by_token(x, dt, A, B, C, D, initial_state):
    """The one-token update, token after token."""
    continues = np.ones((T, 2), bool)
    continues[[70, 120], 0] = False

    def step(state, token):
        x, dt, B, C, continues = token
        y, state = ssd(x, dt, A, B, C, D, initial_state=state, continues=continues)
        return state, y

    steps = jnp.where((SEGMENTS != 0)[..., None], dt, 0)
    tokens = (*(jnp.moveaxis(v, 1, 0)[:, :, None] for v in (x, steps, B, C)), jnp.asarray(continues))
    state, y = jax.lax.scan(step, initial_state, tokens)
    return jnp.moveaxis(y[:, :, 0], 0, 1), state


def in_shards(x, dt, A, B, C, D, initial_state):
    """The row in four shards."""
    row, whole = PartitionSpec(None, "sequence"), PartitionSpec()

    @jax.shard_map(
        mesh=Mesh(jax.devices()[:4], ("sequence",)),
        in_specs=(row, row, whole, row, row, whole, whole, row),
        out_specs=(row, row),
    )
    def run(x, dt, A, B, C, D, initial_state, segment_ids):
        settings = {"segment_ids": segment_ids, "initial_state": initial_state, "chunk_size": 16}
        y, state = sharded_ssd(x, dt, A, B, C, D, axis_name="sequence", **settings)
        return y, state[:, None]

    y, states = run(x, dt, A, B, C, D, initial_state, SEGMENTS)
    return y, states[:, -1]


def named(name, chunk_size=None):
    def run(**args):
        interpret = name.startswith("pallas")
        return ssd(**args, segment_ids=SEGMENTS, implementation=name, chunk_size=chunk_size, interpret=interpret)

    return run


IMPLEMENTATIONS = {
    "reference": named("reference"),
    "xla": named("xla", 64),
    "pallas_tpu": named("pallas_tpu", 128),
    "pallas_gpu": named("pallas_gpu", 32),
    "one token": by_token,
    "sequence-parallel": in_shards,
}


@functools.cache
def compiled(run):
    """y, the final state and the gradient of every input."""

    def scalar(args, cotangents):
        y, state = run(**args)
        return jnp.sum(y * cotangents[0]) + jnp.sum(state * cotangents[1]), (y, state)

    return jax.jit(jax.grad(scalar, has_aux=True))


def evaluate(run, args, cotangents):
    gradients, (y, state) = compiled(run)(args, cotangents)
    return {"y": y, "state": state} | {f"d_{name}": gradient for name, gradient in gradients.items()}


@functools.cache
def case():
    rng = np.random.default_rng(5)
    args, extreme = arguments(rng)
    real = (SEGMENTS != 0)[..., None, None]
    cotangents = rng.normal(size=(B, T, H, P)) * real, rng.normal(size=(B, H, P, N))
    with jax.enable_x64(True):
        expected = jax.tree.map(np.asarray, evaluate(oracle, args, cotangents))
    return args, extreme, cotangents, expected


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_values_and_gradients_are_those_of_the_recurrence(name):
    args, extreme, cotangents, expected = case()
    actual = evaluate(IMPLEMENTATIONS[name], *jax.tree.map(np.float32, (args, cotangents)))
    real = SEGMENTS != 0
    # Running sums of clamped log-decays reach 2,000 in a chunk; float32 holds such a sum to 1e-4. Without the clamp d_A is off by 40 times
    # its norm.
    for figure, wanted in expected.items():
        got = np.asarray(actual[figure], np.float64)
        assert np.isfinite(got).all(), figure
        # Long steps and others apart: gradients by the steps of one kind are far larger than by those of the other.
        parts = {"all": np.ones(wanted.shape, bool)}
        if figure in ("y", "d_x", "d_dt"):
            long, there = (v.reshape(*v.shape, *(1,) * (wanted.ndim - v.ndim)) for v in (extreme, real))
            parts = {"long": there & long, "others": there & ~long}
        for part, mask in parts.items():
            mask = np.broadcast_to(mask, wanted.shape)
            error = np.linalg.norm((got - wanted)[mask]) / np.linalg.norm(wanted[mask])
            assert error < 1e-4, (figure, part, error)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_no_gradient_passes_the_clamp(name):
    """Where every step is long, decays are constant: A has no gradient, and that of dt is its part in what is added to the state."""
    args, extreme, cotangents, _ = case()
    args = {**args, "dt": np.where(extreme, args["dt"], 1e6)}
    actual = evaluate(IMPLEMENTATIONS[name], *jax.tree.map(np.float32, (args, cotangents)))
    assert not np.any(actual["d_A"])
    assert not np.any(actual["d_initial_state"])
    of_inputs = np.float64(actual["d_x"]) - args["D"][:, None] * cotangents[0]
    added = np.sum(of_inputs * args["x"], axis=-1) / args["dt"]
    real = SEGMENTS != 0
    assert np.linalg.norm((actual["d_dt"] - added)[real]) < 1e-5 * np.linalg.norm(added[real])
