"""The token mixers of a row in shards against those of the whole row: values, gradients, what may see what, what travels."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, PartitionSpec

from plamo2_kernels.attention import attention
from plamo2_kernels.conv1d import causal_conv1d
from plamo2_kernels.sequence import preceding, sharded_attention, sharded_causal_conv1d, sharded_ssd
from plamo2_kernels.ssd import ssd

T, H, G, P, N, K = 16, 4, 2, 4, 3, 4
ROW = PartitionSpec(None, "sequence")
# With 8 shards of 2 tokens, the convolution's halo and the windows reach over more shards than one.
SHARDS = [2, 4, 8]
SEGMENTS = np.array(
    [
        np.repeat([1], [16]),
        np.repeat([1, 2, 3], [5, 7, 4]),
        np.repeat([0, 1, 0, 1, 0, 2, 0], [3, 2, 2, 4, 1, 3, 1]),
        np.arange(1, 17),
        np.repeat([1, 2, 1, 3, 1], [4, 1, 5, 2, 4]),
        np.repeat([0], [16]),
        np.repeat([1, 0, 1], [3, 8, 5]),
        np.repeat([0, 4, 0], [9, 2, 5]),
    ],
    np.int32,
)
B = len(SEGMENTS)
REAL = (SEGMENTS != 0)[..., None, None]


def arrays(rng):
    """The inputs of all three, by name."""
    normal = {
        "x": (B, T, H, P),
        "B": (B, T, G, N),
        "C": (B, T, G, N),
        "D": (H,),
        "initial_state": (B, H, P, N),
        "weight": (H, P, K),
        "q": (B, T, H, P),
        "k": (B, T, G, P),
        "v": (B, T, G, P),
    }
    steps = {"dt": np.exp(rng.uniform(np.log(1e-3), np.log(0.5), size=(B, T, H))), "A": -np.arange(1.0, H + 1)}
    return {n: np.float32(a) for n, a in ({n: rng.normal(size=s) for n, s in normal.items()} | steps).items()}


INPUTS = {
    "conv": ("x", "weight"),
    "scan": ("x", "dt", "A", "B", "C", "D", "initial_state"),
    "window": ("q", "k", "v"),
    "wide": ("q", "k", "v"),
    "full": ("q", "k", "v"),
}
WINDOWS = {"window": 5, "wide": 12, "full": None}


def whole(mixer, args, segment_ids):
    """The outputs of the row, as a tuple."""
    if mixer == "conv":
        return causal_conv1d(**args, segment_ids=segment_ids, activation="silu")[:1]
    if mixer == "scan":
        return ssd(**args, segment_ids=segment_ids, chunk_size=4)
    return (attention(**args, segment_ids=segment_ids, window=WINDOWS[mixer], block_size=4),)


def of_shard(mixer, args, segment_ids, **settings):
    """The same in the body of a shard_map; of the scan's states, that of every shard."""
    if mixer == "conv":
        return (
            sharded_causal_conv1d(**args, axis_name="sequence", segment_ids=segment_ids, activation="silu", **settings),
        )
    if mixer == "scan":
        y, state = sharded_ssd(**args, axis_name="sequence", segment_ids=segment_ids, **settings)
        return y, state[:, None]
    # Shards of two blocks, of one, and of less.
    settings |= {"axis_name": "sequence", "window": WINDOWS[mixer], "block_size": 4}
    return (sharded_attention(**args, segment_ids=segment_ids, **settings),)


def sharded(mixer, shards, *, check_vma=True, **settings):
    """`of_shard` of the row in so many shards."""
    specs = {n: PartitionSpec() if n in ("A", "D", "initial_state", "weight") else ROW for n in INPUTS[mixer]}

    @jax.shard_map(
        mesh=Mesh(jax.devices()[:shards], ("sequence",)),
        in_specs=(specs, ROW),
        out_specs=ROW,
        check_vma=check_vma,
    )
    def body(args, segment_ids):
        return of_shard(mixer, args, segment_ids, **settings)

    def run(args, segment_ids):
        y, *states = body(args, segment_ids)
        return y, *(state[:, -1] for state in states)

    return run


def with_gradients(run, args, segment_ids, cotangents):
    """Outputs and the gradient of every input."""
    outputs, vjp = jax.vjp(lambda args: run(args, segment_ids), args)
    return outputs, vjp(cotangents)[0]


@functools.cache
def compiled(mixer, shards):
    """Outputs and gradients of a mixer, of the whole row if there is one shard."""
    run = functools.partial(whole, mixer) if shards == 1 else sharded(mixer, shards)
    return jax.jit(functools.partial(with_gradients, run))


