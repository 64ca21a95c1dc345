"""A vocabulary trained on the bundled corpus, and the corpus in shards, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from plamo2_jax.data.shard_writer import write_shards
from plamo2_jax.data.sources import read_documents
from plamo2_jax.tokenizer.tokenizer import Tokenizer
from support.shards import letter_tokenizer


@pytest.fixture(scope="session")
def letters() -> Tokenizer:
    """One token a character."""
    return letter_tokenizer()


@pytest.fixture(scope="session")
def vocabulary() -> Tokenizer:
    """4096 rows trained on the bundled corpus."""
    from plamo2_jax.tokenizer.train import VocabularyOptions, train_tokenizer

    texts = (document.text for document in read_documents(["bundled:all:train"]))
    return train_tokenizer(texts, VocabularyOptions(vocab_size=4096, sample_bytes=400_000, character_coverage=0.99))


@pytest.fixture(scope="session")
def corpus_shards(vocabulary, tmp_path_factory) -> dict[str, Path]:
    """The training side of the bundled corpus, a folder a language."""
    folder = tmp_path_factory.mktemp("corpus")
    for language in ("ja", "en"):
        documents = read_documents([f"bundled:{language}:train"])
        write_shards(documents, vocabulary, folder / language, progress=False)
    return {language: folder / language for language in ("ja", "en")}
