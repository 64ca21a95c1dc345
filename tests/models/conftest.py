"""A tiny model on disk, and the same opened."""

from pathlib import Path

import jax
import pytest

from plamo2_jax import checkpoint, models
from plamo2_jax.config import preset
from plamo2_jax.model import Plamo2, init_params
from plamo2_jax.tokenizer.tokenizer import Tokenizer

SHAPE = preset("tiny", hidden_size=32, intermediate_size=32, num_hidden_layers=1, mamba_num_heads=2, vocab_size=864)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A run folder. Its logits differ: those of a new model hardly do."""
    params = jax.jit(lambda key: init_params(Plamo2(SHAPE), key))(jax.random.key(0))
    params = {**params, "embedding": 20 * params["embedding"]}
    folder = tmp_path_factory.mktemp("models") / "run"
    tokenizer = Tokenizer.load(Path(__file__).parents[1] / "golden" / "tokenizer")
    checkpoint.save_model(folder, SHAPE, params, tokenizer)
    return folder


@pytest.fixture(scope="session")
def model(folder):
    with models.open(folder, batch_size=4) as model:
        yield model