def chosen(args, mixer):
    return {name: args[name] for name in INPUTS[mixer]}


def cotangents_for(rng, mixer, real=REAL):
    y = np.float32(rng.normal(size=(B, T, H, P)) * real)
    return (y, np.float32(rng.normal(size=(B, H, P, N)))) if mixer == "scan" else (y,)


def assert_equal(actual, expected, real=REAL, tolerance=1e-5):
    """Relative L2; outputs at padding carry no meaning."""

    def compare(path, got, wanted):
        got, wanted = np.asarray(got, np.float64), np.asarray(wanted, np.float64)
        if path[0].idx == 0 and path[1].idx == 0:
            got, wanted = got * real, wanted * real
        assert np.isfinite(got).all(), path
        assert np.linalg.norm(got - wanted) <= tolerance * np.linalg.norm(wanted), path

    jax.tree_util.tree_map_with_path(compare, tuple(actual), tuple(expected))


@pytest.mark.parametrize(
    ("mixer", "shards"), [(m, s) for m in INPUTS for s in SHARDS if (m, s) not in (("wide", 2), ("wide", 4))]
)
def test_shards_equal_the_whole_row(rng, mixer, shards):
    args, cotangents = chosen(arrays(rng), mixer), cotangents_for(rng, mixer)
    expected = compiled(mixer, 1)(args, SEGMENTS, cotangents)
    assert_equal(compiled(mixer, shards)(args, SEGMENTS, cotangents), expected)


pieces = st.lists(st.tuples(st.integers(0, 4), st.integers(1, 9)), min_size=1, max_size=8)


def layout(row):
    """(id, length), ... as the segment ids of a row; ids may return."""
    return np.array(([id_ for id_, length in row for _ in range(length)] + [0] * T)[:T], np.int32)


@settings(max_examples=6)
@given(st.lists(pieces.map(layout), min_size=B, max_size=B), st.sampled_from(["conv", "scan", "window"]))
def test_any_layout_of_segments_in_eight_shards(rows, mixer):
    rng, segment_ids = np.random.default_rng(3), np.stack(rows)
    real = (segment_ids != 0)[..., None, None]
    args, cotangents = chosen(arrays(rng), mixer), cotangents_for(rng, mixer, real)
    expected = compiled(mixer, 1)(args, segment_ids, cotangents)
    assert_equal(compiled(mixer, 8)(args, segment_ids, cotangents), expected, real)


@pytest.mark.parametrize("mixer", INPUTS)
def test_nothing_crosses_a_boundary_of_shards_and_segments(rng, mixer):
    """Gradients of one document's outputs by the inputs of the row: exactly zero outside it, in every row where no id returns."""
    args, rows = chosen(arrays(rng), mixer), np.array([0, 1, 2, 3, 6])
    for document in (1, 2, 3):
        inside = document == SEGMENTS
        y, *states = cotangents_for(rng, mixer, inside[..., None, None])
        _, gradients = compiled(mixer, 8)(args, SEGMENTS, (y, *(np.zeros_like(state) for state in states)))
        for name in set(args) - {"A", "D", "initial_state", "weight"}:
            reach = np.abs(np.asarray(gradients[name])).sum(tuple(range(2, gradients[name].ndim)))
            assert (reach[rows][~inside[rows]] == 0).all(), name
            assert (reach[inside] > 0).any(), name


@pytest.mark.parametrize("mixer", ["conv", "scan", "window", "full"])
def test_a_row_without_segments_is_one_document(rng, mixer):
    args, cotangents = chosen(arrays(rng), mixer), cotangents_for(rng, mixer, 1)
    expected = jax.jit(functools.partial(with_gradients, lambda args, _: whole(mixer, args, None)))(args, 0, cotangents)

    def run(args, _):
        body = jax.shard_map(
            lambda args: of_shard(mixer, args, None),
            mesh=Mesh(jax.devices()[:4], ("sequence",)),
            in_specs=({n: ROW if n in ("x", "dt", "B", "C", "q", "k", "v") else PartitionSpec() for n in args},),
            out_specs=ROW,
        )
        y, *states = body(args)
        return y, *(state[:, -1] for state in states)

    actual = jax.jit(functools.partial(with_gradients, run))(args, 0, cotangents)
    assert_equal(actual, expected, 1)


