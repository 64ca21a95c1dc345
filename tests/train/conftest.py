"""A small run on real text: a byte vocabulary, shards of bundled documents, a two-layer model."""

import itertools
from pathlib import Path

import pytest

from plamo2_jax.data.corpus import documents
from plamo2_jax.data.documents import Document
from plamo2_jax.data.pipeline import DataConfig, MixtureItem
from plamo2_jax.data.shard_writer import write_shards
from plamo2_jax.train.config import RunConfig
from plamo2_jax.train.loop import train
from plamo2_jax.train.pretraining import Pretrain
from support.models import tiny
from support.tokenizers import byte_tokenizer


@pytest.fixture(scope="session")
def home(tmp_path_factory) -> Path:
    """Folder with tokenizer.jsonl and shards train, heldout/ja and heldout/en."""
    home = tmp_path_factory.mktemp("pretrain")
    tokenizer = byte_tokenizer()
    tokenizer.save(home / "tokenizer.jsonl")
    parts = {"train": ("ja", "train", 6), "heldout/ja": ("ja", "heldout", 2), "heldout/en": ("en", "heldout", 2)}
    for name, (language, split, count) in parts.items():
        texts = (entry["text"][:400] for entry in itertools.islice(documents(language, split), count))
        some = [Document(text, f"{name}/{i}", {"language": language}) for i, text in enumerate(texts)]
        write_shards(some, tokenizer, home / name, progress=False)
    return home


@pytest.fixture(scope="session")
def make_config(home):
    """A function `(name, **fields) -> RunConfig` of runs that make the same updates."""

    def make(name: str, **fields) -> RunConfig:
        defaults = {
            "model": tiny(),
            "tokenizer": home / "tokenizer.jsonl",
            "data": DataConfig((MixtureItem(home / "train"),), sequence_length=32, batch_size=8, packing_bins=16),
            "steps": 12,
            "task": Pretrain(),
            "output": home / "runs",
            "heldout": {language: home / "heldout" / language for language in ("ja", "en")},
            "dtype": "float32",
            "checkpoint_every": 4,
            "evaluate_every": 6,
            "log_every": 3,
        }
        return RunConfig(name=name, **(defaults | fields))

    return make


@pytest.fixture(scope="session")
def uninterrupted(make_config):
    """A run that was never stopped, and its outcome."""
    config = make_config("uninterrupted")
    return config, train(config)
