"""On a mesh every slice is read once by whoever holds it, and nothing else."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from plamo2_jax.convert.hf import from_public
from plamo2_jax.convert.load import load_model
from plamo2_jax.convert.read import read_params
from plamo2_jax.model import Plamo2, logical_axes
from plamo2_jax.model.axes import is_axes
from support.checkpoints import CONFIG

# Both axes of the mesh in use, inner and outer axes of public tensors cut, and (as the second) one whose slices have copies.
RULES = {
    "cut both ways": {"embed": "data", "mlp": "model", "heads": "model", "mamba_heads": "model", "vocab": "model"},
    "cut inside heads": {"head_dim": "model", "state": "data"},
    "copies on one axis": {"vocab": "model", "mlp": "model", "dt_rank": "model"},
}


def shardings(mesh, rules):
    def one(names):
        return NamedSharding(mesh, PartitionSpec(*(rules.get(name) for name in names)))

    return jax.tree.map(one, logical_axes(Plamo2(CONFIG)), is_leaf=is_axes)


def assert_same_bits(left, right):
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(np.asarray(a).view(np.uint32), np.asarray(b).view(np.uint32)),
        left,
        right,
    )


@pytest.fixture
def mesh():
    return jax.sharding.Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "model"))


@pytest.mark.parametrize("rules", RULES)
def test_every_slice_is_read_once_and_nothing_else(public, mesh, rules):
    """A slice cannot be had for less than its bytes, so a sum equal to the slices' shows that none cost more."""
    wanted = shardings(mesh, RULES[rules])
    read = []
    params = read_params(public, CONFIG, shardings=wanted, on_read=lambda done, total: read.append((done, total)))
    slices = {
        (jax.tree_util.keystr(path), str(shard.index)): shard.data.nbytes
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        for shard in leaf.addressable_shards
    }
    assert sum(done for done, _ in read) == sum(slices.values()) == CONFIG.parameter_count() * 4
    assert {total for _, total in read} == {CONFIG.parameter_count() * 4}
    assert jax.tree.map(lambda leaf: leaf.sharding, params) == wanted
    assert_same_bits(params, read_params(public, CONFIG))


def test_one_device_of_a_mesh_reads_only_its_share(public, mesh, monkeypatch):
    """A process that holds one of eight devices: jax asks for that device's indices alone."""
    wanted = shardings(mesh, RULES["cut both ways"])
    mine = jax.devices()[5]
    asked = []

    def of_one_device(shape, sharding, callback, dtype=None):
        asked.append(callback(sharding.devices_indices_map(shape)[mine]))
        return asked[-1]

    monkeypatch.setattr(jax, "make_array_from_callback", of_one_device)
    read = []
    params = read_params(public, CONFIG, shardings=wanted, on_read=lambda done, total: read.append(done))
    monkeypatch.undo()
    assert sum(read) == sum(array.nbytes for array in asked) < CONFIG.parameter_count() * 4 / 4
    whole = read_params(public, CONFIG, shardings=wanted)

    def shard(leaf):
        return next(s.data for s in leaf.addressable_shards if s.device == mine)

    assert_same_bits(params, jax.tree.map(shard, whole))


def test_a_run_folder_is_read_into_shardings_too(public, mesh, tmp_path):
    wanted = shardings(mesh, RULES["cut both ways"])
    from_public(public, tmp_path / "run", shardings=wanted)
    from_run = load_model(tmp_path / "run", shardings=wanted).params
    assert_same_bits(from_run, load_model(public, shardings=wanted).params)
    assert jax.tree.map(lambda leaf: leaf.sharding, from_run) == wanted
    replicated = NamedSharding(mesh, PartitionSpec())
    assert load_model(public, shardings=replicated).params["embedding"].sharding == replicated
