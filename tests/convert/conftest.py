"""Folders in Hugging Face format to read."""

from pathlib import Path

import pytest

from support.checkpoints import random_tensors, write_public, write_sharded

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture
def tensors():
    return random_tensors()


@pytest.fixture
def public(tmp_path, tensors):
    return write_public(tmp_path / "public", tensors)


@pytest.fixture
def sharded(tmp_path, tensors):
    return write_sharded(tmp_path / "sharded", tensors)


@pytest.fixture
def golden_tokenizer():
    return GOLDEN / "tokenizer" / "tokenizer.jsonl"
