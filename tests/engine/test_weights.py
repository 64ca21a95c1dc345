"""Parameters as inference holds them: loaded one by one, whatever the folder's kind, and the same as loaded whole and cast."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from plamo2_jax.checkpoint import fingerprint, save_model
from plamo2_jax.config import LayerKind
from plamo2_jax.convert.hf import to_public
from plamo2_jax.convert.load import load_model
from plamo2_jax.engine import weights
from plamo2_jax.engine.generator import Generator
from plamo2_jax.engine.sampling import SamplingConfig
from plamo2_jax.engine.stop import StopConfig
from plamo2_jax.engine.weights import cast_matrices, load_weights, unstack
from plamo2_jax.model import Plamo2
from plamo2_jax.model.outputs_first import OutputsFirst
from plamo2_jax.model.plamo2 import declarations
from plamo2_jax.sharding.mesh import MeshConfig, make_mesh


@pytest.fixture(scope="module", params=["run", "public"])
def folder(request, tmp_path_factory, model, params, tokenizer):
    folder = tmp_path_factory.mktemp("weights")
    save_model(folder / "run", model.config, params, tokenizer)
    if request.param == "public":
        to_public(folder / "run", folder / "public")
    return folder / request.param


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tensor", [1, 4])
def test_loaded_weights_are_the_whole_model_cast_and_taken_apart(folder, dtype, tensor):
    mesh = make_mesh(MeshConfig(fsdp=1, tensor=tensor), jax.devices()[:tensor]) if tensor > 1 else None
    network, loaded = load_weights(folder, dtype=dtype, mesh=mesh)
    whole = load_model(folder)
    stacked = Plamo2(whole.config, dtype=jnp.dtype(dtype))
    expected = unstack(stacked, cast_matrices(stacked, whole.params))

    stored = jax.tree.leaves(loaded.params, is_leaf=lambda leaf: isinstance(leaf, OutputsFirst))
    ordered = [leaf for leaf in stored if isinstance(leaf, OutputsFirst)]
    assert bool(ordered) == (dtype == "float32" and mesh is None)

    def same(got, want):
        got = got.array() if isinstance(got, OutputsFirst) else got
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(got, want)

    jax.tree.map(same, loaded.params, expected, is_leaf=lambda leaf: isinstance(leaf, OutputsFirst))
    if ordered:
        assert fingerprint(loaded.config, loaded.params) == fingerprint(whole.config, whole.params)
    assert not network.scan_layers
    if mesh is not None:
        shares = {leaf.sharding.shard_shape(leaf.shape) != leaf.shape for leaf in jax.tree.leaves(loaded.params)}
        assert shares == {True, False}
        gate = loaded.params["run_0_period_1"]["layer_0"]["mlp"]["gate"]
        assert isinstance(gate.sharding, NamedSharding)
        assert gate.sharding.shard_shape(gate.shape) == (64, 24)


@pytest.mark.parametrize("tensor", [2, 4, 8])
def test_eight_devices_write_what_one_does(model, params, tokenizer, tmp_path, tensor):
    """Six Mamba heads, four query heads and two key heads: on 2 devices all divide, on 4 the Mamba heads do not, on 8 none do."""
    save_model(tmp_path / "run", model.config, params, tokenizer)
    mesh = make_mesh(MeshConfig(fsdp=1, tensor=tensor), jax.devices()[:tensor])
    network, loaded = load_weights(tmp_path / "run", mesh=mesh)
    prompts = [[1], list(range(5, 22)), [1, *range(200, 239)]]
    for sampling in (SamplingConfig(temperature=0), SamplingConfig(top_p=0.9, top_k=50, repetition_penalty=1.1)):
        rows = [
            Generator(*one, tokenizer, prefill_size=16).generate(
                prompts, sampling=sampling, stop=StopConfig(12, ids=()), seed=1
            )
            for one in ((model, params), (network, loaded.params))
        ]
        for one, divided in zip(*rows, strict=True):
            assert one.token_ids == divided.token_ids
            np.testing.assert_allclose(one.logprobs, divided.logprobs, atol=1e-5)


def test_the_order_of_a_tpu_keeps_a_contracted_axis_in_its_tiles(monkeypatch, folder):
    """The same values in another order, here in the memory of a CPU."""
    monkeypatch.setattr(weights, "_on_tpu", lambda model: True)
    network, loaded = load_weights(folder)
    plain = load_model(folder)
    stacked = Plamo2(plain.config, dtype=jnp.float32)
    expected = unstack(stacked, cast_matrices(stacked, plain.params))
    jax.tree.map(np.testing.assert_array_equal, loaded.params, expected)

    def in_tiles(declared, leaf):
        order = leaf.format.layout.major_to_minor
        if len(declared.contracts) == 1 and leaf.ndim > 2:
            assert {declared.names[axis] for axis in order[-2:]} & set(declared.contracts), declared.names
        return order != tuple(range(leaf.ndim))

    moved = jax.tree.leaves(jax.tree.map(in_tiles, declarations(network), loaded.params))
    # in_proj of the Mamba layers; q_proj, k_proj and v_proj of the attention layers.
    kinds = [kind for group in network.config.layer_groups for kind in group.kinds * group.count]
    assert sum(moved) == sum(1 if kind is LayerKind.MAMBA else 3 for kind in kinds)
