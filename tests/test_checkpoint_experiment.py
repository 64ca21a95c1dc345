"""The state in a mapped file of experiments/checkpoint_memory, and its comparison with a state on other devices."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

FOLDER = Path(__file__).parents[1] / "experiments" / "checkpoint_memory"


@pytest.fixture
def mapped_state(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import mapped_state

    yield mapped_state
    del sys.modules["mapped_state"]


def on(count, *names):
    return NamedSharding(Mesh(np.array(jax.devices()[:count]), ("fsdp",)), PartitionSpec(*names))


def test_state_is_read_without_a_copy_and_compared_on_other_devices(mapped_state, tmp_path):
    path = tmp_path / "state"
    abstract = {
        "matrix": jax.ShapeDtypeStruct((16, 24), jnp.float32, sharding=on(8, None, "fsdp")),
        "moments": jax.ShapeDtypeStruct((32,), jnp.bfloat16, sharding=on(8, "fsdp")),
        "step": jax.ShapeDtypeStruct((), jnp.int32, sharding=on(8)),
    }
    mapped_state.write(path, abstract)
    state = mapped_state.read(path, abstract)
    assert jax.tree.map(lambda leaf: leaf.sharding, state) == jax.tree.map(lambda leaf: leaf.sharding, abstract)
    maps = Path("/proc/self/maps")
    if maps.exists():
        begin, end = (
            int(word, 16)
            for word in next(one for one in maps.read_text().splitlines() if str(path) in one).split()[0].split("-")
        )
        pointers = [shard.data.unsafe_buffer_pointer() for leaf in state.values() for shard in leaf.addressable_shards]
        assert all(begin <= pointer < end for pointer in pointers)
    assert mapped_state.is_equal(path, state)
    fewer = jax.device_put(state, {"matrix": on(4, "fsdp"), "moments": on(4, "fsdp"), "step": on(4)})
    assert mapped_state.is_equal(path, fewer)
    fewer["matrix"] = fewer["matrix"].at[15, 23].add(1)
    assert not mapped_state.is_equal(path, fewer)
