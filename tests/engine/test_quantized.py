"""Decoding with quantized weights and with an int8 cache: the promises of the engine hold, and no float copy of a weight is made."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from plamo2_jax.engine.engine import CAPACITY, Engine
from plamo2_jax.engine.generator import Generator
from plamo2_jax.engine.prefix_cache import PrefixCache
from plamo2_jax.engine.request import Request
from plamo2_jax.engine.sampling import SamplingConfig
from plamo2_jax.engine.speculation import SpeculationConfig
from plamo2_jax.engine.step import decode
from plamo2_jax.engine.stop import StopConfig
from plamo2_jax.model import Plamo2, declarations, init_params, logical_axes
from plamo2_jax.model.linear import array_axes
from plamo2_jax.model.quantized import quantize_params
from plamo2_jax.sharding.mesh import MeshConfig, make_mesh
from plamo2_jax.sharding.rules import param_shardings
from plamo2_kernels import native
from plamo2_kernels.quant import quantized_product, xla
from support import meshes

SLOTS, LENGTH, SIZE = 3, 64, 16


@pytest.fixture(scope="module")
def quantized(model, params):
    return Generator(model, quantize_params(params, declarations(model), 8), key_dtype="int8", prefill_size=SIZE)


def engine(generator, **options):
    return Engine(generator.model, generator.params, slots=SLOTS, max_length=LENGTH, prefill_size=SIZE, **options)


def request(length, *, count=8, seed=0, temperature=1.0):
    prompt = np.random.default_rng(length).integers(5, 280, length).astype(np.int32)
    return Request(prompt, SamplingConfig(temperature=temperature), StopConfig(count), (), seed, 0)


def written(burst, slot):
    made = burst.tokens[:, slot] >= 0
    return burst.tokens[made, slot], burst.logprobs[made, slot]


def test_a_request_is_the_same_bits_alone_and_in_a_crowd(quantized):
    wanted = [request(5, seed=1), request(37), request(20, seed=2)]
    crowd = engine(quantized)
    parts = [[] for _ in wanted]
    for slot, one in enumerate(wanted):
        crowd.insert(slot, crowd.prefill(one.prompt), one)
        burst = crowd.step(2)
        for other in range(slot + 1):
            parts[other].append(written(burst, other))
    burst = crowd.step(8)
    for slot, one in enumerate(wanted):
        parts[slot].append(written(burst, slot))
        alone = engine(quantized)
        alone.insert(slot, alone.prefill(one.prompt), one)
        for ours, expected in zip(
            map(np.concatenate, zip(*parts[slot], strict=True)), written(alone.step(8), slot), strict=True
        ):
            np.testing.assert_array_equal(ours, expected)


def test_the_prefix_cache_changes_no_bit(quantized):
    wanted = request(41)
    results = []
    for cache in (None, PrefixCache(1 << 30)):
        one = engine(quantized, prefix_cache=cache)
        for _ in range(3):
            prefix = one.prefill(wanted.prompt)
        one.insert(0, prefix, wanted)
        results.append(written(one.step(8), 0))
    assert prefix.cached_tokens > 0
    for ours, expected in zip(*results, strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_drafts_change_no_token(quantized):
    """The new tokens of a draft are rounded like those in the cache."""
    prompt = np.tile(np.arange(5, 12, dtype=np.int32), 4)
    wanted = Request(prompt, SamplingConfig(temperature=0), StopConfig(24), (), 0, 0)
    results = []
    for speculation in (None, SpeculationConfig(drafts=3)):
        one = engine(quantized, speculation=speculation)
        one.insert(0, one.prefill(prompt), wanted)
        burst = one.step(24)
        results.append(written(burst, 0))
    assert burst.drafted[0] > 0
    np.testing.assert_array_equal(results[0][0], results[1][0])
    # Rounding in float32 may take a cached value to the next of its 255 steps.
    np.testing.assert_allclose(results[0][1], results[1][1], atol=5e-3)


def test_an_int8_cache_is_close_to_a_float_cache(model, params, rng):
    tokens = jnp.asarray(rng.integers(5, 280, (2, 24)), jnp.int32)

    def decoded(key_dtype):
        typed = model.clone(key_dtype=key_dtype)

        run = jax.jit(lambda params, tokens, cache: typed.apply({"params": params}, tokens, cache=cache))
        cache, parts = typed.init_cache(2, 32), []
        held = sum(leaf.nbytes for leaf in jax.tree.leaves(cache))
        for piece in (slice(0, 16), *(slice(i, i + 1) for i in range(16, 24))):
            logits, cache = run(params, tokens[:, piece], cache)
            parts.append(logits)
        return jnp.concatenate(parts, axis=1), held

    (exact, size), (rounded, smaller) = decoded(None), decoded("int8")
    error = np.linalg.norm(rounded - exact) / np.linalg.norm(exact)
    assert 1e-5 < error < 2e-2
    assert smaller < size


@pytest.mark.parametrize("products", ["auto", "xla"])
@pytest.mark.parametrize("bits", [8, 4])
def test_a_decode_step_copies_no_weight_to_float(bits, products):
    """By the compiler's count of temporary memory."""
    config = dataclasses.replace(meshes.CONFIG, hidden_size=64, intermediate_size=16384, vocab_size=16384)
    model = Plamo2(config, scan_layers=False)
    shapes = jax.eval_shape(
        lambda: quantize_params(init_params(model, jax.random.key(0)), declarations(model), bits, 32)
    )
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    one = Engine(model, params, slots=2, max_length=32)
    usable, (bits_allowed, constrained) = one._usable, one._unconstrained
    typed = model.clone(product_implementation=products)
    arguments = (typed, params, one._state, usable, bits_allowed, constrained, np.int32(1), np.bool_(False))
    compiled = decode.lower(*arguments, capacity=CAPACITY).compile()
    largest = 4 * config.hidden_size * config.vocab_size
    used = compiled.memory_analysis().temp_size_in_bytes
    # XLA on CPU unpacks int4 to int8 to slice it: eight matrices, of a quarter of the size of their float copies.
    in_cpp = products == "auto" and native.is_available()
    bound = 2.5 if bits == 4 and not in_cpp else 0.6
    assert used < bound * largest, f"{used} bytes; a weight in float32 has {largest}"
    if in_cpp:
        assert "plamo2_integers" in compiled.as_text()


