"""What the tests of post-training share: a tokenizer, and a tiny model compiled once."""

import json
from pathlib import Path

import jax
import pytest

from plamo2_jax import checkpoint
from plamo2_jax.data.pipeline import DataConfig, MixtureItem
from plamo2_jax.model import Plamo2, init_params
from plamo2_jax.tokenizer.chat_template import ChatTemplate
from plamo2_jax.tokenizer.tokenizer import Tokenizer
from plamo2_jax.train.schedule import ScheduleConfig
from support.endpoint_server import Server
from support.models import tiny

TESTS = Path(__file__).parents[1]


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


SHAPE = tiny(vocab_size=864)
# Runs are about data, losses and adapters: one layer of attention compiles in a third of the time of a pair of layers.
SMALL = tiny(vocab_size=864, num_hidden_layers=1)


def make_params(model):
    """Parameters with logits that differ: those of a new model hardly do."""
    params = jax.jit(lambda key: init_params(model, key))(jax.random.key(0))
    return {**params, "embedding": 20 * params["embedding"]}


@pytest.fixture(scope="session")
def model() -> Plamo2:
    return Plamo2(SHAPE)


@pytest.fixture(scope="session")
def params(model):
    return make_params(model)


@pytest.fixture(scope="session")
def small() -> Plamo2:
    return Plamo2(SMALL)


@pytest.fixture(scope="session")
def small_params(small):
    return make_params(small)


@pytest.fixture(scope="session")
def base(tmp_path_factory, small_params, tokenizer) -> Path:
    """A run folder with the model to start from."""
    folder = tmp_path_factory.mktemp("base") / "base"
    checkpoint.save_model(folder, SMALL, small_params, tokenizer)
    return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """Folder with conversations (chat-a, chat-b, chat-heldout) and pairs (pairs, pairs-heldout)."""
    folder = tmp_path_factory.mktemp("data")

    def write(name, records):
        lines = (json.dumps(record, ensure_ascii=False) for record in records)
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")

    for name, letters in (("chat-a", "abcdefgh"), ("chat-b", "ijklmnop"), ("chat-heldout", "abij")):
        write(name, [{"instruction": f"{c}?", "output": c * 3} for c in letters])
    for name, letters in (("pairs", "abcdefgh"), ("pairs-heldout", "mn")):
        write(name, [{"prompt": f"{c}?", "chosen": c * 2, "rejected": f"{c}!" * 3} for c in letters])
    return folder


@pytest.fixture(scope="session")
def fields(data, base):
    """Fields of a run, but for its name and data."""
    return {
        "model": SMALL,
        "tokenizer": base,
        "steps": 6,
        "init_from": base,
        "dtype": "float32",
        "schedule": ScheduleConfig(learning_rate=1e-2, warmup=0.0),
        "checkpoint_every": 3,
        "evaluate_every": 6,
        "log_every": 3,
    }


@pytest.fixture(scope="session")
def rows_of():
    """A function `(paths) -> DataConfig` of small rows; two of them are divided over two devices."""

    def make(*paths, sequence_length=96, batch_size=2):
        items = tuple(MixtureItem(path) for path in paths)
        return DataConfig(items, sequence_length, batch_size, packing_bins=4, prefetch_batches=0)

    return make


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server()
    yield server
    server.close()
