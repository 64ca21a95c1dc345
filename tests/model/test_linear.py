"""The linear primitive: precision of products, and quantized weights in the place of arrays."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plamo2_jax import checkpoint
from plamo2_jax.model import Plamo2, declarations, init_params, logical_axes
from plamo2_jax.model.axes import is_axes, is_matrix, map_with_axes
from plamo2_jax.model.linear import array_axes, multiply
from plamo2_jax.model.quantized import (
    QuantizedArray,
    quantize,
    quantize_activations,
    quantize_float8,
    quantize_params,
)
from plamo2_jax.sharding.mesh import MeshConfig, make_mesh
from plamo2_jax.sharding.rules import param_shardings


@pytest.fixture(scope="module")
def model(model):
    """Of one layer of each kind: compiled in a third of the time."""
    return Plamo2(dataclasses.replace(model.config, num_hidden_layers=2, full_attention_idx=()))


@pytest.fixture(scope="module")
def params(model):
    return jax.jit(lambda key: init_params(model, key))(jax.random.key(0))


def products(traced, platform):
    """The matrix products of a program lowered for a platform: the text of each `dot_general`."""
    lowered = traced.lower(lowering_platforms=(platform,))
    found = re.findall(r"stablehlo\.dot_general.*", lowered.as_text())
    assert len(found) > 20
    return found


def test_float32_activations_mean_full_products(model, params):
    """In the forward and the backward pass, and with a cache."""
    abstract = jax.eval_shape(lambda: params)
    tokens = jax.ShapeDtypeStruct((2, 40), jnp.int32)

    def loss(model, params, tokens):
        logits, _ = model.apply({"params": params}, tokens)
        _, cache = model.apply({"params": params}, tokens[:, :8], cache=model.init_cache(2, 64))
        cached, _ = model.apply({"params": params}, tokens[:, :1], cache=cache)
        return jnp.sum(logits) + jnp.sum(cached)

    def gradient(dtype):
        typed = model.clone(dtype=dtype, implementation="xla", attention_implementation="xla")
        return jax.jit(lambda params, tokens: jax.grad(lambda p: loss(typed, p, tokens))(params)).trace(
            abstract, tokens
        )

    full = gradient(jnp.float32)
    for platform in ("tpu", "cuda"):
        assert [dot for dot in products(full, platform) if "precision = [HIGHEST, HIGHEST]" not in dot] == []
    reduced = products(gradient(jnp.bfloat16), "tpu")
    # The hardware's own, but for the running sums of the scan.
    assert sum("HIGHEST" in dot for dot in reduced) < len(reduced) / 4
    assert all("HIGHEST" not in dot for dot in reduced if re.search(r"tensor<[^>]*bf16>, tensor<[^>]*bf16>", dot))


@pytest.mark.parametrize(
    ("spec", "sizes"),
    [
        ("btd,df->btf", (5, 6)),
        ("bthp,hpd->btd", (2, 3, 4)),
        ("btd,dhp->bthp", (5, 2, 3)),
        ("btd,vd->btv", (7, 5)),
    ],
)
def test_gradients_of_a_product_are_those_of_its_einsum(spec, sizes):
    """In the layout of the weight, however its axes are ordered. In float64, so that the order of a sum makes no difference."""
    letters = dict(zip(spec.split(",")[1].split("->")[0], sizes, strict=True)) | {"b": 2, "t": 3}
    rng = np.random.default_rng(0)
    of_x, of_weight, of_y = re.split(",|->", spec)

    def draw(letters_of):
        return jnp.asarray(rng.standard_normal([letters[letter] for letter in letters_of]), jnp.float64)

    with jax.enable_x64(True):
        x, weight, dy = draw(of_x), draw(of_weight), draw(of_y)
        gradients = jax.vjp(lambda x, weight: multiply(spec, x, weight), x, weight)[1](dy)
        expected = (
            jnp.einsum(f"{of_y},{of_weight}->{of_x}", dy, weight),
            jnp.einsum(f"{of_x},{of_y}->{of_weight}", x, dy),
        )
        for gradient, exact in zip(gradients, expected, strict=True):
            assert gradient.shape == exact.shape
            np.testing.assert_allclose(gradient, exact, rtol=1e-12, atol=1e-12)


def test_gradient_of_a_weight_sums_over_one_axis_on_cpu_alone():
    """Elsewhere, rows and tokens stay two axes, which can be divided over devices."""
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((2, 3, 5), (5, 6))]
    traced = jax.jit(jax.grad(lambda x, w: multiply("btd,df->btf", x, w).sum(), argnums=1)).trace(*shapes)
    for platform, axes in (("cpu", "[0] x [0]"), ("tpu", "[0, 1] x [0, 1]")):
        assert f"contracting_dims = {axes}" in traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [None, 8])
def test_values_are_rounded_to_the_nearest_step(rng, bits, symmetric, group_size):
    weight = jnp.asarray(rng.normal(size=(3, 16, 5)) + 0.5, jnp.float32)
    quantized = quantize(weight, (-2,), bits, group_size, symmetric)
    assert quantized.shape == weight.shape
    assert quantized.values.shape == (3, 5, 16)
    assert quantized.values.dtype == {4: jnp.int4, 8: jnp.int8}[bits]
    groups = 1 if group_size is None else 2
    assert quantized.scales.shape == (3, 5, groups)
    step = np.repeat(np.asarray(quantized.scales), 16 // groups, axis=-1).transpose(0, 2, 1)
    error = np.abs(np.asarray(quantized.dequantize()) - weight)
    # An uneven range also rounds the integer of zero.
    assert np.all(error <= (0.5 if symmetric else 1.0) * step * 1.001)
    assert np.max(error) > 0.1 * np.max(step)


def test_constant_and_empty_groups(rng):
    zeros = quantize(jnp.zeros((8, 4)), (-2,))
    assert np.all(np.asarray(zeros.dequantize()) == 0)
    with pytest.raises(ValueError, match=r"group_size=3 is not allowed: it must divide the 8 inputs"):
        quantize(jnp.zeros((8, 4)), (-2,), group_size=3)


def test_a_quantized_product_is_that_of_its_values(rng):
    """For a weight of several input axes, which is stored in another order."""
    weight = jnp.asarray(rng.normal(size=(3, 4, 6)), jnp.float32)
    x = jnp.asarray(rng.normal(size=(2, 5, 3, 4)), jnp.float32)
    quantized = quantize(weight, (-3, -2), group_size=4)
    expected = np.einsum("bthp,hpd->btd", x, np.asarray(quantized.dequantize()))
    np.testing.assert_allclose(multiply("bthp,hpd->btd", x, quantized), expected, rtol=1e-5, atol=1e-5)


def test_float8_values_and_scales(rng):
    """Each output's largest magnitude becomes 448; the others are rounded to three fraction bits."""
    weight = jnp.asarray(rng.normal(size=(3, 4, 6)), jnp.float32).at[:, :, 2].set(0)
    quantized = quantize_float8(weight, (-3, -2))
    assert quantized.values.dtype == jnp.float8_e4m3fn
    assert quantized.values.shape == (6, 3, 4)
    assert quantized.scales.shape == (6, 1)
    values = np.asarray(quantized.values, np.float32)
    largest = np.abs(values).max(axis=(1, 2))
    np.testing.assert_array_equal(largest, np.where(np.arange(6) == 2, 0, 448))
    np.testing.assert_allclose(quantized.dequantize(), weight, rtol=2**-4, atol=1e-3)