@pytest.mark.parametrize("devices", [2, 8])
@pytest.mark.parametrize("activations", [None, "int8"])
def test_int8_products_on_several_devices_have_the_bits_of_one(rng, activations, devices):
    """The scale of a row is the largest magnitude on all devices, and sums of integers have no rounding errors."""
    mesh = jax.sharding.Mesh(jax.devices()[:devices], "d")
    arrays = (
        jnp.asarray(rng.normal(size=(5, 256)), jnp.float32),
        jnp.asarray(rng.integers(-127, 128, (48, 256)), jnp.int8),
        jnp.asarray(rng.uniform(0.5, 1.5, (48, 1)), jnp.float32),
    )
    run = jax.jit(lambda *arrays: quantized_product(*arrays, activations=activations, implementation="xla"))
    expected = np.asarray(run(*arrays))
    outputs, inputs = (P(), P("d"), P("d")), (P(None, "d"), P(None, "d"), P())
    for specs in (outputs, inputs):
        placed = [jax.device_put(array, NamedSharding(mesh, spec)) for array, spec in zip(arrays, specs, strict=True)]
        np.testing.assert_array_equal(run(*placed), expected)


@pytest.mark.parametrize(
    ("bits", "products", "devices", "bound"),
    [
        (8, "xla", 2, 1e-4),
        (8, "accelerator", 2, 1e-5),
        (4, "xla", 8, 1e-5),
    ],
)
def test_tensor_parallel_decoding_equals_one_device(monkeypatch, bits, products, devices, bound):
    """With "accelerator", the operations that run on TPU and GPU.

    Integer products on CPU round activations to steps of 1/32512 of the largest magnitude of a row. On a mesh, XLA fuses the operations
    between the products in another way, so their last bits differ (by 4e-7 here), and a rounding may go to the next step. After a few
    layers the roundings are independent: they differ by sqrt(2 / 12) steps in root mean square, 1.3e-5 of the largest magnitude, or about
    3e-5 of the norm. The logits differ by 4e-5.
    """
    if products == "accelerator":
        monkeypatch.setattr(xla, "_on_cpu", xla._on_accelerator)
        products = "xla"
    model = Plamo2(meshes.CONFIG, dtype=jnp.float32, product_implementation=products)
    params = quantize_params(init_params(model, jax.random.key(0)), declarations(model), bits)
    tokens = jnp.asarray(np.random.default_rng(0).integers(1, meshes.VOCAB, (2, 9)), jnp.int32)

    def decoded(model, params):
        @jax.jit
        def run(params, tokens):
            _, cache = model.apply({"params": params}, tokens[:, :8], cache=model.init_cache(2, 16))
            return model.apply({"params": params}, tokens[:, 8:], cache=cache)[0]

        return np.asarray(run(params, tokens))

    mesh = make_mesh(MeshConfig(tensor=devices), jax.devices()[:devices])
    names = array_axes(logical_axes(model), params)
    placed = jax.device_put(params, param_shardings(names, params, mesh, "tensor"))
    expected = decoded(model, params)
    ours = decoded(model.clone(mesh=mesh), placed)
    assert np.linalg.norm(ours - expected) <= bound * np.linalg.norm(expected)
