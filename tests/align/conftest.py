"""What the tests of post-training share: a tokenizer, and a tiny model compiled once."""

import json
import sys
from pathlib import Path

import pytest

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
