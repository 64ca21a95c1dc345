"""What the tests of surgery share: folders of the public layout, small runs."""

import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
for folder in ("convert", "train"):
    if str(TESTS / folder) not in sys.path:
        sys.path.append(str(TESTS / folder))


@pytest.fixture
def golden_tokenizer():
    return TESTS / "golden" / "tokenizer" / "tokenizer.jsonl"