@pytest.mark.parametrize(("kind", "step"), [("int8", 1 / 254), ("float8", 2**-4)])
def test_activations_are_quantized_per_token(rng, kind, step):
    """One scale a token over all contracted axes; the product is that of the rounded activations."""
    x = np.asarray(rng.normal(size=(2, 5, 3, 4)) * rng.uniform(0.01, 100, (2, 5, 1, 1)), np.float32)
    x[0, 0] = 0
    weight = jnp.asarray(rng.normal(size=(3, 4, 6)), jnp.float32)
    quantized = quantize(weight, (-3, -2)).replace(activations=kind)
    values, scales = quantize_activations(jnp.asarray(x), (2, 3), kind)
    assert scales.shape == (2, 5, 1, 1)
    rounded = np.asarray(values, np.float32) * np.asarray(scales)
    most = np.abs(x).max(axis=(2, 3), keepdims=True)
    assert np.all(np.abs(rounded - x) <= step * most * 1.001)
    assert np.abs(rounded - x).max() > 0
    expected = np.einsum("bthp,hpd->btd", rounded, np.asarray(quantized.dequantize()))
    found = multiply("bthp,hpd->btd", jnp.asarray(x), quantized)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(("bits", "group_size", "bound"), [(8, None, 0.06), (4, 4, 0.6)])
