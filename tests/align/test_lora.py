"""Adapters: which matrices have them, what they add, and PEFT's layout."""

import dataclasses
import json
from pathlib import Path

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from plamo2_jax.adapters import peft
from plamo2_jax.adapters.attach import Adapters, merge
from plamo2_jax.adapters.config import LoraConfig
from plamo2_jax.adapters.targets import find_splits, find_targets
from plamo2_jax.convert.layout import public_tensors
from plamo2_jax.model import abstract_params, logical_axes
from plamo2_jax.model.axes import map_with_axes
from plamo2_jax.model.linear import array_axes, multiply

LORA = LoraConfig(rank=3, alpha=6.0)


def flat(tree):
    return flax.traverse_util.flatten_dict(tree, sep="/")


def random_like(tree, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), tree)


def public(config, params):
    """Matrices [out, in] and vectors of the public layout, by name."""
    leaves, tensors = flat(params), {}
    for tensor in public_tensors(config):
        rows = []
        for part in tensor.parts:
            ours = np.asarray(leaves[part.path])
            ours = ours if part.period is None else ours[part.period]
            rows.append(ours.transpose(part.inverse).reshape(-1))
        tensors[tensor.name] = np.concatenate(rows).reshape(tensor.shape)
    return tensors


def test_a_matrix_is_split_into_input_and_output(model):
    splits = {
        path.rsplit("/", 1)[1]: (split.inputs, split.outputs) for path, split in find_splits(model.config).items()
    }
    assert splits == {
        **{name: ((2,), (1, 3, 4)) for name in ("in_proj",)},
        **{name: ((1, 2), (3,)) for name in ("o_proj", "out_proj", "b_proj", "c_proj", "dt_down")},
        **{name: ((1,), (2, 3)) for name in ("q_proj", "k_proj", "v_proj")},
        **{name: ((1,), (2,)) for name in ("dt_up", "gate", "up", "down")},
    }


def test_targets_are_found_by_name_axis_and_public_name(model):
    names = {path.rsplit("/", 1)[1] for path in find_targets(model.config, LORA)}
    assert names == {
        *("in_proj", "b_proj", "c_proj", "dt_down", "dt_up", "out_proj"),
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate", "up", "down"),
    }
    by = {
        r"/(q|v)_proj ": {"q_proj", "v_proj"},
        r"axes=.*mamba_heads,head_dim,embed": {"out_proj"},
        r"layers\.1\.mlp\.gate_up_proj": {"gate", "up"},
    }
    for target, expected in by.items():
        found = find_targets(model.config, LoraConfig(targets=(target,)))
        assert {path.rsplit("/", 1)[1] for path in found} == expected, target
    for target in ("embedding", "norm/scale", "a_log", "nothing"):
        with pytest.raises(ValueError, match=f"no matrix of the layers matches '{target}'"):
            find_targets(model.config, LoraConfig(targets=("/mixer/", target)))
    # A pattern may match what another one matches.
    assert len(find_targets(model.config, LoraConfig(targets=("/mlp/", "/mlp/down ")))) == 6


def test_new_adapters_change_nothing(model, params):
    adapters = Adapters(model.config, LORA)
    made = adapters.create(None)
    assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, adapters.abstract)
    jax.tree.map(np.testing.assert_array_equal, adapters.merge(params, made), params)
    a = [leaf for path, leaf in flat(made).items() if path.endswith("lora_a")]
    assert all(float(jnp.std(leaf)) > 0.01 for leaf in a)


