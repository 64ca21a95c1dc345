"""Tiny models shared by the tests of the network."""

import functools

import jax
import pytest

from plamo2_jax.config import preset
from plamo2_jax.model import Plamo2, init_params

# Three runs, the last a shorter period; windows shorter than the rows, one layer of full attention with its own RoPE base.
CONFIG = preset(
    "tiny",
    hidden_size=64,
    num_hidden_layers=5,
    intermediate_size=96,
    hidden_size_per_head=16,
    mamba_num_heads=6,
    mamba_d_state=8,
    attention_window_size=6,
    full_attention_idx=(3,),
    rope_theta=1e5,
    rope_local_theta=1e3,
    vocab_size=97,
    initializer_range=0.1,
)


@pytest.fixture(scope="session")
def model():
    return Plamo2(CONFIG)


@pytest.fixture(scope="session")
def params(model):
    return jax.jit(functools.partial(init_params, model))(jax.random.key(0))


@pytest.fixture(scope="session")
def apply(model):
    return jax.jit(lambda params, *args, **kwargs: model.apply({"params": params}, *args, **kwargs))