def test_a_quantized_model_runs_and_decodes(model, params, rng, bits, group_size, bound):
    """All matrices, embedding and head included: a whole row, and a prefill and a token after it with a cache."""
    tokens = jnp.asarray(rng.integers(0, model.config.vocab_size, (2, 16)), jnp.int32)
    quantized = quantize_params(params, declarations(model), bits, group_size)
    axes = jax.tree.leaves(logical_axes(model), is_leaf=is_axes)
    found = jax.tree.leaves(quantized, is_leaf=lambda leaf: isinstance(leaf, QuantizedArray))
    assert sum(isinstance(leaf, QuantizedArray) for leaf in found) == sum(map(is_matrix, axes))

    @jax.jit
    def run(params):
        whole, _ = model.apply({"params": params}, tokens)
        first, cache = model.apply({"params": params}, tokens[:, :12], cache=model.init_cache(2, 16))
        token, _ = model.apply({"params": params}, tokens[:, 12:13], cache=cache)
        return whole[:, :13], jnp.concatenate([first, token], axis=1)

    exact = jax.jit(lambda params: model.apply({"params": params}, tokens[:, :13])[0])(params)
    whole, decoded = run(quantized)
    np.testing.assert_allclose(decoded, whole, atol=1e-4 * np.abs(whole).max())
    error = np.linalg.norm(whole - exact) / np.linalg.norm(exact)
    assert 1e-4 < error < bound


def test_quantized_parameters_are_counted_placed_and_stored(model, params, tmp_path):
    quantized = quantize_params(params, declarations(model), group_size=8)
    names = array_axes(logical_axes(model), quantized)
    assert jax.tree.structure(map_with_axes(lambda axes, leaf: leaf, names, quantized)) == jax.tree.structure(quantized)
    mesh = make_mesh(MeshConfig(fsdp=2), jax.devices()[:2])
    placed = jax.device_put(quantized, param_shardings(names, quantized, mesh, "fsdp"))
    values = placed["run_0"]["layer_0"]["mlp"]["down"].values
    count, embed, mlp = values.shape
    assert values.sharding.shard_shape(values.shape) == (count, embed // 2, mlp)
    tokens = jnp.ones((4, 8), jnp.int32)
    run = jax.jit(lambda params: model.apply({"params": params}, tokens)[0])
    np.testing.assert_allclose(run(placed), run(quantized), atol=2e-5)
    checkpoint.save_model(tmp_path / "run", model.config, quantized)
    restored = checkpoint.restore_params(tmp_path / "run", jax.eval_shape(lambda: quantized))
    jax.tree.map(np.testing.assert_array_equal, restored, quantized)


def test_a_weight_of_another_shape_is_refused(model, params):
    wrong = {**params, "embedding": quantize(jnp.zeros((7, model.config.hidden_size)), (-1,))}
    with pytest.raises(Exception, match="embedding"):
        model.apply({"params": wrong}, jnp.ones((1, 4), jnp.int32))


def test_new_parameters_are_arrays(model):
    made = jax.eval_shape(lambda: init_params(Plamo2(model.config), jax.random.key(0)))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(made))