def test_what_is_added_by_hand(model, params):
    adapters = Adapters(model.config, LORA)
    made = random_like(adapters.abstract)
    merged, parts, before = flat(adapters.merge(params, made)), flat(made), flat(params)
    path = "run_0/layer_1/mixer/o_proj"
    a, b = parts[f"{path}/lora_a"], parts[f"{path}/lora_b"]
    expected = before[path] + 2.0 * np.tensordot(a[0], b[0], 1)[None]
    np.testing.assert_allclose(merged[path], expected, rtol=1e-5, atol=1e-5)
    path = "run_0/layer_0/mixer/in_proj"
    a, b = parts[f"{path}/lora_a"], parts[f"{path}/lora_b"]
    expected = before[path] + 2.0 * np.einsum("ler,lrzhp->lzehp", a, b)
    np.testing.assert_allclose(merged[path], expected, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def batch(model):
    """Tokens and segment ids [b, t]."""
    tokens = np.random.default_rng(0).integers(0, model.config.vocab_size, (2, 12))
    return jnp.asarray(tokens, jnp.int32), jnp.repeat(jnp.array([[1, 2], [1, 0]], jnp.int32), 6, axis=1)


def small_random(adapters):
    return jax.tree.map(lambda leaf: 0.05 * leaf, random_like(adapters.abstract))


def test_attached_adapters_equal_their_sum_with_the_base(model, params, batch):
    """Forward, gradient of the adapters, and decoding with a cache."""
    adapters = Adapters(model.config, LORA)
    made = small_random(adapters)

    def loss(combine, made):
        logits, _ = model.apply({"params": combine(params, made)}, *batch)
        return jnp.sum(jnp.sin(logits) * (batch[1] != 0)[..., None]), logits

    results = [
        jax.jit(jax.value_and_grad(lambda made, combine=combine: loss(combine, made), has_aux=True))(made)
        for combine in (adapters.attach, adapters.merge)
    ]
    for ours, theirs in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5 * np.abs(theirs).max())

    @jax.jit
    def decode(params):
        _, cache = model.apply({"params": params}, batch[0][:, :-1], cache=model.init_cache(2, 16))
        return model.apply({"params": params}, batch[0][:, -1:], cache=cache)

    for ours, theirs in zip(
        *(jax.tree.leaves(decode(combine(params, made))) for combine in (adapters.attach, adapters.merge)), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=2e-5 * max(np.abs(theirs).max(), 1e-3))


def test_no_gradient_and_no_sum_of_a_matrix_is_formed(model, params, batch):
    """No value of the program has the shape of a target with its layers' axis."""
    # Without recomputation the backward pass keeps the halves of in_proj, one of which has another matrix's shape.
    adapters, model = Adapters(model.config, LORA), model.clone(remat="block")
    shapes = {leaf.shape for path, leaf in flat(params).items() if path in adapters.targets}

    def made_by(combine):
        def loss(made, params):
            return jnp.sum(model.apply({"params": combine(params, made)}, *batch)[0])

        jaxpr = jax.make_jaxpr(jax.grad(loss))(adapters.create(None), params)
        return {var.aval.shape for eqn in jaxpr.eqns for var in eqn.outvars} & shapes

    assert made_by(adapters.attach) == set()
    assert made_by(adapters.merge) == shapes


def test_dropout_is_drawn_for_each_token_and_keeps_the_mean(model, params, batch):
    config = LoraConfig(rank=3, dropout=0.5, targets=("/down ",))
    adapters = Adapters(model.config, config)
    weight = adapters.attach(params, random_like(adapters.abstract), jax.random.key(0))["run_0"]["layer_0"]["mlp"][
        "down"
    ]
    x = jnp.ones((2, 5, weight.shape[1]))
    # Without the base what comes out is the adapter's.
    weight = weight[0].replace(base=jnp.zeros(weight.shape[1:]))

    def product(key):
        return multiply("btf,fd->btd", x, weight.replace(key=key))

    tokens = np.asarray(product(weight.key)).reshape(10, -1)
    assert len(np.unique(tokens[:, 0])) == 10
    full = product(None)
    draws = jax.vmap(product)(jax.random.split(jax.random.key(1), 400))
    assert np.abs(np.mean(draws, 0) - full).mean() < 0.2 * np.abs(full).mean()


def test_dropout_differs_between_layers_and_is_none_without_a_key(model, params):
    adapters = Adapters(model.config, dataclasses.replace(LORA, dropout=0.1))
    made = adapters.create(None)
    attached = flat(adapters.attach(params, made, jax.random.key(0)))
    keys = {tuple(np.asarray(jax.random.key_data(key))) for path in adapters.targets for key in attached[path].key}
    assert len(keys) == sum(attached[path].shape[0] for path in adapters.targets)
    assert all(flat(adapters.attach(params, made))[path].key is None for path in adapters.targets)


def test_arrays_of_an_adapter_name_their_axes(model, params):
    """What maps over parameters copes with attached adapters: every array has axes of its own."""
    adapters = Adapters(model.config, LORA)
    attached = adapters.attach(params, adapters.create(None), None)
    names = array_axes(logical_axes(model), attached)
    pairs = map_with_axes(lambda axes, leaf: len(axes) == leaf.ndim, names, attached)
    assert all(jax.tree.leaves(pairs))
    assert len(jax.tree.leaves(pairs)) == len(jax.tree.leaves(params)) + 2 * len(adapters.targets)


@pytest.fixture
def written(model, tmp_path):
    adapters = random_like(Adapters(model.config, LORA).abstract)
    return adapters, peft.write_peft(tmp_path / "adapter", model.config, LORA, adapters, "some/base")


