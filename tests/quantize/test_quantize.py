"""Quantization of a whole model: formats, folded scales, the order of layers, continuation, budgets and trained scales."""

import dataclasses
import re

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plamo2_jax.errors import PlamoError
from plamo2_jax.model import Plamo2
from plamo2_jax.model.plamo2 import declarations
from plamo2_jax.model.quantized import QuantizedArray
from plamo2_jax.quantize.config import QuantizeConfig, matrix_formats
from plamo2_jax.quantize.divergence import features, kl_divergence
from plamo2_jax.quantize.finetune import finetune_scales
from plamo2_jax.quantize.layers import layers
from plamo2_jax.quantize.progress import Progress
from plamo2_jax.quantize.quantize import fold, quantize_leaves
from plamo2_jax.quantize.report import table, total_bytes
from plamo2_jax.quantize.search import Candidate, candidates, choose, search_formats

INT4 = QuantizeConfig("awq+gptq", 4, group_size=32)


@pytest.fixture(scope="module")
def network(config):
    """Logits by parameters and tokens, of leaves that may be quantized."""
    model = Plamo2(config, scan_layers=False)

    @jax.jit
    def run(leaves, batch):
        return features(model, flax.traverse_util.unflatten_dict(leaves, sep="/"), batch)

    return run


@pytest.fixture(scope="module")
def quantized(config, params, batches):
    """The model in 4 bits by AWQ and GPTQ, its reports and the formats."""
    leaves = flat(params, config)
    formats = matrix_formats(config, INT4)
    reports = quantize_leaves(config, leaves, formats, INT4, batches)
    return leaves, reports, formats


def flat(params, config):
    from plamo2_jax.engine.weights import unstack

    return dict(flax.traverse_util.flatten_dict(unstack(Plamo2(config), params), sep="/"))


def same(left, right):
    assert left.keys() == right.keys()
    for path, leaf in left.items():
        jax.tree.map(np.testing.assert_array_equal, leaf, right[path])


def test_which_matrices_are_quantized(config):
    formats = matrix_formats(config, INT4)
    kinds = {path.split("/", 1)[-1]: (form.kind, form.groups) for path, form in formats.items()}
    assert kinds == {
        "embedding": ("int8", 1),
        "layer_0/mixer/in_proj": ("int8", 1),
        "layer_0/mixer/out_proj": ("int8", 1),
        "layer_1/mixer/q_proj": ("int4", 1),
        "layer_1/mixer/k_proj": ("int4", 1),
        "layer_1/mixer/v_proj": ("int4", 1),
        "layer_1/mixer/o_proj": ("int4", 4),
        **{f"layer_{i}/mlp/{name}": ("int4", 1) for i in (0, 1) for name in ("gate", "up", "down")},
    }
    chosen = QuantizeConfig("rtn", 8, "int8", keep_float=("mlp",), bits_for=(("down", 8), ("b_proj", 8)))
    kept = matrix_formats(config, chosen)
    mlps = {path.rpartition("/")[2] for path in kept if "/mlp/" in path}
    assert mlps == {"down"}
    assert any("b_proj" in path for path in kept)
    assert kept["embedding"].activations is None
    assert {form.activations for path, form in kept.items() if path != "embedding"} == {"int8"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "smoothquant"}, "smoothquant needs quantized activations"),
        ({"activations": "float8"}, "activations='float8' is not allowed"),
        ({"keep_float": ("(",)}, "'(' is not a regular expression"),
        ({"damping": 0.0}, "damping=0.0 is not allowed"),
        ({"method": "GPTQ"}, "QuantizeConfig.method='GPTQ' is not allowed: it must be one of rtn, gptq"),
        ({"activations": "int4"}, "activations='int4' is not allowed: it must be none, int8 or float8"),
        ({"bits": 3}, "bits=3 is not allowed: it must be 8, 4 or 'float8'"),
        ({"bits": "8"}, "bits='8' is not allowed"),
        ({"bits": 4, "group_size": 0}, "group_size=0 is not allowed: it must be 32, 64, 128 or None"),
        ({"keep_float": "embedding"}, "keep_float='embedding' is not allowed: it must be a sequence"),
        ({"bits_for": (("mlp", 3),)}, "it must be pairs of a regular expression and 8, 4 or 'float8'"),
    ],
)
def test_options_that_contradict_are_refused(fields, message):
    with pytest.raises(PlamoError, match=re.escape(message)):
        QuantizeConfig(**fields)


