"""A tiny hybrid model and a tokenizer of bytes, syllables and words, as fixtures: tests of generation and of the server share them."""

import functools

import jax
import pytest

from plamo2_jax.config import preset
from plamo2_jax.engine.generator import Generator
from plamo2_jax.model import Plamo2, init_params
from plamo2_jax.tokenizer.tokenizer import Tokenizer

CONTROLS = ["<|plamo:bos|>", "<|plamo:eos|>", "<|plamo:pad|>", "<|plamo:op|>"]
WORDS = ["ab", "ba", "aba", " the", "ing", "猫", "吾輩", "は", "である", "。\n"]

# A window far shorter than what is generated, so that the ring wraps; the embedding has rows that the tokenizer lacks.
CONFIG = preset(
    "tiny",
    hidden_size=64,
    num_hidden_layers=4,
    intermediate_size=96,
    hidden_size_per_head=16,
    mamba_num_heads=6,
    mamba_d_state=8,
    attention_window_size=6,
    # As written to and read from a config.json, so that a loaded model shares what is compiled.
    rope_local_theta=10000.0,
    vocab_size=288,
    initializer_range=0.1,
)


@pytest.fixture(scope="session")
def tokenizer():
    rows = [["<|plamo:unk|>", 0.0, "UNKNOWN"]]
    rows += [[name, 0.0, "CONTROL"] for name in CONTROLS]
    rows += [[f"<0x{value:02X}>", -20.0, "BYTE"] for value in range(256)]
    rows += [[word, -1.0, "NORMAL"] for word in WORDS]
    return Tokenizer.from_rows([[*row, 0, 0, 0, 0] for row in rows])


@pytest.fixture(scope="session")
def model():
    return Plamo2(CONFIG)


@pytest.fixture(scope="session")
def params(model):
    return jax.jit(functools.partial(init_params, model))(jax.random.key(0))


@pytest.fixture(scope="session")
def generator(model, params, tokenizer):
    return Generator(model, params, tokenizer, prefill_size=16)