def test_pefts_layout_says_the_same_sum(model, params, written):
    """What PEFT computes from the files, in the public layout: W + alpha / r · B A."""
    adapters, folder = written
    about, tensors = (
        json.loads((folder / "adapter_config.json").read_text()),
        load_file(folder / "adapter_model.safetensors"),
    )
    ours = public(model.config, Adapters(model.config, LORA).merge(params, adapters))
    for name, weight in public(model.config, params).items():
        module = name.removesuffix(".weight")
        if module in about["target_modules"]:
            a, b = (tensors[f"base_model.model.{module}.lora_{letter}.weight"] for letter in "AB")
            key = module.replace(".", r"\.")
            rank, alpha = (
                about["rank_pattern"].get(key, about["r"]),
                about["alpha_pattern"].get(key, about["lora_alpha"]),
            )
            assert len(a) == rank
            weight = weight + alpha / rank * b @ a
        np.testing.assert_allclose(ours[name], weight, rtol=1e-4, atol=1e-4, err_msg=name)
    assert len(tensors) == 2 * len(about["target_modules"]) == 2 * 10


def test_what_is_written_is_read_back(model, params, written):
    adapters, folder = written
    merged = merge(params, *_swap(peft.read_peft(folder, model.config)))
    expected = Adapters(model.config, LORA).merge(params, adapters)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), merged, expected)


def _swap(read):
    targets, adapters, scale = read
    return adapters, targets, scale


def test_adapters_of_others_are_read(model, params, tmp_path):
    """One dense adapter of a matrix that is three of our parameters."""
    rng = np.random.default_rng(0)
    module = "model.layers.layers.1.mixer.qkv_proj"
    before = public(model.config, params)
    out, into = before[f"{module}.weight"].shape
    a, b = rng.normal(size=(4, into)).astype(np.float32), rng.normal(size=(out, 4)).astype(np.float32)
    tensors = {f"base_model.model.{module}.lora_{name}.weight": value for name, value in (("A", a), ("B", b))}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    about = {"peft_type": "LORA", "r": 4, "lora_alpha": 16, "use_rslora": True}
    (tmp_path / "adapter_config.json").write_text(json.dumps(about))
    after = public(model.config, merge(params, *_swap(peft.read_peft(tmp_path, model.config))))
    before[f"{module}.weight"] = before[f"{module}.weight"] + 8 * b @ a
    for name, weight in before.items():
        np.testing.assert_allclose(after[name], weight, rtol=1e-4, atol=1e-4, err_msg=name)

    save_file({**tensors, "base_model.model.x.lora_A.weight": a}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(peft.AdapterError, match=r"base_model.model.x.lora_A.weight. does not belong to a matrix"):
        peft.read_peft(tmp_path, model.config)
    save_file({name: value[:, :3] for name, value in tensors.items()}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(peft.AdapterError, match="have shapes"):
        peft.read_peft(tmp_path, model.config)
    (tmp_path / "adapter_config.json").write_text(json.dumps({**about, "use_dora": True}))
    with pytest.raises(peft.AdapterError, match="use_dora=True is not supported"):
        peft.read_peft(tmp_path, model.config)
    with pytest.raises(peft.AdapterError, match="has no adapter"):
        peft.read_peft(tmp_path / "nowhere", model.config)


def test_adapters_are_few(model):
    adapters = Adapters(model.config, LoraConfig(rank=1, targets=("/q_proj ",)))
    full = flat(abstract_params(model))["run_0/layer_1/mixer/q_proj"].shape
    a, b = (leaf.shape for _, leaf in sorted(flat(adapters.abstract).items()))
    assert a == (full[0], full[1], 1)
    assert b == (full[0], 1, *full[2:])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rank": 0}, "rank=0"),
        ({"alpha": 0.0}, "alpha=0.0"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"targets": ()}, "targets="),
        ({"base_dtype": "int8"}, "base_dtype='int8'"),
        ({"targets": ("(",)}, "is not a regular expression"),
    ],
)
def test_settings_out_of_range(fields, message):
    with pytest.raises(ValueError, match=message):
        LoraConfig(**fields)


def test_options_of_adapters_need_no_word_before_them():
    from plamo2_jax.cli import sft
    from plamo2_jax.cli.run_options import parse

    default = dataclasses.replace(sft.example(), init_from=Path("base"))
    given = parse("sft", "sft.py", default, ["--lora.rank", "4", "--lora.targets", "/mlp/"], "").config
    assert given.task.lora == LoraConfig(rank=4, targets=("/mlp/",))
    again = parse("sft", "sft.py", given, ["--lora.alpha", "8"], "").config
    assert again.task.lora == LoraConfig(rank=4, targets=("/mlp/",), alpha=8.0)
    assert parse("sft", "sft.py", default, ["--steps", "3"], "").config.task.lora is None