def test_a_group_that_does_not_divide_and_an_unknown_path_are_refused(config):
    with pytest.raises(PlamoError, match="mlp/down has 32 inputs, which are not divisible by group_size=128"):
        matrix_formats(config, QuantizeConfig("rtn", 4, group_size=128))
    with pytest.raises(PlamoError, match=r"keep_float=\('.',\) leaves all matrices in floating point"):
        matrix_formats(config, QuantizeConfig(keep_float=(".",)))
    with pytest.raises(PlamoError, match="'mixers/' matches no matrix: paths look like"):
        matrix_formats(config, QuantizeConfig(keep_float=("mixers/",)))


def test_folded_scales_do_not_change_the_model(config, leaves, batches, network, rng):
    """Both norms of both layers, and the product of the MLP; with the norms' offsets of 1."""
    before = network(leaves, batches[0])
    declared = flax.traverse_util.flatten_dict(declarations(Plamo2(config, scan_layers=False)), sep="/")
    folded = 0
    for layer in layers(config):
        own = {path: leaf for path, leaf in leaves.items() if path.startswith(layer.path)}
        for producer, contracted in (
            (f"{layer.path}/pre_mixer_norm/scale", "embed"),
            (f"{layer.path}/pre_mlp_norm/scale", "embed"),
            (f"{layer.path}/mlp/up", "mlp"),
        ):
            part = "/mlp/" if "mlp" in producer else "/mixer/"
            readers = [path for path in own if part in path and declared[path].contracts == (contracted,)]
            assert readers
            size = leaves[producer].shape[-1]
            fold(declared, own, producer, readers, jnp.asarray(np.exp(rng.normal(size=size)), jnp.float32))
            folded += 1
        leaves |= own
    assert folded == 6
    after = network(leaves, batches[0])
    assert np.linalg.norm(after - before) < 1e-5 * np.linalg.norm(before)


def test_four_bits_by_awq_and_gptq_lose_less_than_rounding(config, params, batches, quantized, network):
    leaves, reports, formats = quantized
    plain, nearest = flat(params, config), flat(params, config)
    quantize_leaves(config, nearest, formats, QuantizeConfig("rtn", 4, group_size=32))
    expected = network(plain, batches[0])
    lost, lost_by_rounding = (np.linalg.norm(network(each, batches[0]) - expected) for each in (leaves, nearest))
    assert lost < 0.8 * lost_by_rounding
    assert {report.path for report in reports} == set(formats)
    assert {path for path, leaf in leaves.items() if isinstance(leaf, QuantizedArray)} == set(formats)
    text = table(config, reports, total_bytes(plain), total_bytes(leaves))
    # The embedding has no inputs that calibration could measure.
    kinds = {line.split()[0]: line.split()[-1] for line in text.splitlines()[1:-2]}
    assert kinds == {"MLPs": "products", "Mamba": "products", "attention": "products", "embedding": "weights"}
    assert text.splitlines()[-1].split() == ["model", "13", f"{total_bytes(plain):,}", f"{total_bytes(leaves):,}"]


def test_dt_up_is_rounded_to_nearest_because_its_inputs_are_not_recorded(config, params, batches):
    """It reads the normed dt, not the inputs of b_proj and c_proj before it."""
    found = []
    for method in ("rtn", "gptq"):
        options = QuantizeConfig(method, 8, bits_for=(("dt_up", 8), ("b_proj", 8)))
        formats = {
            path: form for path, form in matrix_formats(config, options).items() if re.search("dt_up|b_proj", path)
        }
        leaves = flat(params, config)
        quantize_leaves(config, leaves, formats, options, batches)
        found.append({path: np.asarray(leaves[path].values) for path in formats})
    for path, values in found[0].items():
        assert np.array_equal(values, found[1][path]) == ("dt_up" in path), path


def test_smoothquant_with_quantized_activations(config, params, batches, network):
    """An outlier channel after the norms: with activations in 8 bits, the scales divide the loss."""
    losses = []
    for method in ("rtn", "smoothquant"):
        leaves = flat(params, config)
        for path in leaves:
            if "pre_" in path:
                leaves[path] = jnp.asarray(leaves[path]).at[3].set(60.0)
        expected = network(dict(leaves), batches[0])
        options = QuantizeConfig(method, 8, "int8", keep_float=("embedding",))
        quantize_leaves(config, leaves, matrix_formats(config, options), options, batches)
        losses.append(np.linalg.norm(network(leaves, batches[0]) - expected))
    assert losses[1] < 0.8 * losses[0]


