"""Run folders: what is written comes back, and what is damaged is named."""

import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plamo2_jax import checkpoint
from plamo2_jax.config import preset
from plamo2_jax.tokenizer.tokenizer import Tokenizer
from support.tokenizers import byte_tokenizer

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
    with pytest.raises(ValueError, match="already exists"):
        checkpoint.save_model(folder, preset("tiny"), PARAMS)
    assert (folder / "config.json").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tree: tree["embed"].update(other=tree["run_0"]["mixer"]["A_log"]), "does not have 1 .*embed/other"),
        (lambda tree: tree["run_0"].clear(), "this model does not have: run_0/mixer/A_log"),
        (
            lambda tree: tree["embed"].update(embedding=jax.ShapeDtypeStruct((64, 95), np.float32)),
            r"embed/embedding has shape \(64, 96\): this model requires \(64, 95\)",
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
    with pytest.raises(checkpoint.CheckpointError, match="no finished checkpoint of step 7: it has 0"):
        checkpoint.restore_params(folder, abstract(), step=7)


def test_an_unfinished_step_does_not_count(folder):
    step = folder / "checkpoints" / "0"
    shutil.copytree(step, folder / "checkpoints" / "9.orbax-checkpoint-tmp")
    assert checkpoint.steps(folder) == [0]
    shutil.rmtree(step)
    assert checkpoint.latest_step(folder) is None
    with pytest.raises(checkpoint.CheckpointError, match="has no finished checkpoint"):
        checkpoint.restore_params(folder, abstract())


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(checkpoint.CheckpointError, match=r"not a run folder: it has no config\.json"):
        checkpoint.read_model_config(tmp_path)
    with pytest.raises(checkpoint.CheckpointError, match=r"none does not exist: it must be a run folder"):
        checkpoint.read_model_config(tmp_path / "none")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(checkpoint.CheckpointError, match="not valid JSON"):
        checkpoint.read_model_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"name": "x"}))
    with pytest.raises(checkpoint.CheckpointError, match='no object under the key "model"'):
        checkpoint.read_model_config(tmp_path)


def test_the_tokenizer_goes_with_the_model(tmp_path):
    tokenizer = byte_tokenizer()
    checkpoint.save_model(tmp_path / "model", preset("tiny"), PARAMS, tokenizer)
    assert Tokenizer.load(tmp_path / "model" / checkpoint.TOKENIZER).fingerprint == tokenizer.fingerprint


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def load(folder):
    return checkpoint.read_model_config(folder), checkpoint.restore_params(folder, abstract())


def test_a_flipped_bit_is_noticed_on_every_load(tmp_path):
    written = tmp_path / "written"
    checkpoint.save_model(
        written, preset("tiny"), PARAMS, byte_tokenizer(), files={"chat_template.jinja": b"{{ messages }}"}
    )
    names = [path.relative_to(written) for path in written.rglob("*") if path.is_file()]
    read = {name for name in names if len(name.parts) == 1 or "params" in name.parts}
    assert {str(name) for name in read} > {"config.json", "tokenizer.jsonl", "chat_template.jinja", "manifest.json"}
    for number, name in enumerate(sorted(read)):
        copy = shutil.copytree(written, tmp_path / f"copy{number}")
        flip_a_bit(copy / name)
        with pytest.raises(checkpoint.CheckpointError, match=f"{re.escape(str(copy))}.* damaged"):
            load(copy)


def test_a_folder_of_an_older_version_has_no_checksums(folder):
    for path in folder.rglob("manifest.json"):
        path.unlink()
    jax.tree.map(np.testing.assert_array_equal, checkpoint.restore_params(folder, abstract()), PARAMS)


OTHER_METADATA = (
    "",
    "[]",
    "{}",
    "null",
    '{"tree_metadata": 1}',
    "[" * 100_000,
    '{"tree_metadata": {"(\'embed\',)": []}}',
    "\0\0",
)


@pytest.mark.parametrize("content", OTHER_METADATA, ids=range(len(OTHER_METADATA)))
@pytest.mark.parametrize("name", ["_METADATA", "_sharding", "manifest.ocdbt", "array_metadatas/process_0"])
def test_metadata_of_another_shape_is_one_sentence(folder, name, content):
    """Without checksums, as in a folder of an older version: parameters come back as they were, or with an error that names the folder."""
    for path in folder.rglob("manifest.json"):
        path.unlink()
    item = folder / "checkpoints" / "0" / "params"
    assert (item / name).is_file()
    (item / name).write_text(content)
    restored, problem = None, None
    try:
        restored = checkpoint.restore_params(folder, abstract())
    except checkpoint.CheckpointError as error:
        problem = str(error)
    if problem is None:
        jax.tree.map(np.testing.assert_array_equal, restored, PARAMS)
    else:
        assert problem.startswith(f"{item} is incomplete or damaged: ")
        assert len(problem) < 300 + len(str(item))


def test_sizes_are_compared_before_a_model_is_built(folder):
    with pytest.raises(
        checkpoint.CheckpointError,
        match=r"config\.json describes a model with [\d,]+ parameters, but .*params has 6,152",
    ):
        checkpoint.check_size(folder, preset("plamo-2-31b"))
