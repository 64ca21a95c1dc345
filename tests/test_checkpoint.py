"""Run folders: what is written comes back, and what is damaged is named."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plamo2_jax import checkpoint
from plamo2_jax.config import preset

PARAMS = {
    "embed": {"embedding": np.random.default_rng(0).standard_normal((64, 96)).astype(np.float32)},
    "run_0": {"mixer": {"A_log": np.log(np.arange(1, 9, dtype=np.float32))}},
}


def abstract(params=PARAMS, dtype=None):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype or leaf.dtype), params)


@pytest.fixture
def folder(tmp_path):
    checkpoint.save_model(
        tmp_path / "model", preset("tiny", full_attention_idx=(3,)), jax.tree.map(jnp.asarray, PARAMS)
    )
    return tmp_path / "model"


def test_round_trip(folder):
    restored = checkpoint.restore_params(folder, abstract())
    jax.tree.map(np.testing.assert_array_equal, restored, PARAMS)
    assert checkpoint.read_model_config(folder) == preset("tiny", full_attention_idx=(3,))
    assert checkpoint.latest_step(folder) == 0
    assert sorted(path.name for path in folder.parent.iterdir()) == ["model"]


def test_restoring_casts_and_shards(folder):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    wanted = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16, sharding=sharding), abstract())
    embedding = checkpoint.restore_params(folder, wanted)["embed"]["embedding"]
    assert embedding.sharding == sharding
    np.testing.assert_array_equal(embedding, PARAMS["embed"]["embedding"].astype(jnp.bfloat16))


def test_a_folder_in_use_is_not_overwritten(folder):
    before = (folder / "config.json").read_bytes()
    with pytest.raises(ValueError, match="exists already"):
        checkpoint.save_model(folder, preset("tiny"), PARAMS)
    assert (folder / "config.json").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tree: tree["embed"].update(other=tree["run_0"]["mixer"]["A_log"]), "lacks 1 .*embed/other"),
        (lambda tree: tree["run_0"].clear(), "this model lacks: run_0/mixer/A_log"),
        (
            lambda tree: tree["embed"].update(embedding=jax.ShapeDtypeStruct((64, 95), np.float32)),
            r"embed/embedding has shape \(64, 96\), the model wants \(64, 95\)",
        ),
    ],
)
def test_another_model_is_refused_by_tensor_name(folder, change, message):
    wanted = abstract()
    change(wanted)
    with pytest.raises(checkpoint.CheckpointError, match=message):
        checkpoint.restore_params(folder, wanted)


def damage_metadata(step):
    (step / "params" / "_METADATA").unlink()


def damage_manifest(step):
    (step / "params" / "manifest.ocdbt").unlink()


def damage_data(step):
    for path in (step / "params").rglob("d/*"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damage", [damage_metadata, damage_manifest, damage_data])
def test_damage_is_one_clear_error(folder, damage):
    damage(folder / "checkpoints" / "0")
    with pytest.raises(checkpoint.CheckpointError, match=r"checkpoints/0/params is incomplete"):
        checkpoint.restore_params(folder, abstract())


def test_a_missing_step_names_those_there_are(folder):
    with pytest.raises(checkpoint.CheckpointError, match="no finished checkpoint of step 7; it has 0"):
        checkpoint.restore_params(folder, abstract(), step=7)


def test_an_unfinished_step_does_not_count(folder):
    step = folder / "checkpoints" / "0"
    shutil.copytree(step, folder / "checkpoints" / "9.orbax-checkpoint-tmp")
    assert checkpoint.steps(folder) == [0]
    shutil.rmtree(step)
    assert checkpoint.latest_step(folder) is None
    with pytest.raises(checkpoint.CheckpointError, match="holds no finished checkpoint"):
        checkpoint.restore_params(folder, abstract())


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(checkpoint.CheckpointError, match=r"not a run folder: it has no config\.json"):
        checkpoint.read_model_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(checkpoint.CheckpointError, match="not valid JSON"):
        checkpoint.read_model_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"name": "x"}))
    with pytest.raises(checkpoint.CheckpointError, match='no object under the key "model"'):
        checkpoint.read_model_config(tmp_path)


def test_the_tokenizer_goes_with_the_model(tmp_path):
    class Vocabulary:
        def save(self, path):
            path.write_text("rows")

    checkpoint.save_model(tmp_path / "model", preset("tiny"), PARAMS, Vocabulary())
    assert (tmp_path / "model" / checkpoint.TOKENIZER).read_text() == "rows"