@pytest.mark.parametrize("size", [1, 3, 16, 20])
def test_a_halo_spans_shards_and_is_zero_before_the_row(size):
    row = np.arange(1, T + 1, dtype=np.int32)[None]
    body = jax.shard_map(
        lambda row: preceding(row, size, "sequence")[:, None],
        mesh=Mesh(jax.devices()[:4], ("sequence",)),
        in_specs=ROW,
        out_specs=ROW,
    )
    before = np.concatenate([np.zeros(size, np.int32), row[0]])
    expected = [before[shard * 4 : shard * 4 + size] for shard in range(4)]
    np.testing.assert_array_equal(jax.jit(body)(row)[0], expected)


@pytest.mark.parametrize("implementation", ["reference", "pallas_tpu"])
def test_the_scan_passes_its_state_through_every_implementation(rng, implementation):
    args, cotangents = chosen(arrays(rng), "scan"), cotangents_for(rng, "scan")
    expected = compiled("scan", 1)(args, SEGMENTS, cotangents)
    interpret = implementation.startswith("pallas")
    run = sharded("scan", 2, check_vma=not interpret, implementation=implementation, interpret=interpret)
    actual = jax.jit(functools.partial(with_gradients, run))(args, SEGMENTS, cotangents)
    assert_equal(actual, expected)


@pytest.mark.parametrize(
    ("shards", "t", "window"),
    # A window; pieces that are padded to a block; pieces of two blocks; an odd number of shards; shards without halves.
    [(2, 256, 150), (2, 256, None), (2, 1024, None), (3, 384, None), (2, 258, None)],
)
def test_splash_takes_the_keys_of_other_shards(rng, shards, t, window):
    """In the interpreter."""
    q, k, v, dy = (np.float32(rng.normal(size=(1, t, heads, 16))) for heads in (2, 1, 1, 2))
    segment_ids = np.repeat([1, 2, 0, 3], [100, 50, 6, t - 156])[None].astype(np.int32)
    real = (segment_ids != 0)[..., None, None]

    def expected(args, segment_ids):
        return (attention(**args, segment_ids=segment_ids, window=window, implementation="xla"),)

    @jax.shard_map(
        mesh=Mesh(jax.devices()[:shards], ("sequence",)),
        in_specs=({"q": ROW, "k": ROW, "v": ROW}, ROW),
        out_specs=ROW,
        check_vma=False,
    )
    def actual(args, segment_ids):
        settings = {"implementation": "splash", "interpret": True, "axis_name": "sequence", "block_size": 128}
        return (sharded_attention(**args, segment_ids=segment_ids, window=window, **settings),)

    arguments = {"q": q, "k": k, "v": v}, segment_ids, (dy * real,)
    results = [jax.jit(functools.partial(with_gradients, run))(*arguments) for run in (actual, expected)]
    assert_equal(*results, real)


def test_a_named_implementation_that_cannot_run_says_so(rng):
    args = chosen(arrays(rng), "window")
    with pytest.raises(ValueError, match="'splash' cannot run: its heads must be a multiple of 16, not 4"):
        jax.eval_shape(sharded("window", 2, implementation="splash"), args, SEGMENTS)


COLLECTIVE = re.compile(r"= (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")


def test_what_travels_for_the_scan_and_the_convolution_does_not_grow_with_the_row():
    """Of a row of 8 × 1,009 tokens, a prime that no other size has; forward and both gradients."""
    t, shards = 8 * 1009, 8
    shapes = {"x": (1, t, H, P), "dt": (1, t, H), "B": (1, t, G, N), "C": (1, t, G, N), "A": (H,), "D": (H,)}
    shapes |= {"initial_state": (1, H, P, N), "weight": (H, P, K)}
    segment_ids = jax.ShapeDtypeStruct((1, t), jnp.int32)
    rows = jax.sharding.NamedSharding(Mesh(jax.devices(), ("sequence",)), ROW)

    def place(a):
        return jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=rows) if t in a.shape else a

    for mixer in ("scan", "conv"):
        run = sharded(mixer, shards)
        args = {name: jax.ShapeDtypeStruct(shapes[name], jnp.float32) for name in INPUTS[mixer]}
        inputs = args, segment_ids, jax.eval_shape(run, args, segment_ids)
        step = jax.jit(functools.partial(with_gradients, run))
        moved = COLLECTIVE.findall(step.lower(*jax.tree.map(place, inputs)).compile().as_text())
        # For 8 shards the scan is shifted by one and goes three rounds, each way; the convolution moves its halo.
        assert len([op for _, op in moved if op == "collective-permute"]) >= (8 if mixer == "scan" else 2)
        for result, op in moved:
            sizes = [np.prod([int(n) for n in dims.split(",") if n]) for dims in re.findall(r"\[([\d,]*)\]", result)]
            assert max(sizes) <= 2 * H * P * max(N, K), (op, result)
