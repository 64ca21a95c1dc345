"""Compile a decoding step with libtpu: it takes little more than reading the weights and the cache."""

import dataclasses
from pathlib import Path

import pytest

from plamo2_jax.config import preset
from plamo2_jax.config_file import load_config
from plamo2_jax.plan.chips import chip_of
from plamo2_jax.plan.request import Request
from plamo2_jax.plan.steps import plan

pytestmark = pytest.mark.tpu
CONFIG = Path(__file__).parent.parent.parent / "configs" / "pretrain_8b.py"


def decode_plan(layers: int):
    config = dataclasses.replace(
        load_config(CONFIG), model=preset("plamo-2-8b", num_hidden_layers=layers, vocab_size=4096)
    )
    return plan(Request(config, "v5e:2x4", kind="decode", context=8192, rows=16))


def test_two_layers_take_little_more_than_reading_their_weights_and_cache():
    """A Mamba and an attention layer of the 8B on eight chips, 16 rows at 8K context: what they add to a decoding step."""
    short, found = decode_plan(2), decode_plan(4)

    def read(kind):
        return found.arguments[kind] - short.arguments[kind]

    # Keys and values of one head of 2,049 tokens in 16 rows on each chip, and the state of the scan of 8 heads.
    keys, state = 2 * 16 * 2049 * 128 * 2, 16 * 8 * 128 * 64 * 4
    assert read("cache") == pytest.approx(keys + state, rel=0.05)
    bound = (read("parameters") + read("cache")) / chip_of(found.device).hbm_bytes_per_second
    for name in ("hbm", "compute"):
        assert found.times[name] - short.times[name] <= 1.5 * bound, (name, found.times, short.times, bound)
    # Weights and keys that change their layout would be among the longest operations.
    assert all(o["seconds"] <= 5e-6 for o in found.operations if o["kind"] == "copy")
