"""Local checkpoints: what a restart restores, what it refuses, and what stays on the disk. test_processes.py has several processes."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from plamo2_jax import checkpoint
from plamo2_jax.sharding.mesh import MeshConfig
from plamo2_jax.train import prepare, shard_files
from plamo2_jax.train.local_checkpoints import LocalCheckpoints
from plamo2_jax.train.loop import train
from plamo2_jax.train.state import TrainState
from support.runs import assert_same_params, params_of, record, stop_after


class Crash(Exception):
    """The end of a process that saves nothing."""


def crash_at(step):
    def on_step(done):
        if done == step:
            raise Crash

    return on_step


def local_steps(disk):
    return sorted(int(path.name.split("-")[0]) for path in disk.glob("*/*-p0"))


def test_a_crashed_run_resumes_from_both_tiers_bit_for_bit(uninterrupted, make_config, tmp_path, capfd):
    expected, _ = uninterrupted
    disk = tmp_path / "disk"
    config = make_config("run", output=tmp_path, local_checkpoints=disk, local_every=3, log_every=1)
    with pytest.raises(Crash):
        train(config, on_step=crash_at(8))
    assert (checkpoint.steps(config.folder), local_steps(disk)) == ([4], [3, 6])
    with pytest.raises(Crash):
        train(config, on_step=crash_at(11))
    assert "start: resuming from step 6 (local checkpoint)" in capfd.readouterr().err
    # The checkpoint of an earlier start is kept until all processes have finished one of this start.
    assert (checkpoint.steps(config.folder), local_steps(disk)) == ([4, 8], [6, 9])

    newest = next(disk.glob("*/9-*-p0"))
    array = max(newest.glob("*.bin"), key=lambda path: path.stat().st_size)
    content = bytearray(array.read_bytes())
    content[len(content) // 2] ^= 1
    array.write_bytes(content)
    partial = newest.with_name("10-00000000-p0.0a0b0c0d.tmp")
    partial.mkdir()
    assert train(config).step == 12
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("local checkpoint")]
    assert lines == [
        f"local checkpoint {partial} is not used: its writing was interrupted",
        f"local checkpoint {newest} is not used: it is damaged: {array.name} does not match its checksum",
    ]
    assert record(config) == record(expected)
    assert_same_params(params_of(config), params_of(expected))
    assert list(disk.iterdir()) == []

    restores = json.loads((config.folder / "goodput.json").read_text())["restores"]
    assert {tier: (sums["restores"], sums["repeated_steps"]) for tier, sums in restores.items()} == {
        "local": (1, 1),  # Step 7.
        "persistent": (1, 2),  # Steps 9 and 10.
    }
    assert all(sums["restore_seconds"] > 0 and sums["repeated_seconds"] > 0 for sums in restores.values())
    last = [json.loads(line) for line in (config.folder / "metrics.jsonl").read_text().splitlines()][-2]
    assert last["goodput_local_repeated_seconds"] == restores["local"]["repeated_seconds"]


def test_a_run_with_local_checkpoints_only_does_not_start_again_unasked(make_config, tmp_path, capfd):
    config = make_config("run", output=tmp_path, local_checkpoints=tmp_path / "disk", local_every=3)
    with pytest.raises(Crash):
        train(config, on_step=crash_at(4))
    assert checkpoint.steps(config.folder) == []
    before = (config.folder / "config.json").read_bytes()
    with pytest.raises(ValueError, match=r"to resume, add --local-checkpoints FOLDER.*delete .*run_id\.json"):
        train(dataclasses.replace(config, local_checkpoints=None, seed=7))
    assert (config.folder / "config.json").read_bytes() == before
    with pytest.raises(Crash):
        train(config, on_step=crash_at(5))
    assert "start: resuming from step 3 (local checkpoint)" in capfd.readouterr().err


def test_a_run_that_lost_a_slice_resumes_on_the_other(uninterrupted, make_config, tmp_path, monkeypatch, capfd):
    """Two slices of four devices hold the parameters twice, so the local checkpoints of one slice are complete."""
    expected, _ = uninterrupted
    both = make_config(
        "sliced",
        output=tmp_path,
        mesh=MeshConfig(data=2, slices=2),
        heldout={},
        local_checkpoints=tmp_path / "disk",
        local_every=3,
    )
    with pytest.raises(Crash):
        train(both, on_step=crash_at(8))
    monkeypatch.setattr(prepare, "_devices", lambda _: jax.devices()[:4])
    one = dataclasses.replace(both, mesh=MeshConfig(), accumulation=2)
    assert train(one, on_step=stop_after(9)).step == 9
    assert "start: resuming from step 6 (local checkpoint)" in capfd.readouterr().err
    manifest = json.loads((one.folder / "checkpoints" / "9" / "manifest.json").read_text())
    assert (manifest["mesh"]["data"], manifest["mesh"]["fsdp"]) == (1, 4)
    losses = [[line["loss"] for line in record(run) if "loss" in line][:9] for run in (one, expected)]
    # The order of sums differs, and nothing else.
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def placed(spec, array, count=4):
    mesh = Mesh(np.array(jax.devices()[:count]).reshape(2, -1), ("data", "fsdp"))
    return jax.device_put(array, NamedSharding(mesh, spec))


def abstract(tree):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), tree)


def test_shards_are_read_as_they_were_written(tmp_path):
    rng = np.random.default_rng(0)
    tree = {
        "halves": placed(P("fsdp"), rng.standard_normal((4, 3), np.float32)),
        "quarters": placed(P("fsdp", "data"), jnp.asarray(rng.standard_normal((2, 6)), jnp.bfloat16)),
        "eights": placed(P(), jnp.asarray(rng.standard_normal(5), jnp.float8_e4m3fn)),
        "count": placed(P(), np.int32(7)),
    }
    copies = shard_files.copy_shards(tree)
    assert {name: len(parts) for name, parts in copies.items()} == {"halves": 2, "quarters": 4, "eights": 1, "count": 1}
    wanted, values = abstract(tree), jax.tree.map(np.asarray, tree)
    index = json.loads(json.dumps(shard_files.write_shards(tmp_path, copies)))
    assert shard_files.find_difference(index, wanted) is None
    found = shard_files.read_shards(tmp_path, index, wanted)
    for name in tree:
        assert found[name].sharding == tree[name].sharding
        np.testing.assert_array_equal(np.asarray(found[name]), values[name])

    assert shard_files.find_difference(index, {"halves": wanted["halves"]}) == "it holds other tensors (count)"
    other = {**wanted, "halves": abstract(placed(P("data", None), tree["halves"], 2))}
    assert shard_files.find_difference(index, other) is None  # Other devices, the same shards.
    other["halves"] = abstract(placed(P(("data", "fsdp")), tree["halves"]))
    assert "does not hold the shards of halves" in shard_files.find_difference(index, other)
    other["halves"] = jax.ShapeDtypeStruct((4, 3), jnp.bfloat16, sharding=tree["halves"].sharding)
    assert shard_files.find_difference(index, other) == "halves has dtype float32, not bfloat16"


@pytest.fixture
def run(tmp_path):
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def state_at(step, values=(1.0, 2.0, 3.0, 4.0)):
    return TrainState(
        placed(P(), np.int32(step)),
        {"w": placed(P("fsdp"), np.array(values, np.float32) + step)},
        (),
        placed(P(), np.zeros(2, np.uint32)),
    )


def opened(run, begin=True):
    found = LocalCheckpoints(run.parent / "disk", run, abstract(state_at(0)))
    if begin:
        found.begin()
    return found


def test_old_checkpoints_are_removed_and_those_of_another_run_are_not_read(run):
    disk = run.parent / "disk"
    local = opened(run)
    for step in (10, 20, 30):
        local.save(state_at(step), {"number": step})
    local.wait()
    assert local_steps(disk) == [20, 30]
    again = opened(run)
    assert (again.newest, local_steps(disk)) == (30, [30])
    restored, data = again.restore()
    assert_same_params(restored, state_at(30))
    assert data == {"number": 30}
    again.save(state_at(40), {})
    again.wait()
    again.drop_after(30)  # As after a spike of the loss.
    assert local_steps(disk) == [30]

    (run / "run_id.json").unlink()
    other = opened(run)
    assert other.newest is None
    other.save(state_at(10), {})
    other.remove()
    assert local_steps(disk) == [30]


def test_a_disk_that_fails_does_not_end_the_run(run, capsys):
    disk = run.parent / "disk"
    disk.write_text("not a folder")
    local = opened(run)
    local.save(state_at(10), {})
    local.wait()
    error = capsys.readouterr().err
    assert "10-" in error
    assert "could not be written: " in error
    assert error.endswith("The run continues without it\n")
    disk.unlink()
    local.save(state_at(20), {})
    local.wait()
    assert opened(run, begin=False).newest == 20


def test_a_bucket_is_not_a_local_disk(make_config):
    with pytest.raises(
        ValueError, match=r"local_checkpoints=.* is not allowed: it must be a folder on a disk of the host"
    ):
        make_config("bucket", local_checkpoints="gs://bucket/local")
