"""The table of names: it covers the network exactly and adds up to the published files."""

import collections
import math

import flax.traverse_util
import pytest

from plamo2_jax.config import PRESETS, preset
from plamo2_jax.convert.layout import public_tensors
from plamo2_jax.convert.write import header, plan_shards
from plamo2_jax.model import Plamo2, abstract_params
from support.checkpoints import CONFIG, DTYPES


@pytest.mark.parametrize("name", [*PRESETS, "odd"])
def test_every_parameter_is_filled_exactly_once(name):
    config = CONFIG if name == "odd" else preset(name)
    parts = collections.defaultdict(list)
    for tensor in public_tensors(config):
        assert sum(part.size for part in tensor.parts) == math.prod(tensor.shape)
        for part in tensor.parts:
            parts[part.path].append(part)
    leaves = flax.traverse_util.flatten_dict(abstract_params(Plamo2(config)), sep="/")
    assert parts.keys() == leaves.keys()
    for path, leaf in leaves.items():
        periods = [part.period for part in parts[path]]
        if periods == [None]:
            assert parts[path][0].shape == leaf.shape
        else:
            assert periods == list(range(leaf.shape[0]))
            assert {part.shape for part in parts[path]} == {leaf.shape[1:]}


def test_plamo_2_translate_has_the_published_tensors_and_bytes():
    """435 tensors (GGUF metadata of pfnet/plamo-translate-cli); a published BF16 file of 19,056,520,807 bytes with its header."""
    tensors = public_tensors(preset("plamo-2-translate"))
    assert len(tensors) == len({tensor.name for tensor in tensors}) == 435
    assert sum(tensor.size for tensor in tensors) == 9_528_235_008
    (shard,) = plan_shards(tensors, DTYPES["bfloat16"], 10**12)
    assert shard.bytes(DTYPES["bfloat16"]) == 19_056_470_016
    # Writers differ in spacing of the JSON only.
    assert abs(len(header(shard.tensors, DTYPES["bfloat16"])) - (19_056_520_807 - 19_056_470_016)) < 2000


def test_plamo_2_1b_has_the_published_bytes():
    tensors = public_tensors(preset("plamo-2-1b"))
    assert sum(tensor.size for tensor in tensors) * 4 == 5_165_767_680
    assert "lm_head.weight" not in {tensor.name for tensor in tensors}


def test_shards_keep_to_their_size():
    tensors = public_tensors(preset("plamo-2-1b"))
    for limit in (10**8, 10**9, 5 * 10**9):
        shards = plan_shards(tensors, DTYPES["float32"], limit)
        assert [tensor for shard in shards for tensor in shard.tensors] == tensors
        assert all(shard.bytes(DTYPES["float32"]) <= limit or len(shard.tensors) == 1 for shard in shards)
        assert shards[0].name == f"model-00001-of-{len(shards):05}.safetensors"