def test_an_interrupted_quantization_continues(config, params, batches, quantized, tmp_path):
    expected, reports, formats = quantized

    def begun():
        progress = Progress(tmp_path / "out.progress")
        progress.begin(INT4, formats, batches, "model")
        return progress

    def stop(layer):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_leaves(config, flat(params, config), formats, INT4, batches, progress=begun(), on_layer=stop)
    assert [path.name for path in sorted((tmp_path / "out.progress").iterdir())] == [
        "key.json",
        "layer_00000.safetensors",
    ]
    leaves = flat(params, config)
    found = quantize_leaves(config, leaves, formats, INT4, batches, progress=begun())
    same(leaves, expected)
    assert found == reports
    # Another quantization does not use the layers; a damaged layer is done again.
    other = Progress(tmp_path / "out.progress")
    (tmp_path / "out.progress" / "layer_00001.safetensors").write_bytes(b"damaged")
    assert other.load(1) is None
    assert other.load(0) is not None
    other.begin(INT4, formats, batches, "another model")
    assert other.load(0) is None
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "notes.txt").write_text("mine")
    with pytest.raises(PlamoError, match="is not a folder of finished layers"):
        Progress(tmp_path / "notes").begin(INT4, formats, batches, "model")
    assert (tmp_path / "notes" / "notes.txt").exists()


def test_a_budget_is_kept_where_it_hurts_least(config, leaves, batches):
    options = QuantizeConfig(group_size=32)
    formats = matrix_formats(config, options)
    smaller = candidates(config, formats, options)
    assert "embedding" not in smaller
    pinned = candidates(config, formats, dataclasses.replace(options, bits_for=(("mlp/", 8),)))
    assert pinned.keys() == {path for path in smaller if "/mlp/" not in path}
    eight = dict(leaves)
    quantize_leaves(config, eight, formats, options)
    full = total_bytes(eight)
    assert search_formats(config, leaves, formats, full, options, batches[:1]) == formats
    budget = full - sum(saved for _, saved in smaller.values()) // 3
    measured = []
    mix = search_formats(config, leaves, formats, budget, options, batches[:1], on_matrix=lambda: measured.append(1))
    assert len(measured) == len(smaller)
    kinds = {form.kind for path, form in mix.items() if path != "embedding"}
    assert kinds == {"int8", "int4"}
    quantize_leaves(config, leaves, mix, options)
    assert full * 0.5 < total_bytes(leaves) <= budget
    with pytest.raises(PlamoError, match="--budget 10 is too small: with 4 bits in all allowed matrices"):
        search_formats(config, dict(leaves), formats, 10, options, batches[:1])


def test_the_least_divergence_per_byte_comes_first(config):
    formats = matrix_formats(config, QuantizeConfig(group_size=32))
    paths = [path for path in formats if "/mlp/" in path][:3]
    small = dataclasses.replace(formats[paths[0]], kind="int4")
    found = [
        Candidate(paths[0], small, 100, 0.3),
        Candidate(paths[1], small, 10, 0.02),
        Candidate(paths[2], small, 50, 0.2),
    ]
    chosen = choose(formats, found, 60)
    assert [path for path in paths if chosen[path].kind == "int4"] == [paths[0], paths[1]]


def test_trained_scales_are_closer_to_the_float_model(config, params, batches, quantized):
    student, teacher = quantized[0], flat(params, config)
    found = []
    trained = finetune_scales(config, teacher, student, batches, steps=24, on_step=found.append)
    assert len(found) == 24
    model = Plamo2(config, scan_layers=False)

    @jax.jit
    def divergence(teacher, leaves, batch):
        reference, params = (flax.traverse_util.unflatten_dict(each, sep="/") for each in (teacher, leaves))
        expected, x = (features(model, each, batch) for each in (reference, params))
        return kl_divergence(model, reference, expected, params, x, batch)

    before, after = (float(divergence(teacher, leaves, batches[0])) for leaves in (student, trained))
    assert 0 < after < 0.9 * before
    for path, leaf in trained.items():
        if isinstance(leaf, QuantizedArray):
            np.testing.assert_array_equal(leaf.values, student[path].values)
            assert np.all(np.asarray(leaf.scales) > 0)
