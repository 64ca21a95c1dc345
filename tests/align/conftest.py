"""What the tests of post-training share: a tokenizer, and a tiny model compiled once."""

import json
import sys
from pathlib import Path

import jax
import pytest

from plamo2_jax import checkpoint
from plamo2_jax.config import preset
from plamo2_jax.model import Plamo2, init_params
from plamo2_jax.tokenizer.chat_template import ChatTemplate
from plamo2_jax.tokenizer.tokenizer import Tokenizer

TESTS = Path(__file__).parents[1]
if str(TESTS / "train") not in sys.path:
    sys.path.append(str(TESTS / "train"))


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(TESTS / "golden" / "tokenizer")


@pytest.fixture(scope="session")
def template() -> ChatTemplate:
    return ChatTemplate.load("chat")


@pytest.fixture
def write_lines(tmp_path):
    """A function `(records, name) -> path` that writes JSON lines."""

    def write(records, name="data.jsonl"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = (record if isinstance(record, str) else json.dumps(record, ensure_ascii=False) for record in records)
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session", autouse=True)
def compile_once(tmp_path_factory):
    """Programs that are compiled twice are read from disk."""
    folder = str(tmp_path_factory.mktemp("compiled"))
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    yield
    jax.config.update("jax_compilation_cache_dir", None)


SHAPE = preset("tiny", hidden_size=32, intermediate_size=32, num_hidden_layers=2, mamba_num_heads=2, vocab_size=864)


@pytest.fixture(scope="session")
def model() -> Plamo2:
    return Plamo2(SHAPE)


@pytest.fixture(scope="session")
def params(model):
    """Parameters with logits that differ: those of a new model hardly do."""
    params = jax.jit(lambda key: init_params(model, key))(jax.random.key(0))
    return {**params, "embedding": 20 * params["embedding"]}


@pytest.fixture(scope="session")
def base(tmp_path_factory, params, tokenizer) -> Path:
    """A run folder with the model to start from."""
    folder = tmp_path_factory.mktemp("base") / "base"
    checkpoint.save_model(folder, SHAPE, params, tokenizer)
    return folder
